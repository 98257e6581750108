"""What stains: generators, their training, and how far a stained patch can be trusted.

Importing this room registers the architectures; the code behind a model is imported when one is built.
"""

from __future__ import annotations

from typing import Any

from storage.registry import register


@register(
    "stainer",
    "unet-film",
    licence="AGPL-3.0-or-later",
    summary="small U-Net, target stain by feature-wise modulation, latent-noise confidence",
)
def _unet_film(package: Any) -> Any:
    from stainers.unet_film import load

    return load(package)


def _picture(package: Any) -> Any:
    from stainers.picture_stainer import load

    return load(package)


for _architecture, _summary in (
    ("cyclegan", "two stains without pairs: cycle-consistent adversarial networks"),
    ("pix2pixhd-ac", "paired: multi-scale discriminators that name the cell's class"),
    ("colorization", "colour from structure: grey in, colour out, adversarial"),
):
    register("stainer", _architecture, licence="AGPL-3.0-or-later", summary=_summary)(_picture)


def _normalizer(package: Any) -> Any:
    from stainers.normalizers import load

    return load(package)


for _architecture, _summary in (
    ("macenko", "classical normalizer: two stains found in optical density (Macenko 2009)"),
    ("reinhard", "classical normalizer: mean and deviation in l-alpha-beta (Reinhard 2001)"),
    ("landmarks", "normalizer: one map of optical density, from nucleus to nucleus, cytoplasm to cytoplasm"),
):
    register("stainer", _architecture, licence="AGPL-3.0-or-later", summary=_summary)(_normalizer)


def _domains(package: Any) -> Any:
    from stainers.domain_package import load

    return load(package)


for _architecture, _summary in (
    ("multidomain", "several stains and DIC by one encoder; target at the bottleneck, partly paired"),
    ("disentangled", "background, structure and style in codes of their own"),
):
    register("stainer", _architecture, licence="AGPL-3.0-or-later", summary=_summary)(_domains)


def stain_image(stainer: Any, image: Any, target: str | None = None) -> Any:
    """Stain an image of any size; see `stainers.field.stain_image`."""
    from stainers.field import stain_image as stain

    return stain(stainer, image, target)
