"""Training options of a sweep: a preset, what --set changes in all trials, and the arms of --arms and --cross."""

import contextlib
import dataclasses
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import tyro

from datasets.runs.verdicts import FILTERS
from passersby.errors import InputError
from passersby.options import flag
from training.reid.config import PRESETS, ReidTraining, preset

# What the sweep itself decides, with the option that says it.
DECIDED = {
    "data": "--data", "out": "--out", "people": "--generated", "variants": "--generated", "most_people": "--levels",
    "most_variants": "--levels", "draw_seed": "--seeds", "seed": "--seeds", "steps": "--steps",
    "gpus": "--gpus-per-trial", "threads": "--cpus-per-trial", "max_minutes": "nothing: trials run to their end",
}  # fmt: skip
_KEYS = {field.name for field in dataclasses.fields(ReidTraining)}


def arms_of(
    name: str, settings: Sequence[str], crossed: Sequence[str], named: Sequence[str] = ()
) -> dict[str, ReidTraining]:
    """Arm ("" where there is one only, else "NAME, key=value, ...") -> its training, with data and out still missing.

    name: of the preset; settings: "key=value", for all arms; named: "NAME: key=value key=value", an arm each; crossed:
    "key=value1,value2", every combination of which is an arm, with each of the named ones. Keys are the options of
    jobs/train_reid.py, and the thresholds of the filters (`datasets.runs.verdicts.FILTERS`) by their own names. A
    crossed preset=... brings its own values. Trainings run in the trial's own process (workers 0) unless a setting says
    otherwise. Raises InputError for another key, or no value of it.
    """
    common = _all_parsed("--set", settings)
    starts = dict(map(_named_arm, named)) or {"": {}}
    if len(starts) < len(named):
        raise InputError("--arms: two of them have one name, give each its own")
    taken = common.keys() | {key for options in starts.values() for key in options}
    choices: dict[str, list[str]] = {}
    for text in crossed:
        key, values = _parsed("--cross", text)
        if key in choices or key in taken:
            raise InputError(f"--cross {text}: {key} is given twice, give it once")
        choices[key] = values.split(",")
        if len(set(choices[key])) < len(choices[key]):
            raise InputError(f"--cross {text}: one value is given twice, give it once")
    arms = {}
    for (label, own), values in itertools.product(starts.items(), itertools.product(*choices.values())):
        chosen = dict(zip(choices, values, strict=True))
        arm = ", ".join([label] * bool(label) + [f"{key}={value}" for key, value in chosen.items()])
        options = common | own | chosen
        arms[arm] = _training(options.pop("preset", name), options)
    return arms


def _named_arm(text: str) -> tuple[str, dict[str, str]]:
    label, colon, options = text.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z0-9 ._-]{1,40}", label.strip()):
        raise InputError(f'--arms {text}: give "NAME: key=value key=value", NAME of letters, digits, space, . _ -')
    return label.strip(), _all_parsed("--arms", options.split())


def _all_parsed(option: str, texts: Sequence[str]) -> dict[str, str]:
    parsed = dict(_parsed(option, text) for text in texts)
    if len(parsed) < len(texts):
        raise InputError(f"{option} {' '.join(texts)}: one key is given twice, give it once")
    return parsed


def _parsed(option: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    key = key.strip().lstrip("-").replace("-", "_")
    if not equals or not value.strip():
        raise InputError(f"{option} {text}: give key=value, such as batch=32")
    if key in DECIDED:
        raise InputError(f"{option} {text}: a sweep decides {flag(key)} itself; what says it is {DECIDED[key]}")
    if key not in _KEYS | FILTERS.keys():
        raise InputError(f"{option} {text}: {key} is no option of jobs/train_reid.py, and no threshold: see its --help")
    return key, value.strip()


def _training(name: str, options: Mapping[str, str]) -> ReidTraining:
    if name not in PRESETS:
        raise InputError(f"preset {name}: give one of {', '.join(PRESETS)}")
    filters = [f"{key}={value}" for key, value in options.items() if key in FILTERS]
    if filters and "filters" in options:
        raise InputError(f"{filters[0]} beside filters={options['filters']}: give thresholds one way")
    options = {key: value for key, value in options.items() if key not in FILTERS}
    options |= {"filters": " ".join(filters)} if filters else {}
    start = dataclasses.replace(preset(name, Path("."), Path(".")), workers=0)
    words = [word for key, value in options.items() for word in (f"--{flag(key)}", *value.replace("+", " ").split())]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            # Flags are given values here as all others are: mirror=False.
            training = tyro.cli(ReidTraining, args=words, default=start, config=(tyro.conf.FlagConversionOff,))
    except SystemExit as error:
        shown = ", ".join(f"{key}={value}" for key, value in options.items())
        raise InputError(f"--set, --arms or --cross {shown}: {_reason(said.getvalue())}") from error
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
