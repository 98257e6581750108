"""Paired sets of computed DIC: pictures of leukocytes beside the real stain they were computed of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.errors import BadInput
from stainers.cell_sets import Cells, StainSet, dic_picture
from stainers.data import Smear, leukocyte_windows
from stainers.dic_input import canonical_turn, integrate, measure_scale, normalise, to_grey
from stainers.pair_sources import Pair

SHEAR_JITTER_DEG = 6.0  # how wrong an estimated shear may be


@dataclass(frozen=True)
class DicSet(StainSet):
    """A paired set with the images that its pictures were made of: pairs[i] is source.images[i] unturned."""

    pairs: tuple[Pair, ...] = ()

    def pairs_of(self, split: str) -> list[Pair]:
        """Pairs of a split, with the cells' labels."""
        rows = zip(self.pairs, self.source.splits, self.target.labels, strict=True)
        return [replace(pair, label=label) for pair, s, label in rows if s == split]


def dic_set(
    smears: Sequence[Smear], domain: str, *, size_px: int = 256, limit: int = 0, seed: int = 0
) -> DicSet:
    """Pairs around the leukocytes of the smears of one stain domain; at most `limit` a split (0: all).

    The DIC is computed with optics drawn anew for each cell and turned as the DIC stainer turns its input.
    Labels are empty: the smears name no classes.
    """
    rng = np.random.default_rng([seed, 515])
    windows = [w for w in leukocyte_windows(smears, size_px) if w[0].domain == domain]
    sources, targets, groups, splits, pairs = [], [], [], [], []
    taken: dict[str, int] = {}
    for i in rng.permutation(len(windows)):
        smear, stained = windows[i]
        if limit and taken.get(smear.split, 0) >= limit:
            continue
        taken[smear.split] = taken.get(smear.split, 0) + 1
        dic, optics = smear.computed_dic(stained, rng)
        grey = to_grey(dic)
        estimate = optics.shear_angle_deg + rng.normal(0, SHEAR_JITTER_DEG)
        turn = canonical_turn(estimate)
        normalised = normalise(turn.apply(grey), measure_scale(grey))
        sources.append(dic_picture(normalised, integrate(normalised, turn.angle(estimate))))
        targets.append(turn.apply(stained))
        pairs.append(Pair(dic[..., None], stained, domain, smear.file, "", optics.shear_angle_deg))
        groups.append(smear.file)
        splits.append(smear.split)
    if not sources:
        held = ", ".join(sorted({s.domain for s in smears})) or "none"
        raise BadInput(
            f"the smears hold no leukocytes of the stain '{domain}', theirs are: {held}; set the recipe's "
            "data.target to one of these."
        )
    shared = (("",) * len(sources), tuple(groups), tuple(splits))
    return DicSet(
        Cells("dic", tuple(sources), *shared, modality="dic"),
        Cells(domain, tuple(targets), *shared),
        True,
        tuple(pairs),
    )
