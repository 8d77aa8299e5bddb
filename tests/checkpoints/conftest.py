import shutil
import sys
from pathlib import Path

import pytest

from clars.checkpoints import manifest
from clars.checkpoints.publish import Options, publish
from clars.training import script

sys.path.append(str(Path(__file__).parent))  # for the modules beside this file
from tiny import write_recipe


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A repository with the recipe tiny/small and a run of it; tests take copies."""
    root = tmp_path_factory.mktemp("trained")
    assert script.main([str(write_recipe(root)), "--seed", "3", "--out", str(root / "runs")]) == 0
    return root


@pytest.fixture
def repository(trained, tmp_path, monkeypatch):
    """A copy of it, which is the current directory; the cache is empty."""
    root = tmp_path / "repository"
    shutil.copytree(trained, root)
    monkeypatch.chdir(root)
    monkeypatch.delenv("CLARS_RECIPES", raising=False)
    monkeypatch.delenv(manifest.VARIABLE, raising=False)
    monkeypatch.setenv("CLARS_CACHE", str(tmp_path / "cache"))
    return root


@pytest.fixture
def run(repository):
    """The folder of the run."""
    return repository / "runs" / "small" / "seed3"


@pytest.fixture
def published(run):
    """The run, published beside the manifest as `small`; its folder."""
    publish(run, "small", Options(allow_dirty=True, tell=lambda line: None))
    return manifest.root() / "small"
