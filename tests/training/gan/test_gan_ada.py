"""The probability of augmentation follows the signs of D(real), and does so after a resume as well."""

import json

import pytest

from passersby.errors import InputError
from training.gan.augment import AdaController


def adaptive(**options) -> AdaController:
    return AdaController("ada", **{"kimg": 1.0, **options})


def train(controller: AdaController, means: list[float], batch: int = 8, start: int = 0) -> list[float]:
    """p after every iteration, each with `batch` images whose mean sign is given."""
    history = []
    for iteration, mean in enumerate(means, start + 1):
        controller.add(mean * batch, batch)
        if iteration % controller.interval == 0:
            controller.update(batch * controller.interval)
        history.append(controller.p)
    return history


def test_steps_equal_a_hand_calculation():
    # Batch 8, every 4 iterations, 1 kimg: 32 / 1000 a step. Mean signs 0.75 and 0.5 around the target 0.6.
    signs = [1.0, 0.5, 1.0, 0.5] + [0.5] * 4 + [1.0] * 4 + [1.0] * 4
    expected = [0.0] * 3 + [0.032] * 4 + [0.0] * 4 + [0.032] * 4 + [0.064]
    assert train(adaptive(), signs) == pytest.approx(expected, abs=1e-12)


def test_reference_speed_is_500_kimg_from_0_to_1():
    controller = AdaController("ada")
    train(controller, [1.0] * 4, batch=32)
    assert controller.p == pytest.approx(128 / 500_000)


def test_p_stays_between_0_and_its_limit():
    assert train(adaptive(), [0.0] * 8)[-1] == 0
    assert train(adaptive(p_max=0.05), [1.0] * 40)[-1] == 0.05
    assert train(adaptive(p=0.99), [1.0] * 40)[-1] == 1


def test_p_rests_on_the_target_and_without_signs():
    controller = adaptive(p=0.3, target=0.5)
    assert train(controller, [0.5] * 8)[-1] == 0.3
    assert controller.update(32) == 0.3


def test_signs_of_workers_and_of_iterations_weigh_by_their_number():
    controller = adaptive()
    controller.add(4.0, 4)  # all told apart, but few
    controller.add(-6.0, 12)
    assert controller.update(32) == 0  # the mean is -2 / 16
    controller.add(10.0, 16)
    assert controller.update(32) == pytest.approx(0.032)  # 10 / 16 is above 0.6: the signs before are forgotten


@pytest.mark.parametrize("stop", [3, 4, 6])
def test_going_on_from_a_stored_state_equals_never_stopping(stop):
    signs = [1.0, 0.25, 0.75, 1.0, -1.0, 0.5, 1.0, 0.125, 1.0, 1.0, 1.0, 1.0]
    whole = train(adaptive(p=0.2), signs)
    first = adaptive(p=0.2)
    train(first, signs[:stop])
    second = adaptive()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert train(second, signs[stop:], start=stop) == whole[stop:]


def test_fixed_and_no_augmentation_do_not_move():
    assert not AdaController().adapts
    assert AdaController().p == 0
    fixed = AdaController("fixed", p=0.4)
    assert not fixed.adapts
    assert train(fixed, [1.0] * 8)[-1] == 0.4
    fixed.load_state_dict({"p": 0.1, "sign_sum": 0.0, "count": 0})
    assert fixed.p == 0.4  # a resume with another fixed p takes the new one


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("maybe",), {}, "choose one of none, fixed, ada"),
        (("fixed", 1.5), {}, "0 <= p <= limit <= 1"),
        (("ada", 0.5), {"p_max": 0.4}, "0 <= p <= limit <= 1"),
        (("none", 0.5), {}, "choose fixed or ada"),
        (("ada",), {"target": 1.0}, "-1 < target < 1"),
        (("ada",), {"kimg": 0}, "kimg > 0"),
        (("ada",), {"interval": 0}, "interval >= 1"),
    ],
)
def test_bad_settings_are_refused(arguments, options, message):
    with pytest.raises(InputError, match=message):
        AdaController(*arguments, **options)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"p": "x", "sign_sum": 0, "count": 0},
        {"p": 2, "sign_sum": 0, "count": 0},
        {"p": 0, "sign_sum": 5, "count": 4},
    ],
)
def test_bad_states_are_refused(state):
    with pytest.raises(InputError, match="no state of the adaptation"):
        adaptive().load_state_dict(state)
