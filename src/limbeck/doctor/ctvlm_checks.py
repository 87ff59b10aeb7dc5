"""What a CTVLM recipe is checked for before it trains; all of it is cheap where the models are small."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from limbeck.data.chat import Chat
from limbeck.data.conversations import ConversationSource
from limbeck.data.dialogue_set import Dialogues
from limbeck.distributed import world_size
from limbeck.doctor.agreement import check_agreement
from limbeck.doctor.batches import batch_of, longest_item
from limbeck.doctor.finding import Finding, failed, refuse, tried
from limbeck.doctor.gradients import by_module, check_gradients
from limbeck.doctor.texts import check_picture, check_template, check_tokenizer, check_vocabulary
from limbeck.doctor.weights import Pretrained, check_weights, fresh_config
from limbeck.methods.ctvlm import CTVLM
from limbeck.models.duet import Duet
from limbeck.models.duet_eye import make_eye
from limbeck.models.duet_layout import pack, segments
from limbeck.recipe.ctvlm import CTVLMRecipe
from limbeck.training.freeze import freeze

QUICK = 5 * 10**8
"""Weights up to which `train` tries a forward and backward pass before it begins."""
FULL = 0.9
"""Share of a model's positions past which others than those looked at may have too many tokens."""

LEARNERS: Mapping[str, set[str]] = {
    "language": {"large"},
    "align_tiny": {"tiny"},
    "align_large": set(),
    "tune": {"tiny", "large"},
}
"""Kinds of stages -> the models that learn in them."""
UNTRAINED = {
    "tiny": "no stage before it trains the tiny model, whose connector is new (align_tiny does)",
    "large": "the large model has no pretrained weights, and no stage before it trains them (language does)",
}
"""Teachers -> why they know nothing."""


def refuse_unsound(
    recipe: CTVLMRecipe, tokenizer: PreTrainedTokenizerFast, method: CTVLM, datasets: Mapping[str, Dialogues]
) -> None:
    """The cheap part: raise RecipeError where a check fails, with all that failed. The method is left as it was.

    Nothing is computed with large models, nor by one of several processes.
    """
    tries = world_size() == 1 and sum(x.numel() for x in method.parameters()) <= QUICK
    sources = {name: dataset.source for name, dataset in datasets.items()}
    training = method.training
    with torch.random.fork_rng(devices=[]):
        findings = [
            check_tokenizer(tokenizer, recipe.duet.large.folder),
            *check_templates(recipe, tokenizer, sources),
            *model_checks(recipe, tokenizer, method, datasets, torch.device("cpu"), tries=tries),
        ]
    method.train(training)
    refuse(findings)


def model_checks(
    recipe: CTVLMRecipe,
    tokenizer: PreTrainedTokenizerFast,
    method: CTVLM,
    datasets: Mapping[str, Dialogues],
    device: torch.device,
    *,
    tries: bool,
) -> list[Finding]:
    """What there is to see of the models; with `tries` by passes over two rows too."""
    duet, last = method.duet, datasets[recipe.stages[-1].name]
    chat = Chat(tokenizer, recipe.stages[-1].chat)
    findings = [
        check_teachers(recipe),
        check_vocabulary(tokenizer, duet),
        tried("image tokens", lambda: check_picture(duet, chat, last)),
        tried("lengths", lambda: check_lengths(duet, datasets, recipe.data.dialogues.max_length)),
        *(check_weights(part) for part in pretrained_parts(recipe, duet)),
    ]
    if failed(findings) or not tries:
        return findings
    method.to(device)
    findings.append(tried("teacher = itself", lambda: check_agreement(method, last, device)))
    for stage in method.stages():
        check = f"gradients {stage.name}"
        findings.append(tried(check, lambda stage=stage: check_gradients(method, stage, datasets[stage.name], device)))
    findings += check_trainable(recipe, method)
    method.stage = method.plan[0]
    return findings


def check_templates(
    recipe: CTVLMRecipe, tokenizer: PreTrainedTokenizerFast, sources: Mapping[str, ConversationSource]
) -> list[Finding]:
    """One finding for each template in use."""
    stages: dict[str, list[int]] = {}
    for number, stage in enumerate(recipe.stages):
        stages.setdefault(repr(stage.chat), []).append(number)
    findings = []
    for numbers in stages.values():
        config, names = recipe.stages[numbers[0]].chat, [recipe.stages[number].name for number in numbers]
        check = f"template {config.template}"
        findings.append(tried(check, lambda c=config, n=names: check_template(c, tokenizer, sources[n[0]], n)))
    return findings


def check_teachers(recipe: CTVLMRecipe) -> Finding:
    """Whether every teacher has learned before it teaches: the large model from a folder or in a stage, the tiny one in
    a stage, as its way to the picture is always new. A stage that a run takes over counts as any other."""
    trained = {"large"} if recipe.duet.large.folder is not None else set[str]()
    said, doubts = [], []
    for stage in recipe.stages:
        if stage.direction != "none" and stage.lambda_ > 0:
            teacher = "tiny" if stage.kind == "align_large" else "large"
            said.append(f"the {teacher} model in {stage.name}")
            if teacher not in trained:
                doubts.append(f"the teacher of stage {stage.name} was never trained: {UNTRAINED[teacher]}")
        trained |= {"tiny"} if stage.models == "tiny" else LEARNERS[stage.kind]
    if doubts:
        return Finding("teachers", "warning", "; ".join(doubts))
    text = f"{', '.join(said)}; each was trained before" if said else "no stage has one"
    return Finding("teachers", "ok", text)


def check_lengths(duet: Duet, datasets: Mapping[str, Dialogues], max_length: int) -> Finding:
    """How near the longest conversations come to both models' positions, past which they are left out."""
    tiny, large = duet.config.tiny_part.text_part, duet.config.large_part
    longest = {"tiny": 0, "large": 0}
    for dataset in {id(dataset): dataset for dataset in datasets.values()}.values():
        item, tokens = longest_item(dataset)
        batch = batch_of(dataset, [item], torch.device("cpu"))
        segment = segments(batch["input_ids"], batch["attention_mask"], batch["labels"], duet.image_token_id)
        packing = pack(segment, duet.config.features, has_features=duet.config.tiny_part.in_sequence)
        longest["tiny"] = max(longest["tiny"], tokens)
        longest["large"] = max(longest["large"], packing.source.shape[1])
    positions = {"tiny": tiny.max_position_embeddings, "large": large.max_position_embeddings}
    figures = {"longest": longest, "positions": positions, "max_length": max_length}
    text = ", ".join(f"{role} {length} of {positions[role]} positions" for role, length in longest.items())
    text = f"the longest of a sample: {text}"
    tight = [role for role, length in longest.items() if length > FULL * positions[role]]
    tight += ["tiny"] * (max_length > positions["tiny"])
    if not tight:
        return Finding("lengths", "ok", text, figures)
    doubt = f"others may be too long for the {' and '.join(dict.fromkeys(tight))} model, and are left out"
    return Finding("lengths", "warning", f"{text}; max_length is {max_length}: {doubt}", figures)


def check_trainable(recipe: CTVLMRecipe, method: CTVLM) -> list[Finding]:
    """Where a stage's own `trainable` differs from what the paper trains in it. Empty where no stage has its own."""
    if not any(stage.trainable for stage in recipe.stages):
        return []
    paper = CTVLM(
        method.duet, method.vocabulary, [replace(stage, trainable=()) for stage in method.plan], recipe.duet.embedding
    )
    doubts = []
    for config, own, usual in zip(recipe.stages, method.plan, paper.plan, strict=True):
        if not config.trainable:
            continue
        chosen, usually = (set(freeze(method, stage.trainable)) for stage in (own, usual))
        doubts += [f"{own.name} leaves out {by_module(sorted(usually - chosen))}"] * bool(usually - chosen)
        doubts += [f"{own.name} adds {by_module(sorted(chosen - usually))}"] * bool(chosen - usually)
    if not doubts:
        return []
    return [Finding("trainable", "warning", "; ".join([*doubts, "compared with the paper's table of stages"]))]


def pretrained_parts(recipe: CTVLMRecipe, duet: Duet) -> list[Pretrained]:
    """What the recipe says is trained already: the eye always, a language model where it has a folder."""
    eye, text, large = duet.config.tiny_part.eye_part, duet.config.tiny_part.text_part, duet.config.large_part
    parts = [Pretrained("eye", recipe.duet.eye, duet.tiny.eye, lambda: make_eye(fresh_config(eye)))]
    if recipe.duet.tiny.folder is not None:
        made = Pretrained(
            "tiny", recipe.duet.tiny.folder, duet.tiny.body, lambda: AutoModel.from_config(fresh_config(text))
        )
        parts.append(made)
    if recipe.duet.large.folder is not None:
        made = Pretrained(
            "large", recipe.duet.large.folder, duet.large, lambda: AutoModelForCausalLM.from_config(fresh_config(large))
        )
        parts.append(made)
    return parts
