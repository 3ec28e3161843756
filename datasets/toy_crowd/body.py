"""The toy crowd's bodies: a walking skeleton, the lofts of limbs and clothes on it, heads with hair and hats, and bags.

A loft follows a spine, which is a curve in body coordinates [K, 3], with values that vary along the spine.
"""

import math
from dataclasses import dataclass

import numpy as np

from datasets.toy_crowd.fabric import bottom_colour, hair_and_face, shoe_colour, sleeve_colour, top_colour
from datasets.toy_crowd.people import Person
from datasets.toy_crowd.render import Canvas, Material, View


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
    cut_length = share * length[-1]
    inside = spine[length < cut_length - 1e-6]
    end = np.array([np.interp(cut_length, length, spine[:, i]) for i in range(3)])
    return np.concatenate([inside, end[None]])


def column(heights: list[float], rise: float, ahead: float | list[float] = 0.0, side: float = 0.0) -> np.ndarray:
    """An upright spine [K, 3] through these heights."""
    heights_array = np.asarray(heights, np.float64) + rise
    return np.stack([np.full_like(heights_array, side), heights_array, np.zeros_like(heights_array) + ahead], axis=1)


# ---- Heads and bags.

CHIN = 0.868  # height of a standing person's chin, in statures


def draw_head(canvas: Canvas, view: View, person: Person, rise: float) -> None:
    """Draw head, hair and hat. rise: the height of the head in this pose above its height when the person stands."""
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
    """Draw the person's bag, if there is one. hand [3]: the hand that holds a hand bag, in body coordinates."""
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


HIP, SHOULDER = 0.525, 0.80  # heights of a standing person, in statures
THIGH, SHIN, UPPER_ARM, LOWER_ARM = 0.245, 0.235, 0.165, 0.145


@dataclass(frozen=True)
class Pose:
    """Joints in body coordinates [3] of each side (0 right, 1 left): 3 for legs and arms, heel and toe for feet."""

    legs: list[list[np.ndarray]]
    feet: list[list[np.ndarray]]
    arms: list[list[np.ndarray]]
    hands: list[np.ndarray]
    ground: float  # the height of the lower foot


def walk(person: Person, phase: float, effort: float) -> Pose:
    """The skeleton at `phase` (radians; 2 pi is two steps). `effort` scales the person's usual stride and swing."""
    build = person.build
    stride = build.stride * effort * (0.8 if person.bottom.cut == "skirt" else 1.0)
    legs, feet, arms, hands = [], [], [], []
    for side, leg_phase in ((-1, phase), (1, phase + math.pi)):
        swing = stride * math.sin(leg_phase) + 0.03
        # The knee bends while the leg swings forward, and hardly bends while the leg carries the body.
        knee_bend = 0.08 + 0.85 * effort * max(0.0, math.cos(leg_phase)) ** 1.5
        hip = np.array([side * 0.050 * build.hips * build.girth**0.5, HIP, 0.0])
        knee = hip + THIGH * np.array([side * 0.02, -math.cos(swing), math.sin(swing)])
        shin = swing - knee_bend
        ankle = knee + SHIN * np.array([0.0, -math.cos(shin), math.sin(shin)])
        tilt = 0.6 * shin + 0.25 * max(0.0, math.sin(leg_phase)) ** 2
        toe = ankle + np.array([side * 0.024, -0.024 + 0.088 * math.sin(tilt), 0.088 * math.cos(tilt)])
        heel = ankle + np.array([0.0, -0.024 - 0.02 * math.sin(tilt), -0.024])
        legs.append([hip, knee, ankle])
        feet.append([heel, toe])
        arm = -stride * build.swing * 0.9 * math.sin(leg_phase) + 0.02
        lower = arm + 0.2 + 0.4 * max(0.0, math.sin(arm))
        shoulder = np.array([side * 0.100 * build.shoulders, SHOULDER - 0.012, build.lean])
        elbow = shoulder + UPPER_ARM * np.array([side * 0.17, -math.cos(arm), math.sin(arm)])
        wrist = elbow + LOWER_ARM * np.array([side * 0.03, -math.cos(lower), math.sin(lower)])
        arms.append([shoulder, elbow, wrist])
        hands.append(wrist + 0.05 * np.array([-side * 0.05, -math.cos(lower), math.sin(lower)]))
    ground = min(min(heel[1], toe[1]) for heel, toe in feet)
    return Pose(legs, feet, arms, hands, ground - 0.012)


def draw_person(canvas: Canvas, view: View, person: Person, pose: Pose) -> None:
    """Draw the whole person, dressed, standing on `view.foot`."""
    legs, feet, arms = ([_lower(part, pose.ground) for part in parts] for parts in (pose.legs, pose.feet, pose.arms))
    pose_on_ground = Pose(legs, feet, arms, [hand - [0, pose.ground, 0] for hand in pose.hands], 0.0)
    rise = -pose.ground
    _legs(canvas, view, person, pose_on_ground, rise)
    _trunk(canvas, view, person, rise)
    _arms(canvas, view, person, pose_on_ground)
    draw_head(canvas, view, person, rise)
    draw_bag(canvas, view, person, pose_on_ground.hands[1], rise)


def _lower(joints: list[np.ndarray], ground: float) -> list[np.ndarray]:
    return [joint - np.array([0.0, ground, 0.0]) for joint in joints]


def _legs(canvas: Canvas, view: View, person: Person, pose: Pose, rise: float) -> None:
    bottom, girth = person.bottom, person.build.girth
    cloth = canvas.material(Material(bottom_colour(bottom), fold=0.55))
    skin = canvas.material(Material(np.array(person.skin, np.float32) * 0.97))
    leather = canvas.material(Material(shoe_colour(person)))
    sock = canvas.material(Material(np.array((222, 222, 220), np.float32)))
    for leg, foot in zip(pose.legs, pose.feet, strict=True):
        hip, knee, foot_joint = leg
        spine = bend(hip, knee, foot_joint)
        stops = [0.0, 0.2, 0.48, 0.56, 0.72, 1.0]
        if bottom.cut == "trousers":
            wide = np.array([0.058, 0.062, 0.051, 0.049, 0.047, 0.045 * bottom.flare]) * girth
            canvas.loft(view, spine, profile(spine, stops, list(wide)), cloth, caps=(True, False))
        else:
            bare = np.array([0.058, 0.058, 0.043, 0.042, 0.045, 0.027]) * girth**0.8
            canvas.loft(view, spine, profile(spine, stops, list(bare)), skin)
            if person.socks:
                ankle = cut_spine(spine[::-1], 0.2)[::-1]
                canvas.loft(view, ankle, np.linspace(0.036, 0.031, len(ankle)) * girth**0.8, sock, caps=(False, True))
            if bottom.cut == "shorts":
                part = cut_spine(spine, bottom.length)
                wide = np.linspace(0.066, 0.068 * bottom.flare, len(part)) * girth
                canvas.loft(view, part, wide, cloth, caps=(True, False), lift=0.004)
        heel, toe = foot
        path = np.stack([heel, heel * 0.55 + toe * 0.45, toe]) + [0.0, 0.012, 0.0]
        canvas.loft(view, path, np.array([0.026, 0.030, 0.022]), leather)
        if person.boots:
            shaft = np.stack([heel + [0, 0.02, 0.024], leg[2] * 0.6 + leg[1] * 0.4])
            canvas.loft(view, shaft, np.array([0.034, 0.044]) * girth**0.8, leather, caps=(True, False), lift=0.006)
    hips = person.build.hips * girth
    if bottom.cut != "skirt":
        wide, deep = (
            np.array([0.094, 0.106, 0.110, 0.104]) * hips,
            np.array([0.068, 0.080, 0.082, 0.070]) * girth,
        )
        heights = [0.60, 0.55, 0.51, 0.465]
        canvas.loft(view, column(heights, rise), wide, cloth, depth=deep, along=np.array(heights), caps=(True, False))
    if bottom.cut == "skirt":
        end = HIP - bottom.length * 0.44
        heights = np.array([0.60, 0.55, 0.51, (0.51 + end) / 2, end])
        wide = np.array([0.09, 0.110, 0.118, 0.118 + 0.03 * bottom.flare, 0.11 + 0.05 * bottom.flare]) * hips
        canvas.loft(
            view,
            column(list(heights), rise),
            wide,
            cloth,
            depth=wide * 0.8,
            along=heights,
            caps=(True, False),
            lift=0.006,
        )


def _trunk(canvas: Canvas, view: View, person: Person, rise: float) -> None:
    top, build, girth = person.top, person.build, person.build.girth
    cloth = canvas.material(Material(top_colour(person), fold=0.5 if top.thickness < 1.1 else 0.65))
    heights = [0.848, 0.838, 0.822, 0.79, 0.72, 0.64, 0.58, 0.53]
    waist = (0.084 if person.feminine else 0.094) * girth
    hips = 0.112 * build.hips * girth
    chest = 0.106 * build.shoulders * girth**0.7
    wide = [
        0.036,
        0.058 * build.shoulders,
        0.092 * build.shoulders,
        chest,
        chest,
        waist,
        (waist + hips) / 2,
        hips,
    ]
    deep = [0.036, 0.044, 0.056, 0.064 * girth, 0.070 * girth, 0.064 * girth, 0.078 * girth, 0.092 * girth]
    # The hem hangs from the hips; a coat reaches further down and becomes wider.
    heights += [top.hem]
    wide += [hips * (1.02 if top.hem > 0.4 else 1.25)]
    deep += [0.098 * girth * (1.0 if top.hem > 0.4 else 1.45)]
    ahead = [build.lean * max(0.0, (height - 0.53) / 0.3) for height in heights]
    puff = np.array([1.0, 1.0, 1.0] + [top.thickness] * (len(heights) - 3))
    canvas.loft(
        view,
        column(heights, rise, ahead),
        np.array(wide) * puff,
        cloth,
        depth=np.array(deep) * puff,
        along=np.array(heights),
        caps=(True, False),
        lift=0.014,
    )
    skin = canvas.material(Material(np.array(person.skin, np.float32) * 0.9))
    canvas.loft(
        view,
        column([0.82, 0.85, 0.895], rise, [build.lean, build.lean, build.lean + 0.008]),
        np.array([0.036, 0.032, 0.032]),
        skin,
        lift=0.006,
    )
    if top.cut == "hoodie":
        hood = column([0.85, 0.815], rise, build.lean - 0.045)
        canvas.loft(
            view,
            hood,
            np.array([0.062, 0.07]),
            cloth,
            depth=np.array([0.034, 0.036]),
            along=np.array([0.79, 0.77]),
        )


def _arms(canvas: Canvas, view: View, person: Person, pose: Pose) -> None:
    top = person.top
    scale = person.build.girth**0.7 * (0.92 if person.feminine else 1.04)
    skin = canvas.material(Material(np.array(person.skin, np.float32)))
    cloth = canvas.material(Material(sleeve_colour(person), fold=0.5))
    for arm, hand in zip(pose.arms, pose.hands, strict=True):
        spine = np.concatenate([bend(*arm, softness=0.35), hand[None]])
        wide = profile(
            spine, [0.0, 0.2, 0.45, 0.55, 0.84, 0.92, 1.0], [0.036, 0.034, 0.028, 0.028, 0.019, 0.023, 0.016]
        )
        canvas.loft(view, spine, wide * scale, skin)
        if top.sleeve > 0:
            sleeve = cut_spine(spine, 0.43 * top.sleeve)
            end = 0.034 if top.sleeve < 1 else 0.027
            wide = profile(sleeve, [0.0, 0.3, 1.0], [0.040, 0.038, end]) * scale * top.thickness
            canvas.loft(view, sleeve, wide, cloth, caps=(True, False), lift=0.003)
