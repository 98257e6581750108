"""How a stained smear looks through a brightfield microscope: dyes, light and camera.

Every dye absorbs by Beer and Lambert's law, so optical densities add where cells lie over each other;
a style names the colour that one unit of each dye leaves of the empty glass.  The three domains were
set by eye after smears of three laboratories; they describe a look, not a chemistry.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import cv2
import numpy as np

Array = np.ndarray[Any, Any]
Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class StainStyle:
    """Colours (RGB, 0-255) that one unit of each dye leaves, and the microscope's light and camera."""

    background: Rgb = (253.0, 236.0, 210.0)
    red_cell: Rgb = (204.0, 166.0, 162.0)
    nucleus: Rgb = (66.0, 34.0, 104.0)
    pink_cytoplasm: Rgb = (218.0, 184.0, 198.0)
    blue_cytoplasm: Rgb = (120.0, 132.0, 190.0)
    azurophil: Rgb = (120.0, 56.0, 140.0)  # purple granules
    eosinophil: Rgb = (206.0, 108.0, 92.0)
    basophil: Rgb = (54.0, 26.0, 92.0)
    platelet: Rgb = (150.0, 112.0, 172.0)
    iron: Rgb = (42.0, 92.0, 150.0)  # Prussian blue
    strength: float = 1.0  # of all dyes together
    blur_um: float = 0.09
    noise: float = 1.6  # grey levels, rms
    gradient: float = 0.04  # of the light across the field, relative
    gradient_angle_deg: float = 200.0
    vignette: float = 0.04
    haze: float = 0.005  # optical density of uneven plasma, rms

    def density(self, dye: str) -> Array:
        """Optical density (log10) of one unit of a dye, (3,) float32."""
        colour = np.asarray(getattr(self, dye), dtype=np.float32)
        glass = np.asarray(self.background, dtype=np.float32)
        return np.maximum(np.log10(glass / np.maximum(colour, 1.0)), 0.0) * np.float32(self.strength)


DYES = tuple(f.name for f in fields(StainStyle) if f.type == "Rgb" and f.name != "background")

DOMAINS: dict[str, StainStyle] = {
    "A": StainStyle(
        background=(222.0, 232.0, 222.0),
        red_cell=(186.0, 160.0, 166.0),
        nucleus=(92.0, 52.0, 206.0),
        pink_cytoplasm=(186.0, 168.0, 208.0),
        blue_cytoplasm=(140.0, 150.0, 214.0),
        azurophil=(140.0, 90.0, 200.0),
        eosinophil=(196.0, 120.0, 140.0),
        basophil=(70.0, 40.0, 170.0),
        platelet=(130.0, 120.0, 206.0),
        iron=(60.0, 110.0, 190.0),
        blur_um=0.13,
        noise=1.2,
    ),
    "B": StainStyle(),
    "C": StainStyle(
        background=(236.0, 216.0, 200.0),
        red_cell=(164.0, 142.0, 158.0),
        nucleus=(140.0, 24.0, 92.0),
        pink_cytoplasm=(206.0, 164.0, 172.0),
        blue_cytoplasm=(150.0, 130.0, 178.0),
        azurophil=(160.0, 60.0, 120.0),
        eosinophil=(190.0, 98.0, 100.0),
        basophil=(84.0, 20.0, 90.0),
        platelet=(170.0, 110.0, 160.0),
        iron=(50.0, 88.0, 140.0),
        blur_um=0.12,
        noise=2.2,
    ),
}

# Nuclear fast red with Prussian blue: nuclei pale pink-red, cytoplasm nearly clear, iron blue.
PERLS = StainStyle(
    background=(244.0, 242.0, 240.0),
    red_cell=(238.0, 206.0, 210.0),
    nucleus=(214.0, 132.0, 156.0),
    pink_cytoplasm=(238.0, 220.0, 222.0),
    blue_cytoplasm=(236.0, 214.0, 218.0),
    azurophil=(232.0, 208.0, 212.0),
    eosinophil=(232.0, 200.0, 190.0),
    basophil=(220.0, 180.0, 196.0),
    platelet=(236.0, 222.0, 226.0),
    iron=(38.0, 92.0, 154.0),
    blur_um=0.10,
    noise=1.8,
    haze=0.004,
)


def random_style(rng: np.random.Generator, *, spread: float = 1.0) -> StainStyle:
    """A laboratory that is none of the three: a blend of their densities, every dye disturbed."""
    names = sorted(DOMAINS)
    weights = rng.dirichlet(np.full(len(names), 0.6))
    return disturb(_blend([DOMAINS[n] for n in names], weights), rng, spread)


def random_perls_style(rng: np.random.Generator, *, spread: float = 1.0) -> StainStyle:
    """A Perls stain of another day: strengths and tints disturbed about `PERLS`."""
    return disturb(PERLS, rng, spread)


def disturb(style: StainStyle, rng: np.random.Generator, spread: float = 1.0) -> StainStyle:
    """Vary strength, the tint of every dye, light, focus and noise by `spread`."""
    glass = np.asarray(style.background)
    new_glass = np.clip(
        glass * (1 + spread * rng.normal(0, 0.025, 3)) * (1 + spread * rng.normal(0, 0.03)), 150, 255
    )
    changed: dict[str, Any] = {"background": tuple(float(v) for v in new_glass)}
    for dye in DYES:
        density = np.log10(glass / np.asarray(getattr(style, dye)))
        density = np.maximum(density, 0.002) * np.exp(spread * (rng.normal(0, 0.10, 3) + rng.normal(0, 0.10)))
        changed[dye] = tuple(float(v) for v in new_glass * 10.0**-density)
    return replace(
        style,
        **changed,
        strength=float(np.exp(spread * rng.normal(0, 0.12))),
        blur_um=float(style.blur_um * np.exp(spread * rng.normal(0, 0.25))),
        noise=float(style.noise * np.exp(spread * rng.normal(0, 0.3))),
        gradient=float(abs(rng.normal(0, 0.05 * spread))),
        gradient_angle_deg=float(rng.uniform(0, 360)),
        vignette=float(abs(rng.normal(0, 0.05 * spread))),
    )


def _blend(styles: list[StainStyle], weights: Array) -> StainStyle:
    logs = {
        name: sum(w * np.log(np.asarray(getattr(s, name))) for s, w in zip(styles, weights, strict=True))
        for name in (*DYES, "background")
    }
    colours = {name: tuple(float(v) for v in np.exp(value)) for name, value in logs.items()}
    numbers = {
        name: float(sum(w * getattr(s, name) for s, w in zip(styles, weights, strict=True)))
        for name in ("blur_um", "noise", "haze")
    }
    return replace(styles[0], **colours, **numbers)


def develop(
    density: Array, pixel_size_um: float, style: StainStyle, rng: np.random.Generator, *, bits: int = 8
) -> Array:
    """The camera's image of an optical density: (H, W, 3) float32 -> (H, W, 3) uint8 or uint16."""
    height, width = density.shape[:2]
    haze_px = 12.0 / pixel_size_um
    small = (int(height / haze_px) + 3, int(width / haze_px) + 3)
    haze = cv2.resize(
        rng.standard_normal(small, dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    light = 10.0 ** -(density + np.float32(style.haze) * np.maximum(haze, -1.0)[..., None])
    if style.blur_um / pixel_size_um > 0.2:
        light = cv2.GaussianBlur(light, (0, 0), style.blur_um / pixel_size_um, borderType=cv2.BORDER_REFLECT)
    light *= np.asarray(style.background, dtype=np.float32)
    y = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
    x = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :]
    angle = np.deg2rad(style.gradient_angle_deg)
    plane = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
    shading = (
        1.0 + np.float32(0.5 * style.gradient) * plane - np.float32(0.5 * style.vignette) * (x * x + y * y)
    )
    light *= shading[..., None]
    light += rng.standard_normal(light.shape, dtype=np.float32) * np.float32(style.noise)
    if bits == 8:
        return np.clip(light + 0.5, 0, 255).astype(np.uint8)
    if bits == 16:
        return np.clip(light * 257.0 + 0.5, 0, 65535).astype(np.uint16)
    raise ValueError(f"bits is 8 or 16, not {bits}")
