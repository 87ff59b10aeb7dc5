"""The loop between two tunings, with models whose every word is known: what is asked, decided and written."""

import json
from collections.abc import Container, Generator, Sequence

import pytest

from limbeck.competition.account import account
from limbeck.competition.asking import Refusal, Reply, Request
from limbeck.competition.compete import Competition, Roles
from limbeck.competition.keeping import CompetitionError
from limbeck.competition.pool import Pool
from limbeck.competition.pool_records import Augmentation, Author, Cost, Picture, Seed
from limbeck.competition.prompts import PromptsConfig, load_prompts
from limbeck.competition.rules import AskingConfig, Rules, decide
from limbeck.data.examples import FileImage

PICTURES = ("a.png", "b.png")
QUESTIONS = ("what stands on the left side?", "how many cups are there on it?", "is the wall behind it green?")
NEW = {
    QUESTIONS[0]: "which animal can be seen over there?",
    QUESTIONS[1]: "how many cups are there on this?",
    QUESTIONS[2]: "no",
}
"""What is written from each: something new, nearly the same again, and what is no instruction."""


class Speaking:
    """Says to each prompt what a function says, and remembers what it was asked."""

    def __init__(self, name: str, say) -> None:
        self.name = self.fingerprint = name
        self.say = say
        self.asked: list[Request] = []

    def ask(
        self, requests: Sequence[Request], *, temperature: float, done: Container[str] = ()
    ) -> Generator[tuple[Request, Reply | Refusal], None, None]:
        for request in requests:
            if request.id not in done:
                self.asked.append(request)
                said = self.say(request)
                if isinstance(said, str):
                    said = Reply(text=said, cut=False, prompt_tokens=7, new_tokens=3, seconds=0.5)
                yield request, said


def assessed(prompt: str) -> str:
    """Scores by the question: the student far behind at the first, a little at the second, equal at the third."""
    first = "Assistant 1]\nteacher" in prompt
    scores = next(pair for text, pair in zip(QUESTIONS, [(9, 3), (10, 8), (9, 9)], strict=True) if text in prompt)
    one, two = scores if first else reversed(scores)
    return f"Evidence: none\nScore of Assistant 1: {one}\nScore of Assistant 2: {two}"


def teacher_says(request: Request) -> str | Refusal:
    if "Assistant 1]" in request.prompt:
        return assessed(request.prompt)
    if "Created instruction" in request.prompt:
        return next(new for text, new in NEW.items() if text in request.prompt)
    return f"teacher on {request.prompt}"


@pytest.fixture
def pool(tmp_path):
    with Pool.open(tmp_path / "pool.sqlite", create=True) as opened:
        seeds = [(name, text) for name in PICTURES for text in QUESTIONS]
        opened.add_seeds(
            Seed(name=f"{name} {text}", picture=Picture(id=name, path=None), text=text, answer="the truth")
            for name, text in seeds
        )
        yield opened


def competition(pool: Pool, teacher: Speaking, tmp_path, **rules) -> Competition:
    images = {name: FileImage(str(tmp_path / name)) for name in PICTURES}
    prompts = load_prompts(PromptsConfig(), tmp_path)
    roles = Roles(teacher=teacher, assessor=teacher, augmentor=teacher)
    return Competition(pool, roles, prompts, Rules(**rules), images, seed=0, progress=False)


def student() -> Speaking:
    return Speaking("student", lambda request: f"student on {request.prompt}")


def test_the_tuning_pool_is_replaced_and_the_cache_pool_grows(pool, tmp_path):
    teacher = Speaking("teacher", teacher_says)
    loop = competition(pool, teacher, tmp_path)
    first = loop.answer(1)
    assert [(each.text, said) for each, said in first] == [(text, f"teacher on {text}") for text in QUESTIONS * 2]
    new = loop.compete(1, student())
    assert [(each.text, each.image, each.round) for each in new] == [
        (NEW[QUESTIONS[0]], name, 1) for name in PICTURES
    ], "too like another, or no instruction: not taken"
    assert [each.text for each, _ in loop.answer(2)] == [NEW[QUESTIONS[0]]] * 2
    assert len(pool.instructions(before=2)) == 8


def test_hard_ones_and_as_many_easy_ones_are_written_from(pool, tmp_path):
    loop = competition(pool, Speaking("teacher", teacher_says), tmp_path)
    loop.answer(1)
    loop.compete(1, student())
    decisions = pool.decisions(1)
    assert [each.kind for each in decisions] == ["hard", "easy", "easy"] * 2
    assert [round(each.difficulty or 0, 3) for each in decisions] == [0.778, 0.3, 0.111] * 2
    assert sum(each.chosen for each in decisions if each.kind == "easy") == 2
    assert all(each.chosen for each in decisions if each.kind == "hard")


def test_both_orders_are_assessed_and_nobody_is_told_the_truth(pool, tmp_path):
    teacher = Speaking("teacher", teacher_says)
    loop = competition(pool, teacher, tmp_path)
    loop.answer(1)
    loop.compete(1, student())
    judged = [request.prompt for request in teacher.asked if "Assistant 1]" in request.prompt]
    assert len(judged) == 12
    assert sum("Assistant 1]\nteacher" in prompt for prompt in judged) == 6
    assert not [request for request in teacher.asked if "the truth" in request.prompt]


def test_nothing_is_asked_twice(pool, tmp_path):
    teacher, learner = Speaking("teacher", teacher_says), student()
    loop = competition(pool, teacher, tmp_path)
    loop.answer(1)
    loop.compete(1, learner)
    before, digest = len(teacher.asked), pool.digest()
    again = competition(pool, teacher, tmp_path)
    again.answer(1)
    again.compete(1, learner)
    assert len(teacher.asked) == before
    assert len(learner.asked) == len({request.id for request in learner.asked}) == 6
    assert pool.digest() == digest


def test_unreadable_scores_are_asked_for_again_and_then_left_out(pool, tmp_path):
    tries: dict[str, int] = {}

    def muttering(request: Request) -> str | Refusal:
        said = teacher_says(request)
        if "Assistant 1]" not in request.prompt or QUESTIONS[2] not in request.prompt:
            return said
        tries[request.prompt] = tries.get(request.prompt, 0) + 1
        return "well" if "a.png" in request.image.key or tries[request.prompt] < 2 else said

    loop = competition(pool, Speaking("teacher", muttering), tmp_path)
    loop.answer(1)
    loop.compete(1, student())
    assert [each.kind for each in pool.decisions(1)] == ["hard", "easy", "unparsed", "hard", "easy", "easy"]
    attempts = [each.attempt for each in pool.assessments(1) if each.instruction == 3 and each.order == "teacher_first"]
    assert attempts == [0, 1, 2]


def test_many_refusals_stop_with_their_reason(pool, tmp_path):
    refusing = Speaking("teacher", lambda request: Refusal(reason="this picture is too large"))
    with pytest.raises(
        CompetitionError, match="6 of 6 calls to teacher came to nothing; 6 times: this picture is too large"
    ):
        competition(pool, refusing, tmp_path).answer(1)
    assert len(pool.refusals()) == 6


def test_a_step_in_which_hardly_anything_is_answered_stops_early(tmp_path):
    with Pool.open(tmp_path / "large.sqlite", create=True) as large:
        large.add_seeds(Seed(name=str(number), picture=None, text=f"What is {number}?") for number in range(500))
        refusing = Speaking("teacher", lambda request: Refusal(reason="no answer in 6 tries"))
        with pytest.raises(
            CompetitionError, match=r"50 of 500 calls to teacher came to nothing; .* goes on without them"
        ):
            competition(large, refusing, tmp_path).answer(1)
        assert len(refusing.asked) == 50


def test_the_student_is_asked_what_the_teacher_has_answered(pool, tmp_path):
    def no_first_picture(request: Request) -> str | Refusal:
        broken = request.image is not None and request.image.key.endswith("a.png")
        return Refusal(reason="a.png: broken") if broken else teacher_says(request)

    loop, learner = competition(pool, Speaking("teacher", no_first_picture), tmp_path), student()
    with pytest.raises(CompetitionError, match=r"3 of 6 calls to teacher came to nothing; 3 times: a.png: broken"):
        loop.answer(1)
    loop.answer(1)
    assert {each.image for each in loop.compete(1, learner)} == {"b.png"}
    assert len(learner.asked) == 3


def test_an_assessor_of_unreadable_scores_is_stopped_early_and_quoted(tmp_path):
    def muttering(request: Request) -> str | Refusal:
        return "Both are fine." if "Assistant 1]" in request.prompt else f"on {request.prompt}"

    with Pool.open(tmp_path / "large.sqlite", create=True) as large:
        large.add_seeds(Seed(name=str(number), picture=None, text=f"What is {number}?") for number in range(500))
        teacher = Speaking("teacher", muttering)
        loop = competition(large, teacher, tmp_path)
        loop.answer(1)
        for _ in range(2):
            with pytest.raises(
                CompetitionError, match=r"read in 0 of 50 replies\. One of the others is 'Both are fine\.'"
            ):
                loop.compete(1, student())
        assert sum("Assistant 1]" in request.prompt for request in teacher.asked) == 50, "not asked again either"


def test_an_assessor_at_temperature_0_is_asked_once(pool, tmp_path):
    def muttering(request: Request) -> str | Refusal:
        mutters = "Assistant 1]" in request.prompt and QUESTIONS[2] in request.prompt
        return "well" if mutters else teacher_says(request)

    loop = competition(pool, Speaking("teacher", muttering), tmp_path, assess=AskingConfig(temperature=0))
    loop.answer(1)
    loop.compete(1, student())
    assert {each.attempt for each in pool.assessments(1)} == {0}
    assert [each.kind for each in pool.decisions(1)] == ["hard", "easy", "unparsed"] * 2


def test_what_was_written_from_seeds_that_are_no_longer_chosen_is_passed_over(pool, tmp_path):
    loop = competition(pool, Speaking("teacher", teacher_says), tmp_path)
    ratings = dict(enumerate([(9, 3), (10, 8), (9, 9)] * 2, start=1))
    decisions = decide(1, range(1, 7), ratings, loop.rules, 0)
    passed_over = next(each.instruction for each in decisions if not each.chosen)
    author = Author(model="teacher", prompt=loop.prompts.augmentor.id)
    pool.add_model("teacher", "teacher")
    pool.add(
        Augmentation(
            round=1,
            instruction=passed_over,
            author=author,
            attempt=0,
            text="Name the colour of the roof over the old house",
            verdict=None,
            cost=Cost(prompt_tokens=1, new_tokens=1, seconds=1),
        )
    )
    loop.answer(1)
    new = loop.compete(1, student())
    assert [each.instruction for each in pool.decisions(1) if not each.chosen] == [
        each.instruction for each in decisions if not each.chosen
    ]
    assert passed_over not in {each.parent for each in new}


def test_a_round_that_writes_nothing_new_ends_the_competition_and_says_why(pool, tmp_path, caplog):
    def silent(request: Request) -> str | Refusal:
        return "no" if "Created instruction" in request.prompt else teacher_says(request)

    loop = competition(pool, Speaking("teacher", silent), tmp_path)
    loop.answer(1)
    assert loop.compete(1, student()) == []
    assert "round 1: no new instruction is left, so the competition ends with tuning 1" in caplog.text
    assert "2 are hard, 4 easy, 0 have no scores that can be read; 4 times: three words or fewer" in caplog.text
    assert loop.answer(2) == []
    assert account(pool)["rounds"][0]["accepted"] == 0


def test_a_round_in_which_nothing_could_be_written_is_no_end(pool, tmp_path):
    def refusing(request: Request) -> str | Refusal:
        return Refusal(reason="no") if "Created instruction" in request.prompt else teacher_says(request)

    loop = competition(pool, Speaking("teacher", refusing), tmp_path)
    loop.answer(1)
    with pytest.raises(CompetitionError, match="4 of 4 calls to teacher came to nothing"):
        loop.compete(1, student())
    with pytest.raises(CompetitionError, match="round 1: teacher refused all 4 calls; `limbeck pool forget` lets"):
        loop.compete(1, student())
    assert pool.closed_rounds() == {}


def test_a_judge_s_reviews_count_as_its_cost(pool, tmp_path):
    costs = [
        {"prompt_tokens": 100, "new_tokens": 20, "seconds": 0.5},
        {"prompt_tokens": 1, "new_tokens": 2, "seconds": 1},
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(each) + "\n" for each in costs))
    told = account(pool, {1: [tmp_path / "r.jsonl"], 2: []})
    row = {"role": "judge", "round": 1, "calls": 2, "prompt_tokens": 101, "new_tokens": 22, "seconds": 1.5}
    assert told["cost"] == [row]


def test_the_account_tells_of_each_round(pool, tmp_path):
    loop = competition(pool, Speaking("teacher", teacher_says), tmp_path, answer=AskingConfig(max_new_tokens=5))
    loop.answer(1)
    loop.compete(1, student())
    [told] = account(pool)["rounds"]
    assert (told["hard"], told["easy"], told["accepted"]) == (2, 4, 2)
    assert told["bias"] == {"flips": 0, "first_better": pytest.approx(1 / 3), "second_better": pytest.approx(1 / 3)}
    assert told["teacher"] == pytest.approx(28 / 3)
    assert [example["written"] for example in told["examples"]] == [NEW[QUESTIONS[0]]] * 2
    assert told["examples"][0]["answers"] == {
        "teacher": f"teacher on {QUESTIONS[0]}",
        "student": f"student on {QUESTIONS[0]}",
    }


@pytest.mark.parametrize(
    ("rules", "chosen"),
    [
        ({}, 4),
        ({"balance": False}, 6),
        ({"use_easy": False}, 2),
        ({"use_hard": False}, 4),
        ({"tau": 0.0}, 6),
        ({"tau": 1.0}, 0),
        ({"difficulty": "lion"}, 6),
    ],
)
def test_the_rules_of_table_4(rules, chosen):
    scores = dict(enumerate([(9.0, 3.0), (10.0, 8.0), (9.0, 9.0)] * 2, start=1))
    decisions = decide(1, list(scores), scores, Rules(**rules), seed=0)
    assert sum(each.chosen for each in decisions) == chosen
    assert decisions == decide(1, list(scores), scores, Rules(**rules), seed=0)


def test_a_competition_without_anything_to_write_from_is_refused():
    with pytest.raises(ValueError, match="one of them must be true"):
        Rules(use_hard=False, use_easy=False)
