"""Recipes of `doctor_recipes` as objects, and the folders of language models that they take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from doctor_recipes import recipe_of
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from limbeck.assemble.ctvlm import build_dialogues, build_method, build_models, open_sources
from limbeck.assemble.writers import open_tokenizer
from limbeck.data.dialogue_set import Dialogues
from limbeck.methods.ctvlm import CTVLM
from limbeck.recipe import CTVLMRecipe


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> PreTrainedTokenizerFast:
    """The recipe's own."""
    recipe = recipe_of(tmp_path_factory.mktemp("tokenizer"))
    return open_tokenizer(recipe.tokenizer, Path(recipe.data.root), open_sources(recipe).values())


@pytest.fixture(scope="session")
def language_model(tmp_path_factory, tokenizer) -> Callable[..., str]:
    """Save a language model with the recipe's tokenizer, after `change` was made to it. Returns its folder."""

    def made(change: Callable[[nn.Module], object], layers: int = 2, rows: int = 0, **values: Any) -> str:
        config = AutoConfig.for_model(
            "llama",
            vocab_size=rows or len(tokenizer) - 1,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=192,
            **values,
        )
        folder = tmp_path_factory.mktemp("language_model")
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            change(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return made


Built = tuple[CTVLMRecipe, PreTrainedTokenizerFast, CTVLM, dict[str, Dialogues]]


@pytest.fixture
def build(tmp_path) -> Callable[..., Built]:
    """The recipe with changes, and its tokenizer, method and training sets."""

    def made(changes: dict[str, Any] | None = None) -> Built:
        recipe = recipe_of(tmp_path, changes)
        sources = open_sources(recipe)
        tokenizer = open_tokenizer(recipe.tokenizer, Path(recipe.data.root), sources.values())
        duet = build_models(recipe, tokenizer)
        method = build_method(recipe, duet, tokenizer)
        return recipe, tokenizer, method, build_dialogues(recipe, sources, tokenizer, duet)

    return made
