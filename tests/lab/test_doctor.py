from importlib.metadata import PackageNotFoundError

import pytest
import torch
from demo import SMALL, make_repository, write

from clars.lab import doctor


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    return make_repository(tmp_path, monkeypatch)


def by_subject(findings):
    return {finding.subject: finding for finding in findings}


def test_the_machine(monkeypatch, gpus):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = by_subject(doctor.machine())
    assert found["torch"].text.startswith(torch.__version__)
    assert found["devices"].text.endswith("cpu")
    assert found["threads"].text.startswith("7 for each process")
    gpus(0)
    assert by_subject(doctor.machine())["launch"].text == "auto takes cpu: torch finds no GPU here"
    assert found["accelerate"].ok
    assert int(found["fonts"].text.split()[0]) > 10


def test_a_missing_package_says_what_to_do(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", missing)
    deepspeed = by_subject(doctor.machine())["deepspeed"]
    assert not deepspeed.ok
    assert "pip install 'clars[deepspeed]'" in deepspeed.text
    accelerate = by_subject(doctor.machine())["accelerate"]
    assert "pip install accelerate" in accelerate.text


def test_what_each_recipe_needs():
    found = by_subject(doctor.recipes())
    assert found["demo/large"].ok
    assert found["demo/large"].text == "resnet8 on digits"


@pytest.mark.parametrize(
    "old, new, text",
    [
        ("name: resnet8", "name: resnet-eight", "has no model 'resnet-eight'"),
        ("name: digits", "name: mine, path: nowhere", "resnet8 on nowhere"),
        ("epochs: 3", "epochs: 0", "epochs = 0 must be greater than 0"),
    ],
)
def test_a_recipe_that_cannot_run_here_says_why(repository, old, new, text):
    write(repository / "recipes", bad=SMALL.replace(old, new))
    found = by_subject(doctor.recipes())
    assert not found["demo/bad"].ok
    assert text in found["demo/bad"].text
    assert found["demo/small"].ok


def test_each_data_set_is_named_once(repository):
    write(repository / "recipes", bad=SMALL.replace("name: digits", "name: mine, path: nowhere"))
    found = list(doctor.data_sets())
    assert {finding.subject: finding.ok for finding in found} == {"digits": True, "nowhere": False}
    assert any("data.path='nowhere' is not a folder" in finding.text for finding in found)
    assert len(found) == 2
