"""The loop around encoder steps: what Ray Train runs in every worker, and what runs without Ray."""

import math
from collections.abc import Callable
from pathlib import Path

import torch

from datasets.reid.training_set import TrainingImages
from passersby.errors import InputError
from passersby.restyle.checkpoint import save_encoder
from pipeline.ray_entry import enter
from training.encoder.config import PATHS, EncoderTraining
from training.encoder.encoder_data import Feeder
from training.encoder.encoder_progress import Progress
from training.encoder.encoder_snapshot import BEST, ENCODER, last_checkpoint, resume, save_checkpoint
from training.encoder.start import load_data, load_generator, load_networks, start
from training.encoder.step import train_step
from training.encoder.validation import Validation
from training.gan.data import command_line
from training.trainer import SteppedRun
from training.workers import workers

VALIDATION_PICTURE = "validation.png"


def train_loop(values: dict) -> None:
    """Ray Train's entry point: `config` is `EncoderTraining.as_json()`, the rest as `enter` says."""
    enter(EncoderTraining.from_json(values["config"]), train, values)


def train(
    config: EncoderTraining,
    device: torch.device,
    *,
    rank: int = 0,
    data: TrainingImages | None = None,
    command: str | None = None,
    report: Callable[[dict], None] | None = None,
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


class Run(SteppedRun):
    """One worker's part of an encoder training."""

    def __init__(self, config: EncoderTraining, device, data: TrainingImages, rank, command, report):
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
            self._introduce(notes, extra)

    def _introduce(self, notes: tuple[str, ...], extra: dict | None) -> None:
        config, data, say, about = self.config, self.data, self.progress.say, self.networks
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

    def _step(self, before: int) -> dict:
        config = self.config
        scalars = train_step(
            self.state, self.networks.frozen, self.feeder.batch(before), config.refinements, config.codes_weight,
            config.rate(before),
        )  # fmt: skip
        self.state.images_seen += config.batch
        return scalars

    def _status(self) -> None:
        state = self.state
        self.figures |= self.progress.tell(state.step, state.images_seen, self.config.rate(state.step - 1))
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

    def _write_checkpoint(self) -> None:
        extra = {
            "fingerprint": self.data.fingerprint,
            "networks": self._hashes(),
            "means": self.progress.since_record.state_dict(),
            "seconds": self.seconds(),
        }
        average, generator = self.networks.frozen.average, self.networks.generator
        save_checkpoint(self.config.out, self.state, average, generator, self._record(), extra)

    def _write_finished(self) -> Path:
        path, best = self.config.out / ENCODER, self.config.out / BEST
        if not path.exists():
            best.replace(path)
            self.progress.say(
                f"finished after {self.seconds() / 60:.1f} minutes, best validation LPIPS {self.state.best:.3f}: {path}"
            )
        return path
