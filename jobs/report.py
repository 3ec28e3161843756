"""Write one page about a generation run or a sweep: a single HTML file that needs nothing beside itself."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pyarrow as pa
import pyarrow.compute as pc
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before other projects' folders of our names

from datasets.runs.card import MEASURE, teaching_section
from datasets.runs.manifest import read_manifest
from datasets.runs.run import open_run
from datasets.storage.output import Output
from jobs.common import run_job
from passersby.bounds import Bound, check_bounds
from passersby.errors import InputError
from passersby.options import Json

if TYPE_CHECKING:
    from reporting.sweep.page import SweepRecord

SWEEP_REPORT = "sweep_report.html"
TOP = 8  # pictures of the gallery shown for a query


@dataclasses.dataclass(frozen=True)
class Config:
    """Write the page of a run of jobs/generate.py (OUT/report.html) or of jobs/sweep.py (OUT/sweep_report.html).

    The page of a run shows what was rejected, sliders for every threshold with live counts and pictures, and people.
    The page of a sweep shows scores over levels beside the study's, verdicts, and queries that got better and worse.
    The job trains and generates nothing. A page can be written again at any time, and a sweep's while it runs.
    """

    run: Annotated[str | None, tyro.conf.arg(metavar="DIR_OR_URI")] = None
    """The folder or URI that jobs/generate.py wrote."""
    sweep: Annotated[str | None, tyro.conf.arg(metavar="DIR_OR_URI")] = None
    """The folder or URI that jobs/sweep.py wrote."""
    training: tuple[Path, ...] = ()
    """With --run: folders of jobs/train_gan.py. The page then shows the curves and the FID of the generator."""
    network: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """With --run: the generator's file. The page then shows the card that lies beside it now (jobs/score.py --card).
    By default it shows the card that lay there when the run ended."""
    sample: int = 1200
    """With --run: number of pictures in the page's galleries around the thresholds, 0 to 4000.
    Each picture takes about 3 kB."""
    people: tuple[int, ...] = ()
    """With --run: numbers of the people whose pictures the page shows, such as 12 40. At most 100.
    By default 24 people, spread over the run. The page compares any two people of the run, by their scores."""
    queries: Annotated[int, Bound(ge=0)] = 4
    """With --sweep: how many queries that got better, and how many that got worse, the page shows.
    0 computes no features. With a large test set, features take minutes on a CPU."""


def main(config: Config) -> None:
    """Read, draw, write, print the address of the page."""
    if (config.run is None) == (config.sweep is None):
        raise InputError(f"{'both' if config.run else 'neither'} --run and --sweep: give one of them")
    if config.training and config.run is None:
        raise InputError("--training goes with --run: a sweep trains no generator")
    if config.people and config.run is None:
        raise InputError(f"--people {config.people[0]}: it goes with --run, for the page of a run")
    if config.network is not None and config.run is None:
        raise InputError(f"--network {config.network}: it goes with --run, for the card of the run's generator")
    check_bounds(config)
    address = write_run_page(config) if config.run is not None else write_sweep_page(config)
    print(f"report: {address}")


def write_run_page(config: Config) -> str:
    """Write OUT/report.html of a finished run; returns the page's address."""
    from reporting.gan.scores import read_training
    from reporting.page import is_toy
    from reporting.run.page import COLUMNS, run_page
    from reporting.run.results import REPORT, read_summary

    assert config.run is not None  # `main` has made sure of it
    output = Output(config.run)
    run, summary = open_run(output, "--run"), read_summary(output)
    if summary is None or summary.get("plan_hash") != run.hash or summary.get("images") != run.plan.images:
        raise InputError(f"--run {output.root_address} is not finished: run the same jobs/generate.py command again")
    if config.network is not None:
        summary["card"] = card_beside(config.network, summary["network"].get("sha256"))
    toy = is_toy(summary.get("network", {}))
    trainings = [read_training(folder, toy) for folder in config.training]
    manifest = read_manifest(output, columns=COLUMNS)
    page = run_page(run, manifest, summary, sample=config.sample, people=config.people, trainings=trainings)
    output.write(REPORT, page.encode())
    return output.address(REPORT)


def card_beside(network: str, sha256: Json) -> dict[str, Json]:
    """The section "teaching" of the card beside a network. Raises InputError where there is none for this network."""
    section = teaching_section(network, sha256) if isinstance(sha256, str) else None
    if section is None:
        raise InputError(
            f"--network {network}: no card of the run's generator ({str(sha256)[:12]}) beside it says whether "
            f"its people can teach: measure one with {MEASURE}"
        )
    return section


def write_sweep_page(config: Config) -> str:
    """Write OUT/sweep_report.html of a sweep, with its trials so far; returns the page's address."""
    from reporting.sweep.page import read_sweep, sweep_page

    assert config.sweep is not None  # `main` has made sure of it
    output = Output(config.sweep)
    sweep, trials = read_sweep(output)
    pictures, notes = draw_queries(output, sweep, trials, config.queries) if config.queries else (None, [])
    output.write(SWEEP_REPORT, sweep_page(sweep, trials, pictures, notes).encode())
    return output.address(SWEEP_REPORT)


def draw_queries(output: Output, sweep: "SweepRecord", trials: pa.Table, count: int) -> tuple[bytes | None, list[str]]:
    """Queries that got better and worse at the best level of the first arm, as a PNG; or None and a reason."""
    from passersby.metrics.sweep_statistics import analyse
    from pipeline.evaluation import changed_queries_sheet
    from reporting.sweep.page import best_level, compared_arms, query_changes, trials_of

    arm = compared_arms(trials, sweep)[0]
    table = trials.filter(pc.call_function("equal", [trials["arm"], arm]))
    level = best_level(analyse(trials_of(table, "mAP")))
    changed = None if level is None else query_changes(table, level, count)
    if changed is None:
        return None, []
    data = sweep.get("paths", {}).get("data")
    networks: dict[int, str] = {}
    for row in table.select(["level", "seed", "network"]).to_pylist():
        if row["level"] in (0, level):
            networks.setdefault(row["level"], output.address(row["network"]))
    if not output.local or data is None or not Path(data).exists():
        return None, ["No pictures of queries: the test set or the trained networks are not on this machine."]
    return changed_queries_sheet(Path(data), {k: Path(v) for k, v in networks.items()}, table, changed, TOP)


if __name__ == "__main__":
    run_job(main, Config)
