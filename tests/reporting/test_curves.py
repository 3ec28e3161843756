"""A training's curves, and the history file under kills and resumes."""

import json

import numpy as np
import pytest
from PIL import Image

from passersby.errors import InputError
from reporting import curves
from reporting.curves import append_history, read_history, rewind_history, save_curves


def records(count: int, start: int = 0) -> list[dict]:
    random = np.random.default_rng(0)
    noise = random.normal(0, 0.1, (count, 4)).tolist()
    made = []
    for i in range(start, count):
        real, fake, validation, loss = noise[i]
        record = {"kimg": i * 0.64, "G/loss": 1.4 + loss, "D/loss": 1 + loss, "scores/real": 0.5 + real}
        record |= {"scores/fake": fake - 0.5, "augment/p": i / 1000}
        if i % 4 == 0:
            record |= {"scores/validation": 0.3 + validation, "validation/D_loss": 1.1, "D/r1": 0.02}
        if i % 16 == 0:
            record["fid"] = 100.0 + (i - 32) ** 2
        made.append(record)
    return made


def drawn(monkeypatch, history, path, **options):
    """The figure that `save_curves` draws."""
    kept = []
    original = curves.FigureCanvasAgg
    monkeypatch.setattr(curves, "FigureCanvasAgg", lambda figure: kept.append(figure) or original(figure))
    save_curves(path, history, **options)
    return kept[0]


def panels(figure) -> dict:
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def names(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_every_subject_has_a_panel_and_training_stands_beside_validation(tmp_path, monkeypatch):
    figure = drawn(monkeypatch, records(100), tmp_path / "curves.png", title="toy")
    shown = panels(figure)
    assert list(shown) == [panel.title for panel in curves.PANELS]
    losses = " ".join(names(shown["Losses"]))
    assert all(word in losses for word in ("generator", "training people", "validation people"))
    assert len(shown["Discriminator's scores"].collections) == 1  # the band between training and validation
    assert all(axes.get_xlabel() == "kimg" for axes in shown.values())
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 600
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]  # no temporary file left


def test_the_best_fid_is_marked_in_every_panel(tmp_path, monkeypatch):
    figure = drawn(monkeypatch, records(100), tmp_path / "curves.png")
    best = 32 * 0.64
    assert any(name == f"best: 100 at {best:.4g} kimg" for name in names(panels(figure)["FID"]))
    for axes in panels(figure).values():
        marks = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert [list(mark.get_xdata()) for mark in marks] == [[best, best]]


def test_missing_keys_and_undefined_values_are_gaps(tmp_path, monkeypatch):
    history = [
        {"kimg": 0.0, "G/loss": 1.0},
        {"kimg": 1.0, "G/loss": float("nan"), "D/r1": 0.0},  # not above 0: no logarithm
        {"kimg": 2.0, "G/loss": None, "fid": 50.0},
        {"kimg": 3.0, "G/loss": float("inf"), "scores/validation": 0.5},
        {"kimg": 4.0, "G/loss": 2.0, "scores/real": 0.7},
    ]
    shown = panels(drawn(monkeypatch, history, tmp_path / "curves.png", smoothing=0))
    assert list(shown) == ["Losses", "Discriminator's scores", "R1 penalty", "FID"]
    assert shown["Losses"].lines[0].get_xydata().tolist() == [[0, 1], [4, 2]]
    assert shown["R1 penalty"].get_yscale() == "linear"


def test_smoothed_lines_lie_over_the_raw_values(tmp_path, monkeypatch):
    raw, smooth = panels(drawn(monkeypatch, records(200), tmp_path / "a.png"))["Losses"].lines[:2]
    assert raw.get_alpha() < 0.5
    assert raw.get_ydata().tolist() == [record["G/loss"] for record in records(200)]
    # a Gaussian of 4 records' width averages about 14 of them
    assert smooth.get_ydata().std() < raw.get_ydata().std() / 2
    monkeypatch.undo()
    (only,) = panels(drawn(monkeypatch, records(2), tmp_path / "b.png"))["R1 penalty"].lines[:1]
    assert only.get_ydata().tolist() == [0.02]


def test_overfitting_is_the_share_of_the_way_from_training_to_generated(tmp_path, monkeypatch):
    history = [
        {"kimg": float(i), "scores/real": 1.0, "scores/fake": -1.0, "scores/validation": 1.0 - 0.02 * i}
        for i in range(100)
    ]
    line = panels(drawn(monkeypatch, history, tmp_path / "a.png", smoothing=0))["Overfitting of the discriminator"]
    np.testing.assert_allclose(line.lines[0].get_ydata(), 0.01 * np.arange(100), atol=1e-12)  # rounding of float64
    # where D does not tell real from generated people there is no such share
    same = [{"kimg": 1.0, "scores/real": 0.0, "scores/fake": 0.0, "scores/validation": 0.0}]
    monkeypatch.undo()
    shown = panels(drawn(monkeypatch, same, tmp_path / "b.png"))
    assert list(shown) == ["Discriminator's scores"]


def test_records_are_drawn_in_the_order_of_kimg(tmp_path, monkeypatch):
    shown = panels(drawn(monkeypatch, records(20)[::-1], tmp_path / "a.png"))
    kimg = shown["Losses"].lines[0].get_xdata()
    assert (np.diff(kimg) > 0).all()


def test_nothing_to_draw_and_nowhere_to_write_are_errors(tmp_path):
    with pytest.raises(InputError, match="none of the 1 records"):
        save_curves(tmp_path / "a.png", [{"kimg": 1.0, "D/loss": float("nan")}])
    with pytest.raises(InputError, match="cannot write"):
        save_curves(tmp_path / "absent" / "a.png", records(5))


# ---- the file


def test_what_is_appended_is_read_again(tmp_path):
    path = tmp_path / "history.jsonl"
    assert read_history(path) == []
    for record in records(40):
        append_history(path, record)
    assert read_history(path) == records(40)  # every digit


def test_numbers_that_are_not_finite_become_gaps_of_valid_json(tmp_path):
    path = tmp_path / "history.jsonl"
    append_history(path, {"kimg": 1.0, "D/loss": float("nan"), "G/loss": float("-inf"), "note": "ä"})

    def refuse(name):
        raise ValueError(name)

    assert json.loads(path.read_text(), parse_constant=refuse) == {
        "kimg": 1.0,
        "D/loss": None,
        "G/loss": None,
        "note": "ä",
    }


def test_a_history_cut_at_any_byte_keeps_its_whole_records(tmp_path):
    path, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    whole = [{"kimg": 1.5, "fid": 30.25}, {"kimg": 2.0, "G/loss": 1.0}]
    for record in whole:
        append_history(path, record)
    content = path.read_bytes()
    for length in range(len(content) + 1):
        cut.write_bytes(content[:length])
        left = whole[: content[:length].count(b"\n")]
        assert read_history(cut) == left
        append_history(cut, {"kimg": 9.0})  # the torn end does not spoil what follows
        assert read_history(cut) == [*left, {"kimg": 9.0}]


@pytest.mark.parametrize("torn", ["", '{"kimg": 25.6, "G/lo'])
def test_a_resumed_training_has_the_history_of_an_undisturbed_one(tmp_path, torn):
    undisturbed, resumed = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for record in records(60):
        append_history(undisturbed, record)
    for record in records(40):
        append_history(resumed, record)
    with open(resumed, "a") as file:
        file.write(torn)
    snapshot = 24 * 0.64  # the last snapshot before the kill
    assert rewind_history(resumed, snapshot) == records(25)
    for record in records(60, start=25):
        append_history(resumed, record)
    assert resumed.read_bytes() == undisturbed.read_bytes()


def test_reading_up_to_a_kimg_leaves_the_file_alone(tmp_path):
    path = tmp_path / "history.jsonl"
    for record in records(5):
        append_history(path, record)
    content = path.read_bytes()
    assert read_history(path, until_kimg=2 * 0.64) == records(3)
    assert path.read_bytes() == content
    assert rewind_history(tmp_path / "none.jsonl", 5.0) == []
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("line", ["no json", "[1, 2]", "3", '{"G/loss": 1}', '{"kimg": "many"}', '{"kimg": null}'])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    path = tmp_path / "history.jsonl"
    path.write_text(f'{{"kimg": 1.0}}\n{line}\n{{"kimg": 2.0}}\n')
    with pytest.raises(InputError, match="line 2, is not a record"):
        read_history(path)


def test_a_record_needs_a_kimg(tmp_path):
    for record in ({"G/loss": 1.0}, {"kimg": float("nan")}):
        with pytest.raises(ValueError, match="finite kimg"):
            append_history(tmp_path / "history.jsonl", record)
    assert not (tmp_path / "history.jsonl").exists()
    with pytest.raises(InputError, match="cannot write"):
        append_history(tmp_path / "absent" / "history.jsonl", {"kimg": 1.0})
