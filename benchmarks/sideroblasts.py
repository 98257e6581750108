"""Ring sideroblasts end to end on phantom marrow: find, read, count, and what the intervals are worth.

    python -m benchmarks.sideroblasts --work DIR [--development] [--cases 20]

Draws the cases once into DIR/cases (a second run reads them), runs finder and readers as the pipeline
does, and prints tables.  `--development` takes other seeds: those that figures may be set on.  Phantoms
only: no Perls-stained marrow with labels is public.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sideroblasts_coverage import CHAINS, Pools, many_draws, print_coverage, simulated_coverage
from detectors.boxes import iou_matrix
from phantoms.marrow_fields import perls_marrow
from pipeline.reader_error import ReaderErrors, corrected_estimate
from pipeline.statistics import clopper_pearson

PX, PATCH_PX, THRESHOLD = 0.1, 256, 0.4
UNSEEN_SEED, DEVELOPMENT_SEED = 97_000, 31_000


@dataclass(frozen=True)
class Reading:
    """One erythroblast, or one box that holds none: what it is and what was made of it.

    true_type: 0-3, or None for a false box; stage: its recipe or, for a false box, the class of what was
    boxed; found: whether a box of a score of THRESHOLD or more was on it; read: by each reader.
    """

    case: int
    true_type: int | None
    stage: str
    found: bool
    read: dict[str, str]
    p_ring: float | None = None


def rs_fraction(index: int, n: int) -> float:
    """Shares of ring sideroblasts from 0 to 0.6, evenly over the cases."""
    return round(0.6 * index / max(1, n - 1), 4)


def make_case(root: Path, seed: int, fraction: float) -> Path:
    """A case of three small Perls fields, drawn where the folder does not hold it yet."""
    path = root / f"{seed}-{round(1000 * fraction):03d}.npz"
    if not path.is_file():
        root.mkdir(parents=True, exist_ok=True)
        drawn = perls_marrow(seed, fraction)
        part = path.with_suffix(".part.npz")
        np.savez(part, images=np.stack([d[0] for d in drawn]), truth=json.dumps([d[1] for d in drawn]))
        part.replace(path)
    return path


def read_case(
    path: Path, finder: Any, readers: dict[str, Any], marks: Mapping[str, str] | None = None
) -> list[Reading]:
    """Find and read the erythroblasts of a case's Perls fields as the pipeline does.

    With `marks`, which have to change with finder and reader, what a reader said is kept beside the case.
    """
    from pipeline.patches import crop_patches

    seed = int(path.stem.split("-")[0])
    with np.load(path, allow_pickle=False) as kept:
        fields = list(zip(kept["images"], json.loads(str(kept["truth"])), strict=True))
    matched: list[tuple[int | None, str]] = []
    lost: list[Reading] = []
    patches = []
    for image, field in fields:
        stages = dict(zip(field["cell_ids"], field["recipes"], strict=True))
        types = {s["cell_id"]: s["rs_type"] for s in field["sideroblasts"]}
        boxes, scores = finder.detect(image, PX)
        boxes = boxes[scores >= THRESHOLD]
        real = np.array(field["leukocytes_xyxy"]).reshape(-1, 4)
        overlaps = iou_matrix(boxes, real)
        taken: set[int] = set()
        for i in range(len(boxes)):
            j = int(overlaps[i].argmax()) if overlaps.shape[1] else -1
            hit = j >= 0 and overlaps[i, j] >= 0.5 and j not in taken
            cell = field["cell_ids"][j] if hit else None
            taken |= {j} if hit else set()
            matched.append((types.get(cell), stages[cell]) if cell is not None else (None, "nothing"))
        for j, cell in enumerate(field["cell_ids"]):
            if cell in types and j not in taken:
                lost.append(Reading(seed, types[cell], stages[cell], False, {}))
        centres = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in boxes]
        patches.append(
            crop_patches(
                image, centres, size_px=PATCH_PX, pixel_size_um=PX, target_pixel_size_um=PX, fill="reflect"
            )
        )
    all_patches = np.concatenate(patches)
    said = {k: _said(path, (marks or {}).get(k, ""), r, all_patches) for k, r in readers.items()}
    found = []
    for i, (kind, stage) in enumerate(matched):
        p = next((s[i][1] for s in said.values() if s[i][1] is not None), None)
        found.append(Reading(seed, kind, stage, True, {k: s[i][0] for k, s in said.items()}, p))
    return [*found, *lost]


def _said(path: Path, name: str, reader: Any, patches: np.ndarray) -> list[tuple[str, float | None]]:
    """Type, and probability of a ring where the reader has one, of each patch; kept under a name."""
    kept = path.with_name(f"{path.stem}-{name}.json") if name else None
    if kept is not None and kept.is_file():
        return [tuple(v) for v in json.loads(kept.read_text())]
    out = []
    for reading in reader.read(patches, PX) if len(patches) else []:
        p = reading.probabilities
        out.append((str(reading.type), None if p is None else p[3] / max(sum(p[:4]), 1e-9)))
    if kept is not None:
        kept.write_text(json.dumps(out))
    return out


def errors_of(readings: Sequence[Reading], reader: str, source: str = "") -> ReaderErrors:
    """The counts behind the interval, and how much more cases differ than chance explains."""
    counted = [r for r in readings if r.found and r.read[reader] != "indeterminate"]
    rings = [r for r in counted if r.true_type == 3]
    others = [r for r in counted if r.true_type in (0, 1, 2)]
    false = [r for r in counted if r.true_type is None]
    lost = [r for r in readings if r.true_type is not None and r not in counted]
    wrong = [r for r in (*rings, *others) if (r.read[reader] == "3") != (r.true_type == 3)]
    return ReaderErrors(
        ring_read=len(rings) - sum(r in wrong for r in rings),
        ring_missed=sum(r in wrong for r in rings),
        other_read=len(others) - sum(r in wrong for r in others),
        other_wrong=sum(r in wrong for r in others),
        ring_lost=sum(r.true_type == 3 for r in lost),
        other_lost=sum(r.true_type != 3 for r in lost),
        false_cells=len(false),
        false_rings=sum(r.read[reader] == "3" for r in false),
        overdispersion=round(overdispersion(readings, reader), 3),
        source=source,
    )


def overdispersion(readings: Sequence[Reading], reader: str) -> float:
    """Pearson's chi-square over its degrees of freedom of errors between cases, at least 1."""
    by_case: dict[int, list[bool]] = {}
    for r in readings:
        if r.true_type is not None:
            bad = (
                not r.found
                or r.read[reader] == "indeterminate"
                or (r.read[reader] == "3") != (r.true_type == 3)
            )
            by_case.setdefault(r.case, []).append(bad)
    n = np.array([len(v) for v in by_case.values()])
    k = np.array([sum(v) for v in by_case.values()])
    rate = k.sum() / max(1, n.sum())
    if rate in (0, 1) or len(n) < 2:
        return 1.0
    return max(1.0, float(((k - n * rate) ** 2 / (n * rate * (1 - rate))).sum() / (len(n) - 1)))


def per_case(readings: Sequence[Reading], reader: str) -> list[dict[str, Any]]:
    """Truth and reading of every case: percentages, counts, corrected and plain intervals."""
    rows = []
    for case in sorted({r.case for r in readings}):
        mine = [r for r in readings if r.case == case]
        true = [r.true_type for r in mine if r.true_type is not None]
        read = [r.read[reader] for r in mine if r.found]
        told = [t for t in read if t != "indeterminate"]
        rows.append(
            {
                "case": case,
                "true_pct": 100 * true.count(3) / len(true),
                "n_true": len(true),
                "rings": told.count("3"),
                "n": len(told),
                "indeterminate": len(read) - len(told),
                "pct": 100 * told.count("3") / len(told) if told else None,
            }
        )
    return rows


def coded(readings: Sequence[Reading], reader: str) -> Pools:
    """What a reader made of the cells, as `many_draws` draws from it."""
    code: dict[bool, list[int]] = {True: [], False: []}
    for r in readings:
        if r.true_type is not None:
            kept = r.found and r.read[reader] != "indeterminate"
            code[r.true_type == 3].append((2 if r.read[reader] == "3" else 1) if kept else 0)
    false = [r.read[reader] for r in readings if r.true_type is None]
    return Pools(
        np.array(code[True]),
        np.array(code[False]),
        np.array([f == "3" for f in false if f != "indeterminate"], bool),
    )


def stage_table(readings: Sequence[Reading]) -> list[tuple[str, int, int]]:
    """Stage, how many there were, how many were found."""
    stages = sorted({r.stage for r in readings if r.true_type is not None})
    mine = {s: [r.found for r in readings if r.true_type is not None and r.stage == s] for s in stages}
    return [(s, len(v), sum(v)) for s, v in mine.items()]


def report(readings: Sequence[Reading], readers: Sequence[str], errors: dict[str, ReaderErrors]) -> str:
    """The tables as Markdown."""
    true = [r for r in readings if r.true_type is not None]
    false = [r for r in readings if r.true_type is None]
    found = [r for r in true if r.found]
    lines = [
        f"erythroblasts found {_share(len(found), len(true))}; boxes that hold one "
        f"{_share(len(found), len(found) + len(false))}",
        "found by stage: " + ", ".join(f"{s} {k}/{n}" for s, n, k in stage_table(readings)),
        "found by type: "
        + ", ".join(
            f"{t} {sum(r.found for r in true if r.true_type == t)}/{sum(r.true_type == t for r in true)}"
            for t in range(4)
        ),
        "false boxes: "
        + ", ".join(f"{s} {sum(r.stage == s for r in false)}" for s in sorted({r.stage for r in false})),
    ]
    for name in readers:
        told = [r for r in found if r.read[name] != "indeterminate"]
        right = sum(r.read[name] == str(r.true_type) for r in told)
        ring = sum((r.read[name] == "3") == (r.true_type == 3) for r in told)
        cases = [c for c in per_case(readings, name) if c["pct"] is not None]
        off = np.array([c["pct"] - c["true_pct"] for c in cases])
        e = errors[name]
        fixed = np.array(
            [100 * float(corrected_estimate(c["rings"], c["n"], e) or 0) - c["true_pct"] for c in cases]
        )
        lines += [
            "",
            f"reader {name}: type accuracy {_share(right, len(told))}; "
            f"ring or not {_share(ring, len(told))}; indeterminate {len(found) - len(told)}",
            f"RS % over {len(cases)} cases: RMSE {np.sqrt((off**2).mean()):.2f}, bias {off.mean():+.2f}, "
            f"worst {np.abs(off).max():.2f}; corrected RMSE {np.sqrt((fixed**2).mean()):.2f}",
            "true -> read: "
            + "; ".join(
                f"{t}: "
                + " ".join(
                    f"{k}={sum(r.true_type == t and r.read[name] == k for r in found)}"
                    for k in ("0", "1", "2", "3", "indeterminate")
                )
                for t in range(4)
            ),
            f"errors: {asdict(e)}",
            *(
                f"  {c['case']}: true {c['true_pct']:.1f} % of {c['n_true']}, read {c['rings']}/{c['n']} = "
                f"{c['pct']:.1f} %, indeterminate {c['indeterminate']}"
                for c in cases
            ),
        ]
    return "\n".join(lines)


def agreement_report(readings: Sequence[Reading], first: str, second: str) -> str:
    """How two readers agree over all cases and in each, false boxes included, as a report counts it."""
    from pipeline.counting_iron import agreement_of

    cases = sorted({r.case for r in readings})
    pairs = {c: [(r.read[first], r.read[second]) for r in readings if r.case == c and r.found] for c in cases}
    all_of = agreement_of([p for v in pairs.values() for p in v])
    lines = [
        f"{first} and {second}: the same on ring or not {_share(all_of.same_ring, all_of.n_both)}, the same "
        f"type {_share(all_of.same_type, all_of.n_both)}, kappa {all_of.kappa}; {second} leaves "
        f"{all_of.indeterminate} undecided"
    ]
    for case, mine in pairs.items():
        a = agreement_of(mine)
        lines.append(
            f"  {case}: ring or not {a.same_ring}/{a.n_both}, type {a.same_type}/{a.n_both}, "
            f"kappa {a.kappa}, undecided {a.indeterminate}"
        )
    return "\n".join(lines)


def _mark(task: Any, name: str, without: str | None = None) -> str:
    """What changes with a model: the start of its hash, or, without a package, its name or `without`."""
    from storage.packages import ModelPackage
    from storage.registry import describe

    found = describe(task, name)
    if isinstance(found, ModelPackage):
        return found.card.sha256[:8]
    return name if without is None else without


def _share(k: int, n: int) -> str:
    low, high = clopper_pearson(k, n) if n else (0.0, 1.0)
    return f"{k}/{n} = {k / max(1, n):.3f} ({low:.3f}-{high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--development", action="store_true")
    parser.add_argument("--finder", default="marrow-perls")
    parser.add_argument("--readers", default="rule,iron-types")
    parser.add_argument("--draws", type=int, default=0)
    parser.add_argument("--simulate", type=int, default=0, help="draws a row of chains of known error rates")
    parser.add_argument("--errors", choices=["shipped", "own"], default="shipped")
    given = parser.parse_args()
    if given.simulate:
        for chain_name, chain in CHAINS.items():
            print(f"\nchain {chain_name}: {chain}, measured on 100 rings and 200 others in each draw")
            print_coverage(simulated_coverage(chain, draws=given.simulate))
        return
    from storage.registry import load

    names = [n for n in given.readers.split(",") if n]
    finder, readers = load("detector", given.finder), {n: load("sideroblast-reader", n) for n in names}
    marks = {n: _mark("detector", given.finder) + n + _mark("sideroblast-reader", n, "") for n in names}
    base = DEVELOPMENT_SEED if given.development else UNSEEN_SEED
    started = time.time()
    readings: list[Reading] = []
    for i in range(given.cases):
        folder = make_case(given.work / "cases", base + i, rs_fraction(i, given.cases))
        readings += read_case(folder, finder, readers, marks)
        print(f"{i + 1}/{given.cases}, {time.time() - started:.0f} s", file=sys.stderr)
    from pipeline.sideroblasts import measured_errors

    own = {n: errors_of(readings, n) for n in names}
    errors = {
        n: (measured_errors(given.finder, n) if given.errors == "shipped" else None) or own[n] for n in names
    }
    print(report(readings, names, errors))
    if len(names) > 1:
        print("\n" + agreement_report(readings, names[0], names[1]))
    print({n: asdict(e) for n, e in own.items()})
    for name in names if given.draws else ():
        rows = many_draws(coded(readings, name), errors[name], draws=given.draws)
        print(f"\n{name}: {given.draws} draws a row")
        print_coverage(rows)
    machine = f"{os.cpu_count()} cores {platform.machine()}"
    print(f"{time.strftime('%Y-%m-%d')}, {machine}, {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
