import json
from pathlib import Path

import pytest
from product import write_product

from clars.errors import RecipeError
from clars.lab.recipes import registry
from clars.lab.tables.definition import load_table, tiers


@pytest.fixture
def repository(demo):
    write_product(demo)
    return demo


def publish_search(repository, **changes):
    """Write a search.json in which 4 is the best rate of everything."""
    table = load_table("demo")
    methods = {}
    for source in table.sources:
        resolved = table.load(source.recipe, source.changes)
        entry = {"recipe_sha256": resolved.sha256, "overrides": list(resolved.overrides), "winner": 4.0}
        methods[source.key] = entry | changes
    table.results.mkdir(parents=True)
    (table.results / "search.json").write_text(json.dumps({"methods": methods}))


def test_every_method_at_every_batch_is_a_row(repository):
    rows = load_table("demo").rows
    assert [row.name for row in rows] == [
        *("net/clars-64", "net/clars-512", "net/clars-512-tuned"),
        *("net/lars-64", "net/lars-512", "net/lars-warmup-64", "net/lars-warmup-512"),
    ]
    assert rows[2].label == "CLARS, tuned"
    assert [row.resolved.recipe.batch_size for row in rows] == [64, 512, 512, 64, 512, 64, 512]
    assert [row.resolved.recipe.schedule.warmup_epochs for row in rows[-3:]] == [0, 1, 2]
    assert [row.resolved.recipe.optimizer.name for row in rows] == ["clars"] * 3 + ["lars"] * 4


def test_rates_are_searched_once_for_all_rows_that_share_them(repository):
    sources = load_table("demo").sources
    assert [source.key for source in sources] == ["net/clars-64", "net/clars-512", "net/lars-64"]
    assert sources[1].changes == {"optimizer.name": "clars", "batch_size": 512}


def test_rates_come_from_the_published_search(repository):
    assert {row.lacking for row in load_table("demo").rows} == {"its base rate was not searched yet"}
    publish_search(repository)
    rows = load_table("demo").rows
    assert {row.lacking for row in rows} == {None}
    assert [row.resolved.peak_rate for row in rows] == [4, 32, 32, 4, 32, 4, 32]
    assert "schedule.base_rate=4.0" in rows[0].resolved.overrides


@pytest.mark.parametrize("changes", [{"recipe_sha256": "0"}, {"overrides": ["epochs=1"]}])
def test_a_search_of_other_settings_gives_no_rates(repository, changes):
    publish_search(repository, **changes)
    assert all("has searched its base rate with other settings" in row.lacking for row in load_table("demo").rows)


def test_a_rate_in_the_settings_of_a_batch_needs_no_search(repository):
    write_product(repository, replace={"{512: {schedule": "{512: {schedule.base_rate: 3, schedule"})
    last = load_table("demo").rows[-1]
    assert (last.lacking, last.resolved.recipe.schedule.base_rate) == (None, 3)


def test_listed_rows_may_change_one_recipe(repository):
    table = load_table("demo", "full")
    assert [(row.name, row.resolved.overrides) for row in table.rows] == [
        ("net", ("epochs=9",)),
        ("wide", ("epochs=9", "model.arguments.width=8")),
    ]
    assert table.results.parts[-2:] == ("v1", "full")
    assert tiers("demo") == ["lite", "full"]


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("rate_of: lars", "rate_of: lasr", "rate_of: 'lasr' is none of clars, lars, lars-warmup. Did you mean 'lars'"),
        ("at: {512", "at: {500", "at: no row has the batch 500"),
        ("tuned: [clars]", "tuned: [lars-warmp]", "tuned: 'lars-warmp' is none of"),
        ("batches_of: {net", "batches_of: {nt", "batches_of: 'nt' is none of net"),
        ("grid: {clars: [2, 4, 8], ", "grid: {", "product.tuned: clars has no rates in search.grid"),
        ("grid: {clars:", "grid: {clrs:", "search.grid: 'clrs' is none of"),
        ("second: lars-warmup", "second: lar", "comparisons.0: 'lar' is none of"),
        ("seeds: [10, 11]", "seeds: [4, 5]", "search.seeds: 4 are seeds of the rows"),
        ("- {label: CLARS, recipe: net}", "- {label: CLARS, recipe: nett}", "names 'nett'.*Did you mean 'demo/net'"),
        ("optimizer.name: clars", "optimizer.nam: clars", "optimizer.nam is not a known key"),
        ("batches: [64", "batches: [0", "tiers.lite.product.batches.0 = 0 must be greater than 0"),
        ("batches: [64", "batches: [64, 64", "product.batches: 64 stands twice"),
        ("  lite:", "  light:", "tiers.light is not a known key. Did you mean 'tiers.lite'"),
        ("clars: {label", "a/b: {label", "should match pattern"),
    ],
)
def test_a_wrong_product_is_named(repository, old, new, message):
    write_product(repository, replace={old: new})
    with pytest.raises(RecipeError, match=message) as error:
        load_table("demo", "full" if "nett" in new else "lite")
    assert "table.yaml" in str(error.value)


def test_rows_of_a_committed_table_scale_from_one_batch(monkeypatch):
    """The base batch of ImageNet's LARS rows was once their own batch, so that the warmup began at the peak."""
    monkeypatch.setenv("CLARS_RECIPES", str(Path(__file__).parents[3] / "recipes"))
    for table in (load_table(folder, tier) for folder in registry.folders() for tier in tiers(folder)):
        batches = {}
        for row in table.rows:
            batches.setdefault(row.plan.network, set()).add(row.resolved.recipe.schedule.base_batch)
        assert {name: len(found) for name, found in batches.items()} == dict.fromkeys(batches, 1), table.command


def test_a_broken_search_is_named(repository):
    results = load_table("demo").results
    results.mkdir(parents=True)
    (results / "search.json").write_text("{")
    with pytest.raises(RecipeError, match=r"search\.json is no record of a search: .*Restore it"):
        load_table("demo")


def test_a_product_without_end_is_refused(repository):
    """A table of a few kilobytes described millions of rows, and each was made."""
    write_product(repository, replace={"batches: [64": f"batches: [{', '.join(map(str, range(1000, 4500)))}, 64"})
    with pytest.raises(RecipeError, match=r"product: these are \d+ rows; at most 10000 are read"):
        load_table("demo")


@pytest.mark.parametrize(
    "content",
    [
        *(b"[]", b"{}", b'{"methods": []}', b'{"methods": {"net/clars-64": []}}', b"\xff", b"[" * 100_000, b"not json"),
        *(
            b'{"methods": {"net/clars-64": {"winner": %s, "recipe_sha256": "", "overrides": []}}}' % winner
            for winner in (b'"4"', b"-1", b"NaN", b"1e999", b"true", b"[4]")
        ),
        b'{"methods": {}, "budget": {"wall_seconds": "1"}}',
    ],
    ids=lambda content: content[:80].decode("latin-1"),
)
def test_a_damaged_search_is_named(repository, content):
    """A search.json with a list in it was a traceback, and any winner was believed."""
    results = load_table("demo").results
    results.mkdir(parents=True)
    (results / "search.json").write_bytes(content)
    with pytest.raises(RecipeError, match=r"search\.json is no record of a search"):
        load_table("demo")
