"""Reads the tensors of PyTorch's weight files into numpy, without PyTorch and without running anything in the file.

Formats, from PyTorch's torch/serialization.py and the safetensors package:

    zip          since PyTorch 1.6: an uncompressed archive of NAME/data.pkl, NAME/data/KEY for each storage, and
                 NAME/byteorder, "little" or "big" (absent before PyTorch 2.1: little).
    legacy       before that, and still in use for torchvision's oldest weights: one after the other the pickles of a
                 magic number, a version, facts about the machine, the state_dict and the list of its storages' keys;
                 then for each key the number of elements as int64, and the elements.
    safetensors  a header in JSON and the tensors.

The tar files of PyTorch 0.1 are refused.
"""

import io
import math
import mmap
import os
import zipfile
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import safetensors

from cnn_research.models.torch_pickle import BFLOAT16, Storage, Tensor, unpickle

_MAGIC = 0x1950A86A20F9469CFC6C
_MAGIC_PICKLED = b"\x8a\x0a" + _MAGIC.to_bytes(10, "little")
_LEGACY_VERSION = 1001

# Types -> NumPy's codes.
_SAFETENSORS = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "BF16": BFLOAT16,
    "I64": "i8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}

# Where training scripts keep the state_dict among other things.
_WRAPPERS = ("state_dict", "model")


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a state_dict by name, in the order of the file (of their names, for safetensors).

    Which format it is, the file's content says, not its name. A checkpoint that holds the state_dict under "state_dict"
    or "model" is accepted, as are names that all begin with "module." (`DataParallel` puts that in front), which is
    removed. float16 and bfloat16 become float32; other types stay. Tensors that share a storage in the file share their
    memory here, and all are read-only.

    Nothing in the file is executed, and nothing is allocated that is larger than what the file holds (twice that for
    16-bit types).

    Args:
        path: `.pth`, `.pt`, `.bin` or `.safetensors`, on a local disk.

    Raises:
        OSError: the file can't be opened.
        ValueError: it is none of these formats, damaged, or holds anything else than tensors; the message begins with
            the path, and names the tensor or the Python object.
    """
    try:
        with open(path, "rb") as file:
            tensors = _read(file)
    except ValueError as error:
        # Names in a hostile file may be of any length.
        raise ValueError(f"{os.fspath(path)}: {str(error)[:500]}") from error
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _read(file: BinaryIO) -> dict[str, np.ndarray]:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(512)
    file.seek(0)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(file, size)
    if head.startswith(b"\x80") and _MAGIC_PICKLED in head[:32]:  # after the pickle protocol and, from 4 on, a length
        # In a file, unlike here, to read more than there is takes as much memory as was asked for.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _read_legacy(mapped)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return _read_safetensors(file)
    if head[257:262] == b"ustar":
        raise ValueError("a tar file, as PyTorch 0.1 wrote them: load it in PyTorch and save it again")
    raise ValueError("neither a PyTorch file nor safetensors")


# -- containers


def _read_zip(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            # PyTorch never compresses, and what is stored as it is can't be larger than the file.
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            if not stored or sum(entry.file_size for entry in entries) > size:
                raise ValueError("a zip archive, but not PyTorch's: compressed, or larger than the file")
            names = archive.namelist()
            roots = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl")]
            if len(roots) != 1:
                raise ValueError("a zip archive, but without PyTorch's data.pkl")
            root = roots[0]
            little = f"{root}/byteorder" not in names or archive.read(f"{root}/byteorder") == b"little"
            content = unpickle(io.BytesIO(archive.read(f"{root}/data.pkl")), {})
            return _arrays(content, little, lambda storage: archive.read(f"{root}/data/{storage.key}"))
    except (zipfile.BadZipFile, OSError, KeyError, RuntimeError, EOFError) as error:
        # OSError: positions that can't be. RuntimeError: encrypted, or what else zip offers and PyTorch doesn't use.
        raise ValueError(f"a zip archive, but damaged or incomplete: {error}") from error


def _read_legacy(file: mmap.mmap) -> dict[str, np.ndarray]:
    storages: dict[str, Storage] = {}
    _, version, machine, content, keys = (unpickle(file, storages) for _ in range(5))
    if version != _LEGACY_VERSION or not isinstance(machine, dict) or not isinstance(keys, list):
        raise ValueError(f"PyTorch's old format, but damaged, or of another version than {_LEGACY_VERSION}")
    little = bool(machine.get("little_endian", True))
    starts = {}
    for key in keys:
        if type(key) is not str or key not in storages:
            raise ValueError("damaged: a storage belongs to no tensor")
        starts[key] = file.tell() + 8  # after the number of elements, which the pickle says too
        if starts[key] + storages[key].nbytes > len(file):
            raise ValueError(f"incomplete: it ends before storage {key!r} does")
        file.seek(starts[key] + storages[key].nbytes)

    def read(storage: Storage) -> bytes:
        if storage.key not in starts:
            raise ValueError(f"damaged: storage {storage.key!r} is missing")
        file.seek(starts[storage.key])
        return file.read(storage.nbytes)

    return _arrays(content, little, read)


def _read_safetensors(file: BinaryIO) -> dict[str, np.ndarray]:
    try:
        entries = safetensors.deserialize(file.read())
    except safetensors.SafetensorError as error:
        raise ValueError(f"safetensors, but damaged or incomplete: {error}") from error
    arrays = {}
    for name, entry in sorted(entries):
        if entry["dtype"] not in _SAFETENSORS:
            raise ValueError(f"tensor {name!r} has the type {entry['dtype']}; known are {', '.join(_SAFETENSORS)}")
        # The package has checked that sizes and shapes agree.
        array = _values(entry["data"], _SAFETENSORS[entry["dtype"]], True).reshape(entry["shape"])
        array.flags.writeable = False
        arrays[name] = array
    return arrays


# -- numbers


def _values(data: bytes, kind: str, little: bool) -> np.ndarray:
    """The numbers in `data`, one-dimensional, in this machine's byte order; 16-bit floats as float32."""
    raw = np.frombuffer(data, np.dtype("u2" if kind == BFLOAT16 else kind).newbyteorder("<" if little else ">"))
    if kind == BFLOAT16:  # the upper half of a float32
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32 if kind == "f2" else raw.dtype.newbyteorder("="), copy=False)


def _arrays(content: object, little: bool, read: Callable[[Storage], bytes]) -> dict[str, np.ndarray]:
    """What a file's pickle gave -> its tensors. `read` gives a storage's bytes, or fewer where the file ends."""
    if isinstance(content, dict):
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not content:
        raise ValueError("holds no tensors by name, as a state_dict does")
    cache: dict[Storage, np.ndarray] = {}  # so that tensors share their storage, and it is read once
    arrays = {}
    for name, tensor in content.items():
        if not isinstance(tensor, Tensor) or not isinstance(name, str):
            raise ValueError(
                f"{name!r} is no tensor: a state_dict is expected, or a checkpoint with one under {_WRAPPERS}"
            )
        storage = tensor.storage
        if storage not in cache:
            data = read(storage)
            if len(data) < storage.nbytes:
                raise ValueError(f"damaged: storage {storage.key!r} has {len(data)} of its {storage.nbytes} bytes")
            cache[storage] = _values(data[: storage.nbytes], storage.kind, little)
        arrays[name] = _view(name, tensor, cache[storage])
    return arrays


def _view(name: str, tensor: Tensor, values: np.ndarray) -> np.ndarray:
    """The tensor as a read-only view of its storage's values."""
    size = math.prod(tensor.shape)
    steps = [(n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True)]
    # More elements than the storage has come about by a stride of 0 only: a few bytes could stand for terabytes.
    if size > len(values) or (size and tensor.offset + sum(steps) >= len(values)):
        raise ValueError(
            f"tensor {name!r} of shape {tensor.shape}, strides {tensor.strides} and offset {tensor.offset} reaches "
            f"beyond its storage of {len(values)}"
        )
    # The stride of an axis of length 1 leads nowhere and may be any number.
    strides = [stride * values.itemsize if n > 1 else 0 for n, stride in zip(tensor.shape, tensor.strides, strict=True)]
    start = values[tensor.offset :] if size else values[:0]
    return np.lib.stride_tricks.as_strided(start, tensor.shape, strides if size else None, writeable=False)
