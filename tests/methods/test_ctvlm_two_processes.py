"""CTVLM: two processes with half of the batch each compute what one process computes with all of it."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist
from tiny_ctvlm import make_conversations, make_ctvlm, make_stage, slice_of, with_counts
from torch import multiprocessing as torch_multiprocessing
from torch.nn.parallel import DistributedDataParallel

from limbeck.methods.ctvlm import CTVLM
from limbeck.types import ConversationBatch

SIZE = 8
CASES = {
    "language": make_stage("language"),
    "contrast": make_stage("align_tiny"),
    "matching": make_stage("align_tiny"),
    "matching of all": make_stage("align_tiny", negatives="all"),
    "align_large": make_stage("align_large"),
    "tune": make_stage("tune"),
    "tune forward": make_stage("tune", kd="forward", temperature=2.0),
    "tiny alone": make_stage("tune", models="tiny", kd="none"),
}
TERMS = {
    "language": {"language/large"},
    "contrast": {"contrastive", "matching", "language/tiny"},
    "matching": {"contrastive", "matching", "language/tiny"},
    "matching of all": {"contrastive", "matching", "language/tiny"},
    "align_large": {"language/tiny", "language/large", "forward_kl"},
    "tune": {"language/tiny", "language/large", "reverse_kl"},
    "tune forward": {"language/tiny", "language/large", "forward_kl"},
    "tiny alone": {"language/tiny"},
}


def batch_of(case: str) -> ConversationBatch:
    """8 conversations, each with its own picture.

    For matching 2 pairs in turn: a process draws negatives among its own rows, and here every draw gives the same.
    Among all processes' rows a draw is free and still gives the same.
    """
    asked = CASES[case].kind == "tune"
    batch = make_conversations(SIZE, asked=asked, seed=3)
    if case == "matching":
        two = torch.arange(SIZE) % 2
        batch = {name: value[two] for name, value in batch.items()}
    batch["pixel_values"] = batch["pixel_values"].double()
    return batch


def share_of(whole: ConversationBatch, rank: int) -> ConversationBatch:
    """One process's rows, padded to the longest of them."""
    part = slice_of(whole, rank * SIZE // 2, (rank + 1) * SIZE // 2)
    length = int(part["attention_mask"].sum(1).max())
    for name in ("input_ids", "attention_mask", "labels"):
        part[name] = part[name][:, :length]
    return with_counts(part, whole, processes=2)


def step(case: str, model: torch.nn.Module, method: CTVLM, batch: ConversationBatch) -> tuple[dict, dict]:
    """Terms, and the gradient of their weighted sum; where the draw is free, matching counts nothing."""
    loss = model(batch)
    weights = {**loss.weights, "matching": 0.0} if case == "contrast" else loss.weights
    torch.stack([weights[name] * term for name, term in loss.terms.items()]).sum().backward()
    terms = {name: term.detach().double() for name, term in loss.terms.items()}
    return terms, {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


def work(rank: int, folder: str) -> None:
    """What each process does: every case, its terms averaged over the processes."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    results = {}
    for case, stage in CASES.items():
        method = make_ctvlm(stage).double()
        model = DistributedDataParallel(method, broadcast_buffers=False, find_unused_parameters=True)
        terms, gradients = step(case, model, method, share_of(batch_of(case), rank))
        for value in terms.values():
            dist.all_reduce(value)
            value /= 2
        results[case] = terms, gradients
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.get_context("forkserver").set_forkserver_preload(["limbeck.run"])
    torch_multiprocessing.start_processes(work, args=(str(folder),), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def reached(gradients: dict[str, torch.Tensor]) -> set[str]:
    """Whose gradient is more than rounding: that of a key's bias is 0 in truth."""
    return {name for name, gradient in gradients.items() if gradient.norm() > 1e-12}


@pytest.mark.parametrize("case", CASES)
def test_terms_and_gradients_are_those_of_one_process(results, case):
    method = make_ctvlm(CASES[case]).double()
    terms, gradients = step(case, method, method, with_counts(batch_of(case)))
    compared = terms.keys() - ({"matching"} if case == "contrast" else set())
    assert terms.keys() == results[0][case][0].keys() == TERMS[case]
    for name in compared:
        assert float(results[0][case][0][name]) == pytest.approx(float(terms[name]), rel=1e-5), name
    for other in results:
        theirs = other[case][1]
        assert reached(theirs) == reached(gradients) != set()
        for name in reached(gradients):
            assert (theirs[name] - gradients[name]).norm() <= 1e-5 * gradients[name].norm(), name


def test_both_processes_gradients_are_the_same_bits(results):
    for case in CASES:
        first, second = (other[case][1] for other in results)
        assert [name for name in first if not torch.equal(first[name], second[name])] == [], case
