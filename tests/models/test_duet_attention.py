"""However a duet is made, all its parts attend by the same implementation, and its language models look back only."""

import pytest
import torch
from tiny_duets import EOS, IMAGE, PAD, duet, eye_config, text_config
from transformers import PreTrainedModel

from limbeck.models.duet import Duet
from limbeck.models.duet_build import build_duet


def built():
    return build_duet(
        eye_config(),
        text_config("opt", word_embed_proj_dim=24),
        text_config("llama", width=32),
        tokenizer_length=IMAGE,
        image_token_id=IMAGE,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=EOS,
    )


def loaded(folder):
    duet().save_pretrained(folder)
    return Duet.from_pretrained(folder)


@pytest.mark.parametrize("origin", ["made", "built", "loaded"])
def test_no_part_lacks_an_attention_implementation(origin, tmp_path):
    model = {"made": duet, "built": built, "loaded": lambda: loaded(tmp_path)}[origin]()
    parts = {name: part for name, part in model.named_modules() if isinstance(part, PreTrainedModel)}
    assert {part.config._attn_implementation for part in parts.values()} == {"sdpa"}, parts.keys()


def test_a_built_duets_models_never_look_ahead():
    model = built()
    ids = torch.tensor([[1, 5, 6, 7, 8, 9]])
    other = torch.tensor([[1, 5, 6, 7, 30, 9]])
    mask = torch.ones_like(ids)
    with torch.no_grad():
        for read in (model.tiny.read, lambda ids, mask: model.large_hidden(model.large_embeddings(ids), mask)):
            first, second = read(ids, mask), read(other, mask)
            torch.testing.assert_close(first[:, :4], second[:, :4])
            assert not torch.allclose(first[:, 4], second[:, 4])
