"""The toy crowd: pedestrians drawn by a program, for a first look and for tests. Drawn, not real.

A picture depends on three numbers only: identity (the person), camera (0..5: the scene and its look) and frame (the
time). A person crosses a camera in passes of `FRAMES_PER_PASS` frames. A pass has one heading, one time of day and one
position, and from frame to frame the person walks on. Every network and every result made from the crowd names
`VERSION` and `content_hash()`.
"""

import dataclasses
import functools
import math

import cv2
import numpy as np

from datasets.toy_crowd import body, render, scenes
from datasets.toy_crowd.people import person, stream, three
from datasets.toy_crowd.render import COLUMNS, HEIGHT, ROWS, WIDTH, Canvas, View, shade
from datasets.toy_crowd.scenes import (
    CAMERAS,
    POSITIONS,
    SESSIONS,
    camera_settings,
    occlude,
    panorama,
    session_settings,
)
from passersby.errors import InputError

VERSION = "1"
FRAMES_PER_PASS = 8
BAD_BOXES = ("cut", "shifted", "tiny", "background")
# Version -> the name of its crowd: any 64 hex digits that no other version has. The name of version 1 is a sha256 of
# the sources that first drew it.
CONTENT_HASHES = {"1": "275fce4fe1b4b1f2e9d066da5a6103088adf5d004e673367a796bd2ec878b395"}


def content_hash() -> str:
    """The hash that names the crowd, which is all pictures that VERSION draws.

    Every change of a picture needs a new VERSION with a new hash; a test compares some pictures with stored ones. The
    program hashes nothing at run time. A hash of pixels would not work, because another processor may round single
    pixels differently. A hash of sources would not work either, because sources may change without a change of any
    picture. Raises RuntimeError if VERSION has no hash.
    """
    if VERSION not in CONTENT_HASHES:
        raise RuntimeError(f"version {VERSION} of the toy crowd has no hash: write one into CONTENT_HASHES")
    return CONTENT_HASHES[VERSION]


@dataclasses.dataclass(frozen=True)
class Framing:
    """The position of a person in the box.

    height and foot: the person's height and the feet, as shares of the box's height. middle: the person's middle, as a
    share of the box's width. empty: the box shows nobody.
    """

    height: float
    foot: float
    middle: float
    empty: bool = False


@dataclasses.dataclass(frozen=True)
class Pass:
    """One walk of one person past one camera.

    drift: the change of exposure and white balance, a factor for each of RGB. carries: whether the person carries the
    bag in this pass.
    """

    heading: float
    session: int
    position: int
    left: int
    top: int
    phase: float
    effort: float
    speed: float
    drift: tuple[float, float, float]
    carries: bool


@functools.lru_cache(maxsize=1024)
def crossing(identity: int, camera: int, number: int) -> Pass:
    """The pass `number` (0, 1, ...) of a person at a camera."""
    random = stream("pass", identity, camera, number)
    heading = random.choice([0.0, math.pi, math.pi / 2, -math.pi / 2], p=[0.28, 0.28, 0.22, 0.22]) + random.normal(
        0, 0.3
    )
    return Pass(
        heading=float(heading),
        session=int(random.integers(SESSIONS)),
        position=int(random.integers(POSITIONS)),
        left=int(random.integers(scenes.PANORAMA_COLUMNS - COLUMNS - 40)),
        top=int(random.integers(scenes.PANORAMA_ROWS - ROWS)),
        phase=float(random.uniform(0, 2 * math.pi)),
        effort=float(random.uniform(0.75, 1.1)),
        speed=float(random.uniform(0.8, 1.3)),
        drift=three(random.uniform(0.84, 1.14) * np.exp(random.normal(0, 0.07, 3))),
        carries=bool(random.random() < 0.65),
    )


def session_of(identity: int, camera: int, frame: int) -> int:
    """The time of day (0..2) of a picture, which a Market-1501 file name calls its sequence."""
    return crossing(identity, camera, frame // FRAMES_PER_PASS).session


def draw(identity: int, camera: int, frame: int) -> np.ndarray:
    """One picture of a person: RGB uint8 [128, 64, 3].

    identity >= 0, camera 0..5, frame >= 0. The person fills 86-95% of the height. Raises InputError for
    other numbers.
    """
    _check(identity, camera, frame)
    random = stream("framing", identity, camera, frame)
    framing = Framing(
        height=random.uniform(0.87, 0.94),
        foot=random.uniform(0.95, 0.975),
        middle=0.5 + float(np.clip(random.normal(0, 0.03), -0.07, 0.07)),
    )
    return _picture(identity, camera, frame, framing)


def draw_bad_box(identity: int, camera: int, frame: int, kind: str) -> np.ndarray:
    """A box of a poor detector, RGB uint8 [128, 64, 3]; kind is one of BAD_BOXES.

    cut: the upper or lower half of the person. shifted: a person half outside the box. tiny: a person far away.
    background: nobody.
    """
    _check(identity, camera, frame)
    random = stream("bad box", identity, camera, frame)
    side, low = random.choice([-1, 1]), random.random() < 0.5
    framings = {
        "cut": Framing(1.7, 1.75 if low else 0.93, 0.5 + random.normal(0, 0.05)),
        "shifted": Framing(
            random.uniform(0.85, 1.0), random.uniform(0.9, 1.0), 0.5 + side * random.uniform(0.42, 0.55)
        ),
        "tiny": Framing(random.uniform(0.3, 0.42), random.uniform(0.6, 0.9), 0.5 + side * random.uniform(0.1, 0.3)),
        "background": Framing(0.9, 0.95, 0.5, empty=True),
    }
    if kind not in framings:
        raise InputError(f"no bad box of kind {kind!r}: it is one of {', '.join(BAD_BOXES)}")
    return _picture(identity, camera, frame, framings[kind])


def _check(identity: int, camera: int, frame: int) -> None:
    if not 0 <= camera < CAMERAS:
        raise InputError(f"the toy crowd has no camera {camera}: cameras are 0 to {CAMERAS - 1}")
    if identity < 0 or frame < 0:
        raise InputError(f"the toy crowd has no identity {identity}, frame {frame}: both count from 0")


def _picture(identity: int, camera: int, frame: int, framing: Framing) -> np.ndarray:
    number, step = divmod(frame, FRAMES_PER_PASS)
    walk_by, settings = crossing(identity, camera, number), camera_settings(camera)
    walker = person(identity) if walk_by.carries else dataclasses.replace(person(identity), bag="none")
    random = stream("frame", identity, camera, frame)
    session = session_settings(camera, walk_by.session)
    left, top = walk_by.left + 5 * step, walk_by.top + int(random.integers(-4, 5))
    top = int(np.clip(top, 0, scenes.PANORAMA_ROWS - ROWS))
    image = panorama(camera, walk_by.position)[top : top + ROWS, left : left + COLUMNS].astype(np.float32)
    if not framing.empty:
        view = View(
            pixels=ROWS * framing.height / walker.build.stature,
            centre=COLUMNS * framing.middle,
            foot=ROWS * framing.foot,
            heading=walk_by.heading + random.normal(0, 0.06),
            pitch=settings.pitch,
            stature=walker.build.stature,
        )
        canvas = Canvas()
        pose = body.walk(walker, walk_by.phase + walk_by.speed * step, walk_by.effort)
        body.draw_person(canvas, view, walker, pose)
        _shadow(image, canvas, view, session.light)
        box, lit = shade(canvas, session.light, walker.fold_offset)
        mask = canvas.mask[box].astype(np.float32)
        cover = (mask * cv2.GaussianBlur(mask, (0, 0), 0.7))[
            ..., None
        ]  # soft inwards only: pixels outside the mask have no light
        image[box] += cover * (lit - image[box])
    occlude(image, settings, stream("occluder", identity, camera, frame))
    cast = np.asarray(session.cast, np.float32) * session.gain * walk_by.drift
    return _expose(image, settings, cast, stream("sensor", identity, camera, frame))


def _shadow(image: np.ndarray, canvas: Canvas, view: View, light: render.Light) -> None:
    """Darken the ground, in place: by the person's shadow, away from the light, and by a dark spot under the feet."""
    mask = canvas.mask.astype(np.float32)
    squash = (
        0.20 if light.direction[2] < 0 else -0.20
    )  # light from behind the person throws the shadow towards the camera
    slant = -0.5 * light.direction[0]
    # The map from a position in the shadow to its position in the silhouette; the feet do not move.
    inverse = np.array(
        [
            [1.0, -slant / squash, slant / squash * view.foot],
            [0.0, -1.0 / squash, view.foot * (1 + 1 / squash)],
        ]
    )
    cast = cv2.warpAffine(mask, inverse, (COLUMNS, ROWS), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    contact = np.zeros((ROWS, COLUMNS), np.float32)
    centre = (int(view.centre), int(view.foot - 2))
    cv2.ellipse(contact, centre, (int(0.15 * view.pixels), int(0.03 * view.pixels)), 0, 0, 360, 1.0, -1)
    shadow = 0.55 * light.sun * cv2.GaussianBlur(cast, (0, 0), 2.5)
    shadow = np.maximum(shadow, 0.45 * cv2.GaussianBlur(contact, (0, 0), 5.0))
    image *= 1 - shadow[..., None]


def _expose(image: np.ndarray, settings: scenes.Camera, cast: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The camera's picture RGB uint8 [128, 64, 3] of the scene RGB float32 [256, 128, 3]."""
    image = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    grey = image.mean(2, keepdims=True)
    image = grey + settings.saturation * (image - grey)
    image = (image - 110.0) * settings.contrast + 110.0
    image *= cast.astype(np.float32) * np.float32(random.uniform(0.95, 1.05))
    image = cv2.GaussianBlur(image, (0, 0), settings.blur * random.uniform(0.8, 1.15))
    noise = random.standard_normal((HEIGHT, WIDTH, 4), dtype=np.float32)
    image += settings.noise * (0.5 * noise[..., :3] + 0.7 * noise[..., 3:])
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, settings.quality]
    )[1]
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None  # it was encoded just now
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
