"""Runs the steps of a study one after the other, keeps what is done, and stops before the sweep if a card says so."""

import ctypes
import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from datasets.storage.output import Output
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.options import Json, agree, check_known, defaults, differences, stored_values
from pipeline.study.data import DONE
from pipeline.study.steps import EXPORT, SWEEP, Step, Study, StudyOptions, check_levels, steps
from reporting.gan.teaching import Fitness, fitness
from reporting.progress import duration

STUDY = "study.json"
NOT_READY = 3  # exit code where a card stops a study
ROOT = Path(__file__).resolve().parents[2]

Start: TypeAlias = Callable[[Step], int]  # starts a step's job, waits for its end, and returns its exit code
_PRCTL, _PR_SET_PDEATHSIG = getattr(ctypes.CDLL(None), "prctl", None), 1  # of Linux alone, prctl(2)


# ---- The options that a folder freezes.


def read_study(output: Output) -> Mapping[str, Mapping[str, Json]] | None:
    """study.json; None where no study was begun. Raises InputError for a file that is no study."""
    text = output.read(STUDY)
    if text is None:
        return None
    try:
        content = json.loads(text)
        if not isinstance(content["options"], dict) or not isinstance(content["files"], dict):
            raise TypeError("options and files are no objects")
        needed = [field.name for field in dataclasses.fields(StudyOptions) if field.default is dataclasses.MISSING]
        _ = [content["options"][name] for name in needed]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{output.address(STUDY)} is not the record of a study ({error}): choose another --out"
        ) from error
    return content


def agreed(output: Output, options: StudyOptions) -> dict[str, Json]:
    """The options that study.json shall hold. Nothing is written.

    Before the first step has ended nothing can be lost, and any options are taken, so that a user can correct a first
    command. After that only the sweep can grow: by more seeds, and by more levels below the highest, which decides the
    arms. Raises InputError that names every other option which differs.
    """
    content, values = read_study(output), stored_values(options)
    if content is None or not output.list(DONE):
        return values
    stored = dict(content["options"])
    check_known(stored, StudyOptions)
    if _contains(options.seeds, stored["seeds"]):
        stored["seeds"] = values["seeds"]
    if _contains(options.levels, stored["levels"]) and max(options.levels) in _list(stored["levels"]):
        stored["levels"] = values["levels"]
    agree("a study with other options", differences(stored, values, defaults(StudyOptions)))
    return stored


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _contains(numbers: tuple[int, ...], stored: Json) -> bool:
    return all(number in numbers for number in _list(stored))


def continue_study(output: Output, options: StudyOptions, files: Mapping[str, Json]) -> None:
    """Write study.json with the options that are `agreed`, which may raise. files: values that may change."""
    text = json.dumps({"options": agreed(output, options), "files": files}, indent=1) + "\n"
    if output.read(STUDY) != text.encode():
        output.write(STUDY, text.encode())


# ---- What is done.


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a step ended. words: those that it was last started with, without the study's folder, and none where an
    earlier step ran again since; code: its exit code; seconds: of all its starts. sha256: of a result that must stay as
    it is, else None."""

    words: tuple[str, ...]
    code: int
    seconds: float
    sha256: str | None = None


def _plain_words(study: Study, step: Step) -> tuple[str, ...]:
    return tuple(word.replace(str(study.out), "OUT") for word in step.words)


def _recorded(study: Study, name: str) -> Ended | None:
    """The record of a step, whatever it was started with; None without one that can be read."""
    text = Output(str(study.out)).read(f"{DONE}/{name}.json")
    try:
        content = json.loads(text or b"{}")
        return Ended(tuple(content["words"]), int(content["code"]), float(content["seconds"]), content.get("sha256"))
    except (ValueError, KeyError, TypeError):
        return None


def ended(study: Study, step: Step) -> Ended | None:
    """How a step ended that was started with the words that it has now; None for any other step."""
    record = _recorded(study, step.name)
    return record if record is not None and record.words == _plain_words(study, step) else None


def is_done(study: Study, step: Step) -> bool:
    """Whether a step ended well with these words, and its result is still there, and the same where it must be."""
    record, result = ended(study, step), study.out / step.result
    if record is None or record.code != 0 or not result.is_file():
        return False
    return record.sha256 is None or record.sha256 == file_sha256(result)


def _remember(study: Study, step: Step, code: int, seconds: float) -> None:
    result = study.out / step.result
    sha256 = file_sha256(result) if step.kept and result.is_file() else None
    before = _recorded(study, step.name)
    seconds += before.seconds if before is not None else 0.0
    _write(study, step.name, Ended(_plain_words(study, step), code, round(seconds, 1), sha256))
    names = [one.name for one in steps(study)]
    for name in names[names.index(step.name) + 1 :]:  # their input may be new: their jobs look again
        later = _recorded(study, name)
        if later is not None:
            _write(study, name, dataclasses.replace(later, words=()))


def _write(study: Study, name: str, record: Ended) -> None:
    text = json.dumps(dataclasses.asdict(record), indent=1) + "\n"
    Output(str(study.out)).write(f"{DONE}/{name}.json", text.encode())


# ---- The run.


def run_study(
    study: Study, start: Start, changed: Callable[[], None], anyway: bool = False, program: str | None = None
) -> int:
    """Run the steps that are not done. changed: called after every step, for the page.

    Returns 0; the exit code of a step that failed; or NOT_READY where the card says that the generator's people cannot
    teach, unless `anyway` or the sweep is done. Raises InputError where nobody passed the filters.
    """
    count = len(steps(study))
    for number in range(count):
        step = steps(study)[number]  # anew: its words may depend on the results of the steps before
        if step.name in (EXPORT, SWEEP):
            check_levels(study)
        if step.name == SWEEP:
            for line in study.arms()[1]:
                print(f"note: {line}", flush=True)
            verdict = card_verdict(study)
            if verdict is not None and verdict.missed and not anyway and not is_done(study, step):
                print("\n".join(stop_lines(verdict)), file=sys.stderr, flush=True)
                return NOT_READY
        head = f"[{number + 1}/{count}] {step.title}"
        if is_done(study, step):
            print(f"{head}: done", flush=True)
            continue
        print(f"{head}\n{step.command(program)}", flush=True)
        clock = time.monotonic()
        code = start(step)
        if code == 0 and not (study.out / step.result).is_file():
            print(f"error: {step.job} ended without its result {study.out / step.result}", file=sys.stderr)
            code = 1
        _remember(study, step, code, time.monotonic() - clock)
        changed()
        if code:
            print(f"step {step.name} ended with exit code {code}: the same command goes on there", file=sys.stderr)
            return code
        print(f"{head}: {duration(time.monotonic() - clock)}", flush=True)
    return 0


def card_verdict(study: Study) -> Fitness | None:
    """The card's gate in words at the truncation of the run; None without a card."""
    card = study.card()
    return None if card is None else fitness(card)


def stop_lines(verdict: Fitness) -> list[str]:
    """Why a study stops before its sweep, and what would help."""
    return [
        f"the card says: {verdict}",
        f"these people cannot teach yet, by {verdict.missed} lines of the gate: the study stops before the sweep",
        *(f"what would help: {text}" for text in verdict.help),
        "the same command with --anyway goes on to the sweep; other options need another --out",
    ]


def start_process(step: Step) -> int:
    """Run a step's job in a process of its own, which ends with this one, and return its exit code.

    A process of its own has its own Ray and memory, and is started as a user starts it. It joins the cluster of
    RAY_ADDRESS, as it inherits all variables.
    """
    words = [sys.executable, str(ROOT / "jobs" / f"{step.job}.py"), *step.words, *step.free]
    process = subprocess.Popen(words, preexec_fn=_end_with_parent)
    try:
        return _code(process.wait())
    except KeyboardInterrupt:  # the terminal has interrupted the job too: it ends by itself
        process.wait()
        raise
    finally:
        if process.poll() is None:
            process.terminate()


def _code(code: int) -> int:
    return 128 - code if code < 0 else code  # as a shell says it of a process that a signal ended


def _end_with_parent() -> None:
    # A study that is killed must not leave a job that works on: the next start would find its folder in use.
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)
