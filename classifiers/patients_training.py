"""Training and measuring patient-level readers on bags of embedded cells.

A bag is drawn anew each time a patient is visited, of a random size, so that the reader works for ten cells
and for two hundred.  Patients, not cells, are split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from classifiers.patients import PatientNet


@dataclass(frozen=True)
class EmbeddedPatient:
    """A patient's cells as a cell classifier sees them.

    pattern: index of the truth; embeddings (n, D) and probabilities (n, C) float32; key: (n,) bool, the
    cells that make the pattern where few do (blasts), for judging the attention.
    """

    pattern: int
    embeddings: np.ndarray
    probabilities: np.ndarray
    key: np.ndarray


@dataclass(frozen=True)
class PatientRecipe:
    """Everything that decides the weights, beside the patients."""

    epochs: int = 60
    smallest_bag: int = 10
    largest_bag: int = 80
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    width: int = 48
    hidden: int = 24
    smoothing: float = 0.05
    seed: int = 0


def train_patients(
    patients: Sequence[EmbeddedPatient], patterns: int, recipe: PatientRecipe = PatientRecipe()
) -> PatientNet:
    """Fit both readers; the same patients, recipe and machine give the same weights."""
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    cells = torch.from_numpy(np.concatenate([p.embeddings for p in patients]))
    net = PatientNet(
        cells.shape[1], patients[0].probabilities.shape[1], patterns, recipe.width, recipe.hidden
    )
    net.mean.copy_(cells.mean(0))
    net.spread.copy_(cells.std(0) + 1e-3)
    learn_the_familiar(net, patients, recipe.smallest_bag)
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    total = recipe.epochs * len(patients)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=total)
    net.train()
    for _ in range(recipe.epochs):
        for index in rng.permutation(len(patients)):
            patient = patients[index]
            size = int(rng.integers(recipe.smallest_bag, recipe.largest_bag + 1))
            rows = torch.from_numpy(
                rng.choice(len(patient.embeddings), min(size, len(patient.embeddings)), False)
            )
            logits, _, _ = net(torch.from_numpy(patient.embeddings)[rows])
            histogram = net.from_histogram(torch.from_numpy(patient.probabilities)[rows])
            truth = torch.tensor([patient.pattern])
            loss = F.cross_entropy(logits[None], truth, label_smoothing=recipe.smoothing)
            loss = loss + F.cross_entropy(histogram[None], truth, label_smoothing=recipe.smoothing)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval()


SHRINKAGE = 0.01  # of the covariance towards the identity: a few directions hold nearly all of the spread


def learn_the_familiar(net: PatientNet, patients: Sequence[EmbeddedPatient], smallest_bag: int) -> None:
    """Set what tells bags of the training's kind from others, once mean and spread are set.

    The limit comes from the patients of every third place, which the covariance for it has not seen, in
    whole bags and in the smallest.
    """

    def whitening(some: Sequence[EmbeddedPatient]) -> torch.Tensor:
        cells = torch.from_numpy(np.concatenate([p.embeddings for p in some])).double()
        scaled = (cells - net.mean) / net.spread
        own = torch.cov(scaled.T) + SHRINKAGE * torch.eye(scaled.shape[1], dtype=torch.float64)
        return torch.linalg.inv(torch.linalg.cholesky(own)).float()

    left_out = patients[::3]
    net.whitening.copy_(whitening([p for i, p in enumerate(patients) if i % 3]))
    bags = [torch.from_numpy(p.embeddings) for p in left_out]
    bags += [part for bag in bags for part in bag.split(smallest_bag) if len(part) == smallest_bag]
    net.strangeness_limit.fill_(max(float(net.strangeness(bag)) for bag in bags))
    net.whitening.copy_(whitening(patients))


def accuracy_by_bag(
    net: PatientNet,
    patients: Sequence[EmbeddedPatient],
    sizes: Sequence[int],
    *,
    draws: int = 5,
    seed: int = 1,
) -> list[dict[str, Any]]:
    """Accuracy of both readers as bags shrink, a row a size.

    Each patient is drawn `draws` times a size; `n` counts patients, so intervals on it are not too narrow.
    `key_cell_rank_auc` is the chance that attention ranks a cell that makes the pattern above another cell,
    over patients that have both; 0.5 is blind.
    """
    rows = []
    for size in sizes:
        rng = np.random.default_rng([seed, size])
        hits = np.zeros((len(patients), 2))
        ranks: list[float] = []
        for i, patient in enumerate(patients):
            for _ in range(draws):
                some = rng.choice(len(patient.embeddings), min(size, len(patient.embeddings)), False)
                with torch.inference_mode():
                    logits, attention, _ = net(torch.from_numpy(patient.embeddings[some]))
                    histogram = net.from_histogram(torch.from_numpy(patient.probabilities[some]))
                hits[i] += (
                    int(logits.argmax()) == patient.pattern,
                    int(histogram.argmax()) == patient.pattern,
                )
                key, weight = patient.key[some], attention.numpy()
                if key.any() and not key.all():
                    above = weight[key][:, None] > weight[~key][None, :]
                    ranks.append(float(above.mean()))
        share = hits / draws
        rows.append(
            {
                "cells": int(size),
                "patients": len(patients),
                "attention": float(share[:, 0].mean()),
                "attention_se": float(share[:, 0].std(ddof=1) / np.sqrt(len(patients))),
                "histogram": float(share[:, 1].mean()),
                "histogram_se": float(share[:, 1].std(ddof=1) / np.sqrt(len(patients))),
                "key_cell_rank_auc": float(np.mean(ranks)) if ranks else None,
            }
        )
    return rows
