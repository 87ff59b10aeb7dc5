"""A recipe's source section is one of a closed set, by its name."""

import json

import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from limbeck.data.sources import SourceConfig, load_source

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
