"""How many noisy outputs, and how much noise, a stainer's confidence needs: measured on validation pairs.

    python -m benchmarks.stain_confidence --data ../shared/data/smears --out runs/confidence [--cells 12]

For every noise level alpha and number of samples k: how the raw readings of equations 7.4 and 7.5 and the
calibrated confidence go with the true error (share of the structure not shown, and raw) on unspoilt patches,
and how well each finds spoilt inputs.  The calibrated figures are cross-validated over source images, so
that no patch is judged by a calibration that saw its image.  One encoder pass and k + 1 decoder passes
a patch; the time is that of one patch.  DIC is computed.  The readings are kept in OUT; a run that was
stopped goes on.

With --calibrate PACKAGE the confidence of that package is fitted anew on the validation pairs with its card's
own k and alpha, measured on the test pairs, and written into the card; with --cases it is measured as well
on leukocytes of cases whose DIC another optical model made, of smears that were not trained on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from storage.json_text import json_text

ALPHAS = (0.1, 0.3, 1.0, 3.0)
SAMPLES = (2, 4, 8, 16)
FOLDS = 6
JUDGE = "leukocyte-classes"
Array = np.ndarray[Any, Any]


def readings(
    stainer: Any, pairs: Sequence[Any], path: Path, alphas: Sequence[float], samples: Sequence[int]
) -> None:
    """One line a pair and kind of input: features for every alpha and k, errors and times."""
    from stainers.dic_input import to_grey
    from stainers.image_errors import image_errors
    from stainers.patch_stainer import to_uint8
    from stainers.polarity import find_shear
    from stainers.spoiling import SPOILS

    done = len(path.read_text().splitlines()) if path.is_file() else 0
    kinds = {"unspoilt": lambda pair, rng: pair.dic, **SPOILS}
    with path.open("a", encoding="utf-8") as stream:
        for number, (pair, kind) in enumerate((p, k) for p in pairs for k in kinds):
            if number < done:
                continue
            grey = to_grey(kinds[kind](pair, np.random.default_rng([5, number])))
            angle = find_shear(stainer.polarity, grey).angle_deg
            index, table, spent = stainer.target_index(pair.target), {}, 0.0
            for alpha in alphas:
                noise = replace(stainer.noise, alpha=alpha, samples=max(samples))
                begun = time.perf_counter()
                found = stainer.disturbed(grey, index, angle, noise)
                spent += time.perf_counter() - begun
                for k in samples:
                    table[f"{alpha}/{k}"] = found.features(k)
            image = to_uint8(found.turn.undo(found.stained.transpose(1, 2, 0)))
            row = {
                "kind": kind,
                "target": pair.target,
                "source": pair.source,
                "errors": image_errors(image, pair.stained),
                "features": table,
                "seconds": spent / len(alphas),
            }
            stream.write(json.dumps(row) + "\n")
            stream.flush()


def cross_validated(rows: Array, errors: Array, spoilt: Array, sources: Array, missing: Array) -> Array:
    """Confidence (n,) of every row by a calibration of the other images; `missing` (n,) bool are spoilt by
    rule."""
    from stainers.confidence import fit_calibration

    names = np.unique(sources)
    fold_of = dict(
        zip(np.random.default_rng(0).permutation(names), np.arange(len(names)) % FOLDS, strict=True)
    )
    folds = np.asarray([fold_of[s] for s in sources])
    out = np.empty(len(rows))
    for fold in range(FOLDS):
        fit, ask = folds != fold, folds == fold
        made = fit_calibration(
            rows[fit & ~spoilt], errors[fit & ~spoilt], rows[fit & spoilt], errors[fit & spoilt]
        )
        out[ask] = made.confidence(rows[ask], missing[ask])
    return out


def table_of(path: Path, alphas: Sequence[float], samples: Sequence[int]) -> list[dict[str, Any]]:
    """A line for every alpha and k."""
    from stainers.confidence import DIC_FEATURES, feature_row, part_missing
    from stainers.reliability import auroc, correlations

    read = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kinds = np.asarray([r["kind"] for r in read])
    sources = np.asarray([r["source"] for r in read])
    clean = kinds == "unspoilt"
    share, raw = (np.asarray([r["errors"][k] for r in read]) for k in ("structure_error", "rmse"))
    lines = []
    for alpha in alphas:
        for k in samples:
            found = [r["features"][f"{alpha}/{k}"] for r in read]
            features = np.stack([feature_row(f, DIC_FEATURES) for f in found])
            scores = {
                "information (7.5)": np.asarray([f["mutual_information"] for f in found]),
                "variance (7.4)": -np.asarray([f["log_variance"] for f in found]),
                "calibrated": cross_validated(
                    features, share, ~clean, sources, part_missing(features, DIC_FEATURES)
                ),
            }
            for name, score in scores.items():
                with_error = {
                    what: correlations(score[part], error[part], sources[part])["pearson"]
                    for what, part, error in (
                        ("unspoilt, structure", clean, share),
                        ("unspoilt, raw", clean, raw),
                        ("all, structure", np.ones(len(clean), bool), share),
                    )
                }
                finds = {
                    kind: auroc(-score[clean], -score[kinds == kind]) for kind in sorted(set(kinds[~clean]))
                }
                lines.append({"alpha": alpha, "k": k, "score": name, "r": with_error, "auroc": finds})
    return lines


def timings(stainer: Any, pair: Any, samples: Sequence[int]) -> dict[int, float]:
    """Median seconds a patch for each k, on this machine as busy as it is."""
    from stainers.dic_input import to_grey

    grey = to_grey(pair.dic)
    out = {}
    for k in (0, *samples):
        noise = replace(stainer.noise, samples=max(k, 1))
        spent = []
        for _ in range(3):
            begun = time.perf_counter()
            stainer.disturbed(grey, 0, 20.0, noise)
            spent.append(time.perf_counter() - begun)
        out[max(k, 1)] = float(np.median(spent))
    return out


def show(lines: Sequence[dict[str, Any]], n: int) -> str:
    kinds = list(lines[0]["auroc"])
    head = ["alpha", "k", "score", *lines[0]["r"], *(f"AUROC {k}" for k in kinds)]
    out = [f"n = {n} unspoilt patches; Pearson with 95 % interval", "| " + " | ".join(head) + " |"]
    out.append("|" + "---|" * len(head))
    for line in lines:
        r = ["{:.2f} ({:.2f} to {:.2f})".format(*v) for v in line["r"].values()]
        cells = [f"{line['alpha']:g}", str(line["k"]), line["score"], *r]
        out.append("| " + " | ".join([*cells, *(f"{line['auroc'][k]:.3f}" for k in kinds)]) + " |")
    return "\n".join(out)


def calibrate(folder: Path, smears: Sequence[Any], cells: int) -> None:
    """Fit the confidence of a package on validation pairs, each cell under six optics, into its card."""
    from stainers.confidence import fit_calibration
    from stainers.export import calibration_table
    from stainers.pair_sources import calibration_pairs
    from storage.registry import load

    stainer: Any = load("stainer", str(folder))
    stainer.features = type(stainer).features  # those of today, whatever the card was made with
    pairs = calibration_pairs([x for x in smears if x.domain in stainer.targets], cells, seed=1)
    tables = [calibration_table(stainer, pairs, spoilt, 0) for spoilt in (False, True)]
    write_card(folder, {}, fit_calibration(*tables[0], *tables[1]).to_card(stainer.features))


def measure(folder: Path, smears: Sequence[Any], cells: int, seed: int) -> dict[str, Any]:
    """Measure a package on test pairs, unspoilt and spoilt, for its card."""
    from stainers.evaluation import evaluate_pairs
    from stainers.pair_sources import computed_pairs
    from storage.registry import load

    stainer: Any = load("stainer", str(folder))
    part = [x for x in smears if x.split == "test" and x.domain in stainer.targets]
    report = evaluate_pairs(stainer, computed_pairs(part, seed=seed, limit=cells))
    write_card(folder, report)
    return report


def write_card(folder: Path, metrics: dict[str, Any], confidence: dict[str, Any] | None = None) -> None:
    """Put metrics, and a calibration, into a package's card; its weights stay."""
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    if confidence is not None:
        card["parameters"]["confidence"] = confidence
    card["metrics"] |= metrics
    draft = folder / "card.json.tmp"
    draft.write_text(json_text(card) + "\n", encoding="utf-8")
    os.replace(draft, folder / "card.json")


def cells_smears(pairs: Sequence[Any], smears: Sequence[Any], path: Path) -> dict[str, Any]:
    """The smear (stainers.data.Smear) that each pair's cell was cut from, by the pair's source, found by
    correlation at a quarter of the size; the files' names are kept in `path`."""
    import cv2

    found: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    by_file = {smear.file: smear for smear in smears}
    small: dict[str, list[tuple[str, Array]]] = {}
    for pair in pairs:
        if pair.source in found:
            continue
        if pair.target not in small:
            small[pair.target] = [(s.file, _small(s.image)) for s in smears if s.domain == pair.target]
        middle = cv2.cvtColor(pair.stained[68:188, 68:188], cv2.COLOR_RGB2GRAY)
        middle = cv2.resize(middle, (30, 30), interpolation=cv2.INTER_AREA)
        scores = [
            float(cv2.matchTemplate(g, middle, cv2.TM_CCOEFF_NORMED).max()) for _, g in small[pair.target]
        ]
        found[pair.source] = small[pair.target][int(np.argmax(scores))][0]
        path.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return {source: by_file[file] for source, file in found.items()}


def _small(image: Array) -> Array:
    """(H, W, 3) uint8 -> grey at a quarter of its size, continued at its borders, where cells lie too."""
    import cv2

    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(grey, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    return cv2.copyMakeBorder(grey, 12, 12, 12, 12, cv2.BORDER_REFLECT_101)


def not_trained_on(pairs: Sequence[Any], smears: Sequence[Any], path: Path) -> list[Any]:
    """The pairs whose smear is none of the training part, each with that smear's file as its source: the
    cells of one photograph are no independent draws."""
    smear_of = cells_smears(pairs, smears, path)
    kept = [(p, smear_of[p.source]) for p in pairs]
    return [replace(p, source=smear.file) for p, smear in kept if smear.split != "train"]


def unknown_optics(
    folder: Path, smears: Sequence[Any], cases: Sequence[str], cells: int, out: Path
) -> dict[str, Any]:
    """Measure a package on cells of cases (FOLDER=TARGET) whose smears were not trained on, for its card."""
    from stainers.evaluation import class_namer, evaluate_pairs
    from stainers.pair_sources import find_pairs
    from storage.registry import load

    stainer: Any = load("stainer", str(folder))
    pairs: list[Any] = []
    for case in cases:
        place, target = case.split("=")
        pairs += find_pairs(Path(place), stainer.targets, target=target).pairs
    held = not_trained_on(pairs, smears, out / "case-smears.json")
    chosen = sorted(np.random.default_rng(0).permutation(len(held))[:cells])
    classifier = load("classifier", JUDGE)
    what = "computed DIC of another optical model; leukocytes of smears that were not trained on, in cases"
    report = evaluate_pairs(
        stainer, [held[i] for i in chosen], measured_on=what, classify=class_namer(classifier)
    )
    report["classifier"] = f"{JUDGE}, which was the frozen judge of the training losses too"
    write_card(folder, {"cases_unknown_optics_cells_not_trained_on": report})
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = Path(os.environ.get("SMEARFLOW_DATA", "../shared/data")) / "smears"
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--model", default="dic-to-mgg")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cells", type=int, default=12, help="cells a stain")
    parser.add_argument("--alpha", type=float, nargs="+", default=ALPHAS)
    parser.add_argument("--samples", type=int, nargs="+", default=SAMPLES)
    parser.add_argument("--calibrate", type=Path, metavar="PACKAGE")
    parser.add_argument("--measure", type=Path, metavar="PACKAGE", help="measure without a fit")
    parser.add_argument("--cases", nargs="*", default=[], metavar="FOLDER=TARGET")
    parser.add_argument("--test-seed", type=int, default=7, help="of the optics and cells of the test pairs")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    from stainers.data import load_smears
    from stainers.pair_sources import computed_pairs
    from storage.registry import load

    smears = load_smears(options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.calibrate is not None:
        calibrate(options.calibrate, smears, options.cells)
    package = options.calibrate or options.measure
    if package is not None:
        reports = {"test": measure(package, smears, options.cells, options.test_seed)}
        if options.cases:
            reports["cases"] = unknown_optics(package, smears, options.cases, 2 * options.cells, options.out)
        for name, report in reports.items():
            (options.out / f"{name}.json").write_text(json_text(report) + "\n", encoding="utf-8")
            print(name, json.dumps(report["confidence_error_correlation"]), report["spoilt_auroc"])
        return
    stainer: Any = load("stainer", options.model)
    pairs = computed_pairs([s for s in smears if s.split == "validation"], seed=11, limit=options.cells)
    readings(stainer, pairs, options.out / "readings.jsonl", options.alpha, options.samples)
    lines = table_of(options.out / "readings.jsonl", options.alpha, options.samples)
    seconds = timings(stainer, pairs[0], options.samples)
    (options.out / "table.json").write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    print(show(lines, len(pairs)))
    print("seconds a patch of 256 px by k: " + ", ".join(f"{k}: {v:.2f}" for k, v in seconds.items()))


if __name__ == "__main__":
    main()
