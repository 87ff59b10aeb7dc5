"""Single checks: each fails where something was spoilt on purpose, and leaves what it looked at as it was."""

from collections.abc import Iterator

import pytest
import torch
from doctor_recipes import CAPTIONS, stir
from torch import nn
from transformers import AutoConfig, AutoModel, LlamaConfig, LlamaForCausalLM, TrainingArguments

from limbeck.data.chat import Chat
from limbeck.doctor import refuse_unsound, texts
from limbeck.doctor.agreement import check_agreement
from limbeck.doctor.finding import tried
from limbeck.doctor.gradients import check_gradients
from limbeck.doctor.memory import Layers, Need, check_memory, need_of, optimizer_bytes, state_bytes
from limbeck.doctor.speed import planned_steps
from limbeck.doctor.texts import check_picture, check_vocabulary
from limbeck.doctor.weights import Pretrained, check_weights, fresh_config
from limbeck.method import Loss, Method, Stage
from limbeck.models.duet import Duet
from limbeck.models.duet_scales import paper_config

CPU = torch.device("cpu")
LAST = {"stages": [{"name": "tune", "kind": "tune", "data": CAPTIONS}]}


def gradients(built):
    _, _, method, datasets = built
    [stage] = method.stages()
    return check_gradients(method, stage, datasets[stage.name], CPU)


def test_a_parameter_frozen_by_mistake_is_named(build, monkeypatch):
    built = build(LAST)
    method = built[2]
    begin = method.begin_stage
    monkeypatch.setattr(
        method, "begin_stage", lambda *given: (begin(*given), method.duet.connector.requires_grad_(False))
    )
    finding = gradients(built)
    assert finding.status == "failed"
    assert "no gradient reaches what must train: duet.connector" in finding.text


def test_a_path_without_a_gradient_is_found(build, monkeypatch):
    built = build(LAST)
    duet = built[2].duet
    see = duet.tiny.see
    monkeypatch.setattr(duet.tiny, "see", lambda pixels: see(pixels).detach())
    finding = gradients(built)
    assert finding.status == "failed"
    assert finding.figures["missed"] == [
        f"duet.tiny.connector.{name}" for name, _ in duet.tiny.connector.named_parameters()
    ]


def test_a_gradient_that_reaches_the_eye_is_found(build, monkeypatch):
    built = build(LAST)
    method = built[2]
    monkeypatch.setattr(method, "begin_stage", lambda *given: method.duet.tiny.eye.requires_grad_(True))
    finding = gradients(built)
    assert finding.status == "failed"
    assert "reaches what must not train: duet.tiny.eye" in finding.text


def test_a_loss_that_is_no_number_is_found(build):
    built = build(LAST)
    with torch.no_grad():
        built[2].duet.connector[0].weight.fill_(torch.nan)
    assert "not finite" in gradients(built).text


def test_first_weights_that_are_zero_hide_nothing_and_stay_zero(build):
    built = build(LAST)
    outputs = [layer.output.weight for layer in built[2].duet.tiny.cross]
    finding = gradients(built)
    assert finding.status == "ok"
    assert len(finding.figures["noised"]) == len(outputs)
    assert not any(bool(weight.any()) for weight in outputs)


def test_a_teacher_that_is_not_itself_twice_is_found(build):
    _, _, method, datasets = build(LAST)
    norm = method.duet.large.model.norm
    norm.register_forward_hook(lambda _module, _given, output: output + torch.randn_like(output))
    finding = check_agreement(method, datasets["tune"], CPU)
    assert finding.status == "failed"
    assert "for the large model" in finding.text


def test_a_teacher_with_broken_numbers_is_found(build):
    _, _, method, datasets = build(LAST)
    with torch.no_grad():
        method.duet.tiny.project_out.weight.fill_(torch.inf)
    finding = check_agreement(method, datasets["tune"], CPU)
    assert finding.status == "failed"
    assert "not finite" in finding.text


def test_a_teacher_whose_dropout_is_on_while_it_teaches_is_a_warning(build):
    _, _, method, datasets = build(LAST)
    method.duet.large.model.layers.append(DroppingLayer(method.duet.large.model.layers.pop(1)))
    finding = check_agreement(method, datasets["tune"], CPU)
    assert finding.status == "warning"
    assert "in stage tune" in finding.text


class DroppingLayer(nn.Module):
    """A decoder layer with dropout behind it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *given, **named):
        return nn.functional.dropout(self.layer(*given, **named), 0.5, self.training)


def test_a_processor_that_makes_another_number_of_image_tokens_is_found(build, monkeypatch):
    _, tokenizer, method, datasets = build(LAST)
    chat = Chat(tokenizer, datasets["tune"].chat.config)
    assert check_picture(method.duet, chat, datasets["tune"]).status == "ok"
    made = texts.make_processor

    def wrong(*given, **named):
        processor = made(*given, **named)
        processor.vision_feature_select_strategy = "full"
        return processor

    monkeypatch.setattr(texts, "make_processor", wrong)
    finding = check_picture(method.duet, chat, datasets["tune"])
    assert finding.status == "failed"
    assert finding.figures == {"config": 16, "processor": 17, "eye": 16}


def test_pictures_prepared_in_another_way_are_a_warning(build, monkeypatch):
    _, tokenizer, method, datasets = build(LAST)
    made = texts.make_processor
    monkeypatch.setattr(
        texts, "make_processor", lambda *given, **named: made(*given, **{**named, "image_mean": (0.0,) * 3})
    )
    finding = check_picture(method.duet, Chat(tokenizer, datasets["tune"].chat.config), datasets["tune"])
    assert finding.status == "warning"
    assert finding.figures["difference"] > 1


def test_tokens_without_rows_are_found(build):
    _, tokenizer, method, _ = build(LAST)
    assert check_vocabulary(tokenizer, method.duet).status == "ok"
    tokenizer.add_tokens(["<new>"])
    finding = check_vocabulary(tokenizer, method.duet)
    assert finding.status == "failed"
    assert "the large head has 420 rows" in finding.text


def test_a_check_that_breaks_off_is_a_finding():
    finding = tried("speed", lambda: {}["nothing"])
    assert (finding.check, finding.status, finding.text) == ("speed", "failed", "KeyError: 'nothing'")


def test_what_train_runs_changes_nothing(build):
    recipe, tokenizer, method, datasets = build()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    chance, training = torch.get_rng_state(), method.training
    refuse_unsound(recipe, tokenizer, method, datasets)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert torch.equal(torch.get_rng_state(), chance)
    assert method.training == training
    assert method.stage.name == "align_tiny"
    assert all(parameter.grad is None for parameter in method.parameters())


def llama(change=None, layers=3):
    config = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=2
    )
    torch.manual_seed(3)
    model = LlamaForCausalLM(config)
    if change is not None:
        with torch.no_grad():
            change(model)
    return Pretrained("large", "a folder", model, lambda: LlamaForCausalLM(fresh_config(config)))


def trained_matrices(model):
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter *= 1.5


def xavier(model):
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)


def moved_norms(model):
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter += 0.001


def half_empty(model):
    for layer in model.model.layers:
        for parameter in layer.parameters():
            parameter.zero_()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (None, "failed"),
        (lambda model: [parameter.zero_() for parameter in model.parameters()], "failed"),
        (half_empty, "failed"),
        (lambda model: model.lm_head.weight[3].fill_(torch.nan), "failed"),
        (moved_norms, "warning"),
        (lambda model: [stir(model), model.lm_head.weight.zero_()], "warning"),
        (trained_matrices, "warning"),
        (xavier, "warning"),
        (stir, "ok"),
    ],
)
def test_weights_are_judged_by_whether_training_has_touched_them(change, status):
    assert check_weights(llama(change)).status == status


@pytest.mark.parametrize("kind", ["clip_vision_model", "gpt2"])
def test_models_that_start_narrower_the_deeper_they_are_are_known_too(kind):
    sizes = {"hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 2, "vocab_size": 100}
    config = AutoConfig.for_model(kind, **sizes)
    torch.manual_seed(3)
    part = Pretrained(
        "eye", "a folder", AutoModel.from_config(config), lambda: AutoModel.from_config(fresh_config(config))
    )
    finding = check_weights(part)
    assert finding.status == "failed"
    assert finding.figures["as_new"] == finding.figures["matrices"]


class Stack(Method):
    """Equal layers between two others: what autograd keeps of them is known."""

    def __init__(self, layers: int, width: int):
        super().__init__()
        self.first = nn.Linear(3, width)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(layers))

    def stages(self) -> Iterator[Stage]:
        yield Stage(name="only", trainable=(), weights={})

    def begin_stage(self, stage, steps_per_epoch):
        pass

    def begin_step(self, step):
        pass

    def forward(self, batch):
        hidden = self.first(batch["input_ids"])
        for layer in self.layers:
            hidden = layer(hidden)
        return Loss(terms={"sum": hidden.sum()}, weights={"sum": 1.0})

    def teachers(self):
        return ()

    def followers(self):
        return ()


class Rows:
    """Items of 3 numbers for each of 5 tokens."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.full((5, 3), float(index))

    def collate(self, items):
        return {"input_ids": torch.stack(list(items)), "attention_mask": torch.ones(len(items), 5)}


def arguments(tmp_path, **values):
    return TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, **values)


def test_what_autograd_keeps_is_counted_once_and_reckoned_up_for_layers_that_are_not_here(tmp_path):
    settings = arguments(tmp_path)
    full, short = Stack(6, 16), Stack(2, 16)
    with torch.device("meta"):
        whole = Stack(6, 16)
    [stage] = full.stages()
    need, tokens = need_of(full, full, stage, Rows(), settings, (), CPU)
    # a row of 5 tokens: 3 numbers into the first layer, 16 into and out of each of the others
    assert (need.row, need.once, tokens) == (4 * 5 * (3 + 16 + 6 * 16), 0, 5)
    assert need.weights == need.gradients == 4 * (3 * 16 + 16 + 6 * (16 * 16 + 16))
    assert need.optimizer == 2 * need.gradients
    assert need_of(short, whole, stage, Rows(), settings, (Layers(list(short.layers), 6),), CPU)[0] == need


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning")
def test_gradient_checkpointing_keeps_what_enters_layers_and_one_layer_whole(tmp_path):
    method = Stack(6, 16)
    [stage] = method.stages()
    layers = (Layers(list(method.layers), 6),)
    need, _ = need_of(method, method, stage, Rows(), arguments(tmp_path, gradient_checkpointing=True), layers, CPU)
    largest = 4 * 5 * 2 * 16
    assert need.row == 4 * 5 * (3 + 6 * 16) + largest


def test_half_precision_halves_what_is_kept_and_not_what_is_trained(tmp_path):
    method = Stack(2, 16)
    [stage] = method.stages()
    whole, half = (
        need_of(method, method, stage, Rows(), arguments(tmp_path, bf16=bf16), (), CPU)[0] for bf16 in (False, True)
    )
    assert half.row < 0.6 * whole.row
    assert half.optimizer == whole.optimizer


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("adamw_torch_fused", 8),
        ("adamw_bnb_8bit", 2),
        ("paged_adamw_8bit", 2),
        ("adamw_torch_4bit", 1),
        ("sgd", 0),
        ("adafactor", 0),
        ("lion_32bit", 4),
    ],
)
def test_an_optimizer_keeps_so_many_bytes_of_a_weight(name, size):
    assert optimizer_bytes(name, [torch.zeros(10)]) == 10 * size


def test_the_largest_micro_batch_leaves_a_tenth_free(tmp_path):
    need = Need(weights=100, gradients=100, optimizer=200, once=100, row=10)
    settings = arguments(tmp_path, per_device_train_batch_size=41)
    finding = check_memory(
        {"tune": need}, {"tune": settings}, {"tune": 7}, {"card": 1000, "larger": 2000}, "card", "here"
    )
    assert finding.figures["tune"]["largest_micro_batch"] == {"card": 40, "larger": 130}
    assert finding.status == "warning"
    assert "do not fit on card: 41 in tune" in finding.text


ZERO_2 = {"bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 2}}


def under_deepspeed(tmp_path, section, **values):
    """TrainingArguments with a section that they take only where deepspeed is installed."""
    settings = arguments(tmp_path, **values)
    settings.deepspeed = section
    return settings


@pytest.mark.parametrize(
    ("section", "bf16", "sizes"),
    [
        (None, True, (40, 40, 80)),
        (ZERO_2, True, (20, 20, 120)),
        (ZERO_2, False, (40, 40, 80)),
        ({"bf16": {"enabled": True}}, False, (20, 20, 120)),
    ],
)
def test_deepspeed_in_half_precision_keeps_what_trains_once_more(tmp_path, section, bf16, sizes):
    model = nn.Linear(10, 1, bias=False)
    settings = under_deepspeed(tmp_path, section, bf16=bf16)
    assert state_bytes(model, list(model.parameters()), settings) == sizes


@pytest.mark.parametrize(
    ("stage", "sizes"), [(0, (80, 80, 480)), (1, (80, 80, 60)), (2, (80, 10, 60)), (3, (10, 10, 60))]
)
def test_zero_divides_among_processes_by_its_stage(tmp_path, stage, sizes):
    need = Need(weights=80, gradients=80, optimizer=480, once=100, row=10)
    settings = under_deepspeed(tmp_path, {"zero_optimization": {"stage": stage}})
    finding = check_memory({"tune": need}, {"tune": settings}, {"tune": 7}, {"card": 1000}, "card", "here", 8)
    found = finding.figures["tune"]
    assert (found["weights"], found["gradients"], found["optimizer"], found["activations"]) == (*sizes, 100)
    assert found["largest_micro_batch"] == {"card": (900 - sum(sizes) - 100) // 10}
    assert ("each of 8 processes" in finding.text) == bool(stage)


def test_the_papers_duet_is_tuned_on_8_cards_of_80_gib(tmp_path):
    with torch.device("meta"):
        duet = Duet(paper_config())
    trained = [weight for name, weight in duet.named_parameters() if not name.startswith(("tiny.eye.", "tiny.table."))]
    weights, gradients, optimizer = state_bytes(duet, trained, under_deepspeed(tmp_path, ZERO_2, bf16=True))
    need = Need(weights=weights, gradients=gradients, optimizer=optimizer, once=0, row=0).shared(2, 8)
    assert weights == pytest.approx(14.7e9, rel=0.02)
    assert (need.weights, need.gradients) == (weights, gradients // 8)
    assert need.optimizer == pytest.approx(10.4e9, rel=0.02)
    assert need.fixed < 0.4 * 80 * 2**30


def test_processes_share_an_epochs_steps(tmp_path):
    settings = arguments(tmp_path, per_device_train_batch_size=4, num_train_epochs=2, dataloader_drop_last=True)
    assert [planned_steps(settings, 96, processes) for processes in (1, 8)] == [48, 6]
