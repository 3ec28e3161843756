"""The toy crowd's scenes: props in them, and six cameras with their views and their image quality.

The backgrounds of a camera vary, because it has three positions (panoramas, drawn at first use and cached) and three
sessions (times of day). Its colours, light, sharpness and noise are the same everywhere.
"""

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np

from datasets.toy_crowd.people import stream, three
from datasets.toy_crowd.render import COLUMNS, ROWS, Light, smooth_noise

# ---- Props, behind people and in front of them.

Colour = tuple[float, float, float]  # RGB, 0..255


def draw_prop(image: np.ndarray, kind: str, x: int, base: int, size: float, random: np.random.Generator) -> None:
    """Draw one prop at (x, base) into an RGB float32 image; `size` in pixels is about a person's waist height."""
    dark = three(random.uniform(45, 85, 3))
    paint = three(random.uniform(70, 190) + random.normal(0, 28, 3))
    grey = random.uniform(70, 150)
    metal = (grey, grey, grey)
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
        box(width * 0.3, -6, width, 0, three(0.8 * c for c in shade))
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


# ---- The cameras, their backdrops and times of day.

CAMERAS, POSITIONS, SESSIONS = 6, 3, 3
PANORAMA_ROWS, PANORAMA_COLUMNS = ROWS * 5 // 4, COLUMNS * 6


@dataclass(frozen=True)
class Camera:
    """One camera. Colours are RGB 0..255; cast multiplies the channels; the light's azimuth and height are radians."""

    name: str
    pitch: float
    horizon: float
    ground: Colour
    wall: Colour
    paving: str  # tiles | asphalt | path | plain
    facade: str  # windows | bricks | hedge | panels
    props: tuple[str, ...]
    azimuth: float
    height: float
    sun: float
    sky: float
    sun_tint: Colour
    cast: Colour
    gain: float
    contrast: float
    saturation: float
    blur: float
    noise: float
    quality: int
    occlusion: float
    occluders: tuple[str, ...]


# name, pitch, horizon; ground, wall, paving, facade, props; light: azimuth, height, sun, sky, tint; cast;
# gain, contrast, saturation, blur, noise, JPEG quality, occlusion: how often and by what
# fmt: off
_CAMERAS = (
    Camera("plaza", 0.22, 0.26,
           (172, 170, 164), (150, 146, 138), "tiles", "windows", ("tree", "bench", "bike"),
           -0.8, 0.8, 0.62, 0.52, (1.06, 1.0, 0.9), (1.04, 1.0, 0.95),
           1.02, 1.05, 1.0, 0.5, 2.5, 88, 0.1, ("bollard", "planter")),
    Camera("street", 0.14, 0.34,
           (118, 120, 124), (142, 108, 90), "asphalt", "bricks", ("car", "pole", "tree"),
           0.9, 0.6, 0.3, 0.78, (1.0, 1.0, 1.0), (0.93, 0.99, 1.08),
           0.96, 0.95, 0.82, 0.65, 3.0, 80, 0.14, ("pole", "car")),
    Camera("lobby", 0.1, 0.46,
           (164, 140, 112), (204, 200, 188), "tiles", "panels", ("door", "pillar", "plant"),
           0.1, 1.2, 0.34, 0.74, (1.04, 1.0, 0.92), (1.07, 1.0, 0.9),
           1.0, 1.0, 0.95, 0.55, 3.5, 84, 0.08, ("planter", "pillar")),
    Camera("park", 0.18, 0.36,
           (126, 144, 96), (70, 102, 62), "path", "hedge", ("tree", "bench", "bush"),
           -1.2, 0.5, 0.58, 0.52, (1.1, 1.0, 0.84), (0.97, 1.05, 0.92),
           1.0, 1.06, 1.05, 0.7, 2.5, 84, 0.14, ("bush", "pole")),
    Camera("gate", 0.3, 0.2,
           (176, 178, 182), (96, 100, 108), "plain", "panels", ("rail", "pole", "bike"),
           0.5, 1.0, 0.4, 0.6, (1.0, 1.0, 1.0), (0.97, 1.03, 1.02),
           0.96, 0.92, 0.75, 0.7, 3.0, 78, 0.12, ("rail", "bollard")),
    Camera("evening", 0.2, 0.3,
           (96, 90, 88), (74, 66, 66), "asphalt", "windows", ("car", "lamp", "rail"),
           -0.4, 0.9, 0.58, 0.62, (1.1, 0.98, 0.8), (1.08, 0.98, 0.88),
           1.0, 1.0, 0.88, 0.6, 4.0, 78, 0.1, ("pole", "car")),
)
# fmt: on


def camera_settings(camera: int) -> Camera:
    """The settings of camera 0..5."""
    return _CAMERAS[camera]


@dataclass(frozen=True)
class Session:
    """One time of day at one camera: its light, white balance (cast) and exposure (gain)."""

    light: Light
    cast: Colour
    gain: float


@functools.lru_cache(maxsize=CAMERAS * SESSIONS)
def session_settings(camera: int, session: int) -> Session:
    """The settings of session 0..2 at camera 0..5."""
    settings, random = _CAMERAS[camera], stream("session", camera, session)
    azimuth = settings.azimuth + random.uniform(-0.7, 0.7)
    height = settings.height + random.uniform(-0.15, 0.15)
    level = math.cos(height)
    light = Light(
        direction=(level * math.sin(azimuth), -math.sin(height), level * math.cos(azimuth)),
        sun=settings.sun * random.uniform(0.7, 1.2),
        sky=settings.sky * 1.08 * random.uniform(0.94, 1.1),
        sun_tint=settings.sun_tint,
    )
    cast = three(value * (1 + random.normal(0, 0.04)) for value in settings.cast)
    return Session(light, cast, settings.gain * random.uniform(0.9, 1.08))


@functools.lru_cache(maxsize=CAMERAS * POSITIONS)
def panorama(camera: int, position: int) -> np.ndarray:
    """The backdrop at position 0..2 of a camera: RGB uint8 [320, 768, 3]. A picture shows a part of it."""
    settings, random = _CAMERAS[camera], stream("panorama", camera, position)
    image = np.empty((PANORAMA_ROWS, PANORAMA_COLUMNS, 3), np.float32)
    horizon = int(PANORAMA_ROWS * (settings.horizon + random.uniform(-0.03, 0.03)))
    tint = 1 + random.normal(0, 0.07) + random.normal(0, 0.03, 3)
    _ground(image, settings, horizon, random, np.asarray(settings.ground) * tint)
    _facade(
        image,
        settings,
        horizon,
        random,
        np.asarray(settings.wall) * (1 + random.normal(0, 0.12) + random.normal(0, 0.04, 3)),
    )
    image[horizon : horizon + 4] *= 0.7  # the shade where wall and ground meet
    image = np.ascontiguousarray(np.clip(image, 0, 255))
    for _ in range(9):
        kind = settings.props[random.integers(len(settings.props))]
        base = horizon + int(random.uniform(0.01, 0.14) * ROWS)
        draw_prop(
            image,
            kind,
            int(random.uniform(0, PANORAMA_COLUMNS)),
            base,
            ROWS * random.uniform(0.2, 0.34),
            random,
        )
    return np.clip(cv2.GaussianBlur(image, (0, 0), 1.6), 0, 255).astype(np.uint8)


def _ground(image: np.ndarray, settings: Camera, horizon: int, random: np.random.Generator, colour: np.ndarray) -> None:
    rows = np.arange(PANORAMA_ROWS - horizon, dtype=np.float32)[:, None]
    columns = np.arange(PANORAMA_COLUMNS, dtype=np.float32)[None] - PANORAMA_COLUMNS / 2
    far = 60.0 / (rows + 60.0)  # 1 at the horizon's foot, smaller near the camera
    u, v = columns / 60.0 * far, 8.0 * far + 0 * columns
    noise = smooth_noise(int(random.integers(4)) + 10, 512, 1024, 24, 40)[: len(rows), :PANORAMA_COLUMNS]
    shade = 1 + 0.05 * noise + 0.12 * (rows / PANORAMA_ROWS - 0.3)
    ground = colour.astype(np.float32) * shade[..., None]
    if settings.paving == "tiles":
        size = random.uniform(0.8, 1.3)
        column, row = np.floor(u * 1.6 / size), np.floor(v * 3.0 / size)
        ground *= (1 + 0.06 * np.sin(column * 12.9 + row * 78.2))[..., None]
        joint = ((u * 1.6 / size) % 1.0 < 0.05) | ((v * 3.0 / size) % 1.0 < 0.08)
        ground[joint] *= 0.84
    elif settings.paving == "asphalt":
        lines = np.abs((u + 0.35 * v * random.choice([-1, 1])) % 3.2 - 1.6) < 0.05
        ground[lines] = 0.45 * ground[lines] + 0.55 * np.float32(200)
    elif settings.paving == "path":
        edge = (u + 0.5 * np.sin(v * 0.9 + random.uniform(0, 6))) % 4.6
        path = edge < 2.6
        ground[path] = ground[path] * 0.2 + 0.8 * np.array((176, 160, 132), np.float32) * shade[path][:, None]
    else:
        joint = ((v * 1.1) % 1.0 < 0.04) | (u % 2.6 < 0.04)
        ground[joint] *= 0.86
    image[horizon:] = ground


def _facade(image: np.ndarray, settings: Camera, horizon: int, random: np.random.Generator, colour: np.ndarray) -> None:
    noise = smooth_noise(int(random.integers(4)) + 20, 512, 1024, 20, 50)[:horizon, :PANORAMA_COLUMNS]
    wall = np.ascontiguousarray(colour.astype(np.float32) * (1 + 0.06 * noise[..., None]))
    if settings.facade == "hedge":
        leaves = smooth_noise(int(random.integers(4)) + 30, 512, 1024, 70, 150)[:horizon, :PANORAMA_COLUMNS]
        wall *= (1 + 0.2 * leaves)[..., None]
    elif settings.facade == "bricks":
        wall[(np.arange(horizon) % 8) == 0] *= 0.82
    step = int(COLUMNS * random.uniform(0.55, 1.1))
    if settings.facade in ("windows", "bricks", "panels"):
        for left in range(int(random.integers(step)), PANORAMA_COLUMNS, step):
            right, bottom = (
                left + int(step * random.uniform(0.35, 0.6)),
                int(horizon * random.uniform(0.7, 0.9)),
            )
            lit = settings.name == "evening" and random.random() < 0.5
            pane = (216.0, 186.0, 128.0) if lit else tuple(float(c) for c in colour * random.uniform(0.55, 0.8) + 12)
            if settings.facade == "panels":
                cv2.rectangle(wall, (left, 0), (left + 3, horizon), tuple(float(c) for c in colour * 0.78), -1)
            else:
                cv2.rectangle(wall, (left, 0), (right, bottom), pane, -1)
                cv2.rectangle(wall, (left, 0), (right, bottom), tuple(float(c) for c in colour * 1.2), 3)
    image[:horizon] = wall


def occlude(image: np.ndarray, settings: Camera, random: np.random.Generator) -> None:
    """Draw a prop in front of the person in some pictures (RGB float32 [256, 128, 3], in place)."""
    if random.random() >= settings.occlusion:
        return
    kind = settings.occluders[random.integers(len(settings.occluders))]
    low = ROWS + int(random.uniform(0.0, 0.1) * ROWS)
    side = random.choice([-1, 1])
    # Thin props may stand in front of the person; wide props cover one side only.
    reach = {
        "pole": 0.30,
        "bollard": 0.26,
        "rail": 0.2,
        "pillar": 0.46,
        "bush": 0.46,
        "planter": 0.5,
        "car": 0.7,
    }[kind]
    x = int(COLUMNS * (0.5 + side * random.uniform(reach, reach + 0.14)))
    draw_prop(image, kind, x, low, ROWS * random.uniform(0.26, 0.36), random)
