"""The processor of duet folders: it loads by AutoProcessor, and its texts and pictures fit the model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_duets import EOS, IMAGE, PAD, ROWS, duet
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast

from limbeck.models.duet_processor import make_processor

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %} {{ message.role }} "
    "{% for part in message.content %}{{ '<image> ' if part.type == 'image' else part.text }}{% endfor %}{% endfor %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    names = ["<pad>", "<s>", "</s>", "<unk>", "user", "assistant", "what", "is", "this"]
    words = {word: place for place, word in enumerate([*names, *(f"w{place}" for place in range(len(names), ROWS))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.add_tokens(["<image>"], special_tokens=True)
    return made


def picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize(("eye", "drop", "tokens"), [("clip", True, 4), ("clip", False, 5), ("siglip", False, 4)])
def test_a_saved_folder_answers(
    eye: str, drop: bool, tokens: int, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = duet(eye=eye, drop_class_token=drop)
    make_processor(model.config, tokenizer, TEMPLATE).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    processor, loaded = AutoProcessor.from_pretrained(tmp_path), AutoModelForImageTextToText.from_pretrained(tmp_path)
    asked = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        for text in ("what is this", "this")
    ]
    prompts = processor.apply_chat_template(asked)
    assert prompts[1] == "<s> user <image> this"
    given = processor(images=[picture(10, 6), picture(8, 8)], text=prompts, padding=True, return_tensors="pt")
    assert given["input_ids"].tolist() == [[1, 4, *[IMAGE] * tokens, 6, 7, 8], [PAD, PAD, 1, 4, *[IMAGE] * tokens, 8]]
    answers = loaded.generate(**given, max_new_tokens=4, do_sample=False)
    length = given["input_ids"].shape[1]
    assert answers[:, :length].tolist() == given["input_ids"].tolist()
    assert answers.shape == (2, length + 4) or EOS in answers[:, length:]
    assert answers.tolist() == model.generate(**given, max_new_tokens=4, do_sample=False).tolist()
    assert len(processor.batch_decode(answers[:, length:], skip_special_tokens=True)) == 2
    tokenizer.chat_template = TEMPLATE
    assert make_processor(model.config.tiny, tokenizer).chat_template == TEMPLATE
    assert tokenizer.padding_side == "right"
    assert model.tiny.generate(**given, max_new_tokens=2).shape[0] == 2


def test_pictures_are_padded_to_squares_with_the_mean_colour(tokenizer: PreTrainedTokenizerFast) -> None:
    model = duet()
    padded = make_processor(model.config, tokenizer).image_processor(picture(16, 8), return_tensors="pt")[
        "pixel_values"
    ]
    assert padded.shape == (1, 3, 8, 8)
    assert padded[0, :, 0].abs().max() < 0.05
    assert padded[0, :, 4].abs().max() > 0.5
    stretched = make_processor(model.config, tokenizer, pad_to_square=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    pixels = stretched.image_processor(picture(8, 8), return_tensors="pt")["pixel_values"]
    expected = torch.from_numpy(np.asarray(picture(8, 8)).copy()).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(pixels[0], expected.float(), rtol=0, atol=1e-4)


def test_what_does_not_fit_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    model = duet()
    with pytest.raises(ValueError, match="image_size is 9; the eye sees 8 pixels a side"):
        make_processor(model.config, tokenizer, image_size=9)
    model.config.tiny_part.image_token_id = 61
    with pytest.raises(ValueError, match="the tokenizer's '<image>' is token 60; the model's image_token_id is 61"):
        make_processor(model.config, tokenizer)
