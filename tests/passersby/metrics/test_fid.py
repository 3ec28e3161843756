"""FID, KID and the neighbour scores against scipy, torch-fidelity's own and slow loops."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import fid_statistics_to_metric

from passersby.errors import InputError
from passersby.metrics import fid as module
from passersby.metrics.fid import bias_note, density_coverage, fid, kid, precision_recall, score_features


def features(count: int, dimensions: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated, of unlike variances, not negative: as a network's are."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((dimensions, dimensions)) / np.sqrt(dimensions)
    raw = random.standard_normal((count, dimensions)) * np.exp(-np.arange(dimensions) / dimensions * 3)
    return np.maximum(raw @ mixing + 0.4 + shift, 0).astype(np.float32)


def by_root(real: np.ndarray, fake: np.ndarray) -> float:
    """FID by its definition, with scipy's root of a matrix, all in float64."""
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    cov1, cov2 = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    root = scipy.linalg.sqrtm(cov1 @ cov2)
    mean = np.square(real.mean(0) - fake.mean(0)).sum()
    return float(mean + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root).real)


@pytest.mark.parametrize(("real", "fake"), [(400, 300), (65, 64), (400, 30), (30, 400), (20, 25)])
def test_fid_equals_scipys_root(real, fake):
    """Also with fewer images than the 64 dimensions. A root of a singular matrix is only good to the root of the
    machine's precision, so that is the tolerance there."""
    a, b = features(real, 64, 1), features(fake, 64, 2, shift=0.1)
    singular = min(real, fake) <= 64
    assert fid(a, b) == pytest.approx(by_root(a, b), abs=1e-5 if singular else 1e-9)
    assert fid(a, b) > 0.1
    assert fid(a, b) == pytest.approx(fid(b, a), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.integers(2, 60), st.integers(1, 20), st.integers(0, 1000))
def test_fid_of_any_sizes(real, fake, dimensions, seed):
    a, b = features(real, dimensions, seed), features(fake, dimensions, seed + 1, shift=0.2)
    statistics = [
        {"mu": s.mean(0, dtype=np.float64), "sigma": np.cov(s, rowvar=False).reshape(dimensions, dimensions)}
        for s in (a, b)
    ]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert fid(a, b) == pytest.approx(expected, abs=1e-5)  # roots of zero eigenvalues, as above


@pytest.mark.slow
@pytest.mark.parametrize("count", [100, 3000])
def test_fid_of_equal_sets_is_zero(count):
    a = features(count, 2048 if count < 2048 else 256, 3)
    assert fid(a, a) < 1e-9
    assert fid(a, np.random.default_rng(0).permutation(a)) < 1e-9


def test_fid_of_shifted_normal_sets_is_the_square_of_the_shift():
    a = features(500, 16, 4)
    shift = np.linspace(0.1, 1, 16)
    assert fid(a.astype(np.float64), a + shift) == pytest.approx(np.square(shift).sum(), abs=1e-9)


def test_features_in_several_blocks_give_the_same(monkeypatch):
    a, b = features(700, 32, 5), features(400, 32, 6, shift=0.1)
    whole = fid(a, b)
    monkeypatch.setattr(module, "ROWS", 50)
    assert fid(a, b) == pytest.approx(whole, abs=1e-10)


def test_kid_is_the_mean_over_subsets_of_the_unbiased_distance(monkeypatch):
    monkeypatch.setattr(module, "KID_SUBSETS", 10)
    a, b = features(40, 16, 7).astype(np.float64), features(30, 16, 8, shift=0.2).astype(np.float64)
    random, size, found = np.random.RandomState(11), 15, []  # noqa: NPY002
    for _ in range(10):
        x, y = (s[random.choice(len(s), size, replace=False)] for s in (a, b))
        total = 0.0
        for i in range(size):
            for j in range(size):
                kernel = [(u @ v / 16 + 1) ** 3 for u, v in ((x[i], x[j]), (y[i], y[j]), (x[i], y[j]))]
                total += (i != j) * (kernel[0] + kernel[1]) / (size * (size - 1)) - 2 * kernel[2] / size**2
        found.append(total)
    mean, deviation = kid(a, b, seed=11)
    assert mean == pytest.approx(np.mean(found), rel=1e-9)
    assert deviation == pytest.approx(np.std(found), rel=1e-9)
    assert kid(a, b, seed=12) != (mean, deviation)


def test_kid_of_one_distribution_is_near_zero_and_may_be_below():
    values = [kid(features(200, 32, 2 * seed), features(200, 32, 2 * seed + 1))[0] for seed in range(4)]
    assert max(map(abs, values)) < 0.01 < kid(features(200, 32, 0), features(200, 32, 1, shift=0.1))[0]


def neighbours_by_loops(real, fake, k_precision, k_density):
    """(precision, recall, density, coverage), image by image."""

    def distance(x, y):
        return float(np.sqrt(np.square(x - y).sum()))

    def radii(points, k):
        return [sorted(distance(p, q) for q in points)[k] for p in points]  # [0] is the image itself

    real, fake = real.astype(np.float64), fake.astype(np.float64)
    around_real, around_fake = radii(real, k_precision), radii(fake, k_precision)
    precision = np.mean([any(distance(f, r) <= d for r, d in zip(real, around_real, strict=True)) for f in fake])
    recall = np.mean([any(distance(r, f) <= d for f, d in zip(fake, around_fake, strict=True)) for r in real])
    balls = radii(real, k_density)
    density = np.mean([sum(distance(f, r) < d for r, d in zip(real, balls, strict=True)) for f in fake]) / k_density
    coverage = np.mean([any(distance(r, f) < d for f in fake) for r, d in zip(real, balls, strict=True)])
    return precision, recall, density, coverage


@pytest.mark.parametrize("chunk", [7, 1024])
def test_neighbour_scores_equal_slow_loops(monkeypatch, chunk):
    monkeypatch.setattr("passersby.metrics.fid.CHUNK", chunk)
    a, b = features(50, 8, 9), features(33, 8, 10, shift=0.15)
    expected = neighbours_by_loops(a, b, 3, 5)
    found = (*precision_recall(a, b), *density_coverage(a, b))
    assert found == pytest.approx(expected, abs=1e-7)  # torch-fidelity averages in float32
    assert all(0 < value < 1 for value in expected)


def test_scores_by_name():
    a, b = features(60, 16, 13), features(80, 16, 14)
    scores = score_features(a, b, seed=5)
    assert list(scores) == ["fid", "kid", "kid_std", "precision", "recall", "density", "coverage"]
    assert all(type(value) is float for value in scores.values())
    assert scores["fid"] == fid(a, b)
    assert (scores["kid"], scores["kid_std"]) == kid(a, b, 5)
    assert scores == score_features(a, b, seed=5)
    far = score_features(a, b + 100)
    assert (far["precision"], far["recall"], far["density"], far["coverage"]) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (a[:1], b), "1 real images: give 2 or more"),
        (lambda a, b: (a, b[:0]), "0 fake images: give 2 or more"),
        (lambda a, b: (a, b[:, :7]), "8 features of real and 7 of fake images"),
        (lambda a, b: (a[0], b), r"real features have shape \(8,\)"),
        (lambda a, b: (a, np.where(np.arange(len(b))[:, None] < 3, np.nan, b)), "3 of 10 fake images .* not finite"),
        (lambda a, b: (np.where(a == a[4, 4], np.inf, a), b), "1 of 12 real images .* not finite"),
    ],
)
def test_bad_features_are_named(change, message):
    a, b = np.random.default_rng(0).random((12, 8)), np.random.default_rng(1).random((10, 8))
    with pytest.raises(InputError, match=message):
        fid(*change(a, b))


def test_all_scores_need_six_images():
    a = features(10, 8, 1)
    with pytest.raises(InputError, match="5 fake images: give 6 or more"):
        score_features(a, a[:5])
    assert np.isfinite(list(score_features(a, a[:6]).values())).all()


def test_few_images_are_said_to_bias_fid():
    assert bias_note(5000, 2049) is None
    assert "FID of 2,048 against 5,000 images is biased upwards" in bias_note(5000, 2048)
    small, large = (fid(features(n, 64, 20), features(n, 64, 21)) for n in (80, 2000))
    assert small > 5 * large  # of one distribution: nothing but bias
