"""A recipe's source section is one of a closed set, by its name."""

import json

import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from limbeck.data.examples import DataError
from limbeck.data.sources import SourceConfig, load_source, load_sources

SECTION = TypeAdapter(SourceConfig)


def test_a_section_opens_by_its_name(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "d.jsonl").write_text(json.dumps({"image": "a.png", "caption": "x"}))
    source = load_source(SECTION.validate_python({"source": "jsonl", "path": "d.jsonl"}), tmp_path)
    assert source.examples[0].captions == ("x",)
    scenes = load_source(SECTION.validate_python({"source": "builtin:scenes", "count": 5}))
    assert len(scenes.examples) == 5
    assert len(load_source(SECTION.validate_python({"source": "builtin:openmoji", "limit": 7})).examples) == 7


def test_an_unknown_source_or_field_is_an_error_with_the_choices():
    with pytest.raises(ValidationError, match=r"'jsonl', 'karpathy', 'lavis', 'vqa_v2', 'webdataset', 'datasets'"):
        SECTION.validate_python({"source": "json", "path": "x"})
    with pytest.raises(ValidationError, match="pth"):
        SECTION.validate_python({"source": "jsonl", "path": "x", "pth": "y"})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"source": "jsonl", "path": "capt.jsonl"},
            r"^data\.train\.1\.path: .*capt\.jsonl: .*mean 'captions\.jsonl'\?",
        ),
        ({"source": "jsonl", "path": "captions.jsonl", "images": "x"}, r"^data\.train\.1\.images: .*x: no such folder"),
        ({"source": "jsonl", "path": "captions.jsonl"}, r"^data\.train\.1: .*captions\.jsonl: no record in it"),
    ],
)
def test_what_cannot_be_opened_is_told_with_its_key_path(tmp_path, section, message):
    (tmp_path / "captions.jsonl").touch()
    sections = [SECTION.validate_python(each) for each in ({"source": "builtin:scenes", "count": 5}, section)]
    with pytest.raises(DataError, match=message):
        load_sources(sections, tmp_path, "data.train")
    with pytest.raises(DataError, match=rf"^{tmp_path}"):
        load_sources(sections, tmp_path)
