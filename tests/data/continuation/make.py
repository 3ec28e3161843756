"""Makes the folders beside this file: `python make.py EMPTY_FOLDER`, in a checkout of the commit that README.md names.

Everything is made by the jobs' own command lines, run from the root of the checkout. What is large and derived is then
left out, large tensors keep their sizes but repeat their first values, so that files compress to almost nothing, and
the folder that it was made in is written as {HERE}.
"""

import json
import lzma
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
REPEATED = 1024  # bytes of a large tensor that are kept, again and again
PACKED = 16_384  # bytes from which on a file is compressed
TEXTS = (".json", ".jsonl", ".txt")
DERIVED = ("*.png", "*.html", "tensorboard", "grids", "ray", ".driver.json", "failed")
COMMANDS = {
    "crowd": "make_toy_crowd --out {HERE}/crowd --train-people 4 --test-people 2 --images-per-camera 2 --cameras-min 3"
    " --cameras-max 3 --distractors 2 --junk 1 --workers 1",
    "gan": "train_gan --preset tiny --data {HERE}/crowd --out {HERE}/gan --channel-base 512 --channel-max 8"
    " --validation-people 1 --kimg 0.024 --snapshot-kimg 0.008 --threads 1",
    "run": "generate --network {HERE}/network.safetensors --out {HERE}/run --people 4 --variants 3 --seed 5"
    " --unit-images 3 --height 64 --width 32 --detector-threshold 0 --device cpu --generators 1 --detectors 1",
    "reid": "train_reid --preset tiny --data {HERE}/crowd --people {HERE}/run --out {HERE}/reid --batch 8 --steps 12"
    " --validation-epochs 2 --threads 1",
    "encoder": "train_encoder --preset tiny --data {HERE}/crowd --network {HERE}/network.safetensors"
    " --out {HERE}/encoder --width-factor 0.1 --head-channels 8 --height 32 --width 16 --batch 4 --steps 8"
    " --refinements 1 --identity-weight 0 --validation-images 2 --validation-refinements 1 --validation-steps 2"
    " --shown-refine-steps 0 --threads 1",
    "inversion": "invert --data {HERE}/crowd --encoder {HERE}/encoder.safetensors --network {HERE}/network.safetensors"
    " --out {HERE}/inversion --people 3 --pictures 2 --steps 2 --refine w --refine-steps 2 --unit-images 2"
    " --device cpu --inverters 1",
    "sweep": "sweep --sweep artificial-people --data {HERE}/crowd --generated {HERE}/run --out {HERE}/sweep"
    " --preset tiny --set batch=8 checkpoint_minutes=0.0001 --levels 0 2 --seeds 0 --steps 20 --cpus-per-trial 1"
    " --concurrent 1",
}


def main(here: Path) -> None:
    """Make everything in the empty folder `here`, then put it beside this file."""
    run("crowd", here)
    stopped("gan", here)
    shutil.copy(newest(here / "gan/checkpoints") / "network.safetensors", here / "network.safetensors")
    run("run", here)
    stopped("reid", here)
    stopped("encoder", here)
    shutil.copy(newest(here / "encoder/checkpoints") / "encoder.safetensors", here / "encoder.safetensors")
    run("inversion", here)
    run("sweep", here)
    begun = here / "sweep/trials/level-0002-seed-0"  # as if it had been killed between steps 16 and 20
    for left in ("network.safetensors", "result.json"):
        (begun / left).unlink()
    shutil.rmtree(newest(begun / "checkpoints"))
    shutil.rmtree(here / "sweep/trials/level-0000-seed-0/checkpoints")
    thin(here / "sweep")
    pack(here, Path(__file__).parent)


def run(name: str, here: Path, *more: str) -> None:
    """Run one of the commands."""
    job, *words = COMMANDS[name].replace("{HERE}", str(here)).split()
    subprocess.run(
        [sys.executable, f"jobs/{job}.py", *words, *more],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )


def stopped(name: str, here: Path) -> None:
    """Run a training until it has a checkpoint, which must be before its end; only the newest one stays."""
    out, minutes = here / name, 0.003
    while not list(out.glob("checkpoints/[0-9]*")):
        run(name, here, "--max-minutes", f"{minutes:g}")
        minutes *= 2
    for old in sorted(out.glob("checkpoints/[0-9]*"))[:-1]:
        shutil.rmtree(old)
    config = out / "config.json"
    values = json.loads(config.read_text())
    end = round(values["kimg"] * 1000) if name == "gan" else values["steps"]
    if int(newest(out / "checkpoints").name) >= end:
        raise SystemExit(f"{name} was not stopped before its end: remove {out} and try again")
    config.write_text(json.dumps(values | {"max_minutes": None}, indent=1) + "\n")
    thin(out)


def newest(folder: Path) -> Path:
    """The sub-folder with the highest number."""
    return max(folder.glob("[0-9]*"))


def thin(folder: Path) -> None:
    """Let large tensors of all networks and training states below a folder repeat their first values."""
    for path in folder.rglob("*.safetensors"):
        content = bytearray(path.read_bytes())
        start = 8 + int.from_bytes(content[:8], "little")
        for name, tensor in json.loads(content[8:start]).items():
            if name != "__metadata__":
                first, end = (start + offset for offset in tensor["data_offsets"])
                content[first:end] = repeated(bytes(content[first:end]))
        path.write_bytes(content)
    for path in folder.rglob("*.pt"):
        with zipfile.ZipFile(path) as old:
            entries = [(entry, old.read(entry)) for entry in old.infolist()]
        with zipfile.ZipFile(path, "w") as new:
            for entry, content in entries:
                is_tensor = entry.filename.split("/")[-2] == "data"
                new.writestr(entry.filename, repeated(content) if is_tensor else content)


def repeated(values: bytes) -> bytes:
    """As many bytes, of which those from REPEATED on repeat those before."""
    return (values[:REPEATED] * (len(values) // REPEATED + 1))[: len(values)]


def pack(here: Path, to: Path) -> None:
    """Copy what is kept: without derived files, with {HERE} for the folder, large files compressed."""
    for pattern in DERIVED:
        for path in list(here.rglob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in sorted(here.rglob("*")):
        if path.is_dir():
            continue
        kept, content = to / path.relative_to(here), path.read_bytes()
        kept.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in TEXTS:
            content = content.replace(str(here).encode(), b"{HERE}")
        packed = lzma.compress(content, preset=9) if len(content) > PACKED else content
        if len(packed) < 0.7 * len(content):
            kept, content = kept.with_name(f"{kept.name}.xz"), packed
        kept.write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
