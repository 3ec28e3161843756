"""A unit in one Ray Data row: flattening to images and adding columns."""

import pyarrow as pa
import pytest

from datasets.runs.rows import images_of, with_columns


def unit_row() -> pa.Table:
    return pa.table(
        {
            "unit": pa.array([7], pa.int64()),
            "person": pa.array([[3, 3, 4]], pa.list_(pa.int64())),
            "image": pa.array([[b"a", None, b"c"]], pa.list_(pa.binary())),
            "mix_layers": pa.array([[[5, 6], None, []]], pa.list_(pa.list_(pa.int64()))),
            "ssim": pa.array([[None, None, None]], pa.list_(pa.float32())),
            "seconds_generate": pa.array([1.5], pa.float64()),
        }
    )


def test_images_of_flattens_list_columns_with_their_types():
    images = images_of(unit_row())
    assert images.column_names == ["person", "image", "mix_layers", "ssim"]
    assert images.num_rows == 3
    assert images.column("image").to_pylist() == [b"a", None, b"c"]
    assert images.column("mix_layers").to_pylist() == [[5, 6], None, []]
    assert images.schema.field("ssim").type == pa.float32()


def test_images_of_a_slice_of_a_larger_table():
    both = pa.concat_tables([unit_row(), with_columns(unit_row(), {"person": pa.array([8, 8, 9])})])
    assert images_of(both.slice(1, 1)).column("person").to_pylist() == [8, 8, 9]
    assert images_of(both.combine_chunks().slice(1, 1)).column("person").to_pylist() == [8, 8, 9]
    with pytest.raises(ValueError, match="2 rows"):
        images_of(both)


def test_images_of_refuses_ragged_columns():
    ragged = unit_row().append_column("height", pa.array([[128]], pa.list_(pa.int64())))
    with pytest.raises(ValueError, match="'height': 1"):
        images_of(ragged)


def test_with_columns_adds_and_replaces_and_leaves_the_batch_alone():
    batch = unit_row()
    scored = with_columns(
        batch,
        {
            "detector_score": pa.array([0.5, None, None], pa.float32()),
            "ssim": pa.chunked_array([pa.array([1.0], pa.float32()), pa.array([None, 0.75], pa.float32())]),
            "seconds_detect": 0.25,
            "seconds_generate": 2,
            "unit": pa.scalar(9, pa.int64()),
        },
    )
    assert scored.column_names == [*batch.column_names, "detector_score", "seconds_detect"]
    assert scored.column("seconds_detect").to_pylist() == [0.25]
    assert scored.column("unit").to_pylist() == [9]
    assert images_of(scored).column("detector_score").to_pylist() == [0.5, None, None]
    assert images_of(scored).column("ssim").to_pylist() == [1.0, None, 0.75]
    assert batch.equals(unit_row())


def test_all_null_columns_keep_their_type():
    scored = with_columns(unit_row(), {"detector_score": pa.nulls(3, pa.float32())})
    assert scored.schema.field("detector_score").type == pa.list_(pa.float32())


def test_with_columns_starts_a_unit_from_its_number():
    batch = with_columns(pa.table({"unit": pa.array([0], pa.int64())}), {"person": pa.array([1, 1])})
    assert images_of(batch).column("person").to_pylist() == [1, 1]


def test_with_columns_refuses_wrong_lengths_and_untyped_values():
    with pytest.raises(ValueError, match="2 entries, the unit has 3"):
        with_columns(unit_row(), {"detector_score": pa.array([0.5, 0.5], pa.float32())})
    with pytest.raises(TypeError, match="list"):
        with_columns(unit_row(), {"detector_score": [None, None, None]})
