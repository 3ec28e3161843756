"""Latents tables of a few people with random codes from a seed, written with pyarrow alone. No test itself."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.latents.table import SCHEMA, WHO_SCHEMA

NAMES = ("0002", "0007", "0010", "0015")


def codes_of(counts: tuple[int, ...], shape: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    """For each person [pictures, num_ws, w_dim] float32: the person has a middle, and the pictures lie around it."""
    random = np.random.default_rng(seed)
    return [
        (random.normal(size=(1, *shape)) + 0.3 * random.normal(size=(count, *shape))).astype(np.float32)
        for count in counts
    ]


def path_of(person: int, picture: int) -> str:
    """The path of a picture in the data set."""
    return f"bounding_box_train/{NAMES[person]}_c{picture % 6 + 1}s1_{picture:06d}_00.jpg"


def write_table(
    folder: Path,
    sha256: str,
    codes: list[np.ndarray],
    deltas: dict[int, tuple[str, str]] | None = None,
    parts: list[tuple[np.ndarray, np.ndarray]] | None = None,
    **about,
) -> Path:
    """Write latents.parquet of a generator with this sha256.

    Picture i of a person has camera i % 6 + 1; the cameras of the last person are not known. The first person has one
    more row, which has failed. parts: who and offset of each person, as of --refine who; hows are zeros.
    """
    num_ws, w_dim = codes[0].shape[1:]
    generator = {"file": "tiny.safetensors", "sha256": sha256, "height": 64, "width": 32}
    about = {"generator": generator | {"num_ws": num_ws, "w_dim": w_dim}, "data": "toy", "splits": ["train"], **about}
    rows = []
    for person, pictures in enumerate(codes):
        delta, delta_sha256 = (deltas or {}).get(person, (None, None))
        for picture, code in enumerate([*pictures, None] if person == 0 else pictures):
            camera = None if person == len(codes) - 1 else picture % 6 + 1
            rows.append(
                {
                    "unit": 0, "person": person, "identity": int(NAMES[person]), "name": NAMES[person],
                    "path": path_of(person, picture), "camera": camera, "split": "train",
                    "w": None if code is None else code.ravel().tolist(), "status": "error" if code is None else "ok",
                    "message": "no picture" if code is None else None, "delta": delta, "delta_sha256": delta_sha256,
                }
            )  # fmt: skip
            if parts and code is not None:
                who, offset = (part.tolist() for part in parts[person])
                rows[-1] |= {"who": who, "how": [0.0] * len(who), "offset": offset}
    metadata = {"schema_version": "1", "about": json.dumps(about)}
    folder.mkdir(parents=True, exist_ok=True)
    schema = (WHO_SCHEMA if parts else SCHEMA).with_metadata(metadata)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "latents.parquet")
    return folder / "latents.parquet"
