"""The picture of an inversion: every stage at its place, and reconstructions that are those of the codes."""

import hashlib

import cv2
import numpy as np
import pytest
import torch

from datasets.latents.table import Latents
from passersby.perception.perceptual import load_perceptual
from passersby.restyle.checkpoint import LoadedEncoder
from passersby.restyle.losses import InversionLoss, LossWeights
from passersby.stylegan3 import to_uint8
from reporting.inversion.results import (
    SHEET_PEOPLE,
    InvertedPicture,
    Reconstruction,
    draw_inversion_sheet,
    inverted_pictures,
)
from tests.helpers import inversion_networks as tiny

# Colours that no text or background has: image i is found again by its own.
COLOURS = [(255, 0, 255), (0, 255, 255), (0, 255, 0), (0, 0, 255), (255, 255, 0)]


def plain(index: int) -> np.ndarray:
    return np.full((128, 64, 3), COLOURS[index], np.uint8)


def left_of(sheet: np.ndarray, index: int) -> int | None:
    columns = np.flatnonzero((sheet == np.array(COLOURS[index], np.uint8)).all(2).any(0))
    return int(columns[0]) if len(columns) else None


def test_input_steps_refined_and_pivotal_stand_in_this_order():
    steps = (Reconstruction(plain(1), 0.5), Reconstruction(plain(2), 0.4))
    whole = InvertedPicture("person a", plain(0), steps, Reconstruction(plain(3), 0.2), Reconstruction(plain(4), 0.1))
    sheet = draw_inversion_sheet([whole], "LPIPS", "1 of 1 people")
    places = [left_of(sheet, index) for index in range(5)]
    assert places == sorted(places)
    short = draw_inversion_sheet([InvertedPicture("person a", plain(0), steps)], "LPIPS", "1 of 1 people")
    assert [left_of(short, index) is not None for index in range(5)] == [True, True, True, False, False]
    toy = draw_inversion_sheet([whole], "LPIPS", "1 of 1 people", toy=True)[:50]
    assert toy.shape != sheet[:50].shape or (toy != sheet[:50]).any()  # the title says it
    with pytest.raises(ValueError, match="at least one"):
        draw_inversion_sheet([], "LPIPS", "nobody")


def test_reconstructions_are_those_of_the_encoder_and_of_the_stored_codes(tmp_path):
    encoder, average = tiny.tiny_encoder()
    generator = tiny.tiny_generator()
    loaded = LoadedEncoder(encoder, average, {}, {}, "e", "passersby", None, ())
    loss = InversionLoss(LossWeights(identity=0.0), load_perceptual(), None)
    people = SHEET_PEOPLE + 4
    codes = torch.randn(people, 16, 512, generator=torch.Generator().manual_seed(5)).numpy()
    latents = Latents(
        codes=codes, persons=np.arange(people), identities=np.arange(people) + 1, cameras=np.full(people, -1),
        paths=tuple(f"{i}.png" for i in range(people)), names={i: f"p{i}" for i in range(people)}, deltas={},
        about={"generator": {"sha256": "g"}}, folder=str(tmp_path), sha256="x",
    )  # fmt: skip
    image = np.random.default_rng(0).integers(0, 256, (32, 16, 3), np.uint8)
    content = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    (tmp_path / "0.png").write_bytes(content)
    contents = {f"{i}.png": content for i in range(people)} | {"0.png": tmp_path / "0.png"}
    del contents[f"{people - 1}.png"]  # gone since: left out, not an error
    lines = inverted_pictures(latents, contents, loaded, generator, loss, 3, "w")
    assert [line.label for line in lines][:2] == ["person p0", "person p2"]
    assert len(lines) == SHEET_PEOPLE - 1
    np.testing.assert_array_equal(lines[0].picture, image)
    assert len(lines[0].steps) == 3
    with torch.no_grad():
        x = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
        shown = generator.synthesis(average[None]).reshape(1, 3, 32, 2, 16, 2).mean((3, 5))
        code = average[None] + encoder(torch.cat([x, shown], 1))
        first = generator.synthesis(code).reshape(1, 3, 32, 2, 16, 2).mean((3, 5))
        stored = generator.synthesis(torch.from_numpy(codes[:1])).reshape(1, 3, 32, 2, 16, 2).mean((3, 5))
        for expected, found in ((first, lines[0].steps[0]), (stored, lines[0].refined)):
            difference = to_uint8(expected)[0].numpy().astype(int) - found.image  # 1: sums in another order
            assert np.abs(difference).max() <= 1
            assert found.lpips == pytest.approx(float(loss.perceptual(expected, x)), rel=1e-3)
    assert lines[0].pivotal is None
    assert hashlib.sha256(lines[0].refined.image).digest() != hashlib.sha256(lines[1].refined.image).digest()
