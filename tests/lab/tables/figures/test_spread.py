import math

import pytest
from demo import seal, write_run

from clars.lab.runs.metrics import Metrics
from clars.lab.tables.definition import load_table
from clars.lab.tables.figures.panels import paint
from clars.lab.tables.figures.spread import figure


def run(out, seed, ratios):
    """A run whose layers have these S / ||g||, step by step; None where a layer was not measured."""
    folder = write_run(out, "large", seed)
    other = {"weight_norm": 1.0, "ratio": 0.1, "variance_factor": 1.0, "noise_scale": None}
    Metrics(folder / "layers.jsonl").append(
        *(
            {"step": 30 * number, "layer": layer, "gradient_norm": value and 0.5, **other}
            | {"example_norm_sum": value and 0.5 * value}
            for number, step in enumerate(ratios, start=1)
            for layer, value in step.items()
        )
    )
    seal(folder)


RATIOS = (
    [{"stem": 2.0, "head": None}, {"stem": 3.0, "head": None}, {"stem": 1.0, "head": 9.0}, {"stem": 5.0, "head": 5.0}],
    [{"stem": 8.0, "head": None}, {"stem": 3.0, "head": None}, {"stem": 9.0, "head": 1.0}, {"stem": 5.0, "head": 5.0}],
)


def test_geometric_means_of_the_seeds_over_the_first_hundred_steps(demo, tmp_path):
    for seed, ratios in enumerate(RATIOS):
        run(tmp_path, seed, ratios)
    (panel,) = figure(load_table("demo"), tmp_path).panels
    stem, head = panel.curves
    (median,) = panel.references
    assert (panel.title, stem.x, stem.y) == ("batch 512, CLARS", [30, 60, 90], pytest.approx([4.0, 3.0, 3.0]))
    assert [math.isnan(value) for value in head.y] == [True, True, False] and head.points == 1
    assert median.y == pytest.approx([4.0, 3.0, 3.0])


def test_the_layers_have_their_own_names_and_the_batch_its_root(demo, tmp_path):
    run(tmp_path, 0, RATIOS[0])
    sketch = figure(load_table("demo"), tmp_path)
    paint(tmp_path / "spread.svg", sketch.panels, sketch)
    text = (tmp_path / "spread.svg").read_text()
    assert all(f">{name}<" in text for name in ("stem", "head", "median of the layers", "root of the batch"))


def test_without_statistics_there_is_nothing(demo, tmp_path):
    write_run(tmp_path, "large", 0)
    assert not figure(load_table("demo"), tmp_path).panels
