"""Which exact method each layer of a model uses, and why: which `clars norms plan` prints."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from clars.norms.methods.chooser import applying
from clars.norms.methods.groups import number
from clars.norms.methods.method import Method, Operands
from clars.norms.methods.sizes import Sizes
from clars.norms.tracker import ExampleNorms


@dataclass(frozen=True)
class Choice:
    """The method chosen for one layer's weight.

    Attributes:
        pieces: how many pieces the batch is worked off in.
        bytes: what a piece takes beside input, output gradient and gradient.
        seconds: of each method that applies, where they were timed.
    """

    layer: str
    sizes: Sizes
    method: str
    pieces: int
    bytes: int
    seconds: dict[str, float]


def plan(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    *batch: Tensor,
    memory: int | None = None,
    time: bool = False,
    group: int = 1,
) -> tuple[list[Choice], dict[str, str]]:
    """Return the choices of one backward pass, and which layers are refused, with what they do that has no exact norm.

    Both are in the order of the layers; convolutions and linear layers make a choice.

    Args:
        model: any model that can be tracked; its gradients are cleared, and a tracker it has is replaced.
        loss_fn: called as `loss_fn(model, *batch)`, returns a scalar.
        batch: passed on to `loss_fn`.
        memory: as for `ExampleNorms`.
        group: how many examples are measured together.
        time: time every method that applies, and choose by that.
    """
    choices: dict[str, Choice] = {}

    def note(layer: str, sizes: Sizes, operands: Operands, method: Method) -> None:
        seconds = norms.estimator.chooser.seconds(sizes, operands, applying(sizes)) if time else {}
        pieces = method.pieces(sizes, memory)
        each = pieces[0].stop - pieces[0].start
        taken = number(each, sizes.group) * method.bytes(sizes)
        choices[layer] = Choice(layer, sizes, method.name, len(pieces), taken, seconds)

    options = {"estimator": "group", "group": group} if group > 1 else {}
    norms = ExampleNorms(model, memory=memory, timed=time, **options)
    norms.estimator.report_to(note)
    refused = norms.gather_refusals()
    try:
        loss_fn(model, *batch).backward()
    finally:
        norms.remove()
        model.zero_grad()
    made = [choices[layer.name] for layer in norms.layers if layer.name in choices and layer.name not in refused]
    return made, {layer.name: refused[layer.name] for layer in norms.layers if layer.name in refused}
