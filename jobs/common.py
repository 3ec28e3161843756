"""What every job needs: its command line, its exit codes, its connection to Ray."""

import dataclasses
import errno
import inspect
import io
import json
import os
import resource
import sys
import urllib.parse
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, Self, TypeAlias, TypeVar

import tyro

from datasets.storage.addresses import check_utf8, checked_address, shown
from passersby.bounds import Bound
from passersby.environment import choose_places, temporary_folder
from passersby.errors import InputError
from passersby.options import Json, Options, flag

if TYPE_CHECKING:
    from passersby.reid.checkpoint import LoadedReid
    from passersby.reid.onnx_network import LoadedOnnx

Config = TypeVar("Config", bound=Options)
# (folder of --out, command line) -> options of the work that was begun in the folder, as the configuration holds them.
Begun: TypeAlias = Callable[[str, list[str]], Mapping[str, Json | Path]]
PROGRAM: str | None = None  # how help texts call the program; None: the name of the file that was started


class Training(Options, Protocol):
    """The configuration of a training: a dataclass that its config.json holds."""

    @property
    def preset(self) -> str:
        """Name of the preset whose values its options started from."""
        ...

    @classmethod
    def from_json(cls, values: dict) -> Self:
        """Read back what its as_json wrote."""
        ...


# glibc gives large freed blocks back to the system at once and faults every page in again at the next image:
# keeping them makes synthesis on a CPU about twice as fast (benchmarks/stylegan3.py measures both ways).
MALLOC_VARIABLES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
# Waiting threads spin for a fraction of a millisecond, then sleep: with endless spinning, training on cores that
# anything else uses is ten times slower, and with none (OMP_WAIT_POLICY=PASSIVE) two threads are no faster than one.
# oneDNN 3.12 (PyTorch 2.14) with Intel's AMX computes some bfloat16 convolutions of small maps wrong: 256 -> 512
# channels, stride 2, from 4 x 2 to 2 x 1 is off by 57%, each time by another amount. Float32 does not use AMX.
CPU_VARIABLES = MALLOC_VARIABLES | {"GOMP_SPINCOUNT": "50000", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}


@dataclasses.dataclass(frozen=True)
class JudgeOptions:
    """What a job asks about the network that gives it features, a file of this project or of another program."""

    activation: Literal["relu", "none"] | None = None
    """The activation after the 512 values of a layumi checkpoint, which does not say it.
    relu: as in the study. none: as in layumi's own code."""
    neck_feature: Literal["after", "before"] | None = None
    """The feature of a BNNeck: after its batch norm, or before it. By default after, of TransReID's files before."""
    channels: Literal["rgb", "bgr"] | None = None
    """Order of the channels of an .onnx file's images, where the file does not say it. By default rgb."""
    scale: Annotated[float | None, Bound(gt=0)] = None
    """Multiplies the bytes that go into an .onnx file. By default 1/255. Then --mean is taken off, and --deviation
    divides."""
    mean: tuple[float, float, float] | None = None
    """Red, green and blue (in the order of --channels) that are taken off: 0.485 0.456 0.406 for most networks."""
    deviation: tuple[float, float, float] | None = None
    """What then divides the values: 0.229 0.224 0.225 for most networks."""
    flip: bool | None = None
    """Add the feature of the mirror image, of an .onnx file. By default yes, unless the file does it inside."""
    height: Annotated[int | None, Bound(ge=8)] = None
    """Bring the images to this height in pixels. By default the network's height."""
    width: Annotated[int | None, Bound(ge=8)] = None
    """Bring the images to this width in pixels. By default the network's width."""

    def load(self, path: Path) -> "LoadedReid | LoadedOnnx":
        """The network in a file, read as these options say. Raises InputError as `load_judge` does."""
        from passersby.reid.checkpoint import load_judge  # imports PyTorch, which takes seconds
        from passersby.reid.onnx_network import OnnxInput

        onnx = OnnxInput(
            channels=self.channels, scale=self.scale, mean=self.mean, deviation=self.deviation, flip=self.flip
        )
        return load_judge(path, self.activation, self.height, self.width, neck_feature=self.neck_feature, onnx=onnx)


# As a field of a job's configuration: on the command line its options have no prefix, and stand among the job's own.
Judge: TypeAlias = Annotated[JudgeOptions, tyro.conf.arg(name="", prefix_name=False)]


def run_job(
    main: Callable[[Config], int | None],
    config_class: type[Config],
    default: Config | None = None,
    begun: Begun | None = None,
) -> None:
    """Read the command line into `config_class` (a frozen dataclass), call `main` with it, and exit.

    `default` and `begun` go to `parse`. Exit codes: what `main` returns (None is 0); 2 for bad input, and for
    files that the system refuses, with one line on stderr; 130 when interrupted; 141 when the program that
    reads the output has ended, as `head` does.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a letter that the terminal's encoding lacks must not end a job
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            config = on_disk(parse(config_class, sys.argv[1:], default, begun))
            temporary_folder()
            code = main(config) or 0
        except SystemExit as end:  # after the help text, or an option that does not exist
            code = end.code
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left when it ends
        code = 141
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except OSError as error:
        line = refused_by_the_system(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where this one stopped", file=sys.stderr)
        code = 130
    sys.exit(code)


def refused_by_the_system(error: OSError) -> str | None:
    """One line about a file that this user may not read or write, or one file too many; None for other errors."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"too many files are open, the system allows {limit} (ulimit -n): allow more, as with ulimit -n 65536"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}: give this user the right to it, or another path"
    return None


def parse(
    config_class: type[Config], arguments: list[str], default: Config | None = None, begun: Begun | None = None
) -> Config:
    """The configuration that a command line gives.

    An option that the command does not give takes its value from the run, training or sweep that was begun in the
    folder of --out, as `begun` reads it. If there is nothing in the folder, the value is that of `default`, or without
    a `default` that of the class.
    """
    out = given(arguments, "out")
    if begun is not None and out is not None:
        try:
            values = begun(os.fspath(_local(out, "--out") or out), arguments)
        except InputError:
            values = {}  # the job itself says what is wrong with the folder
        if values:
            default = dataclasses.replace(unfilled(config_class) if default is None else default, **values)
    text = inspect.getdoc(config_class)  # without the indentation of the code
    if default is None:
        return tyro.cli(config_class, args=arguments, prog=PROGRAM, description=text)
    return tyro.cli(config_class, args=arguments, prog=PROGRAM, description=text, default=default)


def on_disk(config: Config) -> Config:
    """The configuration with the file:// addresses of its paths as paths.

    Raises InputError for a path that is an address of a store: pathlib takes a slash from s3://bucket/run, and a job
    would make a folder called `s3:`. Real people (--data) and lists of runs may be on a store; their readers say what
    they read there.
    """
    changed: dict[str, Path | tuple[Path, ...]] = {}
    for field in dataclasses.fields(config):
        value, option = getattr(config, field.name), f"--{flag(field.name)}"
        if isinstance(value, tuple) and value and all(isinstance(item, Path) for item in value):
            changed[field.name] = tuple(_local(item, option) or item for item in value)
        elif isinstance(value, Path):
            path = _local(value, option)
            if path is None and field.name != "data":
                raise InputError(
                    f"{option} {shown(checked_address(str(value)))}: this option takes a path on a disk, which every "
                    "node sees"
                )
            changed[field.name] = path or value
            if field.name == "out":
                check_utf8(str(value), option)
    return dataclasses.replace(config, **changed)


def _local(path: str | Path, option: str) -> Path | None:
    """A path, also of file://; None for the address of a store."""
    text = checked_address(os.fspath(path), option)
    if text.startswith("file:///"):
        return Path(urllib.parse.unquote(text.removeprefix("file://")))
    return None if "://" in text else Path(path)


def given(arguments: list[str], option: str) -> str | None:
    """The value that a command line gives to an option; the last of several values; None without the option."""
    flags = {f"--{option}", f"--{option.replace('_', '-')}"}
    values = [b for a, b in zip(arguments, arguments[1:], strict=False) if a in flags]
    values += [word.partition("=")[2] for word in arguments if word.partition("=")[0] in flags and "=" in word]
    return values[-1] if values else None


def unfilled(config_class: type[Config]) -> Config:
    """The configuration of a command line without options: the options that have to be given are still missing."""
    needed = [field for field in dataclasses.fields(config_class) if field.default is field.default_factory]
    return config_class(**{field.name: tyro.MISSING for field in needed})


def training_begun(kind: type[Training], left_open: Collection[str], is_begun: Callable[[Path], bool]) -> Begun:
    """What `parse` takes from a training's config.json: all options but those that every start decides anew.

    Files and folders that may lie elsewhere at another start lie where they were, until a command says otherwise. A
    preset that the command names, and that is not the stored one, gives all its values instead. is_begun: whether
    the folder holds a training, and not only the options of a training that could not start.
    """

    def begun(out: str, arguments: list[str]) -> dict[str, Json | Path]:
        try:
            stored = json.loads((Path(out) / "config.json").read_text("utf-8"))
            training = kind.from_json(stored)
        except (OSError, ValueError, TypeError, KeyError):  # no file, or another version: the job says so
            return {}
        if not is_begun(Path(out)) or given(arguments, "preset") not in (None, training.preset):
            return {}
        names = {field.name for field in dataclasses.fields(kind)} & stored.keys() - {"out"}
        values = {name: getattr(training, name) for name in names}
        return {name: value for name, value in values.items() if name not in left_open or _is_place(value)} | {
            "preset": training.preset
        }

    return begun


def _is_place(value: object) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    return bool(values) and all(isinstance(one, Path) for one in values)


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
    """Join the cluster of `RAY_ADDRESS` (set by `ray job submit`), or start a private local Ray."""
    from pipeline.connection import join_or_start  # it imports Ray, which some jobs do not need

    join_or_start(MALLOC_VARIABLES)


choose_places()  # before the libraries are imported that look for a home folder while they are imported
