"""A whole DLIP step by limbeck beside the same step done the usual way: time, peak memory, and what each measure gives.

    python benchmarks/train_step.py [--smoke] [--json FILE] [--write-docs] [--device cuda] [--rounds N]

A step is momentum encoders, forward of student and teacher, all loss terms, backward and the optimizer. Both ways start
from one set of weights and see one batch; before anything is timed their loss terms and gradients must agree.
`without ...` rows are limbeck's step with that one thing done the usual way (usual_step.py).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from harness import Claim, Row, Work, at_least, milliseconds, parse, peak_mebibytes, publish
from measures import MEASURES, Measure
from usual_step import UsualStep, padded

from limbeck.method import Stage
from limbeck.methods.dlip import DLIP, DLIPConfig
from limbeck.methods.vlp import ContrastiveConfig, VLPConfig
from limbeck.models.blip import Blip
from limbeck.models.fusion import FusionConfig
from limbeck.models.scales import Scale, text_config, vision_config
from limbeck.training.trainer import count_batch
from limbeck.types import Batch, Counts


@dataclass(frozen=True)
class Setting:
    """The sizes of one comparison; queue, vocabulary and dropout are BLIP's."""

    student: Scale
    teacher: Scale
    pairs: int
    image_size: int = 224
    queue: int = 57600
    autocast: bool = False
    """whether both ways run under bfloat16 autocast"""

    @property
    def name(self) -> str:
        return f"{self.student} of {self.teacher}, {self.pairs} pairs, {self.image_size} px"


SETTINGS = {
    "smoke": [Setting("tiny", "small", 4, image_size=64, queue=512)],
    "cpu": [Setting("tiny", "small", 8), Setting("small", "base", 4)],
    "cuda": [Setting("small", "base", 75, autocast=True), Setting("middle", "base", 75, autocast=True)],
}


def build(setting: Setting, device: str, teacher_dtype: torch.dtype) -> DLIP:
    """Student and teacher with random weights, momentum encoders that have drifted, a full queue."""
    torch.manual_seed(0)
    side = setting.image_size
    student, teacher = (
        Blip(FusionConfig(family="blip", vision=vision_config(scale, image_size=side), text=text_config(scale)))
        for scale in (setting.student, setting.teacher)
    )
    contrast = ContrastiveConfig(queue_size=setting.queue, ramp_epochs=0)
    stage = Stage(name="pretrain", trainable=(), weights={})
    method = DLIP(DLIPConfig(vlp=VLPConfig(contrastive=contrast)), student, teacher.to(teacher_dtype), [stage])
    assert method.objective.momentum is not None
    with torch.no_grad():
        for parameter in method.objective.momentum.parameters():
            parameter.add_(0.1 * parameter.std(correction=0) * torch.randn_like(parameter))
    method.begin_stage(stage, steps_per_epoch=1)
    return method.to(device).train()


def make_batch(setting: Setting, device: str) -> Batch:
    """Random pictures and captions as long as COCO's, 9 to 17 tokens."""
    generator = torch.Generator().manual_seed(1)
    size, side = setting.pairs, setting.image_size
    lengths = torch.randint(9, 18, (size,), generator=generator)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.randint(1000, 30000, mask.shape, generator=generator) * mask
    ids[:, 0] = 101
    ids[torch.arange(size), lengths - 1] = 102
    batch = Batch(
        pixel_values=torch.randn(size, 3, side, side, generator=generator).to(device),
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        image_id=torch.arange(size, device=device),
    )
    return {**batch, "counts": Counts(*count_batch(batch).float())}


def agree(setting: Setting, device: str) -> tuple[float, float]:
    """Largest difference of a loss term, and relative difference of the whole gradient, between both ways.

    Two forwards in a row without dropout, so that momentum encoders and queue have their part; limbeck's negatives are
    given to the usual way.
    """
    method = build(setting, device, torch.float32).eval()
    usual, batch = UsualStep(deepcopy(method)).eval(), make_batch(setting, device)
    pairings = []
    handle = method.objective.register_forward_hook(lambda _module, _inputs, output: pairings.append(output[2]))
    worst = 0.0
    for _ in range(2):
        method.begin_step(1)
        ours = method(batch).terms
        drawn = pairings[-1]
        theirs = usual(batch, (drawn.pictures.tolist(), drawn.texts.tolist()))
        assert ours.keys() == theirs.keys()
        worst = max(worst, *(abs(float(ours[name].detach() - theirs[name].detach())) for name in ours))
        for terms in (ours, theirs):
            torch.stack(list(terms.values())).sum().backward()
    handle.remove()
    pairs = zip([*method.student.parameters(), *method.projections.parameters()], usual.trained(), strict=True)
    gradients = [(own.grad, other.grad) for own, other in pairs if own.grad is not None and other.grad is not None]
    own, other = (torch.cat([gradient.flatten() for gradient in side]) for side in zip(*gradients))
    return worst, float((own - other).norm() / other.norm())


def limbeck_step(method: DLIP, batch: Batch, setting: Setting, *, fused: bool = True) -> Work:
    """One optimizer step by limbeck's own method."""
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.02, fused=fused)

    def step() -> None:
        method.begin_step(1)
        with torch.autocast(batch["pixel_values"].device.type, torch.bfloat16, enabled=setting.autocast):
            loss = method(batch).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def usual_step(usual: UsualStep, batch: Batch, setting: Setting) -> Work:
    """One optimizer step the usual way."""
    optimizer = torch.optim.AdamW(usual.trained(), lr=1e-5, weight_decay=0.02)

    def step() -> None:
        with torch.autocast(batch["pixel_values"].device.type, torch.bfloat16, enabled=setting.autocast):
            loss = torch.stack(list(usual(batch).values())).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


AGREEMENT = 1e-4
"""How near the two ways' loss terms and gradients must be"""

LIMBECK, EXACT, USUAL = "limbeck", "limbeck, teacher in float32", "the usual way"


def make_work(way: str, setting: Setting, device: str) -> Work:
    """One way's step."""
    batch = make_batch(setting, device)
    if way == USUAL:
        return usual_step(UsualStep(build(setting, device, torch.float32)), batch, setting)
    return limbeck_step(build(setting, device, torch.float32 if way == EXACT else torch.bfloat16), batch, setting)


def make_warm_work(way: str, setting: Setting, device: str) -> Work:
    """The same, everything that is set up only once being done."""
    make_work(way, Setting("tiny", "tiny", 2, image_size=32, queue=8), device)()
    return make_work(way, setting, device)


def without(measure: Measure, method: DLIP, batch: Batch, setting: Setting) -> Work:
    """limbeck's step without one measure."""
    if measure.padded:
        ids, mask = padded(batch)
        batch = {**batch, "input_ids": ids, "attention_mask": mask}
    step = limbeck_step(method, batch, setting, fused=measure.fused)

    def work() -> None:
        with measure.undone():
            step()

    return work


def measure(setting: Setting, device: str, rounds: int, measures: Sequence[Measure]) -> list[dict[str, str | float]]:
    """One row for each way: median time, times as long as limbeck's, peak memory above weights and batch."""
    works = {way: make_work(way, setting, device) for way in (LIMBECK, EXACT, USUAL)}
    method, batch = build(setting, device, torch.bfloat16), make_batch(setting, device)
    works |= {f"without {each.name}": without(each, method, batch, setting) for each in measures}
    times = milliseconds(works, rounds, device)
    rows: list[dict[str, str | float]] = [
        {"setting": setting.name, "way": way, "ms": time, "times limbeck's": time / times[LIMBECK]}
        for way, time in times.items()
    ]
    for row in (row for row in rows if row["way"] in (LIMBECK, USUAL)):
        row["MiB"] = peak_mebibytes(device, make_warm_work, row["way"], setting, device)
    return rows


def judge(groups: Sequence[Sequence[Row]]) -> list[Claim]:
    """What is wanted of each setting's rows."""
    claims = []
    for rows in groups:
        ways = {row["way"]: row for row in rows}
        setting = rows[0]["setting"]
        time = {way: float(ways[way]["ms"]) for way in (LIMBECK, EXACT, USUAL)}
        memory = {way: float(ways[way]["MiB"]) for way in (LIMBECK, USUAL)}
        claims += [
            at_least(f"times faster ({setting})", 1.5, time[USUAL] / time[LIMBECK]),
            at_least(f"times faster, both teachers in float32 ({setting})", 1, time[USUAL] / time[EXACT]),
            at_least(f"times less memory ({setting})", 1, memory[USUAL] / memory[LIMBECK]),
        ]
    return claims


def main() -> None:
    """Check, measure, print and write."""
    options = parse(__doc__)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("train_step: --device cuda, but PyTorch sees no CUDA device here; choose --device cpu")
    rounds = 2 if options.smoke else options.rounds
    settings = SETTINGS["smoke" if options.smoke else options.device]
    term, gradient = agree(settings[0], options.device)
    claims = [
        Claim("largest difference of a loss term", f"<= {AGREEMENT:g}", f"{term:.1e}", term <= AGREEMENT),
        Claim("relative difference of the gradient", f"<= {AGREEMENT:g}", f"{gradient:.1e}", gradient <= AGREEMENT),
    ]
    if not all(claim.holds for claim in claims):
        sys.exit(f"train_step: both ways must compute the same before they are timed; found {claims}")
    groups = [
        measure(setting, options.device, rounds, MEASURES if setting is settings[0] else ()) for setting in settings
    ]
    publish("train_step", [row for rows in groups for row in rows], [*claims, *judge(groups)], options)


if __name__ == "__main__":
    main()
