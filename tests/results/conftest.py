import pytest
from demo import make_repository


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """A repository with the recipes of the folder `demo`; the test runs in it."""
    return make_repository(tmp_path, monkeypatch)
