"""The kernel of Triton: run by Triton's interpreter on a CPU, and compiled for GPUs that this machine need not have."""

import dataclasses
import importlib
import re
import subprocess
from pathlib import Path

import pytest
import torch

from passersby.stylegan3.ops.filtered_lrelu import filtered_lrelu, fused, plain
from passersby.stylegan3.ops.filtered_lrelu.matmul import SEPARATION_TOLERANCE, taps_of
from tests.passersby.stylegan3.ops.test_kernels import SIZES, layers, with_gradient

triton = pytest.importorskip("triton", reason="Triton is not installed: PyTorch brings it on Linux alone")

SHARED_MEMORY = 99 * 1024  # bytes that a program may use on compute capability 8.9, the least of those below


@pytest.fixture
def interpreted(monkeypatch):
    """Let Triton's interpreter run the kernels inside the test."""
    from passersby.stylegan3.ops.filtered_lrelu import triton_kernels

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    importlib.reload(triton_kernels)  # what runs a kernel is chosen where it is defined
    fused.reason_against.cache_clear()
    yield
    monkeypatch.undo()
    importlib.reload(triton_kernels)
    fused.reason_against.cache_clear()


def small(layer: tuple, height: int, width: int) -> tuple:
    """The layer with a map of height x width outputs: its filters and crop, some tiles instead of hundreds."""
    name, up, down, _, plan = layer
    sizes = [(n - 1) * plan.down + len(down) for n in (height, width)]
    inputs = [-(-(n + crop) // plan.up) - 1 for n, crop in zip(sizes, plan.crop, strict=True)]
    return name, up, down, inputs, dataclasses.replace(plan, size=tuple(sizes))


def assert_equal_to_plain(layer: tuple, samples: int = 1, channels: int = 3) -> None:
    name, up, down, size, plan = layer
    x = 2 * torch.randn(samples, channels, *size, generator=torch.Generator().manual_seed(0))  # some are clamped
    for ours, expected in zip(*(with_gradient(k, x, up, down, plan) for k in ("triton", "plain")), strict=True):
        assert ours.shape == expected.shape
        assert ours.is_contiguous(memory_format=torch.channels_last)
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0, msg=lambda text: f"{name}: {text}")


def test_the_kernel_equals_the_plain_one(interpreted):
    layer = layers("t", 64, 32)[0]
    assert_equal_to_plain(small(layer, 2, 7), channels=1)  # a tile that is partly outside the map


# The interpreter takes milliseconds for each operation, and layers differ in little but the values of their filters. So
# it runs one layer of each kind: of those whose kernels get the same constants, the one with most separable parts.
KINDS = [("t", 64, 64, 0), ("t", 64, 64, 4), ("t", 64, 64, 13), ("r", 64, 64, 4), ("r", 64, 64, 11), ("r", 64, 64, 13)]


def kind(layer: tuple) -> tuple[tuple, int]:
    """(what the kernels of a layer get beside sizes, filters and their separable parts, the number of these parts)."""
    _, up, down, _, plan = layer
    constants, parts = [], 0
    for name in ("forward", "backward"):
        make, tile_of = getattr(fused, f"{name}_variant"), getattr(fused, f"{name}_tile")
        variant = make(taps_of(up), taps_of(down), plan, tile_of(torch.float32, 3), SEPARATION_TOLERANCE[torch.float32])
        parts = variant.constants["RANK"]
        constants += [*(variant.constants | variant.integers | {"RANK": None}).items()]
    return tuple(constants), parts


def test_every_kind_of_layer_is_run():
    most: dict[tuple, int] = {}
    for config_name in "tr":
        for height, width in SIZES:
            for constants, parts in map(kind, layers(config_name, height, width)):
                most[constants] = max(parts, most.get(constants, 0))
    assert dict(kind(layers(name, height, width)[index]) for name, height, width, index in KINDS) == most


# Tiles side by side and below each other, all of them partly outside the map.
@pytest.mark.slow
@pytest.mark.parametrize(("config_name", "height", "width", "index"), KINDS)
def test_the_kernel_equals_the_plain_one_in_every_kind_of_layer(config_name, height, width, index, interpreted):
    assert_equal_to_plain(small(layers(config_name, height, width)[index], 9, 17))


@pytest.mark.slow
def test_the_kernel_in_a_whole_layer(interpreted):
    assert_equal_to_plain(layers("t", 32, 16)[0], channels=1)  # tiles in the middle see no border


@pytest.mark.slow
@pytest.mark.parametrize("config_name", "tr")
def test_the_kernel_with_several_samples_and_channels(config_name, interpreted):
    layer = layers(config_name, 32, 16)[5]  # up-sampled by 4
    assert_equal_to_plain(small(layer, 2, 7), samples=2, channels=17)  # a second program for the last channel


@pytest.mark.slow
@pytest.mark.parametrize("name", ["L0_36_128", "L13_64_64"])  # radial, and separable
def test_a_layer_of_the_kernel_equals_the_reference(name, oracle, interpreted, monkeypatch):
    network, seen = oracle.generator(), {}
    layer = getattr(network.synthesis, name)
    layer.kernel = "triton"
    layer.register_forward_hook(lambda _module, _inputs, out: seen.update({name: out}))
    kernel = fused.FilteredLeakyReLU.apply

    class Compared:
        """The kernel for the eighth of the channels that is compared: each channel is filtered by itself."""

        @staticmethod
        def apply(x: torch.Tensor, *filters) -> torch.Tensor:
            compared = slice(None, None, x.shape[1] // 8)
            y = plain.FilteredLeakyReLU.apply(x, *filters).fill_(torch.nan)
            y[:, compared] = kernel(x[:, compared].contiguous(memory_format=torch.channels_last), *filters)
            return y

    monkeypatch.setattr(fused, "FilteredLeakyReLU", Compared)
    with torch.no_grad():
        network.synthesis(oracle.tensor("ws_psi0.7")[:1])
    step = seen[name].shape[1] // 8
    torch.testing.assert_close(
        seen[name][:, ::step, ::4, ::4], oracle.tensor(f"act_{name}_sub"), atol=2e-5, rtol=0
    )  # as with the kernel `plain`


@pytest.mark.slow
def test_the_kernel_in_float16(interpreted):
    _, up, down, size, plan = small(layers("r", 64, 32)[8], 8, 7)
    x = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(0)).half()
    expected = with_gradient("plain", x.float(), up, down, plan)
    # Roundings of values up to 2, as in `matmul`. A value near 0 or near the clamp can come to lie on its other side,
    # where the gradient is another: such values are few.
    for ours, exact, tolerance in zip(with_gradient("triton", x, up, down, plan), expected, (0.004, 0.1), strict=True):
        assert ours.dtype == torch.float16
        torch.testing.assert_close(ours.float(), exact, atol=tolerance, rtol=0)
        assert (ours.float() - exact).abs().mean() < 0.001


def test_tensors_without_values_pass_through():
    from torch._subclasses.fake_tensor import FakeTensorMode

    _, up, down, size, plan = layers("r", 64, 32)[8]
    with FakeTensorMode() as mode:
        x = torch.empty(2, 5, *size, requires_grad=True)
        y = fused.FilteredLeakyReLU.apply(x, mode.from_tensor(up), mode.from_tensor(down), plan)
        saved = [tensor.shape for tensor in y.grad_fn.saved_tensors if tensor.numel() > 1000]
        (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.shape == filtered_lrelu(torch.zeros(2, 5, *size), up, down, plan).shape
    assert gradient.shape == x.shape
    assert saved == [x.shape]  # nothing but the input is kept for the gradient


# ---- Compiled without a GPU.

POINTERS = {"x", "y", "dx", "grad", "up_matrix", "down_matrix", "up_matrix_t"}
TAPS = {"up_taps", "down_taps", "up_taps_t"}
FORMATS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
LAYERS = {"T, up 2": ("t", 8), "T, up 4": ("t", 3), "R, up 2": ("r", 11), "R, up 4": ("r", 3)}


def compiled(kernel: str, layer: tuple, dtype: torch.dtype, capability: int, folder: Path) -> tuple[int, int]:
    """(bytes that left the registers for memory, bytes of shared memory) of the kernel's variant for this layer."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from passersby.stylegan3.ops.filtered_lrelu import triton_kernels

    _, up, down, _, plan = layer
    make, tile_of = getattr(fused, f"{kernel}_variant"), getattr(fused, f"{kernel}_tile")
    function, tile = getattr(triton_kernels, f"{kernel}_kernel"), tile_of(dtype, 512)
    variant = make(taps_of(up), taps_of(down), plan, tile, SEPARATION_TOLERANCE[dtype])
    constants = variant.constants | fused.constants_of(dtype)
    types, attributes = {}, {}
    for index, name in enumerate(function.arg_names):
        if name in constants:
            types[name] = "constexpr"
        elif name in POINTERS | TAPS:
            types[name] = "*fp32" if name in TAPS else f"*{FORMATS[dtype]}"
        else:
            types[name] = "fp32" if name in ("slope", "clamp") else "i32"
        # As at a launch: addresses, and all strides of a map whose channels are a multiple of 16.
        if name in POINTERS | TAPS | {"C"} or name.endswith(("_sample", "_row", "_col")) and name != "first_col":
            attributes[(index,)] = [["tt.divisibility", 16]]
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    source = ASTSource(function, types, constants, attributes)
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    code = folder / "kernel.cubin"
    code.write_bytes(result.asm["cubin"])
    program = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    report = subprocess.run([program, "--dump-resource-usage", code], capture_output=True, text=True, check=True).stdout
    (stack,) = re.findall(r" STACK:(\d+) ", report)  # the kernels have no arrays of their own: only spills lie there
    return int(stack), result.metadata.shared


def test_a_kernel_compiles_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    spilled, shared = compiled("forward", layers("t", 128, 64)[8], torch.float16, 90, tmp_path)
    assert spilled == 0
    assert shared <= SHARED_MEMORY


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 89, 90])
@pytest.mark.parametrize("dtype", FORMATS, ids=FORMATS.values())
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_every_variant_stays_in_registers_and_shared_memory(kernel, layer, dtype, capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    config_name, index = LAYERS[layer]
    spilled, shared = compiled(kernel, layers(config_name, 128, 64)[index], dtype, capability, tmp_path)
    assert spilled == 0
    assert shared <= SHARED_MEMORY
