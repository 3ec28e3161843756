"""Order, shares, mirroring, codes and augmentation: functions of the seed and the images seen."""

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.people.listing import Listing
from passersby.errors import InputError
from training.gan.augment import AdaController
from training.gan.config import GanTraining
from training.gan.data import Batches, Feeder, InMemory, Order, PairOrder, to_float
from training.gan.inputs import AUGMENTED
from training.gan.pairs import RealPairs

CPU = torch.device("cpu")


def config(**changes) -> GanTraining:
    values = {"height": 16, "width": 8, "channel_base": 128, "channel_max": 16, "batch": 8, "workers": 0}
    return GanTraining(data=Path("data"), out=Path("out"), **values | changes)


def batches(images: np.ndarray, rank: int = 0, world_size: int = 1, labels=None, **changes) -> Batches:
    settings = config(**changes)
    order = Order(len(images), settings.seed)
    return Batches(InMemory(images), order, settings, rank, world_size, labels)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (20, 16, 8, 3), np.uint8)


def test_every_epoch_shows_every_image_once_in_another_order():
    order = Order(20, seed=0)
    stream = np.concatenate([order.indices(start, 8) for start in range(0, 120, 8)])
    epochs = stream.reshape(6, 20)
    assert (np.sort(epochs) == np.arange(20)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert (Order(20, seed=0).indices(37, 30) == stream[37:67]).all()  # from anywhere, across two ends
    assert (Order(20, seed=1).indices(0, 20) != stream[:20]).any()


@pytest.mark.parametrize("config", ["t", "2"])
def test_workers_share_one_batch(images, config):
    labels = np.eye(3, dtype=np.float32)[np.arange(20) % 3]
    make = lambda *share: batches(images, *share, labels=labels, config=config).inputs(  # noqa: E731
        40, 0.7, 512, 10, CPU
    )
    whole, parts = make(), [make(rank, 2) for rank in range(2)]
    assert set(whole.draws) == set(AUGMENTED)
    for rank, part in enumerate(parts):
        expected = whole.part(rank, 2)
        assert torch.equal(part.reals, expected.reals)
        assert torch.equal(part.labels, expected.labels)
        assert len(part.latents) == len(whole.latents) == (3 if config == "2" else 2)  # path lengths have their own
        for ours, theirs in zip(part.latents, expected.latents, strict=True):
            for name in ("z", "mix_z", "mix_from", "labels"):
                assert torch.equal(getattr(ours, name), getattr(theirs, name))
            assert (ours.noise is None) == (config == "t")
            if ours.noise is not None:
                assert torch.equal(ours.noise.draw(3, (4, 2)), theirs.noise.draw(3, (4, 2)))
    noises = [latents.noise.seed for latents in whole.latents if latents.noise]
    assert len(set(noises)) == len(noises)
    for rank, part in enumerate(parts):
        expected = whole.part(rank, 2)
        for name in AUGMENTED:
            assert torch.equal(part.draws[name].theta, expected.draws[name].theta)
            assert torch.equal(part.draws[name].colour, expected.draws[name].colour)


def test_nothing_random_is_shared_between_phases_or_iterations(images):
    one, next_ = (batches(images).inputs(seen, 0.7, 512, 16, CPU) for seen in (40, 48))
    assert not torch.equal(one.latents[0].z, one.latents[1].z)
    assert not torch.equal(next_.latents[0].z, one.latents[0].z)
    thetas = [draws.theta for inputs in (one, next_) for draws in inputs.draws.values()]
    assert len({theta.numpy().tobytes() for theta in thetas}) == 8
    assert batches(images).inputs(40, 0.0, 512, 16, CPU).draws == {}


def test_mirroring_turns_about_half_of_the_images(images):
    index = np.arange(8)
    reals = {mirror: batches(images, mirror=mirror).reals(0, index) for mirror in (True, False)}
    same = [torch.equal(one, two) for one, two in zip(reals[True], reals[False], strict=True)]
    turned = [torch.equal(one.flip(2), two) for one, two in zip(reals[True], reals[False], strict=True)]
    assert [a != b for a, b in zip(same, turned, strict=True)] == [True] * 8
    assert 1 <= sum(turned) <= 7
    floats = to_float(reals[False], CPU)
    assert floats.dtype == torch.float32
    assert torch.allclose(floats, reals[False].float() / 127.5 - 1, atol=1e-6)


def test_images_shared_by_workers_are_never_written_to(images):
    frozen = images.copy()
    frozen.flags.writeable = False
    batches(frozen, mirror=True).inputs(0, 0.0, 512, 16, CPU)
    assert (frozen == images).all()


def test_style_mixing_crosses_within_the_layers(images):
    mixing = batches(images, style_mixing_probability=0.5)
    points = np.concatenate([mixing.latents(start, 4, 16)[0].mix_from for start in range(0, 8000, 8)])
    assert set(points) == set(range(1, 17))
    assert abs((points == 16).mean() - 0.5) < 0.06  # 1000 draws: 4 standard deviations
    assert batches(images, style_mixing_probability=0.0).latents(0, 4, 16)[0].mix_z is None


def test_labels_of_fakes_are_as_frequent_as_those_of_real_images(images):
    labels = np.eye(2, dtype=np.float32)[(np.arange(20) >= 15).astype(int)]  # three to one
    drawn = [batches(images, labels=labels).latents(start, 4, 16)[0].labels for start in range(0, 4000, 8)]
    share = torch.cat(drawn)[:, 1].mean().item()
    assert abs(share - 0.25) < 0.03  # 4000 draws: 4 standard deviations


# ---- Inputs made ahead by a thread.


def same(one, two) -> bool:
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, field.name), getattr(two, field.name)) for field in dataclasses.fields(one))
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[name], two[name]) for name in one)
    if isinstance(one, tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


@pytest.mark.parametrize("changes", [{}, {"config": "2"}, {"pairs": True, "config": "2"}])
def test_inputs_made_ahead_are_those_made_when_needed(images, changes):
    settings, labels = config(**changes), np.eye(3, dtype=np.float32)[np.arange(20) % 3]
    pairs = (PairOrder(real_pairs(20), 8, 0), InMemory(images)) if "pairs" in changes else (None, None)
    made = Batches(InMemory(images), Order(20, 0), settings, 0, 1, labels, *pairs)
    drawn = []
    made.draws = lambda *what: drawn.append((threading.current_thread().name, what)) or Batches.draws(made, *what)
    ada, pairs_ada = (AdaController("ada", p, kimg=0.16) for p in (0.4, 0.2))
    pairs_ada = pairs_ada if "pairs" in changes else None
    plain, ahead = (Feeder(made, 512, 16, CPU, ahead) for ahead in (False, True))
    seen = 24
    for step in range(3, 14):
        controllers = ada, pairs_ada, step
        assert same(ahead.inputs(seen, *controllers), plain.inputs(seen, *controllers))
        seen += 8
        if step == 9:
            seen += 8  # as after going back to a checkpoint: what was made ahead is of no use
        if (step + 1) % ada.interval == 0:
            for controller, sign in ((ada, 1 if step == 7 else -1), (pairs_ada, 1)):
                if controller:
                    controller.add(32 * sign, 32)
                    controller.update(32)
    ahead.close()
    assert ada.p != 0.4
    # Everything was drawn by the thread: both values that p could take, where it moved.
    names = [name for name, (count, _) in drawn if count < seen]
    assert names.count("MainThread") == 11  # those of `plain`
    assert len(names) - 11 >= 11 + 3


def real_pairs(count: int) -> RealPairs:
    names = [f"{index}.png" for index in range(count)]
    identities, cameras = np.arange(count) // 4, np.arange(count) % 2
    listing = Listing("pairs", tuple(map(Path, names)), identities, cameras, tuple(names), {})
    return RealPairs(listing, range(count // 4))


def test_an_error_of_the_thread_is_raised_where_its_inputs_are_needed(images):
    class Broken(InMemory):
        def read(self, images_seen, indices):
            if images_seen == 16:
                raise InputError("0003.png could be read at the start and no longer can: restore it")
            return super().read(images_seen, indices)

    feeder = Feeder(Batches(Broken(images), Order(20, 0), config()), 512, 16, CPU, ahead=True)
    ada = AdaController()
    feeder.inputs(0, ada, None, 0)
    feeder.inputs(8, ada, None, 1)  # here the thread meets it
    with pytest.raises(InputError, match="restore it"):
        feeder.inputs(16, ada, None, 2)
    feeder.close()
