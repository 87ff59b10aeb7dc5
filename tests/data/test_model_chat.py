"""A model's own chat template: which tokens are the answers', and templates that do not say it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from limbeck.data.answer_spans import Encoded, Unfit
from limbeck.data.chat import Chat, ChatConfig
from limbeck.data.conversations import Conversation, Turn
from limbeck.data.examples import DataError, MadeImage
from limbeck.data.model_chat import ModelChat

sys.path.append(str(Path(__file__).parents[1] / "models"))
from tiny_vlms import KINDS, picture, vlm

STOPS = {
    "llava": "</s>",
    "qwen2_vl": "<|im_end|>",
    "qwen3_vl": "<|im_end|>",
    "smolvlm": "<end_of_utterance>",
    "internvl": "<|im_end|>",
}


def made(id: str, *texts: str, image: bool = True, system: str = "") -> Conversation:
    """A conversation in which user and assistant say the texts by turns."""
    turns = [Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)]
    shown = MadeImage(id, picture) if image else None
    return Conversation(id, shown, tuple(([Turn("system", system)] if system else []) + turns))


def chat_with(template: str, kind: str = "qwen2_vl") -> ModelChat:
    _, processor = vlm(kind)
    processor.chat_template = processor.tokenizer.chat_template = template
    return ModelChat(processor)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_stop_tokens_are_supervised(kind):
    _, processor = vlm(kind)
    chat = ModelChat(processor)
    talk = made("a", "Is there a dog?", "Yes, a brown dog.", "How many cats?", "Two.")
    blind = made("b", "Hi", "Ho", image=False, system="Be brief.")
    encoded, other = chat.encode([talk, blind])
    assert isinstance(encoded, Encoded)
    assert isinstance(other, Encoded)
    stop = STOPS[kind]
    said = processor.tokenizer.decode(encoded.ids[encoded.supervised])
    assert [part.strip() for part in said.split(stop)] == ["Yes, a brown dog.", "Two.", ""]
    assert processor.tokenizer.decode(other.ids[other.supervised]).strip() == f"Ho{stop}"
    assert (encoded.ids == chat.ids.image).sum() == 1
    assert (other.ids == chat.ids.image).sum() == 0
    assert encoded.ids[encoded.ends - 1].tolist() == [chat.stop_id] * 2
    assert processor.tokenizer.decode(encoded.ids) == chat.text(talk)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_what_the_model_is_asked_with(kind):
    """Generation sees the same tokens before an answer as training."""
    _, processor = vlm(kind)
    [encoded] = ModelChat(processor).encode([made("a", "Is there a dog?", "Yes.")])
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a dog?"}]}
    prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
    ids = processor.tokenizer(prompt, add_special_tokens=False).input_ids
    assert encoded.ids[: int(np.flatnonzero(encoded.supervised)[0])].tolist() == ids


def test_limbecks_template_is_the_same_either_way():
    _, processor = vlm("llava")
    talk = [made("a", "Is there a dog?", "Yes.", "Where?", "Here."), made("b", "Hi", "Ho", image=False)]
    ours, theirs = Chat(processor.tokenizer, ChatConfig()), ModelChat(processor)
    assert ours.stop_id == theirs.stop_id
    for one, other in zip(ours.encode(talk), theirs.encode(talk), strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert one.supervised.tolist() == other.supervised.tolist()
        assert one.ends.tolist() == other.ends.tolist()


def test_what_cannot_be_written_is_named():
    _, processor = vlm("qwen2_vl")
    chat = ModelChat(processor)
    silent, control, unanswered = chat.encode(
        [made("a", "Who?", " "), made("b", "Who?", "end<|im_end|>"), made("c", "Who?")]
    )
    assert str(silent) == "turn 2: the answer is empty"
    assert str(control) == "its text contains the special token <|im_end|>"
    assert str(unanswered) == "turn 1 is the user's and has no answer"
    with pytest.raises(Unfit, match="no answer"):
        chat.text(made("c", "Who?"))


def test_a_template_without_a_stop_token_is_refused():
    """As LLaVA-1.5's converted folders have it."""
    template = (
        "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for part in message['content'] %}"
        "{{ '<|image_pad|>' if part['type'] == 'image' else part['text'] + ' ' }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    with pytest.raises(DataError, match=r"Qwen2: .*not a special token to stop at.*limbeck's own \(chat.template\)"):
        chat_with(template)


def test_a_generation_prompt_that_training_never_sees_is_refused():
    """As models that think first have it."""
    _, processor = vlm("qwen2_vl")
    with pytest.raises(DataError, match="writes a generation prompt that its whole text does not hold"):
        chat_with(processor.chat_template.replace("assistant\n{% endif", "assistant\n<think>{% endif"))


def test_a_template_that_changes_answers_or_leaves_out_the_picture_is_refused():
    _, processor = vlm("qwen2_vl")
    with pytest.raises(DataError, match="in place of the answer 'Yes'"):
        chat_with(processor.chat_template.replace("{{ part['text'] }}", "{{ part['text'] | reverse }}"))
    with pytest.raises(DataError, match="writes 0 places for 1 pictures"):
        chat_with(processor.chat_template.replace("<|image_pad|>", ""))


def test_a_processor_without_a_template_is_refused():
    _, processor = vlm("llava")
    processor.chat_template = processor.tokenizer.chat_template = None
    with pytest.raises(DataError, match="LlavaProcessor has no chat template"):
        ModelChat(processor)
