"""Spines of the toy crowd's lofts: curves in body coordinates [K, 3] and what varies along them."""

import numpy as np


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
