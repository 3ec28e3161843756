"""The toy crowd's surfaces: the colours of garments, shoes and heads at each position.

Each public function returns a colour function (see `render.Material`). Its `along` is the loft's coordinate: heights
for trunk and skirt, the length from the start for limbs, 0 (chin) to 1 (crown) for heads. Its `around` is the longitude
in radians, 0 ahead.
"""

import numpy as np

from datasets.toy_crowd.people import Bottom, Colour, Person, Top
from datasets.toy_crowd.render import ColourFunction


def _mix(base: np.ndarray, cover: np.ndarray | Colour, weights: np.ndarray) -> np.ndarray:
    """Mix `base` [n, 3] and `cover` by the `weights` [n] of the cover, bool or 0..1."""
    weight = weights.astype(np.float32)[:, None]
    return base * (1 - weight) + np.asarray(cover, np.float32) * weight


def _plain(colour: Colour, like: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.asarray(colour, np.float32), (*like.shape, 3)).copy()


def _pattern(top: Top, along: np.ndarray, around: np.ndarray, sleeve: bool) -> np.ndarray:
    """The share of the accent colour, [n] 0..1."""
    period, kind = top.scale, top.pattern
    if kind == "stripes":
        return (along / period) % 1.0 < 0.45
    if kind == "pinstripes":
        return 0.7 * ((around * 3.0 / np.pi) % 1.0 < 0.3)
    if kind == "check":
        return 0.4 * ((along / period) % 1.0 < 0.5) + 0.4 * ((around * 2.2 / np.pi) % 1.0 < 0.5)
    if kind == "dots":
        row = np.floor(along / (0.8 * period))
        y, x = (along / (0.8 * period)) % 1.0 - 0.5, (around * 2.6 / np.pi + 0.5 * row) % 1.0 - 0.5
        return x * x + y * y < 0.1
    if kind == "raglan":
        return np.full(along.shape, sleeve)
    if sleeve:
        return np.full(along.shape, kind == "yoke") & (along < 0.05)
    if kind == "block":
        return along < 0.66
    if kind == "band":
        return (along < 0.72) & (along > 0.72 - 1.2 * period)
    if kind == "yoke":
        return along > 0.765
    if kind == "logo":  # small on the chest, large on the back
        front = (np.abs(around) < 0.5) & (np.abs(along - 0.735) < 0.022)
        return front | ((np.abs(around) > np.pi - 0.75) & (np.abs(along - 0.70) < 0.05))
    return np.zeros(along.shape, bool)


def top_colour(person: Person) -> ColourFunction:
    """The trunk of the upper garment, with neckline, front opening and hem."""
    top = person.top
    inner = np.array((226, 226, 222) if sum(top.colour) < 420 else (52, 54, 60), np.float32)

    def colour(along: np.ndarray, around: np.ndarray, _: np.ndarray) -> np.ndarray:
        result = _mix(_plain(top.colour, along), top.accent, _pattern(top, along, around, sleeve=False))
        ahead = np.abs(around)
        if top.cut in ("jacket", "coat"):  # open in front, wider towards the neck
            result = _mix(result, inner, (ahead < 0.14 + 1.6 * np.clip(along - 0.68, 0, 1)) & (along > 0.50))
        elif top.cut in ("shirt", "hoodie"):
            result = _mix(result, result * 0.72, (ahead < 0.07) & (along < 0.80))
        if top.cut in ("tee", "tank", "shirt"):
            depth = {"tee": 0.818, "tank": 0.79, "shirt": 0.80}[top.cut]
            result = _mix(result, np.array(person.skin) * 0.95, along > depth + 0.03 * np.minimum(ahead / 0.8, 1.5))
        if top.cut == "sweater":
            result = _mix(result, result * 0.8, (along > 0.832) | (along < top.hem + 0.018))
        return result * np.where(along < top.hem + 0.008, 0.8, 1.0)[:, None]

    return colour


def sleeve_colour(person: Person) -> ColourFunction:
    """The sleeves: a cuff, and the garment's pattern if it goes round the sleeves."""
    top = person.top
    end = 0.43 * top.sleeve * 0.36

    def colour(along: np.ndarray, around: np.ndarray, _: np.ndarray) -> np.ndarray:
        result = _mix(_plain(top.colour, along), top.accent, _pattern(top, along, around, sleeve=True))
        return result * np.where(along > end - 0.012, 0.82, 1.0)[:, None]

    return colour


def bottom_colour(bottom: Bottom) -> ColourFunction:
    """Trousers, shorts or skirt. `along` is the length from the hip for legs, and the height for waist and skirt."""

    def colour(along: np.ndarray, around: np.ndarray, _: np.ndarray) -> np.ndarray:
        result = _plain(bottom.colour, along)
        if bottom.pattern == "side stripe":
            result = _mix(result, bottom.accent, np.abs(np.abs(around) - np.pi / 2) < 0.3)
        elif bottom.pattern == "pleats":
            result = result * (1.0 + 0.14 * np.sin(around * 11.0))[:, None]
        elif bottom.pattern == "worn knees":
            wear = np.exp(-(((along - 0.2) / 0.1) ** 2)) * np.exp(-((around / 0.8) ** 2))
            result = result + (45.0 * wear)[:, None]
        elif bottom.pattern == "turn-up":
            if bottom.cut == "skirt":
                end = 0.525 - bottom.length * 0.44
                result = _mix(result, bottom.accent, along < end + 0.03)
            else:
                result = _mix(result, np.minimum(result * 1.25 + 25, 245), (along > 0.445) & (along < 0.468))
        return result

    return colour


def shoe_colour(person: Person) -> ColourFunction:
    """Upper and sole: the sole is the part that faces the ground."""

    def colour(along: np.ndarray, _: np.ndarray, normal_y: np.ndarray) -> np.ndarray:
        return _mix(_plain(person.shoe, along), person.sole, normal_y > 0.72)

    return colour


def hair_and_face(person: Person) -> ColourFunction:
    """The head: the face, and the hair, cap, beanie or scarf that covers it."""
    skin, hair, hat = (np.array(colour, np.float32) for colour in (person.skin, person.hair, person.hat))
    style = person.hairstyle

    def colour(level: np.ndarray, around: np.ndarray, _: np.ndarray) -> np.ndarray:
        ahead = np.abs(around)
        result = _plain(person.skin, level)
        eyes = np.exp(-(((ahead - 0.45) / 0.24) ** 2) - ((level - 0.52) / 0.07) ** 2)
        mouth = np.exp(-((around / 0.35) ** 2) - ((level - 0.19) / 0.05) ** 2)
        nose = np.exp(-((around / 0.16) ** 2) - ((level - 0.37) / 0.06) ** 2)
        result *= (1 - 0.48 * eyes - 0.16 * nose)[:, None]
        result = _mix(result, skin * (0.72, 0.5, 0.52), 0.7 * mouth)
        if person.beard:
            result = _mix(
                result,
                hair * 0.7 + skin * 0.3,
                (level < 0.3) & (ahead < 1.5) & (level < 0.12 + 0.3 * ahead**2 + 0.1),
            )
        if style in ("short", "cap", "beanie"):
            result = _mix(
                result,
                hair,
                (level > 0.76) | ((ahead > 1.25) & (level > 0.5)) | ((ahead > 1.75) & (level > 0.12)),
            )
        elif style == "crop":
            result = _mix(result, hair * 0.75 + skin * 0.25, (level > 0.8) | ((ahead > 1.4) & (level > 0.48)))
        elif style in ("long", "bob", "pony", "bun"):
            back = 1.12 if style in ("long", "bob") else 1.35
            result = _mix(result, hair, (level > 0.78 - 0.06 * np.cos(3 * around)) | ((ahead > back) & (level > 0.05)))
        elif style == "scarf":
            result = _mix(result, hat, (level > 0.76) | (ahead > 0.95) | (level < 0.02))
        if style in ("cap", "beanie"):
            result = _mix(result, hat, level > (0.68 if style == "cap" else 0.62))
        ears = (np.abs(ahead - 1.62) < 0.16) & (np.abs(level - 0.42) < 0.1)
        if style in ("short", "crop", "bald", "cap"):
            result = _mix(result, skin * 0.84, ears)
        return result

    return colour
