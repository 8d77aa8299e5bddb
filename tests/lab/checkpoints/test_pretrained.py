"""Beginning with weights of timm: from the Hub, from a file, and what of them is new."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from clars.errors import CheckpointError, RecipeError
from clars.lab import data
from clars.lab.recipes.load import load
from clars.lab.training import init, script
from clars.lab.training.objective import network

NAME, FIRST = "test_resnet", "conv1.0.weight"
SETTINGS = {"data": {"name": "digits", "image_size": 32, "channels": 3}, "epochs": 1, "optimizer": {"name": "sgd"}}


@pytest.fixture
def weights(tmp_path):
    """A file of weights for a thousand classes."""
    torch.manual_seed(5)
    save_file(timm.create_model(NAME).state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.fixture
def offered(hub, weights):
    """The same on the Hub, under the name that timm has for them."""
    repo = timm.get_pretrained_cfg(NAME).hf_hub_id
    hub.repositories[repo] = {"": {}}
    hub.commit(repo, {"model.safetensors": weights.read_bytes()})
    return hub


def begin(path, classes=10):
    resolved = load(str(path))
    torch.manual_seed(0)
    made = network(resolved.recipe, classes)
    fresh = {name: value.clone() for name, value in made.state_dict().items()}
    return init.begin(resolved, made, data.Splits(None, None, classes)), made.state_dict(), fresh


def pretrained(recipe, value, **changes):
    settings = {"model": {"name": NAME, "pretrained": value}, **SETTINGS} | changes
    return recipe(**settings)


def test_the_classifier_alone_is_new(recipe, weights):
    done, state, fresh = begin(pretrained(recipe, str(weights)))
    stored = load_file(weights)
    assert (done.head, done.checkpoint) == ("new", str(weights))
    for name, value in state.items():
        assert torch.equal(value, (fresh if name.startswith("fc.") else stored)[name]), name


def test_the_classifier_is_kept_for_as_many_classes(recipe, weights):
    done, state, _ = begin(pretrained(recipe, str(weights)), classes=1000)
    assert done.head == "kept" and torch.equal(state["fc.weight"], load_file(weights)["fc.weight"])


def test_a_single_channel_sees_the_sum_of_three(recipe, weights):
    """By timm's own rule, so that a grey image means what it did in colour."""
    path = pretrained(recipe, str(weights), data={"name": "digits", "image_size": 32, "channels": 1})
    _, state, _ = begin(path)
    torch.testing.assert_close(state[FIRST], load_file(weights)[FIRST].sum(1, keepdim=True))


def test_from_the_hub_once(recipe, offered, weights):
    path = pretrained(recipe, True)
    done, state, _ = begin(path)
    assert done.checkpoint == timm.get_pretrained_cfg(NAME).hf_hub_id
    assert torch.equal(state[FIRST], load_file(weights)[FIRST])
    before = len(offered.requests)
    assert begin(path)[0] == done and len(offered.requests) == before, "the cache needs no network"


def test_a_run_says_what_it_began_with(recipe, offered, capsys):
    path = pretrained(recipe, True, batch_size=512)
    assert script.main([str(path), "--out", "runs"]) == 0
    record = json.loads(Path("runs/small/seed0/run.json").read_text())
    assert record["init"]["checkpoint"] == timm.get_pretrained_cfg(NAME).hf_hub_id
    assert record["settings"]["data"]["mean"] == list(timm.get_pretrained_cfg(NAME).mean)
    assert f"begins with {record['init']['checkpoint']}, its head new" in capsys.readouterr().err


def test_the_statistics_are_those_of_the_weights(recipe):
    """Unless the recipe has its own; a single channel takes their average."""
    config = timm.get_pretrained_cfg(NAME)
    assert load(str(pretrained(recipe, True))).recipe.data.std == list(config.std)
    grey = {"name": "digits", "image_size": 32, "channels": 1}
    assert load(str(pretrained(recipe, True, data=grey))).recipe.data.mean == [pytest.approx(sum(config.mean) / 3)]
    own = {**SETTINGS["data"], "mean": [0.1, 0.2, 0.3]}
    assert load(str(pretrained(recipe, True, data=own))).recipe.data.mean == [0.1, 0.2, 0.3]
    assert load(str(pretrained(recipe, False))).recipe.data.mean is None


def test_weights_that_do_not_fit(recipe, weights, tmp_path):
    with pytest.raises(CheckpointError, match="does not fit test_convnext: "):
        begin(pretrained(recipe, str(weights), model={"name": "test_convnext", "pretrained": str(weights)}))
    stored = load_file(weights)
    del stored[FIRST]
    save_file(stored, tmp_path / "less.safetensors")
    with pytest.raises(CheckpointError, match="Missing key"):
        begin(pretrained(recipe, str(tmp_path / "less.safetensors")))
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"broken\.safetensors' does not fit"):
        begin(pretrained(recipe, str(tmp_path / "broken.safetensors")))
    with pytest.raises(CheckpointError, match="is not a file"):
        begin(pretrained(recipe, str(tmp_path / "none.safetensors")))


def test_a_model_without_weights(recipe):
    with pytest.raises(RecipeError, match="timm has no weights of 'resnet8' on the Hub"):
        load(str(recipe(model={"name": "resnet8", "pretrained": True})))


def test_without_network(recipe, hub, hub_client, capsys):
    hub_client(ENDPOINT="http://127.0.0.1:9", HF_HUB_CACHE="empty")
    assert script.main([str(pretrained(recipe, True))]) == 2
    told = capsys.readouterr().err
    assert "model.pretrained: timm/test_resnet" in told and "or give model.pretrained=FILE" in told


def test_two_beginnings(recipe, weights, capsys):
    assert script.main([str(pretrained(recipe, str(weights), init="small"))]) == 2
    assert "init = 'small' cannot be with model.pretrained" in capsys.readouterr().err
