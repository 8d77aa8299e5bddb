import pytest
from demo import write_run
from matplotlib import axes, image

from clars.lab import runs
from clars.lab.tables.definition import load_table
from clars.lab.tables.figures.curves import by_epoch, figure


@pytest.fixture
def curves(monkeypatch):
    """What the figure draws: (x, y, options) of each call to plot."""
    drawn = []
    plot = axes.Axes.plot

    def recording(self, *arguments, **options):
        drawn.append((*arguments[:2], options))
        return plot(self, *arguments, **options)

    monkeypatch.setattr(axes.Axes, "plot", recording)
    return drawn


def test_accuracies_by_epoch(demo, tmp_path):
    for seed, top1 in enumerate((90.0, 80.0)):
        write_run(tmp_path, "large", seed, top1)
    found = runs.read(tmp_path, "large")
    del found[1].metrics[2]
    found[0].metrics[1]["top1"] = None
    assert by_epoch(found) == {1: [70.0, 60.0], 2: [70.0], 3: [90.0]}


def test_a_picture_of_the_means_with_the_reference_dashed(demo, tmp_path, curves):
    for seed, top1 in enumerate((90.0, 80.0)):
        write_run(tmp_path, "large", seed, top1)
        write_run(tmp_path, "small", seed, top1 + 5)
    figure(load_table("demo"), tmp_path, tmp_path / "figure.png")
    small, large = curves
    assert small[:2] == ([1, 2, 3], [70.0, 80.0, 90.0])
    assert large[:2] == ([1, 2, 3], [65.0, 75.0, 85.0])
    assert [options["linestyle"] for *_, options in curves] == ["--", "-"]
    assert [options["label"] for *_, options in curves] == ["Nesterov SGD, batch 64 (2 seeds)", "CLARS (2 seeds)"]
    height, width, _ = image.imread(tmp_path / "figure.png").shape
    assert (width, height) == (1125, 663)


def test_a_diverged_run_ends_in_a_cross(demo, tmp_path, curves):
    write_run(tmp_path, "large", 0, 50.0, status="diverged")
    figure(load_table("demo"), tmp_path, tmp_path / "figure.png")
    curve, cross = curves
    assert curve[2]["label"] == "CLARS (1 seed, 1 diverged)"
    assert cross[:2] == (3, 50.0)


def test_without_runs_there_is_an_empty_picture(demo, tmp_path, curves):
    figure(load_table("demo"), tmp_path, tmp_path / "figure.png")
    assert curves == []
    assert image.imread(tmp_path / "figure.png").shape[2] == 4
