"""Bounds of numbers: what they let through, and how they refuse."""

import dataclasses
import math
from typing import Annotated

import pytest
import tyro

from jobs.sweep import Config as Sweep
from passersby.bounds import Bound, check_bounds
from passersby.errors import InputError


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of every kind."""

    people: Annotated[int, Bound(ge=1)] = 100
    most_images: Annotated[int | None, Bound(ge=1, le=64, note="one of them is the query")] = None
    share: Annotated[float, Bound(gt=0, le=1)] = 0.5
    lost: Annotated[float, Bound(ge=0, lt=0.5)] = 0.1
    below: Annotated[float, Bound(lt=3)] = 0
    seeds: Annotated[tuple[int, ...], Bound(ge=0)] = ()
    unbounded: float = -1.0


@pytest.mark.parametrize(
    "values",
    [{}, {"people": 1, "most_images": 64, "share": 1, "lost": 0, "seeds": (0, 5)}, {"most_images": 1}],
)
def test_what_is_within_passes(values):
    check_bounds(Config(**values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"people": 0}, "--people 0: must be 1 or more"),
        ({"most_images": 65}, "--most-images 65: must be 1 to 64; one of them is the query"),
        ({"share": 0.0}, "--share 0.0: must be above 0, at most 1"),
        ({"lost": 0.5}, "--lost 0.5: must be 0 or more, below 0.5"),
        ({"lost": math.nan}, "--lost nan: must be a finite number"),
        ({"unbounded": -math.inf}, "--unbounded -inf: must be a finite number"),
        ({"below": 3}, "--below 3: must be below 3"),
        ({"seeds": (3, -2)}, "--seeds -2: must be 0 or more"),
    ],
)
def test_what_is_not_is_refused_by_its_option(values, said):
    with pytest.raises(InputError) as refused:
        check_bounds(Config(**values))
    assert str(refused.value) == said


def test_the_command_line_is_that_of_the_plain_types(capsys):
    @dataclasses.dataclass(frozen=True)
    class Plain:
        """Options of every kind."""

        people: int = 100
        most_images: int | None = None
        share: float = 0.5
        lost: float = 0.1
        below: float = 0
        seeds: tuple[int, ...] = ()
        unbounded: float = -1.0

    texts = []
    for kind in (Config, Plain):
        with pytest.raises(SystemExit):
            tyro.cli(kind, args=["--help"], prog="job")
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert tyro.cli(Config, args=["--most-images", "3", "--seeds", "1", "2"]) == Config(most_images=3, seeds=(1, 2))


@pytest.mark.parametrize("name", ["cpus_per_trial", "concurrent"])
def test_trials_have_one_or_more(name):
    sweep = Sweep(sweep="artificial-people", data=None, out="out", **{name: 0})
    with pytest.raises(InputError, match=rf"--{name.replace('_', '-')} 0: must be 1 or more"):
        check_bounds(sweep)
