"""The three kinds of network files: what each holds, as tensors and configurations, nothing built yet."""

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch

from passersby.errors import InputError
from passersby.stylegan3.config_limits import config_from_keywords, config_from_mapping
from passersby.stylegan3.discriminator import DiscriminatorConfig, reference_discriminator_config
from passersby.stylegan3.generator import reference_generator_config
from passersby.stylegan3.reference_pickle import PersistentObject, read_reference_pickle
from passersby.stylegan3.schedule import GeneratorConfig
from passersby.stylegan3.state_dict import Tensors, find_networks, infer_discriminator_config, infer_generator_config

FORMAT_VERSION = 1
METADATA_KEY = "passersby"  # of our metadata in a .safetensors file

# What torch.load raises on damaged files: its reader is partly Python without checks of its own.
_DAMAGE = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError)
_DAMAGE += (AttributeError, IndexError, AssertionError)


@dataclasses.dataclass
class Contents:
    """What a file says, before any network is built."""

    generator: GeneratorConfig
    discriminator: DiscriminatorConfig | None
    networks: dict[str, Tensors]  # "G_ema", perhaps "G" and "D"
    record: dict[str, Any]


def _read_pickle(data: BinaryIO, path: Path, width: int | None) -> Contents:
    del path, width
    found = read_reference_pickle(data)
    networks = {name: found[name] for name in ("G_ema", "G", "D") if isinstance(found.get(name), PersistentObject)}
    averaged, discriminator = networks["G_ema"], networks.get("D")
    config = config_from_keywords(reference_generator_config, averaged.keywords())
    record: dict[str, Any] = {"trained_on": "unknown"}
    training_set = found.get("training_set_kwargs")
    if isinstance(training_set, dict):
        known = ("path", "resolution", "max_size", "use_labels", "xflip")
        plain = {key: training_set[key] for key in known if isinstance(training_set.get(key), (str, int))}
        if isinstance(plain.get("path"), str):
            plain["path"] = plain["path"].replace("\\", "/").rpartition("/")[2]  # a name, not somebody's folders
        record["training_set"] = plain
    if discriminator is not None:
        discriminator_config = config_from_keywords(reference_discriminator_config, discriminator.keywords())
    else:
        discriminator_config = None
    tensors = {name: network.tensors() for name, network in networks.items()}
    return Contents(config, discriminator_config, tensors, record)


def _read_safetensors(data: BinaryIO, path: Path, width: int | None) -> Contents:
    del data, width
    networks: dict[str, Tensors] = {}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            names = file.keys()
            if text is None:
                listed = ", ".join(name[:40] for name in list(names)[:3]) or "none"
                raise InputError(f"a .safetensors file that is no network of this program (tensors: {listed})")
            metadata = _parse_metadata(text)
            for name in names:
                network, _, key = name.partition(".")
                networks.setdefault(network, {})[key] = file.get_tensor(name)
    except safetensors.SafetensorError as error:
        raise InputError(f"damaged .safetensors file ({str(error)[:100]}): fetch it again") from error
    generator = config_from_mapping(GeneratorConfig, metadata["generator"])
    discriminator = metadata["discriminator"]
    if discriminator is not None:
        discriminator = config_from_mapping(DiscriminatorConfig, discriminator)
    if not {"G_ema"} <= set(networks) <= {"G_ema", "G", "D"} or (discriminator is None) != ("D" not in networks):
        raise InputError(f"its networks {sorted(networks)[:5]} are not those that its metadata describe")
    return Contents(generator, discriminator, networks, metadata["record"])


def _parse_metadata(text: str) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"its metadata is no JSON ({str(error)[:80]}): the file is damaged") from error
    version = metadata.get("format_version") if isinstance(metadata, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(f"format version {str(version)[:20]}; this program reads version {FORMAT_VERSION}")
    if {"generator", "discriminator", "record"} - set(metadata) or not isinstance(metadata["record"], dict):
        raise InputError("its metadata lacks the configuration or the record: the file is damaged")
    return metadata


def _read_state_dict(data: BinaryIO, path: Path, width: int | None) -> Contents:
    del data
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = " ".join(str(error).split())
        if "GLOBAL" in reason:  # PyTorch's own refusal is a page long: the name is what matters
            reason = "it refers to " + reason.partition("GLOBAL ")[2].partition(" was not")[0]
        raise InputError(f"no plain state dict, nothing of it was run ({reason[:120]})") from error
    networks = find_networks(state)
    discriminator = None
    if "D" in networks:
        discriminator = infer_discriminator_config(networks["D"])
        width = width or discriminator.width
    generator = infer_generator_config(networks["G_ema"], width)
    return Contents(generator, discriminator, networks, {"trained_on": "unknown"})


READERS = {"pickle": _read_pickle, "safetensors": _read_safetensors, "state_dict": _read_state_dict}
