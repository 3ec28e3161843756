"""How fast the ReStyle encoder is: one forward pass at 256 x 256 as published, and its heads alone.

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 OMP_NUM_THREADS=1 python benchmarks/encoder_forward.py
    ... python benchmarks/encoder_forward.py --theirs ../stylegan3-editing

With `--theirs`, a clone of stylegan3-editing, its ResNetBackboneEncoder runs beside with the same weights, and the
greatest difference of the outputs is printed. Medians of the rounds, of wall clock and of CPU time (which a busy
machine disturbs less); the cases take turns, so that a change of the machine's speed meets all of them.
"""

import dataclasses
import importlib
import os
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torchvision
import tyro
from torch import nn

from jobs.common import run_job
from passersby.errors import InputError
from passersby.restyle.encoder import EncoderConfig, RestyleEncoder


@dataclasses.dataclass(frozen=True)
class Config:
    """Milliseconds of one forward pass of the published encoder."""

    batches: tuple[int, ...] = (1, 8)
    rounds: int = 7
    threads: int = 1
    device: str = "cpu"
    theirs: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """A clone of stylegan3-editing."""


def random_encoder() -> RestyleEncoder:
    """As published, with random weights and batch statistics that are not 0 and 1."""
    torch.manual_seed(0)
    encoder = RestyleEncoder(EncoderConfig())
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return encoder.eval().requires_grad_(False)


def their_encoder(folder: Path, encoder: RestyleEncoder) -> nn.Module:
    """The clone's encoder class, built and filled with `encoder`'s weights. Raises InputError for another folder."""
    if not (folder / "inversion" / "models" / "encoders" / "restyle_psp_encoders.py").is_file():
        raise InputError(f"--theirs {folder}: no clone of stylegan3-editing")
    sys.path.append(str(folder))
    unused = types.ModuleType("models.stylegan2.op")  # CUDA kernels that are compiled at once; the encoder calls none
    vars(unused).update(FusedLeakyReLU=None, fused_leaky_relu=None, upfirdn2d=None)
    sys.modules[unused.__name__] = unused
    plain = torchvision.models.resnet34
    # It fetches ImageNet weights, all of which are replaced here.
    with mock.patch("torchvision.models.resnet.resnet34", return_value=plain(weights=None)):
        their_module = importlib.import_module("inversion.models.encoders.restyle_psp_encoders")
        theirs = their_module.ResNetBackboneEncoder(encoder.config.num_ws, types.SimpleNamespace(input_nc=6))
    state = {}
    for name, tensor in encoder.state_dict().items():
        if name.startswith("styles."):
            for i, part in enumerate(tensor.chunk(encoder.config.num_ws)):
                state[name.replace("styles.", f"styles.{i}.", 1)] = part
        else:
            state[name] = tensor
    theirs.load_state_dict(state, strict=True)
    return theirs.eval().requires_grad_(False)


def seconds(call: Callable[[], torch.Tensor], device: str) -> tuple[float, float]:
    """Wall and CPU seconds of one call, the device's work included."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


@torch.inference_mode()
def main(config: Config) -> None:
    """Measure and print."""
    torch.set_num_threads(config.threads)
    encoder = random_encoder()
    theirs = None if config.theirs is None else their_encoder(config.theirs, encoder).to(config.device)
    encoder.to(config.device)
    where = platform.machine() if config.device == "cpu" else torch.cuda.get_device_name()
    malloc = "tuned" if os.environ.get("MALLOC_MMAP_MAX_") == "0" else "as it comes"
    print(f"{where}, {config.threads} threads, malloc {malloc}, torch {torch.__version__}")
    for batch in config.batches:
        x = torch.rand(batch, 6, 256, 256, device=config.device) * 2 - 1
        features = torch.rand(batch, 512, 16, 16, device=config.device)
        calls = {"encoder": lambda x=x: encoder(x), "heads": lambda f=features: encoder.styles(f)}
        if theirs is not None:
            calls["encoder, theirs"] = lambda x=x: theirs(x)
            heads = theirs.get_submodule("styles").children()
            calls["heads, theirs"] = lambda f=features, heads=tuple(heads): torch.stack([head(f) for head in heads], 1)
            expected = theirs(x)
            difference, greatest = (encoder(x) - expected).abs().max().item(), expected.abs().max().item()
            print(f"batch {batch}: greatest difference {difference:.1e}, of values up to {greatest:.2f}")
        times = {name: [] for name in calls}
        for _ in range(config.rounds + 1):
            for name, call in calls.items():
                times[name].append(seconds(call, config.device))
        for name, taken in sorted(times.items()):
            wall, cpu = (1000 * statistics.median(kind) for kind in zip(*taken[1:], strict=True))
            print(f"batch {batch}: {name:16} {wall:7.0f} ms, {cpu:.0f} ms of CPU time")


if __name__ == "__main__":
    run_job(main, Config)
