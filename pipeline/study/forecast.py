"""What the steps of a study will take: speeds that are measured here in seconds, and hours and cost that follow.

The generator's training and a re-ID training are run for a few steps, on pictures of noise, by the code of the jobs. A
person is put through the stages of jobs/generate.py.
"""

import contextlib
import dataclasses
import io
import re
import tempfile
from pathlib import Path

import numpy as np

from pipeline.study.data import CARD_VARIANTS
from pipeline.study.run import ended, is_done
from pipeline.study.sizes import CHOICES
from pipeline.study.steps import ANSWER, CARD, EXPORT, GENERATOR, JUDGE, LOOK, PEOPLE, SWEEP, Study, steps
from reporting.progress import duration
from reporting.tables import aligned
from training.gan.config import GanTraining

ITERATIONS = 16  # of the generator: R1 runs in every sixteenth
WITH_JUDGE = 1.5  # seconds of the generator's training with the judge in its loss, of those without (two cores)
STEPS = 10  # of a re-ID training: presets for few labelled people have two parts of 70% and 30%
_NOISE_PEOPLE, _NOISE_PICTURES = 16, 4


@dataclasses.dataclass(frozen=True)
class Speeds:
    """Measured seconds.

    kimg: of a thousand images of the generator's training by one worker. step: of a step of a re-ID training, on a CPU
    by one thread. image: of making, filtering and comparing an image. detect: of the filter alone.
    """

    kimg: float
    step: float
    image: float
    detect: float
    device: str


@dataclasses.dataclass(frozen=True)
class Machine:
    """The CPUs and GPUs that a study finds."""

    cpus: float
    gpus: int

    @property
    def actors(self) -> float:
        """How many single-threaded actors work at a time."""
        return self.gpus or max(1.0, self.cpus)


# ---- Measuring.


def measured(training: GanTraining, reid: str, network: Path | None, yolo_weights: str | None) -> Speeds:
    """The speeds of this process, on its GPU if it has one.

    training: the generator's; reid: the preset of jobs/train_reid.py; network: the generator's file where it exists.
    Raises InputError where a file cannot be used.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory(prefix="passersby-") as temporary:
        tree = _noise(Path(temporary) / "bounding_box_train", training.height, training.width).parent
        kimg = _kimg(training, tree, Path(temporary), device)
        step = _step(reid, tree, Path(temporary), device)
    image, detect = _image(training, network, yolo_weights, device.type)
    return Speeds(kimg, step, image, detect, torch.cuda.get_device_name() if device.type == "cuda" else "CPU")


def _noise(folder: Path, height: int, width: int) -> Path:
    import cv2

    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for person in range(_NOISE_PEOPLE):
        for picture in range(_NOISE_PICTURES):
            image = random.integers(0, 256, (height, width, 3), np.uint8)
            cv2.imwrite(str(folder / f"{person + 1:04d}_c{picture % 2 + 1}s1_{picture:06d}_00.png"), image)
    return folder


def _logged(log: Path, pattern: str) -> list[float]:
    """The numbers of the status lines of a training, without the first, which pays for buffers."""
    return [float(text.replace(",", "")) for text in re.findall(pattern, log.read_text("utf-8"))][1:]


def _kimg(training: GanTraining, tree: Path, temporary: Path, device) -> float:
    from training.gan.images import list_data, load_data
    from training.gan.run import train

    out = temporary / "generator"
    out.mkdir()
    config = dataclasses.replace(
        training, data=tree, out=out, kimg=(ITERATIONS + 1) * training.batch / 1000, workers=0, validation_people=0,
        fid_images=0, snapshot_kimg=1e9, validation_kimg=1e9, status_seconds=1e-9, checkpoint_minutes=1e6,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        train(config, device, data=load_data(config, list_data(config)), command="study")
    return float(np.mean(_logged(out / "log.txt", r"  ([\d.,]+) s/kimg")))


def _step(reid: str, tree: Path, temporary: Path, device) -> float:
    import torch

    from training.reid.presets import preset
    from training.reid.run import train

    out = temporary / "reid"
    out.mkdir()
    config = preset(reid, tree, out)
    config = dataclasses.replace(
        config, steps=STEPS, workers=0, validation="none", pretrained=False, status_seconds=1e-9,
        checkpoint_minutes=1e6, threads=None if device.type == "cuda" else 1,
    )  # fmt: skip
    threads = torch.get_num_threads()
    with contextlib.redirect_stdout(io.StringIO()):
        train(config, device, command="study")
    torch.set_num_threads(threads)
    return float(
        np.mean([config.batch / speed for speed in _logged(out / "log.txt", r"  ([\d.,]+) images/s") if speed])
    )


def _image(training: GanTraining, network: Path | None, yolo_weights: str | None, device: str) -> tuple[float, float]:
    import torch

    from actors.pedestrian_detector import PedestrianDetector
    from actors.similarity_scorer import SimilarityScorer
    from actors.style_mixer import StyleMixer
    from datasets.runs.configuration import CAMERA, MIX, RECIPE, Configuration
    from datasets.storage.local_copy import local_copy
    from passersby.stylegan3.checkpoint import load_network
    from passersby.stylegan3.config_limits import generator_class
    from passersby.yolo.detector_file import chosen_detector
    from reporting.run.forecast import SAMPLE_ON_GPU, SAMPLE_VARIANTS, measure

    mixed = False
    if network is not None:
        loaded = load_network(network)
        generator, mixed, cameras = loaded.generator, not loaded.has_who, loaded.cameras
    else:
        config = training.generator()
        generator, cameras = generator_class(config)(config), ()
    weights = local_copy(yolo_weights, "--yolo-weights", beside=(".cfg",)) if yolo_weights else None
    detector = chosen_detector(None, weights)
    configuration = Configuration(
        seed=0, variants=SAMPLE_VARIANTS, method=MIX if mixed else CAMERA, layers=(0,) if mixed else (), amount=None,
        truncation_psi=0.7, network="", height=128, width=64, format="jpeg", jpeg_quality=95, unit_images=1,
        detector="", reference_threshold=0.6, ssim_data_range=4095.0, recipe=RECIPE, cameras=() if mixed else cameras,
    )  # fmt: skip
    threads = torch.get_num_threads()
    execution = {"device": device, "threads": 1}
    stages = {
        "generate": StyleMixer(generator, configuration, **execution),
        "detect": PedestrianDetector(weights=detector.path, height=128, width=64, **execution, **detector.arguments),
        "similarity": SimilarityScorer(detector_threshold=0.6, data_range=4095.0, threads=1),
    }
    sample = measure(stages, SAMPLE_ON_GPU // SAMPLE_VARIANTS if device == "cuda" else 1)
    torch.set_num_threads(threads)
    return sum(sample.seconds.values()), sample.seconds["detect"]


# ---- What follows.


def expected(study: Study, speeds: Speeds, machine: Machine) -> dict[str, float]:
    """Step -> expected seconds, without the starts of processes and of Ray; about 0 for steps of seconds."""
    options, facts = study.options, study.facts
    arms, _ = study.arms()
    at_once = machine.actors
    looked = min(facts.pictures, int(study.size["look"][1]) if study.size["look"] else 5000)
    trials = len(options.seeds) * (1 + len(study.levels()) * (len(arms) - 1))
    trials += len(arms) * len(CHOICES) if "--choose" in next(s for s in steps(study) if s.name == SWEEP).words else 0
    training = options.steps * speeds.step
    per_gpu = 1.0 if study.files.gpus_per_trial is None else max(study.files.gpus_per_trial, 1e-3)
    trials_at_once = max(1.0, machine.gpus / per_gpu if machine.gpus else machine.cpus // 1)
    batch_images = facts.test_pictures / 3  # a step goes forward and back: about three times a forward pass
    ranking = speeds.step / 32 * batch_images
    with_judge = WITH_JUDGE if options.identity_loss else 1.0
    card_images = options.card_people * (CARD_VARIANTS + 3) * len(options.truncation_psi)
    return {
        LOOK: looked * speeds.detect / (1.0 if looked <= 1000 else at_once),
        GENERATOR: (options.kimg or 0.0) * speeds.kimg * with_judge / max(1, study.workers()),
        JUDGE: training,
        CARD: card_images * speeds.image,
        PEOPLE: options.people * options.variants * speeds.image / at_once,
        EXPORT: 0.0,
        SWEEP: -(-trials // trials_at_once) * (training + ranking),
        ANSWER: 0.0,
    }


def plan_lines(
    study: Study, speeds: Speeds, machine: Machine, hourly_price: float | None, program: str | None
) -> list[str]:
    """The steps with hours and cost, the total, and the commands."""
    seconds = expected(study, speeds, machine)
    head = ["step", "job", "expected", *(["cost"] if hourly_price is not None else []), ""]
    rows, total = [head], 0.0
    for step in steps(study):
        record = ended(study, step)
        done = is_done(study, step) and record is not None
        left = 0.0 if done else seconds[step.name]
        total += left
        shown = f"done in {duration(record.seconds)}" if done and record else _text(left)
        cost = [_cost(left, hourly_price)] if hourly_price is not None else []
        rows.append([step.name, step.job, shown, *cost, step.title])
    cost = [_cost(total, hourly_price)] if hourly_price is not None else []
    rows.append(["in all", "", _text(total), *cost, ""])
    return [
        f"measured here ({speeds.device}): generator {speeds.kimg:.1f} s for 1,000 images, re-ID "
        f"{1000 * speeds.step:.0f} ms a step, making and filtering {1000 * speeds.image:.1f} ms an image",
        f"found: {machine.cpus:g} CPUs, {machine.gpus} GPUs",
        *aligned(rows),
        "without the starts of processes and of Ray, and without FID",
        *study.arms()[1],
        "",
        *(step.command(program) for step in steps(study)),
    ]


def _text(seconds: float) -> str:
    return "seconds" if seconds < 30 else f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def _cost(seconds: float, hourly_price: float | None) -> str:
    return f"{seconds / 3600 * (hourly_price or 0.0):,.2f}"
