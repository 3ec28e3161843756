"""The toy crowd's people: build, skin, hair and clothes, each from its own random stream.

Everybody takes clothes from one small wardrobe, popular pieces more often. Many people wear the same jacket, so a
network recognises a person by the combination and by details (pattern, cut, shoes, bag, hair), not by one colour.
"""

import functools
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]  # RGB, 0..255, as seen in neutral light

SKINS: list[Colour] = [
    (236, 196, 168),
    (222, 176, 144),
    (204, 156, 122),
    (172, 122, 90),
    (134, 92, 66),
    (98, 66, 50),
]
HAIRS: list[Colour] = [
    (28, 25, 25),
    (38, 30, 26),
    (62, 44, 32),
    (98, 68, 44),
    (156, 118, 72),
    (196, 164, 112),
    (120, 58, 36),
    (128, 126, 124),
]
COLOURS: dict[str, Colour] = {
    "black": (40, 40, 44),
    "white": (232, 232, 228),
    "grey": (128, 130, 134),
    "navy": (46, 58, 98),
    "red": (186, 48, 50),
    "green": (58, 120, 78),
    "blue": (66, 116, 190),
    "beige": (204, 184, 148),
    "yellow": (226, 190, 70),
    "pink": (220, 140, 160),
    "wine": (112, 44, 62),
    "teal": (54, 140, 146),
    "olive": (110, 112, 70),
    "orange": (222, 122, 56),
    "lilac": (160, 140, 196),
    "brown": (116, 82, 60),
    "denim": (84, 112, 156),
    "dark denim": (54, 68, 100),
    "khaki": (172, 152, 116),
    "sky": (158, 192, 224),
}

TOP_COLOURS = [
    "black",
    "white",
    "grey",
    "navy",
    "red",
    "green",
    "blue",
    "beige",
    "yellow",
    "pink",
    "wine",
    "teal",
    "olive",
    "orange",
    "lilac",
    "sky",
]
BOTTOM_COLOURS = ["black", "denim", "dark denim", "khaki", "grey", "navy", "white", "olive", "brown", "wine"]
TOP_CUTS = ["tee", "shirt", "jacket", "hoodie", "sweater", "tank", "coat"]
TOP_PATTERNS = ["plain", "stripes", "block", "logo", "check", "raglan", "pinstripes", "dots", "band", "yoke"]
# Sizes of the wardrobe. They, and the drift of exposure and white balance (crowd.Pass), decide how hard the crowd is.
# The small network of benchmarks/toy_crowd_difficulty.py reached 84 mAP with 64, 28, 10 and 12 pieces and no drift, and
# 82 with 20, 9, 6 and 6 pieces: too easy to show a gain.
TOPS, BOTTOMS, SHOES, BAGS = 16, 8, 4, 4


def stream(name: str, *key: int) -> np.random.Generator:
    """The random stream of a name and key. Drawing more numbers from one stream never changes another stream."""
    return np.random.default_rng([zlib.crc32(name.encode()), *key])


def three(values: Iterable[float]) -> tuple[float, float, float]:
    """Three values, one for each of RGB, as plain numbers."""
    red, green, blue = (float(value) for value in values)
    return red, green, blue


@dataclass(frozen=True)
class Top:
    """A piece for the upper body. sleeve: 0 none, 1 to the elbow, 2 to the wrist; hem: the height of its lower edge."""

    cut: str
    colour: Colour
    accent: Colour
    pattern: str
    scale: float
    sleeve: float
    hem: float
    thickness: float


@dataclass(frozen=True)
class Bottom:
    """A piece for the legs. length: the share 0..1 of the leg that it covers; flare: the width of its end."""

    cut: str  # trousers | shorts | skirt
    colour: Colour
    accent: Colour
    pattern: str  # plain | side stripe | turn-up | pleats | worn knees
    length: float
    flare: float


@dataclass(frozen=True)
class Build:
    """Sizes relative to the average, and the gait: stride and arm swing in radians, lean forward in statures."""

    stature: float
    girth: float
    shoulders: float
    hips: float
    stride: float
    swing: float
    lean: float


@dataclass(frozen=True)
class Person:
    """One identity, as `person(identity)` makes it."""

    identity: int
    feminine: bool
    build: Build
    skin: Colour
    hair: Colour
    hairstyle: str  # short | crop | bald | cap | beanie | long | bob | pony | bun | scarf
    beard: bool
    hat: Colour
    top: Top
    bottom: Bottom
    shoe: Colour
    sole: Colour
    boots: bool
    socks: bool
    bag: str  # none | backpack | shoulder | hand
    bag_colour: Colour
    fold_offset: tuple[float, float]


@functools.cache
def wardrobe() -> tuple[list[Top], list[Bottom], list[tuple[Colour, Colour, bool]], list[tuple[str, Colour]]]:
    """The clothes of the whole crowd: tops, bottoms, shoes (colour, sole, boot) and bags."""
    return (
        [_top(index) for index in range(TOPS)],
        [_bottom(index) for index in range(BOTTOMS)],
        [_shoe(index) for index in range(SHOES)],
        [_bag(index) for index in range(BAGS)],
    )


def _two_colours(random: np.random.Generator, names: list[str], index: int) -> tuple[Colour, Colour]:
    """The colour of a piece (pieces take all colours in turn), and an accent that contrasts with it."""
    colour = COLOURS[names[index % len(names)]]
    contrasts = [COLOURS[name] for name in names if np.abs(np.subtract(COLOURS[name], colour)).sum() > 130]
    return colour, contrasts[random.integers(len(contrasts))]


def _top(index: int) -> Top:
    random = stream("top", index)
    colour, accent = _two_colours(random, TOP_COLOURS, index)
    cut = TOP_CUTS[random.choice(len(TOP_CUTS), p=[0.28, 0.14, 0.16, 0.14, 0.14, 0.06, 0.08])]
    weights = [0.28, 0.12, 0.1, 0.12, 0.08, 0.08, 0.05, 0.04, 0.07, 0.06]
    pattern = TOP_PATTERNS[random.choice(len(TOP_PATTERNS), p=weights)]
    sleeve = {"tee": 0.6, "shirt": random.choice([0.65, 1.9]), "tank": 0.0}.get(cut, 2.0)
    hem = {
        "jacket": 0.475,
        "hoodie": 0.49,
        "sweater": 0.485,
        "shirt": 0.475,
        "tee": 0.49,
        "tank": 0.5,
        "coat": 0.34,
    }[cut]
    thickness = {"jacket": 1.1, "hoodie": 1.1, "coat": 1.13, "sweater": 1.05}.get(cut, 1.0)
    return Top(cut, colour, accent, pattern, random.uniform(0.035, 0.07), float(sleeve), hem, thickness)


def _bottom(index: int) -> Bottom:
    random = stream("bottom", index)
    colour, accent = _two_colours(random, BOTTOM_COLOURS, index)
    cut = ["trousers", "shorts", "skirt"][[0, 0, 1, 0, 2, 0, 1, 2, 0, 0][(index * 7 + index // 10) % 10]]
    patterns = {
        "trousers": ["plain", "plain", "side stripe", "turn-up", "worn knees"],
        "shorts": ["plain", "side stripe"],
        "skirt": ["plain", "pleats", "turn-up"],
    }[cut]
    pattern = patterns[random.integers(len(patterns))]
    length = {"trousers": 1.0, "shorts": random.uniform(0.3, 0.52), "skirt": random.uniform(0.34, 0.68)}[cut]
    flare = {"trousers": random.uniform(0.85, 1.2), "shorts": 1.1, "skirt": random.uniform(1.0, 1.35)}[cut]
    return Bottom(cut, colour, accent, pattern, float(length), float(flare))


def _shoe(index: int) -> tuple[Colour, Colour, bool]:
    colours: list[Colour] = [(36, 36, 38), (228, 228, 226), (120, 80, 54), (60, 74, 110), (170, 50, 52)]
    soles: list[Colour] = [(228, 228, 226), (70, 66, 62)]
    return colours[index % 5], soles[(index // 5 + index % 5) % 2], index == 3


def _bag(index: int) -> tuple[str, Colour]:
    colours = ["black", "red", "navy", "brown", "teal", "olive"]
    return ["backpack", "shoulder", "hand", "backpack"][index % 4], COLOURS[colours[index % 6]]


def _popular(random: np.random.Generator, count: int, candidates: list[int] | None = None) -> int:
    """A random index below `count`, or one of `candidates`; lower ranks are more frequent (1 / sqrt(rank))."""
    indices = list(range(count)) if candidates is None else candidates
    weights = 1.0 / np.sqrt(np.arange(1, len(indices) + 1))
    return indices[random.choice(len(indices), p=weights / weights.sum())]


def _jitter(random: np.random.Generator, colour: Colour, amount: float) -> Colour:
    values = np.asarray(colour) * (1 + random.normal(0, amount)) + random.normal(0, amount * 60, 3)
    red, green, blue = (int(value) for value in np.clip(values, 10, 245))
    return red, green, blue


@functools.lru_cache(maxsize=4096)
def person(identity: int) -> Person:
    """The person with this number (>= 0), which is the same on every machine and in every process."""
    tops, bottoms, shoes, bags = wardrobe()
    body, head, skin = stream("build", identity), stream("head", identity), stream("skin", identity)
    feminine = bool(body.random() < 0.5)
    build = Build(
        stature=float(body.uniform(0.94, 1.05)),
        girth=float(body.uniform(0.88, 1.08)),
        shoulders=float(body.uniform(0.96, 1.05) * (0.92 if feminine else 1.03)),
        hips=float(body.uniform(0.97, 1.04) * (1.05 if feminine else 0.97)),
        stride=float(body.uniform(0.34, 0.5)),
        swing=float(body.uniform(0.7, 1.15)),
        lean=float(body.uniform(-0.01, 0.02)),
    )
    if feminine:
        hairstyle = str(
            head.choice(
                ["long", "bob", "pony", "bun", "scarf", "cap", "short"],
                p=[0.32, 0.2, 0.2, 0.12, 0.05, 0.05, 0.06],
            )
        )
    else:
        hairstyle = str(
            head.choice(["short", "crop", "bald", "cap", "beanie", "bun"], p=[0.46, 0.22, 0.08, 0.12, 0.09, 0.03])
        )
    hats = ["black", "navy", "white", "red"]
    bottoms_allowed = [i for i, bottom in enumerate(bottoms) if feminine or bottom.cut != "skirt"]
    shoe, sole, boots = shoes[_popular(stream("shoes", identity), SHOES)]
    bag_stream = stream("bag", identity)
    bag, bag_colour = bags[_popular(bag_stream, BAGS)] if bag_stream.random() < 0.55 else ("none", (0, 0, 0))
    folds = stream("folds", identity)
    return Person(
        identity=identity,
        feminine=feminine,
        build=build,
        skin=_jitter(skin, SKINS[skin.choice(6, p=[0.22, 0.3, 0.14, 0.1, 0.16, 0.08])], 0.02),
        hair=_jitter(head, HAIRS[head.choice(8, p=[0.36, 0.2, 0.16, 0.1, 0.05, 0.05, 0.03, 0.05])], 0.03),
        hairstyle=hairstyle,
        beard=bool(not feminine and head.random() < 0.3),
        hat=COLOURS[hats[head.integers(len(hats))]],
        top=tops[_popular(stream("upper", identity), TOPS)],
        bottom=bottoms[_popular(stream("lower", identity), BOTTOMS, bottoms_allowed)],
        shoe=shoe,
        sole=sole,
        boots=boots,
        socks=bool(stream("socks", identity).random() < 0.35),
        bag=bag,
        bag_colour=bag_colour,
        fold_offset=(float(folds.random()), float(folds.random())),
    )
