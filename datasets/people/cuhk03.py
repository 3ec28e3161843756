"""Reader of CUHK03 by the new protocol: 767 people to train on, 700 to test.

The images lie in images_labeled or images_detected, as torchreid extracts them from cuhk-03.mat. The file
cuhk03_new_protocol_config_labeled.mat or _detected.mat beside that folder gives the split of each image (Zhong et
al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017; images: Li et al., "DeepReID",
CVPR 2014).
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets.people.listing import GALLERY, QUERY, TRAIN, Listing
from datasets.people.names import entry_of
from datasets.people.splits import missing_note, published_note
from passersby.errors import InputError

BOXES = ("labeled", "detected")
INDICES = {TRAIN: "train_idx", QUERY: "query_idx", GALLERY: "gallery_idx"}
_CONFIG = "cuhk03_new_protocol_config_{}.mat"
_RAW = "cuhk-03.mat"
_MALFORMED = (OSError, MemoryError, ValueError, TypeError, KeyError, IndexError, NotImplementedError, AttributeError)
EXTRACT = (
    "extract its images once with torchreid, whose data folder holds cuhk03/cuhk03_release/cuhk-03.mat: python -c "
    "\"import torchreid; torchreid.data.ImageDataManager('DATA', 'cuhk03')\", and give DATA/cuhk03"
)


def holds(root: Path) -> bool:
    """Whether `root` is CUHK03: a folder of its images, the folder above, or the file they are extracted from."""
    if root.name == _RAW:
        return root.is_file()
    raw = (root / _RAW, root / "cuhk03_release" / _RAW)
    return _chosen(root) is not None or any(map(os.path.isfile, raw))


def splits(root: Path) -> set[str]:
    """All three splits, where the images are extracted and the protocol's file lies beside them."""
    chosen = _chosen(root)
    return set(INDICES) if chosen is not None and _config(*chosen) is not None else set()


def read(root: Path, split: str) -> Listing:
    """Return one split of images_labeled; of images_detected where its folder is given or is the only one.

    Raises InputError where the images are not extracted, and where the protocol's file is missing, damaged or
    of another data set.
    """
    chosen = _chosen(root)
    if chosen is None:
        raise InputError(f"{root}: the images are still in {_RAW}: {EXTRACT}")
    if split not in INDICES:
        raise InputError(f"{root}: CUHK03 has no split {split}: it has {', '.join(INDICES)}")
    folder, boxes = chosen
    config = _config(folder, boxes)
    if config is None:
        raise InputError(
            f"no {_CONFIG.format(boxes)} in {folder.parent}: it says who is in which split; take it from "
            "github.com/zhunzhong07/person-re-ranking (CUHK03-NP)"
        )
    files, identities, cameras, indices = _protocol(config, split)
    names = tuple(files[index] for index in indices)
    paths = tuple(folder / name for name in names)
    chosen_identities = identities[indices]
    name = f"CUHK03 {boxes} {split}"
    listing = Listing(
        name=name,
        contents=paths,
        identities=chosen_identities,
        cameras=cameras[indices],
        names=names,
        people={identity: str(identity) for identity in np.unique(chosen_identities).tolist()},
    )
    both = root != folder and all((root / f"images_{kind}").is_dir() for kind in BOXES)
    return listing.with_notes(
        published_note(listing, f"CUHK03-NP {boxes}", split),
        missing_note(name, paths, names, folder),
        f"{name}: the labeled boxes; for the detected ones give {root / 'images_detected'}" if both else "",
    )


def held_out_names(root: Path) -> Iterator[str]:
    """The names of the pictures of query and gallery, where the protocol's file lies beside the images.

    Raises InputError where that file cannot be read.
    """
    chosen = _chosen(root)
    config = None if chosen is None else _config(*chosen)
    if config is None:
        return
    for split in (QUERY, GALLERY):
        files, _, _, indices = _protocol(config, split)
        yield from (files[index] for index in indices)


def _chosen(root: Path) -> tuple[Path, str] | None:
    """The folder of images and the kind of its boxes (one of BOXES). None where there is no such folder."""
    for boxes in BOXES:
        name = f"images_{boxes}"
        folder = root if root.name.lower() == name else entry_of(root, name)
        if os.path.isdir(folder):
            return folder, boxes
    return None


def _config(folder: Path, boxes: str) -> Path | None:
    return next((path for path in (p / _CONFIG.format(boxes) for p in (folder.parent, folder)) if path.is_file()), None)


def _protocol(path: Path, split: str) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """(file names, identities, cameras) of all images, and the indices, from 0, of the split's images."""
    from datasets.storage.mat_file import read_mat  # its SciPy takes a while, for readers of this data set alone

    try:
        arrays = read_mat(path, ("filelist", "labels", "camId", INDICES[split]))
        values = {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}  # none is sparse
        files = [str(np.asarray(entry).reshape(-1)[0]) for entry in values["filelist"].reshape(-1)]
        identities, cameras, indices = (
            values[key].reshape(-1).astype(np.int64) for key in ("labels", "camId", INDICES[split])
        )
    except _MALFORMED as error:
        raise InputError(f"{path} is not the protocol of CUHK03 ({error}): download it again") from error
    indices = indices - 1  # MATLAB counts from 1
    fits = len(files) == len(identities) == len(cameras) and len(indices) > 0
    if not fits or indices.min() < 0 or indices.max() >= len(files) or (identities < 1).any():
        raise InputError(f"{path}: its lists do not fit each other: download it again")
    if any("/" in name or "\\" in name or name in ("", ".", "..") for name in files):
        raise InputError(f"{path}: it names files outside its folder: download it again")
    if len({files[index] for index in indices}) < len(indices):
        raise InputError(f"{path}: it names an image of {split} twice: download it again")
    return files, identities, cameras, indices
