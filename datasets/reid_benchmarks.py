"""CUHK03 (new protocol) and MSMT17, which say in lists what is for training and what for testing."""

import re
from pathlib import Path

import numpy as np
import scipy.io

from datasets.reid_images import Listing
from models.errors import InputError

# As published: Wei et al. 2018 (MSMT17), Zhong et al. 2017 (CUHK03 new protocol): images and people.
MSMT17 = {"train": (32_621, 1_041), "query": (11_659, 3_060), "gallery": (82_161, 3_060)}
CUHK03 = {
    "labeled": {"train": (7_368, 767), "query": (1_400, 700), "gallery": (5_328, 700)},
    "detected": {"train": (7_365, 767), "query": (1_400, 700), "gallery": (5_332, 700)},
}
_MSMT17_LISTS = {
    "train": ("list_train.txt", "list_val.txt"),
    "query": ("list_query.txt",),
    "gallery": ("list_gallery.txt",),
}
_MSMT17_FOLDERS = {"train": ("train", "mask_train_v2"), "query": ("test", "mask_test_v2")}
_MSMT17_FOLDERS["gallery"] = _MSMT17_FOLDERS["query"]
_CUHK03_NAME = re.compile(r"(\d+)_(\d+)_(\d+)_(\d+)\.(?:png|jpg)", re.IGNORECASE)  # set, person, camera, image


def read_msmt17(root: Path, split: str) -> Listing:
    """MSMT17 V1 or V2 (mask_*): lists of "path identity", cameras in the third part of each name.

    Its identities start at 0, which means distractor elsewhere: they are shifted by one, `people` has its own numbers.
    """
    if split not in _MSMT17_LISTS:
        raise InputError(f"{root}: MSMT17 has no {split} images")
    folder = next((root / name for name in _MSMT17_FOLDERS[split] if (root / name).is_dir()), None)
    if folder is None:
        raise InputError(
            f"{root}: neither folder {' nor '.join(_MSMT17_FOLDERS[split])} is there: unpack it beside the lists"
        )
    paths, numbers, cameras, names = [], [], [], []
    for list_name in _MSMT17_LISTS[split]:
        if not (root / list_name).is_file():
            if list_name == "list_val.txt":
                continue
            raise InputError(f"{root}: no {list_name}, which says what is for {split}")
        for row, line in enumerate((root / list_name).read_text().splitlines(), start=1):
            if not line.strip():
                continue
            path, _, number = line.rpartition(" ")
            parts = Path(path).name.split("_")
            if not number.isdigit() or len(parts) < 3 or not parts[2].isdigit() or ".." in Path(path).parts:
                raise InputError(
                    f"{root / list_name}, line {row}: {line[:80]!r} is not PPPP/PPPP_NNN_CC_...jpg IDENTITY"
                )
            paths.append(folder / path)
            names.append(path)
            numbers.append(int(number) + 1)
            cameras.append(int(parts[2]))
    if not paths:
        raise InputError(f"{root}: its lists name no {split} images")
    return _checked(f"{root.name} {split}", "MSMT17", MSMT17, split, paths, numbers, cameras, names, shift=1)


def read_cuhk03(root: Path, split: str) -> Listing:
    """CUHK03, new protocol: images_labeled (or images_detected) and cuhk03_new_protocol_config_*.mat.

    Names are SET_PERSON_CAMERA_IMAGE.png, as torchreid unpacks cuhk-03.mat. A person is a pair of set and person.
    """
    kind = next((kind for kind in ("labeled", "detected") if (root / f"images_{kind}").is_dir()), None)
    if kind is None:
        raise InputError(
            f"{root} holds cuhk-03.mat, but not its images: unpack them into images_labeled as "
            "SET_PERSON_CAMERA_IMAGE.png (torchreid does so at its first use of cuhk03)"
        )
    settings = root / f"cuhk03_new_protocol_config_{kind}.mat"
    if not settings.is_file():
        raise InputError(f"{root}: no {settings.name}, which says who is for training and who for testing")
    try:
        values = scipy.io.loadmat(
            settings, variable_names=["filelist", "labels", "camId", "train_idx", "query_idx", "gallery_idx"]
        )
        files = [str(entry[0]) for entry in values["filelist"].flatten()]
        labels, cameras = (values[key].flatten().astype(np.int64) for key in ("labels", "camId"))
        places = values[f"{split}_idx"].flatten().astype(np.int64) - 1
        files = [files[place] for place in places]
    except (KeyError, ValueError, IndexError, NotImplementedError, TypeError) as error:
        raise InputError(f"{settings} is not the new protocol's file, or has no {split} images: {error}") from error
    folder = root / f"images_{kind}"
    strangers = [name for name in files if not _CUHK03_NAME.fullmatch(name)]
    if strangers:
        raise InputError(f"{settings} names {strangers[0]!r}, which is not SET_PERSON_CAMERA_IMAGE.png")
    paths = [folder / name for name in files]
    numbers = labels[places]
    numbers = numbers + (1 if labels.min() == 0 else 0)
    return _checked(
        f"{root.name} {kind} {split}", "CUHK03", CUHK03[kind], split, paths, numbers.tolist(), cameras[places].tolist(),
        files, shift=int(labels.min() == 0),
    )  # fmt: skip


def _checked(name, published_name, published, split, paths, numbers, cameras, names, shift) -> Listing:
    identities = np.array(numbers, np.int64)
    people = {number: str(number - shift) for number in sorted(set(numbers))}
    listing = Listing(name, tuple(paths), identities, np.array(cameras, np.int64), tuple(names), people)
    images, persons = published[split]
    if (len(paths), len(people)) == (images, persons):
        return listing
    return listing.with_notes(
        f"{name}: {len(paths):,} images of {len(people):,} people; {published_name} as published has {images:,} images "
        f"of {persons:,} people"
    )
