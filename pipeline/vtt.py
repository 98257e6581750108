"""The Visual Turing Test: can an expert tell virtual images from real ones, and read them as well?

After Geman et al. 2015 (PNAS 112:3618) as used for virtual Perls (Hernández-Abad et al.): images in
equal parts real and virtual, positive and negative; two answers are asked of each.  This module draws
the images and writes the page and, apart from it, the key; `pipeline.vtt_score` scores the answers.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import BadInput, shown
from storage.image_folders import is_image
from storage.tables import read_table
from storage.whole_files import write_json, write_text

KEY_FORMAT = "smearflow-vtt-key/1"
GROUPS = (("real", "positive"), ("real", "negative"), ("virtual", "positive"), ("virtual", "negative"))
SHOWN_PX = 512  # the side at which the page shows an image, in CSS pixels


@dataclass(frozen=True)
class Candidate:
    """An image file that may be shown, and the truth of it."""

    file: Path
    real: bool
    positive: bool


@dataclass(frozen=True)
class TestImage:
    """One image of a test: its random id, pixels (S, S, 3) uint8, and the truth."""

    __test__ = False  # not a test case of pytest

    id: str
    image: np.ndarray
    real: bool
    positive: bool
    source: str


@dataclass(frozen=True)
class TuringTest:
    """A drawn test; `test_id` follows from what is shown, not from the truth."""

    test_id: str
    configuration: str
    seed: int
    images: tuple[TestImage, ...]

    def key(self) -> dict[str, Any]:
        """The truth, as the key file holds it."""
        return {
            "format": KEY_FORMAT,
            "test_id": self.test_id,
            "configuration": self.configuration,
            "seed": self.seed,
            "images": [
                {"id": i.id, "real": i.real, "positive": i.positive, "source": i.source} for i in self.images
            ],
        }


def read_candidates(source: Path) -> list[Candidate]:
    """Candidates of a folder with real/positive, real/negative, virtual/positive and virtual/negative,
    or of a CSV file with the columns file, origin (real or virtual) and label (positive or negative).

    Raises BadInput where a group, a column or a value is missing or wrong.
    """
    if source.is_dir():
        found = []
        for origin, label in GROUPS:
            folder = source / origin / label
            if not folder.is_dir():
                raise BadInput(
                    f"{source}: there is no folder {origin}/{label}; a test needs real/positive, "
                    "real/negative, virtual/positive and virtual/negative."
                )
            files = sorted(p for p in folder.iterdir() if is_image(p))
            found += [Candidate(p, origin == "real", label == "positive") for p in files]
        return found
    if not source.is_file():
        raise BadInput(f"{source}: there is no such folder or CSV file of images; check the path.")
    return _listed(source)


def _listed(path: Path) -> list[Candidate]:
    found = []
    for row in read_table(path, ("file", "origin", "label"), ("file",)):
        origin, label = row["origin"], row["label"]
        if (origin, label) not in GROUPS:
            raise BadInput(
                f"{row.where}: origin '{shown(origin)}' and label '{shown(label)}'; origin is real or "
                "virtual, label is positive or negative."
            )
        file = path.parent / row["file"]
        if not file.is_file():
            raise BadInput(
                f"{row.where}: there is no file '{shown(row['file'], 200)}' beside it; correct it."
            )
        found.append(Candidate(file, origin == "real", label == "positive"))
    return found


def draw_test(
    candidates: Sequence[Candidate],
    *,
    n: int = 100,
    seed: int = 0,
    configuration: str = "",
    size_px: int | None = None,
) -> TuringTest:
    """Draw n images, a quarter of each group, in random order under random ids.

    All images are shown at one size: `size_px` cuts the largest square from the middle of each and
    resamples it; without it, images of different sizes are refused, since the size would tell.  The same
    pixels are never shown twice.  Raises BadInput where n is no multiple of 4 or a group is too small.
    """
    if n < 4 or n % 4:
        raise BadInput(f"a test of {n} images cannot be in equal parts; take a multiple of 4, such as 100.")
    rng = np.random.default_rng([seed, n])
    chosen: list[tuple[Candidate, np.ndarray]] = []
    seen: set[bytes] = set()
    for origin, label in GROUPS:
        group = [c for c in candidates if (c.real, c.positive) == (origin == "real", label == "positive")]
        taken = 0
        for index in rng.permutation(len(group)):
            if taken == n // 4:
                break
            image = _square(group[index].file, size_px)
            mark = hashlib.sha256(image.tobytes()).digest()
            if mark in seen:
                continue
            seen.add(mark)
            chosen.append((group[index], image))
            taken += 1
        if taken < n // 4:
            raise BadInput(
                f"a test of {n} images needs {n // 4} different {origin} {label} ones and there are {taken}; "
                "add images or ask for fewer."
            )
    sizes = {image.shape for _, image in chosen}
    if len(sizes) > 1:
        shown = " and ".join(f"{s[1]} x {s[0]}" for s in sorted(sizes)[:2])
        raise BadInput(f"the images have different sizes ({shown} px), which would tell; give --size-px.")
    order = rng.permutation(n)
    ids = _ids(n, rng)
    images = tuple(
        TestImage(name, chosen[i][1], chosen[i][0].real, chosen[i][0].positive, chosen[i][0].file.name)
        for name, i in zip(ids, order, strict=True)
    )
    digest = hashlib.sha256(b"".join(i.id.encode() + i.image.tobytes() for i in images)).hexdigest()
    return TuringTest(digest[:12], configuration, seed, images)


def _ids(n: int, rng: np.random.Generator) -> list[str]:
    """n different random names."""
    names: dict[str, None] = {}
    while len(names) < n:
        names[rng.bytes(4).hex()] = None
    return list(names)


def _square(path: Path, size_px: int | None) -> np.ndarray:
    """Pixels (S, S, 3) uint8 of a file; nothing else of the file is kept."""
    import cv2

    from storage.images import read_uint8

    image = read_uint8(path)
    image = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image[..., :3]
    height, width = image.shape[:2]
    if size_px is None:
        return np.ascontiguousarray(image)
    side = min(height, width)
    y, x = (height - side) // 2, (width - side) // 2
    image = image[y : y + side, x : x + side]
    if side != size_px:
        how = cv2.INTER_AREA if side > size_px else cv2.INTER_CUBIC
        image = cv2.resize(image, (size_px, size_px), interpolation=how)
    return np.ascontiguousarray(image)


def png_uri(image: np.ndarray) -> str:
    """A data URI of pixels alone: freshly encoded, without any metadata of a file."""
    import cv2

    done, data = cv2.imencode(".png", image[..., ::-1])
    if not done:
        raise ValueError(f"an image of shape {image.shape} cannot be encoded")
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()


def render_page(test: TuringTest, title: str = "Visual Turing Test") -> str:
    """The page an expert works through: self-contained, offline, without the truth.

    It knows ids and pixels; the origin, the label, the configuration, the seed and the file names are in
    the key alone.
    """
    from pipeline.pages import asset, environment, source_hash

    shown = [{"id": i.id, "uri": png_uri(i.image)} for i in test.images]
    # "</" would end the block; ids and base64 hold none, the title might.
    data = json.dumps({"test_id": test.test_id, "images": shown}).replace("</", "<\\/")
    script, style = asset("vtt.js"), asset("vtt.css")
    from markupsafe import Markup

    return str(
        environment()
        .get_template("vtt.html.j2")
        .render(
            title=title,
            n=len(test.images),
            shown_px=SHOWN_PX,
            data=Markup(data),
            style=style,
            script=script,
            script_hash=source_hash(script),
        )
    )


def write_test(test: TuringTest, page: Path, title: str = "Visual Turing Test") -> Path:
    """Write the page and, beside it, `<stem>.key.json`; returns the key's path.

    Raises BadInput where one of them is there already: a key that is overwritten makes answers worthless.
    """
    key = page.with_name(f"{page.stem}.key.json")
    for path in (page, key):
        if path.exists():
            raise BadInput(f"{path} is there already; name another page, so that no test loses its key.")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{page}: cannot be written ({error.strerror}); choose another place.") from error
    write_text(page, render_page(test, title))
    write_json(key, test.key())
    return key


def read_key(path: Path) -> Mapping[str, Any]:
    """A key file; raises BadInput where it is none."""
    try:
        key = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BadInput(f"{path}: cannot be read as a key ({error}); give a file of `vtt build`.") from error
    if not isinstance(key, dict) or key.get("format") != KEY_FORMAT:
        raise BadInput(f"{path} is no key of a Visual Turing Test; give the .key.json of `vtt build`.")
    rows = key.get("images")
    fits = isinstance(rows, list) and all(
        isinstance(r, dict)
        and isinstance(r.get("id"), str)
        and isinstance(r.get("real"), bool)
        and isinstance(r.get("positive"), bool)
        for r in rows
    )
    if not fits or not rows or not isinstance(key.get("test_id"), str):
        raise BadInput(f"{path}: the key is damaged; restore the .key.json that `vtt build` wrote.")
    return key
