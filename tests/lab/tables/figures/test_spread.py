import numpy as np
import pytest
from demo import seal, write_run
from matplotlib import axes, image

from clars.lab.runs.metrics import Metrics
from clars.lab.tables.definition import load_table
from clars.lab.tables.figures.spread import figure


@pytest.fixture
def drawn(monkeypatch):
    """The curves by label: steps and values. A level stands under its label as well."""
    found = {}
    plot, level = axes.Axes.plot, axes.Axes.axhline

    def plotting(self, x, y, **options):
        found[options["label"]] = list(x), np.ma.asarray(y).filled(np.nan).tolist()
        return plot(self, x, y, **options)

    def levelling(self, y, **options):
        found[options["label"]] = y
        return level(self, y, **options)

    monkeypatch.setattr(axes.Axes, "plot", plotting)
    monkeypatch.setattr(axes.Axes, "axhline", levelling)
    return found


def run(out, seed, ratios):
    """A run whose layers have these S / ||g||, step by step; None where a layer was not measured."""
    folder = write_run(out, "large", seed)
    other = {"weight_norm": 1.0, "ratio": 0.1, "variance_factor": 1.0, "noise_scale": None}
    Metrics(folder / "layers.jsonl").append(
        *(
            {"step": 60 * number, "layer": layer, "gradient_norm": value and 0.5, **other}
            | {"example_norm_sum": value and 0.5 * value}
            for number, step in enumerate(ratios, start=1)
            for layer, value in step.items()
        )
    )
    seal(folder)


def test_geometric_means_of_the_seeds_over_the_first_hundred_steps_beside_the_root(demo, tmp_path, drawn):
    run(tmp_path, 0, [{"stem": 2.0, "head": None}, {"stem": 5.0, "head": 5.0}])
    run(tmp_path, 1, [{"stem": 8.0, "head": None}, {"stem": 5.0, "head": 5.0}])
    figure(load_table("demo"), tmp_path, tmp_path / "spread.png")
    assert drawn["stem"] == ([60], [pytest.approx(4.0)])
    assert drawn["head"][0] == [60] and np.isnan(drawn["head"][1]).all()
    assert drawn["median of the layers"] == ([60], [pytest.approx(4.0)])
    assert drawn["root of the batch"] == pytest.approx(512**0.5)
    assert image.imread(tmp_path / "spread.png").shape[2] == 4


def test_without_statistics_there_is_an_empty_picture(demo, tmp_path, drawn):
    write_run(tmp_path, "large", 0)
    figure(load_table("demo"), tmp_path, tmp_path / "spread.png")
    assert not drawn
