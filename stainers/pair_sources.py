"""Pairs of DIC and real stain to measure a stainer on: from a folder, a list, a case, or computed from
smears.

Everything is at 0.1 µm a pixel, as stainers are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import BadInput
from stainers.data import Smear, leukocyte_windows, load_smears, window
from storage.image_folders import is_image
from storage.tables import read_table

Array = np.ndarray[Any, Any]

CASE_PATCH_PX = 256
# Who says the target of a pair.
BY_DATA, BY_USER, BY_DEFAULT = "the data", "--target", "the stainer's first"
BY_CLASSIFIER = "the classifier of virtual cells"


@dataclass(frozen=True)
class Pair:
    """A DIC patch (H, W, 1) uint8 and the real stain of the same cell (H, W, 3) uint8."""

    dic: Array
    stained: Array
    target: str  # the stain to paint; "" until `find_pairs` knows it
    source: str  # image it was cut from: the unit of the bootstrap
    label: str = ""  # class of the cell where one is known
    shear_angle_deg: float | None = None


@dataclass(frozen=True)
class PairSet:
    """Pairs, and what they are: `measured_on` is printed with every figure, and so is `target_from`, which
    names who says the target of all of them, or of those whose stain the data does not name."""

    pairs: tuple[Pair, ...]
    measured_on: str
    target_from: str = BY_DATA


def computed_pairs(
    smears: Sequence[Smear], *, size_px: int = 256, seed: int = 0, limit: int = 0, wide: bool = False
) -> list[Pair]:
    """Leukocyte-centred pairs with DIC computed by random optics, `wide` by wider ones; at most `limit` a
    domain (0: all)."""
    rng = np.random.default_rng([seed, 4242])
    windows = leukocyte_windows(smears, size_px)
    chosen: list[Pair] = []
    taken: dict[str, int] = {}
    for i in rng.permutation(len(windows)):
        smear, stained = windows[i]
        if limit and taken.get(smear.domain, 0) >= limit:
            continue
        taken[smear.domain] = taken.get(smear.domain, 0) + 1
        dic, optics = smear.computed_dic(stained, rng, wide=wide)
        chosen.append(Pair(dic[..., None], stained, smear.domain, smear.file, "", optics.shear_angle_deg))
    return chosen


def calibration_pairs(smears: Sequence[Smear], cells_per_domain: int, seed: int = 0) -> list[Pair]:
    """The cells of validation smears, each under three draws of random optics and three of wider ones: there
    are few cells, and what they look like through other microscopes is what a confidence has to bear."""
    held_out = [s for s in smears if s.split == "validation"]
    return [
        pair
        for draw in range(6)
        for pair in computed_pairs(held_out, seed=seed + draw, limit=cells_per_domain, wide=draw % 2 == 1)
    ]


def find_pairs(
    place: Path, targets: Sequence[str], *, target: str | None = None, limit: int = 0, seed: int = 0
) -> PairSet:
    """The pairs that a path holds, whichever kind it is; at most `limit` a target (0: all).

    * a CSV, or a folder with `pairs.csv`: columns dic, stained, and optionally target, class, source;
    * a folder with `dic/` and `stained/`: files of the same stem;
    * a case folder with `manifest.csv` and `truth.json` (leukocyte boxes, matrix brightfield px -> DIC px);
    * a YOLO-format folder of stained smears: their DIC is computed, on the part never trained on; smears of a
      stain that the stainer does not have are compared with `target`, which then has to be given.

    `target` is the stain of pairs that do not name theirs; None is the stainer's first.  Raises BadInput.
    """
    wanted = target or targets[0]
    if wanted not in targets:
        raise BadInput(f"target '{wanted}' is none of this stainer's; choose one of: {', '.join(targets)}.")
    if place.is_file() or (place / "pairs.csv").is_file():
        found = _listed(place if place.is_file() else place / "pairs.csv")
        measured_on = "pairs of a list"
    elif (place / "dic").is_dir() and (place / "stained").is_dir():
        found, measured_on = _folders(place), "pairs of a folder"
    elif (place / "manifest.csv").is_file():
        found, measured_on = _case(place), "leukocytes of a case, aligned by its known matrices"
    else:
        smears = [s for s in load_smears(place) if s.split == "test"]
        foreign = target is not None and not any(s.domain in targets for s in smears)
        if target is not None and foreign:
            smears = [replace(s, domain=target) for s in smears]  # a stain that the stainer does not know
        if smears and not any(s.domain in targets for s in smears):
            raise BadInput(
                f"{place}: smears of {', '.join(sorted({s.domain for s in smears}))}, which are none of this "
                f"stainer's stains ({', '.join(targets)}); name that to compare with (--target)."
            )
        smears = [s for s in smears if s.domain in targets]
        found, measured_on = computed_pairs(smears, seed=seed, limit=limit), "computed DIC"
        if foreign:
            found = [replace(p, target="") for p in found]
    stated = BY_DEFAULT if target is None else BY_USER
    target_from = BY_DATA if all(p.target for p in found) else stated
    found = [p if p.target else replace(p, target=wanted) for p in found]
    unknown = sorted({p.target for p in found} - set(targets))
    if unknown:
        raise BadInput(f"{place}: targets {', '.join(unknown)} are none of: {', '.join(targets)}.")
    if not found:
        raise BadInput(f"{place}: no pairs of DIC and stain; docs/stain-evaluation.md says what it may hold.")
    return PairSet(tuple(_limited(found, limit, seed)), measured_on, target_from)


def _limited(pairs: Sequence[Pair], limit: int, seed: int) -> list[Pair]:
    if not limit:
        return list(pairs)
    rng = np.random.default_rng([seed, 17])
    kept: list[int] = []
    taken: dict[str, int] = {}
    for i in rng.permutation(len(pairs)):
        name = pairs[i].target
        if taken.get(name, 0) < limit:
            taken[name] = taken.get(name, 0) + 1
            kept.append(int(i))
    return [pairs[i] for i in sorted(kept)]


def _read_pair(dic_path: Path, stained_path: Path, target: str, source: str, label: str = "") -> Pair:
    from storage.images import read_uint8

    dic = read_uint8(dic_path, modality="dic")
    stained = _coloured(stained_path)
    if dic.ndim == 3:
        dic = np.round(dic[..., :3].astype(np.float32).mean(axis=2)).astype(np.uint8)
    if dic.shape[:2] != stained.shape[:2]:
        raise BadInput(
            f"{dic_path} is {dic.shape[1]} x {dic.shape[0]} px and {stained_path.name} {stained.shape[1]} x "
            f"{stained.shape[0]}: a pair must be aligned and of one size; use smearflow align first."
        )
    return Pair(dic[..., None], stained, target, source, label)


def _coloured(path: Path) -> Array:
    """The stained side of a pair, (H, W, 3) uint8."""
    from storage.images import read_uint8

    stained = read_uint8(path)
    if stained.ndim != 3 or stained.shape[2] < 3:
        raise BadInput(f"{path}: the stained side of a pair must be RGB, this image is grey.")
    return np.ascontiguousarray(stained[..., :3])


def _known(truth: Path, name: str, field: Any) -> tuple[Array, Array]:
    """The matrix (2, 3) and the leukocyte boxes (n, 4) that truth.json states of a field, float64."""
    matrix = _numbers(truth, name, field, "brightfield_to_dic", 3)
    if len(matrix) != 2:
        raise _no_numbers(truth, name, "brightfield_to_dic", f"it has {len(matrix)} x 3 numbers")
    return matrix, _numbers(truth, name, field, "leukocytes_xyxy", 4)


def _numbers(truth: Path, name: str, field: Any, key: str, columns: int) -> Array:
    """A table (n, columns) of a field, float64; raises BadInput where it is none."""
    try:
        value = np.asarray(field[key], np.float64)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        why = "there is none" if isinstance(error, KeyError) else str(error)
        raise _no_numbers(truth, name, key, why) from error
    if not value.size:
        value = value.reshape(0, columns)
    if value.ndim != 2 or not np.isfinite(value).all():
        raise _no_numbers(truth, name, key, "it is no table of numbers")
    if value.shape[1] != columns:
        raise _no_numbers(truth, name, key, f"it has {value.shape[0]} x {value.shape[1]} numbers")
    return value


def _no_numbers(truth: Path, name: str, key: str, why: str) -> BadInput:
    what = "a matrix of 2 x 3" if key == "brightfield_to_dic" else "boxes of four"
    return BadInput(f"{truth}: field '{name}' needs {what} numbers as {key} ({why}); write the truth again.")


def _folders(place: Path) -> list[Pair]:
    def files(name: str) -> dict[str, Path]:
        return {p.stem: p for p in sorted((place / name).iterdir()) if is_image(p)}

    dic, stained = files("dic"), files("stained")
    lonely = sorted(dic.keys() ^ stained.keys())
    if lonely:
        raise BadInput(f"{place}: '{lonely[0]}' is in one of dic/ and stained/ alone; give both or neither.")
    return [_read_pair(dic[stem], stained[stem], "", stem) for stem in dic]


def _listed(table: Path) -> list[Pair]:
    needed = ("dic", "stained")
    rows = read_table(table, needed, filled=needed, optional=("target", "class", "source"))
    return [
        _read_pair(
            table.parent / r["dic"],
            table.parent / r["stained"],
            r.get("target") or "",
            r.get("source") or r["stained"],
            r.get("class") or "",
        )
        for r in rows
    ]


def _case(place: Path) -> list[Pair]:
    """Patches around the leukocytes of a case of known matrices; the DIC is brought to the brightfield."""
    import cv2

    from storage.images import read_uint8

    truth = place / "truth.json"
    if not truth.is_file():
        raise BadInput(
            f"{place}: a case folder needs truth.json with boxes and matrices; align it otherwise."
        )
    try:
        fields = json.loads(truth.read_text(encoding="utf-8"))["fields"].items()
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise BadInput(f"{truth}: it says no fields, each with boxes and a matrix.") from error
    needed = ("field", "modality", "file")
    rows = read_table(place / "manifest.csv", needed, filled=needed)
    files = {(r["field"], r["modality"]): place / r["file"] for r in rows}
    pairs = []
    for name, field in fields:
        if (name, "brightfield") not in files or (name, "dic") not in files:
            continue
        matrix, boxes = _known(truth, name, field)
        stained = _coloured(files[name, "brightfield"])
        dic = read_uint8(files[name, "dic"], modality="dic")
        dic = (
            dic if dic.ndim == 2 else np.round(dic[..., :3].astype(np.float32).mean(axis=2)).astype(np.uint8)
        )
        size = (stained.shape[1], stained.shape[0])
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        level = float(np.median(dic))
        # a DIC image that was moved: what lies beyond it is background, and cells there are left out
        aligned = cv2.warpAffine(dic, matrix, size, flags=flags, borderValue=level)
        inside = cv2.warpAffine(
            np.ones_like(dic), matrix, size, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        )
        half = CASE_PATCH_PX // 2
        for i, (x0, y0, x1, y1) in enumerate(boxes):
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
            if not (half <= x < size[0] - half and half <= y < size[1] - half):
                continue
            if not window(inside, (x, y), CASE_PATCH_PX).all():
                continue
            patch = window(aligned, (x, y), CASE_PATCH_PX)[..., None]
            source = f"{place.name}/{name}/{i}"  # fields are laid out of many images: cells are the unit
            pairs.append(Pair(patch, window(stained, (x, y), CASE_PATCH_PX), "", source))
    return pairs
