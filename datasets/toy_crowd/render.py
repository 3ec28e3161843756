"""The toy crowd's renderer: it draws lofts into a depth buffer and shades them afterwards, with NumPy and OpenCV.

Every part of a drawn person is a loft: a smooth tube of elliptic sections along a curved spine. A limb is one loft over
all its joints, because separate cylinders would show every joint, as on a mannequin. The depth buffer holds only the
front surface, with the values for the shading: normal, position along and around the tube, and material number.

Body coordinates: x to the person's left, y up from the ground, z ahead; 1 is a nominal stature. View coordinates:
pixels, x right, y down, z towards the camera.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

HEIGHT, WIDTH = 128, 64
SCALE = 2  # supersampling: lofts are drawn at 256x128, and the picture is reduced by area at the end
ROWS, COLUMNS = HEIGHT * SCALE, WIDTH * SCALE
EMPTY = -1e4  # depth where nothing was drawn

_X = np.arange(COLUMNS, dtype=np.float32)[None]
_Y = np.arange(ROWS, dtype=np.float32)[:, None]

# (along [n], around [n], normal y [n]) -> RGB [n, 3] or [3], 0..255
ColourFunction = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Material:
    """A surface. colour: RGB 0..255, or a function of the position on the surface. fold: the depth of folds, 0..1."""

    colour: np.ndarray | ColourFunction
    fold: float = 0.0


@dataclass(frozen=True)
class View:
    """Orthographic view of one person: pixels per stature, position of the feet, heading and camera pitch (radians)."""

    pixels: float
    centre: float
    foot: float
    heading: float
    pitch: float
    stature: float = 1.0

    def project(self, points: np.ndarray) -> np.ndarray:
        """Body coordinates [K, 3] -> view coordinates [K, 3]."""
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        x = cos * points[:, 0] + sin * points[:, 2]
        z = cos * points[:, 2] - sin * points[:, 0]
        y = points[:, 1] * self.stature
        up = y * math.cos(self.pitch) - z * math.sin(self.pitch)
        near = y * math.sin(self.pitch) + z * math.cos(self.pitch)
        return np.stack([self.centre + self.pixels * x, self.foot - self.pixels * up, self.pixels * near], axis=1)


class Canvas:
    """The depth buffer [256, 128] of one person, and the surface at each of its points."""

    def __init__(self) -> None:
        self.depth = np.full((ROWS, COLUMNS), EMPTY, np.float32)
        self.normal = np.zeros((3, ROWS, COLUMNS), np.float32)
        self.along = np.zeros((ROWS, COLUMNS), np.float32)
        # `around` is stored as (sine, cosine), and normals do not have unit length yet: later lofts may cover a point,
        # so more work would be wasted.
        self.around = np.zeros((2, ROWS, COLUMNS), np.float32)
        self.part = np.zeros((ROWS, COLUMNS), np.int16)
        self.materials: list[Material] = []

    def material(self, material: Material) -> int:
        """Register a material; returns its number for `loft`."""
        self.materials.append(material)
        return len(self.materials)

    @property
    def mask(self) -> np.ndarray:
        """[256, 128] bool: the pixels of the person."""
        return self.part > 0

    def loft(
        self,
        view: View,
        spine: np.ndarray,
        width: np.ndarray,
        part: int,
        depth: np.ndarray | None = None,
        along: np.ndarray | None = None,
        caps: tuple[bool, bool] = (True, True),
        lift: float = 0.0,
    ) -> None:
        """Draw a tube.

        spine [K, 3]: body coordinates. width, depth [K]: half axes of the sections, across and ahead, in statures
        (depth None: round sections). along [K]: the coordinate for materials (None: the length from the start, in
        statures). caps: whether each end is round (True) or cut off as a hem (False). lift: the distance, in statures,
        that the tube moves towards the camera, so that it covers other tubes.
        """
        spine = np.asarray(spine, np.float64)
        wide = np.asarray(width, np.float64) * view.pixels
        deep = wide if depth is None else np.asarray(depth, np.float64) * view.pixels
        if along is None:
            along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(spine, axis=0), axis=1))])
        points = view.project(spine)
        points[:, 2] += lift * view.pixels
        cos, sin = math.cos(view.heading), math.sin(view.heading)
        # The heading turns an ellipse. `half` is its half width on the screen; its front is shear * x + front *
        # sqrt(1 - u^2).
        half = np.sqrt((wide * cos) ** 2 + (deep * sin) ** 2)
        front = wide * deep / half
        shear = -cos * sin * (wide**2 - deep**2) / half**2
        sections = np.stack([*points.T, half, front, shear, wide, deep, np.asarray(along, np.float64)], axis=1).tolist()
        last = len(sections) - 2
        for k in range(last + 1):
            cut = (k == 0 and not caps[0], k == last and not caps[1])
            joined = (k > 0, k < last)
            self._segment(sections[k], sections[k + 1], cut, joined, (cos, sin, math.sin(view.pitch)), part)

    def _segment(
        self,
        a: list[float],
        b: list[float],
        cut: tuple[bool, bool],
        joined: tuple[bool, bool],
        turn: tuple[float, float, float],
        part: int,
    ) -> None:
        """Draw the piece of a loft between two sections (x, y, z, half, front, shear, wide, deep, along).

        cut: for each end, whether it is a hem. joined: for each end, whether another piece follows. turn: cos and sin
        of the heading, sin of the pitch.
        """
        x0, y0 = (int(max(0, min(a[i] - a[3], b[i] - b[3]))) for i in (0, 1))
        x1, y1 = (int(min((COLUMNS, ROWS)[i], max(a[i] + a[3], b[i] + b[3]) + 2)) for i in (0, 1))
        if x1 <= x0 or y1 <= y0:
            return
        box = (slice(y0, y1), slice(x0, x1))
        x, y = _X[:, x0:x1] - a[0], _Y[y0:y1] - a[1]
        step_x, step_y = b[0] - a[0], b[1] - a[1]
        length2 = step_x * step_x + step_y * step_y + 1e-3
        free = x * (step_x / length2) + y * (step_y / length2)  # [h, w], 0..1 between the sections
        t = np.minimum(np.maximum(free, 0.0), 1.0)
        across_x, across_y = x - t * step_x, y - t * step_y
        half = a[3] + (b[3] - a[3]) * t
        front = a[4] + (b[4] - a[4]) * t
        shear = 0.5 * (a[5] + b[5])
        inverse = 1.0 / (half * half)
        height = 1.0 - (across_x * across_x + across_y * across_y) * inverse
        inside = height > 0
        height = np.sqrt(np.maximum(height, 0.0))
        relief = shear * across_x + front * height
        z = a[2] + (b[2] - a[2]) * t + relief
        # Beyond a joint a piece only fills the gap on the outside of a bend. It never covers the next piece like a
        # ring, and never reaches below a hem.
        length = math.sqrt(length2)
        if joined[0]:
            before = np.maximum(-free, 0.0) * length
            inside &= before < 0.4 * a[3]
            z -= 2.0 * before
        if joined[1]:
            beyond = np.maximum(free - 1.0, 0.0) * length
            inside &= beyond < 0.4 * b[3]
            z -= 2.0 * beyond
        inside &= z > self.depth[box]
        if cut[0]:
            inside &= free >= 0
        if cut[1]:  # seen from above, the front of a hem hangs lower than its sides
            inside &= (free - 1.0) * length <= front * height * turn[2]
        if not inside.any():
            return
        cos, sin, _ = turn
        normal_z = height / front
        for target, value in (
            (self.depth, z),
            (self.normal[0], across_x * inverse - shear * normal_z),
            (self.normal[1], across_y * inverse),
            (self.normal[2], normal_z),
            (self.along, a[8] + (b[8] - a[8]) * t),
            (self.around[0], (cos * across_x - sin * relief) * (2.0 / (a[6] + b[6]))),
            (self.around[1], (sin * across_x + cos * relief) * (2.0 / (a[7] + b[7]))),
        ):
            np.copyto(target[box], value, where=inside)
        self.part[box][inside] = part


@functools.cache
def smooth_noise(seed: int, rows: int, columns: int, cells_y: int, cells_x: int) -> np.ndarray:
    """Periodic smooth noise [rows, columns] float32 of unit variance, with about cells_y x cells_x bumps; cached."""
    noise = np.random.default_rng([90, seed]).standard_normal((rows, columns)).astype(np.float32)
    fy, fx = np.fft.fftfreq(rows) * rows / cells_y, np.fft.rfftfreq(columns) * columns / cells_x
    gains = np.exp(-0.5 * (fy[:, None] ** 2 + fx[None] ** 2) * 3.0)
    smooth = np.fft.irfft2(np.fft.rfft2(noise) * gains, s=(rows, columns))
    return ((smooth - smooth.mean()) / smooth.std()).astype(np.float32)


@dataclass(frozen=True)
class Light:
    """The light of a scene: unit direction towards it (view coordinates), strengths and RGB tints of sun and sky."""

    direction: tuple[float, float, float]
    sun: float
    sky: float
    sun_tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    sky_tint: tuple[float, float, float] = (1.0, 1.0, 1.0)


def shade(canvas: Canvas, light: Light, fold_offset: tuple[float, float]) -> tuple[tuple[slice, slice], np.ndarray]:
    """The rows and columns of the person on the canvas, and the lit person: RGB float32 [h, w, 3], 0..about 255.

    Only pixels of `canvas.mask` have a meaning.
    """
    box = _bounds(canvas.mask)
    part = canvas.part[box]
    normal = np.ascontiguousarray(canvas.normal[:, box[0], box[1]])
    normal /= np.sqrt((normal * normal).sum(0)) + 1e-9
    along, around = (
        canvas.along[box].ravel(),
        np.arctan2(canvas.around[0][box], canvas.around[1][box]).ravel(),
    )
    image = np.zeros((part.size, 3), np.float32)
    fold = np.zeros(part.size, np.float32)
    for number, material in enumerate(canvas.materials, start=1):
        pixels = np.flatnonzero(part == number)
        if not len(pixels):
            continue
        fold[pixels] = material.fold
        if callable(material.colour):
            image[pixels] = material.colour(along[pixels], around[pixels], normal[1].ravel()[pixels])
        else:
            image[pixels] = material.colour
    normal[:2] += _folds(along, around, fold, fold_offset).reshape(2, *part.shape)
    # A little blur over the seams between lofts makes a shoulder or hip one surface.
    normal = cv2.GaussianBlur(np.ascontiguousarray(normal.transpose(1, 2, 0)), (0, 0), 1.1)
    normal /= np.sqrt((normal * normal).sum(2, keepdims=True)) + 1e-6
    direction = np.asarray(light.direction, np.float32)
    sun = np.maximum((normal @ direction + 0.25) / 1.25, 0.0)  # cloth and skin scatter light past the edge
    sky = (0.68 - 0.25 * normal[..., 1] + 0.12 * normal[..., 2]) * _openness(canvas.depth[box], part > 0)
    tints = np.asarray([light.sun_tint, light.sky_tint], np.float32) * np.array([[light.sun], [light.sky]], np.float32)
    return box, image.reshape(*part.shape, 3) * (np.stack([sun, sky], axis=2) @ tints)


def _bounds(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns of a mask, with a margin of 8 pixels for blurs."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return slice(0, 1), slice(0, 1)
    return _with_margin(rows, ROWS), _with_margin(columns, COLUMNS)


def _with_margin(line: np.ndarray, size: int) -> slice:
    return slice(max(0, int(line[0]) - 8), min(size, int(line[-1]) + 9))


def _folds(along: np.ndarray, around: np.ndarray, fold: np.ndarray, offset: tuple[float, float]) -> np.ndarray:
    """The change of the normals' x and y [2, n] by folds of cloth, which run along the tubes and sag a little."""
    # At this size folds across a limb look like zebra stripes, so the bumps are soft and 3 times as long as wide.
    row = ((along + offset[0]) * 320.0 + around * 14.0).astype(np.int32) & 255
    column = ((around / math.pi + offset[1]) * 64.0).astype(np.int32) & 127
    across, down = smooth_noise(1, 256, 128, 9, 12)[row, column], smooth_noise(2, 256, 128, 9, 8)[row, column]
    return np.stack([fold * across * 0.30, fold * down * 0.16])


def _openness(depth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The share of the sky that each point sees, [h, w] float32 0.55..1: less if neighbours are nearer the camera."""
    rows, columns = depth.shape
    behind = float(depth[mask].min()) - 6.0 if mask.any() else 0.0
    filled = np.where(mask, depth, np.float32(behind))
    small = cv2.resize(filled, (columns // 4 + 1, rows // 4 + 1), interpolation=cv2.INTER_AREA)
    around = cv2.resize(cv2.GaussianBlur(small, (0, 0), 2.0), (columns, rows), interpolation=cv2.INTER_LINEAR)
    return 1.0 - np.minimum(np.maximum((around - filled) / 26.0, 0.0), 0.45)
