"""Pages in a real Chromium: they load without a complaint, and their sliders count as jobs/refilter.py does."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from datasets.runs.plan import PLAN_FILE, Configuration, Plan
from datasets.runs.run import Run
from datasets.runs.shards import shard_table, write_shard
from datasets.runs.verdicts import VERDICTS, Thresholds
from datasets.storage.output import Output
from jobs import refilter
from jobs.report import Config, main
from reporting.grid import encode_png
from reporting.run.results import RunTimes, publish
from tests.helpers import chromium
from tests.helpers import sweep_tables as sweeps

pytestmark = pytest.mark.skipif(chromium.PROGRAM is None, reason=chromium.MISSING)

PEOPLE, VARIANTS = 20, 12
CONFIGURATION = Configuration(
    seed=0, variants=VARIANTS, method="mix", layers=(5,), amount=None, truncation_psi=0.7, network="n", height=32,
    width=16, format="png", jpeg_quality=None, unit_images=60, detector="d", reference_threshold=0.6,
    ssim_data_range=4095.0,
)  # fmt: skip
HOSTILE = "</script><script>document.title = 'taken'</script>"
# Exactly representable or not: scores stand on both sides of them, and on them as float32.
EDGES = [0.6, 0.75, 0.5, 0.1, 0.9, 0.25]


def scores(rng: np.random.Generator, count: int, spread: tuple[float, float]) -> pa.Array:
    """float32 with nulls, NaN, and many values at the float32 beside a threshold."""
    values = rng.uniform(*spread, count).astype(np.float32)
    edges = np.array(EDGES, np.float32)[rng.integers(len(EDGES), size=count)]
    beside = np.nextafter(edges, np.float32(rng.integers(-1, 2)), dtype=np.float32)
    values = np.where(rng.random(count) < 0.2, edges, np.where(rng.random(count) < 0.1, beside, values))
    values[rng.random(count) < 0.05] = np.nan
    return pa.array(values, pa.float32(), mask=rng.random(count) < 0.1)


@pytest.fixture(scope="module", params=["seed", "latent"])
def run(request, tmp_path_factory):
    """A published run with every kind of score, missing ones and NaN among them."""
    output = Output(str(tmp_path_factory.mktemp("run")))
    plan = Plan(CONFIGURATION).extended(PEOPLE)
    output.write(PLAN_FILE, plan.to_json())
    rng = np.random.default_rng(5)
    picture = encode_png(rng.integers(0, 256, (32, 16, 3), np.uint8))
    for unit in plan.units():
        count = unit.people * VARIANTS
        failed = rng.random(count) < 0.05
        columns = {
            "person": pa.array(np.repeat(unit.first_person + np.arange(unit.people), VARIANTS)),
            "variant": pa.array(np.tile(np.arange(VARIANTS), unit.people)),
            "source": pa.array([request.param] * count),
            "status": pa.array(np.where(failed, "error", "ok")),
            "message": pa.array([HOSTILE] * count),
            "image": pa.array([None if one else picture for one in failed], pa.binary()),
            "detector_score": scores(rng, count, (0, 1)),
            "ssim": scores(rng, count, (0.5, 1)),
            "reference_variant": pa.array(np.repeat(rng.integers(0, 3, unit.people), VARIANTS)),
            "identity_cosine": scores(rng, count, (-0.2, 1)),
            "identity_margin": scores(rng, count, (-0.5, 0.7)),
        }
        write_shard(output, CONFIGURATION.hash, unit.unit, shard_table(unit.unit, pa.table(columns)))
    publish(Run(output, plan), Thresholds(), {"trained_on": HOSTILE}, RunTimes(2.0, plan.images, {"generate": 1.0}))
    main(Config(run=output.root_address))
    return output


@pytest.fixture(scope="module")
def browser():
    started = chromium.Chromium()
    yield started
    started.close()


def opened(browser, output, **how):
    browser.open(Path(output.root_address) / "report.html", **how)
    return browser


def shown(browser) -> dict[str, int]:
    """The live counts; of filters that the page does not list, 0."""
    found = browser.run(
        "Object.fromEntries([...document.querySelectorAll('td[data-count]')].map("
        "(e) => [e.dataset.count, e.textContent]))"
    )
    return {name: int(found.get(name, "0").replace(",", "")) for name in VERDICTS}


def set_threshold(browser, key: str, value: float | None) -> None:
    browser.run(f"""(() => {{
        const control = document.querySelector('[data-control="{key}"]');
        const on = control.querySelector("input[type=checkbox]"), number = control.querySelector("input[type=number]");
        if (on && on.checked !== {str(value is not None).lower()}) on.click();
        if ({str(value is not None).lower()}) {{
            number.value = "{value}";
            number.dispatchEvent(new Event("input", {{ bubbles: true }}));
        }}
    }})()""")


def refiltered(output, **thresholds) -> dict[str, int]:
    """What the job gives: its printed table is of these counts."""
    from datasets.runs.manifest import read_manifest
    from datasets.runs.verdicts import count_verdicts

    with contextlib.redirect_stdout(io.StringIO()):
        refilter.main(refilter.Config(out=output.root_address, **thresholds))
    return count_verdicts(read_manifest(output, "refiltered", ["verdict"])["verdict"])


SETTINGS = [
    {},
    {"detector": 0.9, "ssim_floor": None},
    {"detector": 0.1, "ssim_floor": 0.6, "ssim_ceiling": 0.9},
    {"detector": 0.25, "ssim_floor": None, "ssim_ceiling": 0.75, "identity_floor": 0.1},
    {"detector": 0.0, "ssim_floor": None, "identity_margin": 0.1},
    {"detector": 0.5, "ssim_floor": 0.6, "identity_floor": 0.25, "identity_margin": -0.1, "identity_ceiling": 0.6},
    {"detector": 0.0, "ssim_floor": None, "identity_ceiling": 0.5},
]


def test_sliders_count_as_refilter_does(browser, run):
    opened(browser, run)
    default = {"detector": 0.6, "ssim_floor": 0.75}
    keys = VERDICTS[2:]
    seen = set()
    for setting in SETTINGS:
        chosen = dict.fromkeys(keys) | default | setting
        for key, value in chosen.items():
            set_threshold(browser, key, value)
        browser.press()  # waits for the page to be drawn
        expected = refiltered(run, detector_threshold=chosen.pop("detector"), **chosen)
        assert shown(browser) == expected, setting
        seen |= {name for name, count in expected.items() if count}
        command = browser.run("document.getElementById('command').textContent")
        assert f"--ssim-floor {chosen['ssim_floor']}" in command
    assert seen == set(VERDICTS)  # every filter was tried
    assert browser.errors == []


def typed(browser, selector: str, value: str) -> None:
    browser.run(f"""(() => {{
        const input = document.querySelector('{selector}');
        input.value = "{value}";
        input.dispatchEvent(new Event("input", {{ bubbles: true }}));
    }})()""")
    browser.press()  # waits for the page to be drawn


@pytest.mark.parametrize("run", ["seed"], indirect=True)
def test_people_are_filtered_and_two_stand_side_by_side(browser, run):
    opened(browser, run)
    strips = "[...document.querySelectorAll('[data-strip]')].filter((e) => !e.hidden).map((e) => e.dataset.strip)"
    assert browser.run(strips) == [str(number) for number in range(PEOPLE)]
    typed(browser, "#who", "3, 10-12 99")
    assert browser.run(strips) == ["3", "10", "11", "12"]
    assert browser.run("document.getElementById('who-said').textContent").startswith("4 of 20 people; 4 of them")
    people = "[...document.querySelectorAll('[data-gallery] img')].map((e) => /Person (\\d+)/.exec(e.alt)[1])"
    assert set(browser.run(people)) <= {"3", "10", "11", "12"}
    typed(browser, "#who", "3, everybody")
    assert browser.run("document.getElementById('who-said').textContent") == "numbers and ranges, such as 12, 40-60"
    assert browser.run(strips) == ["3", "10", "11", "12"]
    typed(browser, "#who", "")
    assert len(browser.run(strips)) == PEOPLE

    typed(browser, "[data-person-side=first] input", "7")
    typed(browser, "[data-person-side=second] input", "13")
    set_threshold(browser, "detector", 0.25)
    browser.press()
    from datasets.runs.manifest import read_manifest

    refiltered(run, detector_threshold=0.25)
    rows = read_manifest(run, "refiltered", ["person", "verdict"]).to_pylist()
    for side, person in (("first", 7), ("second", 13)):
        verdicts = [row["verdict"] for row in rows if row["person"] == person]
        section = f"document.querySelector('[data-person-side={side}]')"
        said = browser.run(f"{section}.querySelector('[data-said]').textContent")
        assert said.startswith(f"{verdicts.count('kept')} of {VARIANTS} kept")
        assert "mean pedestrian" in said
        classes = browser.run(f"[...{section}.querySelectorAll('figure')].map((e) => e.className)")
        assert classes == [f"v-{verdict}" for verdict in verdicts]
    typed(browser, "[data-person-side=first] input", "20")
    said = browser.run("document.querySelector('[data-person-side=first] [data-said]').textContent")
    assert said == "the run's people are 0 to 19"
    assert browser.errors == []


@pytest.mark.parametrize("run", ["seed"], indirect=True)
def test_a_slider_moves_by_keyboard_and_everything_follows(browser, run):
    opened(browser, run)
    before = browser.run("document.querySelector('svg[data-score=detector] .marks line').getAttribute('x1')")
    browser.run("document.querySelector('[data-control=detector] input[type=range]').focus()")
    browser.press(*["ArrowRight"] * 10)
    typed = browser.run("document.querySelector('[data-control=detector] input[type=number]').value")
    assert typed == "0.65"
    assert shown(browser) == refiltered(run, detector_threshold=0.65)
    after = browser.run("document.querySelector('svg[data-score=detector] .marks line').getAttribute('x1')")
    assert float(after) > float(before)
    frames = browser.run("document.querySelectorAll('.strips figure:not(.v-kept)').length")
    assert frames == PEOPLE * VARIANTS - shown(browser)["kept"]  # all pictures of so small a run are in the strips
    sides = browser.run("""[...document.querySelector('[data-gallery=detector]').querySelectorAll('[data-side]')].map(
        (side) => [...side.querySelectorAll('figcaption')].map((e) => Number(e.textContent)))""")
    rejected, kept = sides
    assert len(rejected) == len(kept) == 12
    assert max(rejected) <= 0.65 <= min(kept)  # captions have three digits
    assert rejected == sorted(rejected, reverse=True)
    assert kept == sorted(kept)
    browser.run("document.getElementById('reset').click()")
    browser.press("Tab")
    assert shown(browser) == refiltered(run)
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") != "none"


@pytest.mark.parametrize("run", ["seed"], indirect=True)
def test_what_refilter_refuses_is_said_and_not_counted(browser, run):
    opened(browser, run)
    counts = shown(browser)
    for key, value, said in (("detector", 1.5, "--detector-threshold is a number"), ("ssim_ceiling", 0.2, "below the")):
        set_threshold(browser, key, value)
        browser.press()
        assert said in browser.run("document.getElementById('message').textContent")
        assert shown(browser) == counts
        browser.run("document.getElementById('reset').click()")
        browser.press()
    assert browser.run("document.getElementById('message').textContent") == ""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    sweeps.write_sweep(folder, leak=True, toy=HOSTILE)
    main(Config(sweep=str(folder)))
    return folder / "sweep_report.html"


@pytest.mark.parametrize("run", ["seed"], indirect=True)
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_pages_fit_light_and_dark_at_any_width(browser, run, sweep, width, dark):
    for path in (Path(run.root_address) / "report.html", sweep):
        browser.open(path, width=width, dark=dark)
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), path
        assert browser.errors == []
        assert browser.run("document.title") != "taken"
        paper, ink, faint = (
            browser.run("""["backgroundColor", "color"].map((name) => getComputedStyle(document.body)[name])
            .concat(getComputedStyle(document.querySelector(".faint")).color)""")
        )
        assert (luminance(paper) < 0.1) == dark
        assert contrast(ink, paper) > 7
        assert contrast(faint, paper) > 4.5  # WCAG 2.1 AA
        unnamed = browser.run("""[...document.querySelectorAll("input")].filter(
            (e) => !e.ariaLabel && !e.labels.length).length""")
        assert unnamed == 0
        assert browser.run("document.querySelectorAll('main, header, h1').length") == 3


@pytest.mark.parametrize("run", ["seed"], indirect=True)
def test_the_basics_work_without_scripts(browser, run, sweep):
    browser.open(Path(run.root_address) / "report.html", script=False)
    browser("Emulation.setScriptExecutionDisabled", value=False)
    assert shown(browser) == refiltered(run)
    assert browser.run("document.documentElement.dataset.ready") is None
    assert browser.run("document.querySelectorAll('svg rect').length") > 20
    assert browser.run("[...document.querySelectorAll('.needs-script')].every((e) => e.offsetHeight === 0)")


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.1."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(first: str, second: str) -> float:
    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)
