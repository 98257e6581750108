"""What a case folder declares: its manifest, its case.yaml, and which files they name.

Everything here refuses the whole case with one sentence (BadInput): a manifest that cannot be
understood may be about other cells than the person thinks.  No image is opened.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from pipeline.errors import BadInput, shown
from pipeline.intake_files import check_case_id, inside, read_small, sha256_slide
from pipeline.intake_yaml import read_case_yaml
from pipeline.settings import FieldPosition, IntakeSettings
from pipeline.types import DeclaredImage, Modality, Problem, Spec, Specimen, Stain
from storage.fingerprint import sha256_of
from storage.images_info import check_pixel_size
from storage.tables import Row, parse_table

MANIFEST = "manifest.csv"
REQUIRED = ("slide", "field", "modality", "stain", "file")
OPTIONAL = ("pixel_size_um", "x_um", "y_um")
COLUMNS = (*REQUIRED, *OPTIONAL)
MAX_MANIFEST_BYTES, MAX_ROWS = 16 << 20, 100_000
MAX_POSITION_UM = 1e6

# Names go into keys, pages and tables: letters of any script, digits and harmless punctuation.
_NAME = re.compile(r"\w[\w .()#+-]{0,63}")


class Source(Spec):
    """One file that the case declares, and what is declared of it."""

    slide: str
    field: str  # may be empty where a whole slide becomes many fields
    modality: Modality
    stain: Stain
    file: str
    kind: Literal["field", "slide"]
    line: int  # of the manifest; 0 where there is none
    manifest_pixel_size_um: float | None = None
    given_pixel_size_um: float | None = None  # from the command line, which overrides the manifest
    x_um: float | None = None
    y_um: float | None = None
    positions: tuple[FieldPosition, ...] = ()  # of a whole slide: all that slide_fields.csv names

    @property
    def names(self) -> tuple[str, ...]:
        """What tells this source from the others of the case."""
        return (self.slide, self.field, self.modality, self.stain, self.file)

    def hash_file(self, case_dir: Path) -> str:
        """sha256 of the file as it is now; a word where it is missing or cannot be read."""
        try:
            path = inside(Path(case_dir), self.file)
            return sha256_slide(path) if self.kind == "slide" else sha256_of(path)
        except OSError as error:
            return type(error).__name__
        except BadInput:
            return "outside"


class Declaration(Spec):
    """A case folder as declared: its sources, and what of the declaration had to be left out."""

    case_id: str
    specimen: Specimen | None
    collected: str | None
    sources: tuple[Source, ...]
    problems: tuple[Problem, ...] = ()
    declared: tuple[DeclaredImage, ...]  # of every row, left out or not


def read_manifest(case_dir: Path) -> list[Row] | None:
    """The rows of manifest.csv, or None where there is none."""
    path = case_dir / MANIFEST
    data = read_small(case_dir, MANIFEST, MAX_MANIFEST_BYTES)
    if data is None:
        return None
    rows = parse_table(path, data, REQUIRED, optional=OPTIONAL, closed=True, max_rows=MAX_ROWS)
    if not rows:
        raise BadInput(f"{path} has no rows; write one for each image.")
    return rows


def _one_of(where: str, column: str, value: str, allowed: tuple[str, ...]) -> Any:
    for name in allowed:
        if value.lower() == name.lower():
            return name
    raise BadInput(f"{where}: the {column} '{shown(value)}' is not known; use one of {', '.join(allowed)}.")


def _source(case_dir: Path, row: Row, settings: IntakeSettings, given_um: float | None) -> Source:
    from storage.slides import is_slide

    where = row.where
    modality = _one_of(where, "modality", row["modality"], get_args(Modality))
    stain = _one_of(where, "stain", row["stain"], get_args(Stain))
    file = row["file"].replace("\\", "/")
    if not file:
        raise BadInput(f"{where}: no file is named; name the image relative to the case folder.")
    try:
        path = inside(case_dir, file)
    except BadInput as error:
        raise BadInput(f"{where}: {str(error).removeprefix(f'{case_dir}: ')}") from error
    file = PurePosixPath(file).as_posix()
    kind: Literal["field", "slide"] = "field"
    if path.is_file() and is_slide(path, max_pixels=settings.max_image_pixels):
        kind = "slide"
    for column in ("slide", "field"):
        name = row[column]
        needed = column == "slide" or kind == "field" or name
        if needed and not _NAME.fullmatch(name):
            raise BadInput(
                f"{where}: '{shown(name)}' is no {column} name; use 1 to 64 letters, digits, spaces, .()#+-_ "
                "and begin with a letter or digit."
            )
    size, x_um, y_um = (row.number(c, "a number of micrometres") for c in OPTIONAL)
    if (x_um is None) != (y_um is None):
        raise BadInput(f"{where}: a stage position needs both x_um and y_um; give both or neither.")
    if any(v is not None and abs(v) > MAX_POSITION_UM for v in (x_um, y_um)):
        raise BadInput(f"{where}: a stage position beyond a metre cannot be right; give it in micrometres.")
    return Source(
        slide=row["slide"],
        field=row["field"],
        modality=modality,
        stain=stain,
        file=file,
        kind=kind,
        line=row.line,
        manifest_pixel_size_um=None if size is None else check_pixel_size(where, size),
        given_pixel_size_um=given_um,
        x_um=x_um,
        y_um=y_um,
    )


def _without_manifest(case_dir: Path, settings: IntakeSettings, given_um: float | None) -> Source:
    """The one whole-slide file of a folder without manifest."""
    from storage.slides import is_slide

    slides: list[str] = []
    for path in sorted(case_dir.iterdir()):
        # A link may lead anywhere; where there is no manifest to name it, it is not followed.
        own = path.is_file() and not path.is_symlink() and not path.name.startswith(".")
        if own and is_slide(path, max_pixels=settings.max_image_pixels):
            slides.append(path.name)
    if len(slides) == 1:
        # The file's own name may be a patient's; the slide is not called by it.
        return Source(
            slide="slide-1",
            field="",
            modality="brightfield",
            stain="MGG",
            file=slides[0],
            kind="slide",
            line=0,
            given_pixel_size_um=given_um,
        )
    what = f"{len(slides)} whole-slide files" if slides else "no whole-slide file"
    raise BadInput(
        f"{case_dir}: there is no {MANIFEST} and {what} here; write a {MANIFEST} with the columns "
        f"{','.join(COLUMNS)}."
    )


def _drop_duplicates(sources: list[Source]) -> tuple[list[Source], list[Problem]]:
    """One source for each slide, field, modality and stain.

    The same line twice is used once; two different files for one image leave it out, for no one can
    say which of them is meant.
    """
    by_image: dict[tuple[str, ...], list[Source]] = {}
    for source in sources:
        by_image.setdefault(source.names[:4], []).append(source)
    kept: list[Source] = []
    problems: list[Problem] = []
    for group in by_image.values():
        first = group[0]
        if len(group) == 1:
            kept.append(first)
            continue
        lines = ", ".join(str(s.line) for s in group)
        what = (
            f"{MANIFEST} names {first.modality} {first.stain} of {first.slide}/{first.field} on lines {lines}"
        )
        same = all(s.model_copy(update={"line": first.line}) == first for s in group)
        if same:
            kept.append(first)
            message = f"{what}, with the same file {first.file}: it is used once; remove the repeated lines."
        else:
            files = ", ".join(dict.fromkeys(s.file for s in group))
            message = f"{what}, with different contents ({files}): none is used; keep the right line."
        problems.append(
            Problem(
                code="DUPLICATE_FIELD",
                message=message,
                slide=first.slide,
                field=first.field,
                file=first.file,
                stain=first.stain,
                fatal_for_field=not same,
            )
        )
    return kept, problems


def _with_positions(case_dir: Path, sources: list[Source]) -> list[Source]:
    """The sources, each whole slide with the fields that the folder's slide_fields.csv names on any."""
    from pipeline.slide_positions import POSITIONS_FILE, parse_positions

    data = read_small(case_dir, POSITIONS_FILE, MAX_MANIFEST_BYTES)
    if data is None:
        return sources
    path = case_dir / POSITIONS_FILE
    positions = parse_positions(path, data)
    slides = {s.slide for s in sources if s.kind == "slide"}
    for position in positions:
        if not slides or position.slide not in {None, *slides}:
            what = f"the slide '{position.slide}'" if position.slide and slides else "a whole slide"
            raise BadInput(
                f"{path} names fields of {what}, which the case does not hold; correct or remove it."
            )
    return [s.model_copy(update={"positions": positions}) if s.kind == "slide" else s for s in sources]


def declare(
    case_dir: Path | str, settings: IntakeSettings, *, pixel_size_um: float | None = None
) -> Declaration:
    """What a case folder declares; raises BadInput with one sentence where the case cannot be taken.

    `pixel_size_um` is a person's own figure for the whole case and goes before the manifest's.
    """
    case_dir = Path(case_dir).absolute()
    if not case_dir.is_dir():
        raise BadInput(f"{case_dir}: there is no such case folder; check the path.")
    case_id = check_case_id(case_dir.resolve().name)
    if pixel_size_um is not None:
        check_pixel_size("the pixel size given for the case", pixel_size_um)
    specimen, collected = read_case_yaml(case_dir)
    try:
        rows = read_manifest(case_dir)
        problems: list[Problem] = []
        if rows is None:
            sources = [_without_manifest(case_dir, settings, pixel_size_um)]
            problems.append(
                Problem(
                    code="STAIN_ASSUMED",
                    message=f"There is no {MANIFEST}: {sources[0].file} is taken as MGG brightfield; "
                    f"write a {MANIFEST} to say otherwise.",
                    slide=sources[0].slide,
                    file=sources[0].file,
                    fatal_for_field=False,
                )
            )
        else:
            sources = [_source(case_dir, row, settings, pixel_size_um) for row in rows]
    except OSError as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(
            f"{case_dir} cannot be read ({error.strerror}); check the disk and who may read it."
        ) from error
    declared = dict.fromkeys(
        DeclaredImage(slide=s.slide, field=s.field, modality=s.modality, stain=s.stain) for s in sources
    )
    kept, doubled = _drop_duplicates(_with_positions(case_dir, sources))
    return Declaration(
        case_id=case_id,
        specimen=specimen,
        collected=collected,
        sources=tuple(kept),
        problems=(*problems, *doubled),
        declared=tuple(declared),
    )
