"""A learned reader of iron beside the rule: a small network on one patch centred on an erythroblast.

It shares nothing with the rule reader but the definition of the types: no nucleus is outlined and no
granule counted, so that where both agree, they do so for different reasons.  It cannot show why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from classifiers.sideroblasts import SideroblastReading, SideroblastType, check_patches
from classifiers.sideroblasts_stain import glass_colour, optical_density
from classifiers.timm_classifier import load_strictly
from pipeline.errors import BadModelPackage

if TYPE_CHECKING:
    from storage.packages import ModelPackage

OUTPUTS: tuple[str, ...] = ("0", "1", "2", "3", "other")  # other: no erythroblast in the middle
INPUT_PX, PIXEL_SIZE_UM = 80, 0.2  # 16 µm: a large proerythroblast's nucleus and what lies around it
COARSEST_UM = 0.3  # pixels from which the granules of half a micrometre cannot be seen
USUAL_DENSITY = 0.25  # green density that stands for one in the network's input
UNITS, BOUNDS = (0.4, 3.0), (-0.5, 6.0)  # of a nucleus in those units, and of what the network is given
LEAST_DENSITY = 0.05  # green, of a nucleus over its surroundings; the palest of 122 drawn ones had 0.2
SURE = 0.8  # of ring or not; between this and its complement the reader does not decide


class IronNet(nn.Module):
    """(B, 3, 80, 80) density -> logits (B, n) of `OUTPUTS`, or of what else it is trained for."""

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 64), n_outputs: int = len(OUTPUTS)) -> None:
        super().__init__()
        a, b, c = widths
        self.features = nn.Sequential(
            _conv(3, a, 2, 5),
            _conv(a, a),
            _conv(a, b, 2),
            _conv(b, b),
            _conv(b, b),
            _conv(b, c, 2),
            _conv(c, c),
        )
        # Sums count granules, maxima see the one that is there.
        self.head = nn.Linear(2 * c, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))


def _conv(channels_in: int, channels_out: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


class LearnedReader:
    """The network behind the `SideroblastReader` protocol; four turned copies of a patch are averaged."""

    def __init__(self, name: str, net: IronNet, temperature: float = 1.0) -> None:
        self.name = name
        self.temperature = temperature
        self._net = net.eval().to(memory_format=torch.channels_last)

    @classmethod
    def from_package(cls, package: ModelPackage) -> LearnedReader:
        """Load strictly; raises BadModelPackage where card and weights do not fit."""
        parameters = package.card.parameters
        if package.card.classes != OUTPUTS or len(parameters.get("widths", ())) != 3:
            raise BadModelPackage(f"{package.folder}: an iron-net card needs three widths and {OUTPUTS}.")
        net = IronNet(tuple(parameters["widths"]))
        load_strictly(net, package.state_dict(), str(package.folder))
        return cls(package.name, net, float(parameters.get("temperature", 1.0)))

    def read(self, patches: np.ndarray, pixel_size_um: float) -> list[SideroblastReading]:
        """Read patches (N, H, W, 3) uint8 at a known pixel size (µm); see `SideroblastReader`.

        Each reading carries `probabilities` of types 0 to 3 and of no erythroblast at all.
        """
        check_patches(patches, pixel_size_um)
        if pixel_size_um > COARSEST_UM:
            reason = f"resolution: granules of 0.5 µm cannot be seen at {pixel_size_um:.2f} µm a pixel"
            return [SideroblastReading("indeterminate", reason=reason) for _ in patches]
        return [self._read(patch, pixel_size_um) for patch in patches]

    def _read(self, patch: np.ndarray, pixel_size_um: float) -> SideroblastReading:
        if min(patch.shape[:2]) * pixel_size_um < 6:
            return SideroblastReading("indeterminate", reason="the patch is smaller than a cell")
        density = density_view(patch, pixel_size_um)
        if not holds_something(density):
            return SideroblastReading("indeterminate", reason="nothing is stained in the middle of the patch")
        x = torch.from_numpy(in_units_of_stain(density).transpose(2, 0, 1).copy())
        # One patch is one batch, so that neither neighbours nor the batch's size can change it.
        turned = torch.stack([torch.rot90(x, k, (1, 2)) for k in range(4)])
        with torch.inference_mode():
            logits = self._net(turned.contiguous(memory_format=torch.channels_last)) / self.temperature
        p = tuple(float(v) for v in logits.softmax(1).mean(0))
        kind, reason = decide(p)
        return SideroblastReading(kind, reason=reason, probabilities=p)


def decide(p: tuple[float, ...]) -> tuple[SideroblastType, str]:
    """The type that probabilities over `OUTPUTS` speak for, and why none where it is indeterminate."""
    erythroblast = sum(p[:4])
    ring = p[3] / max(erythroblast, 1e-9)
    if erythroblast < 0.5:
        return "indeterminate", "no erythroblast is recognised in the middle of the patch"
    if 1 - SURE < ring < SURE:
        return "indeterminate", f"in doubt: a ring sideroblast with a probability of {100 * ring:.0f} %"
    if ring >= SURE:
        return "3", ""
    return (("0", "1", "2")[int(np.argmax(p[:3]))]), ""  # type: ignore[return-value]


def view(patch: np.ndarray, pixel_size_um: float) -> np.ndarray:
    """The density (80, 80, 3) float32 of the middle of a patch, in units of its own stain."""
    return in_units_of_stain(density_view(patch, pixel_size_um))


def holds_something(density: np.ndarray) -> bool:
    """Whether anything stained stands out in the middle 5 µm of a view (80, 80, 3): the network was never
    shown an image without any, and what it says of one is chance."""
    green = density[..., 1]
    far = round((INPUT_PX - 5 / PIXEL_SIZE_UM) / 2)
    middle = float(np.percentile(green[far:-far, far:-far], 75))
    low, high = np.percentile(green, (5, 95))
    return middle > LEAST_DENSITY and float(high - low) > LEAST_DENSITY


def density_view(patch: np.ndarray, pixel_size_um: float) -> np.ndarray:
    """The density (80, 80, 3) float32 of the middle of a patch against its own glass."""
    return optical_density(middle(patch, pixel_size_um), glass_colour(patch)).astype(np.float32)


def middle(patch: np.ndarray, pixel_size_um: float) -> np.ndarray:
    """The middle (80, 80, 3) uint8 of a patch at 0.2 µm a pixel.

    What lies beyond a patch's edge is its mirror image.
    """
    import cv2

    side = INPUT_PX * PIXEL_SIZE_UM / pixel_size_um
    height, width = patch.shape[:2]
    scale = side / INPUT_PX
    shift = (INPUT_PX - 1) / 2
    matrix = np.array(
        [[scale, 0, (width - 1) / 2 - scale * shift], [0, scale, (height - 1) / 2 - scale * shift]]
    )
    small = patch
    if scale > 1.5:  # anti-aliasing before the view is cut
        small = cv2.GaussianBlur(patch, (0, 0), 0.4 * scale)
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(
        cv2.warpAffine(small, matrix, (INPUT_PX, INPUT_PX), flags=how, borderMode=cv2.BORDER_REFLECT_101)
    )


def in_units_of_stain(density: np.ndarray) -> np.ndarray:
    """Density (H, W, 3) over the green density of its nucleus, bounded so that empty glass stays empty."""
    green = density[..., 1]
    core = green[green.shape[0] // 3 : -(green.shape[0] // 3), green.shape[1] // 3 : -(green.shape[1] // 3)]
    unit = float(np.clip(np.median(core) / USUAL_DENSITY, *UNITS))
    return np.clip(density / (USUAL_DENSITY * unit), *BOUNDS).astype(np.float32)
