"""One stage of a method by transformers.Trainer: exact averages, every loss term in the log, sealed checkpoints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments, get_scheduler

from limbeck.data.examples import DataError, Skipped
from limbeck.data.order import BY_LENGTH, EpochSampler
from limbeck.errors import Halted
from limbeck.method import Loss, Method, Stage
from limbeck.models.files import listed
from limbeck.training.checkpoint import rotate, seal
from limbeck.training.meter import Meter, gradient_shares
from limbeck.training.schedule import Schedule
from limbeck.training.skips import SkipLog
from limbeck.types import IGNORE, Batch, ConversationBatch, Counts

WEIGHTS = "model.safetensors"

PLAIN_TOKENS = 256
"""From so many tokens on attention maps take much memory, and torch's flash attention is not far behind plain products
in bfloat16 on a CPU."""


class StageTrainer(Trainer):
    """transformers.Trainer for a `Method`: what it adds is what distillation needs, and nothing else."""

    def __init__(
        self,
        method: Method,
        stage: Stage,
        args: TrainingArguments,
        dataset: Dataset,
        collate: Callable[[Sequence[Any]], Any],
        *,
        schedule: Schedule | None,
        skipped: SkipLog,
        log_file: Path,
        gradient_share_steps: int,
        callbacks: list[TrainerCallback],
    ):
        self.method, self.stage, self.schedule = method, stage, schedule
        self.skipped, self.log_file, self.gradient_share_steps = skipped, log_file, gradient_share_steps
        self.sampler = EpochSampler(
            len(dataset),  # pyright: ignore[reportArgumentType]
            seed=args.seed,
            lengths=dataset.lengths if args.train_sampling_strategy == BY_LENGTH else None,  # pyright: ignore[reportAttributeAccessIssue]
            batch_size=args.train_batch_size * args.world_size,
        )
        self.meter = Meter()
        self._left_out: list[Skipped] = []
        super().__init__(
            model=method, args=args, train_dataset=dataset, data_collator=collate, callbacks=[_Steps(self), *callbacks]
        )
        if not self.steps_per_epoch:
            raise DataError(
                f"{len(self.sampler)} training examples do not fill one batch of {self._batch_size}; make "
                "training.per_device_train_batch_size smaller, or set training.dataloader_drop_last: false"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the data; the last one can have fewer micro-batches."""
        length = len(self.sampler)
        micro_batches = length // self._batch_size if self.args.dataloader_drop_last else -(-length // self._batch_size)
        return -(-micro_batches // self.args.gradient_accumulation_steps)

    @property
    def _batch_size(self) -> int:
        """Pairs of one micro-batch of all processes."""
        return self.args.train_batch_size * self.args.world_size

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        return self.sampler

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The micro-batches of one optimizer step, each told what the whole step averages over."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            self._left_out += batch.pop("skipped", ())
        if self.args.world_size == 1:
            self.report_left_out()
        counts = torch.stack([count_batch(batch) for batch in batches]).sum(0)
        if self.args.world_size > 1:
            dist.all_reduce(counts)
        step = Counts(*(counts / self.args.world_size).to(device))
        for batch in batches:
            batch["counts"] = step
        return batches, None

    def report_left_out(self) -> None:
        """Hand what data loading left out, in every process, to the record. Raises DataError where it is too much."""
        left_out = self._left_out
        if self.args.world_size > 1:
            everyones: list[Any] = [None] * self.args.world_size
            dist.all_gather_object(everyones, left_out)
            left_out = list(chain(*everyones))
        self._left_out = []
        self.skipped.add(left_out)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch=None) -> Tensor:
        """Forward and backward of one micro-batch. Returns its share of the step's loss, detached."""
        model.train()
        counts = inputs.pop("counts")
        batch = {**self._prepare_inputs(inputs), "counts": counts}
        with self._attention(batch):
            with self.compute_loss_context_manager():
                loss: Loss = model(batch)
            total = loss.total
            if self.gradient_share_steps and self.state.global_step % self.gradient_share_steps == 0:
                self.meter.shares = gradient_shares(loss, [p for p in model.parameters() if p.requires_grad])
            if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
                self.accelerator.backward(total, scale_wrt_gas=False)
            else:
                self.accelerator.backward(total)
        self.meter.add(loss)
        return total.detach()

    def _attention(self, batch: Mapping[str, Any]) -> AbstractContextManager:
        """Attention by plain products where bfloat16 is trained on a CPU, over few tokens.

        There torch's flash attention takes about three times as long at up to 50 tokens, its backward pass above all;
        at 200 about 1.4 times (benchmarks/bf16_attention.py). Over many tokens plain products keep every layer's large
        maps.
        """
        plain = self.args.device.type == "cpu" and self.args.bf16 and longest(self.method, batch) < PLAIN_TOKENS
        return _plain_products() if plain else nullcontext()

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Trainer's choice, which has neither norms nor biases, without what has fewer than two dimensions: weight
        decay would pull a learned temperature to 0 (as in LAVIS)."""
        matrices = {name for name, weight in model.named_parameters() if weight.ndim > 1}
        return [name for name in super().get_decay_parameter_names(model) if name in matrices]

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """The recipe's own schedule where it has one, else TrainingArguments' by name, which stages may share."""
        if self.lr_scheduler is not None or (self.schedule is None and self.stage.part is None):
            return super().create_scheduler(num_training_steps, optimizer)
        optimizer = optimizer or self.optimizer
        assert isinstance(optimizer, torch.optim.Optimizer)
        share = self._share_by_recipe if self.schedule is not None else self._share_by_part
        self.lr_scheduler = LambdaLR(optimizer, share(num_training_steps))
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _share_by_recipe(self, steps: int) -> Callable[[int], float]:
        """The share of the learning rate at a step of this stage, by the recipe's own schedule."""
        assert self.schedule is not None
        schedule, per_epoch, peak = self.schedule, self.steps_per_epoch, self.args.learning_rate
        return lambda step: schedule(step, per_epoch, steps, peak) / (peak or 1.0)

    def _share_by_part(self, steps: int) -> Callable[[int], float]:
        """The same by TrainingArguments' schedule over several stages, which goes on from those before this one.

        The warm-up is each stage's own, as each begins with an optimizer that has seen no gradient.
        """
        assert self.stage.part is not None
        place, stages = self.stage.part
        stand_in = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=self.args.learning_rate)
        whole = get_scheduler(
            self.args.lr_scheduler_type,
            stand_in,
            num_warmup_steps=0,
            num_training_steps=stages * steps,
            scheduler_specific_kwargs=cast(Any, self.args.lr_scheduler_kwargs),  # a str is read by now
        )
        assert isinstance(whole, LambdaLR)
        [along], warmup = whole.lr_lambdas, self.args.get_warmup_steps(steps)
        return lambda step: along(place * steps + step) * (step / warmup if step < warmup else 1.0)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's log plus every loss term, its gradient share and the method's state, in JSONL always."""
        if "loss" not in logs:
            super().log(logs, start_time)
            return
        if self.args.world_size > 1:
            self.report_left_out()
        pairs = self._batch_size * self.args.gradient_accumulation_steps * (self.state.global_step - self.meter.since)
        logs["samples_per_second"] = round(pairs / (time.perf_counter() - self.meter.started), 3)
        record = self.meter.drain(self.state.global_step, self.args.world_size)
        self._refuse_diverged(record["terms"])
        flat = {f"{group}/{name}": value for group in record for name, value in record[group].items()}
        super().log({**logs, **flat}, start_time)
        if self.is_world_process_zero():
            line = {
                "stage": self.stage.name,
                "step": self.state.global_step,
                "epoch": self.state.epoch,
                **logs,
                **record,
            }
            line["weights"] = dict(self.meter.weights)
            with self.log_file.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def _refuse_diverged(self, terms: Mapping[str, float]) -> None:
        """Raise Halted where a term is not finite; in float16 a step may overflow, and is passed over."""
        lost = [name for name, value in terms.items() if not math.isfinite(value)]
        if lost and not self.args.fp16:
            raise Halted(
                f"stage {self.stage.name} diverged: by step {self.state.global_step} no number comes out of "
                f"{listed(lost)}. A smaller training.learning_rate, a longer "
                "warm-up or training.max_grad_norm help; give the changed recipe an `output` of its own"
            )

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        keep, self.args.save_total_limit = self.args.save_total_limit, None
        super()._save_checkpoint(model, trial)
        self.args.save_total_limit = keep
        if self.args.world_size > 1:
            dist.barrier()
        if self.args.should_save:
            folder = Path(str(self.args.output_dir))
            seal(folder / f"checkpoint-{self.state.global_step}")
            rotate(folder, keep)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(str(output_dir or self.args.output_dir))
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_method(self.method, folder / WEIGHTS, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_method(self.method, Path(resume_from_checkpoint) / WEIGHTS)


@contextmanager
def _plain_products() -> Iterator[None]:
    """Attention by plain products, in the precision that it is asked in: torch would do bfloat16's in float32."""
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def longest(method: Method, batch: Mapping[str, Any]) -> int:
    """Tokens of the longest sequence that a method makes of a batch: its texts, or patches of its pictures [..., R].

    An image tower's patches are told by the stride of its convolution.
    """
    strides = [module.stride[0] for module in method.modules() if isinstance(module, nn.Conv2d)]
    texts = batch["input_ids"].shape[1]
    if "pixel_values" not in batch or not strides:
        return texts
    return max(texts, (batch["pixel_values"].shape[-1] // min(strides)) ** 2)


def count_batch(batch: Batch | ConversationBatch) -> Tensor:
    """What a micro-batch has of each field of `Counts`, float32 [6]."""
    sizes: dict[str, int | Tensor] = dict.fromkeys(Counts._fields, 0)
    sizes |= {"pairs": len(batch["input_ids"]), "tokens": batch["attention_mask"].sum()}
    if "labels" in batch:
        sizes["answer_tokens"] = (batch["labels"] != IGNORE).sum()
    elif "question_ids" in batch:
        sizes |= {"questions": len(batch["question_ids"]), "question_tokens": batch["question_mask"].sum()}
        sizes |= {"answers": len(batch["answer_ids"]), "answer_tokens": batch["answer_mask"].sum()}
    device = batch["input_ids"].device
    return torch.stack([torch.as_tensor(sizes[name], dtype=torch.float32, device=device) for name in Counts._fields])


def save_method(method: Method, path: Path, state: dict[str, Tensor] | None = None) -> None:
    """Write everything of a method but its teachers; of tied weights the first name.

    Raises Halted where a weight is not finite: what is written can be gone on with.
    """
    state = method.state_dict() if state is None else state
    left_out = tuple(f"{name}." for name in method.teachers())
    kept = {name: x for name, x in state.items() if not name.startswith(left_out)}
    lost = [name for name, x in kept.items() if x.is_floating_point() and not x.isfinite().all()]
    if lost:
        raise Halted(f"training diverged: {lost[0]} and {len(lost) - 1} more weights are no numbers; nothing was saved")
    first = _first_names(kept)
    save_file({name: x.contiguous() for name, x in kept.items() if first[name] == name}, path)


def load_method(method: Method, path: Path) -> None:
    """Load what `save_method` wrote. Raises ValueError where the file and the method differ."""
    left_out = tuple(f"{name}." for name in method.teachers())
    missing, unexpected = method.load_state_dict(load_file(path), strict=False)
    first = _first_names({name: x for name, x in method.state_dict().items() if not name.startswith(left_out)})
    missing = [name for name in missing if first.get(name) == name]
    if missing or unexpected:
        raise ValueError(
            f"{path} is not of this recipe: it lacks {missing[:3]} and has {unexpected[:3]} besides; "
            "give the changed recipe an output folder of its own"
        )


def _first_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Each name -> the first name of the same tensor."""
    seen: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    names = {}
    for name, x in state.items():
        same = (x.data_ptr(), x.shape, x.stride())
        names[name] = seen.setdefault(same, name) if x.numel() else name
    return names


class _Steps(TrainerCallback):
    """Tells the method where an optimizer step begins, and the sampler which epoch it is."""

    def __init__(self, trainer: StageTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.meter = Meter(since=state.global_step)
        self.trainer.method.begin_stage(self.trainer.stage, self.trainer.steps_per_epoch)

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.sampler.set_epoch(state.global_step // self.trainer.steps_per_epoch)

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.method.begin_step(state.global_step)
