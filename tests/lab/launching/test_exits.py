import signal

import pytest

from clars.errors import DataError, printable, quoted
from clars.lab.launching import exits


def fail(error):
    raise error


@pytest.fixture(autouse=True)
def outside_of_a_launch(monkeypatch):
    monkeypatch.delenv(exits.FILE, raising=False)


@pytest.mark.parametrize("value, code", [(None, 0), (0, 0), (3, 3)])
def test_the_code_of_the_function(value, code):
    assert exits.guard(lambda: value) == code


@pytest.mark.parametrize(
    "error, message",
    [
        (DataError("no such data"), "error: no such data\n"),
        (PermissionError(13, "Permission denied", "/a/b"), "error: /a/b: Permission denied.\n"),
        (OSError("odd"), "error: odd.\n"),
    ],
)
def test_mistakes_are_one_message(capsys, error, message):
    assert exits.guard(lambda: fail(error)) == 2
    assert capsys.readouterr().err == message


HOSTILE = "\x1b]0;owned\x07 \x9b31m \r \t \x7f \u202e \u2028 \ud800 \x00"
SHOWN = r"\x1b]0;owned\x07 \x9b31m \r \t \x7f \u202e \u2028 \ud800 \x00"


@pytest.mark.parametrize("error", [DataError(f"{HOSTILE}\nremedy"), OSError(2, "remedy", f"{HOSTILE}\n")])
def test_a_message_gives_the_terminal_no_orders(capsys, error):
    """Escape codes that stood in a file that somebody else wrote reached the terminal as they were."""
    assert exits.guard(lambda: fail(error)) == 2
    shown = capsys.readouterr().err
    assert SHOWN in shown and "\n" in shown.strip() and shown.replace("\n", "").isprintable()


def test_a_message_is_not_as_long_as_the_file_that_it_quotes(capsys):
    """A message that repeated a value of 8 MB filled the terminal with it; where it stood and what to do was gone."""
    exits.guard(lambda: fail(DataError(f"x.json: {'y' * 8_000_000} is no number. Correct it.")))
    shown = capsys.readouterr().err
    assert len(shown) < 10_000
    assert shown.startswith("error: x.json: yyy") and shown.endswith("yyy is no number. Correct it.\n")


def test_what_is_shown_of_a_value():
    assert printable("größer → 10 °\nsecond") == "größer → 10 °\nsecond"
    assert quoted("a\x1b[1m") == r"'a\x1b[1m'" and quoted(["\u202e"]) == r"['\u202e']"
    assert len(quoted("x" * 10**6)) < 200 and quoted(10**3) == "1000"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        exits.guard(lambda: 1 / 0)


def test_ctrl_c(capsys):
    assert exits.guard(lambda: fail(KeyboardInterrupt())) == 130


def test_ctrl_c_works_again_below_our_launcher(monkeypatch, tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    monkeypatch.setenv(exits.FILE, str(tmp_path / "code"))
    try:
        assert exits.guard(lambda: signal.raise_signal(signal.SIGINT)) == 130
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("code", [0, 2, 3, 130])
def test_without_our_launcher_the_code_is_the_process_code(code):
    assert exits.report(code) == code


@pytest.mark.parametrize("code, own", [(0, 0), (2, 2), (3, 0), (130, 130)])
def test_our_launcher_learns_the_code(monkeypatch, tmp_path, code, own):
    monkeypatch.setenv(exits.FILE, str(tmp_path / "code"))
    assert exits.report(code) == own
    assert exits.reported(tmp_path / "code", otherwise=0) == code


def test_of_several_processes_the_first_that_fails_has_the_cause(monkeypatch, tmp_path):
    monkeypatch.setenv(exits.FILE, str(tmp_path / "code"))
    for code in (0, 2, 1, 130):
        exits.report(code)
    assert exits.reported(tmp_path / "code", otherwise=9) == 2


def test_a_second_signal_does_not_disturb_the_end():
    """A terminal and a launcher send one each; the second used to interrupt what the first had begun."""
    saved = []

    def work():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            signal.raise_signal(signal.SIGTERM)
            saved.append(True)
            raise

    assert exits.guard(work) == 130 and saved


def test_a_process_that_died_has_the_launchers_code(tmp_path):
    assert exits.reported(tmp_path / "code", otherwise=9) == 9
