"""Go the whole way from your own data to an answer: do artificial people help to recognise these people?"""

import dataclasses
import functools
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before other projects' folders of our names

from datasets.people.readers import full_path
from datasets.storage.local_copy import local_copy
from datasets.storage.lock import hold
from datasets.storage.output import Output
from jobs import common
from jobs.common import CPU_VARIABLES, connect, run_job
from passersby.bounds import Bound, check_bounds
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.options import Json, defaults

if TYPE_CHECKING:
    from pipeline.study.data import Facts
    from pipeline.study.forecast import Machine
    from pipeline.study.steps import Files, Study, StudyOptions

FROZEN_NAMES = (
    "preset", "labelled_people", "label_draw", "kimg", "people", "variants", "levels", "seeds", "steps",
    "truncation_psi", "thresholds", "export", "fit", "card_people", "set", "generated_recipe",
    "generator_set",
)  # fmt: skip
Recipe = Literal["plain", "changes", "changes-first", "changes-half", "apart", "changes-apart"]
OF_PRESET = ("kimg", "people", "variants", "levels", "seeds", "steps")


@dataclasses.dataclass(frozen=True)
class Config:
    """Go the whole way from your own data to an answer, in steps that are jobs of their own.

    The steps: look at the data and calibrate the filters on them, train a generator and a judge, measure whether the
    generator's people can teach, make, filter and judge people, export them, train re-ID networks with and without
    them, and write one page, OUT/index.html, that tells the story.
    The same command goes on where it stopped. With more --seeds, or more --levels below the highest, it extends the
    sweep and writes the page again. If the people cannot teach, the study stops before the re-ID trainings
    with exit code 3, and says what would help.
    Example: python jobs/study.py --data /data/market1501 --out /data/study --labelled-people 60 --preset gpu
    """

    data: Annotated[Path, tyro.conf.arg(metavar="DIR_OR_TABLE")]
    """Real people: a Market-1501 tree, another re-ID data set, a table, or a folder with a sub-folder for each person.
    Of data without query and gallery, one person in four is set aside for the test."""
    out: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """Folder for the page and for a folder for each step. Every node must see it."""
    labelled_people: Annotated[int | None, Bound(ge=2)] = None
    """Use the identity labels of N training people only, for every network. By default those of everybody.
    What more labels would bring can only be measured where some are left out."""
    preset: Literal["laptop", "gpu", "cluster"] = "laptop"
    """Sizes. laptop: for two CPU cores, at 64x32. gpu: for one GPU or a few, at 128x64. --plan says how long.
    cluster: many GPUs, more people, levels and seeds, and each arm chooses its recipe."""
    network: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """A generator that exists, in place of training one. It is copied into OUT/generator."""
    transfer: Annotated[str | None, tyro.conf.arg(metavar="FILE|none")] = None
    """The network whose weights the generator starts from; none: from random weights. By default none, but with
    --preset laptop the built-in network of pairs, which knows drawn people and how one person looks to many cameras."""
    identity_loss: Literal["auto", "yes", "no"] = "auto"
    """Train the judge first and make it part of the generator's loss: to the judge, the pictures of an artificial
    person shall be as alike as those of a real one. auto: yes with --preset laptop where both are trained."""
    judge: Annotated[str, tyro.conf.arg(metavar="{train,none}|FILE")] = "train"
    """The re-ID network that judges people and finds near-copies. train: one is trained on labelled people.
    none: the card then has no lines of a judge. FILE: a network of your own."""
    label_draw: Annotated[int, Bound(ge=0)] = 0
    """The seed that draws the labelled people."""
    kimg: Annotated[float | None, Bound(gt=0)] = None
    """Thousands of images that the generator is trained on. By default the preset's, like the next five."""
    people: Annotated[int | None, Bound(ge=1)] = None
    """Number of artificial people."""
    variants: Annotated[int | None, Bound(ge=2)] = None
    """Pictures of each artificial person."""
    levels: tuple[int, ...] | None = None
    """Numbers of artificial people that the re-ID trainings get.
    A level above the people who pass the filters becomes the number of these."""
    seeds: tuple[int, ...] | None = None
    """Seeds of the re-ID trainings."""
    steps: Annotated[int | None, Bound(ge=1)] = None
    """Steps of each re-ID training."""
    truncation_psi: tuple[float, ...] = (0.7, 1.0)
    """Truncations that the card measures. The people are made with the one that the card names."""
    thresholds: Literal["calibrated", "usual"] = "calibrated"
    """calibrated: the filters get the thresholds that your pictures propose. usual: those of jobs/generate.py."""
    export: Literal["market1501", "folder", "webdataset", "table", "fiftyone", "huggingface"] = "market1501"
    """How the kept pictures are exported. market1501: for torchreid and fast-reid."""
    fit: Literal["exact", "crop", "pad", "stretch"] = "stretch"
    """What the generator's training does to pictures of another shape, as for jobs/train_gan.py."""
    card_people: Annotated[int, Bound(ge=6)] = 60
    """Number of people whom the card measures."""
    generated_recipe: Recipe | None = None
    """How the re-ID trainings use artificial people where arms do not choose (docs/sweeps.md).
    By default what was best, measured: apart on photographs, changes-apart on drawn people.
    Both take only pictures in which the judge knows the person again."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Options of jobs/train_reid.py for the judge and for all re-ID trainings, such as batch=32 weights=FILE."""
    generator_set: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="KEY=VALUE")] = None
    """Options of jobs/train_gan.py for the generator, such as projected=True intraclass_weight=100.
    These two are the default of preset laptop for photographs. Without any value: none."""
    yolo_weights: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """Path of yolov4-tiny.weights, with its .cfg beside it, for machines without a package registry."""
    inception: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """File of the Inception network for FID, for machines without a package registry."""
    gpus: Annotated[int | None, Bound(ge=1)] = None
    """Number of GPUs of a cluster that grows: the generator gets so many workers. By default those that are there."""
    gpus_per_trial: float | None = None
    """GPUs of each re-ID training of the sweep; a fraction packs several onto one."""
    anyway: bool = False
    """Go on to the re-ID trainings although the card says that the people cannot teach."""
    plan: bool = False
    """Print the steps with expected hours, from speeds that are measured here first, and their commands.
    Nothing is written."""
    hourly_price: Annotated[float | None, Bound(ge=0)] = None
    """With --plan: what the cluster costs in an hour. The plan then has the cost of each step."""


def begun(out: str, arguments: list[str]) -> dict[str, Json | Path]:
    """The options of the study that lies in a folder, for `jobs.common.parse`; empty if there is none."""
    from pipeline.study.run import read_study
    from pipeline.study.steps import StudyOptions

    content = read_study(Output(out))
    if content is None:
        return {}
    stored, files = content["options"], content["files"]
    known, values = defaults(StudyOptions) | dict(stored), dict[str, Json | Path]()
    for name in FROZEN_NAMES:
        value = known[name]
        values[name] = tuple(value) if isinstance(value, list) else value
    network, judge = files.get("network"), stored["judge"]
    values["transfer"] = "none" if known["transfer"] is None else files.get("transfer")
    values["identity_loss"] = "yes" if known["identity_loss"] else "no"
    values |= {"data": Path(str(stored["data"])), "judge": judge if judge in ("train", "none") else files.get("judge")}
    return values | ({"network": f"{out}/generator/{network}", "transfer": None} if network else {})


def main(config: Config) -> int | None:
    """Check, freeze the options, then run what is missing. The exit code is that of a step that failed."""
    from pipeline.study.data import facts_of, prepared
    from pipeline.study.run import agreed, continue_study, run_study, start_process
    from pipeline.study.steps import Study
    from pipeline.study.story import PAGE

    check(config)
    output = Output(config.out)
    if not output.local:
        raise InputError(f"--out {config.out}: trainings write to folders: give one that all nodes see")
    out, found = Path(output.secret_address), machine(config)
    network = checked_networks(config)
    options, files = frozen(config, network), files_of(config, network, found)
    record = {"network": files.network, "judge": files.judge, "transfer": files.transfer}
    agreed(output, options)  # its refusals come before anything is read or written
    program = None if common.PROGRAM is None else "passersby"
    if config.plan:
        with tempfile.TemporaryDirectory(prefix="passersby-") as temporary:
            data, facts = planned_data(config, output, Output(temporary))
        print(*facts.lines(), sep="\n", flush=True)
        plan(config, Study(options, out, data, facts, files), found, network, program)
        return None
    with hold(output):
        data = prepared(config.data, output)
        facts = facts_of(data, options.labelled_people, options.label_draw)
        study = Study(options, out, data, facts, files)
        print(*facts.lines(), sep="\n", flush=True)
        continue_study(output, options, record)
        if network is not None:
            copied(network, study.network(), output)
        command = shlex.join(
            [*(["python", "jobs/study.py"] if program is None else ["passersby", "study"]), *sys.argv[1:]]
        )
        write = functools.partial(write_page, study, output, command, program, config.anyway)
        write()
        code = run_study(study, start_process, write, config.anyway, program)
        write()
    print(f"page: {output.address(PAGE)}")
    return code


def check(config: Config) -> None:
    """Raises InputError for values out of range, and for options that do not go together."""
    check_bounds(config)
    if config.network is not None and config.kimg is not None:
        raise InputError(
            f"--kimg {config.kimg:g} with --network {config.network}: no generator is trained: leave one out"
        )
    if config.network is not None and config.transfer is not None:
        raise InputError(
            f"--transfer {config.transfer} with --network {config.network}: no generator is trained: leave one out"
        )
    if config.identity_loss == "yes" and (config.network is not None or config.judge != "train"):
        raise InputError(
            "--identity-loss yes: it needs a generator and a judge that are trained: leave out --network and --judge"
        )
    if config.hourly_price is not None and not config.plan:
        raise InputError(f"--hourly-price {config.hourly_price:g}: it belongs to --plan")
    if config.judge not in ("train", "none") and not Path(config.judge).is_file():
        raise InputError(f"--judge {config.judge}: there is no such file; give train, none, or a file")
    for name in ("levels", "seeds"):
        numbers = getattr(config, name)
        if numbers is not None and (len(set(numbers)) < len(numbers) or not numbers or min(numbers) < 0):
            shown = " ".join(map(str, numbers))
            raise InputError(f"--{name} {shown}: give one number or more, each once and 0 or more")
    if config.levels is not None and not any(config.levels):
        raise InputError("--levels 0: give a number of artificial people above 0; level 0 is always part of a sweep")
    if config.set:
        from pipeline.study.sizes import SIZES
        from tune.options import arms_of

        labelled = [] if config.labelled_people is None else [f"labelled_people={config.labelled_people}"]
        arms = arms_of(SIZES[config.preset]["reid"], [*labelled, *config.set], (), ("C", "G"))
        for training in arms.values():
            dataclasses.replace(training, data=Path("."), out=Path(".")).check()
    if config.generator_set:
        check_generator_set(config)
    if not config.truncation_psi:
        raise InputError("--truncation-psi: give one number or more")


def check_generator_set(config: Config) -> None:
    """Raises InputError for --generator-set without a training, and for options that the study decides or that fail."""
    from pipeline.study.steps import GENERATOR_SET, generator_training

    settings = config.generator_set or ()
    text = f"{GENERATOR_SET} {' '.join(settings)}"
    if config.network is not None:
        raise InputError(f"{text} with --network {config.network}: no generator is trained: leave one out")
    generator_training(config.preset, settings).check()


def checked_networks(config: Config) -> Path | None:
    """The generator of --network on this machine. Raises InputError for files that are no networks, before hours go."""
    if config.judge not in ("train", "none"):
        from passersby.reid.checkpoint import load_judge

        load_judge(Path(config.judge))
    from passersby.stylegan3.checkpoint import load_config

    if (start := transfer(config)) is not None:
        load_config(start)
    if config.network is None:
        return None
    path = local_copy(config.network, "--network")
    load_config(path)
    return path


def transfer(config: Config) -> Path | None:
    """The network that the generator starts from."""
    from pipeline.study.sizes import SIZES

    if config.network is not None or config.transfer == "none":
        return None
    return SIZES[config.preset]["transfer"] if config.transfer is None else full_path(Path(config.transfer))


def frozen(config: Config, network: Path | None) -> "StudyOptions":
    """The options that decide the results, with the preset's values. Raises InputError for levels without people."""
    from pipeline.study.data import is_drawn
    from pipeline.study.sizes import APART, CHANGES_APART, SIZES
    from pipeline.study.steps import StudyOptions

    size = SIZES[config.preset]
    sizes: dict[str, Any] = {
        name: getattr(config, name) if getattr(config, name) is not None else size[name] for name in OF_PRESET
    }
    if max(sizes["levels"]) > sizes["people"]:
        raise InputError(
            f"--levels {max(sizes['levels'])}: there will be {sizes['people']} artificial people: give more --people, "
            "or lower levels"
        )
    values: dict[str, Any] = {name: getattr(config, name) for name in FROZEN_NAMES} | sizes
    if network is not None:
        values["kimg"] = None
    judge = config.judge if config.judge in ("train", "none") else file_sha256(config.judge, "--judge")
    sha256 = None if network is None else file_sha256(network, "--network")
    drawn = is_drawn(full_path(config.data))
    if config.generated_recipe is None:
        values["generated_recipe"] = CHANGES_APART if drawn else APART
    if config.generator_set is None:
        values["generator_set"] = () if drawn or network is not None else size["of_photographs"]
    start = transfer(config)
    values["transfer"] = None if start is None else file_sha256(start, "--transfer")
    both = network is None and config.judge == "train"
    auto = "yes" if both and size["identity_loss"] else "no"
    values["identity_loss"] = (auto if config.identity_loss == "auto" else config.identity_loss) == "yes"
    return StudyOptions(data=str(full_path(config.data)), network=sha256, judge=judge, **values)


def machine(config: Config) -> "Machine":
    """The CPUs and GPUs of the cluster of RAY_ADDRESS, or of this machine.

    Raises InputError where a preset needs a GPU and none is there.
    """
    from pipeline.study.forecast import Machine
    from pipeline.study.sizes import SIZES

    if os.environ.get("RAY_ADDRESS"):
        from pipeline.cluster import resources

        connect()
        cluster = resources()
        found = Machine(cluster.cpus, cluster.gpus)
    else:
        import torch

        found = Machine(len(os.sched_getaffinity(0)), torch.cuda.device_count())
    found = dataclasses.replace(found, gpus=config.gpus or found.gpus)
    if SIZES[config.preset]["gpu"] and not found.gpus:
        raise InputError(
            f"--preset {config.preset}: no GPU is here: take --preset laptop, or --gpus N on a cluster that grows"
        )
    return found


def files_of(config: Config, network: Path | None, found: "Machine") -> "Files":
    """Files and machines, which may be others at every start."""
    from pipeline.study.steps import Files

    judge = None if config.judge in ("train", "none") else str(full_path(Path(config.judge)))
    start = transfer(config)
    return Files(
        network=None if network is None else network.name,
        judge=judge,
        transfer=None if start is None else str(start),
        yolo_weights=config.yolo_weights,
        inception=config.inception,
        gpus=found.gpus,
        asked_gpus=config.gpus,
        gpus_per_trial=config.gpus_per_trial,
    )


def planned_data(config: Config, output: Output, temporary: Output) -> "tuple[Path, Facts]":
    """The data that the steps will read, and their facts; a table that the study would write lies in `temporary`."""
    from pipeline.study.data import DONE, TABLE, facts_of, prepared

    data = prepared(config.data, output if output.list(DONE) else temporary)
    facts = facts_of(data, config.labelled_people, config.label_draw)
    return Path(output.address(TABLE)) if data == Path(temporary.address(TABLE)) else data, facts


def copied(network: Path, path: Path, output: Output) -> None:
    """Copy the generator into the study's folder: its card lies beside it, and it stays what it is."""
    if not path.is_file():
        output.write(str(path.relative_to(output.secret_address)), network.read_bytes())


def write_page(study: "Study", output: Output, command: str, program: str | None, anyway: bool) -> None:
    """Write the page as far as the study has come. No error of it ends the study."""
    from pipeline.study.run import card_verdict, is_done, stop_lines
    from pipeline.study.steps import SWEEP, steps
    from pipeline.study.story import PAGE, study_page
    from reporting.page import write_for_people

    def drawn() -> bytes:
        verdict = card_verdict(study)
        swept = any(step.name == SWEEP and is_done(study, step) for step in steps(study))
        stopped = stop_lines(verdict) if verdict is not None and verdict.missed and not (anyway or swept) else []
        return study_page(study, command, program, stopped).encode()

    write_for_people(output, PAGE, drawn)


def plan(config: Config, study: "Study", found: "Machine", network: Path | None, program: str | None) -> None:
    """Measure speeds, on a GPU of the cluster if it has one, and print steps, hours and cost."""
    from pipeline.study.forecast import measured, plan_lines

    path = network if network is not None else study.network() if study.network().is_file() else None
    words = (study.generator_config, study.size["reid"], path, config.yolo_weights)
    print("measuring speeds: half a minute of CPU time", file=sys.stderr, flush=True)
    if found.gpus and os.environ.get("RAY_ADDRESS"):
        import ray

        speeds = ray.get(ray.remote(num_gpus=1)(measured).remote(*words))
    else:
        speeds = measured(*words)
    print(*plan_lines(study, speeds, found, config.hourly_price, program), sep="\n")


if __name__ == "__main__":
    if "--plan" in sys.argv:
        from pipeline.ray_training import restart_with

        restart_with(CPU_VARIABLES)  # the jobs have them: what is measured must be as fast
    run_job(main, Config, begun=begun)
