"""The ceilings of a device, and the filtered leaky ReLU of every layer by each kernel."""

import functools
from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu_parts.common import Bench, Figure, rate, scaled, short
from benchmarks.gpu_parts.counting import Work
from passersby.stylegan3.discriminator import DiscriminatorConfig, binomial_filter
from passersby.stylegan3.ops.convolution import filter2d
from passersby.stylegan3.ops.filtered_lrelu import FilterPlan, Kernel, filtered_lrelu

LAYER_SECONDS = 2.0  # a layer that would take longer is given up
PROBE_CHANNELS = 32


def ceilings(bench: Bench) -> Iterator[Figure]:
    """The speed of a copy in memory, read and written bytes counted, and of large matrix products."""
    source = torch.empty(bench.sizes.copied_bytes // 4, device=bench.device).normal_()
    target = torch.empty_like(source)
    seconds = bench.seconds(functools.partial(target.copy_, source), 10)
    bench.bytes_per_second = 2 * 4 * source.numel() / seconds
    yield Figure("copy in memory", bench.bytes_per_second / 1e12, "TB/s")
    del source, target
    side = bench.sizes.product_side
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        a, b = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
        seconds = bench.seconds(lambda a=a, b=b: a @ b, 10, warm_up=3)
        speed = 2 * side**3 / seconds
        bench.flop_per_second = bench.flop_per_second or speed  # of float16
        name = str(dtype).removeprefix("torch.")
        yield Figure(f"products of {side} x {side} matrices, {name}", speed / 1e12, "TFLOP/s")


def layers(bench: Bench) -> Iterator[Figure]:
    """Forward pass and both passes of each layer by each kernel: milliseconds, floors, errors against float32."""
    for config in "tr":
        network, batch = bench.generator(config), bench.sizes.batches[0]
        for kernel, reason in bench.kernels().items():
            label = f"{config.upper()}: filtered leaky ReLUs, {kernel}"
            if reason:
                yield Figure(label, None, "ms", note=reason)
                continue
            totals = _Totals()
            for name in network.synthesis.layer_names[:-1]:
                if bench.is_late():
                    totals.notes.append("the time was up")
                    break
                layer = getattr(network.synthesis, name)
                dtype = layer.precision.dtype if bench.is_cuda else torch.float32
                size = [n + layer.spec.kernel - 1 for n in layer.spec.in_size]
                x = torch.randn(batch, layer.spec.out_channels, *size, device=bench.device)
                x = x.to(dtype, memory_format=torch.channels_last)
                arguments = layer.up_filter, layer.down_filter, layer.plan
                yield from _layer(bench, f"{config.upper()} {name} {kernel}", kernel, x, arguments, totals)
                del x
            if any("given up" in note for note in totals.notes):
                bench.slow_layers.add(f"{config} {kernel}")
            note = "; ".join(dict.fromkeys(totals.notes))
            yield Figure(f"{label}, forward", totals.forward * 1e3, "ms", scaled(totals.floor, 1e3), note=note)
            yield Figure(f"{label}, both passes", totals.both * 1e3, "ms", scaled(totals.both_floor, 1e3), note=note)
            if totals.errors:
                yield Figure(f"{label}, greatest error of a layer", max(totals.errors), "of the map's norm")
        bench.reset_peak()


class _Totals:
    def __init__(self):
        self.forward = self.both = self.floor = self.both_floor = 0.0
        self.errors: list[float] = []
        self.notes: list[str] = []


def _layer(bench: Bench, label: str, kernel: Kernel, x: torch.Tensor, arguments: tuple, totals: _Totals):
    probe = x[:1, :PROBE_CHANNELS].contiguous(memory_format=torch.channels_last)
    try:
        # Libraries may compute a depthwise convolution channel by channel. A part of the layer shows it in time.
        estimate = bench.seconds(_both(kernel, probe, arguments), 1) * x.numel() / probe.numel()
        error = _error(kernel, probe, arguments)
        yield Figure(f"{label}, error", error, "of the map's norm", detail=True)
        totals.errors.append(error)
        if estimate > LAYER_SECONDS:
            totals.forward, totals.both = totals.forward + estimate / 2, totals.both + estimate
            totals.notes.append("layers given up after a part of them, their times estimated")
            yield Figure(f"{label}, both passes", estimate * 1e3, "ms", note="given up, estimated", detail=True)
            return
        calls = {"forward": _forward(kernel, x, arguments), "both passes": _both(kernel, x, arguments)}
        seconds = {name: bench.seconds(call, bench.sizes.layer_repeats) for name, call in calls.items()}
        floors = {name: bench.floor(_least(x, arguments, name == "both passes")) or 0.0 for name in calls}
    except (RuntimeError, torch.OutOfMemoryError) as error:
        totals.notes.append(f"a layer failed: {short(error)}")
        yield Figure(f"{label}, both passes", None, "ms", note=short(error), detail=True)
        bench.wait()  # raises where the device is lost
        return
    totals.forward, totals.both = totals.forward + seconds["forward"], totals.both + seconds["both passes"]
    totals.floor, totals.both_floor = totals.floor + floors["forward"], totals.both_floor + floors["both passes"]
    for name, taken in seconds.items():
        yield Figure(f"{label}, {name}", taken * 1e3, "ms", floors[name] * 1e3, detail=True)


def _forward(kernel: Kernel, x: torch.Tensor, arguments: tuple) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        with torch.no_grad():
            return filtered_lrelu(x, *arguments, kernel=kernel)

    return call


def _both(kernel: Kernel, x: torch.Tensor, arguments: tuple) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    def call() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            y = filtered_lrelu(leaf, *arguments, kernel=kernel)
            return y.detach(), torch.autograd.grad(y, leaf, y.detach())[0]

    return call


def _error(kernel: Kernel, x: torch.Tensor, arguments: tuple) -> float:
    # Of map and gradient together, against float32 on the CPU: |ours - exact| / |exact|.
    up, down, plan = arguments
    exact = _both("plain", x.cpu().float(), (up.cpu(), down.cpu(), plan))()
    pairs = list(zip(_both(kernel, x, arguments)(), exact, strict=True))
    return max(((a.cpu().float() - b).norm() / b.norm().clamp_min(1e-30)).item() for a, b in pairs)


def _least(x: torch.Tensor, arguments: tuple, backward: bool) -> Work:
    """The least that any kernel must do: it reads its inputs and writes its results once."""
    plan: FilterPlan = arguments[2]
    sizes = [(n - len(arguments[1])) // plan.down + 1 for n in plan.size]
    small, large = x.numel(), x.shape[0] * x.shape[1] * sizes[0] * sizes[1]
    work = Work()
    work.bytes["least"] = x.element_size() * (small + large + (2 * small + large if backward else 0))
    return work


def filters(bench: Bench) -> Iterator[Figure]:
    """The discriminator's low-pass filters of 4 x 4, which libraries compute as depthwise convolutions."""
    batch, dtype = bench.sizes.batches[0], torch.float16 if bench.is_cuda else torch.float32
    s = bench.sizes
    config = DiscriminatorConfig(s.height, s.width, channel_base=s.channel_base, channel_max=s.channel_max)
    kernel = binomial_filter().to(bench.device)
    total = floor = 0.0
    for height in config.heights[:-1]:
        shape = (batch, config.channels(height), height, height * config.width // config.height)
        name = f"filter of {shape[2]} x {shape[3]} x {shape[1]} channels, both passes"
        try:
            x = torch.randn(shape, device=bench.device).to(dtype, memory_format=torch.channels_last)
            probe = x[:1, :PROBE_CHANNELS].contiguous(memory_format=torch.channels_last)
            seconds = bench.seconds(_filtered(probe, kernel), 1) * x.numel() / probe.numel()
            if seconds < LAYER_SECONDS:
                seconds = bench.seconds(_filtered(x, kernel), bench.sizes.layer_repeats)
        except RuntimeError as error:
            yield Figure(name, None, "ms", note=short(error), detail=True)
            bench.wait()  # raises where the device is lost
            continue
        work = Work()
        work.bytes["least"] = 4 * x.numel() * x.element_size()  # each pass reads a map and writes one
        least = bench.floor(work) or 0.0
        total, floor = total + seconds, floor + least
        yield Figure(name, seconds * 1e3, "ms", least * 1e3, detail=True)
    yield Figure("discriminator's filters before convolutions, both passes", total * 1e3, "ms", floor * 1e3)


def _filtered(x: torch.Tensor, kernel: torch.Tensor) -> Callable[[], tuple[torch.Tensor, ...]]:
    def call() -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            y = filter2d(leaf, kernel, padding=2)
            return torch.autograd.grad(y, leaf, y.detach())

    return call


def network(bench: Bench) -> Iterator[Figure]:
    """Images a second of the generator alone, at the batch of a generation job."""
    batch = 64 if bench.is_cuda else 2
    for config in ("t", "r", "2"):
        for kernel, reason in bench.kernels().items():
            name = f"{config.upper()}: generator alone, batch {batch}, {kernel}"
            if bench.is_late() or reason or f"{config} {kernel}" in bench.slow_layers:
                note = reason or ("the time was up" if bench.is_late() else "its layers are too slow")
                yield Figure(name, None, "images/s", note=note)
            else:
                generator = bench.generator(config, kernel)
                z = torch.randn(batch, generator.z_dim, device=bench.device)
                with torch.inference_mode():
                    work = bench.work(lambda g=generator, z=z: g(z))
                    seconds = bench.seconds(lambda g=generator, z=z: g(z))
                yield Figure(name, rate(batch, seconds), "images/s", rate(batch, bench.floor(work)))
            if config == "2":
                break  # it has no filtered leaky ReLUs
