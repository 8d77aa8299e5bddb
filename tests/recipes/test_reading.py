import pytest

from clars.errors import RecipeError
from clars.recipes.reading import parse


@pytest.mark.parametrize(
    "text, value",
    [("5e-4", 5e-4), ("1E3", 1e3), ("-.5e+2", -50.0), ("2.e1", 20.0), ("5.0e-4", 5e-4), ("1e", "1e"), ("e5", "e5")],
)
def test_numbers_with_an_exponent(text, value):
    parsed = parse(text, "here")
    assert parsed == value
    assert type(parsed) is type(value)


def test_a_repeated_key_is_an_error_with_its_line():
    with pytest.raises(RecipeError, match=r"a.yaml, line 3: .*the key 'rate' stands twice"):
        parse("rate: 1\nother: 2\nrate: 3\n", "a.yaml")


def test_a_repeated_key_in_a_nested_flow_mapping_is_an_error():
    with pytest.raises(RecipeError, match="the key 'b' stands twice"):
        parse("a: {b: 1, b: 2}", "a.yaml")


def test_merging_an_anchor_is_no_repetition():
    assert parse("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}", "a.yaml")["y"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    "text", ["a: [1", "a: b: c", "\tx: 1", "!!python/object:os.system x", "2020-13-45", "a: @", "{[]: 1}"]
)
def test_broken_yaml_names_the_place(text):
    with pytest.raises(RecipeError, match=r"^a.yaml.*cannot be read as YAML"):
        parse(text, "a.yaml")


def test_bytes_that_are_no_text_name_the_place():
    with pytest.raises(RecipeError, match=r"^a.yaml: cannot be read as YAML"):
        parse(b"a: \x00\xff\xfe", "a.yaml")


def test_the_line_of_a_mistake_is_told():
    with pytest.raises(RecipeError, match=r"a.yaml, line 2"):
        parse("a: 1\nb: c: d\n", "a.yaml")
