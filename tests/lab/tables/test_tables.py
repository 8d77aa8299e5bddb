import pytest
from demo import SMALL, TABLE, write

from clars.errors import RecipeError
from clars.lab.tables.definition import load_table


def test_a_table_with_its_recipes(demo):
    table = load_table("demo")
    assert (table.folder, table.version) == ("demo", "v1")
    assert [(row.label, row.resolved.name) for row in table.rows] == [
        ("Nesterov SGD, batch 64", "demo/small"),
        ("CLARS", "demo/large"),
    ]
    assert table.load("large").sha256 == table.load("demo/large").sha256
    assert table.results == demo / "recipes" / "demo" / "results" / "v1" / "lite"


def test_rows_come_from_the_version_of_their_table(demo):
    folder = demo / "recipes" / "demo" / "v2"
    folder.mkdir()
    (folder / "small.yaml").write_text(SMALL.replace("epochs: 3", "epochs: 9"))
    table = load_table("demo")
    assert table.version == "v1"
    assert table.load("small").recipe.epochs == 3


@pytest.mark.parametrize(
    "folder, tier, message",
    [
        ("dem", "lite", "Did you mean 'demo'"),
        ("demo@v3", "lite", "no version 'v3'"),
        ("demo", "full", r"table\.yaml: has no tier 'full'; it has lite"),
    ],
)
def test_an_unknown_table(demo, folder, tier, message):
    with pytest.raises(RecipeError, match=message):
        load_table(folder, tier)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("recipe: small", "recipe: smal", "table.yaml names 'smal': .*Did you mean 'demo/small'"),
        ("recipe: small", "recipe: other/small", "'other/small' lies elsewhere"),
        ("recipe: small", "recip: small", "rows.0.recip is not a known key. Did you mean 'rows.recipe'"),
        ("label: CLARS", 'label: "Nesterov SGD, batch 64"', "the label Nesterov SGD, batch 64 stands twice"),
        ("demo/large", "small", "the name small stands twice. Give rows of one recipe names"),
        ("[2, 4]", "[2, 4, 8]", "equally many different rates, not small 2, large 3"),
        ("[2, 4]", "[2, 2]", "equally many different rates, not small 2, large 1"),
        ("[2, 4]", "[2, -4]", "search.grid.large.1 = -4 must be greater than 0"),
        ("seeds: [0, 1, 2]", "seeds: [0, 1, 0]", "seeds: 0 stands twice; a run counts once"),
        ("seeds: [0, 1, 2]", "seeds: [-1]", "seeds.0 = -1 must be greater than or equal to 0"),
        ("seeds: [0, 1, 2]", "seeds: [4294967296]", "seeds.0 = 4294967296 must be less than 4294967296"),
        ("seeds: [10, 11]", "seeds: [10, 4294967296]", "search.seeds.1 = 4294967296 must be less than 4294967296"),
        ("seeds: [10, 11]", "seeds: [10, 10]", "search.seeds: 10 stands twice"),
        ("recipe: small", "recipe: small, set: {a=b: 1}", "set.a=b.* should match pattern"),
        ("recipe: small", "recipe: small, set: {a: .nan}", "a.*not finite"),
        (
            "recipe: small",
            "recipe: small, set: {optimizer.momentum: 0.5, optimizer: {name: sgd}}",
            "optimizer.momentum is part of optimizer",
        ),
        ("seeds: [0, 1, 2]", "seeds: []", "seeds = .* should have at least 1 item"),
    ],
)
def test_a_wrong_table_is_named(demo, old, new, message):
    assert old in TABLE
    write(demo / "recipes", table=TABLE.replace(old, new))
    with pytest.raises(RecipeError, match=message) as error:
        load_table("demo")
    assert "table.yaml" in str(error.value)
