"""A model from what lies on disk: limbeck's folders, transformers' BLIP and CLIP folders, Salesforce's BLIP files."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

from limbeck.explain import explain
from limbeck.models.blip_import import assemble, read_blip, read_salesforce
from limbeck.models.clip import CLIP_PARTS, LEGACY_END, ClipConfig, DualEncoder
from limbeck.models.families import filled_model
from limbeck.models.files import CONFIG, read_model_type, read_object, read_weights
from limbeck.models.fusion import FusionConfig, FusionVLM
from limbeck.models.hub import local_model
from limbeck.models.names import text_values, vision_values


def load_model(*sources: Path | str) -> FusionVLM | DualEncoder:
    """The model that one folder or file holds, or the BLIP that several hold together (retrieval and captioning).

    Known are limbeck's folders, transformers' folders of BlipForImageTextRetrieval, BlipForConditionalGeneration,
    BlipForQuestionAnswering and CLIPModel, and Salesforce's BLIP files (.pth). What is no path here is taken for a
    Hugging Face name and fetched. A BLIP checkpoint without some part gives a model without it. Returned in `eval`
    mode.

    Raises FileNotFoundError where nothing is there, ValueError naming a file that is damaged, or the weights that are
    missing, unknown, of a wrong shape, not finite or nothing but zeros.
    """
    if not sources:
        raise ValueError("load_model wants at least one folder or file")
    paths = [local_model(source) for source in sources]
    kinds = [_kind(path) for path in paths]
    if len(paths) > 1 and set(kinds) - {"blip", "salesforce"}:
        raise ValueError(
            f"only BLIP checkpoints can be put together; {paths[0]} is {kinds[0]}, {paths[1]} is {kinds[1]}"
        )
    match kinds[0]:
        case "limbeck_blip" | "limbeck_albef" | "limbeck_clip":
            model = _load_limbeck(paths[0])
        case "clip":
            model = _load_clip(paths[0])
        case _:
            parts = [read_blip(path) if kind == "blip" else read_salesforce(path) for path, kind in zip(paths, kinds)]
            model = assemble(parts)
    return model.eval()


def _kind(path: Path) -> str:
    if path.is_file():
        return "salesforce"
    kind = read_model_type(path)
    known = ("limbeck_blip", "limbeck_albef", "limbeck_clip", "blip", "clip")
    if kind not in known:
        raise ValueError(f"{path / CONFIG}: model_type {kind!r}; known are {', '.join(known)}")
    return kind


def _load_limbeck(folder: Path) -> FusionVLM | DualEncoder:
    values = read_object(folder / CONFIG)
    kind = ClipConfig if values.pop("model_type") == "limbeck_clip" else FusionConfig
    try:
        config = kind.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{folder / CONFIG}: " + "; ".join(explain(error, kind))) from error
    return filled_model(config, read_weights(folder), folder)


def _load_clip(folder: Path) -> DualEncoder:
    config = CLIPConfig.from_pretrained(folder)
    vision, text = config.vision_config, config.text_config
    assert isinstance(vision, CLIPVisionConfig)
    assert isinstance(text, CLIPTextConfig)
    if vision.hidden_act != text.hidden_act:
        raise ValueError(
            f"{folder / CONFIG}: towers of different hidden_act, {vision.hidden_act} and {text.hidden_act}"
        )
    ours = ClipConfig.model_validate(
        {
            "vision": vision_values(vision),
            "text": {
                **text_values(text),
                "dropout": float(text.attention_dropout or 0),
                "sep_token_id": text.vocab_size - 1 if text.eos_token_id == LEGACY_END else text.eos_token_id,
            },
            "embedding": config.projection_dim,
            "activation": text.hidden_act,
        }
    )
    state = {}
    for name, tensor in read_weights(folder).items():
        if not name.endswith("position_ids"):
            prefix, _, rest = name.partition(".")
            state[f"{CLIP_PARTS.get(prefix, prefix)}.{rest}" if rest else name] = tensor
    if "logit_scale" in state:
        state["temperature"] = torch.exp(-state.pop("logit_scale").float())
    model = filled_model(ours, state, folder)
    assert isinstance(model, DualEncoder)
    return model
