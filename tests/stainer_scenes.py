"""Made-up inputs for the tests of stainers: DIC of round cells, and a folder of stained smears."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stainers.data import PairOptions
from stainers.pair_sources import Pair
from stainers.recipes import NetworkRecipe, Recipe
from storage.image_folders import public_names

torch = pytest.importorskip("torch")


def dic_image(height: int, width: int, n_cells: int, seed: int, noise: float = 2.0) -> np.ndarray:
    """(height, width) uint8: the relief of round cells, lit from one side, with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    path = np.zeros((height, width), np.float32)
    for _ in range(n_cells):
        cx, cy, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(10, 38)
        path += np.sqrt(np.clip(1 - ((x - cx) ** 2 + (y - cy) ** 2) / r**2, 0, 1))
    gy, gx = np.gradient(path)
    dic = 122 + 160 * (0.8 * gx + 0.6 * gy) + rng.normal(0, noise, path.shape)
    return np.clip(dic, 0, 255).astype(np.uint8)


def dic_patches(n: int, size: int = 64, seed: int = 0) -> np.ndarray:
    """(n, size, size, 1) uint8."""
    return np.stack([dic_image(size, size, 4, seed * 1000 + i) for i in range(n)])[..., None]


PUBLIC_SIZES = ((575, 120), (364, 70), (416, 80))  # side of a field and diameter of a red cell, px


def smear_name(size: int, number: int) -> str:
    """The file name of a drawn smear; one of a public size begins as a photograph of that set does."""
    sizes = sorted(side for side, _ in PUBLIC_SIZES)
    if size not in sizes:
        return f"{size}-{number}"
    return f"{sorted(public_names())[100 * sizes.index(size) + number]}-{size}-{number}"


def smear_folder(
    root: Path, n_per_domain: int = 3, seed: int = 0, sizes: tuple[tuple[int, int], ...] = PUBLIC_SIZES
) -> Path:
    """A YOLO-format folder of drawn smears in the sizes of the three sources, or others."""
    import cv2

    rng = np.random.default_rng(seed)
    for name in ("images", "labels"):
        (root / name / "train").mkdir(parents=True)
    for size, diameter in sizes:
        for i in range(n_per_domain):
            image = np.full((size, size, 3), (215, 225, 235), np.uint8)
            rows = []
            for k in range(14):
                x, y = (int(v) for v in rng.uniform(0.15 * size, 0.85 * size, 2))
                white = k >= 11
                colour = (140, 60, 110) if white else (150, 150, 205)
                radius = int(diameter * (0.65 if white else 0.5))
                cv2.circle(image, (x, y), radius, colour, -1)
                if white:
                    cv2.circle(image, (x, y), radius // 2, (110, 20, 60), -1)
                rows.append(
                    f"{0 if white else 1} {x / size} {y / size} {2 * radius / size} {2 * radius / size}"
                )
            stem = smear_name(size, i)
            cv2.imwrite(str(root / "images" / "train" / f"{stem}.jpg"), image)
            (root / "labels" / "train" / f"{stem}.txt").write_text("\n".join(rows))
    return root


TARGETS = ("bccd", "raabin")


def stained_of(dic: np.ndarray, colour=(0.9, 0.7, 0.8)) -> np.ndarray:
    """A made-up stain (H, W, 3) of DIC (H, W, 1): smooth, coloured."""
    import cv2

    smooth = cv2.GaussianBlur(dic[..., 0].astype(np.float32), (0, 0), 3)
    return np.clip(smooth[..., None] * np.asarray(colour) + 40, 0, 255).astype(np.uint8)


class FakeStainer:
    """Stains as `stained_of` with an error that grows from patch to patch, and knows how large it is."""

    name, targets, min_confidence = "fake", TARGETS, 0.5

    def stain(self, patches, target=None):
        from stainers.base import Stained

        rng = np.random.default_rng(int(patches.astype(int).sum()))
        doubt = np.asarray([0.02 + 0.2 * rng.random() for _ in patches])
        images = np.stack(
            [
                np.clip(stained_of(p) + 255 * d * rng.standard_normal((*p.shape[:2], 3)), 0, 255)
                for p, d in zip(patches, doubt, strict=True)
            ]
        ).astype(np.uint8)
        maps = np.broadcast_to(doubt[:, None, None], patches.shape[:3]).astype(np.float32)
        return Stained(images, maps, (1 - 3 * doubt).astype(np.float32))


class FakeClassifier:
    """Names a cell by its green; embeds a view as its mean colours."""

    name, classes = "fake-classifier", ("light", "dark")

    def classify(self, patches, pixel_size_um):
        from classifiers.base import Classified

        dark = patches[..., 1].mean(axis=(1, 2)) < 128
        return Classified(np.stack([~dark, dark], 1).astype(np.float32), np.zeros(len(patches), np.float32))

    def view(self, patch, pixel_size_um):
        return torch.from_numpy(patch[:32, :32].transpose(2, 0, 1).copy()).float() / 255

    def embed_views(self, views):
        return torch.nn.functional.adaptive_avg_pool2d(views, 2).flatten(1).numpy()


class FakeSegmenter:
    """Dark is nucleus, middle is cytoplasm."""

    name = "fake-segmenter"

    def segment(self, patches, pixel_size_um):
        grey = patches.mean(axis=-1)
        return np.where(grey < 120, 3, np.where(grey < 140, 2, 0)).astype(np.uint8)


def pairs_of(n: int = 12) -> list[Pair]:
    patches = dic_patches(n)
    return [
        Pair(p, stained_of(p), TARGETS[i % 2], f"image-{i // 2}", ("light", "dark")[i % 2])
        for i, p in enumerate(patches)
    ]


def tiny_recipe(steps: int) -> Recipe:
    """A `unet-film` recipe of a few steps that keeps a checkpoint half way and draws samples at its end."""
    return Recipe(
        steps=steps,
        batch=2,
        warm_up=1,
        checkpoint_every=steps // 2,
        sample_every=steps,
        polarity_steps=2,
        network=NetworkRecipe(widths=(4, 4, 8, 8), blocks=(1, 1, 1, 1), embedding=4),
        pairs=PairOptions(crop_px=48, context_px=64),
    )


def write_folder(root, n: int = 3):
    from PIL import Image

    for name in ("dic", "stained"):
        (root / name).mkdir(parents=True)
    for i, p in enumerate(dic_patches(n)):
        Image.fromarray(p[..., 0]).save(root / "dic" / f"c{i}.png")
        Image.fromarray(stained_of(p)).save(root / "stained" / f"c{i}.png")
    return root


# where pairs come from
