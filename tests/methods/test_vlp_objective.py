"""The pre-training losses against their definitions, written out in float64."""

import pytest
import torch
from tiny_methods import CLS, MASK, PAD, SEP, counted, gradients, make_batch, make_method, make_model, rows_of
from torch.nn import functional

from limbeck.method import Stage
from limbeck.methods import vlp
from limbeck.methods.vlp import ContrastiveConfig, VLPConfig, VLPObjective, next_tokens
from limbeck.types import IGNORE


def naive_cross_entropy(logits, label, smoothing):
    """One token's loss, by the definition: (1 - s) * -log p[label] + s * mean over the vocabulary of -log p."""
    log_p = logits.double() - logits.double().exp().sum().log()
    return (1 - smoothing) * -log_p[label] + smoothing * -log_p.mean()


def embeddings(model, batch):
    with torch.no_grad():
        image = model.encode_image(batch["pixel_values"]).output
        text = model.encode_text(batch["input_ids"], batch["attention_mask"]).output
    return image.double(), text.double()


@pytest.fixture
def drifted():
    """A method whose momentum encoders differ from the student, at the middle of the ramp."""
    method = make_method(teacher=False)
    with torch.no_grad():
        for parameter in method.objective.momentum.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    method.begin_step(10)
    return method


@pytest.mark.parametrize("targets", ["pair", "picture"])
def test_contrastive_is_the_formula(drifted, targets):
    objective = drifted.objective
    objective.config = VLPConfig(contrastive=ContrastiveConfig(queue_size=12, targets=targets))
    pictures = [5, 6, 5, 7, 8, 9]
    objective.queue_ids[:3] = torch.tensor([6, 5, 99])
    batch = make_batch(6, pictures=pictures)
    queues = objective.image_queue.features.double(), objective.text_queue.features.double()
    ids = torch.cat([batch["image_id"], objective.queue_ids])
    term = drifted(counted(batch)).terms["contrastive"]

    temperature = drifted.student.temperature.detach().double()
    (image, text), (m_image, m_text) = embeddings(drifted.student, batch), embeddings(objective.momentum, batch)
    right = torch.eye(6, 18, dtype=torch.float64)
    if targets == "picture":
        right = (batch["image_id"][:, None] == ids).double()
        assert right.sum(1).tolist() == [3, 2, 3, 1, 1, 1]
        right /= right.sum(1, keepdim=True)
    losses = []
    for query, momentum, bank in (
        (image, m_image, torch.cat([m_text, queues[1]])),
        (text, m_text, torch.cat([m_image, queues[0]])),
    ):
        soft = 0.2 * (momentum @ bank.T / temperature).softmax(1) + 0.8 * right
        losses.append(-(soft * (query @ bank.T / temperature).log_softmax(1)).sum(1).mean())
    assert float(term.detach()) == pytest.approx(torch.stack(losses).sum().item() / 2, rel=1e-5)


def test_contrastive_without_momentum_is_symmetric_infonce():
    method = make_method("clip", teacher=False, vlp={"contrastive": {"momentum": None, "queue_size": 0}})
    assert method.objective.momentum is None
    batch = make_batch(6)
    image, text = embeddings(method.student, batch)
    logits = image @ text.T / method.student.temperature.detach().double()
    own = torch.arange(6)
    wanted = (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
    loss = method(counted(batch))
    assert float(loss.terms["contrastive"]) == pytest.approx(float(wanted), rel=1e-5)
    assert set(loss.state) == {"temperature"}


def test_language_is_smoothed_cross_entropy_of_the_next_token():
    method = make_method(teacher=False, weights={"language": 1.0}, vlp={"label_smoothing": 0.1, "prompt_tokens": 1})
    batch = make_batch(5)
    student = method.student
    with torch.no_grad():
        memory = student.image_memory(student.encode_image(batch["pixel_values"]))
        logits = student.decode(memory, batch["input_ids"], batch["attention_mask"]).output
    losses = [
        naive_cross_entropy(logits[row, position], batch["input_ids"][row, position + 1], 0.1)
        for row in range(5)
        for position in range(1, int(batch["attention_mask"][row].sum()) - 1)
    ]
    term = method(counted(batch)).terms["language"]
    assert float(term) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_answers_count_by_their_share_of_the_people():
    method = make_method(teacher=False, weights={"answer": 1.0})
    batch = make_batch(4)
    student = method.student
    with torch.no_grad():
        memory = student.image_memory(student.encode_image(batch["pixel_values"]))
        asked = student.fuse(memory, batch["question_ids"], batch["question_mask"])
        asked = student.question_memory(asked.hidden, batch["question_mask"])
        rows = batch["answer_question"]
        logits = student.answer(asked, batch["answer_ids"], batch["answer_mask"], rows=rows).output
    total = torch.zeros((), dtype=torch.float64)
    for row, weight in enumerate(batch["answer_weight"]):
        for position in range(int(batch["answer_mask"][row].sum()) - 1):
            total += weight * naive_cross_entropy(logits[row, position], batch["answer_ids"][row, position + 1], 0.1)
    assert float(method(counted(batch)).terms["answer"]) == pytest.approx(float(total / 4), rel=1e-5)


def test_next_tokens_by_hand():
    ids = torch.tensor([[CLS, 11, 12, 13, SEP], [CLS, 14, SEP, PAD, PAD]])
    mask = ids != PAD
    assert next_tokens(ids, mask).tolist() == [[11, 12, 13, SEP, IGNORE], [14, SEP, IGNORE, IGNORE, IGNORE]]
    assert next_tokens(ids, mask, prompt_tokens=2).tolist() == [
        [IGNORE, IGNORE, 13, SEP, IGNORE],
        [IGNORE, IGNORE, IGNORE, IGNORE, IGNORE],
    ]
    assert ids[0, 0] == CLS, "the input stays as it was"


def test_masked_language_hides_words_by_their_own_draws_and_divides_by_how_many_are_expected(monkeypatch):
    method = make_method("albef", teacher=False, weights={"masked_language": 1.0}, vlp={"mask_probability": 0.5})
    shown = []
    original = method.student.fill

    def spy(memory, ids, mask):
        shown.append(ids)
        return original(memory, ids, mask)

    monkeypatch.setattr(method.student, "fill", spy)
    batch = make_batch(8)
    term = method(counted(batch)).terms["masked_language"]
    ids, (whether, how) = batch["input_ids"], batch["draws"].unbind(-1)
    words = batch["attention_mask"] & (ids != SEP) & (ids != CLS)
    hidden = words & (whether < 0.5)
    assert torch.equal(shown[0] == MASK, hidden & (how < 0.8))
    assert torch.equal(shown[0][~hidden], ids[~hidden])
    assert torch.equal(shown[0][how < 0.9], torch.where(hidden & (how < 0.8), MASK, ids)[how < 0.9])
    other = shown[0][hidden & (how >= 0.9)]
    assert len(other) > 1
    assert not torch.equal(other, ids[hidden & (how >= 0.9)])
    with torch.no_grad():
        student = method.student
        memory = student.image_memory(student.encode_image(batch["pixel_values"]))
        logits = original(memory, shown[0], batch["attention_mask"]).output
    losses = functional.cross_entropy(logits[hidden].double(), ids[hidden], reduction="sum")
    assert float(term) == pytest.approx(float(losses) / (0.5 * int(words.sum())), rel=1e-5)


@pytest.mark.parametrize("draw", [0.0, 0.9, 1.0])
def test_a_random_word_is_of_the_vocabulary_to_its_ends(monkeypatch, draw):
    method = make_method("albef", teacher=False, weights={"masked_language": 1.0})
    shown = []
    original = method.student.fill
    monkeypatch.setattr(
        method.student, "fill", lambda memory, ids, mask: shown.append(ids) or original(memory, ids, mask)
    )
    batch = make_batch(2)
    batch["draws"] = torch.tensor([0.0, draw]).expand(2, 9, 2)
    method(counted(batch))
    assert shown[0][0, 1] == {0.0: MASK, 0.9: 0, 1.0: 59}[draw]


def test_masked_language_is_the_same_however_the_step_is_split():
    method = make_method("albef", teacher=False, weights={"masked_language": 1.0})
    whole = make_batch(8)

    def step(parts):
        method.zero_grad()
        losses = [method(counted(part, whole)).total for part in parts]
        torch.stack(losses).sum().backward()
        return sum(loss.item() for loss in losses), gradients(method)

    wanted, plain = step([whole])
    found, split = step([rows_of(whole, 0, 1), rows_of(whole, 1, 3), rows_of(whole, 3, 8)])
    assert found == pytest.approx(wanted, rel=1e-5)
    for name, gradient in plain.items():
        torch.testing.assert_close(split[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_momentum_encoder_keeps_its_share_of_itself():
    method = make_method(teacher=False, vlp={"contrastive": {"momentum": 0.9, "queue_size": 4}})
    with torch.no_grad():
        method.objective.momentum.image_head.bias.fill_(1.0)
        method.student.image_head.bias.fill_(2.0)
    for step, wanted in enumerate([0.9 * 1.0 + 0.1 * 2.0, 0.9 * 1.1 + 0.1 * 2.0]):
        method.begin_step(step)
        assert torch.allclose(method.objective.momentum.image_head.bias, torch.tensor(wanted))
    assert torch.equal(method.student.image_head.bias, torch.full((16,), 2.0))


def test_the_momentum_encoder_rests_where_nothing_needs_it():
    method = make_method(teacher=False, weights={"language": 1.0})
    before = method.objective.momentum.image_head.bias.clone()
    with torch.no_grad():
        method.student.image_head.bias.add_(1.0)
    method.begin_step(1)
    assert torch.equal(method.objective.momentum.image_head.bias, before)


def test_after_a_rest_the_momentum_encoder_starts_where_the_student_is():
    method = make_method(teacher=False)
    method.plan = tuple(
        Stage(name=name, trainable=(), weights={term: 1.0})
        for name, term in (("write", "language"), ("contrast", "contrastive"), ("match", "matching"))
    )
    stages, momentum = method.stages(), method.objective.momentum.image_head.bias
    for wanted in ("as it was", "the student's", "as it was"):
        before = momentum.clone()
        method.begin_stage(next(stages), 10)
        assert torch.equal(momentum, before if wanted == "as it was" else method.student.image_head.bias), wanted
        with torch.no_grad():
            method.student.image_head.bias.add_(1.0)


def test_the_log_says_how_full_the_queue_is_and_how_far_the_momentum_encoder_lags():
    method = make_method(teacher=False, weights={"contrastive": 1.0})
    leader = torch.cat([p.detach().flatten() for p in method.student.parameters()])
    with torch.no_grad():
        for parameter in method.objective.momentum.parameters():
            parameter.mul_(0.9)
    filled = []
    for step in (100, 101, 102):
        method.begin_step(step)
        state = method(counted(make_batch(5, step))).state
        filled.append(float(state["queue"]))
        assert ("momentum_lag" in state) == (step == 100)
        if step == 100:
            follower = torch.cat([p.flatten() for p in method.objective.momentum.parameters()])
            wanted = (follower - leader).norm() / leader.norm()
            assert float(state["momentum_lag"]) == pytest.approx(float(wanted), rel=1e-4)
    assert filled == pytest.approx([5 / 12, 10 / 12, 1])


def test_the_log_says_nothing_of_a_queue_that_rests():
    state = make_method(teacher=False, weights={"language": 1.0})(counted(make_batch(4))).state
    assert not {"queue", "momentum_lag"} & state.keys()


def test_negatives_are_drawn_by_similarities_in_full_precision_under_autocast(monkeypatch):
    seen = []
    original = vlp.hard_negatives
    monkeypatch.setattr(vlp, "hard_negatives", lambda x, *a, **k: seen.append(x) or original(x, *a, **k))
    method = make_method(
        teacher=False, weights={"matching": 1.0}, vlp={"contrastive": {"momentum": None, "queue_size": 0}}
    )
    batch, outputs = counted(make_batch(6)), []
    for name in ("encode_image", "encode_text"):
        encode = getattr(method.student, name)
        monkeypatch.setattr(method.student, name, lambda *a, _e=encode, **k: outputs.append(_e(*a, **k)) or outputs[-1])
    with torch.autocast("cpu", torch.bfloat16):
        method(batch)
    image, text = (signals.output.detach() for signals in outputs)
    temperature = method.student.temperature.detach()
    torch.testing.assert_close(seen[0], text @ image.T / temperature, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen[1], image @ text.T / temperature, rtol=1e-5, atol=1e-5)


def test_the_momentum_encoder_has_no_dropout():
    model = make_model("blip", 0, dropout=0.5)
    objective = VLPObjective(VLPConfig(), model).train()
    batch = make_batch(3)
    outputs = [objective.momentum.encode_text(batch["input_ids"], batch["attention_mask"]).output for _ in range(2)]
    assert torch.equal(*outputs)


def test_alpha_rises_over_two_epochs_and_the_temperature_is_clamped():
    method = make_method(teacher=False)
    alphas = []
    for step in (0, 5, 10, 20, 35):
        method.begin_step(step)
        alphas.append(method.objective.alpha)
    assert alphas == pytest.approx([0, 0.1, 0.2, 0.4, 0.4])
    for value, clamped in ((-3.0, 1e-3), (0.9, 0.5), (0.3, 0.3)):
        method.student.temperature.data.fill_(value)
        method.begin_step(0)
        assert float(method.student.temperature) == pytest.approx(clamped)


def test_no_ramp_means_full_alpha_at_once():
    method = make_method(teacher=False, vlp={"contrastive": {"queue_size": 0, "ramp_epochs": 0.0}})
    assert method.objective.alpha == 0.4


def test_the_queue_is_a_ring_of_momentum_features_and_their_pictures():
    method = make_method(teacher=False, weights={"contrastive": 1.0})
    objective = method.objective
    assert objective.queue_ids.tolist() == [-1] * 12
    batches = [make_batch(8, seed, range(100 * seed, 100 * seed + 8)) for seed in (1, 2)]
    for batch in batches:
        method(counted(batch))
    first, second = (embeddings(objective.momentum, batch) for batch in batches)
    # 16 features into 12 places: the second batch fills 8..11 and goes on at 0..3
    for side, queue in ((0, objective.image_queue), (1, objective.text_queue)):
        wanted = torch.cat([second[side][4:], first[side][4:], second[side][:4]])
        assert torch.allclose(queue.features.double(), wanted, atol=1e-6)
        assert int(queue.position) == 4
    assert objective.queue_ids.tolist() == [204, 205, 206, 207, 104, 105, 106, 107, 200, 201, 202, 203]


def test_a_batch_larger_than_the_queue_leaves_its_last_rows():
    method = make_method(teacher=False, weights={"contrastive": 1.0}, vlp={"contrastive": {"queue_size": 5}})
    batch = make_batch(8)
    method(counted(batch))
    image, _ = embeddings(method.objective.momentum, batch)
    assert int(method.objective.image_queue.position) == 3
    assert method.objective.queue_ids.tolist() == [5, 6, 7, 3, 4]
    assert torch.allclose(method.objective.image_queue.features.double(), image[[5, 6, 7, 3, 4]], atol=1e-6)


@pytest.mark.parametrize("negatives", ["rank", "all"])
def test_matching_takes_positives_first_and_never_the_same_picture(monkeypatch, negatives):
    contrast = {"queue_size": 0, "negatives": negatives}
    method = make_method(teacher=False, weights={"matching": 1.0}, vlp={"contrastive": contrast})
    pictures = torch.tensor([1, 1, 2, 2, 2, 3])
    batch = make_batch(6, pictures=pictures.tolist())
    seen = {}
    original = method.student.fuse

    def spy(memory, ids, mask, *, rows, capture):
        seen.update(ids=ids, rows=rows)
        signals = original(memory, ids, mask, rows=rows, capture=capture)
        seen["logits"] = signals.output
        return signals

    monkeypatch.setattr(method.student, "fuse", spy)
    for _ in range(20):
        term = method(counted(batch)).terms["matching"]
        own = torch.arange(6)
        text_of = {tuple(row): index for index, row in enumerate(batch["input_ids"].tolist())}
        texts = torch.tensor([text_of[tuple(row)] for row in seen["ids"].tolist()])
        assert torch.equal(seen["rows"][:6], own)
        assert torch.equal(texts[:12], own.repeat(2))
        assert torch.equal(seen["rows"][12:], own)
        assert (pictures[seen["rows"][6:12]] != pictures).all(), "a wrong picture for each text"
        assert (pictures[texts[12:]] != pictures).all(), "a wrong text for each picture"
        labels = torch.tensor([1] * 6 + [0] * 12)
        wanted = functional.cross_entropy(seen["logits"].double(), labels)
        assert float(term) == pytest.approx(float(wanted), rel=1e-5)


def test_a_picture_that_is_alone_in_its_batch_has_no_negatives():
    method = make_method(teacher=False, vlp={"contrastive": {"momentum": None, "queue_size": 0}})
    batch = make_batch(3, pictures=[5, 5, 5])
    term = method(counted(batch)).terms["matching"]
    with torch.no_grad():
        student = method.student
        memory = student.image_memory(student.encode_image(batch["pixel_values"]))
        logits = student.fuse(memory, batch["input_ids"], batch["attention_mask"]).output
    wanted = functional.cross_entropy(logits, torch.ones(3, dtype=torch.long), reduction="sum") / 9
    assert float(term.detach()) == pytest.approx(float(wanted), rel=1e-5)


def test_the_objective_learns_nothing_itself():
    objective = VLPObjective(VLPConfig(), make_model("clip", 0))
    assert not [name for name, p in objective.named_parameters() if p.requires_grad]
