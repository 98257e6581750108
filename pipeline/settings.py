"""The one settings model.

Every stage takes its own section; unknown keys are refused; the fingerprint of a stage covers what it takes,
so that changing one figure recomputes only the stages that depend on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import BadInput
from storage.images_info import PIXEL_SIZE_UM

PixelSize = Annotated[float, Field(ge=PIXEL_SIZE_UM[0], le=PIXEL_SIZE_UM[1])]

if TYPE_CHECKING:
    from storage.registry import Task


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FieldPosition(Section):
    """A field of a whole slide named by a person: its upper left corner, counted from the slide's."""

    slide: str | None = None  # None: of every slide of the case
    x_um: float | None = Field(None, ge=0)
    y_um: float | None = Field(None, ge=0)
    x_px: float | None = Field(None, ge=0)  # pixels of the slide at full resolution
    y_px: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _one_unit(self) -> FieldPosition:
        um, px = (self.x_um, self.y_um), (self.x_px, self.y_px)
        if (None in um) == (None in px) or None in (um if px == (None, None) else px):
            raise ValueError("a field's position is x_um and y_um, or x_px and y_px")
        return self

    def corner_px(self, pixel_size_um: float) -> tuple[int, int]:
        """The corner in level-0 pixels."""
        if self.x_px is not None and self.y_px is not None:
            return round(self.x_px), round(self.y_px)
        return round((self.x_um or 0.0) / pixel_size_um), round((self.y_um or 0.0) / pixel_size_um)

    def shown(self) -> str:
        if self.x_px is not None:
            return f"({self.x_px:g}, {self.y_px:g}) px"
        return f"({self.x_um:g}, {self.y_um:g}) µm"


class IntakeSettings(Section):
    """Which inputs are taken, and how a whole slide becomes fields."""

    field_width_px: int = Field(2064, gt=0)  # of the fields that a whole slide is cut into
    field_height_px: int = Field(1544, gt=0)  # the same
    slide_pixel_size_um: PixelSize = 0.25  # fields are cut from whole slides at this size
    field_overlap_um: float = Field(25.0, ge=0)  # of fields cut from a slide: about a large cell
    max_slide_fields: int = Field(60, gt=0)  # of a whole slide, the best by `slide_field_choice`
    min_tissue_fraction: float = Field(0.05, ge=0, le=1)
    slide_field_choice: Literal["monolayer", "stained area"] = "monolayer"  # how fields are ranked
    min_field_score: float = Field(0.1, ge=0, le=1)  # monolayer score under which a field is left out
    slide_fields: tuple[FieldPosition, ...] = ()  # named by hand: then these and no others
    max_image_pixels: int = Field(400_000_000, gt=0)  # larger field images are refused, not opened


KEPT_SCORE = 0.05  # detections from it on are kept, so that another threshold needs no new detection


class RegistrationSettings(Section):
    """DIC to brightfield alignment."""

    max_shift_px: float = Field(350.0, gt=0)  # along x and along y, between the images' centres
    max_rotation_deg: float = Field(3.5, gt=0)  # a found one beyond it is refused
    max_scale_change: float = Field(0.015, gt=0)  # the same, of the ratio of both scales from 1
    max_p_false_accept: float = Field(1e-3, gt=0, lt=1)  # chance that two other fields would look so aligned
    max_residual_px: float = Field(3.0, gt=0)  # median shift of the held-out tiles
    max_uncertainty_px: float = Field(1.0, gt=0)  # expected error over the field, from the tiles' spread


class DetectionSettings(Section):
    """Finding leukocytes."""

    brightfield_detector: str = "leukocyte-brightfield"  # of leukocytes on MGG fields
    dic_detector: str = "leukocyte-dic"  # of leukocytes on DIC fields that have no stained partner
    perls_detector: str = "marrow-perls"  # of erythroblasts on Perls fields
    threshold: float = Field(
        0.4, ge=KEPT_SCORE, le=1
    )  # on stained images: a box below is no cell of the case
    dic_threshold: float = Field(0.4, ge=KEPT_SCORE, le=1)  # the same on DIC; 0.5 where it looks alone
    dic_painted: bool = True  # a DIC detector made for it looks at the painted picture, too; slower
    same_cell_iou: float = Field(0.3, gt=0, lt=1)  # overlap from which two boxes are one cell
    border_policy: Literal["keep", "drop"] = "keep"  # a cell cut by the edge of the imaged area


class PatchSettings(Section):
    """Patches around each cell."""

    sizes_px: tuple[int, ...] = (256, 360)  # sides of the patches that are kept of each cell
    pixel_size_um: PixelSize = 0.1  # to which fields are resampled
    chunk: int = Field(16, gt=0)  # patches that are compressed together
    shard: int = Field(32, gt=0)  # cells a write unit; a case of 100 cells fills several workers
    border_fill: Literal["reflect", "background"] = "reflect"  # what stands beyond the field's edge


class StainingSettings(Section):
    """Virtual staining of DIC patches."""

    dic_stainer: str = "dic-to-mgg"  # paints the cells that were never stained
    target: str | None = None  # stain to paint, that most like the laboratory's; None: found for each case
    size_px: int = 256  # of the patches that are painted: one of `patches.sizes_px`
    min_confidence: float | None = None  # None: the threshold that the model's card states
    perls_stainer: str | None = "mgg-to-perls"  # virtual Perls of marrow without a Perls slide; None: never
    erythroblast_classifier: str | None = "marrow-erythroblasts"  # chooses them on MGG; None: by their names
    perls_reader: str = "rule"  # reads the iron of virtual Perls; its errors are on the stainer's card


class ClassificationSettings(Section):
    """Naming cells."""

    classifier: str = "leukocyte-classes"
    virtual_classifier: str | None = "virtual-leukocytes"  # names what is painted; None: the classifier
    segmenter: str = "nucleus-cytoplasm"  # measures areas, N:C ratio and lobes
    sideroblast_reader: str = "rule"  # of iron on Perls: what it says is counted
    sideroblast_second_reader: str | None = "iron-types"  # read beside it, never counted; None: none
    patch_px: int = 256  # of the patches that are named: that of `staining.size_px`
    min_confidence: float | None = None  # None: the calibrated figure of the model's card
    min_child_share: float = Field(0.6, ge=0.5, le=1)  # of its parent's probability, for a child to be named
    min_seen: float = Field(0.4, ge=0, le=1)  # of a cell that an edge cuts; with less of it, it is not named

    def namer(self, *, virtual: bool) -> str:
        """The classifier that names a cell of real or of virtual stain."""
        return self.virtual_classifier if virtual and self.virtual_classifier is not None else self.classifier


class PatientSettings(Section):
    """The pattern that all cells of a case make together."""

    model: str | None = "patient-patterns"  # None: no patient-level reading
    min_cells: int = Field(20, gt=0)  # fewer say too little (docs/patients.md)
    top_cells: int = Field(12, ge=0)  # shown in the report, by attention


LimitPct = Annotated[float, Field(gt=0, lt=100)]
Count = Annotated[int, Field(ge=0)]


class CountingSettings(Section):
    """Denominators, intervals and the rules of the flags (CLINICAL.md)."""

    blood_target: int = Field(200, gt=0)  # cells that a differential of blood is to rest on
    marrow_target: int = Field(500, gt=0)  # the same, of marrow
    interval: Literal["clopper-pearson", "wilson"] = "clopper-pearson"  # of proportions
    level: float = Field(0.95, gt=0.5, lt=1)  # of every interval
    bootstrap_draws: int = Field(2000, ge=0)  # over whole fields; 0: no interval between fields
    bootstrap_seed: int = Field(20261121, ge=0)  # of those draws, so that a report comes out the same
    rs_target: int = Field(100, gt=0)  # erythroblasts that a percentage of ring sideroblasts is to rest on
    rs_limits_pct: tuple[LimitPct, ...] = (5.0, 15.0)  # limits of ring sideroblasts that a result is held to
    rs_reader_errors: tuple[Count, Count, Count, Count] | None = (
        None  # a laboratory's own: see docs/sideroblasts.md
    )
    blast_limits_marrow_pct: tuple[LimitPct, ...] = (5.0, 10.0, 20.0)  # limits of blasts, in marrow
    blast_limits_blood_pct: tuple[LimitPct, ...] = (2.0, 5.0, 20.0)  # the same, in blood
    monocytes_in_myeloid: bool = True  # of the M:E ratio
    blasts_in_myeloid: bool = False  # a blast's lineage is not known from its look
    pct_decimals: int = Field(1, ge=0, le=4)  # of percentages; together they are 100

    @model_validator(mode="after")
    def _reader_can_read(self) -> CountingSettings:
        if self.rs_reader_errors is None:
            return self
        ring_read, ring_missed, other_read, other_wrong = self.rs_reader_errors
        rings, others = ring_read + ring_missed, other_read + other_wrong
        if rings == 0 or others == 0:
            raise ValueError("rs_reader_errors needs rings and others that were read; leave it null without")
        if ring_read / rings + other_read / others <= 1:
            raise ValueError("rs_reader_errors tells of a reader no better than chance; check their order")
        return self


class ReportSettings(Section):
    """The report page."""

    gallery_cells_per_class: int = Field(1000, gt=0)  # least sure first
    thumbnail_px: int = Field(72, gt=0)  # of a cell on the page
    explained_cells: int = Field(24, ge=0)  # cells in doubt, least sure first, of which heat is shown
    max_bytes: int = Field(5_000_000, gt=0)  # of the page: pictures are left out or made smaller to keep it
    validated_config: str | None = None  # `config_sha256` of a result of your validation; another is flagged


class NightSettings(Section):
    """The night as a whole; no result depends on it."""

    canary: bool = True  # a phantom of known truth runs first, and stops the night when its figures move
    canary_folder: str | None = None  # None: beside the night's summaries; must be seen by every worker
    slowest: int = Field(5, ge=0)  # cases named in the summary
    gpu_limit: str | None = None  # Prefect's global concurrency limit to hold while models run
    database_limit: str | None = None  # the same while a report is written and its row recorded


class Settings(Section):
    """Everything that can be set, by stage."""

    intake: IntakeSettings = IntakeSettings()
    registration: RegistrationSettings = RegistrationSettings()
    detection: DetectionSettings = DetectionSettings()
    patches: PatchSettings = PatchSettings()
    staining: StainingSettings = StainingSettings()
    classification: ClassificationSettings = ClassificationSettings()
    patients: PatientSettings = PatientSettings()
    counting: CountingSettings = CountingSettings()
    report: ReportSettings = ReportSettings()
    night: NightSettings = NightSettings()

    @model_validator(mode="after")
    def _patches_are_cut(self) -> Settings:
        sizes, named = self.patches.sizes_px, self.classification.patch_px
        for key, size in (("staining.size_px", self.staining.size_px), ("classification.patch_px", named)):
            if size not in sizes:
                raise ValueError(f"{key} is {size}, which patches.sizes_px {list(sizes)} does not hold")
        if self.staining.size_px != named:
            raise ValueError(
                f"staining.size_px is {self.staining.size_px} and classification.patch_px {named}; what is "
                "painted is named, so they have to be the same"
            )
        if min(sizes) < 1:
            raise ValueError("patches.sizes_px holds a size below 1")
        return self


# What each key that names a model names.
MODEL_TASKS: dict[str, Task] = {
    "detection.brightfield_detector": "detector",
    "detection.dic_detector": "detector",
    "detection.perls_detector": "detector",
    "staining.dic_stainer": "stainer",
    "staining.perls_stainer": "stainer",
    "staining.erythroblast_classifier": "classifier",
    "staining.perls_reader": "sideroblast-reader",
    "classification.classifier": "classifier",
    "classification.virtual_classifier": "classifier",
    "classification.segmenter": "segmenter",
    "classification.sideroblast_reader": "sideroblast-reader",
    "classification.sideroblast_second_reader": "sideroblast-reader",
    "patients.model": "patient-classifier",
}


def named_models(settings: Settings) -> dict[str, tuple[Task, str]]:
    """Task and name of every model that settings name, by key; a key that is None names none."""
    found: dict[str, tuple[Task, str]] = {}
    for key, task in MODEL_TASKS.items():
        section, field = key.split(".")
        name = getattr(getattr(settings, section), field)
        if name is not None:
            found[key] = (task, name)
    return found


def detection_threshold(settings: DetectionSettings, modality: str) -> float:
    """The score from which a box is a cell."""
    return settings.dic_threshold if modality == "dic" else settings.threshold


def load_settings(path: Path | None = None, overrides: dict[str, Any] | None = None) -> Settings:
    """Settings from a YAML file and overrides (`{"detection": {"threshold": 0.5}}`).

    Raises BadInput naming the file and the key that is wrong.
    """
    import yaml

    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise BadInput(f"{path} cannot be read as settings ({error}); fix it or leave it out.") from error
        if not isinstance(data, dict):
            raise BadInput(f"{path}: no sections such as 'detection:' in it; see docs/settings.md.")
    for section, values in (overrides or {}).items():
        known = data.get(section) or {}
        both = isinstance(known, dict) and isinstance(values, dict)
        data[section] = {**known, **values} if both else values
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        told = first["msg"].removeprefix("Value error, ")
        place = f"'{where}': " if where else ""
        raise BadInput(f"{path or 'settings'}: {place}{told}; docs/settings.md lists every key.") from error
