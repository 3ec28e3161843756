"""An encoder training, in this process alone or in each of several workers."""

import math
from pathlib import Path
from typing import Any

import torch

from datasets.reid.training_set import TrainingImages
from passersby.devices import exact_numbers
from passersby.restyle.checkpoint import save_encoder
from reporting.curves import Panel
from reporting.palette import BLUE, GREEN, INK
from training.encoder.config import EncoderTraining
from training.encoder.start import (
    BEST,
    ENCODER,
    load_data,
    load_generator,
    load_networks,
    resume,
    save_checkpoint,
    start,
)
from training.encoder.step import EncoderState, train_step
from training.encoder.validation import Feeder, Validation
from training.log import Interval, TrainingLog, duration
from training.trainer import Trainer, check_loss, millions
from training.workers import Report, Scalars, Worker, command_line, workers

VALIDATION_PICTURE = "validation.png"

# ---- The curves of an encoder training.

_TRAINING, _VALIDATION = BLUE, GREEN


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
    Panel("Error of w where it is known", "1: the variance of w", (("loss/codes", "", INK),)),
    Panel("Learning rate", "rate", (("rate", "", INK),), logarithmic=True),
)


def train(
    config: EncoderTraining,
    device: torch.device,
    *,
    rank: int = 0,
    data: TrainingImages | None = None,
    command: str | None = None,
    report: Report | None = None,
) -> Path | None:
    """Train to the end, or for `config.max_minutes`; continues from the last checkpoint in `config.out`.

    Inside a `torch.distributed` group every worker calls `train` with its rank; the first worker writes. Returns the
    finished encoder's file; None where the training is not finished, and in other workers. Raises InputError for data
    or folders that cannot be used, and where the loss becomes infinite or undefined.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    data = data or load_data(config, load_generator(config).generator.config)
    worker = Worker(device, rank, command or command_line(), report)
    with exact_numbers(tf32=config.tf32):
        return EncoderTrainer(config, worker, data).to_the_end(config.steps * config.batch)


class EncoderTrainer(Trainer[EncoderTraining, EncoderState]):
    """One worker's part of an encoder training."""

    def __init__(self, config: EncoderTraining, worker: Worker, data: TrainingImages):
        super().__init__(config, worker)
        self.data, self.networks = data, load_networks(config, self.device)
        self.about = {"trained_on": data.record, **self.networks.record}
        generator = self.networks.frozen.generator
        self.state, notes = start(config, generator.config, self.device)
        checkpoint = self.resume(lambda folder: resume(self.state, folder, self.networks.hashes), data.fingerprint)
        self.feeder = Feeder(data, config, generator, self.device, worker.rank, workers())
        if worker.rank == 0:
            self.validation = Validation(
                data.validation_images, self.networks.frozen, config.validation_refinements, config.validation_images
            )
            lines = [*self._introduction(), *(f"note: {line}" for line in (*data.notes, *notes))]
            if checkpoint:
                lines.append(f"going on from step {self.state.step:,}")
            self.open_log(checkpoint, lines, PANELS)

    def _introduction(self) -> tuple[str, str]:
        config, data, networks = self.config, self.data, self.networks
        height, width = data.images.shape[1:3]
        generator = networks.frozen.generator.config
        identity = (networks.record["identity"] or {}).get("name", "no identity")
        return (
            f"{len(data):,} pictures of {data.real_classes:,} people at {height}x{width}, "
            f"{len(self.validation.images):,} of {len(data.validation_images):,} kept ones for validation; generator "
            f"{networks.generator['file']} {generator.height}x{generator.width}; {config.backbone}, "
            f"{millions(self.state.encoder):.1f} M parameters, sees {config.height}x{config.width}",
            f"losses: L2 {config.l2_weight:g}, {networks.record['perceptual']} {config.lpips_weight:g}, {identity} "
            f"{config.identity_weight:g}; {config.steps:,} steps of {config.batch}, {config.generated} of them "
            f"generated; {self.worker}",
        )

    def _step(self) -> Scalars:
        config, step = self.config, self.state.step
        scalars = train_step(
            self.state, self.networks.frozen, self.feeder.batch(step), config.refinements, config.codes_weight,
            config.rate(step),
        )  # fmt: skip
        self.state.images_seen += config.batch
        return scalars

    # ---- status lines

    def _status_words(self, interval: Interval) -> tuple[str, dict[str, float]]:
        config, step, means = self.config, self.state.step, interval.means
        speed = interval.images_per_second
        time_left = (config.steps - step) * config.batch / speed
        rate = config.rate(step - 1)
        identity = f" identity {means['identity/cosine']:.3f}" if "identity/cosine" in means else ""
        codes = f" w {means['loss/codes']:.3f}" if "loss/codes" in means else ""
        words = (
            f"step {step:,}/{config.steps:,}  {speed:,.1f} images/s  ETA {duration(time_left)}  "
            f"loss {means.get('loss/total', float('nan')):.3f}  L2 {means.get('loss/l2', float('nan')):.4f} "
            f"LPIPS {means.get('loss/lpips', float('nan')):.3f}{identity}{codes}  lr {rate:.2g}"
        )
        return words, {"rate": rate, "time/images_per_second": speed}

    def _stop_if_diverged(self) -> None:
        check_loss(self.figures.get("loss/total", 0.0), self.state.step, self.config.lr)

    # ---- validation

    def _validation_is_due(self) -> bool:
        return self.state.step % self.config.validation_steps == 0

    def _validate(self) -> None:
        if self.log:
            self._measure(self.log)
            self.log.skip(self.state.images_seen)
        self.send_figures(step=self.state.step)

    def _measure(self, log: TrainingLog) -> None:
        state, config = self.state, self.config
        measured = {"rate": config.rate(state.step - 1)} | self.validation.measure(state.encoder)
        self.add_record(log, measured)
        lpips = measured.get("validation/lpips", math.nan)  # nan where the encoder has diverged
        best = lpips < state.best
        if best:
            state.best = lpips
            average, generator = self.networks.frozen.average, self.networks.generator
            save_encoder(config.out / BEST, state.encoder, average, generator=generator, record=self.record())
        title = f"{config.out.name}: pictures it was not trained on, after {state.step:,} steps"
        picture = config.out / VALIDATION_PICTURE
        log.draw(lambda: self.validation.draw(picture, state.encoder, title, config.shown_refine_steps))
        first, l2 = (measured.get(f"validation/{name}", math.nan) for name in ("lpips_1", "l2"))
        identity = measured.get("validation/identity")
        log.say(
            f"validation at step {state.step:,}: LPIPS {first:.3f} after one refinement, {lpips:.3f} after "
            f"{config.validation_refinements}{' (the best so far)' * best}, L2 {l2:.4f}"
            + ("" if identity is None else f", identity {identity:.3f}")
        )

    # ---- checkpoints and the finished encoder

    def _write_checkpoint(self, means: dict[str, Any]) -> Path:
        extra = {
            "fingerprint": self.data.fingerprint,
            "networks": self.networks.hashes,
            "means": means,
            "seconds": self.seconds(),
        }
        average, generator = self.networks.frozen.average, self.networks.generator
        return save_checkpoint(self.config.out, self.state, average, generator, self.record(), extra)

    def _finish(self, log: TrainingLog) -> Path:
        path, best = self.config.out / ENCODER, self.config.out / BEST
        if not path.exists():
            best.replace(path)
            log.say(
                f"finished after {self.seconds() / 60:.1f} minutes, best validation LPIPS {self.state.best:.3f}: {path}"
            )
        return path
