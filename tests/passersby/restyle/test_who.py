"""A person as one who, hows and an offset: found again from pictures, never worse, and every part moves."""

import numpy as np
import pytest
import torch

from passersby import stylegan2
from passersby.errors import InputError
from passersby.restyle.losses import InversionLoss, LossWeights
from passersby.restyle.refinement import w_statistics
from passersby.restyle.who import PersonCode, Starts, _Descent, codes_of, refine_person
from passersby.stylegan3.mapping import normalize_second_moment

PIXELS = InversionLoss(LossWeights(l2=1, lpips=0, identity=0), None, None)
Z, WHO = 12, 6


def network(**changes) -> stylegan2.Generator:
    """A random StyleGAN2 of 16 x 8 whose pictures differ clearly in who and in how."""
    torch.manual_seed(0)
    sizes = {"z_dim": Z, "w_dim": 16, "mapping_layers": 2, "channel_base": 128, "channel_max": 8}
    generator = stylegan2.Generator(stylegan2.GeneratorConfig(16, 8, **sizes | changes))
    return generator.eval().requires_grad_(False)


def person(pictures: int, seed: int = 5, offset: float = 0.0) -> PersonCode:
    """Random parts of a person's codes."""
    z = torch.from_numpy(np.random.default_rng(seed).standard_normal((pictures + 1, Z))).float()
    shift = torch.from_numpy(np.random.default_rng(seed + 1).standard_normal(16)).float()
    return PersonCode(normalize_second_moment(z[:1, :WHO])[0], normalize_second_moment(z[1:, WHO:]), offset * shift)


@pytest.fixture(scope="module")
def setting():
    """A generator, its spread and its starts, and three pictures of a person whom it can draw."""
    generator, truth = network(), person(3)
    with torch.no_grad():
        target = PIXELS.target(generator.synthesis(truth.codes(generator.mapping)))
    return generator, w_statistics(generator).spread, Starts.of(generator, 16, 4), target, truth


def value_of(setting, code: PersonCode, pull: float = 0.0) -> float:
    generator, spread, _, target, _ = setting
    return _Descent(generator, PIXELS, target, None, pull, spread, 8).value(code, gradients=False)[0]


def run(setting, start: PersonCode, steps: int, places=slice(None), **options) -> PersonCode:
    generator, spread, _, target, _ = setting
    return refine_person(generator, PIXELS, target.take(places), start, steps, **{"spread": spread} | options)


def test_a_synthetic_person_is_found_exactly_from_nearby(setting):
    truth = setting[4]
    noise = person(3, seed=9, offset=0.2)
    start = PersonCode(
        normalize_second_moment((truth.who + 0.2 * noise.who)[None])[0],
        normalize_second_moment(truth.hows + 0.2 * noise.hows),
        noise.offset,
    )
    found = run(setting, start, 60, pull=0.002, learning_rate=0.03)
    assert value_of(setting, found) < 0.01 * value_of(setting, start)
    assert torch.cosine_similarity(found.who, truth.who, 0) > 0.995 > torch.cosine_similarity(start.who, truth.who, 0)


@pytest.mark.slow
def test_a_synthetic_person_is_found_from_nothing_and_seen_in_other_ways(setting):
    # Of 16 pictures: 3 leave open who it is. With these people, seeds 5 to 55, other ways came to 0.09 .. 0.28.
    generator, spread, _, _, _ = setting
    truth, starts = person(16), Starts.of(generator, 64, 4)
    with torch.no_grad():
        target = PIXELS.target(generator.synthesis(truth.codes(generator.mapping)))
    start = starts.nearest(target.images)
    assert not start.offset.any()
    found = refine_person(generator, PIXELS, target, start, 150, spread=spread, pull=0.002)
    how = person(4, seed=9).hows
    with torch.no_grad():
        wanted, made, at_start = (
            generator.synthesis(codes_of(generator.mapping, code.who, how, code.offset))
            for code in (truth, found, start)
        )
        same, same_at_start = (generator.synthesis(code.codes(generator.mapping)) for code in (found, start))
    for images, before, truly, share in ((same, same_at_start, target.images, 0.05), (made, at_start, wanted, 0.4)):
        assert (images - truly).square().mean() < share * (before - truly).square().mean()


def test_all_pictures_share_one_who_and_one_offset(setting):
    generator, truth = setting[0], person(3, offset=0.5)
    with torch.no_grad():
        target = PIXELS.target(generator.synthesis(truth.codes(generator.mapping)))
        start = setting[2].nearest(target.images)
        found = refine_person(generator, PIXELS, target, start, 6, spread=setting[1])
        codes = found.codes(generator.mapping)
        z = torch.cat([found.who.repeat(3, 1), found.hows], 1)
        torch.testing.assert_close(codes - generator.mapping(z), found.offset.expand_as(codes))
    assert found.offset.abs().max() > 0
    for part in (found.who[None], found.hows):
        torch.testing.assert_close(part.square().mean(1), torch.ones(len(part)), atol=1e-5, rtol=0)


def test_gradients_reach_every_part_and_are_those_of_the_value(setting):
    generator, spread, _, target, _ = setting
    descent = _Descent(generator, PIXELS, target, None, 0.1, spread, 2)
    code, step = person(3, seed=8, offset=0.3), 1e-2
    _, gradients = descent.value(code)
    for index, part in enumerate(code):
        assert (gradients[index].reshape(-1, part.shape[-1]) != 0).any(1).all()  # of each picture's how too
        way = gradients[index] / gradients[index].norm()
        above, below = (
            descent.value(code._replace(**{code._fields[index]: part + sign * step * way}), gradients=False)[0]
            for sign in (1, -1)
        )
        # A finite difference of a float32 value, of a function with the kinks of leaky ReLUs.
        assert (above - below) / (2 * step) == pytest.approx(gradients[index].norm().item(), rel=0.1)


def test_the_pull_counts_the_offset_in_spreads(setting):
    code = person(3, offset=0.5)
    away = (code.offset / setting[1]).square().mean().item()
    assert value_of(setting, code, 0.2) - value_of(setting, code) == pytest.approx(0.2 * away, rel=1e-4)
    free, pulled = (run(setting, person(3, seed=8), 8, pull=pull) for pull in (0.0, 50.0))
    assert pulled.offset.norm() < 0.5 * free.offset.norm()


def test_no_steps_change_nothing_and_nobody_gets_worse(setting):
    start = person(3, seed=8)
    for code, other in zip(run(setting, start, 0), start, strict=True):
        assert torch.equal(code, other)
    for rate in (0.05, 50.0):  # steps of 50 throw the person away: the best is the start
        found = run(setting, start, 3, learning_rate=rate, pull=0)
        assert value_of(setting, found) <= value_of(setting, start)
    images = setting[3].images.clone()
    images[1] = torch.nan
    target = setting[3]._replace(images=images)
    found = refine_person(setting[0], PIXELS, target, start, 3, spread=setting[1])
    assert torch.equal(found.who, start.who)


def test_any_number_of_pictures_and_any_chunk_give_the_same_person(setting):
    start = person(3, seed=8)
    whole = run(setting, start, 3)
    for chunk in (1, 2):
        for part, other in zip(run(setting, start, 3, chunk=chunk), whole, strict=True):
            torch.testing.assert_close(
                part, other, atol=2e-3, rtol=0
            )  # Adam amplifies the last bits of small gradients
    alone = run(setting, start._replace(hows=start.hows[:1]), 2, places=slice(0, 1))
    assert alone.hows.shape == (1, Z - WHO)
    assert not torch.equal(alone.who, whole.who)  # the other pictures speak too


def test_starts_are_the_same_every_time_and_the_nearest_one_is_chosen(setting):
    generator, _, starts, _, _ = setting
    again = Starts.of(generator, 16, 4)
    assert torch.equal(again.images, starts.images)
    places = [2, 0, 2]
    with torch.no_grad():
        codes = codes_of(generator.mapping, starts.whos[7], starts.hows[places], starts.offset)
        found = starts.nearest(generator.synthesis(codes))
    assert torch.equal(found.who, starts.whos[7])
    assert torch.equal(found.hows, starts.hows[places])


def test_a_network_with_labels_takes_each_pictures_own(setting):
    generator = network(c_dim=2)
    truth, labels = person(2), torch.eye(2)[[1, 0]]
    with torch.no_grad():
        target = PIXELS.target(generator.synthesis(truth.codes(generator.mapping, labels)))
    spread, start = w_statistics(generator).spread, Starts.of(generator, 4, 4).nearest(target.images)
    found = refine_person(generator, PIXELS, target, truth, 1, spread=spread, labels=labels, learning_rate=1e-6)
    values = [
        _Descent(generator, PIXELS, target, kinds, 0.0, spread, 8).value(code, gradients=False)[0]
        for code, kinds in ((found, labels), (found, labels.flip(0)), (start, labels))
    ]
    assert values[0] < 1e-6 < min(values[1:])
    for wrong in (None, labels[:1], torch.eye(3)[:2]):
        with pytest.raises(InputError, match="labels"):
            refine_person(generator, PIXELS, target, start, 1, spread=spread, labels=wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "steps -1"),
        ({"pull": -0.1}, "pull -0.1"),
        ({"chunk": 0}, "chunk 0"),
        ({"spread": 0.0}, "spread 0"),
        ({"learning_rate": float("nan")}, "learning rate nan"),
        ({"start": person(2)}, "for 3 pictures"),
    ],
)
def test_impossible_numbers_and_shapes_are_refused(setting, changes, message):
    with pytest.raises(InputError, match=message):
        run(setting, **{"start": person(3), "steps": 1} | changes)
