"""A run: a folder, its plan, the units still to be made, the units that failed, and the lock of its one driver.

Runs of generation and of inversion are the same here. They differ in their plans and in the content of a shard.
"""

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeAlias, TypeVar, cast

from datasets.runs.configuration import Configuration
from datasets.runs.plan import Plan, Unit, continue_plan, read_plan
from datasets.storage.lock import Lease, hold
from datasets.storage.output import Output
from passersby.errors import InputError

SHARD_FOLDER, FAILED_FOLDER = "shards", "failed"
SHARD_NAME = re.compile(rf"^{SHARD_FOLDER}/(\d{{3}})/unit-(\d{{6}})\.parquet$")
_FAILURE_NAME = re.compile(rf"^{FAILED_FOLDER}/unit-(\d{{6}})\.json$")


class AnyUnit(Protocol):
    """A fixed slice of the work."""

    @property
    def unit(self) -> int:
        """Its number."""
        ...


class AnyPlan(Protocol):
    """A frozen configuration, and the units that the work is divided into."""

    @property
    def hash(self) -> str:
        """sha256 of the configuration, which stands in every shard."""
        ...

    @property
    def unit_count(self) -> int:
        """Number of units in all; units are 0 to unit_count - 1."""
        ...

    def units(self) -> Iterator[AnyUnit]:
        """Every unit, in order."""
        ...

    def to_json(self) -> bytes:
        """The text of plan.json."""
        ...


P = TypeVar("P", bound=AnyPlan)
U = TypeVar("U", bound=AnyUnit)


def shard_name(unit: int) -> str:
    """Name of a unit's shard below the output: a folder for each 1000 units."""
    return f"{SHARD_FOLDER}/{unit // 1000:03d}/unit-{unit:06d}.parquet"


def failure_name(unit: int) -> str:
    """Name of the record of a unit that failed for good."""
    return f"{FAILED_FOLDER}/unit-{unit:06d}.json"


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a unit could not be made: the stage (its class), the reason in a line, and the traceback or an empty text."""

    unit: int
    stage: str
    reason: str
    details: str = ""


class Run(Generic[P, U]):
    """A folder with a plan, whose units become one file each. P is the kind of the plan, U that of its units.

    output: the folder. plan: the run's plan. lease: inside of `held`, it shows whether this driver is still the
    only one. again: a function that reads plan.json once more and returns the plan that continues it; None for
    a run that is only read.
    """

    def __init__(self, output: Output, plan: P, again: Callable[[], P] | None = None):
        self.output, self.plan, self.lease = output, plan, Lease()
        self._again = again

    @property
    def hash(self) -> str:
        """sha256 of the plan's configuration, which stands in every shard."""
        return self.plan.hash

    def finished(self) -> set[int]:
        """The units whose shards exist. Lists the files once and opens none: an existing file is complete."""
        matches = (SHARD_NAME.match(name) for name in self.output.list(SHARD_FOLDER))
        return {int(match[2]) for match in matches if match and int(match[1]) == int(match[2]) // 1000}

    @functools.cached_property
    def pending(self) -> list[U]:
        """The plan's units without a shard, in order, at the time of the first access to this property."""
        finished = self.finished()
        return [cast(U, unit) for unit in self.plan.units() if unit.unit not in finished]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder as its only driver. Raises InputError that names another driver at work.

        Plan and pending units are read again, as another driver may just have ended.
        """
        with hold(self.output) as self.lease:
            if self._again is not None:
                self.plan = self._again()
            self.__dict__.pop("pending", None)
            yield

    # ---- Units that failed for good have one record each, for the user and for the next driver.

    def failed(self) -> set[int]:
        """The units that have a record of failure. Lists the files once."""
        names = self.output.list(FAILED_FOLDER)
        return {int(match[1]) for name in names if (match := _FAILURE_NAME.match(name))}

    def failure(self, unit: int) -> Failure | None:
        """A unit's record; None without one. Raises InputError when the file is no such record."""
        name = failure_name(unit)
        text = self.output.read(name)
        try:
            return None if text is None else Failure(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.output.address(name)} is not a record of a failed unit: remove it") from error

    def record(self, failure: Failure) -> None:
        """Write a unit's record; it replaces an older one."""
        content = json.dumps(dataclasses.asdict(failure), indent=2) + "\n"
        self.output.write(failure_name(failure.unit), content.encode())

    def forget(self, units: Iterable[int]) -> None:
        """Remove the records of units that a later attempt has made."""
        for unit in units:
            self.output.remove(failure_name(unit))


GenerationRun: TypeAlias = Run[Plan, Unit]


def open_run(output: Output, option: str = "") -> GenerationRun:
    """Open the run of jobs/generate.py in a folder for reading.

    Raises InputError where the folder holds no run; the error begins with `option`, the option that names the
    folder. Raises it as `read_plan` does.
    """
    plan = read_plan(output)
    if plan is None:
        raise InputError(f"{option} {output.root_address}: no plan.json there, so no run of jobs/generate.py".lstrip())
    return Run(output, plan)


def begin_run(output: Output, configuration: Configuration, people: int) -> GenerationRun:
    """Begin a run of `people` people, or continue the run in the folder. Raises InputError as `continue_plan`."""

    def plan_now() -> Plan:
        return continue_plan(read_plan(output), configuration, people)

    return Run(output, plan_now(), plan_now)
