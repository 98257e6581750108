"""The typed values that pass between stages.

Everything persisted or sent to a worker is one of these frozen specs; arrays travel through files
and the store, never inside a spec.  Boxes are (x0, y0, x1, y1) with x to the right and y down, in
pixels of the named image; slide positions are micrometres.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Modality = Literal["brightfield", "dic"]
Stain = Literal["MGG", "Perls", "unstained"]
Specimen = Literal["blood", "bone_marrow"]
Purpose = Literal["differential", "iron"]
CaseMode = Literal["brightfield", "dic", "paired", "mgg_perls"]
FieldChoice = Literal["monolayer", "stained area", "by hand"]
Box = tuple[float, float, float, float]
SlideMark = tuple[tuple[str, int, int, int], ...]  # name, bytes, time in ns, inode of each file of a slide
Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]


class Spec(BaseModel):
    """A frozen, strictly keyed value."""

    model_config = ConfigDict(frozen=True, extra="forbid")


UNDEREXPOSED = "UNDEREXPOSED"  # code of a Problem: brightfield that uses under half of its camera's range
LOW_CONTRAST = "LOW_CONTRAST"  # code of a Problem: red cells hardly darker than the glass
SCALE_DOUBT = "SCALE_DOUBT"  # code of a Problem: red cells of another size than the pixel size says


def purpose_of(stain: Stain) -> Purpose:
    """What an image of a stain is read for: a Perls stain for iron alone, the others for the differential."""
    return "iron" if stain == "Perls" else "differential"


class Problem(Spec):
    """Something of the input that could not be used, and what a person can do about it.

    `fatal_for_field`: the field is lost to what the image was to be read for.
    """

    code: str  # e.g. MISSING_FILE, UNREADABLE, DUPLICATE_FIELD, NO_PARTNER, GREY_BRIGHTFIELD
    message: str
    slide: str | None = None
    field: str | None = None
    file: str | None = None
    stain: Stain | None = None  # of the image, where it is one image's
    fatal_for_field: bool = True


class SlideRegion(Spec):
    """Where in a whole-slide file a field lies: level-0 pixels, and its size there."""

    x_px: int
    y_px: int
    width_px: int
    height_px: int


class DeclaredImage(Spec):
    """One image as the case declares it; of a whole slide the field may be empty."""

    slide: str
    field: str
    modality: Modality
    stain: Stain


class FieldImage(Spec):
    """One image of one field of view, of one modality, ready to be read."""

    slide: str
    field: str
    modality: Modality
    stain: Stain
    file: str  # relative to the case folder
    pixel_size_um: float
    pixel_size_source: Literal["manifest", "file", "command line"]
    width_px: int
    height_px: int
    bits: int
    channels: int
    sha256: str
    x_um: float | None = None  # stage position of the upper left pixel's corner
    y_um: float | None = None
    # Of a file of 16 bits: those that its camera fills, alike in all images of the case's modality and stain.
    camera_bits: int | None = None
    # `storage.images.exposure` of a brightfield image file; in a case that of the brightest of its modality
    # and stain where that, too, is dim, else None, so that an image more or less changes none of the others.
    brightest: float | None = None
    region: SlideRegion | None = None  # set where the field is cut from a whole-slide file
    # Of a whole slide in this run; neither written nor fingerprinted: a copy of the slide is the same slide.
    as_seen: SlideMark | None = Field(None, exclude=True, repr=False)

    def problem(self, code: str, message: str, *, fatal: bool = False) -> Problem:
        """A Problem of this image."""
        return Problem(
            code=code,
            message=message,
            slide=self.slide,
            field=self.field,
            file=self.file,
            stain=self.stain,
            fatal_for_field=fatal,
        )


class SlideChoice(Spec):
    """How the fields of a whole slide were chosen: by monolayer score, by stained area, or by a person."""

    slide: str
    file: str
    how: FieldChoice
    n_candidates: int  # fields with stained material
    n_scored: int  # of them looked at
    n_chosen: int
    lowest_score: float | None = None  # of the chosen fields
    best_score: float | None = None
    picture: str | None = None  # key in the store of the slide drawn with scores and chosen fields


class Case(Spec):
    """A validated case: what there is to count, and what had to be left out."""

    case_id: str
    specimen: Specimen | None
    collected: str | None
    mode: CaseMode
    images: tuple[FieldImage, ...]
    problems: tuple[Problem, ...] = ()
    n_fields_declared: int
    lost: tuple[DeclaredImage, ...] = ()  # declared, but none of `images`
    slide_choices: tuple[SlideChoice, ...] = ()

    @property
    def perls_only(self) -> bool:
        """Whether no image of the case shows a smear that a differential could be counted on."""
        return bool(self.images) and all(purpose_of(i.stain) == "iron" for i in self.images)

    def image(
        self, slide: str, field: str, modality: Modality, stain: Stain | None = None
    ) -> FieldImage | None:
        """The image of a field in a modality (and stain), or None where the case has none."""
        for im in self.images:
            if (im.slide, im.field, im.modality) == (slide, field, modality) and stain in (None, im.stain):
                return im
        return None


class Registration(Spec):
    """How a DIC field lies on its brightfield partner; `failed` never carries a matrix.

    `matrix` takes a brightfield pixel (x, y) to its DIC pixel.  `residual_px` is the median length
    of the local shifts left over on held-out tiles, in brightfield pixels; `residual_p95_px` their
    95th percentile.  `p_false_accept` is the chance that a mismatched pair scores as high;
    `expected_error_px` is the error of `matrix`, root mean square over the field, that its tiles
    foretell, with what coarse and fine structure disagree by along the shear.
    """

    status: Literal["ok", "failed"]
    reason: str = ""
    matrix: Matrix | None = None
    ecc: float | None = None
    residual_px: float | None = None
    residual_p95_px: float | None = None
    residual_um: float | None = None
    residual_p95_um: float | None = None
    shear_angle_deg: float | None = None
    p_false_accept: float | None = None
    forward_backward_px: float | None = None
    expected_error_px: float | None = None
    seconds: float = 0.0


class FocusQuality(Spec):
    """Acquisition quality of one image (CLINICAL.md, acquisition quality)."""

    variance: float  # of grey levels in [0, 1]
    normalised_variance: float
    laplacian_variance: float
    illumination_ratio: float  # darkest corner / centre background
    saturation_pct: float  # share of pixels at the upper end of the range, 0-100


class Detections(Spec):
    """Leukocytes of one image: boxes in pixels of that image, scores in [0, 1]."""

    slide: str
    field: str
    modality: Modality
    stain: Stain
    detector: str
    boxes: tuple[Box, ...]
    scores: tuple[float, ...]


class Cell(Spec):
    """One cell of the case, once, however many fields show it.

    `bbox_px` is in pixels of the image of (`slide`, `field`, `modality`), the one it is seen best in;
    `dic_bbox_px` its box in the DIC partner where a registration gave one.
    """

    cell_id: str  # <slide>/<field>/<number>, stable under re-running
    slide: str
    field: str
    modality: Modality
    stain: Stain
    bbox_px: Box
    score: float
    x_um: float | None  # centre, slide micrometres; None where no stage position is known
    y_um: float | None
    at_border: bool
    seen: float = 1.0  # share of the cell that its image shows, by the shape of its box; 1 away from an edge
    n_fields_seen: int = 1
    dic_bbox_px: Box | None = None


class CellMeasures(Spec):
    """Measures of the cell in the middle of a patch; lengths in µm, areas in µm², densities in OD (log10).

    nc_ratio is nucleus area / whole-cell area, in [0, 1] (not nucleus / cytoplasm, which has no upper
    limit).  Eccentricity is that of the ellipse of equal second moments, 0 a circle (skimage
    regionprops).  od_* are the mean optical densities in red, green, blue against the glass of the
    patch; None where that part is absent.  cut_by_patch: the patch's edge cuts the cell, so areas are
    lower limits.  All None where no leukocyte is labelled in the middle.
    """

    area_um2: float | None = None
    nucleus_area_um2: float | None = None
    cytoplasm_area_um2: float | None = None
    nc_ratio: float | None = None
    lobes: int | None = None
    eccentricity: float | None = None
    nucleus_eccentricity: float | None = None
    nucleus_solidity: float | None = None
    perimeter_um: float | None = None
    od_nucleus: tuple[float, float, float] | None = None
    od_cytoplasm: tuple[float, float, float] | None = None
    cut_by_patch: bool | None = None


class CellClass(CellMeasures):
    """What a classifier says of one cell, and what a segmenter measures of it."""

    cell_id: str
    label: str  # canonical class of CLINICAL.md, or a parent
    probabilities: dict[str, float]
    confidence: float
    ood: float  # in [0, 1]: share of validation cells that look more familiar than this one
    virtual: bool = False  # read from a virtually stained image
    stain_confidence: float | None = None
    rs_type: Literal["0", "1", "2", "3", "indeterminate"] | None = None
    rs_type_second: Literal["0", "1", "2", "3", "indeterminate"] | None = None  # by a second reader
    rs_finder: str | None = None  # what found the erythroblast, as "marrow-perls"
    rs_reader: str | None = None  # what read its iron, as "rule"
    rs_virtual: bool = False  # the iron was read from a virtual Perls image of a cell stained otherwise

    @model_validator(mode="before")
    @classmethod
    def _as_kept_before(cls, values: Any) -> Any:
        """Records of earlier versions name both in one text, `rs_method`: "marrow-perls + rule"."""
        if not isinstance(values, dict) or "rs_method" not in values:
            return values
        kept = dict(values)
        finder, _, reader = (kept.pop("rs_method") or "").rpartition(" + ")
        return {**kept, "rs_finder": finder or None, "rs_reader": reader or None}


class ExplainedCell(Spec):
    """What speaks for the name of a cell: a picture (the view, and beside it its heat) in the store."""

    cell_id: str
    label: str  # the class explained
    probability: float  # of that class
    method: str  # of attribution
    picture: str  # key in the store
    virtual: bool  # the pixels are those of a virtual stain


class AttendedCell(Spec):
    """A cell that a patient-level reading rests on."""

    cell_id: str
    attention: float  # its share of the whole bag's, which sums to 1
    speaks_for: str  # the pattern that this cell alone speaks for most


class PaintedTarget(Spec):
    """The stain that a case's DIC cells are painted in: that by which their classifier is surest."""

    target: str
    confidence: dict[str, float]  # by target, the mean over `n_cells` cells
    n_cells: int


class PatientPattern(Spec):
    """What all cells of a case say together: by attention, and by their mean class probabilities alone."""

    model: str
    n_cells: int
    probabilities: dict[str, float]
    histogram: dict[str, float]
    top: tuple[AttendedCell, ...]  # by attention, highest first
    # Median distance of the cells from those that the reader learned from, and the most it can judge.
    strangeness: float = 0.0
    strangeness_limit: float | None = None

    @property
    def familiar(self) -> bool:
        """Whether the cells are of the kind that the reader learned from; else its answer means nothing."""
        return self.strangeness_limit is None or self.strangeness <= self.strangeness_limit
