"""The folder of a run: what is accepted as new, and what is resumed."""

import dataclasses

import pytest

from linnet.cli import main
from linnet.cli.run_folder import check_writable, open_folder, resume_settings, seeds_of, write_record
from linnet.cli.task.settings import TaskSettings
from linnet.cli.train.settings import Settings

SETTINGS = Settings(layers=("linear", "orthogonal"), seeds=2, seed=3)
RUNS = {
    "train": ["--layer", "linear", "--hidden", "8", "--depth", "2", "--epochs", "1", "--seeds", "1"],
    "evolve": ["--beings", "4", "--generations", "1", "--hidden", "4", "--episodes", "1"],
    "task": ["--hidden", "4", "--batch-size", "4", "--steps", "2"],
}


def test_a_new_run_makes_its_folder_and_does_not_enter_one_that_is_used(tmp_path):
    open_folder(SETTINGS, tmp_path / "a" / "b", resume=False)
    open_folder(SETTINGS, tmp_path / "a" / "b", resume=False)  # it is empty
    (tmp_path / "a" / "b" / ".run.json.1a2b.tmp").touch()
    open_folder(SETTINGS, tmp_path / "a" / "b", resume=False)
    for used in (tmp_path / "a", tmp_path / "a" / "b" / ".run.json.1a2b.tmp"):
        with pytest.raises(ValueError, match="must be new or empty, or --resume given"):
            open_folder(SETTINGS, used, resume=False)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".run.json.1a2b.tmp", "a", "b"]


def test_a_run_is_resumed_with_its_own_settings(tmp_path):
    write_record(tmp_path, SETTINGS, "sha")
    assert resume_settings(Settings, tmp_path) == SETTINGS
    assert list(seeds_of(SETTINGS)) == [3, 4]
    (tmp_path / "nets").mkdir()
    left_over = tmp_path / "nets" / ".x.safetensors.1a2b.tmp"
    left_over.touch()
    open_folder(SETTINGS, tmp_path, resume=True, data_sha256="sha")
    assert not left_over.exists()
    other = dataclasses.replace(SETTINGS, epochs=5, layers=("linear",))
    with pytest.raises(ValueError, match=r"`layers` was linear, orthogonal, got linear; `epochs` was 20, got 5$"):
        open_folder(other, tmp_path, resume=True, data_sha256="sha")
    open_folder(other, tmp_path, resume=True, data_sha256="sha", changeable=("epochs", "layers"))
    with pytest.raises(ValueError, match=r"on other data: digits has changed$"):
        open_folder(SETTINGS, tmp_path, resume=True, data_sha256="other", source="digits")
    with pytest.raises(ValueError, match="it holds no run of this command"):
        resume_settings(TaskSettings, tmp_path)
    with pytest.raises(ValueError, match=r"no run to resume in .*none: run.json: No such file or directory"):
        resume_settings(Settings, tmp_path / "none")


def test_damaged_checkpoints_are_found_before_the_run_begins(tmp_path):
    write_record(tmp_path, SETTINGS, None)
    damaged = tmp_path / "damaged.safetensors"
    open_folder(SETTINGS, tmp_path, resume=True, checkpoints=[damaged])  # it is not there yet
    damaged.write_bytes(b"half")
    with pytest.raises(ValueError, match=r"damaged.safetensors.* linnet checkpoint"):
        open_folder(SETTINGS, tmp_path, resume=True, checkpoints=[damaged])


def test_folders_that_the_system_refuses(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^cannot write to .*/file/folder: Not a directory$"):
        check_writable(tmp_path / "file" / "folder")


@pytest.mark.usefixtures("few_rounds", "undrawn")
@pytest.mark.parametrize("command", RUNS)
def test_what_a_killed_first_save_left_is_no_run(tmp_path, capsys, command):
    """Every command begins a run there, and none resumes one that has no record."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".state.safetensors.1a2b.tmp").write_bytes(b"half")
    out = ["--out", str(tmp_path / "run")]
    assert main([command, "--resume", *out]) == 2
    assert "no run to resume in" in capsys.readouterr().err
    assert main([command, *RUNS[command], *out]) == 0
    assert main([command, "--resume", *out]) == 0
    assert not list(tmp_path.rglob(".*.tmp"))
