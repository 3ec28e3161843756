"""The stages of a generation job through their actors, without Ray, and whether two calls give equal bytes."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from actors.pedestrian_detector import PedestrianDetector
from actors.similarity_scorer import SimilarityScorer
from actors.style_mixer import StyleMixer
from benchmarks.gpu_parts.common import Bench, Figure, rate
from datasets.runs.configuration import RECIPE, Configuration
from datasets.runs.rows import images_of
from passersby.stylegan3.generator import set_kernel
from passersby.stylegan3.ops.filtered_lrelu import Kernel
from passersby.yolo.darknet import Convolution, read_structure

AIM = "1,500 images/s or more"


def configuration(bench: Bench, variants: int) -> Configuration:
    """A run of people from seeds, as jobs/generate.py freezes it by default."""
    return Configuration(
        seed=0, variants=variants, method="mix", layers=tuple(range(5, 12)), amount=None, truncation_psi=0.7,
        network="random weights", height=bench.sizes.height, width=bench.sizes.width, format="jpeg", jpeg_quality=95,
        unit_images=512, detector="random weights", reference_threshold=0.6, ssim_data_range=4095.0, recipe=RECIPE,
    )  # fmt: skip


def generation(bench: Bench, yolo_weights: Path | None) -> Iterator[Figure]:
    """Images a second of each stage for whole units of people, by the default kernel and by Triton's."""
    with tempfile.TemporaryDirectory() as folder:
        weights = yolo_weights or random_detector(Path(folder))
        s, device, threads = bench.sizes, bench.device.type, 1
        detector = PedestrianDetector(weights, s.height, s.width, device=device, threads=threads)
        scorer = SimilarityScorer(detector_threshold=0.6, data_range=4095.0, threads=threads)
        for people, variants in s.units:
            unit = pa.table({"unit": [0], "first_person": [0], "people": [people]})
            mixer = StyleMixer(bench.generator("t"), configuration(bench, variants), device, threads)
            label = f"{people} people x {variants} variants"
            kernels: dict[Kernel, str | None] = {"auto": None, "triton": bench.kernels()["triton"]}
            for kernel, reason in kernels.items():
                name = f"T: StyleMixer, {label}, kernel {kernel}"
                if reason or bench.is_late():
                    yield Figure(name, None, "images/s", note=reason or "the time was up")
                    continue
                set_kernel(mixer.generator, kernel)
                table, first = mixer(unit), mixer(unit)
                seconds = bench.seconds(lambda m=mixer, u=unit: m(u), 3, warm_up=0)
                count = people * variants
                aim = AIM if variants == s.units[0][1] else ""
                busy = _busy(bench, mixer, unit)
                note = "" if busy is None else f"the GPU computes {busy / seconds:.0%} of the time"
                floor = bench.floor(bench.work(lambda m=mixer, n=count: _network_alone(m, n)))
                yield Figure(name, rate(count, seconds), "images/s", rate(count, floor), aim, note)
                equal = _bytes(first) == _bytes(table)
                yield Figure(f"{name}: equal bytes in two calls", float(equal), "1 is yes", aim="1")
            if bench.is_late():
                continue
            count = people * variants
            for stage, name in ((detector, "PedestrianDetector"), (scorer, "SimilarityScorer")):
                start = time.perf_counter()
                scored = stage(table)
                cold = time.perf_counter() - start
                seconds = cold if bench.is_late() else bench.seconds(lambda s=stage, t=table: s(t), 2, warm_up=0)
                yield Figure(f"{name}, {label}", rate(count, seconds), "images/s")
                table = scored
        bench.reset_peak()


def _bytes(table: pa.Table) -> list[bytes]:
    return images_of(table)["image"].to_pylist()


@torch.inference_mode()
def _network_alone(mixer: StyleMixer, count: int) -> None:
    # The same number of images without sharing, codes and files.
    generator = mixer.generator
    for first in range(0, count, 64):
        z = torch.randn(min(64, count - first), generator.z_dim, device=mixer.device)
        generator(z)


def _busy(bench: Bench, mixer: StyleMixer, unit: pa.Table) -> float | None:
    # Seconds in which the GPU computes for a unit.
    if not bench.is_cuda:
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as measured:
        mixer(unit)
        bench.wait()
    return sum(row.self_device_time_total for row in measured.key_averages()) / 1e6


# ---- A detector of the shape of YOLOv4-tiny, where its weights are not at hand: the same work, meaningless scores.


def random_detector(folder: Path) -> Path:
    """detector.cfg and detector.weights in the folder, of random weights; returns the .weights."""
    path = folder / "detector.weights"
    path.with_suffix(".cfg").write_text(_structure())
    random, numbers = np.random.default_rng(0), []
    for layer in read_structure(path.with_suffix(".cfg")).layers:
        if isinstance(layer, Convolution):
            fan_in, zeros, ones = layer.channels * layer.size**2, np.zeros(layer.filters), np.ones(layer.filters)
            # Biases; then scales, means and variances of a normalisation.
            numbers += [zeros, ones, zeros, ones] if layer.batch_normalize else [zeros]
            numbers.append(random.normal(0, (2 / fan_in) ** 0.5, layer.filters * fan_in))
    version = np.array([0, 2, 5], "<i4").tobytes() + bytes(8)
    path.write_bytes(version + np.concatenate(numbers).astype("<f4").tobytes())
    return path


def _structure() -> str:
    def convolution(filters: int, size: int = 3, stride: int = 1) -> str:
        options = f"filters={filters}\nsize={size}\nstride={stride}\npad=1\nactivation=leaky\n"
        return f"[convolutional]\nbatch_normalize=1\n{options}"

    def route(layers: str, half: bool = False) -> str:
        return f"[route]\nlayers={layers}\n" + "groups=2\ngroup_id=1\n" * half

    def stage(filters: int) -> str:  # a part of the channels goes around two convolutions
        inner = convolution(filters // 2)
        text = convolution(filters) + route("-1", True) + inner + inner + route("-1,-2") + convolution(filters, 1)
        return text + route("-6,-1") + "[maxpool]\nsize=2\nstride=2\n"

    def head(mask: str) -> str:
        anchors = "10,14, 23,27, 37,58, 81,82, 135,169, 344,319"
        last = "[convolutional]\nsize=1\nstride=1\npad=1\nfilters=255\nactivation=linear\n"
        return f"{last}[yolo]\nmask={mask}\nanchors={anchors}\nclasses=80\nnum=6\nscale_x_y=1.05\n"

    body = convolution(32, stride=2) + convolution(64, stride=2) + stage(64) + stage(128) + stage(256)
    first = convolution(512) + convolution(256, 1) + convolution(512) + head("3,4,5")
    second = route("-4") + convolution(128, 1) + "[upsample]\nstride=2\n" + route("-1,23") + convolution(256)
    return "[net]\nbatch=1\nheight=416\nwidth=416\nchannels=3\n" + body + first + second + head("0,1,2")
