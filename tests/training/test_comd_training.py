"""CoMD in the trainer: stages, what happens between them, resuming, and a student that plain transformers loads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, TrainerCallback

from limbeck.data.conversations import Conversation, ConversationSource, Turn
from limbeck.data.examples import MadeImage
from limbeck.data.model_chat import ModelChat
from limbeck.data.processed import ProcessedDialogues
from limbeck.methods.comd import CoMD, StudentStage
from limbeck.models.lora import Lora
from limbeck.models.vlm import save_vlm
from limbeck.training.run import TrainingData, run_stages
from limbeck.training.skips import SkipLog

sys.path.append(str(Path(__file__).parents[1] / "models"))
from tiny_vlms import picture, vlm

TRAINING = {
    "per_device_train_batch_size": 2,
    "max_steps": 4,
    "save_steps": 2,
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
}


class Killed(Exception):
    pass


class KillAt(TrainerCallback):
    """Ends the run in the middle of its n-th optimizer step."""

    def __init__(self, steps: int):
        self.left = steps

    def on_step_begin(self, args, state, control, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise Killed


def conversations() -> ConversationSource:
    turns = [(Turn("user", "How many cats?"), Turn("assistant", answer)) for answer in ("Two.", "A dog.")]
    made = [
        Conversation(f"{row}", MadeImage(f"{row}", lambda row=row: picture(24, 16, row)), turns[row % 2])
        for row in range(8)
    ]
    return ConversationSource("s", made)


def run(folder: Path, *callbacks: TrainerCallback, lora: Lora | None = None, **training: object):
    """Both stages on a LLaVA; the trained student, its processor, and what happened between the stages."""
    model, processor = vlm("llava")
    seen: list[str] = []
    plan = [StudentStage(name=kind, kind=kind, trainable=(), weights={}) for kind in ("connect", "tune")]
    torch.manual_seed(0)
    method = CoMD(model, plan, between=lambda stage: seen.append(stage.name), lora=lora)
    data = ProcessedDialogues(conversations(), ModelChat(processor), processor)
    run_stages(
        method,
        lambda stage: TrainingData(data, data.collate),
        folder=folder,
        seed=1,
        training={**TRAINING, **training},
        skipped=SkipLog(folder / "left_out.jsonl", len(data), 0.0),
        callbacks=callbacks,
    )
    return method, processor, seen


def weights(method: CoMD) -> dict:
    return {name: x.clone() for name, x in method.student.state_dict().items()}


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_a_run_that_goes_on_ends_as_one_that_was_never_killed(steps, tmp_path):
    whole, _, seen = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", KillAt(steps))
    again, _, resumed = run(tmp_path / "killed")
    assert seen == resumed == ["connect", "tune"]
    for name, x in weights(whole).items():
        assert x.equal(weights(again)[name]), name


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_checkpoints_hold_what_has_trained_and_the_export_everything(lora, tmp_path):
    method, processor, _ = run(tmp_path, lora=lora, gradient_checkpointing=True)
    connect, tune = ((tmp_path / "stages" / name / "model.safetensors").stat().st_size for name in ("connect", "tune"))
    assert connect < tune
    save_vlm(method.student, processor, tmp_path / "student")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "student")
    data = ProcessedDialogues(conversations(), ModelChat(processor), processor)
    batch = data.collate([data[0], data[1]])
    inputs = {name: x for name, x in batch.items() if name not in ("labels", "image_id")}
    method.eval()
    with torch.no_grad():
        expected = method.student(**inputs).logits
        torch.testing.assert_close(loaded(**inputs).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_split_step_is_a_whole_step(tmp_path):
    whole, _, _ = run(tmp_path / "whole", per_device_train_batch_size=4, max_steps=2)
    split, _, _ = run(tmp_path / "split", per_device_train_batch_size=1, gradient_accumulation_steps=4, max_steps=2)
    for name, x in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], x, rtol=1e-3, atol=2e-5)
