"""Iterations of GAN training: seconds, memory, calls; number formats; a profile of one iteration."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch.nn.functional import cosine_similarity

from benchmarks.gpu_parts.common import Bench, Figure, scaled, short
from passersby.stylegan3 import Discriminator, DiscriminatorConfig, Generator
from passersby.stylegan3.mapping import FLOAT16_LOSS_SCALE, full_precision, set_precision
from passersby.stylegan3.ops.filtered_lrelu import Kernel
from training.gan.inputs import Inputs, Latents, Noise
from training.gan.losses import generator_loss
from training.gan.step import StepSettings, TrainingState, new_state, train_iteration

HALF = torch.float16, torch.bfloat16


class Case(NamedTuple):
    """One row of figures."""

    config: str
    batch: int
    kernel: Kernel
    dtype: torch.dtype = torch.float16
    cudnn_benchmark: bool = False

    def __str__(self) -> str:
        kernel = "" if self.config == "2" else f", {self.kernel}"
        dtype = str(self.dtype).removeprefix("torch.")
        tried = ", cuDNN tries its algorithms" if self.cudnn_benchmark else ""
        return f"{self.config.upper()}: iteration of batch {self.batch}{kernel}, {dtype}{tried}"


AIMS = {"t": "3.5 s/kimg or less", "r": "less than 24 GB"}  # of batch 32 at 128 x 64 on an H200


def cases(bench: Bench) -> list[Case]:
    """The cases in the order of their value, without those that cannot run here."""
    largest, *others = bench.sizes.batches
    best: Kernel = "matmul" if bench.kernels()["triton"] else "triton"
    rows = [Case("t", largest, "matmul"), Case("t", largest, best), Case("r", largest, best)]
    rows += [Case("r", largest, "matmul"), Case("2", largest, "auto")]
    rows += [Case(config, largest, best, torch.bfloat16) for config in "tr"]
    rows += [Case(config, batch, best) for batch in others for config in "tr2"]
    rows += [Case("t", largest, best, cudnn_benchmark=True), Case("t", largest, best, torch.float32)]
    rows += [Case("t", largest, "plain")]
    return list(dict.fromkeys(row for row in rows if f"{row.config} {row.kernel}" not in bench.slow_layers))


class Training:
    """The networks of a case with one batch of noise, on the device."""

    def __init__(self, bench: Bench, case: Case):
        s, device = bench.sizes, bench.device
        generator = bench.generator(case.config, case.kernel, case.dtype)
        last = 4 if case.config == "2" and s.width < s.height else None
        channels = {"channel_base": s.channel_base, "channel_max": s.channel_max}
        discriminator = Discriminator(DiscriminatorConfig(s.height, s.width, **channels, last_height=last)).to(device)
        set_precision(discriminator, case.dtype)
        weight = 2.0 if case.config == "2" else 0.0
        self.settings = StepSettings(gamma=1.0, path_length_weight=weight)
        interval = self.settings.path_length_interval if weight else None
        self.state: TrainingState = new_state(generator, discriminator, path_length_interval=interval)
        places = torch.arange(case.batch, device=device)
        z = torch.randn(3, case.batch, generator.z_dim, device=device)
        noise = [Noise(index, case.batch, places) if weight else None for index in range(3)]
        latents = tuple(Latents(part, noise=own) for part, own in zip(z, noise, strict=True))
        reals = torch.rand(case.batch, 3, s.height, s.width, device=device) * 2 - 1
        self.inputs = Inputs(reals, latents)

    def iterate(self, step: int) -> Callable[[], object]:
        """One iteration as at this step: 0 has R1 and path lengths, 4 path lengths, 1 neither."""

        def call() -> object:
            self.state.step = step
            return train_iteration(self.state, self.settings, self.inputs)

        return call


def iterations(bench: Bench) -> Iterator[Figure]:
    """Seconds for a thousand images, R1 and path lengths as often as a training meets them; peak memory; calls."""
    for case in cases(bench):
        bench.reset_peak()
        if bench.is_late():
            yield Figure(str(case), None, "s/kimg", note="the time was up")
            continue
        torch.backends.cudnn.benchmark = case.cudnn_benchmark
        training = None
        try:
            training = Training(bench, case)
            steps = [0, training.settings.path_length_interval, 1]
            works = [bench.work(training.iterate(step)) for step in steps]
            full, lazy, plain = (bench.seconds(training.iterate(step)) for step in steps)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            yield Figure(str(case), None, "s/kimg", note=short(error))
            bench.wait()  # raises where the device is lost
            continue
        finally:
            torch.backends.cudnn.benchmark = False
            del training
        mean = (full + 3 * lazy + 12 * plain) / 16
        floors = [bench.floor(work) for work in works]
        floor = None if None in floors else sum(f * n for f, n in zip(floors, (1, 3, 12), strict=True) if f) / 16
        first = case.batch == bench.sizes.batches[0] and case.dtype == torch.float16 and case.kernel != "plain"
        aim = AIMS.get(case.config, "") if first else ""
        per_kimg = 1000 / case.batch
        yield Figure(
            str(case), mean * per_kimg, "s/kimg", scaled(floor, per_kimg), aim if case.config == "t" else "",
            f"{works[-1].all_calls:,} calls, {works[-1].all_bytes / 1e9:.0f} GB, {works[-1].all_flop / 1e12:.1f} TFLOP",
        )  # fmt: skip
        yield Figure(f"{case}, peak memory", bench.peak_gigabytes(), "GB", aim=aim if case.config == "r" else "")
    bench.reset_peak()


# ---- Number formats


def formats(bench: Bench) -> Iterator[Figure]:
    """Images and gradients in float16 and bfloat16 against float32, of generators with random weights."""
    if not bench.is_cuda:
        yield Figure("formats", None, "", note="a CPU computes in float32 alone")
        return
    for config in ("t", "r", "2"):
        if bench.is_late():
            yield Figure(f"{config.upper()}: formats", None, "", note="the time was up")
            continue
        yield from _images(bench, config)
        yield from _gradients(bench, config)
        yield from _codes(bench, config)


def _images(bench: Bench, config: str) -> Iterator[Figure]:
    generator = bench.generator(config)
    ws = generator.mapping(torch.randn(8, generator.z_dim, device=bench.device))
    with torch.inference_mode():
        with full_precision(generator.synthesis):
            exact = generator.synthesis(ws)
        for dtype in HALF:
            set_precision(generator, dtype)
            images = generator.synthesis(ws)
            error = ((images - exact).norm() / exact.norm()).item()
            name = f"{config.upper()}: images in {str(dtype).removeprefix('torch.')} against float32"
            lost = int((~images.isfinite()).sum())
            yield Figure(name, error, "of their norm", note=f"{lost} values not finite" if lost else "")


def _gradients(bench: Bench, config: str) -> Iterator[Figure]:
    """The cosine of the gradients of all weights, of the generator's loss."""
    case = Case(config, 8, "matmul")
    training = Training(bench, case)
    state, latents = training.state, training.inputs.latents[0]

    def gradient(dtype: torch.dtype) -> torch.Tensor:
        for network in (state.generator, state.discriminator):
            set_precision(network, dtype)
        state.train("generator", True)
        images = state.generator.synthesis(state.generator.mapping(latents.z))
        generator_loss(state.discriminator(images)).mean().backward()
        parameters = [p for p in state.generator.parameters() if p.grad is not None]
        flat = torch.cat([p.grad.flatten().float() for p in parameters if p.grad is not None])
        for parameter in parameters:
            parameter.grad = None
        return flat

    exact = gradient(torch.float32)
    for dtype in HALF:
        ours = gradient(dtype)
        name = f"{config.upper()}: cosine of the generator's gradient in {str(dtype).removeprefix('torch.')}"
        zeros = ((ours == 0) & (exact != 0)).float().mean().item()
        yield Figure(name, cosine_similarity(ours, exact, dim=0).item(), "", note=f"{zeros:.1%} became 0")


def _codes(bench: Bench, config: str) -> Iterator[Figure]:
    """The cosine of the gradient at codes, of a mean squared distance from images nearby."""
    generator: Generator = bench.generator(config)
    ws = generator.mapping(torch.randn(4, generator.z_dim, device=bench.device))
    with torch.no_grad(), full_precision(generator.synthesis):
        target = generator.synthesis(ws)
        target = target + 0.1 * target.std() * torch.randn_like(target)

    def gradient(scale: float) -> torch.Tensor:
        codes = ws.detach().requires_grad_()
        loss = (generator.synthesis(codes) - target).square().mean()
        return torch.autograd.grad(loss * scale, codes)[0].flatten() / scale

    with full_precision(generator.synthesis):
        exact = gradient(1.0)
    for scale in (1.0, FLOAT16_LOSS_SCALE):
        ours = gradient(scale)
        zeros = ((ours == 0) & (exact != 0)).float().mean().item()
        name = f"{config.upper()}: cosine of the gradient at codes in float16, loss times {scale:g}"
        yield Figure(name, cosine_similarity(ours, exact, dim=0).item(), "", note=f"{zeros:.1%} became 0")


# ---- Profile


def profile(bench: Bench) -> Iterator[Figure | str]:
    """Where the time of an iteration of config T goes: a figure, and the table of operations as text."""
    best: Kernel = "matmul" if bench.kernels()["triton"] else "triton"
    training = Training(bench, Case("t", bench.sizes.batches[0], best))
    iterate = training.iterate(1)
    iterate()
    bench.wait()
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * bench.is_cuda
    seconds = bench.seconds(iterate)
    with torch.profiler.profile(activities=kinds) as measured:
        iterate()
        bench.wait()
    averages = measured.key_averages()
    order = "self_device_time_total" if bench.is_cuda else "self_cpu_time_total"
    busy = sum(getattr(row, order) for row in averages) / 1e6
    if bench.is_cuda:
        yield Figure("T: share of an iteration in which the GPU computes", min(busy / seconds, 1.0), "")
    yield averages.table(sort_by=order, row_limit=40, max_name_column_width=80)
