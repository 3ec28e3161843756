"""The stage that makes the images of a unit: people from seeds or latents, and variants of each person."""

import contextlib
import functools
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional

from datasets.latents.partners import RealCodes, partners_of
from datasets.runs.configuration import CAMERA, Configuration
from datasets.runs.rows import NO_PARTNER, Reference, amounts_of, planned_columns, resolved, with_columns
from datasets.runs.shards import SCHEMA
from passersby.devices import exact_numbers, send
from passersby.errors import InputError
from passersby.restyle.pivotal import apply_delta, load_delta
from passersby.restyle.who import codes_of
from passersby.stylegan2 import AnyGeneratorConfig
from passersby.stylegan3 import Generator, to_uint8
from passersby.stylegan3.generator import SharedTrunk, set_kernel, set_padded_channels, set_scaled_kernels, z_of_seeds
from passersby.stylegan3.mapping import who_size

# Images that go through the network together. On a CPU, and in runs before recipe 4, they are images of one person, and
# on a CPU small chunks stay in the caches. On a GPU a chunk holds images of several people, or is filled up: its shape
# is always the same. Units and pools never change these numbers, so images do not depend on them.
CHUNK = {"cuda": 64, "cpu": 8}


def shares_chunks(recipe: int, device: torch.device) -> bool:
    """Whether images of several people go through the network together."""
    return recipe >= 4 and device.type == "cuda"


def check_network(network: AnyGeneratorConfig, configuration: Configuration, codes: RealCodes | None = None) -> None:
    """Raise InputError when such a generator cannot make these people. The driver calls it before actors start."""
    needed, labels = max(configuration.layers, default=0) + 1, len(configuration.cameras)
    if network.c_dim != labels or network.num_ws < needed or network.img_channels != 3:
        wanted = f"with {labels} labels" if labels else "without labels"
        raise InputError(
            f"--network has {network.c_dim} labels, {network.num_ws} style inputs and {network.img_channels} channels: "
            f"give one {wanted}, with {needed} style inputs or more and 3 channels"
        )
    if codes is not None and codes.people.shape[1:] != (network.num_ws, network.w_dim):
        values = " x ".join(map(str, codes.people.shape[1:]))
        size = f"{network.num_ws} x {network.w_dim}"
        raise InputError(f"--latents: its codes have {values} values, but --network takes {size}: give its own latents")
    if codes is not None and codes.whos is not None and codes.whos.shape[1] != who_size(network.z_dim):
        values, size = codes.whos.shape[1], who_size(network.z_dim)
        raise InputError(f"--latents: a who has {values} values, but --network takes {size}: give its own latents")


class StyleMixer:
    """A stage that turns a unit's row (unit, first_person, people) into the unit with its images.

    Person i is the w of seed S + i, and variant 0 is the image of that w. Each other variant has its own second code
    (`Configuration.mix_seed`) under the same truncation. The method `mix` takes the style inputs of the chosen layers
    from the second code. The method `interpolate` moves these style inputs towards the second code, by the same
    `amount` in every variant: all variants are equally far from the person and differ in direction. The method
    `camera` is for networks trained by identity pairs: a variant has the first half of the person's z, who, and the
    second half, how, of the z of its second code's seed. In a network with a label for each camera every image has the
    label of its camera. An image that is not finite becomes a row with status "error" and no bytes.

    With `codes`, person i is the i-th real person of a latents table, and variant 0 is the image of the person's own
    code, without truncation. If the person has a delta, the network with this delta makes all the person's images. The
    second codes may be codes of pictures (datasets/latents/partners.py). A person without such a partner has
    variant 0 alone; the other variants are rows with status "error". The method `camera` takes the who and the offset
    that the table has of the person: a variant is mapping(who, how) + offset, with the how of its second code's seed.
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
        network = resolved(generator)  # the driver sends it: nodes need no copy of the file
        self.device = torch.device(device)
        self.codes = resolved(codes)
        check_network(network.config, configuration, self.codes)
        self.generator = network.eval().requires_grad_(False).to(self.device)
        set_scaled_kernels(self.generator, configuration.recipe >= 2)
        set_padded_channels(self.generator, configuration.recipe >= 4)
        set_kernel(self.generator, "auto" if configuration.recipe >= 3 else "plain")
        exact = functools.partial(exact_numbers, deterministic=True)
        self.shape = (network.num_ws, network.w_dim)  # of the codes of an image
        self.layers = torch.tensor(configuration.layers, dtype=torch.int64, device=self.device)
        self.together = shares_chunks(configuration.recipe, self.device)
        self.thread = ThreadPoolExecutor(1)  # encodes images while the device makes the next ones
        self.numbers = exact if configuration.recipe >= 4 else contextlib.nullcontext
        self.configuration = configuration

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row with int64 columns unit, first_person, people -> one row with the columns of a shard as lists."""
        start = time.perf_counter()
        unit, first, people = (batch[name][0].as_py() for name in ("unit", "first_person", "people"))
        with self.numbers():
            made = self._made(range(first, first + people))
        rows = [row for person, contents in made.items() for row in self._rows(person, contents)]
        columns = {
            name: pa.array([row.get(name) for row in rows], SCHEMA.field(name).type)
            for name in SCHEMA.names[1 : SCHEMA.get_field_index("message") + 1]
        }
        table = with_columns(pa.table({"unit": pa.array([unit], pa.int64())}), columns)
        return with_columns(table, {"seconds_generate": time.perf_counter() - start})

    def _made(self, people: range) -> dict[int, list[bytes | None]]:
        """The encoded images of each person; None for an image that is not finite."""
        if not self.together:
            return {person: self._alone(person) for person in people}
        count = self.configuration.variants
        codes = {person: self._styles(person) for person in people if not self._is_tuned(person)}
        together = self._of_several({person: ws for person, ws in codes.items() if len(ws) == count})
        return {person: together[person] if person in together else self._alone(person) for person in people}

    def _is_tuned(self, person: int) -> bool:
        return self.codes is not None and self.codes.delta(person) is not None

    def _alone(self, person: int) -> list[bytes | None]:
        with self._as_tuned_to(person):
            images = self._images(self._styles(person))
        return [None if image is None else self._encode(image) for image in images]

    def _of_several(self, codes: dict[int, torch.Tensor]) -> dict[int, list[bytes | None]]:
        # People of `variants` codes each. Every chunk has the same shape, that of its trunk included: an image depends
        # on nothing but itself.
        c, size = self.configuration, CHUNK["cuda"]
        owners = [person for person, ws in codes.items() for _ in ws]
        shared = min(c.layers, default=0) if c.variants > 1 else 0
        most = min(size, -(-(size - 1) // c.variants) + 1)  # people in a chunk
        with torch.inference_mode():
            everything = torch.cat([torch.empty(0, *self.shape, device=self.device), *codes.values()])
        encoded: list[Future[list[bytes | None]]] = []
        contents: dict[int, list[bytes | None]] = {person: [] for person in codes}
        for first in range(0, len(owners), size):
            own = owners[first : first + size]
            with torch.inference_mode():
                chunk = _filled(everything[first : first + size], size)
            trunk = _trunk(own, size, most, self.device) if shared else None
            encoded.append(self.thread.submit(self._encoded, *self._launched(chunk, shared, trunk), len(own)))
        for owner, content in zip(owners, (content for each in encoded for content in each.result()), strict=True):
            contents[owner].append(content)
        return contents

    def _rows(self, person: int, contents: list[bytes | None]) -> list[dict]:
        c = self.configuration
        columns = planned_columns(c, person)
        rows = []
        for variant in range(c.variants):
            has_no_partner = variant >= len(contents)
            content = None if has_no_partner else contents[variant]
            reason = NO_PARTNER if has_no_partner else "the network's image is not finite"
            rows.append(
                {name: values[variant] for name, values in columns.items()}
                | {
                    "person": person,
                    "variant": variant,
                    "image": content,
                    "status": "ok" if content else "error",
                    "message": None if content else reason,
                }
            )
        return rows

    @contextlib.contextmanager
    def _as_tuned_to(self, person: int) -> Iterator[None]:
        """Apply the person's delta, if there is one, to the generator inside the context; undo it afterwards."""
        content = None if self.codes is None else self.codes.delta(person)
        if content is None:
            yield
            return
        with apply_delta(self.generator, load_delta(content, self.configuration.network)):
            yield

    @torch.inference_mode()
    def _styles(self, person: int) -> torch.Tensor:
        # [V, 16, w_dim] float32; [1, 16, w_dim], the base alone, where a person has no partner.
        c = self.configuration
        if c.method == CAMERA:
            return self._seen_by_cameras(person)
        code = None if self.codes is None else self.codes.people[[person]]
        base = self._map([c.person_seed(person)]) if code is None else self._tensor(code)  # [1, 16, w_dim]
        if c.variants == 1:
            return base
        second_codes = self._others(person)  # [V - 1, 16, w_dim], or [0, 16, w_dim]
        ws = base.repeat(1 + len(second_codes), 1, 1)
        layers, amounts = self.layers, amounts_of(c, person)[1:]
        if c.amount is None:
            ws[1:, layers] = second_codes[:, layers]
        elif len(set(amounts)) == 1:
            ws[1:, layers] = base[:, layers].lerp(second_codes[:, layers], c.amount)
        else:
            steps = send(torch.tensor(amounts), self.device)[:, None, None]
            ws[1:, layers] = base[:, layers].lerp(second_codes[:, layers], steps)
        return ws

    def _seen_by_cameras(self, person: int) -> torch.Tensor:
        # [V, num_ws, w_dim]: equal halves who, other halves how, and the labels of the cameras.
        c, size = self.configuration, self.generator.config.z_dim
        labels = None
        if c.cameras:
            columns = [
                c.cameras.index(camera) for v in range(c.variants) if (camera := c.camera(person, v)) is not None
            ]
            labels = send(torch.eye(len(c.cameras))[columns], self.device)
        seeds = [c.mix_seed(person, variant) for variant in range(1, c.variants)]
        codes = self.codes
        if codes is None:
            z = z_of_seeds([c.person_seed(person), *seeds], size)  # [V, z_dim] float64
            z[:, : who_size(size)] = z[0, : who_size(size)]
            return self.generator.mapping(self._tensor(z), labels, truncation_psi=c.truncation_psi)
        assert codes.whos is not None  # `real_codes` refuses a table without them
        assert codes.offsets is not None
        base = self._tensor(codes.people[[person]])
        if not seeds:
            return base
        hows = self._tensor(z_of_seeds(seeds, size)[:, who_size(size) :])
        who, offset = self._tensor(codes.whos[person]), self._tensor(codes.offsets[person])
        labels, psi = None if labels is None else labels[1:], 1.0 if c.truncation_psi is None else c.truncation_psi
        return torch.cat([base, codes_of(self.generator.mapping, who, hows, offset, labels, psi)])

    def _others(self, person: int) -> torch.Tensor:
        c = self.configuration
        if c.draws_codes or self.codes is None:
            return self._map([c.mix_seed(person, variant) for variant in range(1, c.variants)])
        return self._tensor(self.codes.pictures[partners_of(self.codes, c, person)])

    def _tensor(self, codes: np.ndarray) -> torch.Tensor:
        return send(torch.tensor(codes, dtype=torch.float32), self.device)

    def _map(self, seeds: list[int]) -> torch.Tensor:
        z = z_of_seeds(seeds, self.generator.config.z_dim)
        z = send(torch.from_numpy(z).to(torch.float32), self.device)  # [N, z_dim]
        return self.generator.mapping(z, truncation_psi=self.configuration.truncation_psi)

    @torch.inference_mode()
    def _images(self, ws: torch.Tensor) -> list[np.ndarray | None]:
        # ws [V, 16, w_dim] -> V images, RGB uint8 [height, width, 3], or None where an image is not finite. Layers
        # below the first mixed layer see equal styles in all variants, so they run once a chunk.
        images = []
        for chunk in ws.split(CHUNK[self.device.type]):
            pixels, finite, ready = self._launched(chunk, min(self.configuration.layers, default=0))
            images += _finite_ones(pixels, finite, ready, len(chunk))
        return images

    @torch.inference_mode()
    def _launched(
        self, chunk: torch.Tensor, shared: int, trunk: SharedTrunk | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, "torch.cuda.Event | None"]:
        # Codes [N, num_ws, w_dim] -> images [N, height, width, 3] uint8 and whether each is finite [N], on their way to
        # the CPU, and the event after which they are there; None on a CPU.
        c = self.configuration
        keywords = {} if trunk is None else {"trunk": trunk}
        # [N, 3, h, w] float32, nominally -1..1
        outputs = self.generator.synthesis(chunk, shared=shared, **keywords)
        finite = outputs.isfinite().flatten(1).all(1)
        if outputs.shape[2:] != (c.height, c.width):
            # Resizing with antialiasing, before quantising, avoids aliasing and a second rounding.
            outputs = functional.interpolate(outputs, (c.height, c.width), mode="bicubic", antialias=True)
        pixels, finite = (part.to("cpu", non_blocking=True) for part in (to_uint8(outputs), finite))
        if self.device.type != "cuda":
            return pixels, finite, None
        ready = torch.cuda.Event()
        ready.record()
        return pixels, finite, ready

    def _encoded(
        self, pixels: torch.Tensor, finite: torch.Tensor, ready: "torch.cuda.Event | None", count: int
    ) -> list[bytes | None]:
        images = _finite_ones(pixels, finite, ready, count)
        return [None if image is None else self._encode(image) for image in images]

    def _encode(self, image: np.ndarray) -> bytes:
        c = self.configuration
        jpeg = c.format == "jpeg"
        options = [cv2.IMWRITE_JPEG_QUALITY, c.jpeg_quality] if jpeg else []
        _, content = cv2.imencode(".jpg" if jpeg else ".png", image[:, :, ::-1], options)  # OpenCV takes BGR
        return content.tobytes()


def _finite_ones(
    pixels: torch.Tensor, finite: torch.Tensor, ready: "torch.cuda.Event | None", count: int
) -> list[np.ndarray | None]:
    """The first images once they are on the CPU; None for an image that is not finite."""
    if ready is not None:
        ready.synchronize()
    images = zip(pixels[:count].numpy(), finite[:count].tolist(), strict=True)
    return [image if is_finite else None for image, is_finite in images]


def _filled(codes: torch.Tensor, size: int) -> torch.Tensor:
    """The codes [N, ...] followed by copies of the first one, so that there are `size`."""
    return codes if len(codes) == size else torch.cat([codes, codes[:1].expand(size - len(codes), *codes.shape[1:])])


def _trunk(owners: list[int], size: int, most: int, device: torch.device) -> SharedTrunk:
    """The trunk of a chunk of `size` samples whose first ones have these owners; its shape is that of `most` people."""
    people = list(dict.fromkeys(owners))
    first = [owners.index(person) for person in people]
    person = [people.index(owner) for owner in owners]
    values = [*first, *[0] * (most - len(first)), *person, *[0] * (size - len(person))]
    return SharedTrunk(*send(torch.tensor(values), device).split([most, size]))
