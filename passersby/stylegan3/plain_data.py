"""Plain data of Python, numpy and PyTorch in pickles of every protocol, each by the names that pickles call it.

Protocols 4 and 5 have instructions for sets and bytes. Earlier protocols, which Python 3.7 and older write by default,
spell them as calls: `builtins.set` of a list, `_codecs.encode` of a text. Protocols below 3 use Python 2's names
(`__builtin__`, `copy_reg`), and protocols 0 and 1 make a subclass of dict by `copyreg._reconstructor`. The functions
below stand for these names. They take plain values alone, and call nothing that a file names.
"""

import builtins
from collections.abc import Callable
from typing import Any

from passersby.errors import InputError
from passersby.stylegan3.pickle_machine import Stub, describe, plain_key

_LATIN = ("latin1", "latin-1", "iso-8859-1")
_CONCRETE = (list, tuple, set, frozenset, dict)  # a range may announce any length, so it is not copied
_WHOLE = (int, type(None))
_DICTIONARIES = ("dnnlib.util.EasyDict", "dnnlib.EasyDict", "collections.OrderedDict")
_BUILTINS = ("builtins", "__builtin__")  # the second is Python 2's name, which protocols 0 to 2 write


class PlainData:
    """Makes plain values, of `limit` items and bytes in all: a file that copies one value endlessly is refused."""

    def __init__(self, limit: int):
        self.limit = limit

    def names(self) -> dict[str, Callable[..., Any]]:
        """ "module.name" -> the function that stands for it."""
        kinds: dict[str, Callable[..., Any]] = {
            "set": self.set,
            "frozenset": self.frozenset,
            "list": self.list,
            "tuple": self.tuple,
            "dict": self.dict,
            "bytes": self.bytes,
            "bytearray": self.bytearray,
            "complex": _complex,
            "slice": _slice,
            "range": _range,
            "xrange": _range,
            "object": _object,
        }
        names = {f"{module}.{kind}": function for module in _BUILTINS for kind, function in kinds.items()}
        names |= dict.fromkeys(_DICTIONARIES, self.dict)
        names |= dict.fromkeys(("copyreg._reconstructor", "copy_reg._reconstructor"), self.reconstructed)
        return names | {"_codecs.encode": self.encoded, "torch.Size": self.tuple}

    def list(self, items: Any = ()) -> list:
        """The items of another container."""
        return list(self._items(items))

    def tuple(self, items: Any = ()) -> tuple:
        """The items of another container."""
        return tuple(self._items(items))

    def set(self, items: Any = ()) -> set:
        """The items of another container, which are numbers, texts or bytes."""
        return {plain_key(item) for item in self._items(items)}

    def frozenset(self, items: Any = ()) -> frozenset:
        """As `set`."""
        return frozenset(self.set(items))

    def dict(self, items: Any = ()) -> dict:
        """A dict of another dict, or of pairs; subclasses of dict become dicts, too."""
        pairs = list(self._items(items).items() if isinstance(items, dict) else self._items(items))
        if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
            raise InputError("damaged: a dict of something else than pairs")
        return {plain_key(key): value for key, value in pairs}

    def bytes(self, data: Any = b"") -> bytes:
        """Bytes of bytes: protocols 0 to 2 write no others than empty ones so."""
        if not isinstance(data, (bytes, bytearray)):
            raise InputError(f"damaged: bytes made from {describe(data)}")
        self._spend(len(data))
        return bytes(data)

    def bytearray(self, data: Any = b"", encoding: Any = None) -> bytearray:
        """Of bytes, or of a text that protocols 0 to 2 write for them."""
        return bytearray(self.encoded(data, encoding) if isinstance(data, str) else self.bytes(data))

    def encoded(self, text: Any, encoding: Any = None) -> builtins.bytes:
        """The bytes whose numbers are the characters of `text`, as protocols 0 to 2 write bytes."""
        if not isinstance(text, str) or encoding not in _LATIN:
            raise InputError(f"damaged: bytes encoded as {describe(encoding)}")
        self._spend(len(text))
        return text.encode("latin-1")

    def reconstructed(self, kind: Any, base: Any, state: Any = None) -> Any:
        """A container of a subclass, made from the plain container `state`; `base` is the name of its class."""
        plain = self.names().keys() - {"_codecs.encode", "copyreg._reconstructor", "copy_reg._reconstructor"}
        if not all(isinstance(name, Stub) and name.name in plain for name in (kind, base)):
            raise InputError("the pickle constructs an object that is no plain container: nothing was run")
        return kind.function() if state is None else kind.function(state)

    def _items(self, items: Any) -> Any:
        if not isinstance(items, _CONCRETE):
            raise InputError(f"damaged: a container made from {describe(items)}")
        self._spend(len(items))
        return items

    def _spend(self, count: int) -> None:
        self.limit -= count
        if self.limit < 0:
            raise InputError("more plain data than the file has: damaged, or no network file")


def _complex(real: Any = 0, imaginary: Any = 0) -> complex:
    if not all(isinstance(part, (int, float)) for part in (real, imaginary)):
        raise InputError("damaged: a complex number of something else than numbers")
    return complex(real, imaginary)


def _slice(*ends: Any) -> slice:
    if not 1 <= len(ends) <= 3 or not all(isinstance(end, _WHOLE) for end in ends):
        raise InputError("damaged: a slice between something else than whole numbers")
    return slice(*ends)


def _range(*ends: Any) -> range:
    if not 1 <= len(ends) <= 3 or not all(isinstance(end, int) for end in ends):
        raise InputError("damaged: a range between something else than whole numbers")
    return range(*ends)


def _object(*arguments: Any) -> Any:
    # Protocols 0 and 1 name it as the base of a class, and never call it.
    del arguments
    raise InputError("the pickle constructs a bare object: nothing was run")
