"""A network's card as text and pictures."""

import copy

import numpy as np
import pytest

from reporting.gan.card import card_markdown, mixes_picture, people_picture
from reporting.palette import FRAME_COLOURS


def share(value: float) -> dict:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "people": 10, "images": 40}


POSE = {"ssim_4095": 0.961, "ssim_255": 0.64, "absolute_difference": 17.25, "edge_distance": 0.15}
GROUP = POSE | {
    "people": 10,
    "filter": share(0.589),
    "filter_minus_base": share(-0.031),
    "nearest_own": share(0.62),
    "nearest_donor": share(0.02),
    "own_before_donor": share(0.93),
}
CARD = {
    "network": {
        "file": "toy.safetensors",
        "sha256": "ab" * 32,
        "parameters": 1_234_567,
        "generator": {"use_radial_filters": False, "height": 64, "width": 32},
        "record": {
            "command": "jobs/train_gan.py --data crowd",
            "kimg": 35.0,
            "configuration": {"batch": 8},
            "trained_on": {"name": "crowd", "identities": {"count": 800, "sha256": "cd" * 32}},
        },
    },
    "settings": {"people": 240, "variants": 16, "height": 128, "width": 64, "threshold": 0.6},
    "command": "benchmarks/network_card.py --out card",
    "commit": "0123abc",
    "hardware": "x86_64 CPU",
    "software": {"torch": "2.14.0", "numpy": "2.4.0"},
    "filter": {
        "all": share(0.5894),
        "base": share(0.563),
        "by_person": {"median": 0.625, "at_least_half": share(0.7), "none": share(0.08)},
        "median_score": 0.66,
    },
    "mixing": {"middle (5-11)": GROUP, "coarse (0-4)": GROUP | {"edge_distance": 0.05}},
    "other_people": POSE | {"edge_distance": 0.2},
    "real": None,
    "fid": None,
}
REAL = {
    "tree": "crowd",
    "people": 240,
    "images": 5000,
    "filter": share(0.93),
    "other_people": POSE | {"edge_distance": 0.4},
    "same_camera": POSE | {"nearest_own": share(0.55), "edge_distance": 0.3},
}


def rows(text: str) -> list[list[str]]:
    """The cells of every line of a table."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]


def test_the_card_names_the_network_its_data_and_its_figures():
    text = card_markdown(CARD)
    assert text.startswith("# toy.safetensors\n")
    cells = {row[0]: row[1] for row in rows(text) if len(row) == 2}
    assert cells["sha256"] == "ab" * 32
    assert cells["architecture"] == "StyleGAN3-T, 64 x 32"
    assert cells["trained_on.identities.count"] == "800"
    assert cells["trained_on.identities.sha256"] == "cd" * 32
    assert cells["kimg"] == "35.0"
    assert cells["all images that pass the pedestrian filter"] == "58.9% (53.9 to 63.9)"
    assert cells["base images"] == "56.3% (51.3 to 61.3)"
    assert cells["median person's images"] == "62.5%"
    assert cells["people with none"] == "8.0% (3.0 to 13.0)"
    assert "configuration" not in text  # the command says it
    assert "240 people x 16 pictures of 128 x 64" in text
    assert "`benchmarks/network_card.py --out card`, code 0123abc, x86_64 CPU, torch 2.14.0, numpy 2.4.0" in text


def test_poses_are_shares_of_what_other_people_are_apart():
    table = [row for row in rows(card_markdown(CARD)) if len(row) > 2]
    head, middle, coarse, others = table
    at = head.index("pose")
    assert [row[at] for row in (middle, coarse, others)] == ["75%", "25%", "100%"]
    assert middle[0] == "middle (5-11) mixed"
    assert middle[head.index("over base")] == "-3.1"
    assert middle[head.index("own by clothes")] == "62.0% (57.0 to 67.0)"
    assert middle[head.index("SSIM 255")] == "0.640"


def test_what_was_not_measured_has_no_row():
    assert "real" not in card_markdown(CARD)
    assert "FID" not in card_markdown(CARD)
    fid = {"value": 41.234, "images": 3840, "reference": "crowd", "reference_images": 4000}
    text = card_markdown(CARD | {"real": REAL, "fid": fid})
    assert "| for comparison: real images of crowd | 93.0% (88.0 to 98.0) |" in text
    assert "| FID of 3,840 images against 4,000 images of held-out people of crowd | 41.23 |" in text
    names = [row[0] for row in rows(text)]
    assert "real: same person, same camera" in names
    assert "real: same person, another camera" not in names
    same = next(row for row in rows(text) if row[0] == "real: same person, same camera")
    assert "75%" in same  # of the distance of real people, not of made ones


def test_every_row_of_a_table_has_as_many_cells():
    text = card_markdown(CARD | {"real": REAL})
    for table in text.split("\n\n"):
        if table.startswith("|"):
            assert len({line.count("|") for line in table.splitlines()}) == 1


@pytest.mark.parametrize(
    "text", ["a | b", "two\n\n# lines", "<script>x</script>", "[click](javascript:x)", "![i](http://x)", "`code`"]
)
def test_text_of_a_network_file_cannot_leave_its_cell(text):
    card = copy.deepcopy(CARD)
    clean = card_markdown(card)
    card["network"]["record"]["trained_on"]["name"] = text
    card["network"]["file"] = text
    hostile = card_markdown(card)
    assert hostile.count("\n") == clean.count("\n")
    for mark in "|<>[]`":
        assert hostile.count(mark) == clean.count(mark)
    card["network"]["record"]["note"] = "x" * 100_000
    assert len(card_markdown(card)) < len(hostile) + 1000


def framed(sheet: np.ndarray) -> int:
    """Pixels of the colour that images below the threshold are framed with."""
    return int((sheet == np.array(FRAME_COLOURS["detector"])).all(-1).sum())


def test_people_below_the_threshold_are_framed_and_all_are_enlarged():
    images = np.random.default_rng(0).integers(0, 100, (20, 128, 64, 3), np.uint8)
    passing = people_picture(images, np.full(20, 0.6), 0.6, "toy")
    assert framed(passing) == 0
    assert passing.shape[1] > 16 * 128  # 16 in a row, twice as wide as they are
    assert passing.shape[0] > 2 * 256
    scores = np.full(20, 0.6)
    one = framed(people_picture(images, np.where(np.arange(20) < 1, 0.59, scores), 0.6, "toy"))
    three = framed(people_picture(images, np.where(np.arange(20) < 3, 0.59, scores), 0.6, "toy"))
    legend = framed(people_picture(images, scores - 1, 0.6, "toy")) - 20 * (three - one) // 2
    assert one - legend == (three - one) // 2 > 3 * 2 * (128 + 256)  # frames of 3 pixels, and the legend's square


def test_mixes_stand_in_a_row_beside_their_person_and_under_their_donor():
    def plain(*colours):
        return np.array(colours, np.uint8)[:, None, None].repeat(128, 1).repeat(64, 2)

    donors = plain((250, 0, 0), (0, 250, 0))
    people = np.stack([plain((0, 0, 250), (250, 0, 250), (0, 250, 250)), plain((9, 9, 9), (99, 9, 9), (9, 99, 9))])
    sheet = mixes_picture(donors, np.ones(2), people, np.ones((2, 3)), 0.6, "toy")

    def place(colour):
        """Top and left of a colour's rectangle, and that it is whole."""
        y, x = np.nonzero((sheet == np.array(colour)).all(-1))
        assert len(y) == 256 * 128
        return y.min(), x.min()

    red, green = place((250, 0, 0)), place((0, 250, 0))
    base, with_red, with_green = (place(colour) for colour in ((0, 0, 250), (250, 0, 250), (0, 250, 250)))
    second = place((9, 9, 9)), place((99, 9, 9)), place((9, 99, 9))
    assert red[0] == green[0] < base[0] == with_red[0] == with_green[0] < second[0][0] == second[1][0]
    assert base[1] == second[0][1] < red[1] == with_red[1] == second[1][1] < green[1] == with_green[1]
