"""Tiny networks, and their files in the byte format of the reference's network pickles (fixture `tiny`)."""

import contextlib
import functools
import io
import pickle
import sys
import types

import numpy as np
import torch

from passersby import stylegan2
from passersby.stylegan3 import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig

# As small as the formats allow: files of 100 kB, images in milliseconds.
GENERATOR = {"height": 16, "width": 16, "z_dim": 8, "w_dim": 12, "channel_base": 64, "channel_max": 6}
DISCRIMINATOR = {"height": 16, "width": 16, "channel_base": 64, "channel_max": 6}


def generator(seed: int = 0, **options) -> Generator:
    """A generator with fixed random weights and averages, 16 x 16 unless `options` give another size."""
    torch.manual_seed(seed)
    network = Generator(GeneratorConfig(**{**GENERATOR, **options}))
    network.mapping.w_avg.normal_()
    for name, buffer in network.named_buffers():
        if name.endswith("magnitude_ema"):
            buffer.uniform_(0.5, 2)
    return network.eval().requires_grad_(False)


def discriminator(**options) -> Discriminator:
    """A discriminator that fits `generator`."""
    torch.manual_seed(1)
    return Discriminator(DiscriminatorConfig(**{**DISCRIMINATOR, **options}))


@functools.cache
def networks() -> tuple[Generator, Generator, Discriminator]:
    """G_ema, G and D of one tiny config T."""
    return generator(0), generator(1), discriminator()


@functools.cache
def reference_file(protocol: int = 4) -> bytes:
    """The bytes of a reference network file with all three networks."""
    return reference_bytes(*networks(), protocol=protocol)


def foreign_bytes(class_name: str, blocks: tuple[str, ...] = (), **keywords) -> bytes:
    """A file in the reference's format whose G_ema is another program's class, with these blocks of its synthesis."""
    with _reference_modules() as easy_dict:
        state = {"_parameters": {}, "_buffers": {}, "_modules": {}}
        synthesis = _Module("SynthesisNetwork", state | {"_modules": dict.fromkeys(blocks)}, "")
        state = state | {"_modules": {"synthesis": synthesis}, "_init_args": (), "_init_kwargs": easy_dict(keywords)}
        return pickle.dumps({"G": None, "D": None, "G_ema": _Module(class_name, state, "")}, 3)


def easy_dict_bytes(protocol: int, **items) -> bytes:
    """The reference's own kind of dict, pickled."""
    with _reference_modules() as easy_dict:
        return pickle.dumps(easy_dict(items), protocol)


def reference_bytes(
    averaged, training=None, critic=None, source="raise SystemExit", keywords=None, protocol=4, style="stylegan3"
) -> bytes:
    """A reference network file with these networks.

    `source` is the text that the reference would execute, `keywords` replace those of the generators. `style`: the
    repository whose keywords a StyleGAN2 has: stylegan3, stylegan2-ada-pytorch or StyleGAN-Human.
    """
    with _reference_modules() as easy_dict:
        content = {"G": None, "D": None}
        for name, network in (("G", training), ("G_ema", averaged)):
            if network is not None:
                init_keywords = _generator_keywords(network.config, easy_dict, style) | (keywords or {})
                content[name] = _as_reference(network, source, _init_args=(), _init_kwargs=init_keywords)
        if critic is not None:
            init_keywords = _discriminator_keywords(critic.config, easy_dict, style)
            content["D"] = _as_reference(critic, source, _init_args=(), _init_kwargs=init_keywords)
        content["augment_pipe"] = _Module("AugmentPipe", {"_buffers": {}, "p": np.float32(0.5)}, source)
        content["training_set_kwargs"] = easy_dict(path="/home/somebody/people.zip", resolution=16)
        buffer = io.BytesIO()
        pickle.dump(content, buffer, protocol)
        return buffer.getvalue()


class _Module:
    """An object that pickles like a module of the reference: a function's name, a dict with source text and state."""

    def __init__(self, class_name: str, state: dict, source: str):
        self.meta = {"type": "class", "version": 6, "module_src": source}
        self.meta |= {"class_name": class_name, "state": state}

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


@contextlib.contextmanager
def _reference_modules():
    # The modules of the reference's names, which exist only while a file is pickled.
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("a network object was constructed by the function that its file names")

    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    _reconstruct_persistent_obj.__module__ = persistence.__name__
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    util.EasyDict = type("EasyDict", (dict,), {"__module__": util.__name__})
    modules = {module.__name__: module for module in (persistence, util)}
    modules |= {name: types.ModuleType(name) for name in ("torch_utils", "dnnlib")}
    sys.modules.update(modules)
    try:
        yield util.EasyDict
    finally:
        for name in modules:
            del sys.modules[name]


def _as_reference(module: torch.nn.Module, source: str, **extra) -> _Module:
    state = {"training": False, "_parameters": dict(module._parameters), "_buffers": dict(module._buffers)}
    state["_non_persistent_buffers_set"] = set()
    state["_modules"] = {name: _as_reference(child, source) for name, child in module._modules.items()}
    # The reference keeps numpy values among its attributes: arrays and numbers.
    state |= {"size": np.array([4, 4]), "bandwidth": np.float64(2.0), "eye": np.asfortranarray(np.eye(2))}
    return _Module(type(module).__name__, state | extra, source)


def _generator_keywords(config: GeneratorConfig | stylegan2.GeneratorConfig, easy_dict: type, style: str) -> dict:
    if isinstance(config, stylegan2.GeneratorConfig):
        return _stylegan2_keywords(config, easy_dict, style)
    names = ("z_dim", "c_dim", "w_dim", "channel_base", "channel_max", "img_channels", "conv_kernel")
    keywords = {name: getattr(config, name) for name in (*names, "use_radial_filters")}
    keywords["mapping_kwargs"] = easy_dict(num_layers=config.mapping_layers)
    return keywords | {"img_resolution": config.height}


def _stylegan2_keywords(config: stylegan2.GeneratorConfig, easy_dict: type, style: str) -> dict:
    keywords = {name: getattr(config, name) for name in ("z_dim", "c_dim", "w_dim", "img_channels")}
    synthesis = {name: getattr(config, name) for name in ("channel_base", "channel_max", "conv_clamp", "num_fp16_res")}
    keywords["mapping_kwargs"] = easy_dict(num_layers=config.mapping_layers)
    keywords["img_resolution"] = config.height
    if style == "stylegan3":
        return keywords | synthesis | {"fused_modconv_default": "inference_only"}
    # Files that were converted from TensorFlow name everything, also what has its default.
    keywords["mapping_kwargs"] |= {"embed_features": None, "activation": "lrelu", "w_avg_beta": 0.995}
    synthesis |= {"architecture": "skip", "resample_filter": [1, 3, 3, 1], "use_noise": True}
    keywords["synthesis_kwargs"] = easy_dict(synthesis)
    return keywords | ({"square": config.width == config.height} if style == "StyleGAN-Human" else {})


def _discriminator_keywords(config: DiscriminatorConfig, easy_dict: type, style: str) -> dict:
    keywords = {name: getattr(config, name) for name in ("c_dim", "img_channels", "channel_base", "channel_max")}
    keywords |= {"block_kwargs": easy_dict(freeze_layers=0), "mapping_kwargs": easy_dict()}
    keywords["epilogue_kwargs"] = easy_dict(mbstd_group_size=4)
    if style == "StyleGAN-Human":
        keywords["square"] = config.width == config.height
    return keywords | {"img_resolution": config.height}
