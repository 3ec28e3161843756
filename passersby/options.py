"""Options that a folder freezes: how they are checked, stored, hashed and compared when the folder goes on.

Plans, inversions, trainings, sweeps and exports all follow one rule, so that a program that has gained an option goes
on with every folder of before:

- An option that a folder does not know has its default there. At its default it is absent from the folder's hash, and
  from what is stored beside the hash (`known_part`). So a later option's default must leave results as they were
  without it, and must never change. Where the folders of before did something else, the caller says what (the GAN
  training does).
- Another value than the default, for an option that a folder does not know, is refused by the option's name
  (`differences`).
- An option that a folder stores and the program no longer has is refused by its name and value, whatever the value:
  nobody knows any more what it did, and a hash may cover it. Only the names in `free` are let through.
- An option that a command does not give takes the folder's value (`kept`), where the command cannot mean another one.
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
    """An option whose value in a folder (old) is not that of the command (new). gone: the command has no such option,
    and new is None."""

    key: str
    old: Json
    new: Json
    gone: bool = False

    def __str__(self) -> str:
        if self.gone and self.old is None:  # "null, not null" would say nothing
            return f"{self.key} is null, and this program does not have it"
        return f"{self.key} is {short(self.old)}, not {short(self.new)}"


def flag(name: str) -> str:
    """An option's name as it is typed, without the two dashes: `flag("max_minutes")` is "max-minutes"."""
    return name.replace("_", "-")


def require(condition: bool, message: str) -> None:
    """Raises InputError with the message unless the condition holds."""
    if not condition:
        raise InputError(message)


def check(option: str, value: Json, good: bool, allowed: str) -> None:
    """Raises InputError that names the option and its value, unless the value is good.

    Example: `check("--steps", 0, False, "1 to 100")` says "--steps 0: must be 1 to 100".
    """
    require(good, f"{option} {value}: must be {allowed}")


def short(value: Json) -> str:
    """A value as JSON, cut where it is long: a sha256 becomes "275fce4fe1b4..."."""
    text = json.dumps(value)
    return text if len(text) < SHORT else text[:13] + '..."'


def canonical_sha256(values: Json) -> str:
    """sha256 (hex) of values as JSON of sorted keys without spaces: equal values have equal hashes on every machine."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def defaults(kind: type[Options]) -> dict[str, Json]:
    """Option -> its default as JSON has it, of all fields of a dataclass that have one.

    Example: a field `filters: tuple[str, ...] = ()` gives {"filters": []}.
    """
    found = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            found[field.name] = _plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = _plain(field.default_factory())
    return found


def known_part(values: Mapping[str, Json], known: Collection[str], default: Mapping[str, Json]) -> dict[str, Json]:
    """What a folder stores and hashes of options: all but those that it does not know and that are at their default.

    known: names of the options that the folder knows. default: option -> its default, as `defaults` gives them.
    Example: with `known` {"batch"} and `default` {"batch": 8, "margin": None}, {"batch": 8, "margin": None} becomes
    {"batch": 8}, and {"batch": 8, "margin": 0.3} stays whole.
    """
    return {
        name: value
        for name, value in values.items()
        if name in known or name not in default or not _same(value, default[name])
    }


def stored_values(options: Options, always: Collection[str] = ()) -> dict[str, Json]:
    """What a plan stores and hashes of its options, in the order of the dataclass: those that every plan has, and of
    the others those that are not at their default (`known_part`).

    Every plan has the options without a default, and those named in `always`; an option that comes later has a default.
    """
    default = defaults(type(options))
    first = {field.name for field in dataclasses.fields(options)} - default.keys()
    return known_part(dataclasses.asdict(options), first | set(always), default)


def differences(
    stored: Mapping[str, Json],
    wanted: Mapping[str, Json],
    default: Mapping[str, Json] | None = None,
    free: Collection[str] = (),
) -> list[Difference]:
    """Every option in which a folder (`stored`) and a command (`wanted`) differ, in the command's order, those that
    only the folder has after the others.

    default: option -> its default, which an option that is not stored has; None for an option without one. free:
    options that may differ. Example: `differences({"batch": 8}, {"batch": 16})` gives "batch is 8, not 16".
    """
    found = []
    for key in [*wanted, *(key for key in stored if key not in wanted)]:
        old, new = stored.get(key, (default or {}).get(key)), wanted.get(key)
        if key not in free and (key not in wanted or not _same(old, new)):
            found.append(Difference(key, old, new, gone=key not in wanted))
    return found


def check_known(stored: Mapping[str, Json], kind: type[Options]) -> None:
    """Raises InputError that names the stored options which the dataclass `kind` does not have, and their values.

    They are those of another version of the program.
    """
    names = {field.name for field in dataclasses.fields(kind)}
    strange = [f"{key} is {short(value)}" for key, value in stored.items() if key not in names]
    require(not strange, f"it has options that this program does not have: {'; '.join(strange)}")


def listed(found: Iterable[Difference]) -> str:
    """Differences in one line for people: "batch is 8, not 16; seed is 0, not 1"."""
    return "; ".join(map(str, found))


def kept(wanted: Mapping[str, Json], stored: Mapping[str, Json], names: Collection[str]) -> dict[str, Json]:
    """The options of a command, with the folder's value of those in `names`: those that the command does not give, or
    that only the first command in a folder decides."""
    return {key: stored[key] if key in names else value for key, value in wanted.items()}


def _same(one: Json, other: Json) -> bool:
    return one == other or _plain(one) == _plain(other)


def _plain(value: Json | Path) -> Json:
    """A value as it is after JSON: tuples become lists, paths become text."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
