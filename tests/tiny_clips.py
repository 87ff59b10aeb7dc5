"""Tiny CLIPs as they are published: transformers' CLIPModel folders with CLIP's own kind of tokenizer."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
IMAGE_SIZE = 32
TEXTS = ("a red apple on the left of a blue cup", "two grey dogs run", "the man's 3 hats", "green square above circle")


def clip_tokenizer(texts: Iterable[str] = TEXTS) -> CLIPTokenizer:
    """Byte pairs learnt from texts in CLIP's order: bytes, bytes that end a word, merges, then START and END."""
    plain = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = plain.normalizer, plain.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    ends = [f"{letter}</w>" for letter in alphabet]
    words = dict.fromkeys([*alphabet, *ends, *("".join(merge) for merge in merges), START, END])
    return CLIPTokenizer({word: index for index, word in enumerate(words)}, merges, model_max_length=77)


def write_clip(folder: Path, *, legacy: bool, pad: str = END, seed: int = 0) -> CLIPModel:
    """A stirred CLIPModel in `folder` with its tokenizer.

    `legacy`: both as OpenAI's folders have them, with an `eos_token_id` of 2 and merges that are strings; else the
    true ids, and what transformers writes today.
    """
    tokenizer = clip_tokenizer()
    tokenizer.pad_token = pad
    size = len(tokenizer)
    ids = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": 1}
    tower = {"intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "hidden_act": "quick_gelu"}
    config = CLIPConfig(
        projection_dim=20,
        vision_config=tower | {"hidden_size": 32, "image_size": IMAGE_SIZE, "patch_size": 8},
        text_config=tower
        | {"hidden_size": 24, "vocab_size": size, "max_position_embeddings": 77}
        | (ids if not legacy else {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}),
    )
    torch.manual_seed(seed)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter += 0.15 * torch.randn_like(parameter)
    model.save_pretrained(folder)  # pyright: ignore
    tokenizer.save_pretrained(folder)
    if legacy:
        _as_openai(folder)
    return model


def _as_openai(folder: Path) -> None:
    """The tokenizer's files as they stood in 2021."""
    whole = json.loads((folder / "tokenizer.json").read_text())
    model = whole["model"]
    model["merges"] = [" ".join(merge) for merge in model["merges"]]
    whole["truncation"] = {"direction": "Right", "max_length": 77, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *model["merges"]]) + "\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "__type": "AddedToken"}
    special = {"unk_token": END, "bos_token": START, "eos_token": END}
    old = {name: {**token, "content": word} for name, word in special.items()}
    old |= {"pad_token": settings["pad_token"], "add_prefix_space": False, "errors": "replace", "do_lower_case": True}
    old |= {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "name_or_path": "./clip_ViT_B_32/"}
    (folder / "tokenizer_config.json").write_text(json.dumps(old))
