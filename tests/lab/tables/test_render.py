import csv
import io

import pytest
from demo import TABLE, write, write_run
from rich.console import Console

from clars.lab.tables import search
from clars.lab.tables.definition import load_table, tiers
from clars.lab.tables.render import NOTE, as_rich, search_as_rich, write_csv, write_markdown
from clars.lab.tables.summary import summarise
from clars.lab.tables.verdict import judge


@pytest.fixture
def rows(demo):
    """Rows of two runs of `large` under runs/demo, and none of `small`."""
    for seed, top1 in enumerate((90.0, 94.0)):
        write_run(demo / "runs" / "demo", "large", seed, top1)
    return summarise(load_table("demo"), demo / "runs" / "demo")


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def terminal(table, width=120):
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue()


def test_markdown_links_every_number_to_its_records(demo, rows):
    path = demo / "docs" / "table.md"
    write_markdown(rows, [], [], load_table("demo"), path)
    text = path.read_text()
    head, _, small, large = (cells(line) for line in text.splitlines() if line.startswith("|"))
    assert text.startswith("# Digits\n\nA claim.\n")
    assert len(head) == len(small) == len(large)
    assert small == ["Nesterov SGD, batch 64", "64", "0", "0.05", "not run", "", "0", "0", "not run"]
    assert large[:-1] == ["CLARS", "512", "1", "16", "92.00 ± 2.83", "± 25.41", "2", "0"]
    links = [f"[{seed}](../runs/demo/large/seed{seed}/run.json)" for seed in (0, 1)]
    assert large[-1] == " ".join(links)
    assert (path.parent / "../runs/demo/large/seed0/run.json").is_file()


def test_markdown_keeps_a_bar_in_a_label_inside_its_cell(demo, rows):
    write(demo / "recipes", table=TABLE.replace("label: CLARS", 'label: "a|b"'))
    path = demo / "table.md"
    write_markdown(summarise(load_table("demo"), demo), [], [], load_table("demo"), path)
    lines = [cells(line) for line in path.read_text().splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1


def test_csv_has_unrounded_numbers_and_empty_cells(demo, rows):
    path = demo / "runs" / "demo" / "table.csv"
    write_csv(rows, path)
    small, large = csv.DictReader(io.StringIO(path.read_text()))
    assert float(large["top1_sd"]) == rows[1].sd
    assert float(large["top1_half_width_95"]) == rows[1].half_width
    assert large["evidence"] == "large/seed0/run.json large/seed1/run.json"
    assert (small["status"], small["top1_mean"], small["n"]) == ("not run", "", "0")


def test_public_numbers_stand_beside_the_rows_they_are_given_for(tmp_path):
    """A name that is no row's would be left out in silence."""
    tables = [load_table("imagenet", tier) for tier in tiers("imagenet")]
    rows = {row.name for table in tables for row in table.rows}
    public = tables[0].head.public
    assert public and public.keys() <= rows
    path = tmp_path / "table.md"
    write_markdown(summarise(tables[-1], tmp_path), [], [], tables[-1], path)
    (line,) = (line for line in path.read_text().splitlines() if "77.38 (NUS)" in line)
    assert cells(line)[:3] == ["resnet50", "LARS, 1-d out, warmup", "4096"]


@pytest.mark.parametrize("name", ["warmup", "imagenet", "quickstart", "denominator"])
def test_the_published_tables_fit_80_columns(name):
    """The networks' column pushed the methods together until nothing of them could be read."""
    table = load_table(name)
    text = terminal(as_rich(summarise(table, table.results), judge(table, table.results), table), width=80)
    assert "…" not in text
    words = " ".join(text.split())
    assert all(f"-- {row.plan.network}" in words for row in table.rows if row.plan.network)


def test_the_terminal_table_fits_80_columns(rows):
    text = terminal(as_rich(rows, [], load_table("demo")), width=80)
    assert all(word in text for word in ("Digits", "CLARS", "92.00 ± 2.83", "± 25.41", "not run", "lost"))
    assert "…" not in text
    assert " ".join(NOTE.split()) in " ".join(text.split())


def test_the_search_in_the_terminal_fits_80_columns(demo):
    found = search.summarise(search.candidates(load_table("demo"), demo / "search"), "demo", "v1")
    text = terminal(search_as_rich(found, "Rates"), width=80)
    assert "…" not in text
    assert " ".join(search.RULE.format(0).split()) in " ".join(text.split())
    assert all(word in text for word in ("Rates", "small@v1", "0.05", "0.1", "not run"))
