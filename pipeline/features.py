"""Features of images, on Ray or in this process: Inception's for a set, a re-ID network's for a list of files."""

import dataclasses
import hashlib
import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import torch

from actors.feature_extractor import FeatureExtractor
from actors.style_mixer import StyleMixer, check_network
from datasets.people.decoding import decode_bicubic, remarks
from datasets.people.image_sets import ROW_IMAGES, ImageSet
from datasets.runs.configuration import CAMERA, MIX, RECIPE, Configuration
from datasets.storage.feature_cache import cached, feature_key
from passersby.devices import chosen_device
from passersby.errors import InputError
from passersby.perception.inception import FEATURES, Inception
from passersby.reid.network import FeatureNetwork
from passersby.stylegan3 import LoadedNetwork
from pipeline.cluster import resources
from pipeline.pools import Pool, describe, fit_pools
from pipeline.run import run_units
from reporting.progress import ProgressLine

THREADS = 1  # of an actor


@dataclasses.dataclass(frozen=True)
class Workers:
    """Where features are computed: the device "cpu" or "cuda", and the number of actors; None: one a GPU or a CPU.

    here: compute in this process, one stage after the other, without Ray and with PyTorch's default number of threads.
    """

    device: str
    here: bool = False
    extractors: int | None = None
    generators: int | None = None

    @classmethod
    def chosen(cls, device: str, here: bool, extractors: int | None = None, generators: int | None = None) -> "Workers":
        """Workers on the chosen device. "auto" is "cuda" where this process, or without `here` the cluster, has GPUs.

        Raises InputError where a GPU is asked for and there is none.
        """
        gpus = int(torch.cuda.is_available()) if here else resources().gpus
        device = chosen_device(device, gpus)
        if device == "cuda" and not gpus:
            raise InputError("--device cuda: no usable GPU here; leave it out to run on the CPU")
        return cls(device, here, extractors, generators)

    def pools(self, stages: Sequence[tuple[type, dict]], units: int) -> list[Pool]:
        """A pool for each stage on the connected cluster as it is now; also prints them."""
        requests = [Pool("generators", self.generators)] * (len(stages) > 1) + [Pool("extractors", self.extractors)]
        cluster = resources()
        pools = fit_pools(requests, cluster, self.device == "cuda", units)
        print(describe(pools, cluster), flush=True)
        return pools


def network_images(
    name: str, loaded: LoadedNetwork, count: int, seed: int, truncation_psi: float
) -> tuple[ImageSet, Configuration]:
    """The images of seeds `seed` ... `seed` + count - 1, to be made by a StyleMixer of this configuration.

    The reference StyleGAN3 tools make the same images, at the network's size. With labels of cameras each image gets
    the camera that the seed and the image's number decide. Raises InputError for a network with other labels, or values
    out of range.
    """
    config = loaded.generator.config
    configuration = Configuration(
        seed=seed, variants=1, method=CAMERA if loaded.cameras else MIX, layers=() if loaded.cameras else (0,),
        amount=None, truncation_psi=truncation_psi, cameras=loaded.cameras,
        network=loaded.sha256, height=config.height, width=config.width, format="png", jpeg_quality=None,
        unit_images=ROW_IMAGES, detector="", reference_threshold=0.0, ssim_data_range=1.0, recipe=RECIPE,
    )  # fmt: skip
    check_network(config, configuration)
    if seed + count > 2**32:
        raise InputError(f"--seed {seed}: seeds end at {2**32 - 1}, also that of the last of {count} images")
    rows = [
        {"unit": unit, "first_person": first, "people": min(ROW_IMAGES, count - first)}
        for unit, first in enumerate(range(0, count, ROW_IMAGES))
    ]
    description = f"{name}: {count:,} images, seeds {seed} to {seed + count - 1}, truncation {truncation_psi:g}"
    sha256 = hashlib.sha256(f"{loaded.sha256} {seed} {count} {truncation_psi}".encode()).hexdigest()
    sizes = (((config.height, config.width), count),)
    return ImageSet("network", description, count, tuple(rows), sizes, sha256, count), configuration


def features_of(
    images: ImageSet,
    size: tuple[int, int],
    inception: Inception,
    workers: Workers,
    made_by: tuple[torch.nn.Module, Configuration] | None = None,
    keep: bool = False,
) -> np.ndarray:
    """Features [N, 2048] float32 of a set at `size` (height, width), in its order; unreadable images are left out.

    made_by: generator and configuration, where a StyleMixer makes the set's images from its rows. keep: take the
    features from the cache folder, or store them there. Raises InputError where a unit failed for good, and where no
    image can be read.
    """
    if keep:
        key = feature_key(bytes.fromhex(images.sha256), *size, inception.sha256)
        features = cached(key, lambda: features_of(images, size, inception, workers, made_by))
    else:
        wrap = (lambda network: network) if workers.here else ray.put
        arguments = {"device": workers.device, "threads": torch.get_num_threads() if workers.here else THREADS}
        stages: list[tuple[type, dict]] = []
        if made_by is not None:
            generator, configuration = made_by
            stages += [(StyleMixer, {"generator": wrap(generator), "configuration": configuration, **arguments})]
        height, width = size
        stages += [(FeatureExtractor, {"network": wrap(inception), "height": height, "width": width, **arguments})]
        rows = rows_through(images.rows, stages, workers, images.count, height * width * 3, images.description)
        incomplete = [row for row in rows if row["unreadable"]]
        if incomplete:
            count = sum(row["unreadable"] for row in incomplete)
            print(f"note: {count:,} images are left out, the first: {incomplete[0]['message']}", file=sys.stderr)
        features = np.concatenate([np.frombuffer(row["features"], np.float32).reshape(-1, FEATURES) for row in rows])
    if not len(features):
        raise InputError(f"{images.description}: not one can be read")
    return features


def rows_through(
    rows: Sequence[dict],
    stages: Sequence[tuple[type, dict]],
    workers: Workers,
    images: int,
    image_bytes: int,
    description: str,
) -> list[dict]:
    """Put rows of images through stages that end with a FeatureExtractor; returns its rows, in the order of units.

    images: number of images in all rows, for the progress line. image_bytes: raw pixels of one image. description: name
    of the images in the InputError, which is raised where a unit failed for good.
    """
    rows, row_of = list(rows), {}

    def plan(units: int) -> list[Pool]:
        return workers.pools(stages, units)

    if workers.here:
        results = run_here(rows, stages)
    else:
        results = run_units(rows, stages, plan(len(rows)), plan, ROW_IMAGES * image_bytes)
    with ProgressLine(len(rows), images) as line:
        for row in results:
            if "failure" in row:
                raise InputError(f"{description}: {row['failed_stage']} failed: {row['failure']}")
            row_of[row["unit"]] = row
            line.update(row["images"] + row["unreadable"])
    return [row_of[unit] for unit in sorted(row_of)]  # rows come in the order in which units finish


def run_here(rows: Sequence[dict], stages: Sequence[tuple[type, dict]]) -> Iterator[dict]:
    """Put the rows through the stages one after the other, in this process."""
    actors: list[Callable[[pa.Table], pa.Table]] = [stage(**arguments) for stage, arguments in stages]
    for row in rows:
        batch = pa.table({name: [value] for name, value in row.items()})
        for actor in actors:
            batch = actor(batch)
        yield {name: batch[name][0].as_py() for name in batch.column_names}


# ---- Features of a list of images by a re-ID network.


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Features of the readable images of a list.

    features [M, D] float32. places [M] int64, ascending: the indices of these images in the list. problem: the reason
    why the first unreadable image cannot be read; None where all images can be read. notes: lines for the user.
    """

    features: np.ndarray
    places: np.ndarray
    problem: str | None
    notes: tuple[str, ...] = ()


def embeddings_of(
    contents: Sequence[Path | bytes], network: FeatureNetwork, workers: Workers, description: str
) -> Embeddings:
    """Flip-averaged features of images, files or encoded bytes, at the network's size.

    Raises InputError where no image can be read, and where a unit of work failed for good.
    """
    size = {"height": network.height, "width": network.width_pixels}
    arguments = {
        "network": network if workers.here else ray.put(network),
        "device": workers.device,
        "threads": torch.get_num_threads() if workers.here else THREADS,
        "decode": decode_bicubic,
    }
    stages = [(FeatureExtractor, size | arguments)]
    image_bytes = network.height * network.width_pixels * 3
    rows = rows_through(list(_rows(contents)), stages, workers, len(contents), image_bytes, description)
    readable = np.array([flag for row in rows for flag in row["readable"]], bool)
    problem = next((row["message"] for row in rows if row["unreadable"]), None)
    if not readable.any():
        raise InputError(f"{description}: not one of {len(contents)} images can be read ({problem})")
    features = np.concatenate([np.frombuffer(row["features"], np.float32) for row in rows]).reshape(-1, network.width)
    peculiar = Counter(kind for row in rows for kind in row["peculiarities"])
    return Embeddings(features, np.flatnonzero(readable), problem, tuple(remarks(peculiar)))


def _rows(contents: Sequence[Path | bytes]) -> Iterator[dict]:
    unit = itertools.count()
    for encoded, group in itertools.groupby(contents, lambda content: isinstance(content, bytes)):
        # Paths are absolute, as the workers' folder differs.
        # They are bytes, as the names of files need not be UTF-8.
        items = [content if isinstance(content, bytes) else os.fsencode(Path(content).absolute()) for content in group]
        for start in range(0, len(items), ROW_IMAGES):
            yield {"unit": next(unit), "image" if encoded else "path": items[start : start + ROW_IMAGES]}
