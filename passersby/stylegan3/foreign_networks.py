"""Networks of other programs that people take for NVlabs': how each is recognised, and one line that names it."""

from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from passersby.errors import InputError

_WAY_OUT = (
    "only StyleGAN2 and StyleGAN3 networks in the format of NVlabs' PyTorch programs are read: take one of these, or "
    "train one (jobs/train_gan.py starts from such a network, or from nothing)"
)
_ROSINALITY = "it is a StyleGAN2 network of rosinality's stylegan2-pytorch"
_XL = "it is a StyleGAN-XL or Projected GAN network"

# The class of StyleGAN's and StyleGAN2's networks in TensorFlow, and of Progressive GAN's.
TENSORFLOW = ("dnnlib.tflib.network.Network", "tfutil.Network", "network.Network")
# Beginnings of names in pickles -> the refusal. The discriminators of StyleGAN-XL lie in files as they are.
PROGRAMS: dict[str, str] = dict.fromkeys(
    ("pg_modules.", "feature_networks.", "training.networks_fastgan."), f"{_XL}: {_WAY_OUT}"
)

_XL_KEYWORDS = {"path_stem", "head_layers", "up_factor", "rand_embedding", "cls_embed"}
_ROSINALITY_NAMES = ("conv1.conv.modulation.weight", "to_rgb1.conv.modulation.weight", "convs.0.conv.modulation.weight")


def tensorflow_network(*arguments: Any) -> NoReturn:
    """Stands for the class of TensorFlow's networks, and refuses them."""
    del arguments
    raise InputError(f"it is a TensorFlow network (StyleGAN, StyleGAN2 or Progressive GAN): {_WAY_OUT}")


def refuse_foreign_module(class_name: str, state: Mapping[str, Any]) -> None:
    """Raise InputError if the generator of a reference pickle, its class and attributes, is another program's."""
    keywords = _mapping(state.get("_init_kwargs"))
    mapping = _mapping(keywords.get("mapping_kwargs"))
    if class_name == "SuperresGenerator" or _XL_KEYWORDS & {*map(str, keywords), *map(str, mapping)}:
        raise InputError(f"{_XL}: {_WAY_OUT}")


def refuse_foreign_tensors(names: Collection[str]) -> None:
    """Raise InputError if these tensors of a state dict are those of rosinality's StyleGAN2."""
    if any(name.endswith(_ROSINALITY_NAMES) for name in names):
        raise InputError(f"{_ROSINALITY}: {_WAY_OUT}")


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}
