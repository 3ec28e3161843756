"""Refinement of codes against torch's own Adam, and what it promises: never worse, each sample for itself."""

import numpy as np
import pytest
import torch

from passersby.errors import InputError
from passersby.restyle.losses import InversionLoss, LossWeights
from passersby.restyle.refinement import ramp, refine, w_statistics
from tests.helpers.gpu_path import go_the_way_of_a_gpu, gradients_at_codes

STEPS = 8
SMALLER = {"num_layers": 5, "num_critical": 1, "output_scale": 10}  # pictures of values around 1, in less time
PIXELS = InversionLoss(LossWeights(l2=1, lpips=0, identity=0), None, None)


@pytest.fixture(scope="module")
def setting(tiny):
    """A tiny generator, its average code [num_ws, w_dim], three pictures that it can draw, and starting codes."""
    generator = tiny.generator(**SMALLER)
    statistics = w_statistics(generator)
    average = statistics.mean.expand(generator.num_ws, -1)
    z = torch.from_numpy(np.random.RandomState(3).randn(3, generator.z_dim)).float()
    with torch.no_grad():
        target = PIXELS.target(generator.synthesis(generator.mapping(z)))
    return generator, average, statistics.spread, target, average.expand(3, -1, -1).clone()


def errors(setting, codes):
    generator, _, _, target, _ = setting
    with torch.no_grad():
        return PIXELS.total(PIXELS.measure(generator.synthesis(codes), target))


def run(setting, steps=STEPS, places=slice(None), **options):
    generator, average, spread, target, codes = setting
    options = {"pull": 0.01, "learning_rate": 0.05, "spread": spread, "average": average} | options
    return refine(generator.synthesis, PIXELS, target.take(places), codes[places], steps, **options)


def test_statistics_are_those_of_the_mapping(tiny):
    generator = tiny.generator()
    mean, spread = w_statistics(generator)
    z = torch.from_numpy(np.random.default_rng(5).standard_normal((20_000, generator.z_dim))).float()
    with torch.no_grad():
        w = generator.mapping(z)[:, 0].double()
    assert mean.shape == (generator.w_dim,)
    deviation = w.std(0)
    # Two samples' means differ by sd * sqrt(1/10,000 + 1/20,000) = 0.012 sd; five times that.
    assert ((mean - w.mean(0)).abs() < 0.06 * deviation).all()
    assert spread == pytest.approx(w.var(0).mean().sqrt().item(), rel=0.02)


def test_statistics_are_the_same_every_time_and_leave_the_random_numbers_alone(tiny):
    generator = tiny.generator()
    first = w_statistics(generator)
    torch.manual_seed(8)
    wanted = torch.rand(3)
    torch.manual_seed(8)
    second = w_statistics(generator)
    assert torch.equal(torch.rand(3), wanted)
    assert torch.equal(first.mean, second.mean)
    assert first.spread == second.spread


def test_statistics_of_a_conditional_network_cover_all_labels(tiny):
    generator = tiny.generator(c_dim=2)
    z = torch.from_numpy(np.random.default_rng(5).standard_normal((20_000, generator.z_dim))).float()
    with torch.no_grad():
        means = [generator.mapping(z, label.expand(len(z), -1))[:, 0].mean(0) for label in torch.eye(2)]
    assert (means[0] - means[1]).abs().max() > 0.1
    assert torch.allclose(w_statistics(generator).mean, (means[0] + means[1]) / 2, atol=0.05)


@pytest.mark.slow
def test_it_finds_pictures_that_the_generator_can_draw(setting):
    before, after = errors(setting, setting[4]), errors(setting, run(setting, 40, pull=0))
    assert (after < 0.2 * before).all()


def test_no_steps_change_nothing(setting):
    assert torch.equal(run(setting, 0), setting[4])


@pytest.mark.parametrize("learning_rate", [0.05, 50.0])
def test_no_sample_gets_worse(setting, learning_rate):
    # Steps of 50 spreads throw every sample away: the best that it had is where it started.
    found = run(setting, learning_rate=learning_rate, pull=0)
    assert (errors(setting, found) <= errors(setting, setting[4])).all()
    assert torch.equal(found, setting[4]) == (learning_rate == 50)


@pytest.mark.slow
def test_more_steps_are_better(setting):
    few, many = errors(setting, run(setting, 5, pull=0)), errors(setting, run(setting, 25, pull=0))
    assert (many < few).all()


def test_it_is_adam_on_loss_and_pull(setting):
    generator, average, spread, target, codes = setting
    steps, rate, pull = 6, 0.02, 0.1
    free = torch.nn.Parameter(codes.clone())
    optimizer = torch.optim.Adam([free])
    trail = []
    for step in range(steps + 1):
        away = ((free - average) / spread).pow(2).flatten(1).mean(1)
        value = (generator.synthesis(free) - target.images).pow(2).flatten(1).mean(1) + pull * away
        trail.append((value.detach(), free.detach().clone()))
        optimizer.zero_grad()
        value.sum().backward()
        optimizer.param_groups[0]["lr"] = rate * spread * ramp(step / steps)
        optimizer.step()
    best = torch.stack([value for value, _ in trail]).argmin(0)
    wanted = torch.stack([trail[place][1][sample] for sample, place in enumerate(best)])
    assert best.min() > 0
    found = run(setting, steps, learning_rate=rate, pull=pull)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)  # other order of operations, float32


def test_the_learning_rate_rises_and_falls():
    values = [ramp(step / 100) for step in range(101)]
    assert 0 < values[0] < values[3] < 1
    assert values[5:76] == [1.0] * 71
    assert values[75] > values[80] > values[90] > values[99] > 0
    assert values[100] == pytest.approx(0)


@pytest.mark.slow
def test_a_sample_does_not_depend_on_its_batch(setting):
    together = run(setting)
    for places in ([0], [1], [2, 1]):
        assert torch.equal(run(setting, places=places), together[places])


@pytest.mark.slow
def test_a_sample_that_cannot_be_measured_keeps_its_code_and_harms_no_other(setting):
    generator, average, spread, target, codes = setting
    images = target.images.clone()
    images[1] = torch.nan
    options = {"average": average, "pull": 0.01, "learning_rate": 0.05, "spread": spread}
    found = refine(generator.synthesis, PIXELS, target._replace(images=images), codes, STEPS, **options)
    wanted = run(setting)
    assert torch.equal(found[1], codes[1])
    assert torch.equal(found[[0, 2]], wanted[[0, 2]])


@pytest.mark.slow
def test_space_w_has_one_code_for_all_layers(setting):
    found = run(setting, 15, space="w", pull=0)
    assert torch.equal(found, found[:, :1].expand_as(found))
    assert (errors(setting, found) < errors(setting, setting[4])).all()


@pytest.mark.slow
def test_the_pull_keeps_codes_near_the_average(setting):
    _, average, spread, _, _ = setting
    away = [((run(setting, 12, pull=pull) - average) / spread).square().mean((1, 2)) for pull in (0, 0.5, 5)]
    assert (away[2] < away[1]).all()
    assert (away[1] < away[0]).all()


@pytest.mark.slow
def test_pictures_of_a_smaller_working_size(setting):
    generator, average, spread, target, codes = setting
    small = PIXELS.target(torch.nn.functional.avg_pool2d(target.images, 2))
    found = refine(generator.synthesis, PIXELS, small, codes, 25, average=average, pull=0, spread=spread)
    with torch.no_grad():
        made = [torch.nn.functional.avg_pool2d(generator.synthesis(ws), 2) for ws in (codes, found)]
    before, after = ((images - small.images).square().mean((1, 2, 3)) for images in made)
    assert (after < 0.5 * before).all()


@pytest.mark.slow
def test_the_generator_is_only_read(setting, tiny):
    run(setting)
    state = setting[0].state_dict()
    assert all(torch.equal(value, state[name]) for name, value in tiny.generator(**SMALLER).state_dict().items())
    assert all(parameter.grad is None for parameter in setting[0].parameters())


@pytest.mark.slow
def test_no_gradients_outside_are_needed(setting):
    with torch.no_grad():
        found = run(setting)
    assert torch.equal(found, run(setting))
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"steps": -1}, "steps -1"),
        ({"pull": -0.1}, "pull -0.1"),
        ({"pull": float("nan")}, "pull nan"),
        ({"learning_rate": 0}, "learning rate 0"),
        ({"spread": float("inf")}, "spread inf"),
        ({"space": "z"}, "'z'"),
        ({"average": torch.zeros(2, 12)}, "(2, 12)"),
    ],
)
def test_what_cannot_be_is_refused(setting, options, part):
    with pytest.raises(InputError) as error:
        run(setting, **options)
    assert part in str(error.value)


def test_codes_of_other_pictures_are_refused(setting):
    generator, average, _, target, codes = setting
    with pytest.raises(InputError, match="for 2 pictures"):
        refine(generator.synthesis, PIXELS, target.take([0, 1]), codes, 3, average=average)


# ---- float16, as on a GPU


@pytest.mark.parametrize("near", [True, False])
def test_on_a_gpu_it_descends_as_in_float32(tiny, setting, monkeypatch, near):
    _, average, spread, target, codes = setting
    generator, target, codes = tiny.generator(**SMALLER), target.take([0]), codes[:1]
    if near:  # rms 0.03, as late in a refinement
        with torch.no_grad():
            image = generator.synthesis(codes)
        target = PIXELS.target(image + 0.03 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0)))
    gradients = gradients_at_codes(generator.synthesis)
    options = {"average": average, "pull": 0, "spread": spread, "learning_rate": 0.02}
    go_the_way_of_a_gpu(monkeypatch, generator, torch.float32)
    wanted = refine(generator.synthesis, PIXELS, target, codes, 2, **options)
    convolutions = go_the_way_of_a_gpu(monkeypatch, generator)
    found = refine(generator.synthesis, PIXELS, target, codes, 2, **options)
    assert {dtype for dtype, _ in convolutions} == {torch.float32}
    assert torch.equal(found, wanted)
    assert torch.equal(torch.stack(gradients[:2]), torch.stack(gradients[2:]))
    refine(generator.synthesis, PIXELS, target, codes, 2, keep_precision=True, **options)  # as of recipe 1
    assert torch.float16 in {dtype for dtype, _ in convolutions}
    assert not torch.equal(gradients[4], gradients[0])


def test_a_function_is_as_good_as_a_module(setting):
    generator, average, spread, target, codes = setting
    options = {"average": average, "spread": spread}
    found = refine(lambda ws: generator.synthesis(ws), PIXELS, target.take([0]), codes[:1], 2, **options)
    assert torch.equal(found, refine(generator.synthesis, PIXELS, target.take([0]), codes[:1], 2, **options))
