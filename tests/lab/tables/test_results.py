import pytest
from demo import LARGE, write, write_run

from clars.errors import UserError
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


def test_runs_in_two_precisions_make_no_table(demo):
    """Their mean was formed in silence. A record that does not say is of float32, which alone there was."""
    table, out = load_table("demo"), demo / "runs" / "demo"
    write_run(out, "large", 0)
    write_run(out, "small", 0, mixed_precision="no")
    assert generate(table, out).rows[1].n == 1
    for name in ("large", "small"):
        write_run(out, name, 1, mixed_precision="bf16")
        message = rf"one mixed precision.* bf16 in \S*{name}/seed1/run\.json; no in .*--overwrite or in another --out"
        with pytest.raises(UserError, match=message):
            generate(table, out)
        with pytest.raises(UserError, match="one mixed precision"):
            keep(table, out, table.results)
        assert not table.results.exists()
        (out / name / "seed1" / "run.json").unlink()


def test_runs_of_two_protocols_make_no_table(demo):
    """Records of before protocols were numbered stand beside either."""
    table, out = load_table("demo"), demo / "runs" / "demo"
    write_run(out, "large", 0)
    write_run(out, "small", 0, protocol=2)
    assert generate(table, out).rows[1].n == 1
    write_run(out, "small", 1, protocol=3)
    with pytest.raises(UserError, match=r"one protocol, and here it is 2 in \S*small/seed0/run\.json; 3 in \S*seed1"):
        generate(table, out)
