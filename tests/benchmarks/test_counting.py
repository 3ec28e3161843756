"""What a GAN iteration asks of a GPU, counted at true sizes on tensors without values: no GPU is needed.

The tensors are those of a CPU which say that they lie on a GPU, so that all code goes the way of a GPU. Bounds are the
counted figures of docs/performance.md and a twentieth; an iteration that moves more has lost something.
"""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from benchmarks.gpu_parts.counting import Work, saved_bytes
from passersby import stylegan2
from passersby.stylegan3 import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig
from passersby.stylegan3.ops.filtered_lrelu import fused, matmul
from passersby.stylegan3.schedule import lowpass_filter
from training.gan.inputs import Inputs, Latents
from training.gan.step import StepSettings, TrainingState, new_state, train_iteration

BATCH = 32


@dataclasses.dataclass(frozen=True)
class Networks:
    """The networks of a training of 128 x 64 pixels, whose values are unknown."""

    generator: Generator
    discriminator: Discriminator

    def state(self) -> TrainingState:
        state = new_state(self.generator, self.discriminator)
        state.step = 1  # without R1
        for optimizer in (state.generator_optimizer, state.discriminator_optimizer):
            for group in optimizer.param_groups:
                group["foreach"] = True  # as Adam chooses on a GPU
        return state

    def latents(self) -> Latents:
        return Latents(torch.empty(BATCH, self.generator.z_dim))

    def inputs(self) -> Inputs:
        reals = torch.empty(BATCH, 3, 128, 64)
        return Inputs(reals, (self.latents(), self.latents()))


@pytest.fixture
def without_values(monkeypatch) -> Iterator[FakeTensorMode]:
    """Tensors without values, which say that they lie on a GPU."""
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda self, memo: self, raising=False)
    monkeypatch.setattr(FakeTensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(fused, "reason_against", lambda device: None)
    matmul._products.cache_clear()
    with FakeTensorMode() as mode:
        yield mode
    matmul._products.cache_clear()


def networks(config: str, kernel: str = "auto") -> Networks:
    discriminator = Discriminator(DiscriminatorConfig(128, 64))
    if config == "2":
        return Networks(stylegan2.Generator(stylegan2.GeneratorConfig(128, 64)), discriminator)
    generator = Generator(getattr(GeneratorConfig, f"config_{config}")(128, 64))
    for spec in generator.config.layers()[:-1]:
        layer = getattr(generator.synthesis, spec.name)
        layer.kernel = kernel
        # Products with banded matrices read the values of filters, which such tensors do not have.
        radial = generator.config.use_radial_filters and not spec.critically_sampled
        designs = {
            layer.up_filter: lowpass_filter(spec.up_taps, spec.in_cutoff, spec.in_half_width, spec.rate),
            layer.down_filter: lowpass_filter(spec.down_taps, spec.out_cutoff, spec.out_half_width, spec.rate, radial),
        }
        for tensor, values in designs.items():
            taps = matmul.Taps(values.astype(float).tobytes(), len(values), values.ndim == 2)
            matmul._known_taps[tensor] = (tensor._version, taps)
    return Networks(generator, discriminator)


def work_of(call) -> Work:
    with Work() as work:
        call()
    return work


def test_a_forward_pass_with_the_kernel_of_triton_moves_a_quarter_of_the_bytes(without_values):
    made = networks("t", "triton")
    with torch.no_grad():
        work = work_of(lambda: made.generator(made.latents().z))
    assert work.calls["filtered_lrelu"] == 14
    assert work.flop["filtered_lrelu"] > 1e12
    assert not any(name.startswith("depthwise") for name in work.calls)
    assert work.all_bytes < 92e9 / 4  # 92 GB are those of the kernel `plain`


# (config, kernel) -> calls, TFLOP, GB of an iteration without R1; GB that a forward pass of the generator keeps.
ITERATIONS = {
    ("t", "plain"): (3903, 39.7, 409.6, 15.9),
    ("t", "matmul"): (3855, 45.2, 399.2, 15.9),
    ("t", "triton"): (3483, 45.9, 125.5, 8.3),
    ("r", "plain"): (3653, 23.5, 649.5, 26.2),
    ("r", "matmul"): (3745, 42.2, 810.2, 26.2),
    ("r", "triton"): (3315, 42.4, 155.1, 10.8),
}


@pytest.mark.slow
@pytest.mark.parametrize(("config", "kernel"), ITERATIONS)
def test_an_iteration_asks_for_no_more_than_the_page_says(config, kernel, without_values):
    state = (made := networks(config, kernel)).state()
    work = work_of(lambda: train_iteration(state, StepSettings(gamma=1.0), made.inputs()))
    state.train("generator", True)
    kept = saved_bytes(lambda: made.generator(made.latents().z))
    figures = work.all_calls, work.all_flop / 1e12, work.all_bytes / 1e9, kept / 1e9
    for figure, bound in zip(figures, ITERATIONS[config, kernel], strict=True):
        assert 0.5 * bound < figure < 1.05 * bound, figures
    if (config, kernel) == ("t", "triton"):
        assert work.all_bytes < 150e9


def test_saved_bytes_counts_each_storage_once():
    x = torch.ones(10, requires_grad=True)
    assert saved_bytes(lambda: (x * x[:5].sum()).exp()) == 84  # x, the sum, and the result of exp


def test_an_expanded_tensor_counts_without_its_repetitions():
    work = work_of(lambda: torch.ones(1, 8).expand(100, 8) + torch.ones(100, 8))
    assert work.bytes["add"] == 4 * (8 + 800 + 800)
    assert work.calls["add"] == 1
    assert "expand" not in work.calls


def test_flop_of_convolutions_and_products():
    x, weight = torch.ones(2, 3, 9, 9, requires_grad=True), torch.ones(5, 3, 3, 3, requires_grad=True)

    def learn():
        torch.nn.functional.conv2d(x, weight).sum().backward()
        torch.addmm(torch.ones(7), torch.ones(4, 6), torch.ones(6, 7))

    work = work_of(learn)
    products = 2 * 2 * 5 * 7 * 7 * 27
    assert work.flop["convolution"] == products
    assert work.flop["convolution's gradient"] == 2 * products  # at the map and at the weight
    assert work.calls["convolution's gradient"] == 2
    assert work.flop["addmm"] == 2 * 4 * 6 * 7
