import platform
import subprocess
from importlib.metadata import version

import pytest

from clars.lab.runs.provenance import git_state, provenance


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "recipe.yaml").write_text("a: 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    return tmp_path


def test_the_commit_and_whether_it_was_changed(repository):
    commit = git(repository, "rev-parse", "HEAD")
    assert git_state(repository) == {"commit": commit, "dirty": False}
    (repository / "recipe.yaml").write_text("a: 2\n")
    assert git_state(repository) == {"commit": commit, "dirty": True}


def test_outside_of_git_there_is_no_commit(tmp_path):
    assert git_state(tmp_path) == {"commit": None, "dirty": None}


def test_without_git_there_is_no_commit(repository, monkeypatch):
    monkeypatch.setenv("PATH", str(repository / "empty"))
    assert git_state(repository) == {"commit": None, "dirty": None}


def test_provenance_is_of_the_recipe_and_of_this_process(repository):
    found = provenance(repository / "recipe.yaml")
    assert found["git"]["commit"] == git(repository, "rev-parse", "HEAD")
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["torch"] == version("torch")
    assert found["device"].startswith("cpu: ")
    assert len(found["device"]) > len("cpu: ")
