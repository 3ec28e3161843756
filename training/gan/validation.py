"""Validation of a GAN on people it never trains on, its FID, its grids, and warnings about its figures."""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from datasets.runs.plan import layer_groups
from datasets.storage.feature_cache import real_features
from passersby.errors import InputError
from passersby.metrics.fid import fid
from passersby.perception.inception import Inception, load_inception
from passersby.stylegan3 import Discriminator, Generator, to_uint8
from passersby.stylegan3.mapping import who_size
from reporting.grid import image_grid, save_png
from training.gan.config import GanTraining
from training.gan.data import to_float
from training.gan.images import TrainingData
from training.gan.inputs import Latents
from training.gan.losses import synthesize
from training.gan.pairs import RealPairs, as_pairs
from training.gan.step import TrainingState
from training.workers import gather_rows, workers

# ---- Pictures of a GAN training: grids of people and of style mixes, from the same codes every time.

_PICTURES_AT_ONCE = 16  # images synthesised at a time


def person_latents(count: int, z_dim: int) -> torch.Tensor:
    """z of the people 0 .. count - 1, the same as in generation with these seeds; [count, z_dim] float32."""
    rows = [np.random.RandomState(seed).randn(1, z_dim) for seed in range(count)]
    return torch.from_numpy(np.concatenate(rows)).to(torch.float32)


@torch.inference_mode()
def person_codes(generator: Generator, count: int) -> torch.Tensor:
    """ws of the people 0 .. count - 1, [count, num_ws, w_dim]; a conditional network gets its labels in turn."""
    device = generator.mapping.w_avg.device
    labels = None
    if generator.c_dim:
        labels = torch.eye(generator.c_dim, device=device)[torch.arange(count, device=device) % generator.c_dim]
    return generator.mapping(person_latents(count, generator.z_dim).to(device), labels)


@torch.inference_mode()
def synthesize_in_chunks(generator: Generator, ws: torch.Tensor) -> np.ndarray:
    """ws [N, num_ws, w_dim] -> uint8 [N, H, W, 3]."""
    return np.concatenate([to_uint8(generator.synthesis(part)).cpu().numpy() for part in ws.split(_PICTURES_AT_ONCE)])


@torch.inference_mode()
def people_grid(generator: Generator, people: int = 40, columns: int = 10) -> np.ndarray:
    """The people 0 .. people - 1 without truncation; uint8 [height, width, 3]."""
    return image_grid(synthesize_in_chunks(generator, person_codes(generator, people)), columns)


@torch.inference_mode()
def mix_grid(generator: Generator, people: int = 6) -> np.ndarray:
    """Row A, column B: person A with the middle layers of B; first column and row show A and B themselves.

    uint8 [height, width, 3]. The diagonal shows each person unchanged.
    """
    ws = person_codes(generator, people)  # [P, num_ws, w_dim]
    mixes = ws[:, None].repeat(1, people, 1, 1)  # [A, B, num_ws, w_dim]
    first, last = layer_groups(generator.num_ws)["middle"]
    mixes[:, :, first : last + 1] = ws[None, :, first : last + 1]
    unmixed = synthesize_in_chunks(generator, ws)
    images = synthesize_in_chunks(generator, mixes.flatten(0, 1)).reshape(people, people, *unmixed.shape[1:])
    corner = np.full_like(unmixed[:1], 255)
    rows = [corner, unmixed] + [part for a in range(people) for part in (unmixed[a : a + 1], images[a])]
    return image_grid(np.concatenate(rows), people + 1)


@torch.inference_mode()
def identities_grid(generator: Generator, people: int = 10, hows: int = 10) -> np.ndarray:
    """A row for each of the people 0 .. people - 1 of a network trained by identity pairs; uint8 [height, width, 3].

    The first picture is the person as of the seed. The others keep who and have another how, the same in a column.
    """
    who, device = who_size(generator.z_dim), generator.mapping.w_avg.device
    z = person_latents(people + hows - 1, generator.z_dim)
    rows = z[:people, None].repeat(1, hows, 1)  # [people, hows, z_dim]
    rows[:, 1:, who:] = z[people:, who:]
    labels = None
    if generator.c_dim:  # a column has one label
        labels = torch.eye(generator.c_dim, device=device)[torch.arange(people * hows) % hows % generator.c_dim]
    ws = generator.mapping(rows.flatten(0, 1).to(device), labels)
    return image_grid(synthesize_in_chunks(generator, ws), hows)


def save_grids(out: Path, generator: Generator, images_seen: int, pairs: bool = False) -> list[Path]:
    """The grids of the averaged generator as PNG files named by the images seen; `pairs` adds that of identities."""
    paths = []
    grids = [("people", people_grid), ("mixes", mix_grid), *([("identities", identities_grid)] if pairs else [])]
    for name, draw in grids:
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


# ---- FID of a snapshot inside the training loop, over all workers, without Ray.

IMAGES_ON_GPU = 10_000
ENOUGH_VALIDATION = 500  # images: with fewer, FID depends more on the choice of images than on the generator
_FID_SEED = 2**31 - 2  # seed of codes that are the same at every snapshot and that no training draws
_FID_AT_ONCE = 32


def images_wanted(config: GanTraining, on_gpu: bool) -> int:
    """Number of generated images for the FID of a snapshot; 0: no FID is measured."""
    if config.fid_images is None:
        return IMAGES_ON_GPU if on_gpu else 0
    return config.fid_images


class SnapshotFid:
    """Compares images of the averaged generator with real ones. Every worker makes its share of the images.

    `inception`: the bytes of its network file; None only where no FID is measured.
    """

    def __init__(
        self, config: GanTraining, data: TrainingData, device: torch.device, rank: int, inception: bytes | None
    ):
        self.count = _whole_shares(images_wanted(config, device.type == "cuda"))
        self.data, self.device, self.share = data, device, slice(rank, None, workers())
        held_out = config.fid_reference == "validation"
        if config.fid_reference == "auto":
            held_out = len(data.validation) >= ENOUGH_VALIDATION
        real = data.validation if held_out else data.sample
        self.real = real[: _whole_shares(len(real))]
        self.reference = f"{len(self.real)} images of {'validation' if held_out else 'training'} people"
        self.inception_bytes = inception
        self.loaded: tuple[Inception, np.ndarray] | None = None  # the network, and the real images' features

    @torch.inference_mode()
    def measure(self, generator: Generator) -> float | None:
        """FID of this generator, the same in all workers; None where no FID is measured."""
        if self.count == 0:
            return None
        inception, real = self.loaded = self.loaded or self._load()
        z = np.random.default_rng(_FID_SEED).standard_normal((self.count, generator.z_dim), np.float32)[self.share]
        labels = None
        if generator.c_dim and self.data.labels is not None:
            rows = np.random.default_rng(_FID_SEED).integers(len(self.data.labels), size=self.count)
            labels = torch.from_numpy(self.data.labels[rows[self.share]])
        fakes = []
        for start in range(0, len(z), _FID_AT_ONCE):
            part = slice(start, start + _FID_AT_ONCE)
            part_labels = None if labels is None else labels[part].to(self.device)
            images = to_uint8(generator(torch.from_numpy(z[part]).to(self.device), part_labels))
            fakes.append(inception(images.cpu().numpy()))
        return fid(real, self._gathered(np.concatenate(fakes)))

    def _load(self) -> tuple[Inception, np.ndarray]:
        if self.inception_bytes is None:
            raise ValueError("FID needs the inception network")
        inception = load_inception(self.inception_bytes, self.device)
        return inception, self._gathered(real_features(self.real[self.share], inception))

    def _gathered(self, features: np.ndarray) -> np.ndarray:
        return gather_rows(torch.from_numpy(features).to(self.device)).cpu().numpy()


def _whole_shares(count: int) -> int:
    return count - count % workers()


_CHUNK = 16  # a multiple of the minibatch deviation's group
_MOST = 256
_PAIRS = 64
_SEED = 2**31 - 1  # seed of codes that no training draws: the seeds of training's streams have three numbers


class Validation:
    """Losses on fixed real images and fixed codes: [V, H, W, 3] uint8, at most 256 images, evenly taken."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None, z_dim: int, device: torch.device):
        count = min(len(images), _MOST)
        count -= count % 4 if count > 4 else 0
        index = np.linspace(0, len(images) - 1, count).astype(int)
        self.images, self.device = images[index], device
        z = np.random.default_rng(_SEED).standard_normal((count, z_dim), np.float32)
        chosen = None if labels is None else torch.from_numpy(labels[index])
        self.latents = Latents(torch.from_numpy(z), labels=chosen)

    @torch.no_grad()
    def measure(self, state: TrainingState) -> dict[str, float]:
        """Losses of both networks and scores, without blur and augmentation; and the variety of generated images.

        "diversity" is the mean standard deviation of a pixel over generated images, divided by that over real images.
        It falls towards 0 when the generator collapses. It is left out where all real images are equal.
        """
        real_scores, fake_scores, moments = [], [], torch.zeros(2, 2, *self.images.shape[1:3], 3, dtype=torch.float64)
        for start in range(0, len(self.images), _CHUNK):
            part = slice(start, start + _CHUNK)
            latents = self.latents.share(part).to(self.device)
            reals = to_float(torch.from_numpy(self.images[part]).permute(0, 3, 1, 2), self.device)
            fakes = synthesize(state.generator, latents)
            for index, (images, scores) in enumerate(((reals, real_scores), (fakes, fake_scores))):
                scores.append(state.discriminator(images, latents.labels))
                pixels = images.permute(0, 2, 3, 1).double().cpu()
                moments[index] += torch.stack([pixels.sum(0), pixels.square().sum(0)])
        real, fake = torch.cat(real_scores), torch.cat(fake_scores)
        mean, square = moments[:, 0] / len(self.images), moments[:, 1] / len(self.images)
        spread = (square - mean.square()).clamp(min=0).sqrt().mean((1, 2, 3))  # of reals, of fakes
        figures = {
            "validation/D_loss": (F.softplus(fake) + F.softplus(-real)).mean().item(),
            "validation/G_loss": F.softplus(-fake).mean().item(),
            "scores/validation": real.mean().item(),
        }
        return figures | ({"diversity": (spread[1] / spread[0]).item()} if spread[0] > 0 else {})


class PairValidation:
    """Scores of real pairs of people who were set aside, by the pair discriminator: the same pairs every time.

    They fall below the scores of training pairs where the pair discriminator knows the labelled people by heart.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray | None, pairs: RealPairs, device: torch.device):
        rows = pairs.same(np.random.default_rng(_SEED), _PAIRS).flatten()  # the pictures 2i and 2i + 1 are pair i
        pictures = to_float(torch.from_numpy(images[rows]).permute(0, 3, 1, 2), device)
        self.pairs = as_pairs(pictures)
        self.labels = None if labels is None else as_pairs(torch.from_numpy(labels[rows]).to(device))

    @torch.no_grad()
    def measure(self, discriminator: Discriminator) -> dict[str, float]:
        """The mean score, without blur and augmentation."""
        labels = [None] * (_PAIRS // _CHUNK) if self.labels is None else self.labels.split(_CHUNK)
        chunks = zip(self.pairs.split(_CHUNK), labels, strict=True)
        return {"scores/pair_validation": torch.cat([discriminator(*chunk) for chunk in chunks]).mean().item()}


def stop_if_diverged(figures: dict[str, float], kimg: float) -> None:
    """Raises InputError where a loss or score is infinite or undefined: such a training does not recover."""
    diverged = {name: value for name, value in figures.items() if name in _LOSSES and not math.isfinite(value)}
    if diverged:
        name, value = next(iter(diverged.items()))
        raise InputError(
            f"the training diverged before kimg {kimg:.1f} ({name} is {value}): take a new --out with "
            "--transfer and the last good snapshot, a higher --gamma, or --precision float32"
        )


_LOSSES = ("G/loss", "D/loss", "D/r1", "scores/real", "scores/fake", "validation/D_loss", "validation/G_loss")
_LOSSES += ("G/pair_loss", "D/pair_loss", "D/pair_r1")


def warnings(figures: dict[str, float]) -> list[str]:
    """Warnings about these figures of validation, one line each; an empty list when all seems well."""
    lines = []
    if figures.get("diversity", 1) < 0.35:
        lines.append(
            f"the generator seems to collapse: its images vary {figures['diversity']:.0%} as much as real ones; "
            "look at the grids; a higher --gamma, or --transfer from an earlier snapshot, may help"
        )
    if figures.get("validation/G_loss", 0) > 8:
        lines.append(
            f"the discriminator tells every generated image (loss G {figures['validation/G_loss']:.1f}): "
            "a higher --gamma, or a lower --discriminator-lr, may help"
        )
    for name, what in (("augment/p", "augmentation"), ("augment/pair_p", "augmentation of pairs")):
        if figures.get(name, 0) >= 0.85:
            lines.append(
                f"{what} has reached p = {figures[name]:.2f}: there are too few images for this many kimg; "
                "the best snapshot is likely an earlier one"
            )
    return lines
