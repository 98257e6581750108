"""What names: cell classifiers and readers of iron."""

from __future__ import annotations

from typing import Any

from storage.packages import ModelPackage
from storage.registry import register


@register(
    "sideroblast-reader",
    "rule",
    licence="AGPL-3.0-or-later",
    summary="Nucleus, Prussian-blue granules and the rule of IWGM-MDS 2008; explainable, no weights",
    needs_package=False,
)
def _rule(package: ModelPackage | None) -> Any:
    from classifiers.sideroblasts import RuleReader

    return RuleReader()


@register(
    "sideroblast-reader",
    "iron-net",
    licence="AGPL-3.0-or-later",
    summary="A small network on one patch: four types or no erythroblast; a second opinion without evidence",
)
def _iron_net(package: ModelPackage | None) -> Any:
    from classifiers.sideroblasts_cnn import LearnedReader

    assert package is not None  # the registry hands a package to every architecture that needs one
    return LearnedReader.from_package(package)


@register(
    "classifier",
    "timm",
    licence="AGPL-3.0-or-later",
    summary="timm backbones with a cell locator, calibrated probabilities and an out-of-distribution rank",
)
def _timm(package: ModelPackage | None) -> Any:
    from classifiers.timm_classifier import TimmClassifier

    assert package is not None  # the registry hands a package to every architecture that needs one
    return TimmClassifier.from_package(package)


@register(
    "classifier",
    "erythroid-net",
    licence="AGPL-3.0-or-later",
    summary="A small network on one patch of MGG marrow: proerythroblast, erythroblast or another cell",
)
def _erythroid_net(package: ModelPackage | None) -> Any:
    from classifiers.erythroblasts import ErythroblastClassifier

    assert package is not None  # the registry hands a package to every architecture that needs one
    return ErythroblastClassifier.from_package(package)


@register(
    "patient-classifier",
    "attention-mil",
    licence="AGPL-3.0-or-later",
    summary="gated attention over a case's cell embeddings (Ilse 2018), and their histogram beside it",
)
def _attention_mil(package: ModelPackage | None) -> Any:
    from classifiers.patients import AttentionReader

    assert package is not None  # the registry hands a package to every architecture that needs one
    return AttentionReader.from_package(package)
