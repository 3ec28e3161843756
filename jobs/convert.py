"""Convert a network file to our .safetensors or to a plain .pt state dict, and say what was found in it."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before other projects' folders of our names

from datasets.storage.local_copy import local_copy
from jobs.common import run_job
from passersby import stylegan2
from passersby.errors import InputError
from passersby.stylegan3.checkpoint import LoadedNetwork, load_network, save_network, save_state_dict
from passersby.stylegan3.schedule import GeneratorConfig

_SUFFIXES = (".safetensors", ".pt")
_EDITING_SIZE = 1024  # stylegan3-editing takes every .pt for config R of this size
_MOST_CHARACTERS = 300  # printed of a value of the record
# Channels are compared layer by layer (several bases mean the same), and these options change no number in float32.
_FREE = {"channel_base": 1, "channel_max": 1, "num_fp16_res": 4, "magnitude_ema_beta": 0.999}


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """Convert a StyleGAN2 or StyleGAN3 (a reference .pkl, our .safetensors, or a plain .pt) to .safetensors or .pt."""

    network: Annotated[str | Path, tyro.conf.arg(metavar="PATH_OR_URI")]
    """The network to read. The job sees from the contents what kind of file it is. It never runs code of the file."""
    out: Annotated[Path, tyro.conf.arg(metavar="PATH")]
    """The file to write. A .safetensors keeps everything, with a record.
    A .pt holds the averaged generator's tensors."""
    width: int | None = None
    """Width in pixels of a tall network in a plain .pt file, which does not say it.
    By default the network is square."""
    half: bool = False
    """Store weight matrices as float16: half the bytes, at a relative error of 2^-11."""
    overwrite: bool = False
    """Replace the file of --out if it exists."""
    for_: Annotated[Literal["any", "stylegan3-editing"], tyro.conf.arg(name="for")] = "any"
    """The program that will read the .pt. stylegan3-editing can build two kinds of generators only.
    Of other kinds it would leave layers random without a word, so this job refuses them."""


def main(config: ConvertConfig) -> None:
    """Check the output, read, describe, write, read back."""
    check_output(config)
    path = local_copy(config.network, "--network")
    network = load_network(path, width=config.width)
    print("\n".join(describe(path, network)))
    advice = editing_advice(network.generator.config) if config.for_ == "stylegan3-editing" else []
    if config.out.suffix == ".pt":
        save_state_dict(config.out, network.generator, half=config.half)
    else:
        save_network(
            config.out,
            network.generator,
            discriminator=network.discriminator,
            training_generator=network.training_generator,
            record=converted_record(path, network),
            half=config.half,
        )
    written = load_network(config.out, width=network.generator.config.width)
    print(f"wrote {config.out}: {config.out.stat().st_size:,} bytes, sha256 {written.sha256}")
    for line in losses(config, network) + advice:
        print(line)


def check_output(config: ConvertConfig) -> None:
    """Raise `InputError` for an output that cannot be meant, before a large file is read."""
    out = config.out
    if out.suffix not in _SUFFIXES:
        raise InputError(f"--out {out}: its name has to end with .safetensors or .pt")
    if config.for_ == "stylegan3-editing" and out.suffix != ".pt":
        raise InputError(f"--out {out}: stylegan3-editing reads a generator's tensors: its name has to end with .pt")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}")
    if Path(config.network).exists() and out.exists() and out.samefile(config.network):
        raise InputError(f"--out {out} is the network itself: give another name")
    if out.exists() and not config.overwrite:
        raise InputError(f"--out {out} is there already: give another name, or --overwrite")


def describe(path: Path, network: LoadedNetwork) -> list[str]:
    """What a file holds, in lines for people."""
    config = network.generator.config
    kind = {"pickle": "reference pickle", "safetensors": ".safetensors", "state_dict": "plain state dict"}
    if isinstance(config, stylegan2.GeneratorConfig):
        family = "StyleGAN2"
    else:
        family = "StyleGAN3-" + ("R" if config.use_radial_filters and config.conv_kernel == 1 else "T")
    labels = f", {config.c_dim} labels" if config.c_dim else ""
    parts = {
        "G_ema": network.generator,
        "G": network.training_generator,
        "D": network.discriminator,
    }
    counts = [f"{name} {sum(p.numel() for p in module.parameters()):,}" for name, module in parts.items() if module]
    record = [f"  {key}: {_in_brief(value)}" for key, value in sorted(network.record.items())] or ["  nothing"]
    return [
        f"{path}: {kind[network.format]}, sha256 {network.sha256}",
        f"{family}, {config.height} x {config.width} (height x width){labels}, "
        f"channels {config.channel_base}/{config.channel_max}",
        f"parameters: {', '.join(counts)}",
        "record:",
        *record,
    ]


def _in_brief(value: object) -> str:
    # The record of a network holds the records of all networks before it.
    words = str(value)
    more = len(words) - _MOST_CHARACTERS
    return words if more <= 0 else f"{words[:_MOST_CHARACTERS]}... and {more:,} characters more"


def converted_record(path: Path, network: LoadedNetwork) -> dict:
    """The record of the new file: the old record, and the files that it was converted from, step by step."""
    source = {"file": path.name, "sha256": network.sha256, "format": network.format}
    if "converted_from" in network.record:
        source["converted_from"] = network.record["converted_from"]
    return {"trained_on": "unknown", **network.record, "converted_from": source}


def losses(config: ConvertConfig, network: LoadedNetwork) -> list[str]:
    """What the new file no longer says, one line each."""
    if config.out.suffix != ".pt":
        return []
    shape = network.generator.config
    lines = ["a .pt holds the averaged generator alone: no configuration, no record, no G, no D"]
    if shape.width != shape.height and not isinstance(shape, stylegan2.GeneratorConfig):
        lines.append(f"its tensors do not say that it is tall: give --width {shape.width} when you convert it back")
    return lines


def editing_advice(config: stylegan2.AnyGeneratorConfig) -> list[str]:
    """How stylegan3-editing takes this generator as a `.pt`, in lines for people; InputError if it cannot take it.

    Its SG3Generator(path, res, config) builds, for any `.pt`, config R with the channels of 1024 px networks (65536 and
    1024), or with config="landscape" config T with 32768 and 512; `res` is 1024 unless it is given. Tensors that do not
    fit by name are left out silently (strict=False), so that layers stay random.
    """
    if isinstance(config, stylegan2.GeneratorConfig):
        raise InputError("stylegan3-editing builds StyleGAN3 generators, and this is a StyleGAN2: leave out --for")
    size = config.height
    kinds = {"": GeneratorConfig.config_r(size, size), ', config="landscape"': GeneratorConfig.config_t(size, size)}
    for option, kind in kinds.items():
        same = dataclasses.replace(config, **_FREE) == dataclasses.replace(kind, **_FREE)
        if not same or config.layers() != kind.layers():
            continue
        if not option and size == _EDITING_SIZE:
            return ["stylegan3-editing takes it as it is, as --stylegan_weights"]
        return [
            "stylegan3-editing takes every .pt for config R of 1024 px and leaves what does not fit random, without a "
            f"word: first give its two calls of SG3Generator in inversion/models/psp3.py res={size}{option}"
        ]
    channels = f"channels {config.channel_base}/{config.channel_max}, {config.height} x {config.width}"
    raise InputError(
        f"stylegan3-editing cannot build this generator ({channels}): of .pt files it knows square config R with "
        "channels 65536/1024 and config T with 32768/512, both for 512 values of z and w, without labels; "
        "jobs/train_encoder.py trains an encoder for any network"
    )


if __name__ == "__main__":
    run_job(main, ConvertConfig)
