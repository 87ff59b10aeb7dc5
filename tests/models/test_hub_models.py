"""Models named as on Hugging Face."""

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from limbeck.models import hub
from limbeck.models.hub import local_model
from limbeck.models.load import load_model


def test_a_path_that_exists_is_never_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("fetched"))
    assert local_model(tmp_path) == tmp_path


def test_a_name_is_fetched_without_anything_that_could_run(tmp_path, monkeypatch):
    asked = {}

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.update(name=name, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert local_model("facebook/deit-small-patch16-224") == tmp_path
    assert asked == {"name": "facebook/deit-small-patch16-224", "patterns": ["*.safetensors", "*.json", "*.txt"]}


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
