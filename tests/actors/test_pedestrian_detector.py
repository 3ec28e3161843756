"""The detector stage on a unit of rows, without Ray."""

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch

from actors.pedestrian_detector import PedestrianDetector
from datasets.runs.rows import images_of, with_columns
from passersby import weights
from passersby.errors import InputError


@pytest.fixture(scope="module")
def detector():
    before = torch.get_num_threads()
    yield PedestrianDetector(weights.get("yolov4-tiny"), 64, 32, input_size=224, batch_images=2)
    torch.set_num_threads(before)


def encoded(seed: int, height: int = 64, width: int = 32) -> bytes:
    image = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return cv2.imencode(".png", cv2.resize(image, (width, height)))[1].tobytes()


def unit(images: list[bytes | None], status: list[str] | None = None) -> pa.Table:
    count = len(images)
    return with_columns(
        pa.table({"unit": pa.array([3], pa.int64())}),
        {
            "person": pa.array([0] * count, pa.int64()),
            "variant": pa.array(range(count), pa.int64()),
            "image": pa.array(images, pa.binary()),
            "status": pa.array(status or ["ok"] * count, pa.string()),
            "message": pa.nulls(count, pa.string()),
        },
    )


def test_scores_are_those_of_the_stored_bytes(detector):
    images = [encoded(seed) for seed in range(5)]
    scored = detector(unit(images))
    rows = images_of(scored)
    assert rows.schema.field("detector_score").type == pa.float32()
    decoded = [cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1] for image in images]
    alone = np.concatenate([detector.filter.scores(image[None]) for image in decoded])
    # batches of 2 against one at a time: other orders of float32 sums
    np.testing.assert_allclose(rows.column("detector_score").to_numpy(), alone, atol=1e-5)
    assert len(set(alone.tolist())) == 5
    assert rows.column("status").to_pylist() == ["ok"] * 5
    assert scored.column("seconds_detect").type == pa.float64()
    assert scored.column("seconds_detect")[0].as_py() > 0
    assert scored.column("unit").to_pylist() == [3]


def test_a_bad_image_is_data_and_the_others_are_scored(detector):
    good = encoded(1)
    batch = unit(
        [good, None, b"not an image", b"", good[:60], encoded(2, 32, 32), good],
        ["ok", "ok", "ok", "ok", "ok", "ok", "error"],
    )
    rows = images_of(detector(batch))
    scores = rows.column("detector_score").to_pylist()
    assert scores[0] is not None
    assert scores[1:] == [None] * 6
    assert rows.column("status").to_pylist() == ["ok", "ok", "error", "error", "error", "error", "error"]
    messages = rows.column("message").to_pylist()
    assert messages[:2] == [None, None]
    assert "12 bytes stored are not an image" in messages[2]
    assert messages[5] == "the image stored is 32 x 32, not 64 x 32"
    assert messages[6] is None  # an error of an earlier stage stays as it was


def test_a_unit_without_any_image_keeps_its_types(detector):
    rows = images_of(detector(unit([None, None])))
    assert rows.column("detector_score").to_pylist() == [None, None]
    assert rows.schema.field("detector_score").type == pa.float32()
    assert rows.schema.field("message").type == pa.string()


def test_bad_settings_are_named():
    with pytest.raises(InputError, match="batch_images=0"):
        PedestrianDetector("unused.weights", 128, 64, batch_images=0)
