"""Images a second of re-ID training: this project's loop against a plain PyTorch DataLoader loop, in turn.

    python jobs/make_toy_crowd.py --out /tmp/crowd
    python benchmarks/reid_training.py --data /tmp/crowd --device cuda
    python benchmarks/reid_training.py --data /tmp/crowd --device cpu --presets study-small strong-small

Both train the same network with the same recipe. The plain loop reads JPEG files in DataLoader workers (Pillow,
torchvision's transforms), moves float32 batches to the device and trains in float32 with PyTorch's defaults, as the
field's baselines do. This project's loop holds decoded images in memory, augments on the device and computes as
`--precision auto` says. Measured figures: see RESULTS below.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from datasets.people.market1501 import list_split
from jobs.common import CPU_VARIABLES, run_job
from passersby.reid.network import ReidNetwork
from pipeline.ray_training import restart_with
from training.reid.config import PRESETS, ReidTraining
from training.reid.data import Feeder
from training.reid.run import load_data
from training.reid.start import autocast_type, make_batches
from training.reid.step import Batch, ReidState, StepSettings, batch_hard_triplet, make_optimizer, train_step

RESULTS = """No GPU figures yet. On a CPU both loops wait for the same convolutions: 2 cores of an AMD EPYC,
--device cpu --steps 12 --rounds 3 --loader-workers 1 --threads 1 (the plain loop reads its files on the other core):
study-small, resnet10 64x32, batch 32: images/s plain 203 (202 to 204), ours 206 (202 to 208); waiting for data 0.1%
strong-small, resnet10 64x32, batch 64: images/s plain 151 (150 to 152), ours 159 (158 to 160); waiting for data 0.0%
"""
# Dense bfloat16 products with float32 sums: NVIDIA H100 SXM datasheet, without sparsity.
PEAK_FLOPS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}


@dataclasses.dataclass(frozen=True)
class Config:
    """Train some steps with both loops, in turn, and print images a second of each."""

    data: Path
    """A Market-1501 tree."""
    presets: tuple[str, ...] = ("study", "strong")
    """Of training/reid/config.py; ImageNet weights are not needed here and not loaded."""
    device: Literal["cpu", "cuda"] = "cuda"
    steps: int = 40
    """Steps of one measurement."""
    rounds: int = 5
    """Measurements of each loop; the median is printed, with the least and the most."""
    batch: int | None = None
    """Instead of the preset's."""
    loader_workers: int = 8
    """Processes of the DataLoader; 0 reads in this process."""
    threads: int | None = None
    """CPU threads of this process."""


class Files(Dataset):
    """The plain loop's images: opened, decoded and augmented one by one."""

    def __init__(self, config: ReidTraining):
        self.listing = list_split(config.data, "train")
        self.classes = np.unique(self.listing.identities, return_inverse=True)[1].tolist()
        size = (config.height, config.width)
        steps = [
            transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.Pad(config.pad),
            transforms.RandomCrop(size),
        ]
        steps += [transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        steps += [transforms.RandomErasing(config.erasing)] if config.erasing else []
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, place: int):
        with Image.open(self.listing.contents[place]) as image:
            return self.transform(image.convert("RGB")), self.classes[place]


def plain_loop(config: ReidTraining, bench: Config, device: torch.device) -> Iterator[None]:
    """A step each time it is asked for one."""
    files = Files(config)
    torch.manual_seed(0)
    network = ReidNetwork(config.network(len(set(files.classes)))).to(device).train()
    optimizer, _ = make_optimizer(config, network)
    workers = bench.loader_workers
    loader = DataLoader(
        files, config.batch, shuffle=True, num_workers=workers, drop_last=True, pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )  # fmt: skip
    while True:
        for images, classes in loader:
            images, classes = images.to(device, non_blocking=True), classes.to(device, non_blocking=True)
            outputs = network(images)
            loss = nn.functional.cross_entropy(outputs.logits, classes, label_smoothing=config.label_smoothing)
            if config.triplet_weight:
                loss = loss + batch_hard_triplet(outputs.embedding, classes, config.margin)[0].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def our_loop(config: ReidTraining, device: torch.device) -> Iterator[float]:
    """A step each time; yields the seconds so far that steps waited for their images."""
    data = load_data(config)
    dtype = autocast_type(config.precision, device)
    torch.manual_seed(0)
    network = ReidNetwork(config.network(len(data.class_names))).to(device).to(memory_format=torch.channels_last)
    optimizer, rates = make_optimizer(config, network)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    state = ReidState(network, optimizer, scaler, rates)
    settings = StepSettings(
        config.labelling(1000), config.triplet_weight, config.margin, config.generated_triplet,
        config.separate_batchnorm, config.temperature, dtype,
    )  # fmt: skip
    feeder = Feeder(data, config, make_batches(config, data), device)
    while True:
        batch: Batch = feeder.batch(state.step)
        train_step(state, settings, batch, 1.0)
        yield feeder.waited


def seconds_of(loop: Iterator, steps: int, device: torch.device) -> tuple[float, float]:
    """Seconds that `steps` steps take, and how much `waited` grew in them."""
    before = next(loop) or 0.0
    _synchronise(device)
    clock = time.perf_counter()
    for _ in range(steps):
        waited = next(loop) or 0.0
    _synchronise(device)
    return time.perf_counter() - clock, waited - before


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops_of_an_image(config: ReidTraining, classes: int) -> float:
    """Floating-point operations of forward and backward, of convolutions and products (2 for each multiply-add)."""
    from torch.utils.flop_counter import FlopCounterMode

    network = ReidNetwork(config.network(classes))
    with FlopCounterMode(display=False) as counter:
        network(torch.rand(2, 3, config.height, config.width)).logits.sum().backward()
    return counter.get_total_flops() / 2


def main(bench: Config) -> None:
    """Both loops of each preset, in turn."""
    device = torch.device(bench.device)
    if bench.threads:
        torch.set_num_threads(bench.threads)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    for preset in bench.presets:
        config = ReidTraining(data=bench.data, out=Path("unused"), **PRESETS[preset])
        config = dataclasses.replace(config, pretrained=False, validation="none", batch=bench.batch or config.batch)
        loops = {"plain": plain_loop(config, bench, device), "ours": our_loop(config, device)}
        rates: dict[str, list[float]] = {"plain": [], "ours": []}
        waiting = []
        for loop in loops.values():
            seconds_of(loop, 5, device)  # workers start, cuDNN chooses
        for _ in range(bench.rounds):
            for kind, loop in loops.items():
                seconds, waited = seconds_of(loop, bench.steps, device)
                rates[kind].append(bench.steps * config.batch / seconds)
                if kind == "ours":
                    waiting.append(waited / seconds)
        ours, plain = (statistics.median(rates[kind]) for kind in ("ours", "plain"))
        line = ", ".join(
            f"{kind} {statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"
            for kind, values in rates.items()
        )
        print(
            f"{preset}, {config.backbone} {config.height}x{config.width}, batch {config.batch}, {name}: "
            f"images/s {line}; "
            f"ours / plain {ours / plain:.2f}; waiting for data {statistics.median(waiting):.1%}",
            flush=True,
        )
        if name in PEAK_FLOPS:
            share = ours * flops_of_an_image(config, 751) / PEAK_FLOPS[name]
            print(f"  {share:.1%} of the card's dense bfloat16 peak of {PEAK_FLOPS[name] / 1e12:.0f} TFLOP/s")


if __name__ == "__main__":
    restart_with(CPU_VARIABLES)
    run_job(main, Config)
