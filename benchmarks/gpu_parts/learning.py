"""Re-ID training beside a plain loop, encoder training, refinement and pivotal tuning: all with random weights."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.gpu_parts.common import Bench, Figure, rate, short
from datasets.reid.training_set import REAL, TrainingImages
from passersby.perception.perceptual import Perceptual, shift_tolerant_stages
from passersby.reid.identity_features import IdentityFeatures
from passersby.reid.network import ReidConfig, ReidNetwork
from passersby.restyle.encoder import EncoderConfig, RestyleEncoder, pooled, working_size
from passersby.restyle.losses import InversionLoss, LossWeights
from passersby.restyle.pivotal import tune
from passersby.restyle.refinement import refine, w_statistics
from training.encoder import step as encoder
from training.reid.config import ReidTraining
from training.reid.data import Feeder
from training.reid.presets import preset
from training.reid.start import autocast_type, make_stages, start
from training.reid.step import StepSettings, autocast, train_step

PICTURES_OF_A_PERSON = 16


def reid(bench: Bench) -> Iterator[Figure]:
    """Images a second of re-ID training, with our feeder and step, and of a plain PyTorch loop with a DataLoader."""
    data = _pictures(bench)
    for backbone in bench.sizes.reid_backbones:
        for name, loop in (("training", _ours), ("plain loop with a DataLoader", _plain_loop)):
            label = f"re-ID {backbone} {'x'.join(map(str, bench.sizes.reid_size))}, batch {bench.sizes.reid_batch}"
            if bench.is_late():
                yield Figure(f"{label}: {name}", None, "images/s", note="the time was up")
                continue
            try:
                yield Figure(f"{label}: {name}", loop(bench, backbone, data), "images/s")
            except (RuntimeError, torch.OutOfMemoryError) as error:
                yield Figure(f"{label}: {name}", None, "images/s", note=short(error))
                bench.wait()  # raises where the device is lost
        bench.reset_peak()


def _pictures(bench: Bench) -> TrainingImages:
    count, (height, width) = bench.sizes.reid_images, bench.sizes.reid_size
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
    classes = np.arange(count) // PICTURES_OF_A_PERSON
    people = int(classes.max()) + 1
    nothing = np.zeros((0, height, width, 3), np.uint8)
    return TrainingImages(
        images, classes, np.full(count, REAL), np.full(count, -1), tuple(map(str, range(people))), people, {}, "", (),
        nothing, np.zeros(0, np.int64),
    )  # fmt: skip


def _reid_config(bench: Bench, backbone: str) -> ReidTraining:
    height, width = bench.sizes.reid_size
    config = preset("strong", Path("nothing is read"), Path("nothing is written"))
    return dataclasses.replace(
        config, backbone=backbone, height=height, width=width, batch=bench.sizes.reid_batch, pretrained=False
    )


def _rate_of_steps(bench: Bench, step: Callable[[int], object]) -> float:
    # A third of the steps warms up.
    steps, batch = bench.sizes.reid_steps, bench.sizes.reid_batch
    first, clock, done = steps // 3, 0.0, 0
    for index in range(first + steps):
        if index == first:
            bench.wait()
            clock = time.perf_counter()
        step(index)
        done = index + 1 - first
        if done > 0 and bench.is_late():
            break
    bench.wait()
    return done * batch / (time.perf_counter() - clock)


def _ours(bench: Bench, backbone: str, data: TrainingImages) -> float:
    config, device = _reid_config(bench, backbone), bench.device
    steps, dtype = 1000, autocast_type(config.precision, device)
    state, _, _ = start(config, len(data.class_names), device, dtype)
    settings = StepSettings(
        config.labelling(steps), config.triplet_weight, config.margin, config.generated_triplet,
        config.separate_batchnorm, config.temperature, dtype,
    )  # fmt: skip
    feeder = Feeder(data, config, make_stages(config, data.classes, data.sources, steps), device)
    try:
        return _rate_of_steps(bench, lambda index: train_step(state, settings, feeder.batch(index), 1.0))
    finally:
        feeder.close()


class _Pictures(Dataset):
    """Pictures in memory, changed one by one on the CPU as usual: padded and cut, mirrored, normalised, erased."""

    def __init__(self, data: TrainingImages):
        from torchvision import transforms

        height, width = data.images.shape[1:3]
        self.images, self.classes = data.images, data.classes
        self.change = transforms.Compose([
            transforms.ToPILImage(), transforms.Pad(10), transforms.RandomCrop((height, width)),
            transforms.RandomHorizontalFlip(), transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), transforms.RandomErasing(),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.change(self.images[index]), int(self.classes[index])


def _plain_loop(bench: Bench, backbone: str, data: TrainingImages) -> float:
    device, batch = bench.device, bench.sizes.reid_batch
    torch.manual_seed(0)
    network = ReidNetwork(_reid_config(bench, backbone).network(len(data.class_names))).to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), 3.5e-4, weight_decay=5e-4)
    dtype = autocast_type("auto", device)
    workers = bench.threads if bench.is_cuda else 0
    make = functools.partial(
        DataLoader, _Pictures(data), batch, shuffle=True, drop_last=True, num_workers=workers,
        pin_memory=bench.is_cuda, persistent_workers=workers > 0,
    )  # fmt: skip
    loader = make()
    batches = iter(loader)

    def step(index: int) -> None:
        nonlocal batches
        try:
            images, classes = next(batches)
        except StopIteration:
            batches = iter(loader)
            images, classes = next(batches)
        images, classes = images.to(device, non_blocking=True), classes.to(device, non_blocking=True)
        with autocast(dtype, device):
            logits = network(images).logits
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(logits.float(), classes).backward()
        optimizer.step()

    return _rate_of_steps(bench, step)


# ---- Inversion


def inversion(bench: Bench) -> Iterator[Figure]:
    """An encoder's step, refinement of a picture, tuning to a person, with losses of the usual networks."""
    s, device = bench.sizes, bench.device
    generator = bench.generator("t")
    backbone, width, heads = s.encoder
    config = EncoderConfig(*s.encoder_size, generator.num_ws, generator.w_dim, backbone, width, heads)
    torch.manual_seed(0)
    network = RestyleEncoder(config).to(device)
    size = working_size(config, generator.config)
    identity = IdentityFeatures(ReidNetwork(_identity_config(bench)).eval(), size, "random weights", "")
    loss = InversionLoss(LossWeights(), _perceptual(), identity).to(device)
    mean, spread = w_statistics(generator)
    average = mean.repeat(generator.num_ws, 1)
    with torch.no_grad():
        average_image = generator.synthesis(average[None])[0]
        codes = generator.mapping(torch.randn(s.encoder_batch, generator.z_dim, device=device))
        images = pooled(generator.synthesis(codes), *size).float().clamp(-1, 1)

    frozen = encoder.Frozen(generator, loss, loss, average, spread, average_image)
    state = encoder.EncoderState(network, encoder.Ranger(network.parameters()))
    batch = encoder.Batch(images, None, len(images))
    seconds = bench.seconds(functools.partial(encoder.train_step, state, frozen, batch, 1, 0.0, 1e-4), 3)
    yield Figure(f"encoder {backbone}: training, one refinement", rate(len(images), seconds), "images/s")
    del state, network
    if bench.is_late():
        yield Figure("refinement", None, "s/picture", note="the time was up")
        return
    target, steps = loss.target(images), s.refine_steps
    seconds = bench.seconds(
        lambda: refine(generator.synthesis, loss, target, codes, steps, average=average, spread=spread), 1
    )
    name = f"refinement of {len(images)} pictures, {steps} steps"
    yield Figure(name, seconds / len(images), "s/picture")
    if bench.is_late():
        yield Figure("pivotal tuning", None, "s/person", note="the time was up")
        return
    pictures, steps = min(8, len(images)), s.tune_steps
    few = target.take(slice(0, pictures))
    seconds = bench.seconds(lambda: tune(generator, loss, few, codes[:pictures], steps), 1)
    yield Figure(f"pivotal tuning to {pictures} pictures, {steps} steps", seconds, "s/person")
    bench.reset_peak()


def _identity_config(bench: Bench) -> ReidConfig:
    height, width = bench.sizes.reid_size
    return ReidConfig(2, bench.sizes.reid_backbones[0], height=height, width=width)


def _perceptual() -> Perceptual:
    """The shift-tolerant AlexNet with random weights."""
    shapes = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))
    layers = [
        (torch.randn(out, inputs, side, side) * (2 / (inputs * side * side)) ** 0.5, torch.zeros(out))
        for out, inputs, side in shapes
    ]
    weights = [torch.rand(out) for out, _, _ in shapes]
    return Perceptual("random weights", "st-lpips", shift_tolerant_stages(layers), weights)
