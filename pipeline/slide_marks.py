"""Whether a whole slide is still the one that intake hashed: its files' size, time and inode.

A slide is many gigabytes and is not hashed again for every field.  Its mark tells within one run, on the
cheap, that nothing happened to it; where the mark differs (another file, but also a copy, or a share that
numbers its files anew) the hash decides.  A mark says nothing of the contents, so it is no part of any
fingerprint, and is not kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import InputChanged, UnreadableImage, is_of_machine
from pipeline.intake_files import inside, sha256_slide
from pipeline.types import SlideMark

if TYPE_CHECKING:
    import numpy as np

    from pipeline.intake_manifest import Declaration
    from pipeline.types import FieldImage

Read = TypeVar("Read")

# What this process hashed again: mark and hash by path.
_hashed: dict[Path, tuple[SlideMark, str]] = {}


def mark_of(path: Path) -> SlideMark:
    """(name, bytes, time of change in ns, inode) of a slide's file and of those beside it that belong to it.

    Raises OSError where one is gone, UnreadableImage where one lies outside the slide's folder.
    """
    from storage.slides_companions import companions

    found = []
    for file in (path, *companions(path)):
        stat = file.stat()
        found.append((file.name, stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return tuple(found)


def slide_marks(case_dir: Path | str, declared: Declaration) -> dict[str, SlideMark]:
    """The marks of a case's whole slides by file, to be taken before they are hashed.

    What has none, since it is missing or is none of the case's files, is for intake to name.
    """
    marks = {}
    for source in declared.sources:
        if source.kind != "slide":
            continue
        try:
            marks[source.file] = mark_of(inside(Path(case_dir).absolute(), source.file))
        except (OSError, ValueError) as error:
            if is_of_machine(error):
                raise
    return marks


def _now(path: Path, file: str) -> SlideMark:
    try:
        return mark_of(path)
    except OSError as error:
        if is_of_machine(error):
            raise
        raise InputChanged(
            f"{file} cannot be read any more ({error}); copy it again and run the case again."
        ) from error


def _changed(file: str) -> InputChanged:
    return InputChanged(f"{file} was changed while the case was read; run the case again.")


def while_same(path: Path, file: str, before: SlideMark, read: Callable[[], Read]) -> Read:
    """What `read` finds of a slide, which had the mark `before` and has it afterwards.

    Raises InputChanged where the slide is gone or another one by then, so that an error, too, is one of the
    slide that was meant.  An error of a slide that is there is raised when it comes twice: one that was gone
    for a moment is the same again.  Errors of the machine pass as they are.
    """
    for last in (False, True):
        try:
            found = read()
        except OSError as error:
            cause = error.__cause__
            if is_of_machine(error) or isinstance(error, InputChanged):
                raise
            if cause is not None and is_of_machine(cause):
                raise cause from None
            if _now(path, file) != before:
                raise _changed(file) from error
            if last:
                raise
        else:
            if _now(path, file) != before:
                raise _changed(file)
            return found
    raise AssertionError("unreachable")


def read_slide_field(path: Path, image: FieldImage) -> np.ndarray:
    """(H, W, 3) uint8 of a field of a whole slide.

    Raises InputChanged where the slide is gone or is not the one that intake hashed, UnreadableImage where
    that one cannot be decoded.
    """
    from storage.slides import SlideReader

    region = image.region
    if region is None:
        raise UnreadableImage(f"{image.file}: {image.slide}/{image.field} is no field of a whole slide.")
    now = _now(path, image.file)
    if now != image.as_seen and _hashed.get(path) != (now, image.sha256):
        if while_same(path, image.file, now, lambda: sha256_slide(path)) != image.sha256:
            raise _changed(image.file)
        _hashed[path] = (now, image.sha256)

    def read() -> np.ndarray:
        with SlideReader(path) as reader:
            return reader.read_region_px(
                region.x_px, region.y_px, region.width_px, region.height_px, image.width_px, image.height_px
            )

    return while_same(path, image.file, now, read)
