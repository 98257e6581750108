"""The arrays of a case: `case.zarr`, Zarr 3, sharded, row i of every array being cell i.

The write unit is one shard.  A unit is owned by one task, which writes it once and whole; ownership is
the precondition for both repair and resume, since nobody else can have left half of it.  Beside the
array (never inside it) each unit has a marker, `<case>/progress/<array>/<unit>.json`, with the
fingerprint of what was written and the shard's size.  The order is: unlink the marker, write the
shard, write the marker; so a marker without its shard, or with a torn one, can only come from outside
and is found by the size.

Layout after LEADS: chunks of 16 patches, since a reader wants a screenful and not a shard; zstd 3 with
bitshuffle, since it reads and writes faster than zstd alone at nearly the same size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from storage.store import Store

FORMAT = 1


class Layout(Protocol):
    """What the store has to know of the patch settings."""

    @property
    def chunk(self) -> int: ...
    @property
    def shard(self) -> int: ...
    @property
    def pixel_size_um(self) -> float: ...


@dataclass(frozen=True)
class WriteUnit:
    """Rows [start, stop) of an array: exactly one shard, owned by exactly one task."""

    index: int
    start: int
    stop: int


def plan_units(n_rows: int, shard: int) -> list[WriteUnit]:
    """The units that cover `n_rows` rows, in order, without overlap or gap."""
    if n_rows < 0 or shard < 1:
        raise ValueError(f"{n_rows} rows in shards of {shard} cannot be planned")
    return [
        WriteUnit(index, start, min(start + shard, n_rows))
        for index, start in enumerate(range(0, n_rows, shard))
    ]


def shard_rows(layout: Layout) -> int:
    """Rows a shard: the settings' figure, rounded up to whole chunks, as Zarr demands."""
    return -(-layout.shard // layout.chunk) * layout.chunk


class CaseStore:
    """The arrays of one case; cheap to open anew in every worker."""

    def __init__(self, store: Store, case_id: str) -> None:
        self._store, self._case_id = store, case_id

    def _open(self, name: str) -> Any:
        import zarr

        return zarr.open_array(store=self._store.zarr_store(self._case_id), path=name, mode="r+")

    def _marker_key(self, name: str, unit: int) -> str:
        return f"{self._case_id}/progress/{name}/{unit:05d}.json"

    def _shard_key(self, name: str, unit: int) -> str:
        return f"{self._case_id}/case.zarr/{name}/c/{unit}/0/0/0"

    def ensure_array(
        self, name: str, shape: tuple[int, int, int, int], layout: Layout, mark: str, cell_ids: Sequence[str]
    ) -> None:
        """Make the array, or keep the one that is there for the same fingerprint `mark`.

        An array of another fingerprint is dropped with its markers: its rows may be other cells.
        """
        import zarr
        from zarr.codecs import BloscCodec

        shape = (int(shape[0]), int(shape[1]), int(shape[2]), int(shape[3]))
        if self._is_current(name, shape, mark):
            return
        self._store.delete(f"{self._case_id}/progress/{name}")
        self._store.delete(f"{self._case_id}/case.zarr/{name}")
        rows = shard_rows(layout)
        zarr.create_array(
            store=self._store.zarr_store(self._case_id),
            name=name,
            shape=shape,
            dtype="uint8",
            chunks=(layout.chunk, *shape[1:]),
            shards=(rows, *shape[1:]),
            compressors=BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"),
            fill_value=0,
            zarr_format=3,
            dimension_names=("cell", "y", "x", "channel"),
            attributes={
                "smearflow": {
                    "format": FORMAT,
                    "mark": mark,
                    "pixel_size_um": layout.pixel_size_um,
                    "cell_ids": list(cell_ids),
                }
            },
        )

    def _is_current(self, name: str, shape: tuple[int, ...], mark: str) -> bool:
        if not self._store.exists(f"{self._case_id}/case.zarr/{name}/zarr.json"):
            return False
        try:
            array = self._open(name)
            kept = array.attrs["smearflow"]
        except (ValueError, KeyError, TypeError, OSError):
            return False  # metadata torn by a crash: the array is made anew
        return tuple(array.shape) == shape and kept.get("mark") == mark

    def write_unit(
        self,
        name: str,
        unit: int,
        first_row: int,
        block: npt.NDArray[np.uint8],
        n_rows: int,
        mark: str,
        layout: Layout,
    ) -> None:
        """Write rows [first_row, first_row + len(block)), which must be the whole of shard `unit`."""
        rows = shard_rows(layout)
        expected = (unit * rows, min((unit + 1) * rows, n_rows))
        if (first_row, first_row + len(block)) != expected:
            raise ValueError(
                f"{name}: rows {first_row} to {first_row + len(block)} are not shard {unit} of {n_rows} rows "
                f"(rows {expected[0]} to {expected[1]}); a unit writes its whole shard and no other."
            )
        marker = self._marker_key(name, unit)
        self._store.delete(marker)
        self._open(name)[first_row : first_row + len(block)] = block
        # A shard of zeros alone is not stored by Zarr: its size is None, now and later.
        size = self._store.size(self._shard_key(name, unit))
        self._store.write_json(marker, {"mark": mark, "rows": len(block), "bytes": size})

    def unit_is_intact(self, name: str, unit: int, mark: str) -> bool:
        """Whether a unit was finished from `mark` and its shard has the size it was left with."""
        marker = self._marker_key(name, unit)
        if not self._store.exists(marker):
            return False
        try:
            kept = self._store.read_json(marker)
            return bool(
                kept["mark"] == mark and kept["bytes"] == self._store.size(self._shard_key(name, unit))
            )
        except (ValueError, KeyError, TypeError):
            return False

    def read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Rows [start, stop) as (N, S, S, C) uint8."""
        found: npt.NDArray[np.uint8] = np.asarray(self._open(name)[start:stop])
        return found

    def cell_ids(self, name: str) -> list[str]:
        """The cell of each row."""
        ids: list[str] = list(self._open(name).attrs["smearflow"]["cell_ids"])
        return ids
