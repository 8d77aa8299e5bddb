import json

import pytest
from demo import write_run

from clars.errors import UserError
from clars.lab import runs
from clars.lab.runs import compact


def test_both_forms_read_alike(demo, tmp_path):
    for seed in (10, 2):
        write_run(tmp_path / "runs", "large", seed, top1=80.0 + seed)
    own = runs.read(tmp_path / "runs", "large")
    for run in own:
        compact.write(run, tmp_path / "results", "large")
    published = runs.read(tmp_path / "results", "large")
    assert [run.record.seed for run in own] == [2, 10]
    assert [(run.record, run.metrics) for run in published] == [(run.record, run.metrics) for run in own]
    assert published[0].path == tmp_path / "results" / "large" / "seed2.json"
    assert own[0].metrics[-1]["top1"] == 82


def test_other_folders_are_no_runs(demo, tmp_path):
    folder = write_run(tmp_path, "large", 0)
    folder.rename(folder.with_name("seed0-old"))
    assert runs.read(tmp_path, "large") == []


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"record": {}, "metrics": []}'])
def test_a_broken_published_record_is_named(tmp_path, content):
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "seed0.json").write_text(content)
    with pytest.raises(UserError, match=r"seed0\.json is no record of a run"):
        runs.read(tmp_path, "large")


def test_a_published_run_is_one_file(demo, tmp_path):
    run = runs.read_folder(write_run(tmp_path / "runs", "large", 1))
    content = json.loads(compact.write(run, tmp_path / "results", "large").read_text())
    assert content["record"]["seed"] == 1
    assert [line["epoch"] for line in content["metrics"]] == [1, 2, 3]
