"""CTVLM at the paper's size: the checkpoints it is made of, and how many parameters each of its towers has."""

from __future__ import annotations

from transformers import CLIPVisionConfig, LlamaConfig, OPTConfig, PreTrainedConfig, Qwen3Config

from limbeck.models.duet import Duet
from limbeck.models.duet_config import DuetConfig, Embeddings, Fusion, TinyVLMConfig, embedding_width

EYES: dict[str, PreTrainedConfig] = {
    "openai/clip-vit-large-patch14-336": CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    ),
}
"""Hub names of image towers -> their shapes."""
LANGUAGE_MODELS: dict[str, PreTrainedConfig] = {
    "facebook/opt-125m": OPTConfig(),
    "lmsys/vicuna-7b-v1.5": LlamaConfig(vocab_size=32000, max_position_embeddings=4096, rms_norm_eps=1e-5),
    "HuggingFaceTB/SmolLM2-135M": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    ),
    "Qwen/Qwen3-0.6B": Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    ),
}
"""Hub names of language models -> their shapes."""


def paper_config(embeddings: Embeddings = "large_frozen", fusion: Fusion = "prefix+cross") -> DuetConfig:
    """CLIP ViT-L/14-336, OPT-125m with Vicuna's vocabulary, Vicuna-7B (section 4.1)."""
    large = LANGUAGE_MODELS["lmsys/vicuna-7b-v1.5"]
    text = LANGUAGE_MODELS["facebook/opt-125m"].to_dict() | {
        "vocab_size": large.vocab_size,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    tiny = TinyVLMConfig(
        eye=EYES["openai/clip-vit-large-patch14-336"].to_dict(),
        text=text,
        embeddings=embeddings,
        table_width=embedding_width(large) if embeddings == "large_frozen" else None,
        fusion=fusion,
    )
    return DuetConfig(tiny=tiny, large=large.to_dict())


def parameter_groups(duet: Duet) -> dict[str, int]:
    """Parameters by tower, weights that share storage counted once; a duet on the meta device will do."""
    tiny = duet.tiny
    parts = {
        "tiny.eye": (tiny.eye,),
        "tiny.connector": (tiny.connector,),
        "tiny.body": (tiny.body,),
        "tiny.cross": (tiny.cross,),
        "tiny.projections": (tiny.project_in, tiny.project_out),
        "tiny.table": (tiny.table,),
        "connector": (duet.connector,),
        "large": (duet.large,),
    }
    return {
        name: sum(weight.numel() for module in modules if module is not None for weight in module.parameters())
        for name, modules in parts.items()
    }
