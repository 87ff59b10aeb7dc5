"""One entry for every kind of conversations: a recipe's `source:` section in, conversations out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from limbeck.data.conversations import ConversationSource, join
from limbeck.data.example_conversations import CaptionsConfig, DialogueConfig, InstructionsConfig, load_examples
from limbeck.data.llava import LlavaConfig, load_llava
from limbeck.data.messages import MessagesConfig, load_messages
from limbeck.data.records import told_at
from limbeck.data.scene_roles import SceneInstructionsConfig, SceneRolesConfig, load_scene_roles
from limbeck.data.scienceqa import ScienceQaSourceConfig, load_scienceqa_conversations

AnyConversations = (
    LlavaConfig
    | MessagesConfig
    | CaptionsConfig
    | InstructionsConfig
    | DialogueConfig
    | ScienceQaSourceConfig
    | SceneRolesConfig
    | SceneInstructionsConfig
)
ConversationSourceConfig = Annotated[AnyConversations, Field(discriminator="source")]


def load_conversation_source(config: AnyConversations, base: Path = Path()) -> ConversationSource:
    """Open a source. Relative paths start from `base`. Raises DataError."""
    match config:
        case LlavaConfig():
            return load_llava(config, base)
        case MessagesConfig():
            return load_messages(config, base)
        case ScienceQaSourceConfig():
            return load_scienceqa_conversations(config, base)
        case SceneRolesConfig() | SceneInstructionsConfig():
            return load_scene_roles(config, base)
        case CaptionsConfig() | InstructionsConfig() | DialogueConfig():
            return load_examples(config, base)


def load_conversations(configs: Sequence[AnyConversations], base: Path = Path(), where: str = "") -> ConversationSource:
    """Several sources as one, in the order given; `where` is their key path in the recipe, for what is wrong."""
    sources = []
    for index, config in enumerate(configs):
        with told_at(f"{where}.{index}" if where else ""):
            sources.append(load_conversation_source(config, base))
    return join(sources)
