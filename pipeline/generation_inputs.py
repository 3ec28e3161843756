"""What jobs/generate.py makes people from: files looked at on the driver, and the configuration that they freeze."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets.latents.partners import check_generator, origins_of
from datasets.latents.table import Latents, read_latents
from datasets.runs.configuration import RANDOM, Configuration
from datasets.runs.plan import Plan, file_sha256, parse_layers
from datasets.storage.local_copy import local_copy
from passersby import weights
from passersby.errors import InputError
from passersby.options import flag
from pipeline.generation import Identity, identity_of


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The network's file, and what was given besides: real people's latents, a re-ID network with real pictures."""

    network: Path
    latents: Latents | None = None
    identity: Identity | None = None


def read_inputs(options: Mapping[str, Any]) -> Inputs:
    """The inputs by the options of the job (network, latents, identity, real, identity_*). Raises InputError."""
    network = local_copy(options["network"], "--network") if options["network"] else weights.DEMO_NETWORK
    latents = read_latents(options["latents"]) if options["latents"] is not None else None
    limits = {
        f"--{flag(name)}": options[name]
        for name in ("identity_floor", "identity_margin", "identity_ceiling", "identifiers", "gpus_per_identifier")
    }
    return Inputs(network, latents, identity_of(options["identity"], options["real"], latents, limits))


def freeze(options: Mapping[str, Any], inputs: Inputs, existing: Plan | None = None) -> Configuration:
    """The part of the options and inputs that changes bytes, checked.

    Origins are taken from an `existing` plan of the same latents: which of two pictures is nearer to a code may depend
    on the last bits of a machine. Raises InputError.
    """
    mix, latents = options["method"] == "mix", inputs.latents
    if mix and options["amount"] is not None:
        raise InputError(f"--amount {options['amount']}: it belongs to --method interpolate")
    layers = options["layers"] if options["layers"] is not None else "middle" if mix else "all"
    derived = {
        "layers": parse_layers(layers),
        "amount": None if mix else 0.5 if options["amount"] is None else options["amount"],
        "truncation_psi": options["truncation_psi"] if latents is None or options["partners"] == RANDOM else None,
        "jpeg_quality": options["jpeg_quality"] if options["format"] == "jpeg" else None,
        "network": file_sha256(inputs.network, "--network"),
        "detector": weights.WEIGHTS["yolov4-tiny"].files[0].sha256,  # `weights.get` takes no other
        "reference_threshold": options["detector_threshold"],
        "latents": None if latents is None else latents.sha256,
        "identity": inputs.identity and inputs.identity.sha256,
        "real": inputs.identity and inputs.identity.fingerprint,
    }
    if latents is not None:
        check_generator(latents, derived["network"], str(inputs.network))
        known = existing is not None and existing.configuration.latents == latents.sha256
        derived["origins"] = existing.configuration.origins if known else origins_of(latents)
    fields = {field.name for field in dataclasses.fields(Configuration)}
    return Configuration(**({name: options[name] for name in options.keys() & fields} | derived))
