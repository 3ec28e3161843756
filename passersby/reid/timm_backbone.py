"""Backbones of timm (R. Wightman, PyTorch Image Models) by name: "timm:resnet50", "timm:vit_base_patch16_224.dino".

timm is imported by the functions here, not by this module. A name is one of timm's own list, with or without the tag of
its weights; without a tag timm's default weights are meant. Names of a hub or a folder are refused, so a file that
holds a name can make this program neither fetch nor run anything.
"""

import dataclasses
import difflib
import functools
import logging
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.hub
from torch import nn

from passersby.checkpoints import Tensors
from passersby.errors import InputError

PREFIX = "timm:"
_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?", re.IGNORECASE)
_HUB_FILE = "model.safetensors"
_SAFE_FILES = {None: _HUB_FILE, "pytorch_model.bin": _HUB_FILE}  # the same weights, without a pickle
_SAFE_FILES["open_clip_pytorch_model.bin"] = "open_clip_model.safetensors"
# What its networks raise for sizes that they do not take: each says it in its own way.
_REFUSALS = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, KeyError, ZeroDivisionError)
_WAY_OUT = "fetch it elsewhere and give it: --weights FILE, or start from random weights: --no-pretrained"


@dataclasses.dataclass(frozen=True)
class About:
    """What timm's list says about a network and its weights."""

    name: str  # "timm:NAME.TAG" with the tag of the weights, "timm:NAME" where timm has none
    mean: tuple[float, float, float]  # RGB, of values 0..1
    deviation: tuple[float, float, float]
    licence: str | None  # of the weights
    fixed_size: bool  # the network is built for one size of images
    has_weights: bool


def is_timm(name: str) -> bool:
    """Whether the name of a backbone is one of timm's; it may still be unknown there."""
    return name.startswith(PREFIX)


def about(name: str) -> About:
    """What timm says about a backbone. Raises InputError for a name that it does not have, and without timm."""
    config = _pretrained_config(name)
    tagged = f"{PREFIX}{config.architecture}" + (f".{config.tag}" if config.tag else "")
    mean, deviation = (tuple(map(float, values)) for values in (config.mean, config.std))
    # Networks of satellite pictures and such have other channels.
    if len(mean) != 3 or len(deviation) != 3 or config.input_size[0] != 3:
        raise InputError(f"backbone {name}: it takes images of {config.input_size[0]} channels, not RGB")
    return About(tagged, mean, deviation, config.license, bool(config.fixed_input_size), bool(config.has_weights))


def make_timm(name: str, height: int, width: int, last_stride: int) -> nn.Module:
    """The network with random weights: images [N, 3, H, W] with its mean and deviation taken off -> pooled [N, D].

    last_stride 1 keeps the size in the last stage of timm's ResNets (Luo et al. 2019); other networks are built as they
    are. Raises InputError for a size that it does not take.
    """
    pooled_width(name, height, width)  # refuses the size before anything large is built
    made = _created(name, height, width)
    if last_stride == 1:
        _keep_last_size(made)
    return made


@functools.cache
def pooled_width(name: str, height: int, width: int) -> int:
    """The number of pooled features. Raises InputError for images of a size that the network does not take."""
    try:
        # Shapes alone: no weights are drawn, nothing is computed.
        with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
            pooled = _created(name, height, width).eval()(torch.empty(1, 3, height, width))
    except _REFUSALS as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"backbone {name} takes no images of {height} x {width} ({reason}): give another --height and --width; "
            f"timm made it for {' x '.join(map(str, _pretrained_config(name).input_size[1:]))}"
        ) from error
    if not isinstance(pooled, torch.Tensor) or pooled.ndim != 2:
        raise InputError(f"backbone {name}: it gives no pooled features: take another of timm's networks")
    return pooled.shape[1]


def resized(backbone: nn.Module, name: str, height: int, width: int) -> None:
    """Let a network that was built for another size take images of this size, in place: its position embeddings are
    interpolated. Raises InputError where timm cannot do it."""
    if not about(name).fixed_size:
        return
    if not hasattr(backbone, "set_input_size"):
        raise InputError(f"backbone {name} takes images of one size alone: leave --height and --width out")
    try:
        backbone.set_input_size((height, width))  # pyright: ignore[reportCallIssue]
    except _REFUSALS as error:
        raise InputError(
            f"backbone {name} takes no images of {height} x {width} ({' '.join(str(error).split())[:120]})"
        ) from error


def published_state(name: str, height: int, width: int, tensors: Tensors) -> Tensors:
    """A file's tensors under the names and in the shapes of the network for this size, without its classifier.

    timm translates names of other programs and interpolates position embeddings. Raises InputError for tensors of
    another network.
    """
    settings = {"num_classes": 0}
    head = _pretrained_config(name).classifier
    heads = [head] if isinstance(head, str) else list(head or ())
    rows = [tensors[f"{part}.weight"].shape[0] for part in heads if f"{part}.weight" in tensors]
    if rows:
        settings["num_classes"] = rows[0]
    # With the file's own number of classes timm wants every tensor to fit; it would pass over others otherwise.
    overlay = {"state_dict": tensors, "num_classes": settings["num_classes"], "label_offset": 0}
    try:
        with torch.random.fork_rng(devices=[]):
            made: Any = _created(name, height, width, pretrained=True, pretrained_cfg_overlay=overlay, **settings)
        if settings["num_classes"]:
            made.reset_classifier(0)
    except _REFUSALS as error:
        reason = re.sub(r"Error\(s\) in loading state_dict for \w+:", "", " ".join(str(error).split())).strip()
        raise InputError(f"the file is not one of {name}: {reason[:160]}") from error
    return made.state_dict()


def fetched(name: str) -> tuple[Path, str]:
    """The file of timm's published weights, and where it came from; from the hub's cache, else fetched, tried once.

    Raises InputError, one line with the way out, where there are no such weights or the hub cannot be reached.
    """
    config = _pretrained_config(name)
    if not config.has_weights or config.custom_load:
        tags = _timm().list_pretrained(f"{config.architecture}*")
        known = f"timm has weights for {', '.join(tags[:5])}" if tags else "timm has none for it"
        raise InputError(f"backbone {name}: no weights that can be fetched ({known}): give --weights FILE, or "
                         "--no-pretrained")  # fmt: skip
    if not config.hf_hub_id:
        return _from_url(config.url), config.url
    file: str = _SAFE_FILES.get(config.hf_hub_filename) or config.hf_hub_filename
    repository, _, revision = config.hf_hub_id.partition("@")
    source = f"{config.hf_hub_id}/{file}"
    return _from_hub(repository, file, revision or None, source), source


def _from_hub(repository: str, file: str, revision: str | None, source: str) -> Path:
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    print(f"fetching {source}", file=sys.stderr)
    try:
        if not huggingface_hub.constants.HF_HUB_OFFLINE:
            _reach(huggingface_hub.hf_hub_url(repository, file, revision=revision))
        with _quiet("huggingface_hub"):
            return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision, etag_timeout=10))
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"cannot fetch the weights {source} ({_reason(error)}): {_WAY_OUT}") from error


def _reach(url: str) -> None:
    # One try: the hub's own client goes on trying for half a minute where there is no network.
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10):
            pass
    except urllib.error.HTTPError:  # it answers, and its client knows what its answers mean
        pass


def _from_url(url: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    print(f"fetching {url} to {path}", file=sys.stderr)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    except (OSError, RuntimeError, ValueError, urllib.error.URLError) as error:
        raise InputError(f"cannot fetch the weights {url} ({_reason(error)}): {_WAY_OUT}") from error
    return path


def _reason(error: BaseException) -> str:
    # The hub's own message is about its cache; the error before it says what went wrong.
    while isinstance(error.__cause__, BaseException):
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:100]


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without the warnings of a library: the error says the same, in one line."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise InputError(f"timm is not installed ({error}): pip install timm") from error
    return timm


@functools.cache
def _pretrained_config(name: str) -> Any:
    timm = _timm()
    plain = name.removeprefix(PREFIX)
    architecture = plain.partition(".")[0]
    if not _NAME.fullmatch(plain) or not timm.is_model(architecture):
        known = timm.list_models()
        like = difflib.get_close_matches(architecture, known, 3) or ["resnet50", "vit_small_patch16_224"]
        raise InputError(
            f"backbone {name[:60]}: timm {timm.__version__} has no network of this name: "
            f"take one like {', '.join(PREFIX + each for each in like)}; timm.list_models() names all"
        )
    try:
        config = timm.models.get_pretrained_cfg(plain)
    except RuntimeError as error:
        known = [PREFIX + each for each in timm.list_pretrained(f"{architecture}.*")]
        raise InputError(
            f"backbone {name}: timm {timm.__version__} has no such weights, only {', '.join(known[:8]) or 'none'}"
        ) from error
    if config is None:  # a network without any published weights
        config = timm.models.PretrainedCfg(architecture=architecture)
    return config if config.architecture else dataclasses.replace(config, architecture=architecture)


def _created(name: str, height: int, width: int, num_classes: int = 0, **settings: Any) -> nn.Module:
    size = {"img_size": (height, width)} if about(name).fixed_size else {}
    with _quiet("timm"):  # it warns of a network without weights, which may be what is wanted
        return _timm().create_model(name.removeprefix(PREFIX), num_classes=num_classes, **size, **settings)


def _keep_last_size(backbone: nn.Module) -> None:
    """Stride 1 in the last stage of timm's ResNets (also ResNeXt, SE, ResNet-D); others stay as they are."""
    from timm.models.resnet import ResNet

    if not isinstance(backbone, ResNet):
        return
    block: nn.Module = backbone.layer4[0]  # pyright: ignore  # a Sequential, which timm does not say
    for module in block.modules():
        for name, child in [*module.named_children()]:
            if isinstance(child, nn.Conv2d) and child.stride == (2, 2):
                child.stride = (1, 1)
            elif isinstance(child, nn.AvgPool2d) and child.stride in (2, (2, 2)):  # of ResNet-D's shortcut
                setattr(module, name, nn.Identity())
