"""Identity pairs: real pairs, codes, shares, augmentation, and the pair discriminator's part of an iteration."""

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
import torch.nn.functional as F

from passersby.errors import InputError
from passersby.reid.identity_features import IdentityFeatures
from passersby.stylegan3 import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig
from passersby.stylegan3 import discriminator as discriminator_module
from tests.helpers.double_precision import doubled, float64_for_float32
from tests.helpers.listings import training_listing
from training.gan import optimizers
from training.gan import step as gan
from training.gan.augment import AdaController, apply, draw
from training.gan.config import GanTraining
from training.gan.data import Batches, InMemory, Order, PairOrder
from training.gan.identity_loss import IdentityLoss
from training.gan.inputs import AUGMENTED, Inputs, Latents
from training.gan.pairs import PAIRS_AUGMENTED, PairInputs, PairTraining, RealPairs, as_pairs, as_pictures

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[3]
BATCH = 32


# ---- pairs of real pictures


def listing_of(people: dict[int, list[int]]):
    """A listing with these pictures: identity -> the camera of each picture."""
    rows = [(identity, camera) for identity, cameras in people.items() for camera in cameras]
    names = [f"{index}.png" for index in range(len(rows))]
    return training_listing(names, [row[0] for row in rows], [row[1] for row in rows])


CROWD = listing_of({1: [1, 1, 1, 2], 2: [3, 4, 5], 3: [1, 2, 2], 7: [1, 2, 3], 8: [6], 9: [6, 6]})


def test_real_pairs_are_two_pictures_of_one_labelled_person():
    pairs = RealPairs(CROWD, [1, 2, 3, 8])
    drawn = pairs.same(np.random.default_rng(0), 3000)
    people = CROWD.identities[drawn]
    assert drawn.shape == (3000, 2)
    assert (people[:, 0] == people[:, 1]).all()
    assert (drawn[:, 0] != drawn[:, 1]).all()
    values, counts = np.unique(people[:, 0], return_counts=True)
    assert values.tolist() == [1, 2, 3]  # 7 and 9 are not labelled, 8 has one picture
    assert abs(counts / 3000 - 1 / 3).max() < 0.035  # 4 standard deviations
    ordered = np.unique(drawn, axis=0)
    assert {tuple(pair) for pair in ordered} == {tuple(pair[::-1]) for pair in ordered}  # either may be first


def test_the_cameras_of_a_real_pair_are_drawn_independently():
    # 12 pictures by camera 1, one by camera 2: of the independent draws 11, 12, 21, 22 the last would be one picture
    # twice, and so would one of twelve of 11: 12 and 21 have 2 / (2 + 11 / 12) of the rest.
    pairs = RealPairs(listing_of({1: [1] * 12 + [2], 2: [1, 2]}), [1, 2])
    listing = listing_of({1: [1] * 12 + [2], 2: [1, 2]})
    drawn = pairs.same(np.random.default_rng(0), 6000)
    drawn = drawn[listing.identities[drawn[:, 0]] == 1]
    cameras = listing.cameras[drawn]
    assert abs((cameras[:, 0] != cameras[:, 1]).mean() - 2 / (2 + 11 / 12)) < 0.035
    assert abs((cameras[:, 0] == 1).mean() - (1 + 11 / 12) / (2 + 11 / 12)) < 0.035


def test_pairs_of_different_cameras():
    pairs = RealPairs(CROWD, [1, 2, 3, 7, 8, 9], different=True)
    for kind in (pairs.same, pairs.strangers):
        drawn = kind(np.random.default_rng(0), 2000)
        cameras = CROWD.cameras[drawn]
        assert (cameras[:, 0] != cameras[:, 1]).all()
        assert set(CROWD.identities[drawn].flat) == {1, 2, 3, 7}  # 8 and 9 are seen by one camera only


def test_strangers_are_two_labelled_people_who_also_make_real_pairs():
    pairs = RealPairs(CROWD, [1, 2, 3, 7, 8])
    people = CROWD.identities[pairs.strangers(np.random.default_rng(0), 4000)]
    assert (people[:, 0] != people[:, 1]).all()
    values, counts = np.unique(people, axis=0, return_counts=True)
    assert len(values) == 12  # any two of 1, 2, 3, 7 in either order; 8 would be known as nobody's pair
    assert abs(counts / 4000 - 1 / 12).max() < 0.02


@pytest.mark.parametrize(
    ("people", "different", "message"),
    [
        ([1], False, "1 of 1 labelled people in set have two pictures or more"),
        ([1, 8], False, "1 of 2 labelled people"),
        ([1, 9], True, "1 of 2 labelled people in set have two known cameras or more"),
        ([], False, "0 of 0 labelled people"),
    ],
)
def test_fewer_than_two_people_make_no_pairs(people, different, message):
    with pytest.raises(InputError, match=message):
        RealPairs(CROWD, people, different)


# ---- inputs


def config(**changes) -> GanTraining:
    values = {"height": 16, "width": 8, "channel_base": 128, "channel_max": 16, "batch": BATCH, "workers": 0}
    return GanTraining(data=Path("data"), out=Path("out"), pairs=True, **values | changes)


PEOPLE = np.arange(60) % 6 + 1
IMAGES = np.random.default_rng(1).integers(0, 255, (60, 16, 8, 3), np.uint8)
LISTING = listing_of({person: [1, 2, 3, 1, 2, 3, 1, 2, 3, 4] for person in range(1, 7)})


def batches(rank: int = 0, world_size: int = 1, labels=None, **changes) -> Batches:
    settings, reader = config(**changes), InMemory(IMAGES)
    order = PairOrder(RealPairs(LISTING, [1, 2, 3, 4]), settings.batch, settings.seed)
    return Batches(reader, Order(60, settings.seed), settings, rank, world_size, labels, order, reader)


def whole_inputs(rank: int = 0, world_size: int = 1, seen: int = 64, **changes) -> Inputs:
    return batches(rank, world_size, **changes).inputs(seen, 0.7, 512, 16, CPU, 0.6)


def test_fakes_of_a_pair_share_who_and_differ_in_how():
    first, second = batches(style_mixing_probability=0.5).latents(64, 512, 16)
    for latents in (first, second):
        z = latents.z.view(BATCH // 2, 2, 512)
        assert torch.equal(z[:, 0, :256], z[:, 1, :256])
        assert (z[:, 0, 256:] != z[:, 1, 256:]).all()
        assert len({row.numpy().tobytes() for row in z[:, 0, :256]}) == BATCH // 2
        # Style mixing keeps who of the pair, and has another how for each picture.
        assert torch.equal(latents.mix_z[:, :256], latents.z[:, :256])
        assert (latents.mix_z[:, 256:] != latents.z[:, 256:]).all()
        assert len({row.numpy().tobytes() for row in latents.mix_z[:, 256:]}) == BATCH
    assert abs(first.z.std() - 1) < 0.03
    assert not torch.equal(first.z, second.z)


def test_real_pairs_are_read_with_their_labels_and_mirrored_one_by_one():
    labels = np.random.default_rng(2).standard_normal((60, 3)).astype(np.float32)
    for mirror in (False, True):
        made = batches(labels=labels, mirror=mirror)
        order = made.pairs.indices(64).reshape(2, 2, BATCH // 2)  # kind, picture, pair
        inputs = made.inputs(64, 0.0, 512, 16, CPU, 0.0).pairs
        assert inputs.draws == {}
        turned = 0
        for kind, (tensor, rows) in enumerate(
            ((inputs.reals, inputs.labels), (inputs.strangers, inputs.stranger_labels))
        ):
            assert tensor.shape == (BATCH // 2, 6, 16, 8)
            for pair in range(BATCH // 2):
                for side in range(2):
                    index = order[kind, side, pair]
                    image = torch.from_numpy(IMAGES[index]).permute(2, 0, 1) / 127.5 - 1
                    got = tensor[pair, 3 * side : 3 * side + 3]
                    same, mirrored = (torch.allclose(got, x, atol=1e-6) for x in (image, image.flip(2)))
                    assert same or mirrored
                    turned += mirrored and not same
                    assert torch.equal(rows[pair, 3 * side : 3 * side + 3], torch.from_numpy(labels[index]))
        assert (turned == 0) if not mirror else (BATCH // 2 < turned < 2 * BATCH - BATCH // 2)


def test_pairs_beside_leave_the_single_images_as_they_were():
    plain_config = dataclasses.replace(config(), pairs=False)
    plain = Batches(InMemory(IMAGES), Order(60, 0), plain_config).inputs(64, 0.7, 512, 16, CPU)
    paired = whole_inputs()
    assert torch.equal(plain.reals, paired.reals)
    for name in AUGMENTED:
        assert torch.equal(plain.draws[name].theta, paired.draws[name].theta)
    assert plain.pairs is None


def tensors_of(inputs: Inputs) -> dict[str, torch.Tensor]:
    values = {"reals": inputs.reals}
    for phase, latents in enumerate(inputs.latents):
        values |= {f"latents.{phase}.{name}": value for name, value in vars(latents).items() if value is not None}
    values |= {"labels": inputs.labels} if inputs.labels is not None else {}
    pairs = inputs.pairs
    values |= {f"pairs.{n}": v for n, v in vars(pairs).items() if isinstance(v, torch.Tensor)}
    for kind, draws in (("single", inputs.draws), ("pair", pairs.draws)):
        for name, drawn in draws.items():
            values |= {f"{kind}.{name}.{n}": v for n, v in vars(drawn).items() if isinstance(v, torch.Tensor)}
    return values


@pytest.mark.parametrize("parts", [2, 4])
def test_no_share_of_workers_or_rounds_parts_a_pair(parts):
    labels = np.eye(3, dtype=np.float32)[np.arange(60) % 3]
    whole = whole_inputs(labels=labels)
    for rank in range(parts):
        shares = [whole_inputs(rank, parts, labels=labels), whole.part(rank, parts)]
        by_worker, by_round = (tensors_of(share) for share in shares)
        assert by_worker.keys() == by_round.keys() == tensors_of(whole).keys()
        for name, value in by_worker.items():
            assert torch.equal(value, by_round[name]), name
        pairs = BATCH // 2 // parts
        expected = whole.latents[0].z.view(-1, 2, 512)[rank::parts].flatten(0, 1)
        assert torch.equal(shares[0].latents[0].z, expected)
        assert torch.equal(shares[0].pairs.reals, whole.pairs.reals[rank::parts])
        assert len(shares[0].pairs.reals) == pairs
        assert torch.equal(shares[0].reals, whole.reals[rank::parts])
        # A worker's rounds.
        first, second = shares[0].part(0, 2), whole_inputs(rank, parts, labels=labels).part(1, 2)
        assert len(first.reals) == len(second.reals) == BATCH // parts // 2
        assert torch.equal(first.latents[1].z[::2, :256], first.latents[1].z[1::2, :256])


def test_the_inputs_of_pairs_are_a_function_of_seed_and_images_seen():
    one, same, later, other = whole_inputs(), whole_inputs(), whole_inputs(seen=96), whole_inputs(seed=1)
    for name, value in tensors_of(one).items():
        assert torch.equal(value, tensors_of(same)[name]), name
    for changed in (later, other):
        for name in ("pairs.reals", "pairs.strangers", "latents.0.z", "pair.reals.theta", "pair.r1.colour"):
            assert not torch.equal(tensors_of(one)[name], tensors_of(changed)[name]), name
    thetas = [draws.theta.numpy().tobytes() for draws in (*one.draws.values(), *one.pairs.draws.values())]
    assert len(set(thetas)) == len(AUGMENTED) + len(PAIRS_AUGMENTED)


def test_augmentation_of_a_pair_has_one_colour_and_two_geometries():
    draws = whole_inputs().pairs.draws
    assert set(draws) == set(PAIRS_AUGMENTED)
    for drawn in draws.values():
        colour, theta = drawn.colour.view(-1, 2, 3, 4), drawn.theta.view(-1, 2, 2, 3)
        assert torch.equal(colour[:, 0], colour[:, 1])
        assert len({row.numpy().tobytes() for row in colour[:, 0]}) > BATCH // 4
        assert (theta[:, 0] != theta[:, 1]).flatten(1).any(1).float().mean() > 0.8
    # Of two equal pictures colours alone make equal pictures.
    images = torch.rand(BATCH // 2, 1, 3, 16, 8).expand(-1, 2, -1, -1, -1).flatten(0, 1)
    coloured = apply(images, dataclasses.replace(draws["reals"], theta=None))
    assert torch.equal(coloured[::2], coloured[1::2])
    assert not torch.allclose(coloured, images)


def test_two_rows_become_one_pair_and_back():
    pictures = torch.arange(4 * 3 * 2 * 1.0).view(4, 3, 2, 1)
    pairs = as_pairs(pictures)
    assert pairs.shape == (2, 6, 2, 1)
    assert torch.equal(pairs[1, :3], pictures[2])
    assert torch.equal(pairs[1, 3:], pictures[3])
    assert torch.equal(as_pictures(pairs), pictures)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 4}, "--batch 4 gives each worker 4 images: --pairs needs a multiple of 8, which is 4 pairs"),
        ({"batch": 8, "workers": 2}, "--batch 8 gives each worker 4 images"),
        ({"batch": 16, "batch_gpu": 4}, "--batch-gpu 4 gives each worker 4 images"),
        ({"condition": "cluster"}, "--condition cluster with --pairs"),
        ({"condition": "dataset"}, "--condition dataset with --pairs"),
        ({"labelled_people": 1}, "--labelled-people 1"),
        ({"pair_strangers": 1.5}, "--pair-strangers 1.5"),
        ({"pair_gamma": -1.0}, "--pair-gamma -1.0"),
        ({"pairs": False, "labelled_people": 5}, "--labelled-people 5: it belongs to --pairs"),
        ({"pairs": False, "intraclass_weight": 5.0}, "--intraclass-weight 5.0: it belongs to --pairs"),
        ({"intraclass_weight": -1.0}, "--intraclass-weight -1.0"),
    ],
)
def test_impossible_options_of_pairs_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(config(), **changes).check()
    for good in ({"batch": 8}, {"batch": 16, "workers": 2}, {"condition": "camera"}):
        dataclasses.replace(config(), **good).check()


# ---- the iteration


def new_state(label_size: int = 0, ema_beta: float = 1.0, gamma=2.0, weight=0.25, ada=None) -> gan.TrainingState:
    sizes = {"channel_base": 128, "channel_max": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(
            GeneratorConfig.config_t(16, 8, magnitude_ema_beta=ema_beta, c_dim=label_size, w_dim=32, **sizes)
        )
        discriminator = Discriminator(DiscriminatorConfig(16, 8, c_dim=label_size, **sizes))
        of_pairs = Discriminator(DiscriminatorConfig(16, 8, c_dim=2 * label_size, img_channels=6, **sizes))
    of_pairs.train().requires_grad_(False)
    state = gan.new_state(generator, discriminator)
    optimizer = optimizers.new_adam(of_pairs.parameters(), 0.002, 16)
    state.pairs = PairTraining(of_pairs, optimizer, ada or AdaController(), torch.zeros(2), gamma, weight)
    return state


def identity_loss(weight: float = 0.5) -> IdentityLoss:
    """The loss of a network whose features are a few pixels of the pictures."""

    class Pixels(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images[:, :, ::8, ::4].flatten(1)

    return IdentityLoss(IdentityFeatures(Pixels(), (16, 8), "pixels", "ab" * 32), weight)


def random_inputs(case: str, batch: int = BATCH) -> Inputs:
    random = np.random.default_rng(5)
    make = lambda *shape: torch.from_numpy(random.standard_normal(shape, np.float32))  # noqa: E731
    label = lambda n: torch.eye(3)[random.integers(3, size=n)] if case == "conditional" else None  # noqa: E731
    pairs = batch // 2

    def latents() -> Latents:
        z, mix_z = make(pairs, 2, 512), make(batch, 512)
        z[:, 1, :256] = z[:, 0, :256]
        z = z.flatten(0, 1)
        mix_z[:, :256] = z[:, :256]
        return Latents(z, mix_z, torch.from_numpy(random.integers(1, 17, batch)), label(batch))

    paired = lambda: None if case != "conditional" else as_pairs(label(batch))  # noqa: E731
    single, of_pairs = {}, {}
    if case == "augmented":
        single = {name: draw("upright", 0.7, batch, 16, 8, random) for name in AUGMENTED}
        of_pairs = {name: draw("upright", 0.7, batch, 16, 8, random).alike_in_pairs() for name in PAIRS_AUGMENTED}
    real_pairs = PairInputs(
        make(pairs, 6, 16, 8).clamp(-1, 1), make(pairs, 6, 16, 8).clamp(-1, 1), paired(), paired(), of_pairs
    )
    return Inputs(make(batch, 3, 16, 8).clamp(-1, 1), (latents(), latents()), label(batch), single, real_pairs)


SETTINGS = gan.StepSettings(gamma=1.0)


def test_losses_of_pairs_by_hand():
    state, inputs = new_state(), random_inputs("plain")
    judge = state.pairs.discriminator
    with torch.no_grad():
        fakes = gan.synthesize(state.generator, inputs.latents[0])
        others = gan.synthesize(state.generator, inputs.latents[1])
        single = F.softplus(-state.discriminator(fakes)).mean()
        together = F.softplus(-judge(torch.cat([fakes[::2], fakes[1::2]], 1)))
        fake = judge(torch.cat([others[::2], others[1::2]], 1))
        stranger, real = judge(inputs.pairs.strangers), judge(inputs.pairs.reals)
    scalars = gan.train_iteration(state, SETTINGS, inputs)
    assert scalars["G/loss"].mean().item() == pytest.approx(single.item(), rel=1e-5)
    torch.testing.assert_close(scalars["G/pair_loss"], together)
    # The generator has made a step before its second phase: its fakes are others by then, so their scores are near.
    assert (scalars["scores/pair_fake"] - fake).abs().max() < 0.2
    torch.testing.assert_close(scalars["scores/pair_real"], real)
    torch.testing.assert_close(scalars["scores/pair_stranger"], stranger)
    fake = scalars["scores/pair_fake"]
    expected = F.softplus(-real) + 0.75 * F.softplus(fake) + 0.25 * F.softplus(stranger)
    torch.testing.assert_close(scalars["D/pair_loss"], expected)
    assert scalars["D/pair_r1"].shape == (BATCH // 2,)


def test_the_identity_loss_by_hand():
    # Two groups of the minibatch deviation: pairs 0, 2, 4, 6 and 1, 3, 5, 7.
    fakes, reals, strangers = torch.randn(3, 8, 6, 16, 8, generator=torch.Generator().manual_seed(0))
    fakes[2, 3:] = fakes[2, :3]  # more alike than two real pictures can be
    fakes[3, 3:] = fakes[5, :3] + 0.1  # two people who look the same
    loss, scalars = identity_loss(0.5)(*map(as_pictures, (fakes, reals, strangers)))

    def cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        pixels = [picture[:, ::8, ::4].flatten().numpy().astype(np.float64) for picture in (first, second)]
        return pixels[0] @ pixels[1] / np.linalg.norm(pixels[0]) / np.linalg.norm(pixels[1])

    for pair in range(8):
        same, alike = cosine(fakes[pair, :3], fakes[pair, 3:]), cosine(reals[pair, :3], reals[pair, 3:])
        others = [cosine(fakes[pair, :3], fakes[(pair + step) % 8, 3:]) for step in (2, 4, 6)]
        unlike = cosine(strangers[pair, :3], strangers[pair, 3:])
        expected = 0.5 * (max(alike - same, 0) + sum(max(other - unlike, 0) for other in others))
        assert loss[pair].item() == pytest.approx(expected, abs=1e-5)
        named = {"fake": same, "real": alike, "fake_strangers": np.mean(others), "real_strangers": unlike}
        for name, value in named.items():
            assert scalars[f"identity/{name}"][pair].item() == pytest.approx(value, abs=1e-5), name
    assert torch.equal(scalars["G/identity_loss"], loss)


def test_pairs_as_alike_as_real_ones_have_no_identity_loss():
    pairs = torch.randn(4, 6, 16, 8, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    loss, _ = identity_loss()(*map(as_pictures, (pairs, pairs, torch.cat([pairs[:, :3]] * 2, 1))))
    assert loss.abs().max() < 1e-6


def test_the_identity_loss_teaches_nothing_about_surroundings():
    class Mean(torch.nn.Module):  # every pixel counts alike
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return F.normalize(images.mean((2, 3)), dim=1)

    loss_of = IdentityLoss(IdentityFeatures(Mean(), (64, 32), "mean", "ab" * 32), 1.0)
    fakes, reals, strangers = torch.randn(3, 16, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    reals = reals[::2].repeat_interleave(2, 0)  # as alike as can be
    fakes.requires_grad_(True)
    loss_of(fakes, reals, strangers)[0].sum().backward()
    size = fakes.grad.abs().amax((0, 1)) / fakes.grad.abs().max()  # [64, 32]
    assert size[20:40, 12:20].min() > 0.9  # the torso
    assert size[:24, :4].max() < 0.02  # the upper corners
    assert size[:24, -4:].max() < 0.02


def test_the_identity_loss_is_one_of_the_generators_alone():
    without, with_loss, inputs = new_state(), new_state(), random_inputs("plain")
    with_loss.pairs.identity = identity_loss(3.0)
    scalars = [gan.train_iteration(state, SETTINGS, inputs) for state in (without, with_loss)]
    torch.testing.assert_close(scalars[0]["G/pair_loss"], scalars[1]["G/pair_loss"])  # before the first step
    assert not torch.equal(*(state.generator.mapping.fc0.weight for state in (without, with_loss)))
    difference = [state.pairs.discriminator.b16.fromrgb.weight for state in (without, with_loss)]
    torch.testing.assert_close(*difference, atol=0.01, rtol=0)  # it learns from other fakes
    assert scalars[1]["G/identity_loss"].shape == (BATCH // 2, 1)


def phase_gradients(weight: float) -> torch.Tensor:
    state, inputs = new_state(weight=weight), random_inputs("plain")
    with torch.no_grad():
        fakes = gan.synthesize(state.generator, inputs.latents[1])
    state.pairs.discriminator_phase(fakes, None, 0.0, inputs.pairs)
    return torch.cat([parameter.grad.flatten() for parameter in state.pairs.discriminator.parameters()])


def test_the_share_of_strangers_weighs_the_two_kinds_of_fakes():
    none, half, all_ = (phase_gradients(weight) for weight in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half, (none + all_) / 2, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(none, all_, rtol=1e-2)


def test_r1_of_pairs_has_its_weight_and_covers_six_channels():
    state, inputs = new_state(gamma=2.0), random_inputs("plain")
    reals = inputs.pairs.reals.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(state.pairs.discriminator(reals).sum(), reals)
    penalty = state.pairs.regularization_phase(0.0, 16, inputs.pairs)["D/pair_r1"]
    torch.testing.assert_close(penalty, gradient.square().sum((1, 2, 3)))  # gamma / 2 is 1
    assert all(
        parameter.grad is not None
        for name, parameter in state.pairs.discriminator.named_parameters()
        if name != "b8.out.bias"
    )
    doubled = new_state(gamma=4.0).pairs.regularization_phase(0.0, 16, inputs.pairs)["D/pair_r1"]
    torch.testing.assert_close(doubled, 2 * penalty)


def test_each_phase_trains_its_networks_only():
    state, inputs = new_state(), random_inputs("plain")
    judge = state.pairs.discriminator
    gan.generator_phase(state, inputs.latents[0], 0.0, pairs=inputs.pairs)
    assert all(p.grad is not None for p in state.generator.parameters())
    assert all(p.grad is None for network in (state.discriminator, judge) for p in network.parameters())
    with_pairs = {name: p.grad.clone() for name, p in state.generator.named_parameters()}
    state.generator.zero_grad(set_to_none=True)
    gan.generator_phase(state, inputs.latents[0], 0.0)
    assert any(not torch.allclose(p.grad, with_pairs[name]) for name, p in state.generator.named_parameters())
    state.generator.zero_grad(set_to_none=True)
    gan.discriminator_phase(state, inputs.reals, inputs.latents[1], 0.0, pairs=inputs.pairs)
    assert all(p.grad is None for p in state.generator.parameters())
    assert all(p.grad is not None for network in (state.discriminator, judge) for p in network.parameters())


def test_pairs_do_not_change_how_the_single_discriminator_learns():
    def seen(with_pairs: bool) -> dict[str, torch.Tensor]:
        state, inputs = new_state(), random_inputs("plain")
        gan.discriminator_phase(state, inputs.reals, inputs.latents[1], 0.0, pairs=inputs.pairs if with_pairs else None)
        return {name: parameter.grad for name, parameter in state.discriminator.named_parameters()}

    one, other = seen(True), seen(False)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_the_minibatch_deviation_keeps_pairs_whole_and_never_compares_the_two_pictures(monkeypatch, rounds):
    groups = []
    original = discriminator_module.minibatch_std

    def watched(x, group_size, num_channels):
        group = min(group_size, len(x))
        groups.append([list(range(start, len(x), len(x) // group)) for start in range(len(x) // group)])
        return original(x, group_size, num_channels)

    monkeypatch.setattr(discriminator_module, "minibatch_std", watched)
    state, inputs = new_state(), random_inputs("plain")
    gan.generator_phase(state, inputs.part(0, rounds).latents[0], 0.0, pairs=inputs.part(0, rounds).pairs)
    single, of_pairs = groups
    assert sorted(index for group in single for index in group) == list(range(BATCH // rounds))
    assert all(len(group) == len({index // 2 for index in group}) == 4 for group in single)  # no two of one pair
    assert sorted(index for group in of_pairs for index in group) == list(range(BATCH // rounds // 2))
    assert all(len(group) == 4 for group in of_pairs)


@pytest.mark.slow
def test_each_discriminator_has_its_own_probability_of_augmentation():
    state = new_state(ada=AdaController("ada", kimg=1.0))
    state.ada = AdaController("ada", kimg=1.0)
    with torch.no_grad():  # the pair discriminator scores everything high: its p must rise, the other's must not
        state.pairs.discriminator.b8.out.bias.fill_(100.0)
        state.discriminator.b8.out.bias.fill_(-100.0)
    history = []
    for _ in range(9):
        gan.train_iteration(state, SETTINGS, random_inputs("plain"))
        history.append((state.ada.p, state.pairs.ada.p))
    step = BATCH * 4 / 1000  # an adaptation every 4 iterations, from 0 to 1 in 1 kimg
    assert [single for single, _ in history] == [0] * 9
    assert [p for _, p in history] == pytest.approx([0, 0, 0, step, step, step, step, 2 * step, 2 * step])
    assert state.pairs.real_signs.tolist() == [BATCH // 2, BATCH // 2]  # of the ninth iteration


def test_labels_of_both_pictures_reach_the_pair_discriminator():
    state, inputs = new_state(3), random_inputs("conditional")
    assert state.pairs.discriminator.config.c_dim == 6
    scores = gan.train_iteration(state, SETTINGS, inputs)["scores/pair_real"]
    for side in (slice(0, 3), slice(3, 6)):
        labels = inputs.pairs.labels.clone()
        labels[:, side] = labels[:, side].roll(1, 1)
        changed = dataclasses.replace(inputs, pairs=dataclasses.replace(inputs.pairs, labels=labels))
        other = gan.train_iteration(new_state(3), SETTINGS, changed)["scores/pair_real"]
        assert not torch.allclose(scores, other)


CASES = ["plain", "augmented", "conditional", "identity"]


def gradients(case: str, rounds: int, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
    """The gradients of all phases as the optimisers get to see them."""
    state, inputs = new_state(3 if case == "conditional" else 0), doubled(random_inputs(case)).part(rank, world)
    doubled(state)
    if case == "identity":
        state.pairs.identity = identity_loss()
    seen, counts = {}, {"generator": 0, "discriminator": 0, "pairs": 0}
    for kind, optimizer, network in (
        ("generator", state.generator_optimizer, state.generator),
        ("discriminator", state.discriminator_optimizer, state.discriminator),
        ("pairs", state.pairs.optimizer, state.pairs.discriminator),
    ):

        def look(kind=kind, network=network):
            counts[kind] += 1
            for name, parameter in network.named_parameters():
                if parameter.grad is not None:
                    seen[f"{kind}.{counts[kind]}.{name}"] = parameter.grad.clone()

        optimizer.step = look
    with float64_for_float32():
        gan.train_iteration(state, gan.StepSettings(gamma=1.0, rounds=rounds), inputs)
    return seen


def check_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert sum(name.startswith("pairs.2.") for name in one) > 10  # R1 of pairs ran
    for name, value in one.items():
        # As in test_split.py.
        family = [v.abs().max() for n, v in one.items() if n.split(".")[:2] == name.split(".")[:2]]
        scale = max(value.abs().max(), 1e-2 * max(family))
        assert value.dtype == torch.float64
        assert (value - other[name]).abs().max() <= 1e-12 * scale, name


@pytest.mark.parametrize("case", ["plain", *(pytest.param(case, marks=pytest.mark.slow) for case in CASES[1:])])
def test_rounds_of_pairs_add_up_to_the_whole_batch(case):
    check_same(gradients(case, 1), gradients(case, 4))


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    for case in CASES:
        torch.save(gradients(case, 2, rank, 2), f"{folder}/{case}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_workers_with_half_the_pairs_each_see_the_gradients_of_one(tmp_path):
    command = [sys.executable, __file__, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    others = [subprocess.Popen([*command, str(rank)], cwd=ROOT, env=environment) for rank in range(2)]
    assert [other.wait(timeout=600) for other in others] == [0, 0]
    for case in CASES:
        whole = gradients(case, 1)
        for rank in range(2):
            check_same(whole, torch.load(tmp_path / f"{case}-{rank}.pt"))


def test_a_stored_pair_discriminator_goes_on_as_it_would_have():
    state = new_state(ada=AdaController("ada", kimg=1.0))
    for _ in range(3):
        gan.train_iteration(state, SETTINGS, random_inputs("plain"))
    other = new_state(ada=AdaController("ada", kimg=1.0))
    other.pairs.load_state_dict(copy.deepcopy(state.pairs.state_dict()))
    assert other.pairs.real_signs.tolist() == state.pairs.real_signs.tolist() != [0, 0]
    for pairs in (state.pairs, other.pairs):
        pairs.regularization_phase(0.0, 16, random_inputs("plain").pairs)
        optimizers.apply_gradients(pairs.optimizer)
    for name, value in state.pairs.discriminator.state_dict().items():
        assert torch.equal(value, other.pairs.discriminator.state_dict()[name]), name


if __name__ == "__main__":  # one of two workers
    work(int(sys.argv[2]), sys.argv[1])
