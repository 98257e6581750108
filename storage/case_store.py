"""The arrays of a case: sharded Zarr 3, written in units that own whole shards.

The invariant: a `WriteUnit` owns every byte of its shard, and a shard is written by its unit alone,
in one go.  Ownership is the precondition of both repair and resume: a shard that is torn, or was
made from other inputs, can be thrown away and written again without asking anyone else.

What is done is marked beside the arrays, `<case>/progress/<array>/<unit>.json`, never inside them.
A unit is written in this order, and a kill between any two steps leaves a unit that is not intact:
1. its marker is removed (from here on nobody relies on the shard),
2. the shard is written, anew and whole,
3. the marker is written, with the fingerprint of the inputs and the size and hash of the shard.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pipeline.errors import SmearflowError
from storage.fingerprint import fingerprint
from storage.store import Store, check_key

log = logging.getLogger("smearflow")

# zstd 3 with bit shuffle: measured on real cell patches, it writes 724 patches/s (lz4: 1,440) and
# takes a quarter less room than lz4.  A case writes some 2,000 patches, so lz4 would win 1.4 s a case
# and cost 27 % more disk for every night that is kept.
_CODEC = {"cname": "zstd", "clevel": 3, "shuffle": "bitshuffle"}


_GROUP = b'{"attributes": {}, "zarr_format": 3, "node_type": "group"}\n'


class ArrayMissing(SmearflowError, LookupError):
    """Rows of an array were asked for that are not there, or not whole."""


class Layout(Protocol):
    """What the store has to know of the patch layout."""

    @property
    def chunk(self) -> int: ...
    @property
    def shard(self) -> int: ...
    @property
    def pixel_size_um(self) -> float: ...


@dataclass(frozen=True)
class WriteUnit:
    """Rows [start, stop) of an array: exactly the rows of one shard, clipped to the array's end."""

    array: str
    index: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


def plan_units(array: str, n_rows: int, shard: int) -> list[WriteUnit]:
    """The units of an array of `n_rows` rows, each one shard of `shard` rows; together every row once."""
    if n_rows < 0 or shard < 1:
        raise ValueError(f"{n_rows} rows in shards of {shard} cannot be planned")
    return [
        WriteUnit(array, i, start, min(start + shard, n_rows))
        for i, start in enumerate(range(0, n_rows, shard))
    ]


def shard_rows(layout: Layout) -> int:
    """Rows of a shard: the settings' figure rounded up to whole chunks, as Zarr demands."""
    return -(-layout.shard // layout.chunk) * layout.chunk


class CaseStore:
    """The arrays of one case, row i of every array being cell i; cheap to open anew in every worker."""

    def __init__(self, store: Store, case_id: str) -> None:
        self.store, self.case_id = store, check_key(case_id)
        self._zarr_store: Any = None

    def _zarr(self) -> Any:
        if self._zarr_store is None:
            self._zarr_store = self.store.zarr_store(self.case_id)
        return self._zarr_store

    def _key(self, key: str) -> str:
        return f"{self.case_id}/{key}"

    def _array_key(self, name: str) -> str:
        return self._key(f"case.zarr/{name}")

    def _metadata(self, name: str) -> dict[str, Any] | None:
        """zarr.json of an array, or None where there is none or it is torn."""
        try:
            document = json.loads(self.store.read_bytes(f"{self._array_key(name)}/zarr.json"))
        except (FileNotFoundError, ValueError):
            return None
        return document if isinstance(document, dict) else None

    def cell_ids(self, name: str) -> list[str]:
        """The cell of each row."""
        return list(self.attributes(name)["cell_ids"])

    def has_array(self, name: str) -> bool:
        return self._metadata(name) is not None

    def names(self) -> list[str]:
        """Every array of patches or virtual images, `patches/<size>/<modality>`, `virtual/<model>/<kind>`."""
        return [
            f"{group}/{middle}/{name}"
            for group in ("patches", "virtual")
            for middle in self.store.list(self._key(f"case.zarr/{group}"))
            if middle != "zarr.json"
            for name in self.store.list(self._key(f"case.zarr/{group}/{middle}"))
            if name != "zarr.json"
        ]

    def drop(self, name: str) -> None:
        """Remove an array with its progress, and the group above it where that is empty now."""
        self.store.delete(self._key(f"progress/{name}"))
        self.store.delete(self._array_key(name))
        for key in (self._key(f"progress/{name}"), self._array_key(name)):
            above = key.rsplit("/", 1)[0]
            if set(self.store.list(above)) <= {"zarr.json"}:
                self.store.delete(above)

    def prune(self, keep: set[str], cell_ids: Sequence[str]) -> list[str]:
        """Drop the arrays of an earlier state of the case: patches that are not in `keep`, and whatever has
        other cells.  Returns their names."""
        stale = [
            name
            for name in self.names()
            if (name.startswith("patches/") and name not in keep)
            or not self.has_array(name)
            or self.cell_ids(name) != list(cell_ids)
        ]
        for name in stale:
            self.drop(name)
        return stale

    def mark_of(self, name: str) -> str | None:
        """The fingerprint that an array was made for, or None where there is no array."""
        document = self._metadata(name)
        return None if document is None else document.get("attributes", {}).get("fingerprint")

    def attributes(self, name: str) -> dict[str, Any]:
        """What stands with an array: pixel_size_um, cell_ids, fingerprint, and what its maker added."""
        document = self._metadata(name)
        if document is None:
            raise ArrayMissing(
                f"{self.store.url_of(self._array_key(name))}: there is no such array; run the case."
            )
        found: dict[str, Any] = document.get("attributes", {})
        return found

    def ensure_array(
        self,
        name: str,
        shape: tuple[int, ...],
        layout: Layout,
        mark: str,
        cell_ids: Sequence[str],
        *,
        pixel_size_um: float | None = None,
        dtype: str = "uint8",
        attributes: dict[str, Any] | None = None,
    ) -> bool:
        """Make an array (N, …) where it is not there as wanted; returns whether it was made.

        `pixel_size_um` is that of its images, None: the patches'.

        An array of another shape, layout or `mark` is removed with its progress, so no row of an
        earlier set of cells survives under a new cell's number.  To be called by the one process that
        runs the case, before units are handed out.
        """
        if len(cell_ids) != shape[0]:
            raise ValueError(f"{name}: {len(cell_ids)} cell ids for {shape[0]} rows")
        wanted = {
            **(attributes or {}),
            "pixel_size_um": layout.pixel_size_um if pixel_size_um is None else pixel_size_um,
            "cell_ids": list(cell_ids),
            "fingerprint": mark,
        }
        self._ensure_groups(name)
        rows = shard_rows(layout)
        wanted["layout"] = fingerprint(list(shape), dtype, layout.chunk, rows, _CODEC)
        document = self._metadata(name)
        if document is not None and document.get("attributes") == json.loads(json.dumps(wanted)):
            return False
        # Progress goes first: an array must never be newer than what is said of it.
        self.store.delete(self._key(f"progress/{name}"))
        self.store.delete(self._array_key(name))
        with self.store.naming_a_full_disk():
            self._create(name, shape, dtype, int(layout.chunk), rows, wanted)
        return True

    def _group_keys(self, name: str) -> list[str]:
        parts = name.split("/")[:-1]
        return [
            self._key("/".join(["case.zarr", *parts[:depth], "zarr.json"])) for depth in range(len(parts) + 1)
        ]

    def groups_are_whole(self, name: str) -> bool:
        """Whether every group above an array is there, so that other readers can walk the store."""
        return all(self.store.size(key) == len(_GROUP) for key in self._group_keys(name))

    def _ensure_groups(self, name: str) -> None:
        for key in self._group_keys(name):
            if self.store.size(key) != len(_GROUP):
                self.store.write_bytes(key, _GROUP)

    def _create(
        self, name: str, shape: tuple[int, ...], dtype: str, chunk: int, rows: int, attributes: dict[str, Any]
    ) -> None:
        import zarr
        from zarr.codecs import BloscCodec

        rest = tuple(shape[1:])
        zarr.create_array(
            self._zarr(),
            name=name,
            shape=shape,
            dtype=dtype,
            chunks=(chunk, *rest),
            shards=(rows, *rest),
            compressors=BloscCodec(**_CODEC),
            fill_value=0,
            dimension_names=("cell", "y", "x", "channel")[: len(shape)],
            attributes=attributes,
        )

    def _open(self, name: str) -> Any:
        import zarr

        check_key(name)
        if not self.has_array(name):
            raise ArrayMissing(
                f"{self.store.url_of(self._array_key(name))}: there is no such array; run the case."
            )
        return zarr.open_array(self._zarr(), path=name, mode="r+")

    def _shard_key(self, name: str, index: int, dimensions: int) -> str:
        return f"{self._array_key(name)}/c/{index}" + "/0" * (dimensions - 1)

    def write_unit(
        self,
        name: str,
        unit_index: int,
        first_row: int,
        block: np.ndarray,
        n_rows: int,
        mark: str,
        layout: Layout,
    ) -> None:
        """Write the rows of one unit; `block` holds them all, (rows, …).  May be repeated at any time.

        Raises ValueError where the block is not exactly the unit's rows.
        """
        units = plan_units(name, n_rows, shard_rows(layout))
        if not 0 <= unit_index < len(units):
            raise ValueError(f"{name}: there is no unit {unit_index} of {len(units)}")
        unit = units[unit_index]
        if (first_row, block.shape[0]) != (unit.start, unit.rows):
            raise ValueError(
                f"{name}: unit {unit_index} owns rows {unit.start} to {unit.stop}, not {first_row} to "
                f"{first_row + block.shape[0]}"
            )
        array = self._open(name)
        if tuple(array.shape) != (n_rows, *block.shape[1:]) or array.dtype != block.dtype:
            raise ValueError(
                f"{name}: a block of {block.shape} {block.dtype} does not fit an array of "
                f"{array.shape} {array.dtype}"
            )
        marker = self._marker_key(name, unit_index)
        shard = self._shard_key(name, unit_index, array.ndim)
        self.store.delete(marker)
        # A torn shard would be read back by Zarr, to be completed, and fail; it has to go first.
        self.store.delete(shard)
        with self.store.naming_a_full_disk():
            array[unit.start : unit.stop] = block
        # Zarr keeps no file for a shard of zeros; its marker says 0 bytes, and that is whole.
        written = self.store.read_bytes(shard) if self.store.exists(shard) else b""
        self.store.write_json(
            marker,
            {
                "fingerprint": mark,
                "array": name,
                "start": unit.start,
                "stop": unit.stop,
                "bytes": len(written),
                "sha256": hashlib.sha256(written).hexdigest(),
            },
        )

    def _marker_key(self, name: str, unit_index: int) -> str:
        return self._key(f"progress/{name}/{unit_index:05d}.json")

    def _marker(self, name: str, unit_index: int) -> dict[str, Any] | None:
        try:
            document = self.store.read_json(self._marker_key(name, unit_index))
        except (FileNotFoundError, ValueError):
            return None
        return document if isinstance(document, dict) else None

    def unit_is_intact(self, name: str, unit_index: int, mark: str, *, deep: bool = False) -> bool:
        """Whether a unit was written from these inputs and its shard is still there, whole.

        The shard's size is compared; with `deep` its hash as well (bit rot, or a file of another store
        copied over).
        """
        marker = self._marker(name, unit_index)
        if marker is None or marker.get("fingerprint") != mark:
            return False
        document = self._metadata(name)
        if document is None or document.get("attributes", {}).get("fingerprint") != mark:
            return False
        shard = self._shard_key(name, unit_index, len(document.get("shape", ())))
        size = self.store.size(shard) or 0
        if size != marker.get("bytes"):
            return False
        return (
            not deep
            or not size
            or hashlib.sha256(self.store.read_bytes(shard)).hexdigest() == marker.get("sha256")
        )

    def pending(self, name: str, n_rows: int, mark: str, layout: Layout) -> tuple[WriteUnit, ...]:
        """The units that have to be written."""
        units = plan_units(name, n_rows, shard_rows(layout))
        return tuple(u for u in units if not self.unit_is_intact(name, u.index, mark))

    def read_rows(self, name: str, first: int, last: int) -> np.ndarray:
        """Rows [first, last) of an array.

        Raises ArrayMissing where a shard of them is missing or torn: Zarr alone would return zeros,
        and a black patch would be classified as a cell.
        """
        array = self._open(name)
        if not 0 <= first <= last <= array.shape[0]:
            raise IndexError(f"{name} has {array.shape[0]} rows, not {first} to {last}")
        if first == last:
            return np.empty((0, *array.shape[1:]), array.dtype)
        rows = array.shards[0]
        for index in range(first // rows, (last - 1) // rows + 1):
            marker = self._marker(name, index)
            shard = self._shard_key(name, index, array.ndim)
            if marker is None or (self.store.size(shard) or 0) != marker.get("bytes"):
                raise ArrayMissing(
                    f"{self.store.url_of(shard)} is missing or torn; run the case again to write it anew."
                )
        return np.asarray(array[first:last])

    def read_row(self, name: str, row: int) -> np.ndarray:
        """One row; a chunk, not a shard, is decoded for it."""
        return self.read_rows(name, row, row + 1)[0]
