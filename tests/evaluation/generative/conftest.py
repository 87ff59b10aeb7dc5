"""A random LLaVA with its processor, a few hundred thousand weights, built without any download."""

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from limbeck.data.examples import BrokenImage, MadeImage
from limbeck.evaluation.generative.items import Item, short_answer
from limbeck.evaluation.generative.model import GenerativeModel

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "ASSISTANT: {{ message['content'][0]['text'] }}</s>{% else %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
COLOURS = ("red", "green", "blue", "white", "black", "yellow")


def make_processor() -> LlavaProcessor:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator([], trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet))
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def make_model(processor: LlavaProcessor, seed: int = 0) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=16
    )
    text = LlamaConfig(
        vocab_size=len(processor.tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=processor.image_token_id)
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = 2
    with torch.no_grad():
        for parameter in model.model.multi_modal_projector.parameters():
            parameter.normal_(0, 0.5)
    return model


@pytest.fixture(scope="session")
def processor() -> LlavaProcessor:
    return make_processor()


@pytest.fixture(scope="session")
def vlm(processor) -> GenerativeModel:
    return GenerativeModel(make_model(processor), processor)


@pytest.fixture(scope="session")
def another_vlm(processor) -> GenerativeModel:
    return GenerativeModel(make_model(processor, seed=1), processor)


def picture(colour: str) -> MadeImage:
    return MadeImage(colour, lambda: Image.new("RGB", (40, 32), colour))


@pytest.fixture
def items() -> list[Item]:
    """Nine things to answer, of different lengths, three of them without a picture."""
    questions = [f"Which colour is it{' really' * number}?" for number in range(9)]
    return [
        Item(
            id=f"q{number}",
            prompt=short_answer(question),
            images=() if number % 3 == 2 else (picture(COLOURS[number % 6]),),
            row={"question": question, "answers": ["red"], "kind": "colour"},
        )
        for number, question in enumerate(questions)
    ]


@pytest.fixture
def broken_picture() -> MadeImage:
    def fail() -> Image.Image:
        raise BrokenImage("cut short")

    return MadeImage("broken", fail)
