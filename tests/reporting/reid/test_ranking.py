"""A ranking in words and curves: figures as they are, undefined ones as such, many cameras as a list."""

import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from passersby.metrics.ranking import evaluate_ranking
from passersby.metrics.verification import BINS, CameraPair, PairCounts, Threshold, Thresholds, same_person_thresholds
from reporting import curves
from reporting.reid.ranking import (
    camera_lines,
    cmc_plot,
    json_values,
    score_table,
    scores_record,
    similarity_plot,
    threshold_lines,
)


def ranking(query_ids: list[int]):
    """Each query's nearest is the person of its own number; a fourth gallery image is of nobody."""
    features = np.eye(4, dtype=np.float32)
    return evaluate_ranking(features[: len(query_ids)], features, np.array(query_ids), np.array([1, 2, 3, 0]))


def test_scores_in_words_and_as_json():
    found = ranking([1, 2, 9])
    lines = score_table({"single query": found, "re-ranked": found})
    assert lines[0].split()[:3] == ["Rank-1", "Rank-5", "Rank-10"]
    assert lines[1].startswith("single query   100.0")
    assert len({len(line) for line in lines[:3]}) == 1  # aligned
    assert lines[3].startswith("of 2 of 3 queries: 1 have no match in the gallery (over all queries: Rank-1 66.7, mAP")
    record = json.loads(json.dumps(scores_record(found), allow_nan=False))
    assert (record["rank1"], record["all_queries"]["rank1"]) == (1.0, pytest.approx(2 / 3))
    assert (record["queries"], record["valid"], len(record["cmc"])) == (3, 2, 50)


def test_nothing_found_is_null_and_a_dash():
    found = ranking([8, 9])
    assert scores_record(found)["mAP"] is None
    assert score_table({"single query": found})[1].split()[2:] == ["-"] * 7
    assert json_values({"a": [math.nan, np.float32(1.5), (np.int64(2), math.inf)], "b": None}) == {
        "a": [None, 1.5, [2, None]],
        "b": None,
    }


def test_thresholds_in_words():
    both = Thresholds(Threshold(0.5, 0.102, 0.1), Threshold(0.75, 0.0099, 0.4))
    lines = threshold_lines(both)
    assert lines[0] == (
        "the same person from similarity 0.500 on: 10.2% false accepts, 10.0% false rejects (equal error)"
    )
    assert lines[1].startswith("the same person from similarity 0.750 on: 1.0% false accepts, 40.0% false rejects")
    assert "rejects" not in threshold_lines(Thresholds(None, Threshold(0.7, 0.01, math.nan)))[0]
    assert threshold_lines(Thresholds(None, None)) == ["no threshold: there are no pairs of different people"]


def test_pairs_of_cameras_are_a_table_or_where_many_the_worst():
    assert camera_lines([]) == []
    lines = camera_lines([CameraPair(1, 2, 9, 0.5, 0.25), CameraPair(2, 1, 9, 1.0, 0.75)])
    assert [line.split() for line in lines[1:]] == [
        ["from", "\\", "to", "camera", "1", "2"],
        ["camera", "1", "-", "50.0/25.0"],
        ["camera", "2", "100.0/75.0", "-"],
    ]
    many = [CameraPair(a, b, 1, 0.5, (a * 20 + b) / 1000) for a in range(15) for b in range(15) if a != b]
    lines = camera_lines(many)
    assert lines[0] == "Rank-1/mAP of the worst of 210 pairs of cameras:"
    assert lines[1] == "  camera 0 to 1: 50.0/0.1"
    assert len(lines) == 11


def drawn(monkeypatch, draw, *arguments):
    """The axes that a plot draws, and that its bytes are a PNG."""
    kept = []
    original = curves.FigureCanvasAgg
    monkeypatch.setattr(curves, "FigureCanvasAgg", lambda figure: kept.append(figure) or original(figure))
    with Image.open(io.BytesIO(draw(*arguments))) as image:
        assert image.format == "PNG"
    return kept[0].axes[0]


def test_cmc_curves_stand_at_their_ranks(monkeypatch):
    shares = np.linspace(0.5, 1, 50)
    axes = drawn(monkeypatch, cmc_plot, {"single query": shares, "re-ranked": shares}, "t")
    ranks, values = axes.lines[0].get_data()
    assert (ranks[0], values[0], ranks[-1], values[-1]) == (1, 50, 50, 100)
    assert [text.get_text() for text in axes.get_legend().get_texts()][1] == "re-ranked: Rank-1 50.0%"
    assert axes.get_ylim()[0] <= 50


@pytest.mark.parametrize("pairs", [30, 900_000])
def test_histograms_hold_every_pair_and_thresholds_their_place(monkeypatch, pairs):
    random = np.random.default_rng(0)
    same, different = np.zeros((2, BINS), np.int64)
    for target, centre in ((same, 17_000), (different, 12_000)):
        np.add.at(target, random.normal(centre, 900, pairs).astype(int).clip(0, BINS - 1), 1)
    counts = PairCounts(same, different)
    thresholds = same_person_thresholds(counts)
    axes = drawn(monkeypatch, similarity_plot, counts, thresholds, "t")
    for patch in axes.patches:
        assert patch.get_data().values.sum() == pytest.approx(100)
    lines = {line.get_xdata()[0] for line in axes.lines}
    assert lines == {thresholds.equal_error.similarity, thresholds.one_percent.similarity}


def test_a_histogram_of_nothing_is_a_picture(monkeypatch):
    nothing = PairCounts(np.zeros(BINS, np.int64), np.zeros(BINS, np.int64))
    axes = drawn(monkeypatch, similarity_plot, nothing, Thresholds(None, None), "t")
    assert not axes.patches
