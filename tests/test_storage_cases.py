"""Arrays of a case: units own shards; what is torn, missing or of other inputs is found and written anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.settings import PatchSettings
from storage.case_store import ArrayMissing, CaseStore, plan_units, shard_rows
from storage.store import Store

LAYOUT = PatchSettings(chunk=2, shard=4)
NAME = "patches/8/dic"
ROWS = np.random.default_rng(3).integers(1, 255, (10, 8, 8, 1), dtype=np.uint8)
IDS = [f"s/F1/{i:04d}" for i in range(len(ROWS))]


@pytest.fixture(params=["local", "memory"])
def cases(request: pytest.FixtureRequest, tmp_path: Path) -> CaseStore:
    url = str(tmp_path / "lab") if request.param == "local" else f"memory://{tmp_path.name}/lab"
    return CaseStore(Store(url), "C1")


def _write(cases: CaseStore, mark: str = "m", rows: np.ndarray = ROWS, units: set[int] | None = None) -> None:
    cases.ensure_array(NAME, rows.shape, LAYOUT, mark, IDS[: len(rows)])
    for unit in plan_units(NAME, len(rows), shard_rows(LAYOUT)):
        if units is None or unit.index in units:
            block = rows[unit.start : unit.stop]
            cases.write_unit(NAME, unit.index, unit.start, block, len(rows), mark, LAYOUT)


def _shard(index: int) -> str:
    return f"C1/case.zarr/{NAME}/c/{index}/0/0/0"


def _pending(cases: CaseStore, mark: str = "m") -> list[int]:
    return [u.index for u in cases.pending(NAME, len(ROWS), mark, LAYOUT)]


@given(n=st.integers(0, 2000), shard=st.integers(1, 300))
def test_units_cover_every_row_exactly_once(n: int, shard: int) -> None:
    rows = [r for u in plan_units("a", n, shard) for r in range(u.start, u.stop)]
    assert rows == list(range(n))


def test_rows_come_back_with_what_is_known_of_them(cases: CaseStore) -> None:
    _write(cases)
    np.testing.assert_array_equal(cases.read_rows(NAME, 0, 10), ROWS)
    np.testing.assert_array_equal(cases.read_rows(NAME, 3, 9), ROWS[3:9])
    np.testing.assert_array_equal(cases.read_row(NAME, 9), ROWS[9])
    assert cases.cell_ids(NAME) == IDS
    assert cases.attributes(NAME)["pixel_size_um"] == LAYOUT.pixel_size_um
    assert _pending(cases) == []
    assert all(cases.unit_is_intact(NAME, i, "m", deep=True) for i in range(3))


def test_the_store_is_plain_zarr_to_others(cases: CaseStore) -> None:
    import zarr

    _write(cases)
    group = zarr.open_group(cases.store.zarr_store("C1"), mode="r")
    array = group[NAME]
    assert array.metadata.zarr_format == 3
    assert (array.shards, array.chunks) == ((4, 8, 8, 1), (2, 8, 8, 1))
    np.testing.assert_array_equal(array[:], ROWS)


def test_an_array_that_is_there_is_not_made_again(cases: CaseStore) -> None:
    _write(cases)
    assert not cases.ensure_array(NAME, ROWS.shape, LAYOUT, "m", IDS)
    assert _pending(cases) == []


def test_writing_a_unit_again_changes_nothing(cases: CaseStore) -> None:
    _write(cases)
    before = cases.store.read_bytes(_shard(1))
    _write(cases)
    assert cases.store.read_bytes(_shard(1)) == before


def test_a_torn_shard_is_found_and_recovers(cases: CaseStore) -> None:
    _write(cases)
    whole = cases.store.read_bytes(_shard(1))
    cases.store.write_bytes(_shard(1), whole[: len(whole) // 2])
    assert _pending(cases) == [1]
    with pytest.raises(ArrayMissing, match=r"is missing or torn; run the case again"):
        cases.read_rows(NAME, 0, 10)
    np.testing.assert_array_equal(cases.read_rows(NAME, 0, 4), ROWS[:4])  # the others stay readable
    _write(cases, units={1})
    assert cases.store.read_bytes(_shard(1)) == whole
    np.testing.assert_array_equal(cases.read_rows(NAME, 0, 10), ROWS)


def test_flipped_bytes_of_the_same_length_are_found_by_the_deep_look(cases: CaseStore) -> None:
    _write(cases)
    data = bytearray(cases.store.read_bytes(_shard(0)))
    data[5] ^= 255
    cases.store.write_bytes(_shard(0), bytes(data))
    assert cases.unit_is_intact(NAME, 0, "m")
    assert not cases.unit_is_intact(NAME, 0, "m", deep=True)


def test_resume_recomputes_when_data_was_deleted(cases: CaseStore) -> None:
    _write(cases)
    cases.store.delete(_shard(2))
    assert _pending(cases) == [2]
    cases.store.delete(f"C1/case.zarr/{NAME}")
    assert _pending(cases) == [0, 1, 2]
    _write(cases)
    np.testing.assert_array_equal(cases.read_rows(NAME, 0, 10), ROWS)


def test_a_lost_or_torn_marker_means_the_unit_is_written_again(cases: CaseStore) -> None:
    _write(cases)
    cases.store.delete(f"C1/progress/{NAME}/00000.json")
    cases.store.write_text(f"C1/progress/{NAME}/00001.json", '{"finger')
    assert _pending(cases) == [0, 1]


@pytest.mark.parametrize("step", ["delete", "shard", "marker"])
def test_a_kill_between_any_two_steps_leaves_a_unit_that_is_written_again(
    cases: CaseStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    _write(cases)

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        if step == "delete":  # after the marker went, before the shard goes
            original, calls = cases.store.delete, []

            def second(key: str) -> None:
                calls.append(key)
                if len(calls) == 2:
                    raise Killed
                original(key)

            patched.setattr(cases.store, "delete", second)
        elif step == "shard":
            patched.setattr(cases, "_open", _Dying(cases._open(NAME), Killed))
        else:
            patched.setattr(cases.store, "write_json", die)
        with pytest.raises(Killed):
            cases.write_unit(NAME, 1, 4, ROWS[4:8], 10, "m", LAYOUT)
    assert _pending(cases) == [1]
    _write(cases, units={1})
    np.testing.assert_array_equal(cases.read_rows(NAME, 0, 10), ROWS)


class _Dying:
    """Stands for an opened array whose write is killed."""

    def __init__(self, array: object, error: type[BaseException]) -> None:
        self._array, self._error = array, error

    def __call__(self, _name: str) -> _Dying:
        return self

    def __getattr__(self, name: str) -> object:
        return getattr(self._array, name)

    def __setitem__(self, _rows: slice, _block: np.ndarray) -> None:
        raise self._error


def test_other_inputs_drop_the_array_and_its_progress(cases: CaseStore) -> None:
    _write(cases)
    fewer = ROWS[:6]
    assert cases.ensure_array(NAME, fewer.shape, LAYOUT, "n", IDS[:6])
    assert not cases.unit_is_intact(NAME, 0, "m")
    assert not cases.unit_is_intact(NAME, 0, "n")
    with pytest.raises(ArrayMissing):
        cases.read_rows(NAME, 0, 4)
    _write(cases, "n", fewer)
    np.testing.assert_array_equal(cases.read_rows(NAME, 0, 6), fewer)


def test_a_marker_of_an_earlier_array_does_not_vouch_for_a_new_one(cases: CaseStore) -> None:
    _write(cases)
    kept = cases.store.read_bytes(f"C1/progress/{NAME}/00000.json")
    cases.ensure_array(NAME, ROWS.shape, LAYOUT, "n", IDS)
    cases.store.write_bytes(f"C1/progress/{NAME}/00000.json", kept)
    assert not cases.unit_is_intact(NAME, 0, "n")
    assert not cases.unit_is_intact(NAME, 0, "m")


def test_a_unit_writes_its_own_rows_and_no_others(cases: CaseStore) -> None:
    cases.ensure_array(NAME, ROWS.shape, LAYOUT, "m", IDS)
    for index, first, block in [
        (1, 0, ROWS[0:4]),
        (0, 0, ROWS[0:3]),
        (3, 12, ROWS[0:1]),
        (0, 0, ROWS[:4, :4]),
    ]:
        with pytest.raises(ValueError):
            cases.write_unit(NAME, index, first, block, 10, "m", LAYOUT)
    with pytest.raises(ValueError):
        cases.write_unit(NAME, 0, 0, ROWS[:4].astype(np.uint16), 10, "m", LAYOUT)
    assert _pending(cases) == [0, 1, 2]


def test_a_unit_of_black_patches_is_whole(cases: CaseStore) -> None:
    _write(cases, rows=np.zeros_like(ROWS))
    assert _pending(cases) == []
    assert not cases.read_rows(NAME, 0, 10).any()


def test_a_case_without_cells_has_empty_arrays(cases: CaseStore) -> None:
    cases.ensure_array(NAME, (0, 8, 8, 1), LAYOUT, "m", [])
    assert cases.read_rows(NAME, 0, 0).shape == (0, 8, 8, 1)
    assert cases.pending(NAME, 0, "m", LAYOUT) == ()


def test_an_array_that_is_not_there_says_so(cases: CaseStore) -> None:
    with pytest.raises(ArrayMissing, match="there is no such array; run the case"):
        cases.read_rows(NAME, 0, 1)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 9),
    size=st.integers(1, 9),
    channels=st.integers(1, 3),
    chunk=st.integers(1, 4),
    shard=st.integers(1, 7),
)
def test_any_shape_and_layout_round_trips(
    tmp_path: Path, n: int, size: int, channels: int, chunk: int, shard: int
) -> None:
    cases, layout = CaseStore(Store(tmp_path), "C1"), PatchSettings(chunk=chunk, shard=shard)
    rows = np.random.default_rng(n).integers(0, 255, (n, size, size, channels), dtype=np.uint8)
    mark = f"{n}-{size}-{channels}-{chunk}-{shard}"
    cases.ensure_array("a", rows.shape, layout, mark, IDS[:n])
    for unit in reversed(plan_units("a", n, shard_rows(layout))):
        cases.write_unit("a", unit.index, unit.start, rows[unit.start : unit.stop], n, mark, layout)
    np.testing.assert_array_equal(cases.read_rows("a", 0, n), rows)


def test_arrays_of_an_earlier_state_of_the_case_go_and_those_of_this_one_stay(cases: CaseStore) -> None:
    def make(name: str, ids: list[str]) -> None:
        cases.ensure_array(name, (len(ids), 4, 4, 1), LAYOUT, "m", ids)

    now, then = IDS[:4], IDS[1:5]
    make("patches/8/dic", now)
    make("patches/16/dic", now)  # a size that is cut no more
    make("virtual/a/image", now)
    make("virtual/b/image", then)  # as many cells, but others
    make("patches/8/brightfield", list(reversed(now)))
    gone = cases.prune({"patches/8/dic", "patches/8/brightfield"}, now)
    assert sorted(gone) == ["patches/16/dic", "patches/8/brightfield", "virtual/b/image"]
    assert sorted(cases.names()) == ["patches/8/dic", "virtual/a/image"]
    assert cases.cell_ids("virtual/a/image") == now
    assert cases.prune({"patches/8/dic"}, now) == []


def test_progress_of_its_own_inputs_does_not_vouch_for_rows_of_another_array(cases: CaseStore) -> None:
    _write(cases)
    kept = cases.store.read_bytes(f"C1/progress/{NAME}/00000.json")
    shard = cases.store.read_bytes(_shard(0))
    cases.ensure_array(NAME, ROWS.shape, LAYOUT, "n", IDS)
    cases.store.write_bytes(f"C1/progress/{NAME}/00000.json", kept)
    cases.store.write_bytes(_shard(0), shard)  # as a restore from a backup would leave it
    assert not cases.unit_is_intact(NAME, 0, "m")
    assert not cases.unit_is_intact(NAME, 0, "n")


def test_a_kill_while_an_array_is_replaced_leaves_no_progress_of_the_one_before(
    cases: CaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(cases)

    class Killed(BaseException):
        pass

    gone: list[str] = []
    original = cases.store.delete

    def dies_after_the_first(key: str) -> None:
        if gone:
            raise Killed
        original(key)
        gone.append(key)

    with monkeypatch.context() as patched:
        patched.setattr(cases.store, "delete", dies_after_the_first)
        with pytest.raises(Killed):
            cases.ensure_array(NAME, ROWS.shape, LAYOUT, "n", IDS)
    assert _pending(cases) == [0, 1, 2]
    _write(cases, "n", ROWS[::-1].copy())
    np.testing.assert_array_equal(cases.read_rows(NAME, 0, 10), ROWS[::-1])
