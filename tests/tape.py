"""A CUDA graph's stand-in on processors: operators are recorded with their tensors, and repeated on the same ones.

As in a graph, Python runs once. A number that it worked out is repeated as it was, and what needs a number back from
a tensor is refused.
"""

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clars.native import where

READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default)


def _writes(func, argument):
    """Tell whether an operator writes to an argument; that of batch normalisation does not tell."""
    if func is torch.ops.aten.native_batch_norm.default:
        return argument.name.startswith("running")
    return argument.alias_info is not None and argument.alias_info.is_write


class _Recording(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []
        self.before = {}  # what was in tensors that were there, and are written to
        self.made = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in READS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        written = [value for about, value in zip(func._schema.arguments, args) if _writes(func, about)]
        for tensor in tree_leaves(written):
            if isinstance(tensor, Tensor) and _place(tensor) not in self.made:
                self.before.setdefault(_place(tensor), (tensor, tensor.clone()))
        given = {_place(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        result = func(*args, **kwargs)
        fresh = [isinstance(each, Tensor) and _place(each) not in given for each in tree_leaves(result)]
        self.made |= {_place(each) for each, new in zip(tree_leaves(result), fresh) if new}
        self.calls.append((func, args, kwargs, result, fresh))
        return result


class Tape:
    def __init__(self, device):
        self.calls = []
        self.recorded = self.replayed = 0

    def aside(self):
        return nullcontext()

    def record(self, work):
        with where.capturing(), _Recording() as recording:
            result = work()
        for tensor, value in recording.before.values():
            tensor.detach().untyped_storage().copy_(value.untyped_storage())
        self.calls = recording.calls
        self.recorded += 1
        return result

    def release(self):
        self.calls = []

    @torch.no_grad()
    def replay(self):
        self.replayed += 1
        for func, args, kwargs, result, fresh in self.calls:
            again = func(*args, **kwargs)
            for old, new, copied in zip(tree_leaves(result), tree_leaves(again), fresh):
                if copied:
                    old.detach().copy_(new)


def _place(tensor):
    return tensor.untyped_storage().data_ptr() or id(tensor)
