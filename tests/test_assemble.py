import re

import pytest
import torch
from tiny_ctvlm_recipe import stage, write_ctvlm_recipe, write_eye
from transformers import AutoModelForCausalLM, LlamaConfig

from limbeck.assemble import ctvlm
from limbeck.assemble.dlip import build_student, build_teacher, open_tokenizer
from limbeck.assemble.writers import open_tokenizer as open_decoder_tokenizer
from limbeck.data.decoder_tokenizer import BpeTokenizer, load_decoder_tokenizer
from limbeck.doctor.texts import check_tokenizer
from limbeck.models.duet_layout import pack, segments
from limbeck.recipe import RecipeError, load_recipe


def test_the_quickstarts_two_students_start_from_the_same_weights():
    plain, distilled = load_recipe("dlip/quickstart_plain"), load_recipe("dlip/quickstart")
    tokenizer = open_tokenizer(plain, None)
    alone = build_student(plain, tokenizer, build_teacher(plain, tokenizer)).state_dict()
    taught = build_student(distilled, tokenizer, build_teacher(distilled, tokenizer)).state_dict()
    assert alone.keys() == taught.keys()
    assert all(torch.equal(alone[name], taught[name]) for name in alone)


@pytest.fixture
def eye(tmp_path):
    return write_eye(tmp_path / "eye")


def ctvlm_parts(folder, eye, stages, **changes):
    """Recipe, sources, tokenizer and duet of a tiny CTVLM recipe; `duet` and `training` change by key."""
    recipe = load_recipe(str(write_ctvlm_recipe(folder, eye, stages, **changes)))
    sources = ctvlm.open_sources(recipe)
    tokenizer = open_decoder_tokenizer(recipe.tokenizer, folder, sources.values())
    return recipe, sources, tokenizer, ctvlm.build_models(recipe, tokenizer)


def read_lengths(dataset, duet):
    """How much each model reads of every row."""
    config, found = duet.config, []
    for index in range(len(dataset)):
        batch = dataset.collate([dataset[index]])
        ids, mask = batch["input_ids"], batch["attention_mask"]
        segment = segments(ids, mask, batch["labels"], config.image_token_id)
        large = pack(segment, config.features, has_features=config.tiny_part.in_sequence).source.shape[1]
        tiny = ids.shape[1] if config.tiny_part.in_sequence else int((ids != config.image_token_id).sum())
        found.append((tiny, large))
    return found


@pytest.mark.parametrize("role", ["tiny", "large"])
@pytest.mark.parametrize(
    ("fusion", "features"), [("prefix", "I"), ("prefix+cross", "I+T"), ("prefix", "P+I+T"), ("cross", "I+T")]
)
def test_what_a_model_has_no_positions_for_is_left_out(tmp_path, eye, role, fusion, features):
    def built(positions):
        sizes = {"tiny": {"kind": "opt", "width": 16}, "large": {"kind": "llama", "width": 24}}
        sizes = {name: size | {"layers": 1, "heads": 2, "max_positions": 320} for name, size in sizes.items()}
        sizes[role]["max_positions"] = positions
        recipe, sources, tokenizer, duet = ctvlm_parts(
            tmp_path,
            eye,
            [stage("tune")],
            duet={**sizes, "fusion": fusion, "features": features},
            data={"dialogues": {"max_length": 192, "needs_image": True, "max_left_out": 1.0}},
        )
        return ctvlm.build_dialogues(recipe, sources, tokenizer, duet)["tune"], duet

    lengths = read_lengths(*built(320))
    own = [pair[role == "large"] for pair in lengths]
    limit = sorted(own)[len(own) // 2]
    assert limit < max(own)
    dataset, duet = built(limit)
    assert read_lengths(dataset, duet) == [pair for pair, length in zip(lengths, own, strict=True) if length <= limit]
    reasons = [entry.reason for entry in dataset.left_out]
    long = [length for length in own if length > limit]
    assert reasons == [f"{length} tokens, more than the {role} model's positions, {limit}" for length in long]


def test_a_glob_for_what_does_not_train_in_a_stage_is_refused(tmp_path, eye):
    def built(kind, *globs):
        recipe, _, tokenizer, duet = ctvlm_parts(tmp_path, eye, [stage(kind, trainable=list(globs))])
        return ctvlm.build_method(recipe, duet, tokenizer)

    for kind, globs, parts in (
        ("tune", ("duet.connector", "duet.tiny.eye.*layers.1.*"), "duet.tiny.eye"),
        ("align_large", ("duet.*",), "duet.tiny.eye, duet.tiny.table, duet.large"),
        ("align_tiny", ("duet.large.lm_head",), "duet.large"),
    ):
        message = (
            f"stages.0.trainable: the glob {globs[-1]!r} names what never trains in stage {kind}, of kind {kind}: "
        )
        with pytest.raises(RecipeError, match=re.escape(f"{message}{parts}; name the other parts")):
            built(kind, *globs)
    with pytest.raises(RecipeError, match=r"stages\.0\.trainable: the glob 'duet.connectr' matches no parameter"):
        built("align_large", "duet.connectr")
    assert built("align_large", "duet.tiny.cross", "duet.connector").plan[0].trainable[0] == "duet.tiny.cross"


def test_the_tiny_models_own_tokenizer_does_not_matter(tmp_path, eye):
    words = load_decoder_tokenizer(BpeTokenizer(tokenizer="bpe", vocab_size=360), ["seven grey owls"])
    body = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
    )
    body.save_pretrained(tmp_path / "tiny")
    words.save_pretrained(tmp_path / "tiny")
    changes = {"duet": {"tiny": {"folder": str(tmp_path / "tiny")}}}
    recipe, _, tokenizer, duet = ctvlm_parts(tmp_path, eye, [stage("tune")], **changes)
    assert tokenizer.get_vocab() != words.get_vocab()
    assert len(duet.tiny.table.weight) == recipe.tokenizer.vocab_size
    assert check_tokenizer(tokenizer, recipe.duet.large.folder).status == "ok"


def test_cross_attention_alone_cannot_read_a_caption_without_a_first_token(tmp_path, eye):
    recipe, _, tokenizer, duet = ctvlm_parts(tmp_path, eye, [stage("align_tiny")], duet={"fusion": "cross"})
    ctvlm.build_method(recipe, duet, tokenizer)
    tokenizer.bos_token = None
    with pytest.raises(RecipeError, match=r"stages\.0\.chat\.template plain: the tokenizer begins texts with no token"):
        ctvlm.build_method(recipe, duet, tokenizer)


@pytest.mark.parametrize(
    ("stages", "changes", "message"),
    [
        (
            [stage("tune"), stage("align_large")],
            {"duet": {"fusion": "cross"}},
            r"duet\.fusion cross, duet\.features I\+T, stages\.1\.chat\.template plain: .* take duet\.features P\+I\+T",
        ),
        (
            [stage("align_tiny")],
            {"training": {"per_device_train_batch_size": 1}},
            r"stages\.0, per_device_train_batch_size: .* take 2 or more",
        ),
        (
            [stage("align_tiny", training={"per_device_train_batch_size": 1})],
            {},
            r"stages\.0, per_device_train_batch_size: .* take 2 or more",
        ),
    ],
)
def test_a_stage_that_could_not_see_or_compare_is_refused_with_a_way_out(tmp_path, eye, stages, changes, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(write_ctvlm_recipe(tmp_path, eye, stages, **changes)))


def test_the_gradient_of_a_single_term_is_not_asked_of_deepspeed(tmp_path, eye):
    training = {"deepspeed": {"zero_optimization": {"stage": 2}}}
    stages = [stage("align_tiny"), stage("tune", training=training)]
    with pytest.raises(RecipeError, match=r"gradient_share_steps 200: under training\.deepspeed \(tune\).* set it 0"):
        load_recipe(str(write_ctvlm_recipe(tmp_path, eye, stages, gradient_share_steps=200)))
    load_recipe(str(write_ctvlm_recipe(tmp_path, eye, stages)))
    load_recipe(str(write_ctvlm_recipe(tmp_path, eye, stages[:1], gradient_share_steps=200)))


def test_cross_attention_alone_goes_with_other_features_and_stages(tmp_path, eye):
    for stages, features in (([stage("align_large")], "P+I+T"), ([stage("align_tiny"), stage("tune")], "I+T")):
        duet = {"fusion": "cross", "features": features}
        load_recipe(str(write_ctvlm_recipe(tmp_path, eye, stages, duet=duet)))
