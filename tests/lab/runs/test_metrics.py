import json

import pytest

from clars.errors import UserError
from clars.lab.runs import metrics
from clars.lab.runs.metrics import Metrics, read_lines


def epochs(path):
    return [line["epoch"] for line in read_lines(path)]


def test_lines_are_appended_and_non_finite_numbers_are_null(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    metrics = Metrics(path)
    metrics.append({"epoch": 1, "train_loss": 0.5})
    metrics.append({"epoch": 2, "train_loss": float("nan")}, {"epoch": 3, "train_loss": float("inf")})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"epoch": n, "train_loss": loss} for n, loss in ((1, 0.5), (2, None), (3, None))]


def test_a_new_run_starts_empty(tmp_path):
    path = tmp_path / "metrics.jsonl"
    Metrics(path).append({"epoch": 1})
    Metrics(path)
    assert path.read_text() == ""


def test_resuming_cuts_later_lines(tmp_path):
    """Whole ones, and one that a crash has cut off, whatever is in it."""
    path = tmp_path / "metrics.jsonl"
    first = Metrics(path)
    first.append({"epoch": 1}, {"epoch": 2})
    mark = first.sync()
    first.append({"epoch": 3})
    with path.open("ab") as file:
        file.write(b'{"epoch": 4, "top\xff')
    assert epochs(path) == [1, 2, 3]
    resumed = Metrics(path, mark)
    assert epochs(path) == [1, 2]
    resumed.append({"epoch": 3, "again": 1})
    assert read_lines(path)[2] == {"epoch": 3, "again": 1}
    assert Metrics(path, resumed.sync()).sync() == resumed.sync()


@pytest.mark.parametrize(
    "left", [None, b"", b'{"epoch": 1}\n', b'{"epoch": 1}\n{"epoch": 3}\n', b"\0" * 26, b'{"epoch": 2}\n{"epoch": 1}\n']
)
def test_resuming_without_the_lines_that_were_there_is_refused(tmp_path, left):
    """Lines that a crash had taken went unnoticed, and a run finished without some of its epochs."""
    path = tmp_path / "metrics.jsonl"
    whole = Metrics(path)
    whole.append({"epoch": 1}, {"epoch": 2})
    path.unlink() if left is None else path.write_bytes(left)
    with pytest.raises(UserError, match=r"metrics\.jsonl: lines are missing or changed .* --overwrite"):
        Metrics(path, whole.sync() if path.exists() else metrics.Mark(26, "0" * 64))
    assert left is None or path.read_bytes() == left


def test_a_mark_is_of_what_is_on_disk(tmp_path, monkeypatch):
    synced = []
    written = Metrics(tmp_path / "metrics.jsonl")
    written.append({"epoch": 1})
    monkeypatch.setattr(metrics.os, "fsync", lambda file: synced.append(file.name))
    mark = written.sync()
    assert synced == [str(written.path)]
    assert mark.bytes == written.path.stat().st_size


def test_a_missing_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    "line, message",
    [
        (b"x", "Expecting value"),
        (b"[1]", "it holds no keys and values"),
        (b'{"a": 1, "a": 2}', "the key 'a' stands twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": 1e999}', "is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "has more than 64 bits"),
        (b'{"a": "\\ud800"}', "no text in UTF-8"),
        (b"\xef\xbb\xbf{}", "Expecting value|BOM"),
        (b"\x80", "no text in UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
    ],
)
def test_a_broken_file_is_named(tmp_path, line, message):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"epoch": 1}\n' + line + b"\n")
    with pytest.raises(UserError, match=rf"metrics\.jsonl: line 2 is not JSON as a run writes it: .*({message})"):
        read_lines(tmp_path / "metrics.jsonl")
