"""Where compiled kernels come from: a cache that is damaged, or not ours, and compilers that are odd."""

import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from clars.native import build, compiler

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernels are made for Linux")

GOOD = "what was compiled"
LAST = 'for last; do :; done; printf "%s" "{content}" > "$last"'  # each command ends with the file to write


def script(path, *lines):
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty cache, a compiler that takes no time, and a loader that tells what it was given in `place.loaded`."""
    if build.load().text.startswith(("not made for", "this build of torch")):
        pytest.skip(build.load().text)
    (tmp_path / "my tools").mkdir()
    cxx = script(tmp_path / "my tools" / "cxx", "echo 'note: nothing is wrong' >&2", LAST.format(content=GOOD))
    monkeypatch.setenv("CXX", f"'{cxx}'")
    monkeypatch.setenv("CLARS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(build.SWITCH, raising=False)
    given = []
    monkeypatch.setattr(torch.ops, "load_library", lambda path: given.append(Path(path).read_text()))
    yield given
    build.load.cache_clear()


def load():
    """Load them as a new process would."""
    build.load.cache_clear()
    return build.load()


def kept():
    """The library in the cache."""
    (library,) = Path(os.environ["CLARS_CACHE"], "kernels").glob("*.so")
    return library


def test_they_are_compiled_once(place, capsys):
    assert load().loaded and load().loaded and place == [GOOD, GOOD]
    assert capsys.readouterr().err.count("compiling") == 1
    assert stat.S_IMODE(kept().stat().st_mode) == 0o755


def linked(library):
    library.rename(library.with_name("elsewhere"))
    library.symlink_to(library.with_name("elsewhere"))


DAMAGE = {
    "cut off": lambda library: os.truncate(library, 4),
    "nothing left": lambda library: os.truncate(library, 0),
    "another byte": lambda library: library.write_text(GOOD.replace("w", "W")),
    "something after it": lambda library: library.write_text(GOOD + "x"),
    "no digest": lambda library: library.with_suffix(".sha256").unlink(),
    "no digest in it": lambda library: library.with_suffix(".sha256").write_bytes(b"\xff\n"),
    "a folder for a digest": lambda library: (
        library.with_suffix(".sha256").unlink(),
        library.with_suffix(".sha256").symlink_to(library.parent),
    ),
    "a link": linked,
    "others may write it": lambda library: library.chmod(0o777),
    "its group may write it": lambda library: library.chmod(0o775),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_not_as_it_was_compiled_is_compiled_again(place, damage):
    """A library that was cut off or put there by others was loaded: SIGBUS, SIGSEGV, or their code; an empty one
    was never compiled again."""
    assert load().loaded
    damage(kept())
    with pytest.warns(UserWarning, match="is not what this user compiled.* It is made again"):
        assert load().loaded
    assert load().loaded and place == [GOOD] * 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("what", ["library", "digest", "folder"])
def test_what_belongs_to_another_user_is_not_loaded(place, what):
    load()
    others = {"library": kept(), "digest": kept().with_suffix(".sha256"), "folder": kept().parent}[what]
    kept().write_text("their code")
    os.chown(others, 12345, -1)
    if what == "folder":
        assert "belongs to another user" in load().text
    else:
        with pytest.warns(UserWarning, match="made again"):
            assert load().loaded
    assert "their code" not in place


def test_a_folder_that_others_can_write(place):
    """Anyone of the machine could put a library there."""
    load()
    kept().parent.chmod(0o777)
    state = load()
    assert not state.loaded and "could put any code there: set CLARS_CACHE" in state.text and place == [GOOD]


@pytest.mark.parametrize("where", ["/proc/clars", "/dev/null", "a\0b"])
def test_no_place_for_a_cache(place, monkeypatch, where):
    if "\0" in where:
        monkeypatch.setattr("clars.native.build.folder", lambda name: Path(where, name))
    else:
        monkeypatch.setenv("CLARS_CACHE", where)
    state = load()
    assert not state.loaded and state.text.startswith("could not be compiled or loaded: ") and not place


def test_no_home(place, monkeypatch):
    """It raised RuntimeError, though the kernels are optional."""

    def home():
        raise RuntimeError("Could not determine home directory.")

    for variable in ("CLARS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", home)
    assert load().text.endswith("There is no home folder to keep kernels in. Set CLARS_CACHE to a folder.")


@pytest.mark.parametrize("words", ["{tool} {cxx}", "'{cxx}' -g", " {tool}  {cxx} -O0 ", ""])
def test_a_compiler_with_words_before_and_after(place, tmp_path, monkeypatch, words):
    """`CXX="ccache g++"` was looked for as one program of that name."""
    script(tmp_path / "cxx", LAST.format(content=GOOD))
    script(tmp_path / "g++", LAST.format(content=GOOD))
    script(tmp_path / "tool", '[ "$1" = cxx ] || exit 3; "$@"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CXX", words.format(tool="tool", cxx="cxx"))
    state = load()
    assert state.loaded, state.text


@pytest.mark.parametrize("cxx", ["no-such-compiler", "no-such-compiler -g", "'g++", "''"])
def test_what_is_no_compiler(place, monkeypatch, cxx):
    monkeypatch.setenv("CXX", cxx)
    state = load()
    assert not state.loaded and ("no C++ compiler" in state.text or "is no command" in state.text)


def test_a_library_that_is_there_needs_no_compiler(place, monkeypatch):
    load()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert load().loaded


def left_over():
    return [path for path in Path(os.environ["CLARS_CACHE"]).rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_compiler_that_hangs(place, tmp_path, monkeypatch):
    """It was waited for without end, and what a wrapper had started went on."""
    note = tmp_path / "started"
    cxx = script(tmp_path / "cxx", f"sleep 60 & echo $! >> {note}", "wait")
    monkeypatch.setenv("CXX", str(cxx))
    monkeypatch.setattr(compiler, "LONGEST", 1)
    state = load()
    assert not state.loaded and "did not end within 1 seconds" in state.text and not left_over()
    assert [number for number in note.read_text().split() if is_running(number)] == []


def test_one_command_that_fails_ends_the_others(place, tmp_path, monkeypatch):
    """They went on in a folder that was gone by then."""
    note = tmp_path / "started"
    cxx = script(
        tmp_path / "cxx",
        'case "$*" in *normalisation.cpp*) echo "x.h:1: error: \033[1mbroken" >&2; exit 1;; esac',
        f"echo $$ >> {note}; exec sleep 60",
    )
    monkeypatch.setenv("CXX", str(cxx))
    state = load()
    assert not state.loaded and r"error: \x1b[1mbroken" in state.text and not left_over()
    assert not note.exists() or [number for number in note.read_text().split() if is_running(number)] == []


def is_running(number):
    for _ in range(100):
        try:
            if Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
        except OSError:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("error", [OSError("cannot map"), RuntimeError("registered twice")])
def test_a_library_that_cannot_be_loaded(place, monkeypatch, error):
    def refuse(path):
        raise error

    monkeypatch.setattr(torch.ops, "load_library", refuse)
    assert load() == build.State(False, f"could not be compiled or loaded: {error}")


@pytest.mark.slow
def test_a_library_that_is_cut_off_kills_no_process(tmp_path):
    """The loader maps a library; where the file ends before what is mapped, reading it is SIGBUS."""
    state = build.load()
    if not state.loaded:
        pytest.skip(state.text)
    shutil.copytree(Path(state.text).parent, tmp_path / "kernels")
    os.truncate(tmp_path / "kernels" / Path(state.text).name, 100_000)
    done = subprocess.run(
        [sys.executable, "-c", "from clars.native import load; print(load().text)"],
        env=os.environ | {"CLARS_CACHE": str(tmp_path), "CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "no C++ compiler" in done.stdout
