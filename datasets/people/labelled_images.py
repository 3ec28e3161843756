"""Listings of re-ID data - who each image shows, by which camera - and the pixels of a listing in one array.

Every reader of re-ID data gives such a Listing. What a GAN is trained on is listed in datasets/people/listing.py.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from datasets.people.image_sets import MOST_BYTES, read_bytes
from datasets.people.market_tree import MOST_PIXELS, DecodingError, decode, header_size
from passersby.errors import InputError

UNKNOWN_CAMERA = -1
_STAT_THREADS = 16  # sizes of files: network disks answer slowly and many at a time


@dataclasses.dataclass(frozen=True)
class Listing:
    """Images of people, none opened yet: entry i of every field is image i.

    name: for messages ("market1501 query"). contents: a file, or encoded bytes. identities: [N] int64, > 0 a person,
    0 a distractor (in the gallery, and always wrong), -1 junk (never counted). cameras: [N] int64, UNKNOWN_CAMERA
    where not known. names: of the images, relative, unique. people: identity (> 0) -> what the data set calls it.
    notes: lines for the user about what is missing or odd.
    """

    name: str
    contents: tuple[Path | bytes, ...]
    identities: np.ndarray
    cameras: np.ndarray
    names: tuple[str, ...]
    people: Mapping[int, str]
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "identities", np.asarray(self.identities, np.int64))
        object.__setattr__(self, "cameras", np.asarray(self.cameras, np.int64))
        lengths = {len(self.contents), len(self.identities), len(self.cameras), len(self.names)}
        if len(lengths) != 1:
            raise ValueError(f"{self.name}: fields of different lengths {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.contents)

    @property
    def has_cameras(self) -> bool:
        """Whether the camera of every image is known, so that the protocol's camera rule can be applied."""
        return len(self) > 0 and bool((self.cameras != UNKNOWN_CAMERA).all())

    def take(self, places: Sequence[int] | np.ndarray) -> "Listing":
        """The images at these places, in their order; `people` holds those that are left."""
        places = np.asarray(places)
        if places.dtype == bool:
            places = np.flatnonzero(places)
        places = places.astype(np.int64)
        chosen = self.identities[places]
        left = set(np.unique(chosen).tolist())
        return dataclasses.replace(
            self,
            contents=tuple(self.contents[place] for place in places),
            identities=chosen,
            cameras=self.cameras[places],
            names=tuple(self.names[place] for place in places),
            people={identity: name for identity, name in self.people.items() if identity in left},
        )

    def with_notes(self, *notes: str) -> "Listing":
        """The same listing with more notes; empty ones are left out."""
        return dataclasses.replace(self, notes=(*self.notes, *(note for note in notes if note)))

    def fingerprint(self) -> str:
        """sha256, in hex, over the names, identities, cameras and sizes in bytes of all images, in their order.

        Opens no image: 100,000 files take some two seconds. So another picture of the same name and size goes unseen.
        """
        with ThreadPoolExecutor(_STAT_THREADS) as pool:
            sizes = list(pool.map(_size, self.contents, chunksize=256))
        digest = hashlib.sha256()
        rows = zip(self.names, self.identities.tolist(), self.cameras.tolist(), sizes, strict=True)
        for name, identity, camera, size in rows:
            digest.update(f"{name}\0{identity}\0{camera}\0{size}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def _size(content: Path | bytes) -> int:
    if isinstance(content, bytes):
        return len(content)
    try:
        return content.stat().st_size
    except OSError:  # missing: it will be listed as unreadable
        return -1


def decode_listing(
    listing: Listing, height: int, width: int, threads: int = 4
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Pixels of a listing: (images [M, height, width, 3] uint8 RGB, places [M] int64, names of the unreadable).

    images[i] is of the listing's image places[i]; the unreadable - missing, damaged, neither JPEG nor PNG, of more
    than MOST_PIXELS by its header - are left out. Raises InputError where not one of the images can be read.
    """
    images = np.empty((len(listing), height, width, 3), np.uint8)
    places = np.flatnonzero(decode_into(listing, images, threads))
    if not len(places):
        first = f", the first is {listing.names[0]!r}" if len(listing) else ""
        raise InputError(f"{listing.name}: none of {len(listing)} images can be read{first}: give JPEG or PNG files")
    close_gaps(images, places)
    readable = set(places.tolist())
    unreadable = tuple(name for place, name in enumerate(listing.names) if place not in readable)
    return images[: len(places)], places, unreadable


def decode_into(listing: Listing, images: np.ndarray, threads: int = 4) -> np.ndarray:
    """Decode image i into images[i] ([N, H, W, 3] uint8 RGB, may be shared memory); returns [N] bool, whether it
    could be read. What stands at the places of unreadable images is undefined."""
    height, width = images.shape[1:3]

    def one(place: int) -> bool:
        try:
            content = listing.contents[place]
            data = content if isinstance(content, bytes) else read_bytes(content)
            images[place] = decode_bicubic(data, height, width)
        except (OSError, DecodingError):
            return False
        return True

    with ThreadPoolExecutor(threads) as pool:  # OpenCV decodes without holding the interpreter's lock
        return np.fromiter(pool.map(one, range(len(listing))), bool, len(listing))


def close_gaps(images: np.ndarray, places: np.ndarray) -> None:
    """Move images[places[i]] to images[i], in place: a copy of all would take the memory twice. places ascend."""
    for target, place in enumerate(places.tolist()):
        if target != place:
            images[target] = images[place]


def decode_bicubic(data: bytes, height: int, width: int) -> np.ndarray:
    """JPEG or PNG bytes -> uint8 [height, width, 3] RGB: bicubic where enlarged, as the re-ID protocol says, and
    averaged over areas where shrunk, as points would alias. Raises DecodingError, as for more than MOST_PIXELS."""
    size = header_size(data)
    if size is None or len(data) > MOST_BYTES or size[0] * size[1] > MOST_PIXELS:
        raise DecodingError(f"the {len(data)} bytes stored are no JPEG or PNG image of a modest size")
    image = decode(data)
    smaller = (min(image.shape[0], height), min(image.shape[1], width))
    if image.shape[:2] != smaller:
        image = cv2.resize(image, (smaller[1], smaller[0]), interpolation=cv2.INTER_AREA)
    if smaller != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return image
