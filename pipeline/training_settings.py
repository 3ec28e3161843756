"""Options of a training as texts "key=value", which sweeps and studies hand on to it."""

import contextlib
import dataclasses
import io
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import tyro

from passersby.errors import InputError
from passersby.options import flag
from training.config import TrainingConfig

Training = TypeVar("Training", bound=TrainingConfig)


def parsed(option: str, text: str) -> tuple[str, str]:
    """The key, as the field is named, and the value of "key=value". option: where the text was given, for an error."""
    key, equals, value = text.partition("=")
    if not equals or not value.strip():
        raise InputError(f"{option} {text}: give key=value, such as batch=32")
    return key.strip().lstrip("-").replace("-", "_"), value.strip()


def all_parsed(option: str, texts: Sequence[str]) -> dict[str, str]:
    """Texts "key=value" -> their values by key. Raises InputError for a text without a value and a key given twice."""
    options = dict(parsed(option, text) for text in texts)
    if len(options) < len(texts):
        raise InputError(f"{option} {' '.join(texts)}: a key is given twice, give it once")
    return options


def with_settings(start: Training, settings: Mapping[str, str], option: str) -> Training:
    """The training with other options. settings: key -> value as on a command line; the values of an option that takes
    several are joined by "+", and flags have the values True and False. option: where they were given, for an error.

    Raises InputError for a value that is none of its option, with the parser's reason.
    """
    words = [word for key, value in settings.items() for word in (f"--{flag(key)}", *value.replace("+", " ").split())]
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            return tyro.cli(type(start), args=words, default=start, config=(tyro.conf.FlagConversionOff,))
    except SystemExit as error:
        shown = ", ".join(f"{key}={value}" for key, value in settings.items())
        raise InputError(f"{option} {shown}: {_reason(output.getvalue())}") from error


def command_words(settings: Mapping[str, str], left_out: Collection[str] = ()) -> list[str]:
    """Settings as the words of a job's command line. left_out: keys that the job does not have."""
    words: list[str] = []
    for key, value in settings.items():
        if key in left_out:
            continue
        if value in ("True", "False"):
            words.append(f"--{flag(key)}" if value == "True" else f"--no-{flag(key)}")
        else:
            words += [f"--{flag(key)}", *value.replace("+", " ").split()]
    return words


def keys_of(kind: type[TrainingConfig]) -> frozenset[str]:
    """The options of a training."""
    return frozenset(field.name for field in dataclasses.fields(kind))


def _reason(text: str) -> str:
    """The sentences of the parser's message: they stand below its title and a line, up to the next line."""
    parts = [""]
    for line in map(str.strip, text.splitlines()):
        if line and set(line) == {"-"}:
            parts.append("")
        else:
            parts[-1] = f"{parts[-1]} {line}".strip()
    return parts[1][:200] if len(parts) > 1 else "no such value"
