"""Pivotal tuning and its deltas: what they reach, what they leave alone, how they travel, which are refused."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from passersby.errors import InputError
from passersby.reid.identity_features import IdentityFeatures
from passersby.restyle.losses import InversionLoss, LossWeights
from passersby.restyle.pivotal import Delta, apply_delta, load_delta, save_delta, tune, variants
from tests.helpers import stylegan2_reference
from tests.helpers.gpu_path import go_the_way_of_a_gpu

SHA, OTHER_SHA = "a" * 64, "b" * 64
SMALLER = {"num_layers": 5, "num_critical": 1, "output_scale": 10}  # pictures of values around 1, in less time
PIXELS = InversionLoss(LossWeights(l2=1, lpips=0, identity=0), None, None)


@pytest.fixture(scope="module")
def person(tiny):
    """A tiny generator, three pictures that another network drew, and codes that do not show them."""
    generator = tiny.generator(**SMALLER)
    z = torch.from_numpy(np.random.RandomState(3).randn(3, generator.z_dim)).float()
    with torch.no_grad():
        pivots = generator.mapping(z)
        target = PIXELS.target(tiny.generator(1, **SMALLER).synthesis(pivots))
    return generator, target, pivots


@pytest.fixture(scope="module")
def delta(person):
    generator, target, pivots = person
    return tune(generator, PIXELS, target, pivots, 20, rank=2, learning_rate=0.05)


def error(person):
    generator, target, pivots = person
    with torch.no_grad():
        return PIXELS.measure(generator.synthesis(pivots), target).l2


def same(generator, wanted):
    state = generator.state_dict()
    return all(torch.equal(value, state[name]) for name, value in wanted.items()) and len(state) == len(wanted)


def refusal(content, *parts, sha256=SHA):
    with pytest.raises(InputError) as caught:
        load_delta(content, sha256)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    for part in parts:
        assert part in message


def file_of(tensors, **metadata):
    """A delta file with these tensors; `metadata` replace its own."""
    text = json.dumps({"format_version": 1, "generator_sha256": SHA} | metadata)
    return safetensors.torch.save(tensors, {"passersby_delta": text})


def pair(up=(6, 2), down=(2, 54), name="L1_20_6.weight"):
    return {f"{name}.up": torch.ones(up).half(), f"{name}.down": torch.ones(down).half()}


# ---- tuning


def test_the_tuned_generator_draws_the_person(person, delta):
    before = error(person)
    with apply_delta(person[0], delta):
        after = error(person)
    assert after.mean() < 0.7 * before.mean()  # ToRGB and styles stay another network's


def test_no_steps_change_nothing(person):
    generator, target, pivots = person
    wanted = generator.synthesis(pivots)
    with apply_delta(generator, tune(generator, PIXELS, target, pivots, 0)):
        assert torch.equal(generator.synthesis(pivots), wanted)


def test_the_same_call_gives_the_same_delta_and_leaves_the_random_numbers_alone(person):
    generator, target, pivots = person
    torch.manual_seed(8)
    wanted = torch.rand(3)
    torch.manual_seed(8)
    first = tune(generator, PIXELS, target, pivots, 3)
    assert torch.equal(torch.rand(3), wanted)
    assert save_delta(tune(generator, PIXELS, target, pivots, 3), SHA) == save_delta(first, SHA)


def test_only_kernels_are_tuned_and_every_factor_is_of_the_rank(person, delta):
    generator = person[0]
    names = generator.synthesis.layer_names[:-1]  # the last one is ToRGB
    assert list(delta.factors) == [f"{name}.weight" for name in names]
    for name, (up, down) in delta.factors.items():
        kernel = generator.synthesis.get_parameter(name)
        assert up.shape == (len(kernel), 2)
        assert down.shape == (2, kernel[0].numel())
        assert up.dtype == down.dtype == torch.float16
        assert up.abs().max() > 0


def test_tuning_only_reads_the_generator(person, delta, tiny):
    assert same(person[0], tiny.generator(**SMALLER).state_dict())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in person[0].parameters())


def test_on_a_gpu_it_tunes_in_float32(person, monkeypatch):
    generator, target, pivots = person
    go_the_way_of_a_gpu(monkeypatch, generator, torch.float32)
    wanted = save_delta(tune(generator, PIXELS, target, pivots, 2), SHA)
    convolutions = go_the_way_of_a_gpu(monkeypatch, generator)
    assert save_delta(tune(generator, PIXELS, target, pivots, 2), SHA) == wanted
    assert {dtype for dtype, _ in convolutions} == {torch.float32}
    assert save_delta(tune(generator, PIXELS, target, pivots, 2, keep_precision=True), SHA) != wanted
    assert torch.float16 in {dtype for dtype, _ in convolutions}


def test_a_generator_that_fails_midway_is_as_before(person, tiny):
    generator, target, pivots = person

    class Broken(InversionLoss):
        def measure(self, reconstructions, target):
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        tune(generator, Broken(PIXELS.weights, None, None), target, pivots, 3)
    assert same(generator, tiny.generator(**SMALLER).state_dict())


@pytest.mark.slow
def test_all_pictures_have_their_turn(person):
    generator, target, pivots = person
    one_by_one = tune(generator, PIXELS, target, pivots, 30, rank=2, learning_rate=0.05, batch=1)
    before = error(person)
    with apply_delta(generator, one_by_one):
        assert (error(person) < before).all()


@pytest.mark.slow
def test_likeness_carries_over_to_variants_that_were_not_tuned_on(person):
    generator, target, pivots = person
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 8))
    loss = InversionLoss(LossWeights(l2=1, lpips=0, identity=0), None, IdentityFeatures(network, (16, 16), "t", SHA))
    target, others = loss.target(target.images), variants(generator, pivots, 5000)
    cosines = []
    for likeness in (0.0, 10.0):
        options = {"rank": 2, "learning_rate": 0.05, "likeness": likeness}
        with apply_delta(generator, tune(generator, loss, target, pivots, 15, **options)), torch.no_grad():
            cosines.append((loss.identity(generator.synthesis(others)) * target.identity).sum(1).mean().item())
    assert cosines[1] > cosines[0] + 0.1


def test_variants_are_the_pivots_but_for_neighbouring_layers_of_a_truncated_code(person):
    generator, _, pivots = person
    for seed in range(20):
        mixed = variants(generator, pivots, seed)
        z = torch.from_numpy(np.random.RandomState(seed).randn(3, generator.z_dim)).float()
        random = generator.mapping(z, truncation_psi=0.7)
        for code, pivot, other in zip(mixed, pivots, random, strict=True):
            replaced = (code != pivot).any(1)
            places = replaced.nonzero().flatten()
            assert 1 <= len(places) <= generator.num_ws // 2
            assert places[-1] - places[0] == len(places) - 1
            assert torch.equal(code[replaced], other[replaced])


def test_variants_of_a_conditional_network(tiny):
    generator = tiny.generator(c_dim=2, **SMALLER)
    pivots = torch.zeros(1, generator.num_ws, generator.w_dim)
    assert variants(generator, pivots, 1).shape == pivots.shape


def test_more_than_a_rank_can_be_is_what_fits(person):
    generator, target, pivots = person
    factors = tune(generator, PIXELS, target, pivots, 0, rank=1000).factors
    assert [up.shape[1] for up, _ in factors.values()] == [
        min(len(kernel), kernel[0].numel()) for kernel in map(generator.synthesis.get_parameter, factors)
    ]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"steps": -1}, "steps -1"),
        ({"rank": 0}, "rank 0"),
        ({"batch": 0}, "batch 0"),
        ({"learning_rate": float("nan")}, "learning rate nan"),
        ({"likeness": -0.5}, "likeness -0.5"),
        ({"pivots": torch.zeros(2, 7, 12)}, "3 pictures"),
    ],
)
def test_what_cannot_be_is_refused(person, options, part):
    generator, target, pivots = person
    with pytest.raises(InputError, match=part):
        tune(generator, PIXELS, target, **{"pivots": pivots, "steps": 1} | options)


def test_a_loss_that_is_not_finite_is_refused(person):
    generator, target, pivots = person
    broken = target._replace(images=target.images * torch.inf)
    with pytest.raises(InputError, match="loss is"):
        tune(generator, PIXELS, broken, pivots, 1)


# ---- use


def test_a_weight_becomes_weight_plus_up_times_down(person, delta):
    generator = person[0]
    before = {name: kernel.clone() for name, kernel in generator.synthesis.named_parameters()}
    with apply_delta(generator, delta) as inside:
        assert inside is generator
        for name, kernel in generator.synthesis.named_parameters():
            wanted = before[name].double()
            if name in delta.factors:
                up, down = delta.factors[name]
                wanted = wanted + torch.einsum("or,rk->ok", up.double(), down.double()).view_as(wanted)
            torch.testing.assert_close(kernel.double(), wanted, atol=1e-5, rtol=1e-5)  # float32


def test_afterwards_the_generator_has_its_own_bits_whatever_happened(person, delta, tiny):
    generator = person[0]
    parameters = dict(generator.named_parameters())
    with pytest.raises(KeyError, match="inside"), apply_delta(generator, delta):
        raise KeyError("inside")
    assert same(generator, tiny.generator(**SMALLER).state_dict())
    assert all(parameter is parameters[name] for name, parameter in generator.named_parameters())


def test_within_each_other_deltas_add_up_and_unwind(person, delta, tiny):
    generator = person[0]
    with apply_delta(generator, delta):
        once = generator.state_dict()
        with apply_delta(generator, delta):
            assert not same(generator, once)
        assert same(generator, once)
    assert same(generator, tiny.generator(**SMALLER).state_dict())


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"name": "L99_8_8.weight"}, "no weight L99_8_8.weight"),
        ({"up": (7, 2)}, "7 x 54"),
        ({"down": (2, 53)}, "6 x 53"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_exchanged(person, tiny, options, part):
    generator = person[0]
    name = generator.synthesis.layer_names[1] + ".weight"
    factors = pair(**{"name": name} | options)
    up, down = factors.values()
    good = pair(name=generator.synthesis.layer_names[0] + ".weight").values()
    bad = Delta({generator.synthesis.layer_names[0] + ".weight": tuple(good), options.get("name", name): (up, down)})
    with pytest.raises(InputError, match=part), apply_delta(generator, bad):
        pass
    assert same(generator, tiny.generator(**SMALLER).state_dict())


# ---- files


def test_a_delta_comes_back_as_it_was(person, delta):
    content = save_delta(delta, SHA)
    loaded = load_delta(content, SHA)
    assert loaded.factors.keys() == delta.factors.keys()
    for name, factors in delta.factors.items():
        assert all(torch.equal(a, b) for a, b in zip(factors, loaded.factors[name], strict=True))
    assert save_delta(loaded, SHA) == content
    with apply_delta(person[0], delta):
        wanted = person[0].synthesis(person[2])
    with apply_delta(person[0], loaded):
        assert torch.equal(person[0].synthesis(person[2]), wanted)


def test_it_is_small(person, delta):
    numbers = sum(kernel.numel() for kernel in map(person[0].synthesis.get_parameter, delta.factors))
    stored = sum(factor.numel() for factors in delta.factors.values() for factor in factors)
    assert stored < 0.5 * numbers
    assert len(save_delta(delta, SHA)) < 2 * stored + 3000  # the header


def test_another_generators_delta_is_refused_by_its_hash(delta):
    refusal(save_delta(delta, OTHER_SHA), SHA, OTHER_SHA, "not for")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "header"),
        (b"\x80\x04K\x01.", "header"),
        (b"\xff" * 100, "header"),
        ((10).to_bytes(8, "little") + b"{not JSON}", "damaged"),
        ((4).to_bytes(8, "little") + b"[1] ", "damaged"),
        ((60_000).to_bytes(8, "little") + b"[" * 60_000, "damaged"),
        (safetensors.torch.save(pair()), "damaged"),
        (safetensors.torch.save(pair(), {"passersby_delta": "3"}), "no record"),
        (safetensors.torch.save(pair(), {"passersby_delta": "{"}), "damaged"),
        (file_of(pair(), format_version=2), "version 2"),
        (file_of(pair(), generator_sha256=["x\n" * 1000]), "not for"),
        (file_of({"mapping.fc0.weight": torch.zeros(2, 2).half()}), "mapping.fc0.weight"),
        (file_of({"L1_20_6.magnitude_ema.up": torch.zeros(2, 2).half()}), "magnitude_ema"),
        (file_of({"../L1_20_6\n.weight.up": torch.zeros(2, 2).half()}), "no part of a delta"),
        (file_of(pair(up=(6, 3))), "fit each other"),
        (file_of({"L1_20_6.weight.up": torch.ones(6, 2).half()}), "fit each other"),
        (file_of(pair(up=(6, 2, 1))), "matrix"),
        (file_of(pair(up=(6, 0), down=(0, 54))), "matrix"),
        (file_of({name: tensor.float() for name, tensor in pair().items()}), "float16"),
        (file_of({name: tensor / 0 for name, tensor in pair().items()}), "infinite"),
    ],
)
def test_anything_else_is_refused_in_one_line(content, part):
    refusal(content, "delta: ", part)


def test_a_cut_file_is_refused(delta):
    content = save_delta(delta, SHA)
    for length in (7, 9, 100, len(content) - 1):
        refusal(content[:length], "damaged")


def test_a_stylegan2_is_tuned_like_a_stylegan3():
    generator, other = stylegan2_reference.generator("tall"), stylegan2_reference.generator("tall", mapping_layers=2)
    with torch.no_grad():
        pivots = generator.mapping(stylegan2_reference.codes(2))
        target = PIXELS.target(other.synthesis(pivots).clamp(-1, 1))
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    with torch.no_grad():
        generator.synthesis.b8.conv0.weight.add_(1.0)
    delta = tune(generator, PIXELS, target, pivots, 5, rank=2, learning_rate=0.05)
    assert set(delta.factors) == {"b4.conv1.weight", *(f"b{h}.conv{i}.weight" for h in (8, 16, 32) for i in (0, 1))}
    with apply_delta(generator, load_delta(save_delta(delta, SHA), SHA)):
        assert not torch.equal(generator.synthesis.b4.conv1.weight, before["synthesis.b4.conv1.weight"])
    assert torch.equal(generator.synthesis.b4.conv1.weight, before["synthesis.b4.conv1.weight"])
