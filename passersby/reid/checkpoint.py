"""Re-identification networks in files: `save_reid`, `load_reid`, and `load_imagenet` for a backbone's start."""

import dataclasses
import os
import sys
import urllib.error
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.hub

from passersby.checkpoints import REID, Tensors, fitted, is_safetensors, named, read_tensors, save_own
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.reid.formats import Contents, check_activation, read_foreign, read_osnet, read_passersby
from passersby.reid.network import IBN_NETS, FeatureNetwork, ReidConfig, ReidNetwork
from passersby.reid.onnx_network import NOTHING, LoadedOnnx, OnnxInput, is_onnx, load_onnx
from passersby.reid.osnet import OSNETS, is_osnet
from passersby.reid.timm_backbone import about, fetched, is_timm, published_state, resized

# Of ReidConfig: fields that files of older versions do not have.
LATER_FIELDS = ("width_factor", "pooling", "non_local", "neck_feature", "mean", "deviation")
IBN_WEIGHTS = (
    "its ImageNet weights are among IBN-Net's releases (https://github.com/XingangPan/IBN-Net), resnet50_ibn_a: fetch "
    "them and give --weights FILE, or --no-pretrained"
)
OSNET_WEIGHTS = (
    "its weights are on Google Drive, named by torchreid's Model Zoo "
    "(https://kaiyangzhou.github.io/deep-person-reid/MODEL_ZOO): fetch them and give --weights FILE, or --no-pretrained"
)


@dataclasses.dataclass(frozen=True)
class LoadedReid:
    """The contents of a file: the network in eval mode, float32 on the CPU, and what is known about it.

    `class_names` are empty if the file does not store them, as files of other programs. `notes` are lines for the user:
    assumptions about values that the file does not store. `sha256` is the hash of the file.
    """

    network: ReidNetwork
    class_names: tuple[str, ...]
    record: dict[str, Any]
    sha256: str
    kind: str  # as in passersby/reid/formats.py
    notes: tuple[str, ...]

    def features(self, images: np.ndarray, device: str | torch.device | None = None) -> np.ndarray:
        """Features [N, D] float32 of length 1 of images [N, H, W, 3] uint8 RGB of the network's size, flip-averaged.

        device: the network moves there, stays there and computes there; by default it stays where it is. Raises
        InputError for images of another size or type.
        """
        return self.feature_network(device)(images)

    def feature_network(self, device: str | torch.device | None = None) -> FeatureNetwork:
        """The network as what computes features of images; it moves to the device."""
        return FeatureNetwork(self.network, self.sha256, device)

    @property
    def about(self) -> dict[str, Any]:
        """What a record says about the network, plain JSON data."""
        config = self.network.config
        return {"kind": self.kind, "backbone": config.backbone, "neck": config.neck, "height": config.height,
                "width": config.width}  # fmt: skip


def save_reid(
    path: str | os.PathLike, network: ReidNetwork, *, class_names: Sequence[str], record: dict[str, Any]
) -> None:
    """Write network, configuration, the classes' names and `record` (plain JSON data) as `.safetensors`, atomically.

    Raises InputError if there is not one name for each class, or if the file cannot be written.
    """
    if len(class_names) != network.config.classes:
        raise InputError(f"{len(class_names)} class names for a network of {network.config.classes} classes")
    config = dataclasses.asdict(network.config)
    for field in dataclasses.fields(ReidConfig):
        if field.name in LATER_FIELDS and config[field.name] == field.default:
            del config[field.name]  # older versions read files of such networks
    metadata = {"config": config, "class_names": list(class_names), "record": record}
    save_own(path, REID, network.state_dict(), metadata)


def load_reid(
    path: str | os.PathLike,
    activation: str | None = None,
    height: int | None = None,
    width: int | None = None,
    *,
    last_stride: int | None = None,
    neck_feature: str | None = None,
) -> LoadedReid:
    """Read a network of ours, or a file of another program that passersby/reid/formats.py reads.

    The contents of the file decide its kind. Files of other programs do not store everything: `activation` ("relu" as
    in the study, "none" as in layumi's own code) and `last_stride` (1 | 2) complete them. If the file stores a value,
    the argument must agree. `neck_feature` ("after" | "before" the batch normalisation of a bnneck) replaces that of
    the file. `height` and `width` [pixels] replace the image size of the file, or 256 x 128 in files of
    other programs. Raises InputError, one line with the path and the problem, for a file that is missing, damaged,
    hostile or of another kind.

    >>> import numpy, passersby
    >>> reid = passersby.load_reid("reid.safetensors")
    >>> images = numpy.zeros((4, 64, 32, 3), numpy.uint8)
    >>> reid.features(images).shape
    (4, 16)
    """
    path = Path(path)
    with named("network", path):
        check_activation(activation)
        sha256 = file_sha256(path)
        contents = read_passersby(path) if is_safetensors(path) else read_foreign(path, activation, last_stride)
        config, notes = contents.config, list(contents.notes)
        if neck_feature is not None:
            if config.neck != "bnneck":
                raise InputError(f"neck_feature {neck_feature} was asked for, but its neck is {config.neck}, no bnneck")
            config = dataclasses.replace(config, neck_feature=neck_feature)
        activated = config.activation if config.neck == "embedding" else "none"
        has = {"activation": activated, "last_stride": config.last_stride}
        for name, asked in (("activation", activation), ("last_stride", last_stride)):
            if asked not in (None, has[name]):
                raise InputError(f"{name} {asked} was asked for, but the file's is {has[name]}")
        size = (height or config.height, width or config.width)
        if contents.kind == "passersby" and size != (config.height, config.width):
            notes.append(f"images of {size[0]} x {size[1]}: it was made for {config.height} x {config.width}")
        network = _build(contents, config, size)
    return LoadedReid(network, contents.class_names, contents.record, sha256, contents.kind, tuple(notes))


def load_judge(
    path: str | os.PathLike,
    activation: str | None = None,
    height: int | None = None,
    width: int | None = None,
    *,
    neck_feature: str | None = None,
    onnx: OnnxInput = NOTHING,
) -> LoadedReid | LoadedOnnx:
    """Read a network that only computes features: whatever `load_reid` reads, or an .onnx file of any program.

    `onnx` states how images go into an .onnx file, where the file does not (passersby/reid/onnx_network.py); `height`
    and `width` too. `activation` and `neck_feature` are for the others. Raises InputError as `load_reid` does, and for
    options of the other kind.
    """
    path = Path(path)
    with named("network", path):
        of_onnx = is_onnx(path)
        others = {"activation": activation, "neck_feature": neck_feature}
        options = others if of_onnx else dataclasses.asdict(onnx)
        if name := next((name for name, value in options.items() if value is not None), None):
            reason = "is for networks that are no .onnx" if of_onnx else "is for .onnx files"
            raise InputError(f"--{name.replace('_', '-')} {reason}: leave it out")
    if of_onnx:
        return load_onnx(path, dataclasses.replace(onnx, height=height, width=width))
    return load_reid(path, activation, height, width, neck_feature=neck_feature)


def load_imagenet(network: ReidNetwork, path: str | os.PathLike | None = None) -> tuple[str, ...]:
    """Fill the backbone, in place, with torchvision's ImageNet weights (IMAGENET1K_V1); returns notes for the user.

    Without `path` the file is that of PyTorch's cache, fetched if it is not there. `path` is a state dict with
    torchvision's names (`.pth` or `.safetensors`), checked by shape. Its classifier is not used. With two domains both
    get the same batch normalisation. Raises InputError if the weights do not fit the network, if the file is of another
    kind, or if it cannot be fetched.
    """
    name = network.config.backbone
    if network.config.stem == "small":
        raise InputError(f"stem {network.config.stem}: there are no ImageNet weights for it; take the stem imagenet")
    if network.config.width_factor != 1:
        raise InputError(f"width factor {network.config.width_factor:g}: there are no ImageNet weights for it; take 1")
    if name == "resnet10":
        raise InputError("resnet10: there are no ImageNet weights for it; take resnet18, or random weights")
    if name in OSNETS:
        return _load_torchreid_start(network, path)
    if is_timm(name):
        return load_timm(network, path)[0]
    if name in IBN_NETS and path is None:
        raise InputError(f"{name}: {IBN_WEIGHTS}")
    path = Path(path) if path is not None else _fetched(name)
    with named("ImageNet weights", path):
        sha256 = file_sha256(path)
        published = {key: value for key, value in read_tensors(path).items() if not key.startswith("fc.")}
        expected = network.backbone.state_dict()
        kept = {key: value for key, value in expected.items() if ".non_local." in key or key == "avgpool.p"}
        source = "IBN-Net's" if name in IBN_NETS else "torchvision's"
        wanted = {key: value for key, value in expected.items() if key not in kept}
        network.backbone.load_state_dict(kept | _for_domains(published, wanted, f"{source} {name}"))
    return (f"backbone {name} starts from ImageNet weights: {path.name}, sha256 {sha256}; their classifier is unused",)


def _for_domains(published: Tensors, expected: Tensors, what: str) -> Tensors:
    # A domain's module is named after the one without domains: bn1.norms.0.weight is bn1.weight.
    sources = {key: key.replace(".norms.0.", ".").replace(".norms.1.", ".") for key in expected}
    tensors = {key: published[source] for key, source in sources.items() if source in published}
    # `fitted` refuses these names.
    tensors |= {key: published[key] for key in published.keys() - set(sources.values())}
    return fitted(tensors, expected, what)


def load_timm(network: ReidNetwork, path: str | os.PathLike | None = None) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Fill a backbone of timm, in place, with timm's published weights, or with those of a file of such a network.

    Returns notes for the user, and the weights' name, licence, source and sha256 for the record. Raises InputError as
    `load_imagenet` does.
    """
    config = network.config
    stated = about(config.backbone)
    path, source = (Path(path), None) if path is not None else fetched(config.backbone)
    with named("weights of timm", path):
        sha256 = file_sha256(path)
        published = published_state(config.backbone, config.height, config.width, read_tensors(path))
        expected = network.backbone.state_dict()
        network.backbone.load_state_dict(_for_domains(published, expected, f"timm's {config.backbone}"))
    licence = stated.licence or "not stated"
    origin = f"{source}, licence {licence}" if source else f"given by --weights (timm's own have the licence {licence})"
    note = f"backbone {stated.name} starts from timm's weights: {path.name}, sha256 {sha256}, {origin}"
    record = {"name": stated.name, "licence": licence if source else f"not known; timm's own: {licence}"}
    return (note,), record | {"source": source or path.name, "sha256": sha256}


def _load_torchreid_start(network: ReidNetwork, path: str | os.PathLike | None) -> tuple[str, ...]:
    name = network.config.backbone
    if path is None:
        raise InputError(f"{name}: {OSNET_WEIGHTS}")
    path = Path(path)
    with named("OSNet weights", path):
        sha256 = file_sha256(path)
        tensors = read_tensors(path)
        if not is_osnet(tensors):
            raise InputError(f"no OSNet of torchreid: {OSNET_WEIGHTS}")
        of_file, tensors = read_osnet(tensors)
        if of_file != name:
            raise InputError(f"the file's network is {of_file}, not {name}: give --backbone {of_file}, or another file")
        sizes = (network.config.embedding, network.config.pooled_width)
        embeds = network.config.neck == "embedding" and "embed.weight" in tensors
        embeds = embeds and tensors["embed.weight"].shape == sizes
        expected = {
            key: value
            for key, value in network.state_dict().items()
            if key.startswith(("backbone.", "embed.", "norm.") if embeds else "backbone.")
        }
        unused = ("classifier.",) if embeds else ("classifier.", "embed.", "norm.")
        published = {key: value for key, value in tensors.items() if not key.startswith(unused)}
        network.load_state_dict(_for_domains(published, expected, f"torchreid's {name}"), strict=False)
    unused_parts = "its classifier is" if embeds else "its embedding and its classifier are"
    return (f"backbone {name} starts from torchreid's weights: {path.name}, sha256 {sha256}; {unused_parts} unused",)


def _fetched(name: str) -> Path:
    from torchvision.models import get_model_weights  # takes seconds: for those who need ImageNet weights

    url = get_model_weights(name)["IMAGENET1K_V1"].url
    file = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if path.is_file():
        return path
    print(f"fetching {url} to {path}", file=sys.stderr)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = file.removesuffix(".pth").rpartition("-")[2]  # the first digits of its sha256
        torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix, progress=False)
    except (OSError, RuntimeError, urllib.error.URLError) as error:
        raise InputError(
            f"cannot fetch the ImageNet weights {file} ({' '.join(str(error).split())[:100]}): fetch {url} elsewhere "
            "and give it: --weights PATH"
        ) from error
    return path


def _build(contents: Contents, config: ReidConfig, size: tuple[int, int]) -> ReidNetwork:
    """The network for images of `size`. Loading must not draw from PyTorch's stream: it would change a seed's results.

    A network of timm may have tables without weights, so it is built with values, and for the size of its file.
    """
    sized = dataclasses.replace(config, height=size[0], width=size[1])
    if not is_timm(config.backbone):
        with torch.device("meta"):
            network = ReidNetwork(sized)
        network.load_state_dict(fitted(contents.tensors, network.state_dict()), strict=True, assign=True)
        return network.eval()
    with torch.random.fork_rng(devices=[]):
        network = ReidNetwork(config)
        network.load_state_dict(fitted(contents.tensors, network.state_dict()), strict=True)
        if sized != config:
            resized(network.backbone, config.backbone, *size)
            network.config = sized
    return network.eval()
