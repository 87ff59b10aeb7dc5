"""A competition before it is held: how many calls, tokens and hours it will take, by role and round.

What a competition writes is not known before it is held. What is assumed is said: how much each round adds (the paper's
own pools: 84K, 90K and 110K instructions after 220K), and how long answers are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from math import ceil
from pathlib import Path
from typing import Any

from limbeck.assemble.comd import open_instructions
from limbeck.assemble.writers import open_conversations
from limbeck.competition.endpoint_config import EndpointsConfig
from limbeck.competition.prompts import Prompts, load_prompts
from limbeck.data.conversations import group_starts
from limbeck.data.examples import DataError
from limbeck.doctor.machine import planned_processes
from limbeck.evaluation.generative.benchmarks import BENCHMARKS, load_benchmark
from limbeck.evaluation.generative.judging import JudgedConfig
from limbeck.recipe.comd import CoMDRecipe, CompetitionConfig, LocalRole, RoleConfig

ADDED = (84 / 220, 90 / 304, 110 / 394)
"""New instructions of a round by those before it, in the paper; later rounds as the last."""
TAKEN = 0.9
"""Share of what the augmentor writes that is taken, an assumption."""
TOKENS_PER_WORD = 4 / 3
PICTURE = 576
"""Tokens of a picture as a server's model reads it, of LLaVA-1.5; an assumption."""
ANSWER = 80
"""Words of an answer where the data have none to go by, an assumption."""
EVIDENCE = 60
"""Words of an assessment, an assumption."""
PREFILL, DECODE = 22_000, 6_200
"""Tokens a second that a server with one H200 reads and writes with a model of 13B (an estimate from its bandwidth and
products, not a measurement)."""


@dataclass(frozen=True, kw_only=True)
class Calls:
    """What one role is asked in one round."""

    round: int
    role: str
    calls: int
    prompt_tokens: int
    new_tokens: int

    @property
    def hours(self) -> float:
        """Of one H200 with a 13B model behind a server that batches."""
        return (self.prompt_tokens / PREFILL + self.new_tokens / DECODE) / 3600


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What one tuning trains on."""

    number: int
    instructions: int
    conversations: int
    tokens: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Before:
    """What one stage before the competition trains on."""

    name: str
    kind: str
    conversations: int | None
    """None where its data are not here"""
    steps: int | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A competition's calls and tunings, and the stages before it, as far as they can be foreseen."""

    instructions: int
    pictures: int
    pool: int
    """instructions in the end"""
    calls: tuple[Calls, ...]
    stages: tuple[Before, ...]
    tunings: tuple[Tuning, ...]
    processes: int
    """that share each step (torchrun's WORLD_SIZE)"""
    roles: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """All of it, with sums."""
        calls = [asdict(each) | {"hours": each.hours} for each in self.calls]
        keys = ("calls", "prompt_tokens", "new_tokens", "hours")
        total = {key: sum(each[key] for each in calls) for key in keys}
        return asdict(self) | {"calls": calls, "total": total}


def plan_of(recipe: CoMDRecipe, processes: int | None = None) -> Plan:
    """Read the recipe's data and foresee its stages and competition. Nothing is asked and no model is loaded.

    `processes` share each step; None takes torchrun's WORLD_SIZE, or one. Raises RecipeError, PromptError, and
    DataError where the instructions are not here, or a benchmark that wants a judge.
    """
    config, processes = recipe.competition, processes or planned_processes()
    if config is None:
        raise ValueError("competition: this recipe has none; it trains its stages alone")
    source = open_instructions(recipe)
    asked, answered, pictures, single, blind = 0, 0, set(), 0, 0
    for conversation in source.conversations:
        for question, answer in conversation.exchanges:
            single += 1
            blind += conversation.image is None
            asked += len(question.split())
            answered += len(answer.split())
        if conversation.image is not None:
            pictures.add(conversation.image.key)
    prompts = load_prompts(config.prompts, Path(recipe.data.root))
    lengths = _Lengths.of(prompts, config, asked / single, answered / single)
    sizes = sizes_of(single, recipe.tunings, config)
    reviews = list(_reviews(recipe))
    calls = [
        each
        for number in range(1, recipe.tunings + 1)
        for each in (*_calls(number, sizes, recipe.tunings, lengths), *_judged(number, recipe, reviews, lengths))
    ]
    spread = Spread(pictures=len(pictures), seeds=single, blind=blind)
    learned = sizes if config.tuning.pool == "tuning" else list(accumulate(sizes))
    tunings = [
        _tuning(number, size, spread, recipe, lengths, processes) for number, size in enumerate(learned, start=1)
    ]
    return Plan(
        instructions=single,
        pictures=len(pictures),
        pool=sum(sizes),
        calls=tuple(calls),
        stages=tuple(_stages(recipe, processes)),
        tunings=tuple(tunings),
        processes=processes,
        roles=_roles(recipe),
    )


@dataclass(frozen=True, kw_only=True)
class _Lengths:
    """Tokens of what is read and written, on average."""

    instruction: float
    answer: float
    assess: float
    """the assessor's template alone"""
    assessment: float
    augment: float
    """the augmentor's template alone"""

    @staticmethod
    def of(prompts: Prompts, config: CompetitionConfig, asked: float, answered: float) -> _Lengths:
        def tokens(words: float) -> float:
            return words * TOKENS_PER_WORD

        return _Lengths(
            instruction=tokens(asked),
            answer=min(tokens(answered or ANSWER), config.answer.max_new_tokens),
            assess=tokens(len(prompts.assess("", "", "").split())),
            assessment=min(tokens(EVIDENCE), config.assess.max_new_tokens),
            augment=tokens(len(prompts.augment("").split())),
        )


def sizes_of(first: int, tunings: int, config: CompetitionConfig) -> list[int]:
    """How many instructions each tuning's pool (D_T) is expected to have, from those of the first."""
    sizes = [first]
    while len(sizes) < tunings:
        share = ADDED[min(len(sizes), len(ADDED)) - 1]
        if not (config.use_hard and config.use_easy):
            share /= 2
        sizes.append(round(share * sum(sizes)))
    return sizes


def _calls(number: int, sizes: Sequence[int], tunings: int, lengths: _Lengths) -> list[Calls]:
    """What tuning `number` and the round after it ask; every call reads a picture."""
    own, everything = sizes[number - 1], sum(sizes[:number])

    def calls(role: str, count: int, read: float, written: float) -> Calls:
        return Calls(
            round=number,
            role=role,
            calls=count,
            prompt_tokens=round(count * (PICTURE + read)),
            new_tokens=round(count * written),
        )

    found = [calls("teacher", own, lengths.instruction, lengths.answer)]
    if number < tunings:
        judged = lengths.assess + lengths.instruction + 2 * lengths.answer
        written = ceil(sizes[number] / TAKEN)
        found += [
            calls("student", everything, lengths.instruction, lengths.answer),
            calls("assessor", 2 * everything, judged, lengths.assessment),
            calls("augmentor", min(written, everything), lengths.augment + lengths.instruction, lengths.instruction),
        ]
    return found


def _reviews(recipe: CoMDRecipe) -> Iterator[float]:
    """Tokens of what the judge reads of each answer that it reviews, without the answer. Raises DataError."""
    for config in recipe.evaluation.benchmarks:
        review = BENCHMARKS[config.benchmark].review
        if isinstance(config, JudgedConfig) and review is not None:
            for item in load_benchmark(config, Path(recipe.data.root)):
                prompt = review({"id": item.id, **item.row, "prompt": item.prompt, "prediction": ""})
                yield len(prompt.split()) * TOKENS_PER_WORD


def _judged(number: int, recipe: CoMDRecipe, reviews: Sequence[float], lengths: _Lengths) -> list[Calls]:
    """What the judge is asked after a tuning: the student's answers and, after the last one, a local teacher's too."""
    teacher = number == recipe.tunings and recipe.evaluation.teacher and isinstance(recipe.teacher, LocalRole)
    times = 2 if teacher else 1
    calls = times * len(reviews)
    read = round(times * sum(reviews) + calls * ANSWER * TOKENS_PER_WORD)
    written = round(calls * EVIDENCE * TOKENS_PER_WORD)
    return [Calls(round=number, role="judge", calls=calls, prompt_tokens=read, new_tokens=written)] if calls else []


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How instructions lie over pictures."""

    pictures: int
    seeds: int
    """instructions of the first pool"""
    blind: int
    """those of them without a picture"""

    def conversations(self, size: int, *, whole: bool) -> int:
        """Of so many instructions: of a pool that has every picture, or new ones whose pictures are drawn by chance."""
        blind = size * self.blind / self.seeds
        if whole or self.pictures == 0:
            return self.pictures + ceil(blind)
        seen = self.pictures * (1 - (1 - 1 / self.pictures) ** (size - blind))
        return ceil(seen + blind)


def _tuning(number: int, size: int, spread: Spread, recipe: CoMDRecipe, lengths: _Lengths, processes: int) -> Tuning:
    assert recipe.competition is not None
    settings = recipe.training | recipe.competition.tuning.training
    whole = number == 1 or recipe.competition.tuning.pool == "cache"
    single = recipe.competition.tuning.turns == "single"
    conversations = size if single else spread.conversations(size, whole=whole)
    tokens = size * (lengths.instruction + lengths.answer) + conversations * PICTURE
    return Tuning(
        number=number,
        instructions=size,
        conversations=conversations,
        tokens=round(tokens),
        steps=_steps(conversations, settings, processes),
    )


def _stages(recipe: CoMDRecipe, processes: int) -> Iterator[Before]:
    for index, stage in enumerate(recipe.stages):
        try:
            count = len(group_starts(open_conversations(stage.data, recipe.data, f"stages.{index}.data"))) - 1
        except DataError:
            count = None
        steps = None if count is None else _steps(count, recipe.training | stage.training, processes)
        yield Before(name=stage.name, kind=stage.kind, conversations=count, steps=steps)


def _steps(conversations: int, settings: Mapping[str, Any], processes: int) -> int:
    """Optimizer steps by TrainingArguments' own names."""
    steps = settings.get("max_steps", -1)
    if steps > 0:
        return steps
    batch = settings.get("per_device_train_batch_size", 8) * settings.get("gradient_accumulation_steps", 1)
    return ceil(conversations / (batch * processes) * settings.get("num_train_epochs", 3))


def _roles(recipe: CoMDRecipe) -> dict[str, str]:
    """Who fills each role, for people."""
    assert recipe.teacher is not None
    roles = {"teacher": recipe.teacher, "assessor": recipe.assessor, "augmentor": recipe.augmentor}
    filled = {role: _name(config or recipe.teacher) for role, config in roles.items()}
    return filled | ({"judge": _name(recipe.judge)} if recipe.judge is not None else {})


def _name(role: RoleConfig) -> str:
    if not isinstance(role, EndpointsConfig):
        return f"{role.folder}, in this process"
    addresses = [role.endpoint] if isinstance(role.endpoint, str) else role.endpoint
    return f"{role.model} at {', '.join(addresses)}"
