"""What all images of a case say of the camera that took them: its depth, and how much of it is used."""

from __future__ import annotations

from pipeline.types import UNDEREXPOSED, FieldImage, Problem


def of_one_camera(images: list[FieldImage]) -> tuple[list[FieldImage], list[Problem]]:
    """The images with the bits and the white of their camera as the brightest of their modality and stain
    shows them, and a Problem for each that uses little of the camera's range.

    A dim field alone would pass for one of a shallower camera.
    """
    from storage.images import DIM

    deepest: dict[tuple[str, str], int] = {}
    for image in images:
        kind = (image.modality, image.stain)
        deepest[kind] = max(deepest.get(kind, 0), image.camera_bits or 0)
    own = [_share(image, deepest[image.modality, image.stain]) for image in images]
    brightest: dict[tuple[str, str], float] = {}
    for image, share in zip(images, own, strict=True):
        kind = (image.modality, image.stain)
        brightest[kind] = max(brightest.get(kind, 0.0), share or 0.0)
    found, problems = [], []
    for image, share in zip(images, own, strict=True):
        white = brightest[image.modality, image.stain]
        bits = None if image.camera_bits is None else deepest[image.modality, image.stain]
        dim = None if share is None or white >= DIM else white
        found.append(image.model_copy(update={"camera_bits": bits, "brightest": dim}))
        if share is not None and share < DIM:
            problems.append(_underexposed(image, share))
    return found, problems


def _share(image: FieldImage, bits: int) -> float | None:
    """The exposure of an image against a camera of so many bits, None where it has none."""
    if image.brightest is None or image.camera_bits is None:
        return image.brightest
    return float(image.brightest * (2**image.camera_bits - 1) / (2**bits - 1))


def _underexposed(image: FieldImage, share: float) -> Problem:
    return image.problem(
        UNDEREXPOSED,
        f"{image.file} is underexposed: its brightest parts reach {100 * share:.0f} % of the "
        "camera's range. It is brightened for the models; expose longer, until empty glass is near the top.",
    )
