"""Batches on the device, by whatever way they come there."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from clars.errors import Fault, UserError
from clars.lab import data
from clars.lab.data.digits import TensorImages
from clars.lab.data.memory import StoredImages
from clars.lab.data.splits import Splits
from clars.lab.launching import devices
from clars.lab.launching.division import divide
from clars.lab.launching.faults import explained
from clars.lab.loading import prefetch, resident
from clars.lab.loading.loader import Loader, workers
from clars.lab.recipes.schema import Data
from clars.lab.training.batches import batches_of

CPU = torch.device("cpu")
needs_gpu = pytest.mark.gpu


def stored(n=40, crop=True, channels=3):
    torch.manual_seed(0)
    pixels = torch.randint(256, (n, 3, 8, 8), dtype=torch.uint8)
    return StoredImages(pixels, torch.arange(n), [0.4] * channels, [0.3] * channels, crop=crop)


def epoch(images, device=CPU, world=1, limit=None, number=0, **options):
    """The micro-batches of all processes, in order."""
    found = []
    for rank in range(world):
        batches = batches_of(images, divide(12, world, limit), rank, seed=5)
        batches.epoch, images.place = number, (5, number)
        found.append(list(Loader(images, batches, device, **options)))
    return [part for parts in zip(*found) for part in parts]


def whole(parts):
    images, labels = map(torch.cat, zip(*parts))
    return images[labels.argsort()], labels.sort().values


@pytest.mark.parametrize("kept", [2, 0])
def test_workers_outlive_an_epoch_and_know_where_the_run_is(pictures, kept):
    """They were started anew for each; one that stays would draw what it drew in the first."""
    split = Data(name="pictures", path=str(pictures), image_size=16, augmentation="crop")
    images, held = (
        data.load(split.model_copy(update={"in_memory": here}), evaluation="test").train for here in (False, True)
    )
    batches, others = (batches_of(each, divide(12, 1, None), 0, seed=5) for each in (images, held))
    loader, expected = Loader(images, batches, CPU, kept, prefetch=1), Loader(held, others, CPU)
    processes = set()
    for number in (0, 1, 2):
        batches.epoch = others.epoch = number
        images.place = held.place = (5, number)
        for (x, y), (x_held, y_held) in zip(loader, expected, strict=True):
            assert torch.equal(x, x_held) and torch.equal(y, y_held)
        processes.add(tuple(worker.pid for worker in loader._loader._iterator._workers) if kept else ())
    assert len(processes) == 1
    loader.close()


def test_images_on_the_device_are_indexed_there_without_a_loader(monkeypatch):
    monkeypatch.setattr("clars.lab.loading.loader.DataLoader", None)
    assert len(epoch(stored(), workers=3)) == 3


@pytest.mark.parametrize("world, limit", [(1, 4), (2, None), (3, 2)])
def test_the_draws_depend_on_neither_micro_batches_nor_processes(world, limit):
    for one, other in zip(whole(epoch(stored())), whole(epoch(stored(), world=world, limit=limit))):
        assert torch.equal(one, other)
    assert not torch.equal(whole(epoch(stored()))[0], whole(epoch(stored(), number=1))[0])


def test_what_is_held_moves_with_all_it_has():
    """To `meta`, which has no data: nothing may be left on the processor, and nothing looks at a value."""
    images = stored(crop=False).to(torch.device("meta"))
    index = torch.zeros(5, dtype=torch.int64, device="meta")
    x, y = images.__getitems__(index)
    assert (x.device.type, x.shape, y.device.type) == ("meta", (5, 3, 8, 8), "meta")
    assert images.items().device.type == "meta" and stored().nbytes == 40 * (3 * 64 + 8 + 8) + 2 * 3 * 4


@pytest.mark.parametrize(
    "message, lost",
    [
        (
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory.",
            True,
        ),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", True),
        ("DataLoader worker (pid 7) exited unexpectedly with exit code 1. Details are lost.", True),
        ("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)", True),
        ("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback", False),
        ("", False),
    ],
)
def test_what_torch_says_of_a_lost_worker(message, lost):
    with pytest.raises(Fault if lost else RuntimeError, match="data.workers" if lost else "^Caught|^$"), explained():
        raise RuntimeError(message)


@pytest.mark.parametrize(
    "setting, processes, cores, expected",
    [(3, 4, 2, 3), ("auto", 1, 64, 8), ("auto", 4, 16, 4), ("auto", 8, 6, 0), ("auto", 2, 5, 2), (0, 1, 64, 0)],
)
def test_workers_are_shared_by_the_processes(monkeypatch, setting, processes, cores, expected):
    monkeypatch.setattr(devices, "cores", lambda: cores)
    read, gpu = SimpleNamespace(device=None), torch.device("cuda")
    assert workers(setting, read, processes, CPU) == workers(setting, read, processes, gpu) == expected
    assert workers(setting, stored(), processes, gpu) == (0 if setting == "auto" else setting)


def test_workers_for_images_that_lie_where_they_are_wanted_are_told_to_have_no_effect():
    with pytest.warns(UserWarning, match=r"data\.workers = 3 has no effect .*in memory.* cpu"):
        assert workers(3, stored(), 1, CPU) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert workers("auto", stored(), 1, CPU) == workers(0, stored(), 1, CPU) == 0


class FakeCuda:
    """Streams that note what is asked of them, in order."""

    def __init__(self):
        self.told = []
        self.count = 0

    def Stream(self, device):
        return self

    def stream(self, side):
        return self

    def __enter__(self):
        self.told.append("side")

    def __exit__(self, *error):
        self.told.append("back")

    def record_event(self):
        self.count += 1
        self.told.append(f"copied {self.count}")
        return self.count

    def current_stream(self, device):
        return self

    def wait_event(self, event):
        self.told.append(f"wait {event}")


def test_the_next_batch_goes_before_the_present_one_is_computed_with(monkeypatch):
    """The computing stream waits for the copy of its own batch, never for that of the next."""
    cuda = FakeCuda()
    monkeypatch.setattr(prefetch.torch, "cuda", cuda)
    kept = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: kept.append(self), raising=False)
    batches = [(torch.full((2,), float(n)), torch.full((2,), n)) for n in (1, 2, 3)]
    for x, y in prefetch._ahead(batches, CPU):
        cuda.told.append(f"compute {int(x[0])}")
        assert kept[-2] is x and kept[-1] is y
    copy = [["side", f"copied {n}", "back"] for n in (1, 2, 3)]
    expected = [*copy[0], *copy[1], "wait 1", "compute 1", *copy[2], "wait 2", "compute 2", "wait 3", "compute 3"]
    assert cuda.told == expected
    assert list(prefetch._ahead([], CPU)) == []


def test_a_set_that_does_not_fit_is_refused_with_numbers(monkeypatch):
    pixels = torch.zeros(1).expand(2**18, 4, 16, 16)  # as large as 1 GiB, beside 2 MiB of labels
    images = TensorImages(pixels, torch.zeros(2**18).long())
    monkeypatch.setattr(resident, "_free", lambda device: 2 * 2**30 + 2**20)
    with pytest.raises(UserError, match=r"take 2\.00 GiB, and cpu has 2\.00 GiB free\. Use data\.in_memory=host"):
        resident.on_device(Splits(images, images, 10), CPU)
    monkeypatch.setattr(resident, "_free", lambda device: 2 * 2**30 + 2**22)
    assert resident.on_device(Splits(images, images, 10), CPU).test.nbytes == 2**30 + 2**21


@needs_gpu
@pytest.mark.parametrize("crop", [False, True])
def test_a_gpu_makes_the_same_batches(crop):
    """From its own memory, and from the processor's through pinned memory."""
    gpu = torch.device("cuda")
    expected = epoch(stored(crop=crop))
    for images, options in (
        (stored(crop=crop).to(gpu), {}),
        (stored(crop=crop), {}),
        (stored(crop=crop), {"workers": 2}),
    ):
        for (x, y), (x_cpu, y_cpu) in zip(epoch(images, gpu, **options), expected, strict=True):
            assert x.is_cuda and torch.equal(y.cpu(), y_cpu)
            torch.testing.assert_close(x.cpu(), x_cpu, rtol=1e-6, atol=1e-6)


@needs_gpu
def test_an_epoch_from_a_gpu_s_memory_waits_for_nothing():
    gpu = torch.device("cuda")
    images = stored().to(gpu)
    images.place = (5, 0)
    images.__getitems__(torch.zeros(1, dtype=torch.int64, device=gpu))  # the draws of the epoch
    batches = iter(Loader(images, batches_of(images, divide(12, 1, None), 0, seed=5), gpu))
    next(batches)  # the order of the epoch
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(batches)) == 2
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_a_gpu_s_free_memory_is_asked_for():
    assert 0 < resident._free(torch.device("cuda")) <= torch.cuda.get_device_properties(0).total_memory
