"""Stains, light and cameras that a smear may meet: random changes of look that move no box.

Stain is varied in optical density, OD = -ln(I / I0) (Ruifrok & Johnston 2001), where it is linear in
the amount of dye: gains, cross-talk and a coloured background are other stains, other filters, other
white balances.
"""

from __future__ import annotations

import numpy as np

Rng = np.random.Generator


def restain(image: np.ndarray, rng: Rng, strength: float = 1.0) -> np.ndarray:
    """Another stain of the same smear; (H, W, 3) uint8 in and out."""
    # A table a channel is exact for gains and backgrounds, and much faster than floating-point images.
    od = -np.log((np.arange(256) + 1) / 256.0)
    white = np.percentile(image[::4, ::4].reshape(-1, 3), 90, axis=0)
    base = -np.log((white + 1) / 256.0)
    tables = np.zeros((3, 256), np.float32)
    gain = np.exp(rng.normal(0, 0.30 * strength, 3) + rng.normal(0, 0.2 * strength))
    keep = rng.uniform(0, 1.2)  # how much of the present background colour stays
    tint = np.abs(rng.normal(0, 0.08 * strength, 3))
    if rng.random() < 0.35 * strength:  # a coloured medium: the yellow of a rapid stain, say
        tint += rng.dirichlet((0.4, 0.6, 1.2)) * rng.uniform(0.1, 1.0)
    for c in range(3):
        tables[c] = (od - base[c]) * gain[c] + keep * base[c] + tint[c]
    stained = np.stack([tables[c][image[..., c]] for c in range(3)], -1)
    kind = rng.random()
    if kind < 0.45 * strength:  # cross-talk: dyes of another hue
        mix = np.eye(3) + rng.normal(0, 0.16, (3, 3))
        mix = np.clip(mix, 0, None)
        stained = stained @ (mix / mix.sum(1, keepdims=True)).astype(np.float32).T
    elif kind < 0.55 * strength:  # dyes of swapped colours
        stained = stained[..., rng.permutation(3)]
    elif kind < 0.60 * strength:  # no colour at all
        stained = stained @ np.full((3, 3), 1 / 3, np.float32)
    return np.clip(np.exp(-stained) * 256 - 1, 0, 255).astype(np.uint8)


def shift_colours(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Hue, saturation, value and gamma as cameras and their software differ."""
    import cv2

    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    turn = rng.normal(0, 8) if rng.random() < 0.8 else rng.uniform(-90, 90)
    x = np.arange(256, dtype=np.float32)
    gamma = np.exp(rng.normal(0, 0.2))
    luts = (
        ((x + turn) % 180).astype(np.uint8),
        np.clip(x * np.exp(rng.normal(0, 0.35)), 0, 255).astype(np.uint8),
        np.clip(255 * (x / 255 * np.exp(rng.normal(0.0, 0.1))) ** gamma, 0, 255).astype(np.uint8),
    )
    hsv = cv2.merge([cv2.LUT(channel, lut) for channel, lut in zip(cv2.split(hsv), luts, strict=True)])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def degrade(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Focus, uneven light, resampling, noise and compression of a (H, W[, 3]) uint8 image."""
    import cv2

    height, width = image.shape[:2]
    if rng.random() < 0.3:
        sigma = rng.uniform(0.4, 1.7)
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    elif rng.random() < 0.2:  # sharpening of camera software
        soft = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.7, 1.5))
        amount = rng.uniform(0.3, 1.5)
        image = cv2.addWeighted(image, 1 + amount, soft, -amount, 0)
    if rng.random() < 0.15:
        shrink = rng.uniform(0.4, 0.9)
        size = (max(8, int(width * shrink)), max(8, int(height * shrink)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (width, height), interpolation=int(rng.choice([1, 2])))
    if rng.random() < 0.3:  # uneven light
        gy, gx = rng.normal(0, 0.12, 2)
        ramp = 1 + gx * np.linspace(-1, 1, width)[None] + gy * np.linspace(-1, 1, height)[:, None]
        if rng.random() < 0.5:
            radius = np.linspace(-1, 1, width)[None] ** 2 + np.linspace(-1, 1, height)[:, None] ** 2
            ramp = ramp - rng.uniform(0, 0.2) * radius
        ramp = ramp[..., None] if image.ndim == 3 else ramp
        image = np.clip(image * ramp.astype(np.float32), 0, 255).astype(np.uint8)
    if rng.random() < 0.35:
        noise = rng.normal(0, rng.uniform(1, 9), image.shape).astype(np.float32)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 95))])
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    return image


def precipitate(image: np.ndarray, rng: Rng) -> np.ndarray:
    """Grains of stain precipitate, which are no cells and carry no box."""
    import cv2

    out = image.copy()
    height, width = out.shape[:2]
    dye = np.percentile(image.reshape(-1, 3), 3, axis=0) * rng.uniform(0.5, 1.1)
    for _ in range(int(rng.integers(1, 4))):
        cx, cy = rng.uniform(0, width), rng.uniform(0, height)
        spread = rng.uniform(2, 14)
        for _ in range(int(rng.integers(2, 25))):
            x, y = rng.normal((cx, cy), spread)
            radius = float(rng.choice([0.6, 1, 1.5, 2.5]))
            cv2.circle(out, (int(x * 8), int(y * 8)), int(radius * 8), dye.tolist(), -1, cv2.LINE_AA, 3)
    return out
