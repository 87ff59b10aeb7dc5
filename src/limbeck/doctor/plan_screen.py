"""A competition's plan as two tables on the screen."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from limbeck.doctor.competition import PICTURE, Plan
from limbeck.doctor.finding import count_of


def print_plan(console: Console, plan: Plan) -> None:
    """What would be asked, what would be trained, and on which assumptions."""
    asked = Table(title="what is asked", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in ("round", "role", "who", "calls", "tokens read", "tokens written", "H200 hours"):
        asked.add_column(name, justify="left" if name in ("role", "who") else "right")
    for each in plan.calls:
        who = "the student in training" if each.role == "student" else plan.roles[each.role]
        numbers = (count_of(each.calls), count_of(each.prompt_tokens), count_of(each.new_tokens), f"{each.hours:.2g}")
        asked.add_row(str(each.round), each.role, who, *numbers)
    total = plan.to_json()["total"]
    sums = (count_of(total["calls"]), count_of(total["prompt_tokens"]), count_of(total["new_tokens"]))
    asked.add_section()
    asked.add_row("", "all", "", *sums, f"{total['hours']:.3g}")
    console.print(asked, highlight=False)
    trained = Table(title="what is trained", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in ("stage", "instructions", "conversations", "tokens", "steps"):
        trained.add_column(name, justify="left" if name == "stage" else "right")
    for each in plan.stages:
        numbers = ("its data are not here", "", "")
        if each.conversations is not None and each.steps is not None:
            numbers = (count_of(each.conversations), "", f"{each.steps:,}")
        trained.add_row(f"{each.name} ({each.kind})", "", *numbers)
    for each in plan.tunings:
        numbers = (count_of(each.instructions), count_of(each.conversations), count_of(each.tokens), f"{each.steps:,}")
        trained.add_row(f"tuning {each.number}", *numbers)
    console.print(trained, highlight=False)
    many = "process" if plan.processes == 1 else "processes"
    console.print(f"Steps are those of {plan.processes} {many}; WORLD_SIZE=8 before the command plans for eight.")
    console.print(
        f"{plan.instructions:,} instructions about {plan.pictures:,} pictures, about {count_of(plan.pool)} in the end. "
        "How many a round adds is the paper's share, a third more each time; "
        f"{PICTURE} tokens a picture, 4/3 a word; the hours are an estimate for a 13B model on one H200 behind a "
        "server that batches, and have been measured nowhere.",
        highlight=False,
    )
