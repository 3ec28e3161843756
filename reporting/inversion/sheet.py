"""The picture of an inversion: people's pictures, what the encoder makes of them step by step, and the refined ones."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from datasets.latents.table import Latents
from datasets.people.decoding_part import DecodingError
from datasets.people.image_sets import read_bytes
from datasets.people.labelled_images import decode_bicubic
from passersby.restyle.checkpoint import LoadedEncoder
from passersby.restyle.delta import apply_delta, load_delta
from passersby.restyle.losses import InversionLoss, Target
from passersby.restyle.restyle import pooled, restyle_steps, working_size
from passersby.stylegan3 import Generator, to_uint8
from reporting.grid import SheetCell, SheetRow, contact_sheet

SHEET_PEOPLE = 8


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """An image [H, W, 3] uint8 RGB and its perceptual distance to the input."""

    image: np.ndarray
    lpips: float


@dataclasses.dataclass(frozen=True)
class InvertedPicture:
    """One line of the sheet: the picture [H, W, 3] uint8 RGB, the reconstruction after each step of the encoder, then
    of the refined code and with the person's own generator, None where there is no such stage."""

    label: str
    picture: np.ndarray
    steps: tuple[Reconstruction, ...]
    refined: Reconstruction | None = None
    pivotal: Reconstruction | None = None


def draw_inversion_sheet(pictures: Sequence[InvertedPicture], metric: str, data: str, toy: bool = False) -> np.ndarray:
    """The sheet, [H, W, 3] uint8 RGB: one line a picture, all with the same stages.

    metric: name of the perceptual distance below each image. data: what is shown. toy: the network learned from drawn
    people, and the title says so. Raises ValueError where there is no picture.
    """
    if not pictures:
        raise ValueError("a sheet needs at least one picture")
    first = pictures[0]
    count = len(first.steps)
    headings = [("input", 1), (f"encoder, steps 1 to {count}" if count > 1 else "encoder", count)]
    headings += [("refined", 1)] * (first.refined is not None) + [("pivotal", 1)] * (first.pivotal is not None)
    rows = []
    for picture in pictures:
        made = [*picture.steps, *(one for one in (picture.refined, picture.pivotal) if one is not None)]
        cells = [SheetCell(picture.picture), *(SheetCell(one.image, f"{one.lpips:.3f}") for one in made)]
        rows.append(SheetRow(picture.label, cells))
    return contact_sheet(
        rows,
        title="Inversion with a toy generator: it learned from drawn people" if toy else "Inversion",
        subtitle=f"{data} · below: {metric} to the input, 0 is equal",
        headings=headings,
    )


@torch.no_grad()
def inverted_pictures(
    latents: Latents,
    contents: dict[str, Path | bytes],
    encoder: LoadedEncoder,
    generator: Generator,
    loss: InversionLoss,
    steps: int,
    refine: str,
) -> list[InvertedPicture]:
    """The lines of the sheet: the first picture of at most SHEET_PEOPLE people, evenly spread, made again from their
    codes on this machine's CPU. contents: file or bytes of a picture by its path in the table; people whose picture
    cannot be read any more are left out."""
    size = working_size(encoder.encoder.config, generator.config)
    lines = []
    for person in np.unique(np.linspace(0, latents.people - 1, SHEET_PEOPLE).round().astype(int)).tolist():
        row = int(latents.pictures_of(person)[0])
        content = contents.get(latents.paths[row])
        try:
            data = content if isinstance(content, bytes) else b"" if content is None else read_bytes(content)
            pixels = decode_bicubic(data, *size)  # [h, w, 3] uint8
        except (OSError, DecodingError):
            continue
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
        target = loss.target(image)
        made = [
            _reconstruction(made, loss, target)
            for _, made in restyle_steps(encoder.encoder, generator.synthesis, image, encoder.average, steps)
        ]
        code = torch.from_numpy(latents.codes[row])[None]
        refined = pivotal = None
        if refine != "none":
            refined = _reconstruction(generator.synthesis(code), loss, target)
        delta = latents.delta(person)
        if delta is not None:
            with apply_delta(generator, load_delta(delta, latents.about["generator"]["sha256"])):
                pivotal = _reconstruction(generator.synthesis(code), loss, target)
        lines.append(InvertedPicture(f"person {latents.names[person]}", pixels, tuple(made), refined, pivotal))
    return lines


def _reconstruction(made: torch.Tensor, loss: InversionLoss, target: Target) -> Reconstruction:
    made = pooled(made, *target.images.shape[2:])
    return Reconstruction(to_uint8(made)[0].numpy(), float(loss.measure(made, target).lpips))
