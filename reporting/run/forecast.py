"""Time and disk space of a run, estimated from a few images that this process puts through its stages."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from datasets.runs.rows import images_of
from datasets.storage.output import Output
from reporting.page import STAGES
from reporting.progress import duration

SAMPLE_VARIANTS = 8
SAMPLE_ON_GPU = 64  # images: a GPU's chunk of several people, which would otherwise be filled up
ROW_BYTES = 150  # of an image without its picture, in its shard and in the manifest


@dataclasses.dataclass(frozen=True)
class Sample:
    """Measured on `images` images: seconds an image in each stage, stored bytes an image."""

    images: int
    seconds: Mapping[str, float]
    bytes_per_image: float


def forecast(stages: Sequence[tuple[type, dict]], pools: Sequence, images: int, at_once: float, output: Output) -> str:
    """Time and disk space that `images` images will take, measured in this process on one small person, on a GPU on
    several.

    stages: actor classes with their keywords, without the stage that writes; pools: their sizes and GPUs;
    at_once: how many actors' work the cluster's CPUs can do at a time. Writes nothing.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    actors, people = [], 1
    for actor, arguments in stages:
        changes = {"device": device} if "device" in arguments else {}
        if "configuration" in arguments:
            configuration = arguments["configuration"]
            variants = min(configuration.variants, SAMPLE_VARIANTS)
            changes["configuration"] = dataclasses.replace(configuration, variants=variants)
            if device == "cuda":
                people = max(1, min(SAMPLE_ON_GPU // variants, images // configuration.variants))
        actors.append(actor(**{**arguments, **changes}))
    sample = measure(dict(zip(STAGES, actors, strict=False)), people)
    sizes = {name: pool.size for name, pool in zip(STAGES, pools, strict=False)}
    shared = None if any(pool.gpus for pool in pools) else at_once
    return describe(sample, images, expected_seconds(sample, images, sizes, shared), device, output)


def measure(stages: Mapping[str, Callable[[pa.Table], pa.Table]], people: int = 1) -> Sample:
    """Put a unit of so many people through the stages twice, and time the second time.

    Each stage adds its `seconds_NAME` to the unit.
    """
    row = pa.table({"unit": [0], "first_person": [0], "people": [people]})
    for _ in range(2):  # the first time pays for buffers and caches
        unit = row
        for stage in stages.values():
            unit = stage(unit)
    images = images_of(unit)
    count = images.num_rows
    seconds = {name: unit[f"seconds_{name}"][0].as_py() / count for name in stages}
    stored = pc.call_function("sum", [pc.call_function("binary_length", [images["image"]])]).as_py() or 0
    return Sample(count, seconds, stored / count)


def expected_seconds(sample: Sample, images: int, actors: Mapping[str, int], shared: float | None) -> float:
    """Seconds of the run without the start of its workers.

    actors: of each stage. shared: how many actors' work the machine can do at a time when stages share
    its CPUs (their sum counts), None when stages have devices of their own (the slowest counts).
    """
    seconds_per_image = {name: seconds / actors[name] for name, seconds in sample.seconds.items()}
    return images * (
        max(seconds_per_image.values())
        if shared is None
        else max(sum(sample.seconds.values()) / shared, *seconds_per_image.values())
    )


def describe(sample: Sample, images: int, seconds: float, device: str, output: Output) -> str:
    """Lines for people: cost of each stage, time, disk."""
    stages = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in sample.seconds.items())
    size = images * (sample.bytes_per_image + ROW_BYTES)
    free = f", {_bytes(_free(Path(output.root_address)))} are free there" if output.local else ""
    rate = images / max(seconds, 1e-9)
    return (
        f"measured here ({device}) on {sample.images} images: {stages}, "
        f"{sample.bytes_per_image / 1000:.1f} kB an image\n"
        f"expected time: {duration(seconds)} ({rate:,.1f} images/s), and the start of the workers\n"
        f"expected disk: {_bytes(size)}{free}"
    )


def _free(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
