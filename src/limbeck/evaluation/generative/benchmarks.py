"""Every benchmark by its name, and the way from their files to rows, scores and one summary."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from limbeck.competition.asking import Asker
from limbeck.evaluation.generative import (
    captions,
    llava_bench,
    mmbench,
    mmmu,
    open_questions,
    scienceqa,
    seed_bench,
    source_questions,
    yes_no,
)
from limbeck.evaluation.generative.answering import AnsweringConfig, GenerativeModel, answer_all
from limbeck.evaluation.generative.items import Item, Scored
from limbeck.evaluation.generative.judging import JudgedConfig, review_all
from limbeck.evaluation.inputs import Row, read_rows, write_rows
from limbeck.writing import write_text

AnyBenchmark = (
    open_questions.VqaV2Config
    | open_questions.TextVqaConfig
    | open_questions.GqaConfig
    | scienceqa.ScienceQaConfig
    | seed_bench.SeedBenchConfig
    | yes_no.PopeConfig
    | yes_no.MmeConfig
    | mmbench.MMBenchConfig
    | mmmu.MmmuConfig
    | llava_bench.LlavaBenchCocoConfig
    | llava_bench.LlavaBenchWildConfig
    | captions.CocoCaptionsConfig
    | captions.CaptionsConfig
    | captions.ScenesCaptionConfig
    | source_questions.QuestionsConfig
    | source_questions.ScenesVqaConfig
)
BenchmarkConfig = Annotated[AnyBenchmark, Field(discriminator="benchmark")]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What a benchmark is made of. `load` takes the benchmark's own config and the folder relative paths start from."""

    load: Callable[[Any, Path], list[Item]]
    score: Callable[[Sequence[Row]], Scored]
    """from rows alone, without model and files"""
    review: Callable[[Row], str] | None = None
    """what a judge is asked about a row; rows are scored by what it replies"""
    submission: Callable[[Sequence[Row]], list[dict[str, Any]]] | None = None
    """what an evaluation server or the official script takes, written to <name>_results.json"""
    submitted: Callable[[Any, Path], list[str]] | None = None
    """ids that the submission names besides those asked, each with the answer ""; given what `load` is"""


BENCHMARKS: dict[str, Benchmark] = {
    "vqa_v2": Benchmark(
        load=open_questions.load_vqa_v2,
        score=open_questions.score_vqa,
        submission=open_questions.vqa_submission,
        submitted=open_questions.vqa_question_ids,
    ),
    "textvqa": Benchmark(load=open_questions.load_textvqa, score=open_questions.score_textvqa),
    "gqa": Benchmark(load=open_questions.load_gqa, score=open_questions.score_gqa),
    "scienceqa": Benchmark(load=scienceqa.load_scienceqa, score=scienceqa.score_scienceqa),
    "seed_bench": Benchmark(load=seed_bench.load_seed_bench, score=seed_bench.score_seed_bench),
    "pope": Benchmark(load=yes_no.load_pope, score=yes_no.score_pope),
    "mme": Benchmark(load=yes_no.load_mme, score=yes_no.score_mme),
    "mmbench": Benchmark(load=mmbench.load_mmbench, score=mmbench.score_mmbench),
    "mmmu": Benchmark(load=mmmu.load_mmmu, score=mmmu.score_mmmu),
    "llava_bench_coco": Benchmark(
        load=llava_bench.load_llava_bench, score=llava_bench.score_llava_bench, review=llava_bench.coco_review
    ),
    "llava_bench_wild": Benchmark(
        load=llava_bench.load_llava_bench, score=llava_bench.score_llava_bench, review=llava_bench.wild_review
    ),
    "coco_captions": Benchmark(
        load=captions.load_coco_captions, score=captions.score_captions, submission=captions.caption_submission
    ),
    "captions": Benchmark(load=captions.load_captions, score=captions.score_captions),
    "scenes_caption": Benchmark(load=captions.load_captions, score=captions.score_captions),
    "questions": Benchmark(load=source_questions.load_questions, score=open_questions.score_vqa),
    "scenes_vqa": Benchmark(load=source_questions.load_questions, score=open_questions.score_vqa),
}


def load_benchmark(config: AnyBenchmark, base: Path = Path()) -> list[Item]:
    """The items of a benchmark; relative paths start from `base`. Raises DataError."""
    return BENCHMARKS[config.benchmark].load(config, base)


def score(benchmark: str, rows: Sequence[Row]) -> dict[str, Any]:
    """The summary of rows by a benchmark's rules; a row is an item's `row` with `id` and `prediction`, and with `judge`
    and `review` where the benchmark wants a judge."""
    return BENCHMARKS[benchmark].score(rows).summary


def with_predictions(items: Sequence[Item], predictions: Mapping[str, str]) -> list[Row]:
    """Rows for answers that were made elsewhere, by item id. Raises ValueError where one is missing."""
    missing = [item.id for item in items if item.id not in predictions]
    if missing:
        raise ValueError(f"no answer to {len(missing)} of {len(items)} items, the first {missing[:5]}")
    return [{"id": item.id, **item.row, "prompt": item.prompt, "prediction": predictions[item.id]} for item in items]


def asks(config: AnyBenchmark) -> bool:
    """Whether a benchmark says something to the model, and does not only show it pictures."""
    return not isinstance(config, captions.CaptionConfig) or bool(config.prompt.strip())


def check_benchmarks(configs: Sequence[AnyBenchmark], *, judge: bool) -> None:
    """Raise ValueError where two have one name, or one wants a judge and there is none."""
    names = [config.name or config.benchmark for config in configs]
    if len(set(names)) < len(names):
        raise ValueError(f"evaluation.benchmarks: wanted different names, found {', '.join(names)}; give each a `name`")
    for index, config in enumerate(configs):
        if isinstance(config, JudgedConfig) and not judge:
            raise ValueError(
                f"evaluation.benchmarks.{index}: {config.benchmark} wants a judge and there is none; name one "
                "(`judge`: a model's folder or an endpoint), or leave the benchmark out"
            )


def evaluate_generative(
    model: GenerativeModel,
    configs: Sequence[AnyBenchmark],
    folder: Path,
    *,
    base: Path = Path(),
    answering: AnsweringConfig | None = None,
    judge: Asker | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Answer and score benchmarks; write ``<folder>/evaluation/<name>.jsonl`` and ``summary.json``, which is returned.

    Every benchmark's files are read before the first answer, so that a wrong path costs no time. A second call goes on
    where a killed one stopped. Each row says its `benchmark` and, where its rules grade single answers, `accuracy`;
    the summary holds the figures by name, and `skipped` where pictures were broken or prompts too long. A benchmark
    named `vqa` or `captioning` stands where the report looks for those tasks. Benchmarks that want a judge show it
    their rows and keep its reviews in ``<name>_reviews.jsonl`` too. Raises ValueError where two have one name or a
    benchmark wants a judge and there is none, DataError.
    """
    if not configs:
        raise ValueError("evaluation: wanted benchmarks, found none")
    check_benchmarks(configs, judge=judge is not None)
    names = [config.name or config.benchmark for config in configs]
    loaded = [load_benchmark(config, base) for config in configs]
    out = folder / "evaluation"
    summary: dict[str, Any] = {}
    for name, config, items in zip(names, configs, loaded, strict=True):
        benchmark = BENCHMARKS[config.benchmark]
        path = out / f"{name}.jsonl"
        settings = answering or AnsweringConfig()
        if config.temperature is not None:
            settings = settings.model_copy(update={"temperature": config.temperature})
        answers = answer_all(
            model, items, path, max_new_tokens=config.max_new_tokens, config=settings, progress=progress, name=name
        )
        rows = answers.rows
        if isinstance(config, JudgedConfig) and benchmark.review is not None and judge is not None:
            reviews = out / f"{name}_reviews.jsonl"
            rows = review_all(judge, rows, benchmark.review, reviews, config, progress=progress, name=f"{name} reviews")
        scored = benchmark.score(rows)
        graded = zip(rows, scored.grades, strict=True)
        write_rows(path, [{**row, "benchmark": config.benchmark, **grade} for row, grade in graded])
        if benchmark.submission is not None:
            asked = {row["id"] for row in rows}
            others = benchmark.submitted(config, base) if benchmark.submitted is not None else []
            silent = [{"id": id, "prediction": ""} for id in others if id not in asked]
            results = json.dumps(benchmark.submission([*rows, *silent]), ensure_ascii=False)
            write_text(out / f"{name}_results.json", results)
        summary[name] = scored.summary | ({"skipped": len(answers.skipped)} if answers.skipped else {})
        _write_summary(out, summary)
    return summary


def recompute_generative(folder: Path) -> dict[str, Any]:
    """The summary anew from the rows that a run folder holds, without its model; it is written and returned."""
    out = folder / "evaluation"
    summary: dict[str, Any] = {}
    for path in sorted(out.glob("*.jsonl")):
        rows = read_rows(path)
        if "benchmark" in rows[0]:
            summary[path.stem] = score(rows[0]["benchmark"], rows)
    if not summary:
        raise ValueError(f"{out}: no rows of a benchmark to compute from; wanted <name>.jsonl by evaluate_generative")
    _write_summary(out, summary)
    return summary


def _write_summary(out: Path, summary: dict[str, Any]) -> None:
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
