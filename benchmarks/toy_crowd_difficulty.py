"""How hard the toy crowd is: a small network and colour histograms, ranked under the Market-1501 protocol.

    python jobs/make_toy_crowd.py --out /tmp/crowd
    python benchmarks/toy_crowd_difficulty.py --crowd /tmp/crowd

The crowd is useful while the network lies between 40 and 80 mAP (room to get better and worse) and
histograms stay under 20 (colour alone must not do). Measured figures: see RESULTS below.
"""

import dataclasses
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from jobs.common import run_job
from passersby.errors import InputError

RESULTS = """Toy crowd version 1, default tree (500 people to train, 400 to test), the two commands above;
2 cores of an AMD EPYC, no GPU, shared with other work:
network, 6 epochs (156 s): mAP 61.2, Rank-1 75.6
histograms, best of 14 (RGB, 6 stripes, grey world, centre): mAP 3.7, Rank-1 4.3
"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a small network on the training people, rank query against gallery, and rank by colour
    histograms.
    """

    crowd: Path
    """A tree written by jobs/make_toy_crowd.py."""
    epochs: int = 6
    """Passes over the training pictures; 0 measures the histograms only."""
    threads: int = 1
    """CPU threads."""


def picture(path: Path) -> np.ndarray:
    """One file as RGB uint8 [128, 64, 3]."""
    bgr = cv2.imread(str(path))
    if bgr is None:
        raise InputError(f"cannot read {path}: make the tree again")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def read(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures [N, 128, 64, 3] RGB uint8, identities [N] and cameras [N] of one folder of the tree."""
    paths = sorted(folder.glob("*.jpg"))
    if not paths:
        raise InputError(f"no pictures in {folder}: make the tree with jobs/make_toy_crowd.py")
    images = np.stack([picture(path) for path in paths])
    fields = [path.name.split("_") for path in paths]
    return (
        images,
        np.array([int(field[0]) for field in fields]),
        np.array([int(field[1][1]) for field in fields]),
    )


def rank(query: tuple, gallery: tuple, similarity: np.ndarray) -> tuple[float, float]:
    """(mAP, Rank-1), 0..1, of similarity [Q, G] under the Market-1501 protocol: junk (-1) and pictures of
    the query's person by the query's own camera are left out, distractors (0) stay. AP is the mean of the
    precision at each match.
    """
    precisions, firsts = [], []
    for row, person, camera in zip(similarity, query[1], query[2], strict=True):
        kept = (gallery[1] != -1) & ~((gallery[1] == person) & (gallery[2] == camera))
        order = np.argsort(-row[kept], kind="stable")
        hits = (gallery[1][kept] == person)[order]
        if not hits.any():
            continue
        ranks = np.flatnonzero(hits) + 1
        precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
        firsts.append(hits[0])
    return float(np.mean(precisions)), float(np.mean(firsts))


def histogram(images: np.ndarray, kind: str, balance: bool, centre: bool, stripes: int) -> np.ndarray:
    """L1-normalised square-root colour histograms [N, bins], so that a dot product is the Bhattacharyya
    coefficient.
    """
    rows = []
    for image in images:
        pixels = image.astype(np.float32)
        if balance:  # grey world: the camera's cast divided out
            pixels = np.clip(pixels * (118.0 / pixels.mean((0, 1))), 0, 255)
        if centre:
            pixels = pixels[6:122, 18:46]
        if kind == "lab":
            pixels = cv2.cvtColor(np.ascontiguousarray(pixels / 255.0), cv2.COLOR_RGB2LAB)
            cells = np.stack(
                [
                    pixels[..., 0] / 100 * 5.99,
                    (pixels[..., 1] + 60) / 120 * 11.99,
                    (pixels[..., 2] + 60) / 120 * 11.99,
                ],
                -1,
            )
            shape = (6, 12, 12)
        else:
            cells, shape = pixels / 256.0 * 8, (8, 8, 8)
        cells = np.clip(cells, 0, np.array(shape) - 1).astype(np.int64)
        index = (cells[..., 0] * shape[1] + cells[..., 1]) * shape[2] + cells[..., 2]
        for part in np.array_split(index, stripes, axis=0):
            rows.append(np.sqrt(np.bincount(part.ravel(), minlength=int(np.prod(shape))) / part.size))
    return np.stack(rows).reshape(len(images), -1).astype(np.float32)


class Block(nn.Module):
    """A residual block: two 3x3 convolutions and a 1x1 shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.shortcut(x) + self.norm2(self.second(functional.relu(self.norm1(self.first(x))))))


def network(people: int) -> tuple[nn.Module, nn.Module]:
    """(body: [N, 3, 64, 32] -> normalised features [N, 192], head: -> logits [N, people]); about a tenth
    of a ResNet-18.
    """
    body = nn.Sequential(
        nn.Conv2d(3, 24, 3, 2, 1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        Block(24, 24, 1),
        Block(24, 48, 2),
        Block(48, 48, 1),
        Block(48, 96, 2),
        Block(96, 96, 1),
        Block(96, 192, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(192),
    )
    return body, nn.Linear(192, people, bias=False)


def tensor(images: np.ndarray) -> torch.Tensor:
    """[N, 3, 64, 32] float32, about -2..2, from RGB uint8 [N, 128, 64, 3]."""
    small = np.stack([cv2.resize(image, (32, 64), interpolation=cv2.INTER_AREA) for image in images])
    return torch.from_numpy(small).permute(0, 3, 1, 2).float().sub_(110).div_(60).contiguous()


def train(images: np.ndarray, people: np.ndarray, epochs: int) -> nn.Module:
    """Classification of the training people: SGD in one cycle, label smoothing, flips, shifts and a little
    brightness.
    """
    torch.manual_seed(0)
    labels = torch.from_numpy(np.unique(people, return_inverse=True)[1])
    body, head = network(int(labels.max()) + 1)
    body, head, data = body.to(memory_format=torch.channels_last), head, tensor(images)
    parameters = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = len(data) // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.15, total_steps=epochs * steps, pct_start=0.2)
    start = time.monotonic()
    for epoch in range(epochs):
        order, losses = torch.randperm(len(data)), []
        for step in range(steps):
            index = order[step * 64 : step * 64 + 64]
            batch = functional.pad(data[index], (2, 2, 4, 4), mode="replicate")
            top, left = int(torch.randint(9, ())), int(torch.randint(5, ()))
            batch = batch[:, :, top : top + 64, left : left + 32]
            flip = torch.rand(len(batch)) < 0.5
            batch = torch.where(flip[:, None, None, None], batch.flip(3), batch)
            batch = batch * (1 + 0.1 * torch.randn(len(batch), 1, 1, 1)) + 0.1 * torch.randn(len(batch), 3, 1, 1)
            features = body(batch.contiguous(memory_format=torch.channels_last))
            loss = functional.cross_entropy(head(features), labels[index], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(
            f"epoch {epoch + 1}/{epochs}: loss {np.mean(losses):.3f}, {time.monotonic() - start:.0f} s",
            flush=True,
        )
    return body.eval()


@torch.inference_mode()
def features_of(body: nn.Module, images: np.ndarray) -> np.ndarray:
    """Unit features [N, 192], averaged over the picture and its mirror image."""
    parts = [body(part) + body(part.flip(3)) for part in tensor(images).split(256)]
    return functional.normalize(torch.cat(parts)).numpy()


def main(config: Config) -> None:
    torch.set_num_threads(config.threads)
    query, gallery = read(config.crowd / "query"), read(config.crowd / "bounding_box_test")
    print(f"measured before: {RESULTS}")
    print(f"{len(query[0])} queries, {len(gallery[0])} in the gallery, {len(np.unique(query[1]))} people")
    best = 0.0
    for kind in ("rgb", "lab"):
        for balance, centre, stripes in (
            (0, 0, 1),
            (0, 1, 1),
            (0, 1, 6),
            (1, 0, 6),
            (1, 1, 1),
            (1, 1, 3),
            (1, 1, 6),
        ):
            made = [histogram(split[0], kind, bool(balance), bool(centre), stripes) for split in (query, gallery)]
            score, first = rank(query, gallery, made[0] @ made[1].T)
            best = max(best, score)
            settings = f"{kind}, {stripes} stripes{', grey world' if balance else ''}{', centre' if centre else ''}"
            print(f"histogram ({settings}): mAP {100 * score:.1f}, Rank-1 {100 * first:.1f}", flush=True)
    print(f"best histogram: mAP {100 * best:.1f} (wanted: under 20)")
    if config.epochs:
        images, people, _ = read(config.crowd / "bounding_box_train")
        body = train(images, people, config.epochs)
        score, first = rank(query, gallery, features_of(body, query[0]) @ features_of(body, gallery[0]).T)
        print(f"network: mAP {100 * score:.1f}, Rank-1 {100 * first:.1f} (wanted: mAP 40 to 80)")


if __name__ == "__main__":
    run_job(main, Config)
