"""The committed evidence of the quickstart belongs to the committed recipes."""

import json

from clars.lab.tables.definition import load_table
from clars.lab.tables.summary import counted


def searched(recipe):
    """Return the recipe at the small batch whose search gives the base rate of a row."""
    return recipe.removesuffix("-sqrt").replace("512", "64")


def test_base_rates_are_the_winners_of_the_search():
    table = load_table("quickstart")
    search = json.loads((table.results / "search.json").read_text(encoding="utf-8"))
    assert search["split"] == "validation" and search["seeds"] == table.tier.search.seeds
    assert not set(search["seeds"]) & set(table.tier.seeds)
    winners = {}
    for name, method in search["methods"].items():
        resolved = table.load(name.partition("@")[0])
        assert method["recipe_sha256"] == resolved.sha256 and not method["at_edge"]
        winners[resolved.short_name] = method["winner"]
    for row in table.rows:
        assert row.resolved.recipe.schedule.base_rate == winners[searched(row.plan.recipe)]


def test_every_row_has_a_record_of_every_seed():
    table = load_table("quickstart")
    assert len(table.tier.seeds) >= 5
    for row in table.rows:
        runs = counted(row, table.results)
        assert [run.record.seed for run in runs] == table.tier.seeds
        assert all(run.record.git.commit and run.record.git.dirty is False for run in runs)


def test_rows_differ_only_where_they_say():
    table = load_table("quickstart")
    for row in table.rows:
        recipe, first = row.resolved.recipe, table.rows[0].resolved.recipe
        assert (recipe.model, recipe.data, recipe.evaluation, recipe.epochs) == (
            first.model,
            first.data,
            first.evaluation,
            first.epochs,
        )
        assert recipe.optimizer.momentum == first.optimizer.momentum
        assert recipe.optimizer.weight_decay == first.optimizer.weight_decay


def test_a_row_at_the_large_batch_has_the_optimizer_that_was_searched():
    table = load_table("quickstart")
    for row in table.rows:
        small = table.load(searched(row.plan.recipe)).recipe
        assert row.resolved.recipe.optimizer == small.optimizer
        warmups = [each.schedule.warmup_epochs for each in (row.resolved.recipe, small)]
        assert warmups[0] == warmups[1]
