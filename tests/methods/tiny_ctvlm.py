"""CTVLM methods of some thousand parameters and batches of conversations, here and in other processes."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, OPTConfig

from limbeck.methods.ctvlm import CTVLM, DuetStage
from limbeck.models.duet import Duet
from limbeck.models.duet_config import DuetConfig, TinyVLMConfig
from limbeck.training.freeze import freeze
from limbeck.training.trainer import count_batch
from limbeck.types import IGNORE, ConversationBatch, Counts

ROWS, IMAGE, PAD, BOS, EOS, IMAGE_TOKENS = 60, 61, 0, 1, 2, 4
KINDS = ("language", "align_tiny", "align_large", "tune")


def make_duet(
    embeddings: str = "large_frozen", features: str = "I+T", seed: int = 0, large: str = "llama", dropout: float = 0.0
) -> Duet:
    """16-wide eye, 24-wide OPT, 32-wide Llama or OPT with dropout; every weight has a value of its own."""
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    shared = {
        "vocab_size": ROWS,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        **ids,
    }
    eye = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=8, patch_size=4
    )
    tiny = TinyVLMConfig(
        eye=eye,
        text=OPTConfig(hidden_size=24, ffn_dim=48, dropout=0.0, **shared),
        embeddings=embeddings,
        table_width=32 if embeddings == "large_frozen" else 24,
        image_token_id=IMAGE,
        **ids,
    )
    config = {
        "llama": LlamaConfig(hidden_size=32, intermediate_size=48, num_key_value_heads=1, **shared),
        "opt": OPTConfig(hidden_size=32, ffn_dim=48, dropout=dropout, attention_dropout=dropout, **shared),
    }[large]
    torch.manual_seed(seed)
    duet = Duet(DuetConfig(tiny=tiny, large=config, features=features))
    with torch.no_grad():
        for parameter in duet.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return duet


def make_ctvlm(*stages: DuetStage, duet: Duet | None = None) -> CTVLM:
    """A method in the first step of its first stage."""
    torch.manual_seed(1)
    method = CTVLM(duet or make_duet(), ROWS, stages, embedding=16)
    stage = next(method.stages())
    freeze(method, stage.trainable, (*method.teachers(), *method.followers()))
    method.train()
    method.begin_stage(stage, 10)
    method.begin_step(0)
    return method


def make_stage(kind: str, **values: object) -> DuetStage:
    """A stage with the paper's settings where `values` say nothing else."""
    kd = {"align_large": "forward", "tune": "reverse"}.get(kind, "none")
    return DuetStage(name=kind, trainable=(), weights={}, **{"kind": kind, "kd": kd, **values})


def make_conversations(size: int, *, asked: bool, seed: int = 0) -> ConversationBatch:
    """`size` different pictures with an answer each, behind a prompt and a question where `asked`."""
    generator = torch.Generator().manual_seed(seed)
    rows = [_conversation(2 * asked, (3 + row % 3) * asked, 2 + row % 4, generator) for row in range(size)]
    length = max(len(ids) for ids, _ in rows)
    ids, labels = torch.full((size, length), PAD), torch.full((size, length), IGNORE)
    mask = torch.zeros(size, length, dtype=torch.bool)
    for row, (own, said) in enumerate(rows):
        ids[row, : len(own)], labels[row, : len(own)], mask[row, : len(own)] = own, said, True
    return ConversationBatch(
        pixel_values=torch.randn(size, 3, 8, 8, generator=generator),
        input_ids=ids,
        attention_mask=mask,
        labels=labels,
        image_id=torch.arange(size),
        has_image=torch.ones(size, dtype=torch.bool),
        draws=torch.rand(size, 2, generator=generator),
    )


def slice_of(batch: ConversationBatch, start: int, end: int) -> ConversationBatch:
    """The rows `start` to `end`, as long as they were."""
    return {name: value[start:end] for name, value in batch.items() if isinstance(value, Tensor)}  # type: ignore


def with_counts(
    batch: ConversationBatch, whole: ConversationBatch | None = None, processes: int = 1
) -> ConversationBatch:
    """`batch` with the counts of the whole step that it is a part of."""
    return {**batch, "counts": Counts(*(count_batch(batch if whole is None else whole) / processes))}


def _conversation(prompt: int, text: int, answer: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    def words(count: int) -> Tensor:
        return torch.randint(3, ROWS, (count,), generator=generator)

    picture = torch.full((IMAGE_TOKENS,), IMAGE)
    ids = torch.cat([torch.tensor([BOS]), words(prompt), picture, words(text), words(answer), torch.tensor([EOS])])
    labels = torch.full_like(ids, IGNORE)
    labels[-answer - 2 : -1] = ids[-answer - 1 :]
    return ids, labels
