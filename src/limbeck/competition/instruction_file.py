"""Instructions without answers as a source of a competition: the teacher answers them, so that files need none."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from limbeck.competition.pool_import import read_seeds
from limbeck.competition.pool_records import Seed
from limbeck.data.conversations import Conversation, ConversationSource, Turn
from limbeck.data.examples import FileImage
from limbeck.data.records import FilesConfig


class InstructionFileConfig(FilesConfig):
    """Instructions of a file that `limbeck pool import` reads too: LLaVA's JSON, `messages`, single questions, CSV.

    Answers may be there or not.
    """

    source: Literal["instruction_file"]
    path: str
    """a .json, .jsonl or .csv file"""
    images: str | None = None
    """folder that the paths of pictures start from; null: the file's own"""


def load_instruction_file(config: InstructionFileConfig, base: Path) -> ConversationSource:
    """Each instruction as a conversation of one turn. Raises DataError."""
    images = None if config.images is None else base / config.images
    seeds, skipped = read_seeds(base / config.path, images, max_skipped=config.max_skipped)
    return ConversationSource(
        name=config.path,
        conversations=[_asked(seed) for seed in seeds[: config.limit]],
        skipped=tuple(skipped),
    )


def _asked(seed: Seed) -> Conversation:
    picture = seed.picture.path if seed.picture is not None else None
    return Conversation(
        id=seed.name, image=None if picture is None else FileImage(picture), turns=(Turn("user", seed.text),)
    )
