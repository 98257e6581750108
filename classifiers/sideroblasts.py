"""An explainable reader of ring sideroblasts in Perls-stained marrow.

Nucleus by colour, granules by stain separation and blob detection, then the rule of IWGM-MDS 2008
(Mufti 2008) and GFHC 2022, word for word: type 0 no iron granules, 1 fewer than five, 2 five or more
not perinuclear, 3 (ring sideroblast) five or more, perinuclear, over at least a third of the nuclear
circumference.  What cannot be read is indeterminate, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from classifiers.sideroblasts_granules import find_granules
from classifiers.sideroblasts_nucleus import (
    WORKING_PIXEL_SIZE_UM,
    Nucleus,
    cell_body,
    distance_px,
    find_nucleus,
)
from classifiers.sideroblasts_stain import glass_colour, optical_density, stain_directions, unmix
from pipeline.errors import BadInput
from storage.images_info import check_pixel_size

SideroblastType = Literal["0", "1", "2", "3", "indeterminate"]


@dataclass(frozen=True)
class SideroblastRule:
    """The figures of the rule; those of the definition are fixed, the distances are its reading."""

    many: int = 5
    ring_fraction: float = 1 / 3
    perinuclear_um: float = 0.95  # from a granule's centre to the nuclear outline
    over_nucleus_um: float = 0.7  # spots further inside the outline lie on the cell, as precipitate does
    cell_reach_um: float = 3.0  # granules further from the nucleus are another's, where cytoplasm is unseen
    bridge_um: float = 2.5  # a free stretch of outline up to here between two granules counts as covered
    max_haze: float = 0.16  # blue amount behind the granules from which they cannot be counted


@dataclass(frozen=True)
class SideroblastReading:
    """What was read from one patch, all positions in pixels of the patch handed in.

    granules_px (K, 3): x, y, radius of each granule counted; nucleus_contour (M, 2) x, y, None where
    none was found; arc_fraction: share of the nuclear outline covered by perinuclear granules.
    """

    type: SideroblastType
    n_granules: int = 0
    n_perinuclear: int = 0
    arc_fraction: float = 0.0
    granules_px: np.ndarray = field(default_factory=lambda: np.empty((0, 3)))
    nucleus_contour: np.ndarray | None = None
    reason: str = ""
    probabilities: tuple[float, ...] | None = (
        None  # of types 0 to 3 and none of them, where a reader has some
    )


@runtime_checkable
class SideroblastReader(Protocol):
    """Reads the iron of the erythroblast in the middle of a patch."""

    name: str

    def read(self, patches: np.ndarray, pixel_size_um: float) -> list[SideroblastReading]:
        """One reading per patch of (N, H, W, 3) uint8; the same for any batch."""
        ...


class RuleReader:
    """The explainable reader; no weights."""

    name = "rule"

    def __init__(self, rule: SideroblastRule | None = None) -> None:
        self.rule = rule or SideroblastRule()

    def read(self, patches: np.ndarray, pixel_size_um: float) -> list[SideroblastReading]:
        """Read patches (N, H, W, 3) uint8 at a known pixel size (µm)."""
        check_patches(patches, pixel_size_um)
        return [self._read(patch, pixel_size_um) for patch in patches]

    def _read(self, patch: np.ndarray, pixel_size_um: float) -> SideroblastReading:
        import cv2

        if pixel_size_um > 0.3:
            reason = f"resolution: granules of 0.5 µm cannot be seen at {pixel_size_um:.2f} µm a pixel"
            return SideroblastReading("indeterminate", reason=reason)
        scale = pixel_size_um / WORKING_PIXEL_SIZE_UM
        if min(patch.shape[:2]) * pixel_size_um < 6:
            return SideroblastReading("indeterminate", reason="the patch is smaller than a cell")
        size = (round(patch.shape[1] * scale), round(patch.shape[0] * scale))
        image = patch
        if scale != 1:
            image = cv2.resize(patch, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        density = optical_density(image, glass_colour(image))
        blue, pink = unmix(density, *stain_directions(density))
        nucleus = find_nucleus(pink)
        if nucleus.mask is None or nucleus.contour is None or nucleus.others is None:
            return SideroblastReading("indeterminate", reason=nucleus.reason)
        outline = to_patch(nucleus.contour, scale)
        if nucleus.reason:
            return SideroblastReading("indeterminate", nucleus_contour=outline, reason=nucleus.reason)
        return self._apply(blue, pink, nucleus, scale)

    def _apply(
        self, blue: np.ndarray, pink: np.ndarray, nucleus: Nucleus, scale: float
    ) -> SideroblastReading:
        """The rule, given the amounts of both dyes and a usable nucleus at the working scale."""

        px, rule = WORKING_PIXEL_SIZE_UM, self.rule
        mask, others, contour, blur = nucleus.mask, nucleus.others, nucleus.contour, nucleus.edge_sigma_um
        if mask is None or others is None or contour is None or blur is None:
            raise ValueError("the rule needs a nucleus")
        outside = distance_px(~mask) * px
        inside = distance_px(mask) * px
        body = cell_body(pink, mask, outside)
        mine = (outside <= rule.cell_reach_um if body is None else body) & (inside <= rule.over_nucleus_um)
        if others.any():
            mine &= outside < distance_px(~others) * px
        found = find_granules(blue, mine, blur)
        x, y = found.spots[:, 0].astype(int), found.spots[:, 1].astype(int)
        depth = np.where(mask[y, x], inside[y, x], outside[y, x])
        perinuclear = found.spots[depth <= rule.perinuclear_um]
        arc = covered_fraction(contour, perinuclear, rule.bridge_um)
        kind = type_of(len(found.spots), len(perinuclear), arc, rule)
        reason = ""
        if found.haze > rule.max_haze:
            kind, reason = "indeterminate", f"haze: blue of density {found.haze:.2f} lies over the whole cell"
        centres = to_patch(found.spots[:, :2], scale)
        return SideroblastReading(
            kind,
            len(found.spots),
            len(perinuclear),
            arc,
            np.column_stack([centres, found.spots[:, 2] / px / scale]),
            to_patch(contour, scale),
            reason,
        )


def check_patches(patches: np.ndarray, pixel_size_um: float) -> None:
    """Raise BadInput unless patches are (N, H, W, 3) uint8 at a pixel size that a microscope can have."""
    if patches.ndim != 4 or patches.shape[3] != 3 or patches.dtype != np.uint8:
        raise BadInput(
            f"patches of shape {patches.shape} and type {patches.dtype} cannot be read for iron;"
            " hand in (N, H, W, 3) uint8."
        )
    check_pixel_size("patches to be read for iron", pixel_size_um)


def to_patch(points: np.ndarray, scale: float) -> np.ndarray:
    """Points (M, 2) of the working scale in pixels of the patch handed in (pixel centres at integers)."""
    return (points + 0.5) / scale - 0.5


def type_of(
    n_granules: int, n_perinuclear: int, arc_fraction: float, rule: SideroblastRule
) -> SideroblastType:
    """The definition: type of an erythroblast from its counts and the covered share of its nucleus."""
    if n_granules == 0:
        return "0"
    if n_granules < rule.many:
        return "1"
    ring = n_perinuclear >= rule.many and arc_fraction >= rule.ring_fraction
    return "3" if ring else "2"


def covered_fraction(contour: np.ndarray, granules: np.ndarray, bridge_um: float) -> float:
    """Share of a closed contour (M, 2) that granules (K, 3) x, y (px), radius (µm) cover.

    A granule covers its own width at the nearest point of the contour; where the free stretch between
    two neighbours is at most `bridge_um` along the contour, it counts as covered, since a ring of dots
    is read as a ring.
    """
    if len(granules) == 0 or len(contour) < 3:
        return 0.0
    step = np.linalg.norm(np.roll(contour, -1, axis=0) - contour, axis=1) * WORKING_PIXEL_SIZE_UM
    total = float(step.sum())
    along = np.concatenate([[0.0], np.cumsum(step)[:-1]])
    nearest = np.linalg.norm(contour[None] - granules[:, None, :2], axis=2).argmin(axis=1)
    order = np.argsort(along[nearest], kind="stable")
    centre, radius = along[nearest][order], granules[order, 2]
    following = np.roll(centre, -1)
    following[-1] += total
    gaps = following - centre - radius - np.roll(radius, -1)
    if len(centre) == 1:
        return float(min(1.0, 2 * radius[0] / total))
    open_um = float(gaps[gaps > bridge_um].sum())
    return float(np.clip(1 - open_um / total, 0, 1))
