"""How well an encoder inverts pictures that it was not trained on: figures after every refinement, and a picture."""

from pathlib import Path

import numpy as np
import torch

from passersby.restyle.encoder import RestyleEncoder
from passersby.restyle.refinement import refine
from passersby.restyle.restyle import pooled, restyle_steps
from passersby.stylegan3 import to_uint8
from passersby.stylegan3.checkpoint import write_atomically
from reporting.grid import SheetCell, SheetRow, contact_sheet, encode_png
from training.encoder.encoder_data import to_float
from training.encoder.step import Frozen

_AT_ONCE, _SHOWN = 32, 8


class Validation:
    """Pictures uint8 [V, h, w, 3] of training people; of more than `most` so many, spread evenly."""

    def __init__(self, images: np.ndarray, frozen: Frozen, refinements: int, most: int):
        places = np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int)
        self.images, self.frozen, self.refinements = images[places], frozen, refinements

    @torch.no_grad()
    def measure(self, encoder: RestyleEncoder) -> dict[str, float]:
        """Means over the pictures: `validation/l2`, `/lpips`, `/identity` after the last refinement, `/lpips_1` and so
        on after each."""
        encoder.eval()
        sums: dict[str, float] = {}
        for first in range(0, len(self.images), _AT_ONCE):
            images = self._float(self.images[first : first + _AT_ONCE])
            target = self.frozen.measured.target(images)
            for step, (_, made) in enumerate(self._steps(encoder, images), 1):
                losses = self.frozen.measured.measure(pooled(made, *images.shape[2:]), target)
                named = {"lpips": losses.lpips, "l2": losses.l2, "identity": losses.identity_cosine}
                for name, values in named.items():
                    for key in [f"{name}_{step}"] + [name] * (step == self.refinements):
                        sums[key] = sums.get(key, 0.0) + values.sum().item()
        means = {f"validation/{name}": value / len(self.images) for name, value in sums.items()}
        return {name: value for name, value in means.items() if value == value}

    def draw(self, path: Path, encoder: RestyleEncoder, title: str, refine_steps: int) -> None:
        """Write a picture: a row a person with the picture, each refinement, and the code refined by optimisation."""
        encoder.eval()
        pixels = self.images[:: max(1, len(self.images) // _SHOWN)][:_SHOWN]
        images = self._float(pixels)
        target = self.frozen.measured.target(images)
        with torch.no_grad():
            steps = list(self._steps(encoder, images))
        columns, codes = [made for _, made in steps], steps[-1][0]
        if refine_steps:
            codes = refine(
                self.frozen.generator.synthesis, self.frozen.measured, target, codes, refine_steps,
                average=self.frozen.average, spread=self.frozen.spread,
            )  # fmt: skip
            with torch.no_grad():
                columns.append(self.frozen.generator.synthesis(codes))
        with torch.no_grad():
            distances = [
                self.frozen.measured.measure(pooled(made, *images.shape[2:]), target).lpips for made in columns
            ]
        drawn = [to_uint8(made).cpu().numpy() for made in columns]
        rows = [
            SheetRow(
                str(row + 1),
                [SheetCell(pixels[row], "picture")]
                + [
                    SheetCell(made[row], f"{distance[row].item():.2f}")
                    for made, distance in zip(drawn, distances, strict=True)
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
