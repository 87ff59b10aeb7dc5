"""`messages` and `images`, the format of chat fine-tuning: {messages: [{role, content}], images: [path]}.

`content` is a text or a list of parts, {type: text, text} and {type: image} or {type: image_url, image_url: {url}};
a picture's file is named in `images` or in its part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from limbeck.data.conversations import IMAGE, Conversation, ConversationSource, Role, Turn, conversation_of
from limbeck.data.records import BrokenRecord, existing_file, existing_folder, field, image_file, kind_of
from limbeck.data.stored_conversations import ConversationFileConfig, load_stored

_PICTURES = ("image", "image_url")
"""Types of parts that are pictures."""


class MessagesConfig(ConversationFileConfig):
    """Conversations as OpenAI's API and TRL write them."""

    source: Literal["messages"]
    images: str | None = None
    """the folder that the pictures' paths start from; the file's own by default"""


def load_messages(config: MessagesConfig, base: Path) -> ConversationSource:
    """Check every record. Raises DataError."""
    file = existing_file(base, config.path, "source messages, field path")
    folder = existing_folder(base, config.images, "source messages, field images") if config.images else file.parent
    return load_stored(config, file, _Reader(folder))


@dataclass(frozen=True)
class _Reader:
    folder: Path

    def has_picture(self, record: Any) -> bool:
        if not isinstance(record, dict):
            return True
        contents = [message.get("content") for message in _objects(record.get("messages"))]
        parts = [part for content in contents for part in _objects(content)]
        return bool(record.get("images")) or any(part.get("type") in _PICTURES for part in parts)

    def __call__(self, record: Any, id: str) -> Conversation:
        in_parts: list[str] = []
        turns = [_turn(message, in_parts) for message in field(record, "messages", list)]
        beside = [_path(each) for each in field(record, "images", list)] if "images" in record else []
        if in_parts and beside and in_parts != beside:
            raise BrokenRecord(f"its parts name the pictures {in_parts}, the field 'images' {beside}")
        pictures = in_parts or beside
        if len(pictures) > 1:
            raise BrokenRecord(f"{len(pictures)} pictures; it may have one")
        image = image_file(self.folder, pictures[0]) if pictures else None
        return conversation_of(id, image, turns)


def _turn(message: Any, pictures: list[str]) -> Turn:
    """What a message says, with <image> before it for each picture; adds the files that its parts name."""
    role, content = field(message, "role", str), field(message, "content", (str, list))
    if role not in get_args(Role):
        raise BrokenRecord(f"field 'role': wanted one of {', '.join(get_args(Role))}, found {role!r}")
    if isinstance(content, str):
        return Turn(role, content)
    places, texts = "", []
    for part in content:
        kind = field(part, "type", str)
        if kind == "text":
            texts.append(field(part, "text", str))
        elif kind in _PICTURES:
            places += IMAGE
            pictures += [_path(part[name]) for name in ("image", "path", "url", "image_url") if name in part]
        else:
            raise BrokenRecord(f"a part of type {kind!r}; wanted text, image or image_url")
    return Turn(role, places + "\n".join(texts))


def _objects(value: Any) -> list[dict[str, Any]]:
    """The objects in a list; none where it is no list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _path(value: Any) -> str:
    """A picture's file, given as a text or in an object. Raises BrokenRecord."""
    if isinstance(value, dict):
        named = [name for name in ("path", "url") if name in value]
        value = value[named[0]] if named else None
    if not isinstance(value, str):
        raise BrokenRecord(f"a picture: wanted the path of a file, found {kind_of(value)}")
    if "://" in value or value.startswith("data:"):
        raise BrokenRecord(f"a picture: wanted the path of a file, found the address {value[:40]!r}")
    return value
