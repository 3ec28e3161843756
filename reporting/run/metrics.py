"""A run's numbers for Prometheus, through Ray's own metrics endpoint; deploy/grafana/passersby.json draws them."""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from datasets.runs.verdicts import VERDICTS

SECONDS = "seconds_"  # the writer's columns seconds_generate, seconds_detect, ... : the rest is the stage's name


class RunMetrics:
    """What one run has done. Kept by the driver alone: a unit that was tried twice counts once.

    run: the run's name, the label `run` of every line, so no place for credentials. planned_units: units of
    the whole plan; finished_units: those that earlier runs left. Needs a connected Ray. Prometheus
    reads, with Ray's prefix:

    ray_passersby_images_total{run, verdict}  images of units finished by this driver; verdict is one of VERDICTS
    ray_passersby_seconds_total{run, stage}   seconds that the stages' actors worked on those units, summed
    ray_passersby_units{run, state}           units of the plan: planned, finished (earlier runs too), failed

    Ray passes values on every 10 s (`RAY_metrics_report_interval_ms`) and once more when the driver ends.
    """

    def __init__(self, run: str, planned_units: int, finished_units: int = 0) -> None:
        self._images = Counter("passersby_images", "Images of finished units, by verdict", ("run", "verdict"))
        self._seconds = Counter("passersby_seconds", "Seconds of work on finished units, by stage", ("run", "stage"))
        self._units = Gauge("passersby_units", "Units of the plan, by state", ("run", "state"))
        for metric in (self._images, self._seconds, self._units):
            metric.set_default_tags({"run": run})
        self._states = {"planned": planned_units, "finished": finished_units, "failed": 0}
        for state, units in self._states.items():
            self._units.set(units, {"state": state})

    def update(self, row: Mapping[str, int | float]) -> None:
        """One more unit is finished. row: the writer's; images by each of VERDICTS, seconds by `seconds_*`."""
        for verdict in VERDICTS:
            _add(self._images, row[verdict], {"verdict": verdict})
        for name, seconds in row.items():
            if name.startswith(SECONDS):
                _add(self._seconds, seconds, {"stage": name.removeprefix(SECONDS)})
        self._count("finished")

    def failed(self, unit: int) -> None:
        """The unit `unit` was given up; the next run of the same command tries it again."""
        self._count("failed")

    def _count(self, state: str) -> None:
        self._states[state] += 1
        self._units.set(self._states[state], {"state": state})


def _add(counter: Counter, amount: float, tags: dict[str, str]) -> None:
    if amount > 0:  # Ray refuses to add nothing
        counter.inc(amount, tags)
