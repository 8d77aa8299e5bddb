"""From a run to a checkpoint: what is written, and what is refused with nothing written."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from tiny import change, files, tensors_of, write_recipe

import clars
from clars.errors import UserError
from clars.lab import models
from clars.lab.checkpoints import card, form, manifest
from clars.lab.checkpoints.measure import splits
from clars.lab.checkpoints.publish import PublishOptions, publish
from clars.lab.recipes.load import load
from clars.lab.runs.record import Record

QUIET = PublishOptions(allow_dirty=True, tell=lambda line: None)


def logits(network, images):
    with torch.no_grad():
        return network.eval()(images)


def test_timm_gives_the_logits_of_the_end_of_the_run(run, published):
    recipe = load("tiny/small").recipe
    on = splits(recipe)
    trained = models.create(recipe.model, 10, 1, 8)
    trained.load_state_dict(load_file(run / "model.safetensors"))
    images = on.test[0][0][None].repeat(4, 1, 1, 1) + torch.randn(4, 1, 8, 8)
    expected = logits(trained, images)
    assert torch.equal(logits(timm.create_model(f"local-dir:{published}", pretrained=True), images), expected)
    assert torch.equal(logits(clars.load("small"), images), expected)
    assert torch.equal(logits(clars.load(published), images), expected)
    assert not clars.load("small").training


def test_the_folder_and_its_entry(run, published):
    assert sorted(path.name for path in published.iterdir()) == sorted(form.FILES)
    record, entry = Record.read(run / "run.json"), manifest.find("small")
    assert Record.read(published / "run.json") == record
    assert (entry.recipe, entry.version, entry.seed, entry.weights) == ("tiny/small", "v1", 3, "last")
    assert entry.recipe_sha256 == record.recipe_sha256 == load("tiny/small").sha256
    assert (entry.top1.value, entry.top1.n, entry.top1.half_width) == (record.final.top1, 1, None)
    assert entry.top1.tolerance == pytest.approx(100 / 360)
    assert entry.files["config.json"] == manifest.describe((published / "config.json").read_bytes())
    assert form.read(published, entry).files["config.json"] == (published / "config.json").read_bytes()
    config = json.loads((published / "config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == ("resnet8", 10)
    assert config["model_args"] == {"in_chans": 1, "width": 4} and config["label_names"] == list("0123456789")


def test_images_are_prepared_as_in_training(published):
    """timm's transform by the checkpoint's configuration makes of a picture what the network was trained on."""
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(clars.load("small")))
    pictures = [Image.fromarray((pixels * 255 / 16).round().astype("uint8")) for pixels in load_digits().images]
    made = torch.stack([transform(picture) for picture in pictures])
    distance = (made - splits(load("tiny/small").recipe).test[0][0]).abs().amax((1, 2, 3)).min()
    assert distance < 0.5 / 255 / 0.37  # half of a grey level, in standard deviations


def test_the_card_comes_from_the_record(run, published):
    record, content = Record.read(run / "run.json"), (published / "README.md").read_text()
    data = ModelCard(content).data
    assert (data.license, data.library_name, data.model_name) == ("apache-2.0", "timm", "small")
    (result,) = data.eval_results
    assert (result.dataset_type, result.dataset_split, result.metric_type) == ("digits", "test", "accuracy")
    assert result.metric_value == round(record.final.top1, 4)
    assert f"{record.final.top1:.2f} % of 360 examples, test split" in content
    assert "import clars" in content and "clars run tiny/small@v1 --seed 3" in content
    assert "those after the last step" in content


def test_several_seeds_give_an_interval(run):
    """Runs beside it and published records count once a seed, the published first; runs of other settings not."""
    record = json.loads((run / "run.json").read_text())
    beside, results = run.parent / "seed4", Path("recipes/tiny/results/v1/lite/small")
    shutil.copytree(run, beside)
    results.mkdir(parents=True)
    change(beside / "run.json", seed=4)
    (metrics,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for seed, changes in {4: {}, 5: {}, 6: {"overrides": ["epochs=2"]}, 7: {"status": "diverged"}}.items():
        other = record | {"seed": seed, "digests": None, "best": {"top1": 60.0, "epoch": 1}} | changes
        other["final"] = record["final"] | {"top1": 60.0, "top5": 99.0}
        lines = [metrics | {"top1": 60.0, "top5": 99.0}]
        (results / f"seed{seed}.json").write_text(json.dumps({"record": other, "metrics": lines}))
    top1 = publish(run, "small", QUIET).top1
    assert top1.n == 3
    assert top1.mean == pytest.approx((record["final"]["top1"] + 120) / 3)
    assert "mean over 3 seeds" in (manifest.root() / "small" / "README.md").read_text()


def spoil(run, digest=False):
    if not digest:
        change(run / "run.json")
    tensors = tensors_of(run)
    save_file(tensors | {"fc.weight": -tensors["fc.weight"]}, run / "model.safetensors")


def narrow(run):
    change(run / "run.json")
    tensors = tensors_of(run)
    save_file(tensors | {"fc.bias": tensors["fc.bias"][:9].clone()}, run / "model.safetensors")


def edit(run, top1):
    """As in a text editor, with the digests left as they are."""
    content = json.loads((run / "run.json").read_text())
    content["final"]["top1"] = top1
    (run / "run.json").write_text(json.dumps(content, indent=2))


FINAL = {"top1": 99.0, "top5": 99.0, "loss": 0.1}
LARS = {"name": "lars"}
SPOILED = {
    "unfinished": (lambda run: change(run / "run.json", status="interrupted"), "a run that interrupted"),
    "diverged": (lambda run: change(run / "run.json", status="diverged"), "a run that diverged"),
    "other weights": (spoil, "% top-1, and reaches "),
    "other network": (narrow, "tensor 'fc.bias' is F32 of shape (9,)"),
    "recipe changed": (lambda run: write_recipe(Path.cwd(), epochs=2), "small.yaml has changed since"),
    "no record": (lambda run: (run / "run.json").unlink(), "run.json is missing"),
    "no version": (lambda run: change(run / "run.json", version="unversioned"), "a file outside recipes/FOLDER/vN"),
    "no weights": (lambda run: (run / "model.safetensors").unlink(), "model.safetensors is gone"),
    "weights since": (lambda run: spoil(run, digest=True), "model.safetensors has changed since the run ended"),
    "metrics since": (lambda run: (run / "metrics.jsonl").write_text(""), "metrics.jsonl has changed since the run"),
    "record since": (lambda run: edit(run, top1=99.0), "its digest is"),
    "another accuracy": (lambda run: change(run / "run.json", final=FINAL), "final.top1 is 99.0, top1 of the last"),
    "other settings": (lambda run: change(run / "run.json", optimizer=LARS), "optimizer.name is 'lars', by the recipe"),
}


@pytest.mark.parametrize("change_it, message", SPOILED.values(), ids=SPOILED)
def test_runs_that_are_refused(run, change_it, message):
    change_it(run)
    before = files(".")
    with pytest.raises((UserError, OSError), match=message.replace("(", r"\(").replace(")", r"\)")):
        publish(run, "small", QUIET)
    assert files(".") == before


@pytest.mark.parametrize("git, message", [
    ({"commit": None, "dirty": None}, "was made outside of git"),
    ({"commit": "a" * 40, "dirty": True}, "was made from a tree with changes"),
])  # fmt: skip
def test_a_run_that_no_commit_tells_of(run, git, message):
    change(run / "run.json", git=git)
    with pytest.raises(UserError, match=message):
        publish(run, "small")
    assert publish(run, "small", QUIET).dirty is git["dirty"]


def test_names(run, published):
    with pytest.raises(UserError, match="small is published already"):
        publish(run, "small", QUIET)
    publish(run, "small", PublishOptions(allow_dirty=True, replace=True, tell=lambda line: None))
    for name in ("../up", "a/b", "", "A", "a..b", ".a", "a" * 97, "a\n"):
        with pytest.raises(UserError, match="cannot be the name of a checkpoint"):
            publish(run, name, QUIET) if name else manifest.check_name(name)
    publish(run, None, QUIET)
    assert list(manifest.load().checkpoints) == ["digits-resnet8-clars", "small"]


def test_a_dry_run_says_all_and_writes_nothing(run):
    before, told = files("."), []
    publish(run, "small", PublishOptions(allow_dirty=True, dry_run=True, tell=told.append))
    assert files(".") == before
    assert "will write 5 files into" in "\n".join(told) and "nothing is written" in told[-1]


def test_large_weights_go_to_the_hub(run):
    with pytest.raises(UserError, match="bytes are too many for git"):
        publish(run, "small", replace(QUIET, in_git=1000))
    assert not manifest.root().exists()


def test_markup_in_a_card_is_text():
    hostile = "<script>x</script> [a](javascript:b) | `c`\n\n# d ![e](f) **g** <img src=x>"
    assert card.text(hostile) == (
        r"&lt;script&gt;x&lt;/script&gt; \[a\]\(javascript:b\) \| \`c\` \# d \!\[e\]\(f\) \*\*g\*\* &lt;img src=x&gt;"
    )


def test_a_hostile_description(run):
    """It is published as it would be from a recipe that says it, front matter included."""
    text = "x\n---\nlicense: other\n<script>alert(1)</script> [click](javascript:1)"
    write_recipe(Path.cwd(), description=text)
    settings = Record.read(run / "run.json").settings | {"description": text}
    change(run / "run.json", recipe_sha256=load("tiny/small").sha256, settings=settings)
    publish(run, "small", QUIET)
    content = (manifest.root() / "small" / "README.md").read_text()
    assert ModelCard(content).data.license == "apache-2.0"
    assert "<script>" not in content and "](javascript" not in content
