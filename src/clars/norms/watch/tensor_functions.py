"""The functions of torch in which a tracked parameter may appear beside those of layers (see `rules`)."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import resolve_name

# A parameter keeps its norm under these: what comes out is followed like the parameter itself, as long as no element
# is lost or repeated. (Tuples, as older torch.compile cannot look into a set.)
VIEWS = (
    Tensor.reshape,
    torch.reshape,
    Tensor.view,
    Tensor.unsqueeze,
    torch.unsqueeze,
    Tensor.squeeze,
    torch.squeeze,
    Tensor.flatten,
    torch.flatten,
    Tensor.permute,
    torch.permute,
    Tensor.transpose,
    torch.transpose,
    Tensor.t,
    Tensor.contiguous,
    Tensor.to,
    Tensor.float,
    Tensor.type_as,
    Tensor.clone,
    Tensor.__getitem__,
    Tensor.T.__get__,
    Tensor.mT.__get__,
)

# In Python, what writes into its first operand; `__iter__` and others of such names do not.
WRITING = ("__setitem__", "__iadd__", "__isub__", "__imul__", "__idiv__", "__itruediv__", "__ifloordiv__", "__imod__")
WRITING += ("__ipow__", "__iand__", "__ior__", "__ixor__")

COMPUTED_ATTRIBUTES = tuple(
    attribute.__get__ for attribute in (Tensor.T, Tensor.mT, Tensor.H, Tensor.mH, Tensor.real, Tensor.imag)
)

# A parameter that enters one of these is broadcast over the examples: it is expanded first, and each example's own
# gradient is seen on the way back.
ELEMENTWISE = (
    torch.add,
    torch.sub,
    torch.mul,
    torch.div,
    Tensor.add,
    Tensor.sub,
    Tensor.mul,
    Tensor.div,
    Tensor.add_,
    Tensor.sub_,
    Tensor.mul_,
    Tensor.div_,
    Tensor.__add__,
    Tensor.__radd__,
    Tensor.__iadd__,
    Tensor.__sub__,
    Tensor.__rsub__,
    Tensor.__isub__,
    Tensor.__mul__,
    Tensor.__rmul__,
    Tensor.__imul__,
    Tensor.__truediv__,
    Tensor.__itruediv__,
    Tensor.subtract,
    Tensor.multiply,
    Tensor.divide,
    torch.subtract,
    torch.multiply,
    torch.divide,
    torch.true_divide,
)

EXPANSIONS = (Tensor.expand, Tensor.expand_as, torch.broadcast_to)

# These take only type, device or shape from a second operand.
LOOKS_AT_SECOND = (Tensor.expand_as, Tensor.type_as, Tensor.to, Tensor.view_as, Tensor.reshape_as)

# What is stacked has a dimension less than the result.
STACKS = (torch.stack,)

# Their last two dimensions are summed over, or of the sum's terms.
PRODUCTS = (
    torch.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.__rmatmul__,
    torch.bmm,
    Tensor.bmm,
    F.scaled_dot_product_attention,
)

JOINS = (torch.cat, torch.concat, torch.concatenate)

# Where a batch is met beside `ELEMENTWISE`: what the examples have in common is expanded along one dimension of the
# result, which has them.
MEETINGS = (
    *JOINS,
    *STACKS,
    torch.where,
    Tensor.where,
    Tensor.__setitem__,
    torch.addcmul,
    Tensor.addcmul,
    torch.addcdiv,
    Tensor.addcdiv,
    torch.lerp,
    Tensor.lerp,
    torch.maximum,
    torch.minimum,
    torch.pow,
    Tensor.pow,
    Tensor.__pow__,
    Tensor.__rtruediv__,
    Tensor.__rdiv__,
    *PRODUCTS,
)


def keeps_every_element(func, args) -> bool:
    """Tell whether a view has every element once: indexing by tensors or lists may repeat and drop some."""
    if func is not Tensor.__getitem__:
        return True
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return all(value is None or value is Ellipsis or isinstance(value, (int, slice)) for value in index)


def is_of_the_tensor_itself(func) -> bool:
    """Tell whether a function reads or changes what belongs to a tensor and not to its values, such as its gradient."""
    name = getattr(func, "__name__", "")
    attribute = name in ("__get__", "__set__", "__delete__") and func not in COMPUTED_ATTRIBUTES
    return attribute or name.startswith("register_") or name in ("retain_grad", "backward")


def is_in_place(func) -> bool:
    """Tell whether a function of torch writes into its first argument."""
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name in WRITING


def dim_of(args, kwargs) -> int:
    """Return the dimension along which tensors are joined or stacked."""
    return kwargs.get("dim", args[1] if len(args) > 1 else 0)


def name_of(func) -> str:
    """Return the name by which a user knows a function of torch."""
    return resolve_name(func) or getattr(func, "__name__", str(func))
