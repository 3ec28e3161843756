"""Bounds of numbers, written where an option is declared, and the one check of all options of a configuration.

    @dataclasses.dataclass(frozen=True)
    class Config:
        people: Annotated[int, Bound(ge=1)] = 100
        share: Annotated[float | None, Bound(ge=0, lt=1)] = None

The package annotated-types has such marks too, but none with a note, and modules below the jobs would need the package
at import.
"""

import dataclasses
import functools
import math
import typing

from passersby.errors import InputError
from passersby.options import Options, flag


@dataclasses.dataclass(frozen=True)
class Bound:
    """Limits of a number: at least `ge`, above `gt`, at most `le`, below `lt`. None: no such limit.

    The note, in words, stands behind the limits in the error. It says why, or names another option.
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    note: str = ""

    def holds(self, value: float) -> bool:
        """Whether a finite value is within the limits."""
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        """The limits in words: "1 or more", "0 to 1", "above 0, at most 1"."""
        if self.ge is not None and self.le is not None:
            words = f"{self.ge} to {self.le}"
        else:
            limits = [f"above {self.gt}"] * (self.gt is not None) + [f"{self.ge} or more"] * (self.ge is not None)
            limits += [f"at most {self.le}"] * (self.le is not None) + [f"below {self.lt}"] * (self.lt is not None)
            words = ", ".join(limits)
        return f"{words}; {self.note}" if self.note else words


def check_bounds(config: Options, start: str = "--") -> None:
    """Raises InputError for the first number of a dataclass, or of a tuple in it, that is outside of its Bound.

    The message names the option after `start` as it is typed, the value and the bound: "--people 0: must be 1 or more".
    None is within every bound. Numbers that are not finite are refused, also those of options without a Bound.
    """
    bounds = _bounds(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(f"{start}{flag(field.name)} {number}: must be a finite number")
            if number is not None and field.name in bounds and not bounds[field.name].holds(number):
                raise InputError(f"{start}{flag(field.name)} {number}: must be {bounds[field.name]}")


@functools.cache
def _bounds(kind: type) -> dict[str, Bound]:
    hints = typing.get_type_hints(kind, include_extras=True)
    marks = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {name: mark for name in marks for mark in marks[name] if isinstance(mark, Bound)}
