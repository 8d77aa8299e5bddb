"""What the documentation shows is run: Python blocks here, commands here or by continuous integration.

The Python blocks of a tutorial are one script, as are the `sh` blocks of a page; all others are run by themselves.
Commands that start processes of their own are marked slow, which continuous integration runs too.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clars.lab import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "recipes").glob("*/README.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += [*sorted((ROOT / "checkpoints").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
FIRST_LOOK = ".venv/bin/clars run quickstart/clars-512 epochs=2"
BY_CI = {"make install", FIRST_LOOK, "make quickstart", "make test", "make lint", "make test-oldest"}
NOT_RUN = {
    "make bench",
    "make docs",
    "make test-all",
    "git clone",
    "make gpu",
}  # many minutes, the network, a GPU; or tested
NOT_RUN |= {".venv/bin/clars run quickstart/clars-512 --cuda-graph"}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


def programs():
    """The Python of the pages, as scripts that are run one after the other in one folder."""
    for page in PAGES:
        found = blocks(page, "python")
        if page.parent.name == "tutorials":  # those of torchrun are files of their own
            launched = [block for block in found if block.startswith("# torchrun ")]
            yield program([*launched, "\n".join(block for block in found if block not in launched)], page.name)
        else:
            yield from (program([block], f"{page.name}-{index}") for index, block in enumerate(found))


def program(scripts, name):
    marks = [pytest.mark.deepspeed] if "deepspeed" in "".join(scripts).lower() else []
    return pytest.param(scripts, id=name, marks=marks)


def commands():
    """The command lines, each once, without those that continuous integration runs or that are not run."""
    shown = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    lines = [line.partition("#")[0].strip() for line in shown]
    for line in sorted(set(lines) - {""} - BY_CI):
        if not line.startswith((*NOT_RUN, "cd ")):
            words = set(line.split())
            starts = {"run", "table", "tune", "noise", "launch"} & words and not {"--no-run", "--published"} & words
            yield pytest.param(line, marks=[pytest.mark.slow] if starts else [])


@pytest.mark.parametrize("scripts", list(programs()))
def test_python_blocks(scripts, tmp_path):
    shutil.copy(ROOT / "docs" / "digit.png", tmp_path)
    for script in scripts:
        done = subprocess.run(started(script, tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        assert "digit.png" not in script or done.stdout.startswith("7, "), "the picture is of a seven"


def started(script, folder):
    """Return the command for a script: torchrun, with which it may begin, has its port chosen by the system."""
    if not script.startswith("# torchrun "):
        return [sys.executable, "-c", script]
    words = shlex.split(script.splitlines()[0])
    (folder / words[-1]).write_text(script, encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    return launcher + words[2:]


SESSIONS = [pytest.param("".join(found), id=page.name) for page in PAGES if (found := blocks(page, "sh"))]


@pytest.mark.slow
@pytest.mark.parametrize("session", SESSIONS)
def test_sessions(session, tmp_path):
    """By bash, in an empty folder, as by somebody who has a name for git."""
    who = {f"GIT_{role}_{what}": "A" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = os.environ | who | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", "-e", "-c", session]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", list(commands()))
def test_commands(command, tmp_path, monkeypatch):
    words = shlex.split(command)
    binary = Path(sys.executable).parent / Path(words[0]).name
    assert binary.exists(), f"{words[0]} is no command of this package"
    words += ["--out", str(tmp_path)] if {"run", "table", "tune", "noise", "recipes/train.py"} & set(words) else []
    monkeypatch.chdir(ROOT)
    if binary.name == "clars":
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
    else:
        done = subprocess.run([str(binary), *words[1:]], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]


def test_commands_of_continuous_integration():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert all(f"\n{command}" in script for command in BY_CI)


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_shows_the_generated_table():
    """Each row stands in the README as in table.md, without its links to the evidence."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    generated = (ROOT / "recipes/quickstart/results/v2/lite/table.md").read_text(encoding="utf-8")
    rows = [line for line in generated.partition("## Differences")[0].splitlines() if line.startswith("|")]
    assert len(rows) == 11
    for row in rows:
        assert row.rsplit("|", 2)[0] + "|" in readme


@pytest.mark.parametrize("name", ["choose-the-rate", "choose-the-batch"])
def test_pages_on_choices_show_rows_of_the_generated_table(name):
    page = (ROOT / f"docs/how-to/{name}.md").read_text(encoding="utf-8")
    generated = (ROOT / "recipes/warmup/results/v2/lite/table.md").read_text(encoding="utf-8")
    known = {line.rsplit("|", 2)[0] + "|" for line in generated.partition("## Differences")[0].splitlines()}
    rows = [line for line in page.splitlines() if line.startswith(("| fcn5 ", "| resnet8 "))]
    assert len(rows) >= 4 and set(rows) <= known


def test_the_readme_is_read_in_a_few_minutes():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_page_on_costs_shows_the_generated_ones():
    page = (ROOT / "docs/cost.md").read_text(encoding="utf-8")
    generated = (ROOT / "benchmarks/step_time.md").read_text(encoding="utf-8")
    assert all(line in page for line in generated.splitlines() if line.startswith("|"))


def test_the_page_on_costs_shows_the_generated_ones_of_compiled_steps():
    page = (ROOT / "docs/cost.md").read_text(encoding="utf-8")
    generated = (ROOT / "benchmarks/compiled_step.md").read_text(encoding="utf-8")
    assert all(line in page for line in generated.splitlines() if line.startswith("|"))


def test_the_page_on_sharding_shows_the_generated_errors():
    page = (ROOT / "docs/sharding.md").read_text(encoding="utf-8")
    assert (ROOT / "benchmarks/naive_sharding.md").read_text(encoding="utf-8") in page


def test_the_page_on_the_noise_scale_shows_the_generated_comparison():
    page = (ROOT / "docs/noise-scale.md").read_text(encoding="utf-8")
    assert (ROOT / "benchmarks/noise_scale.md").read_text(encoding="utf-8") in page


def test_the_page_on_data_shows_the_generated_rates():
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    assert (ROOT / "benchmarks/data_rate.md").read_text(encoding="utf-8") in page


def test_every_benchmark_can_be_imported():
    """They take too long to be run here; `make bench` runs them."""
    scripts = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    assert len(scripts) > 5
    lines = "\n".join(f"import {name}" for name in scripts)
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT / "benchmarks", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
