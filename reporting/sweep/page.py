"""The page of a sweep: the effect of augmentation at each level, its uncertainty, and the study's results."""

import base64
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from passersby.errors import InputError
from passersby.metrics.sweep_statistics import BETTER, WORSE, Analysis, Trials, analyse, query_interval
from passersby.options import Json
from reporting.page import flatten, is_toy, rendered
from reporting.sweep.comparison import MEANING as ADDED
from reporting.sweep.comparison import Comparison, comparisons, label_curve

# ---- Charts: lines with bands over levels, and the coordinates in which the page draws them.

WIDTH, HEIGHT = 560, 300  # units of the SVG's coordinates


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a chart.

    points: (level, score, text); band: (level, low, high), may be empty; dots: (level, score) of single trials. Scores
    are points, 0..100. style: the CSS class that gives the colour.
    """

    name: str
    style: str
    points: Sequence[tuple[float, float, str]]
    band: Sequence[tuple[float, float, float]] = ()
    dots: Sequence[tuple[float, float]] = ()


@dataclasses.dataclass(frozen=True)
class Chart:
    """A plot of one or more series. description: the sentence that screen readers read instead of the plot.

    over: the meaning of the horizontal axis, "" for that of the sweep's levels.
    """

    title: str
    description: str
    unit: str
    series: Sequence[Series]
    over: str = ""

    @property
    def _levels(self) -> list[float]:
        return [level for series in self.series for level, *_ in series.points]

    @property
    def _scores(self) -> list[float]:
        scores = [score for series in self.series for _, score, _ in series.points]
        scores += [end for series in self.series for _, *ends in series.band for end in ends]
        return scores + [score for series in self.series for _, score in series.dots]

    @property
    def y_ticks(self) -> list[float]:
        """Round scores from below the lowest score to above the highest score."""
        low, high = min(self._scores), max(self._scores)
        step = _round_step(max(high - low, 0.5) / 5)
        first, last = math.floor(low / step), math.ceil(high / step)
        return [round(k * step, 6) for k in range(first, max(last, first + 1) + 1)]

    @property
    def x_ticks(self) -> list[float]:
        """The levels themselves if they are few, else round levels."""
        levels = sorted(set(self._levels))
        if len(levels) <= 6:
            return levels
        step = _round_step(levels[-1] / 6)
        return [round(k * step, 6) for k in range(int(levels[-1] / step) + 1)]

    def x(self, level: float) -> float:
        """The horizontal coordinate of a level."""
        return round(WIDTH * level / (max(self._levels) or 1), 2)

    def y(self, score: float) -> float:
        """The vertical coordinate of a score."""
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return round(HEIGHT * (high - score) / (high - low), 2)

    def line(self, series: Series) -> str:
        """The points of a series for a polyline."""
        return " ".join(f"{self.x(level)},{self.y(score)}" for level, score, _ in series.points)

    def area(self, series: Series) -> str:
        """The band of a series for a polygon."""
        upper = [(level, high) for level, _, high in series.band]
        lower = [(level, low) for level, low, _ in reversed(series.band)]
        return " ".join(f"{self.x(level)},{self.y(score)}" for level, score in upper + lower)


def _round_step(step: float) -> float:
    power = 10 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step - 1e-12)


# ---- The study's published curves: scores after adding generated people, or generated pictures of real people.
#
# "Generation of Images using Generative Adversarial Networks for Augmentation of Training Data in Re-identification
# Models" (thesis, Universidad Autonoma de Yucatan): Market-1501, ResNet-50, 60 epochs, one training a row, at unequal
# numbers of steps; mAP by the trapezoid formula.

# level -> (Rank-1, mAP), 0..1
_PEOPLE = {
    0: (0.893112, 0.742632), 10: (0.888955, 0.743795), 20: (0.892221, 0.745116), 30: (0.891627, 0.741414),
    40: (0.890143, 0.748799), 50: (0.894299, 0.746853), 60: (0.901128, 0.751229), 70: (0.892815, 0.748843),
    80: (0.892518, 0.748257), 90: (0.899347, 0.758927), 100: (0.898159, 0.755366), 150: (0.898753, 0.761433),
    200: (0.896378, 0.763768), 250: (0.893705, 0.762484), 280: (0.903504, 0.767955), 300: (0.896081, 0.768727),
    320: (0.896675, 0.769509),
}  # fmt: skip
_VARIANTS = {
    0: (0.893112, 0.742632), 5: (0.886876, 0.719692), 10: (0.878860, 0.704901), 15: (0.870546, 0.686172),
    20: (0.865796, 0.674047), 25: (0.861342, 0.663773), 30: (0.850950, 0.654492), 35: (0.845606, 0.635790),
    40: (0.841449, 0.640035), 45: (0.826306, 0.630469), 60: (0.829869, 0.624382), 70: (0.832245, 0.623470),
    85: (0.825713, 0.614014), 105: (0.817399, 0.605653), 135: (0.813539, 0.601084),
}  # fmt: skip
STUDY_CURVES = {"artificial-people": _PEOPLE, "variants-of-real-people": _VARIANTS}
STUDY_SCORES = ("rank1", "mAP")
CAVEAT = (
    "One training a level, on Market-1501, with more steps at higher levels, and by a generator that had seen people "
    "of the test set: its shape can be compared, its numbers cannot."
)


def study_curve(sweep: str, score: str) -> list[tuple[int, float]]:
    """(level, score 0..1) of a sweep, for one of STUDY_SCORES; empty if the study has no such curve."""
    index = STUDY_SCORES.index(score)
    return [(level, values[index]) for level, values in STUDY_CURVES.get(sweep, {}).items()]


# ---- The page: answers, charts, tables and settings of a sweep.

SCORES = {"mAP": "mAP", "rank1": "Rank-1"}
MEANING = {
    "artificial-people": "artificial people added to the training set",
    "variants-of-real-people": "generated pictures added to each real person",
}
GAIN = 0.005  # the gain of mAP for which the page gives the needed number of seeds


@dataclasses.dataclass(frozen=True)
class QueryChanges:
    """The queries whose average precision changed most between level 0 and `level`.

    better, worse: their indices [n] int64 in the query list, the largest change first. before, after: the average
    precisions [Q] at level 0 and at `level`, means over seeds; nan for a query without a match.
    """

    level: int
    better: np.ndarray
    worse: np.ndarray
    before: np.ndarray
    after: np.ndarray


class LeakFinding(TypedDict, total=False):
    """A finding of the leak guard: the object (what), the verdict on it, and the reason."""

    what: str
    verdict: str
    reason: str


class Leak(TypedDict, total=False):
    """The leak guard's verdict and findings, and whether a leak was allowed."""

    verdict: str
    allowed: bool
    findings: list[LeakFinding]


class SweepPaths(TypedDict, total=False):
    """The paths of a sweep's data and runs."""

    data: str
    runs: dict[str, str]


class Choice(TypedDict, total=False):
    """How recipes were chosen: the people set aside, and the mAP 0..1 of each arm with each recipe."""

    people: int
    mAP: dict[str, dict[str, float]]
    chosen: dict[str, str]


class SweepRecord(TypedDict, total=False):
    """The values of sweep.json (tune/sweep.py) that the page reads; any may be missing. trials: the planned number.

    controls: arm -> the arm that it is compared with; extras: arm -> what its levels add.
    """

    configuration: Mapping[str, Json]
    sweep: str
    arms: list[str]
    controls: dict[str, str]
    extras: dict[str, str]
    choice: Choice | None
    trials: int
    equal: str
    one_generator: bool
    leak: Leak | None
    labels: Leak | None
    paths: SweepPaths
    command: str


def sweep_page(
    sweep: SweepRecord,
    trials: pa.Table,
    pictures: bytes | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The page as HTML. sweep: sweep.json; trials: trials.parquet; pictures: a PNG of changed queries; notes: texts
    for the reader. Raises InputError if no trial of level 0 has finished, and as `Trials` does.
    """
    arms = compared_arms(trials, sweep)
    name = str(sweep.get("sweep", trials["sweep"][0].as_py()))
    known = {*arms, *_control_arms(sweep)}
    unfinished = [arm for arm in dict.fromkeys(trials["arm"].to_pylist()) if arm not in known]
    notes = [
        *notes,
        *(f"{arm or 'The sweep'}: level 0 has not finished, so nothing is compared." for arm in unfinished),
    ]
    tables = {arm: trials.filter(pc.call_function("equal", [trials["arm"], arm])) for arm in arms}
    analyses = {score: {arm: analyse(trials_of(tables[arm], score)) for arm in arms} for score in SCORES}
    leak: Leak = sweep.get("leak") or {}
    labels: Leak = sweep.get("labels") or {}
    return rendered(
        "sweep.html.j2",
        title=f"Sweep: {name.replace('-', ' ')}",
        toy=is_toy(cast(Mapping[str, Json], sweep)),
        leak=leak if leak.get("verdict") == "leak" else None,
        unknown=[finding for finding in leak.get("findings", []) if finding.get("verdict") == "unknown"],
        label_leak=labels if labels.get("verdict") == "leak" else None,
        labels=labels if labels.get("findings") else None,
        headline=_headline(trials, sweep),
        compared=_comparisons(trials, sweep),
        label_chart=_label_chart(trials, sweep),
        choice=_choice(sweep),
        answers=[_answer(arm, analyses["mAP"][arm], MEANING.get(name, "levels")) for arm in arms],
        charts=[_charts(score, analyses[score], tables, name) for score in SCORES],
        chart_width=WIDTH,
        chart_height=HEIGHT,
        caveat=CAVEAT,
        meaning=MEANING.get(name, "level of augmentation"),
        arms=[_arm(arm, tables[arm], {score: analyses[score][arm] for score in SCORES}) for arm in arms],
        one_generator=bool(sweep.get("one_generator", True)),
        equal=sweep.get("equal", "steps"),
        gain=GAIN,
        pictures=base64.b64encode(pictures).decode() if pictures else None,
        notes=notes,
        configuration=settings_of(sweep.get("configuration", {})),
        command=sweep.get("command"),
    )


def settings_of(configuration: Mapping[str, Json]) -> list[tuple[str, str]]:
    """A sweep's configuration as (dotted key, text): first the values that all arms share, then those of each arm."""
    content = configuration.get("training")
    content = content if isinstance(content, Mapping) else {}
    trainings = {arm: dict(flatten(training)) for arm, training in content.items() if isinstance(training, Mapping)}
    if not isinstance(configuration.get("training"), Mapping) or len(trainings) < len(content):
        return flatten(configuration)
    pairs = [pair for training in trainings.values() for pair in training.items()]
    shared = {key: text for key, text in pairs if pairs.count((key, text)) == len(trainings)}
    arms = {
        arm: {key: text for key, text in training.items() if key not in shared} for arm, training in trainings.items()
    }
    return flatten(
        dict(configuration) | {"training": shared} | {f"training of {arm}": arms[arm] for arm in arms if arms[arm]}
    )


def trials_of(table: pa.Table, score: str) -> Trials:
    """The trials of one arm as arrays."""
    return Trials(*(table[name].to_numpy() for name in ("level", "seed", score)))


def compared_arms(trials: pa.Table, sweep: SweepRecord) -> list[str]:
    """The arms whose level 0 has finished, in the sweep's order, without controls. Raises InputError without any."""
    pairs = zip(trials["arm"].to_pylist(), trials["level"].to_pylist(), strict=True)
    controls = _control_arms(sweep)
    with_baseline = dict.fromkeys(arm for arm, level in pairs if level == 0 and arm not in controls)
    arms = list(dict.fromkeys([*(arm for arm in sweep.get("arms") or () if arm in with_baseline), *with_baseline]))
    if not arms:
        raise InputError(
            "trials.parquet has no finished trial of level 0 yet, which all others are compared with: wait for one"
        )
    return arms


def _control_arms(sweep: SweepRecord) -> set[str]:
    return set((sweep.get("controls") or {}).values())


def _labelled(sweep: SweepRecord) -> dict[str, int | None]:
    """Arm -> its number of labelled people, None where all are labelled."""
    trainings = sweep.get("configuration", {}).get("training")
    trainings = trainings if isinstance(trainings, Mapping) else {}
    people = {
        arm: training.get("labelled_people") for arm, training in trainings.items() if isinstance(training, Mapping)
    }
    return {arm: count if isinstance(count, int) else None for arm, count in people.items()}


def _comparisons(trials: pa.Table, sweep: SweepRecord) -> list[Comparison]:
    recipes = (sweep.get("choice") or {}).get("chosen", {})
    controls, extras = sweep.get("controls") or {}, sweep.get("extras") or {}
    return comparisons(trials, controls, extras, _labelled(sweep), recipes)


def _label_chart(trials: pa.Table, sweep: SweepRecord) -> Chart | None:
    """mAP over the number of labelled people, where the sweep has controls with several numbers."""
    curves = label_curve(trials, sweep.get("extras") or {}, _labelled(sweep)) if sweep.get("controls") else {}
    series = [
        Series(
            f"{ADDED.get(kind, kind)} added",
            f"series-{number}",
            [(people, 100 * mAP, f"{people:,} labelled people: {100 * mAP:.1f}") for people, mAP in curve],
        )
        for number, (kind, curve) in enumerate(curves.items())
    ]
    description = "; ".join(f"{one.name}: " + ", ".join(text for *_, text in one.points) for one in series)
    return Chart("mAP", description, "%", series, "the number of labelled people") if series else None


def _choice(sweep: SweepRecord) -> dict[str, Any] | None:
    """The table of the recipes that were tried: their names, and for each arm the percentages and the chosen one."""
    choice = sweep.get("choice")
    if not choice:
        return None
    names = list(dict.fromkeys(name for figures in choice.get("mAP", {}).values() for name in figures))
    rows = [
        {
            "arm": arm,
            "figures": [f"{100 * figures[name]:.1f}" if name in figures else "" for name in names],
            "chosen": choice.get("chosen", {}).get(arm, ""),
        }
        for arm, figures in choice.get("mAP", {}).items()
    ]
    return {"people": choice.get("people"), "names": names, "rows": rows}


def best_level(analysis: Analysis) -> int | None:
    """The level above 0 with the highest mean; None if there is only level 0."""
    levels = [result for result in analysis.levels if result.level]
    return max(levels, key=lambda result: result.mean).level if levels else None


def query_changes(table: pa.Table, level: int, each: int) -> QueryChanges | None:
    """The `each` queries of one arm that improved most, and those that worsened most, from level 0 to `level`.

    None if the trials ranked different queries.
    """
    before, after = (_precisions(table, number) for number in (0, level))
    if before is None or after is None or before.shape[1] != after.shape[1]:
        return None
    first, second = before.mean(0), after.mean(0)
    change = np.where(np.isfinite(second - first), second - first, 0.0)
    order = np.argsort(-change, kind="stable")
    better = order[change[order] > 0][:each]
    worse = order[::-1][change[order[::-1]] < 0][:each]
    return QueryChanges(level, better, worse, first, second)


def _precisions(table: pa.Table, level: int) -> np.ndarray | None:
    """Average precisions [S, Q] of a level's trials; None without trials, and if these ranked different queries."""
    rows = table.filter(pc.call_function("equal", [table["level"], level]))
    lists = list(zip(rows["query_identity"].to_pylist(), rows["query_ap"].to_pylist(), strict=True))
    if not lists or any(identity != lists[0][0] for identity, _ in lists) or not lists[0][0]:
        return None
    return np.array([[math.nan if ap is None else ap for ap in precisions] for _, precisions in lists])


def _headline(trials: pa.Table, sweep: SweepRecord) -> list[tuple[str, str]]:
    levels, seeds = (len(trials[name].unique()) for name in ("level", "seed"))
    planned = sweep.get("trials")
    once = trials.group_by("trial").aggregate([("minutes", "max")])  # arms may share a trial of level 0
    of = f" of {planned:,} trials" if planned and planned > once.num_rows else " trials"
    hours = sum(once["minutes_max"].to_pylist()) / 60
    figures = [(f"{once.num_rows:,}", f"finished{of}"), (str(levels), "levels"), (str(seeds), "seeds")]
    return [*figures, (f"{hours:,.1f}", "hours of training")]


def _answer(arm: str, analysis: Analysis, meaning: str) -> dict[str, str]:
    better = [str(result.level) for result in analysis.levels if result.verdict == BETTER]
    worse = [str(result.level) for result in analysis.levels if result.verdict == WORSE]
    if analysis.note:
        text = analysis.note
    elif better and worse:
        text = f"better at {_list(better)}, worse at {_list(worse)}"
    elif better or worse:
        text = f"better at {_list(better)}" if better else f"worse at {_list(worse)}"
    else:
        text = "cannot tell: no level differs from level 0 by more than seeds do"
    verdict = analysis.trend.verdict
    trend = "The trend over all levels cannot be told from chance"
    if verdict in (BETTER, WORSE):
        trend = f"With more, mAP gets {verdict} by {100 * abs(analysis.trend.rise):.1f} points over all levels"
    return {"arm": arm, "text": f"{text[0].upper()}{text[1:]}.", "trend": f"{trend}."}


def _list(words: Sequence[str]) -> str:
    return f"level{'s' * (len(words) > 1)} {', '.join(words)}"


def _charts(
    score: str, analyses: Mapping[str, Analysis], tables: Mapping[str, pa.Table], sweep: str
) -> dict[str, str | Chart | None]:
    title = SCORES[score]
    ours = [
        _series(number, arm, analysis, tables[arm], score) for number, (arm, analysis) in enumerate(analyses.items())
    ]
    description = "; ".join(f"{series.name}: " + ", ".join(text for *_, text in series.points) for series in ours)
    published = study_curve(sweep, score)
    study = None
    if published:
        points = [(level, 100 * value, f"level {level}: {100 * value:.1f}") for level, value in published]
        line = Series("the study", "series-study", points)
        study = Chart(f"{title}, the study's curve", ", ".join(text for *_, text in points), "%", [line])
    return {"title": title, "ours": Chart(f"{title}, this sweep", description, "%", ours), "study": study}


def _series(number: int, arm: str, analysis: Analysis, table: pa.Table, score: str) -> Series:
    results = analysis.levels
    texts = [f"level {result.level}: {_interval(result.mean, result.low, result.high)}" for result in results]
    points = [(result.level, 100 * result.mean, text) for result, text in zip(results, texts, strict=True)]
    band = [(result.level, 100 * result.low, 100 * result.high) for result in results if math.isfinite(result.low)]
    dots = [
        (level, 100 * value) for level, value in zip(table["level"].to_pylist(), table[score].to_pylist(), strict=True)
    ]
    return Series(arm or "this sweep", f"series-{min(number, 5)}", points, band, dots)


def _arm(
    arm: str, table: pa.Table, analyses: Mapping[str, Analysis]
) -> dict[str, str | float | list[dict[str, str | int]] | None]:
    analysis, rank1 = analyses["mAP"], analyses["rank1"]
    steps = table.group_by("level").aggregate([("steps", "mean"), ("generated_images", "mean")]).to_pylist()
    by_level = {row["level"]: row for row in steps}
    rows = []
    for result, rank1_result in zip(analysis.levels, rank1.levels, strict=True):
        queries = None
        if result.level:
            before, after = _precisions(table, 0), _precisions(table, result.level)
            if before is not None and after is not None and before.shape[1] == after.shape[1]:
                identity = table["query_identity"][0].as_py()
                queries = query_interval(before, after, np.array(identity))
        means = by_level[result.level]
        difference = _interval(result.difference, result.difference_low, result.difference_high, "+")
        rows.append({
            "level": result.level, "images": round(means["generated_images_mean"]),
            "steps": round(means["steps_mean"]), "seeds": result.seeds, "rank1": f"{100 * rank1_result.mean:.1f}",
            "mAP": _interval(result.mean, result.low, result.high), "p": _p_value(result.p_value),
            "verdict": result.verdict, "difference": difference if result.level else "",
            "queries": "" if queries is None else _interval(queries.difference, queries.low, queries.high, "+"),
        })  # fmt: skip
    trend, needed = analysis.trend, analysis.seeds_needed(GAIN)
    return {
        "name": arm, "rows": rows, "note": analysis.note, "confidence": analysis.confidence, "needed": needed,
        "deviation": None if math.isnan(analysis.seed_deviation) else f"{100 * analysis.seed_deviation:.2f}",
        "trend": None if math.isnan(trend.p_value) else f"{100 * trend.rise:+.1f}", "trend_verdict": trend.verdict,
        "trend_p": _p_value(trend.p_value),
    }  # fmt: skip


def _p_value(p: float) -> str:
    return "" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def _interval(value: float, low: float, high: float, sign: str = "") -> str:
    """Points of 100, such as "61.2 (60.1 to 62.3)"; without the ends if they are not known."""
    text = f"{100 * value:{sign}.1f}"
    return text if not math.isfinite(low) else f"{text} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"
