"""Thousands of damaged recipes: each is refused in words, or read as a strict reader of its own reads it."""

import re
import time
import unicodedata
import warnings

import pytest
import yaml
from demo import TABLE
from mutations import mutations

from clars.errors import UserError
from clars.lab.recipes.load import load
from clars.lab.recipes.schema import Recipe
from clars.lab.recipes.writing import dump
from clars.lab.tables.definition import load_table

RECIPE = b"""\
description: "CLARS"
model: {name: resnet8, arguments: {width: 4}}
data: {name: digits, image_size: 8}
optimizer: {name: clars, nesterov: true, overrides: {'*.bias': {lr: 1.5E-1}}}
schedule:
  base_rate: 2
  base_batch: 64
batch_size: 512
epochs: 3
"""
SECONDS = 5


def strictly(node: yaml.Node) -> object:
    """Return what a node means, by rules that no version of YAML contradicts; anything doubtful is an error."""
    assert node.start_mark is not None and not getattr(node, "seen", False), "an alias"
    node.seen = True
    if isinstance(node, yaml.SequenceNode):
        return [strictly(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        pairs = [(strictly(key), strictly(value)) for key, value in node.value]
        assert all(type(key) in (str, int) for key, _ in pairs), "a key of another type"
        assert len({str(key) for key, _ in pairs}) == len(pairs), "a key twice"
        return dict(pairs)
    text = node.value
    if node.style is not None:
        return text
    if re.fullmatch(r"[-+]?(0|[1-9]\d*)", text, re.ASCII):
        assert abs(int(text)) <= 2**63
        return int(text)
    if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text, re.ASCII):
        assert not re.fullmatch(r"[-+]?0\d+", text), "octal or not"
        return float(text)
    if re.fullmatch(r"0o[0-7]+|0x[0-9a-fA-F]+", text):
        return int(text, 0)
    if text.lower() in ("", "~", "null", "true", "false"):
        return {"true": True, "false": False}.get(text.lower())
    assert text.lower() not in ("yes", "no", "on", "off", "<<", "=")
    assert not re.match(r"[-+]?(\d[\d_:]+|0b[01_]+)(\.[\d_]*)?$", text), "a number to some"
    assert not re.match(r"\d{4}-\d\d?-\d\d?($|[Tt\s])", text), "a date to some"
    return text


def harmless(message: str) -> bool:
    """Say whether a terminal shows a message as it is, without scrolling the rest away."""
    kinds = {unicodedata.category(sign) for sign in message if sign != "\n"}
    return len(message) < 10_000 and not kinds & {"Cc", "Cs", "Zl", "Zp"}


def check(path, content: bytes) -> bool:
    """Return whether the recipe is accepted, having checked that nothing is wrong about that."""
    path.write_bytes(content)
    start = time.perf_counter()
    try:
        recipe = load(str(path)).recipe
    except UserError as error:
        assert harmless(str(error)), content
        recipe = None
    assert time.perf_counter() - start < SECONDS, content
    if recipe is None:
        return False
    meant = strictly(yaml.compose(content.decode("utf-8-sig"), Loader=yaml.BaseLoader))
    assert recipe == Recipe.model_validate(meant, strict=True), content
    path.write_text(dump(recipe.model_dump()))
    assert load(str(path)).recipe == recipe, content
    return True


def accepted(path, count: int, seed: int) -> int:
    """Check `count` mutations and return how many were accepted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sum(check(path, content) for content in mutations(RECIPE, count, seed))


def test_damaged_recipes_are_refused_or_read_strictly(tmp_path):
    """Octal numbers, repeated keys, merge keys, escape codes, brackets without end: accepted, or tracebacks."""
    assert 50 < accepted(tmp_path / "recipe.yaml", 2000, seed=0) < 1000


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_many_damaged_recipes_are_refused_or_read_strictly(tmp_path, seed):
    """The same, ten times."""
    assert 50 < accepted(tmp_path / "recipe.yaml", 2000, seed) < 1000


@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_damaged_tables_are_refused_in_words(demo, count):
    """A table is read by the same reader, which allows it a few aliases."""
    path = demo / "recipes/demo/v1/table.yaml"
    text = TABLE.replace("search:", "targets: &targets {small: 90}\npaper: *targets\nsearch:")
    path.write_text(text)
    assert load_table("demo").head.paper == {"small": 90}
    for content in mutations(text.encode(), count, seed=1):
        path.write_bytes(content)
        start = time.perf_counter()
        try:
            load_table("demo")
        except UserError as error:
            assert harmless(str(error)), content
        assert time.perf_counter() - start < SECONDS, content
