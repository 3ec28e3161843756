"""Batches: what an epoch shows, shares, people of a P x K batch, workers, and that only seed and step decide."""

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.reid.sources import PEOPLE, REAL, VARIANTS
from passersby.errors import InputError
from training.reid.data import ReidBatches, most_steps, people_schedule

# 12 real people of 4..9 images, 3 artificial ones of 5 and 20 variants, in mixed order.
SIZES = [4, 9, 5, 6, 4, 8, 7, 4, 5, 6, 9, 5]
ORDER = np.random.default_rng(0).permutation(sum(SIZES) + 35)
CLASSES = np.concatenate([np.repeat(np.arange(12), SIZES), np.repeat([12, 13, 14], 5), np.arange(20) % 12])[ORDER]
SOURCES = np.repeat([REAL, PEOPLE, VARIANTS], [sum(SIZES), 15, 20])[ORDER]
REALS = np.flatnonzero(SOURCES == REAL)


def batches(batch: int, seed: int = 0, classes=CLASSES, sources=SOURCES, **settings) -> ReidBatches:
    return ReidBatches(classes, sources, batch, seed, **settings)


def epoch(source: ReidBatches, number: int = 0) -> np.ndarray:
    steps = range(number * source.steps_per_epoch, (number + 1) * source.steps_per_epoch)
    return np.stack([source.batch(step) for step in steps])


def test_one_list_shows_every_image_once_an_epoch_in_another_order():
    source = batches(len(CLASSES) // 4)  # 107 images: 4 batches of 26
    assert source.steps_per_epoch == 4
    assert source.batch(0).dtype == np.int64
    for number in range(3):
        images, counts = np.unique(epoch(source, number), return_counts=True)
        assert len(images) == 104  # the partial last batch is skipped
        assert (counts == 1).all()
    assert (epoch(source, 0) != epoch(source, 1)).any()
    assert (epoch(batches(26, seed=1)) != epoch(source)).any()
    whole = batches(12, classes=CLASSES[REALS], sources=SOURCES[REALS])  # 72 real images, 6 batches of 12
    assert np.sort(epoch(whole, 5).ravel()).tolist() == list(range(72))


def test_generated_images_are_a_share_of_every_batch():
    source = batches(16, generated_share=0.25)
    assert (source.generated_per_batch, source.steps_per_epoch) == (4, 6)
    for number in range(3):
        shown = epoch(source, number)
        assert ((SOURCES[shown] != REAL).sum(1) == 4).all()
        assert np.sort(shown[SOURCES[shown] == REAL]).tolist() == REALS.tolist()  # each exactly once
    generated = np.stack([source.batch(step) for step in range(8)])
    generated = generated[SOURCES[generated] != REAL]  # 35 of them: an epoch of their own is 8 steps
    assert len(set(generated)) == 32


@pytest.mark.parametrize(("batch", "share", "count"), [(100, 0.29, 29), (72, 0.0, 0), (72, 0.999, 35), (7, 0.5, 3)])
def test_shares_are_rounded_down_and_no_image_comes_twice(batch, share, count):
    source = batches(batch, generated_share=share)
    for step in range(12):
        images = source.batch(step)
        assert len(set(images)) == batch
        assert (SOURCES[images] != REAL).sum() == count


@pytest.mark.parametrize("share", [None, 0.25])
def test_the_last_stretch_is_real(share):
    source, without = batches(16, generated_share=share, real_only_from=10), batches(16, generated_share=share)
    assert all((source.batch(step) == without.batch(step)).all() for step in range(10))
    last = np.stack([source.batch(step) for step in range(10, 14)])
    assert len(set(last.ravel())) == 64  # a new epoch of 72 // 16 steps
    assert all((SOURCES[source.batch(step)] == REAL).all() for step in range(10, 40))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.4])
def test_people_times_instances(share):
    source = batches(16, sampler="pk", instances=2, generated_share=share, real_only_from=60)
    generated = {0.0: 0, 0.25: 4, 0.4: 6}[share]
    for step in [*range(source.steps_per_epoch * 3), 60, 61]:
        batch = source.batch(step)
        assert len(set(batch)) == 16
        real = batch[SOURCES[batch] == REAL]
        assert len(real) == (16 if step >= 60 else 16 - generated)
        assert set(Counter(CLASSES[real]).values()) == {2}


def test_an_epoch_of_people_shows_nearly_every_image_once():
    source = batches(16, sampler="pk", instances=4, generated_share=0.0)
    groups = [size // 4 for size in SIZES]
    assert source.steps_per_epoch == sum(groups) // 4
    first, second = epoch(source, 0), epoch(source, 1)
    for shown in (first, second):
        assert max(Counter(shown.ravel()).values()) == 1
    assert set(first.ravel()) != set(second.ravel())  # what was left over has its turn
    assert {*epoch(source, 0).ravel(), *(image for n in range(1, 30) for image in epoch(source, n).ravel())} == set(
        REALS
    )


def test_people_with_few_images_show_each_of_them():
    classes = np.repeat(np.arange(4), [1, 2, 3, 9])
    source = ReidBatches(classes, np.zeros(15, int), 16, 0, "pk", 4)
    assert source.steps_per_epoch == 1
    for step in range(5):
        batch = source.batch(step)
        seen = [sorted(Counter(batch[classes[batch] == person]).values()) for person in range(4)]
        assert seen == [[4], [2, 2], [1, 1, 2], [1, 1, 1, 1]]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=30), st.integers(2, 6), st.integers(0, 3))
def test_an_epoch_of_people_is_as_long_as_can_be(groups, wanted, seed):
    wanted = min(wanted, len(groups))
    steps, left = 0, sorted(groups)
    while sum(count > 0 for count in left) >= wanted:  # always those with most left: the longest there is
        left = sorted(left)
        left = [count - (place >= len(left) - wanted) for place, count in enumerate(left)]
        steps += 1
    assert most_steps(np.array(groups), wanted) == steps
    who, which = people_schedule(np.array(groups), wanted, steps, np.random.default_rng(seed))
    assert who.shape == which.shape == (steps, wanted)
    assert all(len(set(row)) == wanted for row in who)
    pairs = list(zip(who.ravel().tolist(), which.ravel().tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)  # no group twice
    assert all(0 <= group < groups[person] for person, group in pairs)


def test_who_meets_whom_is_chance():
    groups = np.full(8, 6)
    rng = np.random.default_rng(0)
    met = np.zeros((8, 8))
    for _ in range(200):
        who, _ = people_schedule(groups, 4, 12, rng)
        for row in who:
            met[np.ix_(row, row)] += 1
    pairs = met[~np.eye(8, dtype=bool)]
    assert (met.diagonal() == 200 * 6).all()
    assert abs(pairs / pairs.mean() - 1).max() < 0.1  # 1029 meetings each, 3 standard deviations are 9%


EVERY_KIND = [
    {},
    {"generated_share": 0.25},
    {"generated_share": 0.25, "real_only_from": 7},
    {"sampler": "pk", "instances": 2, "generated_share": 0.25, "real_only_from": 490},
]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_only_seed_and_step_decide(kind):
    forward = batches(16, **kind)
    expected = {step: forward.batch(step) for step in (0, 1, 6, 7, 8, 100, 500)}
    backward = batches(16, **kind)
    for step in (500, 7, 100, 0, 8, 1, 6, 500):
        assert (backward.batch(step) == expected[step]).all()
    assert any((batches(16, seed=3, **kind).batch(step) != batch).any() for step, batch in expected.items())


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_parts_of_the_workers_make_the_batch(kind, workers):
    if kind.get("sampler") == "pk":
        kind = kind | {"generated_share": 0.5}  # 4 people of 2 and 8 generated images
    source = batches(16, **kind)
    for step in (0, 3, 7, 500):
        parts = [source.share(step, rank, workers) for rank in range(workers)]
        assert np.concatenate(parts).tolist() == source.batch(step).tolist()
        if source.generated_per_batch:
            assert len({(SOURCES[part] == REAL).sum() for part in parts}) == 1
        if kind.get("sampler") == "pk":
            for part in parts:
                assert set(Counter(CLASSES[part[SOURCES[part] == REAL]]).values()) == {2}


def test_workers_that_cannot_share_equally():
    with pytest.raises(InputError, match="batch of 16 does not divide among 3 workers"):
        batches(16).share(0, 0, 3)
    source = batches(16, sampler="pk", instances=2, generated_share=0.25, real_only_from=5)
    with pytest.raises(InputError, match="6 people of 2 images in a batch of 16 do not divide among 4 workers"):
        source.share(0, 0, 4)
    assert len(source.share(5, 0, 4)) == 4  # 8 people


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": np.zeros(107, int)}, "show 1 people"),
        ({"sampler": "random"}, "sampler 'random'"),
        ({"batch": 0}, "batch 0"),
        ({"batch": 108}, "107 images do not fill the 108 places"),
        ({"batch": 80, "real_only_from": 3}, "72 images do not fill the 80 places"),
        ({"generated_share": 1.0}, "share 1.0"),
        ({"generated_share": 0.01}, "share of 0.01 of a batch of 16 .*less than 1"),
        ({"sampler": "pk"}, "give the share of generated ones"),
        ({"sampler": "pk", "generated_share": 0.0, "instances": 1}, "instances 1"),
        ({"sampler": "pk", "generated_share": 0.0, "instances": 3}, "batch 16 is no multiple of 3"),
        ({"sampler": "pk", "generated_share": 0.0, "instances": 16}, "are 1 people of 16"),
        ({"sampler": "pk", "generated_share": 0.0, "batch": 64}, "needs 16 people of 4 images, the data have 12"),
    ],
)
def test_bad_settings(wrong, message):
    with pytest.raises(InputError, match=message):
        batches(**{"batch": 16} | wrong)


def test_half_a_million_images_are_no_matter():
    some = np.random.default_rng(0).integers(0, 30_000, 380_000)
    classes = np.concatenate([some, np.repeat(np.arange(30_000), 4)])
    source = ReidBatches(classes, np.zeros(500_000, int), 64, 0, "pk", 4)
    begin = time.perf_counter()
    shown = epoch(source)
    print(f"{time.perf_counter() - begin:.2f} s for {len(shown)} steps")
    assert time.perf_counter() - begin < 8  # 0.4 s alone on a core
    assert len(np.unique(shown)) == shown.size
    assert shown.size > 0.85 * len(classes)
