import time

import pytest
from demo import SMALL, write

from clars.errors import RecipeError
from clars.lab.recipes.load import load
from clars.lab.recipes.reading import parse
from clars.lab.recipes.writing import dump


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


@pytest.mark.parametrize(
    "text, value",
    [
        *(
            ("0x1F", 31),
            ("0o17", 15),
            ("-0", 0),
            ("+5", 5),
            (str(2**63 - 1), 2**63 - 1),
            ("07.5", 7.5),
            (".5e3", 500.0),
        ),
        *(("~", None), ("Null", None), ("True", True), ("FALSE", False), ("y", "y"), ("1e", "1e"), ("0o8", "0o8")),
        *(("'010'", "010"), ('"no"', "no"), ("'1:30'", "1:30"), ("'2020-01-01'", "2020-01-01"), ("0e-999", 0.0)),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    """PyYAML reads YAML 1.1, where 0o17 is a text and 2.e1 is one without a sign in its exponent."""
    assert parse(text, "here") == value and type(parse(text, "here")) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        *("010", "-010", "08", "0b101", "-0x1F", "1_000", "1_0.5", "1:30", "190:20:30", "1:30.5"),
        *("yes", "No", "ON", "off", "2020-01-01", "2001-12-14t21:59:43.10-05:00", "="),
    ],
)
def test_what_two_versions_of_yaml_read_differently_is_refused(text):
    """`epochs: 010` was 8, `1:30` was 90, `no` was false and a date no text."""
    for source in (f"a: {text}", f"[1, {text}]", f"{{{text}: 1}}"):
        with pytest.raises(RecipeError, match=r"one meaning in YAML 1\.1 and another in 1\.2"):
            parse(source, "a.yaml")


@pytest.mark.parametrize(
    "text", [str(2**63), str(-(2**63) - 1), "9" * 5000, "0x" + "f" * 17, "1e400", "-1e999", "1e-400"]
)
def test_numbers_that_would_become_others_are_refused(text):
    """1e400 was infinity and 1e-400 was zero; 5,000 digits were Python's own error."""
    with pytest.raises(RecipeError, match=r"a.yaml, line 2: .*(64 bits|beyond what a number holds)") as error:
        parse(f"a:\n  {text}", "a.yaml")
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: &x {b: 1}\nc: {<<: *x}", "anchors"),
        ("a: {<<: {b: 1}}", "write out the keys"),
        ("a: *x", "anchors"),
        ("a: !!int '1'", "the tag 'tag:yaml.org,2002:int' is not read"),
        ("!!python/object/apply:os.system [id]", "the tag .*python.* is not read"),
        ("a: ! b", "the tag '!' is not read"),
        ("{1: a, 0x1: b}", "the key 1 stands twice"),
        ("{true: a, 1: b}", "the key True is neither"),
        ("{1.0: a}", "the key 1.0 is neither"),
        ("{? [a] : b}", "is neither a text nor a whole number"),
        ("a: 1\n--- \nb: 1", "another document"),
    ],
)
def test_what_a_recipe_has_no_use_for_is_refused(text, message):
    """Merge keys and aliases grew without bound, and True was the same key as 1."""
    with pytest.raises(RecipeError, match=f"a.yaml, line .*{message}"):
        parse(text, "a.yaml")


def test_a_table_may_repeat_a_section_but_not_multiply_it():
    """Aliases of aliases: 687 bytes took all memory."""
    assert parse("a: &a {b: [1]}\nc: *a", "table.yaml", aliases=True) == {"a": {"b": [1]}, "c": {"b": [1]}}
    bomb = "a: &a [x, x]\n" + "".join(f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip("abcdefgh", "bcdefghi"))
    for text in (bomb, "a: &a [*a]", "a: &a {b: 1}\nc: [" + "*a, " * 21 + "]", "a: &a {b: 1}\nc: {<<: *a}"):
        with pytest.raises(RecipeError, match=r"table.yaml, line"):
            parse(text, "table.yaml", aliases=True)


@pytest.mark.parametrize(
    "text",
    [
        *("[" * 3000, "{" * 3000, "{a: " * 3000, "- " * 3000, "? " * 3000, "[" * 3000 + "]" * 3000),
        *(
            "a: " + "x" * 10**7,
            "".join(f"a{n}: 1\n" for n in range(9000)),
            "a\n" * 32_000,
            "[" + "," * 60_000,
            "'" * 65_000,
        ),
        *("%a\n" * 20_000, "---\n" * 16_000, "&a " * 20_000, "a: |\n" + "  b\n" * 16_000),
    ],
    ids=lambda text: text[:6],
)
def test_no_file_takes_long(demo, text):
    """3,000 brackets were a RecursionError, and size had no limit."""
    write(demo / "recipes", bad=SMALL + text)
    start = time.perf_counter()
    with pytest.raises(RecipeError, match=r"bad\.yaml") as error:
        load("demo/bad")
    assert time.perf_counter() - start < 5 and len(str(error.value)) < 5000


@pytest.mark.parametrize(
    "text",
    [
        '"\\e[31m"',
        "'\x1b[31m'",
        '"\\ud800"',
        "a\u202eb",
        '"\\u2066"',
        "a\u2028b: 1",
        "# \x85 b",
        '"\\0"',
        "\x9b",
        '"\\r"',
    ],
)
def test_characters_that_a_terminal_obeys_are_refused_without_being_printed(text):
    """A description with escape codes came out of `clars recipes` as it was; U+2028 ended a line for YAML 1.1 alone."""
    for source in (text, text.encode("utf-8", "surrogatepass")):
        with pytest.raises(RecipeError) as error:
            parse(source, "a.yaml")
        assert str(error.value).isprintable()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "latin-1"])
def test_other_encodings_are_refused_and_a_mark_of_utf_8_is_not(encoding):
    """PyYAML reads UTF-16, which a check of bytes would not see through."""
    with pytest.raises(RecipeError, match="cannot be read as YAML"):
        parse("a: ü".encode(encoding), "a.yaml")
    assert parse("a: ü".encode("utf-8-sig"), "a.yaml") == {"a": "ü"}


@pytest.mark.parametrize(
    "text", ["5e-4", "0o17", "010", "08", "no", "1:30", "1_000", "=", "<<", "~", "", ".inf", "2020-01-01"]
)
def test_a_text_is_written_so_that_it_stays_one(demo, text):
    """`clars show` left the text 5e-4 without quotes, and a published recipe came back as another one."""
    overrides = [f"description={text!r}", f"model.arguments={{a: {text!r}}}", f"optimizer.overrides={{{text!r}: {{}}}}"]
    recipe = load("demo/large", overrides).recipe
    assert (recipe.description, recipe.model.arguments["a"]) == (text, text)
    assert parse(dump(recipe.model_dump()), "shown") == recipe.model_dump()
