"""Two processes with half of the batch each compute what one process computes with all of it."""

import pytest
import torch
import torch.distributed as dist
from tiny_methods import counted, gradients, make_batch, make_method, rows_of
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

DISTILLATION = {"hidden": 1.0, "attention": 1.0}
CASES = {
    "blip": {"family": "blip", "weights": {"contrastive": 1.0, "language": 1.0, "answer": 1.0, **DISTILLATION}},
    "retrieval": {
        "family": "blip",
        "teacher": False,
        "weights": {"contrastive": 1.0},
        "vlp": {"contrastive": {"queue_size": 12, "targets": "picture"}},
    },
    "clip": {"family": "clip", "vlp": {"contrastive": {"momentum": None, "queue_size": 0}}},
    "masked": {"family": "albef", "teacher": False, "weights": {"masked_language": 1.0}},
    "negatives": {
        "family": "blip",
        "teacher": False,
        "weights": {"matching": 1.0, "language": 1.0},
        "vlp": {"contrastive": {"queue_size": 0, "negatives": "all"}},
    },
}


def batch_of(case):
    """8 pairs of 7 pictures. For negatives 2 pairs 4 times, one in each process, so that every draw gives the same."""
    if case != "negatives":
        return make_batch(8, seed=3, pictures=[0, 1, 2, 3, 4, 0, 6, 7])
    pair = make_batch(2, seed=3)
    texts = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    batch = make_batch(8, seed=3, pictures=texts.tolist())
    return {**batch, **{name: pair[name][texts] for name in ("pixel_values", "input_ids", "attention_mask")}}


def step(case, model, method, batch):
    """Terms, gradients and state after one step; then one more forward pass, with the queue that this one left."""
    loss = model(batch)
    loss.total.backward()
    found = gradients(method)
    method.begin_step(11)
    with torch.no_grad():
        later = model(batch).terms
    terms = {name: term.detach() for name, term in loss.terms.items()}
    buffers = dict(method.objective.named_buffers())
    return terms, {name: term.detach() for name, term in later.items()}, found, buffers


def work(rank, folder):
    """What each process does: every case, its terms averaged over the processes."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    results = {}
    for case, settings in CASES.items():
        method = make_method(**settings)
        method.begin_step(10)
        model = DistributedDataParallel(method, broadcast_buffers=False, find_unused_parameters=True)
        whole = batch_of(case)
        batch = counted(rows_of(whole, 4 * rank, 4 * rank + 4), whole, processes=2)
        terms, later, found, buffers = step(case, model, method, batch)
        for values in (terms, later):
            for value in values.values():
                dist.all_reduce(value)
                value /= 2
        results[case] = terms, later, found, buffers
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(work, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_terms_gradients_and_queue_are_those_of_one_process(results, case):
    method = make_method(**CASES[case])
    method.begin_step(10)
    terms, later, found, buffers = step(case, method, method, counted(batch_of(case)))
    for ours, theirs in zip((terms, later), results[0][case][:2]):
        assert ours.keys() == theirs.keys()
        for name, term in ours.items():
            assert float(theirs[name]) == pytest.approx(float(term), abs=1e-5, rel=1e-5), name
    for other in results:
        assert {name for name, gradient in other[case][2].items() if gradient.any()} == {
            name for name, gradient in found.items() if gradient.any()
        }
        for name, gradient in found.items():
            assert torch.allclose(other[case][2][name], gradient, atol=1e-5, rtol=1e-4), name
        for name, value in buffers.items():
            assert torch.allclose(other[case][3][name], value, atol=1e-6), name
