"""The canonical hierarchy of cell classes, and the dialects of laboratories and public sets.

A label is a node of one tree.  A dialect's code maps to the node that it certainly says: to a parent
where the code leaves the child open (`ig` of the Barcelona set, `LYA` of the Munich LMU set), never
to a guessed child.  Probabilities roll up the tree by summing.  Nothing here needs torch.

Sources: class lists of Matek et al. 2019 (LMU), Matek et al. 2021 (Bone-Marrow-Cytomorphology, 21
classes), Acevedo et al. 2020 (Barcelona PBC, 8 classes); differential counting after ICSH 2008
(bone marrow) and ICSH 2015 (peripheral blood).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import BadInput, UnknownName

TAXONOMY_VERSION = "1.0.0"

Lineage = Literal["myeloid", "monocytic", "lymphoid", "erythroid", "blast", "none"]


@dataclass(frozen=True)
class CellType:
    """One node of the tree.

    `blood` and `marrow` say whether a cell of it stands in that specimen's differential denominator;
    `lineage` is what the M:E ratio is built from.  `order` of reports is the order of this table.
    """

    name: str
    display: str
    short: str
    parent: str | None
    lineage: Lineage
    blood: bool
    marrow: bool


def _leukocyte(
    name: str, display: str, short: str, lineage: Lineage, parent: str | None = "leukocyte"
) -> CellType:
    return CellType(name, display, short, parent, lineage, blood=True, marrow=True)


def _outside(name: str, display: str, short: str) -> CellType:
    return CellType(name, display, short, None, "none", blood=False, marrow=False)


# In the order of maturation in which a laboratory reads a differential.
_TABLE: tuple[CellType, ...] = (
    _leukocyte("leukocyte", "Leukocytes", "WBC", "none", parent=None),
    # Lineage unknown from morphology alone (myeloblast, monoblast, lymphoblast): under no granulocyte.
    _leukocyte("blast", "Blasts", "BL", "blast"),
    # Bilobed or faggot cells of promyelocytic leukaemia: counted with blasts by ICSH, so no child of the
    # immature granulocytes.
    _leukocyte("promyelocyte_atypical", "Atypical promyelocytes", "PMB", "myeloid"),
    _leukocyte("immature_granulocyte", "Immature granulocytes", "IG", "myeloid"),
    _leukocyte("promyelocyte", "Promyelocytes", "PMY", "myeloid", "immature_granulocyte"),
    _leukocyte("myelocyte", "Myelocytes", "MY", "myeloid", "immature_granulocyte"),
    _leukocyte("metamyelocyte", "Metamyelocytes", "MMY", "myeloid", "immature_granulocyte"),
    _leukocyte("neutrophil", "Neutrophils", "NEU", "myeloid"),
    _leukocyte("neutrophil_band", "Band neutrophils", "BNE", "myeloid", "neutrophil"),
    _leukocyte("neutrophil_segmented", "Segmented neutrophils", "SNE", "myeloid", "neutrophil"),
    _leukocyte("eosinophil", "Eosinophils", "EO", "myeloid"),
    _leukocyte("basophil", "Basophils", "BA", "myeloid"),
    _leukocyte("monocyte", "Monocytes", "MO", "monocytic"),
    _leukocyte("lymphocyte", "Lymphocytes", "LY", "lymphoid"),
    _leukocyte("lymphocyte_atypical", "Atypical lymphocytes", "LYA", "lymphoid", "lymphocyte"),
    _leukocyte("lymphocyte_reactive", "Reactive lymphocytes", "RL", "lymphoid", "lymphocyte_atypical"),
    _leukocyte("lymphocyte_abnormal", "Abnormal lymphocytes", "ALC", "lymphoid", "lymphocyte_atypical"),
    _leukocyte("plasma_cell", "Plasma cells", "PC", "lymphoid"),
    CellType("erythroblast", "Erythroblasts", "NRBC", None, "erythroid", blood=False, marrow=True),
    CellType(
        "proerythroblast", "Proerythroblasts", "PEB", "erythroblast", "erythroid", blood=False, marrow=True
    ),
    _outside("megakaryocyte", "Megakaryocytes", "MGK"),
    _outside("platelet", "Platelets", "PLT"),
    _outside("smudge", "Smudge cells", "SMU"),
    _outside("artefact", "Artefacts", "ART"),
    _outside("unidentified", "Unidentified cells", "NIF"),
    _outside("other", "Other cells", "OTH"),
)

CELL_TYPES: dict[str, CellType] = {t.name: t for t in _TABLE}
ORDER: dict[str, int] = {t.name: i for i, t in enumerate(_TABLE)}

# code (upper case) -> canonical label.  A code that a set uses for several nodes names their parent.
DIALECTS: dict[str, dict[str, str]] = {
    "lmu": {
        "NGS": "neutrophil_segmented",
        "NGB": "neutrophil_band",
        "MMZ": "metamyelocyte",
        "MYB": "myelocyte",  # not a myeloblast: that is MYO
        "PMO": "promyelocyte",
        "PMB": "promyelocyte_atypical",
        "MYO": "blast",
        "MOB": "blast",  # monoblast
        "EOS": "eosinophil",
        "BAS": "basophil",
        "MON": "monocyte",
        "LYT": "lymphocyte",
        "LYA": "lymphocyte_atypical",  # reactive or abnormal, the code does not say
        "EBO": "erythroblast",  # proerythroblasts included
        "KSC": "smudge",  # Kernschatten
    },
    "bm-21": {
        "NGS": "neutrophil_segmented",
        "NGB": "neutrophil_band",
        "MMZ": "metamyelocyte",
        "MYB": "myelocyte",
        "PMO": "promyelocyte",
        "FGC": "promyelocyte_atypical",  # faggot cell
        "BLA": "blast",
        "EOS": "eosinophil",
        "ABE": "eosinophil",  # abnormal eosinophil
        "BAS": "basophil",
        "MON": "monocyte",
        "LYT": "lymphocyte",
        "LYI": "lymphocyte_abnormal",
        "HAC": "lymphocyte_abnormal",  # hairy cell
        "PLM": "plasma_cell",
        "PEB": "proerythroblast",
        "EBO": "erythroblast",
        "KSC": "smudge",
        "ART": "artefact",
        "NIF": "unidentified",  # not identifiable, not "not infiltrated"
        "OTH": "other",
    },
    # Folder names and file prefixes of the set; the prefix says more where it is one.
    "pbc-8": {
        "NEUTROPHIL": "neutrophil",
        "SNE": "neutrophil_segmented",
        "BNE": "neutrophil_band",
        "IG": "immature_granulocyte",
        "MMY": "metamyelocyte",
        "MY": "myelocyte",
        "PMY": "promyelocyte",
        "EOSINOPHIL": "eosinophil",
        "EO": "eosinophil",
        "BASOPHIL": "basophil",
        "BA": "basophil",
        "MONOCYTE": "monocyte",
        "MO": "monocyte",
        "LYMPHOCYTE": "lymphocyte",
        "LY": "lymphocyte",
        "ERYTHROBLAST": "erythroblast",
        "ERB": "erythroblast",
        "PLATELET": "platelet",
        "PLT": "platelet",
    },
    "thesis": {
        "SNE": "neutrophil_segmented",
        "BNE": "neutrophil_band",
        "MMY": "metamyelocyte",
        "MY": "myelocyte",
        "PMY": "promyelocyte",
        "BL": "blast",
        "EO": "eosinophil",
        "BA": "basophil",
        "MO": "monocyte",
        "LY": "lymphocyte",
        "RL": "lymphocyte_reactive",
        "ALC": "lymphocyte_abnormal",
        "PC": "plasma_cell",
        "NRBC": "erythroblast",
        "SMU": "smudge",
        "ART": "artefact",
    },
}

# Folder names of the double-labelled crops, and of the crops that were set aside.
DIALECTS["raabin"] = {
    "NEUTROPHIL": "neutrophil",
    "EOSINOPHIL": "eosinophil",
    "BASOPHIL": "basophil",
    "MONOCYTE": "monocyte",
    "LYMPHOCYTE": "lymphocyte",
    "LARGE LYMPH": "lymphocyte",
    "SMALL LYMPH": "lymphocyte",
    "BAND": "neutrophil_band",
    "META": "metamyelocyte",
    "BURST": "smudge",
    "ARTIFACT": "artefact",
}

# Patient-level label sets that are often mistaken for cell labels.
_PATIENT_LABELS = {"mll-helmholtz", "aml-cytomorphology_mll_helmholtz"}

# Sets of labels that probabilities can be rolled up to.
LEVELS: dict[str, tuple[str, ...]] = {
    "five": ("neutrophil", "eosinophil", "basophil", "monocyte", "lymphocyte"),
    "eight": (
        "neutrophil",
        "immature_granulocyte",
        "eosinophil",
        "basophil",
        "monocyte",
        "lymphocyte",
        "erythroblast",
        "platelet",
    ),
    "top": tuple(t.name for t in _TABLE if t.name != "leukocyte" and t.parent in (None, "leukocyte")),
    "leukocyte": tuple(t.name for t in _TABLE if t.parent is None),
}


def cell_type(label: str) -> CellType:
    """The node of a canonical label; raises UnknownName with the labels that exist."""
    try:
        return CELL_TYPES[label]
    except KeyError:
        raise UnknownName("cell class", label, list(CELL_TYPES)) from None


def to_canonical(dialect: str, code: str) -> str:
    """The canonical label of a dialect's code (case does not matter).

    Raises UnknownName for a dialect or code that is not known, and BadInput for a set whose labels
    are of patients, not of cells.
    """
    name = dialect.strip().lower()
    if name in _PATIENT_LABELS:
        raise BadInput(
            f"'{dialect}': its five classes are diagnoses of patients, not names of cells; use a cell set."
        )
    if name == "canonical":
        return cell_type(code.strip().lower()).name
    if name not in DIALECTS:
        raise UnknownName("dialect", dialect, [*DIALECTS, "canonical"])
    codes = DIALECTS[name]
    try:
        return codes[code.strip().upper()]
    except KeyError:
        raise UnknownName(f"{name} class", code, list(codes)) from None


def from_file_prefix(file_name: str) -> str:
    """The canonical label of a Barcelona file name, `BNE_12345.jpg` -> neutrophil_band."""
    stem = file_name.replace("\\", "/").rsplit("/", 1)[-1]
    return to_canonical("pbc-8", stem.split("_", 1)[0].split("-", 1)[0].split(".", 1)[0])


def parent(label: str) -> str | None:
    """The label above, or None at the top."""
    return cell_type(label).parent


def ancestors(label: str) -> tuple[str, ...]:
    """The labels above, nearest first."""
    found: list[str] = []
    above = parent(label)
    while above is not None:
        found.append(above)
        above = parent(above)
    return tuple(found)


def children(label: str) -> tuple[str, ...]:
    """The labels right below, in the order of reports."""
    cell_type(label)
    return tuple(t.name for t in _TABLE if t.parent == label)


def descendants(label: str) -> tuple[str, ...]:
    """Every label below, in the order of reports."""
    cell_type(label)
    return tuple(t.name for t in _TABLE if label in ancestors(t.name))


def is_a(label: str, other: str) -> bool:
    """Whether a label is another or lies below it."""
    cell_type(other)
    return label == other or other in ancestors(label)


def compatible(a: str, b: str) -> bool:
    """Whether two labels can both be true of one cell: equal, or one above the other."""
    return is_a(a, b) or is_a(b, a)


def roll_up(probabilities: Mapping[str, float], to_level: str | Iterable[str]) -> dict[str, float]:
    """Sum probabilities up the tree to a level of `LEVELS` or a set of labels.

    A class goes to the nearest label of the level at or above it; one with none keeps its own name,
    so the sum never changes.
    """
    if isinstance(to_level, str):
        if to_level not in LEVELS:
            raise UnknownName("level", to_level, list(LEVELS))
        level = set(LEVELS[to_level])
    else:
        level = {cell_type(label).name for label in to_level}
    total: dict[str, float] = {}
    for label, p in probabilities.items():
        node = next((n for n in (label, *ancestors(label)) if n in level), label)
        total[node] = total.get(node, 0.0) + float(p)
    return total


def in_denominator(label: str, specimen: str | None) -> bool:
    """Whether a cell of the label counts in the differential of a specimen.

    Blood: leukocytes.  Marrow: leukocytes and erythroblasts.  An unknown specimen counts as blood.
    Smudge cells, artefacts, unidentified and other cells, platelets and megakaryocytes never count.
    """
    node = cell_type(label)
    return node.marrow if specimen == "bone_marrow" else node.blood


def denominator_classes(specimen: str | None) -> tuple[str, ...]:
    """Labels in a specimen's denominator, in the order of reports."""
    return tuple(t.name for t in _TABLE if in_denominator(t.name, specimen))


def excluded_classes(specimen: str | None) -> tuple[str, ...]:
    """Labels left out of a specimen's denominator, in the order of reports."""
    return tuple(t.name for t in _TABLE if not in_denominator(t.name, specimen))


def is_leukocyte(label: str) -> bool:
    """Whether the label is a white cell; erythroblasts and platelets are not."""
    return is_a(label, "leukocyte")


def is_erythroblast(label: str) -> bool:
    """Whether the label is a nucleated red cell of any stage."""
    return is_a(label, "erythroblast")


def is_myeloid(label: str, *, monocytes: bool = True, blasts: bool = False) -> bool:
    """Whether the label is in M of the M:E ratio: granulocytes and their precursors.

    Monocytes by convention of the laboratory.  Blasts are out by default, for a blast's lineage is not
    known from its look.
    """
    lineage = cell_type(label).lineage
    return lineage == "myeloid" or (monocytes and lineage == "monocytic") or (blasts and lineage == "blast")


def is_erythroid(label: str) -> bool:
    """Whether the label is in E of the M:E ratio."""
    return cell_type(label).lineage == "erythroid"


def display_name(label: str) -> str:
    """The name as a report prints it, plural."""
    return cell_type(label).display


def report_order(labels: Iterable[str]) -> list[str]:
    """Labels in the order in which a laboratory reads a differential."""
    return sorted(labels, key=lambda label: ORDER[cell_type(label).name])
