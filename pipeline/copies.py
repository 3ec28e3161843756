"""Near-copies of real pictures, and people who look like one another (doubles), in the shards of a finished run."""

import heapq
import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from actors.identity_scorer import features_in_chunks
from datasets.people.decoding import DecodingError, decode, decode_at, decode_bicubic
from datasets.people.listing import Listing
from datasets.people.real_people import RealPeople
from datasets.runs.manifest import READERS
from datasets.runs.run import GenerationRun
from datasets.runs.shards import read_shard
from datasets.runs.verdicts import LATENT, nearest_real
from passersby.errors import InputError
from passersby.metrics.identity import (
    NOBODY,
    SHARE,
    Doubles,
    doubles,
    near_copy_threshold,
    nearest_pictures,
    same_person_threshold,
)
from passersby.reid.network import FeatureNetwork
from reporting.grid import encode_png
from reporting.run.identity import (
    PRIVACY,
    PRIVACY_SHEET,
    SHEET_PAIRS,
    DoublesFound,
    NearCopies,
    NearestImage,
    Pair,
    Privacy,
    privacy_sheet,
)

FIRST_PAIRS = 100  # pairs of doubles that the record names
# Thresholds where no real pictures can set them. They are a guess for networks trained with a metric loss or a
# classifier: pairs of different people seldom reach these cosines.
DOUBLE_COSINE, NEAR_COPY_COSINE = 0.9, 0.95
_COLUMNS = ["person", "variant", "source", "image", "status", "reference_variant", "identity_cosine", "identity_margin"]


def privacy(
    run: GenerationRun,
    network: FeatureNetwork,
    real: RealPeople | None,
    device: str,
    listing: Listing | None = None,
    near_copy_cosine: float | None = None,
    double_cosine: float | None = None,
) -> Privacy:
    """Find near-copies and doubles in the shards of a whole run; writes OUT/privacy.json and OUT/privacy.png.

    Near-copies: images whose stored cosine to the nearest real picture reaches `near_copy_cosine`, by default
    `passersby.metrics.identity.near_copy_threshold` (for variants of real people the threshold of the same person).
    Doubles: pairs of artificial people whose reference images, seen by `network` on `device`, reach `double_cosine`, by
    default the network's threshold at 1% false accepts among the real pictures. Without real pictures there are no
    near-copies, and DOUBLE_COSINE is the threshold of doubles. Variants of real people have no doubles. listing: the
    real pictures, which the contact sheet shows.

    All shards are read once, some at a time. Features of references go to a temporary file, so memory does not grow
    with the number of people; the time for doubles grows with its square. Returns the content of OUT/privacy.json,
    plain JSON values: plan_hash, images, network (sha256), real {name, pictures, people}, near_copies {count, scored,
    share, threshold, chosen}, nearest [{person, variant, cosine, name, picture}], doubles {count, pairs, share, people,
    threshold, chosen, first [{people, cosine}]}; null where not applicable. Raises InputError for a damaged or missing
    shard, and for real pictures of another network.
    """
    if real is not None:
        real.check(network.width)
    network.to(device)
    output, scan = run.output, _Scan(run, network, real, near_copy_cosine)
    with tempfile.TemporaryFile() as file:
        people: list[int] = []
        for persons, features in features_in_chunks(network, scan.references()):
            finite_rows = np.all(np.isfinite(features[: len(persons)]), axis=1)
            file.write(features[: len(persons)][finite_rows].tobytes())
            people += [person for person, finite in zip(persons, finite_rows.tolist(), strict=True) if finite]
        file.flush()
        double_pairs = None
        if scan.artificial:
            threshold, chosen = _double_threshold(real, double_cosine)
            shape = (len(people), network.width)
            features = np.memmap(file, np.float32, "r", shape=shape) if people else np.empty(shape, np.float32)
            double_pairs = doubles(features, threshold, FIRST_PAIRS, device)
    nearest, copies = _nearest(scan.most_alike(), network, real, listing)
    content: Privacy = {
        "plan_hash": run.hash,
        "images": run.plan.images,
        "network": network.sha256,
        "real": None
        if real is None
        else {"name": real.name, "pictures": len(real), "people": len(np.unique(real.identities))},
        "near_copies": scan.near_copies(),
        "nearest": nearest,
        "doubles": double_pairs and _doubles_record(double_pairs, people, threshold, chosen),
    }
    pairs = _double_pairs(run, content["doubles"]) if content["doubles"] else []
    sheet = privacy_sheet(copies, pairs)
    if sheet is None:
        output.remove(PRIVACY_SHEET)
    else:
        output.write(PRIVACY_SHEET, encode_png(sheet))
    output.write(PRIVACY, (json.dumps(content, indent=2) + "\n").encode())
    return content


def _double_threshold(real: RealPeople | None, requested: float | None) -> tuple[float, str]:
    if requested is not None:
        return requested, "as given"
    threshold = None if real is None else same_person_threshold(real.features, real.identities)
    if threshold is None:
        return DOUBLE_COSINE, "a fixed one, as there are no pictures of two real people to measure it on"
    return threshold, f"{100 * SHARE:g}% of pairs of different real people's pictures are as alike"


class _Scan:
    """One pass over all shards: counts near-copies, keeps the nearest images, and yields the artificial references."""

    def __init__(
        self, run: GenerationRun, network: FeatureNetwork, real: RealPeople | None, requested_cosine: float | None
    ):
        self.run, self.network, self.real, self.requested_cosine = run, network, real, requested_cosine
        self.artificial = False
        self._threshold: tuple[float, str] | None = None
        self._count = self._scored = 0
        self._best: list[tuple[float, int, int, bytes]] = []  # a heap: cosine, -person, variant, image

    def references(self) -> Iterator[tuple[int, np.ndarray]]:
        """(person, pixels at the network's size) of every artificial person with a reference, in order."""
        for table in self._tables():
            self._count_near_copies(table)
            for row in table.filter(_is_reference(table)).to_pylist():
                if row["source"] == LATENT or row["image"] is None:
                    continue
                self.artificial = True
                try:
                    pixels = decode_bicubic(row["image"], self.network.height, self.network.width_pixels)
                except DecodingError as error:
                    where = f"person {row['person']} variant {row['variant']}"
                    raise InputError(f"{self.run.output.root_address}: {where}: {error}: see jobs/verify.py") from error
                yield row["person"], pixels

    def _tables(self) -> Iterator[pa.Table]:
        units = self.run.plan.units()
        with ThreadPoolExecutor(READERS) as readers:
            while group := list(itertools.islice(units, READERS)):
                yield from readers.map(lambda unit: read_shard(self.run, unit, _COLUMNS), group)

    def _count_near_copies(self, table: pa.Table) -> None:
        if self.real is None or not table.num_rows:
            return
        cosines = nearest_real(table)
        if self._threshold is None:
            self._threshold = self._chosen(self.real, latent=table["source"][0].as_py() == LATENT)
        self._scored += int(np.isfinite(cosines).sum())
        self._count += int((cosines >= self._threshold[0]).sum())
        persons, variants = table["person"].to_numpy(), table["variant"].to_numpy()
        order = np.lexsort((variants, -np.nan_to_num(cosines, nan=-2), persons))  # each person's nearest image first
        for row in order[np.r_[True, np.diff(persons[order]) > 0]]:
            content = table["image"][int(row)].as_py()
            if np.isfinite(cosines[row]) and content is not None:
                item = (float(cosines[row]), -int(persons[row]), int(variants[row]), content)
                (heapq.heappush if len(self._best) < SHEET_PAIRS else heapq.heappushpop)(self._best, item)

    def _chosen(self, real: RealPeople, latent: bool) -> tuple[float, str]:
        if self.requested_cosine is not None:
            return self.requested_cosine, "as given"
        threshold = near_copy_threshold(real.features, real.identities, of_same_person=latent)
        whom = "another picture of the same person" if latent else "a picture of somebody else"
        if threshold is None:
            return NEAR_COPY_COSINE, f"a fixed one, as no real picture can be compared with {whom}"
        return threshold, f"{100 * SHARE:g}% of real pictures are as like {whom}"

    def near_copies(self) -> NearCopies | None:
        """The record of the counted near-copies; None without real pictures or without images."""
        if self._threshold is None:
            return None
        share = self._count / self._scored if self._scored else None
        threshold, chosen = self._threshold
        return {
            "count": self._count,
            "scored": self._scored,
            "share": share,
            "threshold": threshold,
            "chosen": chosen,
        }

    def most_alike(self) -> list[tuple[float, int, int, bytes]]:
        """(cosine, person, variant, image) of the images nearest to real pictures, one a person, the nearest first."""
        return [(cosine, -person, variant, content) for cosine, person, variant, content in sorted(self._best)[::-1]]


def _is_reference(table: pa.Table) -> pa.Array:
    variant, reference = table["variant"].to_numpy(), table["reference_variant"].fill_null(-1).to_numpy()
    ok = np.array([status == "ok" for status in table["status"].to_pylist()], bool)
    return pa.array((variant == reference) & ok)


def _nearest(
    images: Sequence[tuple[float, int, int, bytes]],
    network: FeatureNetwork,
    real: RealPeople | None,
    listing: Listing | None,
) -> tuple[list[NearestImage], list[Pair]]:
    """Records and pairs of generated images and their nearest real pictures, which shards do not name."""
    records: list[NearestImage] = []
    pairs: list[Pair] = []
    if real is None:  # then no image has a nearest picture
        return records, pairs
    index_of = {} if listing is None else {name: index for index, name in enumerate(listing.names)}
    size = network.height, network.width_pixels
    pixels = ((index, decode_bicubic(image[3], *size)) for index, image in enumerate(images))
    for chunk, features in features_in_chunks(network, pixels):
        nearest = nearest_pictures(features, real.features, real.identities, np.full(len(features), NOBODY))
        for index, picture in zip(chunk, nearest.picture[: len(chunk)].tolist(), strict=True):
            cosine, person, variant, content = images[index]
            identity = int(real.identities[picture])
            name = real.people.get(identity, str(identity))
            file = real.pictures[picture] if real.pictures else None
            records.append(
                {"person": person, "variant": variant, "cosine": round(cosine, 6), "name": name, "picture": file}
            )
            shown = _real_picture(listing, None if file is None else index_of.get(file))
            pairs.append(Pair(decode(content), f"{person}/{variant}", shown, f"{cosine:.3f} {_printable(name)}"))
    return records, pairs


def _real_picture(listing: Listing | None, index: int | None) -> np.ndarray | None:
    # None also where the file is gone since its features were computed: then only its name is shown.
    return None if listing is None or index is None else decode_at(listing, index)


def _printable(name: str) -> str:
    # File names may hold bytes that are no text; no font can draw them.
    return name.encode("utf-8", "replace").decode()


def _doubles_record(result: Doubles, people: Sequence[int], threshold: float, chosen: str) -> DoublesFound:
    named = zip(result.first.tolist(), result.cosines.tolist(), strict=True)
    return {
        "count": result.count,
        "pairs": result.pairs,
        "share": result.count / result.pairs if result.pairs else None,
        "people": len(people),
        "threshold": threshold,
        "chosen": chosen,
        "first": [{"people": [people[a], people[b]], "cosine": round(cosine, 6)} for (a, b), cosine in named],
    }


def _double_pairs(run: GenerationRun, record: DoublesFound) -> list[Pair]:
    shown = record["first"][:SHEET_PAIRS]
    shown_people = {person for pair in shown for person in pair["people"]}
    images: dict[int, np.ndarray] = {}
    for unit in run.plan.units():
        people = shown_people & set(range(unit.first_person, unit.first_person + unit.people))
        if people:
            table = read_shard(run, unit, ["person", "variant", "image", "status", "reference_variant"])
            for row in table.filter(_is_reference(table)).to_pylist():
                if row["person"] in people:
                    images[row["person"]] = decode(row["image"])
    return [
        Pair(images[first], f"person {first}", images[second], f"{pair['cosine']:.3f} person {second}")
        for pair in shown
        for first, second in [pair["people"]]
    ]
