"""The detector of the pedestrian filter as files: YOLOv4-tiny of the study, or one of the user's own.

A detector of one's own is a Darknet .weights with its .cfg beside it, and perhaps a .names, or an .onnx, and perhaps a
.json. Its identity is two texts: the sha256 of the main file, and its setup in words. Runs store both.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from passersby import weights
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.options import canonical_sha256
from passersby.yolo.darknet import DarknetNetwork, read_file, read_structure
from passersby.yolo.onnx_file import read_statement

INPUT_SIZE = 416  # pixels, square: the study's input of YOLOv4-tiny
STUDY_SHA256 = weights.WEIGHTS["yolov4-tiny"].files[0].sha256
BESIDE = {".weights": (".cfg",), ".onnx": ()}  # main file -> the files that belong to it
PERHAPS_BESIDE = (".names", ".json")
_PERSON = "person"


class FilterArguments(TypedDict):
    """The keywords of PedestrianFilter that belong to a detector's files."""

    person: int
    input_size: int | None


@dataclasses.dataclass(frozen=True)
class DetectorFile:
    """A detector's main file and all that PedestrianFilter needs to know beside it.

    setup: how its scores come about, in a few words; None for YOLOv4-tiny as the study used it. person: the number of
    the class "person". input_size: pixels, square; None is the file's own.
    """

    path: Path
    sha256: str
    setup: str | None = None
    person: int = 0
    input_size: int | None = INPUT_SIZE

    @property
    def identity(self) -> dict[str, str | None]:
        """What records say about the detector."""
        return {"sha256": self.sha256, "setup": self.setup}

    @property
    def arguments(self) -> FilterArguments:
        """The keywords of PedestrianFilter that belong to the file."""
        return {"person": self.person, "input_size": self.input_size}

    def contents(self) -> dict[str, bytes]:
        """The bytes of the files that workers need, by suffix."""
        beside = [self.path.with_suffix(suffix) for suffix in (".cfg", ".json")]
        return {file.suffix: file.read_bytes() for file in (self.path, *(file for file in beside if file.is_file()))}


def study_detector(path: Path | None = None) -> DetectorFile:
    """YOLOv4-tiny: fetched, or from a path. Raises InputError as `passersby.weights.get`."""
    return DetectorFile(weights.get("yolov4-tiny", path), STUDY_SHA256)


def own_detector(path: Path, person: int | None = None, option: str = "--detector-file") -> DetectorFile:
    """The detector of the user's own in a .weights or an .onnx. `person` is the number of its class "person".

    Without `person` the class is looked for by its name, in NAME.names or in the metadata of the .onnx. Raises
    InputError, which begins with `option` and the path, for files that cannot be read, and for classes without person.
    """
    path = Path(path).expanduser().absolute()  # workers run in other folders
    if path.suffix not in BESIDE:
        raise InputError(f"{option} {path}: give a Darknet .weights with its .cfg beside it, or an .onnx")
    if path.suffix == ".onnx":
        statement = read_statement(path)
        person = _person(statement.classes, person, f"{option} {path}")
        count = f" of {len(statement.classes)}" if statement.classes else ""
        return DetectorFile(path, file_sha256(path, option), f"{statement}, person {person}{count}", person, None)
    network = read_structure(path.with_suffix(".cfg"))
    sha256 = file_sha256(path, option)
    names_path = path.with_suffix(".names")
    names = read_names(names_path) if names_path.is_file() else ()
    if names and len(names) != network.classes:
        structure = path.with_suffix(".cfg")
        raise InputError(f"{names_path} has {len(names)} names, but {structure} {network.classes} classes")
    person = _person(names, person, f"{option} {path}")
    if person >= network.classes:
        raise InputError(f"--detector-person {person}: {path} has {network.classes} classes, numbered from 0")
    size = f"{network.height} x {network.width}"
    setup = f"darknet {structure_sha256(network)[:16]}, {size}, person {person} of {network.classes}"
    return DetectorFile(path, sha256, setup, person, None)


def chosen_detector(own: DetectorFile | None, yolo_weights: Path | None) -> DetectorFile:
    """The user's own detector, else YOLOv4-tiny, which is fetched unless `yolo_weights` is its path."""
    return study_detector(yolo_weights) if own is None else own


def check_options(
    detector_file: str | Path | None, detector_person: int | None, yolo_weights: str | Path | None
) -> None:
    """Raise InputError for options of a detector that exclude or need each other."""
    if detector_file is not None and yolo_weights is not None:
        raise InputError(f"--yolo-weights {yolo_weights}: --detector-file takes its place; give one of the two")
    if detector_file is None and detector_person is not None:
        raise InputError(f"--detector-person {detector_person}: it belongs to --detector-file")


def read_names(path: Path) -> tuple[str, ...]:
    """The names of classes in a Darknet .names: one on each line, in order; empty lines at the end do not count."""
    lines = [line.strip() for line in read_file(path).decode("utf-8-sig", "replace").splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return tuple(lines)


def structure_sha256(network: DarknetNetwork) -> str:
    """sha256 of a structure without its numbers: comments and training options in a .cfg do not change it."""
    layers = [
        [type(layer).__name__, {k: v for k, v in dataclasses.asdict(layer).items() if k not in ("weight", "bias")}]
        for layer in network.layers
    ]
    return canonical_sha256(layers)


def _person(names: Sequence[str], person: int | None, where: str) -> int:
    if person is not None:
        if person < 0 or (names and person >= len(names)):
            raise InputError(f"--detector-person {person}: {where} has {len(names)} classes, numbered from 0")
        return person
    matches = [number for number, name in enumerate(names) if name.strip().lower() == _PERSON]
    if len(matches) == 1:
        return matches[0]
    if not names:
        raise InputError(f"{where}: nothing names its classes: put a .names beside it, or give --detector-person N")
    listed = ", ".join(f"{number} {name[:20]}" for number, name in enumerate(names[:8]))
    raise InputError(f"{where}: {len(matches)} classes are named person ({listed}): give --detector-person N")
