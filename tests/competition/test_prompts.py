"""What each role is told: the package's templates, a user's files, and what is wrong with them."""

from pathlib import Path

import pytest

from limbeck.competition.prompts import PromptError, PromptsConfig, load_prompt, load_prompts, prompt_names, prompt_of


def test_the_papers_prompts(tmp_path: Path) -> None:
    prompts = load_prompts(PromptsConfig(), tmp_path)
    assert prompts.ask("Is it red?") == "Is it red?"
    assessing = prompts.assess("Is it red?", "Yes.", "No.")
    assert assessing.startswith(
        "[Instruction]\nIs it red?\n\n[Answer of Assistant 1]\nYes.\n\n[Answer of Assistant 2]\nNo."
    )
    assert assessing.endswith("Score of Assistant 1: <number>\nScore of Assistant 2: <number>")
    assert prompts.augment("Is it red?").endswith("Given instruction: Is it red?\nCreated instruction:")


def test_vicunas_prompt_is_shipped_beside_ours() -> None:
    assert {"comd", "vicuna"} <= set(prompt_names("assessor"))
    vicuna = load_prompt("assessor", "vicuna", Path())
    assert "a single line containing only two values" in vicuna.text


def test_answers_may_hold_braces_and_names_of_fields() -> None:
    prompt = prompt_of("assessor", "{instruction}|{answer_1}|{answer_2}", "here")
    filled = prompt.fill({"instruction": "{answer_1}", "answer_1": r"{answer_2} {x} \1", "answer_2": "{}"})
    assert filled == r"{answer_1}|{answer_2} {x} \1|{}"


def test_a_users_file_takes_the_place_and_has_an_id_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text('Reply as {"score": 1}.\n{instruction}: {answer_1} or {answer_2}?\n')
    mine = load_prompts(PromptsConfig(assessor="mine.txt"), tmp_path).assessor
    shipped = load_prompt("assessor", "comd", tmp_path)
    assert mine.fill({"instruction": "A", "answer_1": "B", "answer_2": "C"}) == 'Reply as {"score": 1}.\nA: B or C?'
    assert mine.id != shipped.id
    assert mine.id == prompt_of("assessor", mine.text + "\n", "again").id
    assert prompt_of("augmentor", "{instruction}", "x").id != prompt_of("answer", "{instruction}", "x").id


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "{instruction} {answer_1}",
            r"no \{answer_2\} in it; the assessor's prompt needs \{instruction\}, \{answer_1\}",
        ),
        ("{instruction} {answer_1} {answer_2} {question}", r"unknown field \{question\}"),
        ("<image>\n{instruction} {answer_1} {answer_2}", "take <image> out"),
    ],
)
def test_a_template_that_cannot_be_used(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(PromptError, match=error) as raised:
        load_prompt("assessor", "bad.txt", tmp_path)
    assert "bad.txt" in str(raised.value)


def test_a_prompt_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"no prompt 'lion'; there is comd, .*vicuna, and any file"):
        load_prompt("assessor", "lion", tmp_path)
    with pytest.raises(PromptError, match="no such file"):
        load_prompt("assessor", "lion.txt", tmp_path)
