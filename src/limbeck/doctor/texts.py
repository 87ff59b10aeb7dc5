"""Tokens: both language models and the recipe speak of the same ones, and what is learned is what will be asked for."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from limbeck.assemble.writers import compare_tokenizer
from limbeck.data.answer_spans import Encoded, Unfit, widened
from limbeck.data.chat import Chat, ChatConfig
from limbeck.data.conversations import Conversation, ConversationSource
from limbeck.data.dataset import normalize
from limbeck.data.decoder_tokenizer import DecoderIds
from limbeck.data.dialogue_set import Dialogues, padded_to_square
from limbeck.data.examples import BrokenImage
from limbeck.data.transform import transform
from limbeck.doctor.finding import Finding
from limbeck.models.duet import Duet
from limbeck.models.duet_processor import make_processor
from limbeck.recipe import RecipeError

LOOKED_AT = 64
"""Conversations at a time, among which one is chosen to be shown."""
UNLIKE = 0.1
"""Mean difference of a picture's normalised values past which two ways of preparing it are not the same."""


def check_tokenizer(tokenizer: PreTrainedTokenizerFast, large: str | None) -> Finding:
    """`large` is the large model's folder, None for a new model, which takes the recipe's tokenizer."""
    ids, without = DecoderIds.of(tokenizer), []
    if large is not None:
        try:
            if not compare_tokenizer("duet.large", large, tokenizer):
                without.append(f"the large model's folder {large} has no tokenizer.json, so nobody can compare it")
        except RecipeError as error:
            return Finding("tokenizer", "failed", str(error))
        except (OSError, ValueError) as error:
            without.append(f"the large model's tokenizer cannot be compared: {error}")
    image = f"<image> is token {ids.image}, padding {ids.pad}, end {ids.eos}, beginning {ids.bos}"
    figures = {"tokens": len(tokenizer), "image": ids.image, "pad": ids.pad, "eos": ids.eos, "bos": ids.bos}
    if ids.pad == ids.eos:
        without.append("padding and end of sequence are one token")
    text = "; ".join([f"{len(tokenizer):,} tokens, {image}", *without])
    return Finding("tokenizer", "warning" if without else "ok", text, figures)


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, duet: Duet) -> Finding:
    """Every token but the image's has a row in both tables and both heads; rows past them are padding."""
    image = DecoderIds.of(tokenizer).image
    needed = len(tokenizer) - (image == len(tokenizer) - 1)
    rows = {
        "tiny table and head": len(duet.tiny.head_weight),
        "large table": len(duet.get_input_embeddings().weight),  # pyright: ignore[reportArgumentType]
        "large head": len(duet.large_head_weight),
    }
    short = [f"the {name} has {count:,} rows" for name, count in rows.items() if count < needed]
    if short:
        return Finding("vocabulary", "failed", f"{needed:,} tokens need a row each, but {', '.join(short)}", rows)
    padded = {name: count - needed for name, count in rows.items()}
    said = [f"{name} {count:,} rows, {padded[name]:,} of them padding" for name, count in rows.items()]
    if len(set(rows.values())) == 1:
        said = [said[0].replace("tiny table and head", "tables and heads:")]
    return Finding("vocabulary", "ok", "; ".join(said), {"needed": needed, "rows": rows, "padded": padded})


def example_for(chat: Chat, source: ConversationSource) -> Conversation | None:
    """A conversation about a picture, the one with most exchanges of the first few that fit the template."""
    for start in range(0, len(source.conversations), LOOKED_AT):
        few = [each for each in source.conversations[start : start + LOOKED_AT] if each.image is not None]
        written = zip(few, chat.encode(few), strict=True)
        fitting = [conversation for conversation, encoded in written if not isinstance(encoded, Unfit)]
        if fitting:
            return max(fitting, key=lambda conversation: len(conversation.exchanges))
    return None


def check_template(
    config: ChatConfig, tokenizer: PreTrainedTokenizerFast, source: ConversationSource, stages: Sequence[str]
) -> Finding:
    """What is supervised is the answers and their stop tokens, and generation prompts are what stands before them."""
    check = f"template {config.template}"
    chat = Chat(tokenizer, config)
    conversation = example_for(chat, source)
    if conversation is None:
        return Finding(check, "failed", f"{source.name}: no conversation about a picture fits this template")
    [encoded] = chat.encode([conversation])
    assert isinstance(encoded, Encoded)
    runs = spans(encoded.supervised)
    wrong = _wrong_answers(chat, conversation, encoded, runs) or _wrong_prompts(chat, conversation, encoded, runs)
    first, end = runs[-1]
    before = _decoded(chat, encoded.ids[max(0, first - 6) : first].tolist())
    said = _decoded(chat, encoded.ids[first:end].tolist())
    figures = {
        "stages": list(stages),
        "text": chat.text(conversation),
        "supervised": [_decoded(chat, encoded.ids[first:end].tolist()) for first, end in runs],
        "supervised_tokens": int(encoded.supervised.sum()),
        "tokens": len(encoded.ids),
    }
    if wrong:
        return Finding(check, "failed", wrong, figures)
    text = (
        f"{', '.join(stages)}: after {before!r} comes {said!r}; {figures['supervised_tokens']} of {len(encoded.ids)} "
        "tokens are supervised; generation prompts agree"
    )
    return Finding(check, "ok", text, figures)


def check_picture(duet: Duet, chat: Chat, dataset: Dialogues) -> Finding:
    """Config, processor and eye agree on a picture's tokens, and training prepares it as the processor does."""
    check, conversation = "image tokens", example_for(chat, dataset.source)
    assert conversation is not None
    assert conversation.image is not None
    wanted = duet.config.tiny_part.image_tokens
    try:
        image = conversation.image.open()
    except BrokenImage as error:
        return Finding(check, "warning", f"nothing could be tried: {error}")
    square, by = dataset.config.pad_to_square, dataset.normalization
    processor = make_processor(
        duet.config,
        copy.deepcopy(chat.tokenizer),
        chat.jinja,
        pad_to_square=square,
        image_mean=by.mean,
        image_std=by.std,
    )
    prompt = prompt_of(chat, conversation, 0)
    inputs = processor(images=[image], text=[prompt], return_tensors="pt")  # pyright: ignore[reportCallIssue]
    [ids] = inputs["input_ids"].tolist()
    found = ids.count(duet.config.image_token_id)
    with torch.no_grad():
        seen = duet.tiny.patches(inputs["pixel_values"].to(duet.tiny.table.weight.device)).shape[1]
    figures = {"config": wanted, "processor": found, "eye": seen}
    if len({wanted, found, seen}) > 1:
        return Finding(
            check,
            "failed",
            f"the models' config makes {wanted} tokens of a picture, the processor {found}, the eye {seen}",
            figures,
        )
    [encoded] = chat.encode([conversation])
    assert isinstance(encoded, Encoded)
    first = spans(encoded.supervised)[0][0]
    trained, _ = widened(encoded.ids[:first], encoded.supervised[:first], chat.ids.image, wanted)
    if trained.tolist() != ids:
        return Finding(check, "failed", f"the processor's prompt {_difference(chat, trained.tolist(), ids)}", figures)
    prepared = transform(padded_to_square(image, by.border) if square else image, dataset.transform, random.Random(0))
    prepared = normalize(torch.from_numpy(prepared)[None], by)
    distance = float((prepared - inputs["pixel_values"]).abs().mean())
    text = f"{wanted} in config, processor and eye; training's picture and the processor's differ by {distance:.3f}"
    return Finding(check, "ok" if distance <= UNLIKE else "warning", text, figures | {"difference": distance})


def spans(supervised: np.ndarray) -> list[tuple[int, int]]:
    """Where each run of supervised tokens begins and ends."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], supervised, [False]]).astype(np.int8)))
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]


def prompt_of(chat: Chat, conversation: Conversation, number: int) -> str:
    """The generation prompt before the answer `number`, as the tokenizer's chat template writes it."""
    said: list[dict[str, Any]] = []
    if conversation.system is not None:
        said.append({"role": "system", "content": conversation.system})
    for place, (question, answer) in enumerate(conversation.exchanges[: number + 1]):
        content: list[dict[str, str]] = [{"type": "text", "text": question}]
        if place == 0 and conversation.image is not None:
            content.insert(0, {"type": "image"})
        said.append({"role": "user", "content": content})
        said.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    written = chat.tokenizer.apply_chat_template(
        said[:-1], chat_template=chat.jinja, add_generation_prompt=True, tokenize=False
    )
    assert isinstance(written, str)
    return written


def _wrong_answers(chat: Chat, conversation: Conversation, encoded: Encoded, runs: list[tuple[int, int]]) -> str | None:
    """What is wrong with the supervised tokens, None where they are the answers."""
    answers = [answer for _, answer in conversation.exchanges]
    if len(runs) != len(answers):
        return f"{conversation.id}: {len(runs)} spans are supervised, but there are {len(answers)} answers"
    for (first, end), answer in zip(runs, answers, strict=True):
        said = _decoded(chat, encoded.ids[first : end - 1].tolist())
        if encoded.ids[end - 1] != chat.stop_id:
            return f"{conversation.id}: the supervised {said!r} does not end with the stop token"
        if said.split() != _decoded(chat, chat.tokenizer(answer).input_ids).split():
            return f"{conversation.id}: {said!r} is supervised where the answer is {answer!r}"
    return None


def _wrong_prompts(chat: Chat, conversation: Conversation, encoded: Encoded, runs: list[tuple[int, int]]) -> str | None:
    """How the first prompt differs from what is trained on, None where all are the same."""
    for number, (first, _) in enumerate(runs):
        trained = encoded.ids[:first].tolist()
        asked = chat.tokenizer(prompt_of(chat, conversation, number), add_special_tokens=False).input_ids
        if asked != trained:
            return f"{conversation.id}: apply_chat_template's prompt {_difference(chat, trained, asked)}"
    return None


def _difference(chat: Chat, trained: list[int], asked: list[int]) -> str:
    """Where two token sequences part, in words."""
    pairs = zip(trained, asked, strict=False)
    place = next((place for place, (own, other) in enumerate(pairs) if own != other), min(len(trained), len(asked)))
    found, wanted = (repr(_decoded(chat, ids[place : place + 4])) for ids in (asked, trained))
    return f"goes on with {found} at token {place}, where training has {wanted}"


def _decoded(chat: Chat, ids: Sequence[int]) -> str:
    text = chat.tokenizer.decode(list(ids))
    assert isinstance(text, str)
    return text
