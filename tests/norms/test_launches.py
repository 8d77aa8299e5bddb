"""Launches that are planned once: what reaches triton's launcher the first time, and later.

No GPU is needed. Run as a script, the file launches on a device that is not there.
"""

import json
from pathlib import Path
from unittest import mock

import gpu_code
import pytest
import scripts
import torch

from clars.native.triton import depthwise, fused_products, gram, launching, normalisation

pytestmark = gpu_code.with_triton

PLANS = (
    fused_products._plan, gram._plan, depthwise._plan, normalisation._by_row_plan, normalisation._by_channel_plan,
)  # fmt: skip
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LAST, HALF = torch.channels_last, torch.bfloat16


def tensor(*shape, dtype=torch.float32, form=torch.contiguous_format, beginning=0, device="meta"):
    """Return a tensor that lies in memory as told."""
    like = torch.empty(shape, device="meta").to(memory_format=form)
    room = torch.empty(like.numel() + beginning, dtype=dtype, device=device)
    return room.as_strided(shape, like.stride(), beginning)


def operands(shape=(6, 16, 8, 8), outputs=16, out=(8, 8), **form):
    return {"gy": tensor(shape[0], outputs, *out, **form), "x": tensor(*shape, **form)}


def by_channel(shape=(6, 16, 8, 8), **form):
    statistic = {"mean": tensor(shape[1]), "rstd": tensor(shape[1]), "weight": tensor(shape[1])}
    return {"gy": tensor(*shape, **form), "x": tensor(*shape, **form)} | statistic


def by_group(groups, shape=(6, 16, 8, 8), **form):
    statistic = {"mean": tensor(shape[0], groups), "rstd": tensor(shape[0], groups)}
    return by_channel(shape, **form) | statistic | {"groups": groups}


def by_row(shape=(6, 5, 48), **form):
    statistic = {"mean": tensor(*shape[:2]), "rstd": tensor(*shape[:2]), "weight": tensor(shape[2])}
    return {"gy": tensor(*shape, **form), "x": tensor(*shape, **form)} | statistic


WINDOW = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "group": 1}
CONVOLUTION = operands() | WINDOW
CONVOLVED = {  # what differs from CONVOLUTION, as far as a kernel does not look at whether sizes agree
    "examples": operands((7, 16, 8, 8)),
    "channels": {"x": tensor(6, 32, 8, 8)},
    "outputs": {"gy": tensor(6, 80, 8, 8)},
    "place of sizes": operands((6, 16, 4, 16), out=(4, 16)),
    "size of x": {"x": tensor(6, 16, 10, 10), "padding": (1, 1)},
    "strides of gy": {"gy": tensor(6, 16, 8, 8, form=LAST)},
    "strides of x": {"x": tensor(6, 16, 8, 8, form=LAST)},
    "a window": {"x": tensor(6, 16, 9, 9)[..., 1:, 1:]},
    "numbers far apart": {"x": torch.empty_strided((6, 16, 8, 8), (2**33, 2**30, 8, 1), device="meta")},
    "both last": operands(form=LAST),
    "type": operands(dtype=HALF),
    "type, both last": operands(dtype=HALF, form=LAST),
    "kernel": {"kernel": (1, 3)},
    "kernel, turned": {"kernel": (3, 1)},
    "stride": {"stride": (2, 1)},
    "padding": {"padding": (0, 1)},
    "dilation": {"dilation": (1, 2)},
    "group": {"group": 3},
    "lists": {"kernel": [3, 3], "stride": [1, 2]},
    "device": operands(device="cpu"),
}
APART = {"strides of gy": {"gy": tensor(6, 16, 8, 8)}, "strides of x": {"x": tensor(6, 16, 8, 8)}}
GROUPS = {"groups": 1}
MEASURED = {"needs_input": True, "first": 0, "last": 6, "group": 1}
NORMALISED = {
    "gradient of x": {"needs_input": False},
    "first": {"first": 1},
    "last": {"last": 5},
    "group": {"group": 2},
}
BY_CHANNEL = {
    "shape": by_channel((6, 16, 4, 16)),
    "channels": by_channel((6, 32, 8, 4)),
    "strides of gy": {"gy": tensor(6, 16, 8, 8, form=LAST)},
    "strides of x": {"x": tensor(6, 16, 8, 8, form=LAST)},
    "rows apart": {"x": tensor(6, 16, 8, 9)[..., 1:]},
    "type": {"gy": tensor(6, 16, 8, 8, dtype=HALF), "x": tensor(6, 16, 8, 8, dtype=HALF)},
    "type of mean": {"mean": tensor(16, dtype=HALF)},
    "type of rstd": {"rstd": tensor(16, dtype=HALF)},
    "type of weight": {"weight": tensor(16, dtype=HALF)},
} | NORMALISED

# By function: the arguments of a call, and by name what differs from them.
CALLS = {
    fused_products.fused_products: (
        CONVOLUTION | GROUPS, CONVOLVED | {"groups": {"groups": 2}, "beginning": operands(form=LAST, beginning=4)},
    ),
    fused_products.fused_squares: (CONVOLUTION | GROUPS, CONVOLVED | {"groups": {"groups": 2}}),
    gram.gram_squares: (CONVOLUTION | operands(form=LAST), CONVOLVED | APART),
    depthwise.depthwise_products: (
        CONVOLUTION | operands(form=LAST),
        {name: changed for name, changed in CONVOLVED.items() if name not in ("channels", "outputs", "both last")}
        | APART,
    ),
    normalisation.batch_norm_backward: (
        by_channel() | {"training": True} | MEASURED, BY_CHANNEL | {"training": {"training": False}},
    ),
    normalisation.group_norm_backward: (
        by_group(4) | MEASURED,
        {name: changed for name, changed in BY_CHANNEL.items() if "mean" not in changed} | {"groups": by_group(8)},
    ),
    normalisation.layer_norm_backward: (
        by_row() | MEASURED,
        {
            "shape": by_row((6, 3, 48)),
            "features": by_row((6, 5, 80)),
            "long rows": by_row((6, 5, 5000)),
            "rows apart": {"x": tensor(6, 5, 50)[..., :48]},
            "features apart": {"gy": tensor(6, 48, 5).mT},
            "type": by_row(dtype=HALF),
            "type of rstd": {"rstd": tensor(6, 5, dtype=HALF)},
            "type of mean": {"mean": tensor(6, 5, dtype=HALF)},
            "type of weight": {"weight": tensor(48, dtype=HALF)},
        }
        | NORMALISED,
    ),
}  # fmt: skip


def described(value):
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.stride(), value.dtype, value.device.type
    return value


def launched(function, arguments):
    """Return what a call launches, and what its results are like. None runs."""
    seen = []

    def record(launch, *tensors):
        types = [tensor.dtype for tensor in tensors]
        assert vars(launch).setdefault("types", types) == types  # it has code for one combination alone
        assert all(size > 0 for size in launch.grid)
        seen.append((launch.kernel.fn, launch.grid, launch.values, launch.options, *map(described, tensors)))

    with mock.patch.object(launching.Launch, "__call__", record):
        results = function(**arguments)
    assert seen
    return seen, [described(result) for result in (results if isinstance(results, tuple) else (results,))]


def forget():
    for plan in PLANS:
        plan.cache_clear()


@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__name__)
def test_plans_depend_on_all_that_matters(function):
    """After a call that differs in one thing, the same is launched as without it."""
    base, changes = CALLS[function]
    for name, changed in changes.items():
        forget()
        alone = launched(function, base | changed)
        forget()
        launched(function, base)
        assert launched(function, base | changed) == alone, name


def test_products_in_tf32_are_planned_for_themselves():
    found = []
    forget()
    for allowed in (False, True):
        with mock.patch.object(torch.backends.cuda, "matmul", mock.Mock(spec=["allow_tf32"], allow_tf32=allowed)):
            found.append(launched(gram.gram_squares, CONVOLUTION)[0][0][2])
    assert "ieee" in found[0] and "tf32" in found[1]


class Kernel:
    """Stands for a kernel: notes which way it is launched, and on which device."""

    def __init__(self, error=None):
        self.ways, self.error, self.device = [], error, None

    def __getitem__(self, grid):
        def usual(*arguments, **options):
            self.ways.append(("usual", grid, arguments, options, self.device))
            return Compiled(self)

        return usual


class Compiled:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def short(*arguments):
            self.kernel.ways.append(("short", grid, arguments, {}, self.kernel.device))
            if self.kernel.error:
                raise self.kernel.error

        return short


@pytest.fixture
def known(monkeypatch):
    """Have triton be of a version that is known."""
    monkeypatch.setattr(launching, "_known_version", lambda: True)


def ways(kernel, device="cpu", calls=3):
    launch = launching.Launch(kernel, (5,), (1, True), torch.device(device), num_warps=2)
    for _ in range(calls):
        launch(torch.zeros(3))
    assert all(grid == (5, 1, 1) and arguments[1:] == (1, True) for _, grid, arguments, _, _ in kernel.ways)
    assert all(options == ({"num_warps": 2} if way == "usual" else {}) for way, _, _, options, _ in kernel.ways)
    return [way for way, *_ in kernel.ways]


def test_a_launcher_that_wants_other_arguments_is_left(known):
    assert ways(Kernel()) == ["usual", "short", "short"]
    assert ways(Kernel(TypeError("function takes exactly 7 arguments"))) == ["usual", "short", "usual", "usual"]
    with pytest.raises(RuntimeError, match="no device"):
        ways(Kernel(RuntimeError("no device")))


@pytest.mark.parametrize("version", ["3.2.0", "3.10.0", "4.0"])
def test_other_versions_of_triton_go_the_usual_way(version, monkeypatch):
    monkeypatch.setattr("triton.__version__", version)
    launching._known_version.cache_clear()
    assert ways(Kernel()) == ["usual"] * 3
    launching._known_version.cache_clear()


@pytest.mark.parametrize(("current", "entered"), [(0, [1, 1]), (1, [])])
def test_the_device_of_the_tensors_is_entered_if_it_is_not_the_current_one(current, entered, known, monkeypatch):
    devices = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "device", lambda index: devices.append(index) or mock.MagicMock())
    assert ways(Kernel(), "cuda:1", calls=2) == ["usual", "short"]
    assert devices == entered


def misaligned(like):
    """Return a tensor of the same form that begins 4 bytes after a multiple of 16."""
    room = bytearray(like.untyped_storage().nbytes() + 32)
    begin = -torch.frombuffer(room, dtype=torch.uint8).data_ptr() % 16 + 4
    size = len(room) - 32
    flat = torch.frombuffer(room, dtype=torch.uint8, offset=begin, count=size).view(like.dtype)
    return flat.as_strided(like.shape, like.stride())


def on_no_device():
    """Print by function what reaches the launcher in three calls, one with a tensor elsewhere, and one more."""
    import no_device
    from triton.runtime.jit import JITFunction

    seen, inputs = [], {}

    def note(grid_x, grid_y, grid_z, stream, function, metadata, launch_metadata, enter, leave, *arguments):
        told = [inputs.get(value.data_ptr(), "new") if hasattr(value, "data_ptr") else value for value in arguments]
        seen.append({"grid": (grid_x, grid_y, grid_z), "function": function, "arguments": told})

    no_device.install(note)
    usual = mock.patch.object(JITFunction, "run", autospec=True, side_effect=JITFunction.run)
    found = {}
    for function, (base, _) in CALLS.items():
        base = {name: on_processor(value) for name, value in base.items()}
        name = "weight" if "weight" in base else "gy"
        other = base | {name: misaligned(base[name])}
        inputs = {
            value.data_ptr(): key
            for arguments in (base, other)
            for key, value in arguments.items()
            if isinstance(value, torch.Tensor)
        }
        calls = []
        for arguments in (base, base, base, other, other, base):
            with usual as run:
                function(**arguments)
            calls.append({"launches": list(seen), "usual": run.call_count})
            seen.clear()
        found[function.__name__] = calls
    print(json.dumps(found))


def on_processor(value):
    return torch.zeros_like(value, device="cpu") if isinstance(value, torch.Tensor) else value


@pytest.fixture(scope="module")
def told():
    if not launching._known_version():
        pytest.skip("this version of triton is launched the usual way alone")
    return json.loads(scripts.run(__file__, paths=[BENCHMARKS], TRITON_INTERPRET="0"))


@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__name__)
def test_later_launches_are_short_and_the_same(function, told):
    first, second, third, elsewhere, again, back = told[function.__name__]
    assert first["usual"] == len(first["launches"]) > 0
    assert second["usual"] == third["usual"] == back["usual"] == 0
    assert first["launches"] == second["launches"] == third["launches"] == back["launches"]
    assert all(size > 0 for launch in first["launches"] for size in launch["grid"])
    assert again["usual"] == 0
    assert again["launches"] == elsewhere["launches"]
    touched = 0
    for aligned, other in zip(first["launches"], elsewhere["launches"], strict=True):
        assert (aligned["grid"], aligned["arguments"]) == (other["grid"], other["arguments"])
        takes = ("weight" if "weight" in CALLS[function][0] else "gy") in aligned["arguments"]
        assert (aligned["function"] != other["function"]) == takes
        touched += takes
    assert elsewhere["usual"] == touched > 0


if __name__ == "__main__":
    on_no_device()
