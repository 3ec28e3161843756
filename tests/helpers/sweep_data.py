"""A tiny data set with query and gallery, and artificial people and variants as folders. No test itself."""

from pathlib import Path

import cv2
import numpy as np

HEIGHT, WIDTH = 32, 16
TRAIN, TEST = range(1, 7), range(11, 16)


def write_person(folder: Path, identity: int, count: int, suffix: str = ".png") -> None:
    """Pictures of one colour with noise, alternately by two cameras."""
    folder.mkdir(parents=True, exist_ok=True)
    colour = np.random.default_rng(identity).integers(0, 256, 3)
    for index in range(count):
        noise = np.random.default_rng([identity, index]).integers(-60, 60, (HEIGHT, WIDTH, 3))
        image = np.clip(colour + noise, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{identity:04d}_c{index % 2 + 1}s1_{index:06d}_00{suffix}"), image)


def write_data(root: Path) -> dict[str, str]:
    """Write a Market-1501 tree of 6 training and 5 test people, 5 artificial people, and 4 variants of each of the 6.

    Returns the folders by their names on the command line: data, people, variants.
    """
    for identity in TRAIN:
        write_person(root / "market/bounding_box_train", identity, 5)
        write_person(root / f"variants/{identity}", identity, 4)
    for identity in TEST:
        write_person(root / "market/bounding_box_test", identity, 4)
        write_person(root / "whole", identity, 1)
        (root / "market/query").mkdir(exist_ok=True)
        (root / f"whole/{identity:04d}_c1s1_000000_00.png").rename(
            root / f"market/query/{identity:04d}_c1s1_000009_00.png"
        )
    for identity in range(21, 26):
        write_person(root / f"people/{identity}", identity, 3)
    return {"data": str(root / "market"), "people": str(root / "people"), "variants": str(root / "variants")}
