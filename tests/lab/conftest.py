import io
import sys

import huggingface_hub
import pytest
import yaml
from accelerate.state import AcceleratorState
from demo import make_repository
from PIL import Image

from clars.lab.launching import launch


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """A repository with the recipes of the folder `demo`; the test runs in it."""
    return make_repository(tmp_path, monkeypatch)


@pytest.fixture
def gpus(monkeypatch):
    """A function that lets torch find so many GPUs."""

    def find(count):
        monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)

    return find


@pytest.fixture
def fresh():
    """A function that lets accelerate forget in which precision this process began, as it does at the end."""

    def forget():
        AcceleratorState._reset_state(reset_partial_state=True)

    forget()
    yield forget
    forget()


@pytest.fixture
def launches(monkeypatch):
    """A function that puts another in the place of starting processes."""
    return lambda answer: monkeypatch.setattr(launch, "launch", answer)


@pytest.fixture
def hub_client(monkeypatch):
    """A function that sets what the Hub's client took from its environment: ENDPOINT, HF_HUB_OFFLINE and the like."""

    def take(**constants):
        for name, value in constants.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        huggingface_hub.close_session()  # which knows some of it

    return take


@pytest.fixture
def stream(monkeypatch):
    """A function that puts a stream of another encoding in the place of sys.stdout or sys.stderr; returns its bytes."""

    def replace(name, encoding):
        content = io.BytesIO()
        made = io.TextIOWrapper(content, encoding=encoding, errors="strict", write_through=True)
        monkeypatch.setattr(sys, name, made)
        return content

    return replace


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


@pytest.fixture
def pictures(tmp_path):
    """A local data set in the schema of an image folder: split/class/file, 36 pictures of 3 classes in each."""
    for split in ("train", "test"):
        for label in range(3):
            folder = tmp_path / "pictures" / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(12):
                colour = (80 * label, 255 - 80 * label, 10 * index)
                Image.effect_noise((20, 20), 60).convert("RGB").point(lambda v, c=colour: (v + c[0]) % 256).save(
                    folder / f"{index}.png"
                )
    return tmp_path / "pictures"
