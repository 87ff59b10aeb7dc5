"""Attention for the report: one row of the map, from queries and keys."""

import json

import pytest
import torch

from limbeck.evaluation.attention_view import attention_row, attention_view
from limbeck.types import AttentionState


def test_a_row_is_that_of_the_whole_map():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 3, 4, 5, generator=generator), torch.randn(2, 3, 4, 5, generator=generator)
    causal = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    for mask in (None, causal, torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=torch.bool)[:, None, None]):
        scores = 0.7 * query @ key.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        whole = scores.softmax(-1).mean(1)
        state = AttentionState(query=query, key=key, mask=mask, scale=0.7)
        assert torch.allclose(attention_row(state, 2), whole[:, 2], atol=1e-6)
        some = attention_row(state, torch.tensor([3, 1]))
        assert torch.allclose(some, torch.stack((whole[0, 3], whole[1, 1])), atol=1e-6)


@pytest.mark.parametrize("family", ["blip", "albef", "clip"])
def test_views_are_grids_ready_for_json(request, family, tokenizer, examples, broken, cpu):
    model = request.getfixturevalue(family)
    views = attention_view(model, tokenizer, [*examples[:2], broken], device=cpu)
    assert [view["id"] for view in views] == ["red", "green"]
    assert json.loads(json.dumps(views)) == views
    for view in views:
        grid = torch.tensor(view["image_attention"])
        assert grid.shape == (2, 2)
        assert 0 < float(grid.sum()) <= 1.0001
    if family == "clip":
        assert views[0]["words"] == views[0]["caption_attention"] == []
    else:
        assert "".join(word["token"] for word in views[0]["words"]).replace("##", "") == "aredsquare"
        mean = torch.tensor([word["attention"] for word in views[0]["words"]]).mean(0)
        assert torch.allclose(torch.tensor(views[0]["caption_attention"]), mean, atol=1e-4)


def test_the_first_patch_is_the_top_left_one(blip, tokenizer, examples, cpu):
    blip.eval()
    from limbeck.evaluation.inputs import TaskConfig, picture_batches

    ((_, pixels),) = picture_batches(examples[:1], 16, TaskConfig(), cpu)
    with torch.no_grad():
        state = blip.encode_image(pixels, capture=True).self_attention
    whole = (state.scale * state.query @ state.key.transpose(-1, -2)).softmax(-1).mean(1)[0, 0]
    (view,) = attention_view(blip, tokenizer, examples[:1], device=cpu)
    assert torch.allclose(torch.tensor(view["image_attention"]).flatten(), whole[1:], atol=1e-4)
