"""The toy crowd's heads with hair and hats, its bags, and the spines that all lofts of a person are drawn along."""

import numpy as np

from datasets.toy_crowd.fabric import hair_and_face
from datasets.toy_crowd.people import Person
from datasets.toy_crowd.render import Canvas, Material, View

# ---- Spines: curves in body coordinates [K, 3], and what varies along them.


def bend(start: np.ndarray, joint: np.ndarray, end: np.ndarray, softness: float = 0.3) -> np.ndarray:
    """A limb's spine [9, 3]: two straight halves and a rounded joint between them (quadratic Bezier)."""
    inner, outer = joint + (start - joint) * softness, joint + (end - joint) * softness
    t = np.linspace(0.0, 1.0, 5)[:, None]
    curve = (1 - t) ** 2 * inner + 2 * t * (1 - t) * joint + t**2 * outer
    return np.concatenate([start[None], (start[None] + inner) / 2, curve, (end[None] + outer) / 2, end[None]])


def profile(spine: np.ndarray, stops: list[float], values: list[float]) -> np.ndarray:
    """Values [K] along a spine [K, 3], given at `stops` (0..1 of its length) and interpolated between."""
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(spine, axis=0), axis=1))])
    return np.interp(length / length[-1], stops, values)


def cut_spine(spine: np.ndarray, share: float) -> np.ndarray:
    """The first `share` (0..1 of the length) of a spine [K, 3], as [K', 3]."""
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(spine, axis=0), axis=1))])
    wanted = share * length[-1]
    inside = spine[length < wanted - 1e-6]
    end = np.array([np.interp(wanted, length, spine[:, i]) for i in range(3)])
    return np.concatenate([inside, end[None]])


def column(heights: list[float], rise: float, ahead: float | list[float] = 0.0, side: float = 0.0) -> np.ndarray:
    """An upright spine [K, 3] through these heights."""
    heights_array = np.asarray(heights, np.float64) + rise
    return np.stack([np.full_like(heights_array, side), heights_array, np.zeros_like(heights_array) + ahead], axis=1)


# ---- Heads and bags.

CHIN = 0.868  # height of a standing person's chin, in statures


def draw_head(canvas: Canvas, view: View, person: Person, rise: float) -> None:
    size, lean, style = 1.06, person.build.lean + 0.012, person.hairstyle
    face = canvas.material(Material(hair_and_face(person)))
    levels = np.array([-0.06, 0.08, 0.3, 0.55, 0.78, 0.93, 1.0])
    heights = list(CHIN + levels * 0.122 * size)
    wide, deep = (
        np.array([22, 33, 43, 47, 44, 31, 14]) * 1e-3 * size,
        np.array([26, 37, 48, 54, 52, 38, 18]) * 1e-3 * size,
    )
    ahead = lean + np.array([0.014, 0.009, 0.003, 0.0, -0.002, -0.003, -0.003])
    puff = 1.08 if style in ("long", "bob", "beanie", "scarf") else 1.0
    canvas.loft(
        view,
        column(heights, rise, list(ahead)),
        wide * puff,
        face,
        depth=deep * puff,
        along=levels,
        lift=0.004,
    )
    hair = canvas.material(Material(np.array(person.hair, np.float32), fold=0.45))
    middle = CHIN + 0.07 * size
    if style in ("long", "bob"):
        end = 0.765 if style == "long" else 0.865
        spine = column(
            [middle + 0.035, middle - 0.01, (middle + end) / 2, end],
            rise,
            [lean - 0.012, lean - 0.026, -0.034, -0.044],
        )
        canvas.loft(
            view,
            spine,
            np.array([0.046, 0.054, 0.056, 0.042]),
            hair,
            depth=np.array([0.044, 0.036, 0.030, 0.022]),
        )
    elif style == "pony":
        tail = np.array(
            [
                [0, middle + 0.035, lean - 0.058],
                [0, middle + 0.01, lean - 0.078],
                [0, middle - 0.10, lean - 0.082],
            ]
        )
        canvas.loft(view, tail + [0, rise, 0], np.array([0.017, 0.024, 0.010]), hair)
    elif style == "bun":
        knot = column([middle + 0.045, middle + 0.05], rise, [lean - 0.05, lean - 0.054])
        canvas.loft(view, knot, np.array([0.026, 0.026]), hair)
    elif style == "cap":
        brim = np.array([[0, middle + 0.022, lean + 0.040], [0, middle + 0.014, lean + 0.084]])
        cloth = canvas.material(Material(np.array(person.hat, np.float32) * 0.85))
        canvas.loft(view, brim + [0, rise, 0], np.array([0.038, 0.028]), cloth, depth=np.array([0.014, 0.010]))
    elif style == "scarf":
        cloth = canvas.material(Material(np.array(person.hat, np.float32), fold=0.5))
        canvas.loft(
            view,
            column([0.885, 0.83, 0.80], rise, lean - 0.01),
            np.array([0.044, 0.064, 0.084]),
            cloth,
            depth=np.array([0.046, 0.060, 0.066]),
        )


def draw_bag(canvas: Canvas, view: View, person: Person, hand: np.ndarray, rise: float) -> None:
    if person.bag == "none":
        return
    colour = np.array(person.bag_colour, np.float32)
    cloth, strap = canvas.material(Material(colour, fold=0.35)), canvas.material(Material(colour * 0.7))
    puff = person.top.thickness * person.build.girth**0.7
    if person.bag == "backpack":
        spine = column([0.80, 0.76, 0.66, 0.60], rise, -0.088 * puff)
        canvas.loft(
            view,
            spine,
            np.array([0.05, 0.072, 0.078, 0.07]),
            cloth,
            depth=np.array([0.03, 0.046, 0.052, 0.046]),
        )
        for side in (-1, 1):
            path = [
                [side * 0.058, 0.838, -0.01],
                [side * 0.064, 0.80, 0.066 * puff],
                [side * 0.074, 0.72, 0.078 * puff],
                [side * 0.096 * puff, 0.65, 0.03],
            ]
            canvas.loft(view, np.array(path) + [0, rise, 0], np.full(4, 0.011), strap, lift=0.014)
    elif person.bag == "shoulder":
        for ahead in (0.072 * puff, -0.078 * puff):
            path = [
                [-0.06, 0.845, 0.0],
                [-0.03, 0.78, ahead],
                [0.06, 0.64, ahead * 1.1],
                [0.125 * puff, 0.52, 0.0],
            ]
            canvas.loft(view, np.array(path) + [0, rise, 0], np.full(4, 0.008), strap, lift=0.012)
        spine = column([0.535, 0.51, 0.46, 0.44], rise, 0.0, side=0.148 * puff)
        canvas.loft(
            view,
            spine,
            np.array([0.022, 0.03, 0.034, 0.03]),
            cloth,
            depth=np.array([0.05, 0.064, 0.066, 0.056]),
        )
    else:
        canvas.loft(view, np.stack([hand, hand - [0, 0.05, 0]]), np.array([0.007, 0.01]), strap)
        bag = np.stack([hand - [0, 0.05, 0], hand - [0, 0.08, 0], hand - [0, 0.14, 0], hand - [0, 0.155, 0]])
        canvas.loft(
            view,
            bag,
            np.array([0.018, 0.03, 0.036, 0.03]),
            cloth,
            depth=np.array([0.04, 0.056, 0.062, 0.054]),
        )
