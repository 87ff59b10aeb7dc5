"""The duet: what the large model reads, that no feature knows the answer, and answers by the large model."""

import json

import pytest
import torch
from tiny_duets import BOS, EOS, IMAGE, PAD, batch, conversation, duet, pixels, text_config, tiny_config
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForImageTextToText, GenerationConfig

from limbeck.models.duet import Duet
from limbeck.models.duet_config import DuetConfig, Features
from limbeck.models.duet_layout import ANSWER, PADDING, PROMPT, TEXT, large_length, pack, segments
from limbeck.models.duet_layout import IMAGE as PICTURE
from limbeck.models.tiny_vlm import TinyVLM
from limbeck.types import IGNORE

MODES: tuple[Features, ...] = ("I", "I+T", "P+I+T")
PAIRS = [("opt", "llama"), ("llama", "opt"), ("qwen2", "qwen3"), ("qwen3", "qwen2")]
ROWS = (conversation(2, 3, 4), conversation(0, 5, 2, seed=1), conversation(1, 1, 1, seed=2))


def large_batch(model: Duet, *, left: bool = False) -> tuple[Tensor, ...]:
    ids, mask, labels = batch(*ROWS, left=left)
    hidden = model.tiny.read(ids, mask, model.tiny.see(pixels(3)))
    return *model.large_inputs(ids, mask, hidden, labels, left=left), labels


def test_segments_of_a_conversation() -> None:
    ids, labels = conversation(2, 1, 2)
    padded = torch.cat((torch.tensor([PAD]), ids))[None]
    mask = padded != PAD
    shifted = torch.cat((torch.tensor([IGNORE]), labels))[None]
    expected = [PADDING, *[PROMPT] * 3, *[PICTURE] * 4, TEXT, *[ANSWER] * 3]
    assert segments(padded, mask, shifted, IMAGE)[0].tolist() == expected
    assert segments(padded, mask, None, IMAGE)[0].tolist() == [*expected[:-3], *[TEXT] * 3]


def test_later_questions_belong_to_the_answer() -> None:
    ids = torch.tensor([[BOS, IMAGE, IMAGE, 7, 8, 9, 10, 11, EOS]])
    labels = torch.tensor([[IGNORE, IGNORE, IGNORE, 8, IGNORE, IGNORE, 11, EOS, IGNORE]])
    expected = [PROMPT, PICTURE, PICTURE, TEXT, *[ANSWER] * 5]
    assert segments(ids, torch.ones_like(ids), labels, IMAGE)[0].tolist() == expected
    with pytest.raises(ValueError, match="row 0 has supervised tokens before its picture"):
        segments(ids.flip(1), torch.ones_like(ids), labels, IMAGE)


def test_the_answer_begins_behind_the_first_marker_after_the_picture() -> None:
    asked, unmarked = [BOS, 7, 8, IMAGE, IMAGE, 7, 9, 7, 8, 10, EOS, 11, 7, 8], [PAD, BOS, IMAGE, IMAGE, *range(30, 40)]
    ids = torch.tensor([asked, unmarked])
    found = segments(ids, ids != PAD, None, IMAGE, [7, 8])
    assert found[0].tolist() == [*[PROMPT] * 3, *[PICTURE] * 2, *[TEXT] * 4, *[ANSWER] * 5]
    assert found[1].tolist() == [PADDING, PROMPT, *[PICTURE] * 2, *[TEXT] * 10]
    assert segments(ids[:, :1], ids[:, :1] != PAD, None, IMAGE, [7, 8]).tolist() == [[PROMPT], [PADDING]]


@pytest.mark.parametrize("has_features", [True, False])
@pytest.mark.parametrize("features", MODES)
def test_the_large_sequence_is_as_long_as_reckoned(features: Features, has_features: bool) -> None:
    for ids, labels in ROWS:
        segment = segments(ids[None], torch.ones_like(ids)[None], labels[None], IMAGE)
        counts = {part: int((segment == part).sum()) for part in (PROMPT, PICTURE, TEXT)}
        made = pack(segment, features, has_features=has_features).source.shape[1]
        assert large_length(len(ids), counts, features, has_features=has_features) == made


@torch.no_grad()
@pytest.mark.parametrize("features", MODES)
def test_a_second_answer_is_given_in_the_layout_of_training(features: Features, tmp_path) -> None:
    made = duet(features=features)
    made.config.answer_marker = [7, 8]
    made.save_pretrained(tmp_path)
    model = Duet.from_pretrained(tmp_path)
    ids = torch.tensor([[BOS, 5, *[IMAGE] * 4, 9, 7, 8, 20, 21, EOS, 11, 12, 7, 8, 22, EOS]])
    labels = torch.full_like(ids, IGNORE)
    for place in (9, 10, 11, 16, 17):
        labels[0, place - 1] = ids[0, place]
    image, mask = model.tiny.see(pixels(1)), torch.ones_like(ids)
    trained = model.large_inputs(ids, mask, model.tiny.read(ids, mask, image), labels)
    for asked in (9, 16):
        prompt, real = ids[:, :asked], mask[:, :asked]
        given = model.large_inputs(prompt, real, model.tiny.read(prompt, real, image), left=True)
        length = given.inputs_embeds.shape[1]
        torch.testing.assert_close(given.inputs_embeds, trained.inputs_embeds[:, :length])
        logits = model.large_hidden(trained.inputs_embeds, trained.attention_mask) @ model.large_head_weight.T
        said = model.generate(prompt, pixels(1), max_new_tokens=1, do_sample=False)
        assert said[0, -1] == logits[0, length - 1].argmax()


@torch.no_grad()
@pytest.mark.parametrize("features", MODES)
@pytest.mark.parametrize("left", [False, True])
def test_the_large_sequence_by_hand(features: Features, left: bool) -> None:
    model = duet(features=features)
    ids, mask, labels = batch(*ROWS, left=left)
    hidden = model.tiny.read(ids, mask, model.tiny.see(pixels(3)))
    given = model.large_inputs(ids, mask, hidden, labels, left=left)
    for row, (own, own_labels) in enumerate(ROWS):
        states, start = hidden[row, mask[row]], int((own == IMAGE).nonzero()[0])
        answer = int((own_labels != IGNORE).nonzero()[0]) + 1
        read = {"I": (start, start + 4), "I+T": (start, answer), "P+I+T": (0, answer)}[features]
        words = model.large_embeddings(own.where(own != IMAGE, 0))
        expected = torch.cat((words[:start], model.connector(states[slice(*read)]), words[start + 4 :]))
        real = given.attention_mask[row]
        torch.testing.assert_close(given.inputs_embeds[row, real], expected)
        assert int(real.long().argmax()) == (len(real) - len(expected) if left else 0)
        moved, shift = given.labels[row, real], len(expected) - len(own)
        assert moved[answer - 1 + shift : -1].tolist() == own[answer:].tolist()
        assert bool((moved[: answer - 1 + shift] == IGNORE).all())
        assert moved[-1] == IGNORE


@pytest.mark.parametrize(
    ("fusion", "features"),
    [
        *[(fusion, mode) for fusion in ("prefix+cross", "prefix") for mode in MODES],
        ("cross", "I+T"),
        ("cross", "P+I+T"),
    ],
)
def test_no_feature_knows_the_answer(fusion: str, features: Features) -> None:
    model = duet("llama", features=features, fusion=fusion)
    ids, labels = conversation(2, 3, 4)
    image = model.tiny.see(pixels(1))

    def read(ids: Tensor) -> tuple[Tensor, Tensor, int]:
        table = model.tiny.table(ids.where(ids != IMAGE, 0)).detach().requires_grad_()
        handle = model.tiny.table.register_forward_hook(lambda _table, _given, out: table[ids != IMAGE].view_as(out))
        hidden = model.tiny.read(ids[None], None, image)
        handle.remove()
        given = model.large_inputs(ids[None], torch.ones_like(ids)[None], hidden, labels[None])
        first = int((given.labels[0] != IGNORE).nonzero()[0])
        return given.inputs_embeds[0], table, first

    other = ids.clone()
    other[-5:] = (other[-5:] + 17) % 60
    own, table, first = read(ids)
    changed, _, _ = read(other)
    assert torch.equal(own[: first + 1], changed[: first + 1])
    assert not torch.equal(own, changed)
    own[: first + 1].square().sum().backward()
    reached = table.grad.abs().sum(-1) > 0
    assert not reached[-5:].any()
    texts = {"I": False, "I+T": True, "P+I+T": True}[features]
    assert bool(reached[-8:-5].any()) == texts
    after = model.large_hidden(own[None].detach(), torch.ones(1, len(own)))
    before = model.large_hidden(changed[None].detach(), torch.ones(1, len(own)))
    torch.testing.assert_close(after[0, : first + 1], before[0, : first + 1])


@torch.no_grad()
@pytest.mark.parametrize(("tiny", "large"), PAIRS)
@pytest.mark.parametrize("fusion", ["prefix+cross", "cross"])
def test_padding_changes_nothing(tiny: str, large: str, fusion: str) -> None:
    model = duet(tiny, large, fusion=fusion)
    hidden = []
    for left in (False, True):
        embeddings, mask, moved, labels = large_batch(model, left=left)
        assert moved[moved != IGNORE].tolist() == labels[labels != IGNORE].tolist()
        hidden.append(model.large_hidden(embeddings, mask)[mask])
    torch.testing.assert_close(hidden[0], hidden[1])


@torch.no_grad()
@pytest.mark.parametrize(("tiny", "large"), PAIRS)
def test_head_and_hidden_states_make_the_large_models_logits(tiny: str, large: str) -> None:
    model = duet(tiny, large)
    embeddings, mask, *_ = large_batch(model)
    positions = (mask.long().cumsum(1) - 1).clamp_min(0)
    expected = model.large(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close((model.large_hidden(embeddings, mask) @ model.large_head_weight.T)[mask], expected[mask])


def test_loss_is_that_of_unshifted_labels_and_reaches_every_tower() -> None:
    model = duet()
    model.tiny.eye.requires_grad_(False)
    ids, mask, shifted = batch(*ROWS)
    labels = torch.cat((torch.full_like(ids[:, :1], IGNORE), shifted[:, :-1]), dim=1)
    out = model(input_ids=ids, attention_mask=mask, pixel_values=pixels(3), labels=labels)
    embeddings, large_mask, moved, _ = large_batch(model)
    hidden = model.large_hidden(embeddings, large_mask)[moved != IGNORE]
    expected = functional.cross_entropy(hidden @ model.large_head_weight.T, shifted[shifted != IGNORE])
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    silent = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    assert silent == ["tiny.project_out.weight"]
    for name in ("tiny.project_in.weight", "tiny.connector.0.weight", "tiny.cross.0.key.weight", "connector.0.weight"):
        assert model.get_parameter(name).grad.abs().sum() > 0


@pytest.mark.parametrize("large", ["opt", "llama"])
def test_checkpointing_changes_no_gradient(large: str) -> None:
    def gradients(checkpointed: bool) -> dict[str, Tensor]:
        model = duet("llama", large).train()
        if checkpointed:
            model._set_gradient_checkpointing(True, _checkpoint)
        embeddings, mask, *_ = large_batch(model)
        model.large_hidden(embeddings, mask)[mask].square().mean().backward()
        return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(gradient, checkpointed[name])


def _checkpoint(function: object, *given: object) -> object:
    return torch.utils.checkpoint.checkpoint(function, *given, use_reentrant=False)


def uncached_logits(model: Duet, ids: Tensor, prompt: int, image: Tensor) -> Tensor:
    """Logits [U + 1, V] after a prompt and each of U answer tokens, in the layout that training has."""
    labels = torch.full_like(ids, IGNORE)
    labels[prompt - 1 : -1] = ids[prompt:]
    mask = torch.ones_like(ids)[None]
    hidden = model.tiny.read(ids[None], mask, image)
    given = model.large_inputs(ids[None], mask, hidden, labels[None])
    logits = model.large_hidden(given.inputs_embeds, given.attention_mask) @ model.large_head_weight.T
    return logits[0, -1 - (len(ids) - prompt) :]


@torch.no_grad()
@pytest.mark.parametrize(
    ("tiny", "large", "fusion", "features"),
    [
        ("opt", "llama", "prefix+cross", "I+T"),
        ("llama", "opt", "cross", "P+I+T"),
        ("qwen2", "qwen3", "prefix", "I"),
        ("qwen3", "qwen2", "prefix+cross", "P+I+T"),
    ],
)
def test_cached_answers_equal_uncached(tiny: str, large: str, fusion: str, features: Features) -> None:
    model = duet(tiny, large, fusion=fusion, features=features)
    ids, mask, _ = batch(conversation(2, 3, 1), conversation(0, 6, 1, seed=1), left=True)
    length, image = ids.shape[1], model.tiny.see(pixels(2))
    read: list[int] = []
    model.tiny.eye.register_forward_hook(lambda _eye, _given, _out: read.append(1))
    greedy = model.generate(ids, pixels(2), mask, max_new_tokens=5, do_sample=False)
    assert len(read) == 1
    assert greedy[:, :length].tolist() == ids.tolist()
    for row in range(2):
        prompt = ids[row, mask[row]]
        whole = torch.cat((prompt, greedy[row, length:]))
        logits = uncached_logits(model, whole, len(prompt), image[row : row + 1])[:-1]
        answer = greedy[row, length:].tolist()
        end = answer.index(EOS) + 1 if EOS in answer else len(answer)
        assert logits.argmax(-1).tolist()[:end] == answer[:end]
    beams = model.generate(
        ids,
        pixels(2),
        mask,
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        num_beams=3,
        num_return_sequences=2,
        length_penalty=0.0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    assert beams.sequences.shape == (4, length + 4)
    for row, sequence in enumerate(beams.sequences):
        prompt = ids[row // 2, mask[row // 2]]
        whole = torch.cat((prompt, sequence[length:]))
        logits = uncached_logits(model, whole, len(prompt), image[row // 2, None])[:-1]
        score = logits.log_softmax(-1).gather(1, sequence[length:, None]).sum()
        torch.testing.assert_close(score, beams.sequences_scores[row], rtol=1e-4, atol=1e-4)


def test_generation_options() -> None:
    model = duet()
    ids, mask, _ = batch(conversation(2, 3, 1), conversation(0, 6, 1, seed=1), left=True)
    assert model.generate(ids, pixels(2), mask, max_length=15, min_new_tokens=2, do_sample=False).shape == (2, 15)
    settings = GenerationConfig(max_length=15, min_new_tokens=2, do_sample=False)
    assert model.generate(ids, pixels(2), mask, generation_config=settings).shape == (2, 15)
    assert (settings.max_length, settings.max_new_tokens) == (15, None)
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        drawn.append(model.generate(ids, pixels(2), mask, max_new_tokens=4, do_sample=True, num_return_sequences=3))
    assert len(drawn[0]) == 6
    greedy = [
        model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, **seen)
        for seen in ({"pixel_values": pixels(2)}, {"image": model.tiny.see(pixels(2))})
    ]
    assert greedy[0].tolist() == greedy[1].tolist()
    assert drawn[0].tolist() == drawn[1].tolist()
    text = torch.tensor([[BOS, 5, 6, 7]])
    plain = model.large.generate(text, max_new_tokens=3, do_sample=False)
    assert model.generate(text, max_new_tokens=3, do_sample=False).tolist() == plain.tolist()


@torch.no_grad()
@pytest.mark.parametrize(
    ("tiny", "large", "eye"), [("opt", "llama", "clip"), ("qwen2", "qwen3", "siglip"), ("llama", "opt", "vit")]
)
def test_folders_load_by_the_auto_class(tiny: str, large: str, eye: str, tmp_path, caplog) -> None:
    model = duet(tiny, large, eye=eye, features="P+I+T")
    model.generation_config.max_new_tokens = model.tiny.generation_config.max_new_tokens = 3
    ids, mask, _ = batch(conversation(2, 3, 1), conversation(0, 6, 1, seed=1), left=True)
    for part, kind in ((model, Duet), (model.tiny, TinyVLM)):
        folder = tmp_path / kind.__name__
        part.save_pretrained(folder)
        assert not list(folder.glob("*.bin"))
        loaded = AutoModelForImageTextToText.from_pretrained(folder)
        assert type(loaded) is kind
        for name in (
            ("features", "connector") if kind is Duet else ("fusion", "embeddings", "image_token_id", "eye_layer")
        ):
            assert vars(loaded.config)[name] == vars(part.config)[name]
        state = loaded.state_dict()
        assert [name for name, weight in part.state_dict().items() if not torch.equal(weight, state[name])] == []
        frozen = [name for name, weight in loaded.named_parameters() if not weight.requires_grad]
        assert frozen == [name for name, weight in part.named_parameters() if not weight.requires_grad]
        assert len(frozen) == 1
        answers = [each.generate(ids, pixels(2), mask, do_sample=False).tolist() for each in (part, loaded)]
        assert answers[0] == answers[1]
    assert [record.message for record in caplog.records] == []
    half = AutoModelForImageTextToText.from_pretrained(tmp_path / "Duet", dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    half.save_pretrained(tmp_path / "half")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "half")
    assert {weight.dtype for weight in again.parameters()} == {torch.bfloat16}


def test_a_folder_from_before_the_marker_loads(tmp_path) -> None:
    duet().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values.pop("answer_marker", None)
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert Duet.from_pretrained(tmp_path).config.answer_marker is None


def test_a_folder_that_lacks_a_weight_is_refused(tmp_path) -> None:
    model = duet()
    state = model.state_dict()
    state.pop("tiny.cross.1.key.weight")
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"lacks tiny.cross.1.key.weight"):
        Duet.from_pretrained(tmp_path)


def test_bfloat16_runs() -> None:
    model = duet().to(torch.bfloat16)
    ids, mask, labels = batch(*ROWS)
    out = model(input_ids=ids, attention_mask=mask, pixel_values=pixels(3), labels=labels)
    assert out.logits.dtype == torch.bfloat16
    assert model.generate(ids[:, :9], pixels(3), mask[:, :9], max_new_tokens=2).shape == (3, 11)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match='features "I" with fusion "cross"'):
        duet(features="I", fusion="cross")
    with pytest.raises(ValueError, match="60 token embeddings and the large one 50"):
        DuetConfig(tiny=tiny_config(), large=text_config("llama", width=32, vocab_size=50))
    with pytest.raises(ValueError, match="table_width is 32, but the large model's token embeddings are 48 wide"):
        DuetConfig(tiny=tiny_config(), large=text_config("llama", width=48))
    with pytest.raises(ValueError, match="features is 'T'; it can be 'I', 'I\\+T', 'P\\+I\\+T'"):
        duet(features="T")
    model = duet(fusion="cross")
    ids, mask, labels = batch(conversation(2, 3, 2), conversation(2, 0, 2))
    hidden = model.tiny.read(ids, mask, model.tiny.see(pixels(2)))
    with pytest.raises(ValueError, match="row 1 has no text between picture and answer"):
        model.large_inputs(ids, mask, hidden, labels)
    model = duet(text=text_config(max_position_embeddings=80))
    ids, mask, labels = batch(conversation(2, 30, 10))
    hidden = model.tiny.read(ids, mask, model.tiny.see(pixels(1)))
    with pytest.raises(ValueError, match="a sequence of 78 tokens; the large language model has 64 positions"):
        model.large_inputs(ids, mask, hidden, labels)
