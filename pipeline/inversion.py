"""The networks of an inversion, which are checked together, and its stages."""

import dataclasses
from pathlib import Path

import ray

from actors.inverter import Inverter
from actors.latent_writer import STAGES, LatentWriter
from datasets.latents.pictures import Pictures
from datasets.latents.plan import InversionRun, NetworkFiles
from passersby.errors import InputError
from passersby.options import Json
from passersby.perception.perceptual import load_perceptual
from passersby.reid.identity_features import load_identity
from passersby.restyle.checkpoint import LoadedEncoder, check_pair, load_encoder
from passersby.restyle.encoder import working_size
from passersby.restyle.losses import InversionLoss, LossWeights
from passersby.stylegan3.checkpoint import LoadedNetwork, load_network
from passersby.stylegan3.generator import Generator
from pipeline.commit import Work
from pipeline.pools import Pool, Stage
from reporting.inversion.results import AboutNetworks

THREADS = 1  # of every actor, on every machine: the number of threads can change the last bit of a code


@dataclasses.dataclass(frozen=True)
class Networks:
    """The networks of a run, on the CPU, with the record of each.

    encoder: None for the refinement who. cameras: those that the generator has labels for.
    """

    encoder: LoadedEncoder | None
    generator: Generator
    loss: InversionLoss
    files: NetworkFiles
    generator_sha256: str
    generator_record: dict[str, Json]
    cameras: tuple[int, ...] = ()

    @classmethod
    def load(cls, files: NetworkFiles) -> "Networks":
        """Raises InputError for files that hold no such network, and for an encoder of another generator. Without an
        encoder, for the refinement who, the generator must be one of identity pairs."""
        network, loaded = load_network(files.generator), None
        config = network.generator.config
        if files.encoder is None:
            _check_who(network, files.generator)
        else:
            loaded = load_encoder(files.encoder)
            check_pair(loaded, config, network.sha256, network.generator)
        if config.img_channels != 3:
            raise InputError(f"--network {files.generator}: its images have {config.img_channels} channels, not 3")
        identity = None if files.identity is None else load_identity(files.identity)
        weights = LossWeights() if identity else LossWeights(identity=0.0)
        loss = InversionLoss(weights, load_perceptual(files.perceptual), identity)
        return cls(loaded, network.generator, loss, files, network.sha256, network.record, network.cameras)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures as they are inverted."""
        config = self.generator.config
        return working_size(self.encoder.encoder.config, config) if self.encoder else (config.height, config.width)

    def about(self) -> AboutNetworks:
        """The networks as the metadata of latents.parquet describe them; a training without a record is "unknown"."""
        config, encoder = self.generator.config, self.encoder
        records = {"generator": self.generator_record} | ({"encoder": encoder.record} if encoder else {})
        perceptual = self.loss.perceptual
        assert perceptual is not None  # `load` gives it one
        return {
            "generator": {
                "file": self.files.generator.name,
                "sha256": self.generator_sha256,
                "height": config.height,
                "width": config.width,
                "num_ws": config.num_ws,
                "w_dim": config.w_dim,
            },
            "encoder": encoder
            and {
                "file": self.encoder_name,
                "sha256": encoder.sha256,
                "kind": encoder.kind,
                "generator": dict(encoder.generator) or "unknown",
            },
            "metric": perceptual.name,
            "identity": None if self.loss.identity is None else self.loss.identity.name,
            "weights": dataclasses.asdict(self.loss.weights),
            "trained_on": {name: record.get("trained_on", "unknown") for name, record in records.items()},
            "records": records,
        }

    @property
    def encoder_name(self) -> str | None:
        """The name of the encoder's file."""
        return self.files.encoder and self.files.encoder.name

    def describe(self) -> str:
        """The networks in a line for people, and the encoder's notes."""
        height, width = self.size
        about, encoder = self.about(), self.encoder
        by = f"encoder {self.encoder_name} ({encoder.kind})" if encoder else "no encoder"
        lines = [
            f"inversion at {height} x {width}: {by}, generator "
            f"{self.files.generator.name}, {about['metric']}, identity by {about['identity'] or 'nothing'}"
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in (encoder.notes if encoder else ()))])


def _check_who(network: LoadedNetwork, file: Path) -> None:
    """Raise InputError unless a person can be found as one who in the network of the file."""
    if not network.has_who:
        raise InputError(
            f"--refine who: the record of {file.name} names no half of its codes that says who, as networks of "
            "jobs/train_gan.py --pairs have: give such a network, or --refine w"
        )
    if network.generator.c_dim and not network.cameras:
        raise InputError(f"--refine who: {file.name} has labels, but its record does not say of which cameras")


def inversion_stages(run: InversionRun, networks: Networks, inverters: Pool, device: str) -> list[Stage]:
    """The pipeline: both stages with their arguments, on the connected cluster. inverters: the requested pool."""
    # A published encoder carries a decoder beside itself, which no worker needs.
    encoder = networks.encoder and ray.put(dataclasses.replace(networks.encoder, decoder=None))
    parts = {"encoder": encoder, "generator": ray.put(networks.generator), "loss": ray.put(networks.loss)}
    inverting = {**parts, "configuration": run.plan.configuration, "device": device, "threads": THREADS}
    inverting["cameras"] = networks.cameras
    writing = {"address": run.output.secret_address, "plan_hash": run.hash}
    if device != "cpu":
        inverters = dataclasses.replace(inverters, gpus=inverters.gpus or 1.0)
    return [Stage(Inverter, inverting, inverters), Stage(LatentWriter, writing, Pool("writers", cpus=0.25))]


def inversion_work(run: InversionRun, pictures: Pictures, generator: Generator) -> Work:
    """The work that is to be done, as `pipeline.commit.make_work` takes it."""
    config, plan, pending = generator.config, run.plan, run.pending
    code = 4 * config.num_ws * config.w_dim
    delta = 4 * sum(p.numel() for p in generator.synthesis.parameters()) if plan.configuration.pivotal_steps else 0
    largest = max(unit.pictures * code + unit.people * delta for unit in pending)
    return Work(
        rows=[pictures.row(unit) for unit in pending],
        images=plan.pictures,
        pending_images=sum(unit.pictures for unit in pending),
        unit_bytes=8 * largest,  # rows between the stages are not compressed; `run_units` expects an eighth
        seconds=STAGES,
    )
