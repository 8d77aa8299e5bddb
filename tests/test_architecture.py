"""docs/architecture.md against the imports: rooms, their order, the ways through them, and what the library needs."""

import ast
import re
import subprocess
from functools import cache
from importlib.metadata import requires
from itertools import pairwise
from pathlib import Path

import pytest
from environments import linked
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "clars"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROOMS = re.findall(r"^\| `([\w.]+)` \|", PAGE.partition("<!-- rooms -->")[2], re.M)
WAYS = [re.findall(r"^\d+\. `([\w/.]+)`", way.partition("\n\n")[0], re.M) for way in PAGE.split("<!-- way -->")[1:]]
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__").replace("__init__", ""): path
    for path in SOURCE.rglob("*.py")
}


@cache
def imported(module):
    """The modules of the package that a module imports, wherever in it; by name too, as the lab's doors do."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.fullmatch(r"clars(\.\w+)+", node.value)
        ):
            names = [node.value]
        inner = [name.removeprefix("clars.") for name in names if name.startswith("clars.")]
        found |= {name for name in inner if name in MODULES}
    return found


def room_of(module):
    return max((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), key=len, default=None)


def test_every_module_has_a_room():
    doors = {"", "lab"}  # the packages' own files, which hold nothing but names
    assert {module for module in MODULES if room_of(module) is None} == doors
    assert {room for room in ROOMS if not any(room_of(module) == room for module in MODULES)} == set()


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"", "lab"}))
def test_a_room_uses_those_above_it_alone(module):
    own = ROOMS.index(room_of(module))
    if module in ("extras", "models"):  # whose business it is to open the lab
        return
    for other in imported(module):
        if room_of(other) is not None:
            assert ROOMS.index(room_of(other)) <= own, f"{module} imports {other}"


def test_the_library_opens_the_lab_by_its_doors_alone():
    library = {module for module in MODULES if not f"{module}.".startswith("lab.")}
    opening = {module for module in library if any(f"{other}.".startswith("lab.") for other in imported(module))}
    assert opening == {"extras", "models"}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way[0])
def test_a_way_follows_the_imports(way):
    modules = [step.removesuffix(".py").replace("/", ".") for step in way]
    assert len(modules) > 2
    for one, other in pairwise(modules):
        assert other in reached(one), f"{one} does not lead to {other}"


def reached(module):
    """What a module imports, by way of files of its own room and of what packages offer."""
    found, left = set(), [module]
    while left:
        for other in imported(left.pop()) - found:
            found.add(other)
            if room_of(other) == room_of(module) or MODULES[other].name == "__init__.py":
                left.append(other)
    return found


DEVICES = re.compile(r"\.is_cuda\b|\.is_cpu\b|device\.type\s*[!=]=|\.is_compiling\(|torch\.cuda\.|torch\.accelerator\.")


def test_where_things_run_is_asked_in_one_room():
    library = [module for module in MODULES if not f"{module}.".startswith(("lab.", "native."))]
    texts = {module: MODULES[module].read_text(encoding="utf-8") for module in library}
    asking = [module for module, text in texts.items() if DEVICES.search(text.replace("where.is_compiling(", ""))]
    assert asking == []


def test_what_installing_the_library_brings():
    needed = [Requirement(each) for each in requires("clars")]
    assert {each.name for each in needed if each.marker is None} == {"torch", "filelock"}


BARE = """
import torch, clars
from torch import nn
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
optimizer = clars.CLARS(model, lr=1.0)
model(torch.randn(5, 3, 8, 8)).square().mean().backward()
optimizer.step()
assert optimizer.layer_stats()["0"].example_norm_sum > 0
clars.LARS(model, lr=1.0), clars.ExampleNorms(model), clars.oracle, clars.bind
assert len(clars.sharding.gather_weights(optimizer, model)) == 9  # parameters and buffers
for use in (lambda: clars.load("x"), lambda: clars.models):
    try:
        use()
    except ImportError as error:
        print(error)
"""


def test_in_an_environment_with_nothing_else(tmp_path):
    python = linked(tmp_path / "bare", "torch", "filelock")
    next((tmp_path / "bare").glob("lib/*/site-packages")).joinpath("clars").symlink_to(SOURCE)
    done = subprocess.run([python, "-c", BARE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    load, models = done.stdout.splitlines()
    assert re.fullmatch(r"clars\.load needs \w+, which is not installed\. .*pip install 'clars\[recipes\]'\.", load)
    assert models.startswith("clars.models needs timm")
    words = [python, "-c", "from clars.extras import command; command()"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "clars[recipes]" in done.stderr
