"""What the documentation shows is run: Python blocks here, commands here or by continuous integration.

Commands that start processes of their own are marked slow, which continuous integration runs too.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clars.lab import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "recipes").glob("*/README.md")), *sorted((ROOT / "docs").glob("*.md"))]
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


def blocks(language):
    for page in PAGES:
        for index, text in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)):
            marks = [pytest.mark.deepspeed] if "import deepspeed" in text else []
            yield pytest.param(text, id=f"{page.name}-{index}", marks=marks)


def commands():
    """The command lines, each once, without those that continuous integration runs or that are not run."""
    lines = [line.partition("#")[0].strip() for block in blocks("bash") for line in block.values[0].splitlines()]
    for line in sorted(set(lines) - {""} - BY_CI):
        if not line.startswith((*NOT_RUN, "cd ")):
            words = set(line.split())
            starts = {"run", "table", "noise", "launch"} & words and not {"--no-run", "--published"} & words
            yield pytest.param(line, marks=[pytest.mark.slow] if starts else [])


@pytest.mark.parametrize("block", list(blocks("python")))
def test_python_blocks(block, tmp_path):
    """A block that begins with a command of torchrun is run by that, the port chosen by the system."""
    command = [sys.executable, "-c", block]
    shutil.copy(ROOT / "docs" / "digit.png", tmp_path)
    if block.startswith("# torchrun "):
        words = shlex.split(block.splitlines()[0])
        (tmp_path / words[-1]).write_text(block, encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
        command += words[2:]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "digit.png" not in block or done.stdout.startswith("7, "), "the picture is of a seven"


@pytest.mark.parametrize("command", list(commands()))
def test_commands(command, tmp_path, monkeypatch):
    words = shlex.split(command)
    binary = Path(sys.executable).parent / Path(words[0]).name
    assert binary.exists(), f"{words[0]} is no command of this package"
    words += ["--out", str(tmp_path)] if {"run", "table", "noise", "recipes/train.py"} & set(words) else []
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
