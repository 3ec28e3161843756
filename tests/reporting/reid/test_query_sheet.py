"""Which queries are shown, and that the frames around what was found are right."""

import numpy as np
import pytest

from datasets.reid.feature_files import FeatureSet
from passersby.metrics.ranking import evaluate_ranking
from reporting.palette import RIGHT, WRONG
from reporting.reid.queries import query_sheet, select_queries


def test_best_median_and_worst():
    precision = np.array([0.5, 1.0, np.nan, 0.1, 0.9, 0.3, 1.0, 0.2, 0.6, 0.4])
    matches = np.array([1, 2, 0, 1, 1, 1, 5, 1, 1, 1])
    chosen = select_queries(precision, matches, each=2)
    assert chosen.best.tolist() == [6, 1]  # of two at 1.0 the one with more matches is first
    assert chosen.worst.tolist() == [7, 3]  # the worst is last
    assert chosen.median.tolist() == [8, 0]  # of the others, 0.9, [0.6, 0.5], 0.4, 0.3; 0.5 is the median of all


@pytest.mark.parametrize("count", range(15))
def test_no_query_is_shown_twice_and_few_are_all_shown(count):
    random = np.random.default_rng(count)
    chosen = select_queries(random.integers(1, 4, count) / 3, random.integers(1, 3, count), each=4)
    shown = [*chosen.best, *chosen.median, *chosen.worst]
    assert len(shown) == len(set(shown)) == min(count, 12)


COLOURS = {"q": (255, 0, 255), "right": (0, 255, 255), "wrong": (255, 255, 0), "gone": None}


def test_frames_say_who_is_right_and_people_have_their_names(monkeypatch):
    query = FeatureSet(np.array([[1, 0]], np.float32), np.array([7]), np.array([-1]), ("q",))
    features = np.array([[1, 0.1], [1, 0.2], [1, 0.3]], np.float32)
    gallery = FeatureSet(features, np.array([8, 7, 7]), np.full(3, -1), ("wrong", "right", "gone"))
    ranking = evaluate_ranking(query.features, features, query.identities, gallery.identities, top=4)
    written = []
    from reporting import grid
    from reporting.reid import queries

    original = grid.draw_text
    for module in (grid, queries):
        monkeypatch.setattr(
            module, "draw_text", lambda d, at, text, *rest: written.append(text) or original(d, at, text, *rest)
        )

    def picture(split: str, name: str) -> np.ndarray | None:
        assert split == ("query" if name == "q" else "gallery")
        return None if COLOURS[name] is None else np.full((128, 64, 3), COLOURS[name], np.uint8)

    similarities = np.array([[0.995, 0.98, 0.958, np.nan]], np.float32)
    sheet = query_sheet(ranking, similarities, query, gallery, picture, {7: "Ada"}, "title")
    for name, frame in (("right", RIGHT), ("wrong", WRONG)):
        rows, columns = np.nonzero((sheet == np.array(COLOURS[name], np.uint8)).all(2))
        assert (sheet[rows.min() - 2, columns.min() : columns.max()] == frame).all()
    assert {"person Ada", "2 matches, first at 2", "0.995", "0.980", "0.958"} <= set(written)
    assert "average precision 58.3" in written  # (1/2 + 2/3) / 2
