import pytest

from clars.lab.launching import progress
from clars.lab.launching.progress import Count, Merged, clock


@pytest.fixture
def time(monkeypatch):
    """A clock that goes on by 60 s between two looks."""
    seen = iter(range(0, 6000, 60))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seen))


def test_what_is_left_follows_from_what_was_run_here(time):
    count = Count(3, done=7)
    assert [count.next() for _ in range(3)] == ["[8/10, 1:00, 2:00 left]", "[9/10, 2:00, 1:00 left]", "[10/10, 3:00]"]


def test_lines_of_several_launches_are_counted_as_one_and_told_once(time, capsys):
    merged = Merged(Count(3))
    for line in ("[1/2, 0:10, 0:10 left] a: done", "warning: x", "[1/1, 0:12] b: done", "warning: x", ""):
        merged(line)
    assert capsys.readouterr().err.splitlines() == [
        "[1/3, 1:00, 2:00 left] a: done",
        "warning: x",
        "[2/3, 2:00, 1:00 left] b: done",
    ]


@pytest.mark.parametrize("seconds, text", [(0.4, "0:00"), (61, "1:01"), (3723, "1:02:03")])
def test_clock(seconds, text):
    assert clock(seconds) == text
