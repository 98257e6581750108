"""A detector's network made cheap for a processor, without training it again.

Two changes of the exported graph, each of which can be had without the other:

- **Sparse box head.**  YOLO's head computes a box for every anchor, of which a handful show anything.
  Here the class scores come first; the two 3 x 3 convolutions and the distribution over distances (Li et
  al. 2020, Generalized Focal Loss, section 3.2) are computed for the anchors that passed alone.  The
  boxes are the same numbers.
- **8-bit trunk.**  Backbone, neck and class head in 8-bit integers, quantised after training with ranges
  from real images (Jacob et al. 2018, CVPR, section 2); the first layer and the box head stay 32-bit.
  Weights have 7 bits, so that sums of pairs cannot saturate on processors without 8-bit dot products, and
  results do not hang on the processor.

The graph then takes `images` (1, H, W, 3) uint8 RGB, `minimum` (3,) float32, the class scores (as logits)
from which an anchor counts, and `everywhere` () bool: False keeps red cells and platelets beside
leukocytes only.  It gives `found` (N, 4 + classes): x0, y0, x1, y1 in pixels and class probabilities,
without suppression; the first row of each of the three levels may be an anchor that did not pass.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import BadModelPackage

ROWS = ".rows"  # after the name of a weight that is kept as a matrix (height x width x inputs, outputs)
NEAR_ANCHORS = 3  # width of the neighbourhood of a leukocyte's anchor in which other classes count


def compact(model: Any, calibration: Iterable[np.ndarray] | None = None) -> Any:
    """The ONNX model of `detectors.export` with a sparse box head; 8-bit where `calibration` is given.

    `calibration` yields (H, W, 3) uint8 images at the network's pixel size, sides multiples of 32.
    Raises BadModelPackage for a graph that is no YOLO head of that export.
    """
    import onnx

    model = _plain(model)
    levels = _levels(model)
    trunk = _trunk(model, levels)
    if calibration is not None:
        trunk = quantise(trunk, calibration, [*_first_layer(trunk), *(level["last"] for level in levels)])
    with_head = _with_head(trunk, levels)
    onnx.checker.check_model(with_head)
    return with_head


def _plain(model: Any) -> Any:
    """A copy whose 16-bit weights are 32-bit initializers again (see `detectors.export.halve`)."""
    import onnx
    from onnx import TensorProto, numpy_helper

    model = onnx.ModelProto.FromString(model.SerializeToString())
    tensors = {t.name: t for t in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        source = tensors.get(node.input[0]) if node.op_type == "Cast" else None
        if source is None or source.data_type != TensorProto.FLOAT16:
            kept.append(node)
            continue
        full = numpy_helper.from_array(numpy_helper.to_array(source).astype(np.float32), node.output[0])
        source.CopyFrom(full)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def _levels(model: Any) -> list[dict[str, Any]]:
    """Of each level of the head: feature and class logits (names in the graph), weights of its box branch."""
    from onnx import numpy_helper

    tensors = {t.name: t for t in model.graph.initializer}
    by_weight = {n.input[1]: n for n in model.graph.node if n.op_type == "Conv"}
    heads = sorted(
        m.group(1)
        for name in by_weight
        if (m := re.fullmatch(r"(model\.\d+)\.cv2\.0\.0\.conv\.weight", name))
    )
    if "minimum" in {i.name for i in model.graph.input}:
        raise BadModelPackage("the ONNX file is compact already; convert the network that was exported.")
    if not heads or "images" not in {i.name for i in model.graph.input}:
        raise BadModelPackage("the ONNX file is no YOLO network as detectors.export writes it.")
    levels: list[dict[str, Any]] = []
    for i in range(10):
        names = [f"{heads[0]}.cv2.{i}.{k}" for k in ("0.conv", "1.conv", "2")]
        first = by_weight.get(f"{names[0]}.weight")
        classes = by_weight.get(f"{heads[0]}.cv3.{i}.2.weight")
        if first is None or classes is None:
            break
        # Equal tensors may share a name, so a bias is asked of its node.
        weights = [
            (n, *(numpy_helper.to_array(tensors[name]) for name in by_weight[f"{n}.weight"].input[1:3]))
            for n in names
        ]
        levels.append(
            {
                "feature": first.input[0],
                "logits": classes.output[0],
                "weights": weights,
                "stride": 8 << i,
                "last": classes.name,
            }
        )
    return levels


def _trunk(model: Any, levels: list[dict[str, Any]]) -> Any:
    """The part of the graph that features and logits need, with those as outputs."""
    import onnx
    from onnx import TensorProto, helper

    outputs = [level[k] for level in levels for k in ("feature", "logits")]
    made_by = {name: node for node in model.graph.node for name in node.output}
    needed: set[str] = set()
    open_ = list(outputs)
    while open_:
        name = open_.pop()
        if name not in needed:
            needed.add(name)
            if name in made_by:
                open_ += made_by[name].input
    nodes = [n for n in model.graph.node if needed & set(n.output)]
    graph = helper.make_graph(
        nodes,
        "trunk",
        [model.graph.input[0]],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        [t for t in model.graph.initializer if t.name in needed],
    )
    trunk = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return onnx.shape_inference.infer_shapes(trunk)


def _first_layer(trunk: Any) -> list[str]:
    """Nodes of the first convolution and its activation: with three channels 8 bits gain nothing."""
    names, front = [], {"images"}
    for _ in range(3):  # convolution, sigmoid, product
        nodes = [n for n in trunk.graph.node if front & set(n.input) and n.name not in names]
        names += [n.name for n in nodes if n.op_type in ("Conv", "Sigmoid", "Mul")]
        front = {o for n in nodes for o in n.output}
        if any(n.op_type == "Mul" for n in nodes):
            break
    return names


class _Images:
    """Calibration images as ONNX Runtime's quantiser asks for them."""

    def __init__(self, images: Iterable[np.ndarray]) -> None:
        self._images: Iterator[np.ndarray] = iter(images)

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        image = next(self._images, None)
        if image is None:
            return None
        return {"images": np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32) / np.float32(255)}


def quantise(trunk: Any, images: Iterable[np.ndarray], keep_float: list[str]) -> Any:
    """The trunk with 8-bit weights and activations; the nodes named stay 32-bit, and attention as well."""
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(trunk, str(source))
        quantize_static(
            str(source),
            str(target),
            _Images(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Sigmoid", "Mul", "Concat", "Add", "MaxPool", "Resize", "Split"],
            nodes_to_exclude=keep_float,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"CalibMovingAverage": True, "ActivationSymmetric": False},
        )
        return onnx.load(str(target))


class _Writer:
    """Collects nodes and constants of a graph."""

    def __init__(self) -> None:
        self.prefix = "image"
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, kind: Any, name: str = "") -> str:
        from onnx import numpy_helper

        name = name or f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, kind), name))
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """The name of the one output of a new node."""
        from onnx import helper

        name = f"{self.prefix}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def number(self, x: str) -> str:
        from onnx import TensorProto

        return self.add("Cast", x, to=TensorProto.FLOAT)

    def silu(self, x: str) -> str:
        return self.add("Mul", x, self.add("Sigmoid", x))


def _with_head(trunk: Any, levels: list[dict[str, Any]]) -> Any:
    from onnx import TensorProto, helper

    w = _Writer()
    scaled = w.add(
        "Mul", w.number(w.add("Transpose", "images", perm=[0, 3, 1, 2])), w.constant(1 / 255, np.float32)
    )
    before, w.nodes = w.nodes, []
    w.prefix = "box"
    found = [_level(w, level) for level in levels]
    w.nodes.append(helper.make_node("Concat", found, ["found"], axis=0))
    nodes = []
    for node in trunk.graph.node:
        copied = type(node).FromString(node.SerializeToString())
        for i, name in enumerate(copied.input):
            if name == "images":
                copied.input[i] = scaled
        nodes.append(copied)
    n_classes = 3
    graph = helper.make_graph(
        [*before, *nodes, *w.nodes],
        "detector",
        [
            helper.make_tensor_value_info("images", TensorProto.UINT8, [1, "height", "width", 3]),
            helper.make_tensor_value_info("minimum", TensorProto.FLOAT, [n_classes]),
            helper.make_tensor_value_info("everywhere", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("found", TensorProto.FLOAT, ["anchors", 4 + n_classes])],
        [*trunk.graph.initializer, *w.constants],
    )
    return helper.make_model(graph, opset_imports=trunk.opset_import, ir_version=trunk.ir_version)


def _level(w: _Writer, level: dict[str, Any]) -> str:
    """(n, 4 + classes) of the anchors of one level that pass."""

    def ints(*values: int) -> str:
        return w.constant(values, np.int64)

    feature, logits, stride = level["feature"], level["logits"], level["stride"]
    one, two, three = level["weights"]
    bins = len(three[1]) // 4
    # Which anchors pass: a leukocyte anywhere, another class beside one or everywhere.
    passed = w.add("Greater", logits, w.add("Reshape", "minimum", ints(1, -1, 1, 1)))
    white = w.add("Slice", passed, ints(0), ints(1), ints(1))
    other = w.add("Slice", passed, ints(1), ints(99), ints(1))

    half = NEAR_ANCHORS // 2
    near = w.add("MaxPool", w.number(white), kernel_shape=[NEAR_ANCHORS] * 2, pads=[half] * 4)
    near = w.add("Or", w.add("Greater", near, w.constant(0.5, np.float32)), "everywhere")
    any_other = w.add(
        "Greater", w.add("ReduceMax", w.number(other), axes=[1], keepdims=1), w.constant(0.5, np.float32)
    )
    mask = w.add("Or", white, w.add("And", any_other, near))
    size = w.add("Shape", logits)
    height, width = (w.add("Gather", size, ints(axis)) for axis in (2, 3))
    wide = w.add("Add", width, ints(2))

    def places(where: str) -> tuple[str, str, str]:
        """Flat place, row and column (n, 1) of what is set in (1, 1, h, w).

        A first one is always there, so that no operator has to bear an empty batch.
        """
        found = w.add("Reshape", w.add("NonZero", w.add("Reshape", where, ints(-1))), ints(-1))
        place = w.add("Concat", ints(0), found, axis=0)
        row = w.add("Div", place, width)
        column = w.add("Sub", place, w.add("Mul", row, width))
        return place, w.add("Unsqueeze", row, ints(1)), w.add("Unsqueeze", column, ints(1))

    tap_y, tap_x = (w.constant(v.reshape(1, -1), np.int64) for v in np.mgrid[0:3, 0:3])

    def affine(rows: str, name: str, weight: np.ndarray, bias: np.ndarray) -> str:
        matrix = weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))
        # Named after the layer, so that the network can be put together again.
        constants = (
            w.constant(matrix, np.float32, f"{name}.weight{ROWS}"),
            w.constant(bias, np.float32, f"{name}.bias"),
        )
        return w.add("Gemm", rows, *constants)

    def convolve(table: str, row: str, column: str, layer: tuple[str, np.ndarray, np.ndarray]) -> str:
        """A 3 x 3 convolution with SiLU at some places; `table` holds the padded map's pixels as rows."""
        index = w.add("Mul", w.add("Add", row, tap_y), wide)
        index = w.add("Add", index, w.add("Add", column, tap_x))
        taps = w.add("Reshape", w.add("Gather", table, index, axis=0), ints(-1, layer[1][0].size))
        return w.silu(affine(taps, *layer))

    # The first convolution is needed at the anchors that passed and around them, the second at them.
    place, row, column = places(mask)
    around = w.add("MaxPool", w.number(mask), kernel_shape=[3, 3], pads=[1] * 4)
    _, row1, column1 = places(w.add("Greater", around, w.constant(0.5, np.float32)))
    padded = w.add("Pad", feature, ints(0, 0, 1, 1, 0, 0, 1, 1))
    table = w.add("Transpose", w.add("Reshape", padded, ints(one[1].shape[1], -1)), perm=[1, 0])
    first = convolve(table, row1, column1, one)
    # What lies outside the image, or was not needed, is zero.
    rows = w.add("Mul", wide, w.add("Add", height, ints(2)))
    empty = w.add("Expand", w.constant([[0.0]], np.float32), w.add("Concat", rows, ints(len(one[1])), axis=0))
    target = w.add("Mul", w.add("Add", row1, ints(1)), wide)
    target = w.add("Add", target, w.add("Add", column1, ints(1)))
    second = convolve(w.add("ScatterND", empty, target, first), row, column, two)
    third = affine(second, *three)
    share = w.add("Softmax", w.add("Reshape", third, ints(-1, 4, bins)), axis=2)
    distance = w.add(
        "Reshape", w.add("MatMul", share, w.constant(np.arange(bins)[:, None], np.float32)), ints(-1, 4)
    )
    low = w.add("Slice", distance, ints(0), ints(2), ints(1))
    high = w.add("Slice", distance, ints(2), ints(4), ints(1))
    anchor = w.add("Concat", column, row, axis=1)
    anchor = w.add("Add", w.number(anchor), w.constant(0.5, np.float32))
    box = w.add("Concat", w.add("Sub", anchor, low), w.add("Add", anchor, high), axis=1)
    box = w.add("Mul", box, w.constant(float(stride), np.float32))
    n_classes = w.add("Reshape", logits, ints(3, -1))
    score = w.add("Sigmoid", w.add("Transpose", w.add("Gather", n_classes, place, axis=1), perm=[1, 0]))
    return w.add("Concat", box, score, axis=1)
