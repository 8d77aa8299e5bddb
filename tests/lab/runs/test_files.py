import json
import os
import resource
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from clars.errors import UserError
from clars.lab.files import held, replacing, take_away_unfinished, write_json, write_tensors, write_text


def test_folders_are_made_and_nothing_else_is_left(tmp_path):
    write_text(tmp_path / "a" / "b" / "file.txt", "text ±")
    assert (tmp_path / "a" / "b" / "file.txt").read_text(encoding="utf-8") == "text ±"
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file.txt"]


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_refuses_numbers_it_cannot_hold(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": [1, None, 0.1]})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": [1, None, 0.1]}


@pytest.fixture
def small_files():
    """No file of this process grows beyond 4 KiB, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_tensors_that_find_no_room_leave_the_old_file(tmp_path, small_files):
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"a": torch.ones(8)}, {"format": "pt"})
    with pytest.raises(OSError, match=r"File too large.*file\.safetensors"):
        write_tensors(path, {"a": torch.ones(8192)}, {"format": "pt"})
    assert torch.equal(load_file(path)["a"], torch.ones(8))
    assert list(tmp_path.iterdir()) == [path]


def test_only_what_a_writer_left_is_taken_away(tmp_path):
    for name in (".123.resume.safetensors", ".tmpaB3dE6", ".gitignore", ".tmp", "run.json"):
        (tmp_path / name).touch()
    (tmp_path / ".tmpfolder").mkdir()
    (tmp_path / ".1.folder").mkdir()
    take_away_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".1.folder",
        ".gitignore",
        ".tmp",
        ".tmpfolder",
        "run.json",
    ]


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_who_may_read_tensors_is_as_for_any_other_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "tensors", {"a": torch.ones(8).reshape(2, 4).T}, {})
    finally:
        os.umask(before)
    assert (tmp_path / "tensors").stat().st_mode & 0o777 == 0o666 & ~mask


HOLD = """\
import sys, time
from pathlib import Path
from clars.lab.files import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_held_by_one_process_and_free_when_that_is_killed(tmp_path):
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"run: another process is writing there"), held(folder):
            pass
        process.kill()
    with held(folder):
        (folder / "file").touch()
    assert (folder / "file").exists()


def test_a_held_folder_that_stays_empty_is_taken_away(tmp_path):
    with pytest.raises(RuntimeError), held(tmp_path / "a" / "b"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
