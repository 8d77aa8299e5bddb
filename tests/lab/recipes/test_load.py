import hashlib
import warnings
from dataclasses import FrozenInstanceError

import pytest
from demo import SMALL, write

from clars.errors import RecipeError
from clars.lab.recipes import registry
from clars.lab.recipes.load import load
from clars.presets import AUTHOR2019


def test_a_recipe_with_its_origin(demo):
    resolved = load("demo/large", ["optimizer.weight_decay=0", "schedule.base_rate=5e-1"])
    content = (demo / "recipes/demo/v1/large.yaml").read_bytes()
    assert (resolved.name, resolved.version) == ("demo/large", "v1")
    assert resolved.sha256 == hashlib.sha256(content).hexdigest()
    assert resolved.overrides == ("optimizer.weight_decay=0", "schedule.base_rate=5e-1")
    assert resolved.recipe.optimizer.weight_decay == 0
    assert resolved.recipe.schedule.base_rate == 0.5
    assert resolved.peak_rate == 0.5 * 512 / 64
    assert load(resolved.full_name).sha256 == resolved.sha256
    with pytest.raises(FrozenInstanceError):
        resolved.name = "other"


def test_a_file_is_loaded_by_its_path(demo):
    (demo / "mine.yaml").write_text(SMALL)
    resolved = load("mine.yaml", ["epochs=7"])
    assert resolved.recipe.epochs == 7
    assert load(resolved.full_name).name == "mine"


def test_arguments_keep_the_type_that_is_written(demo):
    values = "{a: true, b: 1, c: 1e-1, d: gelu, e: '1'}"
    arguments = load("demo/small", [f"model.arguments={values}"]).recipe.model.arguments
    assert arguments == {"a": True, "b": 1, "c": 0.1, "d": "gelu", "e": "1"}
    assert [type(value) for value in arguments.values()] == [bool, int, float, str, str]


def test_layer_overrides_keep_truth_values_apart_from_numbers(demo):
    changed = load("demo/large", ["optimizer.overrides={'*.bias': {adapt: false, weight_decay: 0}}"])
    options = changed.recipe.optimizer.overrides["*.bias"]
    assert options["adapt"] is False
    assert options["weight_decay"] == 0.0
    assert type(options["weight_decay"]) is float


@pytest.mark.parametrize(
    "override, message",
    [
        ("optimizer.nme=x", "optimizer.nme is not a known key. Did you mean 'optimizer.name'"),
        ("weight_decay=0", "weight_decay is not a known key. Did you mean 'optimizer.weight_decay'?"),
        ("evalution.split=validation", "evalution is not a known key. Did you mean 'evaluation'"),
        ("optimizer.zzzz=0", "optimizer.zzzz is not a known key. Known here: optimizer.name, optimizer.momentum"),
        (
            "optimizer.name=clarz",
            "optimizer.name = 'clarz' must be 'clars', 'author2019', 'lars', 'sgd', 'lamb', 'adamw' or 'muon'. Did you",
        ),
        ("data.channels=true", "data.channels = True must be 1 or 3"),
        ("data.channels=1.0", "data.channels = 1.0 must be 1 or 3"),
        ("optimizer.momentum=1.5", "optimizer.momentum = 1.5 must be less than 1."),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay = -1 must be greater than or equal to 0."),
        ("schedule.base_rate=.inf", "schedule.base_rate = inf must be a finite number."),
        ("schedule.base_rate='1'", "schedule.base_rate = '1' must be a valid number."),
        ("epochs=1.5", "epochs = 1.5 must be a valid integer."),
        ("epochs=true", "epochs = True must be a valid integer."),
        ("optimizer=3", "optimizer = 3 must be a section of keys and values."),
        ("optimizer={}", "optimizer.name is missing."),
        ("data.channels=2", "data.channels = 2 must be 1 or 3."),
        ("data.image_size=20000", "data.image_size = 20000 must be less than or equal to 4096."),
        ("data.workers=100000", "data.workers = 100000 must be less than or equal to 256 or 'auto'."),
        ("data.workers=aut", "data.workers = 'aut' must be a valid integer or 'auto'. Did you mean 'auto'?"),
        ("data.in_memory=gpu", "data.in_memory = 'gpu' must be a valid boolean or 'host', 'device' or 'no'."),
        ("data.in_memory=[host]", "data.in_memory = ['host'] must be a valid boolean or 'host', 'device' or 'no'."),
        (
            "data.in_memory=hots",
            "data.in_memory = 'hots' must be a valid boolean or 'host', 'device' or 'no'. Did you mean 'host'?",
        ),
        ("data.in_memory=1", "data.in_memory = 1 must be a valid boolean or 'host', 'device' or 'no'."),
        ("data.prefetch=1000000", "data.prefetch = 1000000 must be less than or equal to 1000."),
        ("data.shuffle_buffer=1000000000", "data.shuffle_buffer = 1000000000 must be less than or equal to 10000000."),
        ("data.train_examples=9000000000", "data.train_examples = 9000000000 must be less than 2147483648."),
        ("evaluation.batch_size=1000000", "evaluation.batch_size = 1000000 must be less than or equal to 65536."),
        ("batch_size=100000000", "batch_size = 100000000 must be less than or equal to 16777216."),
        ("schedule.base_batch=100000000", "schedule.base_batch = 100000000 must be less than or equal to 16777216."),
        ("epochs=10000000", "epochs = 10000000 must be less than or equal to 1000000."),
        ("layer_statistics=9000000000", "layer_statistics = 9000000000 must be less than 2147483648."),
        ("optimizer.nesterov='yes'", "optimizer.nesterov = 'yes' must be a valid boolean."),
        ("model.arguments={x: .inf}", "model.arguments.x = inf must be a valid boolean or a valid integer"),
        ("data.mean=[x]", "data.mean.0 = 'x' must be a valid number."),
        (
            "model.arguments.x=[1]",
            "model.arguments.x = [1] must be a valid boolean or a valid integer or a valid number or a valid string.",
        ),
    ],
)
def test_a_wrong_override_is_named_with_what_is_allowed(demo, override, message):
    with pytest.raises(RecipeError) as error:
        load("demo/small", [override])
    assert str(error.value).startswith(f"override {override!r}: {message}")
    assert "\n" not in str(error.value)


def test_a_wrong_file_is_named(demo):
    file = write(demo / "recipes", bad=SMALL.replace("epochs: 3", "epoch: 3"))
    with pytest.raises(RecipeError) as error:
        load("demo/bad")
    path = file / "demo/v1/bad.yaml"
    assert f"{path}: epoch is not a known key. Did you mean 'epochs'?" in str(error.value).splitlines()
    assert f"{path}: epochs is missing." in str(error.value).splitlines()


@pytest.mark.parametrize("content, message", [("", "holds no keys"), ("- 1\n", "holds no keys"), ("a: {\n", "line 2")])
def test_a_file_without_settings_is_named(demo, content, message):
    write(demo / "recipes", bad=content)
    with pytest.raises(RecipeError, match=f"bad.yaml.*{message}"):
        load("demo/bad")


def test_keys_that_are_no_text_are_refused(demo):
    write(demo / "recipes", bad=SMALL + "1: 2\n")
    with pytest.raises(RecipeError, match=r"bad.yaml: 1 "):
        load("demo/bad")


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["schedule.warmup_epochs=3"], "schedule.warmup_epochs = 3 leaves nothing of epochs = 3"),
        (
            ["schedule.frozen_head_epochs=3"],
            "frozen_head_epochs = 3 never trains the classifier in epochs = 3",
        ),
        (["optimizer.name=lamb", "schedule.frozen_head_epochs=1"], "cannot be combined with optimizer.name = 'lamb'"),
        (["data.mean=[0.1, 0.2]"], r"data.mean = \[0.1, 0.2\] must have a value for each of data.channels = 1"),
        (["data.name=a/b", "data.in_memory=true", "data.streaming=true"], "data.in_memory = true is the opposite"),
        (
            ["data.name=a/b", "data.streaming=true", "evaluation.split=validation"],
            "evaluation.split = 'validation' cannot",
        ),
        (["data.name=a/b", "data.in_memory=true", "data.augmentation=imagenet"], "data.in_memory = true holds images"),
        (
            ["data.name=a/b", "data.in_memory=device", "data.streaming=true"],
            "data.in_memory = 'device' is the opposite",
        ),
        (
            ["data.name=a/b", "data.in_memory=device", "data.augmentation=imagenet"],
            "data.in_memory = 'device' holds images of one size.*set data.workers = 'auto'",
        ),
        (["data.name=a/b", "data.test_split=train"], "data.test_split = 'train' is what is trained on"),
        (["optimizer.name=lamb", "optimizer.estimator=group"], "optimizer.estimator = 'group' cannot be: .*'lamb'"),
        (["optimizer.name=lars", "optimizer.estimator=subset"], "optimizer.estimator = 'subset' cannot be: .*'lars'"),
        (
            ["optimizer.name=clars", "optimizer.estimator=subset", "optimizer.group=8"],
            "optimizer.group cannot be combined with optimizer.estimator = 'subset'",
        ),
        (
            ["optimizer.name=clars", "optimizer.estimator=group", "optimizer.fraction=0.5"],
            "optimizer.fraction cannot be combined with optimizer.estimator = 'group'",
        ),
    ],
)
def test_settings_that_exclude_each_other(demo, overrides, message):
    with pytest.raises(RecipeError, match=f"small.yaml with .*{message}"):
        load("demo/small", overrides)


@pytest.mark.parametrize(
    "written, value", [("host", True), ("true", True), ("'no'", False), ("false", False), ("device", "device")]
)
def test_where_images_are_held(demo, written, value):
    """Host and no are what records call true and false; digits can be held by a device."""
    overrides = ["data.name=a/b"] if value != "device" else []
    found = load("demo/small", [*overrides, f"data.in_memory={written}"]).recipe.data.in_memory
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    "overrides, key, cause",
    [
        (["schedule.name=cosine", "schedule.power=3"], "schedule.power", "schedule.name = 'cosine'"),
        (["optimizer.trust_coefficient=1e-2"], "optimizer.trust_coefficient", "optimizer.name = 'sgd'"),
        (["optimizer.layers=parameter"], "optimizer.layers", "optimizer.name = 'sgd'"),
        (["optimizer.overrides={}"], "optimizer.overrides", "optimizer.name = 'sgd'"),
        (["optimizer.momentum=0", "optimizer.nesterov=true"], "optimizer.nesterov", "optimizer.momentum = 0"),
        (["optimizer.name=lamb", "optimizer.nesterov=true"], "optimizer.nesterov", "optimizer.name = 'lamb'"),
        (["optimizer.name=lamb", "optimizer.max_ratio=1"], "optimizer.max_ratio", "optimizer.name = 'lamb'"),
        (["optimizer.name=clars", "optimizer.group=8"], "optimizer.group", "optimizer.estimator = 'exact'"),
        (["optimizer.name=lars", "optimizer.group=8"], "optimizer.group", "optimizer.name = 'lars'"),
        (["layer_statistics=5"], "layer_statistics", "optimizer.name = 'sgd'"),
        (["data.image_column=img"], "data.image_column", "data.name = 'digits'"),
        (["data.name=glyphs", "data.in_memory=true"], "data.in_memory", "data.name = 'glyphs'"),
        (["data.train_examples=9"], "data.train_examples", "data.name = 'digits'"),
        (["data.shuffle_buffer=4"], "data.shuffle_buffer", "data.streaming = false"),
        (["data.prefetch=4"], "data.prefetch", "data.workers = 0"),
        (["data.prefetch=4", "data.workers=auto"], "data.prefetch", "data.workers = 'auto', which is 0 for images in"),
        (
            ["data.name=a/b", "data.in_memory=host", "data.prefetch=4", "data.workers=auto"],
            "data.prefetch",
            "data.workers = 'auto', which is 0 for images in memory",
        ),
        (["data.in_memory=device", "data.workers=4"], "data.workers", "data.in_memory = 'device'"),
    ],
)
def test_a_setting_without_effect_warns(demo, overrides, key, cause):
    with pytest.warns(UserWarning, match=f"{key} has no effect with {cause}"):
        load("demo/small", overrides)


@pytest.mark.parametrize("group", [0, -8, 2.5, "eight"])
def test_a_group_is_a_whole_number_above_zero(demo, group):
    with pytest.raises(RecipeError, match=r"optimizer\.group"):
        load("demo/small", ["optimizer.name=clars", "optimizer.estimator=group", f"optimizer.group={group}"])


def test_a_method_brings_values_of_its_own_and_yields_to_those_that_are_given(demo):
    author = load("demo/large", ["optimizer.name=author2019", "optimizer.group=4"]).recipe.optimizer
    wanted = AUTHOR2019 | {"group": 4, "name": "author2019", "fraction": None, "clip_norm": None, "arguments": {}}
    given = load("demo/large").recipe.optimizer.model_fields_set - {"name"}
    found = author.model_dump()
    assert {name: found[name] for name in found if name not in given} == {
        name: wanted[name] for name in wanted if name not in given
    }
    for more in ([], ["optimizer.group=null"]):
        grouped = load("demo/large", ["optimizer.name=clars", "optimizer.estimator=group", *more]).recipe.optimizer
        assert (grouped.group, grouped.together) == (8, 8)
    subset = load("demo/small", ["optimizer.name=author2019", "optimizer.estimator=subset"]).recipe.optimizer
    assert (subset.group, subset.max_ratio) == (None, 0.1)


def test_defaults_do_not_warn(demo):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load("demo/small", ["schedule.name=constant"])
        load("demo/large", ["optimizer.trust_coefficient=1e-2", "optimizer.layers=parameter"])


def test_a_message_is_no_longer_than_can_be_read(demo):
    """9,000 unknown keys were 9,000 lines, after half a minute of looking for what they might have meant."""
    write(demo / "recipes", bad=SMALL + "".join(f"key{number}: 1\n" for number in range(5000)))
    with pytest.raises(RecipeError) as error:
        load("demo/bad")
    assert len(str(error.value).splitlines()) == 10
    with pytest.raises(RecipeError) as error:
        load("demo/small", [f"epochs={'x' * 50_000}"])
    assert (
        len(str(error.value)) > 50_000 and len(str(error.value)) < 50_500
    )  # the override itself, and not its value again


def test_the_training_split_may_be_named_where_it_is_not_tested_on(demo):
    load("demo/small", ["data.name=a/b", "data.test_split=train", "evaluation.split=validation"])


def test_a_name_that_a_terminal_obeys_is_not_listed_and_not_read(demo):
    """File names with escape codes came out of `clars recipes` and `clars show` as they were."""
    write(demo / "recipes", **{"evil\x1b[31m": SMALL})
    assert all(name.isprintable() for name in registry.names())
    path = next((demo / "recipes/demo/v1").glob("evil*"))
    with pytest.raises(RecipeError, match=r"holds the character U\+001B.*Rename it") as error:
        load(str(path))
    assert str(error.value).isprintable()
