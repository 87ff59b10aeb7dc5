"""Sources of conversations: LLaVA's JSON, messages, examples; what is broken, unrolled, drawn and set aside."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from limbeck.data.conversation_sources import ConversationSourceConfig, load_conversations
from limbeck.data.conversations import Conversation, ConversationSource, Turn
from limbeck.data.example_conversations import BRIEF, SHORT_ANSWER, most_given
from limbeck.data.examples import DataError, Question

Load = Callable[..., ConversationSource]


@pytest.fixture
def load(tmp_path) -> Load:
    """Load sections of a recipe from a folder with the empty pictures a.jpg, b.jpg and deep/c.jpg."""
    (tmp_path / "deep").mkdir()
    for name in ("a.jpg", "b.jpg", "deep/c.jpg"):
        (tmp_path / name).touch()
    adapter = TypeAdapter(ConversationSourceConfig)
    return lambda *sections: load_conversations([adapter.validate_python(each) for each in sections], tmp_path)


def write(folder: Path, name: str, records: list[Any]) -> str:
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    whole = json.dumps(records, indent=1, ensure_ascii=False)
    (folder / name).write_text(lines if name.endswith("l") else whole, "utf-8")
    return name


def said(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def plain(conversation: Conversation) -> tuple[str | None, list[str]]:
    """The picture's name and what is said."""
    name = Path(conversation.image.key).name if conversation.image else None
    return name, [turn.text for turn in conversation.turns]


GOOD = [
    {"id": 7, "image": "a.jpg", "conversations": said("<image>\nWho is ünder it?", "A déjà-vu 猫.")},
    {"id": "7", "image": "deep/c.jpg", "conversations": said("Where?\n<image>", "Here.", " And now? ", "There. ")},
    {"id": "t", "conversations": said("Hello", "Hi")},
]


@pytest.mark.parametrize("name", ["mix.json", "mix.jsonl"])
def test_llavas_records(load, tmp_path, name):
    write(tmp_path, name, GOOD)
    source = load({"source": "llava", "path": name, "images": "."})
    assert [plain(each) for each in source.conversations[:]] == [
        ("a.jpg", ["Who is ünder it?", "A déjà-vu 猫."]),
        ("c.jpg", ["Where?", "Here.", "And now?", "There."]),
        (None, ["Hello", "Hi"]),
    ]
    assert source.conversations[-1].turns == (Turn("user", "Hello"), Turn("assistant", "Hi"))
    assert len({each.id for each in source.conversations[:]}) == 3, "records may share an id, conversations do not"
    assert not source.skipped
    assert not source.set_aside
    with pytest.raises(IndexError):
        source.conversations[3]


def test_unrolled_conversations_follow_the_whole_ones(load, tmp_path):
    system = {"from": "system", "value": "Be kind."}
    records = [GOOD[0], {**GOOD[1], "conversations": [system, *GOOD[1]["conversations"]]}]
    section = {"source": "llava", "path": write(tmp_path, "mix.json", records), "images": "."}
    single = [
        ("a.jpg", ["Who is ünder it?", "A déjà-vu 猫."]),
        ("c.jpg", ["Be kind.", "Where?", "Here."]),
        ("c.jpg", ["Be kind.", "And now?", "There."]),
    ]
    assert [plain(each) for each in load({**section, "turns": "single"}).conversations[:]] == single
    both = load({**section, "turns": "both"})
    assert [plain(each) for each in both.conversations[2:]] == single
    assert plain(both.conversations[1]) == ("c.jpg", ["Be kind.", "Where?", "Here.", "And now?", "There."])
    assert len({each.id for each in both.conversations[:]}) == 5


def test_what_is_broken_is_listed_with_its_reason(load, tmp_path):
    records = [
        *GOOD,
        {"image": "gone.jpg", "conversations": said("<image>\nWho?", "Me.")},
        {"conversations": said("<image>\nWho?", "Me.")},
        {"image": "a.jpg", "conversations": said("<image>\nWho?", " ")},
        {"image": "a.jpg", "conversations": said("<image>\nWho?")},
        {"image": "a.jpg", "conversations": said("<image>\nWho?", "Me.")[::-1]},
        {"image": "a.jpg", "conversations": said("<image><image>\nWho?", "Me.")},
        {"image": "a.jpg", "conversations": said("Who?", "Me.", "<image> And?", "You.")},
        {"image": ["a.jpg", "b.jpg"], "conversations": said("<image>\nWho?", "Me.")},
        {"image": "a.jpg", "conversations": [{"from": "bing", "value": "hm"}]},
        {"image": "a.jpg", "conversations": []},
        {"image": "a.jpg"},
        17,
    ]
    section = {"source": "llava", "path": write(tmp_path, "mix.json", records), "images": "."}
    source = load({**section, "max_skipped": 1.0})
    assert len(source.conversations) == 3
    assert [entry.id for entry in source.skipped] == [f"mix.json[{number}]" for number in range(3, 15)]
    for entry, reason in zip(
        source.skipped,
        (
            "no picture .*gone.jpg",
            "turn 1 has <image>, and the record no picture",
            "turn 2: the answer is empty",
            "turn 1 is the user's and has no answer",
            "turn 1 is the user's and has no answer",
            "2 times <image>; it may have one picture",
            "<image> in turn 3; the picture belongs in the user's first one",
            "field 'image': wanted a text, found a list",
            "wanted one of human, gpt, system, found 'bing'",
            "nothing is said in it",
            "no field 'conversations'; it has image",
            "wanted an object, found a number 17",
        ),
        strict=True,
    ):
        assert re.search(reason, entry.reason), entry
    with pytest.raises(DataError, match=r"12 of 15 records are broken(.|\n)*gone\.jpg"):
        load(section)


def test_llavas_answers_in_front_and_questions_at_the_end_are_cut(load, tmp_path):
    system, greeting = {"from": "system", "value": "Be kind."}, {"from": "gpt", "value": "Hello!"}
    asked, more = said("<image>\nWho?", "Me."), {"from": "human", "value": "And then?"}
    records = [
        {"image": "a.jpg", "conversations": turns}
        for turns in (
            [greeting, *asked],
            [*asked, more],
            [system, greeting, *asked, more],
            [greeting, greeting, *asked],
            [*asked[::-1], *asked],
            [greeting, more],
            [*said("Who?", "Me."), {"from": "human", "value": "<image>\nAnd?"}],
        )
    ]
    section = {"source": "llava", "path": write(tmp_path, "mix.json", records), "images": ".", "max_skipped": 1.0}
    source = load({**section, "turns": "both"})
    assert [plain(each)[1] for each in source.conversations[:3]] == [
        ["Who?", "Me."],
        ["Who?", "Me."],
        ["Be kind.", "Who?", "Me."],
    ]
    assert [plain(each)[1] for each in source.conversations[3:]] == [
        plain(each)[1] for each in source.conversations[:3]
    ]
    assert [(entry.id, entry.reason) for entry in source.skipped] == [
        ("mix.json[3]", "turn 1 is the assistant's, wanted the user's"),
        ("mix.json[4]", "2 times <image>; it may have one picture"),
        ("mix.json[5]", "nothing is said in it"),
        ("mix.json[6]", "<image> in turn 3; the picture belongs in the user's first one"),
    ]


def test_records_without_a_picture_are_set_aside_whatever_they_say(load, tmp_path):
    records = [
        GOOD[0],
        {"conversations": said("Hi")},
        {"conversations": said("Hi", "Ho", "Hm")[1:]},
        {"conversations": [{"from": "bing", "value": "hm"}]},
        {"image": None, "conversations": []},
    ]
    section = {"source": "llava", "path": write(tmp_path, "mix.json", records), "images": ".", "text_only": "skip"}
    source = load(section)
    assert (len(source.conversations), source.skipped) == (1, ())
    assert [entry.id for entry in source.set_aside] == [f"mix.json[{number}]" for number in range(1, 5)]

    part = {"type": "image"}
    records = [
        {
            "messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "Me."}],
            "images": ["a.jpg"],
        },
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"messages": [{"role": "tool", "content": 5}, 3], "images": []},
        {"messages": "hm"},
        {"messages": [{"role": "user", "content": [part, part]}]},
        17,
    ]
    write(tmp_path, "chat.json", records)
    source = load({"source": "messages", "path": "chat.json", "text_only": "skip", "max_skipped": 1.0})
    assert len(source.conversations) == 1
    assert [entry.id for entry in source.set_aside] == [f"chat.json[{number}]" for number in range(1, 4)]
    assert [entry.id for entry in source.skipped] == ["chat.json[4]", "chat.json[5]"]


def test_records_without_a_picture_are_kept_or_set_aside(load, tmp_path):
    section = {"source": "llava", "path": write(tmp_path, "mix.jsonl", GOOD), "images": ".", "text_only": "skip"}
    source = load(section)
    assert len(source.conversations) == 2
    assert not source.skipped, "it is not broken"
    assert [str(entry) for entry in source.set_aside] == ["mix.jsonl:3: no picture, and text_only is skip"]
    assert len(load({**section, "limit": 1}).conversations) == 1
    write(tmp_path, "mix.jsonl", GOOD[2:])
    with pytest.raises(DataError, match="no record in it but 1 without a picture"):
        load(section)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mix.json", '{"a": 1}', "wanted a list of records, found dict; one a line is for .jsonl"),
        ("mix.json", '[{"conversations": []}, {"con', r"mix\.json:1:\d+: not JSON"),
        ("mix.json", '[{"conversations": []} {}]', r"mix\.json:1:\d+: not JSON"),
        ("mix.json", "[]", "no record in it"),
        ("mix.json", "", r"mix\.json:1:1: not JSON"),
        ("mix.jsonl", "{torn\n", r"1 of 1 records are broken(.|\n)*mix\.jsonl:1: not JSON"),
    ],
)
def test_a_file_that_is_no_list_of_records_is_an_error(load, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load({"source": "llava", "path": name, "images": "."})


def test_messages_as_texts_and_as_parts(load, tmp_path):
    reply = {"role": "assistant", "content": "Me."}
    text, image = {"type": "text", "text": "Who?"}, {"type": "image"}
    records = [
        {"messages": [{"role": "user", "content": "<image>\nWho?"}, reply], "images": ["a.jpg"]},
        {"messages": [{"role": "user", "content": [image, text]}, reply], "images": [{"path": "a.jpg"}]},
        {"messages": [{"role": "user", "content": [text, {"type": "image", "image": "a.jpg"}]}, reply]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.jpg"}}, text]},
                {"role": "assistant", "content": [{"type": "text", "text": "Me."}]},
            ]
        },
        {"messages": [{"role": "system", "content": "Short."}, {"role": "user", "content": "Hi"}, reply], "images": []},
    ]
    write(tmp_path, "chat.jsonl", records)
    source = load({"source": "messages", "path": "chat.jsonl"})
    assert [plain(each) for each in source.conversations[:4]] == [("a.jpg", ["Who?", "Me."])] * 4
    assert plain(source.conversations[4]) == (None, ["Short.", "Hi", "Me."])


def test_messages_that_are_broken(load, tmp_path):
    reply = {"role": "assistant", "content": "Me."}

    def asking(content, **fields):
        return {"messages": [{"role": "user", "content": content}, reply], **fields}

    web = [{"type": "image_url", "image_url": {"url": "https://example.org/a.jpg"}}]
    reasons = {
        "2 pictures; it may have one": asking("Who?", images=["a.jpg", "b.jpg"]),
        "wanted the path of a file, found the address 'https://example.org/a.jpg'": asking(web),
        "a part of type 'video'; wanted text, image or image_url": asking([{"type": "video"}]),
        "wanted one of system, user, assistant, found 'tool'": {"messages": [{"role": "tool", "content": "x"}]},
        "turn 1 has <image>, and the record no picture": asking([{"type": "image"}]),
        "its parts name the pictures ['a.jpg'], the field 'images' ['b.jpg']": asking(
            [{"type": "image", "path": "a.jpg"}], images=["b.jpg"]
        ),
        "no field 'messages'": {"prompt": "Who?"},
        "wanted the path of a file, found a number 3": asking("Who?", images=[3]),
    }
    write(tmp_path, "chat.jsonl", [asking("Who?"), *reasons.values()])
    source = load({"source": "messages", "path": "chat.jsonl", "max_skipped": 1.0})
    assert len(source.conversations) == 1
    assert len(source.skipped) == len(reasons)
    for reason, entry in zip(reasons, source.skipped, strict=True):
        assert reason in entry.reason


@pytest.fixture
def examples(tmp_path) -> dict[str, Any]:
    """A section of a source with two pictures, the second without captions."""
    asked = [{"question": "How many?", "answers": ["2", "3", "3 ", "2", "3"]}, {"question": "Dog?", "answers": ["yes"]}]
    records = [
        {"id": "x", "image": "a.jpg", "captions": ["a dog", "two dogs"], "questions": asked},
        {"id": "y", "image": "b.jpg", "question": "Cat?", "answer": "no"},
    ]
    return {"source": "jsonl", "path": write(tmp_path, "pairs.jsonl", records)}


def test_captions_one_or_all(load, examples):
    one, every = (load({"source": "captions", "of": examples, "draw": draw}) for draw in ("one", "all"))
    for source in (one, every):
        assert [each.turns[1].text for each in source.conversations[:]] == ["a dog", "two dogs"]
        assert all(each.turns[0].text in BRIEF and each.image for each in source.conversations)
        assert [each.id for each in source.conversations] == ["x@0", "x@1"]
    assert one.groups is not None
    assert one.groups.tolist() == [0, 2]
    assert every.groups is None
    fixed = load({"source": "captions", "of": examples, "requests": ["Say."]})
    assert plain(fixed.conversations[1]) == ("a.jpg", ["Say.", "two dogs"])


def test_questions_as_single_instructions(load, examples):
    source = load({"source": "instructions", "of": examples})
    assert [plain(each) for each in source.conversations[:]] == [
        ("a.jpg", ["How many?" + SHORT_ANSWER, "3"]),
        ("a.jpg", ["Dog?" + SHORT_ANSWER, "yes"]),
        ("b.jpg", ["Cat?" + SHORT_ANSWER, "no"]),
    ]
    described = load({"source": "instructions", "of": examples, "describe": True, "short_answer": ""})
    assert [each.turns[1].text for each in described.conversations[:]] == ["3", "yes", "a dog", "two dogs", "no"]
    assert described.groups is not None
    assert described.groups.tolist() == [0, 1, 2, 4, 5], "of the two captions an epoch draws one"


def test_dialogues_ask_everything_about_one_picture(load, examples):
    source = load({"source": "dialogue", "of": examples})
    first, second = source.conversations[:]
    assert first.turns[0].text in BRIEF
    assert first.turns[1].text in ("a dog", "two dogs")
    assert dict(first.exchanges[1:]).keys() in (
        {"How many?" + SHORT_ANSWER, "Dog?"},
        {"How many?", "Dog?" + SHORT_ANSWER},
    )
    assert second.exchanges == [("Cat?" + SHORT_ANSWER, "no")]
    assert source.conversations[0] == first, "the same each time"
    short = load({"source": "dialogue", "of": examples, "exchanges": 1, "describe": False}).conversations[0]
    assert len(short.exchanges) == 1
    assert short.exchanges[0][0].endswith(SHORT_ANSWER)
    whole = load({"source": "dialogue", "of": examples, "describe": "all"}).conversations[0]
    assert whole.exchanges[0][1] in ("a dog. two dogs", "two dogs. a dog")
    assert whole.exchanges[1:] == first.exchanges[1:]


def test_captions_of_one_description_are_sentences(load, tmp_path):
    """As Flickr8k writes them, and one that says nothing."""
    captions = ["A dog runs .", " ", "A dog"]
    (tmp_path / "p.jsonl").write_text(json.dumps({"image": "a.jpg", "captions": captions}) + "\n")
    of = {"source": "jsonl", "path": "p.jsonl"}
    told = {
        kind: load({"source": "dialogue", "of": of, "describe": kind}).conversations[0].exchanges[0][1]
        for kind in ("all", True)
    }
    assert told["all"] in ("A dog runs. A dog", "A dog. A dog runs")
    assert told[True] in ("A dog runs .", "A dog")


def test_the_built_in_scenes_make_all_three_kinds(load):
    of = {"source": "builtin:scenes", "count": 20, "questions": 3, "size": 32}
    sizes = {kind: len(load({"source": kind, "of": of}).conversations) for kind in ("captions", "dialogue")}
    assert sizes == {"captions": 100, "dialogue": 20}
    instructions = load({"source": "instructions", "of": of}).conversations
    assert 50 < len(instructions) <= 60
    assert instructions[0].image is not None
    assert instructions[0].image.open().size == (32, 32)


def test_several_sources_are_one(load, tmp_path, examples):
    write(tmp_path, "mix.json", GOOD)
    llava = {"source": "llava", "path": "mix.json", "images": ".", "text_only": "skip"}
    captions = {"source": "captions", "of": examples}
    joined = load(llava, captions, captions)
    assert [each.turns[-1].text for each in joined.conversations[:]] == [
        *("A déjà-vu 猫.", "There."),
        *("a dog", "two dogs"),
        *("a dog", "two dogs"),
    ]
    assert joined.groups is not None
    assert joined.groups.tolist() == [0, 1, 2, 4, 6]
    assert len(joined.set_aside) == 1
    assert load(llava, llava).groups is None


def test_the_answer_that_most_people_gave():
    assert most_given(Question("q", "?", ("no", "yes", " yes"))) == "yes"
    assert most_given(Question("q", "?", ("no", "yes"))) == "no", "the first of those that are even"
    assert most_given(Question("q", "?", ())) is None
    assert most_given(Question("q", "?", (" ",))) is None


def test_unanswered_questions_make_no_conversation(load, tmp_path):
    write(tmp_path, "pairs.jsonl", [{"image": "a.jpg", "question": "Who?", "answer": " "}])
    with pytest.raises(DataError, match="its 1 examples have no answered questions"):
        load({"source": "instructions", "of": {"source": "jsonl", "path": "pairs.jsonl"}})


def test_an_unknown_key_or_kind_is_refused(load):
    with pytest.raises(ValidationError, match="does not match any of the expected tags"):
        load({"source": "alpaca", "path": "a.json"})
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        load({"source": "llava", "path": "a.json", "images": ".", "image": "."})


def test_llava_records_without_their_pictures_are_all_listed(real_data, load):
    path = real_data / "llava_instruct" / "llava_v1_5_mix1k.jsonl"
    with pytest.raises(DataError, match=r"1000 of 1000 records are broken(.|\n)*no picture .*gqa/images/17\.jpg"):
        load({"source": "llava", "path": str(path), "images": "."})
