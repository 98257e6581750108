"""Field images of every supported kind, and every way in which they arrive damaged."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import UnreadableImage
from storage.images import (
    image_info,
    read_image,
)

RNG = np.random.default_rng(7)
SMOOTH = np.add.outer(np.arange(70), np.arange(90)).astype(np.uint8)  # (70, 90)
RGB = np.stack([SMOOTH, SMOOTH[::-1], 255 - SMOOTH], axis=2)
NOISE16 = RNG.integers(0, 4096, (70, 90), dtype=np.uint16)

TIFFS = {
    "plain": {},
    "deflate": {"compression": "zlib", "predictor": True},
    "lzw": {"compression": "lzw", "predictor": True},
    "tiled": {"tile": (32, 32), "compression": "zlib"},
    "strips": {"rowsperstrip": 7, "compression": "lzw"},
    "bigtiff": {"bigtiff": True},
    "big-endian": {"byteorder": ">"},
}


@pytest.mark.parametrize("kind", TIFFS)
@pytest.mark.parametrize(
    "pixels", [RGB, SMOOTH, NOISE16, RGB.astype(np.uint16) * 257], ids=["rgb", "grey", "grey16", "rgb16"]
)
def test_a_tiff_of_any_layout_reads_back_as_written(tmp_path: Path, kind: str, pixels: np.ndarray) -> None:
    path = tmp_path / "a.tif"
    photometric = "rgb" if pixels.ndim == 3 else "minisblack"
    tifffile.imwrite(path, pixels, photometric=photometric, **TIFFS[kind])
    info = image_info(path)
    assert (info.width, info.height, info.channels) == (90, 70, 3 if pixels.ndim == 3 else 1)
    assert info.bits == pixels.dtype.itemsize * 8
    np.testing.assert_array_equal(read_image(path), pixels)


def test_a_jpeg_tiff_reads_as_its_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", compression="jpeg", compressionargs={"level": 95})
    found = read_image(path)
    assert found.shape == RGB.shape
    assert np.abs(found.astype(int) - RGB).mean() < 6


def test_planar_separate_alpha_palette_and_white_is_zero_become_plain_pictures(tmp_path: Path) -> None:
    planar, alpha, palette, white = (tmp_path / f"{n}.tif" for n in "abcd")
    tifffile.imwrite(planar, np.moveaxis(RGB, 2, 0), photometric="rgb", planarconfig="separate")
    tifffile.imwrite(alpha, np.dstack([RGB, SMOOTH]), photometric="rgb", extrasamples=["unassalpha"])
    colours = RNG.integers(0, 256, (3, 256)).astype(np.uint16) * 257
    tifffile.imwrite(palette, SMOOTH, photometric="palette", colormap=colours)
    tifffile.imwrite(white, SMOOTH, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(planar), RGB)
    np.testing.assert_array_equal(read_image(alpha), RGB)
    np.testing.assert_array_equal(read_image(palette), np.moveaxis((colours >> 8)[:, SMOOTH], 0, 2))
    np.testing.assert_array_equal(read_image(white), 255 - SMOOTH)
    assert image_info(palette).channels == 3


def _ome_size(x: float, y: float | None = None, unit: str | None = None) -> dict[str, object]:
    size: dict[str, object] = {"PhysicalSizeX": x, "PhysicalSizeY": x if y is None else y}
    return size if unit is None else {**size, "PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (_ome_size(0.1), 0.1),
        (_ome_size(0.1, unit="µm"), 0.1),
        (_ome_size(100.0, unit="nm"), 0.1),
        (_ome_size(1e-4, unit="mm"), 0.1),
        (_ome_size(1.0, unit="pixel"), None),
        (_ome_size(0.1, 0.2), None),
        ({}, None),
    ],
)
def test_an_ome_tiff_states_its_pixel_size_in_its_own_unit(
    tmp_path: Path, metadata: dict[str, object], expected: float | None
) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, SMOOTH, metadata={"axes": "YX", **metadata})
    found = image_info(path).pixel_size_um
    assert found == (None if expected is None else pytest.approx(expected))
    np.testing.assert_array_equal(read_image(path), SMOOTH)


def test_three_ome_channels_are_one_picture_and_a_stack_is_refused(tmp_path: Path) -> None:
    channels, stack, pages = (tmp_path / n for n in ("c.ome.tif", "z.ome.tif", "p.tif"))
    tifffile.imwrite(channels, np.moveaxis(RGB, 2, 0), photometric="minisblack", metadata={"axes": "CYX"})
    tifffile.imwrite(stack, np.stack([SMOOTH] * 4), photometric="minisblack", metadata={"axes": "ZYX"})
    tifffile.imwrite(pages, np.stack([SMOOTH] * 2), photometric="minisblack", metadata=None)
    np.testing.assert_array_equal(read_image(channels), RGB)
    assert image_info(channels).channels == 3
    with pytest.raises(UnreadableImage, match=r"z\.ome\.tif: the image is a stack \(Z=4\); export"):
        read_image(stack)
    with pytest.raises(UnreadableImage, match="2 planes"):
        image_info(pages)


def test_a_reduced_page_or_a_pyramid_does_not_make_a_field_a_stack(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(RGB, photometric="rgb", subifds=1)
        writer.write(RGB[::2, ::2], photometric="rgb", subfiletype=1)
        writer.write(RGB[:8, :8], photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(read_image(path), RGB)


@pytest.mark.parametrize(
    ("per_unit", "unit", "expected"),
    [((100_000, 100_000), "CENTIMETER", 0.1), ((254_000, 254_000), "INCH", 0.1), ((300, 300), "INCH", None),
     ((72, 72), "NONE", None)],
)  # fmt: skip
def test_a_tiff_resolution_counts_only_where_a_microscope_can_have_it(
    tmp_path: Path, per_unit: tuple[int, int], unit: str, expected: float | None
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, SMOOTH, resolution=per_unit, resolutionunit=unit, metadata=None)
    found = image_info(path).pixel_size_um
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-3))


def _png_with_size(pixels_per_metre: int) -> bytes:
    data = imagecodecs.png_encode(RGB)
    body = b"pHYs" + struct.pack(">IIB", pixels_per_metre, pixels_per_metre, 1)
    chunk = struct.pack(">I", 9) + body + struct.pack(">I", zlib.crc32(body))
    return data[:33] + chunk + data[33:]


@pytest.mark.parametrize(("per_metre", "expected"), [(10_000_000, 0.1), (2835, None)])
def test_a_png_states_its_pixel_size(tmp_path: Path, per_metre: int, expected: float | None) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(_png_with_size(per_metre))
    assert image_info(path).pixel_size_um == expected
    np.testing.assert_array_equal(read_image(path), RGB)


def test_png_kinds(tmp_path: Path) -> None:
    sixteen, palette, alpha = (tmp_path / f"{n}.png" for n in "abc")
    sixteen.write_bytes(imagecodecs.png_encode(RGB.astype(np.uint16) * 257))
    quantised = Image.fromarray(RGB).quantize(16)
    quantised.save(palette)
    Image.fromarray(np.dstack([RGB, SMOOTH])).save(alpha)
    np.testing.assert_array_equal(read_image(sixteen), RGB.astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(palette), np.asarray(quantised.convert("RGB")))
    np.testing.assert_array_equal(read_image(alpha), RGB)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
def test_a_bmp_reads_as_its_picture(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "cell.bmp"
    picture = Image.fromarray(np.dstack([RGB, SMOOTH]) if mode == "RGBA" else RGB)
    picture = picture if mode == "RGBA" else picture.convert(mode)
    picture.save(path)
    info, found = image_info(path), read_image(path)
    plain = np.asarray(picture.convert("L" if mode in ("L", "1") else "RGB"))
    assert (info.width, info.height, info.channels, info.bits) == (90, 70, 1 if plain.ndim == 2 else 3, 8)
    np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize(("per_inch", "expected"), [(254_000, 0.1), (96, None)])
def test_a_bmp_states_its_pixel_size(tmp_path: Path, per_inch: int, expected: float | None) -> None:
    path = tmp_path / "cell.bmp"
    Image.fromarray(RGB).save(path, dpi=(per_inch, per_inch))
    assert image_info(path).pixel_size_um == (None if expected is None else pytest.approx(expected, rel=1e-3))


def test_a_jpeg_orientation_is_not_applied_but_said(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(path, exif=exif, quality=95)
    assert read_image(path).shape == RGB.shape
    assert any("orientation" in note for note in image_info(path).notes)


def _encoded(tmp_path: Path, kind: str) -> bytes:
    path = tmp_path / f"whole.{kind.split('-')[0]}"
    noise = RNG.integers(0, 255, (200, 180, 3), dtype=np.uint8)
    if kind == "png":
        path.write_bytes(imagecodecs.png_encode(noise))
    elif kind in ("jpeg", "bmp"):
        Image.fromarray(noise).save(path, quality=90)
    else:
        compression = None if kind == "tiff-plain" else kind.split("-")[1]
        tifffile.imwrite(path, noise, photometric="rgb", compression=compression, rowsperstrip=50)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["tiff-plain", "tiff-lzw", "tiff-zlib", "tiff-jpeg", "png", "jpeg", "bmp"])
@pytest.mark.parametrize("share", [0.0005, 0.01, 0.3, 0.9, 0.995])
def test_a_truncated_image_is_refused_with_its_name(tmp_path: Path, kind: str, share: float) -> None:
    data = _encoded(tmp_path, kind)
    path = tmp_path / "F007_cut.img"
    path.write_bytes(data[: max(9, int(len(data) * share))])
    with pytest.raises(UnreadableImage, match=r"F007_cut\.img: the image .*; .*\.$"):
        read_image(path)


def test_a_library_that_allows_truncated_jpegs_does_not_make_us_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path = tmp_path / "a.jpg"
    path.write_bytes(_encoded(tmp_path, "jpeg")[:-800])
    with pytest.raises(UnreadableImage):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"hello there, this is text", b"BM" + b"\1" * 90])
def test_what_is_no_image_is_refused_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=r"a\.tif: the image"):
        image_info(path)
    with pytest.raises(UnreadableImage, match=r"a\.tif: the image"):
        read_image(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.tif", tmp_path):
        with pytest.raises(UnreadableImage, match="does not exist or is not a file"):
            read_image(path)


@pytest.mark.parametrize(
    "pixels", [SMOOTH.astype(np.float32), SMOOTH.astype(np.int16), SMOOTH.astype(np.uint32)]
)
def test_sample_types_that_are_no_grey_levels_are_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels)
    with pytest.raises(UnreadableImage, match=r"-bit (floating|signed|unsigned)"):
        image_info(path)


def _png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 5000)
    chunks = [
        struct.pack(">I", len(b) - 4) + b + struct.pack(">I", zlib.crc32(b)) for b in (body, data, b"IEND")
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_a_decompression_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    png, tiff = tmp_path / "a.png", tmp_path / "a.tif"
    png.write_bytes(_png_header(2**31 - 1, 2**31 - 1))
    tifffile.imwrite(tiff, np.zeros((16, 16), np.uint8), compression="zlib", rowsperstrip=16)
    data = bytearray(tiff.read_bytes())
    with tifffile.TiffFile(tiff) as tif:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            tag = tif.pages[0].tags[name]
            struct.pack_into("<H" if tag.dtype == 3 else "<I", data, tag.valueoffset, 60_000)
    tiff.write_bytes(data)
    with pytest.raises(UnreadableImage, match="more than the 400,000,000 allowed"):
        read_image(png)
    with pytest.raises(UnreadableImage):
        read_image(tiff, max_pixels=4_000_000_000)
    with pytest.raises(UnreadableImage, match="more than the 100 allowed"):
        read_image(_written(tmp_path / "b.tif"), max_pixels=100)


def _written(path: Path) -> Path:
    tifffile.imwrite(path, SMOOTH)
    return path


def _is_one_sentence(message: str, path: Path) -> None:
    assert str(path) in message
    assert "\n" not in message


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["tiff-plain", "tiff-lzw", "tiff-jpeg", "png", "jpeg"]),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_flipped_bytes_end_in_a_picture_or_one_sentence(
    tmp_path: Path, kind: str, flips: list[tuple[float, int]]
) -> None:
    whole = tmp_path / f"{kind}.whole"
    if not whole.exists():
        whole.write_bytes(_encoded(tmp_path, kind))
    data = bytearray(whole.read_bytes())
    for place, value in flips:
        # Headers break in more ways than pixels do; half of the flips fall into the first bytes.
        index = int(place * 2 * 300) if place < 0.5 else int((place - 0.5) * 2 * len(data))
        data[min(index, len(data) - 1)] = value
    path = tmp_path / "flipped"
    path.write_bytes(data)
    try:
        found = read_image(path, max_pixels=2_000_000)
    except UnreadableImage as error:
        _is_one_sentence(str(error), path)
    else:
        assert found.dtype in (np.uint8, np.uint16)
        assert found.ndim in (2, 3)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(1, 40), width=st.integers(1, 40), colour=st.booleans(), deep=st.booleans())
def test_any_size_down_to_one_pixel_survives_tiff_and_png(
    tmp_path: Path, height: int, width: int, colour: bool, deep: bool
) -> None:
    dtype = np.uint16 if deep else np.uint8
    shape = (height, width, 3) if colour else (height, width)
    pixels = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape).astype(dtype)
    tif, png = tmp_path / "a.tif", tmp_path / "a.png"
    tifffile.imwrite(tif, pixels, photometric="rgb" if colour else "minisblack", compression="zlib")
    png.write_bytes(imagecodecs.png_encode(pixels))
    for path in (tif, png):
        np.testing.assert_array_equal(read_image(path), pixels)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_an_orientation_that_is_not_applied_is_noted_of_png_as_of_jpeg(tmp_path: Path, kind: str) -> None:
    from PIL import Image

    for orientation, noted in ((1, 0), (6, 1)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.{kind}"
        Image.fromarray(SMOOTH.astype(np.uint8)).save(path, exif=exif)
        assert ["orientation" in note for note in image_info(path).notes] == [True] * noted


@pytest.mark.parametrize("body", [b"", b"II*\0", b"MM\0*\0\0\0\x08\0\x09", b"II*\0\xff\xff\xff\xff\0\0"])
def test_damaged_exif_of_a_png_costs_no_picture(tmp_path: Path, body: bytes) -> None:
    import struct
    import zlib

    whole = imagecodecs.png_encode(SMOOTH.astype(np.uint8))
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    (tmp_path / "a.png").write_bytes(whole[:33] + chunk + whole[33:])
    assert image_info(tmp_path / "a.png").notes == ()
