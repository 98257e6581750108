"""Public sets as they are downloaded, each with its traps; every label becomes canonical.

| reader | layout | patients |
|---|---|---|
| folders | `<class>/…/image`, or `labels.csv` (image, class[, source, patient, x, y, side]) | column |
| project | the local data of this project (SMEARFLOW_DATA) | - |
| lmu | `<CODE>/<CODE>_0001.tiff`, `annotations.dat` | not published |
| mll-helmholtz | `<diagnosis>/<patient>/image_0.tif`, `metadata.csv` | folders |
| bm-21 | `<CODE>/0001-1000/<CODE>_00001.jpg` | not published |
| pbc-8 | `<class>/<PREFIX>_123456.jpg` | not published |
| raabin | `Train`, `TestA`, `TestB`, each `<Class>/image.jpg` | not published |

A root may be the folder that the archive unpacks to, or one or two folders above it.  Nothing is skipped in
silence: what does not fit the layout is refused with the first file that does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from classifiers.sources import Sample, group_duplicates, project_samples
from classifiers.taxonomy import DIALECTS, compatible, from_file_prefix, is_a, to_canonical
from pipeline.errors import BadInput
from storage.image_folders import is_image
from storage.tables import read_table

DISAGREEMENT_WEIGHT = 0.5  # trust in a label that an expert of the set read otherwise


def _root(data: Path, names: Sequence[str], what: str) -> Path:
    """The folder in or up to two levels below `data` that has a subfolder of one of these names."""
    wanted = {n.lower() for n in names}
    level = [data]
    for _ in range(3):
        found = [
            p
            for p in level
            if p.is_dir() and any(c.is_dir() and c.name.lower() in wanted for c in p.iterdir())
        ]
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            both = " and ".join(p.name for p in found[:2])
            raise BadInput(f"{data}: {what} stands in several places ({both}); name one of them.")
        level = sorted(c for p in level if p.is_dir() for c in p.iterdir() if c.is_dir())
    raise BadInput(f"{data}: no {what} here; its folders are named {', '.join(list(names)[:4])} and so on.")


def _images(folder: Path) -> list[Path]:
    """Image files of a folder and all below it; hidden files, of which the archives hold some, are none."""
    return sorted(p for p in folder.rglob("*") if is_image(p))


def _folders(root: Path) -> Iterator[tuple[str, list[Path]]]:
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        images = _images(folder)
        if images:
            yield folder.name, images


def _crop(path: Path, label: str, source: str, group: str = "", weight: float = 1.0) -> Sample:
    return Sample(path, label, source, group=group or str(path), weight=weight, is_crop=True)


def read_lmu(data: Path) -> list[Sample]:
    """AML-Cytomorphology_LMU (Matek et al. 2019): class folders of 400 px TIFF, and `annotations.dat`.

    The table has a path, the label, and for some cells two re-annotations; where one of them disagrees the
    sample is trusted half.  MYB is a myelocyte (a myeloblast is MYO), KSC a smudge cell, LYA a parent.
    """
    root = _root(data, list(DIALECTS["lmu"]), "AML-Cytomorphology_LMU")
    # The table is a download of its own and may lie beside the image folder.
    table = next(
        (t for t in (root / "annotations.dat", *_nearby(data, "annotations.dat")) if t.is_file()), None
    )
    if table is None:
        return [
            _crop(path, to_canonical("lmu", code), "lmu")
            for code, images in _folders(root)
            for path in images
        ]
    samples = []
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), start=1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) < 2:
            raise BadInput(f"{table}, line {number}: a path and a label are needed, found '{line}'.")
        path = root / parts[0]
        if not path.is_file():
            raise BadInput(f"{table}, line {number}: {path} is missing; complete the download.")
        label = to_canonical("lmu", parts[1])
        others = [to_canonical("lmu", p) for p in parts[2:4] if p.lower() != "nan"]
        doubted = any(not compatible(label, other) for other in others)
        samples.append(_crop(path, label, "lmu", weight=DISAGREEMENT_WEIGHT if doubted else 1.0))
    if not samples:
        raise BadInput(f"{table} names no image; restore it or remove it to read the folders alone.")
    return samples


def _nearby(data: Path, name: str) -> list[Path]:
    return [*sorted(data.glob(f"*/{name}")), data / name, data.parent / name]


def read_bm21(data: Path) -> list[Sample]:
    """Bone-Marrow-Cytomorphology (Matek et al. 2021): 21 class folders, in them ranges of 1,000 images.

    BLA are blasts, FGC atypical promyelocytes, NIF cells that could not be identified; ABE, LYI, HAC and
    PEB have no class in the other sets.  The 945 patients are not published per image.
    """
    root = _root(data, list(DIALECTS["bm-21"]), "Bone-Marrow-Cytomorphology")
    samples = []
    for code, images in _folders(root):
        label = to_canonical("bm-21", code)
        for path in images:
            prefix = path.name.split("_", 1)[0]
            if prefix.upper() != code.upper():
                raise BadInput(f"{path}: an image of {prefix} in the folder {code}; put it in its own.")
            samples.append(_crop(path, label, "bm-21"))
    return samples


def read_pbc8(data: Path) -> list[Sample]:
    """Barcelona PBC (Acevedo et al. 2020): eight class folders; a file's prefix may say more.

    `ig` is three stages in one (MMY, MY, PMY; plain IG where it was not said), `neutrophil` segmented and
    band (SNE, BNE).  The label is the prefix's where the set names it.
    """
    classes = (
        "basophil",
        "eosinophil",
        "erythroblast",
        "ig",
        "lymphocyte",
        "monocyte",
        "neutrophil",
        "platelet",
    )
    root = _root(data, classes, "Barcelona PBC")
    samples = []
    for name, images in _folders(root):
        folder = to_canonical("pbc-8", name)
        for path in images:
            label = from_file_prefix(path.name)
            if not is_a(label, folder):
                raise BadInput(f"{path}: its prefix says {label}, its folder {folder}; put it in its own.")
            samples.append(_crop(path, label, "barcelona"))
    return samples


def read_raabin(data: Path) -> list[Sample]:
    """Raabin-WBC (Kouzehkanan et al. 2022), the double-labelled crops: five classes in Train, TestA, TestB.

    TestB is of another microscope and camera and has lymphocytes and neutrophils only.  The part is in the
    sample's source; crops of one photograph (all of a file's name but its last number) stay together.
    """
    parts = ("Train", "TestA", "TestB", "Test-A", "Test-B", "Test_A", "Test_B")
    try:
        root = _root(data, parts, "Raabin-WBC")
    except BadInput:
        classes = ("Basophil", "Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil")
        return _raabin_part(_root(data, classes, "Raabin-WBC"))
    return [
        sample
        for part in sorted(root.iterdir())
        if part.is_dir() and part.name.lower() in {p.lower() for p in parts}
        for sample in _raabin_part(part)
    ]


def _raabin_part(folder: Path) -> list[Sample]:
    source = "raabin-" + folder.name.lower().replace("-", "").replace("_", "")
    return [
        _crop(path, to_canonical("raabin", name), source, group=f"raabin/{path.stem.rsplit('_', 1)[0]}")
        for name, images in _folders(folder)
        for path in images
    ]


def read_project(data: Path) -> list[Sample]:
    """The local data of this project (`sources.project_samples`), near-duplicates in one group."""
    if not (data / "cells").is_dir() or not (data / "wbc-masks").is_dir():
        raise BadInput(f"{data}: no folders cells and wbc-masks here; name the folder of SMEARFLOW_DATA.")
    return group_duplicates(project_samples(data))


@dataclass(frozen=True)
class PatientImages:
    """The single-cell images of one patient, and the diagnosis that is the patient's and no cell's."""

    patient: str
    diagnosis: str
    images: tuple[Path, ...]


DIAGNOSES = ("CBFB_MYH11", "NPM1", "PML_RARA", "RUNX1_RUNX1T1", "control")


def read_mll_patients(data: Path) -> list[PatientImages]:
    """AML-Cytomorphology_MLL_Helmholtz (Hehr et al. 2023): a folder a patient below one of five diagnoses.

    Where `metadata.csv` stands beside them (patient_id, bag_label), it must agree with the folders.
    """
    root = _root(data, DIAGNOSES, "AML-Cytomorphology_MLL_Helmholtz")
    known = {d.lower(): d for d in DIAGNOSES}
    patients = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and p.name.lower() in known):
        for patient in sorted(p for p in folder.iterdir() if p.is_dir()):
            images = tuple(_images(patient))
            if images:
                patients.append(PatientImages(patient.name, known[folder.name.lower()], images))
    if not patients:
        raise BadInput(f"{root}: no patient folders below the diagnoses; unpack the whole set.")
    table = next((t for t in (root / "metadata.csv", *_nearby(data, "metadata.csv")) if t.is_file()), None)
    if table is not None:
        rows = read_table(table, ("patient_id", "bag_label"), any_bytes=True)
        stated = {r["patient_id"]: r["bag_label"] for r in rows}
        for p in patients:
            if p.patient in stated and stated[p.patient].lower() != p.diagnosis.lower():
                raise BadInput(
                    f"{table}: patient {p.patient} is {stated[p.patient]} there and {p.diagnosis} by folder."
                )
    return patients


def mll_cells_without_names(data: Path) -> list[Sample]:
    """The cells of that set for training without labels: `other` says nothing, groups are patients."""
    return [
        _crop(path, "other", "mll-helmholtz", group=f"mll/{p.patient}")
        for p in read_mll_patients(data)
        for path in p.images
    ]
