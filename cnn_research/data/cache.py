"""A cache of decoded sets on disk: one memory-mapped file each, so that a second start need not decode anything.

Nothing but time is lost when the folder is deleted, at any moment. It keeps itself below `LIMIT`: what has not been
used for longest goes. An entry is written under another name and then renamed, so neither a kill nor a second process
that does the same leaves half of one to be read.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

LIMIT = 10 * 10**9  # bytes, of all entries together
LARGEST = 4 * 10**9  # bytes: a set above this is not cached, as it is not what a second start waits for

_FORMAT = 1  # to be raised with every change of what is written, or of how images are decoded or resized
_SUFFIX = ".arrays"
_ABANDONED = 24 * 3600  # seconds after which a file that was never renamed has no writer any more


def entry(folder: str, name: str, key: Any) -> Path:
    """Returns the path of an entry.

    Args:
      folder: of the cache.
      name: of the dataset and split, for those who look into the folder.
      key: JSON of everything that decides the contents.
    """
    digest = hashlib.sha256(json.dumps([_FORMAT, key], sort_keys=True).encode()).hexdigest()[:24]
    readable = re.sub(r"[^\w.-]+", "-", name).strip("-.")[-60:]
    return Path(folder).expanduser() / f"{readable}-{digest}{_SUFFIX}"


def load(path: Path) -> dict[str, np.ndarray] | None:
    """Maps an entry into memory, read-only: nothing is read before it is used.

    Returns:
      The arrays that were saved; None if there are none, or what is there isn't whole.
    """
    try:
        with open(path, "rb") as file:
            names = json.loads(file.readline())
            arrays = {}
            for name in names:
                start = _aligned(file.tell())
                file.seek(start)
                version = np.lib.format.read_magic(file)
                if version != (1, 0):
                    return None
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                offset = file.tell()
                if np.prod(shape) == 0:
                    arrays[name] = np.empty(shape, dtype)
                else:
                    # Fails where the file is shorter than it should be.
                    arrays[name] = np.memmap(path, dtype, "r", offset, shape)
                file.seek(offset + arrays[name].nbytes)
        with contextlib.suppress(OSError):
            os.utime(path)  # used just now
        return arrays
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logging.warning("the cache entry %s can't be read (%s): everything is decoded again", path, error)
        return None


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes an entry. Where that is impossible (a full disk, a folder that can't be written) a warning says so.

    Args:
      path: from `entry`.
      arrays: C-contiguous, of plain types.
    """
    size = sum(array.nbytes for array in arrays.values())
    if size > LARGEST:
        logging.info("not cached on disk: %.1f GB are more than %.0f", size / 1e9, LARGEST / 1e9)
        return
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_room(path.parent, size)
        descriptor, temporary = tempfile.mkstemp(suffix=".tmp", prefix="writing-", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps(list(arrays)).encode() + b"\n")
            for array in arrays.values():
                file.write(b"\0" * (_aligned(file.tell()) - file.tell()))
                np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())  # a machine that fails after the renaming must not leave zeros under the name
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        logging.warning("the cache in %s can't be written (%s): the next start decodes again", path.parent, reason)
        if temporary:
            with contextlib.suppress(OSError):
                os.remove(temporary)


def _make_room(folder: Path, size: int) -> None:
    """Removes what was not used for longest until `size` bytes more are within the limit, and what a kill has left."""
    stats = {}
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process does the same
            if path.suffix == ".tmp" and path.stat().st_mtime < time.time() - _ABANDONED:
                path.unlink()
            elif path.suffix == _SUFFIX:
                stats[path] = path.stat()
    total = size + sum(stat.st_size for stat in stats.values())
    for path, stat in sorted(stats.items(), key=lambda item: item[1].st_mtime):
        if total <= LIMIT:
            return
        with contextlib.suppress(OSError):
            path.unlink()  # whoever has it mapped keeps it
        total -= stat.st_size


def _aligned(offset: int) -> int:
    return -(-offset // 64) * 64  # as numpy wants its headers, so that the data behind them is aligned too
