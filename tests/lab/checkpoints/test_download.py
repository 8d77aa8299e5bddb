"""Servers that send too much, too little, too slowly, nothing or something else: each is told apart, and bounded."""

import asyncio
import hashlib
import time

import hub_server
import pytest
from hub_server import REPO
from tiny import readdress

from clars.errors import CheckpointError
from clars.lab.checkpoints import download, form, http, pull
from clars.lab.checkpoints.verify import verify

ALREADY = 10_000  # bytes of the weights that an earlier attempt has read


@pytest.fixture
def weights(hub, offered, monkeypatch):
    """The weights on a plain server: what they are, and by which name the server knows them."""
    monkeypatch.setattr(http, "SILENCE", 0.3)
    monkeypatch.setattr(download, "PATIENCE", 0.3)
    readdress(f"{hub.address}/plain/{REPO}")
    return offered.files[form.WEIGHTS], form.WEIGHTS


def begun(hub, offered):
    """Put down what an attempt that broke off would have left of the weights, and return the file."""
    folder = pull.place("small", offered)
    part = folder.with_name(f".{folder.name}.partial") / f"{form.WEIGHTS}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(hub.files(REPO)[form.WEIGHTS][:ALREADY])
    return part


FAULTS = {
    "without end": (hub_server.endless, "is not what was published"),
    "compressed": (hub_server.compressed, "it comes compressed"),
    "silence": (hub_server.silent, r"there was no answer for 0.3 seconds\. The same command goes on"),
    "silence in the middle": (hub_server.silent_after_half, "there was no answer for 0.3 seconds"),
    "one byte at a time": (hub_server.slow, r"it sent \d+ bytes in 0 seconds\. The same command goes on"),
    "a head without end": (hub_server.slow_head, "there was no answer for 0.3 seconds"),
    "redirections without end": (hub_server.around, "it leads from place to place more than 5 times"),
    "a redirection to a file": (hub_server.to_a_file, "The same command tries again, by http from where it stopped"),
    "its own trouble": (hub_server.status(500), r"the server has failed \(500\); the address may be right"),
    "a gateway's trouble": (hub_server.status(503), r"the server has failed \(503\)"),
    "too many requests": (hub_server.status(429), r"too many requests \(429\)"),
    "not there": (hub_server.status(404), r"not found \(404\)\. Correct the address"),
    "a refusal": (hub_server.status(403), r"access is refused \(403\)"),
    "no content": (hub_server.status(204), "and answers 204 with ''"),
}


@pytest.mark.parametrize("fault, message", FAULTS.values(), ids=FAULTS)
def test_a_server_that_does_not_send_the_file(hub, offered, weights, fault, message):
    """Answers were read whole however long, hung for minutes, and trouble of a server was told as a wrong address."""
    _, key = weights
    hub.faults[key] = fault
    before = time.monotonic()
    with pytest.raises(CheckpointError, match=message) as told:
        pull.pull("small")
    assert time.monotonic() - before < 5 and form.WEIGHTS in str(told.value)
    assert hub.sent < 20_000_000, "no more is read than was published, but for what the network holds"
    assert not pull.place("small", offered).exists()
    del hub.faults[key]
    assert pull.pull("small") == pull.place("small", offered)


ON_THE_HUB = {key: FAULTS[key] for key in ("its own trouble", "too many requests", "not there", "a refusal")}


@pytest.mark.parametrize("fault, message", ON_THE_HUB.values(), ids=ON_THE_HUB)
def test_the_hub_does_not_send_the_file(hub, offered, fault, message):
    """What its own client says of it is told in the same words; its retries are its own."""
    key = offered.files[form.WEIGHTS].sha256
    hub.faults[key] = fault
    with pytest.raises(CheckpointError, match=message):
        pull.pull("small")
    assert not pull.place("small", offered).exists()
    del hub.faults[key]
    assert sorted(path.name for path in pull.pull("small").iterdir()) == sorted(form.FILES)


def test_another_size_on_the_hub_is_not_fetched(hub, offered):
    commit = hub.repositories[REPO][hub.head(REPO)]
    commit[form.WEIGHTS] += bytes(1_000_000)
    with pytest.raises(CheckpointError, match="it has 1025928 bytes, and 25928 were published"):
        pull.pull("small")
    assert not any(path.startswith("/store/") for _, path, _ in hub.requests)


PARTS = {
    "a part without end": (hub_server.endless, "is not what was published"),
    "another part": (hub_server.another_part, f"bytes from {ALREADY} on, of .* answers 206 with 'bytes {ALREADY + 1}-"),
    "a part of another file": (hub_server.part_of_another, "It is another file"),
    "a file that is shorter": (hub_server.status(416), "ends before the part that is still wanted"),
}


@pytest.mark.parametrize("fault, message", PARTS.values(), ids=PARTS)
def test_a_server_that_does_not_go_on(hub, offered, weights, fault, message):
    """A part of another file, or one that never ended, was added to what had come before."""
    file, key = weights
    part = begun(hub, offered)
    hub.faults[key] = fault
    with pytest.raises(CheckpointError, match=message):
        pull.pull("small")
    assert not part.exists() or part.stat().st_size == ALREADY
    assert hub.sent < 20_000_000
    hub.faults.clear()
    hub.requests.clear()
    assert hashlib.sha256((pull.pull("small") / form.WEIGHTS).read_bytes()).hexdigest() == file.sha256


def test_a_server_that_knows_no_parts_begins_anew(hub, offered, weights):
    """What had come before stood twice in the file."""
    _, key = weights
    begun(hub, offered)
    hub.faults[key] = hub_server.whole
    assert pull.pull("small") == pull.place("small", offered)


def test_what_was_read_before_is_not_asked_for_again(hub, offered, weights):
    begun(hub, offered)
    hub.requests.clear()
    pull.pull("small")
    asked = [span for _, path, span in hub.requests if path.endswith((form.WEIGHTS, weights[0].sha256))]
    assert set(asked) == {f"bytes={ALREADY}-"}


def test_what_was_read_before_and_is_damaged(hub, offered, weights):
    part = begun(hub, offered)
    part.write_bytes(bytes(ALREADY))
    (part.parent / form.CARD).write_text("of an earlier attempt, and damaged since")
    with pytest.raises(CheckpointError, match=r"is not what was published.*Nothing of it is kept"):
        pull.pull("small")
    assert not part.exists()
    assert pull.pull("small") == pull.place("small", offered)


def test_a_server_that_is_not_there(hub, offered, weights):
    hub.close()
    with pytest.raises(CheckpointError, match="The same command tries again, by http from where it stopped"):
        pull.pull("small")


def test_a_disk_without_room(hub, offered, weights, monkeypatch):
    usage = download.shutil.disk_usage("/")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda place: usage._replace(free=100))
    with pytest.raises(CheckpointError, match=r"25,928 more bytes, and the disk has 100\. Make room"):
        pull.pull("small")


def test_who_asks_is_told_to_no_other_host(hub, offered):
    """The Hub sends large files from elsewhere."""
    pull.pull("small")
    told = {path: token for path, token in hub.tokens_seen}
    assert told[f"/store/{offered.files[form.WEIGHTS].sha256}"] is None
    assert any(token == "Bearer writer" for token in told.values())


def test_the_folder_in_the_cache_is_that_of_the_name(hub, offered):
    folder = pull.pull("small")
    assert next(verify(str(folder), data=False)) == "files: 5 with the SHA-256 of the manifest"
    (folder / form.CARD).write_text("changed")
    with pytest.raises(CheckpointError, match="is not what was published"):
        list(verify(str(folder), data=False))


def test_a_download_within_a_loop(hub, offered):
    """As in a notebook, whose cells run in a loop of asyncio."""

    async def cell():
        return pull.pull("small")

    assert asyncio.run(cell()) == pull.place("small", offered)
