import shutil
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest

from clars.lab.checkpoints import form, manifest
from clars.lab.checkpoints.publish import PublishOptions, publish
from clars.lab.training import script

sys.path.append(str(Path(__file__).parent))  # for the modules beside this file
from hub_server import REPO, Hub
from tiny import readdress, write_recipe


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


@pytest.fixture(scope="session")
def released(trained, tmp_path_factory):
    """The folder `checkpoints` after the run was published as `small`; tests take copies."""
    root = tmp_path_factory.mktemp("released")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLARS_RECIPES", str(trained / "recipes"))
        patch.setenv(manifest.VARIABLE, str(root))
        publish(trained / "runs" / "small" / "seed3", "small", PublishOptions(allow_dirty=True, tell=lambda line: None))
    return root


@pytest.fixture
def published(repository, released):
    """The run, published beside the manifest as `small`; its folder."""
    shutil.copytree(released, manifest.root())
    return manifest.root() / "small"


@pytest.fixture
def hub(monkeypatch, tmp_path, hub_client):
    """A Hub on this machine, at which the client of this process points, logged in as one who may write."""
    server = Hub()
    hub_client(
        ENDPOINT=server.address,
        HUGGINGFACE_CO_URL_TEMPLATE=server.address + "/{repo_id}/resolve/{revision}/{filename}",
        HF_HUB_CACHE=str(tmp_path / "hub"),
        HF_HUB_DISABLE_XET=True,
    )
    monkeypatch.setenv("HF_TOKEN", "writer")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the client's attempts
    yield server
    server.close()
    huggingface_hub.close_session()  # which knows whether it is offline


@pytest.fixture
def offered(hub, published):
    """The published files on the Hub, the weights only there; what the manifest says of them."""
    hub.repositories[REPO] = {"": {}}
    oid = hub.commit(REPO, {path.name: path.read_bytes() for path in published.iterdir()})
    (published / form.WEIGHTS).unlink()
    readdress(f"hf://{REPO}@{oid}")
    return manifest.find("small")


@pytest.fixture
def uploaded(hub, run):
    """The run, published on the Hub, its weights only there."""
    return publish(run, "small", PublishOptions(REPO, allow_dirty=True, in_git=1000, tell=lambda line: None))
