"""Reading the noise scale of a run, and its picture."""

import math

import pytest
from demo import make_repository, seal, write_run
from matplotlib import axes, image

from clars.errors import UserError
from clars.lab import digests, runs
from clars.lab.runs import noise
from clars.lab.runs.metrics import Metrics
from clars.lab.runs.record import Record
from clars.lab.tables.figures.noise import figure

LINES = [
    {"step": 1, "noise_scale": None, "layers": {"a": None, "b": 2.0}},
    {"step": 2, "noise_scale": 40.0, "layers": {"a": 100.0, "b": 3.0}},
    {"step": 3, "noise_scale": None, "layers": {"a": None, "b": 4.0}},
    {"step": 4, "noise_scale": 50.0, "layers": {"a": None, "b": 5.0}},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    make_repository(tmp_path, monkeypatch)
    return write_run(tmp_path / "runs", "small")


def put(folder, lines):
    """Give a run these lines, as if it had written them."""
    (folder / "noise.jsonl").unlink(missing_ok=True)
    Metrics(folder / "noise.jsonl").append(*lines)
    seal(folder)
    record = Record.read(folder / "run.json")
    found = record.digests.model_copy(update={"noise": digests.of_file(folder / "noise.jsonl")})
    record.model_copy(update={"digests": found}).write(folder / "run.json")


def test_lines_are_read(folder):
    put(folder, LINES)
    found = noise.read(runs.read_folder(folder))
    assert [line.noise_scale for line in found] == [None, 40.0, None, 50.0]
    assert found[1].layers == {"a": 100.0, "b": 3.0}


@pytest.mark.parametrize(
    "lines, message",
    [
        ([], "in the order of their steps"),
        ([LINES[1], LINES[0]], "in the order of their steps"),
        ([LINES[1], LINES[1]], "in the order of their steps"),
        ([{"step": 1}], "noise_scale: Field required"),
        ([LINES[1] | {"step": 0}], "greater than 0"),
        ([LINES[1] | {"noise_scale": "1"}], "valid number"),
        ([LINES[1] | {"layers": {"a": -1.0}}], "greater than or equal to 0"),
    ],
)
def test_lines_that_are_none_are_told(folder, lines, message):
    put(folder, lines)
    with pytest.raises(UserError, match=message):
        noise.read(runs.read_folder(folder))


def test_a_run_without_them_and_one_whose_lines_were_changed(folder):
    with pytest.raises(UserError, match=r"no noise.jsonl: the run was trained without --noise-scale"):
        noise.read(runs.read_folder(folder))
    put(folder, LINES)
    (folder / "noise.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="has changed since the run ended"):
        noise.read(runs.read_folder(folder))
    (folder / "noise.jsonl").unlink()
    with pytest.raises(UserError, match="is gone"):
        noise.read(runs.read_folder(folder))


def test_the_picture_has_gaps(folder, monkeypatch):
    drawn = []
    plot = axes.Axes.plot

    def recording(self, x, y, **options):
        drawn.append((x, y, options))
        return plot(self, x, y, **options)

    monkeypatch.setattr(axes.Axes, "plot", recording)
    put(folder, LINES)
    run = runs.read_folder(folder)
    figure(run, noise.read(run), folder / "noise.png")
    assert image.imread(folder / "noise.png").shape[1] == 1200
    *layers, (steps, whole, options) = drawn
    assert len(layers) == 2 and steps == [1, 2, 3, 4] and options["label"] == "whole network"
    assert [math.isnan(value) for value in whole] == [True, False, True, False]
    assert options["markevery"] == [False, True, False, True]  # points that no line would show


def test_a_run_that_is_unknown_throughout_has_a_picture(folder):
    put(folder, [LINES[0] | {"layers": {"a": None}}])
    run = runs.read_folder(folder)
    figure(run, noise.read(run), folder / "noise.png")
    assert (folder / "noise.png").stat().st_size > 0
