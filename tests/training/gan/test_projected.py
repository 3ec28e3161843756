"""The projected discriminator: its maps, losses and balance, and trainings with it. The network of ImageNet is a small
random one of the same shapes, except where its own weights are the subject."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.nn.functional as F
from torch import nn

from passersby.errors import InputError
from passersby.perception.efficientnet import CHANNELS, STRIDES, EfficientNet
from passersby.stylegan3 import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig
from passersby.stylegan3.checkpoint import load_network
from tests.helpers.double_precision import doubled, float64_for_float32
from tests.helpers.gan_trainings import CPU, ROOT, check_equal_trainings, make_tree, run, tiny
from training.checkpoints import STATE, last_checkpoint
from training.gan import start as gan_start
from training.gan import step as gan
from training.gan.inputs import Inputs, Latents
from training.gan.pairs import PairInputs
from training.gan.projected import ALONE, GAMMA, INTERVAL, MIXED, ProjectedTraining, new_projected
from training.gan.start import NETWORK

BATCH = 16


def random_network() -> EfficientNet:
    """Four convolutions with the channels and strides of EfficientNet's maps."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        stages, inputs, before = [], 3, 1
        for channels, stride in zip(CHANNELS, STRIDES, strict=True):
            step = stride // before
            stages.append(nn.Sequential(nn.Conv2d(inputs, channels, step, step), nn.LeakyReLU(0.2)))
            inputs, before = channels, stride
    return EfficientNet(nn.Sequential(*stages), "ab" * 32)


@pytest.fixture(autouse=True)
def _small_network(request, monkeypatch):
    if "imagenet" not in request.fixturenames:
        monkeypatch.setattr(gan_start, "load_efficientnet", lambda path: random_network())


def new_training(ratio: float = 2.0) -> ProjectedTraining:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return new_projected(random_network(), ratio, CPU)


def images(count: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 64, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_mixed_maps_have_the_sizes_of_a_picture_of_128_rows_and_variance_1():
    network = new_training().discriminator
    maps = network.maps(images())
    assert [tuple(each.shape) for each in maps] == [
        (6, channels, 128 // stride, 64 // stride) for channels, stride in zip(MIXED, STRIDES, strict=True)
    ]
    assert [each.var(correction=0).item() for each in maps] == pytest.approx([1.0] * 4, rel=1e-3)
    scale = network.mixing.scale.clone()
    again = network.maps(images(seed=1) / 4)  # only the first images measure it
    assert torch.equal(network.mixing.scale, scale)
    assert again[0].var() < 0.5
    assert network(maps).shape == (6, 4)


def test_coarse_maps_reach_finer_ones_and_nothing_goes_back():
    mixing = new_training().discriminator.mixing
    maps = [
        torch.randn(1, channels, 128 // stride, 64 // stride)
        for channels, stride in zip(CHANNELS, STRIDES, strict=True)
    ]
    whole = mixing(maps)
    for changed in range(4):
        other = mixing([each + (index == changed) for index, each in enumerate(maps)])
        reached = [not torch.equal(one, two) for one, two in zip(whole, other, strict=True)]
        assert reached == [index <= changed for index in range(4)]


def test_frozen_parts_have_no_gradients_and_heads_learn():
    training = new_training()
    losses = [training.discriminator_step(images(seed=1) / 3, images(), False)["D/projected_loss"] for _ in range(12)]
    assert losses[-1].mean() < 0.5 * losses[0].mean()
    assert all(parameter.grad is None for parameter in training.discriminator.parameters())
    other = new_training().discriminator
    for part in ("network", "mixing"):
        before, after = (getattr(network, part).state_dict() for network in (other, training.discriminator))
        assert all(torch.equal(before[name], after[name]) for name in before if name != "scale")
    assert all(
        not torch.equal(one, two)
        for one, two in zip(other.heads.parameters(), training.discriminator.heads.parameters(), strict=True)
    )


def test_losses_and_penalties_by_hand():
    training, reals, fakes = new_training(), images(), images(seed=1)
    network = training.discriminator
    real, fake = (network.maps(pictures) for pictures in (reals, fakes))
    real, fake = ([each.detach().requires_grad_(True) for each in maps] for maps in (real, fake))
    real_logits, fake_logits = network(real), network(fake)
    loss = F.softplus(fake_logits - real_logits).sum(1)
    # R1 and R2 of each head have a map of their own, so the gradient of the sum is that of each.
    squares = [
        torch.autograd.grad(logits[:, head].sum(), maps[head], retain_graph=True)[0].square().sum((1, 2, 3)).mean()
        * maps[head][0].numel()
        for logits, maps in ((real_logits, real), (fake_logits, fake))
        for head in range(4)
    ]
    penalty = training._penalty(real_logits, fake_logits, real + fake)
    assert penalty.item() == pytest.approx(GAMMA / 2 * sum(squares).item(), rel=1e-5)
    stored = [parameter.clone() for parameter in network.heads.parameters()]
    network.heads.requires_grad_(True)
    real_logits, fake_logits = network(real), network(fake)
    total = F.softplus(fake_logits - real_logits).sum(1).mean()
    total = total + INTERVAL * training._penalty(real_logits, fake_logits, real + fake)
    expected = torch.autograd.grad(total, list(network.heads.parameters()))
    network.heads.requires_grad_(False)
    seen = []
    training.optimizer.step = lambda: seen.extend(parameter.grad.clone() for parameter in network.heads.parameters())
    scalars = training.discriminator_step(fakes, reals, False)
    torch.testing.assert_close(scalars["D/projected_loss"][:, 0], loss.detach())
    for one, two in zip(seen, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(*pair) for pair in zip(stored, network.heads.parameters(), strict=True))


def test_the_generator_learns_after_the_heads_and_with_the_asked_ratio():
    training, reals = new_training(ratio=3.0), images()
    fakes = images(seed=1).requires_grad_(True)
    ordinary = (fakes * torch.linspace(-1, 1, 32)).sum()
    for iteration in range(1, ALONE + 2):
        training.iterations = iteration - 1
        training.discriminator_step(fakes.detach(), reals, False)
        more, scalars = training.generator_loss(fakes, fakes, ordinary, False)
        if iteration in (1, ALONE):
            assert more.item() == 0
    (ours,) = torch.autograd.grad(more, fakes, retain_graph=True)
    (theirs,) = torch.autograd.grad(ordinary, fakes)
    assert (ours.norm() / theirs.norm()).item() == pytest.approx(3.0, rel=1e-4)
    assert scalars["G/projected_loss"].shape == (6, 1)
    assert (scalars["G/projected_loss"] > 0).all()


# ---- iterations, with and without pairs, on one worker and on two


def new_state() -> gan.TrainingState:
    sizes = {"channel_base": 128, "channel_max": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(GeneratorConfig.config_t(16, 8, magnitude_ema_beta=1.0, w_dim=32, **sizes))
        state = gan.new_state(generator, Discriminator(DiscriminatorConfig(16, 8, **sizes)))
    state.projected = new_training()
    state.projected.iterations = ALONE  # the generator learns from it at once
    return state


def random_inputs(pairs: bool) -> Inputs:
    random = torch.Generator().manual_seed(5)
    latents = Latents(torch.randn(BATCH, 512, generator=random))
    of_pairs = torch.rand(BATCH // 2, 6, 16, 8, generator=random)
    reals = torch.rand(BATCH, 3, 16, 8, generator=random) * 2 - 1
    return Inputs(reals, (latents, latents), pairs=PairInputs(of_pairs, of_pairs) if pairs else None)


def gradients(pairs: bool, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
    """What the generator's optimiser and the heads' get to see, and the measured balance and scale, in float64."""
    state, inputs = doubled(new_state()), doubled(random_inputs(pairs)).part(rank, world)
    assert state.projected is not None
    state.projected.discriminator.double()
    state.projected.balance = state.projected.balance.double()
    seen = {}
    for kind, optimizer, network in (
        ("generator", state.generator_optimizer, state.generator),
        ("heads", state.projected.optimizer, state.projected.discriminator.heads),
    ):

        def look(kind=kind, network=network):
            seen.update({f"{kind}.{name}": parameter.grad.clone() for name, parameter in network.named_parameters()})

        optimizer.step = look
    with float64_for_float32():
        gan.train_iteration(state, gan.StepSettings(gamma=1.0, one_pass=True), inputs)
    return seen | {"balance": state.projected.balance, "scale": state.projected.discriminator.mixing.scale}


def test_the_generator_feels_the_projected_discriminator():
    with_it = gradients(False)
    state, inputs = doubled(new_state()), doubled(random_inputs(False))
    state.projected = None
    seen = {}
    state.generator_optimizer.step = lambda: seen.update(
        {f"generator.{name}": parameter.grad.clone() for name, parameter in state.generator.named_parameters()}
    )
    with float64_for_float32():
        gan.train_iteration(state, gan.StepSettings(gamma=1.0, one_pass=True), inputs)
    assert sum(not torch.allclose(value, with_it[name]) for name, value in seen.items()) > len(seen) / 2
    assert with_it["balance"] > 0


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    for pairs in (False, True):
        torch.save(gradients(pairs, rank, 2), f"{folder}/{pairs}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_workers_with_half_the_images_each_see_the_gradients_of_one(tmp_path):
    command = [sys.executable, __file__, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    others = [subprocess.Popen([*command, str(rank)], cwd=ROOT, env=environment) for rank in range(2)]
    assert [other.wait(timeout=600) for other in others] == [0, 0]
    for pairs in (False, True):
        whole = gradients(pairs)
        assert len(whole) > 20
        largest = max(value.abs().max() for name, value in whole.items() if name.startswith("generator"))
        for rank in range(2):
            other = torch.load(tmp_path / f"{pairs}-{rank}.pt")
            for name, value in whole.items():
                assert value.dtype == torch.float64
                scale = max(value.abs().max(), 1e-2 * largest)
                assert (value - other[name]).abs().max() <= 1e-11 * scale, name


# ---- trainings


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return make_tree(tmp_path_factory.mktemp("market"))


def projected(tree: Path, out: Path, **changes):
    return tiny(tree, out, **{"projected": True, "one_pass": True, "pairs": True} | changes)


@pytest.mark.slow
def test_stopped_and_continued_equals_never_stopped(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("training.gan.projected.ALONE", 2)  # of six iterations
    straight = run(projected(tree, tmp_path / "straight"))
    run(projected(tree, tmp_path / "stopped", kimg=0.032))
    folder = run(projected(tree, tmp_path / "stopped"))
    check_equal_trainings(straight, folder, histories=False)
    state = torch.load(last_checkpoint(tmp_path / "stopped") / STATE, weights_only=True)["projected"]
    assert state["iterations"] == 6
    assert state["balance"] > 0
    record = load_network(folder / NETWORK).record
    assert record["projected"] == {"name": "EfficientNet-Lite0 (ImageNet)", "sha256": "ab" * 32}
    assert "projected G " in (tmp_path / "straight/log.txt").read_text()
    # From this checkpoint another training keeps the heads; from the network's file alone they start anew.
    for given, kept in ((last_checkpoint(tmp_path / "stopped"), True), (folder, False)):
        started = gan_start.start(projected(tree, tmp_path / "next", transfer=given / NETWORK), CPU)
        assert started.state.projected is not None
        heads = started.state.projected.state_dict()["heads"]
        assert all(torch.equal(value, state["heads"][name]) for name, value in heads.items()) == kept
        assert f"the projected discriminator {'is the checkpoint' if kept else 'starts anew'}" in started.lines[-1]


def test_it_changes_no_other_networks_first_weights(tree, tmp_path):
    one, other = (
        gan_start.start(tiny(tree, tmp_path, one_pass=True, projected=projected), CPU).state
        for projected in (False, True)
    )
    for part in ("generator", "discriminator"):
        before, after = (getattr(state, part).state_dict() for state in (one, other))
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert one.projected is None
    assert "projected" not in gan_start.start(tiny(tree, tmp_path), CPU).origin


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"one_pass": False}, "--projected needs --one-pass"),
        (
            {"projected": False, "projected_network": Path("x.pth")},
            "--projected-network x.pth: it belongs to --projected",
        ),
        ({"projected_ratio": 0.0}, "--projected-ratio 0.0"),
    ],
)
def test_impossible_options_are_named(tree, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        projected(tree, tmp_path, **changes).check()


def test_a_stored_discriminator_goes_on_as_it_would_have():
    one, other = new_training(), new_training()
    fakes = images(seed=1)
    for _ in range(3):
        one.discriminator_step(fakes, images(), False)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for training in (one, other):
        for _ in range(2):
            training.discriminator_step(fakes, images(seed=2), False)
    for name, value in one.discriminator.state_dict().items():
        assert torch.equal(value, other.discriminator.state_dict()[name]), name
    assert one.iterations == other.iterations == 5


if __name__ == "__main__":  # one of two workers
    work(int(sys.argv[2]), sys.argv[1])
