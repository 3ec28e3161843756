"""The steps of a study: each is a job with its words, in a folder of its own. Nothing here needs Ray."""

import dataclasses
import functools
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets.exports.record import RECORD
from datasets.runs.card import card_name, teaching_section
from datasets.runs.verdicts import FILTERS, KEPT
from datasets.storage.output import Output
from passersby.errors import InputError
from passersby.files import file_sha256, manifest_name, read_manifest
from passersby.options import Json
from pipeline.study.data import Facts
from pipeline.study.sizes import APART, CHANGES_APART, CHOICES, CHOOSE_PEOPLE, DRAWN, FIRST, PHOTOGRAPHS, SIZES, Size
from pipeline.training_settings import all_parsed, command_words, keys_of, with_settings
from training.checkpoints import newest
from training.gan.config import MINIBATCH_GROUP, GanTraining
from training.gan.presets import preset
from training.gan.start import BEST, NETWORK

# Folders of the steps, and files of them that later steps read.
LOOK, GENERATOR, JUDGE, CARD, PEOPLE, EXPORT, SWEEP, ANSWER = (
    "look", "generator", "judge", "card", "people", "export", "sweep", "answer",
)  # fmt: skip
TRAINED, WITHOUT = "train", "none"  # values of --judge beside a file
USUAL, CALIBRATED = "usual", "calibrated"  # values of --thresholds
CALIBRATION, SWEEP_REPORT = "calibration.json", "sweep_report.html"
LOADER_PEOPLE, LOADER_CAMERAS = 1501, 6  # more are refused by torchreid and fast-reid
GENERATOR_SET = "--generator-set"
# The options of the generator's training that the study itself decides -> the option of the study that decides each.
DECIDED = {
    "data": "--data", "out": "--out", "preset": "--preset", "pairs": "no option: people need it", "kimg": "--kimg",
    "labelled_people": "--labelled-people", "label_draw": "--label-draw", "fit": "--fit", "transfer": "--transfer",
    "identity_network": "--identity-loss", "workers": "--gpus", "gpus": "--gpus", "inception": "--inception",
    "max_minutes": "no option: it runs to its end", "enlarge": "no option: small pictures are always enlarged",
}  # fmt: skip
MULTIPLE = 2 * MINIBATCH_GROUP  # images of a worker of a training by identity pairs


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """What a study freezes when it begins. network, judge, transfer: sha256 of files, or for the judge "train" or
    "none"; transfer is None where a generator starts from random weights; identity_loss: whether the generator learns
    from the judge, which is then trained before it; generated_recipe: the recipe of arm G where arms do not choose;
    generator_set: further options of the generator's training, "key=value"."""

    data: str
    preset: str
    labelled_people: int | None
    network: str | None
    judge: str
    kimg: float | None
    people: int
    variants: int
    levels: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: int
    truncation_psi: tuple[float, ...]
    thresholds: str
    export: str
    label_draw: int = 0
    fit: str = "stretch"
    card_people: int = 60
    set: tuple[str, ...] = ()
    transfer: str | None = None
    identity_loss: bool = False
    generated_recipe: str = FIRST
    generator_set: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Files:
    """Files and machines, which may be others at every start. network: the name of the copy in the study's
    folder. gpus: those that are there; asked_gpus: those that the autoscaler is asked for."""

    network: str | None = None
    judge: str | None = None
    transfer: str | None = None
    yolo_weights: str | None = None
    inception: str | None = None
    gpus: int = 0
    asked_gpus: int | None = None
    gpus_per_trial: float | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """A study in a folder: the options that it froze, and the data that its steps read."""

    options: StudyOptions
    out: Path
    data: Path
    facts: Facts
    files: Files = dataclasses.field(default_factory=Files)

    @property
    def size(self) -> Size:
        """The values of the preset."""
        return SIZES[self.options.preset]

    @property
    def judge(self) -> Path | None:
        """The re-ID network that judges; None where the study has no judge."""
        if self.options.judge == TRAINED:
            return self.out / JUDGE / NETWORK
        return None if self.options.judge == WITHOUT else Path(self.files.judge or "")

    @property
    def judge_people(self) -> int:
        """Whose labels the judge learns: the labelled people, but at most half, as it judges on people it never saw."""
        half = max(2, self.facts.people // 2)
        return min(half, self.options.labelled_people or half)

    @property
    def generator_config(self) -> GanTraining:
        """The generator's training, as far as preset and generator_set decide it."""
        training = generator_training(self.options.preset, self.options.generator_set)
        return dataclasses.replace(training, data=self.data, out=self.out / GENERATOR)

    def network(self) -> Path:
        """The generator's file: the copy of --network, or the best or last snapshot of the training.

        Before the training ends, the snapshot that will be the last one.
        """
        folder = self.out / GENERATOR
        if self.options.network is not None:
            return folder / (self.files.network or "")
        if (folder / BEST).is_file():
            return folder / BEST
        last = newest(folder, f"snapshots/[0-9]*/{NETWORK}")
        if last is None:
            batch = self.generator_config.batch
            images = -(-(self.options.kimg or 0) * 1000 // batch) * batch
            last = folder / "snapshots" / f"{round(images):09d}"
        return last / NETWORK

    def card(self) -> Mapping[str, Json] | None:
        """The section "teaching" of the card of the study's network; None before it is measured."""
        path = self.network()
        if not path.is_file():
            return None
        state = path.stat()
        return teaching_section(path, _sha256(path, state.st_mtime_ns, state.st_size))

    def truncation(self) -> str:
        """The truncation that the card names; before the card the first of the study's."""
        named = (self.card() or {}).get("psi")
        return str(named) if isinstance(named, str | float) else f"{self.options.truncation_psi[0]:g}"

    def calibration(self) -> Mapping[str, Json]:
        """The record of the calibration; empty before it is measured."""
        text = Output(str(self.out / LOOK)).read(CALIBRATION)
        try:
            content = json.loads(text or b"{}")
        except ValueError:
            return {}
        return content if isinstance(content, Mapping) else {}

    def thresholds(self) -> list[str]:
        """The thresholds of the filters as words: those that the calibration proposes, or the usual ones."""
        commands = self.calibration().get("commands")
        if self.options.thresholds == USUAL or not isinstance(commands, list):
            return []
        words = shlex.split(str(commands[0])) if commands else []
        return words[words.index("--detector-threshold") :] if "--detector-threshold" in words else []

    def kept(self) -> tuple[int, int] | None:
        """The people of the run who have kept pictures, and the number of these pictures; None before the run ends."""
        if not (self.out / PEOPLE / manifest_name()).is_file():
            return None
        table = read_manifest(self.out / PEOPLE, columns=["person", "verdict"])
        people = [
            person
            for person, verdict in zip(table["person"].to_pylist(), table["verdict"].to_pylist(), strict=True)
            if verdict == KEPT
        ]
        return len(set(people)), len(people)

    def levels(self) -> tuple[int, ...]:
        """The levels of the sweep, none above the number of people who passed the filters."""
        kept = self.kept()
        levels = self.options.levels
        if kept is None:
            return levels
        return tuple(sorted({min(level, kept[0]) for level in levels if level})) if kept[0] else levels

    def arms(self) -> tuple[list[str], list[str]]:
        """The arms that the data allow, and why others are left out."""
        most, labelled, reasons = max(self.levels()), self.options.labelled_people, []
        arms = ["C", "G"]
        people, pictures = self.kept() or (self.options.people, self.options.people * self.options.variants)
        wanted = round(pictures / max(people, 1) * most)
        if labelled is None:
            return arms, ["without --labelled-people everybody is labelled: no arms U and S, whose people are others"]
        others = self.facts.people - labelled
        if others >= most:
            arms.append("U")
        else:
            reasons.append(f"no arm U: {others:,} people are not labelled, and level {most:,} would add {most:,}")
        if self.facts.unlabelled >= wanted:
            arms.append("S")
        else:
            reasons.append(f"no arm S: {self.facts.unlabelled:,} pictures are not labelled, not {wanted:,}")
        return arms, reasons

    def workers(self) -> int:
        """Workers of the generator's training: one for each GPU, as far as its batch can be divided."""
        batch = self.generator_config.batch
        fitting = [count for count in range(1, self.files.gpus + 1) if batch % (count * MULTIPLE) == 0]
        return max(fitting, default=0)


@functools.lru_cache(maxsize=4)
def generator_training(name: str, generator_set: tuple[str, ...]) -> GanTraining:
    """The generator's training of a preset with options "key=value", still without data and out.

    Raises InputError for an unknown key, for one that the study decides, and for a value that is none of its option.
    """
    settings = all_parsed(GENERATOR_SET, generator_set)
    for key, value in settings.items():
        if key in DECIDED:
            raise InputError(f"{GENERATOR_SET} {key}={value}: a study decides it itself, by {DECIDED[key]}")
        if key not in keys_of(GanTraining):
            raise InputError(f"{GENERATOR_SET} {key}={value}: {key} is no option of jobs/train_gan.py: see its --help")
    settings = SIZES[name]["generator"] | settings
    start = preset(settings.pop("preset"), Path("."), Path("."))
    return with_settings(start, settings, GENERATOR_SET)


@functools.lru_cache(maxsize=4)
def _sha256(path: Path, changed: int, size: int) -> str:
    # Every step asks, and networks have hundreds of MB.
    return file_sha256(path)


@dataclasses.dataclass(frozen=True)
class Step:
    """A job with its words. result: the file below the study's folder that is there when the step has ended.
    free: further words, about files and machines, which may be others at another start. kept: whether the result must
    stay as it is: later steps depend on it, and a user can write it anew by hand."""

    name: str
    job: str
    title: str
    words: tuple[str, ...]
    result: str
    free: tuple[str, ...] = ()
    kept: bool = False

    def command(self, program: str | None = None) -> str:
        """The command that runs this step alone; program: what starts jobs in place of Python."""
        start = ["python", f"jobs/{self.job}.py"] if program is None else [program, self.job.replace("_", "-")]
        return shlex.join([*start, *self.words, *self.free])


def steps(study: Study) -> list[Step]:
    """The steps in their order. Words that depend on the results of earlier steps have the values expected so far."""
    trained = [_generator(study)] if study.options.network is None else []
    if study.options.judge == TRAINED:
        trained.insert(0 if study.options.identity_loss else len(trained), _judge(study))
    return [_look(study), *trained, _card(study), _people(study), _export(study), _sweep(study), _answer(study)]


def _detector(study: Study) -> list[str]:
    return ["--yolo-weights", study.files.yolo_weights] if study.files.yolo_weights else []


def _inception(study: Study) -> list[str]:
    return ["--inception", study.files.inception] if study.files.inception else []


def _labels(study: Study, people: int | None) -> list[str]:
    return [] if people is None else ["--labelled-people", str(people), "--label-draw", str(study.options.label_draw)]


def _step(name: str, job: str, title: str, words: list[str], result: str, free: Sequence[str] = ()) -> Step:
    return Step(name, job, title, tuple(words), result, tuple(free))


def _look(study: Study) -> Step:
    words = ["--data", str(study.data), "--out", str(study.out / LOOK), *study.size["look"]]
    return _step(LOOK, "calibrate", "Look at the data", words, f"{LOOK}/{CALIBRATION}", _detector(study))


def _generator(study: Study) -> Step:
    workers, options = study.workers(), study.options
    words = [*command_words(study.size["generator"]), "--data", str(study.data), "--out", str(study.out / GENERATOR)]
    words += [
        "--kimg",
        f"{options.kimg:g}",
        *_labels(study, options.labelled_people),
        "--fit",
        options.fit,
        "--enlarge",
    ]
    words += ["--identity-network", str(study.judge)] if options.identity_loss else []
    words += command_words(all_parsed(GENERATOR_SET, options.generator_set))
    free = ["--transfer", str(study.files.transfer)] if options.transfer is not None else []
    free += [*(["--workers", str(workers)] if workers else []), *_inception(study)]
    result = str(study.network().relative_to(study.out))
    return _step(GENERATOR, "train_gan", "Train the generator", words, result, free)


def _judge(study: Study) -> Step:
    words = ["--preset", study.size["reid"], "--data", str(study.data), "--out", str(study.out / JUDGE)]
    words += [*_labels(study, study.judge_people), "--steps", str(study.options.steps)]
    of_sweep = ("recipe", "extras", "filters", *FILTERS)  # of a sweep alone, or of generated pictures
    words += command_words(all_parsed("--set", study.options.set), of_sweep)
    return _step(JUDGE, "train_reid", "Train the judge", words, f"{JUDGE}/{NETWORK}")


def _card(study: Study) -> Step:
    network = study.network()
    psis = [f"{psi:g}" for psi in study.options.truncation_psi]
    words = ["--card", "--network", str(network), "--truncation-psi", *psis, *study.size["card"]]
    words += ["--people", str(study.options.card_people)]
    if study.facts.many > 1:
        words += ["--reference", str(study.data)]
    if study.judge is not None:
        words += ["--identity", str(study.judge)]
    result = network.relative_to(study.out).with_name(card_name(network))
    step = _step(CARD, "score", "Can its people teach?", words, str(result), [*_detector(study), *_inception(study)])
    return dataclasses.replace(step, kept=True)


def _people(study: Study) -> Step:
    options = study.options
    words = ["--network", str(study.network()), "--people", str(options.people), "--variants", str(options.variants)]
    words += ["--truncation-psi", study.truncation(), *study.thresholds()]
    if study.judge is not None:
        words += ["--identity", str(study.judge), "--real", str(study.data)]
    words += ["--out", str(study.out / PEOPLE)]
    asked = study.files.asked_gpus
    free = [*_detector(study), *(["--gpus", str(asked)] if asked else [])]
    return _step(PEOPLE, "generate", "Make, filter and judge people", words, f"{PEOPLE}/summary.json", free)


def _export(study: Study) -> Step:
    kind = study.options.export
    words = ["--run", str(study.out / PEOPLE), "--out", str(study.out / EXPORT / kind), "--format", kind]
    if kind == "market1501":
        kept = (study.kept() or (study.options.people, 0))[0]
        words += ["--compact-ids", "--cameras", str(min(LOADER_CAMERAS, study.options.variants))]
        words += ["--people", str(LOADER_PEOPLE)] if kept > LOADER_PEOPLE else []
    return _step(EXPORT, "export", "Export the kept pictures", words, f"{EXPORT}/{kind}/{RECORD}")


def _sweep(study: Study) -> Step:
    options, files = study.options, study.files
    arms, _ = study.arms()
    labelled, levels = options.labelled_people, study.levels()
    settings = [] if labelled is None else [f"labelled_people={labelled}"]
    settings += [f"label_draw={options.label_draw}"] if options.label_draw else []
    rest = 0 if labelled is None else study.facts.people - labelled - CHOOSE_PEOPLE
    choose = study.size["choose"] and rest >= max(levels)
    if not choose and not any(setting.startswith("recipe=") for setting in options.set):
        ready = DRAWN if study.facts.drawn else PHOTOGRAPHS
        arms = [ready[arm].format(recipe=options.generated_recipe) for arm in arms]
        arms = [f"{arm}{_floor(study)}" if arm.startswith("G:") else arm for arm in arms]
    words = ["--data", str(study.data), "--preset", study.size["reid"], "--sweep", "artificial-people"]
    words += ["--generated", str(study.out / PEOPLE), "--steps", str(options.steps)]
    settings += options.set
    words += ["--set", *settings] if settings else []
    words += ["--arms", *arms, *(["--choose", *CHOICES] if choose else []), "--levels", *map(str, levels)]
    words += ["--seeds", *map(str, options.seeds)]
    words += ["--networks", str(study.judge)] if study.judge is not None else []
    words += ["--out", str(study.out / SWEEP)]
    free = [] if files.gpus_per_trial is None else ["--gpus-per-trial", f"{files.gpus_per_trial:g}"]
    return _step(SWEEP, "sweep", "Measure whether they help", words, f"{SWEEP}/trials.parquet", free)


def _floor(study: Study) -> str:
    """A threshold for arm G: pictures at least as like their person as the judge asks of pictures of one person.

    The user's own thresholds hold in its place.
    """
    keys = {setting.partition("=")[0].strip().lstrip("-").replace("-", "_") for setting in study.options.set}
    if keys & {"identity_floor", "filters"}:
        return ""
    judge = (study.card() or {}).get("judge")
    threshold = judge.get("threshold") if isinstance(judge, Mapping) else None
    if (
        study.options.generated_recipe not in (APART, CHANGES_APART)
        or study.judge is None
        or not isinstance(threshold, int | float)
    ):
        return ""
    return f" identity_floor={threshold:.3f}"


def _answer(study: Study) -> Step:
    words = ["--sweep", str(study.out / SWEEP)]
    return _step(ANSWER, "report", "The answer", words, f"{SWEEP}/{SWEEP_REPORT}")


def check_levels(study: Study) -> None:
    """Raise InputError where nobody of the run passed the filters: there is nothing to export and to train on."""
    kept = study.kept()
    if kept is not None and not kept[0]:
        raise InputError(
            f"{study.out / PEOPLE}: no picture passed the filters: train the generator longer, or lower the thresholds "
            "(--thresholds)"
        )
