"""The loop around encoder steps, in this process alone or in each of several workers."""

import math
import time
from pathlib import Path

import torch

from datasets.reid.training_set import TrainingImages
from passersby.errors import InputError
from passersby.restyle.checkpoint import save_encoder
from reporting.curves import Panel
from training.encoder.config import PATHS, EncoderTraining
from training.encoder.start import (
    BEST,
    ENCODER,
    last_checkpoint,
    load_data,
    load_generator,
    load_networks,
    resume,
    save_checkpoint,
    start,
)
from training.encoder.step import EncoderState, train_step
from training.encoder.validation import Feeder, Validation
from training.log import Means, RunLog, duration, memory_gb
from training.trainer import SteppedRun
from training.workers import Report, Scalars, command_line, workers

# ---- What an encoder training says while it runs: the status line, and the records of its history.

_TRAINING, _VALIDATION, _INK = "#0072b2", "#009e73", "#202124"


def _both(name: str) -> tuple[tuple[str, str, str], ...]:
    return ((f"loss/{name}", "training", _TRAINING), (f"validation/{name}", "validation", _VALIDATION))


PANELS = (
    Panel("Perceptual distance (LPIPS) of the last refinement", "distance", _both("lpips")),
    Panel("Squared error (L2) of the last refinement", "of values -1 to 1", _both("l2")),
    Panel(
        "Identity: reconstruction and picture",
        "cosine",
        (("identity/cosine", "training", _TRAINING), ("validation/identity", "validation", _VALIDATION)),
    ),
    Panel("Error of w where it is known", "1: the variance of w", (("loss/codes", "", _INK),)),
    Panel("Learning rate", "rate", (("rate", "", _INK),), logarithmic=True),
)


class Progress(RunLog):
    """Collects the scalars of steps and tells them every `status_seconds`. For one worker: the first.

    Losses are this worker's means since the last status line, in the history since its last record.
    """

    def __init__(self, config: EncoderTraining, device: torch.device, step: int, images_seen: int):
        super().__init__(config.out, images_seen, PANELS)
        self.config, self.device = config, device
        self.status, self.since_record = Means(), Means()
        self.images_per_second = float("nan")
        self.skip(step)

    def skip(self, step: int) -> None:
        """Leave the time since the last status out of the rate: validation and checkpoints are no training."""
        self.clock, self.clock_step = time.monotonic(), step

    def add(self, scalars: Scalars) -> None:
        """Take in one step's scalars."""
        self.status.add(scalars)
        self.since_record.add(scalars)

    def due(self) -> bool:
        """Whether it is time for a status line."""
        return time.monotonic() - self.clock >= self.config.status_seconds

    def tell(self, step: int, images_seen: int, rate: float) -> dict[str, float]:
        """Write the status line and TensorBoard's values; returns the values and starts new means."""
        means = self.status.take()
        seconds, steps = time.monotonic() - self.clock, step - self.clock_step
        if steps and seconds > 0:
            self.images_per_second = steps * self.config.batch / seconds
        left = (self.config.steps - step) * self.config.batch / self.images_per_second
        memory = memory_gb(self.device)
        identity = f" identity {means['identity/cosine']:.3f}" if "identity/cosine" in means else ""
        codes = f" w {means['loss/codes']:.3f}" if "loss/codes" in means else ""
        self.say(
            f"step {step:,}/{self.config.steps:,}  {self.images_per_second:,.1f} images/s  ETA {duration(left)}  "
            f"loss {means.get('loss/total', float('nan')):.3f}  L2 {means.get('loss/l2', float('nan')):.4f} "
            f"LPIPS {means.get('loss/lpips', float('nan')):.3f}{identity}{codes}  lr {rate:.2g}  "
            f"{'GPU ' * (self.device.type == 'cuda')}memory {memory:.1f} GB"
        )
        values = means | {"rate": rate, "time/images_per_second": self.images_per_second, "memory/gb": memory}
        self.show(values, images_seen)
        self.skip(step)
        return values

    def record(self, images_seen: int, measured: dict[str, float]) -> dict[str, float]:
        """Add the means since the last record and `measured` to the history; draw the curves; return the record."""
        self.show(measured, images_seen)
        return self.add_record(images_seen, self.since_record.take() | measured)


VALIDATION_PICTURE = "validation.png"


def train(
    config: EncoderTraining,
    device: torch.device,
    *,
    rank: int = 0,
    data: TrainingImages | None = None,
    command: str | None = None,
    report: Report | None = None,
) -> Path | None:
    """Train to the end, or for `config.max_minutes`; goes on from the last checkpoint in `config.out`.

    Inside a `torch.distributed` group every worker calls it with its rank; the first one writes. Returns the finished
    encoder's file, None where it is not finished and in other workers. Raises InputError for data or folders that
    cannot be used, and where the loss is no number any more.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    data = data or load_data(config, load_generator(config).generator.config)
    run = Run(config, device, data, rank, command or command_line(), report)
    try:
        return run.to_the_end(config.steps)
    finally:
        run.close()


class Run(SteppedRun[EncoderTraining, EncoderState, Progress]):
    """One worker's part of an encoder training."""

    def __init__(
        self,
        config: EncoderTraining,
        device: torch.device,
        data: TrainingImages,
        rank: int,
        command: str,
        report: Report | None,
    ):
        super().__init__(config, device, report)
        self.data, self.command = data, command
        self.networks = load_networks(config, device)
        generator = self.networks.frozen.generator
        self.state, notes = start(config, generator.config, device)
        extra = self._resume()
        self.feeder = Feeder(data, config, generator, device, rank, workers())
        if rank == 0:
            self.validation = Validation(
                data.validation_images, self.networks.frozen, config.validation_refinements, config.validation_images
            )
            self.progress = Progress(config, device, self.state.step, self.state.images_seen)
            if extra:
                self.seconds_before = extra["seconds"]
                self.progress.since_record.load_state_dict(extra["means"], device)
            self._introduce(self.progress, notes, extra)

    def _introduce(self, progress: Progress, notes: tuple[str, ...], extra: dict | None) -> None:
        config, data, say, about = self.config, self.data, progress.say, self.networks
        size = sum(parameter.numel() for parameter in self.state.encoder.parameters()) / 1e6
        on_gpu = self.device.type == "cuda"
        where = torch.cuda.get_device_name(self.device) if on_gpu else f"the CPU, {torch.get_num_threads()} threads"
        height, width = data.images.shape[1:3]
        generator = about.frozen.generator.config
        identity = (about.record["identity"] or {}).get("name", "no identity")
        say(
            f"{len(data):,} pictures of {data.real_classes:,} people at {height}x{width}, "
            f"{len(self.validation.images):,} of {len(data.validation_images):,} kept ones for validation; generator "
            f"{about.generator['file']} {generator.height}x{generator.width}; {config.backbone}, {size:.1f} M "
            f"parameters, sees {config.height}x{config.width}"
        )
        say(
            f"losses: L2 {config.l2_weight:g}, {about.record['perceptual']} {config.lpips_weight:g}, {identity} "
            f"{config.identity_weight:g}; {config.steps:,} steps of {config.batch}, {config.generated} of them "
            f"generated; {workers()} worker{'s' * (workers() > 1)} on {where}"
        )
        for line in [*data.notes, *notes]:
            say(f"note: {line}")
        if extra:
            say(f"going on from step {self.state.step:,}")

    def _step(self, before: int) -> Scalars:
        config = self.config
        scalars = train_step(
            self.state, self.networks.frozen, self.feeder.batch(before), config.refinements, config.codes_weight,
            config.rate(before),
        )  # fmt: skip
        self.state.images_seen += config.batch
        return scalars

    def _status(self, progress: Progress) -> None:
        state = self.state
        self.figures |= progress.tell(state.step, state.images_seen, self.config.rate(state.step - 1))
        loss = self.figures.get("loss/total", 0.0)
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} at step {state.step:,}: the training has diverged; take a lower --lr than "
                f"{self.config.lr:g}, in another --out"
            )

    def _validation_is_due(self, before: int) -> bool:
        return self.state.step % self.config.validation_steps == 0

    def _validate(self) -> None:
        if self.progress:
            state, config = self.state, self.config
            measured = {"rate": config.rate(state.step - 1)} | self.validation.measure(state.encoder)
            record = self.progress.record(state.images_seen, measured)
            self.figures |= {name: value for name, value in record.items() if name != "kimg"}
            lpips = measured.get("validation/lpips", math.nan)  # nan where the encoder has diverged
            best = lpips < state.best
            if best:
                state.best = lpips
                self._save(config.out / BEST)
            try:
                title = f"{config.out.name}: pictures it was not trained on, after {state.step:,} steps"
                self.validation.draw(config.out / VALIDATION_PICTURE, state.encoder, title, config.shown_refine_steps)
            except InputError as error:
                self.progress.say(f"warning: {error}; training goes on")
            first, l2 = (measured.get(f"validation/{name}", math.nan) for name in ("lpips_1", "l2"))
            identity = measured.get("validation/identity")
            self.progress.say(
                f"validation at step {state.step:,}: LPIPS {first:.3f} after one refinement, {lpips:.3f} after "
                f"{config.validation_refinements}{' (the best so far)' * best}, L2 {l2:.4f}"
                + ("" if identity is None else f", identity {identity:.3f}")
            )
            self.progress.skip(state.step)
        if self.report:
            self.report(self.figures | {"step": self.state.step})

    # ---- what is kept

    def _save(self, path: Path) -> None:
        save_encoder(
            path, self.state.encoder, self.networks.frozen.average, generator=self.networks.generator,
            record=self._record(),
        )  # fmt: skip

    def _resume(self) -> dict | None:
        folder = last_checkpoint(self.config.out)
        if folder is None:
            return None
        extra = resume(self.state, folder)
        for key, option, value in (
            ("fingerprint", f"--data {self.config.data}: these are other images", self.data.fingerprint),
            ("networks", "the generator or the networks of the losses are others", self._hashes()),
        ):
            if extra[key] != value:
                raise InputError(f"{option} than this training began with: give those, or another --out")
        return extra

    def _hashes(self) -> dict:
        record = self.networks.record
        return {
            "generator": record["generator"]["sha256"],
            "perceptual": record["perceptual"],
            "identity": (record["identity"] or {}).get("sha256"),
        }

    def _record(self) -> dict:
        about = self.config.as_json()
        for key in PATHS:
            about[key] = about[key] and Path(about[key]).name
        return {
            "trained_on": self.data.record,
            **self.networks.record,
            "command": self.command,
            "steps": self.state.step,
            "minutes": self.seconds() / 60,
            "figures": self.figures,
            "configuration": about,
        }

    def _write_checkpoint(self, progress: Progress) -> None:
        extra = {
            "fingerprint": self.data.fingerprint,
            "networks": self._hashes(),
            "means": progress.since_record.state_dict(),
            "seconds": self.seconds(),
        }
        average, generator = self.networks.frozen.average, self.networks.generator
        save_checkpoint(self.config.out, self.state, average, generator, self._record(), extra)

    def _write_finished(self, progress: Progress) -> Path:
        path, best = self.config.out / ENCODER, self.config.out / BEST
        if not path.exists():
            best.replace(path)
            progress.say(
                f"finished after {self.seconds() / 60:.1f} minutes, best validation LPIPS {self.state.best:.3f}: {path}"
            )
        return path
