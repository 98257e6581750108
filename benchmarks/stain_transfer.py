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
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stainers.cell_sets import Cells, DrawOptions, StainSet, as_planes, read_cells, resized
from stainers.colorization import ColorizationRecipe, ColourLosses
from stainers.colorization import train as train_colorization
from stainers.confidence import NoiseOptions
from stainers.cyclegan import CycleGanRecipe, CycleLosses
from stainers.cyclegan import train as train_cyclegan
from stainers.data import window
from stainers.evaluation import interval
from stainers.gan_networks import DiscriminatorOptions, GeneratorOptions, build
from stainers.gan_training import RunOptions
from stainers.normalizers import METHODS, NormalizerStainer, fit
from stainers.picture_data import DataOptions
from stainers.picture_stainer import PictureStainer

Array = np.ndarray[Any, Any]
Judge = tuple[str, int]  # architecture and seed
Transfer = Callable[[Array], Array]  # an image (H, W, 3) uint8 of one stain -> its look in the other

STAINS = ("tecom", "cellavision")
CLASSES = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")  # three basophils in all are left out
SHARES = (0.6, 0.1)
VIEW_PX = 64
# cells are 73 px wide in tecom's images and 152 px in cellavision's: the same size after this
VIEW_SCALE = {"tecom": 64 / 120, "cellavision": 64 / 120 * 73 / 152}
WORK_SCALE = {"tecom": 48 / 120, "cellavision": 48 / 120 * 73 / 152}  # of the generators
WORK_PX = 48
NETS = {"test_resnet": 24, "resnet10t": 16}  # timm architectures, without weights, and their epochs
EPOCHS = (3, 6, 9, 12)  # of the CycleGAN, looked at as in the paper
COLOUR_STEPS = 160
SEEN = 60  # cells of the training and validation parts by which an epoch is chosen


def stained_cells(data: Path, scale: dict[str, float] | None = None, size_px: int = 0) -> dict[str, Cells]:
    """Both stains with the four classes, at their own scale or another; splits by image, the same always."""
    found = {}
    for stain in STAINS:
        cells = read_cells(data, stain, scale=scale[stain] if scale else 1.0, size_px=size_px, shares=SHARES)
        found[stain] = cells.take([i for i, label in enumerate(cells.labels) if label in CLASSES])
    return found


def view(image: Array, stain: str) -> Array:
    """What a classifier sees of an image at a stain's own scale: (3, 64, 64) float32."""
    small = resized(image, VIEW_SCALE[stain])
    return as_planes(window(small, (small.shape[1] / 2, small.shape[0] / 2), VIEW_PX))


def train_classifier(cells: Cells, stain: str, net_name: str, seed: int, path: Path) -> torch.nn.Module:
    """A classifier of one stain's training part; no colour is changed, so that it knows its stain alone."""
    import timm

    torch.manual_seed(seed)
    net = timm.create_model(net_name, num_classes=len(CLASSES), pretrained=False)
    if path.is_file():
        net.load_state_dict(torch.load(path, weights_only=True))
        return net.eval()
    part = cells.part("train")
    views = torch.from_numpy(np.stack([view(i, stain) for i in part.images]))
    labels = torch.tensor([CLASSES.index(label) for label in part.labels])
    share = 1.0 / np.bincount(labels, minlength=len(CLASSES))[labels]
    per_epoch, batch = max(96, len(part)), 16  # an epoch of few cells is a longer one
    steps = NETS[net_name] * per_epoch // batch
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    rng = np.random.default_rng([seed, 5])
    net.train()
    for _ in range(steps):
        chosen = rng.choice(len(part), batch, p=share / share.sum())
        seen = []
        for i in chosen:
            x = torch.rot90(views[i], int(rng.integers(4)), (1, 2))
            x = x.flip(2) if rng.random() < 0.5 else x
            seen.append(x.roll((int(rng.integers(-4, 5)), int(rng.integers(-4, 5))), (1, 2)))
        loss = torch.nn.functional.cross_entropy(
            net((torch.stack(seen) - 0.7) / 0.25), labels[chosen], label_smoothing=0.05
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), path)
    return net.eval()


@torch.no_grad()
def right(net: torch.nn.Module, images: Sequence[Array], labels: Sequence[str], stain: str) -> Array:
    """(n,) 1.0 where the classifier names the class; `stain` says at what scale the images are."""
    views = torch.from_numpy(np.stack([view(i, stain) for i in images]))
    named = net((views - 0.7) / 0.25).argmax(dim=1).numpy()
    return (named == np.asarray([CLASSES.index(label) for label in labels])).astype(float)


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
            epochs=max(EPOCHS), batch=4, learning_rate=8e-4, ema=0.98, seed=seed, checkpoint_every=36,
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
        self.cells = stained_cells(data)
        small = stained_cells(data, WORK_SCALE, WORK_PX)
        self.set = StainSet(small["tecom"], small["cellavision"])
        self.rows: dict[str, dict[str, Any]] = {}
        self.path = work / "right.json"
        if self.path.is_file():
            self.rows = json.loads(self.path.read_text())

    def part(self, stain: str, part: str) -> Cells:
        """The test cells of a stain, or `SEEN` of the others, by which an epoch is chosen."""
        cells = self.cells[stain]
        splits = ("test",) if part == "test" else ("train", "validation")
        return cells.take(
            [i for i, s in enumerate(cells.splits) if s in splits][: SEEN if part == "seen" else None]
        )

    def judge(
        self, arm: str, source: str, target: str, transfer: Transfer | None, judges: Sequence[Judge]
    ) -> None:
        """Keep which cells of `source` the classifiers of `target` name after the transfer, by part."""
        keys = {j: f"{source}>{target}|{arm}|{j[0]}|{j[1]}" for j in judges}
        if all(key in self.rows for key in keys.values()):
            return
        images = {
            part: [transfer(i) if transfer else i for i in self.part(source, part).images]
            for part in ("seen", "test")
        }
        for (net, seed), key in keys.items():
            path = self.work / "classifiers" / f"{target}-{net}-{seed}.pt"
            judge = train_classifier(self.cells[target], target, net, seed, path)
            row: dict[str, Any] = {}
            for part, shown in images.items():
                cells = self.part(source, part)
                row[part] = right(judge, shown, cells.labels, source).tolist()
                row[f"{part}_groups"] = list(cells.groups)
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
                line["gain"] = interval(values - before, groups)
            table.append(line)
        return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = Path(os.environ.get("SMEARFLOW_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=root / "wbc-masks")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    bench = Benchmark(arguments.data, arguments.work)
    judges: list[Judge] = []
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
