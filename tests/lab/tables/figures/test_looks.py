"""A method looks the same in all figures of a table, and no two in a panel look alike."""

import json

import pytest
from demo import TABLE, write
from product import run_rows, write_product

from clars.lab import runs
from clars.lab.tables.definition import load_table
from clars.lab.tables.figures import batches, curves, first_epoch, rates, several
from clars.lab.tables.figures.looks import looks, numbers
from clars.lab.tables.figures.style import MARKERS, PALETTE, look

FIGURES = (
    *(curves.figure, batches.accuracy_by_batch, batches.steps_to_target),
    *(rates.accuracy_by_rate, rates.warmup_gain, first_epoch.figure),
)


def seen(look):
    return look["color"], look["marker"], look["linestyle"]


@pytest.fixture
def table(demo, tmp_path):
    """A searched product of three methods, one of them the warmup of another, all of whose rows were run."""
    write_product(
        demo,
        replace={
            "tuned: [clars]": "tuned: [clars, lars, lars-warmup]",
            "rate_of: lars": "warmup_of: lars",
            "lars: [1, 2, 4]": "lars: [1, 2, 4], lars-warmup: [1, 2, 4]",
        },
    )
    table = load_table("demo")
    methods = {}
    for source in table.sources:
        resolved = table.load(source.recipe, source.changes)
        tried = [{"rate": rate, "top1": [80.0 + rate]} for rate in (1, 2, 4)]
        methods[source.key] = {
            "recipe_sha256": resolved.sha256,
            "overrides": list(resolved.overrides),
            "winner": 2,
            "rates": tried,
        }
    table.results.mkdir(parents=True)
    table.search.write_text(json.dumps({"methods": methods}))
    table = load_table("demo")
    run_rows(table, tmp_path, {row.name: [90.0] for row in table.rows}, first_epoch_losses=[2.0, 1.0])
    return table


def test_every_figure_of_a_table_shows_a_method_alike(table, tmp_path):
    wanted = {"CLARS": ("o", "-"), "LARS": ("s", "-"), "LARS, warmup": ("s", "--")}
    found = set()
    for figure in FIGURES:
        panels = figure(table, tmp_path).panels
        assert panels, figure
        for panel in panels:
            shown = [curve for curve in panel.curves if curve.points]
            assert {(curve.look["marker"], curve.look["linestyle"]) for curve in shown} == {
                wanted[curve.label] for curve in shown
            }
            assert all(seen(curve.look) == seen(looks(table)[method(curve)]) for curve in shown)
            assert len({seen(curve.look) for curve in shown}) == len(shown)
            found |= {curve.label for curve in shown}
    assert found == set(wanted)


def method(curve):
    return curve.label.lower().replace(", ", "-")


@pytest.mark.parametrize(
    "name", ["quickstart", "quickstart@v1", "warmup@v1", "warmup", "scaling", "denominator", "imagenet"]
)
def test_no_two_methods_of_our_tables_look_alike(name):
    table = load_table(name)
    if not table.tier.product:  # of listed rows those that stand in one panel
        shown = {
            row.plan.method: (row.resolved.recipe.batch_size, row.resolved.recipe.schedule.scaling)
            for row in table.rows
        }
        found = [(shown[row], *seen(look)) for row, look in looks(table).items()]
    else:
        found = [seen(look) for look in looks(table).values()]
    assert len(set(found)) == len(found)


def test_a_method_with_warmup_is_dashed_and_looks_like_the_one_without_it():
    warmup = looks(load_table("warmup"))
    assert seen(warmup["clars-warmup"])[:2] == seen(warmup["clars"])[:2]
    assert [warmup[name]["linestyle"] for name in ("clars", "clars-warmup", "lamb-warmup")] == ["-", "--", "--"]
    older = looks(load_table("warmup@v1"))  # from before warmup_of: the rate is that of the method without
    assert seen(older["sgd-warmup"])[:2] == seen(older["sgd"])[:2] != seen(older["sgd-frozen"])[:2]


def test_listed_rows_of_one_method_look_alike_where_panels_tell_them_apart():
    quickstart = looks(load_table("quickstart"))
    same = [seen(quickstart[name]) for name in ("clars-64", "clars-512", "clars-512-sqrt")]
    assert len(set(same)) == 1 and seen(quickstart["clars-out-512"]) not in same
    assert seen(quickstart["sgd-512-warmup"]) == (*seen(quickstart["sgd-64"])[:2], "--")


def test_listed_rows_that_nothing_else_tells_apart_look_different(demo):
    rows = "".join(
        f"  - {{label: Rate {r}, recipe: large, name: r{r}, set: {{schedule.base_rate: {r}}}}}\n" for r in (1, 3)
    )
    write(demo / "recipes", table=TABLE.replace("seeds", f"{rows}seeds", 1))
    alike = looks(load_table("demo"))
    assert len({seen(alike[name]) for name in ("large", "r1", "r3")}) == 3


def test_a_number_is_that_of_the_method_unless_the_variant_is_there():
    assert numbers([("a", 0), ("b", 0), ("a", 1), ("a", 0), ("c", 0), ("b", 1)]) == [0, 1, 0, 2, 3, 1]


def test_sixty_four_numbers_look_different():
    assert len(PALETTE) == len(MARKERS) == len(set(MARKERS)) == len(set(PALETTE)) == 8
    assert len({tuple(look(number).values()) for number in range(64)}) == 64


def test_runs_that_somebody_chose_look_by_their_method_too(demo, tmp_path):
    write_product(demo, searched=False)
    table = load_table("demo")
    run_rows(table, tmp_path, {f"net/{name}": [90.0] for name in ("clars-64", "lars-64", "lars-warmup-64", "lars-512")})
    chosen = {
        name: runs.read(tmp_path, f"net/{name}") for name in ("clars-64", "lars-64", "lars-warmup-64", "lars-512")
    }
    clars, lars, warm, large = (seen(curve.look) for curve in several.sketch(chosen).panels[0].curves)
    assert (clars[1], lars[1], warm[1], large[1]) == ("o", "s", "s", "^")
    assert [look[2] for look in (clars, lars, warm, large)] == ["-", "-", "--", "-"]
