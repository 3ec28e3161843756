"""Judge the images of a finished run by other thresholds, in seconds: another manifest beside the run's own."""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before other projects' folders of our names

from datasets.runs.manifest import manifest_name, read_manifest, write_manifest
from datasets.runs.run import open_run
from datasets.runs.verdicts import Thresholds, without_scores
from datasets.storage.output import Output
from jobs.common import run_job
from passersby.errors import InputError
from reporting.tables import discard_table, filters_set

SCORES = ["source", "identity_cosine", "identity_margin"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Judge the images of a finished run again, by other thresholds, and write OUT/manifest-NAME.parquet.

    The job generates and scores nothing: the shards hold scores, and verdicts follow from scores and thresholds.
    Each image is still compared with the reference that the run chose.
    """

    out: Annotated[str, tyro.conf.arg(metavar="DIR_OR_URI")]
    """The run: the folder or URI that jobs/generate.py wrote."""
    name: str = "refiltered"
    """Name of the new manifest: letters, digits, - and _."""
    detector_threshold: float = 0.6
    """Least score of the pedestrian filter, 0 to 1."""
    ssim_floor: float | None = 0.75
    """Least SSIM to the person's reference. None sets no floor."""
    ssim_ceiling: float | None = None
    """Greatest SSIM to the person's reference, against near-copies. None sets no ceiling."""
    identity_floor: float | None = None
    """Least cosine of an image to its person, -1 to 1, as a re-ID network sees them. None sets no floor.
    For a real person the nearest real picture counts, for an artificial person the person's reference.
    The run must have compared identities."""
    identity_margin: float | None = None
    """Least lead of an image's cosine to its person over its cosine to the nearest picture of any other real person.
    The lead is -2 to 2. 0 rejects an image that looks more like another real person than like its own person.
    The run must have compared with real pictures. None sets no margin."""
    identity_ceiling: float | None = None
    """Greatest cosine of an image to a real picture, -1 to 1, against near-copies of training data.
    For a variant of a real person that person's pictures count, for an artificial person everybody's.
    None sets no ceiling."""


def main(config: Config) -> None:
    """Check, derive, print."""
    thresholds = Thresholds(
        config.detector_threshold,
        config.ssim_floor,
        config.ssim_ceiling,
        config.identity_floor,
        config.identity_margin,
        config.identity_ceiling,
    )
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", config.name):
        raise InputError(f"--name {config.name!r}: give up to 64 letters, digits, - and _")
    output = Output(config.out)
    run = open_run(output, "--out")
    plan, pending = run.plan, {unit.unit for unit in run.pending}
    units = [unit for unit in plan.units() if unit.unit not in pending]
    if not units:
        raise InputError(f"--out {output.root_address}: no unit is finished yet; run jobs/generate.py first")
    if len(units) < plan.unit_count:
        print(f"the run is not finished: {len(units)} of {plan.unit_count} units are judged")
    reference = plan.configuration.reference_threshold
    if config.detector_threshold != reference:
        print(
            f"similarity references were chosen at detector threshold {reference:g}, "
            f"verdicts use {config.detector_threshold:g}"
        )
    counts = write_manifest(run, units, thresholds, config.name)
    for name, score in without_scores(read_manifest(output, config.name, SCORES), thresholds).items():
        value = getattr(thresholds, name)
        print(f"--{name.replace('_', '-')} {value:g} rejects nothing: the run measured no {score}")
    print(discard_table(counts, filters_set(dataclasses.asdict(thresholds))))
    print(output.address(manifest_name(config.name)))


if __name__ == "__main__":
    run_job(main, Config)
