"""Which images a detector learns from, is chosen by and is measured on, and which of a folder it has seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from detectors.datasets import Sample, split
from pipeline.errors import BadInput
from storage.fingerprint import sha256_of
from storage.packages import SPLIT_FILE, ModelPackage
from storage.tables import read_table, write_table

PARTS = ("train", "val", "test")
COLUMNS = ("image", "part", "sha256")


def parts_of(
    data_dir: Path, samples: list[Sample], fractions: Mapping[str, float], seed: int
) -> tuple[dict[str, list[Sample]], str]:
    """Samples by part, and in words who parted them: the folder where it has two or more parts, else `split`.

    Raises BadInput where a folder with parts holds an image that lies in none.
    """
    given = {part: [s for s in samples if part in s.tags] for part in PARTS}
    if sum(map(bool, given.values())) < 2:
        shares = " / ".join(f"{fractions[p]:.0%}" for p in PARTS)
        return split(samples, dict(fractions), seed), f"{shares} by source, near-duplicates together"
    outside = next((s for s in samples if not set(PARTS) & set(s.tags)), None)
    if outside is not None:
        raise BadInput(
            f"{outside.path} lies in none of the parts (train, val, test) of {data_dir}; move it into one."
        )
    return given, "as the folder gives it"


def remarks_on(parts: Mapping[str, list[Sample]]) -> list[str]:
    """What of a split one has to know before its figures are believed, a sentence each."""
    out = []
    if not any(len(s.of(0)) for s in parts["val"]):
        out.append("No validation image shows a leukocyte, so the last epoch is kept, not the best.")
    if not parts["test"]:
        out.append("There is no test part, so the card has no figures; measure on images kept back.")
    seen = {s.group for s in parts["train"]}
    twins = sum(s.group in seen for part in ("val", "test") for s in parts[part])
    if twins:
        out.append(
            f"Images of val and test that are near-duplicates of training images and flatter: {twins}."
        )
    samples = [s for part in parts.values() for s in part]
    if bare := n_without_label_file(samples):
        out.append(f"{bare} of {len(samples)} images have no label file and count as images without cells.")
    return out


def n_without_label_file(samples: list[Sample]) -> int:
    return sum(not s.label_file for s in samples)


def write_split(parts: Mapping[str, list[Sample]], data_dir: Path, *folders: Path) -> None:
    """Write split.csv (image relative to the data folder, part, sha256 of its file) to each folder."""
    rows = [
        {"image": s.path.relative_to(data_dir).as_posix(), "part": part, "sha256": sha256_of(s.path)}
        for part in PARTS
        for s in parts[part]
    ]
    for folder in folders:
        write_table(folder / SPLIT_FILE, COLUMNS, rows)


def unseen(package: ModelPackage | None, name: str, data_dir: Path, samples: list[Sample]) -> list[Sample]:
    """The samples whose images the package's training neither learned from nor chose an epoch by.

    Images are known by their files' bytes, not their names.  Raises BadInput where the package holds no
    split.csv, or has seen every image.
    """
    table = None if package is None else package.folder / SPLIT_FILE
    if table is None or not table.is_file():
        raise BadInput(
            f"{name}: its package does not say which images its training saw ({SPLIT_FILE}); leave out "
            "--held-out and measure on images that it never saw."
        )
    seen = {r["sha256"] for r in read_table(table, COLUMNS) if r["part"] != "test"}
    left = [s for s in samples if sha256_of(s.path) not in seen]
    if not left:
        raise BadInput(f"{data_dir}: '{name}' was trained on all of its {len(samples)} images; give others.")
    return left
