"""Training options of a sweep: a preset, the changes of --set in all trials, and the arms of --arms and --cross."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets.people.readers import full_path
from datasets.runs.verdicts import FILTERS
from passersby.errors import InputError
from passersby.options import flag
from pipeline.training_settings import all_parsed, keys_of, parsed, with_settings
from training.reid.config import ReidTraining
from training.reid.presets import PRESETS, preset

# The training options that the sweep itself decides -> the option of the sweep that decides each.
DECIDED = {
    "data": "--data", "out": "--out", "people": "--generated", "variants": "--generated", "most_people": "--levels",
    "most_variants": "--levels", "draw_seed": "--seeds", "seed": "--seeds", "steps": "--steps",
    "gpus": "--gpus-per-trial", "threads": "--cpus-per-trial", "max_minutes": "no option: trials run to their end",
}  # fmt: skip
_KEYS = keys_of(ReidTraining)
# What a level adds to the labelled people. Level 0 is the same training without it. An arm with NONE has level 0 only,
# and the other arms are compared with it.
GENERATED, FURTHER, SINGLE, NONE = EXTRAS = ("generated", "real", "single", "none")
READY_ARMS = {"C": NONE, "G": GENERATED, "U": FURTHER, "S": SINGLE}  # arms of --arms that need no options
_PLAIN = {"surroundings": "0", "colours": "0", "jitter": "0", "stages": ""}
_CHANGES = {"surroundings": "1", "colours": "0.7", "jitter": "0.7"}
_CHANGED = {f"generated_{name}": value for name, value in _CHANGES.items()}
_APART = {"generated_weight": "0.3", "separate_batchnorm": "True"}  # little weight, and statistics of their own
# The short list from which each arm takes its best recipe. Each says all that makes it: presets have their own values.
RECIPES: dict[str, dict[str, str]] = {
    "plain": _PLAIN,
    "changes": _CHANGES | {"stages": "0.7 0.3:plain"},
    "changes-first": _CHANGES | {"stages": "0.7 0.3:plain,sources=real"},
    "changes-half": _CHANGES | {"stages": "0.7 0.3:plain", "generated_share": "0.5"},
    "apart": _PLAIN | _APART | _CHANGED,
    "changes-apart": _CHANGES
    | _APART
    | {"stages": f"0.7 0.3:plain,{','.join(f'{name}={value}' for name, value in _CHANGED.items())}"},
}


def arms_of(
    name: str,
    settings: Sequence[str],
    crossed: Sequence[str],
    named: Sequence[str] = (),
    recipes: Mapping[str, str] | None = None,
) -> dict[str, ReidTraining]:
    """Name of an arm ("" for a single arm, else "NAME, key=value, ...") -> its training, still without data and out.

    name: the name of the preset. settings: "key=value", for all arms. named: "NAME: key=value key=value", one arm each.
    crossed: "key=value1,value2"; each combination of values, with each named arm, is an arm. Keys are the options of
    jobs/train_reid.py, and the names of the filters' thresholds (`datasets.runs.verdicts.FILTERS`). A crossed
    preset=... brings the values of that preset, recipe=... those of RECIPES in place of the preset's, and any other
    setting replaces the recipe's. The key extras goes to `extras_of`. recipes: name of an arm -> the recipe that was
    chosen for it. Without a setting for it, trainings run in the trial's own process (workers 0). Raises InputError for
    an unknown key and for an impossible value.
    """
    arms, recipes = {}, recipes or {}
    for arm, options in _options_of(settings, crossed, named).items():
        options = {key: value for key, value in options.items() if key != "extras"}
        if arm in recipes:
            options["recipe"] = recipes[arm]
        recipe = options.pop("recipe", None)
        if recipe is not None and recipe not in RECIPES:
            raise InputError(f"recipe {recipe}: give one of {', '.join(RECIPES)}")
        of_recipe = RECIPES[recipe] if recipe else {}
        arms[arm] = _training(options.pop("preset", name), of_recipe | options)
    return arms


def extras_of(settings: Sequence[str], crossed: Sequence[str], named: Sequence[str] = ()) -> dict[str, str]:
    """Name of an arm -> what its levels add to the labelled people, one of EXTRAS. Arguments as of `arms_of`."""
    extras = {arm: options.get("extras", GENERATED) for arm, options in _options_of(settings, crossed, named).items()}
    strange = [value for value in extras.values() if value not in EXTRAS]
    if strange:
        raise InputError(f"extras {strange[0]}: give one of {', '.join(EXTRAS)}")
    return extras


def _options_of(settings: Sequence[str], crossed: Sequence[str], named: Sequence[str]) -> dict[str, dict[str, str]]:
    common = _all_parsed("--set", settings)
    starts = dict(map(_named_arm, named)) or {"": {}}
    if len(starts) < len(named):
        raise InputError("--arms: two arms have the same name, give each its own")
    keys = common.keys() | {key for options in starts.values() for key in options}
    choices: dict[str, list[str]] = {}
    for text in crossed:
        key, values = _parsed("--cross", text)
        if key in choices or key in keys:
            raise InputError(f"--cross {text}: {key} is given twice, give it once")
        choices[key] = values.split(",")
        if len(set(choices[key])) < len(choices[key]):
            raise InputError(f"--cross {text}: a value is given twice, give it once")
    arms = {}
    for (label, arm_options), values in itertools.product(starts.items(), itertools.product(*choices.values())):
        crossed_options = dict(zip(choices, values, strict=True))
        arm = ", ".join([label] * bool(label) + [f"{key}={value}" for key, value in crossed_options.items()])
        arms[arm] = common | arm_options | crossed_options
    return arms


def _named_arm(text: str) -> tuple[str, dict[str, str]]:
    label, colon, options = text.partition(":")
    if text.strip() in READY_ARMS:
        return text.strip(), {"extras": READY_ARMS[text.strip()]}
    if not colon or not re.fullmatch(r"[A-Za-z0-9 ._-]{1,40}", label.strip()):
        raise InputError(
            f'--arms {text}: give "NAME: key=value key=value", NAME of letters, digits, space, . _ -, or '
            f"one of {', '.join(READY_ARMS)}"
        )
    return label.strip(), _all_parsed("--arms", options.split())


def _all_parsed(option: str, texts: Sequence[str]) -> dict[str, str]:
    options = all_parsed(option, texts)
    for text, key in zip(texts, options, strict=True):
        _check_key(option, text, key)
    return options


def _parsed(option: str, text: str) -> tuple[str, str]:
    key, value = parsed(option, text)
    _check_key(option, text, key)
    return key, value


def _check_key(option: str, text: str, key: str) -> None:
    if key in DECIDED:
        raise InputError(f"{option} {text}: a sweep decides {flag(key)} itself, by {DECIDED[key]}")
    if key not in _KEYS | FILTERS.keys() | {"extras", "recipe"}:
        raise InputError(
            f"{option} {text}: {key} is neither an option of jobs/train_reid.py nor a threshold: see that job's --help"
        )


def _training(name: str, options: Mapping[str, str]) -> ReidTraining:
    if name not in PRESETS:
        raise InputError(f"preset {name}: give one of {', '.join(PRESETS)}")
    filters = [f"{key}={value}" for key, value in options.items() if key in FILTERS]
    if filters and "filters" in options:
        raise InputError(f"{filters[0]} and filters={options['filters']}: give thresholds in one of these ways")
    options = {key: value for key, value in options.items() if key not in FILTERS}
    options |= {"filters": " ".join(filters)} if filters else {}
    start = dataclasses.replace(preset(name, Path("."), Path(".")), workers=0)
    training = with_settings(start, options, "--set, --arms or --cross")
    paths = {key: getattr(training, key) for key in ("weights", "teacher", "start") if getattr(training, key)}
    for key, path in paths.items():
        if not path.is_file():
            raise InputError(f"--set {key}={path}: there is no such file")
    donors = tuple(map(full_path, training.donors))
    return dataclasses.replace(training, donors=donors, **{key: path.resolve() for key, path in paths.items()})
