"""Networks of other programs that people take for StyleGAN3's: how each is recognised, and one line that names it."""

from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from passersby.errors import InputError

_WAY_OUT = (
    "only StyleGAN3 networks are read: take one of its configs T or R, or train one (jobs/train_gan.py starts from a "
    "StyleGAN3 network, or from nothing)"
)
_STYLEGAN2 = "it is a StyleGAN2 network (StyleGAN2-ADA's format)"
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
    synthesis = _mapping(state.get("_modules")).get("synthesis")
    blocks = _mapping(_mapping(getattr(synthesis, "state", None)).get("_modules"))
    # StyleGAN2's synthesis has the blocks b4, b8, ... StyleGAN3's has an input and layers.
    if "synthesis_kwargs" in keywords or ("b4" in blocks and "input" not in blocks):
        raise InputError(f"{_STYLEGAN2}: {_WAY_OUT}")


def refuse_foreign_tensors(names: Collection[str]) -> None:
    """Raise InputError if these tensors of a state dict are a StyleGAN2's."""
    if any(name.endswith(_ROSINALITY_NAMES) for name in names):
        raise InputError(f"{_ROSINALITY}: {_WAY_OUT}")
    if any(name.endswith("synthesis.b4.const") for name in names):
        raise InputError(f"{_STYLEGAN2}: {_WAY_OUT}")


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}
