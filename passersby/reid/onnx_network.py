"""Re-identification networks as .onnx, computed by onnxruntime, with the same call as `FeatureNetwork`.

onnxruntime is imported where a network is loaded. How images go in is stated by an `OnnxInput`: by the file's metadata
(jobs/export_reid.py writes the key `passersby-reid`; any program may write the key `passersby-input`, JSON), by a JSON
file beside it, NAME.json, or by options, each before the others. Nothing is guessed but what the graph itself says.
"""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from passersby.checkpoints import named
from passersby.errors import InputError
from passersby.reid.network import BATCH_IMAGES, FeatureNetwork
from passersby.yolo.onnx_file import CHANNELS, Shape, external_weights, read_graph

METADATA_KEY, OURS_KEY = "passersby-input", "passersby-reid"
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_EXAMPLE = '{"mean": [0.485, 0.456, 0.406], "deviation": [0.229, 0.224, 0.225]}'


@dataclasses.dataclass(frozen=True)
class OnnxInput:
    """How images go into a network; None: not stated.

    An input value is (byte x scale - mean) / deviation, its channels are "rgb" or "bgr", and scale is 1 / 255 where it
    is not stated. `flip`: the feature of the mirror image is added, as in our evaluation; true where it is not stated.
    """

    height: int | None = None
    width: int | None = None
    channels: str | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None
    flip: bool | None = None

    def over(self, other: "OnnxInput") -> "OnnxInput":
        """What this one states, and what only the other one states."""
        stated = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return dataclasses.replace(other, **stated)


NOTHING = OnnxInput()
# Files of jobs/export_reid.py take 0..1, and take ImageNet's mean off inside.
_OURS = OnnxInput(channels="rgb", scale=1 / 255, mean=(0.0, 0.0, 0.0), deviation=(1.0, 1.0, 1.0))


class OnnxFeatures(FeatureNetwork):
    """Features of images by an .onnx file: uint8 [N, H, W, 3] RGB -> float32 [N, D] of length 1.

    It can be pickled, and sent to workers. Without onnxruntime's CUDA it computes on the CPU, wherever it is moved.
    """

    def __init__(self, content: bytes, stated: OnnxInput, sha256: str):
        self.content, self.stated, self.sha256 = content, stated, sha256
        self.recipe = str(stated)
        self.device = torch.device("cpu")
        self._session: Any = None
        self._open()
        (self.width,) = self._run(np.zeros((1, self.height, self.width_pixels, 3), np.uint8)).shape[1:]

    def to(self, device: str | torch.device) -> "OnnxFeatures":
        """Compute on this device if onnxruntime can; returns itself."""
        wanted = torch.device(device) if _has_cuda() else torch.device("cpu")
        if wanted.type != self.device.type:
            self.device = wanted
            self._open()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Raises InputError for images of another shape or type."""
        self._check(images)
        features = np.empty((len(images), self.width), np.float32)
        step = self.batch or BATCH_IMAGES[self.device.type]
        for start in range(0, len(images), step):
            features[start : start + step] = self._flip_averaged(images[start : start + step])
        return features

    def _flip_averaged(self, images: np.ndarray) -> np.ndarray:
        features = self._run(images)
        if self.stated.flip is not False:
            # Lengths stay as they are: the sum is that of the network's own features, as in FeatureNetwork.
            features = features + self._run(images[:, :, ::-1])
        return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)

    def _run(self, images: np.ndarray) -> np.ndarray:
        """[n, H, W, 3] uint8 -> [n, D] float32; n is at most the batch that the file fixes."""
        stated, count = self.stated, len(images)
        values = images[..., ::-1] if stated.channels == "bgr" else images
        if self._dtype is not np.uint8:
            mean, deviation = (np.array(part, np.float32) for part in (stated.mean, stated.deviation))
            scale = np.float32(1 / 255 if stated.scale is None else stated.scale)
            values = ((values.astype(np.float32) * scale - mean) / deviation).astype(self._dtype)
        if self.batch and count < self.batch:
            values = np.concatenate([values, np.zeros((self.batch - count, *values.shape[1:]), values.dtype)])
        values = values.transpose(0, 3, 1, 2) if self._channels_first else values
        try:
            output = np.asarray(self._session.run([self._output], {self._input: np.ascontiguousarray(values)})[0])
        except Exception as error:  # noqa: BLE001  onnxruntime's errors have no class of their own but Exception
            raise InputError(f"onnxruntime cannot compute it ({_reason(error)})") from error
        if output.ndim == 4 and output.shape[2:] == (1, 1):
            output = output[:, :, 0, 0]
        if output.ndim != 2 or len(output) != len(values):
            raise InputError(f"its output {output.shape} for {len(values)} images is not [images, values of a feature]")
        return output[:count].astype(np.float32)

    def _open(self) -> None:
        """A session for the content, and the names and the shape of its input and its output."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # errors are raised, in one line
        providers = ["CUDAExecutionProvider"] if self.device.type == "cuda" else []
        try:
            session = onnxruntime.InferenceSession(
                self.content, options, providers=[*providers, "CPUExecutionProvider"]
            )
        except Exception as error:  # noqa: BLE001  as above
            raise InputError(f"onnxruntime {onnxruntime.__version__} cannot read it ({_reason(error)})") from error
        (entry, *others), output = session.get_inputs(), session.get_outputs()[0]
        if others:
            raise InputError(f"it has the inputs {', '.join(str(each.name)[:30] for each in session.get_inputs())}: "
                             "one is needed, the images")  # fmt: skip
        if entry.type not in _DTYPES:
            raise InputError(f"its input is {entry.type}: one of {', '.join(_DTYPES)} is needed")
        self._session, self._input, self._output = session, entry.name, output.name
        self._dtype = _DTYPES[entry.type]
        shape = tuple(size if isinstance(size, int) and size > 0 else None for size in entry.shape)
        self._channels_first, self.batch = _layout(shape)[0], shape[0]
        self.height, self.width_pixels = _size(self.stated, shape)


@dataclasses.dataclass(frozen=True)
class LoadedOnnx:
    """The contents of an .onnx file; the attributes are those of `LoadedReid`, and class names are never known."""

    features: OnnxFeatures
    record: dict[str, Any]
    notes: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    kind: str = "onnx"

    @property
    def sha256(self) -> str:
        """That of the file, or of the file and what an option or a JSON file states about it."""
        return self.features.sha256

    @property
    def about(self) -> dict[str, Any]:
        """What a record says about the network, plain JSON data."""
        features = self.features
        size = {"height": features.height, "width": features.width_pixels}
        return (
            {"kind": self.kind, "backbone": "onnx", "neck": "none"}
            | size
            | {
                "input": {
                    name: value for name, value in dataclasses.asdict(features.stated).items() if name not in size
                }
            }
        )

    def feature_network(self, device: str | torch.device | None = None) -> FeatureNetwork:
        """The network that computes features."""
        return self.features if device is None else self.features.to(device)


def is_onnx(path: Path) -> bool:
    """Whether a file is an .onnx: by its name, or by its first bytes, the version of the format."""
    if path.suffix.lower() == ".onnx":
        return True
    with path.open("rb") as file:
        head = file.read(9)
    return head[:1] == b"\x08" and head[8:9] != b"{"  # a .safetensors has its length there


def load_onnx(path: Path, given: OnnxInput = NOTHING) -> LoadedOnnx:
    """Read a network. `given` are options, which come before what the JSON beside the file and its metadata state.

    Raises InputError, one line with the path and the problem, where something is missing, contradictory or damaged.
    """
    with named("network", path):
        inputs, _, metadata = read_graph(path)
        if external_weights(path):
            raise InputError("its weights lie in other files: save it with them inside (one file, below 2 GB)")
        outside = given.over(_beside(path))
        stated = outside.over(_stated(metadata.get(METADATA_KEY), f"metadata {METADATA_KEY}"))
        record: dict[str, Any] = {"trained_on": "unknown"}
        if OURS_KEY in metadata:
            described = _json(metadata[OURS_KEY], f"metadata {OURS_KEY}")
            stated = stated.over(dataclasses.replace(_OURS, flip=described.get("flip_averaged") is not True))
            if isinstance(described.get("record"), dict):
                record = described["record"]
        _check(stated, inputs[0], path)
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if outside != NOTHING:  # the same file gives other features then
            sha256 = hashlib.sha256(f"{sha256} {outside}".encode()).hexdigest()
        features = OnnxFeatures(content, stated, sha256)
    batch = f"{features.batch} at once" if features.batch else "any number at once"
    normalised = (
        "bytes"
        if features._dtype is np.uint8
        else f"(byte x {stated.scale or 1 / 255:.6g} - {list(stated.mean or ())}) / {list(stated.deviation or ())}"
    )
    note = (
        f"images of {features.height} x {features.width_pixels}, {batch}, {stated.channels or 'rgb'}, {normalised}, "
        f"{'without' if stated.flip is False else 'with'} the mirror image; features of {features.width} values"
    )
    cpu = () if _has_cuda() or not torch.cuda.is_available() else ("onnxruntime here has no CUDA: computed on the CPU",)
    return LoadedOnnx(features, record, (note, *cpu))


def onnx_sha256(path: Path) -> str | None:
    """The hash of an .onnx with a JSON file beside it, as `load_onnx` has it; None where the file's own is meant."""
    with named("network", path):
        outside = _beside(path) if is_onnx(path) else NOTHING
        if outside == NOTHING:
            return None
        own = hashlib.sha256(path.read_bytes()).hexdigest()
        return hashlib.sha256(f"{own} {outside}".encode()).hexdigest()


# ---- What is stated about its input.


def _beside(path: Path) -> OnnxInput:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return NOTHING
    return _stated(beside.read_bytes()[: 1 << 20].decode("utf-8-sig", "replace"), f"{beside.name} beside it")


def _json(text: str, place: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: no JSON ({str(error)[:80]})") from error
    if not isinstance(values, dict):
        raise InputError(f"{place}: a JSON object is needed, such as {_EXAMPLE}")
    return values


def _stated(text: str | None, place: str) -> OnnxInput:
    if text is None:
        return NOTHING
    values = _json(text, place)
    known = {field.name for field in dataclasses.fields(OnnxInput)}
    if unknown := sorted(map(str, values.keys() - known)):
        raise InputError(f"{place}: {unknown[0][:40]} is unknown; its keys are {', '.join(sorted(known))}")
    # `_check_values` then looks at each type.
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    made = OnnxInput(**fields)
    _check_values(made, place)
    return made


def _check_values(stated: OnnxInput, place: str) -> None:
    three = (lambda v: len(v) == 3 and all(map(_is_number, v)), "three numbers")
    checks = {
        "height": (_is_side, "a whole number from 8 to 4096"),
        "width": (_is_side, "a whole number from 8 to 4096"),
        "channels": (lambda v: v in CHANNELS, " or ".join(CHANNELS)),
        "scale": (lambda v: _is_number(v) and v > 0, "a number above 0"),
        "mean": (lambda v: isinstance(v, tuple) and three[0](v), three[1]),
        "deviation": (lambda v: isinstance(v, tuple) and three[0](v) and min(v) > 0, f"{three[1]} above 0"),
        "flip": (lambda v: isinstance(v, bool), "true or false"),
    }
    for name, (good, needed) in checks.items():
        value = getattr(stated, name)
        if value is not None and not good(value):
            raise InputError(f"{place}: {name} {str(value)[:60]!r}: must be {needed}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_side(value: Any) -> bool:
    return type(value) is int and 8 <= value <= 4096


def _check(stated: OnnxInput, shape: Shape, path: Path) -> None:
    _check_values(stated, "options")
    _layout(shape)
    _size(stated, shape)
    if stated.mean is None or stated.deviation is None:
        raise InputError(
            "it does not say what is taken off its images and what divides them: give --mean and --deviation, or write "
            f"{path.with_suffix('.json').name} beside it, such as {_EXAMPLE}; 0 0 0 and 1 1 1 for values of 0..1"
        )


def _layout(shape: Shape) -> tuple[bool, Shape]:
    """Whether channels come before height and width, and the shape of height and width."""
    if len(shape) == 4 and shape[1] == 3:
        return True, shape[2:]
    if len(shape) == 4 and shape[3] == 3:
        return False, shape[1:3]
    raise InputError(
        f"its input is {_words(shape)}: [images, 3, height, width] or [images, height, width, 3] is needed"
    )


def _size(stated: OnnxInput, shape: Shape) -> tuple[int, int]:
    """Height and width: the graph's, which nothing may contradict, else those that are stated."""
    sides = []
    for name, fixed in zip(("height", "width"), _layout(shape)[1], strict=True):
        told = getattr(stated, name)
        if fixed is not None and told not in (None, fixed):
            raise InputError(f"{name} {told} was asked for, but its input is {_words(shape)}")
        if fixed is None and told is None:
            raise InputError(f"its input {_words(shape)} leaves the {name} open: give --{name}, or state it in the "
                             "JSON file beside it")  # fmt: skip
        side = fixed if fixed is not None else told
        if not _is_side(side):
            raise InputError(f"its input {_words(shape)}: a {name} from 8 to 4096 pixels is needed")
        sides.append(side)
    return sides[0], sides[1]


def _words(shape: Shape) -> str:
    return f"[{', '.join('open' if size is None else str(size) for size in shape)}]"


def _has_cuda() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:140]
