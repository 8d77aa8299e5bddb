"""Forged headers of safetensors files: each is refused by name, and what is sound is read as safetensors reads it."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from clars.errors import CheckpointError
from clars.lab.checkpoints import folder, header, weights

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7), "c": torch.zeros(0, 4)}
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
PLAIN = b'"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'


def read(path):
    with folder.opened(path) as (file, size):
        return header.read(file, size, path)


def file(path, declared, data=bytes(8), length=None):
    content = declared if isinstance(declared, bytes) else json.dumps(declared).encode()
    path.write_bytes((len(content) if length is None else length).to_bytes(8, "little") + content + data)
    return path


def metadata(value):
    return b'{"__metadata__": ' + value + b", " + PLAIN + b"}"


def test_a_sound_file(tmp_path):
    save_file(TENSORS, tmp_path / "x", {"format": "pt"})
    assert read(tmp_path / "x") == {"a": ("F32", (2, 3)), "b": ("I64", ()), "c": ("F32", (0, 4))}
    found = weights.load(weights.content(tmp_path / "x", TENSORS), tmp_path / "x")
    assert found.keys() == TENSORS.keys() and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("declared", [{"b": ENTRY | {"data_offsets": [8, 16]}, "a": ENTRY}, metadata(b'{"k": "v"}')])
def test_what_is_unusual_and_sound(tmp_path, declared):
    data = bytes(16) if isinstance(declared, dict) else bytes(8)
    assert read(file(tmp_path / "x", declared, data))["a"] == ("F32", (2,))


FORGED = {
    "huge header": ({"a": ENTRY}, {"length": 2**63}, "no safetensors file"),
    "header beyond the file": ({"a": ENTRY}, {"length": 5000}, "no safetensors file"),
    "huge tensor": ({"a": ENTRY | {"shape": [2**62, 4]}}, {}, "damaged header"),
    "product that overflows": ({"a": ENTRY | {"shape": [2**32, 2**32, 2]}}, {}, "damaged header"),
    "beyond the data": ({"a": ENTRY | {"shape": [4], "data_offsets": [0, 16]}}, {}, "damaged header"),
    "data left over": ({"a": ENTRY}, {"data": bytes(9)}, "not fully covered"),
    "overlap": ({"a": ENTRY, "b": ENTRY}, {}, "invalid offset"),
    "gap": ({"a": ENTRY | {"data_offsets": [8, 16]}}, {"data": bytes(16)}, "invalid offset"),
    "negative": ({"a": ENTRY | {"shape": [-2], "data_offsets": [8, 0]}}, {}, "damaged header"),
    "truth values": ({"a": ENTRY | {"shape": [True, 2]}}, {}, "damaged header"),
    "fractions": ({"a": ENTRY | {"shape": [2.0]}}, {}, "damaged header"),
    "unknown type": ({"a": ENTRY | {"dtype": "F99"}}, {}, "F99"),
    "foreign key": ({"a": ENTRY | {"code": "x"}}, {}, "'a' is not described by dtype, shape and data_offsets alone"),
    "a list for a mapping": ({"a": ["F32", [2], [0, 8]]}, {}, "'a' is not described by"),
    "many dimensions": ({"a": ENTRY | {"shape": [1] * 9 + [2]}}, {}, "'a' is no 'F32' of shape"),
    "a list": ([1], {}, "damaged header"),
    "the same tensor twice": (b"{" + PLAIN + b", " + PLAIN + b"}", {}, "damaged header"),
    "of two types": (b"{" + PLAIN.replace(b"F32", b"I32") + b", " + PLAIN + b"}", {}, "the key 'a' stands twice"),
    "the same key twice": (b"{" + PLAIN.replace(b"{", b'{"dtype": "I32", ') + b"}", {}, "dtype"),
    "metadata twice": (metadata(b'{"k": "v", "k": "w"}'), {}, "the key 'k' stands twice"),
    "numbers in metadata": (metadata(b'{"k": 1}'), {}, "damaged header"),
    "a list for metadata": (metadata(b"[1]"), {}, "damaged header"),
    "deep metadata": (metadata(b'{"k": {"k": {}}}'), {}, "damaged header"),
    "half a surrogate pair": (metadata(rb'{"k": "\ud800"}'), {}, "damaged header"),
    "half a pair in a name": (rb'{"\udfff": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', {}, "damaged"),
    "deep": (b"[" * 100_000, {}, "damaged header"),
    "deep within": (metadata(b'{"k": ' + b"[" * 100_000 + b"}"), {}, "damaged header"),
    "no text": (b"\xff\xfe{}", {}, "damaged header"),
    "UTF-16": (("{" + PLAIN.decode() + "}").encode("utf-16"), {}, "damaged header"),
    "a byte order mark": (b"\xef\xbb\xbf{" + PLAIN + b"}", {}, "damaged header"),
    "mappings without end": (b'{"x": [' + b"{}," * 400_000 + b"{}]}", {}, "its header would have 1200011 of"),
    "spaces without end": (b"{" + PLAIN + b"}" + b" " * 900_000, {}, "header of 900061 bytes for 1 tensors"),
    "a long name": (json.dumps({"a" * 900_000: ENTRY}).encode(), {}, "bytes for 1 tensors"),
    "tensors without end": (
        {str(number): ENTRY | {"shape": [0], "data_offsets": [0, 0]} for number in range(3_501)},
        {"data": b""},
        "for 3501 tensors; at most 3500",
    ),
}  # fmt: skip


@pytest.mark.parametrize("declared, options, message", FORGED.values(), ids=FORGED)
def test_forged(tmp_path, declared, options, message):
    """The library read some of these otherwise than the check of the header did, or raised an error of its own."""
    with pytest.raises(CheckpointError, match=message):
        read(file(tmp_path / "x", declared, **options))


@pytest.mark.parametrize("content", [b"", b"1234567", pickle.dumps([1]), pickle.dumps([1], protocol=2)])
def test_what_is_no_safetensors_file(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match="is a pickle" if len(content) > 8 else "no safetensors file"):
        read(tmp_path / "x")


def test_a_zip_of_torch(tmp_path):
    torch.save(TENSORS, tmp_path / "x")
    with pytest.raises(CheckpointError, match="is a pickle"):
        read(tmp_path / "x")


@pytest.mark.parametrize("dtype, size", [("F8_E4M3", 2), ("C64", 16), ("F16", 4), ("U64", 16)])
def test_types_that_no_network_of_ours_has(tmp_path, dtype, size):
    path = file(tmp_path / "x", {"a": {"dtype": dtype, "shape": [2], "data_offsets": [0, size]}}, bytes(size))
    with pytest.raises(CheckpointError, match=f"'a' is {dtype} of shape"):
        weights.content(path, {"a": torch.zeros(2)})


@pytest.mark.parametrize("changed, message", [
    ({"a": torch.zeros(3, 2)}, r"'a' is F32 of shape \(3, 2\), the architecture has F32 of shape \(2, 3\)"),
    ({"a": torch.zeros(2, 3, dtype=torch.float16)}, "'a' is F16"),
    ({"b": torch.zeros(())}, "'b' is F32"),
    ({"c": torch.zeros(4, 0)}, r"'c' is F32 of shape \(4, 0\)"),
    ({"d\x1b[1m": torch.zeros(1)}, r"holds 'd\\x1b\[1m', which the architecture does not have"),
    ({"d": torch.zeros(1), "e": torch.zeros(1)}, "holds 'd' and 1 more tensors"),
    ({"a": None}, "lacks 'a'"),
])  # fmt: skip
def test_another_architecture(tmp_path, changed, message):
    tensors = {name: value for name, value in (TENSORS | changed).items() if value is not None}
    save_file(tensors, tmp_path / "x")
    with pytest.raises(CheckpointError, match=message):
        weights.content(tmp_path / "x", TENSORS)
