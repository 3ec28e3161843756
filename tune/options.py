"""Training options of a sweep: a preset, what --set changes in all trials, and the arms that --cross makes."""

import contextlib
import dataclasses
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import tyro

from models.errors import InputError
from training.option_checks import flag
from training.reid_config import ReidTraining
from training.reid_presets import PRESETS, preset

# What the sweep itself decides, with the option that says it.
DECIDED = {
    "data": "--data", "out": "--out", "people": "--generated", "variants": "--generated", "most_people": "--levels",
    "most_variants": "--levels", "draw_seed": "--seeds", "seed": "--seeds", "steps": "--steps",
    "gpus": "--gpus-per-trial", "threads": "--cpus-per-trial", "max_minutes": "nothing: trials run to their end",
}  # fmt: skip
_KEYS = {field.name for field in dataclasses.fields(ReidTraining)}


def arms_of(name: str, settings: Sequence[str], crossed: Sequence[str]) -> dict[str, ReidTraining]:
    """Arm ("" without --cross, else "key=value, ...") -> its training, with data and out still missing.

    name: of the preset; settings: "key=value", for all arms; crossed: "key=value1,value2", every combination of which
    is an arm. A crossed preset=... brings its own values. Trainings run in the trial's own process (workers 0) unless a
    setting says otherwise. Raises InputError for what is no option of jobs/train_reid.py, or no value of it.
    """
    common = dict(_parsed("--set", text) for text in settings)
    if len(common) < len(settings):
        raise InputError(f"--set {' '.join(settings)}: one key is given twice, give it once")
    choices: dict[str, list[str]] = {}
    for text in crossed:
        key, values = _parsed("--cross", text)
        if key in choices or key in common:
            raise InputError(f"--cross {text}: {key} is given twice, give it once")
        choices[key] = values.split(",")
        if len(set(choices[key])) < len(choices[key]):
            raise InputError(f"--cross {text}: one value is given twice, give it once")
    arms = {}
    for values in itertools.product(*choices.values()):
        chosen = dict(zip(choices, values, strict=True))
        arm = ", ".join(f"{key}={value}" for key, value in chosen.items())
        options = common | chosen
        arms[arm] = _training(options.pop("preset", name), options)
    return arms


def _parsed(option: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    key = key.strip().lstrip("-").replace("-", "_")
    if not equals or not value.strip():
        raise InputError(f"{option} {text}: give key=value, such as batch=32")
    if key in DECIDED:
        raise InputError(f"{option} {text}: a sweep decides {flag(key)} itself; what says it is {DECIDED[key]}")
    if key not in _KEYS:
        raise InputError(f"{option} {text}: {key} is no option of jobs/train_reid.py: see its --help")
    return key, value.strip()


def _training(name: str, options: Mapping[str, str]) -> ReidTraining:
    if name not in PRESETS:
        raise InputError(f"preset {name}: give one of {', '.join(PRESETS)}")
    start = dataclasses.replace(preset(name), data=Path("."), out=Path("."), workers=0)
    words = [word for key, value in options.items() for word in (f"--{flag(key)}", *value.replace("+", " ").split())]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            # Flags are given values here as all others are: mirror=False.
            training = tyro.cli(ReidTraining, args=words, default=start, config=(tyro.conf.FlagConversionOff,))
    except SystemExit as error:
        shown = ", ".join(f"{key}={value}" for key, value in options.items())
        raise InputError(f"--set or --cross {shown}: {_reason(said.getvalue())}") from error
    paths = {key: getattr(training, key) for key in ("weights", "teacher") if getattr(training, key)}
    for key, path in paths.items():
        if not path.is_file():
            raise InputError(f"--set {key}={path}: there is no such file")
    return dataclasses.replace(training, **{key: path.resolve() for key, path in paths.items()})


def _reason(text: str) -> str:
    """The first sentence of tyro's frame of lines."""
    lines = [line.strip("│╭╮╰╯─ ") for line in text.splitlines()]
    said = [line for line in lines if line and "Parsing error" not in line]
    return (said[0] if said else "no such value")[:200]
