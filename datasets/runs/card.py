"""The card of a network: what was measured about it, in a JSON file beside it, and the layers that hold its pose.

`NAME.card.json` lies beside `NAME.safetensors` (or `.pkl`, `.pt`) and names the network by its sha256. The network's
own file is never rewritten, because plans and records name it by this hash. A card has a version and sections; a
command that measures one section keeps the others. `jobs/score.py --card` (pipeline/card/) measures the sections
"layers" (which hold the pose) and "teaching" (whether the network's people can teach re-identification).
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from datasets.runs.plan import NUM_WS, layer_groups, layers_text, parse_layers
from datasets.storage.output import Output
from passersby.errors import InputError
from passersby.options import Json

CARD_VERSION = 1  # raised only where a reader of the older version would misread a card
LAYERS, TEACHING = "layers", "teaching"
MEASURE = "python jobs/score.py --card --network FILE"
_STUDY = "middle"


def card_name(network: str | os.PathLike) -> str:
    """The name of a network's card: "net.card.json" for "folder/net.pkl"."""
    return PurePosixPath(os.fspath(network).partition("?")[0]).with_suffix(".card.json").name


def _beside(network: str | os.PathLike) -> tuple[Output, str]:
    """The folder of a network, given by path or URI, and the name of the card there."""
    text = os.fspath(network)
    if "://" not in text:
        return Output(str(Path(text).expanduser().absolute().parent)), card_name(text)
    location, mark, options = text.partition("?")
    return Output(location.rpartition("/")[0] + mark + options), card_name(text)


# ---- The file.


def read_card(network: str | os.PathLike) -> dict[str, Json] | None:
    """The card beside a network, given by path or URI, whichever network it is of; None without one.

    Raises InputError, which names the file, where it cannot be read, is no card, or is of a later version.
    """
    output, name = _beside(network)
    text = output.read(name)
    return None if text is None else _parsed(text, output.address(name))


def _parsed(text: bytes, address: str) -> dict[str, Json]:
    way_out = f"remove it, or measure it anew with {MEASURE}"
    try:
        card = json.loads(text)
        version, sha256 = card["version"], card["network"]["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{address} is not the card of a network: {way_out}") from error
    if type(version) is not int or not isinstance(sha256, str):
        raise InputError(f"{address} is not the card of a network: {way_out}")
    if version > CARD_VERSION:
        raise InputError(
            f"{address} has version {version}, and this program reads cards up to version {CARD_VERSION}: {way_out}"
        )
    return card


def check_writable(network: str | os.PathLike) -> None:
    """Raise InputError where the folder of a network on a disk takes no card; a measurement is minutes long."""
    output, name = _beside(network)
    if output.local and not os.access(Path(output.address(name)).parent, os.W_OK):
        raise InputError(
            f"cannot write {output.address(name)}: no permission: copy the network to a folder that can be written"
        )


def write_card(
    network: str | os.PathLike, about: Mapping[str, Json], sections: Mapping[str, Mapping[str, Json]]
) -> str:
    """Write sections of a network's card, whole, and return its address. Other sections of this network's card stay.

    about: the entry "network" of the card, with the sha256. A card of another network, or one that cannot be read as a
    card, is replaced.
    """
    output, name = _beside(network)
    try:
        old = read_card(network) or {}
    except InputError:
        old = {}
    first = {"version": CARD_VERSION, "network": about}
    if _sha256(old) != about["sha256"]:
        old = {}
    kept = {section: values for section, values in old.items() if section not in first}
    output.write(name, (json.dumps({**first, **kept, **sections}, indent=1) + "\n").encode())
    return output.address(name)


def _sha256(card: Mapping[str, Json]) -> Json:
    about = card.get("network")
    return about.get("sha256") if isinstance(about, Mapping) else None


def teaching_section(network: str | os.PathLike, sha256: str) -> dict[str, Json] | None:
    """The section "teaching" of the card beside a network; None without one, or where the card is another network's.

    A page shows it, and no page fails for its sake: None also for a card that cannot be read.
    """
    try:
        card = read_card(network)
    except InputError:
        return None
    section = card.get(TEACHING) if card and _sha256(card) == sha256 else None
    return section if isinstance(section, dict) else None


# ---- The layers of --layers pose.


@dataclasses.dataclass(frozen=True)
class PoseLayers:
    """The w indices, ascending, that variants of a network take from another code, and a line that says why these."""

    layers: tuple[int, ...]
    reason: str


def pose_layers(network: str | os.PathLike, sha256: str, num_ws: int = NUM_WS) -> PoseLayers:
    """The layers that hold the pose of a network, by its card. network: its path or URI; sha256: of its file;
    num_ws: its style inputs.

    A network without a card, and one beside the card of another network, get the study's middle layers. Raises
    InputError for a damaged card and for a card of a later version.
    """
    output, name = _beside(network)
    try:
        text = output.read(name)
    except InputError as error:  # a store may refuse to say whether a file exists
        return _study(str(error), num_ws)
    if text is None:
        return _study(f"there is no {name} beside the network; {MEASURE} measures which layers move its pose", num_ws)
    card = _parsed(text, output.address(name))
    found = _sha256(card)
    if found != sha256:
        return _study(
            f"{output.address(name)} is the card of another network ({str(found)[:12]}, not {sha256[:12]})", num_ws
        )
    section = card.get(LAYERS)
    if section is None:
        return _study(f"{output.address(name)} does not say which layers move the pose", num_ws)
    layers = _checked(section, output.address(name), num_ws)
    text = layers_text(layers)
    share = _share_of(section, text)
    kept = "" if share is None else f"; {share:.0%} of variants keep their clothes"
    return PoseLayers(layers, f"layers {text} move the pose of this network, says {name}{kept}")


def _study(why: str, num_ws: int) -> PoseLayers:
    first, last = layer_groups(num_ws)[_STUDY]
    return PoseLayers(parse_layers(_STUDY, num_ws), f"layers {first}-{last}, the study's: {why}")


def _checked(section: Json, address: str, num_ws: int) -> tuple[int, ...]:
    values = section.get("pose") if isinstance(section, Mapping) else None
    numbers = [value for value in values if type(value) is int] if isinstance(values, list) else []
    good = isinstance(values, list) and numbers == values == sorted(set(numbers)) and bool(numbers)
    if not good or not 0 <= numbers[0] <= numbers[-1] < num_ws:
        raise InputError(
            f"{address}: its layers of the pose are {json.dumps(values)[:60]}, not w indices from 0 to {num_ws - 1}: "
            f"remove the card, or measure it anew with {MEASURE}"
        )
    return tuple(numbers)


def _share_of(section: Json, text: str) -> float | None:
    # Only for the line: a card that does not have it is as good.
    value: Json = section
    for name in ("groups", text, "nearest_own", "value"):
        value = value.get(name) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) else None
