"""What happens to units after the last stage: they are counted and timed, and failures are recorded."""

import dataclasses
import functools
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from ray.util.metrics import Counter, Gauge

from actors.shard_writer import STAGES
from datasets.runs.plan import PLAN_FILE
from datasets.runs.run import FAILED_FOLDER, Failure, GenerationRun, Run
from datasets.runs.verdicts import KEPT, VERDICTS
from passersby.errors import InputError
from pipeline.pools import Machines, Stage
from pipeline.run import run_units
from reporting.progress import ProgressLine
from reporting.run.results import RunTimes

SECONDS = "seconds_"  # the writer's columns are seconds_generate, seconds_detect, ...: a stage's name follows
HOPELESS = 32  # so many units failed and none was made: the reason lies outside the units


@dataclasses.dataclass(frozen=True)
class Work:
    """The work that a run has to do: images or latents.

    rows: the pending units, one Ray Data row each. images: number of images in the whole plan. pending_images: number
    of images in the rows. unit_bytes: raw pixels of the largest unit. seconds: names of the last stage's columns
    seconds_*, without this prefix.
    """

    rows: Sequence[dict]
    images: int
    pending_images: int
    unit_bytes: int
    seconds: tuple[str, ...]


class RunMetrics:
    """Counts the work of one run for Prometheus, through Ray's own endpoint; deploy/grafana/passersby.json draws it.

    Only the driver counts, so a unit that was tried twice counts once. An error of Ray's metrics is printed once, and
    nothing is counted from then on: metrics never end a run.

    run: the run's name. It becomes the label `run` of every line (`ascii_label`), so it must hold no credentials.
    planned_units: units of the whole plan. finished_units: units that earlier runs finished. Needs a connected Ray.
    Prometheus reads these lines, with Ray's prefix:

    ray_passersby_images_total{run, verdict}  images of units finished by this driver; verdict is one of VERDICTS
    ray_passersby_seconds_total{run, stage}   seconds that the stages' actors worked on those units, summed
    ray_passersby_units{run, state}           units of the plan: planned, finished (earlier runs too), failed

    Ray passes values on every 10 s (`RAY_metrics_report_interval_ms`) and once more when the driver ends.
    """

    def __init__(self, run: str, planned_units: int, finished_units: int = 0) -> None:
        self._states = {"planned": planned_units, "finished": finished_units, "failed": 0}
        self._working = True
        self._run = ascii_label(run)
        self._attempt(self._begin)

    def _begin(self) -> None:
        self._images = Counter("passersby_images", "Images of finished units, by verdict", ("run", "verdict"))
        self._seconds = Counter("passersby_seconds", "Seconds of work on finished units, by stage", ("run", "stage"))
        self._units = Gauge("passersby_units", "Units of the plan, by state", ("run", "state"))
        for metric in (self._images, self._seconds, self._units):
            metric.set_default_tags({"run": self._run})
        for state, units in self._states.items():
            self._units.set(units, {"state": state})

    def update(self, row: Mapping[str, int | float]) -> None:
        """Count one more finished unit. row: the writer's row; images by each of VERDICTS, seconds by `seconds_*`."""
        images = {verdict: row[verdict] for verdict in VERDICTS}
        seconds = {name.removeprefix(SECONDS): row[name] for name in row if name.startswith(SECONDS)}

        def add() -> None:
            for verdict, number in images.items():
                _add(self._images, number, {"verdict": verdict})
            for stage, duration in seconds.items():
                _add(self._seconds, duration, {"stage": stage})

        self._attempt(add)
        self._count("finished")

    def failed(self, unit: int) -> None:
        """Count the unit `unit` as given up; the next run of the same command tries it again."""
        self._count("failed")

    def _count(self, state: str) -> None:
        self._states[state] += 1
        self._attempt(lambda: self._units.set(self._states[state], {"state": state}))

    def _attempt(self, count: Callable[[], None]) -> None:
        if not self._working:
            return
        try:
            count()
        # Whatever it is: the pictures are worth more than their number in Prometheus.
        except Exception as error:  # noqa: BLE001
            self._working = False
            print(f"note: no more metrics of this run ({type(error).__name__}: {error})", file=sys.stderr)


def ascii_label(text: str) -> str:
    """A label for Ray's metrics, which takes ASCII letters alone: all others are percent-encoded, é as %C3%A9."""
    return "".join(
        letter if letter.isascii() and letter.isprintable() else urllib.parse.quote(letter, errors="surrogateescape")
        for letter in text
    )


def _add(counter: Counter, amount: float, tags: dict[str, str]) -> None:
    if amount > 0:  # Ray refuses to add nothing
        counter.inc(amount, tags)


def committed(rows: Iterable[dict], run: Run, line: ProgressLine, metrics: RunMetrics) -> Iterator[dict]:
    """Count the units that were written, and yield their rows; record the units that failed for good in the run.

    rows: the rows of `run_units`, whose last stage writes shards. Its columns are unit, images, problem, seconds_*, and
    either a number for each of VERDICTS or, where nothing filters images, the number of images with an `error`. The
    rows end early when HOPELESS units failed and none was made. Raises InputError when nothing can be written, or when
    the lease is lost.
    """
    failed_before = run.failed()
    run.forget(failed_before & run.finished())
    for row in rows:
        run.lease.check()
        if "failure" in row:
            run.record(Failure(row["unit"], row["failed_stage"], row["failure"], row["details"]))
            line.fail()
            metrics.failed(row["unit"])
            if line.failed >= HOPELESS and not line.images:
                return
        elif row["problem"]:
            raise InputError(row["problem"])
        else:
            if row["unit"] in failed_before:
                run.forget([row["unit"]])
            line.update(row["images"], row.get(KEPT))
            unfiltered = dict.fromkeys(VERDICTS, 0) | {KEPT: row["images"] - row["error"]}
            metrics.update(unfiltered | row)
            yield row


def failure_advice(run: Run, failed: int, others: str = "") -> str:
    """One line: what happened to the units that failed for good, and what to do. `others`: what can be done without
    the failed units; by default a manifest of the other units, for a job that makes people."""
    number, units = min(run.failed()), "units" if failed > 1 else "unit"
    first = run.failure(number)
    if first is None:
        raise InputError(f"{run.output.root_address}: the record of unit {number}, which failed, is gone")
    others = others or "`python jobs/refilter.py` makes a manifest of the others"
    return (
        f"{failed:,} {units} failed, the first in {first.stage}: {first.reason}. Reasons: "
        f"{run.output.address(FAILED_FOLDER)}. The same command tries them again; {others}"
    )


def make_units(run: GenerationRun, stages: Sequence[Stage], machines: Machines) -> tuple[RunTimes, int]:
    """`make_work` for units of generated people: the last stage is a ShardWriter."""
    people = [unit.people for unit in run.pending]
    work = Work(
        rows=[dataclasses.asdict(unit) for unit in run.pending],
        images=run.plan.images,
        pending_images=sum(people) * run.plan.configuration.variants,
        unit_bytes=max(people) * run.plan.configuration.person_pixel_bytes,
        seconds=STAGES,
    )
    return make_work(run, work, stages, machines)


def make_work(run: Run, work: Work, stages: Sequence[Stage], machines: Machines) -> tuple[RunTimes, int]:
    """Put the pending units through the stages, the last of which writes them.

    Returns the times, and how many units failed. Stages that do not fit on the cluster are refused before anything is
    written. Then the plan is written first. Leftovers of killed writers are removed before and after the work.
    """
    pools = machines.pools(stages, len(work.rows))
    run.output.write(PLAN_FILE, run.plan.to_json())
    run.output.remove_leftovers()
    units = run.plan.unit_count
    finished = units - len(work.rows)
    start, seconds = time.monotonic(), dict.fromkeys(work.seconds, 0.0)
    metrics = RunMetrics(run.output.root_address, units, finished)
    actors = [(stage.actor, stage.arguments) for stage in stages]
    again = functools.partial(machines.pools, stages, fewer=True)
    with ProgressLine(units, work.images, finished, work.images - work.pending_images) as line:
        rows = run_units(work.rows, actors, pools, again, work.unit_bytes)
        for row in committed(rows, run, line, metrics):
            for stage in work.seconds:
                seconds[stage] += row[f"seconds_{stage}"]
    run.output.remove_leftovers()  # of writers that were killed while other writers continued
    return RunTimes(time.monotonic() - start, line.images, seconds), line.failed
