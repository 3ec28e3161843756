"""Things that stand about in the toy crowd's scenes, behind people and before them."""

import cv2
import numpy as np

Colour = tuple[float, float, float]  # RGB, 0..255


def draw_prop(image: np.ndarray, kind: str, x: int, base: int, size: float, random: np.random.Generator) -> None:
    """Draw one thing standing at (x, base) into an RGB float32 image; `size` in pixels is about a person's
    waist height.
    """
    dark = tuple(float(c) for c in random.uniform(45, 85, 3))
    paint = tuple(float(c) for c in random.uniform(70, 190) + random.normal(0, 28, 3))
    metal = (random.uniform(70, 150),) * 3
    s = size

    def box(x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        cv2.rectangle(image, (int(x + x0 * s), int(base + y0 * s)), (int(x + x1 * s), int(base + y1 * s)), colour, -1)

    if kind in ("tree", "bush", "plant"):
        crown = {"tree": -2.6, "bush": -0.35, "plant": -0.9}[kind]
        if kind == "tree":
            box(-0.08, -2.6, 0.08, 0, (92.0, 76.0, 58.0))
        elif kind == "plant":
            box(-0.25, -0.4, 0.25, 0, (126.0, 96.0, 76.0))
        for _ in range(26):
            green = np.array((72, 108, 58)) * random.uniform(0.65, 1.3)
            centre = (int(x + random.normal(0, 0.4) * s), int(base + (crown + random.normal(0, 0.25)) * s))
            cv2.circle(image, centre, int(s * random.uniform(0.12, 0.28)), tuple(map(float, green)), -1, cv2.LINE_AA)
    elif kind == "car":
        box(-1.5, -0.62, 1.5, -0.08, paint)
        box(-0.9, -1.05, 0.9, -0.62, dark)
        for wheel in (-0.95, 0.95):
            cv2.circle(
                image,
                (int(x + wheel * s), int(base - 0.1 * s)),
                int(0.24 * s),
                (38.0, 38.0, 40.0),
                -1,
                cv2.LINE_AA,
            )
    elif kind in ("pole", "lamp", "pillar"):
        width = {"pole": 0.07, "lamp": 0.06, "pillar": 0.28}[kind]
        shade = metal if kind != "pillar" else (196.0, 190.0, 178.0)
        box(-width, -6, width, 0, shade)
        box(width * 0.3, -6, width, 0, tuple(0.8 * c for c in shade))
    elif kind == "door":
        box(-0.6, -2.1, 0.6, 0, (138.0, 104.0, 76.0))
        box(-0.45, -1.8, 0.45, -1.0, (158.0, 124.0, 94.0))
    elif kind == "rail":
        box(-1.8, -0.86, 1.8, -0.80, metal)
        for post in np.arange(-1.8, 1.81, 0.3):
            box(post - 0.02, -0.84, post + 0.02, 0, metal)
    elif kind == "bench":
        box(-0.9, -0.42, 0.9, -0.30, (134.0, 106.0, 76.0))
        box(-0.9, -0.85, 0.9, -0.60, (134.0, 106.0, 76.0))
        box(-0.75, -0.3, -0.68, 0, dark)
        box(0.68, -0.3, 0.75, 0, dark)
    elif kind == "bike":
        for wheel in (-0.5, 0.5):
            cv2.circle(image, (int(x + wheel * s), int(base - 0.33 * s)), int(0.32 * s), dark, 2, cv2.LINE_AA)
        frame = np.array(
            [[-0.5, -0.33], [-0.2, -0.75], [0.35, -0.75], [0.5, -0.33], [0.0, -0.33], [-0.2, -0.75]]
        ) * s + (x, base)
        cv2.polylines(image, [frame.astype(np.int32).reshape(-1, 1, 2)], False, paint, 3, cv2.LINE_AA)
    elif kind == "bollard":
        box(-0.13, -1.0, 0.13, 0, metal)
        box(-0.13, -0.85, 0.13, -0.7, (196.0, 70.0, 60.0))
    elif kind == "planter":
        draw_prop(image, "bush", x, int(base - 0.5 * s), 0.8 * s, random)
        box(-0.75, -0.55, 0.75, 0.1, (146.0, 138.0, 128.0))
