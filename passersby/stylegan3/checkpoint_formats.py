"""The three kinds of network files: what each holds, as tensors and configurations, nothing built yet."""

import dataclasses
from pathlib import Path
from typing import Any, BinaryIO

from passersby import stylegan2
from passersby.checkpoints import GENERATOR, Tensors, read_own, read_state
from passersby.errors import InputError
from passersby.stylegan2.generator import reference_generator_config as reference_stylegan2_config
from passersby.stylegan3.config_limits import (
    config_from_keywords,
    config_from_mapping,
    generator_config_from_mapping,
)
from passersby.stylegan3.discriminator import DiscriminatorConfig, reference_discriminator_config
from passersby.stylegan3.foreign_networks import refuse_foreign_module
from passersby.stylegan3.generator import reference_generator_config
from passersby.stylegan3.reference_pickle import PersistentObject, read_reference_pickle
from passersby.stylegan3.state_dict import (
    STYLEGAN2_MARK,
    find_networks,
    infer_discriminator_config,
    infer_generator_config,
    infer_stylegan2_config,
)


@dataclasses.dataclass
class Contents:
    """What a file says, before any network is built."""

    generator: stylegan2.AnyGeneratorConfig
    discriminator: DiscriminatorConfig | None
    networks: dict[str, Tensors]  # "G_ema", perhaps "G" and "D"
    record: dict[str, Any]


def _read_pickle(data: BinaryIO, path: Path, width: int | None) -> Contents:
    del path, width
    found = read_reference_pickle(data)
    networks = {name: found[name] for name in ("G_ema", "G", "D") if isinstance(found.get(name), PersistentObject)}
    averaged, discriminator = networks["G_ema"], networks.get("D")
    refuse_foreign_module(averaged.class_name, averaged.state)
    tensors = {name: network.tensors() for name, network in networks.items()}
    if STYLEGAN2_MARK in tensors["G_ema"]:
        config = config_from_keywords(reference_stylegan2_config, averaged.keywords())
    else:
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
    return Contents(config, discriminator_config, tensors, record)


def _read_safetensors(data: BinaryIO, path: Path, width: int | None) -> Contents:
    del data, width
    tensors, metadata = read_own(path, GENERATOR)
    networks: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        network, _, key = name.partition(".")
        networks.setdefault(network, {})[key] = tensor
    generator = generator_config_from_mapping(metadata["generator"])
    discriminator = metadata["discriminator"]
    if discriminator is not None:
        discriminator = config_from_mapping(DiscriminatorConfig, discriminator)
    if not {"G_ema"} <= set(networks) <= {"G_ema", "G", "D"} or (discriminator is None) != ("D" not in networks):
        raise InputError(f"its networks {sorted(networks)[:5]} are not those that its metadata describe")
    return Contents(generator, discriminator, networks, metadata["record"])


class _Ignored:
    """Stands for the options of a training, which others keep beside their networks and nothing here reads."""

    def __setstate__(self, state: Any) -> None:
        del state


_TRAINING_OPTIONS = [(_Ignored, "argparse.Namespace")]


def _read_state_dict(data: BinaryIO, path: Path, width: int | None) -> Contents:
    del data
    state = read_state(path, _TRAINING_OPTIONS)
    networks = find_networks(state)
    discriminator = None
    if "D" in networks:
        discriminator = infer_discriminator_config(networks["D"])
        width = width or discriminator.width
    if STYLEGAN2_MARK in networks["G_ema"]:
        generator = infer_stylegan2_config(networks["G_ema"])
    else:
        generator = infer_generator_config(networks["G_ema"], width)
    return Contents(generator, discriminator, networks, {"trained_on": "unknown"})


READERS = {"pickle": _read_pickle, "safetensors": _read_safetensors, "state_dict": _read_state_dict}
