"""Where the cache lies, by what the environment says and does not say."""

from pathlib import Path

import pytest

from clars import cache
from clars.errors import UserError


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for variable in (cache.VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", "/home/me")


@pytest.mark.parametrize("variables, expected", [
    ({}, "/home/me/.cache/clars/x"),
    ({"XDG_CACHE_HOME": "/var/cache"}, "/var/cache/clars/x"),
    ({"XDG_CACHE_HOME": "cache"}, "/home/me/.cache/clars/x"),
    ({"XDG_CACHE_HOME": ""}, "/home/me/.cache/clars/x"),
    ({"XDG_CACHE_HOME": "/var/cache", "CLARS_CACHE": "/scratch"}, "/scratch/x"),
    ({"CLARS_CACHE": "~/scratch"}, "/home/me/scratch/x"),
    ({"CLARS_CACHE": ""}, "/home/me/.cache/clars/x"),
])  # fmt: skip
def test_where_it_lies(monkeypatch, variables, expected):
    """A relative XDG_CACHE_HOME was taken, which would be another folder wherever one stands."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache.folder("x") == Path(expected)


@pytest.mark.parametrize("variables", [{}, {cache.VARIABLE: "~no-such-user/x"}])
def test_nobody_s_home(monkeypatch, variables):
    """It was a traceback of RuntimeError."""

    def nobody(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nobody)
    monkeypatch.setattr(Path, "home", lambda: nobody(None))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="Set CLARS_CACHE to a folder"):
        cache.folder("x")
