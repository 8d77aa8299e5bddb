import pytest

from clars.errors import RecipeError
from clars.lab.recipes.overrides import apply, read, write


def test_values_are_yaml():
    given = ["a=1", "b.c=5e-4", "b.d={x: [1, 2]}", "e=", "f=a=b", "g='1'"]
    assert read(given) == {"a": 1, "b.c": 5e-4, "b.d": {"x": [1, 2]}, "e": None, "f": "a=b", "g": "1"}


@pytest.mark.parametrize("override", ["epochs", "=1", "a..b=1", ".a=1"])
def test_what_is_no_override_is_shown_the_form(override):
    with pytest.raises(RecipeError, match="write key=value"):
        read([override])


def test_the_same_key_twice_is_an_error():
    with pytest.raises(RecipeError, match=r"override 'a.b=2': a.b is given twice"):
        read(["a.b=1", "c=1", "a.b=2"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.momentum=0.5", "optimizer={name: lars}"],
        ["optimizer={name: lars}", "optimizer.momentum=0.5"],
        ["model.arguments.width=4", "epochs=1", "model={name: resnet8}"],
        ["a.b.c.d=1", "a.b={}"],
    ],
)
def test_a_key_beside_its_section_is_an_error(overrides):
    """The section replaced the key that was given before it, without a word."""
    with pytest.raises(RecipeError, match=r"override .*: (.+) is part of .*, which is given as well"):
        read(overrides)
    assert read(["optimizer.name=lars", "optimizer_name=x", "optimizers={}"])  # beginnings of words are no sections


def test_a_value_that_is_no_yaml_is_an_error():
    with pytest.raises(RecipeError, match=r"override 'a=\[1'.*cannot be read as YAML"):
        read(["a=[1"])


def test_apply_changes_a_copy_and_adds_sections():
    data = {"a": {"b": 1, "c": 2}}
    assert apply(data, {"a.b": 3, "new.section.key": 4, "d": 5}) == {
        "a": {"b": 3, "c": 2},
        "new": {"section": {"key": 4}},
        "d": 5,
    }
    assert data == {"a": {"b": 1, "c": 2}}


def test_a_key_inside_a_value_is_an_error():
    with pytest.raises(RecipeError, match=r"override 'epochs.x=3': epochs is a value, not a section"):
        apply({"epochs": 2}, {"epochs.x": 3})


def test_what_is_written_reads_as_what_it_was():
    values = {
        "a": "lars",
        "b": 5e-05,
        "c": True,
        "d": None,
        "e": "1",
        "f": {"*.bn*": {"adapt": False}},
        "g": "[x",
        "h": 2.0,
        "i": "no",
        "j": "5e-4",
        "k": "a: \U0001f600",
        "l": [1e22, 5e-324, "0o17"],
    }
    written = write(values)
    assert written[:4] == ["a=lars", "b=5e-05", "c=true", "d=null"]
    assert read(written) == values
    assert [type(value) for value in read(written).values()] == [type(value) for value in values.values()]


@pytest.mark.parametrize("value", [float("inf"), [float("nan")], {"a": -float("inf")}])
def test_what_no_override_can_say_is_not_written(value):
    """Infinity was written as JSON writes it, which YAML reads as the text 'Infinity'."""
    with pytest.raises(RecipeError, match=r"a\.b.*not finite"):
        write({"a.b": value})


def test_a_key_that_a_terminal_obeys_is_an_error():
    """The key of a free section, such as model.arguments, came out of `clars show` as it was."""
    with pytest.raises(RecipeError, match=r"the key holds the character U\+001B") as error:
        read(["model.arguments.\x1b[31m=1"])
    assert str(error.value).isprintable()
