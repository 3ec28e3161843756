"""Whether people of a network can teach: the section "teaching" of its card, and the card as a whole.

A network's people are measured beside real people in the same way: how far colours of background and clothes spread,
what a re-ID network says of them, whether they look like pedestrians, and, where asked for, what a re-ID network learns
from them. The gate (gate.py) says what should be reached.
"""

import contextlib
import dataclasses
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch

from datasets.people.image_sets import ImageSet
from datasets.runs.card import LAYERS, TEACHING, check_writable, pose_layers, write_card
from datasets.runs.plan import POSE, layers_text, parse_layers
from datasets.storage.local_copy import local_copy
from passersby import weights
from passersby.devices import chosen_device
from passersby.errors import InputError
from passersby.metrics.variants import share
from passersby.options import Json
from passersby.reid.checkpoint import LoadedReid, load_judge, load_reid
from passersby.reid.onnx_network import LoadedOnnx
from passersby.stylegan3 import LoadedNetwork, load_network
from passersby.yolo.detector_file import STUDY_SHA256
from passersby.yolo.pedestrian_filter import SCORE, PedestrianFilter
from pipeline.card.gate import chosen_psi, gate_lines
from pipeline.card.judge import (
    Figures,
    Judge,
    Measurer,
    TrainingPictures,
    different_people_rate,
    judge_record,
    same_person_rate,
)
from pipeline.card.layers import measure_layers
from pipeline.card.people import Maker, RealSample, Sample, decoded, work
from pipeline.features import Workers, features_of, network_images
from reporting.gan.card import Layers, layers_lines
from reporting.gan.teaching import teaching_lines
from reporting.progress import ProgressLine

_DETECTED = 16  # pictures that the pedestrian filter sees at once
TRAIN_PRESET = "strong-small"  # of the re-ID network that is trained on the measured people alone


@dataclasses.dataclass(frozen=True)
class Measures:
    """What a card measures beside the layers.

    psi: the truncations. layers: the layers in which variants differ, as for jobs/generate.py; None: those of a search.
    reference: a data set of real people. identity: file of the judge. comparison: real images for FID, precision and
    recall, and scored: the number of made images for them; None: no FID. inception, yolo_weights: files in place of the
    downloaded ones. near_copies: look for near-copies of training pictures. train_steps: steps of a re-ID training on
    the measured people alone; 0: none.
    """

    psi: tuple[float, ...] = (0.7,)
    layers: str | None = None
    reference: Path | None = None
    identity: str | None = None
    comparison: ImageSet | None = None
    scored: int = 1000
    inception: Path | None = None
    yolo_weights: str | None = None
    near_copies: bool = True
    train_steps: int = 0


class TeachingMeasurer:
    """Measures whether people can teach: those of the network at each truncation, and real ones."""

    def __init__(
        self, network: LoadedNetwork, name: str, measures: Measures, device: str, judge: Judge | None,
        real: RealSample | None,
    ):  # fmt: skip
        self.network, self.name, self.measures, self.device = network, name, measures, device
        self.judge, self.real = judge, real
        self.notes: list[str] = []
        self.filters: dict[tuple[int, int], PedestrianFilter] = {}
        self.detector = self._fetched("yolov4-tiny", measures.yolo_weights, "--yolo-weights", "the pedestrian filter")
        self.training = None
        if judge is not None and real is not None and measures.near_copies:
            print(f"near-copies: features of {len(real.everyone):,} training pictures", file=sys.stderr, flush=True)
            self.training = TrainingPictures.of(real.everyone, judge.network)

    def _fetched(self, weight: str, path: str | Path | None, option: str, what: str) -> Path | None:
        try:
            beside = (".cfg",) if weight == "yolov4-tiny" else ()
            return weights.get(weight, local_copy(path, option, beside=beside) if path else None)
        except InputError as error:
            if path:
                raise
            self.notes.append(f"{what} is left out: {error}")
            return None

    def figures(self, people: Sequence[Sequence[bytes]], gallery: Sequence[bytes]) -> Figures:
        """The figures of people, [P][V] encoded pictures; gallery: one picture each of people, first of these."""
        figures = Measurer(gallery, None)(people)
        figures |= {"people": len(people), "pictures": sum(map(len, people)), "gallery": len(gallery)}
        passing = self._passing(people)
        if passing is not None:
            figures["passing"] = passing
        if self.judge is not None:
            features = self.judge.features_of_people(people)
            if self.judge.threshold is not None:
                figures["judge"] = {
                    "same_person": same_person_rate(features, self.judge.threshold),
                    "different_people": different_people_rate(features, self.judge.threshold),
                }
            copies = self.training and self.training.near_copies(features)
            if copies:
                figures["near_copies"] = copies
        return figures

    def _passing(self, people: Sequence[Sequence[bytes]]) -> Figures | None:
        if self.detector is None:
            return None
        images = decoded(people)
        height, width = images.shape[2:4]
        if (height, width) not in self.filters:
            self.filters[height, width] = PedestrianFilter(self.detector, height, width, device=self.device)
        flat = images.reshape(-1, height, width, 3)
        with ProgressLine(-(-len(flat) // _DETECTED), len(flat)) as line:
            scores = []
            for start in range(0, len(flat), _DETECTED):
                scores.append(self.filters[height, width].scores(flat[start : start + _DETECTED]))
                line.update(len(scores[-1]))
        return share(np.concatenate(scores).reshape(images.shape[:2]) >= SCORE)

    def scores(self, seed: int, psi: float) -> Figures | None:
        """FID, precision and recall of one picture each of people, as jobs/score.py measures them of this seed and
        truncation; None where they are not asked for."""
        from passersby.metrics.fid import score_features
        from passersby.perception.inception import load_inception

        reference = self.measures.comparison
        path = reference and self._fetched("inception-2015", self.measures.inception, "--inception", "FID")
        if reference is None or path is None:
            return None
        inception, workers = load_inception(path), Workers(self.device, here=True)
        images, configuration = network_images(self.name, self.network, self.measures.scored, seed, psi)
        size = images.size("--network")
        print(f"FID: {images.description}, against {reference.description}", file=sys.stderr, flush=True)
        real = features_of(reference, size, inception, workers, keep=True)
        fake = features_of(images, size, inception, workers, (self.network.generator, configuration))
        values = score_features(real, fake, seed)
        return {name: values[name] for name in ("fid", "precision", "recall")} | {
            "images": len(fake), "reference_images": len(real), "reference": reference.description,
        }  # fmt: skip


def measure_teaching(
    measurer: TeachingMeasurer, makers: Mapping[str, Maker], layers: Sequence[int], threads: int
) -> dict[str, Json]:
    """The section "teaching". makers: of each truncation, by its text. layers: those in which variants differ; none for
    networks trained by identity pairs."""
    real, measures, by_psi = measurer.real, measurer.measures, {}
    people: dict[str, list[list[bytes]]] = {}
    for psi, maker in makers.items():
        sample = maker.sample
        more = max(0, sample.gallery - sample.people)
        units, images = work(sample.people, sample.variants)
        with ProgressLine(units + work(more, 1)[0], images + more) as line:
            people[psi] = maker(layers, sample.people, sample.variants, line)
            gallery = [pictures[0] for pictures in people[psi]]
            gallery += [pictures[0] for pictures in maker(layers, more, 1, line, first=sample.people)]
        by_psi[psi] = measurer.figures(people[psi], gallery)
        scores = measurer.scores(sample.seed, sample.truncation_psi)
        if scores:
            by_psi[psi]["scores"] = scores
    real_figures = real and measurer.figures(real.chosen, real.gallery)
    gates = {psi: gate_lines(figures, real_figures) for psi, figures in by_psi.items()}
    best = chosen_psi(gates)
    if measures.train_steps and real is not None and measures.reference is not None:
        learn = _Learner(measures.reference, measures.train_steps, measurer.device, threads)
        for figures, pictures in ((by_psi[best], people[best]), (real_figures, real.chosen)):
            if figures is not None:
                figures["trained_alone"] = learn(pictures)
    sample = dataclasses.asdict(next(iter(makers.values())).sample)
    del sample["truncation_psi"]
    return {
        "method": "mix" if layers else "camera",
        "layers": list(layers),
        "cameras": [] if layers else list(measurer.network.cameras),
        "sample": sample,
        "psi": best,
        "by_psi": by_psi,
        "real": real_figures,
        "gate": cast(Json, gates),
        "detector": {"sha256": STUDY_SHA256, "threshold": SCORE} if measurer.detector else None,
        "near_copies": measurer.training
        and {"pictures": len(measurer.training.features), "threshold": measurer.training.threshold},
        "notes": list(dict.fromkeys(measurer.notes)),
    }


# ---- A re-ID network that learns from these people alone.


@dataclasses.dataclass(frozen=True)
class _Learner:
    """Trains a re-ID network of TRAIN_PRESET for `steps` steps on people, and ranks the test people of `reference`."""

    reference: Path
    steps: int
    device: str
    threads: int

    def __call__(self, people: Sequence[Sequence[bytes]]) -> dict[str, float | int]:
        """people: encoded pictures [P][V]. Returns mAP and rank1, 0..1, and how they were reached."""
        from pipeline.evaluation import SINGLE, evaluated_by, rank_all
        from training.reid.presets import preset
        from training.reid.run import load_data, train

        print(f"a re-ID network learns from {len(people)} people alone", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="passersby-") as temporary, contextlib.redirect_stdout(sys.stderr):
            data, out = Path(temporary) / "people", Path(temporary) / "reid"
            for person, pictures in enumerate(people):
                (data / f"{person + 1:05d}").mkdir(parents=True)
                for number, content in enumerate(pictures):
                    suffix = "jpg" if content.startswith(b"\xff\xd8") else "png"
                    (data / f"{person + 1:05d}" / f"{number:03d}.{suffix}").write_bytes(content)
            out.mkdir()
            settings = preset(TRAIN_PRESET, data, out)
            batch = min(settings.batch, len(people) * settings.instances)
            config = dataclasses.replace(
                settings, steps=self.steps, batch=batch, validation="none", workers=0, threads=self.threads,
                status_seconds=30.0, checkpoint_minutes=1000.0,
            )  # fmt: skip
            config.check()
            network = train(config, torch.device(self.device), data=load_data(config), command="jobs/score.py --card")
            if network is None:
                raise InputError("--card-train: the training did not end")
            evaluated = evaluated_by(load_reid(network), self.reference, Workers(self.device, here=True), False)
        ranking = rank_all(evaluated, "cosine", False, 1)[0][SINGLE]
        return {"mAP": ranking.mAP, "rank1": ranking.rank1, "steps": self.steps, "people": len(people)}


# ---- The card of a network.


def card_of(network: str | Path, sample: Sample, device: str, measures: Measures, dry_run: bool) -> None:
    """Measure a network, given by path or URI, print the figures, and write them into the card beside it.

    device: "auto" | "cpu" | "cuda", of this process. Raises InputError, before the measurement also where the card
    cannot be written.
    """
    begin, usable = time.monotonic(), torch.cuda.is_available()
    if device == "cuda" and not usable:
        raise InputError("--device cuda: no usable GPU here; leave it out to run on the CPU")
    path = local_copy(network, "--network")
    loaded, reid = load_network(path), None
    if measures.identity is not None:
        reid = load_judge(local_copy(measures.identity, "--identity", perhaps=(".json",)))
        for note in reid.notes:
            print(f"note: --identity: {note}", file=sys.stderr)
    check_writable(network)
    layers = _chosen_layers(network, loaded, measures.layers)
    chosen, threads = chosen_device(device, int(usable)), torch.get_num_threads()
    makers = {
        f"{psi:g}": Maker(loaded, path.name, dataclasses.replace(sample, truncation_psi=psi), chosen, threads)
        for psi in measures.psi
    }
    people = f"{sample.people} people x {sample.variants} pictures, seeds from {sample.seed}"
    print(f"{path.name}: {_how(loaded, layers)}, by {people}, truncation {' '.join(makers)}", flush=True)
    if dry_run:
        return
    real = None
    if measures.reference is not None:
        real = RealSample.read(measures.reference, sample, threads, reid.class_names if reid else ())
    judge = None
    if reid is not None:
        judge = Judge(reid.feature_network(chosen), real and real.listing)
    hardware = torch.cuda.get_device_name() if chosen == "cuda" else f"{platform.machine()} CPU"
    about_machine: dict[str, Json] = {
        "software": {"torch": torch.__version__, "numpy": np.__version__, "opencv": cv2.__version__},
        "hardware": hardware,
    }
    sections: dict[str, Mapping[str, Json]] = {}
    if layers is None:
        maker = next(iter(makers.values()))
        with ProgressLine(*work(sample.gallery, 1)) as line:
            gallery = [pictures[0] for pictures in maker((0,), sample.gallery, 1, line)]
        sections[LAYERS] = _rounded(measure_layers(maker, judge, real, gallery)) | about_machine
        layers = tuple(cast(list[int], sections[LAYERS]["pose"]))
        print(*layers_lines(cast(Layers, sections[LAYERS]), layers_text(layers)), "", sep="\n", flush=True)
    measurer = TeachingMeasurer(loaded, path.name, measures, chosen, judge, real)
    measurer.notes += _notes(measures, loaded, reid, real, judge)
    section = _rounded(measure_teaching(measurer, makers, layers, threads))
    section["judge"] = None
    if reid is not None and judge is not None:
        known = len(real.known) if real else None
        values = {"sha256": reid.sha256, "threshold": judge.threshold, "known_people_measured": known}
        section["judge"] = _rounded(values) | judge_record(reid)
    section["reference"] = real and {"name": real.everyone.name, "people": len(real.everyone.people)}
    section |= about_machine | {"seconds": round(time.monotonic() - begin, 1)}
    sections[TEACHING] = section
    print(*teaching_lines(section), sep="\n")
    config = loaded.generator.config
    about = {"file": path.name, "sha256": loaded.sha256, "num_ws": config.num_ws}
    about |= {"height": config.height, "width": config.width}
    print(write_card(network, about, sections))


def _chosen_layers(network: str | Path, loaded: LoadedNetwork, text: str | None) -> tuple[int, ...] | None:
    """The layers in which variants differ, () for a network trained by identity pairs, None where a search is due."""
    if loaded.has_who:
        if text is not None:
            raise InputError(
                f"--layers {text}: pictures of a person differ in `how` in this network, which was trained by identity "
                "pairs: leave --layers out"
            )
        return ()
    if text is None:
        return None
    num_ws = loaded.generator.config.num_ws
    return pose_layers(network, loaded.sha256, num_ws).layers if text == POSE else parse_layers(text, num_ws)


def _how(loaded: LoadedNetwork, layers: Sequence[int] | None) -> str:
    if layers is None:
        return "the layers that hold the pose, and whether its people can teach"
    if layers:
        return f"whether its people can teach, variants in layers {layers_text(layers)}"
    cameras = f" and {len(loaded.cameras)} cameras" if loaded.cameras else ""
    return f"whether its people can teach, variants in `how`{cameras}"


def _notes(
    measures: Measures, network: LoadedNetwork, reid: LoadedReid | LoadedOnnx | None, real: RealSample | None,
    judge: Judge | None,
) -> list[str]:  # fmt: skip
    """What was left out, and whom the judge knows."""
    notes = []
    if real is None:
        notes.append(
            "no --reference: without real people there are no figures of them, no threshold of a judge, no FID"
        )
        if measures.train_steps:
            notes.append("--card-train is left out: it needs --reference, whose test people are ranked")
    if reid is None:
        notes.append("no --identity: a judge's rates and near-copies are left out")
        return notes
    record = judge_record(reid)
    sources = [source for source in cast(list[Json], record["sources"]) if isinstance(source, dict)]
    named = ", ".join(f"{source.get('name', 'data without a name')}" for source in sources)
    count = record["people"] or "unknown"
    notes.append(
        f"the judge was trained on {count} people" + (f": {named}" if named else "; its file does not say whom")
    )
    identity = network.record.get("identity")
    if isinstance(identity, dict) and identity.get("sha256") == reid.sha256:
        notes.append("the judge was part of the generator's loss, so its rates are better than another judge's")
    if real is not None and real.known:
        notes.append(
            f"{len(real.known)} of the {len(real.chosen)} measured real people have names of people whom the judge was "
            "trained on: if they are the same people, its threshold and its rates are not honest"
        )
    if real is not None and judge is not None and judge.threshold is None:
        notes.append("the judge has no threshold: --reference shows one person only")
    return notes


def _rounded(values: Any) -> Any:
    # 5 digits: the last ones of a machine's arithmetic say nothing.
    if isinstance(values, Mapping):
        return {name: _rounded(value) for name, value in values.items()}
    if isinstance(values, list):
        return [_rounded(value) for value in values]
    return round(values, 5) if isinstance(values, float) else values
