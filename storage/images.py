"""Field images: what a file holds without decoding it, its pixels, and their 8-bit view.

Kinds are told by content, never by the name of the file.  Everything that cannot be read ends as
UnreadableImage with the file, the problem and the fix in one sentence, before memory is taken for it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from pipeline.errors import UnreadableImage
from storage import images_bmp, images_png_jpeg, images_tiff
from storage.images_info import MAX_PIXELS, ImageInfo, damaged, refuse

__all__ = [
    "MAX_PIXELS",
    "ImageInfo",
    "as_rgb",
    "camera_bits",
    "decode_image",
    "exposure",
    "image_info",
    "is_grey",
    "luminance",
    "read_grey",
    "read_image",
    "read_rgb",
    "read_uint8",
    "read_with_info",
    "to_uint8",
    "varies_in_colour",
]

MAX_FILE_BYTES = 4 << 30
HEAD_BYTES = 32  # enough to tell the kind
DIM = 0.5  # of the camera's range: glass of the stained images at hand is at 0.61 or more
LEAST_LEVELS = 16  # of the white: with fewer an image shows no cell, however it is stretched
Kind = Literal["tiff", "png", "jpeg", "bmp"]

# Little- and big-endian, classic and BigTIFF.
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _kind(path: Path, head: bytes) -> Kind:
    if head[:4] in _TIFF_MAGIC:
        return "tiff"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if head[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if images_bmp.is_bmp(head):
        return "bmp"
    if not head:
        raise refuse(path, "is empty", "copy it again from the microscope")
    if not head.strip(b"\0"):
        raise refuse(path, "holds only zeros", "copy it again from the microscope")
    raise refuse(path, "is not a TIFF, OME-TIFF, PNG, JPEG or BMP image", "export it as one of these")


_INFO: dict[Kind, Callable[[Path, BinaryIO], ImageInfo]] = {
    "tiff": images_tiff.info,
    "png": images_png_jpeg.png_info,
    "jpeg": images_png_jpeg.jpeg_info,
    "bmp": images_bmp.bmp_info,
}
_DECODE: dict[Kind, Callable[[Path, bytes, int], np.ndarray]] = {
    "tiff": lambda path, data, limit: images_tiff.decode(path, io.BytesIO(data), limit),
    "png": lambda path, data, _: images_png_jpeg.png_decode(path, data),
    "jpeg": lambda path, data, _: images_png_jpeg.jpeg_decode(path, data),
    "bmp": lambda path, data, _: images_bmp.bmp_decode(path, data),
}


def _open(path: Path) -> BinaryIO:
    try:
        if not path.is_file():  # a pipe or device would block for ever
            raise refuse(path, "does not exist or is not a file", "check its name")
        return path.open("rb")
    except (OSError, ValueError) as error:
        if isinstance(error, UnreadableImage):
            raise
        raise refuse(path, f"cannot be opened ({error})", "check its name and who may read it") from error


def image_info(path: Path | str) -> ImageInfo:
    """Width, height, channels, bits and pixel size of an image file; no pixel is decoded.

    Raises UnreadableImage.
    """
    path = Path(path)
    with _open(path) as stream:
        kind = _kind(path, stream.read(HEAD_BYTES))
        stream.seek(0)
        with damaged(path):
            return _INFO[kind](path, stream)


def decode_image(path: Path, data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[ImageInfo, np.ndarray]:
    """The info and pixels of an image file whose bytes are at hand, so that hashing needs no second read.

    `path` is only named in errors.
    """
    kind = _kind(path, data[:HEAD_BYTES])
    with damaged(path):
        info = _INFO[kind](path, io.BytesIO(data))
        if info.width < 1 or info.height < 1:
            raise refuse(path, "has no pixels", "export it again")
        if info.width * info.height > max_pixels:
            raise refuse(
                path,
                f"has {info.width} x {info.height} pixels, more than the {max_pixels:,} allowed",
                "cut it into fields or raise intake.max_image_pixels",
            )
        pixels = _DECODE[kind](path, data, max_pixels)
    if pixels.shape[:2] != (info.height, info.width):
        raise refuse(path, "has other dimensions than its header says", "export it again")
    return info, np.ascontiguousarray(pixels)


def read_image(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The pixels of an image file: (H, W) or (H, W, 3), uint8 or uint16.

    Alpha is dropped, palettes are expanded, white-is-zero is turned round; EXIF orientation is not
    applied (boxes are in pixels as they are stored).  Images of more than `max_pixels` are refused
    from their header.  Raises UnreadableImage.
    """
    return read_with_info(path, max_pixels=max_pixels)[1]


def read_with_info(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> tuple[ImageInfo, np.ndarray]:
    """The header of an image file and its pixels as `read_image` gives them."""
    path = Path(path)
    with _open(path) as stream:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise refuse(
                path, f"is a file of {size >> 30} GiB", "hand it in as a whole-slide file or cut it up"
            )
        data = stream.read()
    return decode_image(path, data, max_pixels=max_pixels)


def read_uint8(path: Path | str, *, modality: str = "brightfield") -> np.ndarray:
    """The 8-bit view (`to_uint8`) of an image file; raises UnreadableImage."""
    info, pixels = read_with_info(path)
    return to_uint8(pixels, modality=modality, at_least_bits=info.camera_bits)


def read_rgb(path: Path | str, *, modality: str = "brightfield") -> np.ndarray:
    """An image as (H, W, 3) uint8 RGB, the pixels that `detect` and `run` see; may be written on.

    What people and models look at beside a case (labelled cells, boxed smears) is read by this alone, so that
    they are trained and judged on what they will be shown.  Raises UnreadableImage.
    """
    return np.require(as_rgb(read_uint8(path, modality=modality)), requirements="W")  # a JPEG's is read-only


def read_grey(path: Path | str) -> np.ndarray:
    """A mask as (H, W) uint8, of a coloured one the luminance; raises UnreadableImage.

    Its values mean something as they are: only the depth is brought to 8 bits, whatever its brightest value.
    """
    info, pixels = read_with_info(path)
    return luminance(_levels(pixels, 255.0 / _full_scale(pixels, info.camera_bits)))


def as_rgb(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) of a grey or colour image."""
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def is_grey(image: np.ndarray) -> bool:
    """Whether an image carries no colour: one channel, or R = G = B but for coding noise.

    Colour is measured against the range in use, so that a 12-bit image in 16 bits is judged alike.
    """
    if image.ndim == 2:
        return True
    # A sparse sample is enough, and a 2064 x 1544 field costs a millisecond.
    step = max(1, int(np.sqrt(image.shape[0] * image.shape[1] / 250_000)))
    sample = image[::step, ::step].astype(np.int32)
    spread = sample.max(axis=2) - sample.min(axis=2)
    scale = max(255.0, float(np.percentile(sample, 99.9)))
    return float(np.percentile(spread, 99.5)) <= 3.0 * scale / 255.0


def varies_in_colour(image: np.ndarray) -> bool:
    """Whether places of an image (H, W[, 3]), uint8 or uint16, differ in colour, as stain makes them.

    A cast of the whole image is none.  Noise of a colour camera, JPEG's coding of colour and the fringes of
    lateral colour are finer than cells, so colour is measured where a cell is some five pixels wide.
    """
    import cv2

    if image.ndim == 2 or image.shape[2] < 3:
        return False
    factor = max(1, round(max(image.shape[:2]) / 128))
    size = (max(1, image.shape[1] // factor), max(1, image.shape[0] // factor))
    small = cv2.resize(image[..., :3], size, interpolation=cv2.INTER_AREA).astype(np.float32)
    small = cv2.blur(small, (3, 3))
    chroma = np.stack([small[..., 0] - small[..., 1], small[..., 2] - small[..., 1]], -1)
    away = np.abs(chroma - np.median(chroma.reshape(-1, 2), axis=0)).max(-1)
    grey_range = float(np.ptp(np.percentile(image[::factor, ::factor, :3], [2, 98])))
    return float(np.percentile(away, 98)) > max(6.0, 0.12 * grey_range)


def is_blank(image: np.ndarray) -> bool:
    """Whether an image (H, W[, C]) uint8 is of one colour all over: empty glass, a shut shutter.

    The least that a cell's surroundings span is 25 levels (1,359 windows of 96 px around leukocytes).
    """
    step = max(1, int(np.sqrt(image.shape[0] * image.shape[1] / 100_000)))
    thin = np.asarray(image[::step, ::step])
    thin = thin.reshape(thin.shape[0] * thin.shape[1], -1)
    return bool((np.percentile(thin, 99.9, axis=0) - np.percentile(thin, 0.1, axis=0)).max() <= 8)


def is_noise(image: np.ndarray) -> bool:
    """Whether an image (H, W[, C]) uint8 is strong noise: no pixel is like its neighbour, as a lens makes it.

    Smears and DIC have a correlation of 0.72 to 0.99, DIC in noise of 20 levels 0.49.
    """
    grey = luminance(image[..., :3] if image.ndim == 3 else image).astype(np.float32)
    step = max(1, int(np.sqrt(grey.size / 250_000)))
    here, beside = grey[::step, :-1:step].ravel(), grey[::step, 1::step].ravel()
    if min(here.std(), beside.std()) < 16:  # empty glass as a camera sees it
        return False
    return bool(np.corrcoef(here, beside)[0, 1] < 0.2)


def luminance(image: np.ndarray) -> np.ndarray:
    """The luminance (H, W) of an image (H, W[, 3]), of its type; DIC of a colour camera is read so."""
    if image.ndim == 2:
        return image
    weights = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    return np.asarray(np.rint(image @ weights).astype(image.dtype))


def camera_bits(image: np.ndarray, at_least: int | None = None) -> int:
    """Bits of the camera that took an image: 12- and 14-bit cameras write 16-bit files.

    The smallest usual depth (8, 10, 12, 14, 16) that holds all but one in 10,000 of the values and is
    `at_least` what its file or the other images of its camera say; 8 of an 8-bit image.
    """
    if image.dtype == np.uint8:
        return 8
    few = 1e-4 * image.size
    depths = (b for b in (8, 10, 12, 14) if b >= (at_least or 0))
    return next((b for b in depths if np.count_nonzero(image >= 2**b) <= few), 16)


def exposure(image: np.ndarray, at_least_bits: int | None = None) -> float:
    """The brightest level of a brightfield image, its 99.9th percentile, as a share of its camera's range."""
    return float(np.percentile(image, 99.9)) / _full_scale(image, at_least_bits)


def to_uint8(
    image: np.ndarray,
    *,
    modality: str = "brightfield",
    at_least_bits: int | None = None,
    brightest: float | None = None,
) -> np.ndarray:
    """The 8-bit view of an image (H, W) or (H, W, 3), uint8 or uint16.

    Brightfield: divided by the full scale of the camera's depth (`camera_bits`, of `at_least_bits`), one
    factor for all channels, so that colour and optical density keep their ratios.  Where even the
    background stays under half of that scale, the camera used a part of its range, and the 99.9th
    percentile is put at 240 instead: that of the image itself, or of the `brightest` of its modality and
    stain in its case (`exposure`), unless it stays under half even so.
    DIC: of 16 bits the 0.1th to 99.9th percentile is stretched over 0-255; DIC has no absolute level, only
    contrast about its grey.  Of 8 bits it is returned as it is.
    """
    if image.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"to_uint8 takes uint8 or uint16, not {image.dtype}")
    if modality != "dic":
        return _levels(image, _gain(image, at_least_bits, brightest))
    if image.dtype == np.uint8:
        return image
    low, high = (float(v) for v in np.percentile(image, [0.1, 99.9]))
    if high <= low:
        low, high = float(image.min()), float(image.max())
    if high <= low:
        return np.full(image.shape, 128, np.uint8)
    return _levels(image, 255.0 / (high - low), low)


def _gain(image: np.ndarray, at_least_bits: int | None, brightest: float | None) -> float:
    """What the levels of a brightfield image are multiplied by; see `to_uint8`."""
    full = _full_scale(image, at_least_bits)
    gain = 255.0 / full
    if np.count_nonzero(image >= DIM * full) > 2e-3 * image.size:  # most images, in a tenth of the time
        return gain
    white = float(np.percentile(image, 99.9))
    if white < LEAST_LEVELS:
        return gain
    for level in (max(white, (brightest or 0.0) * full), white):
        if level * gain < DIM * 255.0:
            gain = 240.0 / level
    return gain


def _full_scale(image: np.ndarray, at_least_bits: int | None) -> float:
    return 2.0 ** camera_bits(image, at_least_bits) - 1.0


def _levels(image: np.ndarray, gain: float, low: float = 0.0) -> np.ndarray:
    """(image - low) * gain, as uint8."""
    if image.dtype == np.uint8 and gain == 1.0 and low == 0.0:
        return image
    table = (np.arange(np.iinfo(image.dtype).max + 1, dtype=np.float64) - low) * gain
    lookup: np.ndarray = np.clip(np.rint(table), 0, 255).astype(np.uint8)
    return lookup[image]
