"""The toy crowd's bodies: a walking skeleton, and the lofts of limbs and clothes on it."""

import math
from dataclasses import dataclass

import numpy as np

from datasets.toy_crowd.extras import bend, column, cut_spine, draw_bag, draw_head, profile
from datasets.toy_crowd.fabric import bottom_colour, shoe_colour, sleeve_colour, top_colour
from datasets.toy_crowd.people import Person
from datasets.toy_crowd.render import Canvas, Material, View

HIP, SHOULDER = 0.525, 0.80  # heights of a standing person, in statures
THIGH, SHIN, UPPER_ARM, LOWER_ARM = 0.245, 0.235, 0.165, 0.145


@dataclass(frozen=True)
class Pose:
    """Joints in body coordinates [3] for each side (0 right, 1 left): legs and arms as 3 joints, feet as
    heel and toe.
    """

    legs: list[list[np.ndarray]]
    feet: list[list[np.ndarray]]
    arms: list[list[np.ndarray]]
    hands: list[np.ndarray]
    ground: float  # the height of the lower foot


def walk(person: Person, phase: float, effort: float) -> Pose:
    """The skeleton at `phase` (radians; 2 pi is two steps); `effort` scales stride and swing, 1 is this
    person's usual.
    """
    build = person.build
    stride = build.stride * effort * (0.8 if person.bottom.cut == "skirt" else 1.0)
    legs, feet, arms, hands = [], [], [], []
    for side, leg_phase in ((-1, phase), (1, phase + math.pi)):
        swing = stride * math.sin(leg_phase) + 0.03
        # The knee bends while the leg swings forward, hardly while it carries.
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
    lowered = Pose(legs, feet, arms, [hand - [0, pose.ground, 0] for hand in pose.hands], 0.0)
    rise = -pose.ground
    _legs(canvas, view, person, lowered, rise)
    _trunk(canvas, view, person, rise)
    _arms(canvas, view, person, lowered)
    draw_head(canvas, view, person, rise)
    draw_bag(canvas, view, person, lowered.hands[1], rise)


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
    # The hem hangs from the hips; a coat goes on down and widens.
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
