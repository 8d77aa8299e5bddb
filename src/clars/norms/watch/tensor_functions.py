"""The functions of torch in which a tracked parameter may appear beside those of layers (see `rules`)."""

import torch
from torch import Tensor

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
)

EXPANSIONS = (Tensor.expand, Tensor.expand_as, torch.broadcast_to)

# These take only type, device or shape from a second operand.
LOOKS_AT_SECOND = (Tensor.expand_as, Tensor.type_as, Tensor.to, Tensor.view_as, Tensor.reshape_as)
