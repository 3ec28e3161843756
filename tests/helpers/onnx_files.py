"""A small ONNX detector with random numbers: one convolution of 32 x 32 pixels at stride 32, an activation, a shape."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_onnx(
    path: Path,
    layout: str,
    classes: int,
    size: tuple[int, int] = (96, 64),
    metadata: dict[str, str] | None = None,
    activation: str = "Sigmoid",
    open_size: bool = False,
    scale: float = 1 / 255,
    seed: int = 0,
) -> Path:
    """Write the detector; its numbers suit inputs of bytes x `scale`. `open_size`: the file leaves the size open."""
    values, boxes = {"v5": 5, "v8": 4}[layout] + classes, size[0] // 32 * (size[1] // 32)
    random = np.random.default_rng(seed)
    weight = random.normal(0, 0.1 / (255 * scale), (values, 3, 32, 32)).astype(np.float32)
    initializers = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(random.normal(0, 0.5, values).astype(np.float32), "bias"),
        numpy_helper.from_array(np.array([1, values, -1]), "shape"),
    ]
    last = "rows" if layout == "v5" else "output0"
    nodes = [
        helper.make_node("Conv", ["images", "weight", "bias"], ["maps"], kernel_shape=[32, 32], strides=[32, 32]),
        helper.make_node(activation, ["maps"], ["probabilities"]),
        helper.make_node("Reshape", ["probabilities", "shape"], [last]),
    ]
    if layout == "v5":
        nodes.append(helper.make_node("Transpose", [last], ["output0"], perm=[0, 2, 1]))
    shape = [1, boxes, values] if layout == "v5" else [1, values, boxes]
    sides = ["height", "width"] if open_size else list(size)
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, *sides])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, "a", "b"] if open_size else shape)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path
