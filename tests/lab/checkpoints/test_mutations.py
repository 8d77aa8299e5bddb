"""Thousands of damaged checkpoints: each is refused in words, or is what it was."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from mutations import mutations
from pydantic_core import from_json
from tiny import change, tensors_of, write_recipe

from clars.errors import UserError, printable
from clars.lab.checkpoints import form, manifest
from clars.lab.checkpoints.publish import PublishOptions, publish
from clars.lab.training import script

SECONDS = 5
MEMORY = 2**30  # bytes
FEW = (2000, 0)
MANY = (20_000, 1)


@pytest.fixture(scope="module")
def slim(tmp_path_factory):
    """The folder `checkpoints` with one of few tensors, and so of a short header, published as `slim`."""
    root = tmp_path_factory.mktemp("slim")
    recipe = write_recipe(root, "slim", model={"name": "fcn5", "arguments": {"width": 4}})
    assert script.main([str(recipe), "--out", str(root / "runs")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLARS_RECIPES", str(root / "recipes"))
        patch.setenv(manifest.VARIABLE, str(root / "checkpoints"))
        publish(root / "runs" / "slim" / "seed0", "slim", PublishOptions(allow_dirty=True, tell=lambda line: None))
    return root / "checkpoints"


@pytest.fixture
def copied(slim, tmp_path, monkeypatch):
    """A copy of that, to which manifest.root() leads."""
    shutil.copytree(slim, tmp_path / "checkpoints")
    monkeypatch.setenv(manifest.VARIABLE, str(tmp_path / "checkpoints"))
    return tmp_path / "checkpoints"


def refusals(path, contents, read):
    """Write each content and read it; return the kinds of refusals, and what was read where there was none."""
    kinds, accepted = Counter(), []
    for content in contents:
        path.write_bytes(content)
        start = time.thread_time()
        try:
            accepted.append((content, read()))
        except UserError as error:
            text = str(error)
            assert printable(text) == text and len(text) < 2000, content
            kinds[text.rpartition(str(path))[2][:20]] += 1
        assert time.thread_time() - start < SECONDS, content
    return kinds, accepted


def undetermined(config):
    """A configuration without what only the data determine, which then lies within bounds."""
    assert all(0 <= value <= 1 for value in config.pretrained_cfg.mean + config.pretrained_cfg.std)
    content = config.model_dump()
    names = content.pop("label_names")
    assert names is None or len(set(names)) == config.num_classes
    del content["pretrained_cfg"]["mean"], content["pretrained_cfg"]["std"]
    return content


def check_configurations(folder, count, seed):
    path = folder / "slim" / form.CONFIG
    content = path.read_bytes()
    expected = undetermined(form.read(path.parent).config)
    kinds, accepted = refusals(path, mutations(content, count, seed), lambda: form.read(path.parent))
    for changed, found in accepted:
        assert undetermined(found.config) == expected, changed
        assert holds(found.config.model_dump(mode="json"), strictly(changed)), changed
    return kinds, accepted


def check_records(folder, count, seed):
    """With the digests that a record carries, nothing else is taken for it."""
    path = folder / "slim" / form.RECORD
    content = path.read_bytes()
    expected = form.read(path.parent).record
    kinds, accepted = refusals(path, mutations(content, count, seed), lambda: form.read(path.parent))
    for changed, found in accepted:
        assert found.record == expected, changed
        assert holds(found.record.model_dump(mode="json"), strictly(changed)), changed
    return kinds, accepted


def check_headers(folder, count, seed):
    """Without digests what is accepted has the tensors of the architecture and the bytes that the header names; with
    them it is what it was."""
    path = folder / "slim" / form.WEIGHTS
    content, wanted = path.read_bytes(), tensors_of(path.parent)
    record = (path.parent / form.RECORD).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    change(path.parent / form.RECORD)
    forged = (head + content[start:] for head in mutations(content[:start], count, seed))
    kinds, accepted = refusals(path, forged, lambda: form.read(path.parent).tensors())
    for changed, found in accepted:
        said = sliced(changed)
        assert found.keys() == said.keys() == wanted.keys(), changed
        for name, value in wanted.items():
            assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype), changed
            assert found[name].numpy().tobytes() == said[name], changed
    (path.parent / form.RECORD).write_bytes(record)
    assert refusals(path, (changed for changed, _ in accepted), lambda: form.read(path.parent))[1] == []
    return kinds, accepted


def strictly(content):
    """The value of a JSON text on which two readers agree, and in which no key stands twice."""

    def once(pairs):
        assert len(dict(pairs)) == len(pairs), content
        return dict(pairs)

    value = json.loads(content.decode("utf-8"), object_pairs_hook=once)
    assert value == from_json(content, allow_inf_nan=False), content
    return value


def sliced(content):
    """The bytes of each tensor by the header of a safetensors file."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = strictly(content[8:start])
    places = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: content[start:][begin:end] for name, (begin, end) in places.items()}


def holds(value, said):
    """Whether a value that was read has all that a file says; what that leaves out has its default."""
    if isinstance(said, dict):
        return isinstance(value, dict) and all(key in value and holds(value[key], said[key]) for key in said)
    if isinstance(said, list):
        return isinstance(value, list) and len(value) == len(said) and all(map(holds, value, said))
    return value == said and (type(value) is type(said) or (type(value), type(said)) == (float, int))


def check_manifests(folder, count, seed):
    """What is accepted and says something else of the files is refused when they are read."""
    path = folder / manifest.FILE
    content = path.read_bytes()
    known, names = manifest.load(folder), Counter()
    kinds, accepted = refusals(path, mutations(content, count, seed), lambda: manifest.load(folder))
    for changed, found in accepted:
        assert holds(found.model_dump(mode="json"), strictly(changed)), changed
        for name, entry in found.checkpoints.items():
            assert (folder / name).resolve().parent == folder.resolve(), changed
            assert set(entry.files) == set(form.FILES), changed
            names[name == "slim" and entry == known.checkpoints["slim"]] += 1
            if name == "slim" and told(entry) != told(known.checkpoints["slim"]):
                with pytest.raises(UserError):
                    form.read(folder / name, entry)
    return kinds, accepted


def told(entry):
    """What an entry says that the files tell as well: all but where they lie, and what other seeds reached."""
    content = entry.model_dump(exclude={"address"})
    for key in ("tolerance", "n", "mean", "half_width"):
        del content["top1"][key]
    return content


CHECKS = {"config": check_configurations, "record": check_records, "header": check_headers, "manifest": check_manifests}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_no_mutation_is_taken_for_something_else(copied, check):
    """Some made the library, JSON or the terminal do what no message told."""
    kinds, _ = check(copied, *FEW)
    assert sum(kinds.values()) > 0.8 * FEW[0] and len(kinds) > 1


@pytest.mark.parametrize("name", form.FILES)
def test_no_mutation_is_taken_for_what_was_published(copied, name):
    """Whatever a change means or does not mean, the SHA-256 of the manifest is that of other bytes."""
    path = copied / "slim" / name
    contents = mutations(path.read_bytes(), 100, seed=2)
    assert refusals(path, contents, lambda: form.read(path.parent, manifest.find("slim")))[1] == []


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_many_mutations_within_bounds_of_memory(copied, check):
    """As above with more, in a process that may have a gigabyte more than it begins with."""
    command = [sys.executable, __file__, str(copied), check]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def main(folder, check):
    form.read(Path(folder) / "slim").network()(torch.zeros(1, 1, 8, 8))  # what is imported and mapped once is so now
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else None
    if pages:
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(json.dumps(CHECKS[check](Path(folder), *MANY)[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
