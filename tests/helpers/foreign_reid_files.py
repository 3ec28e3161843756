"""State dicts under the names of fast-reid, BoT and TransReID, written out plainly, with weights that depend on names.

`tests/data/foreign_reid.npz` has what the code of these programs computes with these weights in eval mode: fast-reid
c9bc3ce, reid-strong-baseline 3da7e6f and TransReID dec5504. They took the state dicts with strict names and shapes.
The file has every 16th value of the features of `images(...)`, [2, D / 16] float32 for each key of NETWORKS.
"""

import torch

from tests.helpers import osnet_files
from tests.helpers.osnet_files import batch, instance, values

CLASSES = 7
COUNTS = {"resnet50": (3, 4, 6, 3), "resnet18": (2, 2, 2, 2)}
NETWORKS = {
    "fastreid_bot": ("resnet50", {}),
    "fastreid_bot_ibn": ("resnet50", {"ibn": True}),
    "fastreid_agw": ("resnet50", {"non_local": True}),
    "fastreid_sbs_ibn": ("resnet50", {"ibn": True, "non_local": True, "exponent": True}),
    "bot_resnet50": ("resnet50", {}),
    "bot_resnet50_ibn_a": ("resnet50", {"ibn": True}),
    "bot_resnet18_without_neck": ("resnet18", {"neck": False}),
}
VITS = {"transreid_deit_small": (384, 12, 1536), "transreid_vit_base": (768, 12, 3072)}

Shapes = dict[str, tuple[int, ...]]


def images(height: int = 64) -> torch.Tensor:
    """[2, 3, height, height / 2] float32, 0..1; height is a multiple of 64."""
    factor = height // 64
    return osnet_files.images(2).repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def state(key: str) -> dict[str, torch.Tensor]:
    """The state dict of a key of NETWORKS or VITS, as its program writes it."""
    program = key.partition("_")[0]
    shapes = {"fastreid": fastreid, "bot": bot, "transreid": transreid}[program](key)
    tensors = {name: values(name, shape) for name, shape in shapes.items()}
    # Non-local blocks multiply three of their inputs: they must stay near the size of what they are added to.
    tensors |= {name: value * 0.1 for name, value in tensors.items() if ".NL_" in name and value.ndim == 4}
    if "heads.pool_layer.p" in tensors:
        tensors["heads.pool_layer.p"] = torch.tensor([2.5])
    return tensors


def fastreid(key: str) -> Shapes:
    name, parts = NETWORKS[key]
    shapes = resnet("backbone.", name, parts.get("ibn", False))
    for stage, channels, count in ((2, 512, 2), (3, 1024, 3)) if parts.get("non_local") else ():
        for number in range(count):
            place = f"backbone.NL_{stage}.{number}"
            for layer in ("g", "theta", "phi"):
                shapes |= {f"{place}.{layer}.weight": (1, channels, 1, 1), f"{place}.{layer}.bias": (1,)}
            shapes |= {f"{place}.W.0.weight": (channels, 1, 1, 1), f"{place}.W.0.bias": (channels,)}
            shapes |= batch(f"{place}.W.1", channels)
    shapes |= {"heads.pool_layer.p": (1,)} if parts.get("exponent") else {}
    return shapes | batch("heads.bottleneck.0", 2048) | {"heads.weight": (CLASSES, 2048)}


def bot(key: str) -> Shapes:
    name, parts = NETWORKS[key]
    shapes = resnet("base.", name, parts.get("ibn", False))
    if parts.get("ibn"):
        shapes |= {"base.fc.weight": (1000, 2048), "base.fc.bias": (1000,)}  # which the program never uses
    wide = 2048 if name == "resnet50" else 512
    if not parts.get("neck", True):
        return shapes | {"classifier.weight": (CLASSES, wide), "classifier.bias": (CLASSES,)}
    return shapes | batch("bottleneck", wide) | {"classifier.weight": (CLASSES, wide)}


def resnet(prefix: str, name: str, ibn: bool) -> Shapes:
    shapes = {f"{prefix}conv1.weight": (64, 3, 7, 7)} | batch(f"{prefix}bn1", 64)
    inputs, factor = 64, 4 if name == "resnet50" else 1
    for stage, count in enumerate(COUNTS[name]):
        wide = 64 * 2**stage
        for number in range(count):
            place = f"{prefix}layer{stage + 1}.{number}"
            first, middle, last = (1, 3, 1) if factor == 4 else (3, 3, 0)
            shapes[f"{place}.conv1.weight"] = (wide, inputs, first, first)
            shapes[f"{place}.conv2.weight"] = (wide, wide, middle, middle)
            if ibn and stage < 3:
                shapes |= instance(f"{place}.bn1.IN", wide // 2) | batch(f"{place}.bn1.BN", wide // 2)
            else:
                shapes |= batch(f"{place}.bn1", wide)
            shapes |= batch(f"{place}.bn2", wide)
            if last:
                shapes |= {f"{place}.conv3.weight": (4 * wide, wide, 1, 1)} | batch(f"{place}.bn3", 4 * wide)
            if inputs != factor * wide or (stage and not number):
                shapes[f"{place}.downsample.0.weight"] = (factor * wide, inputs, 1, 1)
                shapes |= batch(f"{place}.downsample.1", factor * wide)
            inputs = factor * wide
    return shapes


def transreid(key: str, patches: int = 128) -> Shapes:
    wide, blocks, hidden = VITS[key]
    shapes: Shapes = {"base.cls_token": (1, 1, wide), "base.pos_embed": (1, patches + 1, wide)}
    shapes |= {"base.patch_embed.proj.weight": (wide, 3, 16, 16), "base.patch_embed.proj.bias": (wide,)}
    layers = {"attn.qkv": (3 * wide, wide), "attn.proj": (wide, wide), "mlp.fc1": (hidden, wide)}
    for number in range(blocks):
        place = f"base.blocks.{number}."
        for name, shape in (layers | {"mlp.fc2": (wide, hidden)}).items():
            shapes |= {f"{place}{name}.weight": shape, f"{place}{name}.bias": shape[:1]}
        shapes |= instance(f"{place}norm1", wide) | instance(f"{place}norm2", wide)
    shapes |= instance("base.norm", wide) | {"base.fc.weight": (1000, wide), "base.fc.bias": (1000,)}
    return shapes | batch("bottleneck", wide) | {"classifier.weight": (CLASSES, wide)}
