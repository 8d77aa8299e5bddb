"""What trackers are told, read back from where they keep it."""

import json
from pathlib import Path

import pytest
import yaml

from clars.lab.training import script


def train(*words):
    return script.main([str(word) for word in words])


def expected(told):
    """Check what was told of a run of the small recipe with seed 3."""
    assert told["seed"] in (3, "3") and told["recipe"] == "tiny/small@v1"
    assert told["optimizer.name"] == "clars" and float(told["optimizer.momentum"]) == 0.9
    assert float(told["schedule.base_rate"]) > 0 and "epochs=2" in told["overrides"]
    assert "--seed 3" in told["command"] and len(told["recipe_sha256"]) == 64


def test_tensorboard_holds_all_hyper_parameters_and_the_numbers(recipe):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert train(recipe(), "epochs=2", "--seed", "3", "--out", "runs", "--log-with", "tensorboard") == 0
    folder = Path("runs/small/seed3/small")
    (kept,) = folder.glob("*/hparams.yml")
    expected(yaml.safe_load(kept.read_text()))
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    assert len(events.Scalars("top1")) == 2 and events.Scalars("train_loss")[0].value > 0


def test_mlflow_holds_all_hyper_parameters_and_the_numbers(recipe, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    store = Path("store").resolve().as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert train(recipe(), "epochs=2", "--seed", "3", "--out", "runs", "--log-with", "mlflow") == 0
    client = mlflow.MlflowClient(tracking_uri=store)
    (experiment,) = client.search_experiments(filter_string="name = 'small'")
    (run,) = client.search_runs([experiment.experiment_id])
    expected(run.data.params)
    assert run.info.run_name == "small seed 3" and run.data.tags["method"] == "clars"
    assert len(client.get_metric_history(run.info.run_id, "top1")) == 2


def test_tensorboard_holds_the_layers_statistics_as_histograms(recipe):
    """Where the recipe asks for layer statistics: as many values as layers, of the numbers that layers.jsonl has."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert train(recipe(), "epochs=2", "layer_statistics=2", "--out", "runs", "--log-with", "tensorboard") == 0
    lines = [json.loads(line) for line in Path("runs/small/seed0/layers.jsonl").read_text().splitlines()]
    events = accumulator.EventAccumulator("runs/small/seed0/small", {"histograms": 0})
    events.Reload()
    found = {each.step: each.histogram_value for each in events.Histograms("layers/ratio")}
    assert found.keys() == {line["step"] for line in lines} and len(found) > 2
    for step, values in found.items():
        wanted = [line["ratio"] for line in lines if line["step"] == step]
        assert values.num == len(wanted)
        assert (values.min, values.max) == pytest.approx((min(wanted), max(wanted)), rel=1e-6)
