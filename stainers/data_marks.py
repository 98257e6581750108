"""The marks of a training's data and recipe: a run is resumed with its own alone.

That of data is taken of what is learned from, after reading: a folder may be moved, and a label or a pixel
that changes is another data set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from storage.fingerprint import array_mark, fingerprint

if TYPE_CHECKING:
    from stainers.cell_sets import Cells, StainSet
    from stainers.data import Smear
    from stainers.domain_sets import DomainCell, DomainSet


def mark_of_smears(smears: Sequence[Smear]) -> str:
    """sha256 of the names, stains, parts, pictures and boxes of smears in their order."""
    return fingerprint(
        *(
            (
                s.file,
                s.domain,
                s.split,
                array_mark(s.image),
                array_mark(s.leukocytes),
                array_mark(s.red_cells),
            )
            for s in smears
        )
    )


def mark_of_set(data: StainSet) -> str:
    """sha256 of the names, classes, parts and pictures of both domains in their order."""

    def of(cells: Cells) -> tuple[object, ...]:
        pictures = [array_mark(i) for i in cells.images]
        return cells.domain, cells.modality, pictures, cells.labels, cells.groups, cells.splits

    return fingerprint(of(data.source), of(data.target), data.paired)


def mark_of_domains(*sets: DomainSet) -> str:
    """sha256 of the pictures, classes, masks and partners of sets of several domains in their order."""

    def of(cell: DomainCell) -> tuple[object, ...]:
        mask = None if cell.mask is None else array_mark(cell.mask)
        return array_mark(cell.picture), cell.domain, cell.label, mask, cell.partner

    return fingerprint(*((s.domains, s.classes, [of(c) for c in s.cells]) for s in sets))


def mark_of_recipe(recipe: Any) -> str:
    """What a recipe (a dataclass of values and of dataclasses) says.

    A key that recipes got later is a field with `repr=False`: where it is at its default it is not in the
    mark, so that a run that was begun before the key was there goes on.
    """
    return repr(recipe) + "".join(f" {key}={value!r}" for key, value in _unsaid(recipe))


def _unsaid(part: Any) -> Iterator[tuple[str, Any]]:
    for f in fields(part):
        value = getattr(part, f.name)
        if is_dataclass(value):
            yield from _unsaid(value)
        elif not f.repr and value != f.default:
            yield f.name, value
