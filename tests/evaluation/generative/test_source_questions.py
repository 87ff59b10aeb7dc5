"""Questions of a source: what stands after them is the recipe's to say."""

from pathlib import Path

import pytest

from limbeck.data.example_conversations import SHORT_ANSWER
from limbeck.data.scenes import ScenesConfig
from limbeck.evaluation.generative.source_questions import QuestionsConfig, ScenesVqaConfig, load_questions

SCENES = ScenesConfig(source="builtin:scenes", split="test", count=5)


@pytest.mark.parametrize(("fields", "end"), [({}, f"?{SHORT_ANSWER}"), ({"short_answer": ""}, "?")])
def test_questions_end_as_the_recipe_says(fields, end):
    for config in (
        ScenesVqaConfig(benchmark="scenes_vqa", data=SCENES, **fields),
        QuestionsConfig(benchmark="questions", data=(SCENES,), **fields),
    ):
        items = load_questions(config, Path())
        assert len(items) == 20
        assert all(item.prompt == item.row["question"] + end[1:] for item in items)
