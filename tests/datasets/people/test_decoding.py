"""Pictures of all formats and kinds become the pixels that people see: transparency, pages, depths, orientation."""

import io
import struct
import zlib
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from actors.feature_extractor import FeatureExtractor
from datasets.latents.plan import InversionConfiguration, InversionPlan
from datasets.latents.table import SCHEMA
from datasets.people import decoding
from datasets.people.any_folder import read
from datasets.people.decoding import DecodingError, Problem, Target, decode_bytes, decode_own_size, peculiarities
from datasets.people.image_sets import folder_images
from datasets.people.image_source import load_images, open_images
from datasets.people.names import IMAGE_SUFFIXES, is_image, parse_duke_name, parse_name
from datasets.people.readers import read_split
from datasets.reid.training_set import load_training_images
from datasets.storage.output import Output
from passersby.errors import InputError
from pipeline.image_stream import _examine
from reporting.gan.scores import describe_sets
from reporting.inversion.results import summarise, summary_lines

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF"}
FORMATS[".tiff"] = "TIFF"
ON_WHITE = "pictures with an alpha channel or a transparent colour are put on white"
FIRST = "of pictures with several pages or frames the first is read"
RGBA = np.random.default_rng(0).integers(0, 256, (32, 16, 4), np.uint8)
RGBA[0, :, 3], RGBA[1, :, 3] = 255, 0


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}) | options)
    return buffer.getvalue()


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """What a browser shows: [H, W, 3] colours below [H, W] alpha, rounded."""
    share = alpha[..., None] / 255.0
    return np.round(np.broadcast_to(colours, (*alpha.shape, 3)) * share + 255 * (1 - share)).astype(np.uint8)


def png(depth: int, colour_type: int, samples: np.ndarray, key: bytes) -> bytes:
    """A PNG written by hand: Pillow writes no transparent colours of 16 bits. samples: [H, W] or [H, W, 3] uint16."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], depth, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    chunks = chunk(b"IHDR", header) + chunk(b"tRNS", key) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def grey_alpha() -> Image.Image:
    return Image.merge("LA", [Image.fromarray(RGBA[..., 0].copy()), Image.fromarray(RGBA[..., 3].copy())])


def palette() -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """A picture of eight colours, its indices [H, W], and the colours [8, 3]."""
    indices, colours = RGBA[..., 0] % 8, RGBA[5, :8, :3]
    image = Image.fromarray(indices)
    image.putpalette(colours.tobytes())
    return image, indices, colours


def transparent_pictures() -> dict[str, tuple[bytes, np.ndarray]]:
    """Name -> encoded picture, and the pixels that are right."""
    colours, alpha = RGBA[..., :3], RGBA[..., 3]
    rgba, grey = on_white(colours, alpha), on_white(RGBA[..., :1], alpha)
    paletted, indices, table = palette()
    alphas = np.array([0, 128, 255, 3, 200, 255, 255, 255], np.uint8)
    key = RGBA[3, 4, :3]
    is_key = (colours == key).all(2)
    deep = np.random.default_rng(1).integers(0, 65536, (32, 16, 4), np.uint16)
    deep_rgb, deep_grey = deep[..., :3] >> 8, deep[..., :1] >> 8
    black = deep.copy()
    black[0, 0, :3], black[0, 1, :3] = 0, (1, 2, 3)  # the second one is black in 8 bits only
    return {
        "png rgba": (encoded(RGBA), rgba),
        "png grey and alpha": (encoded(grey_alpha()), grey),
        "png palette with alphas": (
            encoded(paletted, transparency=alphas.tobytes()), on_white(table[indices], alphas[indices])
        ),
        "png palette with one transparent colour": (
            encoded(paletted, transparency=2), on_white(table[indices], np.where(indices == 2, 0, 255))
        ),
        "png transparent colour": (
            encoded(colours.copy(), transparency=tuple(key.tolist())), on_white(colours, np.where(is_key, 0, 255))
        ),
        "png transparent grey": (
            encoded(RGBA[..., 0].copy(), transparency=int(RGBA[3, 4, 0])),
            on_white(RGBA[..., :1], np.where(RGBA[..., 0] == RGBA[3, 4, 0], 0, 255)),
        ),
        "png two colours": (
            encoded(Image.fromarray(RGBA[..., 0] > 127), transparency=0),
            np.full((32, 16, 3), 255, np.uint8),
        ),
        "png rgba of 16 bits": (
            cv2.imencode(".png", deep[..., [2, 1, 0, 3]])[1].tobytes(), on_white(deep_rgb, deep[..., 3] >> 8)
        ),
        "png transparent colour of 16 bits": (
            png(16, 2, black[..., :3], bytes(6)),
            on_white(black[..., :3] >> 8, np.where((black[..., :3] == 0).all(2), 0, 255)),
        ),
        "png transparent grey of 16 bits": (
            png(16, 0, deep[..., 0], struct.pack(">H", deep[3, 4, 0])),
            on_white(deep_grey, np.where(deep[..., 0] == deep[3, 4, 0], 0, 255)),
        ),
        "webp": (encoded(RGBA, "WEBP"), rgba),
        "bmp": (cv2.imencode(".bmp", RGBA[..., [2, 1, 0, 3]])[1].tobytes(), rgba),
        "tiff rgba": (encoded(RGBA, "TIFF"), rgba),
        "tiff grey and alpha": (encoded(grey_alpha(), "TIFF"), grey),
        "tiff compressed": (encoded(RGBA, "TIFF", compression="tiff_lzw"), rgba),
        "tiff rgba of 16 bits": (
            cv2.imencode(".tiff", deep[..., [2, 1, 0, 3]])[1].tobytes(), on_white(deep_rgb, deep[..., 3] >> 8)
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", transparent_pictures())
def test_a_picture_with_transparency_is_put_on_white(name):
    data, expected = transparent_pictures()[name]
    assert np.array_equal(decode_own_size(data), expected)
    assert decode_own_size(data).dtype == np.uint8
    assert peculiarities(data) == ("transparent",)


@pytest.mark.parametrize("hidden", [0, 90, 255])
def test_the_colour_below_a_transparent_pixel_has_no_influence_in_any_decoder(tmp_path, hidden):
    pixels = np.full((32, 16, 4), hidden, np.uint8)
    pixels[..., 3] = 0
    pixels[8:24, 4:12] = (200, 20, 90, 255)
    expected = on_white(pixels[..., :3], pixels[..., 3])
    (tmp_path / "all/1").mkdir(parents=True)
    for number in range(2):
        (tmp_path / "all/1" / f"{number}.png").write_bytes(encoded(pixels))
    data = encoded(pixels)
    for decode in (decoding.decode_scaled, decoding.decode_bicubic):
        assert np.array_equal(decode(data, 32, 16), expected)
    assert np.array_equal(decode_bytes(data, Target(32, 16)), expected)
    listing = read(tmp_path / "all")
    assert np.array_equal(decoding.decode_listing(listing, 32, 16)[0][1], expected)
    assert np.array_equal(decoding.decode_at(listing, 0), expected)
    assert np.array_equal(load_images(open_images(tmp_path / "all", 0), Target(32, 16)).training[0], expected)
    assert np.array_equal(load_training_images(tmp_path / "all", height=32, width=16).images[0], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_a_transparent_picture_is_turned_as_an_opaque_one(kind, orientation):
    opaque = RGBA.copy()
    opaque[..., 3] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": {0x0112: orientation}} if kind == "TIFF" else {"exif": exif}
    transparent = RGBA.copy()
    transparent[..., :3] = on_white(RGBA[..., :3], RGBA[..., 3])
    right = decode_own_size(encoded(transparent[..., :3].copy(), kind, **options))
    assert np.array_equal(decode_own_size(encoded(RGBA, kind, **options)), right)


# ---- Opaque pictures keep their bytes.


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP"])
def test_an_alpha_channel_that_hides_nothing_changes_nothing(kind):
    opaque = RGBA.copy()
    opaque[..., 3] = 255
    data = cv2.imencode(".bmp", opaque[..., [2, 1, 0, 3]])[1].tobytes() if kind == "BMP" else encoded(opaque, kind)
    assert np.array_equal(decode_own_size(data), opaque[..., :3])
    assert peculiarities(data) == (() if kind == "WEBP" else ("transparent",))  # libwebp leaves such a channel out


def test_an_alpha_channel_of_nothing_but_0_in_a_bmp_is_none():
    hidden = RGBA.copy()
    hidden[..., 3] = 0
    data = cv2.imencode(".bmp", hidden[..., [2, 1, 0, 3]])[1].tobytes()
    assert np.array_equal(decode_own_size(data), hidden[..., :3])
    assert (decode_own_size(encoded(hidden)) == 255).all()


def opaque_pictures() -> dict[str, bytes]:
    colours, deep = RGBA[..., :3].copy(), np.random.default_rng(1).integers(0, 65536, (32, 16, 3), np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures = {f"{kind} {mode}": encoded(Image.fromarray(colours).convert(mode), kind)
                for kind in ("PNG", "BMP", "TIFF") for mode in ("RGB", "L", "P", "1")}  # fmt: skip
    pictures |= {f"{kind} CMYK": encoded(Image.fromarray(colours).convert("CMYK"), kind) for kind in ("JPEG", "TIFF")}
    pictures |= {f"jpeg {quality}": encoded(colours, "JPEG", quality=quality) for quality in (10, 95)}
    pictures |= {"jpeg turned": encoded(colours, "JPEG", exif=exif), "webp lossy": encoded(colours, "WEBP")}
    pictures |= {f"{suffix} 16": cv2.imencode(suffix, deep)[1].tobytes() for suffix in (".png", ".tiff")}
    pictures |= {f"{suffix} 16 grey": cv2.imencode(suffix, deep[..., 0])[1].tobytes() for suffix in (".png", ".tiff")}
    return pictures


@pytest.mark.parametrize("name", opaque_pictures())
def test_opaque_pictures_are_what_opencv_decodes(name):
    data = opaque_pictures()[name]
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(decode_own_size(data), expected)
    assert peculiarities(data) == ()


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_become_eight(suffix):
    deep = np.random.default_rng(1).integers(0, 65536, (32, 16, 3), np.uint16)
    pixels = decode_own_size(cv2.imencode(suffix, deep[..., ::-1])[1].tobytes())
    assert np.abs(pixels - deep / 257.0).max() <= 1  # libpng cuts, libtiff rounds


def test_cmyk_becomes_its_colours():
    red = Image.new("RGB", (16, 32), (255, 0, 0)).convert("CMYK")
    for kind in ("TIFF", "JPEG"):
        difference = np.abs(decode_own_size(encoded(red, kind)).astype(int) - (255, 0, 0))
        assert difference.max() <= 2  # JPEG loses


# ---- Several pages or frames.


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_of_several_pages_the_first_is_read(kind, mode):
    first = RGBA[..., : len(mode)].copy()
    more = [Image.fromarray(first[::-1].copy()), Image.fromarray(first[:, ::-1].copy())]
    data = encoded(first, kind, save_all=True, append_images=more)
    expected = first if mode == "RGB" else on_white(RGBA[..., :3], RGBA[..., 3])
    assert np.array_equal(decode_own_size(data), expected)
    assert peculiarities(data) == (("pages",) if mode == "RGB" else ("transparent", "pages"))
    assert "pages" not in peculiarities(encoded(first, kind))


def test_a_file_of_a_million_pages_is_not_counted_through():
    pages = 200_000
    data = bytearray(struct.pack("<2sHI", b"II", 42, 8))
    for number in range(pages):  # pages of one tag each, that point to the next one
        following = len(data) + 18 if number < pages - 1 else 0
        data += struct.pack("<HHHIHHI", 1, 256, 3, 1, 16, 0, following)
    assert peculiarities(bytes(data)) == ()  # no picture, and an answer at once
    assert decode_bytes(bytes(data), Target(32, 16)) == Problem("unreadable")


# ---- Formats: listed wherever pictures are listed, whatever the case of the suffix.


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_suffix_is_a_picture_s_in_every_reader_and_in_the_guard(tmp_path, suffix):
    pixels = np.full((32, 16, 3), (200, 20, 90), np.uint8)
    data = encoded(pixels, FORMATS[suffix])
    for name in (f"a{suffix}", f"x/a{suffix.upper()}"):
        assert is_image(name)
    assert parse_name(f"0002_c1s1_000451_03{suffix.upper()}").identity == 2
    assert parse_duke_name(f"0002_c1_f0046302{suffix}") == (2, 1)
    tree = tmp_path / "market"
    for folder, person in (("bounding_box_train", 2), ("query", 7), ("bounding_box_test", 7)):
        (tree / folder).mkdir(parents=True)
        (tree / folder / f"{person:04d}_c1s1_000451_03{suffix}").write_bytes(data)
    assert read_split(tree, "query").identities.tolist() == [7]
    source = open_images(tree, 0)
    assert source.training.identities.tolist() == [2]
    shown = load_images(source, Target(32, 16)).training[0]
    assert np.abs(shown.astype(int) - pixels).max() <= 3  # JPEG loses
    copies = tmp_path / "copies"
    copies.mkdir()
    (copies / f"0007_c1s1_000451_03{suffix}").write_bytes(data)
    with pytest.raises(InputError, match="1 identities also stand in"):
        open_images(copies)
    people = tmp_path / "people/anna"
    people.mkdir(parents=True)
    (people / f"1_c2{suffix}").write_bytes(data)
    assert read_split(tmp_path / "people", "train").names == (f"anna/1_c2{suffix}",)
    assert folder_images(people, 9).sizes == (((32, 16), 1),)


def test_every_suffix_of_the_list_is_tested():
    assert set(FORMATS) == set(IMAGE_SUFFIXES)


# ---- Damaged and hostile files.


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_damaged_files_are_problems_not_crashes(kind):
    good = cv2.imencode(".bmp", RGBA)[1].tobytes() if kind == "BMP" else encoded(RGBA, kind)
    random = np.random.default_rng(0)
    for number in range(200):
        data = bytearray(good)
        for place in random.integers(0, min(len(data), 300), 4):
            data[place] = random.integers(256)
        result = decode_bytes(bytes(data[: number * len(good) // 150]), Target(32, 16, "stretch", enlarge=True))
        assert isinstance(result, Problem) or result.shape == (32, 16, 3)
    with pytest.raises(DecodingError):
        decode_own_size(good[: len(good) // 3])


def test_a_picture_that_promises_gigabytes_is_not_decoded():
    width, height = 16_383, 8_192
    huge = Image.new("1", (width, height))
    for kind in ("TIFF", "BMP"):
        options = {"compression": "group4"} if kind == "TIFF" else {}
        with pytest.raises(DecodingError, match="of a modest size"):
            decode_own_size(encoded(huge, kind, **options))
    small = bytearray(encoded(RGBA[..., :3].copy(), "TIFF"))
    tags = [(256, 4, 16), (257, 4, 32), (322, 4, 1 << 16), (323, 4, 1 << 15), (324, 4, 8), (262, 3, 1), (258, 3, 8)]
    start = len(small)
    small[4:8] = struct.pack("<I", start)
    rows = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in sorted(tags))
    small += struct.pack("<H", len(tags)) + rows + bytes(4)
    with pytest.raises(DecodingError, match="of a modest size"):  # a tile of 2 GB in a picture of 16 x 32
        decode_own_size(bytes(small))


def test_tiffs_of_floats_are_one_line_and_no_noise(capfd):
    with pytest.raises(DecodingError, match="not an image that can be decoded"):
        decode_own_size(encoded(Image.fromarray(RGBA[..., 0].astype(np.float32)), "TIFF"))
    decode_own_size(cv2.imencode(".tiff", RGBA)[1].tobytes())  # libtiff has a remark about its tags
    assert capfd.readouterr() == ("", "")


# ---- It is said once, however many pictures there are.


@pytest.fixture
def odd_folder(tmp_path) -> Path:
    """Three transparent pictures, one of two pages, two ordinary ones and a damaged one, of two people."""
    root = tmp_path / "odd"
    pages = encoded(RGBA[..., :3].copy(), "TIFF", save_all=True, append_images=[Image.fromarray(RGBA[..., :3].copy())])
    contents = {"1/a.png": encoded(RGBA), "1/b.webp": encoded(RGBA, "WEBP"), "2/c.tif": encoded(RGBA, "TIFF")}
    contents |= {"1/d.tiff": pages, "2/e.jpg": encoded(RGBA[..., :3].copy(), "JPEG"), "2/g.png": encoded(RGBA)[:90]}
    contents |= {f"1/f{number}.png": encoded(RGBA[..., :3].copy()) for number in range(8)}
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_a_job_says_once_what_was_put_on_white(odd_folder):
    lines = (f"{ON_WHITE}: 3", f"{FIRST}: 1")
    assert load_images(open_images(odd_folder, 0), Target(32, 16)).remarks == lines
    notes = load_training_images(odd_folder, height=32, width=16).notes
    assert [note for note in notes if note in lines] == list(lines)
    peculiar = Counter()
    decoding.decode_listing(read(odd_folder), 32, 16, peculiar=peculiar)
    assert decoding.remarks(peculiar, "odd") == [f"odd: {line}" for line in lines]
    assert decoding.remarks({}) == []


def test_a_set_that_is_scored_says_it_and_takes_no_features_of_before(odd_folder, monkeypatch):
    images = folder_images(odd_folder, 99)
    # The header of the damaged picture is whole: it counts.
    assert images.notes == (f"odd: {ON_WHITE}: 4", f"odd: {FIRST}: 1")
    assert describe_sets(images, images, 32, 16)[-2:] == list(images.notes)
    (odd_folder / "3").mkdir()
    (odd_folder / "3/opaque.png").write_bytes(encoded(RGBA[..., :3].copy()))
    opaque = folder_images(odd_folder / "3", 99)
    monkeypatch.setattr("datasets.people.image_sets.read_header", lambda data: decoding.Header(32, 16))
    assert folder_images(odd_folder / "3", 99).sha256 == opaque.sha256
    (odd_folder / "3/opaque.png").unlink()
    assert folder_images(odd_folder, 99).sha256 != images.sha256


def test_a_stage_reports_peculiar_pictures_to_the_driver():
    class Network:
        def to(self, device: str) -> "Network":
            return self

        def __call__(self, images: np.ndarray) -> np.ndarray:
            return images.reshape(len(images), -1)[:, :4].astype(np.float32)

    contents = [encoded(RGBA), encoded(RGBA[..., :3].copy()), b"damaged", encoded(RGBA, "WEBP")]
    row = FeatureExtractor(Network(), 32, 16)(pa.table({"unit": [3], "image": [contents]}))
    assert row["peculiarities"].to_pylist() == [["transparent", "transparent"]]
    assert row.schema.field("peculiarities").type == pa.list_(pa.string())


def test_an_inversion_says_it_with_its_summary(tmp_path):
    message = ["transparent", None, "transparent pages", "no picture"]
    status = ["ok", "ok", "ok", "error"]
    rows = [
        {"unit": 0, "person": 0, "path": f"{number}.png", "status": state, "message": text}
        for number, (text, state) in enumerate(zip(message, status, strict=True))
    ]
    table = pa.Table.from_pylist(rows, SCHEMA)
    configuration = InversionConfiguration(
        encoder="e", network="n", identity=None, perceptual="p", data="d", splits=("train",), pictures=None, steps=3,
        refine="none", refine_steps=None, pivotal_steps=None, unit_images=64,
    )  # fmt: skip
    summary = summarise(table, InversionPlan(configuration, (4,), (1,)), {}, "LPIPS", [])
    assert summary["remarks"] == [f"{ON_WHITE}: 2", f"{FIRST}: 1"]
    assert summary["error_messages"] == {"no picture": 1}
    lines = summary_lines(summary, Output(str(tmp_path)))
    assert [line for line in lines if line.startswith("note: ")] == [f"note: {ON_WHITE}: 2", f"note: {FIRST}: 1"]
    older = {name: value for name, value in summary.items() if name != "remarks"}
    assert len(summary_lines(older, Output(str(tmp_path)))) == len(lines) - 2


def test_images_that_are_streamed_are_surveyed_for_it(odd_folder):
    listing = read(odd_folder)
    rows = {"content": np.array([str(path) for path in listing.contents])}
    columns = _examine(rows, None, Target(32, 16), features=False)
    found = dict(zip(listing.names, columns["peculiarities"].tolist(), strict=True))
    assert {name: kinds for name, kinds in found.items() if kinds} == {
        "1/a.png": "transparent", "1/b.webp": "transparent", "1/d.tiff": "pages", "2/c.tif": "transparent",
    }  # fmt: skip
