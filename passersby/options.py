"""Options that a folder freezes: checks, storage, hashes, and comparison when a command continues the folder.

Plans, inversions, trainings, sweeps and exports follow the same rules, so that a program with new options can continue
every older folder:

- If a folder does not know an option, the option has its default in this folder. An option at its default is absent
  from the folder's hash and from the values stored beside the hash (`known_part`). So the default of a later option
  must give the results of the program without the option, and must never change. If older folders did something else,
  the caller gives that value, as the GAN training does.
- If a folder does not know an option, another value than the default is an error that names the option (`differences`).
- If the program does not know an option that a folder stores, this is an error that names option and value, whatever
  the value: its effect is unknown, and a hash may cover it. Only the names in `free` are exempt.
- If a command does not give an option, the folder's value is taken (`with_folder_values`) where no other makes sense.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol, TypeAlias

from passersby.errors import InputError

Json: TypeAlias = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
SHORT = 60  # characters; a longer value is cut


class Options(Protocol):
    """Any dataclass whose fields are options."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]


@dataclasses.dataclass(frozen=True)
class Difference:
    """An option whose value in a folder (old) differs from that of the command (new).

    gone: the command does not have the option, and new is None.
    """

    key: str
    old: Json
    new: Json
    gone: bool = False

    def __str__(self) -> str:
        problem = "which this program does not have" if self.gone else f"not {short(self.new)}"
        return f"{self.key} is {short(self.old)}, {problem}"


def flag(name: str) -> str:
    """The name of an option on a command line, without the dashes: `flag("max_minutes")` is "max-minutes"."""
    return name.replace("_", "-")


def require(condition: bool, message: str) -> None:
    """Raise InputError with the message unless the condition is true."""
    if not condition:
        raise InputError(message)


def check(option: str, value: Json, good: bool, allowed: str) -> None:
    """Raise InputError, which names the option and its value, unless the value is good.

    Example: `check("--steps", 0, False, "1 to 100")` says "--steps 0: must be 1 to 100".
    """
    require(good, f"{option} {value}: must be {allowed}")


def short(value: Json) -> str:
    """A value as JSON; a long value is cut: a sha256 becomes "275fce4fe1b4..."."""
    text = json.dumps(value)
    return text if len(text) < SHORT else text[:13] + '..."'


def canonical_sha256(values: Json) -> str:
    """sha256 (hex) of values as JSON of sorted keys without spaces: equal values have equal hashes on every machine."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def defaults(kind: type[Options]) -> dict[str, Json]:
    """Option -> its default as JSON, for all fields of a dataclass with a default.

    Example: a field `filters: tuple[str, ...] = ()` gives {"filters": []}.
    """
    values = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            values[field.name] = _plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = _plain(field.default_factory())
    return values


def known_part(values: Mapping[str, Json], known: Collection[str], default: Mapping[str, Json]) -> dict[str, Json]:
    """The options that a folder stores and hashes: all except unknown options at their default.

    known: names of the options that the folder knows. default: option -> its default, from `defaults`.
    Example: with `known` {"batch"} and `default` {"batch": 8, "margin": None}, {"batch": 8, "margin": None} becomes
    {"batch": 8}, and {"batch": 8, "margin": 0.3} stays whole.
    """
    return {
        name: value
        for name, value in values.items()
        if name in known or name not in default or not _same(value, default[name])
    }


def stored_values(options: Options, always: Collection[str] = ()) -> dict[str, Json]:
    """The options that a plan stores and hashes, in the order of the dataclass.

    Every plan has the options without a default and those in `always`. A plan has any other option only if its value is
    not the default (`known_part`). An option that a later version adds must have a default.
    """
    default = defaults(type(options))
    first = {field.name for field in dataclasses.fields(options)} - default.keys()
    return known_part(dataclasses.asdict(options), first | set(always), default)


def differences(
    stored: Mapping[str, Json],
    command: Mapping[str, Json],
    default: Mapping[str, Json] | None = None,
    free: Collection[str] = (),
) -> list[Difference]:
    """Every option in which a folder (`stored`) and a command (`command`) differ.

    The order is the command's; options that only the folder has come last. default: option -> its default, for options
    that the folder does not store; the old value of an option without a default is None. free: options that may differ.
    Example: `differences({"batch": 8}, {"batch": 16})` gives "batch is 8, not 16".
    """
    result = []
    for key in [*command, *(key for key in stored if key not in command)]:
        old, new = stored.get(key, (default or {}).get(key)), command.get(key)
        if key not in free and (key not in command or not _same(old, new)):
            result.append(Difference(key, old, new, gone=key not in command))
    return result


def check_known(stored: Mapping[str, Json], kind: type[Options]) -> None:
    """Raise InputError if a folder stores options that the dataclass `kind` does not have.

    Such options are those of another version of the program. The message names them and their values.
    """
    names = {field.name for field in dataclasses.fields(kind)}
    strange = [f"{key} is {short(value)}" for key, value in stored.items() if key not in names]
    require(not strange, f"it has options that this program does not have: {'; '.join(strange)}")


def agree(contents: str, conflicts: Iterable[Difference | str], folder: str = "--out") -> None:
    """Raise InputError, which names every conflict, unless a command and the contents of its folder agree.

    contents: the contents of the folder, in words. Example: `agree("a run of another configuration",
    differences({"batch": 8}, {"batch": 16}))` says "--out holds a run of another configuration: batch is 8, not 16.
    Choose another --out, or the options of its first command".
    """
    texts = "; ".join(map(str, conflicts))
    require(not texts, f"{folder} holds {contents}: {texts}. Choose another --out, or the options of its first command")


def with_folder_values(
    command: Mapping[str, Json], stored: Mapping[str, Json], names: Collection[str]
) -> dict[str, Json]:
    """The options of a command, with the folder's values for the options in `names`.

    These are options that the command does not give, or that only the first command in a folder decides.
    """
    return {key: stored[key] if key in names else value for key, value in command.items()}


def _same(a: Json, b: Json) -> bool:
    return a == b or _plain(a) == _plain(b)


def _plain(value: Json | Path) -> Json:
    """A value as JSON returns it: tuples become lists, paths become text."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
