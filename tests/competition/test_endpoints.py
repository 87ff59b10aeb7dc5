"""Servers as they are: slow, dead for a while, full, broken, wrong; each request is answered once or refused."""

import base64
import io
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError
from speaking_server import Say, SpeakingServer, completion, prompt_of

from limbeck.competition.asking import AskingError, EndpointGone, Refusal, Reply, Request
from limbeck.competition.endpoints import Endpoints, EndpointsConfig
from limbeck.data.examples import BrokenImage, FileImage, MadeImage
from limbeck.recipe import RecipeError, load_recipe

Serve = Callable[..., SpeakingServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[SpeakingServer] = []

    def start(script: Callable[[dict[str, Any], int], Say] | None = None, **more: Any) -> SpeakingServer:
        server = SpeakingServer(script or (lambda body, count: completion(f"to {prompt_of(body)}")), **more)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


def requests(number: int, image: Any = None) -> list[Request]:
    return [Request(id=f"r{n}", prompt=f"p{n}", image=image, max_new_tokens=8, seed=n) for n in range(number)]


def asker(*servers: SpeakingServer, **settings: Any) -> Endpoints:
    urls = [server.url for server in servers]
    defaults = {"timeout": 5.0, "patience": 3.0, "retries": 5, "concurrency": 4}
    return Endpoints(EndpointsConfig(endpoint=urls, model="m", **(defaults | settings)))


def ask(model: Endpoints, asked: list[Request], temperature: float = 0.5) -> dict[str, Reply | Refusal]:
    found = [(request.id, reply) for request, reply in model.ask(asked, temperature=temperature)]
    assert len(found) == len(dict(found))
    return dict(found)


def test_every_request_is_answered_once_within_the_bound(serve: Serve) -> None:
    server = serve(seconds=0.02)
    found = ask(asker(server), requests(30))
    assert {id: reply.text for id, reply in found.items()} == {f"r{n}": f"to p{n}" for n in range(30)}
    assert set(server.calls.values()) == {1}
    assert server.most_at_once == 4
    reply = found["r0"]
    assert (reply.prompt_tokens, reply.new_tokens, reply.cut) == (7, 3, False)


def test_what_a_server_is_sent(serve: Serve) -> None:
    server = serve()
    picture = MadeImage("green", lambda: Image.new("RGB", (9, 5), "green"))
    ask(asker(server, extra={"top_p": 0.9}), requests(1, picture), temperature=0.25)
    body = server.bodies[0]
    image, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "p0"}
    data = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
    sent = Image.open(io.BytesIO(data))
    assert (sent.size, sent.getpixel((0, 0))) == ((9, 5), (0, 128, 0))
    del body["messages"]
    assert body == {"model": "m", "temperature": 0.25, "max_tokens": 8, "seed": 0, "top_p": 0.9}


def test_seconds_add_up_to_the_time_it_took(serve: Serve) -> None:
    model = asker(serve(seconds=0.05))
    start = time.monotonic()
    found = ask(model, requests(24))
    took = time.monotonic() - start
    assert 0.25 <= sum(reply.seconds for reply in found.values()) <= took


def test_an_answer_that_the_bound_ends_is_cut(serve: Serve) -> None:
    found = ask(asker(serve(lambda body, count: completion("so", "length"))), requests(1))
    assert found["r0"].cut


@pytest.mark.parametrize(
    "broken",
    [
        Say(500, "oops"),
        Say(503, "busy"),
        Say(429, "slow down", {"Retry-After": "0.1"}),
        Say(text="<html>"),
        Say(text=""),
        Say(text='{"choices": []}'),
        Say(text='{"error": "inside"}'),
        Say(text="[]"),
        completion(None),
        completion("so far", "abort"),
        Say(drop=True),
    ],
    ids=lambda say: f"{say.status} {say.text[:20]}{' drop' if say.drop else ''}",
)
def test_what_is_broken_once_is_asked_again(serve: Serve, broken: Say) -> None:
    server = serve(lambda body, count: broken if count == 1 else completion("well"))
    found = ask(asker(server), requests(2))
    assert {reply.text for reply in found.values()} == {"well"}
    assert server.calls == {"p0": 2, "p1": 2}


def test_what_stays_broken_is_refused_while_the_rest_is_answered(serve: Serve) -> None:
    server = serve(lambda body, count: Say(500, "oops") if prompt_of(body) == "p3" else completion("well"))
    found = ask(asker(server, retries=2), requests(10))
    assert isinstance(found["r3"], Refusal)
    assert found["r3"].reason == "no answer in 3 tries; the last: 500: oops"
    assert server.calls["p3"] == 3
    assert sum(isinstance(reply, Reply) for reply in found.values()) == 9


def test_a_time_out_is_tried_again(serve: Serve) -> None:
    def script(body: dict[str, Any], count: int) -> Say:
        if count == 1:
            time.sleep(1)
        return completion("well")

    found = ask(asker(serve(script), timeout=0.3), requests(1))
    assert found["r0"].text == "well"


def test_retry_after_is_kept(serve: Serve) -> None:
    times: list[float] = []

    def script(body: dict[str, Any], count: int) -> Say:
        times.append(time.monotonic())
        return Say(429, "{}", {"Retry-After": "1"}) if len(times) == 1 else completion("well")

    ask(asker(serve(script), retries=0), requests(3))
    assert times[-1] - times[0] >= 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_one_refused_request_leaves_the_others(serve: Serve, status: int) -> None:
    refusal = Say(status, '{"error": {"message": "cannot identify image"}}')
    server = serve(lambda body, count: refusal if prompt_of(body) == "p0" else completion("well"))
    found = ask(asker(server, concurrency=1), requests(3))
    assert found["r0"] == Refusal(reason=f"{status}: cannot identify image")
    assert server.calls["p0"] == 1
    assert isinstance(found["r1"], Reply)
    assert isinstance(found["r2"], Reply)


def test_a_server_that_refuses_all_there_is_is_an_error(serve: Serve) -> None:
    server = serve(lambda body, count: Say(400, '{"detail": "Server is pinned to \'other\'"}'))
    with pytest.raises(AskingError, match="model m: it refuses even a plain question: 400: Server is pinned"):
        ask(asker(server), requests(3))


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_is_an_error_at_once(serve: Serve, monkeypatch: Any, status: int) -> None:
    monkeypatch.setenv("A_KEY", "sk-secret")
    server = serve(lambda body, count: Say(status, '{"error": {"message": "bad sk-secret"}}'))
    with pytest.raises(AskingError) as error:
        ask(asker(server, key_env="A_KEY"), requests(9))
    assert server.url in str(error.value)
    assert ("A_KEY" in str(error.value)) == (status != 404)
    assert "sk-secret" not in str(error.value)
    assert len(server.bodies) < 9


def test_the_key_is_sent_and_never_shown(serve: Serve, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setenv("A_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("OPENAI_ORG_ID", "an-organisation")
    caplog.set_level(logging.DEBUG)
    server = serve(lambda body, count: Say(500, "echo sk-secret") if count < 3 else Say(400, "sk-secret again"))
    model = asker(server, key_env="A_KEY", retries=1)
    found = ask(model, requests(1))
    assert server.headers[0]["authorization"] == "Bearer sk-secret"
    assert not [header for header in server.headers[0] if header.startswith("openai-org")]
    assert "sk-secret" not in f"{found} {model!r} {vars(model)} {model.fingerprint} {caplog.text}"
    no = completion(None, refusal="not with sk-secret")
    unwilling = serve(lambda body, count: no if prompt_of(body) == "p0" else completion("well, sk-secret"))
    found = ask(asker(unwilling, key_env="A_KEY"), requests(2))
    assert found["r0"] == Refusal(reason="the model refuses: not with ***")
    assert "sk-secret" not in str(found)
    bare = serve()
    ask(asker(bare), requests(1))
    assert bare.headers[0]["authorization"] == "Bearer none"


def test_a_missing_key_is_an_error_before_anything_is_asked(monkeypatch: Any) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    with pytest.raises(AskingError, match="no variable A_KEY"):
        Endpoints(EndpointsConfig(endpoint="http://localhost:1", model="m", key_env="A_KEY"))


def test_a_key_in_the_place_of_its_variable_is_not_shown() -> None:
    with pytest.raises(ValidationError, match="wanted the name of an environment variable") as error:
        EndpointsConfig(endpoint="http://localhost:1", model="m", key_env="sk-proj-sesam")
    assert "sesam" not in str(error.value)
    with pytest.raises(RecipeError, match=r"teacher\.key_env: wanted the name of an environment") as wrong:
        load_recipe("comd/vicuna-7b", ["teacher.key_env=sk-proj-sesam"])
    assert "sesam" not in str(wrong.value)


@pytest.mark.parametrize(
    "endpoint",
    [
        "localhost:8000",
        "ftp://a/v1",
        "http://me:sesam@a/v1",
        "http://a/v1?key=sesam",
        "http://a/v1/chat/completions",
        [],
        ["http://a", "http://a/v1/"],
    ],
)
def test_an_address_that_is_none_or_holds_a_key_is_refused(endpoint: Any) -> None:
    with pytest.raises(ValidationError) as error:
        EndpointsConfig(endpoint=endpoint, model="m")
    assert "sesam" not in error.value.errors()[0]["msg"]


def test_two_servers_share_the_work_by_their_speed(serve: Serve) -> None:
    slow, fast = serve(seconds=0.4), serve(seconds=0.1)
    ask(asker(slow, fast), requests(80))
    assert slow.calls.total() + fast.calls.total() == 80
    assert 2 <= fast.calls.total() / slow.calls.total() <= 5


def test_a_dead_server_is_left_alone_and_asked_again_when_it_is_back(serve: Serve, caplog: Any) -> None:
    before = 0
    first, second = serve(seconds=0.02), serve(seconds=0.02)
    model = asker(first, second, retries=2)
    found = {}
    for number, (request, reply) in enumerate(model.ask(requests(200), temperature=0.5)):
        found[request.id] = reply
        if number == 20:
            first.stop()
        if number == 80:
            before = first.calls.total()
            first.start(first.port)
    assert all(isinstance(reply, Reply) for reply in found.values())
    assert len(found) == 200
    assert first.calls.total() > before + 5
    assert f"{first.url}/v1 is taken out" in caplog.text
    assert f"{first.url}/v1 is back" in caplog.text


def test_a_proxy_without_its_server_costs_nothing_but_time(serve: Serve) -> None:
    server = serve(seconds=0.01)
    found = {}
    for number, (request, reply) in enumerate(asker(server, retries=1, patience=10.0).ask(requests(60), temperature=0)):
        found[request.id] = reply
        if number == 10:
            server.sick = True
            threading.Timer(1.5, lambda: setattr(server, "sick", False)).start()
    assert len(found) == 60
    assert all(isinstance(reply, Reply) for reply in found.values())


def test_when_all_are_gone_what_was_answered_is_kept(serve: Serve) -> None:
    server = serve(seconds=0.01)
    found = []
    start = time.monotonic()

    def ask_until_it_dies() -> None:
        for number, (_, reply) in enumerate(asker(server, patience=1.0).ask(requests(100), temperature=0)):
            found.append(reply)
            if number == 10:
                server.stop()

    with pytest.raises(EndpointGone, match="the same command goes on") as error:
        ask_until_it_dies()
    assert server.url in str(error.value)
    assert len(found) >= 11
    assert time.monotonic() - start < 6
    server.start(0)


def test_an_account_without_money_is_gone_at_once(serve: Serve) -> None:
    said = json.dumps({"error": {"message": "quota", "code": "insufficient_quota"}})
    with pytest.raises(EndpointGone, match="nothing left"):
        ask(asker(serve(lambda body, count: Say(429, said))), requests(3))


def test_a_rest_longer_than_patience_ends_it(serve: Serve) -> None:
    server = serve(lambda body, count: Say(429, "limit", {"Retry-After": "3600"}))
    start = time.monotonic()
    with pytest.raises(EndpointGone, match="429: limit"):
        ask(asker(server), requests(3))
    assert time.monotonic() - start < 3


def test_a_server_that_asks_for_no_rest_is_not_hammered(serve: Serve) -> None:
    server = serve(lambda body, count: Say(429, "limit", {"Retry-After": "0"}))
    with pytest.raises(EndpointGone, match="429: limit"):
        ask(asker(server, patience=1.0), requests(3))
    assert len(server.bodies) < 30


def test_a_model_that_spends_its_tokens_on_thinking_is_refused_at_once(serve: Serve) -> None:
    server = serve(lambda body, count: completion(None, "length") if prompt_of(body) == "p0" else completion("well"))
    found = ask(asker(server), requests(2))
    assert found["r0"] == Refusal(
        reason="nothing was said within max_new_tokens; a model that thinks first needs more of them"
    )
    assert server.calls["p0"] == 1


def test_a_broken_picture_is_refused_and_never_sent(serve: Serve, tmp_path: Any) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")

    def fail() -> Image.Image:
        raise BrokenImage("cut short")

    server = serve()
    asked = [*requests(1, MadeImage("bad", fail)), *requests(2, FileImage(str(tmp_path / "bad.jpg")))[1:]]
    found = ask(asker(server), asked)
    assert found["r0"] == Refusal(reason="cut short")
    assert "bad.jpg" in found["r1"].reason
    assert not server.bodies


def test_who_stops_early_leaves_no_thread_and_no_further_calls(serve: Serve) -> None:
    server = serve(seconds=0.05)
    answers = asker(server).ask(requests(500), temperature=0.5)
    next(answers)
    answers.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("asking")]
    time.sleep(0.1)
    calls = server.calls.total()
    time.sleep(0.2)
    assert server.calls.total() == calls < 30


def test_a_slow_reader_is_waited_for(serve: Serve) -> None:
    server = serve()
    answers = asker(server).ask(requests(100), temperature=0.5)
    next(answers)
    time.sleep(1)
    assert server.calls.total() < 40
    assert len(list(answers)) == 99


def test_one_id_twice_and_nothing_at_all(serve: Serve) -> None:
    model = asker(serve())
    assert list(model.ask([], temperature=0)) == []
    with pytest.raises(ValueError, match="two requests with the id 'r0'"):
        model.ask([*requests(1), *requests(1)], temperature=0)


def test_the_fingerprint_is_the_models_and_not_the_addresss(serve: Serve, caplog: Any) -> None:
    vllm = {"data": [{"id": "m", "created": time.time(), "root": "/models/llava-13b"}]}
    assert asker(serve()).fingerprint == asker(serve(models=["nothing of use"])).fingerprint == "m"
    assert asker(serve(models=vllm), serve(models=vllm)).fingerprint == "m@llava-13b"
    with pytest.raises(AskingError, match="different models"):
        _ = asker(serve(models=vllm), serve()).fingerprint
    other = asker(serve(models={"data": [{"id": "n"}]}))
    assert other.fingerprint == "m"
    assert "lists no model m; it has n" in caplog.text
    assert other.doubts[0].endswith("lists no model m; it has n")


@pytest.mark.parametrize(
    ("listed", "found"), [("{torn", r"found what is no JSON \(.*\)"), ('{"data": 5}', "found int for `data`")]
)
def test_a_list_of_models_that_is_none_is_told_with_its_address(serve: Serve, listed: str, found: str) -> None:
    server = serve(models=listed)
    with pytest.raises(AskingError, match=f"{server.url}/v1/models: wanted a list of models, .*, {found}"):
        _ = asker(server).fingerprint


def test_one_of_two_servers_that_does_not_answer_is_named(serve: Serve, caplog: Any) -> None:
    gone = serve()
    model = asker(serve(), gone)
    gone.stop()
    assert model.fingerprint == "m"
    assert len(model.doubts) == 1
    assert model.doubts[0].startswith(f"{gone.url}/v1: ")
    assert model.doubts[0].endswith("it does not answer, so the others are asked")
    assert model.doubts[0] in caplog.text
    gone.start(0)


def test_no_server_is_an_error_that_says_so() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(EndpointGone, match=f"no server answers; start it, or correct the address: {url}"):
        _ = Endpoints(EndpointsConfig(endpoint=url, model="m")).fingerprint
