"""Where data come from, and what is said when they cannot be reached."""

import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from datasets.packaged_modules.parquet.parquet import Parquet

from clars.errors import DataError
from clars.lab.data import load, reachable
from clars.lab.recipes.schema import Data

PLACE_A_COPY = r"place a copy in a folder.*'train' and 'test'.*'image' and 'label'.*data.path=DIR"


@pytest.fixture
def hub_data():
    return Data(name="ylecun/mnist", config="mnist", image_size=28, channels=1)


@pytest.fixture
def empty_hub(hub_client):
    """A server that answers as the Hub does for a data set that it does not have."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub_client(HF_HUB_OFFLINE=False, ENDPOINT=f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


def test_without_network_the_error_comes_at_once_and_says_what_to_do(hub_data, hub_client):
    hub_client(HF_HUB_OFFLINE=False, ENDPOINT="http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(DataError, match=f"'ylecun/mnist' is not on this machine.*{PLACE_A_COPY}"):
        load(hub_data, evaluation="test")
    assert time.monotonic() - start < 8


def test_offline_mode_is_named(hub_data, hub_client):
    hub_client(HF_HUB_OFFLINE=True)
    with pytest.raises(DataError, match=f"offline mode is enabled.*{PLACE_A_COPY}"):
        load(hub_data, evaluation="test")


def test_a_name_that_the_hub_does_not_know(hub_data, empty_hub):
    with pytest.raises(DataError, match=f"data.name='ylecun/mnist' is no data set.*{PLACE_A_COPY}"):
        load(hub_data, evaluation="test")


def test_a_name_that_no_data_set_can_have():
    with pytest.raises(DataError, match=r"data.name='a/b/c' is no data set"):
        load(Data(name="a/b/c", image_size=8), evaluation="test")


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_a_folder_without_data(tmp_path, kind):
    path = tmp_path / kind
    if kind == "file":
        path.write_text("text")
    elif kind == "empty":
        path.mkdir()
    with pytest.raises(DataError, match=rf"data.path='.*{kind}' .*{PLACE_A_COPY}"):
        load(Data(name="mine", path=str(path), image_size=8), evaluation="test")


def test_a_damaged_file_is_named(mnist):
    (Path(mnist.path) / "data" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match=r"data.path=.*cannot be read: .*arquet"):
        load(mnist, evaluation="test")


def test_an_earlier_download_is_used_without_network(mnist, hub_data, cache, hub_client):
    hub_client(ENDPOINT="http://127.0.0.1:9")
    assert not reachable(hub_data)[0]
    files = {split: [str(path) for path in Path(mnist.path).rglob(f"{split}-*")] for split in ("train", "test")}
    names = {"dataset_name": "mnist", "config_name": "mnist", "config_id": "mnist"}
    Parquet(**names, hash="0123abcd", data_files=files).download_and_prepare()
    (cache / "mnist").rename(cache / "ylecun___mnist")
    assert reachable(hub_data)[0]
    splits = load(hub_data, evaluation="test")
    assert (len(splits.train), len(splits.test), splits.num_classes) == (40, 20, 10)


def test_reachable_says_where_or_what_to_do(mnist, hub_data):
    assert reachable(Data(name="digits", image_size=8)) == (True, "comes with scikit-learn")
    assert reachable(mnist) == (True, f"folder {mnist.path}")
    assert reachable(mnist.model_copy(update={"path": "/nowhere"})) == (
        False,
        "data.path='/nowhere' is not a folder",
    )
    found, advice = reachable(hub_data)
    assert not found and "data.path=DIR" in advice
