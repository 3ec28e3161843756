"""The training step of StyleGAN2: the public code's iteration, path lengths, and one pass for both networks."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed

from passersby import stylegan2
from passersby.stylegan3 import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig
from tests.helpers.stylegan2_reference import REFERENCE, discriminator, drawn, generator
from training.gan import optimizers
from training.gan import step as gan
from training.gan.augment import draw
from training.gan.inputs import AUGMENTED, Inputs, Latents, Noise
from training.gan.losses import path_lengths
from training.gan.step import StepSettings

# ---- One iteration of the public code.

N = 8
CONVOLUTIONS = 7  # of the recorded generator
PHASES = ("Gmain", "Greg", "Dmain", "Dreg")


@dataclasses.dataclass(frozen=True)
class RecordedNoise(Noise):
    """The draws of the recorded iteration: the layers' noise in their order, then the random images."""

    first: int = 0

    def draw(self, layer, size):
        return drawn(self.first + min(layer, CONVOLUTIONS), (len(self.places), *size))


def recorded_latents(reference, phase: str) -> Latents:
    index = PHASES.index(phase)
    z = np.random.RandomState(60 + index).standard_normal((N, 16)).astype(np.float32)
    first, count = int(reference[f"iteration_{phase}_draws"][0]), N // 2 if phase == "Greg" else N
    mix_z = torch.zeros(N, 16)
    mix_z[:count] = drawn(first + 1, (count, 16))
    mix_from = torch.full((N,), int(reference["iteration_cutoffs"][index]))
    return Latents(torch.from_numpy(z), mix_z, mix_from, noise=RecordedNoise(0, N, torch.arange(N), first + 2))


def test_one_iteration_equals_the_reference(monkeypatch):
    reference = np.load(REFERENCE)
    settings = StepSettings(gamma=1.0, path_length_weight=2.0, ema_ramp=None, ema_half_life_images=N / np.log2(1 / 0.9))
    state = gan.new_state(
        generator("tall"),
        discriminator("tall"),
        generator_lr=0.002,
        path_length_interval=settings.path_length_interval,
    )
    state.path_length.fill_(0.3)
    reals = np.random.RandomState(50).uniform(-1, 1, (N, 3, 32, 16)).astype(np.float32)
    order = ("Gmain", "Dmain", "Greg")
    inputs = Inputs(torch.from_numpy(reals), tuple(recorded_latents(reference, phase) for phase in order))
    seen, apply = [], gan.apply_gradients

    def note(optimizer, rounds=1):
        network = state.generator if optimizer is state.generator_optimizer else state.discriminator
        seen.append({name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None})
        apply(optimizer, rounds)

    monkeypatch.setattr(gan, "apply_gradients", note)
    gan.train_iteration(state, settings, inputs)
    assert state.path_length.item() == pytest.approx(float(reference["iteration_pl_mean"]), rel=1e-5)
    assert len(seen) == len(PHASES)
    for phase, gradients in zip(PHASES, seen, strict=True):
        names = list(reference[f"iteration_{phase}_names"])
        assert set(gradients) == set(names)  # no gradient where the reference has none: Adam leaves such a weight alone
        expected, largest = reference[f"iteration_{phase}"], max(g.abs().max() for g in gradients.values())
        for name in names:
            values, expected = expected[: gradients[name].numel()], expected[gradients[name].numel() :]
            difference = np.abs(gradients[name].flatten().numpy() - values)
            # Gradients of a phase after steps of the others: Adam's first step is as long for a gradient that is only
            # rounding as for any other, so a few weights of 1e-9 relative importance differ by a whole step.
            assert difference.max() <= 1e-5 * max(np.abs(values).max(), 1e-2 * float(largest)), (phase, name)
    for letter, network, rate in (("G", state.generator, 0.002), ("D", state.discriminator, 0.002)):
        left_out = ("resample_filter", "noise_const")
        names = sorted(name for name in network.state_dict() if not name.endswith(left_out))
        values = torch.cat([network.state_dict()[name].flatten() for name in names])
        difference = (values - torch.from_numpy(reference[f"iteration_{letter}"])).abs()
        assert (difference > 1e-5 * values.abs().clamp(min=1)).float().mean() < 1e-3
        assert difference.max() <= 4 * rate


# ---- Path lengths.

BATCH = 16
SMALL = {"z_dim": 8, "w_dim": 8, "mapping_layers": 2, "channel_base": 64, "channel_max": 4}


def small_state(label_size: int = 0, path_length_interval: int | None = 4) -> gan.TrainingState:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = stylegan2.Generator(stylegan2.GeneratorConfig(16, 8, c_dim=label_size, **SMALL))
        critic = Discriminator(
            DiscriminatorConfig(16, 8, c_dim=label_size, channel_base=64, channel_max=4, last_height=4)
        )
        for name, parameter in network.named_parameters():
            if name.endswith("noise_strength"):
                torch.nn.init.constant_(parameter, 0.3)
    state = gan.new_state(network, critic, path_length_interval=path_length_interval)
    state.path_length.fill_(0.2)
    return state


def small_inputs(case: str = "plain") -> Inputs:
    random = np.random.default_rng(5)
    make = lambda *shape: torch.from_numpy(random.standard_normal(shape, np.float32))  # noqa: E731
    size = 3 if case == "conditional" else 0
    labels = [torch.eye(3)[random.integers(3, size=BATCH)] if size else None for _ in range(4)]
    latents = [
        Latents(
            make(BATCH, 8),
            make(BATCH, 8),
            torch.from_numpy(random.integers(1, 7, BATCH)),
            labels[index],
            Noise(100 * index, BATCH, torch.arange(BATCH)),
        )
        for index in range(3)
    ]
    draws = {name: draw("upright", 0.7, BATCH, 16, 8, random) for name in AUGMENTED} if case == "augmented" else {}
    return Inputs(make(BATCH, 3, 16, 8).clamp(-1, 1), tuple(latents), labels[3], draws)


def penalty(state: gan.TrainingState, latents: Latents) -> torch.Tensor:
    """The penalty as the reference writes it, with autograd through the moving average."""
    lengths = path_lengths(state.generator, latents.share(slice(BATCH // 2)))
    target = state.path_length.lerp(lengths.mean(), 0.01)
    return (lengths - target).square().mean()


def test_the_penaltys_gradient_is_that_of_the_penalty():
    settings = StepSettings(gamma=1.0, path_length_weight=3.0)
    state, inputs = small_state(), small_inputs()
    state.train("generator", True)
    (penalty(state, inputs.latents[2]) * 3.0 * 4).backward()
    expected = {name: p.grad.clone() for name, p in state.generator.named_parameters() if p.grad is not None}
    state.generator.zero_grad(set_to_none=True)
    scalars = gan.path_length_phase(state, [inputs.latents[2]], settings)
    assert scalars["G/path_length"].shape == (BATCH // 2,)
    for name, parameter in state.generator.named_parameters():
        assert (parameter.grad is None) == (name not in expected), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_the_average_length_follows_the_lengths():
    settings = StepSettings(gamma=1.0, path_length_weight=2.0, path_length_decay=0.25)
    state, inputs = small_state(), small_inputs()
    state.train("generator", True)
    lengths = path_lengths(state.generator, inputs.latents[2].share(slice(BATCH // 2)), False)
    gan.path_length_phase(state, [inputs.latents[2]], settings)
    assert state.path_length.item() == pytest.approx(0.2 + 0.25 * (lengths.mean().item() - 0.2), rel=1e-5)


@pytest.mark.parametrize(("step", "steps"), [(0, 2), (1, 1), (3, 1), (4, 2)])
def test_the_penalty_runs_in_every_fourth_iteration(step, steps):
    state, inputs = small_state(), small_inputs()
    state.step, count = step, [0]
    optimize = state.generator_optimizer.step
    state.generator_optimizer.step = lambda: (count.__setitem__(0, count[0] + 1), optimize())
    scalars = gan.train_iteration(state, StepSettings(gamma=1.0, path_length_weight=2.0), inputs)
    assert count[0] == steps
    assert ("G/path_length" in scalars) == (steps == 2)


def test_the_generators_rate_is_corrected_for_its_fifth_step():
    groups = [small_state(0, interval).generator_optimizer.param_groups[0] for interval in (None, 4)]
    assert (groups[0]["lr"], groups[0]["betas"]) == (0.0025, (0.0, 0.99))
    assert groups[1]["lr"] == pytest.approx(0.0025 * 0.8)
    assert groups[1]["betas"] == pytest.approx((0.0, 0.99**0.8))


# ---- The same for any number of rounds and workers.

CASES = ["plain", "augmented", "conditional"]
SETTINGS = {"gamma": 1.0, "path_length_weight": 2.0}


def gradients(case: str, rounds: int, rank: int = 0, world: int = 1, **options) -> dict[str, torch.Tensor]:
    """The gradients as the optimisers get to see them, without steps; and the averages."""
    state = small_state(3 if case == "conditional" else 0)
    inputs, seen = small_inputs(case).part(rank, world), {}
    for kind in ("generator", "discriminator"):
        optimizer, network, count = getattr(state, f"{kind}_optimizer"), getattr(state, kind), [0]

        def look(kind=kind, network=network, count=count):
            count[0] += 1
            for name, parameter in network.named_parameters():
                if parameter.grad is not None:
                    seen[f"{kind}.{count[0]}.{name}"] = parameter.grad.clone()

        optimizer.step = look
    gan.train_iteration(state, StepSettings(rounds=rounds, **SETTINGS | options), inputs)
    averages = {"average.of.w": state.generator.mapping.w_avg, "average.of.lengths": state.path_length}
    return seen | {name: value.clone() for name, value in averages.items()}


def check_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert sum(name.startswith("generator.2.") for name in one) > 10  # the path lengths ran
    for name, value in one.items():
        # 1e-5 of the tensor's largest gradient, or of a hundredth of the largest of its phase: sums in another order.
        largest = max(v.abs().max() for n, v in one.items() if n.split(".")[:2] == name.split(".")[:2])
        scale = max(value.abs().max(), 1e-2 * largest)
        assert (value - other[name]).abs().max() <= 1e-5 * scale, name


@pytest.mark.parametrize("rounds", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_rounds_add_up_to_the_whole_batch(case, rounds):
    check_same(gradients(case, 1), gradients(case, rounds))


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    for case in CASES:
        torch.save(gradients(case, 2, rank, 2), f"{folder}/{case}-{rank}.pt")
    torch.save(gradients("plain", 1, rank, 2, one_pass=True), f"{folder}/one_pass-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_workers_with_half_the_batch_each_see_the_gradients_of_one(tmp_path):
    root = Path(__file__).resolve().parents[3]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    others = [subprocess.Popen([*command, str(rank)], cwd=root, env=environment) for rank in range(2)]
    assert [other.wait(timeout=600) for other in others] == [0, 0]
    whole = {case: gradients(case, 1) for case in CASES} | {"one_pass": gradients("plain", 1, one_pass=True)}
    for case, expected in whole.items():
        for rank in range(2):
            check_same(expected, torch.load(tmp_path / f"{case}-{rank}.pt"))


def test_a_samples_noise_depends_on_its_place_in_the_batch_alone():
    noise = Noise(7, 8, torch.arange(8))
    whole = noise.draw(2, (4, 2))
    part = dataclasses.replace(noise, places=torch.tensor([5, 1]))
    assert torch.equal(part.draw(2, (4, 2)), whole[[5, 1]])
    assert not torch.equal(noise.draw(3, (4, 2)), whole)
    assert abs(whole.std().item() - 1) < 0.3


# ---- One generated batch for both networks.


def one_pass_in_two(state: gan.TrainingState, settings: StepSettings, inputs: Inputs) -> None:
    """What `one_pass` does, with the images made twice: the generator's weights do not change in between."""
    latents, draws = inputs.latents[0], inputs.draws
    fakes = (draws.get("fakes"), draws.get("reals"))
    gan.discriminator_phase(state, inputs.reals, latents, 0.0, inputs.labels, fakes)
    optimizers.apply_gradients(state.discriminator_optimizer)
    gan.regularization_phase(state, inputs.reals, 0.0, settings, inputs.labels, draws.get("r1"))
    optimizers.apply_gradients(state.discriminator_optimizer)
    gan.generator_phase(state, latents, 0.0, draws.get("generator"))
    optimizers.apply_gradients(state.generator_optimizer)


@pytest.mark.parametrize("family", ["2", "t"])
@pytest.mark.parametrize("case", CASES)
def test_one_pass_learns_what_two_passes_over_the_same_codes_learn(case, family):
    label_size = 3 if case == "conditional" else 0
    states = [small_state(label_size) for _ in range(2)]
    inputs = small_inputs(case)
    if family == "t":
        inputs = dataclasses.replace(
            inputs, latents=tuple(dataclasses.replace(part, noise=None) for part in inputs.latents[:2])
        )
        for state in states:  # the average that moves within the one pass moves between the two: beta 1 stops it
            torch.manual_seed(1)
            config = GeneratorConfig.config_t(
                16, 8, z_dim=8, w_dim=8, c_dim=label_size, channel_base=64, channel_max=4, magnitude_ema_beta=1.0
            )
            other = gan.new_state(Generator(config), state.discriminator)
            state.generator, state.generator_ema = other.generator, other.generator_ema
            state.generator_optimizer, state.discriminator_optimizer = (
                other.generator_optimizer,
                other.discriminator_optimizer,
            )
    settings = StepSettings(gamma=1.0, one_pass=True)
    scalars = gan.train_iteration(states[0], settings, inputs)
    one_pass_in_two(states[1], settings, inputs)
    assert set(scalars) == {"G/loss", "D/loss", "D/r1", "scores/fake", "scores/real"}
    for network in ("generator", "discriminator"):
        values = [getattr(state, network).state_dict() for state in states]
        for name, value in values[0].items():
            torch.testing.assert_close(value, values[1][name], rtol=1e-5, atol=1e-6, msg=name)


def test_one_pass_makes_the_images_once():
    state, calls = small_state(), [0]
    state.generator.synthesis.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    gan.train_iteration(state, StepSettings(gamma=1.0, one_pass=True), small_inputs())
    assert calls == [1]
    gan.train_iteration(state, StepSettings(gamma=1.0), small_inputs())
    assert calls == [3]


if __name__ == "__main__":  # one of two workers
    work(int(sys.argv[2]), sys.argv[1])
