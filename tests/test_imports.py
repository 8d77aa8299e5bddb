"""What is imported when: the library's names at their first use, and next to nothing for help and mistakes."""

import resource
import subprocess
import sys
from importlib.metadata import version

import pytest
from demo import make_repository

import clars

BOUND = 0.5  # seconds of processor time
COMMAND = "import sys; from clars.lab.cli import main; main(sys.argv[1:])"
HEAVY = ("torch", "timm", "torchvision", "accelerate", "datasets", "numpy", "matplotlib", "pydantic", "typer")


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    root = make_repository(tmp_path, monkeypatch)
    (root / "configs" / "accelerate").mkdir(parents=True)
    (root / "configs" / "accelerate" / "cpu.yaml").write_text("distributed_type: 'NO'\n")


def seconds(code, *words):
    """The least processor time that the code takes, of several tries if need be, and what it printed."""
    least = float("inf")
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        least = min(least, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if least < BOUND:
            break
    return least, done.stdout + done.stderr


@pytest.fixture(scope="module")
def bound():
    """The time an answer may take; more on a machine on which the libraries that read words and recipes take long."""
    return max(BOUND, 4 * seconds("import typer, pydantic, yaml")[0])


@pytest.mark.parametrize(
    "words, answer",
    [
        (["--help"], "Large-batch training"),
        ([], "Large-batch training"),
        (["run", "--help"], "Train a recipe"),
        (["checkpoints", "--help"], "pull"),
        (["rnu"], "No such command 'rnu'"),
        (["run", "demo/smal"], "'demo/smal' is no recipe"),
        (["show", "demo/small", "optimizer.momentm=0"], "optimizer.momentm is not a known key"),
        (["run", "demo/small", "epochs=many"], "epochs = 'many' must be a valid integer"),
        (["run", "demo/small", "--launch", "cpux"], "Did you mean 'cpu'"),
        (["run", "demo/small", "--seed", "-1"], "Invalid value for '--seed'"),
        (["noise", "demo/smal"], "'demo/smal' is no recipe"),
        (["table", "dmeo"], "'dmeo' is no recipe folder"),
        (["table", "demo", "--tier", "ful"], "has no tier 'ful'"),
        (["table", "demo", "--launch", "cpux"], "--launch cpux: not in"),
        (["tune", "dmeo"], "'dmeo' is no recipe folder"),
        (["tune", "demo/smal", "--rates", "1"], "'demo/smal' is no recipe"),
    ],
    ids=str,
)
def test_help_and_mistakes_are_answered_at_once(bound, words, answer):
    """They took four seconds of the processor: torch, timm and torchvision were imported first."""
    taken, shown = seconds(COMMAND, *words)
    assert answer in shown
    assert taken < bound


def test_the_package_is_imported_without_what_it_brings():
    code = f"import sys, clars; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


NAMES = [*clars.__all__, "__version__", "models", "norms"]
USES = f"""
from clars import {", ".join(NAMES)}
import clars.layers, clars.models, clars.norms, clars.optim
import clars
for name in {NAMES}:
    assert getattr(clars, name) is globals()[name], name
assert type(clars.layers).__name__ == "function"
import timm
print(timm.is_model("resnet8"), clars.__version__, oracle.__name__)
"""


def test_every_name_is_there_at_its_first_use():
    """Also `layers`, a function and a module: to import the module puts it in the place of what a package calls so."""
    done = subprocess.run([sys.executable, "-c", USES], capture_output=True, text=True)
    assert done.stdout == f"True {version('clars')} clars.norms.oracle\n", done.stderr
    assert set(clars.__all__) | {"__version__"} <= set(dir(clars))


def test_a_name_that_is_none():
    with pytest.raises(AttributeError, match="module 'clars' has no attribute 'SGD'"):
        _ = clars.SGD
