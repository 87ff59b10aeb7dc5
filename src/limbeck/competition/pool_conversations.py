"""Conversations to the pool's single instructions, and back to dialogues: unrolled, and regrouped by picture.

CoMD unrolls dialogues into single turns to answer and assess them one by one, and tunes on them regrouped: all about a
picture is one dialogue of several turns, in the order of the pool.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from limbeck.competition.pool_records import Instruction, Picture, Seed
from limbeck.data.conversations import IMAGE, Conversation, ConversationSource, Turn
from limbeck.data.examples import ArchiveImage, FileImage, ImageSource, MadeImage, Skipped

Fits = Callable[[Conversation], bool]
"""Whether a conversation may be as long as it is."""


def unroll(conversation: Conversation) -> list[Conversation]:
    """Each exchange as a conversation of its own about the picture, its words unchanged; without system prompts."""
    exchanges = conversation.exchanges
    return [
        Conversation(
            id=f"{conversation.id}#{number}" if len(exchanges) > 1 else conversation.id,
            image=conversation.image,
            turns=_turns([exchange]),
        )
        for number, exchange in enumerate(exchanges)
    ]


def seeds_of(source: ConversationSource, images: Path | None = None) -> Iterator[Seed]:
    """The instructions of a source, with the answers that it has. Pictures under `images` are named from there on."""
    for conversation in source.conversations:
        picture = picture_of(conversation.image, images) if conversation.image else None
        for single in unroll(conversation):
            ((text, answer),) = single.exchanges
            yield Seed(name=single.id, picture=picture, text=text, answer=answer or None)


def pictures_of(source: ConversationSource, images: Path | None = None) -> dict[str, ImageSource]:
    """The pictures of a source by their ids in the pool."""
    found = (conversation.image for conversation in source.conversations)
    return {picture_of(image, images).id: image for image in found if image is not None}


def picture_of(image: ImageSource, images: Path | None) -> Picture:
    """How the pool names a picture: its file or archive by the path from the folder `images` on where it lies there."""
    match image:
        case FileImage(path=path):
            return Picture(id=_from(images, path), path=os.path.abspath(path))
        case ArchiveImage(archive=archive, offset=offset):
            return Picture(id=f"{_from(images, archive)}#{offset}", path=None)
        case MadeImage(key=key):
            return Picture(id=key, path=None)


def _from(folder: Path | None, path: str) -> str:
    """A file's path from a folder on, or all of it where it lies elsewhere."""
    file = Path(os.path.abspath(path))
    inside = folder is not None and file.is_relative_to(os.path.abspath(folder))
    return (file.relative_to(os.path.abspath(folder)) if folder is not None and inside else file).as_posix()


def regroup(
    answered: Iterable[tuple[Instruction, str]],
    image_of: Mapping[str, ImageSource] | Callable[[str], ImageSource],
    *,
    name: str,
    fits: Fits | None = None,
) -> ConversationSource:
    """Instructions and their answers, all about a picture as one conversation.

    Exchanges stand in the order of the pool, pictures in the order of their first one. Where the next exchange would
    make a conversation that does not fit (CoMD's limit of 2048 tokens), it begins another. Instructions without a
    picture are conversations of their own; those with an empty answer are set aside.
    """
    find = image_of if callable(image_of) else image_of.__getitem__
    groups: dict[str | int, list[tuple[int, tuple[str, str]]]] = {}
    set_aside = []
    pictures: dict[str | int, ImageSource | None] = {}
    for instruction, answer in sorted(answered, key=lambda each: each[0].id):
        said = _plain(answer)
        if not said:
            set_aside.append(Skipped(f"{name}: instruction {instruction.id}", "the answer is empty"))
            continue
        group = instruction.id if instruction.image is None else instruction.image
        if group not in groups:
            pictures[group] = None if instruction.image is None else find(instruction.image)
        groups.setdefault(group, []).append((instruction.id, (_plain(instruction.text), said)))
    conversations = [
        conversation for group, said in groups.items() for conversation in _split(said, pictures[group], fits)
    ]
    return ConversationSource(name=name, conversations=conversations, set_aside=tuple(set_aside))


def _split(said: list[tuple[int, tuple[str, str]]], image: ImageSource | None, fits: Fits | None) -> list[Conversation]:
    """As few conversations as fit, each named by its first instruction."""
    made: list[Conversation] = []
    first, exchanges = said[0][0], []
    for id, exchange in said:
        longer = Conversation(id=f"instruction {first}", image=image, turns=_turns([*exchanges, exchange]))
        if exchanges and fits is not None and not fits(longer):
            first, exchanges = id, []
            longer = Conversation(id=f"instruction {first}", image=image, turns=_turns([exchange]))
        if exchanges:
            made.pop()
        exchanges.append(exchange)
        made.append(longer)
    return made


def _turns(exchanges: Sequence[tuple[str, str]]) -> tuple[Turn, ...]:
    return tuple(turn for asked, said in exchanges for turn in (Turn("user", asked), Turn("assistant", said)))


def _plain(text: str) -> str:
    """What a model wrote, without the picture's placeholder, which has a meaning of its own in conversations."""
    return text.replace(IMAGE, "").strip()
