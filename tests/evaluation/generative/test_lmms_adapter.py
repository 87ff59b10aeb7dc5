"""limbeck under lmms-eval, through lmms-eval's own registry and requests. Skipped where lmms-eval is not installed."""

import pytest
from PIL import Image

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (the extra `lmms`)")
from lmms_eval.api.instance import Instance
from lmms_eval.models.registry_v2 import ModelRegistryV2

from limbeck.data.examples import MadeImage
from limbeck.evaluation.generative.answering import answers_to
from limbeck.evaluation.generative.items import Item
from limbeck.evaluation.lmms import Limbeck, manifest

COLOURS = ("red", "green", "blue", "white", "yellow")


@pytest.fixture
def folder(vlm, tmp_path):
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def adapter(folder) -> Limbeck:
    registry = ModelRegistryV2()
    registry.register_manifest(manifest())
    found = registry.get_model_class("limbeck")
    assert found is Limbeck
    passed = {"batch_size": 2, "max_batch_size": None, "device": "cpu"}
    adapter = found.create_from_arg_string(f"pretrained={folder},dtype=float32", passed)
    adapter.task_dict["colours"] = {"test": [{"picture": Image.new("RGBA", (40, 32), name)} for name in COLOURS]}
    return adapter


def request(number: int, context: str, pictures: bool = True, **wishes) -> Instance:
    visual = (lambda doc: [doc["picture"]]) if pictures else (lambda doc: [])
    arguments = (context, {"max_new_tokens": 5} | wishes, visual, number, "colours", "test")
    metadata = {"task": "colours", "doc_id": number, "repeats": 1}
    return Instance(request_type="generate_until", arguments=arguments, idx=0, metadata=metadata)


def item(number: int, prompt: str, pictures: bool = True) -> Item:
    picture = MadeImage(str(number), lambda: Image.new("RGB", (40, 32), COLOURS[number]))
    return Item(id=str(number), prompt=prompt, images=(picture,) if pictures else (), row={})


def test_requests_are_answered_as_limbeck_answers(adapter, vlm):
    requests = [request(number, f"What {'now' * number}?", pictures=number != 3) for number in range(5)]
    items = [item(number, f"What {'now' * number}?", pictures=number != 3) for number in range(5)]
    answers = adapter.generate_until(requests)
    assert answers == answers_to(vlm, items, max_new_tokens=5)
    assert len(set(answers)) > 2


def test_each_request_gets_what_it_wishes(adapter, vlm):
    plain = answers_to(vlm, [item(0, "What?")], max_new_tokens=5)[0]
    short = answers_to(vlm, [item(0, "What?")], max_new_tokens=2)[0]
    stop = plain[2]
    requests = [
        request(0, "What?", temperature=0, top_p=None, num_beams=1, do_sample=False),
        request(0, "What?", max_new_tokens=2),
        request(0, "What?", until=[stop, ""]),
        request(0, "<image>\nWhat?"),
    ]
    assert adapter.generate_until(requests) == [plain, short, plain.split(stop)[0].strip(), plain]


def test_what_it_cannot_do_says_so(adapter, folder):
    with pytest.raises(NotImplementedError, match="does not rank"):
        adapter.loglikelihood([])
    with pytest.raises(NotImplementedError, match="one turn"):
        adapter.generate_until_multi_round([])
    adapter.task_dict["colours"]["test"][0] = {"picture": "film.mp4"}
    with pytest.raises(ValueError, match="task colours: limbeck looks at pictures"):
        adapter.generate_until([request(0, "What?")])
    with pytest.raises(ValueError, match="dtype 'int8': wanted auto, float32"):
        Limbeck(str(folder), dtype="int8")
