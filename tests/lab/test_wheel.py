"""The wheel, installed in an environment without the clone: everything that the command line promises is in it."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from environments import linked
from packaging.requirements import Requirement

pytestmark = pytest.mark.slow  # continuous integration runs it by itself
ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "recipes", "configs", "checkpoints")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name)
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(source / "dist"), str(source))
    (found,) = (source / "dist").glob("clars-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with nothing in it, and a function that calls the installed command there."""
    root = tmp_path_factory.mktemp("installed")
    marked = [Requirement(text) for text in requires("clars")]
    lab = [each for each in marked if each.marker is None or each.marker.evaluate({"extra": "recipes"})]
    python = linked(root / "environment", *(str(each).partition(";")[0] for each in lab))
    pip("--python", python, "install", "--no-deps", str(wheel))
    empty = root / "empty"
    empty.mkdir()
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CLARS_RECIPES")}

    def clars(*words, code=0, program="clars"):
        line = [str(Path(python).with_name(program)), *words]
        done = subprocess.run(line, cwd=empty, env=own | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    clars.folder = empty
    return clars


def pip(*words):
    done = subprocess.run([sys.executable, "-m", "pip", "--quiet", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_in_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    shipped = "clars/lab/shipped"
    for name in ("recipes/train.py", "recipes/quickstart/v1/table.yaml", "configs/accelerate/cpu.yaml"):
        assert f"{shipped}/{name}" in names
    assert f"{shipped}/checkpoints/manifest.json" in names
    assert f"{shipped}/recipes/quickstart/results/v2/lite/search.json" in names  # the rates that its rows take
    assert not [name for name in names if re.search(r"/seed\d+\.", name)]
    assert any(name.startswith("clars/native/kernels/") and name.endswith(".cpp") for name in names)
    assert not [
        name
        for name in names
        if name.endswith((".png", ".layers.json", ".pyc")) or name.startswith(("tests", "recipes"))
    ]
    assert wheel.stat().st_size < 5e6


def test_recipes_are_listed_copied_and_run(installed):
    assert "quickstart/clars-512" in installed("recipes")
    assert "wrote clars-512.yaml" in installed("recipes", "copy", "quickstart/clars-512")
    assert "is there already" in installed("recipes", "copy", "quickstart/clars-512", code=2)
    assert "Copy one of them: quickstart/" in installed("recipes", "copy", "quickstart", code=2)
    mine = re.sub(r"^epochs: \d+", "epochs: 1", (installed.folder / "clars-512.yaml").read_text(), flags=re.M)
    (installed.folder / "my.yaml").write_text(mine)
    assert "finished" in installed("run", "my.yaml")
    assert "finished" in installed("run", "quickstart/clars-512", "epochs=1", "--seed", "1")
    records = {str(path.relative_to(installed.folder)) for path in installed.folder.rglob("run.json")}
    assert "runs/changed/quickstart/clars-512/seed1/run.json" in records and len(records) == 2


def test_a_table_is_made_and_not_published_into_the_package(installed):
    shown = installed("table", "quickstart", "--rows", "clars-512", "--seeds", "0")
    assert "wrote runs/quickstart/table.md" in shown
    assert re.search(
        r"\| CLARS, linear \| 512 .*\| 1 \| 0 \|", (installed.folder / "runs/quickstart/table.md").read_text()
    )
    refused = installed("table", "quickstart", "--no-run", "--publish", code=2)
    assert "belongs to the installed package" in refused


def test_checkpoints_and_doctor(installed):
    assert "digits-resnet8-clars" in installed("checkpoints", "list")
    load = "import clars, torch; print(clars.load('digits-resnet8-clars')(torch.zeros(1, 1, 8, 8)).shape)"
    assert "torch.Size([1, 10])" in installed("-c", load, program="python")
    assert "quickstart/clars-512" in installed("doctor")
