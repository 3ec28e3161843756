"""A small re-ID network as .onnx with random numbers: one convolution, ReLU, the mean over all places."""

from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

VALUES = 16  # of a feature
STATED = {"mean": [0.485, 0.456, 0.406], "deviation": [0.229, 0.224, 0.225]}


def weight() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, (VALUES, 3, 8, 8)).astype(np.float32)


def write_reid_onnx(
    path: Path,
    size: tuple[int | str, int | str] = (32, 16),
    batch: int | str = "batch",
    kind: int = TensorProto.FLOAT,
    channels_last: bool = False,
    metadata: dict[str, str] | None = None,
    pooled: bool = True,
    inputs: int = 1,
    external: str | None = None,
) -> Path:
    """Write the network; numbers of `size` and `batch` are fixed, names are open. Its output is [N, VALUES, 1, 1]."""
    shape = [batch, *size, 3] if channels_last else [batch, 3, *size]
    nodes, value = [], "images"
    if kind != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [value], ["cast"], to=TensorProto.FLOAT))
        value = "cast"
    if channels_last:
        nodes.append(helper.make_node("Transpose", [value], ["first"], perm=[0, 3, 1, 2]))
        value = "first"
    nodes.append(helper.make_node("Conv", [value, "weight"], ["maps"], kernel_shape=[8, 8], strides=[4, 4]))
    nodes.append(helper.make_node("Relu", ["maps"], ["features" if not pooled else "positive"]))
    if pooled:
        nodes.append(helper.make_node("GlobalAveragePool", ["positive"], ["features"]))
    tensor = numpy_helper.from_array(weight(), "weight")
    if external is not None:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=external)
    graph = helper.make_graph(
        nodes,
        "reid",
        [helper.make_tensor_value_info("images" + "2" * n, kind, shape) for n in range(inputs)],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, None)],
        [tensor],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    path.write_bytes(model.SerializeToString())
    return path


def features(
    images: np.ndarray, mean=(0.0,) * 3, deviation=(1.0,) * 3, scale=1 / 255, channels="rgb", flip=True
) -> np.ndarray:
    """PyTorch's features of length 1 of images [N, H, W, 3] uint8 RGB, with the weights of the file."""
    values = torch.from_numpy(images.copy()).double()
    values = values.flip(3) if channels == "bgr" else values
    values = ((values * scale - torch.tensor(mean).double()) / torch.tensor(deviation).double()).permute(0, 3, 1, 2)
    made = torch.tensor(weight()).double()
    maps = [torch.conv2d(x, made, stride=4).relu().mean((2, 3)) for x in [values, values.flip(3)][: 1 + flip]]
    return torch.nn.functional.normalize(sum(maps), dim=1).numpy()
