"""The report page: well-formed, self-contained, escaped, and with the right numbers in it."""

import base64
import re
import time
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

from reporting.grid import encode_png
from reporting.page import flatten, histogram, is_toy, render_report

SHEET = encode_png(np.zeros((4, 4, 3), np.uint8))
VOID = {"meta", "img", "link", "br", "hr", "input"}
THRESHOLDS = {"detector": 0.6, "ssim_floor": 0.75, "ssim_ceiling": None}


class Page(HTMLParser):
    """Collects elements and text; fails at tags that do not match."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def manifest(verdicts=("kept", "kept", "detector", "ssim_floor", "error", "kept")):
    scores = {"kept": 0.9, "detector": 0.2, "ssim_floor": 0.8, "ssim_ceiling": 0.9, "error": None}
    count = len(verdicts)
    return pa.table(
        {
            "person": pa.array([i // 3 for i in range(count)], pa.int64()),
            "variant": pa.array([i % 3 for i in range(count)], pa.int64()),
            "reference_variant": pa.array([0] * count, pa.int64()),
            "detector_score": pa.array([scores[v] for v in verdicts], pa.float32()),
            "ssim": pa.array(
                [None if v == "error" else 0.7 if v == "ssim_floor" else 0.85 for v in verdicts], pa.float32()
            ),
            "verdict": pa.array(list(verdicts), pa.string()),
        }
    )


def render(**changes):
    arguments = {
        "title": "Six pictures",
        "summary": {"thresholds": THRESHOLDS},
        "manifest": manifest(),
        "sheet_png": SHEET,
        "configuration": {"people": 2, "layers": [5, 6], "hash": "abc"},
        "network": {"data": "Market-1501", "kimg": 5000},
    }
    return render_report(**(arguments | changes))


def test_the_page_is_well_formed_and_says_what_happened():
    html = render(
        summary={
            "thresholds": THRESHOLDS,
            "seconds": 95,
            "images_per_second": 4.06,
            "run_images": 6,
            "stage_seconds": {"generate": 3.0, "detect": 1.0},
        },
        check_commands=[("Other thresholds:", "python jobs/refilter.py --out 'a b'")],
    )
    assert html.startswith("<!DOCTYPE html>")
    words = Page(html).words
    for text in (
        "people 2 images made 6 kept, 50.0% 3 images/s 4.1 in all 1 min 35 s",
        "pedestrian filter 1 16.7% 20.0%",
        "discarded in all 3 50.0%",
        "making the images 3.0 s 75.0% 2.0",
        "people 2 layers 5, 6 hash abc",
        "data Market-1501 kimg 5000",
        "python jobs/refilter.py --out 'a b'",
    ):
        assert text in words


def test_the_page_needs_nothing_from_outside():
    page = Page(render())
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "action"):
            assert attributes.get(name, "data:").startswith(("data:", "#"))  # "#": a place in the page itself
    assert not page.all("script")
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv")]
    assert "default-src 'none'" in policy
    (image,) = page.all("img")
    assert base64.b64decode(image["src"].partition("base64,")[2]) == SHEET


def test_the_page_can_be_read_without_seeing_it():
    page = Page(render())
    assert page.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    assert all(header.get("scope") in ("row", "col") for header in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    labels = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {
        attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes
    } <= labels


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        "</title><img src=x onerror=alert(1)>",
        "\"' onload='alert(1)'",
        "</code></pre><b>",
        "{{ 7 * 7 }}",
    ],
)
def test_hostile_texts_stay_texts(hostile):
    html = render(
        title=hostile,
        configuration={hostile: hostile, "nested": {hostile: [hostile]}},
        network={hostile: {"deep": hostile}},
        check_commands=[(hostile, hostile)],
        summary={"thresholds": THRESHOLDS, "stage_seconds": {hostile: 1.0}},
    )
    page, plain = Page(html), Page(render())
    assert page.words.count(" ".join(hostile.split())) >= 9
    assert not page.all("script")
    assert not page.all("b")
    assert len(page.all("img")) == len(plain.all("img"))
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_texts_that_are_no_texts_do_not_break_the_page():
    html = render(title="bell \x07 nul \x00 half \ud800 end")
    assert html.encode("utf-8")
    assert not re.search("[\x00\x07]", html)
    assert Page(html).words.startswith("bell \ufffd nul \ufffd half \ufffd end")


def test_a_network_trained_on_the_toy_crowd_is_called_a_toy():
    notice = "Made from a toy."
    assert notice in render(network={"data": {"toy_crowd_version": 3}})
    assert notice in render(network={"trained on": ["Toy crowd, 200 identities"]})
    assert notice not in render()
    assert "carries no record" in render(network={})
    assert not is_toy({"data": "toys", "number": 7, "nothing": None})


def test_a_network_that_started_from_drawn_people_is_one_of_photographs():
    drawn = {"trained_on": {"name": "crowd", "toy_crowd": {"content_hash": "ab"}}}
    assert is_toy(drawn)
    start = {"file": "toy_crowd.safetensors", "record": drawn}
    configuration = {"transfer": "toy_crowd.safetensors", "data": "market"}
    photographs = {"trained_on": {"name": "market"}, "configuration": configuration, "transferred_from": start}
    assert not is_toy(photographs | {"command": "train_gan.py --transfer toy_crowd.safetensors"})
    assert is_toy(drawn | {"transferred_from": {"record": photographs}})
    assert not is_toy({"configuration": {"data": {"name": "market", "toy_crowd": None}}})


@pytest.mark.parametrize("verdicts", [(), ("error",), ("error", "error", "error"), ("detector",), ("kept",) * 300])
def test_extreme_runs_have_a_page(verdicts):
    Page(render(manifest=manifest(verdicts)))


def test_an_unknown_verdict_is_refused():
    table = manifest()
    verdicts = pa.array(["blurred"] * table.num_rows)
    with pytest.raises(ValueError, match="blurred"):
        render(manifest=table.set_column(table.schema.get_field_index("verdict"), "verdict", verdicts))


def test_people_with_nothing_left_are_named():
    words = Page(render(manifest=manifest(("kept", "kept", "detector", "error", "error", "detector")))).words
    assert "Of 2 people" in words
    assert "1 kept none." in words


def test_the_reference_is_no_part_of_the_similarity_histogram():
    page = Page(render(manifest=manifest(("kept",) * 6)))
    detector, ssim = (svg["aria-label"] for svg in page.all("svg"))
    assert "6 images" in detector
    assert "4 images" in ssim


IDENTITY = {"identity_floor": 0.5, "identity_margin": 0.0, "identity_ceiling": 0.9}
PRIVACY = {
    "real": {"name": "Market-1501 train", "pictures": 12936, "people": 751},
    "near_copies": {
        "count": 3, "scored": 1000, "share": 0.003, "threshold": 0.8125, "chosen": "1% of real pictures are",
        "kept": {"count": 0, "scored": 0, "share": None},
    },
    "doubles": {"count": 7, "pairs": 4950, "share": 7 / 4950, "threshold": 0.75, "chosen": "1% of pairs are"},
}  # fmt: skip


def compared(source: str, count: int = 300, margins: bool = True) -> pa.Table:
    """A manifest of people of three variants, the first of which is the reference; the cosines are known."""
    table = manifest(("kept",) * count)
    first = np.arange(count) % 3 == 0
    cosine = np.where(first & (source == "seed"), 1.0, 0.5 + 0.25 * np.arange(count) / count)
    margin = pa.array(np.where(np.arange(count) % 4 == 0, -0.25, 0.5) if margins else [None] * count, pa.float32())
    return (
        table.append_column("source", pa.array([source] * count))
        .append_column("identity_cosine", pa.array(cosine, pa.float32()))
        .append_column("identity_margin", margin)
    )


@pytest.mark.parametrize(
    ("source", "margins", "names"),
    [
        ("latent", True, ["identity cosine: 300", "identity margin: 300"]),
        ("seed", True, ["identity cosine: 200", "likeness to real pictures: 300", "identity margin: 300"]),
        ("seed", False, ["identity cosine: 200"]),
    ],
)
def test_identities_have_their_histograms_and_figures(source, margins, names):
    table = compared(source, margins=margins)
    page = Page(render(manifest=table, summary={"thresholds": THRESHOLDS | IDENTITY}))
    labels = [svg["aria-label"].removeprefix("Histogram of ") for svg in page.all("svg")][2:]
    assert [label[: len(name)] for label, name in zip(labels, names, strict=True)] == names
    assert ("floor at 0.5" in labels[0], "ceiling at 0.9" in labels[0]) == (True, source == "latent")
    assert ("nearest real person is the right one 75.0% 75.0%" in page.words) == (source == "latent")
    assert "too unlike the person (identity floor) 0 0.0%" in page.words


def test_near_copies_and_doubles_are_named_with_how_their_thresholds_were_chosen():
    page = Page(render(manifest=compared("seed"), privacy=PRIVACY, privacy_png=SHEET))
    for text in (
        "Compared with 12,936 pictures of 751 real people: Market-1501 train.",
        "near-copies of real pictures 3 1,000 pictures 0.3% 0.812 1% of real pictures are",
        "among the kept 0 0 pictures",
        "doubles among artificial people 7 4,950 pairs 0.1% 0.750 1% of pairs are",
        "near-copies of real pictures 0.3%",
    ):
        assert text in page.words
    assert len(page.all("img")) == 2
    test_labels = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a} <= test_labels
    assert all(header.get("scope") in ("row", "col") for header in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    nobody = {"real": None, "near_copies": None, "doubles": PRIVACY["doubles"]}
    words = Page(render(privacy=nobody)).words
    assert "No real pictures were at hand" in words
    assert "near-copies of" not in words
    hostile = PRIVACY | {"real": {"name": "<b>x</b>", "pictures": 1, "people": 1}}
    assert not Page(render(privacy=hostile)).all("b")


def test_a_hundred_thousand_rows_make_a_page_that_is_no_larger():
    small = render(manifest=compared("seed", 300))
    start = time.monotonic()
    large = render(manifest=compared("seed", 99_999))
    assert time.monotonic() - start < 5  # 0.5 s here
    assert len(large) < len(small) + 30_000


def test_histogram_counts_every_score_once_and_stacks_by_verdict():
    rng = np.random.default_rng(0)
    values = rng.random(1000)
    values[:10], values[10], values[11], values[12] = np.nan, 0.0, 1.0, 1.0 + 1e-6
    kept = rng.random(1000) < 0.5
    drawn = histogram(values, kept, [("threshold", 0.6), ("none", None)], low=0.0)
    assert drawn.lines == [("threshold", 0.6)]
    assert (drawn.scored, drawn.missing) == (990, 10)
    assert sum(bar.kept for bar in drawn.bars) == kept[10:].sum()
    assert sum(bar.discarded for bar in drawn.bars) == (~kept[10:]).sum()
    assert max(drawn.height(bar.kept + bar.discarded) for bar in drawn.bars) == 160
    first = drawn.bars[3]
    inside = (values >= first.start) & (values < first.end)
    assert first.kept == (inside & kept).sum()


@pytest.mark.parametrize("values", [[], [0.7312], [-0.9, 0.99], [1.0, 1.0], [np.nan]])
def test_histogram_axis_holds_scores_and_thresholds(values):
    values = np.array(values)
    drawn = histogram(values, np.ones(len(values), bool), [("floor", 0.75), ("ceiling", None)])
    assert drawn.low <= min([0.75, *values[np.isfinite(values)]])
    assert drawn.high == 1.0
    assert 2 <= len(drawn.ticks) <= 7
    assert 0 <= drawn.x(0.75) <= 600


def test_flatten_keeps_order_and_names_nothing_none():
    pairs = flatten({"b": {"x": 1, "a": None}, "a": (), "c": {}})
    assert pairs == [("b.x", "1"), ("b.a", "none"), ("a", "none"), ("c", "{}")]
