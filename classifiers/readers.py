"""Readers by name: how a set of labelled cells is read (`set_layouts`), and what must be known of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from classifiers.set_layouts import (
    mll_cells_without_names,
    read_bm21,
    read_lmu,
    read_pbc8,
    read_project,
    read_raabin,
)
from classifiers.sources import Sample, read_samples
from pipeline.errors import BadInput, UnknownName


@dataclass(frozen=True)
class Reader:
    """A public set: how it is read, what it is, and what must be known of it.

    `pixel_size_um` is that of its images, None where it differs or is not published; `traps` are printed by
    the documentation and the card.  `labels` says whose labels they are.  `stains` (MGG stands for all stains
    of Romanowsky's kind) and `specimens` are empty where the set does not say.
    """

    name: str
    read: Callable[[Path], list[Sample]]
    citation: str
    licence: str
    pixel_size_um: float | None = None
    labels: str = "cells"
    traps: tuple[str, ...] = ()
    stains: tuple[str, ...] = ()
    specimens: tuple[str, ...] = ()


READERS: dict[str, Reader] = {}


def register_reader(reader: Reader) -> Reader:
    """Make a reader known by its name; a second one of the same name is refused."""
    if reader.name in READERS:
        raise ValueError(f"reader '{reader.name}' is registered twice")
    READERS[reader.name] = reader
    return reader


def reader_of(name: str) -> Reader:
    """The reader of a name; raises UnknownName with those that exist."""
    if name not in READERS:
        raise UnknownName("reader", name, list(READERS))
    return READERS[name]


def read_cells(data: Path, name: str = "folders") -> list[Sample]:
    """Labelled cells of a folder by the reader of a name.

    Raises UnknownName for the name, BadInput where the folder does not have its layout, or where its labels
    are of patients.
    """
    reader = reader_of(name)
    if reader.labels != "cells":
        raise BadInput(
            f"'{name}': its labels are {reader.labels}, not names of cells; name another reader, or train a"
            " patient-level model on it."
        )
    return reader.read(data)


register_reader(
    Reader("folders", read_samples, "labelled cells given by the user", "the user's", None, "cells")
)
register_reader(
    Reader(
        "project",
        read_project,
        "Barcelona PBC cells (Acevedo 2020), segmentation_WBC (Zheng 2018), TXL-PBC smears; the classes of"
        " the smears' leukocytes read by the project",
        "CC BY 4.0; GPL-3.0; MIT",
        traps=("the classes of smear leukocytes were read by a machine, not by a haematologist",),
        stains=("MGG",),
        specimens=("blood",),
    )
)
register_reader(
    Reader(
        "lmu",
        read_lmu,
        "AML-Cytomorphology_LMU: Matek, Schwarz, Marr, Spiekermann 2019, TCIA,"
        " doi 10.7937/tcia.2019.36f5o9ld",
        "CC BY 3.0",
        0.07072,
        traps=(
            "MYB is myelocyte, KSC smudge, LYA reactive or abnormal, EBO holds proerythroblasts",
            "patients are not published: cells of one patient can fall on both sides of a split",
        ),
        stains=("MGG",),
        specimens=("blood",),
    )
)
register_reader(
    Reader(
        "mll-helmholtz",
        mll_cells_without_names,
        "AML-Cytomorphology_MLL_Helmholtz: Hehr et al. 2023, TCIA, doi 10.7937/6ppe-4020",
        "CC BY 4.0",
        0.1725,
        labels="diagnoses of patients",
        traps=("its five classes are genetic subtypes of patients and controls, not names of cells",),
    )
)
register_reader(
    Reader(
        "bm-21",
        read_bm21,
        "Bone-Marrow-Cytomorphology: Matek, Krappe, Münzenmayer, Haferlach, Marr 2021, TCIA,"
        " doi 10.7937/TCIA.AXH3-T579",
        "CC BY 4.0",
        0.086,
        traps=(
            "NIF is not identifiable, KSC smudge, MYB myelocyte, FGC faggot cell; marrow, not blood",
            "patients are not published per image",
        ),
        stains=("MGG",),
        specimens=("bone_marrow",),
    )
)
register_reader(
    Reader(
        "pbc-8",
        read_pbc8,
        "Barcelona PBC: Acevedo et al. 2020, Data in Brief 30:105474, doi 10.17632/snkd93bnjr.1",
        "CC BY 4.0",
        None,
        traps=("ig is three stages in one folder, neutrophil two; the file prefix says which",),
        stains=("MGG",),
        specimens=("blood",),
    )
)
register_reader(
    Reader(
        "raabin",
        read_raabin,
        "Raabin-WBC: Kouzehkanan et al. 2022, Scientific Reports 12:1123",
        "free for research, cite the paper",
        None,
        traps=("TestB is of another microscope and camera and holds two classes",),
        stains=("MGG",),
        specimens=("blood",),
    )
)
