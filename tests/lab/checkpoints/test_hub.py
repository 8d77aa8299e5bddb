"""Publishing and pulling by the Hub's own client, against a server that speaks its protocol."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from hub_server import REPO
from tiny import files, readdress, write_recipe

import clars
from clars.errors import CheckpointError
from clars.lab.checkpoints import form, manifest, pull
from clars.lab.checkpoints.publish import PublishOptions, publish
from clars.lab.training import script


def upload(run, **options):
    return publish(run, "small", PublishOptions(REPO, allow_dirty=True, tell=lambda line: None, **options))


def test_there_and_back(hub, uploaded, run):
    oid = hub.head(REPO)
    assert uploaded.address == f"hf://{REPO}@{oid}"
    stored = hub.files(REPO)
    assert {name: hashlib.sha256(stored[name]).hexdigest() for name in form.FILES} == {
        name: file.sha256 for name, file in uploaded.files.items()
    }
    assert not (manifest.root() / "small" / form.WEIGHTS).exists()
    assert any(number > 1 for _, number in hub.parts), "the weights went in several parts"
    assert f"hf-hub:{REPO}" in stored["README.md"].decode()
    images = torch.randn(3, 1, 8, 8)
    own = clars.load("small")
    timms = timm.create_model(f"hf-hub:{REPO}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(own(images), timms(images))
    hub.close()
    assert clars.load("small") is not None, "the cache needs no network"


COMMANDS = """
import sys
from clars.lab import cli
for words in {lines}:
    try:
        cli.main(words)
    except SystemExit as end:
        assert not end.code, words
import clars, timm
assert timm.create_model("hf-hub:{repo}", pretrained=True).num_classes == 10
"""


def test_the_commands(hub, run, tmp_path):
    """Publish, list, pull, verify, in a process of their own that HF_ENDPOINT leads to the server."""
    lines = [
        ["checkpoints", "publish", str(run), "--name", "small", "--repo", REPO, "--allow-dirty"],
        ["checkpoints", "list"],
        ["checkpoints", "pull", "small", "--to", str(tmp_path / "copy")],
        ["checkpoints", "verify", "small"],
        ["checkpoints", "verify", str(tmp_path / "copy"), "--no-data"],
    ]
    variables = {"HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    script = COMMANDS.format(lines=lines, repo=REPO)
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    plan, _, written = done.stdout.partition("wrote ")
    assert f"will create {REPO} on {hub.address} unless it is there, and upload" in plan
    assert "resnet8 on digits (test split), tiny/small@v1; " in written
    assert "56 tensors with the names, shapes and types of resnet8" in written
    assert "% of 360 examples here" in written


def test_what_was_pulled_is_not_asked_for_again(hub, uploaded, tmp_path):
    folder = pull.pull("small")
    before = len(hub.requests)
    assert pull.pull("small") == folder and len(hub.requests) == before
    assert sorted(path.name for path in pull.pull("small", tmp_path / "copy").iterdir()) == sorted(form.FILES)
    with pytest.raises(CheckpointError, match="is there already"):
        pull.pull("small", tmp_path / "copy")


def test_a_broken_cache_is_pulled_again(hub, uploaded):
    folder = pull.pull("small")
    (folder / form.CONFIG).write_text("{}")
    with pytest.warns(UserWarning, match="is not what was published"):
        assert pull.pull("small") == folder
    assert form.read(folder, uploaded).entry == uploaded


def test_a_dry_run_asks_the_hub_for_nothing(hub, run):
    upload(run, dry_run=True)
    assert hub.requests == [] and not manifest.root().exists()


def test_an_upload_that_breaks_off(hub, run, monkeypatch):
    """Nothing is in the manifest, and the next attempt sends only what had not arrived."""
    hub.refuse_parts = 1
    with pytest.raises(CheckpointError, match=r"someone/small on http.*The same command goes on"):
        upload(run)
    assert not manifest.root().exists() and hub.files(REPO) == {}
    arrived, hub.requests[:] = set(hub.objects), []
    upload(run)
    sent = {path.split("/")[2] for method, path, _ in hub.requests if method == "PUT"}
    assert sent and sent.isdisjoint(arrived)
    assert pull.pull("small")


def test_a_download_that_breaks_off(hub, uploaded):
    """Nothing of it is put in place; the next attempt brings the whole file."""
    weights = uploaded.files[form.WEIGHTS]
    hub.left[weights.sha256] = 20_000
    with pytest.raises(CheckpointError, match="The same command tries again"):
        pull.pull("small")
    assert not pull.place("small", uploaded).exists()
    del hub.left[weights.sha256]
    assert manifest.describe((pull.pull("small") / form.WEIGHTS).read_bytes()) == weights
    assert not (pull.place("small", uploaded) / ".cache").exists()


def spoil(hub, name, content):
    commit = hub.repositories[REPO][hub.head(REPO)]
    commit[name] = content(commit[name])


@pytest.mark.parametrize("content, message", [
    (lambda old: old[:-1] + b"x", "is not what was published"),
    (lambda old: old + b"more", "it has 25932 bytes, and 25928 were published"),
    (lambda old: old[:-10], "it has 25918 bytes, and 25928 were published"),
])  # fmt: skip
def test_a_file_with_another_content(hub, uploaded, content, message):
    """Nothing is put in place; of another size it is not even asked for."""
    spoil(hub, form.WEIGHTS, content)
    with pytest.raises(CheckpointError, match=message):
        pull.pull("small")
    assert not pull.place("small", uploaded).exists()


def test_a_missing_file(hub, uploaded):
    del hub.repositories[REPO][hub.head(REPO)][form.CONFIG]
    with pytest.raises(CheckpointError, match=r"config.json: not found \(404\)"):
        pull.pull("small")


@pytest.mark.parametrize("address, message", [
    (f"hf://{REPO}@{'0' * 40}", "there is no such revision"),
    ("hf://someone/else", "no such repository"),
    ("file:///nowhere/at/all", "/nowhere/at/all/model.safetensors is missing"),
    ("hf://nowhere", "the address of a folder on the Hub is hf://ORG/NAME@REVISION"),
])  # fmt: skip
def test_addresses_that_lead_nowhere(hub, uploaded, address, message):
    readdress(address)
    with pytest.raises(CheckpointError, match=message):
        pull.pull("small")


def test_no_permission(hub, uploaded, run, monkeypatch, hub_client):
    hub.private.add(REPO)
    monkeypatch.delenv("HF_TOKEN")
    hub_client(HF_TOKEN_PATH="/nowhere/token")
    with pytest.raises(CheckpointError, match=r"\(401\).*hf auth login"):
        pull.pull("small")
    with pytest.raises(CheckpointError, match=r"\(401\).*hf auth login"):
        upload(run, replace=True)
    monkeypatch.setenv("HF_TOKEN", "reader")
    with pytest.raises(CheckpointError, match=r"\(403\).*hf auth login"):
        upload(run, replace=True)
    monkeypatch.setenv("HF_TOKEN", "stranger")
    with pytest.raises(CheckpointError, match=r"\(403\)"):
        pull.pull("small")
    monkeypatch.setenv("HF_TOKEN", "reader")
    assert pull.pull("small")


def test_offline(hub, uploaded, hub_client):
    hub_client(HF_HUB_OFFLINE=True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        pull.pull("small")
    hub_client(HF_HUB_OFFLINE=False)
    folder = pull.pull("small")
    hub_client(HF_HUB_OFFLINE=True)
    assert pull.pull("small") == folder


def test_names_of_repositories(run):
    for repo in ("small", "a/b/c", "../up", "a/b c"):
        with pytest.raises(CheckpointError, match="--repo"):
            publish(run, "small", PublishOptions(repo, allow_dirty=True))
    assert not manifest.root().exists()


def test_any_store_of_fsspec(uploaded, hub, tmp_path):
    """A mirror of the folder serves as well."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for name, content in hub.files(REPO).items():
        (mirror / name).write_bytes(content)
    readdress(f"file://{mirror}")
    hub.close()
    assert sorted(path.name for path in pull.pull("small").iterdir()) == sorted(form.FILES)
    assert str(mirror) not in files(pull.pull("small"))


def test_a_run_of_one_s_own_by_the_name_of_its_repository(hub, run, tmp_path):
    """No manifest knows it; it is loaded without network afterwards, and in the version that is asked for."""
    address = clars.push_to_hub(run, REPO, allow_dirty=True)
    assert address == f"hf://{REPO}@{hub.head(REPO)}" and not manifest.root().exists()
    assert f"# {REPO.partition('/')[2]}" in hub.files(REPO)["README.md"].decode()
    images = torch.randn(3, 1, 8, 8)
    first = clars.load(REPO)
    with torch.no_grad():
        assert torch.equal(first(images), timm.create_model(f"hf-hub:{REPO}", pretrained=True).eval()(images))
    assert sorted(path.name for path in pull.pull(REPO, tmp_path / "copy").iterdir()) == sorted(form.FILES)
    assert clars.load(f"{REPO}@{hub.head(REPO)}").state_dict().keys() == first.state_dict().keys()
    hub.close()
    assert torch.equal(clars.load(REPO)(images), first(images))


def test_a_repository_that_is_none_of_ours(hub, run):
    clars.push_to_hub(run, REPO, allow_dirty=True)
    del hub.repositories[REPO][hub.head(REPO)]["run.json"]
    with pytest.raises(
        CheckpointError, match=rf"hf://{REPO}/run.json is missing.*timm.create_model\('hf-hub:{REPO}'\)"
    ):
        clars.load(REPO)


def test_repositories_that_cannot_be_had(hub, run, hub_client, monkeypatch):
    with pytest.raises(CheckpointError, match="there is no such repository"):
        clars.load("someone/else")
    clars.push_to_hub(run, REPO, allow_dirty=True)
    with pytest.raises(CheckpointError, match="there is no such revision"):
        clars.load(f"{REPO}@{'0' * 40}")
    hub.close()
    with pytest.raises(CheckpointError, match=rf"{REPO} on http.*Check the connection"):
        clars.load(REPO)
    for repo in ("small", "a/b/c"):
        with pytest.raises(CheckpointError, match="--repo"):
            clars.push_to_hub(run, repo)


def test_a_run_without_labels_has_no_classifier(hub, run):
    path = write_recipe(run.parents[2], "views", self_supervised={})
    assert script.main([str(path), "--out", "unlabelled"]) == 0
    with pytest.raises(CheckpointError, match=r"was trained without labels.*model\.pretrained begins with"):
        clars.push_to_hub(Path("unlabelled/views/seed0"), REPO, allow_dirty=True)
    assert hub.repositories == {}
