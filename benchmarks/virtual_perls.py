"""Virtual Perls on phantoms: the paper's seven configurations, and what the shipped model is worth.

    python -m benchmarks.virtual_perls train --run DIR [--steps 400] [--only 3,2]   resumable, one by one
    python -m benchmarks.virtual_perls table --run DIR                              docs/virtual-perls.md
    python -m benchmarks.virtual_perls ship  --run DIR [--configuration L]          weights/mgg-to-perls

Everything is measured on phantoms (drawn, not photographed) at a size that one CPU core allows: small
patches, narrow networks, few steps.  It says how the configurations compare here, not what the paper found.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.virtual_perls_data import (
    CONFIGURATIONS,
    FIELD_UM,
    LABELLED,
    USUAL_PX,
    at_side,
    drawn,
    reduced_recipe,
    side_px,
    training_set,
)
from pipeline.statistics import clopper_pearson
from pipeline.vtt_score import pearson

Array = np.ndarray[Any, Any]
Reader = Callable[[Array], Array]  # patches (N, 64, 64, 3) uint8 -> types (N,) str
LOW_PCT = 15.0  # at or under it a case counts as low
RESAMPLED_CASES, RESAMPLED_CELLS = 4000, 100


def train(run_dir: Path, names: Sequence[str], steps: int, stop_at: int | None = None) -> None:
    """Train each configuration into `run_dir`/config-<name>, going on from its checkpoint.

    The labelled one goes on from configuration 3 where that is there.
    """
    from benchmarks.virtual_perls_labelled import train_labelled
    from stainers import cyclegan

    for name in names:
        recipe = reduced_recipe(name, steps)
        out, started = run_dir / f"config-{name}", time.process_time()

        def show(step: int, total: int, parts: dict[str, float], n: str = name, t: float = started) -> None:
            if step % 20 == 0 or step == total:
                seconds = time.process_time() - t
                values = " ".join(f"{k} {v:.3f}" for k, v in parts.items())
                print(f"{n}: {step}/{total} {values} {seconds:.0f} s of a core", flush=True)

        data = training_set(run_dir / "cache", side_px(recipe))
        if name == LABELLED:
            start = run_dir / "config-3" / "checkpoint.pt"
            train_labelled(data, out, recipe, start=start if start.is_file() else None, progress=show)
        else:
            cyclegan.train(data, out, recipe, resume=True, stop_at=stop_at, progress=show)


def generator_of(run_dir: Path, name: str) -> tuple[Callable[[Array], Array], int]:
    """The averaged MGG -> Perls generator of a configuration, 64 px in and out, and its steps."""
    import torch

    from stainers.gan_networks import build
    from stainers.gan_records import run_on_picture

    recipe = reduced_recipe(name, 1)
    path = run_dir / f"config-{name}" / "checkpoint.pt"
    state = torch.load(path, map_location="cpu", weights_only=True)
    net = build(recipe.generator, 3, 3)
    net.load_state_dict(state["averages"]["forward"])
    net.eval().requires_grad_(False)

    def stain(images: Array) -> Array:
        given = at_side(images, side_px(recipe))
        out = np.stack([run_on_picture(net, i, torch.device("cpu")) for i in given])
        return at_side(out, USUAL_PX)

    return stain, int(state["step"])


def readers() -> dict[str, Reader]:
    """The rule reader, and every learned reader that is installed."""
    from storage.registry import available, load

    def of(name: str) -> Reader:
        reader = load("sideroblast-reader", name)
        return lambda images: np.array([r.type for r in reader.read(images, FIELD_UM / USUAL_PX)])

    return {name: of(name) for name in available("sideroblast-reader")}


def rate(hits: Array) -> dict[str, float | int]:
    """Share of true in (N,) bool with its exact interval."""
    n, k = len(hits), int(hits.sum())
    low, high = clopper_pearson(k, n)
    return {"value": k / n if n else float("nan"), "low": low, "high": high, "n": n}


def transfer(positive: Array, types: Array) -> dict[str, Any]:
    """Error rates of the label that came across; forced choice as in the paper: what is not 3 is negative.

    `rs_error` is the RMSE of RS % in points over cases resampled from these very readings, of cases at most
    15 % and of those above, beside that of answering the mean of all.
    """
    ring = types == "3"
    rng = np.random.default_rng(0)
    sensitivity, made_up = float(ring[positive].mean()), float(ring[~positive].mean())
    truth = rng.uniform(0, 0.6, RESAMPLED_CASES)
    rings = np.round(truth * RESAMPLED_CELLS).astype(int)
    read = rng.binomial(rings, sensitivity) + rng.binomial(RESAMPLED_CELLS - rings, made_up)
    error = 100 * (read - rings) / RESAMPLED_CELLS
    low = 100 * rings / RESAMPLED_CELLS <= LOW_PCT
    of_mean = 100 * (rings - rings.mean()) / RESAMPLED_CELLS
    return {
        "fnr": rate(~ring[positive]),
        "fpr": rate(ring[~positive]),
        "indeterminate": float((types == "indeterminate").mean()),
        "rs_error": {
            "low": float(np.sqrt(np.mean(error[low] ** 2))),
            "high": float(np.sqrt(np.mean(error[~low] ** 2))),
            "all": float(np.sqrt(np.mean(error**2))),
            "of_the_mean": float(np.sqrt(np.mean(of_mean**2))),
        },
    }


def measure(stain: Callable[[Array], Array], cache: Path, use: dict[str, Reader]) -> dict[str, Any]:
    """One row of the table: realism by the judge, transfer by the readers, distance of the sets."""
    from benchmarks.virtual_perls_judge import judge_realism

    mgg, perls = drawn("MGG", "test", cache), drawn("Perls", "test", cache)
    real, given = at_side(perls["images"], USUAL_PX), at_side(mgg["images"], USUAL_PX)
    virtual = stain(given)
    as_real, fooled = judge_realism(real, virtual)
    return {
        "judge": {"fpr": rate(fooled), "fnr": rate(~as_real)},
        "distance": distance_of_sets(virtual, real),
        "readers": {name: transfer(mgg["types"] == 3, reader(virtual)) for name, reader in use.items()},
    }


def distance_of_sets(virtual: Array, real: Array) -> dict[str, float]:
    """FID of two sets of patches where Inception's weights are found, else the same in our own features."""
    from stainers.feature_metrics import INCEPTION, Encoder, fid, find_weights, frechet
    from storage.registry import load

    weights = find_weights(INCEPTION)
    if weights is not None:
        return {"fid": fid(list(virtual), list(real), weights)}
    encoder = Encoder(load("classifier", "leukocyte-classes"), FIELD_UM / USUAL_PX)
    return {"encoder_frechet": frechet(encoder, list(virtual), list(real))}


def reference(cache: Path, use: dict[str, Reader]) -> dict[str, Any]:
    """The readers on the real Perls phantoms of the test: the target to aspire to."""
    perls = drawn("Perls", "test", cache)
    images = at_side(perls["images"], USUAL_PX)
    return {name: transfer(perls["types"] == 3, reader(images)) for name, reader in use.items()}


def table(run_dir: Path, names: Sequence[str]) -> dict[str, Any]:
    """Every trained configuration; kept row by row in `run_dir`/table.json, keyed by the steps trained."""
    path = run_dir / "table.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"rows": {}}
    use, cache = readers(), run_dir / "cache"
    if sorted(found.get("reference", {})) != sorted(use):
        found = {"rows": {}, "reference": reference(cache, use)}
        path.write_text(json.dumps(found, indent=1) + "\n")
    for name in names:
        if not (run_dir / f"config-{name}" / "checkpoint.pt").is_file():
            continue
        stain, steps = generator_of(run_dir, name)
        if found["rows"].get(name, {}).get("steps") != steps:
            found["rows"][name] = {"steps": steps, **measure(stain, cache, use)}
            path.write_text(json.dumps(found, indent=1) + "\n")
    found["pearson"] = correlation(found["rows"])
    path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def correlation(rows: dict[str, Any]) -> dict[str, Any]:
    """Pearson of the distance of the sets against the judge's FPR, as the paper has of FID and experts."""
    name = next((k for r in rows.values() for k in r["distance"]), None)
    points = [(r["distance"][name], r["judge"]["fpr"]["value"]) for r in rows.values()] if name else []
    return {"metric": name, **pearson([p[0] for p in points], [p[1] for p in points])}


def as_markdown(found: dict[str, Any]) -> str:
    """The table as the documentation shows it."""
    name = found["pearson"]["metric"] or "distance"
    use = list(found["reference"])
    head = ["#", "pairing", "generator", "D layers", "steps", "judge FPR", name]
    head += [f"{r}: {x}" for r in use for x in ("FNR", "FPR", "RMSE ≤ 15 %", "RMSE > 15 %")]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for key, row in sorted(found["rows"].items()):
        recipe = reduced_recipe(key, 1)
        cells = [key, recipe.draw.pairing, recipe.generator.kind, str(recipe.discriminator.layers)]
        cells += [str(row["steps"]), _shown(row["judge"]["fpr"]), f"{row['distance'].get(name, np.nan):.1f}"]
        cells += [x for r in use for x in _transfer_cells(row["readers"][r])]
        lines.append("| " + " | ".join(cells) + " |")
    real = ["real Perls", "–", "–", "–", "–", "–", "–"]
    real += [x for r in use for x in _transfer_cells(found["reference"][r])]
    lines.append("| " + " | ".join(real) + " |")
    p = found["pearson"]
    r = "not defined" if p["r"] is None else f"{p['r']:.2f}"
    span = "" if p["low"] is None else f" ({p['low']:.2f} to {p['high']:.2f})"
    mean = next(iter(found["reference"].values()))["rs_error"]["of_the_mean"]
    lines += ["", f"Pearson of {name} against the judge's FPR, n = {p['n']}: {r}{span}."]
    lines += [f"RMSE of always answering the mean of such cases: {mean:.1f} points."]
    return "\n".join(lines)


def _shown(found: dict[str, Any]) -> str:
    return f"{found['value']:.2f} ({found['low']:.2f}-{found['high']:.2f})"


def _transfer_cells(found: dict[str, Any]) -> list[str]:
    error = found["rs_error"]
    return [_shown(found["fnr"]), _shown(found["fpr"]), f"{error['low']:.1f}", f"{error['high']:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("train", "table", "ship"))
    parser.add_argument("--run", type=Path, required=True, help="folder of data, checkpoints and results")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--stop-at", type=int, default=None, help="end each run early, at this step")
    parser.add_argument("--only", default=",".join((*CONFIGURATIONS, LABELLED)))
    parser.add_argument("--configuration", default=LABELLED)
    parser.add_argument("--cells", type=int, default=30, help="erythroblasts of each unseen case")
    parser.add_argument("--out", type=Path, default=Path("weights/mgg-to-perls"))
    options = parser.parse_args()
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    only = options.only.split(",")
    if options.what == "train":
        train(options.run, only, options.steps, options.stop_at)
    elif options.what == "table":
        print(as_markdown(table(options.run, only)))
    else:
        from benchmarks.virtual_perls_ship import ship

        print(json.dumps(ship(options.run, options.configuration, options.out, options.cells), indent=1))


if __name__ == "__main__":
    main()
