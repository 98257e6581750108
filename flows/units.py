"""The cells of one write unit (whole shards of a case's arrays), as a worker is handed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.settings import Settings
from pipeline.types import Cell

if TYPE_CHECKING:
    from flows.records import CaseRun
    from storage.case_store import CaseStore


@dataclass(frozen=True)
class CellUnit:
    """Plain values from which a worker finds a unit's rows in the store; it goes over the wire as it is.

    `cells` are those of the unit alone, `first_row` the row of the first in the case's arrays of `n_cells`.
    """

    store_url: str
    case_id: str
    index: int
    first_row: int
    n_cells: int
    cells: list[Cell]
    settings: Settings

    @property
    def key(self) -> str:
        """What the unit's record is called."""
        return f"unit-{self.index:05d}"

    @property
    def end_row(self) -> int:
        return self.first_row + len(self.cells)

    def store(self) -> CaseStore:
        from storage.case_store import CaseStore
        from storage.store import Store

        return CaseStore(Store(self.store_url), self.case_id)

    def write(self, array: str, block: np.ndarray, mark: str) -> None:
        """Write the unit's rows of an array, (len(cells), …), under the mark of what they were made of."""
        layout = self.settings.patches
        self.store().write_unit(array, self.index, self.first_row, block, self.n_cells, mark, layout)

    def patches(self) -> np.ndarray:
        """(N, S, S, 3) uint8: the real stain of each cell where there is one, else its virtual image."""
        from storage.registry import virtual_array

        size, store = self.settings.classification.patch_px, self.store()
        stained = np.array([c.modality == "brightfield" for c in self.cells])
        out = np.zeros((len(self.cells), size, size, 3), np.uint8)
        if stained.any():
            out[stained] = store.read_rows(f"patches/{size}/brightfield", self.first_row, self.end_row)[
                stained
            ]
        if not stained.all():
            name = virtual_array(self.settings.staining.dic_stainer, "image")
            out[~stained] = store.read_rows(name, self.first_row, self.end_row)[~stained]
        return out


def plan(store_url: str, case_id: str, found: Sequence[Cell], settings: Settings) -> list[CellUnit]:
    """A case's cells by write unit, in their order."""
    from storage.case_store import plan_units, shard_rows

    return [
        CellUnit(store_url, case_id, u.index, u.start, len(found), list(found[u.start : u.stop]), settings)
        for u in plan_units("patches", len(found), shard_rows(settings.patches))
    ]


def units_of(run: CaseRun, found: Sequence[Cell]) -> list[CellUnit]:
    """`plan` for the case of a run, with its settings."""
    return plan(run.store.url, run.case_id, found, run.settings)
