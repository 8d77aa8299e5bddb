"""What is drawn and what is left out: a panel that says nothing is not, nor a figure of which nothing is left."""

import pytest
from demo import TABLE, write, write_run
from matplotlib import image
from product import NET, PRODUCT, run_rows, write_product

from clars.lab.tables.definition import load_table
from clars.lab.tables.figures import draw
from clars.lab.tables.results import generate

BATCHES = "figures: [accuracy-by-batch]"


def product(demo, figures="curves", chance=None, **replace):
    head = f"figures: [{figures}]" + (f"\nchance: {chance}" if chance else "")
    write_product(demo, searched=False, replace={BATCHES: head, **replace})
    return load_table("demo")


def only(drawn):
    (one,) = drawn
    return one


def test_a_picture_is_1200_pixels_wide_whatever_it_holds(demo, tmp_path):
    table = product(demo, "curves, accuracy-by-batch, steps-to-target")
    run_rows(table, tmp_path, {row.name: [90.0, 80.0] for row in table.rows})
    drawn = draw(table, tmp_path, tmp_path)
    assert [one.path.name for one in drawn] == ["figure.png", "accuracy-by-batch.png", "steps-to-target.png"]
    assert {image.imread(one.path).shape[1] for one in drawn} == {1200}
    assert [one.note for one in drawn] == ["", "", ""]


def test_a_line_of_one_point_alone_makes_no_figure(demo, tmp_path):
    """Thirteen methods at one batch, and after one epoch, were points one above the other."""
    shorter = {"warmup_epochs: 1": "warmup_epochs: 0.5", "warmup_epochs: 2": "warmup_epochs: 0.5"}
    table = product(demo, "accuracy-by-batch, curves", **shorter)
    run_rows(table, tmp_path / "long", {"net/clars-64": [90.0], "net/lars-64": [80.0]})
    by_batch, over_epochs = draw(table, tmp_path / "long", tmp_path)
    assert by_batch.path is None and not (tmp_path / "accuracy-by-batch.png").exists()
    assert by_batch.note == "accuracy-by-batch is not drawn: no line has two points."
    assert over_epochs.path.exists()
    write(demo / "recipes", net=NET.replace("epochs: 3", "epochs: 1"))
    table = load_table("demo")
    run_rows(table, tmp_path / "short", {"net/clars-64": [90.0], "net/lars-64": [80.0]})
    over_epochs = draw(table, tmp_path / "short", tmp_path)[1]
    assert over_epochs.note == "curves is not drawn: no line has two points."
    assert not (tmp_path / "figure.png").exists(), "the one of before shows what is no longer so"


def test_a_panel_in_which_no_method_learns_is_left_out(demo, tmp_path):
    table = product(demo, chance=10, **{"      batches_of: {net: [64, 512]}\n": ""})
    run_rows(table, tmp_path, {"net/clars-64": [90.0], "net/clars-256": [80.0], "net/clars-512": [44.0]})
    one = only(draw(table, tmp_path, tmp_path))
    assert one.path.exists()  # 44 is less than half of 90: void
    assert one.note == "curves leaves out: no method learns (net, batch 512)."


@pytest.mark.parametrize("top1, drawn", [(15.0, False), (15.1, True)])
@pytest.mark.parametrize("figures", ["curves", "accuracy-by-batch"])
def test_methods_that_all_guess_are_not_drawn(demo, tmp_path, figures, top1, drawn):
    """At the smallest batch no cell is void; but guessing it is."""
    table = product(demo, figures, chance=10)
    run_rows(table, tmp_path, {"net/clars-64": [top1], "net/clars-512": [top1]})
    one = only(draw(table, tmp_path, tmp_path))
    assert (one.path is not None, "no method learns" in one.note) == (drawn, not drawn)


def test_without_chance_nothing_is_taken_for_guessing(demo, tmp_path):
    table = product(demo)
    run_rows(table, tmp_path, {"net/clars-64": [90.0], "net/clars-512": [10.0]})
    assert only(draw(table, tmp_path, tmp_path)).path


@pytest.mark.parametrize(
    "figure, note",
    [
        ("curves", "nothing was run"),
        ("accuracy-by-batch", "nothing was run"),
        ("steps-to-target", "no network that was run has a target"),
        ("layers", "no run has statistics of its layers"),
        ("spread", "no run has statistics of its layers"),
    ],
)
def test_without_runs_there_is_no_picture_and_the_page_says_why(demo, tmp_path, figure, note):
    table = product(demo, figure)
    made = generate(table, tmp_path / "runs", tmp_path)
    assert not list(tmp_path.glob("*.png")) and not any(file.suffix == ".png" for file in made.files)
    text = (tmp_path / "table.md").read_text()
    assert f"\n\n{figure} is not drawn: {note}.\n\n" in text and ".png" not in text


def test_without_a_search_there_are_no_rates_nor_first_epochs(demo, tmp_path):
    figures = "figures: [accuracy-by-rate, warmup-gain, first-epoch]"
    write_product(demo, replace={BATCHES: figures, PRODUCT[PRODUCT.index("  full:") :]: ""})
    *rates, losses = draw(load_table("demo"), tmp_path, tmp_path)
    assert [one.left_out for one in rates] == ["no rates were searched"] * 2
    assert losses.left_out == "no record has the losses within the first epoch"


def test_the_page_shows_what_was_drawn(demo, tmp_path):
    write(demo / "recipes", table=TABLE)
    for seed in (0, 1):
        write_run(tmp_path, "large", seed)
    table = load_table("demo")
    for kind, shown in (("png", "!"), ("svg", "!"), ("pdf", "")):
        generate(table, tmp_path, kind=kind)
        text = (tmp_path / "table.md").read_text()
        assert f"\n\n## Figures\n\n{shown}[Accuracy over the epochs](figure.{kind})\n\n" in text
