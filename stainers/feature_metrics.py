"""Distances of pictures in the features of a network: LPIPS and FID, or their kin with our own encoder.

LPIPS and FID are defined by networks trained on ImageNet.  Where their weights are found - in a folder that
is named, else in torch's cache - they are computed with torchmetrics; nothing is downloaded.  Where no folder
is named and the cache holds none, the encoder of a registered classifier serves, and the figures are called
`encoder_distance` and `encoder_frechet`: they can be compared with each other, and with no LPIPS or FID of
any paper.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import BadInput
from storage.fingerprint import sha256_of

Array = np.ndarray[Any, Any]

# As torch hub and pytorch-fid name them; the digits are the start of the file's sha256.
ALEXNET = "alexnet-owt-7be5be79.pth"
INCEPTION = "pt_inception-2015-12-05-6726825d.pth"
BATCH = 16
MIN_FOR_FRECHET = 2
MIN_FOR_FRECHET_OF_PART = 30  # pairs of one target or class; of fewer it says more of their number
Distance = Callable[[Array], dict[str, float]]  # of the chosen pairs (N,) bool


def find_weights(name: str, folder: Path | None = None) -> Path | None:
    """A weight file in `folder`, or in torch's cache where none is named; None where it is not there.

    Raises BadInput where the file is not the one that its name promises.
    """
    place = Path(torch.hub.get_dir()) / "checkpoints" if folder is None else folder
    path = place / name if (place / name).is_file() else None
    if path is not None and not sha256_of(path).startswith(path.stem.rsplit("-", 1)[1]):
        raise BadInput(
            f"{path}: its content is not what its name promises; fetch the file again or remove it."
        )
    return path


def imagenet_weights(folder: Path | None = None) -> tuple[Path | None, Path | None]:
    """The weights of LPIPS and of FID, in `folder` or in torch's cache.

    Raises BadInput naming what a folder that is named does not hold: whoever names one wants LPIPS and FID,
    and nothing in their place.
    """
    found = {name: find_weights(name, folder) for name in (ALEXNET, INCEPTION)}
    missing = [name for name, path in found.items() if path is None]
    if folder is not None and missing:
        raise BadInput(
            f"{folder}: the weights {' and '.join(missing)} are not in it; put them there, or leave out "
            "--imagenet-weights."
        )
    return found[ALEXNET], found[INCEPTION]


def to_tensor(pictures: Sequence[Array]) -> Tensor:
    """Pictures (H, W, 3) uint8 of one size -> (N, 3, H, W) float in [0, 1]."""
    stack = np.stack([np.ascontiguousarray(p.transpose(2, 0, 1)) for p in pictures])
    return torch.from_numpy(stack).float() / 255


@contextlib.contextmanager
def _hub_of(weights: Path) -> Iterator[None]:
    """torch's cache stands where the weights lie, so that its loaders find them."""
    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "checkpoints").mkdir()
        (Path(place) / "checkpoints" / weights.name).symlink_to(weights.resolve())
        torch.hub.set_dir(place)
        try:
            yield
        finally:
            torch.hub.set_dir(before)


def lpips(stained: Sequence[Array], real: Sequence[Array], weights: Path) -> Array:
    """LPIPS of each pair (Zhang et al., CVPR 2018; AlexNet as in the thesis), (N,) float; lower is closer."""
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    with _hub_of(weights), torch.no_grad():
        measure = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
        values = [measure(to_tensor([a]), to_tensor([b])) for a, b in zip(stained, real, strict=True)]
    return np.asarray([float(v) for v in values])


def fid(stained: Sequence[Array], real: Sequence[Array], weights: Path) -> float:
    """FID of two sets of pictures (Heusel et al., NeurIPS 2017), torchmetrics on the TensorFlow Inception."""
    from stainers.inception import FidInception

    network = FidInception()
    network.load_weights(torch.load(weights, map_location="cpu", weights_only=True))
    return frechet(network, stained, real)


def frechet(network: nn.Module, stained: Sequence[Array], real: Sequence[Array]) -> float:
    """Frechet distance of the Gaussians of two sets in the features of a network with `num_features`."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    if min(len(stained), len(real)) < MIN_FOR_FRECHET:
        return float("nan")
    distance = FrechetInceptionDistance(feature=network, normalize=True)
    with torch.no_grad():
        for pictures, is_real in ((stained, False), (real, True)):
            for i in range(0, len(pictures), BATCH):
                distance.update(to_tensor(pictures[i : i + BATCH]), real=is_real)
        return float(distance.compute())


class Encoder(nn.Module):
    """The embedding of a registered classifier as a network of pictures: (N, 3, H, W) in [0, 1] -> (N, D)."""

    def __init__(self, classifier: Any, pixel_size_um: float) -> None:
        super().__init__()
        self.classifier, self.pixel_size_um = classifier, pixel_size_um
        self.num_features = int(self.embed(np.full((1, 64, 64, 3), 220, np.uint8)).shape[1])

    def embed(self, pictures: Array) -> Array:
        """(N, H, W, 3) uint8 -> (N, D), each picture in the view in which its cell is named."""
        views = torch.stack([self.classifier.view(p, self.pixel_size_um) for p in pictures])
        return np.asarray(self.classifier.embed_views(views))

    def forward(self, pictures: Tensor) -> Tensor:
        return torch.from_numpy(
            self.embed((pictures.permute(0, 2, 3, 1).numpy() * 255 + 0.5).astype(np.uint8))
        )

    def distance(self, stained: Sequence[Array], real: Sequence[Array]) -> Array:
        """One minus the cosine of the embeddings of each pair, (N,)."""
        a, b = (torch.from_numpy(np.concatenate([self.embed(p[None]) for p in s])) for s in (stained, real))
        return (1 - F.cosine_similarity(a, b, dim=1)).numpy()


def feature_metrics(
    stained: Sequence[Array],
    real: Sequence[Array],
    *,
    encoder: Callable[[], Encoder] | None = None,
    weights_dir: Path | None = None,
) -> tuple[dict[str, Array], Distance, dict[str, str]]:
    """(figures of each pair, figures of sets of chosen pairs, what they are computed with) of pictures of
    one size.

    LPIPS or encoder_distance; FID or encoder_frechet; each by what is there.
    """
    pairwise: dict[str, Array] = {}
    networks: dict[str, str] = {}
    alexnet, inception = imagenet_weights(weights_dir)
    made = encoder() if encoder is not None and not (alexnet and inception) else None
    if alexnet is not None:
        pairwise["lpips"], networks["lpips"] = lpips(stained, real, alexnet), alexnet.name
    elif made is not None:
        pairwise["encoder_distance"] = made.distance(stained, real)
        networks["encoder_distance"] = made.classifier.name
    if inception is not None:
        networks["fid"] = inception.name
    elif made is not None:
        networks["encoder_frechet"] = made.classifier.name

    def distance(chosen: Array) -> dict[str, float]:
        sets = [[p for p, c in zip(side, chosen, strict=True) if c] for side in (stained, real)]
        if inception is not None:
            return {"fid": fid(*sets, inception)}
        return {} if made is None else {"encoder_frechet": frechet(made, *sets)}

    return pairwise, distance, networks
