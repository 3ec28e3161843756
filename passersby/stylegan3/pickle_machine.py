"""Pickles read as data: a stack machine that can call only the few functions of its table.

Python's own unpickler imports and calls whatever a file names. Even with a filter in `find_class` it keeps
attribute access, `__setstate__`, the extension registry and allocations of any announced size. `pickletools`
decodes a stream without acting on it, so this file acts on it instead: names are looked up in our own table,
REDUCE calls the entries of that table only, and no attribute that a file names is ever read or set.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from passersby.errors import InputError

_MARK = object()

# Errors of `pickletools`, the stack, the memo or a stand-in at a damaged or absurd stream.
_DAMAGE = (
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    RuntimeError,
)

# Opcodes that push their (already decoded) argument. The first line of each kind is that of protocols 0 and 1.
_ARGUMENT = {"INT", "LONG", "FLOAT"}
_ARGUMENT |= {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"}
_ARGUMENT |= {"UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING"}
_ARGUMENT |= {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_CONSTANT = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
_TUPLE = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Stub:
    """A function of ours that stands for a global name: the only thing that REDUCE and NEWOBJ call."""

    def __init__(self, name: str, function: Callable[..., Any]):
        self.name, self.function = name, function


class Buildable:
    """Base of stand-ins that may receive a state (the opcode BUILD) through `build`."""

    def build(self, state: Any) -> None:
        """Take the pickled state, checking it."""
        raise NotImplementedError


def printable(text: str, limit: int = 100) -> str:
    """`text` of unknown origin in one printable line of at most `limit` characters."""
    line = text.encode("unicode_escape", "backslashreplace").decode("ascii")
    return line if len(line) <= limit else line[: limit - 3] + "..."


def describe(value: Any) -> str:
    """A value of unknown origin, for a message: its text if short and simple, else only its type.

    The `repr` of nested lists that share their parts can grow without bounds.
    """
    return printable(str(value), 40) if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"


class PickleMachine:
    """Reads one pickle from `stream` (`read`, `readline`), and leaves `stream` behind the pickle's end.

    `names` maps "module.name" to a function of ours; `persistent` reads persistent identifiers, None refuses
    them. `load()` raises `InputError` on a name outside `names`, on any opcode that a network file has no use
    for, and on a damaged stream; nothing but the functions of `names` and `persistent` ever runs. `others` maps
    beginnings of names to the program that writes them, for the refusal.
    """

    def __init__(
        self,
        stream: BinaryIO,
        names: dict[str, Callable[..., Any]],
        persistent: Callable[[Any], Any] | None = None,
        others: Mapping[str, str] | None = None,
    ):
        self._stream, self._persistent, self._others = stream, persistent, others or {}
        self._names = {name: Stub(name, function) for name, function in names.items()}
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The pickled object."""
        try:
            for opcode, argument, _ in pickletools.genops(self._stream):
                if opcode.name == "STOP":
                    return self._result()
                self._step(opcode.name, argument)
        except InputError:
            raise
        except _DAMAGE as error:
            reason = printable(str(error))
            raise InputError(f"damaged or no pickle ({reason}): fetch the file again") from error
        raise InputError("damaged or no pickle (no end): fetch the file again")

    def _result(self):
        value = self._pop()
        if self._stack:
            raise InputError("damaged or no pickle (left-over values): fetch the file again")
        return value

    def _step(self, name: str, argument: Any) -> None:
        if name in _ARGUMENT:
            if isinstance(argument, int) and abs(argument) >= 2**64:
                raise InputError("damaged or no pickle (a number beyond 64 bits): fetch the file again")
            self._stack.append(argument)
        elif name in _CONSTANT:
            self._stack.append(_CONSTANT[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name in _TUPLE:
            count = _TUPLE[name]
            self._stack.append(tuple(reversed([self._pop() for _ in range(count)])))
        else:
            handler = _HANDLERS.get(name)
            if handler is None:
                raise InputError(f"pickle instruction {name} has no place in a network file: nothing was run")
            handler(self, argument)

    # ---- the stack

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise IndexError("a mark where a value belongs")
        return value

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise TypeError(f"{type(self._stack[-1]).__name__} where a {kind.__name__} belongs")
        return self._stack[-1]

    def _pop_to_mark(self) -> list[Any]:
        items = []
        while (value := self._stack.pop()) is not _MARK:
            items.append(value)
        items.reverse()
        return items

    # ---- containers

    def _mark(self, _):
        self._stack.append(_MARK)

    def _tuple(self, _):
        self._stack.append(tuple(self._pop_to_mark()))

    def _list(self, _):
        self._stack.append(self._pop_to_mark())

    def _dict(self, _):
        items = self._pop_to_mark()
        pairs = zip(items[::2], items[1::2], strict=True)
        self._stack.append({plain_key(key): value for key, value in pairs})

    def _frozen_set(self, _):
        self._stack.append(frozenset(plain_key(item) for item in self._pop_to_mark()))

    def _append(self, _):
        value = self._pop()
        self._top(list).append(value)

    def _appends(self, _):
        items = self._pop_to_mark()
        self._top(list).extend(items)

    def _set_item(self, _):
        value, key = self._pop(), self._pop()
        self._top(dict)[plain_key(key)] = value

    def _set_items(self, _):
        items = self._pop_to_mark()
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[plain_key(key)] = value

    def _add_items(self, _):
        items = self._pop_to_mark()
        self._top(set).update(plain_key(item) for item in items)

    # ---- the memo

    def _put(self, index):
        value = self._pop()
        self._stack.append(value)
        self._memo[index] = value

    def _memoize(self, _):
        self._put(len(self._memo))

    def _get(self, index):
        self._stack.append(self._memo[index])

    # ---- names and calls

    def _global(self, argument):
        module, _, name = argument.partition(" ")
        self._stack.append(self._look_up(module, name))

    def _stack_global(self, _):
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError("a global without a name")
        self._stack.append(self._look_up(module, name))

    def _look_up(self, module: str, name: str) -> Stub:
        full = f"{module}.{name}"
        if full not in self._names:
            program = next((text for start, text in self._others.items() if full.startswith(start)), None)
            if program is not None:
                raise InputError(f"{program} (it refers to `{printable(full)}`); nothing of it was run")
            raise InputError(
                f"it refers to `{printable(full)}`, which no StyleGAN3 network file needs, and is refused; "
                "nothing of it was run. Take the network from its original source, or as .safetensors or a "
                "plain .pt state dict"
            )
        return self._names[full]

    def _reduce(self, _):
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Stub) or not isinstance(arguments, tuple):
            raise InputError("the pickle calls what is no function of a network file: nothing was run")
        self._stack.append(function.function(*arguments))

    def _build(self, _):
        state = self._pop()
        self._top(Buildable).build(state)

    def _persistent_id(self, _):
        if self._persistent is None:
            raise InputError("the pickle refers to objects outside itself: refused, nothing was run")
        self._stack.append(self._persistent(self._pop()))

    def _nothing(self, _):
        pass


def plain_key(key: Any) -> Any:
    """`key` itself if it may be a key or the item of a set: a text, bytes, a number or None. Raises TypeError."""
    # Nested tuples as keys would be hashed recursively: a small file could hang us or overflow the stack.
    if not isinstance(key, (str, bytes, int, float, complex, type(None))):
        raise TypeError(f"{type(key).__name__} as a key")
    return key


_HANDLERS = {
    "PROTO": PickleMachine._nothing,
    "FRAME": PickleMachine._nothing,
    "MARK": PickleMachine._mark,
    "TUPLE": PickleMachine._tuple,
    "LIST": PickleMachine._list,
    "DICT": PickleMachine._dict,
    "FROZENSET": PickleMachine._frozen_set,
    "APPEND": PickleMachine._append,
    "APPENDS": PickleMachine._appends,
    "SETITEM": PickleMachine._set_item,
    "SETITEMS": PickleMachine._set_items,
    "ADDITEMS": PickleMachine._add_items,
    "PUT": PickleMachine._put,
    "BINPUT": PickleMachine._put,
    "LONG_BINPUT": PickleMachine._put,
    "MEMOIZE": PickleMachine._memoize,
    "GET": PickleMachine._get,
    "BINGET": PickleMachine._get,
    "LONG_BINGET": PickleMachine._get,
    "GLOBAL": PickleMachine._global,
    "STACK_GLOBAL": PickleMachine._stack_global,
    "REDUCE": PickleMachine._reduce,
    "NEWOBJ": PickleMachine._reduce,  # the stand-ins of classes are functions too
    "BUILD": PickleMachine._build,
    "BINPERSID": PickleMachine._persistent_id,
}
