"""LLaVA's JSON: [{id, image, conversations: [{from: human | gpt, value}]}], `<image>` in the first value.

An answer before the first question and a question without an answer at the end are cut, as LLaVA's own training does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from limbeck.data.conversations import IMAGE, Conversation, ConversationSource, Role, Turn, conversation_of
from limbeck.data.records import BrokenRecord, existing_file, existing_folder, field, image_file
from limbeck.data.stored_conversations import ConversationFileConfig, load_stored

_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}


class LlavaConfig(ConversationFileConfig):
    """llava_v1_5_mix665k.json, blip_laion_cc_sbu_558k.json and the like; `turns: both` gives CTVLM's second stage."""

    source: Literal["llava"]
    images: str
    """the folder that the `image` fields start from"""


def load_llava(config: LlavaConfig, base: Path) -> ConversationSource:
    """Check every record. Raises DataError."""
    file = existing_file(base, config.path, "source llava, field path")
    folder = existing_folder(base, config.images, "source llava, field images")
    return load_stored(config, file, _Reader(folder))


@dataclass(frozen=True)
class _Reader:
    folder: Path

    def has_picture(self, record: Any) -> bool:
        return not isinstance(record, dict) or record.get("image") is not None

    def __call__(self, record: Any, id: str) -> Conversation:
        turns = [_turn(said) for said in field(record, "conversations", list)]
        image = image_file(self.folder, field(record, "image", str)) if self.has_picture(record) else None
        return conversation_of(id, image, _trimmed(turns))


def _turn(said: Any) -> Turn:
    speaker = field(said, "from", str)
    if speaker not in _ROLES:
        raise BrokenRecord(f"field 'from': wanted one of {', '.join(_ROLES)}, found {speaker!r}")
    return Turn(_ROLES[speaker], field(said, "value", str))


def _trimmed(turns: list[Turn]) -> list[Turn]:
    """Without an answer in front and a question at the end; one that has the picture's place stays."""
    first = 1 if turns and turns[0].role == "system" else 0
    said = turns[first:]
    if said and said[0].role == "assistant" and IMAGE not in said[0].text:
        said = said[1:]
    if said and said[-1].role == "user" and IMAGE not in said[-1].text:
        said = said[:-1]
    return turns[:first] + said
