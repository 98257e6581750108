"""Scores of a Visual Turing Test: two confusion matrices, rates with intervals, agreement, correlation.

In the realism matrix the positive answer is "real", so that its false positive rate is the share of
virtual images that were taken for photographs (Hernández-Abad et al., figure 4); in the label matrix it
is "positive", and its rates on virtual images show whether the pathology came across (figures 7 and 8).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import statistics as st
from pipeline.agreement import Kappa, kappa
from pipeline.errors import BadInput, shown
from pipeline.vtt_answers import Answers
from storage.tables import read_table


@dataclass(frozen=True)
class Confusion:
    """Counts of one question; `images` is how many different images they are of.

    Where several experts answered the same images, the intervals of the rates are those of so many
    images, not of so many answers: two opinions of one image are not two images.
    """

    tp: int
    fn: int
    fp: int
    tn: int
    images: tuple[int, int]  # different images truly positive, truly negative

    def rates(self, level: float = 0.95) -> dict[str, dict[str, float | int | None]]:
        """False positive and false negative rate and accuracy, each with its exact interval."""
        positive, negative = self.tp + self.fn, self.fp + self.tn
        return {
            "fpr": _rate(self.fp, negative, self.images[1], level),
            "fnr": _rate(self.fn, positive, self.images[0], level),
            "accuracy": _rate(self.tp + self.tn, positive + negative, sum(self.images), level),
        }

    def to_json(self, level: float = 0.95) -> dict[str, Any]:
        counts = {"tp": self.tp, "fn": self.fn, "fp": self.fp, "tn": self.tn}
        return {"confusion": counts, **self.rates(level)}


def _rate(hits: int, answers: int, images: int, level: float) -> dict[str, float | int | None]:
    if answers == 0:
        return {"value": None, "low": None, "high": None, "n": 0, "n_images": 0}
    share = hits / answers
    low, high = st.clopper_pearson(min(share * images, images), images, level)
    return {"value": share, "low": low, "high": high, "n": answers, "n_images": images}


def confusion(pairs: Sequence[tuple[str, bool, bool]]) -> Confusion:
    """Counts of (image id, truth, answer) triples."""
    count = dict.fromkeys(((True, True), (True, False), (False, True), (False, False)), 0)
    seen: tuple[set[str], set[str]] = (set(), set())
    for name, truth, said in pairs:
        count[truth, said] += 1
        seen[0 if truth else 1].add(name)
    return Confusion(
        count[True, True],
        count[True, False],
        count[False, True],
        count[False, False],
        (len(seen[0]), len(seen[1])),
    )


def _matrices(
    truth: Mapping[str, tuple[bool, bool]], readers: Sequence[Answers], level: float
) -> dict[str, Any]:
    real: list[tuple[str, bool, bool]] = []
    label: list[tuple[str, bool, bool, bool]] = []
    for reader in readers:
        for name, (is_real, is_positive) in truth.items():
            said = reader.by_id.get(name)
            if said is not None and said.real is not None:
                real.append((name, is_real, said.real))
            if said is not None and said.positive is not None:
                label.append((name, is_positive, said.positive, is_real))
    of = {"all": (True, False), "real": (True,), "virtual": (False,)}
    return {
        "realism": confusion(real).to_json(level),
        "label": {
            k: confusion([x[:3] for x in label if x[3] in origin]).to_json(level) for k, origin in of.items()
        },
        "n_open": len(truth) * len(readers) * 2 - len(real) - len(label),
    }


def _agreement(names: Sequence[str], readers: Sequence[Answers], level: float) -> dict[str, Any]:
    """Fleiss' kappa of all experts where there are more than two, Cohen's of each pair, per question."""
    out: dict[str, Any] = {}
    for question, pick in (("realism", lambda a: a.real), ("label", lambda a: a.positive)):

        def table(some: Sequence[Answers], pick: Any = pick) -> np.ndarray:
            rows = [[pick(r.by_id[n]) if n in r.by_id else None for r in some] for n in names]
            return np.array([r for r in rows if None not in r], dtype=bool).reshape(-1, len(some))

        out[question] = {
            "fleiss": _kappa(kappa(table(readers), level=level)) if len(readers) > 2 else None,
            "cohen": [
                {"experts": [a.expert, b.expert], **_kappa(kappa(table((a, b)), level=level))}
                for a, b in combinations(readers, 2)
            ],
        }
    return out


def _kappa(found: Kappa) -> dict[str, Any]:
    return {"kappa": found.value, "low": found.low, "high": found.high, "n_images": found.n}


def score_test(key: Mapping[str, Any], answers: Sequence[Answers], level: float = 0.95) -> dict[str, Any]:
    """Scores of one test: per expert, together, and how far the experts agree.

    Raises BadInput where answers are of another test, name an unknown image, hold no answer at all, or
    come twice from one expert.
    """
    truth = {row["id"]: (row["real"], row["positive"]) for row in key["images"]}
    experts: set[str] = set()
    for found in answers:
        if found.test_id != key["test_id"]:
            raise BadInput(
                f"{found.file}: answers test {found.test_id}, the key is of {key['test_id']}; give its key."
            )
        unknown = [name for name in found.by_id if name not in truth]
        if unknown:
            raise BadInput(f"{found.file}: image {unknown[0]} is not of this test; give the file unchanged.")
        if not any(a.real is not None or a.positive is not None for a in found.by_id.values()):
            raise BadInput(f"{found.file}: no image is answered; leave the file out.")
        if found.expert in experts:
            raise BadInput(
                f"{found.file}: '{found.expert}' answered test {found.test_id} twice; give one file each."
            )
        experts.add(found.expert)
    return {
        "test_id": key["test_id"],
        "configuration": key.get("configuration") or "",
        "n_images": len(truth),
        "level": level,
        "experts": [
            {"expert": found.expert, "file": found.file.name, **_matrices(truth, [found], level)}
            for found in answers
        ],
        "together": _matrices(truth, answers, level),
        "agreement": _agreement(list(truth), answers, level),
    }


def score_all(
    keys: Sequence[Mapping[str, Any]],
    answers: Sequence[Answers],
    distances: Mapping[str, Mapping[str, float]] | None = None,
    level: float = 0.95,
) -> dict[str, Any]:
    """Scores of several tests, each answer with the key of its test; correlation over configurations.

    `distances` maps a configuration to named figures such as FID; each is correlated with the false
    positive rate of realism.  Raises BadInput as `score_test`, and for answers without a key.
    """
    by_id = {key["test_id"]: key for key in keys}
    for found in answers:
        if found.test_id not in by_id:
            raise BadInput(f"{found.file}: answers test {found.test_id}, whose key is not given; add it.")
    tests = [
        score_test(key, [a for a in answers if a.test_id == test_id], level)
        for test_id, key in by_id.items()
        if any(a.test_id == test_id for a in answers)
    ]
    return {"tests": tests, "across": {"pearson": _correlations(tests, distances or {}, level)}}


def _correlations(
    tests: Sequence[Mapping[str, Any]], distances: Mapping[str, Mapping[str, float]], level: float
) -> list[dict[str, Any]]:
    out = []
    for name in dict.fromkeys(metric for row in distances.values() for metric in row):
        points = [
            (distances[t["configuration"]][name], t["together"]["realism"]["fpr"]["value"])
            for t in tests
            if name in distances.get(t["configuration"], {})
            and t["together"]["realism"]["fpr"]["value"] is not None
        ]
        found = pearson([p[0] for p in points], [p[1] for p in points], level)
        out.append({"metric": name, "against": "fpr of realism", **found})
    return out


def pearson(x: Sequence[float], y: Sequence[float], level: float = 0.95) -> dict[str, float | int | None]:
    """Pearson's r of two series with Fisher's interval; None where it is not defined.

    r needs three points and some spread, the interval four (Fisher 1921: z of r has the standard error
    1 / sqrt(n - 3)).
    """
    n = len(x)
    if n < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return {"r": None, "low": None, "high": None, "n": n}
    r = float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))
    if n < 4 or abs(r) >= 1:
        return {"r": r, "low": None, "high": None, "n": n}
    half = st.normal_quantile(level) / math.sqrt(n - 3)
    return {"r": r, "low": math.tanh(math.atanh(r) - half), "high": math.tanh(math.atanh(r) + half), "n": n}


def read_distances(path: Path) -> dict[str, dict[str, float]]:
    """A CSV of a column `configuration` and one column for each distance, such as FID on a split.

    Raises BadInput where it is none.
    """
    rows = read_table(path, ("configuration",))
    metrics = [c for c in rows.columns if c != "configuration"]
    if not metrics:
        raise BadInput(f"{path}: needs the column configuration and one column for each distance; add them.")
    out: dict[str, dict[str, float]] = {}
    for row in rows:
        name = row["configuration"]
        if name in out:
            raise BadInput(
                f"{row.where}: configuration '{shown(name)}' stands there twice; keep one line of it."
            )
        found = {metric: row.number(metric) for metric in metrics}
        out[name] = {metric: value for metric, value in found.items() if value is not None}
    return out


def render_scores(scores: Mapping[str, Any]) -> str:
    """The scores as a page of text, for the terminal."""
    lines: list[str] = []
    for test in scores["tests"]:
        name = f"Configuration {test['configuration']}, t" if test["configuration"] else "T"
        lines.append(f"{name}est {test['test_id']}: {test['n_images']} images")
        for who in (*test["experts"], *([test["together"]] if len(test["experts"]) > 1 else [])):
            lines += _reader_lines(who, who.get("expert", "together"))
        for question, found in test["agreement"].items():
            for pair in found["cohen"]:
                lines.append(
                    f"  agreement on {question}, {' and '.join(pair['experts'])}: {_kappa_text(pair)}"
                )
            if found["fleiss"]:
                lines.append(f"  agreement on {question}, all (Fleiss): {_kappa_text(found['fleiss'])}")
        lines.append("")
    for row in scores["across"]["pearson"]:
        r = "not defined" if row["r"] is None else f"{row['r']:.2f}"
        span = "" if row["low"] is None else f" ({row['low']:.2f} to {row['high']:.2f})"
        lines.append(f"Pearson of {row['metric']} against {row['against']}, n = {row['n']}: {r}{span}")
    return "\n".join(lines).rstrip()


def _reader_lines(who: Mapping[str, Any], name: str) -> list[str]:
    tables = [("real or fake", who["realism"])]
    tables += [(f"label, {k} images", who["label"][k]) for k in ("all", "real", "virtual")]
    lines = [f"  {name}" + (f" ({who['n_open']} answers left open)" if who["n_open"] else "")]
    for title, table in tables:
        c = table["confusion"]
        rates = "  ".join(
            f"{k.upper() if k != 'accuracy' else k} {_rate_text(table[k])}" for k in table if k != "confusion"
        )
        lines.append(
            f"    {title:<22}TP {c['tp']:<3} FN {c['fn']:<3} FP {c['fp']:<3} TN {c['tn']:<3}  {rates}"
        )
    return lines


def _rate_text(rate: Mapping[str, Any]) -> str:
    if rate["value"] is None:
        return "–"
    return f"{rate['value']:.2f} ({rate['low']:.2f}-{rate['high']:.2f})"


def _kappa_text(found: Mapping[str, Any]) -> str:
    if found["kappa"] is None:
        return "kappa not defined, every answer is the same"
    span = "" if found["low"] is None else f" ({found['low']:.2f} to {found['high']:.2f})"
    return f"kappa {found['kappa']:.2f}{span}, {found['n_images']} images"
