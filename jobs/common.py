"""What every job needs: its command line, its exit codes, its connection to Ray."""

import logging
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import ray
import ray.exceptions
import tyro

from passersby.errors import InputError

Config = TypeVar("Config")
PROGRAM: str | None = None  # how help texts call the program; None: by the file that was started

# glibc gives large freed blocks back to the system at once and faults every page in again at the next image:
# keeping them makes synthesis on a CPU about twice as fast (benchmarks/stylegan3.py measures both ways).
MALLOC_VARIABLES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
# Waiting threads spin for a fraction of a millisecond, then sleep: with endless spinning, training on cores that
# anything else uses is ten times slower, and with none (OMP_WAIT_POLICY=PASSIVE) two threads are no faster than one.
CPU_VARIABLES = MALLOC_VARIABLES | {"GOMP_SPINCOUNT": "50000"}


def run_job(main: Callable[[Config], int | None], config_class: type[Config], default: Config | None = None) -> None:
    """Read the command line into `config_class` (a frozen dataclass), call `main` with it, and exit.

    `default` holds the values of options that are not given, instead of the class's own.

    Exit codes: what `main` returns (None is 0); 2 for bad input, with one line on stderr; 130 when
    interrupted.
    """
    try:
        config = tyro.cli(config_class, prog=PROGRAM, description=config_class.__doc__, default=default)
        code = main(config) or 0
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where this one stopped", file=sys.stderr)
        code = 130
    sys.stdout.flush()
    sys.exit(code)


def named_preset(arguments: list[str], presets: Collection[str]) -> str:
    """The preset that the command line names, whose values are the defaults of all other options; else the first."""
    named = [b for a, b in zip(arguments, arguments[1:], strict=False) if a == "--preset"]
    named += [word.partition("=")[2] for word in arguments if word.startswith("--preset=")]
    return named[-1] if named and named[-1] in presets else next(iter(presets))


def preset_defaults(
    arguments: list[str], presets: Collection[str], preset: Callable[[str, Path, Path], Config]
) -> Config:
    """Defaults for the command line: the values of the preset that it names, with data and out still missing."""
    return preset(named_preset(arguments, presets), tyro.MISSING, tyro.MISSING)


def connect() -> None:
    """Join the cluster of `RAY_ADDRESS` (set by `ray job submit`), or start a private local Ray.

    A plain `ray.init()` would join any cluster that happens to run on the machine.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ side reports harmless things as errors
    address = os.environ.get("RAY_ADDRESS", "local")
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": MALLOC_VARIABLES},
            log_to_driver=False,
            include_dashboard=False if address == "local" else None,  # a joined cluster has its own
            logging_level=logging.ERROR,
        )
    except ConnectionError as error:
        raise InputError(f"RAY_ADDRESS {address}: no Ray cluster answers there; unset it for a local Ray") from error
