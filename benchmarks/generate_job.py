"""The whole job beside the study's way of working: same network, same images, verdicts compared, one run.

    python benchmarks/generate_job.py --out /tmp/benchmark

The study's way is one image at a time: make it (one forward pass of our generator, which is already faster than the
reference's), write the file, read it, OpenCV's DNN with the study's border, scikit-image's SSIM. Half of it runs
before the job and half after, so that a change of the machine's speed meets both.
"""

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch
from skimage.metrics import structural_similarity

from datasets.runs.manifest import read_manifest
from datasets.runs.plan import Configuration, read_plan
from datasets.storage.output import Output
from jobs.common import MALLOC_VARIABLES, run_job
from passersby import weights
from passersby.stylegan3 import load_network, to_uint8
from reporting.run.results import read_summary

BORDER, COLOUR_BGR, SIZE = 150, (101, 52, 152), 416


@dataclasses.dataclass(frozen=True)
class Config:
    """Time jobs/generate.py against one image at a time with OpenCV's DNN and scikit-image."""

    out: Path
    """A folder for both results; what a former benchmark left there is removed."""
    people: int = 240
    """People the job makes. Its start (about 20 s for Ray's workers to load PyTorch) counts, whatever their number."""
    study_people: int = 24
    """How many of them the study's way makes; an even number."""
    variants: int = 16
    """Pictures of each."""
    network: Path = weights.DEMO_STYLEGAN3
    """The network of both ways."""


class StudysWay:
    """One image at a time. Seconds by stage, and (person, variant) -> verdict, are kept."""

    def __init__(self, folder: Path, network: Path, configuration: Configuration):
        self.folder, self.configuration = folder, configuration
        folder.mkdir(parents=True)
        self.generator = load_network(network).generator
        path = weights.get("yolov4-tiny")
        self.detector = cv2.dnn.readNetFromDarknet(str(path.with_suffix(".cfg")), str(path))
        self.outputs = self.detector.getUnconnectedOutLayersNames()
        self.seconds: dict[str, float] = dict.fromkeys(("generate", "detect", "similarity"), 0.0)
        self.verdicts: dict[tuple[int, int], str] = {}

    def person(self, person: int) -> None:
        """Make, write, read and judge the pictures of one person."""
        c, reference = self.configuration, None
        assert c.jpeg_quality is not None  # the job stores JPEG
        for variant in range(c.variants):
            start = time.perf_counter()
            path = self.folder / f"{person}_{variant}.jpg"
            cv2.imwrite(str(path), self.image(person, variant)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, c.jpeg_quality])
            made = time.perf_counter()
            picture = cv2.imread(str(path))
            assert picture is not None  # it was written just now
            passed = self.is_pedestrian(picture)
            detected = time.perf_counter()
            verdict = "kept" if passed else "detector"
            if passed and reference is None:
                reference = picture
            elif passed:
                similarity = structural_similarity(reference, picture, data_range=c.ssim_data_range, channel_axis=2)
                verdict = "kept" if np.asarray(similarity) >= 0.75 else "ssim_floor"
            self.verdicts[person, variant] = verdict
            for stage, seconds in (
                ("generate", made - start),
                ("detect", detected - made),
                ("similarity", time.perf_counter() - detected),
            ):
                self.seconds[stage] += seconds

    @torch.inference_mode()
    def image(self, person: int, variant: int) -> np.ndarray:
        """RGB uint8 [height, width, 3]."""
        c = self.configuration
        ws = self.styles(c.person_seed(person))
        if variant:
            layers = list(c.layers)
            ws[:, layers] = self.styles(c.mix_seed(person, variant))[:, layers]
        image = self.generator.synthesis(ws)
        image = torch.nn.functional.interpolate(image, (c.height, c.width), mode="bicubic", antialias=True)
        return to_uint8(image)[0].numpy()

    def styles(self, seed: int) -> torch.Tensor:
        """w of a seed, [1, 16, 512], truncated."""
        z = np.random.RandomState(seed).randn(1, self.generator.z_dim)  # noqa: NPY002
        return self.generator.mapping(torch.from_numpy(z), truncation_psi=self.configuration.truncation_psi)

    def is_pedestrian(self, picture: np.ndarray) -> bool:
        """The study's recipe on a BGR picture, with OpenCV's DNN."""
        bordered = cv2.copyMakeBorder(picture, BORDER, BORDER, BORDER, BORDER, cv2.BORDER_CONSTANT, value=COLOUR_BGR)
        self.detector.setInput(cv2.dnn.blobFromImage(bordered, 1 / 255, (SIZE, SIZE), swapRB=True, crop=False))
        rows = np.concatenate(self.detector.forward(self.outputs))  # [boxes, 4 + 1 + classes]
        classes = rows[:, 5:].argmax(1)
        return bool(((classes == 0) & (rows[:, 5] >= self.configuration.reference_threshold)).any())


def run_the_job(config: Config) -> float:
    """Wall seconds of the whole command, its start included."""
    options = {"out": config.out / "job", "network": config.network, "people": config.people}
    options |= {"variants": config.variants, "unit-images": 64}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "jobs.generate", *words]
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=Path(__file__).resolve().parents[1], stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main(config: Config) -> None:
    """Run both ways and print images/s, seconds by stage and how many verdicts agree."""
    if os.environ.get("MALLOC_MMAP_MAX_") is None:  # both ways get the same memory settings
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | MALLOC_VARIABLES)
    shutil.rmtree(config.out, ignore_errors=True)
    command_seconds = run_the_job(dataclasses.replace(config, out=config.out / "first", people=2))
    print(f"a first job of 2 people, so that files and weights are in place: {command_seconds:.1f} s", flush=True)
    plan = read_plan(Output(str(config.out / "first" / "job")))
    assert plan is not None  # that job has written it
    study = StudysWay(config.out / "study", config.network, plan.configuration)
    half = config.study_people // 2
    for person in range(half):
        study.person(person)
    command_seconds = run_the_job(config)
    for person in range(half, config.study_people):
        study.person(person)

    output, images = Output(str(config.out / "job")), config.study_people * config.variants
    rows = read_manifest(output, columns=["person", "variant", "verdict"]).to_pylist()
    rows = [row for row in rows if row["person"] < config.study_people]
    equal = sum(study.verdicts[row["person"], row["variant"]] == row["verdict"] for row in rows)
    summary, seconds = read_summary(output), sum(study.seconds.values())
    assert summary is not None  # the job has ended, and measured itself
    assert "images_per_second" in summary
    assert "stage_seconds" in summary
    stages = ", ".join(f"{stage} {1e3 * s / images:.1f}" for stage, s in study.seconds.items())
    print(f"the study's way: {images / seconds:.2f} images/s ({stages} ms an image)")
    print(f"the job: {summary['images_per_second']:.2f} images/s, start of its workers included")
    stages = ", ".join(f"{stage} {1e3 * s / summary['images']:.1f}" for stage, s in summary["stage_seconds"].items())
    print(f"  ({stages} ms of an actor an image; the whole command took {command_seconds:.1f} s)")
    print(f"ratio {summary['images_per_second'] * seconds / images:.2f}; equal verdicts {equal} of {len(rows)}")


if __name__ == "__main__":
    run_job(main, Config)
