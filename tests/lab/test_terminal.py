"""What the commands print: no orders to a terminal, whatever a file says, and nothing that a terminal cannot show."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from demo import SMALL, TABLE, make_repository, write, write_run

from clars.lab import cli, terminal
from clars.lab.launching.progress import Count, Merged
from clars.lab.training.display import Display

ORDERS = r"\e]0;owned\a\e[31m\x9b5m\x7f\b\r\u202e\u2066"  # in YAML's own escapes
HOSTILE = "\x1b]0;owned\x07\x1b[31m\x9b5m\x7f\x08\u202e\u2066"
COMMANDS = [
    ["recipes"],
    ["recipes", "--write"],
    ["show", "demo/small"],
    ["show", "demo/small", f"description={HOSTILE}"],
    ["show", HOSTILE],
    ["run", HOSTILE],
    ["run", "demo/small", "--launch", HOSTILE],
    ["table", "demo", "--no-run", "--out", f"runs{HOSTILE}"],
    ["table", "demo", "--no-run"],
    ["table", "demo", "--no-run", "--tier", HOSTILE],
    ["table", "demo", "--rows", HOSTILE],
    ["tune", "demo", "--tier", HOSTILE],
    ["doctor"],
]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return make_repository(tmp_path, monkeypatch)


@pytest.fixture
def answer(capsys):
    """Run a command line; return all that it printed."""

    def run(*words):
        with pytest.raises(SystemExit) as end:
            cli.main(list(words))
        assert end.value.code in (0, 2, None)
        return "".join(capsys.readouterr())

    return run


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words).encode("unicode_escape").decode())
def test_what_a_file_says_is_shown_and_not_obeyed(repository, answer, words):
    """Escape codes of descriptions, labels and records reached the terminal, and could clear it or write into it."""
    hostile = f'"{ORDERS}'
    write(
        repository / "recipes",
        small=SMALL.replace("description: Nesterov SGD", f'description: {hostile} Nesterov SGD"\n#'),
        table=TABLE.replace("label: CLARS", f'label: {hostile} CLARS"').replace("A claim.", f'{hostile} claim."'),
    )
    write_run(Path("runs/demo"), "large", 0, device=f"cpu: {HOSTILE}", versions={HOSTILE: HOSTILE})
    shown = answer(*words)
    assert shown.replace("\n", "").isprintable(), shown
    for made in (*repository.rglob("*.md"), *repository.rglob("*.csv")):
        assert "\x1b" not in made.read_text() or made.suffix == ".csv"


def test_brackets_and_colons_are_no_markup(repository, answer):
    """A label with [/] in it ended in a traceback, and [red] was not shown."""
    write(repository / "recipes", table=TABLE.replace("label: CLARS", 'label: "[/] [red]CLARS[/red] :smile:"'))
    assert "[/] [red]CLARS[/red] :smile:" in answer("table", "demo", "--no-run")


def test_progress_is_shown_and_not_obeyed(capsys):
    merged = Merged(Count(1))
    merged(f"[1/1, 0:10] {HOSTILE}[/] done")
    merged(f"a\tb {HOSTILE}")
    with Display(1, shown=True) as display:
        display.begin(f"{HOSTILE}[/]")
        display.end(f"{HOSTILE}[/]", HOSTILE)
        display.tell(HOSTILE)
    shown = capsys.readouterr().err
    assert shown.count(r"owned\x07\x1b[31m\x9b5m") == 5 and "[/]" in shown
    assert shown.replace("\n", "").isprintable()


def test_a_warning_is_shown_and_not_obeyed(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", terminal._warnings_once())
    for _ in range(2):
        warnings.showwarning(f"x {HOSTILE}", UserWarning, cli.__file__, 1)
    shown = capsys.readouterr().err
    assert shown.startswith("warning: x \\x1b]0;owned") and shown.count("\n") == 1 and shown.strip().isprintable()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
@pytest.mark.parametrize("words", [["recipes"], ["show", "demo/small"], ["table", "demo", "--no-run"]])
def test_any_terminal_has_an_answer(repository, stream, encoding, words):
    """Under LC_ALL=C a table ended in a UnicodeEncodeError, by its ± and its lines."""
    write(repository / "recipes", small=SMALL.replace("Nesterov SGD", "Größe → 日本 ±"))
    for seed in (0, 1):
        write_run(Path("runs/demo"), "large", seed)
    content, _ = stream("stdout", encoding), stream("stderr", encoding)
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    sys.stdout.flush()
    assert not end.value.code
    shown = content.getvalue().decode(encoding)
    assert "?" in shown or encoding != "ascii" or words[0] == "show"
    assert len(shown) > 80


PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


def test_a_process_without_a_locale_has_one_too(repository):
    write(repository / "recipes", small=SMALL.replace("Nesterov SGD", "Größe → 日本"))
    code = "from clars.lab.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "recipes"], capture_output=True, env=os.environ | PLAIN)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Gr??e ? ?? at the base batch" in done.stdout


def test_training_has_one_too(repository, stream):
    from clars.lab.training import script

    write(repository / "recipes", über=SMALL.replace("batch_size: 64\nepochs: 3", "batch_size: 512\nepochs: 1"))
    content = stream("stderr", "ascii")
    assert script.main(["demo/über", "--out", "größe"]) == 0
    assert b"demo/?ber@v1 seed 0: finished" in content.getvalue()
