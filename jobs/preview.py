"""Draw a contact sheet of people x kinds of variants, to choose `--layers` of jobs/generate.py by looking."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before other projects' folders of our names

from actors.style_mixer import StyleMixer
from datasets.people.decoding import decode
from datasets.runs.card import pose_layers
from datasets.runs.configuration import CAMERA, RECIPE
from datasets.runs.plan import LAYER_GROUPS, NUM_WS, POSE, Configuration, layers_text, parse_layers
from datasets.runs.rows import images_of
from datasets.storage.local_copy import local_copy
from jobs.common import run_job
from passersby.bounds import Bound, check_bounds
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.stylegan3.checkpoint import LoadedNetwork, load_network
from passersby.weights import DEMO_NETWORK
from reporting.grid import SheetCell, SheetRow, contact_sheet, save_png
from reporting.page import is_toy

MOST_IMAGES = 4096  # a larger sheet is beyond what image viewers open


@dataclass(frozen=True)
class Preview:
    """Draw some people, and variants of each person with every group of layers, on one sheet. The job needs no Ray.

    The pictures are those that jobs/generate.py makes with the same seed and layers, before it stores them.
    Variant v of a person takes its layers from the same other code in every group.
    So you can compare the groups column by column.
    Of a network of identity pairs the sheet also shows each person as other cameras see it.
    """

    network: Annotated[str | Path, tyro.conf.arg(metavar="PATH_OR_URI")] = DEMO_NETWORK
    """The generator: a reference .pkl, a .safetensors of ours, or a .pt state dict.
    By default the demo network, which has seen only drawn people."""
    out: Path = Path("preview.png")
    """The sheet to write, a PNG file."""
    people: Annotated[int, Bound(ge=1)] = 4
    """Number of people. Person i has seed --seed + i."""
    variants: Annotated[int, Bound(ge=1)] = 4
    """Pictures of each person for each group of layers, beside the base image."""
    seed: int = 0
    """Seed of the first person."""
    groups: tuple[str, ...] | None = None
    """Groups of layers to compare: pose, coarse, middle, fine, all, or numbers such as 3,5-8.
    pose: those that jobs/generate.py takes by default, as the network's card says.
    camera: no layers, but the variants of --method camera, of a network of identity pairs.
    By default coarse, middle and fine, and first camera where the network has it."""
    truncation_psi: float = 0.7
    """Pulls every code towards the average person: 1 keeps the whole variety, 0 leaves only the average person.
    The default is that of jobs/generate.py."""
    height: int = 128
    """Height of the pictures in pixels."""
    width: int = 64
    """Width of the pictures in pixels."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the pictures are made."""


def main(options: Preview) -> None:
    """Check, draw, save; prints the path of the sheet. Raises InputError for bad values."""
    path = local_copy(options.network, "--network")
    network = load_network(path)
    groups = check(options, network.generator.num_ws, network.has_who)
    base, groups_images = draw(options, network, list(groups.values()))
    toy = "made from a toy: drawn people, no real ones · " if is_toy(network.record) else ""
    rows = []
    for person in range(options.people):
        cells = [SheetCell(base[person])]
        for images in groups_images:
            cells += [SheetCell(image, f"{v}") for v, image in enumerate(images[person], start=1)]
        rows.append(SheetRow(f"seed {options.seed + person}", cells))
    sheet = contact_sheet(
        rows,
        title=f"Which variants? {path.name}",
        subtitle=f"{toy}pictures of one number take from the same other code",
        headings=[("base", 1), *((name, options.variants) for name in groups)],
    )
    save_png(options.out, sheet)
    print(options.out)


def check(options: Preview, num_ws: int = NUM_WS, has_who: bool = False) -> dict[str, tuple[int, ...]]:
    """The groups by heading, each with its w indices, `camera` with none. Raises InputError for the first value out of
    range.

    num_ws: the network's style inputs. has_who: it was trained by identity pairs.
    """
    check_bounds(options)
    chosen = options.groups
    if chosen is None:
        chosen = (*((CAMERA,) if has_who else ()), "coarse", "middle", "fine")
    if not chosen:
        names = ", ".join([CAMERA, POSE, *LAYER_GROUPS])
        raise InputError(f"--groups: give at least one of {names}, or w indices such as 3,5-8")
    if options.out.suffix.lower() != ".png":
        raise InputError(f"--out {options.out}: the sheet is a PNG file, give a name that ends in .png")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no usable GPU here; leave it out to run on the CPU")
    images = options.people * (1 + options.variants * len(chosen))
    if images > MOST_IMAGES:
        raise InputError(f"{images} pictures on one sheet: at most {MOST_IMAGES} fit; lower --people or --variants")
    if options.seed + options.people > 2**32:
        raise InputError(f"--seed {options.seed}: the last person would have a seed above {2**32 - 1}; give less")
    groups, reasons = {}, []
    for text in chosen:
        if text == CAMERA:
            if not has_who:
                raise InputError(
                    f"--groups camera: the record of {Path(options.network).name} names no half of its codes that says "
                    "who; give groups of layers"
                )
            groups["other cameras"] = ()
            continue
        if text == POSE:
            network = local_copy(options.network, "--network")
            pose = pose_layers(options.network, file_sha256(network, "--network"), num_ws)
            reasons.append(pose.reason)
            layers = pose.layers
        else:
            try:
                layers = parse_layers(text, num_ws)
            except InputError as error:
                raise InputError(str(error).replace("--layers", "--groups", 1)) from error
        groups[f"{text} {layers_text(layers)}" if text in (POSE, *LAYER_GROUPS) else f"layers {text}"] = layers
        configure(options, layers, "")  # its checks, before anything is drawn
    print(*(f"{reason}\n" for reason in reasons), sep="", end="", file=sys.stderr)
    return groups


def configure(options: Preview, layers: tuple[int, ...], network: str, cameras: tuple[int, ...] = ()) -> Configuration:
    """What jobs/generate.py would freeze for these layers; its filters' settings have no meaning here.

    No layers: the variants of --method camera, of a network that has labels for these cameras.
    """
    return Configuration(
        seed=options.seed,
        variants=1 + options.variants,
        method="mix" if layers else CAMERA,
        layers=layers,
        cameras=() if layers else cameras,
        amount=None,
        truncation_psi=options.truncation_psi,
        network=network,
        height=options.height,
        width=options.width,
        format="png",  # exact: the sheet shows the network, not a compression
        jpeg_quality=None,
        unit_images=MOST_IMAGES,
        detector="",
        reference_threshold=0.0,
        ssim_data_range=1.0,
        recipe=RECIPE,
    )


def draw(options: Preview, network: LoadedNetwork, groups: list[tuple[int, ...]]) -> tuple[list, list[list]]:
    """The stage of jobs/generate.py on all people as one unit, once for each group of layers.

    Returns the people's base images, and for each group and person the variants. Images are RGB uint8
    [height, width, 3], or None where the network gave no finite numbers.
    """
    unit = pa.table({"unit": [0], "first_person": [0], "people": [options.people]})
    base, drawn = [], []
    for number, layers in enumerate(groups, start=1):
        words = f"layers {', '.join(map(str, layers))}" if layers else "other cameras"
        print(f"{number} of {len(groups)}: {words}", file=sys.stderr)
        configuration = configure(options, layers, network.sha256, network.cameras)
        mixer = StyleMixer(network.generator, configuration, options.device)
        contents = images_of(mixer(unit))["image"].to_pylist()
        images = [None if content is None else decode(content) for content in contents]
        per_person = 1 + options.variants
        people = [images[first : first + per_person] for first in range(0, len(images), per_person)]
        base = [person[0] for person in people]  # the same in every group
        drawn.append([person[1:] for person in people])
    return base, drawn


if __name__ == "__main__":
    run_job(main, Preview)
