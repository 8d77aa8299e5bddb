"""`clars noise`: what it trains, what it reads, and what it shows."""

import json
from pathlib import Path

import pytest
from matplotlib import image

from clars.lab import cli
from clars.lab.training import script

WORDS = ["model.name=fcn5", "model.arguments.width=16", "optimizer.name=sgd", "schedule.base_rate=0.01", "epochs=3"]
FOLDER = Path("runs/changed/tiny/small/seed0")


@pytest.fixture
def clars(capsys):
    """Run a command line; return its exit code, what it printed, and its messages."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in arguments])
        return end.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def launched(launches):
    """The arguments of each launch, which trains in this process."""
    calls = []

    def train(arguments, config):
        calls.append(arguments)
        return script.main(arguments)

    launches(train)
    return calls


def test_a_run_is_trained_and_then_read(clars, launched, recipe):
    path = recipe()
    code, out, _ = clars("noise", path, *WORDS, "--launch", "cpu", "--figure", "there/noise.PNG")
    assert code == 0 and launched[0][-2:] == ["--noise-scale", "0"]
    lines = [json.loads(line) for line in (FOLDER / "noise.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 16))
    rows = [words for words in map(str.split, out.splitlines()) if len(words) == 3 and words[2] == "256"]
    assert [int(row[0]) for row in rows] == [1, 3, 4, 6, 7, 9, 10, 12, 13, 15]
    assert float(rows[-1][1].replace(",", "")) == pytest.approx(lines[-1]["noise_scale"], rel=1e-3)
    for picture in (FOLDER / "noise.png", Path("there/noise.PNG")):
        assert f"wrote {picture}" in out and image.imread(picture).shape[1] == 1200
    again = clars("noise", path, *WORDS)
    assert again[0] == 0 and "is there, and is read" in again[1] and len(launched) == 1
    assert [line for line in again[1].splitlines() if " 256 " in line] == [
        line for line in out.splitlines() if " 256 " in line
    ]


def test_a_run_without_it_is_not_trained_anew_unasked(clars, launched, recipe):
    path = recipe()
    assert script.main([str(path), *WORDS]) == 0
    before = (FOLDER / "run.json").read_bytes()
    code, _, err = clars("noise", path, *WORDS)
    err = err.partition("\n")[2]  # after the line of the run
    assert (code, launched, (FOLDER / "run.json").read_bytes()) == (2, [], before)
    assert err.startswith(f"error: {FOLDER} has no noise.jsonl") and "--overwrite" in err and "another --out" in err
    assert clars("noise", path, *WORDS, "--out", "there", "--launch", "cpu")[0] == 0
    assert clars("noise", path, *WORDS, "--overwrite", "--launch", "cpu")[0] == 0
    assert (FOLDER / "noise.jsonl").exists() and Path("there/small/seed0/noise.jsonl").exists()


def test_a_run_that_diverges_is_drawn_and_told_by_the_code(clars, launched, recipe):
    words = [*WORDS, "schedule.base_rate=1e30"]
    words.remove("schedule.base_rate=0.01")
    code, out, _ = clars("noise", recipe(), *words, "--launch", "cpu")
    assert code == 3 and "wrote" in out
    assert clars("noise", Path("recipes/tiny/v1/small.yaml"), *words)[0] == 0


@pytest.mark.parametrize("code", [1, 2, 130])
def test_a_launch_that_fails_ends_it(clars, launches, recipe, code):
    launches(lambda *_: code)
    found, out, err = clars("noise", recipe(), "--launch", "cpu")
    assert (found, err) == (code, "") and "wrote" not in out


@pytest.mark.parametrize(
    "words, message",
    [
        (["--figure", "x.pdf"], "x.pdf is no .png file"),
        (["--seed", "-1"], "Invalid value for '--seed'"),
        (["epochs=0"], "epochs = 0 must be greater than 0"),
        (["--launch", "cpux"], "--launch cpux: not in"),
    ],
)
def test_mistakes_are_one_message(clars, launched, recipe, words, message):
    code, out, err = clars("noise", recipe(), *words)
    assert (code, out, launched) == (2, "", []) and message in err and "Traceback" not in err
