"""Image files: which there are below a folder, and which a path or a pattern names."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from cnn_research.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def image_files(folder: Path, others: list[str] | None = None) -> list[str]:
    """Returns the paths of all images below a folder, relative to it, with "/", folder by folder in order.

    Args:
      folder: to search; links are followed, but not in circles.
      others: to which the names of visible files that aren't images are added.
    """
    found, seen = [], set()
    for top, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(top)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        below = os.path.relpath(top, folder).replace(os.sep, "/")
        for name in sorted(files):
            if name.startswith("."):
                continue
            if name.lower().endswith(EXTENSIONS):
                found.append(name if below == "." else f"{below}/{name}")
            elif others is not None and name not in ("Thumbs.db", "desktop.ini"):
                others.append(name)
    return found


def find_images(where: str | os.PathLike | Sequence[str | os.PathLike]) -> list[str]:
    """Lists image files, each once.

    Args:
        where: one or several of: a file, whatever its name; a folder, of which all images at any depth are taken, by
            their extensions; a pattern such as "images/*.png" or "images/**/*.png", of whose matches likewise.

    Raises:
        UserError: a folder without images, a pattern without matches, or nothing at all is given.
    """
    given = [where] if isinstance(where, str | os.PathLike) else list(where)
    if not given:
        raise UserError("no images are given: name files, folders or patterns such as 'images/*.png'")
    paths = []
    for each in map(os.path.expanduser, map(os.fspath, given)):
        if os.path.isdir(each):
            found = _images_in(each)
            if not found:
                raise UserError(f"there are no images in the folder {each} ({' '.join(EXTENSIONS)})")
        elif glob.has_magic(each) and not os.path.exists(each):
            matches = sorted(glob.glob(each, recursive=True))
            found = [path for match in matches for path in _images_in(match)]
            if not found:
                raise UserError(f"no image matches {each!r} ({' '.join(EXTENSIONS)})")
        else:
            found = [each]
        paths += found
    return list(dict.fromkeys(paths))


def _images_in(path: str) -> list[str]:
    if os.path.isdir(path):
        return [os.path.join(path, name) for name in image_files(Path(path))]
    return [path] if path.lower().endswith(EXTENSIONS) else []
