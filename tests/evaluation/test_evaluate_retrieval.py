"""Retrieval by cosine, by looking again, and from the rows alone."""

import random
from dataclasses import replace

import pytest
import torch

from limbeck.data.dataset import normalize
from limbeck.data.examples import DataError
from limbeck.data.transform import TransformConfig, transform
from limbeck.evaluation.inputs import encode, read_rows
from limbeck.evaluation.metrics.retrieval import picture_ranks, recalls, text_ranks
from limbeck.evaluation.retrieval import NOT_LOOKED_AT, RetrievalConfig, evaluate_retrieval, recompute


def naive(model, tokenizer, examples, k):
    """Every pair on its own, as the protocol says it."""
    model.eval()
    texts = [text for example in examples for text in example.captions]
    owner = torch.tensor([row for row, example in enumerate(examples) for _ in example.captions])
    size = TransformConfig(size=16)
    pixels = normalize(
        torch.stack([torch.from_numpy(transform(e.image.open(), size, random.Random(0))) for e in examples])
    )
    with torch.no_grad():
        images = [model.encode_image(picture[None]) for picture in pixels]
        encoded = [encode(tokenizer, [text], 35, torch.device("cpu")) for text in texts]
        embeddings = [model.encode_text(*one).output for one in encoded]
        cosine = torch.cat([image.output for image in images]) @ torch.cat(embeddings).T
        if not k:
            return cosine, cosine, owner
        both = []
        for dim in (1, 0):
            scores = torch.full_like(cosine, NOT_LOOKED_AT)
            order = cosine.argsort(dim, descending=True).argsort(dim)
            for i, t in (order < k).nonzero().tolist():
                logit = model.fuse(model.image_memory(images[i].hidden), *encoded[t]).output[0, 1]
                scores[i, t] = logit + cosine[i, t]
            both.append(scores)
    return *both, owner


@pytest.mark.parametrize("family", ["blip", "albef", "clip"])
@pytest.mark.parametrize("k", [0, 3, 100])
def test_ranks_are_those_of_one_pair_after_another(request, family, k, tokenizer, examples, tmp_path, cpu):
    model = request.getfixturevalue(family)
    for_picture, for_text, owner = naive(model, tokenizer, examples, 0 if family == "clip" else k)
    config = RetrievalConfig(k_test=k, batch_size=4, pair_batch=5)
    rows = tmp_path / "retrieval.jsonl"
    found = evaluate_retrieval(model, tokenizer, examples, config, rows=rows, device=cpu, progress=False)
    own = owner[None] == torch.arange(len(examples))[:, None]
    texts, pictures = text_ranks(for_picture, own).tolist(), picture_ranks(for_text, own).tolist()
    assert [row["text_rank"] for row in read_rows(rows)] == texts
    assert [rank for row in read_rows(rows) for rank in row["picture_ranks"]] == pictures
    assert found == recalls(texts, pictures)
    assert recompute(rows) == found


def test_rows_say_what_was_found(blip, tokenizer, examples, tmp_path, cpu):
    rows = tmp_path / "retrieval.jsonl"
    evaluate_retrieval(blip, tokenizer, examples, RetrievalConfig(), rows=rows, device=cpu, progress=False)
    for row, example in zip(read_rows(rows), examples, strict=True):
        assert row["id"] == example.id
        scores = [text["score"] for text in row["texts"]]
        assert scores == sorted(scores, reverse=True)
        assert (row["texts"][0]["id"] == example.id) == (row["text_rank"] == 0)
        for rank, found in zip(row["picture_ranks"], row["pictures"], strict=True):
            assert (found[0] == example.id) == (rank == 0)


def test_words_that_pictures_share_are_a_miss_or_right_for_each(blip, tokenizer, examples, tmp_path, cpu):
    shared = [replace(example, captions=(caption,)) for example, caption in zip(examples, ("A dog!", "a dog"))]
    found = {}
    for by_wording in (False, True):
        rows, config = tmp_path / f"{by_wording}.jsonl", RetrievalConfig(by_wording=by_wording)
        found[by_wording] = evaluate_retrieval(blip, tokenizer, shared, config, rows=rows, device=cpu, progress=False)
        read = read_rows(rows)
        assert [len(row["texts"]) for row in read] == ([1, 1] if by_wording else [2, 2])
        assert [row["text_rank"] for row in read] == ([0, 0] if by_wording else [1, 1])
        assert [row["picture_ranks"] == [0] for row in read].count(True) == (2 if by_wording else 1)
        if by_wording:
            assert [row["texts"][0]["id"] for row in read] == [example.id for example in shared]
            assert recompute(rows) == found[True]
    assert (found[False]["TR@1"], found[True]["TR@1"]) == (0, 100)


def test_texts_that_no_pictures_share_are_ranked_alike_either_way(blip, tokenizer, examples, tmp_path, cpu):
    named = [replace(e, captions=(f"a {word}", f"two {word}s")) for e, word in zip(examples, ("cat", "dog", "bee"))]
    read = []
    for by_wording in (False, True):
        rows, config = tmp_path / f"{by_wording}.jsonl", RetrievalConfig(by_wording=by_wording, k_test=2)
        evaluate_retrieval(blip, tokenizer, named, config, rows=rows, device=cpu, progress=False)
        read.append(read_rows(rows))
    assert read[0] == read[1]


def test_bfloat16_changes_little_and_the_models_mode_is_put_back(blip, tokenizer, examples, tmp_path, cpu):
    blip.train()
    blip.vision.eval()
    scores = []
    for bf16 in (False, True):
        rows = tmp_path / f"{bf16}.jsonl"
        evaluate_retrieval(blip, tokenizer, examples, RetrievalConfig(bf16=bf16), rows=rows, device=cpu, progress=False)
        scores.append({text["text"]: text["score"] for row in read_rows(rows)[:1] for text in row["texts"]})
    assert blip.training
    assert not blip.vision.training
    shared = scores[0].keys() & scores[1].keys()
    assert len(shared) >= 3
    assert all(abs(scores[0][text] - scores[1][text]) < 0.1 for text in shared)


@pytest.mark.parametrize("k_test", [0, 256])
def test_scores_that_are_ranked_are_not_rounded_to_bfloat16(k_test, blip, tokenizer, examples, tmp_path, cpu):
    rows, config = tmp_path / "rows.jsonl", RetrievalConfig(bf16=True, k_test=k_test)
    evaluate_retrieval(blip, tokenizer, examples, config, rows=rows, device=cpu, progress=False)
    scores = torch.tensor([text["score"] for row in read_rows(rows) for text in row["texts"]], dtype=torch.float64)
    assert len(scores) > 10
    # bfloat16 numbers above 1 / 128, and sums of them, are multiples of 2^-14; rows have six digits after the point
    steps = scores * 2**14
    assert ((steps - steps.round()).abs() > 0.05).double().mean() > 0.5


def test_a_broken_picture_is_left_out_within_the_limit(blip, tokenizer, examples, broken, tmp_path, cpu):
    rows = tmp_path / "retrieval.jsonl"
    examples = [examples[0], broken, *examples[1:]]
    lenient = RetrievalConfig(max_skipped=0.2)
    evaluate_retrieval(blip, tokenizer, examples, lenient, rows=rows, device=cpu, progress=False)
    assert [row["id"] for row in read_rows(rows)] == [e.id for e in examples if e is not broken]
    with pytest.raises(DataError, match="cut short"):
        evaluate_retrieval(blip, tokenizer, examples, RetrievalConfig(), rows=rows, device=cpu, progress=False)


def test_an_example_without_a_caption_is_named(blip, tokenizer, examples, tmp_path, cpu):
    bare = [*examples, replace(examples[0], id="bare", captions=())]
    with pytest.raises(ValueError, match="bare"):
        evaluate_retrieval(
            blip, tokenizer, bare, RetrievalConfig(), rows=tmp_path / "r.jsonl", device=cpu, progress=False
        )
