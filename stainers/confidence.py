"""How far a stained patch can be trusted: noise in the latent representation, and what came in and out.

Method: blood-cell thesis, chapter 7 (equations 7.1-7.5).  One encoder pass; k decoder passes with noise of
alpha channel-wise standard deviations put where the output shows something (the `bin` mask: glass is left
alone); the variance of the outputs (7.4) is an uncertainty map, the mutual information between them and
the output without noise (7.5) a confidence score.

Mutual information has no scale of its own: it grows with the content of a patch.  So it is not shown
raw.  A calibration turns it, with the variance, the error that the decoder expects, and plain properties of
input and output, into the error to expect and from there into one number in [0, 1]: 0.5 stands at the edge of
what unspoilt validation patches reach.  The error that it foretells is the one that can be foretold: that
which is left when lamp and strength of the stain are taken out (`structure_error` of stainers.image_errors).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from stainers.networks import Latent

Array = np.ndarray[Any, Any]

FEATURES = (
    "mutual_information",
    "information_share",
    "log_variance",
    "log_variance_p95",
    "log_expected_error",
    "log_expected_error_p95",
    "input_offset",
    "input_skew",
    "input_log_kurtosis",
    "input_anisotropy",
    "input_log_sharpness",
    "input_extreme_share",
    "input_log_spread",
    "input_saturated_share",
    "input_saturated_blob",
    "output_coverage",
    "output_dark_share",
    "output_log_density",
    "output_log_density_spread",
    "output_log_gradient",
    "output_entropy",
)
DIC_FEATURES = (*FEATURES, "input_polarity")  # how sure it is which way round the shear is

# More of a DIC patch than this in flat black or white is a missing part: of 624 unspoilt validation patches
# none has half as much.
MISSING_SHARE = 0.01
BLOB_FLOOR = 1e-3  # keeps the logarithm of a share finite


class EncoderDecoder(Protocol):
    """What a generator must offer for its latent representation to be disturbed.

    A latent is a `Latent`, or has `disturbed(shown, options, generator)`, which gives k copies with noise.
    """

    def encode(self, x: Tensor) -> Any: ...

    def decode(self, latent: Any, target: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class NoiseOptions:
    """k outputs, noise of alpha deviations; with `skips` the finer maps are disturbed as well.

    The level is measured, not guessed: of 0.3, 1 and 3, with and without the skips, little noise in the
    code alone went best with the true error (docs/staining.md).
    """

    samples: int = 4
    alpha: float = 0.3
    skips: bool = False
    seed: int = 20261121
    beta: float = 7.0  # deviations of a style code, where a latent has one (thesis 6.6; 7 in section 6.3)


def _disturb(latent: Tensor, mask: Tensor, options: NoiseOptions, generator: torch.Generator) -> Tensor:
    """Equations 7.1 and 7.2 for one map (1, C, h, w) -> (k, C, h, w); mask (1, 1, h, w) is `bin`."""
    sigma = latent.std(dim=(2, 3), keepdim=True, unbiased=False)
    noise = torch.randn((options.samples, *latent.shape[1:]), generator=generator)
    return latent + options.alpha * sigma * noise.to(latent) * mask


@torch.no_grad()
def disturbed_outputs(
    net: EncoderDecoder, x: Tensor, target: int, options: NoiseOptions
) -> tuple[Tensor, Tensor]:
    """Output without noise (C, H, W) and k outputs with noise (k, C, H, W) for an input (1, c, H, W); k may
    be 0.

    The noise depends on the seed and the shape alone, so that equal patches get equal scores.
    """
    latent = net.encode(x)
    index = torch.tensor([target], device=x.device)
    primary = net.decode(latent, index)
    if options.samples == 0:
        return primary[0], primary[:0]
    grey = primary[:, :3].mean(dim=1, keepdim=True)
    shown = (grey < torch.quantile(grey.flatten()[::7], 0.98) - 0.06).float()
    generator = torch.Generator().manual_seed(options.seed)
    k = options.samples
    if not isinstance(latent, Latent):  # codes of several kinds: each knows what noise does to it
        return primary[0], net.decode(latent.disturbed(shown, options, generator), index.expand(k))

    def masked(h: Tensor) -> Tensor:
        mask = torch.nn.functional.interpolate(shown, size=h.shape[2:], mode="area")
        return _disturb(h, mask, options, generator)

    code = masked(latent.code)
    skips = tuple(masked(s) if options.skips else s.expand(k, -1, -1, -1) for s in latent.skips)
    return primary[0], net.decode(Latent(code, skips), index.expand(k))


def mutual_information(a: Array, b: Array) -> tuple[float, float]:
    """(mutual information of two images in [0, 1], entropy of the first), nats.

    Joint histogram of floor(sqrt(n / 5)) bins each way (thesis, section 7.1, after Cellucci et al. 2005),
    n the number of pixels.
    """
    bins = max(2, int(np.sqrt(a.size / 5)))
    ia = np.minimum((np.clip(a, 0, 1) * bins).astype(np.int32), bins - 1).ravel()
    ib = np.minimum((np.clip(b, 0, 1) * bins).astype(np.int32), bins - 1).ravel()
    joint = np.bincount(ia * bins + ib, minlength=bins * bins).reshape(bins, bins) / a.size
    pa, pb = joint.sum(axis=1), joint.sum(axis=0)

    def entropy(p: Array) -> float:
        p = p[p > 0]
        return float(-(p * np.log(p)).sum())

    own = entropy(pa)
    return own + entropy(pb) - entropy(joint.ravel()), own


def output_features(primary: Array, others: Array, log_expected: Array) -> dict[str, float]:
    """Features of the outputs: (3, H, W) without and (k, 3, H, W) with noise, (H, W) log expected error."""
    grey = primary.mean(axis=0)
    pairs = [mutual_information(grey, other.mean(axis=0)) for other in others]
    information = float(np.mean([p[0] for p in pairs]))
    variance = others.var(axis=0).mean(axis=0)
    expected = np.exp(np.clip(log_expected[::4, ::4], -6, 1))
    return {
        "mutual_information": information,
        "information_share": information / max(pairs[0][1], 1e-3),
        "log_variance": float(np.log(variance.mean() + 1e-7)),
        "log_variance_p95": float(np.log(np.percentile(variance[::3, ::3], 95) + 1e-7)),
        "log_expected_error": float(np.log(expected.mean())),
        "log_expected_error_p95": float(np.log(np.percentile(expected, 95))),
        "output_entropy": pairs[0][1],
        **content_features(np.clip(primary[:, ::4, ::4], 0, 1)),
    }


def content_features(image: Array) -> dict[str, float]:
    """What a stained image (3, h, w) in [0, 1] shows: there is more to be wrong about where there is more."""
    white = np.percentile(image.reshape(3, -1), 98, axis=1)[:, None, None]
    density = -np.log(np.clip(image / np.maximum(white, 1e-3), 0.02, 1))
    grey = image.mean(axis=0)
    # a single row or column has no slope
    slopes = [np.abs(np.diff(grey, axis=a)).mean() if grey.shape[a] > 1 else 0.0 for a in (0, 1)]
    return {
        "output_coverage": float((density.mean(axis=0) > 0.1).mean()),
        "output_dark_share": float((density.mean(axis=0) > 0.5).mean()),
        "output_log_density": float(np.log(density.mean() + 1e-3)),
        "output_log_density_spread": float(np.log(density.std() + 1e-3)),
        "output_log_gradient": float(np.log(np.hypot(*slopes) + 1e-4)),
    }


def blob_share(mask: Array, side_px: int = 9) -> float:
    """Share of the pixels of a mask (H, W) whose whole neighbourhood of 0.9 µm belongs to it: clipped
    relief is thin, a part that is missing is not."""
    if min(mask.shape) < side_px:
        return 0.0
    gaps = torch.from_numpy(~mask)[None, None].float()
    near = torch.nn.functional.max_pool2d(gaps, side_px, stride=1)
    return float((near == 0).float().sum() / mask.size)


def input_features(grey: Array, normalised: Array, spread: float, anisotropy: float) -> dict[str, float]:
    """Features of a DIC patch that a spoilt or wrong input changes."""
    x = normalised[::2, ::2]
    centred = x - x.mean()
    second = float((centred**2).mean()) + 1e-6
    laplacian = 4 * normalised[1:-1, 1:-1] - normalised[:-2, 1:-1] - normalised[2:, 1:-1]
    laplacian = laplacian - normalised[1:-1, :-2] - normalised[1:-1, 2:]
    sharp = float(laplacian.std()) if laplacian.size else 0.0
    saturated = (grey <= 0.5) | (grey >= 254.5)
    return {
        "input_offset": float(x.mean()),
        "input_skew": float((centred**3).mean() / second**1.5),
        "input_log_kurtosis": float(np.log((centred**4).mean() / second**2 + 1e-3)),
        "input_anisotropy": anisotropy,
        "input_log_sharpness": float(np.log(sharp / np.sqrt(second) + 1e-3)),
        "input_extreme_share": float(np.mean(np.abs(x) > 2.5)),
        "input_log_spread": float(np.log(spread)),
        "input_saturated_share": float(np.log10(np.mean(saturated) + 1e-4)),
        "input_saturated_blob": float(np.log10(blob_share(saturated) + BLOB_FLOOR)),
    }


def part_missing(features: Array, columns: Sequence[str]) -> Array:
    """(n,) bool: more than a hundredth of a DIC patch is flat black or white, by its feature row (n, k)."""
    return features[:, columns.index("input_saturated_blob")] > np.log10(MISSING_SHARE + BLOB_FLOOR)


# Chosen by cross-validation over the images of the validation smears (docs/stain-evaluation.md).
ERROR_PENALTY, SPOILT_PENALTY = 0.03, 0.1
SPOILT_COST, SPOILT_MIDDLE, SPOILT_WIDTH = 0.5, 0.9, 0.04


@dataclass(frozen=True)
class Calibration:
    """Features -> confidence in [0, 1].

    Two readings of the same standardised features f: the log error to expect, linear in f, and the
    probability that the input is spoilt, of f and f^2.  The error is placed on a line from 1 (no error)
    through 0.5 at `error_edge`, the 99th percentile of unspoilt validation patches, so that confidence and
    error stand in proportion; an input that is all but surely spoilt loses half of it.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    error_weights: tuple[float, ...]
    error_edge: float
    spoilt_weights: tuple[float, ...]

    def standardised(self, features: Array) -> Array:
        """(n, k) limited to 6 deviations."""
        return np.clip((features - np.asarray(self.mean)) / np.asarray(self.std), -6, 6)

    def expected_error(self, features: Array) -> Array:
        """(n,) error to expect, in grey levels in [0, 1]."""
        z = self.standardised(features)
        return np.exp(np.clip(_linear(z) @ np.asarray(self.error_weights), -8, 0))

    def spoilt(self, features: Array) -> Array:
        """(n,) probability that an input is spoilt, where as many are as are not."""
        odds = _squared(self.standardised(features)) @ np.asarray(self.spoilt_weights)
        return 1 / (1 + np.exp(-np.clip(odds, -40, 40)))

    def confidence(self, features: Array, known_spoilt: Array | None = None) -> Array:
        """(n,) float32 in [0, 1] of features (n, k); `known_spoilt` (n,) bool marks inputs known to be."""
        sound = np.clip(1 - 0.5 * self.expected_error(features) / self.error_edge, 0, 1)
        cost = SPOILT_COST * _late(self.spoilt(features)) / _late(1.0)
        if known_spoilt is not None:
            cost = np.where(known_spoilt, SPOILT_COST, cost)
        return (sound * (1 - cost)).astype(np.float32)

    def to_card(self, features: Sequence[str] = FEATURES) -> dict[str, Any]:
        return {"features": list(features), **{k: getattr(self, k) for k in self.__dataclass_fields__}}

    @classmethod
    def from_card(cls, values: Mapping[str, Any], features: Sequence[str] = FEATURES) -> Calibration:
        """Raises ValueError where the card's features are not those that are asked for."""
        rest = dict(values)
        if tuple(rest.pop("features", ())) != tuple(features):
            raise ValueError("the calibration was made for other features")
        return cls(**{k: tuple(v) if isinstance(v, (list, tuple)) else float(v) for k, v in rest.items()})


def _late(probability: Any) -> Any:
    """A step from 0 to 1 that sets in where a spoilt input is all but sure: a sound one under unusual optics
    that looks a little spoilt should not fall out of the order."""
    return 1 / (1 + np.exp(-(probability - SPOILT_MIDDLE) / SPOILT_WIDTH))


def _linear(z: Array) -> Array:
    return np.concatenate([z, np.ones((len(z), 1))], axis=1)


def _squared(z: Array) -> Array:
    return np.concatenate([z, z**2, np.ones((len(z), 1))], axis=1)


def feature_row(features: Mapping[str, float], columns: Sequence[str] = FEATURES) -> Array:
    return np.asarray([features[name] for name in columns], dtype=np.float64)


def fit_calibration(clean: Array, clean_error: Array, spoilt: Array, spoilt_error: Array) -> Calibration:
    """Fit on features (n, k) and true errors (n,) of unspoilt and spoilt validation patches."""
    mean, std = clean.mean(axis=0), clean.std(axis=0) + 1e-3
    blank = Calibration(tuple(mean), tuple(std), (), 1.0, ())
    z = blank.standardised(np.concatenate([clean, spoilt]))
    linear, squared = _linear(z), _squared(z)
    errors = np.log(np.concatenate([clean_error, spoilt_error]) + 1e-4)
    ridge = ERROR_PENALTY * len(linear) * np.eye(linear.shape[1])
    ridge[-1, -1] = 0.0
    error_weights = np.linalg.solve(linear.T @ linear + ridge, linear.T @ errors)
    labels = torch.cat([torch.zeros(len(clean)), torch.ones(len(spoilt))]).double()
    spoilt_weights = _logistic(torch.from_numpy(squared), labels)
    expected = np.exp(np.clip(linear[: len(clean)] @ error_weights, -8, 0))
    return Calibration(
        tuple(map(float, mean)),
        tuple(map(float, std)),
        tuple(map(float, error_weights)),
        float(np.percentile(expected, 99)),
        tuple(map(float, spoilt_weights)),
    )


def _logistic(inputs: Tensor, labels: Tensor, penalty: float = SPOILT_PENALTY) -> Array:
    """Weights of a balanced logistic regression with an L2 penalty."""
    weights = torch.zeros(inputs.shape[1], dtype=torch.float64, requires_grad=True)
    balance = torch.where(labels > 0, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    optimiser = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(inputs @ weights, labels, weight=balance)
        loss = loss + penalty * (weights[:-1] ** 2).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return weights.detach().numpy()
