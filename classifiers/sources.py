"""Where labelled cells come from: class folders, label tables, and the three public sets of this project.

A sample is a place in an image with a canonical label.  Images are read lazily; nothing is copied.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from classifiers.taxonomy import CELL_TYPES, DIALECTS, LEVELS, roll_up, to_canonical
from pipeline.errors import BadInput, UnknownName
from storage.image_folders import is_image, label_path, read_rows, sources_of, yolo_images
from storage.images import image_info, read_grey, read_rgb
from storage.near_duplicates import near_duplicate_groups, thumbnail
from storage.tables import read_table

# Copies (JPEG of quality 40, half the size, less light) of the 589 crops that the project has correlate above
# 0.998 with them; two different cells under 0.99, one pair apart.
COPY_LIKENESS = 0.99
PLACE = ("x", "y", "side")
SMEAR_LABELS = Path(__file__).parent / "labels" / "smears_leukocytes.csv"


@dataclass(frozen=True)
class Sample:
    """One labelled cell.

    `x`, `y`, `side`: centre and longer side of the cell in pixels of the image, None where the image is
    a crop centred on it.  `group` keeps what must not be split (one image, near-duplicates) together.
    `weight` is the trust in the label; `is_crop` says that the image is of this cell alone.
    """

    path: Path
    label: str
    source: str
    x: float | None = None
    y: float | None = None
    side: float | None = None
    group: str = ""
    weight: float = 1.0
    is_crop: bool = False


def canonical(name: str) -> str:
    """The canonical label of a class name of any known dialect; raises UnknownName."""
    plain = name.strip().lower().replace(" ", "_").replace("-", "_")
    for candidate in (plain, plain.removesuffix("s")):
        if candidate in CELL_TYPES:
            return candidate
    for dialect, codes in DIALECTS.items():
        if plain.upper() in codes:
            return to_canonical(dialect, plain)
    return to_canonical("canonical", plain)


def level_labels(level: str | tuple[str, ...]) -> tuple[str, ...]:
    """The labels of a level of the taxonomy, of a dialect, or of a list of classes.

    Raises UnknownName for another name, BadInput for fewer than two classes.
    """
    if isinstance(level, tuple):
        labels = tuple(dict.fromkeys(canonical(name) for name in level))
    elif level in LEVELS:
        labels = LEVELS[level]
    elif level in DIALECTS:
        labels = tuple(dict.fromkeys(DIALECTS[level].values()))
    else:
        raise UnknownName("level", level, [*LEVELS, *DIALECTS])
    if len(labels) < 2:
        raise BadInput(f"level {level}: at least two classes are needed.")
    return labels


def to_level(label: str, level: str | tuple[str, ...] = "eight") -> str:
    """The label's ancestor-or-self at a level; a label that has none there is left as it is."""
    return next(iter(roll_up({label: 1.0}, level_labels(level))))


def read_samples(data: Path) -> list[Sample]:
    """Samples of a folder of class folders, or of a table `image,class[,source,patient,x,y,side]`.

    A folder that holds a `labels.csv` is read by it.  Raises BadInput naming the file and the fix.
    """
    table = data if data.is_file() else data / "labels.csv"
    if table.is_file():
        return list(_from_table(table))
    if not data.is_dir():
        raise BadInput(f"{data}: no such folder or table; give class folders or a labels.csv.")
    samples = [
        Sample(path, canonical(folder.name), data.name, group=str(path))
        for folder in sorted(p for p in data.iterdir() if p.is_dir())
        for path in sorted(folder.rglob("*"))
        if is_image(path)
    ]
    if not samples:
        raise BadInput(f"{data}: no images in class folders; name each folder after a class.")
    return samples


def _from_table(table: Path) -> Iterator[Sample]:
    for row in read_table(
        table, ("image", "class"), filled=("image",), optional=("source", "patient", *PLACE)
    ):
        path = table.parent / row["image"]
        place = [row.number(k, "a number of pixels") for k in PLACE]
        source = row.get("source") or table.parent.name
        # Cells of one patient are no independent witnesses: they are never split.
        group = f"{source}/{row['patient']}" if row.get("patient") else str(path)
        yield Sample(path, canonical(row["class"]), source, *place, group=group)


def project_samples(root: Path) -> list[Sample]:
    """The labelled cells of SMEARFLOW_DATA: Barcelona cells, two wbc-masks stains, and smear boxes.

    Red cells are labelled `other`; the classes of smear leukocytes were read by the project from contact
    sheets (`labels/smears_leukocytes.csv`), not by a haematologist, and doubtful ones left out.
    """
    samples = read_samples(root / "cells")
    samples += list(_wbc_masks(root / "wbc-masks"))
    samples += list(_smear_leukocytes(root))
    samples += list(_smear_boxes(root / "smears"))
    return samples


def _wbc_masks(folder: Path) -> Iterator[Sample]:
    for row in read_table(folder / "labels.csv", ("image", "mask", "source", "class")):
        ys, xs = np.nonzero(read_grey(folder / row["mask"]) > 60)
        x0, x1, y0, y1 = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
        path = folder / row["image"]
        place = ((x0 + x1) / 2, (y0 + y1) / 2, float(max(x1 - x0, y1 - y0)))
        label = canonical(row["class"])
        yield Sample(path, label, row["source"], *map(float, place), group=str(path), is_crop=True)


def _smear_leukocytes(root: Path) -> Iterator[Sample]:
    needed = ("image", "source", *PLACE, "class")
    for row in read_table(SMEAR_LABELS, needed, filled=needed):
        path = root / row["image"]
        place = [row.number(k) for k in PLACE]
        yield Sample(path, row["class"], "smears-" + row["source"], *place, group=str(path), weight=0.8)


def _boxes(folder: Path) -> Iterator[tuple[Path, str, int, list[tuple[int, float, float, float]]]]:
    """Image, source, width and boxes (class, x, y, side in px) of every labelled field of a YOLO folder."""
    labelled = sorted((label_path(p), p) for p in yolo_images(folder) if label_path(p).is_file())
    sizes = [(info.width, info.height) for info in (image_info(path) for _, path in labelled)]
    for (labels, path), source, (width, height) in zip(
        labelled, sources_of(folder, [path for _, path in labelled], sizes), sizes, strict=True
    ):
        boxes = [
            (int(c), x * width, y * height, max(w * width, h * height)) for c, x, y, w, h in read_rows(labels)
        ]
        yield path, source, width, boxes


def _smear_boxes(folder: Path, red_cells: float = 0.05) -> Iterator[Sample]:
    """Platelets, and a share of the red cells, of the boxed smears."""
    for path, source, width, boxes in _boxes(folder):
        sides = [side for kind, _, _, side in boxes if kind == 1]
        red = float(np.median(sides)) if sides else 0.22 * width
        for i, (kind, x, y, side) in enumerate(boxes):
            chance = zlib.crc32(f"{path.name}/{i}".encode()) % 1000 / 1000
            if kind == 1 and chance < red_cells:
                yield Sample(path, "other", "smears-" + source, x, y, side, group=str(path))
            elif kind == 2 and (source == "barcelona" or chance < 0.5):
                # A platelet's view holds a red cell's width, so that it is seen to be small.
                yield Sample(path, "platelet", "smears-" + source, x, y, 0.87 * red, group=str(path))


def boxed_cells(folder: Path, limit: int, seed: int = 0) -> list[Sample]:
    """Leukocytes and red cells of a smears folder (YOLO boxes: 0 leukocyte, 1 red cell), without names.

    Every leukocyte is taken first, then red cells of all sources evenly, up to `limit`; the label `other`
    says nothing.  Raises BadInput where there are no boxes.
    """
    leukocytes: list[Sample] = []
    red: dict[str, list[Sample]] = {}
    for path, source, _, boxes in _boxes(folder):
        for kind, x, y, side in boxes:
            if kind in (0, 1) and side >= 8:
                sample = Sample(path, "other", "smears-" + source, x, y, side, group=str(path))
                leukocytes.append(sample) if kind == 0 else red.setdefault(source, []).append(sample)
    if not leukocytes and not red:
        raise BadInput(f"{folder}: no boxed cells; give a folder with images/<part>/ and labels/<part>/.")
    random = np.random.default_rng(seed)
    chosen = [leukocytes[i] for i in random.permutation(len(leukocytes))[:limit]]
    for n, source in enumerate(sorted(red)):
        share = (limit - len(chosen)) // (len(red) - n)
        chosen += [red[source][i] for i in random.permutation(len(red[source]))[:share]]
    return sorted(chosen, key=lambda s: (str(s.path), s.x, s.y))


def split_by_group(samples: Iterable[Sample], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices for training and for holding out `share` of the groups of every source and class.

    Of every class some groups are left to learn from, and one at least is held out where a class has more
    than one to spare.  Deterministic in the group's name and the seed, so an added sample moves no other.
    """
    samples = list(samples)
    ranked = _ranked(samples, seed)
    groups = {samples[i].group for part in ranked for i in part[: round(share * len(part))]}
    if share > 0:
        _some_of_each(samples, [i for part in ranked for i in part], groups)
    held = [i for i, s in enumerate(samples) if s.group in groups]
    return [i for i, s in enumerate(samples) if s.group not in groups], held


def _some_of_each(samples: Sequence[Sample], order: Sequence[int], held: set[str]) -> None:
    """Change the groups in `held` where they are all or none of a class: the last in an order of samples
    is given back, the first added that leaves every class one to learn from."""
    groups_of: dict[str, dict[str, None]] = {}
    classes_of: dict[str, set[str]] = {}
    for i in order:
        groups_of.setdefault(samples[i].label, {})[samples[i].group] = None
        classes_of.setdefault(samples[i].group, set()).add(samples[i].label)
    each = [groups for _, groups in sorted(groups_of.items())]
    for groups in each:
        if held.issuperset(groups):
            held.discard(list(groups)[-1])
    for groups in each:
        if held.isdisjoint(groups):
            spared = (g for g in groups if all(groups_of[c].keys() - held - {g} for c in classes_of[g]))
            held.update(itertools.islice(spared, 1))


def folds_by_group(samples: Iterable[Sample], folds: int, seed: int) -> list[list[int]]:
    """Indices of as many parts as `folds`, each with its share of every source and class; a group that
    holds several classes is wholly in one part."""
    samples = list(samples)
    fold_of: dict[str, int] = {}
    for part in _ranked(samples, seed):
        for rank, i in enumerate(part):
            fold_of.setdefault(samples[i].group, rank * folds // len(part))
    return [[i for i, s in enumerate(samples) if fold_of[s.group] == fold] for fold in range(folds)]


def _ranked(samples: Sequence[Sample], seed: int) -> list[list[int]]:
    """Indices of each source and class, in an order drawn from the seed and the name of the group alone."""
    ranked: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for i, s in enumerate(samples):
        key = zlib.crc32(f"{seed}/{Path(s.group).name}".encode())
        ranked.setdefault((s.source, s.label), []).append((key, i))
    return [[i for _, i in sorted(part)] for part in ranked.values()]


def level_classes(level: str | tuple[str, ...]) -> tuple[str, ...]:
    """The classes of a level in alphabetical order, the order of a network's outputs."""
    return tuple(sorted(level_labels(level)))


def group_duplicates(samples: Sequence[Sample], likeness: float = 0.95) -> list[Sample]:
    """The samples with near-duplicate images in one group, by the correlation of 24 px thumbnails.

    Groups of which images are alike become one, named as that of their first image; no group is split.
    """
    paths = sorted({s.path for s in samples})
    if not paths:
        return []
    small = np.stack([thumbnail(read_rgb(path)) for path in paths])
    alike = dict(zip(paths, near_duplicate_groups(small, likeness, turned=False).tolist(), strict=True))
    number: dict[str, int] = {}
    for s in sorted(samples, key=lambda s: s.path):
        number.setdefault(s.group, len(number))
    names, joined = list(number), list(range(len(number)))

    def first(group: int) -> int:
        while joined[group] != group:
            joined[group] = joined[joined[group]]
            group = joined[group]
        return group

    group_of: dict[int, int] = {}
    for s in samples:
        a, b = first(number[s.group]), first(group_of.setdefault(alike[s.path], number[s.group]))
        joined[max(a, b)] = min(a, b)
    return [replace(s, group=names[first(number[s.group])]) for s in samples]


def with_copies_together(
    samples: Sequence[Sample], report: Callable[[str], None] = lambda line: None
) -> list[Sample]:
    """The samples with copies of one image (stored again, of another size or quality) in one group; says how
    many groups that joined."""
    found = group_duplicates(samples, COPY_LIKENESS)
    joined = len({s.group for s in samples}) - len({s.group for s in found})
    if joined:
        report(f"near-duplicate images join {joined} groups to others: they stay on one side of the split")
    return found
