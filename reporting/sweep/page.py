"""The page of a sweep: the effect of augmentation at each level, its uncertainty, and the study's results."""

import base64
import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.storage.output import Output
from passersby.errors import InputError
from passersby.metrics.bootstrap import query_interval
from passersby.metrics.sweep_statistics import BETTER, WORSE, Analysis, Trials, analyse
from passersby.options import Json
from reporting.page import flatten, is_toy, rendered
from reporting.sweep.charts import CAVEAT, HEIGHT, WIDTH, Chart, interval_text, label_chart, score_charts
from reporting.sweep.comparison import MEANING as ADDED
from reporting.sweep.comparison import Comparison, comparisons, label_curve

SWEEP, TRIALS = "sweep.json", "trials.parquet"
SCORES = {"mAP": "mAP", "rank1": "Rank-1"}
MEANING = {
    "artificial-people": "artificial people added to the training set",
    "variants-of-real-people": "generated pictures added to each real person",
}
GUARDS = ("leak", "labels")  # their findings in sweep.json
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


def read_sweep(output: Output) -> tuple[SweepRecord, pa.Table]:
    """sweep.json and trials.parquet. Raises InputError where one is missing or damaged."""
    text = output.read(SWEEP)
    if text is None:
        raise InputError(f"--sweep {output.root_address}: no {SWEEP} there, so no sweep of jobs/sweep.py")
    content = output.read(TRIALS)
    if content is None:
        raise InputError(f"--sweep {output.root_address}: no {TRIALS} yet: it comes with the first finished trial")
    try:
        sweep: SweepRecord = json.loads(text)
        trials = pq.read_table(io.BytesIO(content))
    except (ValueError, pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"--sweep {output.root_address}: {SWEEP} or {TRIALS} is damaged ({reason})") from error
    if not isinstance(sweep, dict):
        raise InputError(f"--sweep {output.root_address}: {SWEEP} was not written by jobs/sweep.py")
    return sweep, trials


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
        # The guards' findings name the networks that others were started from, too.
        toy=is_toy({key: value for key, value in cast(Mapping[str, Json], sweep).items() if key not in GUARDS}),
        leak=leak if leak.get("verdict") == "leak" else None,
        unknown=[finding for finding in leak.get("findings", []) if finding.get("verdict") == "unknown"],
        label_leak=labels if labels.get("verdict") == "leak" else None,
        labels=labels if labels.get("findings") else None,
        headline=_headline(trials, sweep),
        compared=comparisons_of(trials, sweep),
        label_chart=_label_chart(trials, sweep),
        choice=_choice(sweep),
        answers=[_answer(arm, analyses["mAP"][arm], MEANING.get(name, "levels")) for arm in arms],
        charts=[score_charts(SCORES[score], score, analyses[score], tables, name) for score in SCORES],
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


def comparisons_of(trials: pa.Table, sweep: SweepRecord) -> list[Comparison]:
    """The answers of a sweep with controls, one for each number of labelled people; none without controls."""
    recipes = (sweep.get("choice") or {}).get("chosen", {})
    controls, extras = sweep.get("controls") or {}, sweep.get("extras") or {}
    return comparisons(trials, controls, extras, _labelled(sweep), recipes)


def _label_chart(trials: pa.Table, sweep: SweepRecord) -> Chart | None:
    """mAP over the number of labelled people, where the sweep has controls with several numbers."""
    curves = label_curve(trials, sweep.get("extras") or {}, _labelled(sweep)) if sweep.get("controls") else {}
    return label_chart({f"{ADDED.get(kind, kind)} added": curve for kind, curve in curves.items()})


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
        difference = interval_text(result.difference, result.difference_low, result.difference_high, "+")
        rows.append({
            "level": result.level, "images": round(means["generated_images_mean"]),
            "steps": round(means["steps_mean"]), "seeds": result.seeds, "rank1": f"{100 * rank1_result.mean:.1f}",
            "mAP": interval_text(result.mean, result.low, result.high), "p": _p_value(result.p_value),
            "verdict": result.verdict, "difference": difference if result.level else "",
            "queries": "" if queries is None else interval_text(queries.difference, queries.low, queries.high, "+"),
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
