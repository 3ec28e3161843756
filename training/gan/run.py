"""The loop around training iterations, in this process alone or in each of several workers."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from passersby.errors import InputError
from training.gan.config import GanConfig
from training.gan.data import Batches
from training.gan.images import TrainingData, list_data, load_data
from training.gan.start import Start, is_best, keep_best, last_checkpoint, save_checkpoint, save_snapshot, start
from training.gan.step import StepSettings, train_iteration
from training.gan.validation import SnapshotFid, Validation, save_grids, save_reals, stop_if_diverged, warnings
from training.log import Means, RunLog, duration, memory_gb
from training.workers import Report, Scalars, command_line, decided_by_first, workers

# ---- What a GAN training says while it runs: the status line, and the records of its history.


class Progress(RunLog):
    """Collects the scalars of iterations and tells them every `status_seconds`. For one worker: the first.

    Losses and scores are this worker's means since the last status line, in the history since its last record.
    """

    def __init__(self, config: GanConfig, device: torch.device, images_seen: int):
        super().__init__(config.out, images_seen)
        self.config, self.device = config, device
        self.status, self.since_record = Means(), Means()
        self.shown: dict[str, float] = {}
        self.seconds_per_kimg = float("nan")
        self.skip(images_seen)

    def skip(self, images_seen: int) -> None:
        """Leave the time since the last status out of s/kimg: a snapshot is no training."""
        self.clock, self.clock_images = time.monotonic(), images_seen

    def add(self, scalars: Scalars) -> None:
        """Take in one iteration's scalars."""
        self.status.add(scalars)
        self.since_record.add(scalars)

    def due(self) -> bool:
        """Whether it is time for a status line."""
        return time.monotonic() - self.clock >= self.config.status_seconds

    def tell(self, images_seen: int, p: float) -> dict[str, float]:
        """Write the status line and TensorBoard's values; returns the values and starts new means."""
        means = self.status.take()
        shown = self.shown = self.shown | means  # R1 runs so seldom that its last value may be older
        trained = images_seen - self.clock_images
        if trained:
            self.seconds_per_kimg = (time.monotonic() - self.clock) / trained * 1000
        left = max(self.config.kimg - images_seen / 1000, 0) * self.seconds_per_kimg
        memory = memory_gb(self.device)
        self.say(
            f"kimg {images_seen / 1000:.1f}/{self.config.kimg:g}  {self.seconds_per_kimg:.1f} s/kimg  "
            f"ETA {duration(left)}  loss G {shown.get('G/loss', float('nan')):.3f} "
            f"D {shown.get('D/loss', float('nan')):.3f} R1 {shown.get('D/r1', float('nan')):.4f}  "
            f"score real {shown.get('scores/real', float('nan')):+.2f} "
            f"fake {shown.get('scores/fake', float('nan')):+.2f}  augment {p:.3f}  "
            f"{'GPU ' if self.device.type == 'cuda' else ''}memory {memory:.1f} GB"
        )
        values = means | {
            "augment/p": p,
            "time/seconds_per_kimg": self.seconds_per_kimg,
            "memory/gb": memory,
        }
        self.show(values, images_seen)
        self.skip(images_seen)
        return shown | values

    def record(self, images_seen: int, measured: dict[str, float]) -> dict[str, float]:
        """Add the means since the last record and `measured` to the history; draw the curves; return the record."""
        self.show(measured, images_seen)
        return self.add_record(images_seen, self.since_record.take() | measured)


_ASK_EVERY = 16  # iterations between two looks at the clock that all workers share


def train(
    config: GanConfig,
    device: torch.device,
    *,
    rank: int = 0,
    data: TrainingData | None = None,
    command: str | None = None,
    report: Report | None = None,
    inception: bytes | None = None,
) -> Path | None:
    """Train until `config.kimg` or `config.max_minutes`; goes on from the last checkpoint in `config.out`.

    Inside a `torch.distributed` group every worker calls it with its rank; the first one writes. `report`
    gets the figures after every snapshot, equally often in all workers. Returns the last snapshot's folder
    (None in other workers, and where there was nothing to do). Raises InputError for data or folders that cannot be
    used, and when the training diverges. `inception`: the bytes of its network file, needed for FID.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    data = data or load_data(config, list_data(config))
    begun = start(config, device, data.label_size, data.sample)
    if begun.extra and begun.extra["fingerprint"] != data.source.fingerprint:
        raise InputError(
            f"--data {config.data} holds other images than this training began with: give those, or another --out"
        )
    run = Run(config, device, begun, data, rank, command or command_line(), report, inception)
    try:
        return run.to_the_end()
    finally:
        if run.progress:
            run.progress.close()


class Run:
    """One worker's part of a training; the first one (`progress` is not None) also tells and writes."""

    def __init__(
        self,
        config: GanConfig,
        device: torch.device,
        begun: Start,
        data: TrainingData,
        rank: int,
        command: str,
        report: Report | None,
        inception: bytes | None,
    ):
        self.config, self.device, self.report = config, device, report
        self.state, self.data, self.origin = begun.state, data, begun.origin
        self.settings: StepSettings = config.step_settings()
        reader = data.reader(config, rank, workers())
        self.batches = Batches(reader, data.order(config), config, rank, workers(), data.labels)
        self.fid = SnapshotFid(config, data, device, rank, inception)
        self.started = self.checkpoint_clock = time.monotonic()
        self.figures: dict[str, float] = {}
        self.command = command
        self.progress: Progress | None = None
        if rank == 0:
            z_dim = self.state.generator.z_dim
            self.validation = (
                Validation(data.validation, data.validation_labels, z_dim, device) if len(data.validation) else None
            )
            self.progress = Progress(config, device, self.state.images_seen)
            if begun.extra:
                self.progress.since_record.load_state_dict(begun.extra["means"], device)
            self._introduce(self.progress, begun)

    def to_the_end(self) -> Path | None:
        """Iterate until there is enough or no time left; returns the last snapshot's folder."""
        state, config = self.state, self.config
        begun_at, end, snapshot = state.images_seen, config.kimg * 1000, None
        while state.images_seen < end and not self._out_of_time():
            before = state.images_seen
            generator = state.generator
            inputs = self.batches.inputs(before, state.ada.p, generator.z_dim, generator.num_ws, self.device)
            scalars = train_iteration(state, self.settings, inputs)
            last = state.images_seen >= end
            if self.progress:
                self._tell(self.progress, scalars)
                if last or _crosses(before, state.images_seen, config.validation_kimg):
                    self._validate(self.progress)
            if not last and _crosses(before, state.images_seen, config.snapshot_kimg):
                snapshot = self._snapshot(must=False)
                self._checkpoint(must=False)
            elif not last and self._checkpoint_is_due():
                self._checkpoint(must=False)
        if state.images_seen > begun_at:
            snapshot = self._snapshot(must=True)
            self._checkpoint(must=True)
        return snapshot

    # ---- what the first worker says

    def _introduce(self, progress: Progress, begun: Start) -> None:
        config, data = self.config, self.data
        size = {
            name: sum(parameter.numel() for parameter in getattr(self.state, name).parameters()) / 1e6
            for name in ("generator", "discriminator")
        }
        on_gpu = self.device.type == "cuda"
        where = torch.cuda.get_device_name(self.device) if on_gpu else f"the CPU, {torch.get_num_threads()} threads"
        progress.say(
            f"{data.source} at {config.height}x{config.width}; StyleGAN3-{config.config.upper()}, "
            f"{size['generator']:.2f} M parameters, discriminator {size['discriminator']:.2f} M; "
            f"{workers()} worker{'s' * (workers() > 1)} on {where}"
        )
        for line in [*data.notes, *begun.lines]:
            progress.say(line)
        if begun.extra is None:
            save_reals(config.out, data.sample)
        progress.skip(self.state.images_seen)

    def _tell(self, progress: Progress, scalars: Scalars) -> None:
        progress.add(scalars)
        if progress.due():
            self._status(progress)

    def _status(self, progress: Progress) -> None:
        self.figures |= progress.tell(self.state.images_seen, self.state.ada.p)
        stop_if_diverged(self.figures, self.state.images_seen / 1000)

    def _validate(self, progress: Progress) -> None:
        state = self.state
        measured = {"augment/p": state.ada.p}
        clock = time.monotonic()
        if self.validation:
            measured |= self.validation.measure(state)
        record = progress.record(state.images_seen, measured)
        progress.clock += time.monotonic() - clock  # measuring and drawing are no training
        self.figures |= {name: value for name, value in record.items() if name != "kimg"}
        stop_if_diverged(record, state.images_seen / 1000)
        for line in warnings(self.figures):
            progress.say(f"warning: {line}")

    # ---- what is kept

    def _record(self) -> dict:
        about = self.config.as_json()
        about = about | {key: Path(about[key]).name for key in ("data", "out", "transfer", "inception") if about[key]}
        return {
            "trained_on": self.data.source.record | self.data.label_record,
            "command": self.command,
            "kimg": self.state.images_seen / 1000,
            "iterations": self.state.iteration,
            "figures": self.figures,
            "configuration": about,
            **self.origin,
        }

    def _snapshot(self, must: bool) -> Path | None:
        self._status_before_saving()
        fid = self.fid.measure(self.state.generator_ema)
        folder, progress = None, self.progress
        if progress:
            if fid is not None:
                self.figures["fid"] = fid
            folder = self._attempt(progress, must, lambda: self._write_snapshot(progress, fid))
            progress.skip(self.state.images_seen)
        if self.report:
            self.report(self.figures | {"images_seen": self.state.images_seen})
        return folder

    def _write_snapshot(self, progress: Progress, fid: float | None) -> Path:
        state, out = self.state, self.config.out
        folder = save_snapshot(out, state, self._record())
        save_grids(out, state.generator_ema, state.images_seen)
        words = ""
        if fid is not None:
            best = is_best(progress.history, fid)
            if best:
                keep_best(out, folder)
            progress.record(state.images_seen, {"fid": fid})
            words = f"  FID {fid:.2f} against {self.fid.reference}{', the best so far' * best}"
        progress.say(f"snapshot {folder}{words}")
        return folder

    def _checkpoint_is_due(self) -> bool:
        if self.state.iteration % _ASK_EVERY:
            return False
        due = time.monotonic() - self.checkpoint_clock > self.config.checkpoint_minutes * 60
        return decided_by_first(due, self.device)

    def _checkpoint(self, must: bool) -> None:
        self._status_before_saving()
        self.checkpoint_clock = time.monotonic()
        progress = self.progress
        if not progress:
            return
        extra = {
            "origin": self.origin,
            "fingerprint": self.data.source.fingerprint,
            "means": progress.since_record.state_dict(),
        }

        def write() -> Path:
            progress.write_history()  # a checkpoint whose history is missing could not be gone on from exactly
            return save_checkpoint(self.config.out, self.state, self._record(), extra)

        self._attempt(progress, must, write)
        progress.clock += time.monotonic() - self.checkpoint_clock

    def _status_before_saving(self) -> None:
        # Networks that have diverged since the last status line must not replace the last good ones.
        if self.progress and self.state.images_seen > self.progress.clock_images:
            self._status(self.progress)

    def _attempt(self, progress: Progress, must: bool, write: Callable[[], Path]) -> Path | None:
        # A full disk in the middle of a training is no reason to lose what is in memory: there is a next time.
        try:
            return write()
        except InputError as error:
            if must:
                raise
            old = last_checkpoint(self.config.out)
            progress.say(f"warning: {error}; training goes on, the last checkpoint is {old and old.name}")
            return None

    def _out_of_time(self) -> bool:
        # Workers must leave the loop together, so the first one's clock decides for all.
        if self.config.max_minutes is None or (workers() > 1 and self.state.iteration % _ASK_EVERY):
            return False
        over = time.monotonic() - self.started > self.config.max_minutes * 60
        return decided_by_first(over, self.device)


def _crosses(before: int, after: int, every_kimg: float) -> bool:
    return after // (every_kimg * 1000) > before // (every_kimg * 1000)
