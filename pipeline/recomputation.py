"""Scores and images of finished shards are computed again from the stored bytes, and compared."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from actors.identity_scorer import IdentityScorer
from actors.pedestrian_detector import PedestrianDetector
from actors.similarity_scorer import SimilarityScorer
from actors.style_mixer import StyleMixer, check_network
from datasets.latents.partners import real_codes
from datasets.latents.table import Latents
from datasets.people.decoding import decode
from datasets.runs.plan import Configuration, Plan, Unit
from datasets.runs.rows import images_of, with_columns
from passersby.errors import InputError
from passersby.files import file_sha256
from passersby.stylegan3.checkpoint import load_network
from passersby.yolo.detector_file import STUDY_SHA256, DetectorFile, chosen_detector
from pipeline.identity import Identity

# On like hardware every score comes out the same, bit by bit. A detector on a GPU computes in float16: over 64 images
# its scores differed by up to 3e-3. Another CPU sums in another order, which changes scores by 1e-6. SSIM is computed
# from exact integers on every machine. Cosines are computed from float32 features; older shards may have those of
# TF32.
IDENTITY_SCORES = ("identity_cosine", "identity_margin")
TOLERANCE = {"detector_score": 1e-2, "ssim": 1e-6} | dict.fromkeys(IDENTITY_SCORES, 1e-2)
# On other hardware isolated pixels differ by 1 of 255 before the JPEG. Another picture differs by tens everywhere.
MEAN_PIXEL_DIFFERENCE = 0.5


class Recomputation:
    """Computes the scores of single persons again, and with a network their images, and compares both with the shard.

    The same stages compute them as in the run, but without Ray. `yolo_weights` and `network` are files or None,
    `device` is "cpu" or "cuda". `latents`: the codes that the run's people come from; a network needs them unless the
    people come from seeds. `identity`: the re-ID network and real pictures of a run that compared people with them;
    without `identity` those scores are not computed again. `detector`: the user's own detector, if the run had one. As
    text, a Recomputation says how many images it has compared and how great the differences are. Raises InputError when
    the run was made with other files.
    """

    def __init__(
        self,
        plan: Plan,
        yolo_weights: Path | None,
        network: Path | None,
        device: str,
        latents: Latents | None = None,
        identity: Identity | None = None,
        detector: DetectorFile | None = None,
    ):
        c = self.configuration = plan.configuration
        _check_detector(c, detector)
        file = chosen_detector(detector, yolo_weights)
        self.detector = PedestrianDetector(file.path, c.height, c.width, device=device, **file.arguments)
        self.similarity = SimilarityScorer(c.reference_threshold, data_range=c.ssim_data_range)
        self.mixer = _mixer(network, plan, device, latents) if network else None
        self.identifier = _identifier(identity, plan, device) if identity else None
        self.images, self.greatest, self.greatest_pixel = 0, 0.0, 0

    def __str__(self) -> str:
        pixels = f"; made again, pixels differ by {self.greatest_pixel} at most" if self.mixer else ""
        skipped = "; not those of identity, for which give --identity" * (bool(self.configuration.identity))
        skipped = skipped if self.identifier is None else ""
        greatest = f"greatest difference {self.greatest:.2g}{pixels}{skipped}"
        return f", scores of {self.images:,} images computed again ({greatest})"

    def __call__(self, unit: Unit, table: pa.Table, person: int) -> list[str]:
        """The differences of one person, each as text. `table`: the rows of the shard of the person's unit."""
        count = self.configuration.variants
        first = (person - unit.first_person) * count
        stored = table.slice(first, count)
        names = ["person", "variant", "image", "status", "message", "detector_score"]
        compared = images_of(self.similarity(_row(stored.select(names))))
        scores = {"detector_score": self._detector_scores(table, first), "ssim": compared["ssim"]}
        if self.identifier:
            names = ["person", "variant", "source", "reference_variant", "image", "status", "message"]
            compared = images_of(self.identifier(_row(stored.select(names))))
            scores |= {name: compared[name] for name in IDENTITY_SCORES}
        wrong = [text for name, column in scores.items() for text in self._differences(stored, name, column)]
        self.images += count
        return [f"person {person} {text}" for text in wrong + self._pixels(stored, person)]

    def _detector_scores(self, table: pa.Table, first: int) -> pa.ChunkedArray:
        # The size of a batch can change a score's last bits. So whole batches are scored, cut as the run cut the unit.
        size, count = self.detector.batch_images, self.configuration.variants
        good = np.flatnonzero(np.array(table["status"].to_pylist()) == "ok")
        low, high = np.searchsorted(good, [first, first + count])
        if low == high:
            return table["detector_score"].slice(first, count)
        start, end = good[low // size * size], good[min(-(-high // size) * size, len(good)) - 1] + 1
        start, end = min(start, first), max(end, first + count)
        rows = table.slice(start, end - start).select(["image", "status", "message"])
        return images_of(self.detector(_row(rows)))["detector_score"].slice(first - start, count)

    def _differences(self, stored: pa.Table, name: str, again: pa.ChunkedArray) -> list[str]:
        pairs = enumerate(zip(stored[name].to_pylist(), again.to_pylist(), strict=True))
        wrong = []
        for variant, (old, new) in pairs:
            difference = abs(old - new) if old is not None and new is not None else 0.0
            self.greatest = max(self.greatest, difference)
            if (old is None) != (new is None) or difference > TOLERANCE[name]:
                wrong.append(f"variant {variant}: {name} is {old}, computed again {new}")
        return wrong

    def _pixels(self, stored: pa.Table, person: int) -> list[str]:
        if self.mixer is None:
            return []
        unit = pa.table({"unit": [0], "first_person": [person], "people": [1]})
        wrong = []
        generated = images_of(self.mixer(unit))["image"].to_pylist()
        for variant, (old, new) in enumerate(zip(stored["image"].to_pylist(), generated, strict=True)):
            if old == new:
                continue
            if old is None or new is None:
                wrong.append(f"variant {variant}: an image that is not finite, only once")
                continue
            difference = np.abs(decode(old).astype(np.int16) - decode(new))  # [H, W, 3], 0..255
            self.greatest_pixel = max(self.greatest_pixel, int(difference.max()))
            if difference.mean() > MEAN_PIXEL_DIFFERENCE:
                wrong.append(f"variant {variant}: the image made again is another one (mean {difference.mean():.1f})")
        return wrong


def _row(images: pa.Table) -> pa.Table:
    columns = {name: images[name] for name in images.column_names}
    return with_columns(pa.table({"unit": pa.array([0], pa.int64())}), columns)


def _mixer(network: Path, plan: Plan, device: str, latents: Latents | None) -> StyleMixer:
    configuration, codes = plan.configuration, None
    sha256 = file_sha256(network, "--network")
    if sha256 != configuration.network:
        raise InputError(
            f"--network {network}: its sha256 is {sha256[:12]}..., "
            f"the run's network has {configuration.network[:12]}..."
        )
    if configuration.latents != (latents and latents.sha256):
        raise InputError(_wrong_latents(configuration, latents))
    if latents is not None:
        codes = real_codes(latents, configuration, plan.people)
    generator = load_network(network).generator
    check_network(generator.config, configuration, codes)
    return StyleMixer(generator, configuration, device, codes=codes)


def _identifier(identity: Identity, plan: Plan, device: str) -> IdentityScorer:
    c = plan.configuration
    for option, sha256, expected in (
        ("--identity", identity.sha256, c.identity),
        ("--real", identity.fingerprint, c.real),
    ):
        if sha256 != expected:
            sha256, expected = (text and f"{text[:12]}..." for text in (sha256, expected))
            raise InputError(f"{option}: its sha256 is {sha256}, the run has compared people by {expected}")
    return IdentityScorer(identity.network, identity.real(c, device, True), device)


def _check_detector(c: Configuration, detector: DetectorFile | None) -> None:
    """Raise InputError unless the run's scores are those of `detector`, or without it of YOLOv4-tiny."""
    expected = f"{c.detector[:12]}..., {c.detector_setup or 'YOLOv4-tiny'}"
    if detector is None and (c.detector, c.detector_setup) != (STUDY_SHA256, None):
        raise InputError(
            f"the run's detector ({expected}) is not the YOLOv4-tiny of the study: give it with --detector-file; "
            "--sample 0 checks all else"
        )
    if detector is not None and (c.detector, c.detector_setup) != (detector.sha256, detector.setup):
        other = f"{detector.sha256[:12]}..., {detector.setup}"
        raise InputError(f"--detector-file {detector.path}: it is {other}; the run's detector is {expected}")


def _wrong_latents(configuration: Configuration, latents: Latents | None) -> str:
    if configuration.latents is None:
        return "--latents: the run's people are those of seeds: leave it out"
    if latents is None:
        return "--network: the run's people come from latents: give these with --latents as well"
    return f"--latents: its sha256 is {latents.sha256[:12]}..., the run's people are of {configuration.latents[:12]}..."
