"""Recipes upon another one."""

import hashlib
import warnings

import pytest

from clars.errors import RecipeError
from clars.lab.recipes import registry
from clars.lab.recipes.load import load
from clars.lab.recipes.reading import parse
from clars.lab.recipes.writing import dump

UPON = """\
base: tiny/small@v1
description: "with another method"
optimizer: {name: lars, trust_coefficient: 0.01}
ema: {decay: 0.9}
"""


@pytest.fixture
def upon(recipe):
    """The recipes tiny/small and, upon it, tiny/upon."""
    path = recipe().with_name("upon.yaml")
    path.write_text(UPON)
    return path


def test_sections_are_joined_key_by_key(upon):
    own, below = load("tiny/upon").recipe, load("tiny/small").recipe
    assert (own.optimizer.name, own.optimizer.trust_coefficient) == ("lars", 0.01)
    assert own.schedule == below.schedule and own.model == below.model and own.data == below.data
    assert own.ema.decay == 0.9 and own.description == "with another method" and own.base == "tiny/small@v1"
    assert load("tiny/upon", ["epochs=5"]).recipe.epochs == 5


def test_the_digest_is_of_the_text_of_both(upon):
    """A record names it, so a change of either file is noticed."""
    resolved = load("tiny/upon")
    both = parse((upon.with_name("small.yaml")).read_text(), "") | parse(UPON, "")
    assert resolved.sha256 == hashlib.sha256(dump(both).encode()).hexdigest()
    below = upon.with_name("small.yaml")
    below.write_text(below.read_text().replace("epochs: 2", "epochs: 3"))
    assert load("tiny/upon").sha256 != resolved.sha256 and load("tiny/upon").recipe.epochs == 3


def test_a_file_elsewhere_may_have_a_base(upon, tmp_path):
    (tmp_path / "mine.yaml").write_text(UPON)
    assert load("mine.yaml").recipe == load("tiny/upon").recipe
    copied = registry.copy("tiny/upon", tmp_path / "copied.yaml")
    assert load(str(copied)).recipe == load("tiny/upon").recipe


def test_what_a_base_alone_says_is_not_told_to_have_no_effect(upon):
    """It has one there; what the recipe itself says is told."""
    below = upon.with_name("small.yaml")
    below.write_text(below.read_text().replace("name: clars", "name: clars\n  estimator: group"))
    upon.write_text(UPON.replace("{name: lars, trust", "{name: lars, estimator: exact, nesterov: true, trust"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        load("tiny/upon")
    assert [str(each.message).split(": ")[1] for each in told] == [
        "optimizer.estimator has no effect with optimizer.name = 'lars'."
    ]


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ("tiny/small", "base = 'tiny/small' must be a recipe with its version"),
        ("[a]", r"base = \['a'\] must be a recipe"),
        ("tiny/smal@v1", "upon.yaml: base: 'tiny/smal@v1' is no recipe.* Did you mean 'tiny/small'"),
        ("tiny/small@v7", "base: tiny/small has no version 'v7'"),
        ("tiny/upon@v1", "has a base itself, 'tiny/upon@v1'"),
    ],
)
def test_what_cannot_be_a_base(upon, base, told):
    upon.write_text(UPON.replace("tiny/small@v1", base))
    with pytest.raises(RecipeError, match=told):
        load("tiny/upon")


def test_a_base_upon_a_base(upon):
    upon.with_name("third.yaml").write_text(UPON.replace("tiny/small@v1", "tiny/upon@v1"))
    with pytest.raises(RecipeError, match=r"has a base itself, 'tiny/small@v1'\. Name that one"):
        load("tiny/third")


def test_mistakes_are_told_of_the_file_that_has_them(upon):
    upon.write_text(UPON + "batch_size: none\n")
    with pytest.raises(RecipeError, match=r"upon\.yaml: batch_size = 'none'"):
        load("tiny/upon")
    upon.write_text(UPON)
    below = upon.with_name("small.yaml")
    below.write_text(below.read_text().replace("batch_size: 256", "batch_size: none"))
    with pytest.raises(RecipeError, match=r"small\.yaml: batch_size = 'none'"):
        load("tiny/upon")
