"""The files beside a whole-slide file that belong to it: MRXS, VMS / VMU and DICOM are many files.

OpenSlide opens what a slide's own index names.  An index of a hostile or careless hand may name a file
of another case, so names are checked before OpenSlide reads anything, and links are followed no further
than the slide's folder.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import UnreadableImage

_INDEX_LIMIT = 4 << 20
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_FIX = "export the slide again into a folder of its own"


def _bad(path: Path, problem: str) -> UnreadableImage:
    return UnreadableImage(f"{path}: the whole-slide file {problem}; {_FIX}.")


def _named(path: Path, index: Path) -> list[str]:
    """File names that an index in INI form gives; raises UnreadableImage for one that leaves its folder."""
    try:
        if index.stat().st_size > _INDEX_LIMIT:
            raise _bad(path, "has an index of an impossible size")
        text = index.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise _bad(path, "lacks its index") from error
    names = []
    for line in text.splitlines():
        key, _, value = line.partition("=")
        key, value = key.strip(), value.strip()
        if not re.match(r"(INDEXFILE|FILE_\d+|(Image|Map|Optimisation|Macro)\w*)\b", key):
            continue
        if "/" in value or "\\" in value or value == "..":
            raise _bad(path, "names files outside its own folder")
        if value and "." in value:
            names.append(value)
    return names


def _inside(path: Path, folder: Path, file: Path) -> Path:
    try:
        found = file.resolve()
    except (OSError, RuntimeError) as error:
        raise _bad(path, "has a link among its files that leads nowhere") from error
    if not found.is_relative_to(folder.resolve()):
        raise _bad(path, "has a link among its files that leads out of its folder")
    return file


def companions(path: Path) -> tuple[Path, ...]:
    """The other files that OpenSlide would read for a slide, sorted; () for a slide of one file.

    Raises UnreadableImage where one of them lies, or is linked, outside the folder of the slide.
    """
    suffix = path.suffix.lower()
    if suffix == ".mrxs":
        folder = path.with_suffix("")
        if not folder.is_dir():
            return ()
        _inside(path, path.parent, folder)
        named = [_inside(path, folder, folder / n) for n in _named(path, folder / "Slidedat.ini")]
        return tuple(sorted({folder / "Slidedat.ini", *named}))
    if suffix == ".dcm":
        others = [p for p in path.parent.iterdir() if p.is_file() and p.suffix.lower() == ".dcm"]
        return tuple(sorted(_inside(path, path.parent, p) for p in others if p != path))
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
    except OSError:
        return ()
    # OpenSlide knows a Hamamatsu index by its contents, whatever its name.
    text = head[:4] not in _TIFF_MAGIC
    if text and (suffix in (".vms", ".vmu") or re.match(rb"\s*\[[^\]]*(Virtual|Uncompressed)", head)):
        return tuple(sorted(_inside(path, path.parent, path.parent / n) for n in _named(path, path)))
    return ()
