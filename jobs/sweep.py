"""Measure whether augmentation helps: re-ID trainings at many levels of generated pictures, with several seeds."""

import contextlib
import dataclasses
import io
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before other projects' folders of our names

from datasets.storage.lock import hold
from datasets.storage.output import Output
from jobs.common import CPU_VARIABLES, connect, run_job
from passersby.bounds import Bound, check_bounds
from passersby.errors import InputError
from passersby.options import Json
from pipeline.ray_training import restart_with

if TYPE_CHECKING:
    from tune.progress import SweepProgress
    from tune.runner import TrialResources
    from tune.sweep import Sweep
    from tune.table import Row


@dataclasses.dataclass(frozen=True)
class Config:
    """Train and evaluate a re-ID network at every level of generated pictures, with every seed.

    The same command again continues where the sweep stopped. With more --levels or --seeds it extends the sweep.

    Example: python jobs/sweep.py --sweep artificial-people --data MARKET --generated RUN --out OUT --preset strong
    """

    sweep: Literal["artificial-people", "variants-of-real-people"]
    """artificial-people: a level is a number of new people.
    variants-of-real-people: a level is the greatest number of generated pictures of each real person."""
    data: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Real people, with train, query and gallery. Every node must see this path and all others."""
    out: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """Folder for trials.parquet, sweep.json and a folder for each trial. Every node must see it."""
    generated: Annotated[str | None, tyro.conf.arg(metavar="DIR_OR_URI")] = None
    """A run of jobs/generate.py, or a folder with one folder for each person. All seeds draw from it."""
    runs_per_seed: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN")] = ()
    """In place of --generated: one run for each of --seeds.
    Their generators were trained apart from each other."""
    latents: Annotated[tuple[str, ...], tyro.conf.arg(metavar="DIR_OR_URI")] = ()
    """The latents of jobs/invert.py from which the runs were made. They say whom the encoder was trained on."""
    networks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FILE")] = ()
    """Re-ID networks that judged the runs' pictures or trained the encoder of the latents.
    Their records say whose identity labels they know."""
    levels: tuple[int, ...] | None = None
    """The amounts of generated pictures to try. By default the original study's.
    Level 0, without generated pictures, is always part of the sweep."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each seed is another training, and draws other people or pictures.
    Three seeds are the fewest that show the noise between trainings."""
    preset: Literal["strong", "study", "scarce", "strong-small", "study-small", "scarce-small", "tiny"] = "strong"
    """The preset of jobs/train_reid.py that all trials use."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Options of jobs/train_reid.py for all trials, such as batch=32 milestones=30+50.
    Thresholds of the filters are options too: detector_threshold=0.8 identity_margin=0."""
    arms: Annotated[tuple[str, ...], tyro.conf.arg(metavar="'NAME: KEY=VALUE ...'")] = ()
    """Sets of options, each with a name. The sweep runs all levels once with each set.
    For example: "plain: variants_labels=hard" "gated: variants_labels=smooth identity_margin=0".
    extras=real and extras=single let the levels add further real people, or single pictures without a label, in
    place of generated people. extras=none is the control, which the other arms are compared with.
    The names C, G, U and S alone stand for none, generated, real and single: --arms C G U S.
    recipe= sets several options at once: plain, changes, changes-first, changes-half, apart, changes-apart."""
    choose: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RECIPE")] = ()
    """Recipes from which each arm takes its best one. Trainings with one seed at the highest level come first; they
    are tested with people set aside from training. For example: --arms C G U S --choose plain changes."""
    choose_people: Annotated[int, Bound(ge=2)] = 100
    """The number of people that --choose sets aside; those who are labelled last."""
    cross: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE,VALUE")] = ()
    """An option with several values. The sweep runs all levels once with each value.
    For example: variants_labels=hard,smooth detector_threshold=0.6,0.8.
    The sweep runs every combination of these values, and of --arms."""
    steps: int | None = None
    """SGD steps of every training. By default the steps of the preset's epochs at level 0."""
    equal_epochs: bool = False
    """Equal epochs instead of equal steps, as in the study. More pictures then also mean a longer training."""
    gpus_per_trial: float | None = None
    """GPUs of each trial. A fraction packs several trials onto one GPU.
    More than 1 gives the trial as many Ray Train workers. By default 1, or without GPUs 0."""
    cpus_per_trial: Annotated[int | None, Bound(ge=1)] = None
    """CPUs and threads of each trial, or of each of its Ray Train workers.
    By default an equal share of the node's CPUs, at most 8; without GPUs 1."""
    concurrent: Annotated[int | None, Bound(ge=1)] = None
    """Most trials that run at a time. By default as many as fit the cluster."""
    retries: Annotated[int, Bound(ge=0)] = 3
    """How often a trial is started again, from its last checkpoint, after its process or node was lost."""
    allow_leak: bool = False
    """Continue although the networks that made the pictures have seen test people, or know more identity labels.
    The report says so."""
    dry_run: bool = False
    """Print the trials and the resources that they ask for; write nothing."""


def begun(out: str, arguments: list[str]) -> dict[str, Json | Path]:
    """The options of the sweep that lies in a folder, for `jobs.common.parse`; empty if there is no sweep.

    sweep.json holds the last command of the sweep. The options of that command are taken again.
    """
    from tune.sweep import SWEEP_FILE

    text = Output(out).read(SWEEP_FILE)
    if text is None:
        return {}
    try:
        content = json.loads(text)
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            before = tyro.cli(Config, args=shlex.split(content["command"])[1:])
        levels = {name: tuple(map(int, content[name])) for name in ("levels", "seeds")}
    except (ValueError, KeyError, TypeError, SystemExit):  # another version: the job says what is wrong
        return {}
    names = ("sweep", "preset", "set", "arms", "cross", "choose", "choose_people", "steps", "equal_epochs")
    return {**{name: getattr(before, name) for name in names}, **levels}


def main(config: Config) -> int | None:
    """Check everything, choose recipes, run the missing trials, keep the table. Returns 1 when trials failed."""
    from tune.choice import CHOICE, chosen_recipes, plan_choice
    from tune.planning import SweepOptions, plan_sweep

    check_bounds(config)
    output = Output(config.out)
    if not output.local:
        raise InputError(f"--out {config.out}: trainings write to folders: give one that all nodes see")
    names = [field.name for field in dataclasses.fields(SweepOptions)]
    options = SweepOptions(**{name: getattr(config, name) for name in names if hasattr(config, name)})
    sweep = plan_sweep(options)
    if config.choose and config.dry_run:
        count = len(config.choose) * len(sweep.arms)
        print(f"before it, {count} trainings choose a recipe for each arm", flush=True)
    elif config.choose:
        choice = plan_choice(sweep, options, config.choose, config.choose_people, output)
        print(f"recipes are chosen first, with {config.choose_people} people set aside from training", flush=True)
        rows = finished_rows(config, Output(f"{config.out}/{CHOICE}"), choice)
        if rows is None:
            return 1
        recipes, record = chosen_recipes(sweep, choice, rows, config.choose, config.choose_people)
        print("chosen: " + ", ".join(f"{arm}: {recipe}" for arm, recipe in recipes.items()), flush=True)
        sweep = dataclasses.replace(plan_sweep(dataclasses.replace(options, recipes=recipes)), choice=record)
    return 1 if finished_rows(config, output, sweep) is None else None


def finished_rows(config: Config, output: Output, sweep: "Sweep") -> "list[Row] | None":
    """The rows of all trials of a sweep, whose folder is `output`, after those that are missing have run.

    With --dry-run nothing runs, and there are no rows. None where trials failed.
    """
    from tune.sweep import continue_sweep

    sweep = continue_sweep(output, sweep)
    print(describe(config, sweep), flush=True)
    if config.dry_run:
        plan_resources(config, sweep, len(sweep.trials()))
        return []
    with hold(output):
        sweep = continue_sweep(output, sweep)  # another driver may just have ended
        progress = run(config, output, sweep)
    print(f"table: {output.address('trials.parquet')}")
    if progress.failed:
        folder = output.address("trials")
        print(
            f"{len(progress.failed)} of {len(progress.trials)} trials failed, the others are in the table; why is in "
            f"{folder}/*/failed.json. The same command tries them again",
            file=sys.stderr,
        )
        return None
    return list(progress.rows.values())


def describe(config: Config, sweep: "Sweep") -> str:
    """The sweep in lines for people: trials, steps, added levels, findings of the leak guard."""
    trials = len(sweep.trials())
    arms = f" x {len(sweep.arms)} arms" if len(sweep.arms) > 1 else ""
    arms += ", some of which share level 0," if sweep.sharing() else ""
    lines = [f"{sweep.name}: {len(sweep.levels)} levels x {len(sweep.seeds)} seeds{arms} = {trials} trials"]
    lines.append(f"levels {', '.join(map(str, sweep.levels))}; seeds {', '.join(map(str, sweep.seeds))}")
    if config.levels is not None and 0 not in config.levels and not sweep.controls():
        lines.append("note: level 0 was added: all others are compared to it")
    if len(sweep.seeds) < 3:
        lines.append(f"note: {len(sweep.seeds)} seeds say little about noise: give three or more")
    for arm, training in sweep.arms.items():
        length = f"{training.steps:,} steps at every level" if training.steps else f"{training.epochs:g} epochs"
        lines.append(f"{arm or training.preset}: {length}, batches of {training.batch}")
    if len(sweep.runs) == 1:
        lines.append("note: all seeds draw from one run: what is found holds for its generator")
    lines += [f"leak guard: {finding.what}: {finding.verdict}: {finding.reason}" for finding in sweep.findings]
    lines += [f"label guard: {finding.what}: {finding.verdict}: {finding.reason}" for finding in sweep.labels]
    return "\n".join(lines)


def plan_resources(config: Config, sweep: "Sweep", trials: int) -> "TrialResources":
    """The resources of the connected cluster that a trial gets; the function prints them."""
    from pipeline.cluster import resources
    from tune.runner import fit_trials

    connect()
    cluster, workers = resources(), {training.workers for training in sweep.arms.values()}
    if len(workers) > 1:
        raise InputError("--cross workers: all trials of a sweep have as many workers, so that they pack evenly")
    fitted = fit_trials(config.gpus_per_trial, config.cpus_per_trial, workers.pop(), config.concurrent, cluster)
    print(fitted.describe(trials, cluster), flush=True)
    return fitted


def run(config: Config, output: Output, sweep: "Sweep") -> "SweepProgress":
    """Run the trials that have no result yet, as the only driver of this folder."""
    from training.workers import command_line
    from tune.progress import SweepProgress
    from tune.runner import run_trials
    from tune.sweep import SWEEP_FILE
    from tune.table import read_results, write_table
    from tune.trial import run_trial, spec_of

    out, trials = Path(output.secret_address), sweep.trials()
    rows = read_results(out, trials, sweep.hash)
    lengths = {trial.name: (trial, sweep.length(trial)) for trial in trials}
    progress = SweepProgress(output, lengths, rows, sweep.hash, sweep.sharing())
    pending = [trial for trial in trials if trial.name not in rows]
    # What does not fit is refused before anything is written.
    fitted = plan_resources(config, sweep, len(pending)) if pending else None
    output.write(SWEEP_FILE, sweep.to_json(command_line()))
    write_table(output, rows, sweep.sharing())
    if fitted:
        print(f"{len(rows)} of {len(trials)} trials are finished, {len(pending)} to run", flush=True)
        specs = [spec_of(sweep, trial, out, fitted, command_line(), CPU_VARIABLES) for trial in pending]
        run_trials(run_trial, specs, fitted, out / "ray", config.retries, [progress])
        write_table(output, rows, sweep.sharing())  # a disk that was full for a while may have lost it
    print(progress.line(), flush=True)
    return progress


if __name__ == "__main__":
    restart_with(CPU_VARIABLES)  # workers inherit them: training on CPUs is more than twice as fast
    run_job(main, Config, begun=begun)
