"""Scenes as teachers of roles: every question answered exactly, every score earned, every prompt the competition's."""

import random
import re
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from limbeck.competition.prompts import PromptsConfig, load_prompts
from limbeck.competition.replies import Rejected, instruction, scores
from limbeck.data.conversation_sources import load_conversations
from limbeck.data.examples import DataError
from limbeck.data.scene_grades import BEST, NONE, PARTLY, REWORDED, WRONG, draw_answer, grade
from limbeck.data.scene_questions import PHRASINGS, ROLE_KINDS, Asked, all_questions
from limbeck.data.scene_roles import SceneInstructionsConfig, SceneRolesConfig, SharesConfig, kind_of, scored
from limbeck.data.scenes import Scenes, ScenesConfig

VOCABULARY = 48


def scenes(count=60, split="train") -> ScenesConfig:
    return ScenesConfig(source="builtin:scenes", split=split, count=count, vocabulary=VOCABULARY, questions=7)


def roles(count=60, base=Path(), **fields):
    return load_conversations([SceneRolesConfig(source="scene_roles", of=scenes(count), **fields)], base)


def asked_about(index: int) -> dict[str, Asked]:
    """The questions about a scene, whose facts do not depend on how many scenes there are."""
    return {asked.text: asked for asked in all_questions(Scenes(scenes()).scene(index), VOCABULARY)}


def words_of(conversation) -> int:
    return sum(len(turn.text.split()) for turn in conversation.turns)


def question(kind: str, answer: str) -> Asked:
    return Asked(kind=kind, about=(kind,), phrasing=0, text="?", answer=answer)


def test_every_question_of_a_scene_is_among_all_and_has_the_same_answer():
    for index, example in enumerate(Scenes(scenes())):
        known = asked_about(index)
        for each in example.questions:
            assert (known[each.text].answer, known[each.text].kind) == (each.answers[0], each.kind)
            assert known[each.text].phrasing == 0 or each.kind == "colour"


def test_no_text_asks_two_things_and_no_instruction_is_filtered_out():
    sorts = set()
    for index in range(20):
        questions = all_questions(Scenes(scenes()).scene(index), VOCABULARY)
        assert len({asked.text for asked in questions}) == len(questions)
        assert not any(isinstance(instruction(asked.text, False, "another one"), Rejected) for asked in questions)
        sorts |= {asked.about[0] for asked in questions}
    assert sorts == set(PHRASINGS)


@pytest.mark.parametrize(
    ("kind", "truth", "answer", "wanted"),
    [
        ("what", "banana", "banana", BEST),
        ("what", "banana", " Banana. ", BEST),
        ("what", "banana", "it is a banana", REWORDED),
        ("what", "banana", "lemon", PARTLY),
        ("what", "banana", "dog", WRONG),
        ("what", "banana", "ban", NONE),
        ("what", "banana", "banana banana", NONE),
        ("what", "banana", "yes", NONE),
        ("how many", "2", "3", PARTLY),
        ("how many", "2", "4", WRONG),
        ("where", "top left", "top right", PARTLY),
        ("where", "top left", "bottom right", WRONG),
        ("colour", "pink", "blue", WRONG),
        ("yes/no", "yes", "no", WRONG),
        ("yes/no", "yes", "", NONE),
        ("list", "a dog on the left, a bus on the right", "a dog on the left, a bus on the right", BEST),
        ("list", "a dog on the left, a bus on the right", "a bus on the right and a dog on the left", REWORDED),
        ("list", "a dog on the left, a bus on the right", "a dog on the left, a cat on the right", 5),
        ("list", "a dog on the left, a bus on the right", "a dog on the left", 5),
        ("list", "a dog on the left, a bus on the right", "a cat on the left", WRONG),
        ("list", "a dog on the left, a bus on the right", "pink", NONE),
    ],
)
def test_scores_say_how_good_an_answer_is(kind, truth, answer, wanted):
    assert grade(question(kind, truth), answer) == wanted


def test_answers_of_all_qualities_are_drawn_for_every_kind():
    found: dict[str, Counter[str]] = {kind: Counter() for kind in ROLE_KINDS}
    for index in range(40):
        questions = list(asked_about(index).values())
        for asked in questions:
            score = grade(asked, draw_answer(random.Random(asked.text + str(index)), asked, questions, VOCABULARY))
            found[asked.kind]["right" if score >= REWORDED else "partly" if score > WRONG else "wrong"] += 1
    for kind, counts in found.items():
        total = counts.total()
        assert 0.4 * total < counts["right"] < 0.6 * total, kind
        assert counts["wrong"] > 0.15 * total or kind == "list"
        assert counts["partly"] > 0.05 * total or kind in ("colour", "group", "yes/no")


def test_each_exchange_is_one_of_the_roles_and_right():
    prompts = load_prompts(PromptsConfig(assessor="laptop", augmentor="laptop"), Path())
    assess = re.escape(prompts.assess("FIELD", "FIELD", "FIELD")).replace("FIELD", "(.*)")
    augment = re.escape(prompts.augment("FIELD")).replace("FIELD", "(.*)")
    practised: Counter[str] = Counter()
    for index, conversation in enumerate(roles().conversations):
        known = asked_about(index)
        for said, reply in conversation.exchanges:
            if said in known:
                practised["answer"] += 1
                assert reply == known[said].answer
            elif found := re.fullmatch(augment, said):
                practised["ask"] += 1
                seed, written = known[found[1]], known[reply]
                assert written.about[0] == seed.about[0]
                assert written.phrasing != seed.phrasing
            else:
                practised["assess"] += 1
                found = re.fullmatch(assess, said)
                assert found
                asked = known[found[1]]
                first, second = grade(asked, found[2]), grade(asked, found[3])
                assert reply == scored(asked.answer, first, second)
                assert scores(reply) == (first, second)
    assert min(practised.values()) > 0.1 * practised.total()
    assert len(practised) == 3


def test_shares_choose_the_roles_and_words_the_length():
    asking = roles(20, shares=SharesConfig(answer=0, assess=0, ask=1)).conversations
    assert all(said.startswith("Ask ") for each in asking for said, _ in each.exchanges)
    for words in (40, 200):
        lengths = [words_of(each) for each in roles(20, words=words).conversations if len(each.turns) > 2]
        assert 0.4 * words < min(lengths) <= max(lengths) <= words
    assert {len(each.turns) for each in roles(20, words=1).conversations} == {2}
    with pytest.raises(ValidationError, match="a share"):
        SharesConfig(answer=0, assess=0, ask=0)


def test_a_claim_is_as_often_true_as_not():
    said = Counter(
        reply
        for each in roles(200, shares=SharesConfig(answer=1, assess=0, ask=0)).conversations
        for _, reply in each.exchanges
        if reply in ("yes", "no")
    )
    assert 0.42 < said["yes"] / said.total() < 0.58


def test_instructions_are_single_questions_of_all_kinds_that_say_which():
    section = SceneInstructionsConfig(source="scene_instructions", of=scenes(100), per_scene=3)
    found = load_conversations([section]).conversations
    assert len(found) == 300
    assert len({each.id for each in found[:]}) == 300
    assert len({(each.id.partition("#")[0], each.turns[0].text) for each in found[:]}) == 300
    for index, conversation in enumerate(found):
        [(text, answer)] = conversation.exchanges
        asked = asked_about(index // 3)[text]
        assert (asked.answer, asked.kind) == (answer, kind_of(conversation.id))
    assert {kind_of(each.id) for each in found[:]} == set(ROLE_KINDS)
    more = load_conversations([section.model_copy(update={"per_scene": 5})]).conversations
    assert [each.turns for each in more[:3]] == [each.turns for each in found[:3]]
    assert [each.turns for each in more[5:8]] == [each.turns for each in found[3:6]]


def test_a_file_takes_a_prompts_place(tmp_path):
    prompt = tmp_path / "mine.txt"
    prompt.write_text("Compare {answer_1} with {answer_2} for {instruction}\n")
    source = roles(5, tmp_path, assessor="mine.txt", shares=SharesConfig(answer=0, assess=1, ask=0))
    assert all(said.startswith("Compare ") for each in source.conversations for said, _ in each.exchanges)
    prompt.write_text("Compare {answer_1} for {instruction}")
    with pytest.raises(DataError, match=r"mine.txt: \{answer_2\} is missing"):
        roles(5, tmp_path, assessor="mine.txt")
    with pytest.raises(DataError, match=r"scene_roles, field augmentor"):
        roles(5, tmp_path, augmentor="nowhere.txt")
