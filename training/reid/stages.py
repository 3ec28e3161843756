"""The stages of a re-ID training: parts of its steps with sources, changes of pictures and a schedule of their own."""

import dataclasses
import re
import types
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from datasets.reid.sources import REAL, SOURCES
from passersby.errors import InputError

if TYPE_CHECKING:
    from training.reid.config import ReidTraining

CHANGES = ("surroundings", "colours", "jitter")
# The options that a stage can have instead of the training's.
STAGE_OPTIONS = (
    *CHANGES, *(f"generated_{name}" for name in CHANGES), "pad", "mirror", "erasing", "generated_share",
    "generated_weight", "generated_triplet", "label_smoothing", "generated_smoothing", "triplet_weight", "margin",
    "lr", "schedule", "milestones", "warmup_epochs",
)  # fmt: skip
PLAIN, FROM, CONTINUED = "plain", "sources", "continued"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of a training. first, steps: its steps. config: the training with the options of the stage.

    sources: the indices of SOURCES that it trains on, None for all. continued: its learning rate follows the schedule
    of the whole training; otherwise the stage has a schedule and an optimiser of its own.
    """

    first: int
    steps: int
    config: "ReidTraining"
    sources: tuple[int, ...] | None
    continued: bool

    def rate_factor(self, step: int, training: "ReidTraining", total_steps: int) -> float:
        """The factor of the training's learning rates in a step."""
        if self.continued:
            factor = self.config.rate_factor(step, total_steps)
        else:
            factor = self.config.rate_factor(step - self.first, self.steps)
        return factor * self.config.lr / training.lr if self.config.lr != training.lr else factor

    def __str__(self) -> str:
        config, names = self.config, [] if self.sources is None else [SOURCES[kind] for kind in self.sources]
        values = [f"{name} {value:g}" for name in CHANGES if (value := getattr(config, name))]
        values += [f"{FROM} {', '.join(names)}"] * bool(names)
        return f"{self.steps:,} steps, {'; '.join(values) or 'pictures as they are'}"


def stages_of(training: "ReidTraining", total_steps: int) -> list[Stage]:
    """The stages of a training of so many steps; one where it has no `stages`.

    Raises InputError, which names --stages, for a text that is no stage, an option that cannot be a stage's, shares
    that do not add up to 1, a stage without a step, and one without the labelled people.
    """
    if not training.stages:
        return [Stage(0, total_steps, training, None, True)]
    parts = [_parsed(text, training) for text in training.stages]
    total = sum(share for share, _ in parts)
    if abs(total - 1) > 1e-6:
        raise InputError(f"--stages {' '.join(training.stages)}: their shares of the steps add up to {total:g}, not 1")
    ends, done = [], 0.0
    for share, _ in parts:
        done += share
        ends.append(round(done * total_steps))
    stages = []
    for text, (_, options), first, end in zip(training.stages, parts, [0, *ends], ends, strict=False):
        if end <= first:
            raise InputError(f"--stages {text}: it has none of the {total_steps:,} steps: give more, or leave it out")
        sources, continued = options.pop(FROM, None), options.pop(CONTINUED, False)
        config = dataclasses.replace(training, stages=(), **options)
        stages.append(Stage(first, end - first, config, sources, continued))
    return stages


def without_extras(texts: Sequence[str]) -> tuple[str, ...]:
    """The texts of the stages without what concerns generated and other extra pictures only."""
    result = []
    for text in texts:
        share, colon, rest = text.partition(":")
        items = [item.strip() for item in rest.split(",")]
        items = [item for item in items if item and not item.replace("-", "_").startswith((f"{FROM}=", "generated_"))]
        result.append(share + colon + ",".join(items) if items else share)
    return tuple(result)


def _parsed(text: str, training: "ReidTraining") -> tuple[float, dict[str, Any]]:
    share, _, rest = text.partition(":")
    try:
        part = float(share)
    except ValueError:
        part = -1.0
    if not 0 < part <= 1:
        raise InputError(
            f"--stages {text}: give a share of the steps, 0 to 1, and options: 0.7:jitter=0.7,surroundings=1"
        )
    hints = typing.get_type_hints(type(training))
    options: dict[str, Any] = {}
    given: set[str] = set()
    for item in filter(None, (item.strip() for item in rest.split(","))):
        key, equals, value = item.partition("=")
        key = key.strip().lstrip("-").replace("-", "_")
        if key in given:
            raise InputError(f"--stages {text}: {key} is given twice, give it once")
        given.add(key)
        if key == PLAIN and not equals:  # what is given beside it holds, wherever it stands
            options = dict.fromkeys((*CHANGES, *(f"generated_{name}" for name in CHANGES)), 0.0) | options
        elif key == CONTINUED and not equals:
            options[CONTINUED] = True
        elif key == FROM and equals:
            options[FROM] = _sources(text, value.split("/"))
        elif key in STAGE_OPTIONS and equals:
            options[key] = _typed(text, key, value.strip(), hints[key])
        else:
            raise InputError(
                f"--stages {text}: {item} is no option of a stage: give {PLAIN}, {CONTINUED}, {FROM}=... or one of "
                f"{', '.join(STAGE_OPTIONS)}"
            )
    return part, options


def _sources(text: str, names: Sequence[str]) -> tuple[int, ...]:
    strange = [name for name in names if name not in SOURCES]
    if strange:
        raise InputError(f"--stages {text}: {strange[0]!r} is no source: give some of {'/'.join(SOURCES)}")
    kinds = tuple(kind for kind, name in enumerate(SOURCES) if name in names)
    if REAL not in kinds:
        raise InputError(f"--stages {text}: the labelled people are part of every stage: give {FROM}=real/...")
    return kinds


def _typed(text: str, key: str, value: str, hint: Any) -> Any:
    """The value of an option, whose type the dataclass gives."""
    choices = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    for kind in choices:
        if kind is type(None) and value == "None":
            return None
        if kind is bool and value in ("True", "False"):
            return value == "True"
        if typing.get_origin(kind) is Literal and value in typing.get_args(kind):
            return value
        try:
            if typing.get_origin(kind) is tuple:
                return tuple(float(part) for part in value.split("/"))
            if kind is int and re.fullmatch(r"\d+", value):
                return int(value)
            if kind is float:
                return float(value)
        except ValueError:
            continue
    raise InputError(f"--stages {text}: {key}={value} is no value of this option")
