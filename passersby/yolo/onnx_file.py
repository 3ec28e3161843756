"""An .onnx detector as a file: the shapes of its input and output, and what it says about itself.

The file is a protocol buffer, of which a few fields are read: a graph's inputs and outputs, and the metadata. So the
package `onnx` is not needed, and nothing in the file is run. Numbers of fields: https://github.com/onnx/onnx,
onnx.proto. What the file does not say is in a JSON file beside it, NAME.json, or in its metadata, under the key
`passersby-detector`, with the keys of `Statement`.
"""

import ast
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from passersby.errors import InputError
from passersby.yolo.darknet import read_file

METADATA_KEY = "passersby-detector"
LAYOUTS = {"v5": 5, "v8": 4}  # name -> numbers of a box before its classes
CHANNELS = ("rgb", "bgr")
_MODEL_GRAPH, _MODEL_METADATA = 7, 14
_GRAPH_TENSORS, _GRAPH_INPUTS, _GRAPH_OUTPUTS = 5, 11, 12
_TENSOR_NAME, _TENSOR_PLACE = 8, 14
_SUPPRESSED = 6  # left, top, right, bottom, score, class: what detectors give that suppress boxes themselves
_WAY_OUT = 'state it in {json}, for example {{"layout": "v8", "height": 640, "width": 640, "classes": ["person"]}}'

Shape = tuple[int | None, ...]  # None: a size that the file leaves open


@dataclasses.dataclass(frozen=True)
class Statement:
    """How an .onnx detector reads images and writes boxes.

    layout: "v5" is [N, boxes, 5 + classes] (centre x, centre y, width, height in input pixels, objectness, class
    probabilities), as YOLOv5, YOLOv7 and YOLOX export; "v8" is [N, 4 + classes, boxes] without objectness, as
    YOLOv8, YOLOv9 and YOLO11 export. An input value is (byte x scale - mean) / deviation, its channels are "rgb" or
    "bgr". classes: the names of the classes, empty where nothing names them.
    """

    layout: str
    height: int
    width: int
    channels: str = "rgb"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    deviation: tuple[float, ...] = (1.0, 1.0, 1.0)
    classes: tuple[str, ...] = ()

    def __str__(self) -> str:
        plain = (self.mean, self.deviation) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        numbers = "" if plain else f" - {self.mean} / {self.deviation}"
        return f"onnx {self.layout} {self.channels} * {self.scale:.6g}{numbers}, {self.height} x {self.width}"


def read_statement(path: Path) -> Statement:
    """What an .onnx file, its metadata and the .json beside it say. Raises InputError where this is not enough."""
    inputs, outputs, metadata = read_graph(path)
    json_path = path.with_suffix(".json")
    stated = _stated(metadata.get(METADATA_KEY), path)
    if json_path.is_file():
        stated |= _stated(read_file(json_path).decode("utf-8-sig", "replace"), json_path)
    if metadata.get("task", "detect") != "detect":
        raise InputError(f"{path}: its metadata say that it is made for {metadata['task'][:40]!r}, not to detect")
    way_out = _WAY_OUT.format(json=json_path)
    if metadata.get("end2end", "").lower() == "true" or outputs[0][-1:] == (_SUPPRESSED,) and outputs[0][1:2] == (300,):
        raise InputError(f"{path} suppresses boxes itself: export it without suppression (nms=False, end2end=False)")
    names = stated.get("classes") or _names(metadata.get("names"))
    height, width = _size(stated, metadata, inputs[0], path, way_out)
    layout = stated.get("layout") or _layout(outputs[0], len(names))
    if layout is None:
        raise InputError(f"{path}: its output {outputs[0]} does not say how boxes lie in it: {way_out}")
    rest = {key: stated[key] for key in ("channels", "scale", "mean", "deviation") if key in stated}
    return Statement(layout, height, width, classes=tuple(names), **rest)


def _stated(text: str | None, path: Path) -> dict[str, Any]:
    """The checked keys of a JSON text. Raises InputError for other keys and for values that make no sense."""
    if text is None:
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON about the detector ({str(error)[:80]})") from error
    fields = {field.name for field in dataclasses.fields(Statement)}
    if not isinstance(values, dict) or not values.keys() <= fields:
        unknown = sorted(map(str, values.keys() - fields)) if isinstance(values, dict) else type(values).__name__
        raise InputError(f"{path}: {str(unknown)[:80]} is unknown; a detector's keys are {', '.join(sorted(fields))}")
    checks = {
        "layout": (lambda value: value in LAYOUTS, " or ".join(LAYOUTS)),
        "channels": (lambda value: value in CHANNELS, " or ".join(CHANNELS)),
        "height": (_is_side, "32 to 4096 pixels"),
        "width": (_is_side, "32 to 4096 pixels"),
        "scale": (lambda value: _is_number(value) and value > 0, "a number above 0"),
        "mean": (_are_three, "three numbers"),
        "deviation": (lambda value: _are_three(value) and min(value) > 0, "three numbers above 0"),
        "classes": (_are_names, "a list of names"),
    }
    for key, value in values.items():
        good, allowed = checks[key]
        if not good(value):
            raise InputError(f"{path}: {key} {str(value)[:60]!r}: must be {allowed}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_side(value: Any) -> bool:
    return type(value) is int and 32 <= value <= 4096


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_three(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))


def _literal(text: str | None) -> Any:
    # Exporters write lists and dicts as Python prints them.
    try:
        return None if text is None or len(text) > 1_000_000 else ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _names(text: str | None) -> tuple[str, ...]:
    """The classes' names of an exporter's metadata: a dict of numbers and names, or a list. Empty if it is neither."""
    names = _literal(text)
    if isinstance(names, dict) and sorted(map(str, names)) == sorted(map(str, range(len(names)))):
        names = [names[key] for key in sorted(names, key=lambda key: int(key))]
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _size(stated: dict, metadata: dict[str, str], shape: Shape, path: Path, way_out: str) -> tuple[int, int]:
    """Height and width of the input: the graph's, which nothing may contradict, else those that were stated."""
    if len(shape) != 4 or shape[1] not in (3, None):
        raise InputError(f"{path}: its input is {shape}, not [images, 3, height, width]")
    exported = _literal(metadata.get("imgsz"))
    exported = exported if isinstance(exported, list) and len(exported) == 2 and all(map(_is_side, exported)) else None
    sides = []
    for index, name in enumerate(("height", "width")):
        fixed, told = shape[2 + index], stated.get(name, exported[index] if exported else None)
        if fixed is not None and name in stated and stated[name] != fixed:
            raise InputError(f"{path}: {name} {stated[name]} is stated, but the input is {shape}")
        side = fixed if fixed is not None else told
        if side is None or not _is_side(side):
            raise InputError(f"{path}: the {name} of its input, {side or 'open'}, is not 32 to 4096 pixels: {way_out}")
        sides.append(side)
    return sides[0], sides[1]


def _layout(shape: Shape, classes: int) -> str | None:
    """The only layout that fits the output and the number of classes, else None."""
    if len(shape) != 3 or not classes:
        return None
    fitting = {"v5": shape[2] == 5 + classes, "v8": shape[1] == 4 + classes}
    layouts = [layout for layout, fits in fitting.items() if fits]
    return layouts[0] if len(layouts) == 1 else None


# ---- The protocol buffer.


def read_graph(path: Path) -> tuple[list[Shape], list[Shape], dict[str, str]]:
    """The shapes of a model's inputs and outputs, each in its order, and its metadata. Raises InputError."""
    data = memoryview(read_file(path))
    try:
        model = list(_fields(data))
        graph = next((value for number, value in model if number == _MODEL_GRAPH), None)
        metadata = dict(_texts(value) for number, value in model if number == _MODEL_METADATA)
        fields = list(_fields(graph)) if isinstance(graph, memoryview) else []
        weights = {_text(value, _TENSOR_NAME) for number, value in fields if number == _GRAPH_TENSORS}
        inputs, outputs = (
            [_shape(value) for number, value in fields if number == wanted and _text(value, 1) not in weights]
            for wanted in (_GRAPH_INPUTS, _GRAPH_OUTPUTS)
        )
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path} is damaged or no ONNX file ({error}): fetch or export it again") from error
    if not inputs or not outputs:
        raise InputError(f"{path} is no ONNX network: it has {len(inputs)} inputs and {len(outputs)} outputs")
    return inputs, outputs, metadata


def external_weights(path: Path) -> bool:
    """Whether any of a model's weights lie in another file, whose name the model could choose. Raises InputError."""
    data = memoryview(read_file(path))
    try:
        graph = _message(data, _MODEL_GRAPH)
        tensors = (value for number, value in _fields(graph) if number == _GRAPH_TENSORS)
        return any(
            number == _TENSOR_PLACE and value == 1
            for tensor in tensors
            if isinstance(tensor, memoryview)
            for number, value in _fields(tensor)
        )
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path} is damaged or no ONNX file ({error}): fetch or export it again") from error


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a message: a whole number, or the bytes of a text or of another message."""
    position = 0
    while position < len(data):
        key, position = _number(data, position)
        kind = key & 7
        if kind == 0:
            value, position = _number(data, position)
        else:
            length, position = _number(data, position) if kind == 2 else ({1: 8, 5: 4}[kind], position)
            if position + length > len(data):
                raise ValueError(f"{position + length - len(data)} bytes are missing")
            value, position = data[position : position + length], position + length
        yield key >> 3, value


def _number(data: memoryview, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _message(data: int | memoryview, number: int) -> memoryview:
    if not isinstance(data, memoryview):
        raise TypeError("a number where a message belongs")
    found = next((value for key, value in _fields(data) if key == number), memoryview(b""))
    if not isinstance(found, memoryview):
        raise TypeError("a number where a message belongs")
    return found


def _text(data: int | memoryview, number: int) -> str:
    return bytes(_message(data, number)).decode("utf-8", "replace")


def _texts(data: int | memoryview) -> tuple[str, str]:
    return _text(data, 1), _text(data, 2)


def _shape(data: int | memoryview) -> Shape:
    """The shape of a value: its type, the type's tensor, the tensor's shape, and of each dimension the size."""
    shape = _message(_message(_message(data, 2), 1), 2)
    sizes = []
    for number, dimension in _fields(shape):
        if number == 1 and isinstance(dimension, memoryview):
            size = next((value for key, value in _fields(dimension) if key == 1), None)
            sizes.append(size if isinstance(size, int) and 0 < size < 2**31 else None)
    return tuple(sizes)
