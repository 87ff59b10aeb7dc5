import errno
import json
import subprocess
import sys
from importlib.metadata import version

import pytest

from limbeck import cli
from limbeck.data.examples import DataError
from limbeck.errors import TRAINING_BEGAN

BINARY = [sys.executable, "-m", "limbeck.cli"]


def run(*arguments, code=0):
    done = subprocess.run([*BINARY, *arguments], capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_help_does_not_wait_for_torch():
    code = "import sys, limbeck.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_help_names_every_command():
    text = run("--help").stdout
    for command in ("train", "evaluate", "profile", "report", "quickstart", "recipe"):
        assert command in text


def test_the_version_is_told():
    assert run("--version").stdout == f"limbeck {version('limbeck')}\n"


def test_a_shown_recipe_is_a_recipe_again(tmp_path):
    shown = run("recipe", "show", "dlip/quickstart", "seed=7").stdout
    path = tmp_path / "again.yaml"
    path.write_text(shown)
    assert run("recipe", "show", str(path)).stdout == shown
    assert "seed: 7" in shown


def test_a_shown_recipe_is_not_folded(tmp_path):
    path = tmp_path / "recipe.yaml"
    place = "/".join(["a-rather-long-name"] * 8)
    path.write_text(run("recipe", "show", "dlip/quickstart", f"output={place}").stdout)
    assert f"output: {place}\n" in path.read_text()


def test_a_disk_that_takes_nothing_is_one_message(monkeypatch, capsys):
    def write():
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x/log.jsonl")

    monkeypatch.setattr(cli, "app", write)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: 'runs/x/log.jsonl'\n"


def test_what_breaks_in_the_middle_of_a_run_keeps_its_traceback(monkeypatch, capsys):
    def breaks(error):
        def run():
            TRAINING_BEGAN.set()
            raise error

        monkeypatch.setattr(cli, "app", run)
        cli.main()

    with pytest.raises(ValueError, match="a shape"):
        breaks(ValueError("a shape"))
    with pytest.raises(OSError, match="No space left"):
        breaks(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(SystemExit) as ended:
        breaks(DataError("2 of 100 records are broken"))
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: 2 of 100 records are broken\n"


def test_the_schema_is_json_and_knows_the_sections():
    schema = json.loads(run("recipe", "schema").stdout)
    kinds = [schema["$defs"][choice["$ref"].rpartition("/")[2]] for choice in schema["anyOf"]]
    sections = {kind["properties"]["method"]["const"]: set(kind["properties"]) for kind in kinds}
    assert {"student", "teacher", "data", "training"} <= sections["dlip"]
    assert {"duet", "tokenizer", "data", "training"} <= sections["ctvlm"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "dlip/quickstrat"), "dlip/quickstart"),
        (("train", "dlip/quickstart", "training.learning_rte=1"), "learning_rate"),
        (("profile",), "--scales"),
        (("evaluate", "nowhere", "dlip/quickstart", "--out", "x"), "nowhere"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(arguments, message, tmp_path):
    done = subprocess.run([*BINARY, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_profiles_stand_side_by_side(tmp_path):
    rows = json.loads(run("profile", "dlip/quickstart", "limbeck:quickstart_teacher", "--json").stdout)
    student, teacher = rows
    assert student["parameters"] <= 0.25 * teacher["parameters"]
