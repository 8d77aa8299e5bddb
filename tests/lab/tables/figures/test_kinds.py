"""Pictures as PNG, SVG and PDF: text that stays text, and the same file from the same runs."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from demo import write_run
from product import run_rows, write_product

from clars.lab import cli
from clars.lab.tables.definition import load_table
from clars.lab.tables.figures import draw
from clars.lab.tables.results import keep

HEADS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
LABELS = {"CLARS", "LARS", "LARS, warmup"}


@pytest.fixture
def table(demo):
    """A product whose rows were run, in `runs`."""
    figures = "figures: [accuracy-by-batch, curves, steps-to-target]"
    write_product(demo, searched=False, replace={"figures: [accuracy-by-batch]": figures})
    table = load_table("demo")
    run_rows(table, demo / "runs", {row.name: [90.0, 85.0] for row in table.rows})
    return table


def answer(capsys, *words):
    with pytest.raises(SystemExit) as left:
        cli.main(list(map(str, words)))
    return left.value.code or 0, *capsys.readouterr()


def texts(path):
    return {
        "".join(each.itertext()).strip() for each in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    }


def test_an_svg_is_well_formed_and_holds_its_labels_as_text(table, demo):
    for one in draw(table, demo / "runs", demo / "svg", "svg"):
        assert texts(one.path) >= LABELS and "Batches" in texts(one.path)
        assert "<date>" not in one.path.read_text()


@pytest.mark.parametrize("kind", HEADS)
def test_the_same_runs_make_the_same_file(table, demo, kind):
    one, two = (draw(table, demo / "runs", demo / folder, kind) for folder in ("one", "two"))
    assert len(one) == 3
    for first, second in zip(one, two):
        assert first.path.read_bytes() == second.path.read_bytes()
        assert first.path.suffix == f".{kind}" and first.path.read_bytes().startswith(HEADS[kind])


def test_the_command_draws_the_kind_that_is_asked_for(table, demo, capsys):
    assert answer(capsys, "table", "demo", "--no-run", "--out", "runs", "--figures", "svg")[0] == 0
    assert (demo / "runs/figure.svg").exists() and not (demo / "runs/figure.png").exists()
    code, _, text = answer(capsys, "table", "demo", "--no-run", "--out", "runs", "--figures", "gif")
    assert code == 2 and "'gif' is none of png, svg, pdf" in text


def test_what_is_published_is_png_unless_asked_otherwise(table, demo, capsys):
    keep(table, demo / "runs", table.results)
    assert {path.suffix for path in table.results.glob("figure.*")} == {".png"}
    answer(capsys, "table", "demo", "--no-run", "--out", "runs", "--figures", "svg", "--publish")
    assert "](figure.svg)" in (table.results / "table.md").read_text()


def test_a_table_is_made_from_its_published_records_alone(table, demo, capsys):
    keep(table, demo / "runs", table.results)
    before = {path: path.read_bytes() for path in table.results.rglob("*") if path.is_file()}
    code, text, _ = answer(capsys, "table", "demo", "--published", "--figures", "svg")
    made = Path("runs/demo/published")
    assert code == 0 and f"wrote {made}/accuracy-by-batch.svg" in text
    assert (
        (made / "table.csv").read_text().count("CLARS,")
        == (table.results / "table.csv").read_text().count("CLARS,")
        == 2
    )
    assert texts(made / "figure.svg") >= LABELS
    assert {path: path.read_bytes() for path in table.results.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("option", ["--publish", "--search"])
def test_a_table_from_published_records_changes_nothing_there(table, demo, capsys, option):
    keep(table, demo / "runs", table.results)
    code, _, text = answer(capsys, "table", "demo", "--published", option)
    assert code == 2 and "leave out --publish and --search" in text


def test_without_published_records_their_place_is_told(table, capsys):
    code, _, text = answer(capsys, "table", "demo", "--published")
    assert code == 2 and f"{table.results} holds no records. Run the table: clars table demo" in text


def test_a_plot_of_runs_takes_the_kind_from_the_option_or_from_the_file(demo, capsys):
    for name in ("small", "large"):
        write_run(Path("runs/demo"), name)
    chosen = ("runs/demo/small", "runs/demo/large")
    assert answer(capsys, "runs", "plot", *chosen)[0] == 0 and Path("runs.png").exists()
    assert answer(capsys, "runs", "plot", *chosen, "--figures", "svg")[0] == 0
    assert {f"{name} (1 seed)" for name in chosen} <= texts("runs.svg")
    assert answer(capsys, "runs", "plot", *chosen, "--to", "a.pdf")[0] == 0
    assert Path("a.pdf").read_bytes().startswith(HEADS["pdf"])
    code, _, text = answer(capsys, "runs", "plot", *chosen, "--to", "a.png", "--figures", "svg")
    assert code == 2 and "a.png is no .svg file" in text and not Path("a.png").exists()


def test_runs_of_one_epoch_have_no_curve(demo, capsys):
    write_run(Path("runs/demo"), "small", epochs=1)
    code, _, text = answer(capsys, "runs", "plot", "runs/demo/small")
    assert code == 2 and "nothing was measured after two epochs" in text and not Path("runs.png").exists()
