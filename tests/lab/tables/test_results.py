import pytest
from demo import LARGE, write, write_run

from clars.lab.tables.definition import load_table
from clars.lab.tables.results import generate, keep
from clars.lab.tables.summary import SkippedRecord


def test_published_results_tell_the_same_as_the_runs(demo):
    table, out = load_table("demo"), demo / "runs" / "demo"
    for seed, top1 in enumerate((90.0, 91.0, 95.0)):
        write_run(out, "large", seed, top1)
    made = generate(table, out)
    published = keep(table, out, table.results)
    assert [path.name for path in made.files] == ["table.md", "table.csv", "figure.png"]
    assert [path.parent for path in published] == [table.results] * 3
    assert "[0](large/seed0.json)" in published[0].read_text()
    again = generate(table, table.results, demo / "again")
    assert [row.mean for row in again.rows] == [row.mean for row in made.rows] == [None, 92.0]
    assert sorted(path.name for path in (table.results / "large").iterdir()) == [
        f"seed{seed}.json" for seed in range(3)
    ]


def test_runs_that_do_not_count_are_not_published(demo):
    out = demo / "runs" / "demo"
    write_run(out, "large", 0)
    write(demo / "recipes", large=LARGE + "# changed\n")
    with pytest.warns(SkippedRecord):
        keep(load_table("demo"), out, demo / "results")
    assert not (demo / "results" / "v1" / "lite" / "large").exists()
