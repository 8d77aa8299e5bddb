import json

import pytest

from clars.errors import UserError
from clars.results.metrics import Metrics, read_lines


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
    path = tmp_path / "metrics.jsonl"
    Metrics(path).append(*({"epoch": epoch} for epoch in (1, 2, 3, 4)))
    resumed = Metrics(path, resume_at=2)
    assert epochs(path) == [1, 2]
    resumed.append({"epoch": 3})
    assert epochs(path) == [1, 2, 3]


def test_resuming_by_step_keeps_every_layer_of_a_step(tmp_path):
    path = tmp_path / "layers.jsonl"
    lines = [{"step": step, "layer": layer} for step in (10, 20, 30) for layer in ("stem", "head")]
    Metrics(path, key="step").append(*lines)
    Metrics(path, key="step", resume_at=20)
    assert read_lines(path) == lines[:4]


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n{"epoch": 2, "top')
    assert epochs(path) == [1]
    Metrics(path, resume_at=5).append({"epoch": 2})
    assert epochs(path) == [1, 2]


def test_a_missing_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "none.jsonl") == []


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("x\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: holds a line that is not JSON"):
        read_lines(tmp_path / "metrics.jsonl")
