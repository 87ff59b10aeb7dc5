"""What CTVLM's two models are made of, in transformers' words: configs that save as config.json and load again.

A tiny VLM is an eye (CLIP, SigLIP or ViT), a connector and the body of a decoder-only language model. A duet is a tiny
VLM, a second connector, and a large language model that reads the tiny one's hidden states.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, OPTConfig, PreTrainedConfig, SiglipVisionConfig

Embeddings = Literal["large_frozen", "resized"]
Fusion = Literal["prefix+cross", "prefix", "cross"]
ConnectorKind = Literal["mlp", "linear"]
Features = Literal["I", "I+T", "P+I+T"]

CLASS_TOKENS = {"clip_vision_model": 1, "vit": 1, "siglip_vision_model": 0}
"""The eyes, by transformers' model_type -> class tokens in front of their patches."""


class TinyVLMConfig(PreTrainedConfig):
    """An eye and a tiny language model.

    Args:
        eye: config of the image tower.
        text: config of the tiny language model; its `vocab_size` is the number of rows of the token table.
        embeddings: `large_frozen`, a frozen table as wide as the large model's, which it is a copy of, with a bias-free
            projection from it and one back to it, and the head tied to it (OPT's own `word_embed_proj_dim`);
            `resized`, a trainable table of the body's width, with the head tied to it.
        table_width: width E of the frozen table; None takes the body's width.
        fusion: whether picture tokens stand in the sequence (`prefix`), meet it in cross-attention after the
            self-attention of every layer (`cross`), or both.
        connector: `mlp`, two linear layers with GELU between them, LLaVA-1.5's mlp2x_gelu; or `linear`, a single one.
        eye_layer: whose hidden states the picture tokens are, counted from the last one, -1.
        drop_class_token: None drops it where the eye has one.
        image_token_id: stands in a sequence where a picture token belongs; may lie past the table's rows.
    """

    model_type = "limbeck_tiny_vlm"
    sub_configs: ClassVar[Any] = {"eye": AutoConfig, "text": AutoConfig}  # pyright: ignore[reportIncompatibleMethodOverride]

    eye: PreTrainedConfig | dict | None = None
    text: PreTrainedConfig | dict | None = None
    embeddings: Embeddings = "large_frozen"
    table_width: int | None = None
    fusion: Fusion = "prefix+cross"
    connector: ConnectorKind = "mlp"
    eye_layer: int = -2
    drop_class_token: bool | None = None
    image_token_id: int = 32000
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs: Any) -> None:
        self.eye = sub_config(self.eye, CLIPVisionConfig)
        self.text = sub_config(self.text, OPTConfig)
        if self.table_width is None:
            self.table_width = width_of(self.text)
        known(self, "embeddings", Embeddings)
        known(self, "fusion", Fusion)
        known(self, "connector", ConnectorKind)
        kind = self.eye.model_type
        if kind not in CLASS_TOKENS:
            raise ValueError(f"eye: model_type {kind!r}; known are {', '.join(CLASS_TOKENS)}")
        if isinstance(self.eye, SiglipVisionConfig):
            self.eye.vision_use_head = False
        if self.drop_class_token is None:
            self.drop_class_token = CLASS_TOKENS[kind] > 0
        if self.drop_class_token and not CLASS_TOKENS[kind]:
            raise ValueError(f"drop_class_token: an eye of model_type {kind!r} has no class token")
        layers = self.eye.num_hidden_layers
        if not -layers <= self.eye_layer <= -1:
            raise ValueError(f"eye_layer is {self.eye_layer}; this eye has the layers -{layers} to -1")
        if self.embeddings == "resized" and self.table_width != width_of(self.text):
            raise ValueError(
                f"table_width is {self.table_width}, but a resized table has the body's width, {width_of(self.text)}"
            )
        kept = [(part, part._attn_implementation, part._experts_implementation) for part in parts_of(self)]
        super().__post_init__(**kwargs)
        restore(kept)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The language model's part, which generation asks for its layers."""
        return self.text_part

    @property
    def eye_part(self) -> PreTrainedConfig:
        assert isinstance(self.eye, PreTrainedConfig)
        return self.eye

    @property
    def text_part(self) -> PreTrainedConfig:
        assert isinstance(self.text, PreTrainedConfig)
        return self.text

    @property
    def width(self) -> int:
        """D, of the hidden states that the large model reads."""
        return width_of(self.text_part)

    @property
    def image_tokens(self) -> int:
        """N, of one picture."""
        patches = (self.eye_part.image_size // self.eye_part.patch_size) ** 2
        return patches + (0 if self.drop_class_token else CLASS_TOKENS[self.eye_part.model_type])

    @property
    def in_sequence(self) -> bool:
        """Whether the body reads picture tokens as part of the sequence."""
        return self.fusion != "cross"

    @property
    def crosses(self) -> bool:
        """Whether layers have cross-attention to the picture."""
        return self.fusion != "prefix"


class DuetConfig(PreTrainedConfig):
    """A tiny VLM and the large language model that reads its features.

    Args:
        tiny: config of the tiny VLM.
        large: config of the large language model.
        features: the positions of the tiny sequence whose hidden states the large model reads: the picture (I), the
            text between the picture and the answer (T), the prompt before the picture (P).
        connector: kind of the map from the tiny model's hidden states to the large one's embeddings.
        answer_marker: the tokens that stand before an answer. Where no labels say what is answered, T ends with the
            first of them after the picture; None takes all that follows the picture for T.
    """

    model_type = "limbeck_duet"
    sub_configs: ClassVar[Any] = {"tiny": TinyVLMConfig, "large": AutoConfig}  # pyright: ignore[reportIncompatibleMethodOverride]

    tiny: TinyVLMConfig | dict | None = None
    large: PreTrainedConfig | dict | None = None
    features: Features = "I+T"
    connector: ConnectorKind = "mlp"
    answer_marker: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.large = sub_config(self.large, LlamaConfig)
        if self.tiny is None:
            text = OPTConfig(vocab_size=self.large.vocab_size)
            self.tiny = TinyVLMConfig(text=text, table_width=embedding_width(self.large))
        if isinstance(self.tiny, dict):
            self.tiny = TinyVLMConfig(**{name: value for name, value in self.tiny.items() if name != "model_type"})
        known(self, "features", Features)
        known(self, "connector", ConnectorKind)
        tiny, large = self.tiny, self.large
        if self.features == "I" and not tiny.in_sequence:
            raise ValueError(
                'features "I" with fusion "cross": the tiny sequence holds no picture tokens, so the large model would '
                'read nothing; take features "I+T" or "P+I+T", or a fusion with "prefix"'
            )
        if tiny.text_part.vocab_size != large.vocab_size:
            raise ValueError(
                f"the tiny model has {tiny.text_part.vocab_size} token embeddings and the large one "
                f"{large.vocab_size}; both models of a duet share one vocabulary"
            )
        if tiny.embeddings == "large_frozen" and tiny.table_width != embedding_width(large):
            raise ValueError(
                f"table_width is {tiny.table_width}, but the large model's token embeddings are "
                f"{embedding_width(large)} wide"
            )
        kept = [(part, part._attn_implementation, part._experts_implementation) for part in parts_of(self)]
        super().__post_init__(**kwargs)
        restore(kept)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The large language model's part, which answers."""
        return self.large_part

    @property
    def tiny_part(self) -> TinyVLMConfig:
        assert isinstance(self.tiny, TinyVLMConfig)
        return self.tiny

    @property
    def large_part(self) -> PreTrainedConfig:
        assert isinstance(self.large, PreTrainedConfig)
        return self.large

    @property
    def image_token_id(self) -> int:
        return self.tiny_part.image_token_id


def width_of(config: PreTrainedConfig) -> int:
    """D, the width of a model's hidden states."""
    return config.hidden_size


def embedding_width(config: PreTrainedConfig) -> int:
    """E, the width of a language model's token embeddings and of what meets its head."""
    if isinstance(config, OPTConfig):
        return config.word_embed_proj_dim or config.hidden_size
    return width_of(config)


def parts_of(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """The configs of a config's parts, and theirs, the outer ones first."""
    own = [vars(config)[name] for name in config.sub_configs]
    return [each for part in own for each in (part, *parts_of(part))]


def restore(kept: list[tuple[PreTrainedConfig, Any, Any]]) -> None:
    """Give parts back how they compute attention and experts.

    A new outer config makes them forget it, and a model that was built with such a part would no longer be causal.
    """
    for part, attention, experts in kept:
        part._attn_implementation = attention
        part._experts_implementation = experts


def sub_config(given: PreTrainedConfig | dict | None, default: type[PreTrainedConfig]) -> PreTrainedConfig:
    """A part's config from what config.json says of it."""
    if given is None:
        return default()
    if isinstance(given, PreTrainedConfig):
        return given
    if "model_type" not in given:
        raise ValueError(f"a part's config names no model_type; it has {', '.join(sorted(given))}")
    return AutoConfig.for_model(**given)


def known(config: PreTrainedConfig, field: str, choices: Any) -> None:
    """Raise ValueError unless the field holds one of a Literal's values."""
    value = vars(config)[field]
    if value not in get_args(choices):
        raise ValueError(f"{field} is {value!r}; it can be {', '.join(map(repr, get_args(choices)))}")
