"""The similarity stage on a unit of rows, without Ray."""

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from skimage.metrics import structural_similarity

from actors.similarity_scorer import SimilarityScorer
from datasets.runs.rows import images_of, with_columns
from passersby.errors import InputError

SCHEMA = {
    "person": pa.int64(),
    "variant": pa.int64(),
    "image": pa.binary(),
    "status": pa.string(),
    "message": pa.string(),
    "detector_score": pa.float32(),
}


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def picture(seed: int, height: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, 16, 3), dtype=np.uint8)


def row(person: int, variant: int, score: float | None, image: np.ndarray | bytes | None = None, status="ok"):
    if image is None:
        image = picture(100 * person + variant)
    if isinstance(image, np.ndarray):
        image = cv2.imencode(".png", image)[1].tobytes()
    return (person, variant, image, status, None, score)


def unit(rows: list[tuple]) -> pa.Table:
    columns = zip(*rows, strict=True)
    batch = pa.table({"unit": pa.array([0], pa.int64())})
    arrays = {name: pa.array(values, SCHEMA[name]) for name, values in zip(SCHEMA, columns, strict=True)}
    return with_columns(batch, arrays)


def scored(rows: list[tuple], threshold: float = 0.6, **options) -> dict[str, list]:
    return images_of(SimilarityScorer(threshold, **options)(unit(rows))).to_pydict()


def test_the_reference_is_the_first_variant_that_passes_the_detector():
    rows = [row(4, 0, 0.3), row(4, 1, 0.7), row(4, 2, 0.9), row(5, 0, 0.8), row(5, 1, None)]
    found = scored(rows)
    assert found["reference_variant"] == [1, 1, 1, 0, 0]
    assert found["ssim"][1] == found["ssim"][3] == 1.0
    for index, base in [(0, 401), (2, 401), (4, 500)]:
        other = picture(100 * rows[index][0] + rows[index][1])
        want = structural_similarity(picture(base), other, data_range=4095, channel_axis=2)
        assert found["ssim"][index] == pytest.approx(want, abs=1e-6)  # stored as float32
        assert found["ssim"][index] < 1.0


def test_the_threshold_decides_the_reference():
    rows = [row(4, 0, 0.3), row(4, 1, 0.7)]
    assert scored(rows, 0.8)["reference_variant"] == [0, 0]  # none passes: the first
    assert scored(rows, 0.2)["reference_variant"] == [0, 0]
    assert scored(rows, 0.5)["reference_variant"] == [1, 1]


def test_more_variants_than_compared_at_once_and_any_order_of_rows():
    rows = [row(1, variant, 0.9) for variant in range(20)]
    found = scored(rows)
    assert found["reference_variant"] == [0] * 20
    want = [structural_similarity(picture(100), picture(100 + v), data_range=4095, channel_axis=2) for v in range(20)]
    np.testing.assert_allclose(found["ssim"], want, atol=1e-6)
    mixed = [row(2, 0, 0.9), *reversed(rows)]
    again = scored(mixed)
    np.testing.assert_array_equal(again["ssim"][1:], found["ssim"][::-1])
    assert again["ssim"][0] == 1.0


def test_images_that_cannot_be_compared():
    rows = [
        row(1, 0, None, status="error"),
        row(1, 1, 0.9, b"rubbish"),
        row(1, 2, 0.9),
        row(1, 3, 0.9, picture(0, height=24)),
        row(1, 4, 0.9),
        row(2, 0, None, status="error"),
    ]
    found = scored(rows)
    assert found["reference_variant"] == [None, None, 2, 2, 2, None]
    assert [value is None for value in found["ssim"]] == [True, True, False, True, False, True]
    assert found["status"] == ["error", "error", "ok", "error", "ok", "error"]
    assert found["message"][3] == "the image is 24 x 16, its reference 32 x 16"


def test_the_data_range_is_an_option():
    rows = [row(1, 0, 0.9), row(1, 1, 0.9)]
    want = structural_similarity(picture(100), picture(101), data_range=255, channel_axis=2)
    assert scored(rows, data_range=255)["ssim"][1] == pytest.approx(want, abs=1e-6)


def test_types_and_timing():
    batch = SimilarityScorer(0.6)(unit([row(1, 0, 0.9)]))
    images = images_of(batch)
    assert images.schema.field("ssim").type == pa.float32()
    assert images.schema.field("reference_variant").type == pa.int64()
    assert batch.column("seconds_similarity")[0].as_py() > 0


def test_bad_settings_are_named():
    with pytest.raises(InputError, match="threshold 60"):
        SimilarityScorer(60)
    with pytest.raises(InputError, match="data range -1"):
        SimilarityScorer(0.6, data_range=-1)
