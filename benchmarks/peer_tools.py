"""The tools that peers.py compares: the model that all of them accept, and a training step with each."""

from collections.abc import Callable
from dataclasses import dataclass

import timm
import timm.optim
import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn import functional as F

import clars

CLASSES = 1000
BATCH_NORM_MODELS = ("resnet50", "densenet121", "mobilenetv2_100")
ERROR_BATCH, ERROR_PIXELS = 4, 64  # small, because the definition costs a backward pass per layer and example
BATCH_NORM_BATCH, BATCH_NORM_PIXELS = 2, 64

Norms = dict[str, Tensor]  # S by layer name: the sum over the examples of the norm of their part of the gradient
Step = Callable[[Tensor, Tensor], Norms]  # one training step on a batch


class Block(BasicBlock):
    """timm's block without its in-place addition, which the backward hooks of Opacus and BackPACK do not survive."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        inner = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(inner)) + shortcut)


def group_norm(channels: int, **kwargs) -> nn.GroupNorm:
    """Return torch's own class: Opacus and BackPACK know layers by their exact class, and timm has a subclass."""
    return nn.GroupNorm(32, channels, **kwargs)


def relu(inplace: bool = False) -> nn.ReLU:
    """Return a ReLU that is not in place, whatever is asked for."""
    return nn.ReLU()


def peer_resnet18() -> nn.Module:
    """Return a ResNet-18 with GroupNorm and nothing in place; no layer starts at zero, so every norm is compared."""
    return ResNet(Block, (2, 2, 2, 2), num_classes=CLASSES, norm_layer=group_norm, act_layer=relu, zero_init_last=False)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 1e-3, 0.9, weight_decay=5e-4, nesterov=True)


def layer_sums(found: list[clars.Layer], squared: Callable[[nn.Parameter], Tensor]) -> Norms:
    """Return S per layer from squared norms [B] per parameter: the weight and bias of a layer are one vector."""
    return {layer.name: sum(map(squared, layer.parameters.values())).sqrt().sum() for layer in found}


# The tools. Each takes a model and returns its training step.


def without_norms(optimizer_of: Callable[[nn.Module], torch.optim.Optimizer]) -> Callable[[nn.Module], Step]:
    def build(model: nn.Module) -> Step:
        optimizer = optimizer_of(model)

        def step(x: Tensor, y: Tensor) -> Norms:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            return {}

        return step

    return build


def timm_lars(model: nn.Module) -> torch.optim.Optimizer:
    return timm.optim.Lars(model.parameters(), 1e-3, 0.9, weight_decay=5e-4, nesterov=True)


def with_clars(estimator: str) -> Callable[[nn.Module], Step]:
    def build(model: nn.Module) -> Step:
        norms = clars.ExampleNorms(model, estimator=estimator)
        optimizer = clars.CLARS(model, 1e-3, norms=norms)

        def step(x: Tensor, y: Tensor) -> Norms:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            sums = norms.sums()
            optimizer.step()
            return sums

        return step

    return build


def opacus_gradients(model: nn.Module, strict: bool = True) -> Step:
    from opacus import GradSampleModule

    found, optimizer = clars.layers(model), sgd(model)
    wrapped = GradSampleModule(model, strict=strict)

    def squared(parameter: nn.Parameter) -> Tensor:
        # grad_sample holds the gradients of the examples' own losses; the loss is their mean.
        each = parameter.grad_sample.flatten(1)
        return (each.norm(dim=1) / len(each)).square()

    def step(x: Tensor, y: Tensor) -> Norms:
        wrapped.zero_grad()  # the wrapper's, which drops grad_sample too
        F.cross_entropy(wrapped(x), y).backward()
        sums = layer_sums(found, squared)
        optimizer.step()
        return sums

    return step


def opacus_ghost(model: nn.Module) -> Step:
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    found, optimizer = clars.layers(model), sgd(model)
    wrapped = GradSampleModuleFastGradientClipping(model)

    def squared(parameter: nn.Parameter) -> Tensor:
        # Public is only the norm over all parameters together; the norms per parameter are kept here.
        return (parameter._norm_sample / len(parameter._norm_sample)).square()

    def step(x: Tensor, y: Tensor) -> Norms:
        wrapped.zero_grad()
        F.cross_entropy(wrapped(x), y).backward()
        sums = layer_sums(found, squared)
        optimizer.step()
        return sums

    return step


def backpack_squares(model: nn.Module) -> Step:
    from backpack import backpack, extend

    found, optimizer, extension = clars.layers(model), sgd(model), batch_l2_grad()
    modules = {id(value): layer.module for layer in found for value in layer.parameters.values()}
    extend(model)

    def squared(parameter: nn.Parameter) -> Tensor:
        if not hasattr(parameter, "batch_l2"):  # BackPACK warns and goes on
            raise NotImplementedError(f"no rule for {type(modules[id(parameter)]).__name__}, which is left out.")
        return parameter.batch_l2

    def step(x: Tensor, y: Tensor) -> Norms:
        optimizer.zero_grad()
        with backpack(extension):
            F.cross_entropy(model(x), y).backward()
        sums = layer_sums(found, squared)
        optimizer.step()
        return sums

    return step


def batch_l2_grad():
    """Return BackPACK's BatchL2Grad, taught GroupNorm, which it has no rule for."""
    from backpack.extensions import BatchL2Grad
    from backpack.extensions.firstorder.base import FirstOrderModuleExtension

    class GroupNormSquares(FirstOrderModuleExtension):
        def __init__(self) -> None:
            super().__init__(params=["weight", "bias"])

        def weight(self, extension, module, g_inp, g_out, quantities) -> Tensor:
            normalised = F.group_norm(module.input0, module.num_groups, eps=module.eps)
            return (g_out[0] * normalised).flatten(2).sum(2).square().sum(1)

        def bias(self, extension, module, g_inp, g_out, quantities) -> Tensor:
            return g_out[0].flatten(2).sum(2).square().sum(1)

    extension = BatchL2Grad()
    extension.set_module_extension(nn.GroupNorm, GroupNormSquares())
    return extension


def vmap_of_grad(model: nn.Module) -> Step:
    found, optimizer = clars.layers(model), sgd(model)
    parameters = dict(model.named_parameters())
    names = {id(value): name for name, value in parameters.items()}

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, values, (image[None],)), label[None])

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))

    def step(x: Tensor, y: Tensor) -> Norms:
        gradients = each({name: value.detach() for name, value in parameters.items()}, x, y)
        for name, value in parameters.items():
            value.grad = gradients[name].mean(0)
        sums = layer_sums(found, lambda value: (gradients[names[id(value)]].flatten(1).norm(dim=1) / len(x)).square())
        optimizer.step()
        return sums

    return step


@dataclass(frozen=True)
class Peer:
    """A tool: its label, how its training step is built, what it does, and whether it forms norms."""

    label: str
    build: Callable[[nn.Module], Step]
    note: str
    norms: bool = True


PEERS = {
    "sgd": Peer(
        "torch SGD", without_norms(sgd), "with Nesterov momentum and without norms; the baseline.", norms=False
    ),
    "lars": Peer("timm Lars", without_norms(timm_lars), "an optimizer without per-example norms.", norms=False),
    "clars": Peer("CLARS, exact", with_clars("exact"), "`clars.CLARS`, from the norm of every example."),
    "subset": Peer(
        "CLARS, subset",
        with_clars("subset"),
        '`clars.CLARS` with `ExampleNorms(model, estimator="subset")`: an estimate, and its error that of one draw.',
    ),
    "ghost": Peer(
        "Opacus, ghost norms",
        opacus_ghost,
        "`GradSampleModuleFastGradientClipping`, only the first of the two backward passes of its clipping: that one "
        "gives the norms and the gradient. It has ghost norms for linear layers and embeddings; of convolutions and "
        "GroupNorm it forms each example's gradient, a layer at a time. Norms per parameter are a private attribute.",
    ),
    "gradients": Peer(
        "Opacus, gradients",
        opacus_gradients,
        "`GradSampleModule`; the norms of `grad_sample`, which holds every example's gradient of every layer at once.",
    ),
    "backpack": Peer(
        "BackPACK",
        backpack_squares,
        "`BatchL2Grad`, which gives squared norms per parameter, added up per layer here. It has no rule for "
        "GroupNorm: one was added for this comparison. Its convolutions are a `torch.einsum` of four factors, ordered "
        "by opt-einsum where that is installed, as it is here (Opacus needs it); without, they are slower.",
    ),
    "vmap": Peer(
        "torch vmap(grad)",
        vmap_of_grad,
        "`torch.func`; the norms of every example's gradient, whose mean is the gradient. The loss itself is not kept.",
    ),
}


def out_of_place(model: nn.Module) -> nn.Module:
    """Switch off in-place modules. Operations in place in a forward, as in timm's residual blocks, have no switch."""
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return model


def without_running_statistics(model: nn.Module) -> nn.Module:
    return torch.func.replace_all_batch_norm_modules_(model)


# What a person would try next where a network is refused as it comes.
SECOND_TRIES = {
    "Opacus, gradients, strict=False": lambda model: opacus_gradients(model, strict=False),
    "BackPACK, modules not in place": lambda model: backpack_squares(out_of_place(model)),
    # The remedy that torch's documentation names. Each example is then normalised by its own statistics.
    "torch vmap(grad), no running statistics": lambda model: vmap_of_grad(without_running_statistics(model)),
}
