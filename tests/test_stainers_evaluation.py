"""The evaluation of stainers: pairs from folders, lists and cases; errors; judges; the confidence."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import BadInput
from stainers.pair_sources import find_pairs
from stainers.surest_target import LEAST
from tests.stainer_scenes import (
    FakeClassifier,
    FakeSegmenter,
    FakeStainer,
    dic_patches,
    pairs_of,
    smear_folder,
    stained_of,
    write_folder,
)

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def report():
    from stainers.evaluation import class_namer, evaluate_pairs
    from stainers.feature_metrics import Encoder

    classifier = FakeClassifier()
    return evaluate_pairs(
        FakeStainer(),
        pairs_of(),
        measured_on="made up",
        classify=class_namer(classifier),
        segment=FakeSegmenter().segment,
        encoder=lambda: Encoder(classifier, 0.1),
    )


def test_figures_are_overall_per_target_and_per_class_with_intervals(report):
    assert report["measured_on"] == "made up"
    assert report["all"]["n"] == 12
    assert report["per_target"]["bccd"]["n"] == report["per_class"]["light"]["n"] == 6
    assert report["labels"] == "of the pairs"
    for name in (
        "mse",
        "rmse",
        "ssim",
        "rmse_balanced",
        "rmse_matched",
        "same_class_after",
        "same_class_before",
    ):
        mean, low, high = report["all"][name]
        assert low <= mean <= high
    for part in ("nucleus", "cytoplasm", "cell"):
        assert 0 <= report["all"][f"dice_{part}_after"][0] <= 1


def test_without_imagenet_weights_the_figures_carry_their_own_names(report):
    assert "fid" not in report["all"]
    assert "lpips" not in report["all"]
    assert report["all"]["encoder_frechet"] >= 0
    assert 0 <= report["all"]["encoder_distance"][0] <= 2
    assert set(report["all"]["networks"].values()) == {"fake-classifier"}


def test_a_confidence_that_knows_its_error_correlates_with_it(report):
    found = report["confidence_error_correlation"]
    assert found["rmse"]["all"]["pearson"][0] < -0.9
    assert found["rmse_matched"]["bccd"]["n"] == 6
    assert found["rmse"]["with_spoilt_inputs"]["n"] == 12 * 4
    bins = report["reliability"]
    assert sum(b["n"] for b in bins) == 12
    assert bins[0]["rmse"] > bins[-1]["rmse"]


def test_the_evaluation_of_a_folder_writes_figures_and_pictures(tmp_path):
    from PIL import Image

    from stainers.folder_evaluation import evaluate_stainer

    found = evaluate_stainer(
        FakeStainer(),
        write_folder(tmp_path / "pairs", 4),
        tmp_path / "out",
        classifier=FakeClassifier(),
        segmenter=FakeSegmenter(),
    )
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["all"]["n"] == 4
    assert found["judges"] == {"classifier": "fake-classifier", "segmenter": "fake-segmenter"}
    assert Image.open(tmp_path / "out" / "pictures.png").size == (4 * 256, 4 * 256)
    assert Image.open(tmp_path / "out" / "reliability.png").size[0] > 500


def test_the_figures_of_one_pair_are_json_that_every_reader_takes(tmp_path):
    from stainers.folder_evaluation import evaluate_stainer

    evaluate_stainer(FakeStainer(), write_folder(tmp_path / "pairs", 1), tmp_path / "out")
    text = (tmp_path / "out" / "metrics.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["confidence_error_correlation"]["rmse"]["all"]["pearson"] == [None, None, None]


def test_cells_without_a_class_are_counted_by_the_name_of_their_real_stain_and_it_is_said(tmp_path):
    from stainers.evaluation import class_namer, evaluate_pairs
    from stainers.folder_evaluation import evaluate_stainer

    root = write_folder(tmp_path / "pairs", 4)
    found = evaluate_stainer(
        FakeStainer(), root, tmp_path / "out", classifier=FakeClassifier(), named_by="fake-classifier 1.2"
    )
    truth = [class_namer(FakeClassifier())(stained_of(p)[None])[0] for p in dic_patches(4)]
    assert {c: row["n"] for c, row in found["per_class"].items()} == {c: truth.count(c) for c in set(truth)}
    assert found["labels"] == "named by fake-classifier 1.2"
    assert sum(row["n"] for row in found["per_class"].values()) == 4
    mixed = [replace(p, label="mine" if i else "") for i, p in enumerate(pairs_of(4))]
    judge = class_namer(FakeClassifier())
    found = evaluate_pairs(FakeStainer(), mixed, classify=judge, named_by="x", spoilt_inputs=False)
    assert found["per_class"]["mine"]["n"] == 3
    assert found["labels"] == "of the pairs; 1 of 4 named by x"
    found = evaluate_pairs(FakeStainer(), [replace(p, label="") for p in mixed], spoilt_inputs=False)
    assert found["per_class"] == {}
    assert "labels" not in found


def test_the_classifier_made_for_the_pictures_is_judged_by_the_names_of_the_real_stain(tmp_path):
    from stainers.folder_evaluation import evaluate_stainer

    class Contrary(FakeClassifier):
        name, classes = "contrary", ("dark", "light")

    pairs = write_folder(tmp_path / "pairs", 4)
    found = evaluate_stainer(
        FakeStainer(), pairs, tmp_path / "out", classifier=FakeClassifier(), virtual_classifier=Contrary()
    )
    shares = [found["all"][f"same_class_{how}"][0] for how in ("after", "by_virtual_classifier")]
    assert sum(shares) == pytest.approx(1)
    assert found["judges"] == {"classifier": "fake-classifier", "virtual_classifier": "contrary"}


def test_cells_of_classes_that_a_judge_was_never_taught_are_left_out_of_its_agreement_and_counted():
    from stainers.evaluation import class_namer, evaluate_pairs

    class Wrong(FakeStainer):  # paints every cell pale, which the judge calls light
        def stain(self, patches, target=None):
            made = super().stain(patches, target)
            return replace(made, image=np.full_like(made.image, 250))

    judge = class_namer(FakeClassifier())
    dark, n = pairs_of(8), 3
    light = [replace(p, stained=np.full_like(p.stained, 250), label="light") for p in dark[n:]]
    pairs = dark[:n] + light
    untaught = [replace(p, label="basophil") for p in dark[:n]] + light
    asked = {"classify": judge, "classify_virtual": judge, "spoilt_inputs": False}
    assert evaluate_pairs(Wrong(), pairs, **asked)["all"]["same_class_after"][0] == 1 - n / 8
    found = evaluate_pairs(
        Wrong(),
        untaught,
        expects=lambda label: None if label == "basophil" else label,
        virtual_expects=lambda label: None if label == "dark" else label,
        **asked,
    )
    assert found["n_not_judged"] == {"classifier": n, "virtual_classifier": n}
    assert found["all"]["n"] == 8
    assert found["all"]["same_class_after"][0] == found["all"]["same_class_by_virtual_classifier"][0] == 1


def test_fields_are_measured_and_judges_of_single_cells_are_left_out(tmp_path):
    from PIL import Image

    from stainers.folder_evaluation import evaluate_stainer
    from tests.stainer_scenes import dic_image

    root = tmp_path / "pairs"
    for name in ("dic", "stained"):
        (root / name).mkdir(parents=True)
    dic = dic_image(300, 420, 12, 3)[..., None]
    Image.fromarray(dic[..., 0]).save(root / "dic" / "field.png")
    Image.fromarray(stained_of(dic)).save(root / "stained" / "field.png")
    found = evaluate_stainer(FakeStainer(), root, tmp_path / "out", classifier=FakeClassifier())
    assert "larger than a cell" in found["not_measured"]
    assert found["all"]["n"] == 1
    assert "same_class_after" not in found["all"]
    assert Image.open(tmp_path / "out" / "pictures.png").size == (4 * 256, 256)


def test_pairs_of_two_sizes_are_measured_and_what_needs_one_size_is_said_to_be_missing(tmp_path):
    from PIL import Image

    from stainers.folder_evaluation import evaluate_stainer

    root = write_folder(tmp_path / "pairs", 3)
    other = dic_patches(1, 80)[0]
    Image.fromarray(other[..., 0]).save(root / "dic" / "c1.png")
    Image.fromarray(stained_of(other)).save(root / "stained" / "c1.png")
    found = evaluate_stainer(FakeStainer(), root, tmp_path / "out", classifier=FakeClassifier())
    assert found["not_measured"].startswith("features: the pairs are of 2 sizes, from 64 x 64 to 80 x 80 px")
    assert "encoder_frechet" not in found["all"]


def test_a_named_folder_without_the_imagenet_weights_is_refused_before_anything_is_stained(tmp_path):
    from stainers.folder_evaluation import evaluate_stainer

    class Never(FakeStainer):
        def stain(self, patches, target=None):
            pytest.fail("stained")

    (tmp_path / "weights").mkdir()
    pairs = write_folder(tmp_path / "pairs", 2)
    with pytest.raises(BadInput, match=r"weights: the weights alexnet-.* and pt_inception-.* are not in it"):
        evaluate_stainer(Never(), pairs, tmp_path / "out", weights_dir=tmp_path / "weights")


def test_the_command_line_measures_a_folder(tmp_path, monkeypatch):
    from click.testing import CliRunner

    import storage.registry
    from flows.commands.evaluate import command
    from storage.packages import find_package

    made = {"stainer": FakeStainer(), "classifier": FakeClassifier(), "segmenter": FakeSegmenter()}
    monkeypatch.setattr(storage.registry, "load", lambda task, name: made[task])
    folder = write_folder(tmp_path / "pairs", 3)
    for way in (["--pairs", str(folder)], [str(folder)]):
        done = CliRunner().invoke(command, ["stainer", *way, "--out", str(tmp_path / "o"), "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["all"]["n"] == 3
        judge = find_package("leukocyte-classes").card
        assert json.loads(done.stdout)["labels"] == f"named by leukocyte-classes {judge.version}"
        assert json.loads(done.stdout)["target_from"] == "the stainer's first"
        assert "'bccd' was painted, the stainer's first target" in done.stderr
        assert "give --target (bccd, raabin)" in done.stderr
    told = ["stainer", str(folder), "--target", "raabin", "--out", str(tmp_path / "o"), "--json"]
    done = CliRunner().invoke(command, told)
    assert json.loads(done.stdout)["target_from"] == "--target"
    assert "was painted" not in done.stderr
    twice = CliRunner().invoke(
        command, ["stainer", str(folder), "--pairs", str(folder), "--out", str(tmp_path / "o")]
    )
    assert twice.exit_code != 0


@pytest.mark.parametrize("kind", ["folder", "list", "case", "smears"])
def test_a_stainer_of_stained_images_is_never_given_dic(tmp_path, capsys, kind):
    from flows.cli import main

    if kind in ("folder", "list"):
        write_folder(tmp_path / "in", 2)
    else:
        (tmp_path / "in").mkdir()
    if kind == "list":
        (tmp_path / "in" / "pairs.csv").write_text("dic,stained\ndic/c0.png,stained/c0.png\n")
    if kind == "case":
        (tmp_path / "in" / "manifest.csv").write_text("field,modality,file\n")
        (tmp_path / "in" / "truth.json").write_text('{"fields": {}}')
    asked = ["evaluate", "stainer", str(tmp_path / "in"), "--model", "tecom-to-cellavision"]
    with pytest.raises(SystemExit) as stop:
        main([*asked, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert "are for a stainer of DIC, and 'tecom-to-cellavision' reads brightfield" in told
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_smears_are_measured_on_the_part_never_trained_on(tmp_path, monkeypatch):
    from stainers import pair_sources

    loaded = pair_sources.load_smears(smear_folder(tmp_path, 1))
    splits = ("test", "train", "test")
    loaded = [replace(s, split=split) for s, split in zip(loaded, splits, strict=True)]
    monkeypatch.setattr(pair_sources, "load_smears", lambda *_: loaded)
    found = find_pairs(tmp_path, ("barcelona", "bccd", "raabin"), limit=2)
    assert found.measured_on == "computed DIC"
    assert {p.source for p in found.pairs} == {s.file for s in loaded if s.split == "test"}
    assert len(found.pairs) == 4


# reliability


def test_the_interval_of_a_correlation_is_drawn_over_images():
    from stainers.reliability import correlations

    rng = np.random.default_rng(0)
    error = rng.random(60)
    groups = [f"g{i // 3}" for i in range(60)]
    close = correlations(1 - error, error, groups)
    assert close["pearson"] == pytest.approx((-1, -1, -1))
    assert close["spearman"] == pytest.approx(-1)
    loose = correlations(1 - error + rng.normal(0, 0.3, 60), error, groups)
    assert loose["pearson"][1] < loose["pearson"][0] < loose["pearson"][2]
    assert np.isnan(correlations(np.ones(5), error[:5], groups[:5])["pearson"][0])


# the benchmark of the confidence


def test_the_sweep_of_noise_goes_on_where_it_stopped_and_judges_no_patch_by_its_own_image(
    tmp_path, monkeypatch
):
    from benchmarks import stain_confidence as bench
    from storage.packages import find_package
    from storage.registry import load

    if find_package("dic-to-mgg") is None:
        pytest.skip("the package dic-to-mgg is not installed")
    torch.set_num_threads(1)
    stainer = load("stainer", "dic-to-mgg")
    pairs = [replace(p, source=f"image-{i}") for i, p in enumerate(pairs_of(6))]
    path = tmp_path / "readings.jsonl"
    bench.readings(stainer, pairs[:2], path, (0.3,), (1, 2))
    first = path.read_text()
    assert len(first.splitlines()) == 8  # unspoilt and three kinds of spoiling
    bench.readings(stainer, pairs, path, (0.3,), (1, 2))
    assert path.read_text().startswith(first)
    rows = bench.table_of(path, (0.3,), (1, 2))
    assert {(r["alpha"], r["k"], r["score"]) for r in rows} == {
        (0.3, k, s) for k in (1, 2) for s in ("information (7.5)", "variance (7.4)", "calibrated")
    }
    assert all(0 <= v <= 1 for r in rows for v in r["auroc"].values())
    assert "n = 6" in bench.show(rows, 6)
    asked = []
    monkeypatch.setattr(
        "stainers.confidence.fit_calibration",
        lambda clean, *_: type(
            "C",
            (),
            {
                "confidence": lambda _, rows, known: (
                    asked.append((clean, rows)) or np.where(known, 0, rows[:, 0])
                )
            },
        )(),
    )
    marks, sources = np.arange(12.0)[:, None], np.asarray([f"s{i // 2}" for i in range(12)])
    missing = np.arange(12) == 5
    found = bench.cross_validated(marks, np.ones(12), np.arange(12) % 2 == 1, sources, missing)
    assert found.tolist() == np.where(missing, 0, marks[:, 0]).tolist()
    assert all(not {int(v) // 2 for v in fit[:, 0]} & {int(v) // 2 for v in ask[:, 0]} for fit, ask in asked)


@pytest.mark.parametrize(("n", "target"), [(LEAST, "raabin"), (LEAST - 1, "bccd")])
def test_pairs_without_a_stain_are_painted_as_a_run_would_paint_them(tmp_path, monkeypatch, n, target):
    from stainers import folder_evaluation

    asked: list[tuple[int, ...]] = []

    def sure(stainer, classifier, dic, pixel_size_um):
        asked.append(dic.shape)
        return {"bccd": 0.6, "raabin": 0.9}

    monkeypatch.setattr(folder_evaluation, "confidence_by_target", sure)
    folder = write_folder(tmp_path / "pairs", n)
    judges = {"classifier": FakeClassifier(), "virtual_classifier": FakeClassifier()}
    report = folder_evaluation.evaluate_stainer(FakeStainer(), folder, tmp_path / "out", **judges)
    assert list(report["per_target"]) == [target]
    if target == "raabin":
        assert report["target_from"] == "the classifier of virtual cells"
        assert report["target_confidence"] == {"bccd": 0.6, "raabin": 0.9}
        assert asked == [(n, 64, 64, 1)]
    else:
        assert report["target_from"] == "the stainer's first"
        assert not asked
    named = folder_evaluation.evaluate_stainer(
        FakeStainer(), folder, tmp_path / "named", target="bccd", **judges
    )
    assert list(named["per_target"]) == ["bccd"]
