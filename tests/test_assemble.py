import torch

from limbeck.assemble.dlip import build_student, build_teacher, open_tokenizer
from limbeck.recipe import load_recipe


def test_the_quickstarts_two_students_start_from_the_same_weights():
    plain, distilled = load_recipe("dlip/quickstart_plain"), load_recipe("dlip/quickstart")
    tokenizer = open_tokenizer(plain, None)
    alone = build_student(plain, tokenizer, build_teacher(plain, tokenizer)).state_dict()
    taught = build_student(distilled, tokenizer, build_teacher(distilled, tokenizer)).state_dict()
    assert alone.keys() == taught.keys()
    assert all(torch.equal(alone[name], taught[name]) for name in alone)
