"""A network made cheap gives the same boxes: the sparse head exactly, the 8-bit trunk nearly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from detectors.compact import compact
from detectors.yolo_onnx import YoloOnnxDetector, rescale
from pipeline.errors import BadModelPackage
from storage.packages import ModelPackage, write_package


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of random weights whose classes fire here and there, exported as training does."""
    import torch

    from detectors.export import export_onnx
    from detectors.training import build_network

    torch.manual_seed(3)
    network = build_network()
    seen: list[Any] = []
    last = [level[-1] for level in network.model[-1].cv3]
    hooks = [layer.register_forward_hook(lambda _, __, out: seen.append(out)) for layer in last]
    with torch.no_grad():
        views = torch.from_numpy(np.stack([scene(seed=i) for i in range(4)]).transpose(0, 3, 1, 2).copy())
        for part in network.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.momentum = 1.0
        network.train()(views.float() / 255)  # sets the norms, without which signals die away
        network.eval()
        seen.clear()
        network(torch.from_numpy(scene().transpose(2, 0, 1)[None].copy()).float() / 255)
        for layer, out in zip(last, seen, strict=True):
            spread = out.std(dim=(0, 2, 3))
            layer.weight.mul_((1.5 / spread).reshape(-1, 1, 1, 1))
            centre = (out - layer.bias.reshape(1, -1, 1, 1)).mean(dim=(0, 2, 3)) * 1.5 / spread
            layer.bias.copy_(torch.tensor([-3.0, -1.0, -1.5]) - centre)
    for hook in hooks:
        hook.remove()
    folder = tmp_path_factory.mktemp("compact")
    torch.save({"recipe": {"model": "yolo11n.yaml"}, "model": network.state_dict()}, folder / "best.pt")
    return export_onnx(folder / "best.pt", folder / "dense.onnx")


def scene(height: int = 160, width: int = 224, seed: int = 0) -> np.ndarray:
    import cv2

    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), 235, np.uint8)
    for _ in range(14):
        x, y, r = int(rng.integers(0, width)), int(rng.integers(0, height)), int(rng.integers(4, 26))
        cv2.circle(image, (x, y), r, [int(v) for v in rng.integers(40, 220, 3)], -1)
    return np.clip(image + rng.integers(-6, 7, image.shape), 0, 255).astype(np.uint8)


def dense_rows(path: Path, image: np.ndarray) -> np.ndarray:
    """(anchors, 4 + classes) with corners, as the compact graph gives them."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    tensor = np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32) / np.float32(255)
    raw = session.run(None, {"images": tensor})[0][0].T
    half = raw[:, 2:4] / 2
    return np.concatenate([raw[:, :2] - half, raw[:, :2] + half, raw[:, 4:]], 1)


def sparse_rows(model: Any, image: np.ndarray, minimum: tuple[float, ...], everywhere: bool) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    least = np.array(minimum)
    feed = {
        "images": image[None],
        "minimum": np.log(least / (1 - least)).astype(np.float32),
        "everywhere": np.array(everywhere),
    }
    return np.asarray(session.run(None, feed)[0])


def in_order(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(np.round(rows[:, ::-1], 2).T)]


@pytest.mark.parametrize("minimum", [(0.05, 0.2, 0.15), (0.3, 0.9, 0.9), (0.001, 0.001, 0.001)])
@pytest.mark.parametrize("shape", [(160, 224), (32, 64)])
def test_the_sparse_head_gives_the_dense_head_s_boxes(
    exported: Path, minimum: tuple[float, ...], shape: tuple[int, int]
) -> None:
    import onnx

    image = scene(*shape)
    dense = dense_rows(exported, image)
    expected = dense[(dense[:, 4:] > minimum).any(1)]
    found = sparse_rows(compact(onnx.load(str(exported))), image, minimum, True)
    kept = found[(found[:, 4:] > minimum).any(1)]
    # The anchor that is always there may be there twice.
    unique = np.unique(np.round(kept, 3), axis=0)
    assert len(unique) == len(np.unique(np.round(expected, 3), axis=0))
    assert len(found) <= len(expected) + 3
    nearest = np.abs(expected[:, None] - kept[None]).max(-1).min(1)
    assert nearest.max(initial=0.0) < 0.02  # px


def test_other_classes_are_kept_beside_leukocytes_only_where_asked(exported: Path) -> None:
    import onnx

    model = compact(onnx.load(str(exported)))
    image, minimum = scene(seed=1), (0.2, 0.2, 0.2)
    all_, near = (sparse_rows(model, image, minimum, e) for e in (True, False))
    white = [r[r[:, 4] > 0.2] for r in (all_, near)]
    np.testing.assert_allclose(in_order(white[0]), in_order(white[1]), atol=1e-4)
    assert 0 < len(white[0]) < len(near) < len(all_)


def package_of(model: Any, folder: Path, name: str) -> ModelPackage:
    import onnx

    from detectors.export import detector_card
    from detectors.training import Recipe

    onnx.save(model, str(folder / f"{name}.onnx"))
    return write_package(
        folder / name, detector_card(name, Recipe(), ("none",), {}, ()), folder / f"{name}.onnx"
    )


def test_eight_bits_are_smaller_and_see_nearly_the_same(exported: Path, tmp_path: Path) -> None:
    """Random weights bear rounding badly; trained ones are measured by benchmarks/detection_compact.py."""
    import onnx

    from detectors.export import halve

    dense = onnx.load(str(exported))
    eight = halve(compact(dense, [scene(160, 160, seed) for seed in range(6)]))
    image = scene(160, 224, 11)
    every = (1e-9,) * 3
    a, b = (sparse_rows(m, image, every, True)[3:] for m in (compact(dense), eight))
    assert a.shape == b.shape
    clipped = [np.clip(x[:, 4:].ravel(), 1e-4, 1 - 1e-4) for x in (a, b)]
    logits = [np.log(p / (1 - p)) for p in clipped]
    assert np.corrcoef(*logits)[0, 1] > 0.3  # of some 700 anchors x 3 classes; a wrong scale anywhere gives 0
    package = package_of(eight, tmp_path, "eight")
    assert package.weights_path.stat().st_size < 0.7 * exported.stat().st_size
    found = [YoloOnnxDetector(package).look(image, 0.25) for _ in range(2)]
    assert len(found[0].boxes)
    np.testing.assert_array_equal(found[0].boxes, found[1].boxes)


def test_what_is_no_exported_network_is_refused() -> None:
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [x], [y])
    with pytest.raises(BadModelPackage, match="no YOLO network"):
        compact(helper.make_model(graph))


@pytest.mark.parametrize("factor", [0.2, 0.31, 0.4, 0.5, 0.62, 0.8, 1.0, 1.3])
@pytest.mark.parametrize("shape", [(240, 320), (241, 323), (7, 9)])
def test_a_rescaled_image_has_its_content_in_place(factor: float, shape: tuple[int, int]) -> None:
    import cv2

    height, width = shape
    ramp = np.linspace(20, 220, width)[None].repeat(height, 0)
    image = np.clip(np.stack([ramp] * 3, -1), 0, 255).astype(np.uint8)
    small, (across, _) = rescale(image, factor)
    assert small.shape[0] == pytest.approx(height * factor, abs=2)
    assert small.shape[1] == pytest.approx(width * factor, abs=2)
    if min(small.shape[:2]) > 8:
        # A pixel's centre is where the factors say: the ramp is straight, so its value tells the place.
        columns = np.arange(4, small.shape[1] - 4)
        place = (columns + 0.5) / across - 0.5
        expected = 20 + 200 * place / (width - 1)
        assert np.abs(small[small.shape[0] // 2, columns, 0] - expected).max() < 2.5
        area = cv2.resize(image, small.shape[1::-1], interpolation=cv2.INTER_AREA).astype(float)
        assert np.abs(area - small).mean() < 2.5
