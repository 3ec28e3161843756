"""Does a training that starts from another network beat one from nothing? FID after equal numbers of images.

    python benchmarks/transfer_start.py --data /tmp/crowd --out /tmp/transfer

The same small training three times, in this process, without Ray: from nothing; from the demo network, which is twice
as large in both directions; and from it with the discriminator's first layers frozen. Writes fid.json and fid.png.
"""

import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from passersby import weights
from passersby.devices import pick_device
from reporting.curves import kimg_of, new_figure, read_history
from reporting.palette import BLUE, GREEN, LINES, VERMILION
from training.gan.config import GanTraining
from training.gan.presets import PRESETS
from training.gan.run import train
from training.gan.start import claim_folder
from training.log import HISTORY


@dataclasses.dataclass(frozen=True)
class Config:
    """Cold and transferred starts of one small training."""

    data: Path
    out: Path
    network: Path = weights.DEMO_STYLEGAN3
    """Where the transferred ones start."""
    height: int = 32
    width: int = 16
    kimg: float = 8.0
    every: float = 2.0
    """Thousands of images between two FIDs."""
    fid_images: int = 1000
    freeze_d: int = 4
    threads: int = 1


def main(config: Config) -> None:
    """Train, measure, draw."""
    starts = {
        "from nothing": {},
        "transferred": {"transfer": config.network},
        f"transferred, {config.freeze_d} layers of D frozen": {
            "transfer": config.network,
            "freeze_d": config.freeze_d,
        },
    }
    results = {name: run(config, str(index), values) for index, (name, values) in enumerate(starts.items())}
    (config.out / "fid.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(config, results)
    for name, curve in results.items():
        print(f"{name:42s}", "  ".join(f"{kimg:g} kimg: {fid:.1f}" for kimg, fid in curve))


def run(config: Config, folder: str, values: dict) -> list[tuple[float, float]]:
    """(kimg, FID) of one training."""
    settings = PRESETS["tiny"] | {
        "height": config.height,
        "width": config.width,
        "kimg": config.kimg,
        "snapshot_kimg": config.every,
        "fid_images": config.fid_images,
        "validation_people": 40,
        "threads": config.threads,
    }
    training = GanTraining(data=config.data, out=config.out / folder, **settings | values)
    training.check()
    claim_folder(training)
    train(training, pick_device(0), inception=weights.get("inception-2015").read_bytes())
    pairs = [(kimg_of(record), record.get("fid")) for record in read_history(training.out / HISTORY)]
    return [(kimg, fid) for kimg, fid in pairs if fid is not None]


def draw(config: Config, results: dict[str, list[tuple[float, float]]]) -> None:
    """One picture: FID over thousands of images."""
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for (name, curve), colour in zip(results.items(), (VERMILION, BLUE, GREEN), strict=True):
        axes.plot(*zip(*curve, strict=True), marker="o", color=colour, label=name)
    axes.set_xlabel("thousands of real images")
    axes.set_ylabel(f"FID of {config.fid_images} images against held-out people")
    axes.set_title(f"StyleGAN3-T at {config.height} x {config.width} on the toy crowd", fontsize=11)
    axes.set_ylim(bottom=0)
    axes.grid(True, color=LINES)
    axes.legend(fontsize=9)
    figure.savefig(config.out / "fid.png")


if __name__ == "__main__":
    main(tyro.cli(Config, description=Config.__doc__))
