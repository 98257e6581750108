"""Paired data computed from stained smears: a real stained crop and the DIC that optics would show.

The brightfield side is photographed, the DIC side is computed by `phantoms.optics`; every figure
measured on such pairs is a figure on computed DIC.  Images are brought to 0.1 µm a pixel by the size of
their red cells (7.5 µm); near-duplicates are kept on one side of every split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import BadInput
from stainers.dic_input import canonical_turn, integrate, measure_scale, normalise, to_grey
from storage.image_folders import TXL_PBC, label_path, read_boxes, sources_of, yolo_images
from storage.images import read_rgb
from storage.mirroring import mirrored_once
from storage.near_duplicates import near_duplicate_groups, thumbnail

if TYPE_CHECKING:
    from phantoms.optics import DicOptics

Array = np.ndarray[Any, Any]

PIXEL_SIZE_UM = 0.1
RED_CELL_UM = 7.5
DOMAINS = TXL_PBC  # each a stain target
SAME_FIELD = 0.92  # correlation of squashed thumbnails above which two fields are one photograph
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Smear:
    """One stained field at 0.1 µm a pixel.

    image: (H, W, 3) uint8; leukocytes, red_cells: (n, 4) float32 boxes in its pixels; background_rgb and
    red_cell_density as `phantoms.computed_dic` wants them, read from the whole field.
    """

    file: str
    domain: str
    split: str
    image: Array
    leukocytes: Array
    red_cells: Array
    background_rgb: tuple[float, float, float]
    red_cell_density: float

    def computed_dic(
        self, part: Array, rng: np.random.Generator, *, wide: bool = False
    ) -> tuple[Array, DicOptics]:
        """DIC (h, w) uint8 of a part (h, w, 3) of the field, and the optics drawn for it.

        `wide` draws from `phantoms.optics.wider_optics`.
        """
        from phantoms.computed_dic import compute_dic
        from phantoms.optics import random_optics, wider_optics

        optics = (wider_optics if wide else random_optics)(rng)
        dic = compute_dic(
            part,
            PIXEL_SIZE_UM,
            optics,
            rng,
            background_rgb=self.background_rgb,
            red_cell_density=self.red_cell_density,
        )
        return dic, optics


def targets_of(smears: Sequence[Smear]) -> tuple[str, ...]:
    """The targets of a generator that learns from smears: the stains of which there are some."""
    return tuple(sorted({s.domain for s in smears}))


def split_of(group_name: str, seed: int = 0, shares: tuple[float, float] = (0.80, 0.08)) -> str:
    """The split of a group, by the hash of its name; `shares` of train and validation, the rest is test."""
    draw = int(hashlib.sha256(f"{seed}/{group_name}".encode()).hexdigest()[:8], 16) / 2**32
    train, validation = shares
    return "train" if draw < train else "validation" if draw < train + validation else "test"


def load_smears(data_dir: Path, *, limit: int | None = None, seed: int = 0) -> list[Smear]:
    """Every usable smear of `data_dir` (a folder with images/ and labels/), split in groups.

    Their domains are `storage.image_folders.sources_of` them.  Smears with fewer than three boxed red cells
    have no scale and are left out.  Raises BadInput where none is left, UnreadableImage naming a file.
    """
    import cv2

    raw: list[tuple[Path, Array, Array]] = []
    sizes, thumbnails = [], []
    for path in sorted(yolo_images(data_dir), key=lambda p: p.name)[:limit]:
        image = read_rgb(path)
        height, width = image.shape[:2]
        boxes = read_boxes(label_path(path), width, height, np.float32)
        red = boxes[boxes[:, 0] == 1]
        # cells cut by the border are too small to measure
        inside = (red[:, 1] > 2) & (red[:, 2] > 2) & (red[:, 3] < width - 2) & (red[:, 4] < height - 2)
        if inside.sum() < 3:
            continue
        sides = red[inside, 3:5] - red[inside, 1:3]
        size_px = float(np.median(np.sqrt(sides[:, 0] * sides[:, 1])))
        factor = RED_CELL_UM / PIXEL_SIZE_UM / size_px
        interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        boxes[:, 1:] *= factor
        raw.append((path, cv2.resize(image, None, fx=factor, fy=factor, interpolation=interpolation), boxes))
        sizes.append((width, height))
        thumbnails.append(thumbnail(image))
    if not raw:
        raise BadInput(
            f"{data_dir} holds no smears to learn from: give a YOLO-format folder with images/ and "
            "labels/, in which a field has at least three whole boxed red cells (class 1), its scale."
        )
    domains = sources_of(data_dir, [path for path, _, _ in raw], sizes)
    groups = near_duplicate_groups(np.stack(thumbnails), SAME_FIELD, turned=False)
    smears = []
    for (path, rgb, boxes), domain, group in zip(raw, domains, groups, strict=True):
        background, density = glass_and_red_cell(rgb)
        smears.append(
            Smear(
                file=path.stem,
                domain=domain,
                split=split_of(raw[group][0].stem, seed),
                image=rgb,
                leukocytes=boxes[boxes[:, 0] == 0, 1:],
                red_cells=boxes[boxes[:, 0] == 1, 1:],
                background_rgb=background,
                red_cell_density=density,
            )
        )
    return smears


def level_light(smears: Sequence[Smear]) -> list[Smear]:
    """The smears with their glass brought to the median glass of their stain's training part.

    No DIC image shows the colour of the lamp, so a generator can only learn its mean; asked for each image's
    own, it spends its losses on what it cannot know.
    """
    train = [s for s in smears if s.split == "train"] or list(smears)
    median = {
        d: np.median([s.background_rgb for s in train if s.domain == d], axis=0)
        for d in {s.domain for s in train}
    }
    out = []
    for smear in smears:
        target = median.get(smear.domain)
        if target is None:
            out.append(smear)
            continue
        gain = target / np.maximum(np.asarray(smear.background_rgb), 20.0)  # a black field is left dark
        image = np.clip(smear.image.astype(np.float32) * gain, 0, 255).astype(np.uint8)
        out.append(replace(smear, image=image, background_rgb=(target[0], target[1], target[2])))
    return out


def glass_and_red_cell(rgb: Array) -> tuple[tuple[float, float, float], float]:
    """Colour of the empty glass and the green density of a red cell of a stained field.

    By the green, in which red cells stand out, as `phantoms.computed_dic` reads it off a piece; thinned and
    rounded otherwise, which every computed DIC that a stainer learned from depends on.
    """
    sample = rgb[::3, ::3].reshape(-1, 3).astype(np.float32)
    bright = sample[sample[:, 1] >= np.percentile(sample[:, 1], 85)]
    background = np.median(bright, axis=0)
    density = np.log10(max(background[1], 8.0) / np.maximum(sample[:, 1], 1.0))
    stained = density[density > 0.06]
    red = float(np.clip(np.percentile(stained, 40), 0.12, 0.4)) if stained.size > 50 else 0.22
    return (float(background[0]), float(background[1]), float(background[2])), red


def window(image: Array, centre_xy: Sequence[float], size_px: int) -> Array:
    """A square window, reflected where it leaves the image."""
    half = size_px // 2
    x0, y0 = round(float(centre_xy[0])) - half, round(float(centre_xy[1])) - half
    height, width = image.shape[:2]
    rows = mirrored_once(np.arange(y0, y0 + size_px), height)
    columns = mirrored_once(np.arange(x0, x0 + size_px), width)
    return np.ascontiguousarray(image[rows][:, columns])


def leukocyte_windows(smears: Sequence[Smear], size_px: int) -> list[tuple[Smear, Array]]:
    """(smear, (size, size, 3) uint8) around every leukocyte box."""
    return [
        (s, window(s.image, ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2), size_px))
        for s in smears
        for b in s.leukocytes
    ]


@dataclass(frozen=True)
class PairOptions:
    """How training pairs are drawn."""

    crop_px: int = 128
    context_px: int = 192  # DIC is computed on this much, so that its scale and integral have context
    leukocyte_share: float = 0.7
    shear_jitter_deg: float = 6.0  # how wrong an estimated shear may be
    scale_jitter: float = 0.25  # natural log, half-width, of the estimated contrast
    spoilt_share: float = 0.08  # inputs with a part missing or out of focus, for the expected error
    level_light: bool = False  # bring every target image to the median glass of its stain
    wide_optics: float = 0.0  # share of pairs whose law from stain to path is far beyond the usual ones
    off_centre_px: float = 24.0  # standard deviation, of leukocytes from the middle of their pairs
    other_looks: float = 0.0  # share of pairs whose stain is brought to the look of another domain
    pool: int = 0  # above 0: this many pairs are made once and kept, each draw a new crop of one of them


class PairSampler:
    """Endless pairs of a seed; draw number n is the same whenever and wherever it is made."""

    def __init__(
        self,
        smears: Sequence[Smear],
        options: PairOptions,
        seed: int,
        targets: Sequence[str] | None = None,
    ) -> None:
        self.targets = tuple(targets or targets_of(smears))
        self.by_domain = [[s for s in smears if s.domain == d] for d in self.targets]
        if not any(self.by_domain):
            raise ValueError("no smears to draw pairs from")
        self.options, self.seed = options, seed
        self._looks: dict[str, Array] = {}
        if options.other_looks > 0:
            from stainers.looks import measure_looks

            self._looks = measure_looks(smears)
        self._kept: dict[int, tuple[Array, Array, int]] = {}

    def draw(self, number: int) -> tuple[Array, Array, int]:
        """Pair `number`: input (2, c, c) float32, stained (3, c, c) float32 in [0, 1], domain index."""
        options = self.options
        rng = np.random.default_rng([self.seed, 1, number])
        which = number if options.pool == 0 else int(rng.integers(options.pool))
        if which in self._kept:
            channels, stained, domain = self._kept[which]
        else:
            channels, stained, domain = self._make(which)
            if options.pool:
                self._kept[which] = channels, stained, domain
        margin = options.context_px - options.crop_px
        y, x = (int(v) for v in rng.integers(margin // 6, margin - margin // 6 + 1, 2)) if margin else (0, 0)
        c = options.crop_px
        source = channels[:, y : y + c, x : x + c].astype(np.float32)
        source *= np.float32(np.exp(rng.uniform(-options.scale_jitter, options.scale_jitter)))
        target = stained[y : y + c, x : x + c].transpose(2, 0, 1).astype(np.float32) / 255.0
        return source, target, domain

    def _make(self, number: int) -> tuple[Array, Array, int]:
        """Context-sized pair `number`: (2, s, s) float16, (s, s, 3) uint8, domain index."""
        options = self.options
        rng = np.random.default_rng([self.seed, number])
        domain = int(rng.choice([i for i, group in enumerate(self.by_domain) if group]))
        smear = self.by_domain[domain][rng.integers(len(self.by_domain[domain]))]
        height, width = smear.image.shape[:2]
        if len(smear.leukocytes) and rng.random() < options.leukocyte_share:
            box = smear.leukocytes[rng.integers(len(smear.leukocytes))]
            centre = np.asarray([box[0] + box[2], box[1] + box[3]]) / 2
            centre = centre + rng.normal(0, options.off_centre_px, 2)
        else:
            centre = rng.uniform([0.2 * width, 0.2 * height], [0.8 * width, 0.8 * height])
        stained = window(smear.image, centre, options.context_px)
        quarter, mirror = rng.integers(4), rng.integers(2)  # of the stained crop, before its DIC is made
        stained = np.rot90(stained[::-1] if mirror else stained, quarter).copy()
        wide = options.wide_optics > 0 and bool(rng.random() < options.wide_optics)
        dic, optics = smear.computed_dic(stained, rng, wide=wide)
        grey = to_grey(dic)
        scale = measure_scale(grey)
        estimate = optics.shear_angle_deg + rng.normal(0, options.shear_jitter_deg)
        turn = canonical_turn(estimate)
        grey, stained = turn.apply(grey), turn.apply(stained)
        normalised = normalise(grey, scale)
        if rng.random() < options.spoilt_share:
            normalised = spoil(normalised, rng)
        channels = np.stack([normalised, integrate(normalised, turn.angle(estimate))])
        if self._looks and rng.random() < options.other_looks:
            stained, domain = self._in_another_look(stained, smear, rng)
        return channels.astype(np.float16), stained, domain

    def _in_another_look(self, stained: Array, smear: Smear, rng: np.random.Generator) -> tuple[Array, int]:
        """The crop in the look of a domain drawn from the others, and that domain's index."""
        from stainers.looks import in_look

        others = [d for d in self._looks if d != smear.domain]
        if not others or smear.domain not in self._looks:
            return stained, self.targets.index(smear.domain)
        other = others[rng.integers(len(others))]
        looks = self._looks[smear.domain], self._looks[other]
        return in_look(stained, smear.background_rgb, *looks), self.targets.index(other)


def spoil(normalised: Array, rng: np.random.Generator) -> Array:
    """Lose a part of an input: rectangles of any one level or of noise, or strong defocus."""
    import cv2

    spoilt = normalised.copy()
    height, width = spoilt.shape
    if rng.random() < 0.35:
        return cv2.GaussianBlur(spoilt, (0, 0), float(rng.uniform(3, 9)))
    for _ in range(rng.integers(1, 4)):
        h, w = (int(v) for v in rng.integers(12, 80, 2))
        y, x = rng.integers(0, height), rng.integers(0, width)
        part = spoilt[y : y + h, x : x + w]
        part[:] = rng.uniform(-6, 6) if rng.random() < 0.7 else rng.normal(0, 1, part.shape)
    return spoilt
