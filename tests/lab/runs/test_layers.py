import json

import pytest
from demo import seal, write_run

from clars.errors import UserError
from clars.lab import runs
from clars.lab.runs import compact, layers
from clars.lab.runs.metrics import Metrics


def line(step, layer, **changes):
    values = {"weight_norm": 10.0, "gradient_norm": 1.0, "ratio": 0.1, "example_norm_sum": 4.0}
    return {"step": step, "layer": layer, **values, "variance_factor": 12345.6, "noise_scale": None} | changes


@pytest.fixture
def folder(demo):
    """A run with statistics of two layers, of which the head is frozen at first."""
    folder = write_run(demo / "runs", "large", 0)
    return put(folder, line(5, "stem"), line(10, "stem"), line(10, "head", gradient_norm=3.0))


def put(folder, *lines):
    """Give a run these lines."""
    Metrics(folder / "layers.jsonl").append(*lines)
    seal(folder)
    return folder


def test_columns_have_a_row_for_each_step_and_nothing_where_nothing_was_measured(folder):
    history = layers.read(runs.read_folder(folder))
    assert (history.steps, history.layers) == ([5, 10], ["stem", "head"])
    assert history.columns["gradient_norm"] == [[1.0, None], [1.0, 3.0]]
    assert history.columns["noise_scale"] == [[None, None], [None, None]]


def test_the_ratio_of_the_rates(folder):
    """(S + l w) / (g + l w) with S = 4, w = 10."""
    ratio = layers.read(runs.read_folder(folder)).rate_ratio(0.1)
    assert ratio == [[5 / 2, None], [5 / 2, 5 / 4]]


def test_published_statistics_are_one_line_of_four_digits(folder, demo):
    run = runs.read_folder(folder)
    path = compact.write(run, demo / "results", "large")
    layers.write_compact(run, path)
    published = path.with_name("seed0.layers.json")
    assert published.read_text().count("\n") == 1
    assert json.loads(published.read_text())["columns"]["variance_factor"][0] == [12350.0, None]
    (again,) = runs.read(demo / "results", "large")
    assert layers.read(again).steps == [5, 10]


def test_a_method_without_norms_of_examples_has_no_statistics(folder):
    (folder / "layers.jsonl").unlink()
    seal(folder)
    assert layers.read(runs.read_folder(folder)) is None
    put(folder, line(5, "stem", example_norm_sum=None))
    assert layers.read(runs.read_folder(folder)) is None


@pytest.mark.parametrize(
    "lines, message",
    [
        ([{"step": 1}], "line 1 is of step 1 and layer None"),
        ([line(5, "stem", noise_scale="large")], "line 1 has no numbers under weight_norm"),
        ([{"step": 5, "layer": "stem"}], "line 1 has no numbers"),
        ([line(5, "stem"), line(5, "stem")], "layer 'stem' stands twice at step 5"),
        ([line(5, "stem"), line(5, "head"), line(10, "stem")], "layer 'head' is missing at step 10"),
        ([line(5, "stem"), line(15, "stem")], "step 15 follows where step 10 should"),
        ([line(-5, "stem")], "line 1 is of step -5"),
    ],
)
def test_lines_with_holes_or_without_numbers_are_told(folder, lines, message):
    """Such lines gave a figure with gaps, or ended in a traceback, also where the digest was that of the file."""
    put(folder, *lines)
    with pytest.raises(UserError, match=rf"layers\.jsonl holds no statistics of layers: {message}"):
        layers.read(runs.read_folder(folder))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\n", b"\0" * 512 + b"\n", b"[]\n", b"[" * 100_000 + b"\n"])
def test_lines_that_are_none_are_told(folder, content):
    """Bytes that are no text, as a file has them where a power failure left a hole, ended in a traceback."""
    with (folder / "layers.jsonl").open("ab") as file:
        file.write(content)
    seal(folder)
    with pytest.raises(UserError, match=r"layers\.jsonl: line 4 is not JSON as a run writes it"):
        layers.read(runs.read_folder(folder))


def test_a_file_that_is_not_the_runs_is_told(folder):
    """Lines that were lost, or added by hand, went unnoticed."""
    path = folder / "layers.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"layers\.jsonl has changed since the run ended"):
        layers.read(runs.read_folder(folder))
    path.unlink()
    with pytest.raises(UserError, match=r"layers\.jsonl is gone"):
        layers.read(runs.read_folder(folder))


@pytest.mark.parametrize(
    "old, new, message",
    [
        (b"12350.0", b"12340.0", "was changed, as its own digest tells"),
        (b'"steps":[5,10]', b'"steps":[5]', "its columns are not of one shape"),
        (b'"layers"', b'"lagers"', "layers: Field required"),
        (b'{"steps"', b"\xff", "it is no text in UTF-8"),
        (b'{"steps"', b'[{"steps"', "Expecting"),
        (b"12350.0", b"NaN", "NaN is no number of JSON"),
    ],
)
def test_published_statistics_that_were_changed_are_told(folder, demo, old, new, message):
    run = runs.read_folder(folder)
    record = compact.write(run, demo / "results", "large")
    layers.write_compact(run, record)
    path = record.with_name("seed0.layers.json")
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    (again,) = runs.read(demo / "results", "large")
    with pytest.raises(UserError, match=rf"seed0\.layers\.json .*{message}"):
        layers.read(again)
