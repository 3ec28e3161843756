"""Features kept by content: found again, told apart, and computed anew where a file is damaged."""

import numpy as np
import pytest

from datasets.storage import feature_cache
from datasets.storage.feature_cache import cached, feature_key, feature_path, read_features, real_features
from passersby import weights
from passersby.perception.inception import load_inception


@pytest.fixture(scope="module")
def inception():
    return load_inception(weights.get("inception-2015"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PASSERSBY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / feature_cache.FOLDER


def never() -> np.ndarray:
    raise AssertionError("these features are in the cache")


def some(count: int = 3) -> np.ndarray:
    return np.random.default_rng(count).random((count, 2048), dtype=np.float32)


@pytest.mark.slow
def test_real_features_are_computed_once(cache, inception):
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 8, 3), dtype=np.uint8)
    first = real_features(images, inception)
    np.testing.assert_array_equal(first, inception(images))
    (file,) = cache.iterdir()
    written = file.stat().st_mtime_ns
    np.testing.assert_array_equal(real_features(images.copy(), inception), first)
    strided = np.concatenate([images, images])[::2][[0, 2, 1]]  # images 0, 1, 2 in another memory layout
    np.testing.assert_array_equal(real_features(np.asfortranarray(strided), inception), first)
    assert [found.stat().st_mtime_ns for found in cache.iterdir()] == [written]
    real_features(images[:2], inception)
    real_features(images[::-1], inception)
    assert len(list(cache.iterdir())) == 3


def test_everything_that_changes_features_changes_the_key():
    keys = {
        feature_key(b"a" * 32, 64, 32, "net"),
        feature_key(b"b" * 32, 64, 32, "net"),
        feature_key(b"a" * 32, 32, 64, "net"),
        feature_key(b"a" * 32, 64, 32, "other"),
    }
    assert len(keys) == 4


@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: c[:-9] + b"x" * 9, lambda c: b"", lambda c: c[:20]])
def test_a_damaged_file_is_computed_again_with_a_word(cache, capsys, damage):
    features = some()
    cached("key", lambda: features)
    np.testing.assert_array_equal(cached("key", never), features)
    assert capsys.readouterr().err == ""
    path = feature_path("key")
    path.write_bytes(damage(path.read_bytes()))
    np.testing.assert_array_equal(cached("key", lambda: features), features)
    assert capsys.readouterr().err == f"note: {path} is damaged: computing again\n"
    np.testing.assert_array_equal(cached("key", never), features)


def test_a_file_of_other_features_is_damaged_too(cache, capsys):
    path = feature_path("key")
    path.parent.mkdir(parents=True)
    path.write_bytes(feature_cache._encoded(np.zeros((3, 5), np.float32)))
    assert read_features(path) is None
    assert "is damaged" in capsys.readouterr().err


def test_nothing_but_whole_files_is_left(cache):
    cached("one", some)
    with pytest.raises(ZeroDivisionError):
        cached("two", lambda: 1 / 0)
    assert [path.name for path in cache.iterdir()] == ["one.npy"]


def test_a_cache_that_cannot_be_written_costs_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PASSERSBY_CACHE", str(tmp_path / "file"))
    np.testing.assert_array_equal(cached("key", some), some())
    assert "note: features are not kept" in capsys.readouterr().err
