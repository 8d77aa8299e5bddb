"""What was timed on an accelerator is kept for later processes, and nothing that was kept can harm one."""

import json

import pytest
import torch

from clars.native import where
from clars.norms.methods.timings import Timings

DEVICE = "cuda"
KEY = ("sizes", 3)


@pytest.fixture(autouse=True)
def device(tmp_path, monkeypatch):
    """A device of which each method takes a second more than the one before."""
    taken = iter(range(1, 100))
    monkeypatch.setenv("CLARS_CACHE", str(tmp_path))
    monkeypatch.setattr(where, "name", lambda device: "Some GPU / 80 GB")
    monkeypatch.setattr(where, "can_be_timed", lambda device: True)
    monkeypatch.setattr(where, "seconds", lambda work, device: float(next(taken)))
    return tmp_path / "timings"


def works(*names):
    return dict.fromkeys(names, lambda: None)


def test_a_later_process_need_not_time(device):
    found = Timings(kept=True).seconds(KEY, DEVICE, works("gram", "fused"))
    assert found == {"gram": 1.0, "fused": 2.0}
    assert Timings(kept=True).seconds(KEY, DEVICE, works("gram", "fused")) == found
    assert Timings(kept=True).seconds(KEY, DEVICE, works("fused")) == {"fused": 2.0}
    (file,) = device.glob("*.json")
    assert "/" not in file.stem and "Some-GPU" in file.stem and "triton" in file.stem


def test_a_method_more_is_timed_with_the_others():
    timings = Timings(kept=True)
    timings.seconds(KEY, DEVICE, works("gram"))
    assert timings.seconds(KEY, DEVICE, works("gram", "fused")) == {"gram": 2.0, "fused": 3.0}
    assert Timings(kept=True).seconds(KEY, DEVICE, works("gram", "fused")) == {"gram": 2.0, "fused": 3.0}


def test_other_sizes_and_other_devices_have_seconds_of_their_own(monkeypatch):
    Timings(kept=True).seconds(KEY, DEVICE, works("gram"))
    assert Timings(kept=True).seconds(("sizes", 4), DEVICE, works("gram")) == {"gram": 2.0}
    monkeypatch.setattr(where, "name", lambda device: "Another GPU")
    assert Timings(kept=True).seconds(KEY, DEVICE, works("gram")) == {"gram": 3.0}


def test_two_processes_add_to_one_file():
    first, second = Timings(kept=True), Timings(kept=True)
    first.seconds(("a",), DEVICE, works("gram"))
    second.seconds(("b",), DEVICE, works("gram"))
    first.seconds(("c",), DEVICE, works("gram"))
    later = Timings(kept=True)
    assert [later.seconds((name,), DEVICE, works("gram"))["gram"] for name in "abc"] == [1.0, 2.0, 3.0]


def test_within_a_capture_what_is_known_is_used_and_nothing_timed(monkeypatch):
    Timings(kept=True).seconds(KEY, DEVICE, works("gram"))
    monkeypatch.setattr(where, "can_be_timed", lambda device: False)
    later = Timings(kept=True)
    assert later.seconds(KEY, DEVICE, works("gram")) == {"gram": 1.0}
    assert later.seconds(("other",), DEVICE, works("gram")) == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"a": 3}',
        b'{"a": {"gram": "soon"}}',
        b'{"a": {"gram": 1',
        b"null",
        b'{"a": {"gram": NaN}}',
    ],
)
def test_a_damaged_file_is_as_good_as_none(device, content):
    Timings(kept=True).seconds(KEY, DEVICE, works("gram"))
    (file,) = device.glob("*.json")
    file.write_bytes(content)
    assert Timings(kept=True).seconds(KEY, DEVICE, works("gram")) == {"gram": 2.0}
    assert list(json.loads(file.read_text()).values()) == [{"gram": 2.0}]


def test_a_method_that_fails_is_left_out_and_not_kept(device, monkeypatch):
    def seconds(work, device):
        work()
        return 1.0

    def fail():
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(where, "seconds", seconds)
    with pytest.warns(UserWarning, match="'matrix' for norms cannot run here and is left out: too large"):
        found = Timings(kept=True).seconds(KEY, DEVICE, works("ordinary") | {"matrix": fail})
    assert found["ordinary"] == 1.0 and found["matrix"] > 1e6
    assert not device.exists()
    with pytest.warns(UserWarning, match="matrix"), pytest.raises(torch.OutOfMemoryError):
        Timings().seconds(("other",), DEVICE, {"matrix": fail, "gram": fail})


def test_a_folder_that_cannot_be_written_costs_time_only(device):
    device.write_text("a file in the folder's place")
    assert Timings(kept=True).seconds(KEY, DEVICE, works("gram")) == {"gram": 1.0}


def test_a_processor_s_seconds_are_not_kept(device):
    Timings(kept=True).seconds(KEY, "cpu", works("gram"))
    Timings().seconds(KEY, DEVICE, works("gram"))
    assert not device.exists()
