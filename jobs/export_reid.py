"""Write a re-identification network as ONNX, for programs without PyTorch, and compare its features."""

import copy
import dataclasses
import importlib
import itertools
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before other projects' folders of our names

from datasets.storage.local_copy import local_copy
from jobs.common import run_job
from passersby.bounds import Bound, check_bounds
from passersby.errors import InputError
from passersby.files import write_atomically
from passersby.reid.checkpoint import LoadedReid, load_reid
from passersby.reid.layers import DomainBatchNorm
from passersby.reid.network import ReidNetwork
from passersby.reid.timm_backbone import is_timm

OPSET = 18  # of 2022: readers of that year and later take it
METADATA_KEY = "passersby-reid"
MOST_DIFFERENCE = 1e-4  # 1 - cosine; float32 in another order of additions stays below 1e-6
INPUT = "images: float32 [N, 3, {height}, {width}], RGB, 0..1 (bytes / 255); ImageNet's mean is taken off inside"
OUTPUT = "features: float32 [N, {features}], of length 1; compare by their inner product"


@dataclasses.dataclass(frozen=True)
class Config:
    """Write a re-identification network as ONNX and compare its features with PyTorch's, in onnxruntime.

    Exit code 0: the file is written, and its features are the same.
    Exit code 2: an option cannot be used, or the features differ. Then nothing is written.
    """

    network: Annotated[str | Path, tyro.conf.arg(metavar="PATH_OR_URI")]
    """The network: our .safetensors, or a checkpoint of layumi's baseline, torchreid, fast-reid, BoT or TransReID."""
    out: Annotated[Path, tyro.conf.arg(metavar="PATH")]
    """The .onnx file to write."""
    flip: bool = True
    """Add the feature of the mirrored image, as the evaluation does.
    Without it the file computes twice as fast, and its features are a little less exact."""
    activation: Literal["relu", "none"] | None = None
    """The activation after the batch norm of the 512 values in layumi's file, which does not say it."""
    last_stride: Literal[1, 2] | None = None
    """Stride of the last stage in another program's file, which does not say it."""
    height: Annotated[int | None, Bound(ge=1)] = None
    """Height of the images in pixels. By default the height that the network was made for."""
    width: Annotated[int | None, Bound(ge=1)] = None
    """Width of the images in pixels. By default the width that the network was made for."""
    overwrite: bool = False
    """Replace the file of --out if it exists."""


class UnitFeature(nn.Module):
    """What the file computes: [N, 3, H, W] float32, 0..1, RGB -> [N, D] float32 of length 1."""

    columns: torch.Tensor

    def __init__(self, network: ReidNetwork, flip: bool):
        super().__init__()
        self.network, self.flip = network, flip
        self.register_buffer("columns", torch.arange(network.config.width - 1, -1, -1), persistent=False)
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        feature = self.network.feature(images)
        if self.flip:
            # As ReidNetwork.flip_averaged. `flip` would become a Slice of step -1, which OpenCV's DNN does not have.
            feature = feature + self.network.feature(images.index_select(3, self.columns))
        # As `normalize`, whose Expand to any number of images OpenCV's DNN does not have either.
        return feature / feature.norm(dim=1, keepdim=True).clamp_min(1e-12)


def folded(network: ReidNetwork) -> ReidNetwork:
    """A copy for eval mode, whose convolutions and embedding contain the batch normalisations behind them.

    OpenCV's DNN does the same while it runs, and does it again after a batch of another size, with wrong features
    (4.14). In a file without batch normalisations behind convolutions there is nothing to fold.
    """
    network = copy.deepcopy(network).eval()
    # timm's batch normalisations may contain an activation, and its modules need not stand in the order of the flow.
    for module in [] if is_timm(network.config.backbone) else [*network.backbone.modules()]:
        for (name, layer), (norm_name, norm) in itertools.pairwise([*module.named_children()]):
            norm = norm.norms[0] if isinstance(norm, DomainBatchNorm) else norm  # real images have domain 0
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(layer, norm))
                setattr(module, norm_name, nn.Identity())
    if network.config.neck == "embedding":
        norm = network.norm.norms[0] if isinstance(network.norm, DomainBatchNorm) else network.norm
        assert isinstance(norm, nn.BatchNorm1d)  # as ReidNetwork makes it
        network.embed = fuse_linear_bn_eval(network.embed, norm)
        network.norm = nn.Identity()
    return network


def main(config: Config) -> None:
    """Check, read, translate, compare, write."""
    check_output(config)
    check_packages()
    path = local_copy(config.network, "--network")
    loaded = load_reid(path, config.activation, config.height, config.width, last_stride=config.last_stride)
    for note in loaded.notes:
        print(f"note: {note}")
    module = UnitFeature(loaded.network, config.flip)
    content = onnx_bytes(UnitFeature(folded(loaded.network), config.flip), description(path, loaded, config.flip))
    difference = parity(module, content)
    limit = f"at most {MOST_DIFFERENCE:.0e} is allowed"
    if not difference <= MOST_DIFFERENCE:  # NaN is refused too
        raise InputError(
            f"--out {config.out} was not written: onnxruntime's features differ from PyTorch's by 1 - cosine "
            f"{difference:.1e}, {limit}; another version of onnx, onnxscript or onnxruntime may do better"
        )
    print(f"onnxruntime and PyTorch: largest 1 - cosine {difference:.1e} on 8 images ({limit})")
    print(f"OpenCV's DNN and PyTorch: {opencv_parity(module, content)}")
    write_atomically(config.out, content)
    print(f"wrote {config.out}: {len(content):,} bytes, opset {OPSET}")
    size = loaded.network.config
    print(INPUT.format(height=size.height, width=size.width))
    print(OUTPUT.format(features=size.feature_width))


def check_output(config: Config) -> None:
    """Raise `InputError` for an output or a size that cannot be meant, before a large file is read."""
    if config.out.suffix != ".onnx":
        raise InputError(f"--out {config.out}: its name has to end with .onnx")
    if not config.out.parent.is_dir():
        raise InputError(f"--out {config.out}: there is no folder {config.out.parent}")
    if config.out.exists() and not config.overwrite:
        raise InputError(f"--out {config.out} is there already: give another name, or --overwrite")
    check_bounds(config)


def check_packages() -> None:
    """Raise `InputError` unless all of the extra `onnx` is installed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(f"{package} is not installed ({error}): pip install -e '.[onnx]'") from error


def description(path: Path, loaded: LoadedReid, flip: bool) -> dict:
    """What the file says about itself: its input and output, and the network that it was made from."""
    size = loaded.network.config
    return {
        "input": INPUT.format(height=size.height, width=size.width),
        "output": OUTPUT.format(features=size.feature_width),
        "flip_averaged": flip,
        "network": {"file": path.name, "sha256": loaded.sha256, "kind": loaded.kind},
        "config": dataclasses.asdict(size),
        "record": loaded.record,
    }


def onnx_bytes(module: UnitFeature, described: dict) -> bytes:
    """The whole ONNX file, weights inside, for batches of any size; `described` goes into its metadata as JSON."""
    import onnx

    size = module.network.config
    example = torch.zeros(2, 3, size.height, size.width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's exporter warns about its own parts
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        )
    assert program is not None  # with dynamo=True the exporter always returns a program
    model = program.model_proto
    for part in [*model.graph.node, *model.graph.value_info, model.graph, *model.functions]:
        del part.metadata_props[:]  # stack traces: somebody's folders
    model.producer_name = "passersby"
    model.doc_string = f"Re-identification features of images of people. {described['input']}. {described['output']}."
    model.graph.input[0].doc_string, model.graph.output[0].doc_string = described["input"], described["output"]
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(described, sort_keys=True, allow_nan=False)})
    onnx.checker.check_model(model)
    return model.SerializeToString()


def parity(module: UnitFeature, content: bytes) -> float:
    """The largest 1 - cosine between PyTorch's features and onnxruntime's: 8 images at once, and each alone.

    Four images are noise, four flat (black, white, grey, red). If both features are 0, 1 - cosine counts as 0.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return _difference(module, lambda images: np.asarray(session.run(["features"], {"images": images})[0]))


def opencv_parity(module: UnitFeature, content: bytes) -> str:
    """The same comparison with OpenCV's DNN, in words: not every version of OpenCV can run every file."""
    import cv2

    def features(images: np.ndarray) -> np.ndarray:
        network.setInput(images)
        return network.forward().copy()  # the next call writes into the same memory

    try:
        network = cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8))
        return f"largest 1 - cosine {_difference(module, features):.1e} on 8 images (OpenCV {cv2.__version__})"
    except cv2.error as error:
        return f"OpenCV {cv2.__version__} cannot run the file ({' '.join(str(error.err or error).split())[:120]})"


def _difference(module: UnitFeature, features: Callable[[np.ndarray], np.ndarray]) -> float:
    size = module.network.config
    noise = torch.rand(4, 3, size.height, size.width, generator=torch.Generator().manual_seed(0))
    colours = torch.tensor([[0.0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0]])
    images = torch.cat([noise, colours[:, :, None, None].expand_as(noise)])  # [8, 3, H, W] float32, 0..1
    with torch.inference_mode():
        expected = module(images).numpy()
    together, *alone = (features(batch) for batch in [images.numpy(), *images.numpy()[:, None]])
    # Half the squared distance of vectors of length 1 is 1 - cosine, without its rounding at 1.
    distances = [((values - expected) ** 2).sum(1) / 2 for values in (together, np.concatenate(alone))]
    return float(np.max(distances))


if __name__ == "__main__":
    run_job(main, Config)
