"""Partly paired data of several domains: some cells are known in two of them, most in one alone.

As in thesis sections 4.4 and 5.2: classes and masks are known for stained cells and handed on to the DIC of
the same cell where that is known.  Here the DIC is computed from the stained cell; of some cells both are
kept as a pair, of some the stain alone, of some the DIC alone - which then has no class, no mask and no
partner.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import BadInput
from stainers.cell_sets import as_planes, dic_picture
from stainers.data import DOMAINS, PairOptions, PairSampler, Smear, targets_of

Array = np.ndarray[Any, Any]
Name = Callable[[Array], Sequence[str]]  # pictures (N, H, W, 3) uint8 -> class of each, "" for none
Outline = Callable[[Array], Array]  # pictures (N, H, W, 3) uint8 -> labels (N, H, W) uint8, 255 unknown

DIC = "dic"
NO_LABEL, NO_MASK, NO_PARTNER = -1, 255, -1


@dataclass(frozen=True)
class DomainCell:
    """One picture (H, W, 3 or 2) uint8 of a domain; what is not known of it is "", None or NO_PARTNER.

    mask: (H, W) uint8 of background, red cell, cytoplasm, nucleus; partner: place, in the set, of the same
    cell in another domain.
    """

    picture: Array
    domain: int
    label: str = ""
    mask: Array | None = None
    partner: int = NO_PARTNER


@dataclass(frozen=True)
class DomainSet:
    """Cells of several domains; `pseudo` of their class labels were made by a classifier."""

    domains: tuple[str, ...]
    cells: tuple[DomainCell, ...]
    classes: tuple[str, ...]
    pseudo: int = 0

    def __post_init__(self) -> None:
        for i, cell in enumerate(self.cells):
            if cell.partner != NO_PARTNER and self.cells[cell.partner].partner != i:
                raise ValueError(f"cell {i} has a partner that is not paired with it")

    def count(self) -> dict[str, int]:
        """Cells of each domain, and how many pairs there are."""
        found = {d: sum(c.domain == i for c in self.cells) for i, d in enumerate(self.domains)}
        return found | {"pairs": sum(c.partner != NO_PARTNER for c in self.cells) // 2}


@dataclass(frozen=True)
class DomainOptions:
    """How many cells, and what is known of them.

    `pairs_known` of the cells are kept in both domains; the rest gives its stain or its DIC alone, in turn.
    Crops are cut out of `context_px` at random; DIC is never flipped nor turned apart from its partner.
    `paired_share` of the DIC items that have a partner are given its stain as target, all others a random
    permutation of the batch's domains: the partner of a stain is always its DIC, which nobody wants painted.
    `rare_share` of the draws choose the class first, so that rare
    classes are seen.

    `chooser` says which checkpoint is kept: `loss` (the error on held-out pairs), `last`, or the name of a
    registered classifier, for the most held-out cells that it names like the real ones.
    """

    cells: int = 360
    context_px: int = 144
    crop_px: int = 96
    pairs_known: float = 0.5
    paired_share: float = 0.5
    rare_share: float = 0.3
    chooser: str = field(default="loss", repr=False)  # a later key: stainers.data_marks.mark_of_recipe


@dataclass(frozen=True)
class DomainExample:
    """picture, partner (3 or 2, c, c) float32 in [0, 1] as three maps; mask (c, c) int64, 255 unknown."""

    picture: Array
    domain: int
    target: int
    label: int
    mask: Array
    partner: Array
    paired: bool


def computed_domains(
    smears: Sequence[Smear],
    options: DomainOptions,
    seed: int,
    *,
    name: Name | None = None,
    outline: Outline | None = None,
) -> DomainSet:
    """The stain domains of `smears` and DIC computed from them, leukocytes centred within a few µm.

    `name` and `outline` give classes and masks of stained cells: pseudo-labels, and counted as such.
    """
    if not set(stains := targets_of(smears)) <= set(DOMAINS):
        raise BadInput(
            f"smears of {', '.join(stains)}: this recipe learns the stains {', '.join(DOMAINS)} beside each "
            "other; train the recipe unet-film on your own."
        )
    pairs = PairOptions(
        crop_px=options.context_px,
        context_px=options.context_px,
        leukocyte_share=0.9,
        spoilt_share=0.0,
        scale_jitter=0.0,
    )
    sampler = PairSampler(smears, pairs, seed, DOMAINS)
    rng = np.random.default_rng([seed, 21])
    cells: list[DomainCell] = []
    pseudo = 0
    for number in range(options.cells):
        source, stained, domain = sampler.draw(number)
        colour = (stained.transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8)
        dic = dic_picture(source[0], source[1])
        both = rng.random() < options.pairs_known
        if not both and number % 2:
            cells.append(DomainCell(dic, len(DOMAINS)))
            continue
        label = name(colour[None])[0] if name is not None else ""
        mask = outline(colour[None])[0] if outline is not None else None
        pseudo += bool(label)
        place = len(cells)
        cells.append(DomainCell(colour, domain, label, mask, place + 1 if both else NO_PARTNER))
        if both:
            cells.append(DomainCell(dic, len(DOMAINS), label, mask, place))
    classes = tuple(sorted({c.label for c in cells} - {""}))
    return DomainSet((*DOMAINS, DIC), tuple(cells), classes, pseudo)


def three_maps(picture: Array) -> Array:
    """A picture as three maps: RGB as it is; DIC and its integral as dic, path, dic."""
    return np.concatenate([picture, picture[..., :1]], axis=2) if picture.shape[2] == 2 else picture


class DomainSampler:
    """Endless batches of a seed: items from all domains alike, target domains by permutation.

    Batch number n is the same whenever and wherever it is drawn.
    """

    def __init__(self, data: DomainSet, options: DomainOptions, seed: int) -> None:
        self.data, self.options, self.seed = data, options, seed
        self.places = [
            np.asarray([i for i, c in enumerate(data.cells) if c.domain == d])
            for d in range(len(data.domains))
        ]
        missing = [d for d, p in zip(data.domains, self.places, strict=True) if not len(p)]
        if missing:
            raise BadInput(
                f"there are no cells of domain {', '.join(missing)} to learn from; give more images."
            )
        known = {c: i for i, c in enumerate(data.classes)}
        self.labels = np.asarray([known.get(c.label, NO_LABEL) for c in data.cells])

    def batch(self, step: int, size: int) -> list[DomainExample]:
        rng = np.random.default_rng([self.seed, 22, step])
        start = int(rng.integers(len(self.places)))
        chosen = [self._choose((start + i) % len(self.places), rng) for i in range(size)]
        domains = np.asarray([self.data.cells[i].domain for i in chosen])
        targets = rng.permutation(domains)
        examples = []
        for index, target in zip(chosen, targets, strict=True):
            cell = self.data.cells[index]
            asked = cell.partner != NO_PARTNER and self.data.domains[cell.domain] == DIC
            if asked and rng.random() < self.options.paired_share:
                target = self.data.cells[cell.partner].domain
            examples.append(self.example(index, int(target), rng))
        return examples

    def _choose(self, domain: int, rng: np.random.Generator) -> int:
        places = self.places[domain]
        labels = self.labels[places]
        present = np.unique(labels[labels != NO_LABEL])
        if len(present) and rng.random() < self.options.rare_share:
            places = places[labels == rng.choice(present)]
        return int(rng.choice(places))

    def example(self, index: int, target: int, rng: np.random.Generator) -> DomainExample:
        """Cell `index` with a target domain, cropped as its partner is."""
        cell, crop = self.data.cells[index], self.options.crop_px
        height, width = cell.picture.shape[:2]
        y, x = (int(rng.integers(max(n - crop, 0) + 1)) for n in (height, width))
        part = (slice(y, y + crop), slice(x, x + crop))
        picture = as_planes(three_maps(cell.picture[part]))
        paired = cell.partner != NO_PARTNER and self.data.cells[cell.partner].domain == target
        partner = as_planes(three_maps(self.data.cells[cell.partner].picture[part])) if paired else picture
        mask = np.full((crop, crop), NO_MASK) if cell.mask is None else cell.mask[part]
        return DomainExample(
            picture, cell.domain, target, int(self.labels[index]), mask.astype(np.int64), partner, paired
        )


def kept(path: Path, key: dict[str, Any], make: Callable[[], DomainSet]) -> DomainSet:
    """The set of `path`, or made and written there: naming and outlining thousands of cells takes minutes.

    `key` says what it is made of; a file of another key is made anew.
    """
    mark = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    if path.is_file():
        with np.load(path) as held:
            if str(held["mark"]) == mark:
                return _unpacked(held)
    data = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp.npz")
    cells = data.cells
    np.savez_compressed(
        draft,
        mark=mark,
        domains=np.asarray(data.domains),
        classes=np.asarray(data.classes, dtype=str),
        pseudo=data.pseudo,
        pictures=np.stack([three_maps(c.picture) for c in cells]),
        maps=np.asarray([c.picture.shape[2] for c in cells]),
        domain=np.asarray([c.domain for c in cells]),
        label=np.asarray([c.label for c in cells], dtype=str),
        has_mask=np.asarray([c.mask is not None for c in cells]),
        masks=np.stack(
            [np.zeros(c.picture.shape[:2], np.uint8) if c.mask is None else c.mask for c in cells]
        ),
        partner=np.asarray([c.partner for c in cells]),
    )
    draft.replace(path)
    return data


def _unpacked(held: Any) -> DomainSet:
    rows = zip(
        held["pictures"],
        held["maps"],
        held["domain"],
        held["label"],
        held["has_mask"],
        held["masks"],
        held["partner"],
        strict=True,
    )
    cells = tuple(
        DomainCell(np.ascontiguousarray(p[..., :m]), int(d), str(name), mask if has else None, int(partner))
        for p, m, d, name, has, mask, partner in rows
    )
    return DomainSet(
        tuple(map(str, held["domains"])), cells, tuple(map(str, held["classes"])), int(held["pseudo"])
    )


def key_of(options: DomainOptions, seed: int, data: str) -> dict[str, Any]:
    """What a set is made of, `data` the mark of its smears; how examples are drawn is not part of that."""
    made_of = {k: getattr(options, k) for k in ("cells", "context_px", "pairs_known")}
    return {"options": made_of, "seed": seed, "data": data, "version": 2}
