"""The pictures that the page shows, and for each what every model made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.report.examples import Answer, GalleryItem, Picture, Question, Retrieved, embed
from limbeck.report.heat import heat_map
from limbeck.report.runs import Run

BUDGET = 4_000_000
"""characters of embedded pictures past which no more are added, so that the page stays light"""


@dataclass(frozen=True, kw_only=True)
class Output:
    """What one model made of one picture; None or empty where it was not kept."""

    model: str
    retrieved: Retrieved | None
    caption: str | None
    answers: tuple[Answer | None, ...]
    """to the case's questions, in their order"""
    image_heat: str | None
    """`data:` address of a picture to lay over"""
    caption_heat: str | None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One held-out picture with every model's output."""

    id: str
    number: int
    picture: Picture
    captions: tuple[str, ...]
    questions: tuple[Question, ...]
    outputs: tuple[Output, ...]

    @property
    def alt(self) -> str:
        """What the picture shows, in a person's words where there are any."""
        return self.captions[0] if self.captions else f"picture {self.id}"

    @property
    def has_retrieval(self) -> bool:
        """Whether any model's finds were kept."""
        return any(output.retrieved is not None for output in self.outputs)

    @property
    def has_text(self) -> bool:
        """Whether any model's caption or answer was kept."""
        return any(output.caption is not None or any(output.answers) for output in self.outputs)

    @property
    def has_heat(self) -> bool:
        """Whether any model's attention was kept."""
        return any(output.image_heat or output.caption_heat for output in self.outputs)


@dataclass(frozen=True, kw_only=True)
class Cases:
    """The pictures shown, and how many were left out to keep the page light."""

    shown: tuple[Case, ...]
    left_out: int


def make_cases(runs: Sequence[Run]) -> Cases:
    """Join galleries and predictions by picture id. A picture is shown once, with the outputs of every run."""
    first: dict[str, GalleryItem] = {}
    for item in (item for run in runs for item in run.gallery):
        first.setdefault(item.id, item)
    cases: list[Case] = []
    spent = 0
    for item in first.values():
        picture = embed(item.file)
        if spent + len(picture.address) > BUDGET:
            continue
        spent += len(picture.address)
        outputs = tuple(_written(run, item) if run.writer else _output(run, item.id, item.questions) for run in runs)
        cases.append(
            Case(
                id=item.id,
                number=len(cases) + 1,
                picture=picture,
                captions=item.captions,
                questions=item.questions,
                outputs=outputs,
            )
        )
    return Cases(shown=tuple(cases), left_out=len(first) - len(cases))


def _output(run: Run, picture: str, questions: Sequence[Question]) -> Output:
    own = next((item for item in run.gallery if item.id == picture), None)
    answers = {answer.question: answer for answer in run.predictions.answers.get(picture, ())}
    return Output(
        model=run.name,
        retrieved=run.predictions.retrieved.get(picture),
        caption=run.predictions.captions.get(picture),
        answers=tuple(answers.get(question.text) for question in questions),
        image_heat=heat_map(own.image_attention) if own and own.image_attention else None,
        caption_heat=heat_map(own.caption_attention) if own and own.caption_attention else None,
    )


def _written(run: Run, item: GalleryItem) -> Output:
    rows = run.predictions.rows
    caption = rows.get(item.written) if item.written else None
    return Output(
        model=run.name,
        retrieved=None,
        caption=caption.answer if caption else None,
        answers=tuple(rows.get(question.row) if question.row else None for question in item.questions),
        image_heat=None,
        caption_heat=None,
    )
