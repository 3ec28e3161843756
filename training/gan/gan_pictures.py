"""What a GAN training shows of itself: grids of people and of style mixes, of the same codes every time."""

from pathlib import Path

import numpy as np
import torch

from passersby.stylegan3 import Generator, to_uint8
from reporting.grid import image_grid, save_png

MIDDLE_LAYERS = slice(5, 12)  # the main job's default mix: w indices 5-11
_CHUNK = 16  # images synthesised at a time


def person_latents(count: int, z_dim: int) -> torch.Tensor:
    """z of the people 0 .. count - 1, as generation with these seeds has them; [count, z_dim] float32."""
    rows = [np.random.RandomState(seed).randn(1, z_dim) for seed in range(count)]
    return torch.from_numpy(np.concatenate(rows)).to(torch.float32)


@torch.inference_mode()
def person_codes(generator: Generator, count: int) -> torch.Tensor:
    """ws of the people 0 .. count - 1, [count, num_ws, w_dim]; of a conditional network with labels in turn."""
    device = generator.mapping.w_avg.device
    labels = None
    if generator.c_dim:
        labels = torch.eye(generator.c_dim, device=device)[torch.arange(count, device=device) % generator.c_dim]
    return generator.mapping(person_latents(count, generator.z_dim).to(device), labels)


@torch.inference_mode()
def synthesize(generator: Generator, ws: torch.Tensor) -> np.ndarray:
    """ws [N, num_ws, w_dim] -> uint8 [N, H, W, 3]."""
    return np.concatenate([to_uint8(generator.synthesis(part)).cpu().numpy() for part in ws.split(_CHUNK)])


@torch.inference_mode()
def people_grid(generator: Generator, people: int = 40, columns: int = 10) -> np.ndarray:
    """The people 0 .. people - 1 without truncation; uint8 [height, width, 3]."""
    return image_grid(synthesize(generator, person_codes(generator, people)), columns)


@torch.inference_mode()
def mix_grid(generator: Generator, people: int = 6) -> np.ndarray:
    """Row A, column B: person A with the middle layers of B; first column and row show A and B themselves.

    uint8 [height, width, 3]. On the diagonal stands the person unchanged.
    """
    ws = person_codes(generator, people)  # [P, num_ws, w_dim]
    mixes = ws[:, None].repeat(1, people, 1, 1)  # [A, B, num_ws, w_dim]
    mixes[:, :, MIDDLE_LAYERS] = ws[None, :, MIDDLE_LAYERS]
    alone = synthesize(generator, ws)
    images = synthesize(generator, mixes.flatten(0, 1)).reshape(people, people, *alone.shape[1:])
    corner = np.full_like(alone[:1], 255)
    rows = [corner, alone] + [part for a in range(people) for part in (alone[a : a + 1], images[a])]
    return image_grid(np.concatenate(rows), people + 1)


def save_grids(out: Path, generator: Generator, images_seen: int) -> list[Path]:
    """Both grids of the averaged generator as PNG files named by the images seen."""
    paths = []
    for name, draw in (("people", people_grid), ("mixes", mix_grid)):
        path = Path(out) / "grids" / f"{name}-{images_seen:09d}.png"
        save_png(path, draw(generator))
        paths.append(path)
    return paths


def save_reals(out: Path, images: np.ndarray, count: int = 40, columns: int = 10) -> Path:
    """A grid of training images, evenly taken from [N, H, W, 3] uint8."""
    index = np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)
    path = Path(out) / "grids" / "reals.png"
    save_png(path, image_grid(images[index], columns))
    return path
