"""A GAN training, in this process alone or in each of several workers."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

from passersby.devices import exact_numbers, repeatable
from passersby.stylegan3.checkpoint import z_halves
from reporting.curves import PAIR_PANEL, PANELS
from training.checkpoints import check_images
from training.gan.batch_memory import image_bytes, images_at_once, optimizer_bytes, possible_parts
from training.gan.config import GanTraining
from training.gan.data import Batches, Feeder
from training.gan.images import TrainingData, list_data, load_data
from training.gan.start import Start, is_best, keep_best, save_checkpoint, save_snapshot, start
from training.gan.step import StepSettings, TrainingState, train_iteration
from training.gan.validation import (
    PairValidation,
    SnapshotFid,
    Validation,
    save_grids,
    save_reals,
    stop_if_diverged,
    warnings,
)
from training.log import Interval, TrainingLog, duration
from training.trainer import Trainer, crosses, millions
from training.workers import Report, Scalars, Worker, command_line, workers


def train(
    config: GanTraining,
    device: torch.device,
    *,
    rank: int = 0,
    data: TrainingData | None = None,
    command: str | None = None,
    report: Report | None = None,
    inception: bytes | None = None,
) -> Path | None:
    """Train until `config.kimg` or `config.max_minutes`; continues from the last checkpoint in `config.out`.

    Inside a `torch.distributed` group every worker calls `train` with its rank; the first worker writes. `report` gets
    the figures after every snapshot, equally often in all workers. Returns the last snapshot's folder; None in other
    workers, and where there was nothing to do. Raises InputError for data or folders that cannot be used, and when the
    training diverges. `inception`: the bytes of its network file, needed for FID.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    data = data or load_data(config, list_data(config))
    repeats = config.deterministic and device.type == "cuda"
    with repeatable(repeats), exact_numbers(tf32=config.tf32, deterministic=repeats):
        beginning = start(config, device, data.label_size, data.sample)
        if beginning.extra:
            check_images(beginning.extra["fingerprint"], data.source.fingerprint, config.data)
        worker = Worker(device, rank, command or command_line(), report)
        return GanTrainer(config, worker, data, beginning, inception).to_the_end(config.kimg * 1000)


class GanTrainer(Trainer[GanTraining, TrainingState]):
    """One worker's part of a GAN training. It keeps snapshots. Losses in a status line may be older than the line."""

    def __init__(
        self, config: GanTraining, worker: Worker, data: TrainingData, beginning: Start, inception: bytes | None
    ):
        super().__init__(config, worker)
        self.state, self.data, self.origin = beginning.state, data, beginning.origin
        self.about = {"trained_on": data.source.record | data.label_record}
        self.at_once, memory_lines = self._fitted()
        self.settings: StepSettings = dataclasses.replace(config, batch_gpu=self.at_once).step_settings()
        reader = data.reader(config, worker.rank, workers())
        batches = Batches(
            reader,
            data.order(config),
            config,
            worker.rank,
            workers(),
            data.labels,
            data.pair_order(config),
            data.pair_reader(config, worker.rank, workers()),
        )
        generator = self.state.generator
        self.feeder = Feeder(batches, generator.z_dim, generator.num_ws, self.device)
        self.fid = SnapshotFid(config, data, self.device, worker.rank, inception)
        self.last_means: dict[str, float] = {}  # R1 runs so seldom that its last value may be older than a status line
        if worker.rank == 0:
            z_dim = self.state.generator.z_dim
            self.validation = None
            if len(data.validation):
                self.validation = Validation(data.validation, data.validation_labels, z_dim, self.device)
            pairs, self.pair_validation = data.validation_pairs(config), None
            if pairs is not None:
                self.pair_validation = PairValidation(data.validation, data.validation_labels, pairs, self.device)
            panels = (*PANELS, PAIR_PANEL) if config.pairs else PANELS
            self.open_log(beginning.extra, [self._introduction(), *data.notes, *memory_lines, *beginning.lines], panels)
            if beginning.extra is None and self.log:
                self.log.draw(lambda: save_reals(config.out, data.sample))

    def _introduction(self) -> str:
        config, state = self.config, self.state
        return (
            f"{self.data.source} at {config.height}x{config.width}; {config.architecture}, "
            f"{millions(state.generator):.2f} M parameters, discriminator {millions(state.discriminator):.2f} M; "
            f"{self.worker}"
        )

    def _fitted(self) -> tuple[int, list[str]]:
        """The images that this worker computes at a time, and a line for the log where its GPU has not room for all."""
        config = self.config
        share = config.batch // max(config.workers, 1)
        if self.device.type != "cuda":
            return config.batch_gpu or share, []
        free, _ = torch.cuda.mem_get_info(self.device)
        at_once = images_at_once(config, free - optimizer_bytes(self.state))
        if config.batch_gpu or at_once == share:
            return at_once, []
        line = (
            f"{at_once} of {share} images at a time: each needs about {image_bytes(config) / 1e9:.1f} GB, and "
            f"{free / 1e9:.0f} GB of the GPU are free; --batch-gpu N takes another number"
        )
        return at_once, [line]

    def _smaller(self) -> str:
        fewer = [part for part in possible_parts(self.config) if part < self.at_once]
        if self.config.one_pass:
            return "leave out --one-pass, or give a smaller --batch, in another --out"
        if not fewer:
            return super()._smaller()
        return f"give --batch-gpu {fewer[0]}; the same command then goes on from the last checkpoint"

    def close(self) -> None:
        """End the thread that makes inputs, and close the log."""
        self.feeder.close()
        super().close()

    def _step(self) -> Scalars:
        state = self.state
        pairs_ada = state.pairs.ada if state.pairs else None
        inputs = self.feeder.inputs(state.images_seen, state.ada, pairs_ada, state.step)
        return train_iteration(state, self.settings, inputs)

    # ---- status lines

    def _status_is_due(self, log: TrainingLog, last: bool) -> bool:
        return log.status_is_due()  # the last snapshot writes a status line before itself

    def _status_words(self, interval: Interval) -> tuple[str, dict[str, float]]:
        kimg, p = self.state.images_seen / 1000, self.state.ada.p
        shown = self.last_means = self.last_means | interval.means
        self.figures |= shown
        seconds_per_kimg = interval.seconds / interval.images * 1000
        time_left = max(self.config.kimg - kimg, 0) * seconds_per_kimg
        words = (
            f"kimg {kimg:.1f}/{self.config.kimg:g}  {seconds_per_kimg:.1f} s/kimg  "
            f"ETA {duration(time_left)}  loss G {shown.get('G/loss', float('nan')):.3f} "
            f"D {shown.get('D/loss', float('nan')):.3f} R1 {shown.get('D/r1', float('nan')):.4f}  "
            f"score real {shown.get('scores/real', float('nan')):+.2f} "
            f"fake {shown.get('scores/fake', float('nan')):+.2f}  augment {p:.3f}"
        )
        values = self._probabilities() | {"time/seconds_per_kimg": seconds_per_kimg}
        return words + self._projected_words(shown) + self._pair_words(shown), values

    def _projected_words(self, shown: dict[str, float]) -> str:
        if self.state.projected is None:
            return ""
        losses = (shown.get(f"{name}/projected_loss", float("nan")) for name in "GD")
        return "  projected G {:.3f} D {:.3f}".format(*losses)

    def _pair_words(self, shown: dict[str, float]) -> str:
        if self.state.pairs is None:
            return ""
        names = {"real": "scores/pair_real", "fake": "scores/pair_fake", "strangers": "scores/pair_stranger"}
        scores = " ".join(f"{word} {shown.get(name, float('nan')):+.2f}" for word, name in names.items())
        r1 = shown.get("D/pair_r1", float("nan"))
        loss = shown.get("G/pair_loss", float("nan"))
        words = f"  pairs G {loss:.3f} R1 {r1:.4f} score {scores} augment {self.state.pairs.ada.p:.3f}"
        if self.state.pairs.identity is not None:
            words += self._identity_words(shown)
        if self.state.pairs.intraclass is not None:
            words += f"  intraclass error {shown.get('intraclass/error', float('nan')):.3f}"
        return words

    def _identity_words(self, shown: dict[str, float]) -> str:
        same, real, different, strangers = (
            shown.get(f"identity/{name}", float("nan")) for name in ("fake", "real", "fake_strangers", "real_strangers")
        )
        return f"  alike {same:.2f} of {real:.2f}, strangers {different:.2f} of {strangers:.2f}"

    def _probabilities(self) -> dict[str, float]:
        pairs = self.state.pairs
        return {"augment/p": self.state.ada.p} | ({"augment/pair_p": pairs.ada.p} if pairs else {})

    def _stop_if_diverged(self) -> None:
        stop_if_diverged(self.figures, self.state.images_seen / 1000)

    # ---- validation

    def _every(self, kimg: float) -> bool:
        images_seen = self.state.images_seen
        return crosses(images_seen - self.config.batch, images_seen, kimg * 1000)

    def _validation_is_due(self) -> bool:
        return self._every(self.config.validation_kimg)

    def _validate(self) -> None:
        if not self.log:
            return
        state, log = self.state, self.log
        measured = self._probabilities()
        clock = time.monotonic()
        if self.validation:
            measured |= self.validation.measure(state)
        if self.pair_validation and state.pairs:
            measured |= self.pair_validation.measure(state.pairs.discriminator)
        record = self.add_record(log, measured)
        log.clock += time.monotonic() - clock  # measuring and drawing are no training time
        stop_if_diverged(record, state.images_seen / 1000)
        for line in warnings(self.figures):
            log.say(f"warning: {line}")

    # ---- snapshots and checkpoints

    def _progress(self) -> dict[str, float]:
        return {"kimg": self.state.images_seen / 1000, "iterations": self.state.step}

    def record(self) -> dict[str, Any]:
        """The record of the training in a network's file."""
        halves = {"z": z_halves(self.state.generator.z_dim)} if self.state.pairs else {}
        return super().record() | halves | self.origin

    def _snapshot_is_due(self) -> bool:
        return self._every(self.config.snapshot_kimg)

    def _snapshot(self, must: bool) -> None:
        self.status_before_saving()
        fid = self.fid.measure(self.state.generator_ema)
        if self.log:
            log = self.log
            if fid is not None:
                self.figures["fid"] = fid
            self.snapshot = self.attempt(log, must, lambda: self._write_snapshot(log, fid))
            log.skip(self.state.images_seen)
        self.send_figures(images_seen=self.state.images_seen)

    def _write_snapshot(self, log: TrainingLog, fid: float | None) -> Path:
        state, out = self.state, self.config.out
        folder = save_snapshot(out, state, self.record())
        log.draw(lambda: save_grids(out, state.generator_ema, state.images_seen, pairs=state.pairs is not None))
        words = ""
        if fid is not None:
            best = is_best(log.history, fid)
            if best:
                keep_best(out, folder)
            log.record(state.images_seen, {"fid": fid})
            words = f"  FID {fid:.2f} against {self.fid.reference}{', the best so far' * best}"
        log.say(f"snapshot {folder}{words}")
        return folder

    def _write_checkpoint(self, means: dict[str, Any]) -> Path:
        extra = {"origin": self.origin, "fingerprint": self.data.source.fingerprint, "means": means}
        return save_checkpoint(self.config.out, self.state, self.record(), extra)
