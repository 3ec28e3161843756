"""The stage that inverts the pictures of a unit: a ReStyle encoder, refinement of the codes, pivotal tuning; or for
networks trained by identity pairs one who for all pictures of a person."""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import torch

from datasets.latents.plan import WHO, InversionConfiguration
from datasets.latents.shards import kind_of
from datasets.people.decoding import DecodingError, decode_bicubic, peculiarities, read_bytes
from datasets.people.listing import UNKNOWN_CAMERA
from datasets.runs.rows import Reference, images_of, resolved, with_columns
from passersby.devices import exact_numbers
from passersby.errors import InputError
from passersby.restyle.checkpoint import LoadedEncoder
from passersby.restyle.encoder import pooled, restyle_steps, working_size
from passersby.restyle.losses import InversionLoss, Losses, Target
from passersby.restyle.pivotal import apply_delta, save_delta, tune
from passersby.restyle.refinement import refine, w_statistics
from passersby.restyle.who import PersonCode, Starts, refine_person
from passersby.stylegan3 import Generator
from passersby.stylegan3.generator import set_kernel, set_padded_channels, set_scaled_kernels
from passersby.stylegan3.mapping import full_precision

# Pixels of the generator's images that go through the networks together, in at most MOST_CHUNK pictures. The size of a
# pool never changes these numbers, so codes do not depend on pools.
CHUNK_PIXELS = {"cuda": 1 << 20, "cpu": 1 << 16}
MOST_CHUNK = 64
TUNING_BATCH = 8  # pictures of a person in a step of pivotal tuning


@dataclasses.dataclass
class _Inversion:
    """The inversion of one picture: the numbers of its row, or the reason why it has none.

    message: the reason; of a picture with a code, its `peculiarities`, separated by spaces, or None.
    """

    image: torch.Tensor | None = None  # [3, h, w] float32, -1..1, at the working size
    code: torch.Tensor | None = None  # [num_ws, w_dim] float32, on the CPU
    message: str | None = None
    encoder_lpips: float | None = None
    l2: float | None = None
    lpips: float | None = None
    identity_cosine: float | None = None
    delta: bytes | None = None
    parts: PersonCode | None = None  # of --refine who, on the CPU; its `hows` [1, n] are the picture's own

    def fail(self, message: str) -> None:
        """Remove the code and the numbers: the picture's row gives the reason."""
        self.code = self.parts = self.image = self.encoder_lpips = self.l2 = self.lpips = self.identity_cosine = None
        self.message = message


class Inverter:
    """A stage that turns a unit's row of pictures (`Pictures.row`) into the unit with their codes.

    Each picture is decoded to the working size and goes through `steps` steps of the encoder. Refinement of the code
    and pivotal tuning follow where `configuration` asks for them. Pivotal tuning takes all pictures of a person and
    makes one delta, which is the column `delta_content` of the person's first row. Losses are measured at the working
    size, after the encoder's last step (`encoder_lpips`) and at the end. A picture that cannot be read, or whose code
    is not finite, becomes a row with status "error" and without w. All networks may be Ray references; `device` is
    "cpu" or "cuda".

    With the refinement who there is no encoder. All pictures of a person give one who, one offset and a how for each
    picture, from the nearest of the generator's starts on (passersby/restyle/who.py). `cameras` are those that the
    generator has labels for: a picture of another camera becomes a row with status "error".
    """

    def __init__(
        self,
        encoder: LoadedEncoder | Reference[LoadedEncoder] | None,
        generator: Generator | Reference[Generator],
        loss: InversionLoss | Reference[InversionLoss],
        configuration: InversionConfiguration,
        device: str = "cpu",
        threads: int = 1,
        cameras: tuple[int, ...] = (),
    ):
        torch.set_num_threads(threads)
        cv2.setNumThreads(1)
        # The driver sends the networks: nodes need no copies of the files.
        restyle, network = resolved(encoder), resolved(generator)
        self.device = torch.device(device)
        self.configuration = configuration
        refines = configuration.refine != "none"
        self.spread = w_statistics(network.cpu()).spread if refines else 1.0  # on the CPU: every device gets the same
        self.generator = network.eval().requires_grad_(False).to(self.device)
        set_scaled_kernels(self.generator, configuration.recipe >= 2)
        set_padded_channels(self.generator, configuration.recipe >= 4)
        set_kernel(self.generator, "auto" if configuration.recipe >= 3 else "plain")
        self.keep_precision = configuration.recipe == 1
        self.loss = resolved(loss).to(self.device)
        self.chunk = chunk_of(network.config.height * network.config.width, device)
        exact = functools.partial(exact_numbers, deterministic=True)
        self.numbers = exact if configuration.recipe >= 4 else contextlib.nullcontext
        self.encoder, self.starts, self.cameras = None, None, cameras
        if restyle is None:
            self.size = network.config.height, network.config.width
            with full_precision(self.generator.synthesis), self.numbers():
                self.starts = Starts.of(self.generator)
            return
        self.encoder = restyle.encoder.eval().to(self.device)
        # A clone: the tensor of a file may lie at an odd address, where matrix products sum in another order.
        self.average = restyle.average.clone().to(self.device)  # [num_ws, w_dim]
        self.size = working_size(self.encoder.config, network.config)
        with torch.no_grad(), self.numbers():
            self.average_image = self.generator.synthesis(self.average[None])

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row with `unit` and lists person, identity, name, path, camera, split and file or content -> one row
        with the columns of a shard of latents as lists, `delta_content` (binary) and `seconds_*`."""
        start = time.perf_counter()
        pictures = images_of(batch).to_pylist()
        inversions = [self._decoded(picture) for picture in pictures]
        seconds = {"seconds_read": time.perf_counter() - start}
        stages = (("encode", self._encode), ("refine", self._refine), ("pivotal", self._tune))
        for name, stage in stages:
            start = time.perf_counter()
            with self.numbers():
                stage(pictures, inversions)
            seconds[f"seconds_{name}"] = time.perf_counter() - start
        rows = [self._row(picture, inversion) for picture, inversion in zip(pictures, inversions, strict=True)]
        fields = list(kind_of(self.configuration).schema)[1:]
        columns = {field.name: pa.array([row.get(field.name) for row in rows], field.type) for field in fields}
        columns["delta_content"] = pa.array([inversion.delta for inversion in inversions], pa.large_binary())
        unit = with_columns(pa.table({"unit": batch["unit"]}), columns)
        return with_columns(unit, seconds)

    def _decoded(self, picture: dict) -> _Inversion:
        inversion = _Inversion()
        camera = picture["camera"]
        if self.cameras and self.starts and camera not in self.cameras:
            name = "an unknown camera" if camera in (None, UNKNOWN_CAMERA) else f"camera {camera}"
            known = ", ".join(map(str, self.cameras))
            inversion.message = f"it is of {name}, and the network has labels of cameras {known}"
            return inversion
        try:
            content = picture["content"] if "content" in picture else read_bytes(Path(os.fsdecode(picture["file"])))
            pixels = decode_bicubic(content or b"", *self.size)  # [h, w, 3] uint8
        except OSError as error:
            inversion.message = f"cannot be read: {error.strerror or error}"
        except DecodingError as error:
            inversion.message = str(error)
        else:
            inversion.message = " ".join(peculiarities(content or b"")) or None
            inversion.image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
        return inversion

    def _chunks(self, inversions: list[_Inversion]) -> Iterator[list[_Inversion]]:
        """Yield the pictures without an error, at most `chunk` at a time."""
        usable = [inversion for inversion in inversions if inversion.image is not None]
        for first in range(0, len(usable), self.chunk):
            yield usable[first : first + self.chunk]

    def _images(self, chunk: list[_Inversion]) -> torch.Tensor:
        images = [inversion.image for inversion in chunk if inversion.image is not None]
        return torch.stack(images).to(self.device)  # [n, 3, h, w]

    @torch.no_grad()
    def _encode(self, _: list[dict], inversions: list[_Inversion]) -> None:
        steps = self.configuration.steps  # None without an encoder
        if self.encoder is None or steps is None:
            return
        for chunk in self._chunks(inversions):
            images = self._images(chunk)
            for step in restyle_steps(
                self.encoder, self.generator.synthesis, images, self.average, steps, self.average_image
            ):
                codes, outputs = step  # after the loop these are the last step's
            self._keep(chunk, codes)
            self._measure(chunk, outputs, self.loss.target(images))
            for inversion in chunk:
                inversion.encoder_lpips = inversion.lpips

    def _refine(self, pictures: list[dict], inversions: list[_Inversion]) -> None:
        steps = self.configuration.refine_steps  # None where codes are not refined
        if self.configuration.refine == "none" or steps is None:
            return
        if self.configuration.refine == WHO:
            for cameras, group in self._people(pictures, inversions):
                self._find_person(cameras, group, steps)
            return
        for chunk in self._chunks(inversions):
            target, codes = self.loss.target(self._images(chunk)), self._codes(chunk)
            codes = refine(
                self.generator.synthesis, self.loss, target, codes, steps, average=self.average, spread=self.spread,
                keep_precision=self.keep_precision,
            )  # fmt: skip
            self._keep(chunk, codes)
            with torch.no_grad():
                self._measure(chunk, self.generator.synthesis(codes), target)

    def _tune(self, pictures: list[dict], inversions: list[_Inversion]) -> None:
        steps = self.configuration.pivotal_steps  # None where generators are not tuned
        if self.configuration.refine != "pivotal" or steps is None:
            return
        for _, group in self._people(pictures, inversions):
            target, codes = self._target(group), self._codes(group)
            try:
                delta = tune(
                    self.generator, self.loss, target, codes, steps, batch=min(TUNING_BATCH, self.chunk),
                    keep_precision=self.keep_precision,
                )  # fmt: skip
            except InputError as error:  # tuning diverged: it concerns this person alone
                for inversion in group:
                    inversion.fail(str(error))
                continue
            with torch.no_grad(), apply_delta(self.generator, delta):
                for first in range(0, len(group), self.chunk):
                    part = slice(first, first + self.chunk)
                    self._measure(group[part], self.generator.synthesis(codes[part]), target.take(part))
            group[0].delta = save_delta(delta, self.configuration.network)

    def _find_person(self, cameras: list[int], group: list[_Inversion], steps: int) -> None:
        assert self.starts is not None  # the refinement who has no encoder
        labels = None
        if self.cameras:
            columns = [self.cameras.index(camera) for camera in cameras]
            labels = torch.eye(len(self.cameras), device=self.device)[columns]
        target = self._target(group)
        found = refine_person(
            self.generator, self.loss, target, self.starts.nearest(target.images), steps, spread=self.spread,
            labels=labels, chunk=self.chunk,
        )  # fmt: skip
        with torch.no_grad():
            codes = found.codes(self.generator.mapping, labels)
            self._keep(group, codes)
            for inversion, how in zip(group, found.hows.cpu(), strict=True):
                inversion.parts = PersonCode(found.who.cpu(), how[None], found.offset.cpu())
            for first in range(0, len(group), self.chunk):
                part = slice(first, first + self.chunk)
                self._measure(group[part], self.generator.synthesis(codes[part]), target.take(part))

    @staticmethod
    def _people(pictures: list[dict], inversions: list[_Inversion]) -> Iterator[tuple[list[int], list[_Inversion]]]:
        """Yield for each person the cameras and the inversions of the pictures without an error."""
        persons: dict[int, tuple[list[int], list[_Inversion]]] = {}
        for picture, inversion in zip(pictures, inversions, strict=True):
            if inversion.image is not None:
                cameras, group = persons.setdefault(picture["person"], ([], []))
                cameras.append(picture["camera"])
                group.append(inversion)
        yield from persons.values()

    def _target(self, group: list[_Inversion]) -> Target:
        # A chunk at a time, because a person may have thousands of pictures.
        return joined([self.loss.target(images) for images in self._images(group).split(self.chunk)])

    def _codes(self, chunk: list[_Inversion]) -> torch.Tensor:
        codes = [inversion.code for inversion in chunk if inversion.code is not None]
        return torch.stack(codes).to(self.device)  # [n, num_ws, w_dim]

    def _keep(self, chunk: list[_Inversion], codes: torch.Tensor) -> None:
        for inversion, code in zip(chunk, codes.cpu(), strict=True):
            inversion.code = code

    def _measure(self, chunk: list[_Inversion], outputs: torch.Tensor, target: Target) -> None:
        """Note the losses of the generator's outputs [n, 3, gh, gw]. A picture that is not finite fails."""
        losses = self.loss.measure(pooled(outputs, *self.size), target)
        for inversion, *values in zip(chunk, *(part.tolist() for part in losses), strict=True):
            inversion.l2, inversion.lpips, inversion.identity_cosine = values
            if inversion.code is None or not (
                inversion.code.isfinite().all() and np.isfinite([inversion.l2, inversion.lpips]).all()
            ):
                inversion.fail("the code, or the picture made of it, is not finite")

    def _row(self, picture: dict, inversion: _Inversion) -> dict:
        camera = picture["camera"]
        losses = {name: getattr(inversion, name) for name in ("encoder_lpips", *Losses._fields)}
        parts = {} if inversion.parts is None else inversion.parts._asdict()
        return {
            **{name: picture[name] for name in ("person", "identity", "name", "path", "split")},
            "camera": None if camera in (None, UNKNOWN_CAMERA) else camera,
            "w": None if inversion.code is None else inversion.code.flatten().numpy(),
            **{name.removesuffix("s"): part.flatten().numpy() for name, part in parts.items()},
            **{name: value if value is not None and np.isfinite(value) else None for name, value in losses.items()},
            "status": "error" if inversion.code is None else "ok",
            "message": inversion.message,
        }


def joined(parts: list[Target]) -> Target:
    """Join targets, in their order, to one."""
    images, perceptual, identity = zip(*parts, strict=True)
    layers = None if perceptual[0] is None else tuple(torch.cat(layer) for layer in zip(*perceptual, strict=True))
    return Target(torch.cat(images), layers, None if identity[0] is None else torch.cat(identity))


def chunk_of(pixels: int, device: str) -> int:
    """The number of pictures that go through the networks together. `pixels`: of one image of the generator."""
    return max(1, min(MOST_CHUNK, CHUNK_PIXELS[torch.device(device).type] // pixels))
