"""Units that failed for good: one record each below OUT/failed, for people and for the next run."""

import dataclasses
import json
import re
from collections.abc import Iterable

from datasets.storage.output import Output
from passersby.errors import InputError

FAILED_FOLDER = "failed"
_NAME = re.compile(rf"^{FAILED_FOLDER}/unit-(\d{{6}})\.json$")


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a unit could not be made: the stage (its class), the reason in a line, and a traceback where there is one."""

    unit: int
    stage: str
    reason: str
    details: str = ""


def failure_name(unit: int) -> str:
    """Name of a unit's record below the output."""
    return f"{FAILED_FOLDER}/unit-{unit:06d}.json"


def write_failure(output: Output, failure: Failure) -> None:
    """Write a unit's record, in place of an older one."""
    output.write(failure_name(failure.unit), (json.dumps(dataclasses.asdict(failure), indent=2) + "\n").encode())


def failed_units(output: Output) -> set[int]:
    """The units that have a record: one listing."""
    return {int(match[1]) for name in output.list(FAILED_FOLDER) if (match := _NAME.match(name))}


def read_failure(output: Output, unit: int) -> Failure | None:
    """A unit's record, or None. Raises InputError when it is not one."""
    text = output.read(failure_name(unit))
    try:
        return None if text is None else Failure(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise InputError(f"{output.address(failure_name(unit))} is not a record of a failed unit: remove it") from error


def forget_failures(output: Output, units: Iterable[int]) -> None:
    """Remove the records of units that have been made after all."""
    for unit in units:
        output.remove(failure_name(unit))
