import pytest
from demo import seal
from matplotlib import axes, image
from product import run_rows, write_product

from clars.lab.runs import folder
from clars.lab.runs.metrics import Metrics
from clars.lab.tables.definition import load_table
from clars.lab.tables.figures import draw

FIGURES = {"figures: [accuracy-by-batch]": "figures: [accuracy-by-batch, steps-to-target, layers]"}


@pytest.fixture
def drawn(monkeypatch):
    """What each call to plot and errorbar draws: (x, y, the error if any, options)."""
    seen = {"plot": [], "errorbar": []}

    def record(name):
        original = getattr(axes.Axes, name)

        def recording(self, x, y, *arguments, **options):
            seen[name].append((list(x), list(y), *arguments, options))
            return original(self, x, y, *arguments, **options)

        monkeypatch.setattr(axes.Axes, name, recording)

    record("errorbar")
    record("plot")
    return seen


def test_accuracy_steps_and_layers(demo, drawn):
    """CLARS reaches the target of 80 % at both batches, LARS at the smaller one, where its runs end at 85 %."""
    write_product(demo, searched=False, replace=FIGURES)
    table, out = load_table("demo"), demo / "runs"
    run_rows(table, out, {"net/clars-64": [90.0, 94.0], "net/clars-512": [85.0, 85.0], "net/lars-64": [85.0]})
    run_rows(table, out, {"net/lars-512": [70.0]}, status="diverged")
    statistics = {"weight_norm": 1.0, "gradient_norm": 1.0, "example_norm_sum": 2.0, "variance_factor": 3.0}
    lines = [{"step": s, "layer": f"l{n}", **statistics, "noise_scale": n + 1.0} for s in (1, 2) for n in range(3)]
    Metrics(folder(out, "net/clars-64", 0) / "layers.jsonl").append(*lines)
    seal(folder(out, "net/clars-64", 0))
    pictures = draw(table, out, demo)
    assert [path.name for path in pictures] == ["accuracy-by-batch.png", "steps-to-target.png", "layers.png"]
    clars, lars = drawn["errorbar"]
    assert clars[:2] == ([64, 512], [92.0, 85.0]) and lars[:2] == ([64, 512], [85.0, 70.0])
    assert clars[2][0] == pytest.approx(12.706205 * 2, rel=1e-6) and clars[2][1] == 0  # t with one degree of freedom
    assert (clars[3]["marker"], lars[3]["marker"]) == ("o", "s")
    steps = [call for call in drawn["plot"] if call[0][0] == 64]
    assert [call[0] for call in steps] == [[64, 512], [64], [64, 512]]
    assert steps[0][1] == pytest.approx([(6 + 4.8) / 2, 7.5])  # the evaluations, 3 steps apart, rise by 10 %
    assert steps[2][1] == pytest.approx([5.4, 5.4 / 8])
    assert [call[1] for call in drawn["plot"] if call[0] == [1, 2]][-1] == pytest.approx([2.0005 / 1.0005] * 2)
    assert all(image.imread(path).shape[2] == 4 for path in pictures)


def test_without_runs_the_pictures_are_empty(demo, drawn):
    write_product(demo, searched=False, replace=FIGURES)
    assert len(draw(load_table("demo"), demo / "runs", demo)) == 3
    assert drawn == {"plot": [], "errorbar": []}


def test_curves_of_a_product_name_the_batch(demo, drawn):
    write_product(demo, searched=False, replace={"figures: [accuracy-by-batch]": "figures: [curves]"})
    table, out = load_table("demo"), demo / "runs"
    run_rows(table, out, {"net/clars-64": [90.0], "net/clars-512": [85.0]})
    draw(table, out, demo)
    labels = [options["label"] for *_, options in drawn["plot"] if "label" in options]
    assert labels == ["CLARS, batch 64 (1 seed)", "CLARS, batch 512 (1 seed)"]
