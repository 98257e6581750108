"""Model packages and the registry: strict, complete, and never unpickled."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import BadInput, BadModelPackage, UnknownName
from storage.packages import ModelPackage, find_package, list_packages, read_package, write_package
from storage.registry import available, describe, entries, load, virtual_array

CARD: dict[str, Any] = {
    "name": "test-model",
    "version": "1",
    "task": "classifier",
    "architecture": "nothing-of-this-name",
    "weights": "safetensors",
    "licence": "AGPL-3.0-or-later",
    "intended_use": "tests",
    "modalities": ["brightfield"],
    "stains": ["MGG"],
    "pixel_size_um": 0.1,
    "training_data": ["none"],
    "metrics": {},
    "limits": ["everything"],
}


def write(folder: Path, **changes: Any) -> Path:
    import torch

    write_package(folder, {**CARD, **changes}, {"w": torch.arange(4.0)})
    return folder


def torch_ones() -> Any:
    import torch

    return torch.ones(4)


def test_a_package_reads_back_what_was_written(tmp_path: Path) -> None:
    package = read_package(write(tmp_path / "p"))
    package.verify()
    assert package.state_dict()["w"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert package.card.name == "test-model"


def test_the_files_of_a_package_are_as_readable_as_the_umask_lets_files_be(tmp_path: Path) -> None:
    import os

    for umask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(umask)
        try:
            folder = write(tmp_path / f"{umask:o}")
        finally:
            os.umask(before)
        assert {p.name: p.stat().st_mode & 0o777 for p in folder.iterdir()} == {
            "card.json": mode,
            "model.safetensors": mode,
        }


def test_what_a_training_wrote_is_found_by_its_out_folder_and_on_the_path_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "runs" / "detector" / "package", name="beside-a-training")
    write(tmp_path / "runs" / "classifier", name="is-the-folder")
    for out, name in (("detector", "beside-a-training"), ("classifier", "is-the-folder")):
        found = find_package(str(tmp_path / "runs" / out))
        assert found is not None
        assert found.name == name
    for listed in ("runs/detector", "runs/classifier", "runs"):
        monkeypatch.setenv("SMEARFLOW_WEIGHTS", str(tmp_path / listed))
        names = {p.name for p in list_packages()}
        assert ("beside-a-training" in names) == (listed != "runs/classifier")
        assert ("is-the-folder" in names) == (listed != "runs/detector")


def test_a_package_that_stands_for_a_shipped_one_is_told_by_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from flows.cli import group

    write(tmp_path / "own", name="leukocyte-classes")
    monkeypatch.setenv("SMEARFLOW_WEIGHTS", str(tmp_path))
    lines = CliRunner().invoke(group, ["models"]).stdout.splitlines()
    assert [line for line in lines if " (from " in line] == [
        line for line in lines if " leukocyte-classes " in line
    ]
    assert str(tmp_path / "own") in next(line for line in lines if " leukocyte-classes " in line)


def test_one_changed_byte_of_the_weights_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "p")
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(BadModelPackage, match=r"model\.safetensors"):
        read_package(folder).verify()


def test_a_missing_weight_file_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "p")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadModelPackage, match=r"model\.safetensors is missing"):
        read_package(folder).verify()


def test_a_card_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "p")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "licens": "typo"}))
    with pytest.raises(BadModelPackage, match="licens"):
        read_package(folder)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("/tmp/smearflow-bomb", "w"))


def test_a_pickle_in_place_of_weights_is_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "weights" / "p")
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    from storage.fingerprint import sha256_of

    card = json.loads((folder / "card.json").read_text())
    card["sha256"] = sha256_of(folder / "model.safetensors")  # even with a matching hash
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(Exception, match=r"(?i)header|safetensor|deserializ"):
        read_package(folder).state_dict()
    assert not Path("/tmp/smearflow-bomb").exists()


def test_a_failed_write_leaves_the_old_package(tmp_path: Path) -> None:
    folder = write(tmp_path / "p")
    before = (folder / "card.json").read_text()
    with pytest.raises(ValueError, match="version"):
        write(tmp_path / "p", version=None)
    assert (folder / "card.json").read_text() == before


def test_a_package_is_written_over_an_earlier_one_and_into_an_empty_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    write(tmp_path / "empty", version="2")
    assert read_package(tmp_path / "empty").card.version == "2"
    own = write(tmp_path / "own")
    (own / "thesis.docx").write_text("years of work")
    (tmp_path / "nested" / "card.json").mkdir(parents=True)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name, told in (("own", "thesis"), ("nested", "card.json"), ("file", "none"), ("link", "none")):
        with pytest.raises(BadInput, match=f"{name}: .*{told}"):
            write(tmp_path / name, version="3")
    assert (own / "thesis.docx").read_text() == "years of work"
    assert (read_package(own).card.version, read_package(tmp_path / "empty").card.version) == ("1", "2")


@pytest.mark.parametrize("kind", ["classifier", "segmenter", "virtual-classifier"])
@pytest.mark.parametrize("out", ["thesis", "data"])
def test_a_training_into_a_folder_of_something_else_is_refused_before_its_first_step(
    kind: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from flows.cli import group

    def trained(*_: Any, **__: Any) -> None:
        raise AssertionError("a training began")

    monkeypatch.setattr("classifiers.training.train_classifier", trained)
    monkeypatch.setattr("detectors.segment_stages.train_in_stages", trained)
    monkeypatch.setattr("pipeline.virtual_naming.train_virtual_classifier", trained)
    kept = {"thesis": tmp_path / "thesis" / "thesis.docx", "data": tmp_path / "data" / "a.png"}
    for file in kept.values():
        file.parent.mkdir()
        file.write_bytes(b"mine")
    result = CliRunner().invoke(group, ["train", kind, str(tmp_path / "data"), "--out", str(tmp_path / out)])
    assert isinstance(result.exception, BadInput), result.exception
    assert f"it holds '{kept[out].name}'" in str(result.exception)
    assert all(f.read_bytes() == b"mine" for f in kept.values())


def test_a_run_whose_package_would_take_the_place_of_something_else_is_refused_at_its_start(
    tmp_path: Path,
) -> None:
    from detectors.folder_training import train_detector
    from stainers.families import train_by_recipe

    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"package: it holds 'notes\.txt'"):
        train_by_recipe(tmp_path / "none", tmp_path, "unet-film")
    with pytest.raises(BadInput, match=r"package: it holds 'notes\.txt'"):
        train_detector(tmp_path / "none", tmp_path, "dic")


def test_a_package_is_found_by_name_on_the_path_list_and_by_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "p")
    monkeypatch.setenv("SMEARFLOW_WEIGHTS", str(tmp_path))
    assert find_package("test-model") == find_package(str(folder))


def test_a_folder_where_a_command_is_run_never_stands_in_for_a_model_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that run elsewhere would work with another model than the command line looked at."""
    shipped = find_package("dic-to-mgg")
    assert shipped is not None
    for name, task in (("dic-to-mgg", "stainer"), ("classical", "detector"), ("mine", "stainer")):
        write(tmp_path / name, task=task, name=f"own-{name}")
    monkeypatch.chdir(tmp_path)
    assert find_package("dic-to-mgg") == shipped
    assert describe("stainer", "./mine") == read_package(Path("mine"))
    assert not isinstance(describe("detector", "classical"), ModelPackage)
    assert describe("stainer", "mine") == read_package(Path("mine"))  # no model's name


@pytest.mark.parametrize("name", ["leukocyte-classes", "./leukocyte-classes", "best.pt"])
def test_a_training_begins_from_the_model_of_a_name_else_from_what_lies_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from flows.cli import group

    asked: list[Path] = []
    monkeypatch.setattr(
        "classifiers.training.train_classifier", lambda *_, start, **__: asked.append(start) or tmp_path
    )
    monkeypatch.setattr("flows.commands.train._figures", lambda _: {})
    write(tmp_path / "leukocyte-classes")
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(group, ["train", "classifier", "data", "--out", "out", "--start", name])
    assert done.exit_code == 0, done.output
    shipped = find_package("leukocyte-classes")
    package = find_package(str(asked[0]))
    if name == "best.pt":
        assert (package, asked) == (None, [tmp_path / "best.pt"])
    else:
        assert package is not None
        assert shipped is not None
        assert (package.folder == shipped.folder) == (name == "leukocyte-classes")


def test_a_store_calls_a_stainer_as_its_package_is_called_and_tells_folders_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from storage.store import check_key

    folder = write(tmp_path / "p", task="stainer", name="own stainer/2")
    other = tmp_path / "q"
    write_package(other, {**CARD, "task": "stainer", "name": "own stainer/2"}, {"w": torch_ones()})
    (tmp_path / "nothing").mkdir()
    monkeypatch.setenv("SMEARFLOW_WEIGHTS", str(tmp_path / "nothing"))
    names = [virtual_array(str(f), "image") for f in (folder, other)]
    assert len(set(names)) == 2
    for name in names:
        assert check_key(name).startswith("virtual/own-stainer-2-")
        assert name.count("/") == 2
    monkeypatch.undo()
    assert virtual_array("dic-to-mgg", "image") == "virtual/dic-to-mgg/image"


def test_an_unknown_architecture_is_refused_with_the_known_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "p")
    monkeypatch.setenv("SMEARFLOW_WEIGHTS", str(tmp_path))
    with pytest.raises(BadModelPackage, match="nothing-of-this-name"):
        load("classifier", "test-model")


def test_a_model_of_another_task_is_not_found() -> None:
    name = available("detector")[0]
    with pytest.raises(UnknownName, match=name):
        describe("stainer", name)


def test_every_registered_architecture_states_licence_and_purpose() -> None:
    found = list(entries())
    assert {e.task for e in found} >= {"detector", "segmenter", "stainer", "classifier"}
    for entry in found:
        assert entry.licence
        assert len(entry.summary) > 10, entry


@pytest.mark.parametrize("package", list_packages(), ids=lambda p: p.name)
def test_every_shipped_package_is_whole_and_says_what_it_was_trained_on(package: Any) -> None:
    package.verify()
    card = package.card
    assert card.licence
    assert card.training_data
    assert card.limits
    assert card.metrics
    assert len(card.intended_use) > 20
    assert package.folder.name == card.name
    assert package.weights_path.stat().st_size < 30_000_000


def test_shipped_weights_stay_under_60_megabytes() -> None:
    assert sum(p.weights_path.stat().st_size for p in list_packages()) < 60_000_000


def test_an_error_with_names_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(UnknownName("detector", "x", ["a", "b"])))
    assert isinstance(error, UnknownName)
    assert "known are: a, b" in str(error)


def test_the_same_weights_under_another_card_are_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that lives long must not name cells by parameters that the card had when it began."""
    import shutil

    monkeypatch.setenv("SMEARFLOW_WEIGHTS", str(tmp_path))
    folder = tmp_path / "marrow-erythroblasts"
    shipped = find_package("marrow-erythroblasts")
    assert shipped is not None
    shutil.copytree(shipped.folder, folder)
    before = load("classifier", "marrow-erythroblasts")
    assert load("classifier", "marrow-erythroblasts") is before
    card = json.loads((folder / "card.json").read_text())
    card["version"] += ".1"
    (folder / "card.json").write_text(json.dumps(card))
    assert load("classifier", "marrow-erythroblasts") is not before


def test_the_hash_of_weights_on_disk_follows_the_file(tmp_path: Path) -> None:
    package = read_package(write(tmp_path / "p"))
    assert package.found_sha256() == package.card.sha256
    data = package.weights_path.read_bytes()
    package.weights_path.write_bytes(data + b" ")
    assert package.found_sha256() not in (None, package.card.sha256)
    package.weights_path.unlink()
    assert package.found_sha256() is None


def test_a_path_of_the_list_that_is_not_there_is_refused_and_doctor_says_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the shipped model of a name stands in for the laboratory's own, without a word."""
    from flows.commands.doctor import check_weights
    from flows.failures import fault_of

    monkeypatch.setenv("SMEARFLOW_WEIGHTS", f"{tmp_path}{os.pathsep}{tmp_path / 'nowhere'}")
    with pytest.raises(BadModelPackage, match="nowhere, and there is no such folder") as caught:
        find_package("leukocyte-classes")
    assert fault_of(caught.value) == "machine"  # of a worker that lacks the folder, not of the field
    assert [level for level, text in check_weights() if "nowhere" in text] == ["error"]
