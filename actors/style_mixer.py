"""Makes the images of a unit: people from seeds or of latents, and variants of each by mixing or interpolating."""

import contextlib
import time
from collections.abc import Iterator

import cv2
import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional

from datasets.latents.partners import RealCodes, partners_of
from datasets.runs.plan import Configuration
from datasets.runs.rows import NO_PARTNER, Reference, amounts_of, planned_columns, resolved, with_columns
from datasets.runs.shards import SCHEMA
from passersby.errors import InputError
from passersby.restyle.pivotal import apply_delta, load_delta
from passersby.stylegan3 import Generator, GeneratorConfig, to_uint8

# Images of one person that go through the network together. Never a matter of units or pools, so that an
# image does not depend on them; on a CPU small chunks stay in the caches.
CHUNK = {"cuda": 64, "cpu": 8}


def check_network(network: GeneratorConfig, configuration: Configuration, codes: RealCodes | None = None) -> None:
    """Raises InputError when a generator of this kind cannot make these people: on the driver, before
    actors start."""
    needed = configuration.layers[-1] + 1
    if network.c_dim or network.num_ws < needed or network.img_channels != 3:
        raise InputError(
            f"--network has {network.c_dim} labels, {network.num_ws} style inputs and {network.img_channels} channels: "
            f"give one without labels, with {needed} style inputs or more and 3 channels"
        )
    if codes is not None and codes.people.shape[1:] != (network.num_ws, network.w_dim):
        found = " x ".join(map(str, codes.people.shape[1:]))
        raise InputError(f"--latents: codes of {found} values, --network takes {network.num_ws} x {network.w_dim}")


class StyleMixer:
    """A stage: a unit's row (unit, first_person, people) becomes the unit with its images.

    Person i is the w of seed S + i, its variant 0 the image of that w. Each other variant has a second
    code of its own (`Configuration.mix_seed`) under the same truncation, and takes from it the style
    inputs of the chosen layers: wholly (`mix`), or moves towards it by the same `amount` in every variant
    (`interpolate`), so that all variants are equally far from the person and differ in direction. An
    image that is not finite becomes a row with status "error" and no bytes.

    With `codes`, person i is the i-th real person of a latents table: variant 0 is the image of the person's own code,
    without truncation, made by the network as that person's delta changes it, where there is one; so are the variants.
    Their second codes may be those of pictures (datasets/latents/partners.py); a person who has none to move towards
    keeps variant 0 alone, the others are rows with status "error".
    """

    def __init__(
        self,
        generator: Generator | Reference[Generator],
        configuration: Configuration,
        device: str = "cpu",
        threads: int = 1,
        codes: RealCodes | Reference[RealCodes] | None = None,
    ):
        torch.set_num_threads(threads)
        cv2.setNumThreads(1)
        network = resolved(generator)  # the driver's network: nodes need no copy of the file
        self.device = torch.device(device)
        self.codes = resolved(codes)
        check_network(network.config, configuration, self.codes)
        self.generator = network.eval().requires_grad_(False).to(self.device)
        self.configuration = configuration

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row with int64 columns unit, first_person, people -> one row with the columns of a shard as
        lists."""
        start = time.perf_counter()
        unit, first, people = (batch[name][0].as_py() for name in ("unit", "first_person", "people"))
        rows = [row for person in range(first, first + people) for row in self._person(person)]
        columns = {
            name: pa.array([row.get(name) for row in rows], SCHEMA.field(name).type)
            for name in SCHEMA.names[1 : SCHEMA.get_field_index("message") + 1]
        }
        made = with_columns(pa.table({"unit": pa.array([unit], pa.int64())}), columns)
        return with_columns(made, {"seconds_generate": time.perf_counter() - start})

    def _person(self, person: int) -> list[dict]:
        c = self.configuration
        with self._as_tuned_to(person):
            images = self._images(self._styles(person))
        columns = planned_columns(c, person)
        rows = []
        for variant in range(c.variants):
            missing = variant >= len(images)
            image = None if missing else images[variant]
            content = None if image is None else self._encode(image)
            fault = NO_PARTNER if missing else "the network's image is not finite"
            rows.append(
                {name: values[variant] for name, values in columns.items()}
                | {
                    "person": person,
                    "variant": variant,
                    "image": content,
                    "status": "ok" if content else "error",
                    "message": None if content else fault,
                }
            )
        return rows

    @contextlib.contextmanager
    def _as_tuned_to(self, person: int) -> Iterator[None]:
        """The generator as a real person's delta changes it; afterwards it is the old one."""
        content = None if self.codes is None else self.codes.delta(person)
        if content is None:
            yield
            return
        with apply_delta(self.generator, load_delta(content, self.configuration.network)):
            yield

    @torch.inference_mode()
    def _styles(self, person: int) -> torch.Tensor:
        # [V, 16, w_dim] float32, or of the base alone where a person has no partner.
        c = self.configuration
        own = None if self.codes is None else self.codes.people[[person]]
        base = self._map([c.person_seed(person)]) if own is None else self._tensor(own)  # [1, 16, w_dim]
        if c.variants == 1:
            return base
        others = self._others(person)  # [V - 1, 16, w_dim], or [0, 16, w_dim]
        ws = base.repeat(1 + len(others), 1, 1)
        layers, amounts = list(c.layers), amounts_of(c, person)[1:]
        if c.amount is None:
            ws[1:, layers] = others[:, layers]
        elif len(set(amounts)) == 1:
            ws[1:, layers] = base[:, layers].lerp(others[:, layers], c.amount)
        else:
            steps = torch.tensor(amounts, device=self.device)[:, None, None]
            ws[1:, layers] = base[:, layers].lerp(others[:, layers], steps)
        return ws

    def _others(self, person: int) -> torch.Tensor:
        c = self.configuration
        if c.draws_codes or self.codes is None:
            return self._map([c.mix_seed(person, variant) for variant in range(1, c.variants)])
        return self._tensor(self.codes.pictures[partners_of(self.codes, c, person)])

    def _tensor(self, codes: np.ndarray) -> torch.Tensor:
        return torch.tensor(codes, dtype=torch.float32, device=self.device)

    def _map(self, seeds: list[int]) -> torch.Tensor:
        size = self.generator.config.z_dim
        # The reference tools' numbers: one legacy generator for each seed.
        z = np.concatenate([np.random.RandomState(seed).randn(1, size) for seed in seeds])  # noqa: NPY002
        z = torch.from_numpy(z).to(self.device, torch.float32)  # [N, z_dim]
        return self.generator.mapping(z, truncation_psi=self.configuration.truncation_psi)

    @torch.inference_mode()
    def _images(self, ws: torch.Tensor) -> list[np.ndarray | None]:
        # ws [V, 16, w_dim] -> V images, RGB uint8 [height, width, 3] or None where not finite. Layers
        # below the first mixed one see equal styles in all variants and run once a chunk.
        c = self.configuration
        images = []
        for chunk in ws.split(CHUNK[self.device.type]):
            made = self.generator.synthesis(chunk, shared=c.layers[0])  # [N, 3, h, w] float32, nominally -1..1
            finite = made.isfinite().flatten(1).all(1).tolist()
            if made.shape[2:] != (c.height, c.width):
                # Antialiased and before quantising: neither aliasing nor rounding twice.
                made = functional.interpolate(made, (c.height, c.width), mode="bicubic", antialias=True)
            pixels = to_uint8(made).cpu().numpy()  # [N, height, width, 3]
            images += [image if good else None for image, good in zip(pixels, finite, strict=True)]
        return images

    def _encode(self, image: np.ndarray) -> bytes:
        c = self.configuration
        jpeg = c.format == "jpeg"
        options = [cv2.IMWRITE_JPEG_QUALITY, c.jpeg_quality] if jpeg else []
        _, content = cv2.imencode(".jpg" if jpeg else ".png", image[:, :, ::-1], options)  # OpenCV takes BGR
        return content.tobytes()
