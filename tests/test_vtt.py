"""The Visual Turing Test: drawing it, keeping its secret, scoring it, and an expert's way through it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipeline.agreement import cohen_value, fleiss_value, kappa
from pipeline.errors import BadInput
from pipeline.statistics import clopper_pearson
from pipeline.vtt import GROUPS, draw_test, read_candidates, read_key, render_page, write_test
from pipeline.vtt_answers import read_answers
from pipeline.vtt_score import confusion, pearson, read_distances, render_scores, score_all, score_test

SECRET = "REALNESS-OF-PATIENT-77"


def write_images(root: Path, per_group: int = 26, size: int = 24, seed: int = 0) -> Path:
    """Four folders of different images whose names and PNG texts give the truth away."""
    rng = np.random.default_rng(seed)
    for origin, label in GROUPS:
        folder = root / origin / label
        folder.mkdir(parents=True)
        for i in range(per_group):
            note = PngImagePlugin.PngInfo()
            note.add_text("Comment", SECRET)
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{origin}_{label}_{SECRET}_{i}.png", pnginfo=note)
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("vtt"))


@pytest.fixture(scope="module")
def hundred(images):
    return draw_test(read_candidates(images), n=100, seed=3, configuration="ResNet-3-conditioned")


def test_a_test_is_half_real_and_half_positive_in_all_four_combinations(hundred):
    groups = [(i.real, i.positive) for i in hundred.images]
    assert {g: groups.count(g) for g in set(groups)} == dict.fromkeys(
        [(True, True), (True, False), (False, True), (False, False)], 25
    )
    assert len({i.image.tobytes() for i in hundred.images}) == 100


def test_a_seed_draws_the_same_test_and_another_seed_another(images, hundred):
    again = draw_test(read_candidates(images), n=100, seed=3, configuration="ResNet-3-conditioned")
    assert again.key() == hundred.key()
    other = draw_test(read_candidates(images), n=100, seed=4)
    assert other.test_id != hundred.test_id
    assert [i.id for i in other.images] != [i.id for i in hundred.images]


def test_the_page_holds_pixels_and_ids_and_nothing_of_the_truth(hundred):
    page = render_page(hundred)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert set(data) == {"test_id", "images"}
    assert all(set(i) == {"id", "uri"} for i in data["images"])
    assert [i["id"] for i in data["images"]] == [i.id for i in hundred.images]
    assert SECRET not in page
    assert hundred.configuration not in page
    assert not re.search(r"virtual/|real/|_positive_|\.png", page)
    assert "http" not in re.sub(r"(http-equiv|HTTP-EQUIV)", "", page)
    import base64

    for item in data["images"]:
        png = base64.b64decode(item["uri"].split(",")[1])
        chunks = set(re.findall(rb"[A-Z][A-Za-z]{2}[A-Za-z](?=.)", png[12:16])) | {png[12:16]}
        assert chunks == {b"IHDR"}
        assert b"tEXt" not in png
        assert b"Comment" not in png
        assert b"eXIf" not in png


def test_order_and_ids_do_not_tell_the_truth(hundred):
    truth = np.array([i.real for i in hundred.images])
    runs = 1 + int((truth[1:] != truth[:-1]).sum())
    assert 35 < runs < 67  # random order: 51 ± 5
    ranks = np.argsort(np.argsort([i.id for i in hundred.images]))
    assert abs(np.corrcoef(ranks, truth)[0, 1]) < 0.3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: shutil.rmtree(p / "virtual" / "positive"), "no folder virtual/positive"),
        (lambda p: [f.unlink() for f in sorted((p / "real" / "negative").iterdir())[2:]], "there are 2"),
        (
            lambda p: Image.new("RGB", (30, 30)).save(next((p / "real" / "positive").iterdir())),
            "different sizes",
        ),
    ],
)
def test_a_source_that_cannot_give_a_fair_test_is_refused_in_one_sentence(tmp_path, change, words):
    source = write_images(tmp_path / "s", per_group=3)
    change(source)
    with pytest.raises(BadInput, match=words) as caught:
        draw_test(read_candidates(source), n=12)
    assert str(caught.value).count("\n") == 0
    assert str(caught.value).endswith(".")


def test_a_size_makes_images_of_different_sizes_alike(tmp_path):
    source = write_images(tmp_path / "s", per_group=3)
    Image.fromarray(np.full((40, 61, 3), 9, np.uint8)).save(next((source / "real" / "positive").iterdir()))
    test = draw_test(read_candidates(source), n=12, size_px=32)
    assert {i.image.shape for i in test.images} == {(32, 32, 3)}


def test_the_same_pixels_are_not_shown_twice(tmp_path):
    source = write_images(tmp_path / "s", per_group=3)
    files = sorted((source / "real" / "positive").iterdir())
    shutil.copy(files[0], files[1])
    with pytest.raises(BadInput, match="3 different real positive ones and there are 2"):
        draw_test(read_candidates(source), n=12)


def test_a_csv_list_names_images_and_its_mistakes_are_told_by_line(tmp_path):
    source = write_images(tmp_path / "s", per_group=1)
    rows = [(str(next((source / o / k).iterdir()).relative_to(tmp_path)), o, k) for o, k in GROUPS]
    path = tmp_path / "list.csv"
    lines = ["file,origin,label", *[",".join(r) for r in rows]]
    path.write_text("\n".join(lines))
    assert len(draw_test(read_candidates(path), n=4).images) == 4
    path.write_text("\n".join([*lines, "x.png,fake,positive"]))
    with pytest.raises(BadInput, match="line 6: origin 'fake'"):
        read_candidates(path)


def test_a_key_is_never_overwritten(tmp_path, hundred):
    page = tmp_path / "vtt-1.5.html"
    key = write_test(hundred, page)
    assert key == tmp_path / "vtt-1.5.key.json"
    assert read_key(key)["test_id"] == hundred.test_id
    with pytest.raises(BadInput, match="there already"):
        write_test(hundred, page)


# Scoring


def answers_file(path: Path, test, expert: str, say, as_csv: bool = False) -> Path:
    """A file of answers as the page writes it; `say(index, image)` gives (real, positive)."""
    rows = [(i.id, *say(n, i)) for n, i in enumerate(test.images)]
    if as_csv:
        words = {True: "real", False: "fake", None: ""}, {True: "positive", False: "negative", None: ""}
        lines = [f"{test.test_id},{expert},{i},{words[0][r]},{words[1][p]},1.0" for i, r, p in rows]
        path.write_text("test_id,expert,id,origin,label,seconds\r\n" + "\r\n".join(lines) + "\r\n")
    else:
        answers = [{"id": i, "real": r, "positive": p, "seconds": 1.0} for i, r, p in rows]
        document = {
            "format": "smearflow-vtt-answers/1",
            "test_id": test.test_id,
            "expert": expert,
            "answers": answers,
        }
        path.write_text(json.dumps(document))
    return path


def fooled(n_fooled: int):
    """An expert who takes the first `n_fooled` virtual images for real and sees no virtual positive."""
    left = [n_fooled]

    def say(_, image):
        if not image.real and left[0]:
            left[0] -= 1
            return True, False
        return image.real, image.positive and image.real

    return say


def test_both_matrices_and_their_rates_are_those_of_the_answers(tmp_path, hundred):
    answers = read_answers(answers_file(tmp_path / "a.json", hundred, "A", fooled(34)))
    found = score_test(hundred.key(), [answers])["experts"][0]
    assert found["realism"]["confusion"] == {"tp": 50, "fn": 0, "fp": 34, "tn": 16}
    assert found["realism"]["fpr"]["value"] == pytest.approx(0.68)  # experiment 2 of the paper
    assert (found["realism"]["fpr"]["low"], found["realism"]["fpr"]["high"]) == clopper_pearson(34, 50)
    assert found["label"]["virtual"]["confusion"] == {"tp": 0, "fn": 25, "fp": 0, "tn": 25}
    assert found["label"]["virtual"]["fnr"]["value"] == 1.0
    assert found["label"]["virtual"]["accuracy"]["value"] == 0.5
    assert found["label"]["real"]["accuracy"]["value"] == 1.0
    assert found["label"]["all"]["accuracy"]["value"] == 0.75
    assert found["n_open"] == 0


def test_csv_and_json_of_the_same_answers_score_the_same(tmp_path, hundred):
    a = read_answers(answers_file(tmp_path / "a.json", hundred, "A", fooled(10)))
    b = read_answers(answers_file(tmp_path / "a.csv", hundred, "A", fooled(10), as_csv=True))
    assert dict(a.by_id) == dict(b.by_id)


def test_two_opinions_of_an_image_do_not_count_as_two_images(tmp_path, hundred):
    both = [read_answers(answers_file(tmp_path / f"{e}.json", hundred, e, fooled(30))) for e in ("A", "B")]
    together = score_test(hundred.key(), both)["together"]["realism"]
    assert together["confusion"]["fp"] == 60
    assert (together["fpr"]["n"], together["fpr"]["n_images"]) == (100, 50)
    assert (together["fpr"]["low"], together["fpr"]["high"]) == pytest.approx(clopper_pearson(30, 50))


def test_open_answers_are_left_out_and_counted(tmp_path, hundred):
    def say(n, image):
        return (image.real, image.positive) if n < 90 else (None, image.positive if n < 95 else None)

    found = score_test(hundred.key(), [read_answers(answers_file(tmp_path / "a.json", hundred, "A", say))])
    assert found["experts"][0]["n_open"] == 15
    assert sum(found["experts"][0]["realism"]["confusion"].values()) == 90


def test_kappa_is_cohens_for_two_and_fleiss_for_more():
    # Cohen's own table shape: 20 both yes, 15 both no, 5 and 10 apart.
    first = np.array([1] * 20 + [1] * 5 + [0] * 10 + [0] * 15, bool)
    second = np.array([1] * 20 + [0] * 5 + [1] * 10 + [0] * 15, bool)
    assert cohen_value(first, second) == pytest.approx(0.4)
    found = kappa(np.stack([first, second], axis=1))
    assert found.value == pytest.approx(0.4)
    assert found.low < 0.4 < found.high
    three = np.array([[1, 1, 1], [1, 1, 0], [0, 0, 0], [0, 0, 1]], bool)
    # by hand: P = (1 + 1/3 + 1 + 1/3) / 4 = 2/3, p = 1/2, so (2/3 - 1/2) / (1/2) = 1/3
    assert fleiss_value(three) == pytest.approx(1 / 3)
    assert kappa(np.ones((8, 2), bool)).value is None


def test_agreement_by_chance_has_a_kappa_that_spans_zero():
    rng = np.random.default_rng(5)
    found = kappa(rng.random((100, 2)) < 0.8)
    assert found.low < 0 < found.high


def test_pearson_repeats_a_known_correlation_and_says_nothing_of_two_points():
    # FID on the training split of the paper's table 3 against itself, reversed in sign
    fid = [72.232, 72.395, 78.178, 76.078, 145.268, 77.301, 110.639]
    assert pearson(fid, [-2 * f for f in fid])["r"] == pytest.approx(-1)
    found = pearson(fid, [0.6, 0.68, 0.5, 0.55, 0.2, 0.6, 0.3])
    assert found["r"] == pytest.approx(np.corrcoef(fid, [0.6, 0.68, 0.5, 0.55, 0.2, 0.6, 0.3])[0, 1])
    assert found["low"] < found["r"] < found["high"] < 0
    assert pearson([1, 2], [3, 4])["r"] is None
    assert pearson([1, 1, 1], [3, 4, 5])["r"] is None


def test_distances_are_correlated_with_the_false_positive_rate_over_configurations(images, tmp_path):
    keys, answers = [], []
    for number, hits in enumerate((40, 30, 20, 10)):
        test = draw_test(read_candidates(images), n=100, seed=number, configuration=str(number + 1))
        keys.append(test.key())
        answers.append(read_answers(answers_file(tmp_path / f"{number}.json", test, "A", fooled(hits))))
    path = tmp_path / "fid.csv"
    path.write_text("configuration,FID test,FID train\n1,70,50\n2,80,52\n3,90,51\n4,100,\n")
    scores = score_all(keys, answers, read_distances(path))
    test, train = scores["across"]["pearson"]
    assert (test["metric"], test["n"], test["r"]) == ("FID test", 4, pytest.approx(-1))
    assert (train["n"], train["low"]) == (3, None)
    assert "Pearson of FID test" in render_scores(scores)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "column test_id"),
        ('{"format": "smearflow-vtt-answers/1", "answers": [', "break off"),
        ('{"format": "other"}', "no answers to a Visual Turing Test"),
        ('{"format": "smearflow-vtt-answers/1", "test_id": "T", "expert": "A"}', "no list of answers"),
        (
            '{"format": "smearflow-vtt-answers/1", "test_id": "T", "expert": "A",'
            ' "answers": [{"id": "x", "real": "yes", "positive": null}]}',
            "true, false or null",
        ),
        ("id,expert\n1,2\n", "column test_id, origin, label is missing"),
        ("test_id,expert,id,origin,label\nT,A,x,maybe,positive\n", "line 2: origin is 'maybe'"),
        ("test_id,expert,id,origin,label\nT,A,x,real,\nT,B,x,real,\n", "several tests or experts"),
        ("test_id,expert,id,origin,label\nT,A,x,real,\nT,A,x,real,\n", "answered twice"),
    ],
)
def test_a_bad_file_of_answers_is_refused_in_one_sentence(tmp_path, text, words):
    path = tmp_path / "answers.txt"
    path.write_text(text)
    with pytest.raises(BadInput, match=words) as caught:
        read_answers(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_answers_of_another_test_or_twice_of_one_expert_are_refused(tmp_path, hundred):
    a = read_answers(answers_file(tmp_path / "a.json", hundred, "A", fooled(1)))
    b = read_answers(answers_file(tmp_path / "b.json", hundred, "A", fooled(2)))
    with pytest.raises(BadInput, match="twice; give one"):
        score_test(hundred.key(), [a, b])
    with pytest.raises(BadInput, match="whose key is not given"):
        score_all([{**hundred.key(), "test_id": "other"}], [a])


def test_an_empty_matrix_has_no_rates():
    assert confusion([]).rates()["fpr"] == {"value": None, "low": None, "high": None, "n": 0, "n_images": 0}


def test_the_command_builds_and_scores_and_refuses_with_status_2(images, tmp_path):
    def smearflow(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "flows.cli", "vtt", *words], capture_output=True, text=True, timeout=60
        )

    page = tmp_path / "t.html"
    made = json.loads(smearflow("build", str(images), "--out", str(page), "--n", "20", "--json").stdout)
    key = read_key(Path(made["key"]))
    rows = [{"id": i["id"], "real": i["real"], "positive": i["positive"]} for i in key["images"]]
    answers = {"format": "smearflow-vtt-answers/1", "test_id": key["test_id"], "expert": "A", "answers": rows}
    (tmp_path / "a.json").write_text(json.dumps(answers))
    done = smearflow("score", str(tmp_path / "a.json"), "--key", made["key"], "--json")
    scores = json.loads(done.stdout)
    assert scores["tests"][0]["experts"][0]["realism"]["accuracy"]["value"] == 1.0
    (tmp_path / "b.json").write_text("nonsense")
    refused = smearflow("score", str(tmp_path / "b.json"), "--key", made["key"])
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
