"""From a training checkpoint to an ONNX model package."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Four views, fused: plain and half turned at the network's scale, and mirrored in finer pixels, where small
# leukocytes differ more from red cells.
DIC_VIEWS = [[1.0, ""], [1.0, "xy"], [0.8, "x"], [0.8, "y"]]


def export_onnx(checkpoint: Path, target: Path) -> Path:
    """Write the averaged weights of a `best.pt` as ONNX with a free image size (multiples of 32).

    The output is the head's (1, 4 + classes, anchors): centre x, centre y, width, height in pixels and
    class probabilities, without suppression.
    """
    import torch

    from detectors.training import build_network
    from storage.checkpoints import read_checkpoint

    state = read_checkpoint(checkpoint, "model", "recipe")
    network = build_network(state["recipe"]["model"])
    network.load_state_dict(state["model"])
    network = network.float().fuse(verbose=False).eval()
    head = network.model[-1]
    head.export, head.format, head.dynamic = True, "onnx", True
    torch.onnx.export(
        network,
        (torch.zeros(1, 3, 320, 256),),
        str(target),
        input_names=["images"],
        output_names=["output"],
        dynamic_axes={"images": {2: "height", 3: "width"}, "output": {2: "anchors"}},
        opset_version=17,
        dynamo=False,
    )
    import onnx
    import onnxslim

    onnx.save(halve(onnxslim.slim(onnx.load(str(target)))), str(target))
    return target


def halve(model: Any, minimum: int = 1024) -> Any:
    """Store large weights as 16-bit floats, cast to 32 when the session is made: half the file, same speed.

    Rounding moves a weight by at most 0.05 %; the arithmetic stays 32-bit.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < minimum:
            continue
        name = tensor.name
        half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name + "_half")
        tensor.CopyFrom(half)
        casts.append(helper.make_node("Cast", [name + "_half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def write_detector_package(checkpoint: Path, folder: Path, card: Mapping[str, Any]) -> Any:
    """Export and write the package folder; `card` as storage.packages.ModelCard, without the sha256."""
    from storage.packages import write_package

    with tempfile.TemporaryDirectory() as temporary:
        model = export_onnx(checkpoint, Path(temporary) / "model.onnx")
        return write_package(folder, card, model)


def detector_card(
    name: str,
    recipe: Any,
    training_data: tuple[str, ...],
    metrics: Mapping[str, Any],
    limits: tuple[str, ...],
    version: str = "1.0.0",
    threshold: float = 0.4,
    training: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The card of a detector trained by a `detectors.training.Recipe`."""
    from dataclasses import asdict

    from detectors.datasets import CLASSES

    dic = recipe.modality == "dic"
    view = "DIC images of unstained smears" if dic else "stained brightfield images of blood smears"
    return {
        "name": name,
        "version": version,
        "task": "detector",
        "architecture": "yolo-onnx",
        "weights": "onnx",
        "licence": "AGPL-3.0-or-later",
        "intended_use": f"Finding leukocytes in {view}, to be counted or shown to a person. Research only.",
        "modalities": (recipe.modality,),
        "stains": ("unstained",) if dic else ("MGG",),
        "specimens": ("blood",),
        "pixel_size_um": recipe.pixel_size_um,
        "classes": CLASSES,
        "training_data": training_data,
        "training": {**asdict(recipe), **(training or {})},
        "metrics": dict(metrics),
        "limits": limits,
        "parameters": {
            "threshold": threshold,
            "window_px": 1280,
            "overlap_px": 160,
            "min_score": 0.01,
            # In DIC, where time is not what is short, whole fields lose 0.007 of AP50 by being stretched.
            "max_stretch": 0.0 if dic else 0.02,
            "views": DIC_VIEWS if dic else [[1.0, ""]],
        },
    }
