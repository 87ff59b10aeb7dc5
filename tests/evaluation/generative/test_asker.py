"""A model of this process that is asked, as a competition asks it."""

from dataclasses import replace

from positions import with_positions

from limbeck.competition.asking import Refusal, Reply, Request
from limbeck.evaluation.generative.asker import LocalAsker


def asked(model, size, *words, most=400):
    """Each request's reply, by how many words its question has."""
    requests = [
        Request(id=str(count), prompt="colour " * count, image=None, max_new_tokens=most, seed=count) for count in words
    ]
    replies = LocalAsker(model, "a random model", size).ask(requests, temperature=0.0)
    return {int(request.id): reply for request, reply in replies}


def said(reply):
    return replace(reply, seconds=0.0)


def test_replies_end_where_a_model_has_no_more_positions(vlm):
    free = asked(vlm, 1, 2, 6)
    longest = free[6].prompt_tokens
    few = with_positions(vlm, longest)
    for size in (1, 3):
        replies = asked(few, size, 2, 6)
        assert replies[6] == Refusal(reason=f"its {longest} tokens leave the model no position for an answer")
        assert isinstance(replies[2], Reply)
        assert replies[2].new_tokens == longest - free[2].prompt_tokens
        assert replies[2].cut
    alone, together = (asked(with_positions(vlm, longest + 3), size, 2, 6, most=8) for size in (1, 2))
    assert {count: said(reply) for count, reply in alone.items()} == {
        count: said(reply) for count, reply in together.items()
    }
    assert together[6].new_tokens == 3
