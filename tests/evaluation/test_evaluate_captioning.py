"""Captions: how they are written, what is kept, and what comes out of the rows alone."""

import json
from dataclasses import replace

import pytest

from limbeck.evaluation.captioning import CaptioningConfig, evaluate_captioning, recompute
from limbeck.evaluation.inputs import read_rows


def config(**values):
    return CaptioningConfig(java_metrics=False, tokenizer="fallback", **values)


def test_metrics_rows_and_coco_file_agree(blip, tokenizer, examples, tmp_path, cpu):
    rows = tmp_path / "captioning.jsonl"
    metrics = evaluate_captioning(blip, tokenizer, examples, config(), rows=rows, device=cpu, progress=False)
    assert set(metrics) == {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "tokenizer"}
    assert metrics["tokenizer"] == "fallback"
    assert recompute(rows, tokenizer="fallback", java_metrics=False) == metrics
    kept = read_rows(rows)
    assert [row["references"] for row in kept] == [list(example.captions) for example in examples]
    results = json.loads((tmp_path / "captioning_results.json").read_text())
    assert results == [{"image_id": row["id"], "caption": row["prediction"]} for row in kept]


def test_the_prompt_leads_the_caption_and_is_not_part_of_it(blip, tokenizer, examples, tmp_path, cpu, monkeypatch):
    prompts = []
    generate = blip.generate

    def watched(memory, prompt_ids, **settings):
        ids = generate(memory, prompt_ids, **settings)
        prompts.append((tokenizer.decode(prompt_ids[0], skip_special_tokens=True), settings, ids.shape[1]))
        return ids

    monkeypatch.setattr(blip, "generate", watched)
    evaluate_captioning(
        blip,
        tokenizer,
        examples,
        config(prompt="this is ", min_length=8, max_length=9, num_beams=2),
        rows=tmp_path / "captioning.jsonl",
        device=cpu,
        progress=False,
    )
    prompt, settings, length = prompts[0]
    assert prompt == "this is"
    assert settings == {"num_beams": 2, "max_new_tokens": 6, "min_new_tokens": 5}  # three tokens are the prompt's
    assert 8 <= length <= 9
    assert all(not row["prediction"].startswith("this is this is") for row in read_rows(tmp_path / "captioning.jsonl"))


COCO = {
    "7": 7,
    "COCO_val2014_000000391895.jpg": 391895,
    "val2014/COCO_val2014_000000000042.jpg": 42,
    "val2017/000000000139.jpg": 139,
    "1000092795.jpg": "1000092795.jpg",
    "captions.jsonl:3": "captions.jsonl:3",
}
"""The number in COCO's results file by example id; Flickr's names have none"""


def test_coco_ids_are_numbers(blip, tokenizer, examples, tmp_path, cpu):
    numbered = [replace(example, id=id) for id, example in zip(COCO, examples, strict=True)]
    rows = tmp_path / "captioning.jsonl"
    evaluate_captioning(blip, tokenizer, numbered, config(num_beams=1), rows=rows, device=cpu, progress=False)
    results = json.loads((tmp_path / "captioning_results.json").read_text())
    assert [result["image_id"] for result in results] == list(COCO.values())


def test_impossible_settings_are_errors(blip, albef, tokenizer, examples, tmp_path, cpu):
    rows = tmp_path / "captioning.jsonl"
    with pytest.raises(ValueError, match="min_length 30"):
        config(min_length=30)
    with pytest.raises(ValueError, match="takes up max_length"):
        evaluate_captioning(
            blip, tokenizer, examples, config(prompt="a red square " * 9), rows=rows, device=cpu, progress=False
        )
    with pytest.raises(ValueError, match="no decoder"):
        evaluate_captioning(albef, tokenizer, examples, config(), rows=rows, device=cpu, progress=False)
    with pytest.raises(ValueError, match="different ids"):
        evaluate_captioning(
            blip, tokenizer, [examples[0], examples[0]], config(), rows=rows, device=cpu, progress=False
        )
