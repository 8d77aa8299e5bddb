import json

import pytest
from demo import write_run

from clars.errors import UserError
from clars.results import layers, runs
from clars.results.metrics import Metrics


def line(step, layer, **changes):
    values = {"weight_norm": 10.0, "gradient_norm": 1.0, "ratio": 0.1, "example_norm_sum": 4.0}
    return {"step": step, "layer": layer, **values, "variance_factor": 12345.6, "noise_scale": None} | changes


@pytest.fixture
def folder(demo):
    """A run with statistics of two layers, of which the head is frozen at first."""
    folder = write_run(demo / "runs", "large", 0)
    Metrics(folder / "layers.jsonl", "step").append(
        line(5, "stem"), line(10, "stem"), line(10, "head", gradient_norm=3.0)
    )
    return folder


def test_columns_have_a_row_for_each_step_and_nothing_where_nothing_was_measured(folder):
    history = layers.read(runs.read_folder(folder))
    assert (history.steps, history.layers) == ([5, 10], ["stem", "head"])
    assert history.columns["gradient_norm"] == [[1.0, None], [1.0, 3.0]]
    assert history.columns["noise_scale"] == [[None, None], [None, None]]


def test_the_ratio_of_the_rates(folder):
    """(S + l w) / (g + l w) with S = 4, w = 10."""
    ratio = layers.read(runs.read_folder(folder)).rate_ratio(0.1)
    assert ratio == [[5 / 2, None], [5 / 2, 5 / 4]]


def test_published_statistics_are_one_line_of_four_digits(folder, demo):
    run = runs.read_folder(folder)
    path = runs.publish(run, demo / "results", "large")
    layers.publish(run, path)
    published = path.with_name("seed0.layers.json")
    assert published.read_text().count("\n") == 1
    assert json.loads(published.read_text())["columns"]["variance_factor"][0] == [12350.0, None]
    (again,) = runs.read(demo / "results", "large")
    assert layers.read(again).steps == [5, 10]


def test_a_method_without_norms_of_examples_has_no_statistics(folder):
    (folder / "layers.jsonl").unlink()
    run = runs.read_folder(folder)
    assert layers.read(run) is None
    Metrics(folder / "layers.jsonl", "step").append(line(5, "stem", example_norm_sum=None))
    assert layers.read(run) is None


def test_a_broken_file_is_named(folder):
    folder.joinpath("layers.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match=r"layers\.jsonl holds no statistics of layers"):
        layers.read(runs.read_folder(folder))
