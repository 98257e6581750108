"""The stage that looks at all cells of a case at once."""

from __future__ import annotations

from typing import Any

from flows import work
from flows.records import CaseRun, Item
from flows.stages import VERSIONS, model_sha
from flows.unit_stages import need_all
from flows.units import plan
from pipeline.settings import Settings
from pipeline.types import Case, Cell, PatientPattern
from storage.fingerprint import fingerprint

STAGE = "patient"


def stained_cells(found: tuple[Cell, ...]) -> list[Cell]:
    """The cells whose real May-Grünwald-Giemsa stain was photographed, in their order."""
    return [c for c in found if c.modality == "brightfield" and c.stain == "MGG"]


def why_not_shown(
    run: CaseRun, case: Case, found: tuple[Cell, ...], pattern: PatientPattern | None
) -> str | None:
    """Why the report of this case has no patient-level reading, or None where it has one."""
    if pattern is None or pattern.familiar:
        return why_not(run, case, found)
    return (
        f"the {pattern.n_cells} stained cells are unlike those that {pattern.model} learned from (distance "
        f"{pattern.strangeness:.2f}, it can judge up to {pattern.strangeness_limit:.2f}); see its card"
    )


def why_not(run: CaseRun, case: Case, found: tuple[Cell, ...]) -> str | None:
    """Why this case is not read as a whole, or None where it is."""
    from storage.packages import ModelPackage
    from storage.registry import describe

    settings = run.settings.patients
    if settings.model is None:
        return "it is turned off in the settings (patients.model)"
    reader = describe("patient-classifier", settings.model)
    assert isinstance(reader, ModelPackage)  # every patient-level reader has weights
    if case.specimen is not None and case.specimen not in reader.card.specimens:
        made_for = " and ".join(reader.card.specimens).replace("_", " ")
        return f"{reader.name} was made for {made_for}, and this is {case.specimen.replace('_', ' ')}"
    n = len(stained_cells(found))
    if n < settings.min_cells:
        return f"{n} cells on a real MGG stain were found, at least {settings.min_cells} are needed"
    classifier = describe("classifier", run.settings.classification.classifier)
    sha256 = classifier.card.sha256 if isinstance(classifier, ModelPackage) else None
    if reader.card.parameters.get("cell_classifier_sha256") != sha256:
        return (
            f"{reader.name} reads cells as another classifier sees them "
            f"({reader.card.parameters.get('cell_classifier')}); train it again for "
            f"{run.settings.classification.classifier}"
        )
    return None


def patient(run: CaseRun, case: Case, found: tuple[Cell, ...], patches_mark: str) -> PatientPattern | None:
    """The pattern of the case's stained cells; None where `why_not` gives a reason."""
    settings = run.settings
    if settings.patients.model is None or why_not(run, case, found) is not None:
        run.retire(STAGE, set())
        return None
    mark = fingerprint(
        STAGE,
        VERSIONS[STAGE],
        patches_mark,
        settings.patients,
        settings.classification.patch_px,
        model_sha("classifier", settings.classification.classifier),
        model_sha("patient-classifier", settings.patients.model),
    )
    item = Item(
        key="case",
        fingerprint=mark,
        function=read_bag,
        args=(run.store.url, run.case_id, list(found), settings),
        gpu=True,
    )
    outcomes = run.run_items(STAGE, [item])
    need_all(run, STAGE, outcomes)
    return PatientPattern.model_validate(outcomes[item.key].output)


def read_bag(store_url: str, case_id: str, found: list[Cell], settings: Settings) -> dict[str, Any]:
    """On a worker: embed the stained cells of a case shard by shard, and read them as one bag."""
    import numpy as np

    from pipeline.patients import embed_cells, read_patient

    assert settings.patients.model is not None
    wanted = {c.cell_id for c in stained_cells(tuple(found))}

    def batches() -> Any:
        for unit in plan(store_url, case_id, found, settings):
            mine = np.array([c.cell_id in wanted for c in unit.cells])
            if mine.any():
                yield unit.patches()[mine]

    classifier = work.model("classifier", settings.classification.classifier)
    embeddings, probabilities = embed_cells(batches(), settings.patches.pixel_size_um, classifier)
    pattern = read_patient(
        [c.cell_id for c in found if c.cell_id in wanted],
        embeddings,
        probabilities,
        work.model("patient-classifier", settings.patients.model),
        top_cells=settings.patients.top_cells,
    )
    return pattern.model_dump(mode="json")
