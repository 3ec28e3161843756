"""One batch worked on in parts, by rounds or by workers, learns what it learns as a whole."""

import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed

from passersby.stylegan3 import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig
from tests.helpers.double_precision import doubled, float64_for_float32
from training.gan import step as gan
from training.gan.augment import AdaController, draw
from training.gan.inputs import AUGMENTED, Inputs, Latents

BATCH = 16
# Two phases whose gradients are compared before any step: Adam makes a whole step of a gradient that is only rounding.
CASES = ["plain", "augmented", "conditional"]


def new_state(label_size: int = 0, ema_beta: float = 1.0, **options) -> gan.TrainingState:
    # Layers divide by the running magnitude of what comes in, this batch's included. Parts of a batch have only their
    # own magnitudes until all are averaged, which moves fakes by (1 - beta) times the spread of the parts: up to 1e-4.
    # That is no error of the gradients, so it is left out here (beta 1); the averages have a test of their own.
    sizes = {"c_dim": label_size, "channel_base": 128, "channel_max": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(GeneratorConfig.config_t(16, 8, magnitude_ema_beta=ema_beta, **sizes))
        discriminator = Discriminator(DiscriminatorConfig(16, 8, **sizes))
    return gan.new_state(generator, discriminator, **options)


def inputs_of(case: str) -> Inputs:
    random = np.random.default_rng(5)
    label_size = 3 if case == "conditional" else 0
    make = lambda *shape: torch.from_numpy(random.standard_normal(shape, np.float32))  # noqa: E731
    labels = [torch.eye(3)[random.integers(3, size=BATCH)] for _ in range(3)] if label_size else [None] * 3
    latents = [
        Latents(make(BATCH, 512), make(BATCH, 512), torch.from_numpy(random.integers(1, 17, BATCH)), labels[index])
        for index in range(2)
    ]
    draws = {name: draw("upright", 0.7, BATCH, 16, 8, random) for name in AUGMENTED} if case == "augmented" else {}
    return Inputs(make(BATCH, 3, 16, 8).clamp(-1, 1), tuple(latents), labels[2], draws)


def state_of(case: str) -> gan.TrainingState:
    return new_state(3 if case == "conditional" else 0)


def gradients(case: str, rounds: int, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
    """The gradients of all three phases as the optimisers get to see them, and the average of w."""
    state, inputs = doubled(state_of(case)), doubled(inputs_of(case)).part(rank, world)
    seen = {}
    for kind in ("generator", "discriminator"):
        optimizer, network = getattr(state, f"{kind}_optimizer"), getattr(state, kind)
        count = [0]

        def look(kind=kind, network=network, count=count):
            count[0] += 1
            for name, parameter in network.named_parameters():
                if parameter.grad is not None:
                    seen[f"{kind}.{count[0]}.{name}"] = parameter.grad.clone()

        optimizer.step = look
    with float64_for_float32():
        gan.train_iteration(state, gan.StepSettings(gamma=1.0, rounds=rounds), inputs)
    return seen | {"average.of.w": state.generator.mapping.w_avg.clone()}


def averages(rounds: int, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
    """The running averages after an iteration in which they move."""
    state = new_state(ema_beta=0.999)
    gan.train_iteration(state, gan.StepSettings(gamma=1.0, rounds=rounds), inputs_of("plain").part(rank, world))
    return {name: buffer.clone() for name, buffer in state.generator.named_buffers() if name.endswith(("_avg", "_ema"))}


def check_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert sum(name.startswith("discriminator.2.") for name in one) > 10  # R1 ran
    for name, value in one.items():
        # Of the tensor's largest gradient. Tensors whose gradients cancel to rounding are measured by the largest of
        # their network instead.
        family = [v.abs().max() for n, v in one.items() if n.split(".")[:2] == name.split(".")[:2]]
        scale = max(value.abs().max(), 1e-2 * max(family))
        assert value.dtype == torch.float64
        assert (value - other[name]).abs().max() <= 1e-12 * scale, name


@pytest.mark.parametrize("case", ["plain", *(pytest.param(case, marks=pytest.mark.slow) for case in CASES[1:])])
def test_rounds_add_up_to_the_whole_batch(case):
    check_same(gradients(case, 1), gradients(case, 4))


def test_rounds_move_the_averages_as_the_whole_batch():
    check_averages(averages(1), averages(4))


def check_averages(one: dict, other: dict) -> None:
    assert any(abs(value - 1).max() > 1e-4 for name, value in one.items() if name.endswith("_ema"))  # they moved
    for name, value in one.items():
        assert torch.allclose(value, other[name], rtol=1e-5, atol=1e-6), name


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    for case in CASES:
        torch.save(gradients(case, 2, rank, 2), f"{folder}/{case}-{rank}.pt")
    torch.save(averages(2, rank, 2), f"{folder}/averages-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_workers_with_half_the_batch_each_see_the_gradients_of_one(tmp_path):
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, __file__, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    others = [subprocess.Popen([*command, str(rank)], cwd=root, env=environment) for rank in range(2)]
    assert [other.wait(timeout=600) for other in others] == [0, 0]
    for case in CASES:
        whole = gradients(case, 1)
        for rank in range(2):
            check_same(whole, torch.load(tmp_path / f"{case}-{rank}.pt"))
    for rank in range(2):
        check_averages(averages(1), torch.load(tmp_path / f"averages-{rank}.pt"))


def test_frozen_layers_stay_as_they_are():
    names = frozenset(name for name, _ in new_state().discriminator.named_parameters() if name.startswith("b16."))
    state = new_state(frozen=names)
    before = copy.deepcopy(state.discriminator.state_dict())
    for _ in range(2):
        gan.train_iteration(state, gan.StepSettings(gamma=1.0), inputs_of("plain"))
    moved = {name for name, value in state.discriminator.named_parameters() if not torch.equal(value, before[name])}
    assert names
    assert moved == {name for name, _ in state.discriminator.named_parameters()} - names


@pytest.mark.slow
def test_augmentation_adapts_within_training():
    # Scores of reals are pushed up by a bias: their signs are all +1, above any target, so p must rise.
    state = new_state(ada=AdaController("ada", kimg=1.0))
    with torch.no_grad():
        state.discriminator.b8.out.bias.fill_(100.0)
    history = []
    for _ in range(9):
        gan.train_iteration(state, gan.StepSettings(gamma=1.0), inputs_of("plain"))
        history.append(state.ada.p)
    step = BATCH * 4 / 1000  # an adaptation every 4 iterations, from 0 to 1 in 1 kimg
    assert history == pytest.approx([0, 0, 0, step, step, step, step, 2 * step, 2 * step])
    assert state.real_signs.tolist() == [BATCH, BATCH]  # of the ninth iteration


def test_labels_reach_both_networks():
    state, inputs = state_of("conditional"), inputs_of("conditional")
    scalars = gan.train_iteration(state, gan.StepSettings(gamma=1.0), inputs)
    others = tuple(dataclasses.replace(latents, labels=latents.labels.roll(1, 1)) for latents in inputs.latents)
    other = Inputs(inputs.reals, others, inputs.labels)
    changed = gan.train_iteration(state_of("conditional"), gan.StepSettings(gamma=1.0), other)
    assert not torch.allclose(scalars["G/loss"], changed["G/loss"])
    assert not torch.allclose(scalars["scores/fake"], changed["scores/fake"])


if __name__ == "__main__":  # one of two workers
    work(int(sys.argv[2]), sys.argv[1])
