"""Endpoints against `transformers serve`: a real server, of a small LLaVA with random weights that limbeck built."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPVisionConfig, LlamaConfig

from limbeck.competition.asking import AskingError, Reply, Request
from limbeck.competition.endpoints import Endpoints, EndpointsConfig
from limbeck.data.chat import Chat, ChatConfig
from limbeck.data.decoder_tokenizer import BpeTokenizer, DecoderIds, load_decoder_tokenizer
from limbeck.data.examples import MadeImage
from limbeck.models.llava import build_llava, make_llava_processor

pytestmark = pytest.mark.slow
COLOURS = ("red", "green", "blue", "yellow")
PIXELS = 32


def save_llava(folder: Path) -> None:
    tokenizer = load_decoder_tokenizer(BpeTokenizer(tokenizer="bpe", vocab_size=300), ["Which colour is it?", *COLOURS])
    ids = DecoderIds.of(tokenizer)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = build_llava(
        CLIPVisionConfig(**size, image_size=PIXELS, patch_size=16),
        LlamaConfig(**size, num_key_value_heads=2, vocab_size=len(tokenizer), initializer_range=0.5),
        tokenizer_length=len(tokenizer),
        image_token_id=ids.image,
        pad_token_id=ids.pad,
        bos_token_id=ids.bos,
        eos_token_id=ids.eos,
    )
    model.save_pretrained(folder)
    make_llava_processor(model, tokenizer, Chat(tokenizer, ChatConfig()).jinja).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    save_llava(folder)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("fastapi", reason="transformers serve needs fastapi")
    pytest.importorskip("uvicorn", reason="transformers serve needs uvicorn")
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", folder, "--device", "cpu", "--port", str(port)]
    log = tmp_path_factory.mktemp("log") / "serve.log"
    with log.open("w") as file:
        offline = os.environ | {"HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=offline)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


def wait_for(health: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.3)
    raise RuntimeError(f"transformers serve did not come up:\n{log.read_text()[-2000:]}")


def picture(colour: str) -> MadeImage:
    return MadeImage(colour, lambda: Image.new("RGB", (PIXELS, PIXELS), colour))


def requests() -> list[Request]:
    images = [picture(colour) for colour in COLOURS]
    return [
        Request(id=f"r{n}", prompt="Which colour is it?", image=(*images, None)[n % 5], max_new_tokens=6, seed=n)
        for n in range(10)
    ]


def written_here(folder: Path, request: Request) -> tuple[str, int]:
    """The likeliest reply of the same model in this process, and the prompt's tokens."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    content = [{"type": "text", "text": request.prompt}]
    if request.image is not None:
        content.insert(0, {"type": "image", "image": request.image.open()})
    turn = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(
        turn, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=request.max_new_tokens, do_sample=False)
    length = inputs["input_ids"].shape[1]
    return processor.decode(ids[0, length:], skip_special_tokens=True), length


def test_a_server_says_what_the_model_says_here(url: str, folder: Path) -> None:
    model = Endpoints(EndpointsConfig(endpoint=url, model=str(folder), timeout=60, concurrency=3))
    assert model.fingerprint == str(folder)
    found = {request.id: reply for request, reply in model.ask(requests(), temperature=0.0)}
    assert len(found) == 10
    for request in requests()[:5]:
        text, length = written_here(folder, request)
        reply = found[request.id]
        assert isinstance(reply, Reply)
        assert (reply.text, reply.prompt_tokens) == (text, length)
        assert reply.new_tokens <= 6
        assert reply.cut == (reply.new_tokens == 6)
    assert len({found[f"r{number}"].text for number in range(5)}) > 1


def test_a_model_the_server_does_not_have_is_an_error(url: str) -> None:
    model = Endpoints(EndpointsConfig(endpoint=url, model="another", timeout=60))
    with pytest.raises(AskingError, match="model another: it refuses even a plain question"):
        list(model.ask(requests(), temperature=0.0))
