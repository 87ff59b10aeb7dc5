"""A CoMD recipe examined: its data and servers, and what its competition will take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from limbeck.assemble.comd import build_dialogues, build_method, build_student, open_stage_sources
from limbeck.competition.asking import AskingError
from limbeck.competition.endpoint_config import EndpointsConfig
from limbeck.competition.endpoints import Endpoints
from limbeck.doctor.benchmarks import check_benchmarks
from limbeck.doctor.competition import Plan, plan_of
from limbeck.doctor.finding import REST, Finding, count_of, failed, tried
from limbeck.doctor.speed import stage_arguments
from limbeck.models.hub import local_model
from limbeck.recipe.comd import CoMDRecipe, LocalRole, RoleConfig
from limbeck.recipe.shared import RecipeError


def examine_comd(recipe: CoMDRecipe, *, processes: int) -> list[Finding]:
    """Every check. Raises RecipeError or DataError where recipe or data cannot be read at all."""
    findings = [*_settings(recipe)]
    if failed(findings):
        return [*findings, REST]
    if recipe.competition is not None:
        findings.append(_plan(plan_of(recipe, processes)))
    findings += _servers(recipe)
    if failed(findings) or not _is_here(recipe):
        return [*findings, REST if failed(findings) else _away(recipe)]
    try:
        sources = open_stage_sources(recipe)
        student = build_student(recipe, sources)
        method = build_method(recipe, student)
        for stage in recipe.stages:
            dataset = build_dialogues(recipe, sources[stage.name], student, stage.chat)
            text = f"{len(dataset):,} conversations, {len(dataset.left_out):,} left out"
            findings.append(Finding(f"data {stage.name}", "ok", text, {"conversations": len(dataset)}))
    except (RecipeError, ValueError, OSError) as error:
        return [*findings, Finding("student", "failed", str(error)), REST]
    weights = sum(parameter.numel() for parameter in method.student.parameters())
    text = f"{type(method.student).__name__}, {count_of(weights)} parameters"
    return [*findings, Finding("student", "ok", text, {"parameters": weights})]


def _settings(recipe: CoMDRecipe) -> Iterator[Finding]:
    """What a run looks at first: the settings of training, the benchmarks' files, the folders of local roles."""

    def training() -> Finding:
        stages = stage_arguments(recipe, recipe.all_stages)
        return Finding("training", "ok", f"TrainingArguments of {', '.join(stages)}")

    yield tried("training", training)
    if recipe.evaluation.benchmarks:
        yield check_benchmarks(recipe.evaluation.benchmarks, Path(recipe.data.root))
    for role, config in _roles(recipe).items():
        if isinstance(config, LocalRole):
            try:
                yield Finding(role, "ok", f"{local_model(config.folder)}, in this process")
            except FileNotFoundError as error:
                yield Finding(role, "failed", f"{role}.folder: {error}")


def _roles(recipe: CoMDRecipe) -> dict[str, RoleConfig | None]:
    """Who fills each role by itself; None where another does, or nobody."""
    return {
        "teacher": recipe.teacher,
        "assessor": recipe.assessor,
        "augmentor": recipe.augmentor,
        "judge": recipe.judge,
    }


def _plan(plan: Plan) -> Finding:
    told = plan.to_json()
    total = told["total"]
    text = (
        f"{plan.instructions:,} instructions about {plan.pictures:,} pictures, about {count_of(plan.pool)} in the end; "
        f"{count_of(total['calls'])} calls, {count_of(total['prompt_tokens'])} tokens read and "
        f"{count_of(total['new_tokens'])} written, about {total['hours']:.2g} hours of an H200 with a 13B model "
        "(an estimate); `limbeck compete --dry-run` tells it by role and round"
    )
    return Finding("competition", "ok", text, told)


def _servers(recipe: CoMDRecipe) -> list[Finding]:
    """Whether each role that is a server answers, under that model and with that key."""
    findings = []
    for role, config in _roles(recipe).items():
        if isinstance(config, EndpointsConfig):
            try:
                server = Endpoints(config)
                text = "; ".join([f"{config.model} answers: {server.fingerprint}", *server.doubts])
                findings.append(Finding(role, "warning" if server.doubts else "ok", text))
            except AskingError as error:
                findings.append(Finding(role, "failed", str(error)))
    return findings


def _is_here(recipe: CoMDRecipe) -> bool:
    """Whether the student's pretrained parts are on this machine."""
    names = [recipe.student.folder, recipe.student.eye, recipe.student.language and recipe.student.language.folder]
    try:
        for name in names:
            if name is not None:
                local_model(name)
    except FileNotFoundError:
        return False
    return True


def _away(recipe: CoMDRecipe) -> Finding:
    return Finding("student", "warning", "its pretrained parts are not on this machine, so it was not put together")
