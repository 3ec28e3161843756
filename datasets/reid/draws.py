"""Which few of many: the first so many, or the first in an order that a seed draws. Either way few are among more."""

import hashlib
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def first(items: Iterable[Item], name: Callable[[Item], str], most: int | None, draw_seed: int | None) -> list[Item]:
    """At most `most` of the items (None: all), by their own order, or by that of `drawn_key` of their names."""
    ordered = list(items)
    if most is None:
        return ordered
    if draw_seed is not None:
        ordered.sort(key=lambda item: drawn_key(draw_seed, name(item)))
    return ordered[:most]


def drawn_key(draw_seed: int, name: str) -> bytes:
    """What puts names into the order that a seed draws: sha256 of both.

    An item's key depends on no other item, as a permutation of numbers would: where a filter takes somebody out, the
    others keep their order.
    """
    return hashlib.sha256(f"{draw_seed}\n{name}".encode("utf-8", "surrogateescape")).digest()
