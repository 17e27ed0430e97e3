"""Reads the pickles in PyTorch's weight files without running what they say.

Pickle is a language for a stack machine whose programs may call any function of any module, so whoever unpickles a file
does what the file says. Here the program is only parsed, by `pickletools`, and the few instructions of which a
state_dict consists are carried out on plain lists, dicts and records. Functions that the file names are never looked
up: the names themselves are compared with the short list of those that PyTorch writes (torch/_utils.py).
"""

import io
import mmap
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# Types of storages -> NumPy's codes, without byte order.
BFLOAT16 = "bfloat16"
STORAGES = {
    "torch.DoubleStorage": "f8",
    "torch.FloatStorage": "f4",
    "torch.HalfStorage": "f2",
    "torch.BFloat16Storage": BFLOAT16,
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}


@dataclass(frozen=True, slots=True)
class Storage:
    """`count` numbers of type `kind`, a value of STORAGES, that the file keeps under `key`."""

    key: str
    kind: str
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * (2 if self.kind == BFLOAT16 else np.dtype(self.kind).itemsize)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Global:
    """A name in the file. Nothing is looked up under it."""

    name: str


def _ordered_dict(pairs: Any = ()) -> dict:
    result: dict = {}
    for key, value in pairs:
        _set_item(result, key, value)
    if isinstance(pairs, list):
        pairs.clear()  # else a few bytes that ask for the same list again and again would fill the memory
    return result


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """The arguments of PyTorch's _rebuild_tensor, and of _rebuild_tensor_v2: requires_grad, hooks and metadata."""
    counts = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or not len(shape) == len(strides) <= 32 or not all(map(_is_count, counts)):
        raise ValueError("damaged: a tensor has no storage, or no sizes")
    if rest[2:] and rest[2]:
        raise ValueError("a tensor is marked as conjugate or negative")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(data: Any, *rest: Any) -> Any:
    return data


# What PyTorch writes as functions to call. OrderedDict and Parameter may get attributes too (BUILD): a state_dict's
# versions of its modules, and whether a gradient is wanted.
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
}


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _set_item(target: Any, key: Any, value: Any) -> None:
    # Only keys that hash in no time: to hash a tuple of tuples of tuples takes exponentially long.
    if type(target) is not dict or type(key) not in (str, int):
        raise ValueError("damaged: an item of something else than a dict, or under a key that is no name")
    target[key] = value


def _global(module: Any, name: Any) -> _Global:
    if type(module) is not str or type(name) is not str:
        raise ValueError("damaged: a Python object without a name")
    full_name = f"{module}.{name}"
    if full_name not in _FUNCTIONS and full_name not in STORAGES:
        raise ValueError(
            f"it would load the Python object {full_name[:100]!r}, which has no place in a state_dict; "
            "nothing was executed"
        )
    return _Global(full_name)


def _persistent(identifier: Any, storages: dict[str, Storage]) -> Storage:
    """("storage", type, key, device, count), and in the legacy format None or a view of it, which no state_dict has."""
    if type(identifier) is not tuple or len(identifier) not in (5, 6):
        raise ValueError("damaged: a reference to something else than a storage")
    kind, storage_type, key, _, count, *view = identifier
    if kind != "storage" or type(key) is not str or not _is_count(count) or any(view):
        raise ValueError("damaged: a reference to something else than a storage")
    storage = Storage(key, STORAGES[storage_type.name], count)
    if storages.setdefault(key, storage) != storage:
        raise ValueError(f"storage {key!r} has two types or sizes")
    return storage


_NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"}
_TEXTS = {"BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_LITERALS = _NUMBERS | _TEXTS | _BYTES
_NEW: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}


def unpickle(file: io.BytesIO | mmap.mmap, storages: dict[str, Storage]) -> Any:
    """Reads one pickle from `file`, up to its last instruction; adds the storages that it names to `storages`.

    Raises:
        ValueError: it isn't complete, or holds an instruction or a name that a state_dict has no use for.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop_to_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    try:
        for opcode, argument, _ in pickletools.genops(file):
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case name if name in _LITERALS:
                    stack.append(argument)
                case name if name in _NEW:
                    stack.append(_NEW[name]())
                case "MARK":
                    marks.append(len(stack))
                case "TUPLE":
                    stack.append(tuple(pop_to_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                    count = int(name[-1])
                    stack[-count:] = [tuple(stack[-count:])]
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "APPEND":
                    value = stack.pop()
                    list.append(stack[-1], value)
                case "APPENDS":
                    values = pop_to_mark()
                    list.extend(stack[-1], values)
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    _set_item(stack[-1], key, value)
                case "SETITEMS":
                    items = pop_to_mark()
                    for key, value in zip(items[::2], items[1::2], strict=True):
                        _set_item(stack[-1], key, value)
                case "GLOBAL":
                    stack.append(_global(*argument.split(" ", 1)))
                case "STACK_GLOBAL":
                    name, module = stack.pop(), stack.pop()
                    stack.append(_global(module, name))
                case "REDUCE":
                    arguments, function = stack.pop(), stack.pop()
                    stack.append(_FUNCTIONS[function.name](*arguments))
                case "BUILD":
                    stack.pop()
                    if type(stack[-1]) not in (dict, Tensor):
                        raise ValueError("damaged: attributes for something else than a state_dict or a parameter")
                case "BINPERSID":
                    stack.append(_persistent(stack.pop(), storages))
                case "STOP":
                    (value,) = stack
                    return value
                case name:
                    raise ValueError(f"its pickle has the instruction {name}, which has no place in a state_dict")
    except (AttributeError, IndexError, KeyError, TypeError, OverflowError) as error:
        # Instructions that don't fit each other: no pickler writes them.
        raise ValueError(f"damaged: its pickle makes no sense ({error})") from error
