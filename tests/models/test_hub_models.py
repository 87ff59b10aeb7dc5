"""Models named as on Hugging Face."""

from fnmatch import fnmatch

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from limbeck.models import hub
from limbeck.models.hub import local_model
from limbeck.models.load import load_model


def test_a_path_that_exists_is_never_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("fetched"))
    assert local_model(tmp_path) == tmp_path


PATTERNS = ["*.safetensors", "*.json", "*.txt"]


@pytest.mark.parametrize(
    ("weights", "asked"),
    [
        ("model.safetensors", [PATTERNS]),
        ("model-00001-of-00002.safetensors", [PATTERNS]),
        ("pytorch_model.bin", [PATTERNS, [*PATTERNS, "pytorch_model.bin"]]),
    ],
)
def test_a_pickle_is_fetched_only_where_there_are_no_safetensors(weights, asked, tmp_path, monkeypatch):
    calls = []

    def download(name: str, allow_patterns: list[str]) -> str:
        assert name == "Salesforce/blip-itm-base-coco"
        calls.append(allow_patterns)
        if any(fnmatch(weights, pattern) for pattern in allow_patterns):
            (tmp_path / weights).touch()
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert local_model("Salesforce/blip-itm-base-coco") == tmp_path
    assert calls == asked
    assert (tmp_path / weights).exists()


def test_without_a_network_the_name_and_the_way_out_are_said(monkeypatch):
    def offline(name: str, allow_patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("no connection\nand much more")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(
        FileNotFoundError, match=r"someone/blip: no such .* \(no connection\).*hf download someone/blip"
    ):
        load_model("someone/blip")


@pytest.mark.parametrize("path", ["runs/a/student", "/nowhere/student", "model.pth", "./runs/x"])
def test_what_looks_like_a_path_is_one(path, monkeypatch):
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(FileNotFoundError, match="no such model folder or file"):
        load_model(path)


def test_a_model_that_comes_with_limbeck_is_found_by_its_name():
    folder = local_model("limbeck:quickstart_teacher")
    assert (folder / "model.safetensors").is_file()
    with pytest.raises(FileNotFoundError, match=r"limbeck:teacher: no such model comes with limbeck.*comd_teacher"):
        local_model("limbeck:teacher")
