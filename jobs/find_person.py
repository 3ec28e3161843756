"""Find a person in pictures without labels: the most similar pictures first, as a picture and a table."""

import csv
import dataclasses
import io
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before other projects' folders of our names

from datasets.people.decoding import DecodingError, decode_bicubic, decode_own_size, peculiarities, read_bytes, remarks
from datasets.people.image_sets import ImageSet, folder_images
from datasets.people.names import printable_name
from datasets.storage.feature_cache import cached, feature_key
from datasets.storage.output import Output
from jobs.common import Judge, JudgeOptions, run_job
from passersby.bounds import Bound, check_bounds
from passersby.errors import InputError

if TYPE_CHECKING:
    from passersby.reid.network import FeatureNetwork
    from pipeline.features import Workers

SHEET, TABLE = "found.png", "found.csv"
COLUMNS, SHOWN_LINES = 10, 20  # images side by side; lines in the terminal


@dataclasses.dataclass(frozen=True)
class Config:
    """Rank the images of a folder by their similarity to one picture of a person.

    Example: python jobs/find_person.py --query me.jpg --gallery /data/crops --network reid.safetensors --out found
    The gallery's features are kept in the cache folder, so that the next query computes only its own feature.
    The job runs in this process, without Ray: to start Ray is more work than one query.
    """

    query: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """The picture of the person: JPEG, PNG, WebP, BMP or TIFF. It is cut out like the pictures of the gallery."""
    gallery: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Pictures in this folder and its sub-folders. Each shows one person. No labels are needed."""
    network: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """The network: a .safetensors of jobs/train_reid.py, a checkpoint of layumi's baseline, torchreid, fast-reid, BoT
    or TransReID, or an .onnx file."""
    out: Annotated[str, tyro.conf.arg(metavar="DIR_OR_URI")]
    """Where to write found.png and found.csv."""
    evaluation: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The ranking.json of jobs/evaluate_reid.py for this network. Its threshold says who is the same person."""
    top: Annotated[int, Bound(ge=1)] = 20
    """Number of pictures to show and to list."""
    judge: Judge = JudgeOptions()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if there is a GPU, else the CPU."""


@dataclasses.dataclass(frozen=True)
class Match:
    """One image of the gallery; same: whether the threshold accepts it, None without a threshold."""

    path: Path
    similarity: float
    same: bool | None


def main(config: Config) -> None:
    """Compute what is missing, rank, write, print."""
    check_bounds(config)
    check_bounds(config.judge)
    output = Output(config.out)
    from pipeline.features import Workers
    from reporting.page import write_for_people

    loaded = config.judge.load(config.network)
    threshold = None if config.evaluation is None else read_threshold(config.evaluation, loaded.sha256)
    workers = Workers.chosen(config.device, here=True)
    network = loaded.feature_network(workers.device)
    content = query_content(config.query)
    query = network(decode_bicubic(content, network.height, network.width_pixels)[None])[0]
    images = folder_images(config.gallery, sys.maxsize)
    features = gallery_features(images, network, workers)

    similarities = features @ query  # [G] float32, -1..1; nan where an image cannot be read
    readable = np.flatnonzero(~np.isnan(similarities))
    order = readable[np.argsort(-similarities[readable], kind="stable")]
    paths = images.paths
    matches = [
        Match(paths[index], value, None if threshold is None else value >= threshold)
        for index, value in zip(order[: config.top], similarities[order].tolist(), strict=False)
    ]
    remarked = remarks(Counter(peculiarities(content)), f"--query {printable_name(str(config.query))}")
    notes = [*loaded.notes, *images.notes, *remarked]
    if len(readable) < len(paths):
        first = printable_name(str(paths[int(np.flatnonzero(np.isnan(similarities))[0])]))
        notes.append(
            f"{len(paths) - len(readable)} of {len(paths)} images are unreadable and left out, the first is {first}"
        )
    if threshold is None:
        summary = "no threshold says who is the same person: --evaluation gives one"
    else:
        passing = int((similarities[readable] >= threshold).sum())
        summary = (
            f"{passing:,} are the same person by the threshold, similarity {threshold:.3f} (1% false accepts: of "
            f"{len(readable):,} strangers about {len(readable) / 100:,.0f} would pass)"
        )
    title = f"The {len(matches)} most alike of {len(readable):,} images"
    write_for_people(output, SHEET, lambda: sheet(config.query, content, matches, title, summary))
    output.write(TABLE, table(matches, config.gallery).encode())
    lines = [
        f"{number:4}  {found_line(match, config.gallery)}" for number, match in enumerate(matches[:SHOWN_LINES], 1)
    ]
    hidden = [f"and {len(matches) - SHOWN_LINES} more in {TABLE}"] * (len(matches) > SHOWN_LINES)
    print(*(f"note: {note}" for note in notes), title, *lines, *hidden, summary, output.address(SHEET), sep="\n")


def read_threshold(path: Path, sha256: str) -> float:
    """The similarity at 1% false accepts in a ranking.json.

    Raises InputError if the file is damaged, is of another network or has no threshold.
    """
    try:
        record = json.loads(path.read_bytes())
        stored, network_sha256 = record["thresholds"]["one_percent"], record["network"].get("sha256")
        threshold = None if stored is None else float(stored["similarity"])
    except OSError as error:
        raise InputError(f"--evaluation {path}: {error.strerror or error}: check the path") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--evaluation {path}: no ranking.json of jobs/evaluate_reid.py") from error
    if network_sha256 != sha256:
        raise InputError(
            f"--evaluation {path}: it is of another network ({str(network_sha256)[:12]}, not {sha256[:12]})"
        )
    if threshold is None or not math.isfinite(threshold):
        raise InputError(f"--evaluation {path}: this evaluation found no threshold; leave the option out")
    return threshold


def query_content(path: Path) -> bytes:
    """The query's bytes. Raises InputError if they cannot be read or decoded."""
    try:
        content = read_bytes(path)
        decode_own_size(content)
    except OSError as error:
        raise InputError(f"--query {path}: {error.strerror or error}: check the path") from error
    except DecodingError as error:
        raise InputError(f"--query {path}: {error}") from error
    return content


def gallery_features(images: ImageSet, network: "FeatureNetwork", workers: "Workers") -> np.ndarray:
    """Features [G, D] float32 of length 1, nan where an image cannot be read; from the cache if they are there."""
    from pipeline.features import embeddings_of

    def compute() -> np.ndarray:
        embeddings = embeddings_of(images.paths, network, workers, images.description)
        features = np.full((images.count, network.width), np.nan, np.float32)
        features[embeddings.places] = embeddings.features
        return features

    # The file's hash does not decide everything: options change the network's configuration.
    recipe = f"{network.sha256} {network.recipe}"
    key = feature_key(bytes.fromhex(images.sha256), network.height, network.width_pixels, recipe)
    return cached(key, compute, network.width)


def sheet(query: Path, content: bytes, matches: list[Match], title: str, summary: str) -> bytes:
    """The picture: the query at the left, the list beside it, a line where the threshold stands. A PNG."""
    from reporting.grid import encode_png
    from reporting.reid.queries import Group, RankedImage, RankedList, retrieval_sheet

    passing = None if matches[0].same is None else sum(bool(match.same) for match in matches)
    shown = [RankedImage(picture(match.path), match.similarity) for match in matches]
    ranked = RankedList((printable_name(query.name),), decode_own_size(content), shown, passing)
    return encode_png(retrieval_sheet([Group("", [ranked])], title=title, subtitle=(summary,), columns=COLUMNS))


def picture(path: Path) -> np.ndarray | None:
    """An image [H, W, 3] uint8 RGB; None if the file has disappeared since its features were computed."""
    try:
        return decode_own_size(read_bytes(path))
    except (OSError, DecodingError):
        return None


def shown_name(match: Match, root: Path) -> str:
    """The name of an image relative to the gallery's folder; bytes that are not UTF-8 as \\xNN."""
    return printable_name(match.path.relative_to(root.absolute()).as_posix())


def found_line(match: Match, root: Path) -> str:
    """One line of the terminal's table."""
    name = shown_name(match, root)
    verdict = {None: "", True: "same person  ", False: "             "}[match.same]
    return f"{match.similarity:.3f}  {verdict}{name}"


def table(matches: list[Match], root: Path) -> str:
    """The list as CSV: rank, name, similarity, same_person (yes, no, or empty without a threshold)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("rank", "name", "similarity", "same_person"))
    for rank, match in enumerate(matches, 1):
        name = shown_name(match, root)
        same = "" if match.same is None else ("yes" if match.same else "no")
        writer.writerow((rank, name, f"{match.similarity:.6f}", same))
    return text.getvalue()


if __name__ == "__main__":
    run_job(main, Config)
