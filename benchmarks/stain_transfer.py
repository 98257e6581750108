"""Stain transfer between the two real stains of wbc-masks, judged by classifiers that know one stain alone.

    python -m benchmarks.stain_transfer --work /tmp/transfer --out docs/stain_transfer.json

A classifier is trained on the training part of one stain and tested on the test part of the other: on its
images as they are, and after each transfer, as in Table 4 of the standardization paper.  Transfers are
fitted or trained on the training parts alone; no test image is seen by anything.  Every stage keeps its
result in the work folder, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.stain_judges import (
    NETS,
    SHARES,
    STAINS,
    Boxed,
    boxed_cells,
    right,
    stained_cells,
    train_classifier,
)
from stainers.cell_sets import Cells, DrawOptions, StainSet
from stainers.colorization import ColorizationRecipe, ColorizationRun, ColourLosses
from stainers.colorization import train as train_colorization
from stainers.confidence import NoiseOptions
from stainers.cyclegan import CycleGanRecipe, CycleLosses
from stainers.cyclegan import make_run as make_cyclegan
from stainers.cyclegan import train as train_cyclegan
from stainers.gan_export import CardText
from stainers.gan_networks import DiscriminatorOptions, GeneratorOptions, build
from stainers.gan_training import RunOptions
from stainers.intervals import interval
from stainers.normalizer_training import NormalizerRecipe
from stainers.normalizer_training import train_set as normalizer_set
from stainers.normalizers import METHODS, NormalizerStainer, fit
from stainers.picture_data import DataOptions
from stainers.picture_stainer import PictureStainer
from stainers.picture_training import export_run
from storage.packages import ModelPackage, write_package

Array = np.ndarray[Any, Any]
Judge = tuple[str, int]  # architecture and seed
Transfer = Callable[[Array], Array]  # an image (H, W, 3) uint8 of one stain -> its look in the other

WORK_SCALE = {"tecom": 48 / 120, "cellavision": 48 / 120 * 73 / 152}  # of the generators
WORK_PX = 48
EPOCHS = (2, 4, 6)  # of the CycleGAN, looked at as in the paper
COLOUR_STEPS = 160


def cyclegan_recipe(seed: int) -> CycleGanRecipe:
    return CycleGanRecipe(
        generator=GeneratorOptions(width=8, blocks=2, residual=True),
        discriminator=DiscriminatorOptions(layers=2, width=12),
        losses=CycleLosses(1.0, 5.0, 0.2),
        data=DataOptions(
            source="tecom",
            target="cellavision",
            source_scale=WORK_SCALE["tecom"],
            target_scale=WORK_SCALE["cellavision"],
            size_px=WORK_PX,
            train_share=SHARES[0],
            validation_share=SHARES[1],
            chooser="last",
        ),
        draw=DrawOptions(crop_px=32, turns=True),
        run=RunOptions(
            epochs=max(EPOCHS), batch=4, learning_rate=1e-3, ema=0.95, seed=seed, checkpoint_every=36,
            sample_every=108, choose_every=216,
        ),
    )  # fmt: skip


def colorization_recipe(seed: int, source: str, target: str) -> ColorizationRecipe:
    base = cyclegan_recipe(seed)
    ends = {"source": source, "target": target}
    scales = {"source_scale": WORK_SCALE[source], "target_scale": WORK_SCALE[target]}
    return ColorizationRecipe(
        generator=replace(base.generator, residual=False),
        discriminator=base.discriminator,
        losses=ColourLosses(1.0, 20.0),
        data=replace(base.data, **ends, **scales),
        draw=base.draw,
        run=replace(base.run, steps=COLOUR_STEPS, choose_every=COLOUR_STEPS, sample_every=COLOUR_STEPS),
    )


def normalizer(method: str, source: Cells, target: Cells) -> Transfer:
    fitted = fit(method, source.part("train").images, target.part("train").images)
    stainer = NormalizerStainer(method, fitted, name=method, targets=(target.domain,))
    return lambda image: stainer.stain(image[None]).image[0]


def generator(state: dict[str, Any], recipe: Any, given: str, source: str, target: str) -> Transfer:
    """A generator's weights as a transfer of images at their own scale."""
    net = build(recipe.generator, 1 if given == "grey" else 3)
    net.load_state_dict(state)
    stainer = PictureStainer(
        net, scale=WORK_SCALE[source], given=given, name="", targets=(target,),
        noise=NoiseOptions(samples=1), calibration=None, min_confidence=0.5,
    )  # fmt: skip
    return lambda image: stainer.stain(image[None]).image[0]


def say(what: str) -> Callable[[int, int, dict[str, float]], None]:
    def progress(step: int, total: int, parts: dict[str, float]) -> None:
        if step % 36 == 0:
            print(what, step, total, {k: round(v, 3) for k, v in parts.items()}, flush=True)

    return progress


class Benchmark:
    """Cells, classifiers and what each transfer did, by the names of the table."""

    def __init__(self, data: Path, work: Path) -> None:
        self.work = work
        self.boxed = boxed_cells(data)
        self.cells = {stain: boxed.cells for stain, boxed in self.boxed.items()}
        small = stained_cells(data, WORK_SCALE, WORK_PX)
        self.set = StainSet(small["tecom"], small["cellavision"])
        self.rows: dict[str, dict[str, Any]] = {}
        self.path = work / "right.json"
        if self.path.is_file():
            self.rows = json.loads(self.path.read_text())

    def part(self, stain: str, part: str) -> Boxed:
        """The test cells of a stain, or all others, by which a transfer is chosen."""
        if part == "test":
            return self.boxed[stain].part("test")
        return self.boxed[stain].part("train", "validation")

    def judge(
        self, arm: str, source: str, target: str, transfer: Transfer | None, judges: Sequence[Judge]
    ) -> None:
        """Keep which cells of `source` the classifiers of `target` name after the transfer, by part."""
        keys = {j: f"{source}>{target}|{arm}|{j[0]}|{j[1]}" for j in judges}
        if all(key in self.rows for key in keys.values()):  # also where nobody is to judge yet
            return
        images = {
            part: [transfer(i) if transfer else i for i in self.part(source, part).cells.images]
            for part in ("seen", "test")
        }
        for (net, seed), key in keys.items():
            path = self.work / "classifiers" / f"{target}-{net}-{seed}.pt"
            judge = train_classifier(self.boxed[target], net, seed, path)
            row: dict[str, Any] = {}
            for part, shown in images.items():
                cells = self.part(source, part)
                row[part] = right(judge, shown, cells).tolist()
                row[f"{part}_groups"] = list(cells.cells.groups)
            self.rows[key] = row
            print(key, {p: round(float(np.mean(row[p])), 3) for p in images}, flush=True)
        draft = self.path.with_suffix(".tmp")
        draft.write_text(json.dumps(self.rows))
        os.replace(draft, self.path)

    def simple(self, judges: Sequence[Judge]) -> None:
        for source, target in (STAINS, STAINS[::-1]):
            self.judge("own stain", target, target, None, judges)
            self.judge("as it is", source, target, None, judges)
            for method in METHODS:
                transfer = normalizer(method, self.cells[source], self.cells[target])
                self.judge(method, source, target, transfer, judges)

    def cyclegan(self, gan_seed: int, judges: Sequence[Judge]) -> None:
        """Train the CycleGAN of a seed, or go on with it, and judge every epoch that is looked at."""
        recipe, folder = cyclegan_recipe(gan_seed), self.work / f"cyclegan-{gan_seed}"
        steps = -(-len(self.set.part("train").source) // recipe.run.batch)
        if not (folder / f"step-{steps * max(EPOCHS):06d}.pt").is_file():
            train_cyclegan(
                self.set, folder, recipe, resume=True, keep_every=EPOCHS[0] * steps, progress=say(folder.name)
            )
        for epoch in EPOCHS:
            kept = torch.load(folder / f"step-{steps * epoch:06d}.pt", weights_only=True)["averages"]
            for name, (source, target) in (("forward", STAINS), ("backward", STAINS[::-1])):
                transfer = generator(kept[name], recipe, "picture", source, target)
                self.judge(f"cyclegan/{gan_seed}, {epoch} epochs", source, target, transfer, judges)

    def colorization(self, gan_seed: int, judges: Sequence[Judge]) -> None:
        for source, target in (STAINS, STAINS[::-1]):
            recipe = colorization_recipe(gan_seed, source, target)
            folder = self.work / f"colorization-{gan_seed}-{source}"
            ends = {"tecom": self.set.source, "cellavision": self.set.target}
            data = StainSet(ends[source], ends[target])
            last = folder / f"step-{COLOUR_STEPS:06d}.pt"
            if not last.is_file():
                train_colorization(
                    data, folder, recipe, resume=True, keep_every=COLOUR_STEPS, progress=say(folder.name)
                )
            state = torch.load(last, weights_only=True)["averages"]["forward"]
            transfer = generator(state, recipe, "grey", source, target)
            self.judge(f"colorization/{gan_seed}", source, target, transfer, judges)

    def set_of(self, stain: str) -> Cells:
        return self.set.source if stain == self.set.source.domain else self.set.target

    def export(self, arm: str, source: str, target: str, text: CardText, folder: Path) -> ModelPackage:
        """The package of a row of the table."""
        if arm in METHODS:
            data = StainSet(self.cells[source], self.cells[target])
            recipe = NormalizerRecipe(arm)
            made = normalizer_set(data, folder.parent / f".{folder.name}", recipe, backward=False)
            card = made.card.model_dump(exclude={"sha256"})
            card |= {k: getattr(text, k) for k in ("name", "intended_use", "training_data", "limits")}
            card["version"] = VERSION
            card["metrics"] = {**card["metrics"], **text.metrics}
            card["training"] = {**card["training"], **text.training}
            package = write_package(folder, card, made.state_dict())
            shutil.rmtree(folder.parent / f".{folder.name}")
            return package
        name, seed = arm.split(",")[0].split("/")
        if name == "colorization":
            learned = StainSet(self.set_of(source), self.set_of(target))
            recipe = colorization_recipe(int(seed), source, target)
            run: Any = ColorizationRun(recipe, COLOUR_STEPS, torch.device("cpu"))
            kept = self.work / f"colorization-{seed}-{source}" / f"step-{COLOUR_STEPS:06d}.pt"
            generator_name, scale = "forward", (WORK_SCALE[source], WORK_SCALE[target])
        else:
            learned, recipe = self.set, cyclegan_recipe(int(seed))
            run = make_cyclegan(recipe, learned)
            epoch = int(arm.split(",")[1].split()[0])
            steps = -(-len(learned.part("train").source) // recipe.run.batch)
            kept = self.work / f"cyclegan-{seed}" / f"step-{steps * epoch:06d}.pt"
            generator_name = "forward" if source == learned.source.domain else "backward"
            scale = (WORK_SCALE["tecom"], WORK_SCALE["cellavision"])
        run.take_averages(kept)
        return export_run(run, learned, generator_name, scale, folder, text)

    def table(self) -> list[dict[str, Any]]:
        """A row per direction, transfer and classifier: accuracy and gain with 95 % intervals over cells."""
        found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for key, row in self.rows.items():
            way, arm, net, _ = key.split("|")
            found.setdefault((way, arm, net), []).append(row)
        table = []
        for (way, arm, net), rows in sorted(found.items()):
            groups = [g for r in rows for g in r["test_groups"]]
            values = np.asarray([v for r in rows for v in r["test"]])
            line = {
                "way": way, "transfer": arm, "classifier": net, "seeds": len(rows),
                "n": len(rows[0]["test"]), "accuracy": interval(values, groups),
                "accuracy_train_and_validation": float(np.mean([np.mean(r["seen"]) for r in rows])),
            }  # fmt: skip
            plain = found.get((way, "as it is", net), [])
            if arm not in ("as it is", "own stain") and len(plain) >= len(rows):
                before = np.asarray([v for r in plain[: len(rows)] for v in r["test"]])
                line["gain"] = interval(values - before, groups, span=(-1, 1))
            table.append(line)
        return table


LIMITS = (
    "Learned from single leukocytes of wbc-masks alone (Zheng 2018): images of other laboratories, cameras "
    "or scales were never tried; images are expected at the data set's own scale (cells of about {cell} px).",
    "{brings}",
    "The classes behind the accuracies are unverified by experts; basophils (three in all) were left out.",
    "Where the two stains draw a structure differently, what the other stain would show is guessed.",
    "Small and trained on a CPU for a short while.",
)
BRINGS = {
    "landmarks": "Takes away and never draws: red cells and platelets are cleared where the target stain "
    "hardly shows any, as far as colour and distance from a nucleus tell them apart; a sharper picture is "
    "softened, a softer one stays soft.",
    "": "Brings over colours, not the optics: {source} images stay as sharp or soft as they are.",
}
VERSION = "2"  # of the packages; 2: red cells cleared, sharpness matched
CELL_PX = {"tecom": 73, "cellavision": 152}


def best_arm(table: Sequence[dict[str, Any]], way: str) -> str:
    """The transfer with the best accuracy on cells of the training and validation parts, over classifiers."""
    found: dict[str, list[float]] = {}
    for line in table:
        if line["way"] == way and line["transfer"] not in ("own stain", "as it is"):
            found.setdefault(line["transfer"], []).append(line["accuracy_train_and_validation"])
    return max(found, key=lambda arm: float(np.mean(found[arm])))


def ship(bench: Benchmark, out: Path) -> None:
    """Write the package of the best transfer each way into `out`; its card holds the table's lines of it."""
    table = bench.table()
    for source, target in (STAINS, STAINS[::-1]):
        way = f"{source}>{target}"
        arm = best_arm(table, way)
        lines = [line for line in table if line["way"] == way]
        figures = {
            line["classifier"] + ": " + line["transfer"]: {
                k: line[k] for k in ("accuracy", "gain", "n", "seeds") if k in line
            }
            for line in lines
            if line["transfer"] in (arm, "as it is", "own stain")
        }
        counts = {s: len(bench.set_of(s).part("train")) for s in STAINS}
        brings = BRINGS.get(arm, BRINGS[""]).format(source=source)
        text = CardText(
            name=f"{source}-to-{target}",
            intended_use=f"The look of {target} (wbc-masks) for leukocytes stained as {source}. "
            "Research only.",
            training_data=tuple(
                f"segmentation_WBC (Zheng 2018, GPL-3.0), {n} images of {s}" for s, n in counts.items()
            ),
            limits=tuple(t.format(source=source, cell=CELL_PX[source], brings=brings) for t in LIMITS),
            targets=(target,),
            error="structure" if arm.startswith("colorization") else "cycle",
            metrics={"classifier_of_the_other_stain": figures, "measured_on": f"test part of {source}"},
            training={
                "transfer": arm,
                "chosen_by": "accuracy of the other stain's classifiers on cells of the training and "
                "validation parts",
                "split": "60 / 10 / 30 % by image, near-duplicates together",
                "trained_on": "CPU",
            },
        )
        print(way, arm, bench.export(arm, source, target, text, out / text.name).folder, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = Path(os.environ.get("SMEARFLOW_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=root / "wbc-masks")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--ship", type=Path, help="only write the best packages of what is done into a folder"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    bench = Benchmark(arguments.data, arguments.work)
    if arguments.ship:
        ship(bench, arguments.ship)
        return
    judges: list[Judge] = []
    bench.cyclegan(0, [])
    for seed in range(arguments.seeds):  # the cheapest answers first
        for net in NETS:
            judges.append((net, seed))
            bench.simple(judges)
            bench.cyclegan(0, judges)
            bench.colorization(0, judges)
            _write(bench, arguments.out)
    for seed in range(1, arguments.seeds):
        bench.cyclegan(seed, judges)
        bench.colorization(seed, judges)
        _write(bench, arguments.out)
    for line in bench.table():
        print(line)


def _write(bench: Benchmark, out: Path | None) -> None:
    if out is not None:
        out.write_text(json.dumps(bench.table(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
