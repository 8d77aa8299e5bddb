import pytest
import yaml


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A function that writes a small recipe with changes, and returns its path."""
    monkeypatch.chdir(tmp_path)

    def write(name="small", **changes):
        settings = {
            "description": "a small network, two epochs",
            "model": {"name": "resnet8", "arguments": {"width": 4}},
            "data": {"name": "digits", "image_size": 8, "channels": 1},
            "optimizer": {"name": "clars"},
            "schedule": {"base_rate": 4.0, "base_batch": 64, "warmup_epochs": 0.5},
            "batch_size": 256,
            "epochs": 2,
        } | changes
        path = tmp_path / "recipes" / "tiny" / "v1" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(settings))
        return path

    return write
