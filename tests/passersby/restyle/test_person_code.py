"""The robust mean of a person's codes against a general minimiser, and what few, equal and outlying pictures give."""

import numpy as np
import pytest
import scipy.optimize
import torch

from passersby.errors import InputError
from passersby.restyle.refinement import person_code

SHAPE = (3, 4)  # num_ws, w_dim


def pictures(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, *SHAPE)).astype(np.float32)


def summed_distance(code, codes, weights=1.0):
    return (weights * np.sqrt(np.square(codes - code).sum((1, 2)))).sum()


def minimiser(codes, weights):
    """The same point by a method that knows nothing of Weiszfeld: quasi-Newton on the summed distance."""
    points = codes.astype(np.float64)

    def summed(code):
        return summed_distance(code.reshape(SHAPE), points, weights)

    return scipy.optimize.minimize(summed, points.mean(0).ravel(), tol=1e-12).x.reshape(SHAPE)


@pytest.mark.parametrize("count", [3, 5, 20])
@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_the_point_of_least_summed_distance(count, weighted):
    codes = pictures(count, seed=count)
    weights = np.random.default_rng(1).uniform(0.5, 1.5, count) if weighted else np.ones(count)
    found = person_code(codes, weights if weighted else None)
    assert found.shape == SHAPE
    assert found.dtype == np.float32
    # The minimiser stops at gradients of about 1e-6 of numerical differences.
    np.testing.assert_allclose(found, minimiser(codes, weights), atol=1e-4)


def test_in_the_plane_it_is_the_fermat_point():
    # Of an equilateral triangle the centre; of one with an angle above 120 degrees that corner (Torricelli).
    corners = np.array([[0, 0], [1, 0], [0.5, 3**0.5 / 2]])[:, None]
    np.testing.assert_allclose(person_code(corners), [[0.5, 3**0.5 / 6]], atol=1e-7)
    flat = np.array([[-1, 0], [1, 0], [0, 0.5]])[:, None]  # 126.9 degrees at the last
    assert person_code(flat).tolist() == [[0, 0.5]]


def test_on_a_line_it_is_the_middle_one():
    codes = np.array([5.0, -1, 0, 100, 2])[:, None, None]
    assert person_code(codes).item() == 2


def test_one_picture_is_its_own_code():
    codes = pictures(1)
    assert np.array_equal(person_code(codes), codes[0])


def test_two_pictures_give_their_middle_and_two_of_unequal_weight_the_heavier():
    codes = pictures(2)
    np.testing.assert_allclose(person_code(codes), codes.mean(0), atol=1e-6)
    assert np.array_equal(person_code(codes, [1, 3]), codes[1])


def test_one_outlier_of_five_has_little_pull():
    good = pictures(4) * 0.1
    near = person_code(np.concatenate([good, pictures(1, seed=9)]))
    far = person_code(np.concatenate([good, pictures(1, seed=9) * 1e6]))
    np.testing.assert_allclose(far, near, atol=0.02)  # however far it is: only its direction counts
    radius = np.sqrt(np.square(good - good.mean(0)).sum((1, 2))).max()
    assert np.linalg.norm(far - good.mean(0)) < radius
    assert np.linalg.norm(np.concatenate([good, pictures(1, seed=9) * 1e6]).mean(0) - good.mean(0)) > 1e5


def test_the_order_of_the_pictures_does_not_matter_to_the_last_bit():
    codes, weights = pictures(9), np.random.default_rng(2).uniform(0.1, 2, 9)
    codes[5], codes[7] = codes[2], codes[2]  # equal pictures of unequal weights among them
    wanted = person_code(codes, weights)
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(9)
        assert np.array_equal(person_code(codes[order], weights[order]), wanted)


def test_a_weight_counts_like_that_many_pictures():
    codes = pictures(4)
    repeated = codes[[0, 0, 0, 1, 2, 2, 3]]
    np.testing.assert_allclose(person_code(repeated), person_code(codes, [3, 1, 2, 1]), atol=1e-6)
    assert np.array_equal(person_code(codes, [1, 1, 0, 1]), person_code(codes[[0, 1, 3]]))
    assert np.array_equal(person_code(codes[[1, 1, 1, 1]]), codes[1])


def test_starting_on_a_picture_that_is_not_the_median_is_no_trap():
    codes = np.array([[0.0, 0], [1, 0], [0, 1], [7, 7], [2, 2]])[:, None]
    assert np.array_equal(codes.mean(0), codes[4])
    found = person_code(codes)
    assert summed_distance(found, codes) < summed_distance(codes[4], codes) - 1
    grid = np.stack(np.meshgrid(np.arange(0, 2, 0.01), np.arange(0, 2, 0.01)), -1).reshape(-1, 1, 2)
    assert summed_distance(found, codes) <= min(summed_distance(point, codes) for point in grid)


def test_torch_tensors_are_taken_too():
    codes = pictures(5)
    assert np.array_equal(person_code(torch.from_numpy(codes)), person_code(codes))


@pytest.mark.parametrize(
    ("codes", "weights", "part"),
    [
        (np.zeros((0, *SHAPE)), None, "n of 1 or more"),
        (np.zeros(SHAPE), None, "[n, num_ws, w_dim]"),
        (np.full((2, *SHAPE), np.nan), None, "pictures [0, 1]"),
        (np.zeros((2, *SHAPE)), [1.0], "2 pictures"),
        (np.zeros((2, *SHAPE)), [1.0, -1], "0 or more"),
        (np.zeros((2, *SHAPE)), [0.0, 0], "not all 0"),
        (np.zeros((2, *SHAPE)), [1.0, np.nan], "0 or more"),
    ],
)
def test_what_cannot_be_is_refused(codes, weights, part):
    with pytest.raises(InputError) as error:
        person_code(codes, weights)
    assert part in str(error.value)
    assert "\n" not in str(error.value)
