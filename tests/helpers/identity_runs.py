"""Small finished runs with identity scores, made without Ray and without a generator, for tests of derived files."""

import cv2
import numpy as np
import pyarrow as pa
import torch

from actors.identity_scorer import IdentityScorer
from datasets.people.listing import Listing
from datasets.people.real_people import RealPeople, real_people
from datasets.runs.plan import PLAN_FILE, Configuration, Plan
from datasets.runs.rows import images_of, with_columns
from datasets.runs.shards import shard_table, write_shard
from datasets.storage.output import Output
from passersby.reid.network import FeatureNetwork, ReidConfig, ReidNetwork

HEIGHT, WIDTH, VARIANTS = 32, 16, 3
CONFIGURATION = Configuration(
    seed=0, variants=VARIANTS, method="mix", layers=(5,), amount=None, truncation_psi=0.7, network="n", height=HEIGHT,
    width=WIDTH, format="png", jpeg_quality=None, unit_images=6, detector="d", reference_threshold=0.6,
    ssim_data_range=4095.0,
)  # fmt: skip
REAL_SEEDS = {7: (1, 2), 8: (3, 4), 12: (5, 6), 40: (7, 8)}  # identity -> the seeds of the person's pictures


def tiny_network() -> FeatureNetwork:
    """A re-ID network with fixed random weights."""
    torch.manual_seed(0)
    config = ReidConfig(classes=3, backbone="resnet10", neck="none", height=HEIGHT, width=WIDTH, stem="small")
    return FeatureNetwork(ReidNetwork(config).eval(), "ab" * 32)


def picture(seed: int) -> np.ndarray:
    """[HEIGHT, WIDTH, 3] uint8: two colours and some noise."""
    rng = np.random.default_rng(seed)
    image = np.empty((HEIGHT, WIDTH, 3))
    image[: HEIGHT // 2], image[HEIGHT // 2 :] = rng.integers(0, 256, (2, 3))
    return np.clip(image + rng.integers(-20, 20, image.shape), 0, 255).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(image[:, :, ::-1]))[1].tobytes()


def real_listing() -> Listing:
    """Two pictures of each of four people."""
    rows = [(identity, seed) for identity, seeds in REAL_SEEDS.items() for seed in seeds]
    return Listing(
        "toys train",
        tuple(png(picture(seed)) for _, seed in rows),
        np.array([identity for identity, _ in rows]),
        np.full(len(rows), -1),
        tuple(f"train/{identity:04d}_{seed}.png" for identity, seed in rows),
        {identity: f"{identity:04d}" for identity in REAL_SEEDS},
    )


def compared_with(network: FeatureNetwork, names: list[str] | None = None) -> RealPeople:
    listing = real_listing()
    pixels = np.stack([picture(seed) for seeds in REAL_SEEDS.values() for seed in seeds])
    return real_people(listing, network(pixels), names)


def make_run(
    address: str,
    images: list[list[np.ndarray | None]],
    scorer: IdentityScorer | None,
    source: str = "seed",
    detector: float = 0.9,
) -> tuple[Output, Plan]:
    """A finished run whose person i has the VARIANTS images[i]; None is an image that could not be made."""
    output, plan = Output(address), Plan(CONFIGURATION).extended(len(images))
    output.write(PLAN_FILE, plan.to_json())
    for unit in plan.units():
        people = range(unit.first_person, unit.first_person + unit.people)
        rows = [(person, variant) for person in people for variant in range(VARIANTS)]
        pictures = [images[person][variant] for person, variant in rows]
        first = {person: next((v for v, x in enumerate(images[person]) if x is not None), None) for person in people}
        columns = {
            "person": pa.array([person for person, _ in rows], pa.int64()),
            "variant": pa.array([variant for _, variant in rows], pa.int64()),
            "source": pa.array([source] * len(rows)),
            "image": pa.array([None if image is None else png(image) for image in pictures], pa.binary()),
            "status": pa.array(["error" if image is None else "ok" for image in pictures]),
            "message": pa.array(["not finite" if image is None else None for image in pictures], pa.string()),
            "detector_score": pa.array([None if image is None else detector for image in pictures], pa.float32()),
            "ssim": pa.array([None if image is None else 0.8 for image in pictures], pa.float32()),
            "reference_variant": pa.array([first[person] for person, _ in rows], pa.int64()),
        }
        batch = with_columns(pa.table({"unit": pa.array([unit.unit], pa.int64())}), columns)
        batch = batch if scorer is None else scorer(batch)
        write_shard(output, CONFIGURATION.hash, unit.unit, shard_table(unit.unit, images_of(batch)))
    return output, plan
