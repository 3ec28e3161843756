"""Measure how close images are to real people: FID, KID, precision, recall; or whether a network's people can teach."""

import dataclasses
import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before other projects' folders of our names

from datasets.people import image_sets
from datasets.people.image_sets import ImageSet
from datasets.people.market1501 import TOY_RECORD
from datasets.storage.local_copy import local_copy
from datasets.storage.output import Output
from jobs.common import MALLOC_VARIABLES, connect, run_job
from passersby import weights
from passersby.bounds import Bound, check_bounds
from passersby.errors import InputError
from passersby.options import Json
from reporting.gan.scores import TOY, describe_sets, fid_markdown, own_row, score_lines, set_record

if TYPE_CHECKING:
    from pipeline.features import Workers

SCORES, TABLE = "score.json", "fid.md"
SCORED = ("network", "folder", "run", "tree")
NEEDED = {"out": "a folder for the scores", "reference": "a data set of real people to compare with"}
NOT_OF_A_CARD = ("out", "folder", "run", "tree", "manifest", "workers", "generators")
MOST_PSI = 8  # columns of a card's table
ONLY_OF_A_CARD = ("identity", "layers", "quick", "fid_images", "card_train", "yolo_weights")


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare images with real people by the features of Inception. Give one of --network, --folder, --run, --tree.

    Example: python jobs/score.py --network net.safetensors --reference /data/market1501 --out /data/score
    Real images are first brought to the size of the scored images.
    The reference's features are kept in the cache folder, so that the next comparison with it starts at once.

    With --card the job measures a network's people: which layers hold their pose, and whether a re-ID network can
    learn from them. docs/networks.md explains the figures.
    Example: python jobs/score.py --card --network net.safetensors --reference DATA --identity reid.safetensors
    """

    out: Annotated[str | None, tyro.conf.arg(metavar="DIR_OR_URI")] = None
    """Where to write score.json and fid.md."""
    reference: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Real images to compare with: a Market-1501 tree, another data set for re-ID, or a folder of images.
    With --card a data set of real people, who are then measured the same way."""
    network: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """Score a generator, by one image of each of --people seeds. With --card the default is the demo network."""
    card: bool = False
    """Measure which layers hold the network's pose, and whether its people can teach, in this process.
    The result is the file NAME.card.json beside the network's file. It takes minutes on a CPU.
    Figures that need real people need --reference; the judge's figures need --identity too."""
    identity: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """With --card: a re-ID network that judges whether pictures show the same person.
    Take a network that was trained on other people than the generator and the measured people."""
    layers: str | None = None
    """With --card: measure people whose variants differ in these layers, as --layers of jobs/generate.py names them.
    pose takes those of the card. By default the layers are searched, which takes most of the time.
    Networks trained by identity pairs need no layers."""
    quick: bool = False
    """With --card: leave out FID, precision, recall and near-copies, which take most of the time with --reference."""
    fid_images: Annotated[int | None, Bound(ge=6)] = None
    """With --card and --reference: number of images for FID, precision and recall, by default 1000."""
    card_train: Annotated[int, Bound(ge=0)] = 0
    """With --card and --reference: train a small re-ID network for so many steps on the measured people alone.
    The test people of --reference are ranked by it, beside one that is trained on as many real people.
    1000 steps take about 10 minutes on a CPU."""
    yolo_weights: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """With --card: path of yolov4-tiny.weights, with its .cfg beside it, for machines without a package registry."""
    folder: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Score the images of a folder, flat or with one sub-folder for each person. Every node must see it.
    Of a data set for re-ID only the people of --split are taken."""
    run: Annotated[str | None, tyro.conf.arg(metavar="DIR_OR_URI")] = None
    """Score the images of a run of jobs/generate.py."""
    tree: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Score real images: a split of a Market-1501 tree or another data set for re-ID.
    The result is what a perfect generator would reach."""
    split: Literal["train", "held-out"] = "train"
    """With --tree, or with a data set as --folder: the training people, or those of query and gallery.
    Junk and distractors are left out."""
    reference_split: Literal["auto", "train", "held-out"] = "auto"
    """The same for --reference. auto: held-out if the tree has them, so that memorising does not help a generator."""
    people: Annotated[int | None, Bound(ge=6)] = None
    """With --network: number of images, by default 2500. Image i has seed --seed + i.
    With --card: number of people with 8 pictures each, by default 60."""
    seed: Annotated[int, Bound(ge=0)] = 0
    """First seed of --network. The seed also decides which images --images takes, and the subsets of KID."""
    truncation_psi: tuple[float, ...] = ()
    """With --network: by default 1, which keeps the whole variety, and for which FID is usually computed.
    With --card: by default 0.7, that of jobs/generate.py. Of several, such as 0.7 0.85 1, the card names the one that
    reaches most of what people who teach should reach."""
    verdict: Literal["kept", "all"] = "kept"
    """With --run: the images that passed the run's filters, or all images."""
    manifest: str | None = None
    """With --run: name of the manifest that says which images are kept, as given to jobs/refilter.py --name."""
    images: Annotated[int, Bound(ge=6)] = 50_000
    """Most images of each side. If there are more, a random part of them is used."""
    height: Annotated[int | None, Bound(ge=8)] = None
    """Bring both sides to this height in pixels. By default the scored images keep theirs."""
    width: Annotated[int | None, Bound(ge=8)] = None
    """Bring both sides to this width in pixels. By default the scored images keep theirs."""
    inception: Annotated[str | None, tyro.conf.arg(metavar="FILE_OR_URI")] = None
    """File of the Inception network, for machines without a package registry."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if the cluster has GPUs, else the CPU."""
    workers: Annotated[int | None, Bound(ge=0)] = None
    """Number of actors that compute features. 0 computes in this process, without Ray.
    By default one for each GPU, or without GPUs one for each CPU."""
    generators: Annotated[int | None, Bound(ge=1)] = None
    """With --network: number of actors that make images.
    By default one for each GPU, or without GPUs one for each CPU."""
    dry_run: bool = False
    """Check everything and print what would be compared; compute and write nothing."""

    @property
    def comparison(self) -> tuple[int, float]:
        """Number of images and truncation of --network where it is compared with real people."""
        return self.people or 2500, self.truncation_psi[0] if self.truncation_psi else 1.0


def main(config: Config) -> None:
    """Say what is compared, compute, print, write."""
    start = time.monotonic()
    check(config)
    if config.card:
        measure_card(config)
        return
    assert config.out is not None  # `check` has made sure of both
    assert config.reference is not None
    real_people, (people, psi) = config.reference, config.comparison
    config, output = dataclasses.replace(config, people=people), Output(config.out)
    scored, made_by = scored_set(config)
    reference = reference_set(config)
    option = next(f"--{name}" for name in SCORED if getattr(config, name) is not None)
    size = (config.height, config.width) if config.height and config.width else scored.size(option)
    lines = describe_sets(scored, reference, *size)
    print(*lines, sep="\n", flush=True)
    own_path = local_copy(config.inception, "--inception") if config.inception else None
    inception_path = weights.get("inception-2015", own_path)
    if config.dry_run:
        return
    from passersby.metrics.fid import bias_note, score_features
    from passersby.perception.inception import load_inception
    from pipeline.features import features_of

    inception, workers = load_inception(inception_path), plan_workers(config)
    real = features_of(reference, size, inception, workers, keep=True)
    fake = features_of(scored, size, inception, workers, made_by, keep=scored.kind == "tree")
    scores = score_features(real, fake, config.seed)
    note = bias_note(len(real), len(fake))
    record = {
        "scores": scores,
        "scored": set_record(scored, len(fake)),
        "reference": set_record(reference, len(real)),
        "compared_at": {"height": size[0], "width": size[1]},
        "inception": {"name": "inception-2015", "sha256": inception.sha256},
        "notes": [*lines[2:], *([note] if note else [])],
        "configuration": recorded(config, psi),
        "command": shlex.join(sys.argv),
        "seconds": round(time.monotonic() - start, 1),
    }
    toy = (real_people / TOY_RECORD).is_file()
    row = own_row(scored, reference, scores["fid"], size, TOY if toy else real_people.resolve().name)
    output.write(TABLE, f"{fid_markdown([row])}\n".encode())
    output.write(SCORES, f"{json.dumps(record, indent=2)}\n".encode())
    print(*score_lines(scores), *([f"note: {note}"] if note else []), output.address(SCORES), sep="\n")


def recorded(config: Config, psi: float) -> dict[str, Json]:
    """The options of a comparison, for its record."""
    values = {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(config).items()}
    left_out = {name for name in ONLY_OF_A_CARD if name != "identity"}
    return {name: value for name, value in values.items() if name not in left_out} | {"truncation_psi": psi}


def check(config: Config) -> None:
    """Raises InputError for options that are missing, cannot be used together or are out of range."""
    if config.card:
        for name in NOT_OF_A_CARD:
            if getattr(config, name) is not None:
                raise InputError(f"--{name} {getattr(config, name)}: it has no meaning with --card: leave it out")
        if len(config.truncation_psi) > MOST_PSI:
            raise InputError(f"--truncation-psi: {len(config.truncation_psi)} values: give at most {MOST_PSI}")
    else:
        for name in ONLY_OF_A_CARD:
            if getattr(config, name):
                raise InputError(f"--{name.replace('_', '-')} {getattr(config, name)}: it belongs to --card")
        if len(config.truncation_psi) > 1:
            values = " ".join(f"{psi:g}" for psi in config.truncation_psi)
            raise InputError(f"--truncation-psi {values}: several belong to --card; give one")
    options = [f"--{name}" for name in SCORED if getattr(config, name) is not None]
    if len(options) != 1 and not config.card:
        raise InputError(
            f"{' and '.join(options) or 'nothing'} to score: give one of --network, --folder, --run, --tree"
        )
    for name in ("out", "reference"):
        if getattr(config, name) is None and not config.card:
            raise InputError(f"--{name} is missing: give {NEEDED[name]}")
    check_bounds(config)
    if (config.height is None) != (config.width is None):
        raise InputError(f"--height {config.height} --width {config.width}: give both, or none")


def measure_card(config: Config) -> None:
    """Measure a network's people, print the figures, and write them into the card beside the network."""
    from pipeline.card.people import Sample
    from pipeline.card.teaching import Measures, card_of

    usual, many = Sample(), config.people
    sample = Sample(
        people=many or usual.people,
        gallery=usual.gallery if many is None else 4 * many,
        seed=config.seed,
        height=config.height or usual.height,
        width=config.width or usual.width,
    )
    compared = config.reference is not None and not config.quick
    measures = Measures(
        psi=config.truncation_psi or (usual.truncation_psi,),
        layers=config.layers,
        reference=config.reference,
        identity=config.identity,
        comparison=reference_set(config) if compared else None,
        scored=config.fid_images or Measures.scored,
        inception=local_copy(config.inception, "--inception") if config.inception else None,
        yolo_weights=config.yolo_weights,
        near_copies=not config.quick,
        train_steps=config.card_train,
    )
    network = weights.DEMO_NETWORK if config.network is None else config.network
    card_of(network, sample, config.device, measures, config.dry_run)


def scored_set(config: Config) -> tuple[ImageSet, tuple | None]:
    """The images to score; for a network also its generator and the configuration that make them."""
    limits = (config.images, config.seed)
    if config.folder is not None:
        if image_sets.splits_of(config.folder):  # all pictures of a data set would be its training and test people
            return image_sets.tree_images(config.folder, config.split, *limits), None
        return image_sets.folder_images(config.folder, *limits), None
    if config.tree is not None:
        return image_sets.tree_images(config.tree, config.split, *limits), None
    if config.run is not None:
        return image_sets.run_images(Output(config.run), config.verdict, config.manifest, *limits), None
    from passersby.stylegan3 import load_network  # it imports PyTorch, which takes seconds
    from pipeline.features import network_images

    assert config.network is not None  # `check` has made sure of it
    path = local_copy(config.network, "--network")
    loaded, (people, psi) = load_network(path), config.comparison
    count = min(people, config.images)
    images, configuration = network_images(path.name, loaded, count, config.seed, psi)
    return images, (loaded.generator, configuration)


def reference_set(config: Config) -> ImageSet:
    """The real images."""
    assert config.reference is not None  # `check` has made sure of it
    root, split, limits = config.reference, config.reference_split, (config.images, config.seed)
    splits = image_sets.splits_of(root)
    if not splits:
        if split != "auto":
            raise InputError(f"--reference-split {split}: {root} is no data set with training and test people")
        return image_sets.folder_images(root, *limits)
    if split == "auto":
        split = "held-out" if "held-out" in splits else "train"
    return image_sets.tree_images(root, split, *limits)


def plan_workers(config: Config) -> "Workers":
    """The workers that compute, on Ray or in this process. Raises InputError if --device asks for a missing GPU."""
    from pipeline.features import Workers

    in_process = config.workers == 0
    if not in_process:
        connect()
    return Workers.chosen(config.device, in_process, config.workers or None, config.generators)


if __name__ == "__main__":
    if "--card" in sys.argv:
        from pipeline.ray_training import restart_with

        restart_with(MALLOC_VARIABLES)  # freed memory that is kept makes synthesis on a CPU twice as fast
    run_job(main, Config)
