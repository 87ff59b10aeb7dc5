"""Batches of conversations in the trainer: supervised tokens are counted over the whole step, however it is split."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from limbeck.data.chat import Chat, ChatConfig
from limbeck.data.conversation_sources import ConversationSourceConfig, load_conversations
from limbeck.data.decoder_tokenizer import BpeTokenizer, conversation_texts, load_decoder_tokenizer
from limbeck.data.dialogue_set import Dialogues
from limbeck.data.transform import TransformConfig
from limbeck.method import Loss, Method, Stage
from limbeck.training.run import TrainingData, run_stages
from limbeck.training.skips import SkipLog
from limbeck.training.trainer import count_batch
from limbeck.types import IGNORE, Counts


class Guess(Method):
    """Predicts every supervised token from one vector of logits: a mean over the step's answer tokens."""

    def __init__(self, words: int):
        super().__init__()
        self.logits = nn.Parameter(torch.linspace(-1, 1, words))
        self.seen: list[Counts] = []

    def stages(self) -> Iterator[Stage]:
        yield Stage(name="guess", trainable=(), weights={"language": 1.0})

    def begin_stage(self, stage, steps_per_epoch):
        pass

    def begin_step(self, step):
        pass

    def forward(self, batch) -> Loss:
        labels = batch["labels"][batch["labels"] != IGNORE]
        self.seen.append(batch["counts"])
        scores = self.logits.log_softmax(0)[labels]
        return Loss(terms={"language": -scores.sum() / batch["counts"].answer_tokens}, weights={"language": 1.0})

    def teachers(self) -> tuple[str, ...]:
        return ()

    def followers(self) -> tuple[str, ...]:
        return ()


@pytest.fixture(scope="module")
def data() -> Dialogues:
    of = {"source": "builtin:scenes", "count": 16, "size": 32, "vocabulary": 36}
    config = TypeAdapter(ConversationSourceConfig).validate_python({"source": "dialogue", "of": of})
    source = load_conversations([config], Path())
    tokenizer = load_decoder_tokenizer(BpeTokenizer(tokenizer="bpe", vocab_size=400), conversation_texts(source))
    return Dialogues(source, Chat(tokenizer, ChatConfig(system="")), TransformConfig(size=32), image_tokens=4)


def test_what_is_counted(data):
    batch = data.collate([data[index] for index in range(3)])
    counts = Counts(*count_batch(batch))
    assert counts.pairs == 3
    assert counts.tokens == batch["attention_mask"].sum()
    assert counts.answer_tokens == (batch["labels"] >= 0).sum() > 10
    assert counts.questions == counts.question_tokens == counts.answers == 0


def test_a_step_split_into_micro_batches_is_the_same_step(data, tmp_path):
    found = []
    for size, parts in ((8, 1), (2, 4)):
        method = Guess(len(data.chat.tokenizer))
        folder = tmp_path / str(size)
        run_stages(
            method,
            lambda stage: TrainingData(data, data.collate),
            folder=folder,
            seed=3,
            training={
                "per_device_train_batch_size": size,
                "gradient_accumulation_steps": parts,
                "max_steps": 2,
                "learning_rate": 1e-2,
                "save_strategy": "no",
                "report_to": [],
                "disable_tqdm": True,
                "use_cpu": True,
            },
            skipped=SkipLog(folder / "skipped.jsonl", len(data), 0.0),
        )
        found.append((method.logits.detach(), [int(counts.answer_tokens) for counts in method.seen[::parts]]))
        assert all(counts.pairs == 8 for counts in method.seen)
    assert found[0][1] == found[1][1]
    torch.testing.assert_close(found[0][0], found[1][0])
    assert not torch.equal(found[0][0], torch.linspace(-1, 1, len(found[0][0])))
