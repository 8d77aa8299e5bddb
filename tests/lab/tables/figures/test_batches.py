import math

import pytest
from product import run_rows, write_product

from clars.lab.tables.definition import load_table
from clars.lab.tables.figures.batches import accuracy_by_batch, steps_to_target


@pytest.fixture
def out(demo):
    """CLARS reaches the target of 80 % at both batches, LARS at the smaller one, where its runs end at 85 %."""
    write_product(demo, searched=False)
    table, out = load_table("demo"), demo / "runs"
    run_rows(table, out, {"net/clars-64": [90.0, 94.0], "net/clars-512": [85.0, 85.0], "net/lars-64": [85.0]})
    run_rows(table, out, {"net/lars-512": [70.0]}, status="diverged")
    return out


def test_accuracy_by_batch_has_means_with_their_intervals(out):
    (panel,) = accuracy_by_batch(load_table("demo"), out).panels
    clars, lars = panel.curves
    assert (panel.title, panel.best) == ("net", 92.0)
    assert (clars.label, clars.x, clars.y) == ("CLARS", [64, 512], [92.0, 85.0])
    assert (lars.label, lars.x, lars.y) == ("LARS", [64, 512], [85.0, 70.0])
    assert clars.errors == [pytest.approx(12.706205 * 2, rel=1e-6), 0]  # t with one degree of freedom
    assert all(map(math.isnan, lars.errors))  # one run has no interval


def test_steps_to_a_target_beside_perfect_scaling(out):
    (panel,) = steps_to_target(load_table("demo"), out).panels
    clars, lars = panel.curves
    assert (clars.x, lars.x) == ([64, 512], [64])
    assert clars.y == pytest.approx([(6 + 4.8) / 2, 7.5])  # the evaluations, 3 steps apart, rise by 10 %
    (perfect,) = panel.references
    assert perfect.x == [64, 512] and perfect.y == pytest.approx([5.4, 5.4 / 8])


def test_each_origin_of_rates_has_a_panel_in_which_a_method_stands_once(demo, tmp_path):
    replaced = {"      tuned: []": "      rates: [linear, sqrt]"}
    write_product(demo, searched=False, replace=replaced)
    table = load_table("demo")
    run_rows(table, tmp_path, {row.name: [80.0] for row in table.rows})
    panels = accuracy_by_batch(table, tmp_path).panels
    assert [panel.title for panel in panels] == ["net, rates scaled linearly", "net, rates scaled by the root"]
    for panel in panels:
        assert [curve.label for curve in panel.curves] == ["CLARS", "LARS", "LARS, warmup"]
        assert [curve.x for curve in panel.curves] == [[64, 512]] * 3
