"""Forged headers of safetensors files: each is refused by name, and what is sound is read as safetensors reads it."""

import json
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from clars.checkpoints import header
from clars.errors import CheckpointError

TENSORS = {"a": torch.zeros(2, 3), "b": torch.zeros((), dtype=torch.int64)}
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file(path, declared, data=bytes(8), length=None):
    content = declared if isinstance(declared, bytes) else json.dumps(declared).encode()
    path.write_bytes((len(content) if length is None else length).to_bytes(8, "little") + content + data)
    return path


def test_a_sound_file(tmp_path):
    save_file(TENSORS, tmp_path / "x", {"format": "pt"})
    assert header.read(tmp_path / "x") == {"a": ("F32", (2, 3)), "b": ("I64", ())}
    header.check(tmp_path / "x", TENSORS)


FORGED = {
    "huge header": ({"a": ENTRY}, {"length": 2**63}, "no safetensors file"),
    "header beyond the file": ({"a": ENTRY}, {"length": 5000}, "no safetensors file"),
    "huge tensor": ({"a": ENTRY | {"shape": [2**62, 4]}}, {}, "does not fill"),
    "product that overflows": ({"a": ENTRY | {"shape": [2**32, 2**32, 2]}}, {}, "does not fill"),
    "beyond the data": ({"a": ENTRY | {"shape": [4], "data_offsets": [0, 16]}}, {}, "declares 16 bytes"),
    "data left over": ({"a": ENTRY}, {"data": bytes(9)}, "there are 9"),
    "overlap": ({"a": ENTRY, "b": ENTRY}, {}, "'b' begins at byte 0"),
    "gap": ({"a": ENTRY | {"data_offsets": [8, 16]}}, {"data": bytes(16)}, "'a' begins at byte 8"),
    "negative": ({"a": ENTRY | {"shape": [-2], "data_offsets": [8, 0]}}, {}, "none of a tensor"),
    "truth values": ({"a": ENTRY | {"shape": [True, 2]}}, {}, "none of a tensor"),
    "unknown type": ({"a": ENTRY | {"dtype": "F99"}}, {}, "F99"),
    "foreign key": ({"a": ENTRY | {"code": "x"}}, {}, "code"),
    "many dimensions": ({"a": ENTRY | {"shape": [1] * 9 + [2]}}, {}, "none of a tensor"),
    "a list": ([1], {}, "damaged header"),
    "the same key twice": (b'{"a": {"dtype": "F32"}, "a": {}}', {}, "stands twice"),
    "deep": (b"[" * 100_000, {}, "damaged header"),
    "no text": (b"\xff\xfe{}", {}, "damaged header"),
}


@pytest.mark.parametrize("declared, options, message", FORGED.values(), ids=FORGED)
def test_forged(tmp_path, declared, options, message):
    with pytest.raises(CheckpointError, match=message):
        header.read(file(tmp_path / "x", declared, **options))


@pytest.mark.parametrize("content", [b"", b"1234567", pickle.dumps(TENSORS), pickle.dumps([1], protocol=2)])
def test_what_is_no_safetensors_file(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match="is a pickle" if len(content) > 8 else "no safetensors file"):
        header.read(tmp_path / "x")


def test_a_zip_of_torch(tmp_path):
    torch.save(TENSORS, tmp_path / "x")
    with pytest.raises(CheckpointError, match="is a pickle"):
        header.read(tmp_path / "x")


@pytest.mark.parametrize("changed, message", [
    ({"a": torch.zeros(3, 2)}, r"'a' is F32 of shape \(3, 2\), the architecture has F32 of shape \(2, 3\)"),
    ({"a": torch.zeros(2, 3, dtype=torch.float16)}, "'a' is F16"),
    ({"b": torch.zeros(())}, "'b' is F32"),
    ({"c": torch.zeros(1)}, "holds 'c', which the architecture does not have"),
    ({"c": torch.zeros(1), "d": torch.zeros(1)}, "holds 'c' and 1 more tensors"),
    ({"a": None}, "lacks 'a'"),
])  # fmt: skip
def test_another_architecture(tmp_path, changed, message):
    tensors = {name: value for name, value in (TENSORS | changed).items() if value is not None}
    save_file(tensors, tmp_path / "x")
    with pytest.raises(CheckpointError, match=message):
        header.check(tmp_path / "x", TENSORS)


SOUND = save(TENSORS)
LENGTH = int.from_bytes(SOUND[:8], "little")


@given(st.lists(st.tuples(st.integers(0, LENGTH + 7), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 3))
def test_bytes_changed_at_random(tmp_path_factory, changes, cut):
    """Either refused, or safetensors reads the same names, shapes and types."""
    content = bytearray(SOUND)
    for place, value in changes:
        content[place] = value
    path = tmp_path_factory.mktemp("fuzz") / "x"
    path.write_bytes(content[: len(content) - cut])
    try:
        found = header.read(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        return
    with safe_open(path, "pt") as opened:
        for name, (dtype, shape) in found.items():
            part = opened.get_slice(name)
            assert (part.get_dtype(), tuple(part.get_shape())) == (dtype, shape)


KEYS = st.sampled_from(["dtype", "shape", "data_offsets", "a"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=3))
def test_any_json_as_header(tmp_path_factory, declared):
    path = file(tmp_path_factory.mktemp("fuzz") / "x", declared)
    try:
        assert header.read(path) == {} and declared.keys() <= {"__metadata__"}
    except CheckpointError as error:
        assert str(path) in str(error)
