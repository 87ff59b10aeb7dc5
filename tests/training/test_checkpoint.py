import pytest

from limbeck.training.checkpoint import MANIFEST, discard_torn, latest, rotate, seal


def make(folder, step, *, sealed=True):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"x" * step)
    if sealed:
        seal(checkpoint)
    return checkpoint


def test_the_newest_sealed_checkpoint_is_latest_by_number_not_by_name(tmp_path):
    make(tmp_path, 9)
    newest = make(tmp_path, 10)
    assert latest(tmp_path) == newest


def test_a_checkpoint_without_manifest_is_passed_over_and_discarded(tmp_path):
    good = make(tmp_path, 5)
    torn = make(tmp_path, 10, sealed=False)
    assert latest(tmp_path) == good
    assert discard_torn(tmp_path) == [torn]
    assert not torn.exists()
    assert good.exists()


@pytest.mark.parametrize("damage", ["truncate", "delete", "manifest"])
def test_a_damaged_checkpoint_is_not_latest(tmp_path, damage):
    good, bad = make(tmp_path, 5), make(tmp_path, 10)
    if damage == "truncate":
        (bad / "model.safetensors").write_bytes(b"x")
    elif damage == "delete":
        (bad / "model.safetensors").unlink()
    else:
        (bad / MANIFEST).write_text('{"files": {"mod')
    assert latest(tmp_path) == good


def test_rotation_counts_only_sealed_checkpoints(tmp_path):
    for step in (1, 2, 3):
        make(tmp_path, step)
    make(tmp_path, 4, sealed=False)
    rotate(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]


def test_no_folder_means_no_checkpoint(tmp_path):
    assert latest(tmp_path / "none") is None
