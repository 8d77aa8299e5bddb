import pytest
from demo import TABLE, write, write_run
from product import run_rows, write_product

from clars.lab import runs
from clars.lab.tables.definition import load_table
from clars.lab.tables.figures.curves import by_epoch, figure


def test_accuracies_by_epoch(demo, tmp_path):
    for seed, top1 in enumerate((90.0, 80.0)):
        write_run(tmp_path, "large", seed, top1)
    found = runs.read(tmp_path, "large")
    del found[1].metrics[2]
    found[0].metrics[1]["top1"] = None
    assert by_epoch(found) == {1: [70.0, 60.0], 2: [70.0], 3: [90.0]}


def test_means_of_the_seeds_with_the_base_batch_as_a_thin_reference(demo, tmp_path):
    for seed, top1 in enumerate((90.0, 80.0)):
        write_run(tmp_path, "large", seed, top1)
        write_run(tmp_path, "small", seed, top1 + 5)
    (panel,) = figure(load_table("demo"), tmp_path).panels
    (large,), (small,) = panel.curves, panel.references
    assert (panel.title, panel.best) == ("batch 512", 85.0)
    assert (large.label, large.x, large.y) == ("CLARS", [1, 2, 3], [65.0, 75.0, 85.0])
    assert large.band == ([60.0, 70.0, 80.0], [70.0, 80.0, 90.0])
    assert (small.label, small.y) == ("Nesterov SGD, batch 64", [70.0, 80.0, 90.0])
    assert small.look["linewidth"] < 1


def test_the_base_batch_alone_is_no_reference(demo, tmp_path):
    write_run(tmp_path, "small", 0)
    (panel,) = figure(load_table("demo"), tmp_path).panels
    assert (panel.title, len(panel.curves), len(panel.references)) == ("batch 64", 1, 0)
    assert "linewidth" not in panel.curves[0].look


def test_a_diverged_run_ends_in_a_cross(demo, tmp_path):
    write_run(tmp_path, "large", 0, 50.0, status="diverged")
    ((curve,),) = (panel.curves for panel in figure(load_table("demo"), tmp_path).panels)
    assert curve.ends == [(3, 50.0)]


def test_a_product_has_a_panel_for_each_batch_with_the_smallest_in_all_of_them(demo, tmp_path):
    write_product(demo, searched=False, replace={"      batches_of: {net: [64, 512]}\n": ""})
    table = load_table("demo")
    run_rows(table, tmp_path, {f"net/clars-{batch}": [90.0] for batch in (64, 256, 512)})
    panels = figure(table, tmp_path).panels
    assert [panel.title for panel in panels] == ["net, batch 256", "net, batch 512"]
    assert [[curve.label for curve in panel.curves] for panel in panels] == [["CLARS"]] * 2
    assert [[curve.label for curve in panel.references] for panel in panels] == [["CLARS, batch 64"]] * 2


@pytest.mark.parametrize("scaling, title", [("sqrt", "batch 512, rates scaled by the root"), ("linear", None)])
def test_listed_rows_whose_rates_are_scaled_otherwise_have_a_panel_of_their_own(demo, tmp_path, scaling, title):
    row = f"  - {{label: Other, recipe: large, name: other, set: {{schedule.scaling: {scaling}}}}}\nseeds"
    write(demo / "recipes", table=TABLE.replace("seeds", row, 1))
    table = load_table("demo")
    run_rows(table, tmp_path, {"large": [80.0], "other": [70.0]})
    titles = [panel.title for panel in figure(table, tmp_path).panels]
    assert titles == (["batch 512, rates scaled linearly", title] if title else ["batch 512"])
