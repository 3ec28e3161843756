"""Inverts the pictures of a unit: a ReStyle encoder, refinement of its codes, pivotal tuning for each person."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import torch

from datasets.latents.plan import InversionConfiguration
from datasets.latents.table import SCHEMA
from datasets.people.image_sets import read_bytes
from datasets.people.labelled_images import UNKNOWN_CAMERA, decode_bicubic
from datasets.people.market_tree import DecodingError
from datasets.runs.rows import Reference, images_of, resolved, with_columns
from passersby.errors import InputError
from passersby.restyle.checkpoint import LoadedEncoder
from passersby.restyle.encoder import pooled, restyle_steps, working_size
from passersby.restyle.losses import InversionLoss, Losses, Target
from passersby.restyle.pivotal import apply_delta, save_delta, tune
from passersby.restyle.refinement import refine, w_statistics
from passersby.stylegan3 import Generator

# Pixels of the generator's images that go through the networks together, in at most MOST_CHUNK pictures. Never a
# matter of pools, so that a code does not depend on them.
CHUNK_PIXELS = {"cuda": 1 << 20, "cpu": 1 << 16}
MOST_CHUNK = 64
TUNED = 8  # pictures of a person in a step of pivotal tuning


@dataclasses.dataclass
class _Found:
    """What is known of one picture: its row's numbers, or why it has none."""

    image: torch.Tensor | None = None  # [3, h, w] float32, -1..1, at the working size
    code: torch.Tensor | None = None  # [num_ws, w_dim] float32, on the CPU
    message: str | None = None
    encoder_lpips: float | None = None
    l2: float | None = None
    lpips: float | None = None
    identity_cosine: float | None = None
    delta: bytes | None = None

    def fail(self, message: str) -> None:
        """No code: the row says why."""
        self.code = self.image = self.encoder_lpips = self.l2 = self.lpips = self.identity_cosine = None
        self.message = message


class Inverter:
    """A stage: a unit's row of pictures (`Pictures.row`) becomes the unit with their codes.

    Each picture is decoded to the working size and goes through `steps` steps of the encoder, then as configured
    through refinement of its code; then each person's pictures through pivotal tuning, whose delta is the column
    `delta_content` of the person's first row. Losses are taken at the working size, after the encoder's last step
    (`encoder_lpips`) and in the end. A picture that cannot be read, or whose code is not finite, becomes a row with
    status "error" and without w. All networks may be Ray references; `device` is "cpu" or "cuda".
    """

    def __init__(
        self,
        encoder: LoadedEncoder | Reference[LoadedEncoder],
        generator: Generator | Reference[Generator],
        loss: InversionLoss | Reference[InversionLoss],
        configuration: InversionConfiguration,
        device: str = "cpu",
        threads: int = 1,
    ):
        torch.set_num_threads(threads)
        cv2.setNumThreads(1)
        # The driver's networks: nodes need no copies of the files.
        loaded, network = resolved(encoder), resolved(generator)
        self.device = torch.device(device)
        self.configuration = configuration
        refines = configuration.refine != "none"
        self.spread = w_statistics(network.cpu()).spread if refines else 1.0  # on the CPU: the same for all
        self.encoder = loaded.encoder.eval().to(self.device)
        self.generator = network.eval().requires_grad_(False).to(self.device)
        self.loss = resolved(loss).to(self.device)
        # Cloned: out of a file it may lie at an odd place of memory, where matrix products sum in another order.
        self.average = loaded.average.clone().to(self.device)  # [num_ws, w_dim]
        self.size = working_size(self.encoder.config, network.config)
        self.chunk = chunk_of(network.config.height * network.config.width, device)
        with torch.no_grad():
            self.average_image = self.generator.synthesis(self.average[None])

    def __call__(self, batch: pa.Table) -> pa.Table:
        """One row with `unit` and lists person, identity, name, path, camera, split and file or content -> one row
        with the columns of a shard of latents as lists, `delta_content` (binary) and `seconds_*`."""
        start = time.perf_counter()
        pictures = images_of(batch).to_pylist()
        found = [self._decoded(picture) for picture in pictures]
        seconds = {"seconds_read": time.perf_counter() - start}
        stages = (("encode", self._encode), ("refine", self._refine), ("pivotal", self._tune))
        for name, stage in stages:
            start = time.perf_counter()
            stage(pictures, found)
            seconds[f"seconds_{name}"] = time.perf_counter() - start
        rows = [self._row(picture, one) for picture, one in zip(pictures, found, strict=True)]
        columns = {
            name: pa.array([row.get(name) for row in rows], SCHEMA.field(name).type) for name in SCHEMA.names[1:]
        }
        columns["delta_content"] = pa.array([one.delta for one in found], pa.large_binary())
        made = with_columns(pa.table({"unit": batch["unit"]}), columns)
        return with_columns(made, seconds)

    def _decoded(self, picture: dict) -> _Found:
        found = _Found()
        try:
            content = picture["content"] if "content" in picture else read_bytes(Path(picture["file"]))
            pixels = decode_bicubic(content or b"", *self.size)  # [h, w, 3] uint8
        except OSError as error:
            found.message = f"cannot be read: {error.strerror or error}"
        except DecodingError as error:
            found.message = str(error)
        else:
            found.image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
        return found

    def _chunks(self, found: list[_Found]) -> Iterator[list[_Found]]:
        """Pictures that are still good, some at a time."""
        good = [one for one in found if one.image is not None]
        for first in range(0, len(good), self.chunk):
            yield good[first : first + self.chunk]

    def _images(self, chunk: list[_Found]) -> torch.Tensor:
        return torch.stack([one.image for one in chunk if one.image is not None]).to(self.device)  # [n, 3, h, w]

    @torch.no_grad()
    def _encode(self, _: list[dict], found: list[_Found]) -> None:
        for chunk in self._chunks(found):
            images, steps = self._images(chunk), self.configuration.steps
            for step in restyle_steps(
                self.encoder, self.generator.synthesis, images, self.average, steps, self.average_image
            ):
                codes, made = step  # the last step's stay
            self._keep(chunk, codes)
            self._measure(chunk, made, self.loss.target(images))
            for one in chunk:
                one.encoder_lpips = one.lpips

    def _refine(self, _: list[dict], found: list[_Found]) -> None:
        steps = self.configuration.refine_steps  # None where codes are not refined
        if self.configuration.refine == "none" or steps is None:
            return
        for chunk in self._chunks(found):
            target, codes = self.loss.target(self._images(chunk)), self._codes(chunk)
            codes = refine(
                self.generator.synthesis, self.loss, target, codes, steps, average=self.average, spread=self.spread
            )
            self._keep(chunk, codes)
            with torch.no_grad():
                self._measure(chunk, self.generator.synthesis(codes), target)

    def _tune(self, pictures: list[dict], found: list[_Found]) -> None:
        steps = self.configuration.pivotal_steps  # None where generators are not tuned
        if self.configuration.refine != "pivotal" or steps is None:
            return
        persons: dict[int, list[_Found]] = {}
        for picture, one in zip(pictures, found, strict=True):
            if one.image is not None:
                persons.setdefault(picture["person"], []).append(one)
        for own in persons.values():
            # Of few pictures at a time, as a person may have thousands.
            parts = [self.loss.target(images) for images in self._images(own).split(self.chunk)]
            target, codes = joined(parts), self._codes(own)
            try:
                delta = tune(self.generator, self.loss, target, codes, steps, batch=min(TUNED, self.chunk))
            except InputError as error:  # it diverged: this person's matter alone
                for one in own:
                    one.fail(str(error))
                continue
            with torch.no_grad(), apply_delta(self.generator, delta):
                for first in range(0, len(own), self.chunk):
                    part = slice(first, first + self.chunk)
                    self._measure(own[part], self.generator.synthesis(codes[part]), target.take(part))
            own[0].delta = save_delta(delta, self.configuration.network)

    def _codes(self, chunk: list[_Found]) -> torch.Tensor:
        return torch.stack([one.code for one in chunk if one.code is not None]).to(self.device)  # [n, num_ws, w_dim]

    def _keep(self, chunk: list[_Found], codes: torch.Tensor) -> None:
        for one, code in zip(chunk, codes.cpu(), strict=True):
            one.code = code

    def _measure(self, chunk: list[_Found], made: torch.Tensor, target: Target) -> None:
        """Note the losses of `made` [n, 3, gh, gw]; what is not finite is given up."""
        losses = self.loss.measure(pooled(made, *self.size), target)
        for one, *values in zip(chunk, *(part.tolist() for part in losses), strict=True):
            one.l2, one.lpips, one.identity_cosine = values
            if one.code is None or not (one.code.isfinite().all() and np.isfinite([one.l2, one.lpips]).all()):
                one.fail("the code, or the picture made of it, is not finite")

    def _row(self, picture: dict, found: _Found) -> dict:
        camera = picture["camera"]
        measured = {name: getattr(found, name) for name in ("encoder_lpips", *Losses._fields)}
        return {
            **{name: picture[name] for name in ("person", "identity", "name", "path", "split")},
            "camera": None if camera in (None, UNKNOWN_CAMERA) else camera,
            "w": None if found.code is None else found.code.flatten().numpy(),
            **{name: value if value is not None and np.isfinite(value) else None for name, value in measured.items()},
            "status": "error" if found.code is None else "ok",
            "message": found.message,
        }


def joined(parts: list[Target]) -> Target:
    """Targets one after the other as one."""
    images, perceptual, identity = zip(*parts, strict=True)
    layers = None if perceptual[0] is None else tuple(torch.cat(layer) for layer in zip(*perceptual, strict=True))
    return Target(torch.cat(images), layers, None if identity[0] is None else torch.cat(identity))


def chunk_of(pixels: int, device: str) -> int:
    """How many pictures go through the networks together; `pixels`: of one image of the generator."""
    return max(1, min(MOST_CHUNK, CHUNK_PIXELS[torch.device(device).type] // pixels))
