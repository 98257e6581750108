"""Stage: the pattern that all cells of a case make together, and the cells that it rests on.

The stage is blind to the classes that were named: it reads the cell classifier's embeddings, so that a kind
of cell which the classifier has no name for (a blast, say) can still count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from classifiers.patients import PatientClassifier
from pipeline.errors import BadInput
from pipeline.types import AttendedCell, PatientPattern


def embed_cells(
    batches: Iterable[np.ndarray], pixel_size_um: float, classifier: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, D) and class probabilities (N, K), float32, of batches (n, S, S, 3) uint8 of patches.

    Raises BadInput where the classifier has no embeddings to give.
    """
    if not hasattr(classifier, "bag"):
        raise BadInput(
            f"classifier {classifier.name} gives no cell embeddings; set patients.model to null or choose "
            "another classification.classifier."
        )
    parts = [classifier.bag(batch, pixel_size_um) for batch in batches]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def read_patient(
    cell_ids: Sequence[str],
    embeddings: np.ndarray,
    probabilities: np.ndarray,
    reader: PatientClassifier,
    *,
    top_cells: int,
) -> PatientPattern:
    """Read a case's bag of cells: one id, embedding and row of probabilities a cell, at least one.

    `top_cells` of the highest attention are kept; ties go by id, so that the order of the cells is nothing.
    """
    found = reader.read(embeddings, probabilities)
    order = sorted(range(len(cell_ids)), key=lambda i: (-round(float(found.attention[i]), 6), cell_ids[i]))

    def shares(values: np.ndarray) -> dict[str, float]:
        return {c: round(float(p), 4) for c, p in zip(reader.classes, values, strict=True)}

    return PatientPattern(
        model=reader.name,
        n_cells=len(cell_ids),
        strangeness=round(found.strangeness, 3),
        strangeness_limit=round(found.strangeness_limit, 3) if np.isfinite(found.strangeness_limit) else None,
        probabilities=shares(found.probabilities),
        histogram=shares(found.histogram),
        top=tuple(
            AttendedCell(
                cell_id=cell_ids[i],
                attention=round(float(found.attention[i]), 5),
                speaks_for=reader.classes[int(found.votes[i])],
            )
            for i in order[:top_cells]
        ),
    )
