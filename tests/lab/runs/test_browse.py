"""`clars runs`: what lies below a folder, and two settings beside each other."""

from pathlib import Path

import pytest
from demo import write_run

from clars.errors import UserError
from clars.lab import cli
from clars.lab.runs import browse


@pytest.fixture
def out(demo):
    """Two seeds of `large`, three of `small`, the third of which diverged."""
    out = Path("runs/demo")
    for seed, top1 in enumerate((90.0, 94.0)):
        write_run(out, "large", seed, top1)
    for seed, top1 in enumerate((91.0, 92.0)):
        write_run(out, "small", seed, top1)
    write_run(out, "small", 2, 10.0, status="diverged")
    return out


def answer(capsys, *words):
    with pytest.raises(SystemExit) as left:
        cli.main(["runs", *map(str, words)])
    return left.value.code, *capsys.readouterr()


def test_all_runs_below_a_folder_are_listed_and_what_is_wrong_is_told(out, capsys):
    (out / "large" / "seed1" / "run.json").write_text("{")
    code, text, _ = answer(capsys, "list")
    lines = [line.split() for line in text.splitlines() if "seed" in line]
    assert code == 0
    assert [line[0] for line in lines[:4]] == [
        f"demo/{name}" for name in ("large/seed0", "small/seed0", "small/seed1", "small/seed2")
    ]
    assert lines[0][-3] == "90.00" and lines[3][-1] == "diverged"
    assert "not listed: runs/demo/large/seed1/run.json" in text


def test_a_folder_without_runs_is_answered(demo, capsys):
    assert "there is no such folder" in answer(capsys, "list", "nowhere")[2]
    Path("empty").mkdir()
    assert "holds no runs" in answer(capsys, "list", "empty")[1]
    code, _, text = answer(capsys, "compare", "empty", "empty")
    assert code == 2 and "empty holds no run" in text


def test_two_settings_differ_in_what_their_recipes_differ_in_and_gain_seed_by_seed(out):
    found = browse.compare(browse.seeds(out / "small"), browse.seeds(out / "large"))
    names = {name: values for name, *values in found.settings}
    assert names["recipe"] == ["demo/small@v1", "demo/large@v1"]
    assert "device" not in names and "epochs" not in names
    assert found.gains == [90.0 - 91.0, 94.0 - 92.0]  # the seed that diverged has no partner
    numbers = {name: values for name, *values in found.numbers}
    assert numbers["top-1, %"] == ["91.50 ± 0.71", "92.00 ± 2.83"]
    assert numbers["status"] == ["diverged, finished", "finished"]


def test_compare_and_plot_from_the_command_line(out, capsys):
    code, text, _ = answer(capsys, "compare", out / "small", out / "large")
    assert code == 0 and "Second minus first, top-1: +0.50 ± 19.06 (95 % interval) points over 2 seeds" in text
    code, text, _ = answer(capsys, "compare", out / "small" / "seed0", out / "large" / "seed1")
    assert code == 0 and "no difference to state" in text
    for name in ("two.png", "two.svg"):
        assert answer(capsys, "plot", out / "small", out / "large", "--to", name)[0] == 0
        assert Path(name).stat().st_size > 1000
    code, _, text = answer(capsys, "plot", out / "small", "--to", "two.txt")
    assert code == 2 and "is no .png, .svg, .pdf file" in text


def test_a_run_and_its_seeds_are_both_taken(out):
    assert [run.record.seed for run in browse.seeds(out / "large")] == [0, 1]
    assert [run.record.seed for run in browse.seeds(out / "large" / "seed1")] == [1]
    with pytest.raises(UserError, match="holds no run"):
        browse.seeds(out)
