"""Training crops: geometry, pasted neighbours, stain and camera, from labelled leukocytes.

Two stains stand for all the stains of the world, so colour is varied far beyond what either shows.
"""

from __future__ import annotations

import cv2
import numpy as np

from detectors.base import CYTOPLASM, NUCLEUS
from detectors.segment import WORKING_PIXEL_SIZE_UM
from detectors.segment_colour import background_colour, optical_density
from detectors.segment_data import LabelledCell

CROP_PX = 128
Rng = np.random.Generator


def training_crop(
    cell: LabelledCell, others: list[LabelledCell], rng: Rng, strength: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """One augmented crop (128, 128, 3) uint8 and its labels (128, 128) uint8 of a cell.

    `strength` scales how far scale, stain and camera stray from the photograph.
    """
    image, labels = _place(cell, rng, offset_px=(0.0, 26.0), fill=rng.random() < 0.25, strength=strength)
    for _ in range(int(rng.choice((0, 1, 2), p=(0.6, 0.25, 0.15)))):
        same = [o for o in others if o.source == cell.source]
        _paste(image, labels, same[int(rng.integers(len(same)))], rng)
    if rng.random() < 0.4 * strength:
        reference = others[int(rng.integers(len(others)))].image
        image = transfer_stain(image, reference, float(rng.uniform(0.4, 1.0)))
    image = jitter_stain(image, rng, strength)
    return jitter_camera(image, rng, strength), labels


def _place(
    cell: LabelledCell, rng: Rng, offset_px: tuple[float, float], fill: bool, strength: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Warp a cell into the crop at a random scale, angle and distance from the middle."""
    height, width = cell.labels.shape
    zoom = float(np.exp(strength * rng.uniform(np.log(0.6), np.log(1.6))))
    scale = zoom * cell.pixel_size_um / WORKING_PIXEL_SIZE_UM
    angle = rng.uniform(0, 2 * np.pi)
    mirror = rng.choice((-1, 1))
    stretch = scale * np.diag((rng.uniform(0.93, 1.07), rng.uniform(0.93, 1.07) * mirror))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ stretch
    distance, toward = rng.uniform(*offset_px), rng.uniform(0, 2 * np.pi)
    target = CROP_PX / 2 + distance * np.array([np.cos(toward), np.sin(toward)])
    matrix = np.column_stack([linear, target - linear @ (width / 2, height / 2)])
    size = (CROP_PX, CROP_PX)
    source = cell.image
    if scale < 0.7:  # shrinking without this would alias, unlike what inference sees
        source = cv2.GaussianBlur(source, (0, 0), 0.4 / scale)
    if fill:
        glass = tuple(float(c) for c in background_colour(cell.image))
        image = cv2.warpAffine(
            source, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=glass
        )
        labels = cv2.warpAffine(cell.labels, matrix, size, flags=cv2.INTER_NEAREST)
    else:
        mode = cv2.BORDER_REFLECT_101
        image = cv2.warpAffine(source, matrix, size, flags=cv2.INTER_LINEAR, borderMode=mode)
        labels = cv2.warpAffine(cell.labels, matrix, size, flags=cv2.INTER_NEAREST, borderMode=mode)
    return image, labels


def _paste(image: np.ndarray, labels: np.ndarray, other: LabelledCell, rng: Rng) -> None:
    """Lay another leukocyte under the crop's own cell, so that touching neighbours are learned."""
    theirs, their_labels = _place(other, rng, offset_px=(50.0, 85.0), fill=True)
    own = (labels == CYTOPLASM) | (labels == NUCLEUS)
    cell = ((their_labels == CYTOPLASM) | (their_labels == NUCLEUS)) & ~own
    soft = cv2.GaussianBlur(cell.astype(np.float32), (0, 0), 0.8)[..., None]
    image[:] = np.clip(image * (1 - soft) + theirs * soft, 0, 255).astype(np.uint8)
    labels[cell] = their_labels[cell]


def transfer_stain(image: np.ndarray, reference: np.ndarray, strength: float) -> np.ndarray:
    """Give an image the mean and spread of a reference's optical density (Reinhard 2001, in OD)."""
    glass, reference_glass = background_colour(image), background_colour(reference)
    density, wanted = optical_density(image, glass), optical_density(reference, reference_glass)
    fg, ref = density[density.max(axis=2) > 0.08], wanted[wanted.max(axis=2) > 0.08]
    if len(fg) < 50 or len(ref) < 50:
        return image
    gain = np.clip(ref.std(axis=0) / np.maximum(fg.std(axis=0), 0.02), 0.4, 2.5)
    shift = ref.mean(axis=0) - gain * fg.mean(axis=0)
    # The shift fades out towards clear glass, which must stay clear.
    presence = np.clip(density.max(axis=2, keepdims=True) / 0.2, 0, 1)
    moved = density * (1 + presence * (gain - 1)) + presence * shift
    density = (1 - strength) * density + strength * np.maximum(moved, 0)
    glass = (1 - strength) * glass + strength * reference_glass
    return np.clip(glass * 10**-density, 0, 255).astype(np.uint8)


def jitter_stain(image: np.ndarray, rng: Rng, strength: float = 1.0) -> np.ndarray:
    """Vary stain uptake, mixing and strength in optical density, hue, and the tint of the glass."""
    glass = background_colour(image)
    density = optical_density(image, glass)
    if rng.random() < 0.8:
        mix = np.eye(3) + strength * rng.normal(0, 0.12, (3, 3))
        density = np.maximum(density @ mix.astype(np.float32), 0) * float(
            np.exp(strength * rng.normal(0, 0.25))
        )
    if rng.random() < 0.2 * strength:
        density = density + float(rng.uniform(0, 0.06))  # a stained plasma film
    if rng.random() < 0.5:
        tint = np.exp(strength * rng.normal(0, 0.12, 3))
        glass = np.minimum(255, glass * tint)
    if rng.random() < 0.15 * strength:
        glass = np.array((250, 250, rng.uniform(110, 250)))
    if rng.random() < 0.3 * strength:
        glass = glass * float(rng.uniform(0.6, 1.0))
    image = np.clip(glass * 10**-density, 0, 255).astype(np.uint8)
    if rng.random() < 0.4 * strength:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.int16)
        hsv[..., 0] = (hsv[..., 0] + int(rng.integers(-14, 15))) % 180
        hsv[..., 1] = np.clip(hsv[..., 1] * rng.uniform(0.5, 1.5), 0, 255)
        image = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    return image


def jitter_camera(image: np.ndarray, rng: Rng, strength: float = 1.0) -> np.ndarray:
    """Uneven light, contrast, defocus, lost resolution, noise and JPEG."""
    work = image.astype(np.float32)
    if rng.random() < 0.2 * strength:
        ramp = np.linspace(-1, 1, CROP_PX, dtype=np.float32)
        slope = rng.normal(0, 0.08, 2)
        work *= (1 + slope[0] * ramp[:, None] + slope[1] * ramp[None, :])[..., None]
    if rng.random() < 0.4 * strength:
        work = 255 * np.clip(work / 255, 0, 1) ** float(np.exp(rng.normal(0, 0.2)))
    if rng.random() < 0.35 * strength:
        work = cv2.GaussianBlur(work, (0, 0), float(rng.uniform(0.3, 1.6)))
    elif rng.random() < 0.2:
        work = work + float(rng.uniform(0.2, 1.0)) * (work - cv2.GaussianBlur(work, (0, 0), 1.0))
    if rng.random() < 0.2 * strength:
        small = int(CROP_PX * rng.uniform(0.45, 0.9))
        down = cv2.resize(work, (small, small), interpolation=cv2.INTER_AREA)
        work = cv2.resize(down, (CROP_PX, CROP_PX), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.4 * strength:
        work = work + rng.normal(0, rng.uniform(1, 8), work.shape).astype(np.float32)
    out = np.clip(work, 0, 255).astype(np.uint8)
    if rng.random() < 0.35:
        quality = int(rng.integers(35, 96))
        swapped = cv2.cvtColor(out, cv2.COLOR_RGB2BGR)
        coded = cv2.imencode(".jpg", swapped, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        out = cv2.cvtColor(cv2.imdecode(coded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return out
