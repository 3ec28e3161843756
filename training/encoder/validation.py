"""Validation of an encoder on pictures that it was not trained on: figures after every refinement, and a picture."""

from pathlib import Path

import numpy as np
import torch

from datasets.reid.training_set import TrainingImages
from passersby.devices import send
from passersby.files import write_atomically
from passersby.restyle.encoder import RestyleEncoder, pooled, restyle_steps
from passersby.restyle.refinement import refine
from passersby.stylegan3 import Generator, to_uint8
from reporting.grid import SheetCell, SheetRow, contact_sheet, encode_png
from training.encoder.config import EncoderTraining
from training.encoder.step import Batch, Frozen
from training.gan.data import Order

# ---- The images of every step of an encoder training: pictures from memory, and images that the generator makes.

_MIRROR, _CODES = 3, 4  # streams of random numbers; Order has another stream


class Feeder:
    """This worker's part of every step's batch, on the device. The batch of step s is a function of the seed and s.

    A batch is gathered when its step needs it, which takes a thousandth of the step's time.
    """

    def __init__(self, data: TrainingImages, config: EncoderTraining, generator: Generator, device, rank=0, workers=1):
        self.images, self.config, self.generator, self.device = data.images, config, generator, device
        self.order = Order(len(data.images), config.seed)
        share = config.batch // workers
        self.mine = np.arange(rank * share, (rank + 1) * share)

    @torch.no_grad()
    def batch(self, step: int) -> Batch:
        """The images of a step: pictures first, generated ones last in the whole batch."""
        config = self.config
        real = config.batch - config.generated
        indices = self.order.indices(step * real, real) if real else np.empty(0, np.int64)
        flips = np.random.default_rng([config.seed, _MIRROR, step]).random(real) < 0.5
        mine_real = self.mine[self.mine < real]
        pixels = self.images[indices[mine_real]]  # a copy
        if config.mirror:
            mirrored = flips[mine_real]
            pixels[mirrored] = pixels[mirrored, :, ::-1]
        images = to_float(torch.from_numpy(pixels), self.device)
        mine_generated = self.mine[self.mine >= real] - real
        if not len(mine_generated):
            return Batch(images, None, len(images))
        stream = np.random.default_rng([config.seed, _CODES, step])
        z = torch.from_numpy(
            stream.standard_normal((config.generated, self.generator.z_dim), np.float32)[mine_generated]
        )
        codes = self.generator.mapping(send(z, self.device), truncation_psi=config.generated_psi)
        generated = pooled(self.generator.synthesis(codes).clamp(-1, 1), *self.images.shape[1:3])
        return Batch(torch.cat((images, generated)), codes, len(images))


def to_float(pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] on the device, -1..1."""
    return send(pixels, device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


_AT_ONCE, _SHOWN = 32, 8


class Validation:
    """Pictures uint8 [V, h, w, 3] of training people; at most `most` pictures are taken, spread evenly."""

    def __init__(self, images: np.ndarray, frozen: Frozen, refinements: int, most: int):
        indices = np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int)
        self.images, self.frozen, self.refinements = images[indices], frozen, refinements

    @torch.no_grad()
    def measure(self, encoder: RestyleEncoder) -> dict[str, float]:
        """Means over the pictures: `validation/l2`, `/lpips` and `/identity` after the last refinement; `/lpips_1` and
        so on after each refinement."""
        encoder.eval()
        sums: dict[str, float] = {}
        for first in range(0, len(self.images), _AT_ONCE):
            images = self._float(self.images[first : first + _AT_ONCE])
            target = self.frozen.measured.target(images)
            for step, (_, reconstructions) in enumerate(self._steps(encoder, images), 1):
                losses = self.frozen.measured.measure(pooled(reconstructions, *images.shape[2:]), target)
                named = {"lpips": losses.lpips, "l2": losses.l2, "identity": losses.identity_cosine}
                for name, values in named.items():
                    for key in [f"{name}_{step}"] + [name] * (step == self.refinements):
                        sums[key] = sums.get(key, 0.0) + values.sum().item()
        means = {f"validation/{name}": value / len(self.images) for name, value in sums.items()}
        return {name: value for name, value in means.items() if value == value}

    def draw(self, path: Path, encoder: RestyleEncoder, title: str, refine_steps: int) -> None:
        """Write a sheet: for each person a row with picture, refinements, and the image of the optimised code."""
        encoder.eval()
        pixels = self.images[:: max(1, len(self.images) // _SHOWN)][:_SHOWN]
        images = self._float(pixels)
        target = self.frozen.measured.target(images)
        with torch.no_grad():
            steps = list(self._steps(encoder, images))
        columns, codes = [images_of_step for _, images_of_step in steps], steps[-1][0]
        if refine_steps:
            codes = refine(
                self.frozen.generator.synthesis, self.frozen.measured, target, codes, refine_steps,
                average=self.frozen.average, spread=self.frozen.spread,
            )  # fmt: skip
            with torch.no_grad():
                columns.append(self.frozen.generator.synthesis(codes))
        with torch.no_grad():
            distances = [
                self.frozen.measured.measure(pooled(images_of_step, *images.shape[2:]), target).lpips
                for images_of_step in columns
            ]
        columns_uint8 = [to_uint8(images_of_step).cpu().numpy() for images_of_step in columns]
        rows = [
            SheetRow(
                str(row + 1),
                [SheetCell(pixels[row], "picture")]
                + [
                    SheetCell(images_of_step[row], f"{distance[row].item():.2f}")
                    for images_of_step, distance in zip(columns_uint8, distances, strict=True)
                ],
            )
            for row in range(len(pixels))
        ]
        headings = [("picture", 1), ("after each refinement by the encoder", self.refinements)]
        headings += [("optimised", 1)] * bool(refine_steps)
        sheet = contact_sheet(rows, title=title, subtitle="below: LPIPS to the picture", headings=headings)
        write_atomically(path, encode_png(sheet))

    def _steps(self, encoder: RestyleEncoder, images: torch.Tensor):
        frozen = self.frozen
        return restyle_steps(
            encoder, frozen.generator.synthesis, images, frozen.average, self.refinements, frozen.average_image
        )

    def _float(self, pixels: np.ndarray) -> torch.Tensor:
        return to_float(torch.from_numpy(np.ascontiguousarray(pixels)), self.frozen.average.device)
