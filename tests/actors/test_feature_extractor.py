"""The stage that computes features, on rows of bytes and of files, without Ray."""

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch

from actors.feature_extractor import FeatureExtractor
from datasets.runs.rows import with_columns
from passersby import weights
from passersby.errors import InputError
from passersby.perception.inception import load_inception


@pytest.fixture(scope="module")
def extractor():
    before = torch.get_num_threads()
    yield FeatureExtractor(load_inception(weights.get("inception-2015")), 16, 8)
    torch.set_num_threads(before)


def picture(seed: int, height: int = 16, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()


def unit(**columns: list) -> pa.Table:
    return with_columns(
        pa.table({"unit": pa.array([7], pa.int64())}),
        {name: pa.array(values, pa.binary() if name == "image" else pa.string()) for name, values in columns.items()},
    )


def features(row: pa.Table) -> np.ndarray:
    return np.frombuffer(row["features"][0].as_py(), np.float32).reshape(-1, 2048)


def test_features_are_those_of_the_decoded_bytes_in_their_order(extractor):
    images = [picture(seed) for seed in range(3)]
    row = extractor(unit(image=[png(image) for image in images]))
    np.testing.assert_array_equal(features(row), extractor.network(np.stack(images)))
    assert row["unit"].to_pylist() == [7]
    assert (row["images"][0].as_py(), row["unreadable"][0].as_py(), row["message"][0].as_py()) == (3, 0, None)
    assert row["seconds_features"][0].as_py() > 0


def test_larger_images_are_averaged_to_the_size(extractor):
    large = picture(5, 32, 16)
    blocks = large.reshape(16, 2, 8, 2, 3).mean((1, 3))
    row = extractor(unit(image=[png(large)]))
    np.testing.assert_array_equal(features(row), extractor.network(np.floor(blocks + 0.5).astype(np.uint8)[None]))


def test_bad_images_are_counted_and_the_others_have_features(extractor, tmp_path):
    good = png(picture(1))
    row = extractor(
        unit(
            image=[good, None, b"not an image", good[:60], good, good],
            status=["ok", "error", "ok", "ok", "error", "ok"],
            message=[None, "the network's image is not finite", None, None, "too late", None],
        )
    )
    assert (row["images"][0].as_py(), row["unreadable"][0].as_py()) == (2, 4)
    assert row["message"][0].as_py() == "the network's image is not finite"
    assert len(features(row)) == 2


def test_files_are_read_where_the_stage_runs(extractor, tmp_path):
    (tmp_path / "a.png").write_bytes(png(picture(2)))
    row = extractor(unit(path=[str(tmp_path / "gone.png"), str(tmp_path / "a.png")]))
    np.testing.assert_array_equal(features(row), extractor.network(picture(2)[None]))
    assert row["message"][0].as_py() == f"{tmp_path / 'gone.png'}: No such file or directory"


def test_an_image_that_promises_gigabytes_is_not_decoded(extractor):
    bomb = bytearray(png(picture(3)))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # width and height in the PNG's header
    row = extractor(unit(image=[bytes(bomb)]))
    assert (row["images"][0].as_py(), row["unreadable"][0].as_py()) == (0, 1)
    assert "of a modest size" in row["message"][0].as_py()
    assert features(row).shape == (0, 2048)


def test_bad_settings_are_named(extractor):
    with pytest.raises(InputError, match="height=0"):
        FeatureExtractor(extractor.network, 0, 8)
