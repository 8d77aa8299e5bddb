"""Whether clars tells a network's norms: with BatchNorm by its running statistics, then by those of the batch."""

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

import clars
from clars.errors import UnsupportedLayerError, UserError

BATCH, CLASSES = 3, 10
BOUND = 1e-6  # relative error of any layer's S_k
FLOOR = 1e-9  # of the largest layer's: below, a gradient is zero but for rounding
CHANCES = ("p", "drop_prob", "dropout", "attention_dropout", "attn_drop", "dropout_prob", "drop_path_rate", "dropout_p")


class Network(NamedTuple):
    """A network, and `BATCH` examples that it takes: pictures, or tensors by the names of its arguments."""

    model: nn.Module
    x: Tensor | dict[str, Tensor]
    left_out: int = 0  # blocks like those before them, of a network too large to be checked whole

    def shape(self) -> list[int]:
        """Return the shape of one picture, or of what stands for it."""
        return list((self.x if isinstance(self.x, Tensor) else next(iter(self.x.values()))).shape[1:])


def pictures(pixels: int) -> Tensor:
    return torch.randn(BATCH, 3, pixels, pixels)


def first_that_takes(candidates: Iterable[Callable[[], Network]]) -> Network:
    """Return the first network whose output, in evaluation mode, is finite.

    Raises:
        ValueError: there is none; with what the last one says.
    """
    problem = "there is no candidate"
    for candidate in candidates:
        try:
            torch.manual_seed(0)
            network = candidate()
            with torch.no_grad():
                outputs = _tensors(_called(network.model.eval(), network.x))
            if outputs and all(bool(output.isfinite().all()) for output in outputs):
                return network
            problem = "its output is not finite"
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
    raise ValueError(problem)


def loss_fn(model: nn.Module, x: Tensor | dict[str, Tensor], y: Tensor) -> Tensor:
    """Return the mean cross entropy, summed over the outputs of a network that has several.

    One example alone is taken twice, which is the same mean: the gradient of torch's BatchNorm on processors is wrong
    for a batch of one whose rows lie one channel, not one example, apart, as after some permutations.
    """
    if len(y) == 1:
        x, y = _twice(x), _twice(y)
    outputs = [output.reshape(len(y), -1) for output in _tensors(_called(model, x))]
    return sum(F.cross_entropy(output, y % output.shape[1]) for output in outputs)


def _called(model: nn.Module, x: Tensor | dict[str, Tensor]) -> object:
    if isinstance(x, Tensor):
        return model(x)
    output = model(**x)
    return getattr(output, "logits", output)  # one class of transformers gives them another name


def _tensors(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values if value is not None for tensor in _tensors(value)]


def prepare(model: nn.Module) -> nn.Module:
    """Return the model in float64 and training mode, with nothing left to chance, and no parameter left at zero."""
    model.double().train().requires_grad_(True)
    for module in model.modules():
        for name in CHANCES:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            parameter += (0.1 * spread or 0.02) * torch.randn_like(parameter)
    return model


def batch_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def settle(model: nn.Module, loss: Callable[[], Tensor]) -> None:
    """Have running statistics be those of the batch, and BatchNorm use them."""
    norms = batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        loss()
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        norm.eval()


def check(network: Network) -> dict:
    """Return what became of a network, as plain values.

    `status` is "covered" where the largest relative error of a layer's S_k, and of its gradient, is within the bound;
    "wrong" where it is not; "refused" where clars says that it cannot tell; "fails" where it breaks.
    """
    torch.manual_seed(0)
    model = prepare(network.model)
    batch = _double(network.x), torch.arange(BATCH)
    found = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    found |= {"layers": len(clars.layers(model)), "batch_norm": bool(batch_norms(model))}
    settle(model, lambda: loss_fn(model, *batch))
    with torch.no_grad():
        if loss_fn(model, *batch) != loss_fn(model, *batch):
            model.eval()
            found["evaluation_mode"] = True
    found["running"] = compare(model, batch, clars.oracle.example_norms)
    if found["batch_norm"] and found["running"]["status"] == "covered":
        for norm in batch_norms(model):
            norm.train()
        found["of_batch"] = compare(model, batch, _masked)
    found["status"] = found.get("of_batch", found["running"])["status"]
    return found


def _masked(*arguments) -> dict[str, Tensor]:
    return clars.oracle.mask_norms(*arguments, partial=True)


def _twice(x: Tensor | dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
    return {name: _twice(value) for name, value in x.items()} if isinstance(x, dict) else torch.cat([x, x])


def _double(x: Tensor | dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
    if isinstance(x, dict):
        return {name: _double(value) for name, value in x.items()}
    return x.double() if x.is_floating_point() else x


def compare(model: nn.Module, batch: tuple, oracle: Callable[..., dict[str, Tensor]]) -> dict:
    """Return what clars says of a model beside an oracle, for the layers of which that can tell."""
    expected_gradient = _gradients(model, lambda: loss_fn(model, *batch).backward())
    began = time.process_time()
    norms = None
    try:
        norms = clars.ExampleNorms(model)
        gradient = _gradients(model, lambda: loss_fn(model, *batch).backward())
        sums = norms.sums()
        slow = sorted(getattr(norms, "slow_layers", ()))
    except UnsupportedLayerError as error:
        alike: dict[str, list[str]] = {}
        for layer, problem in error.problems.items():
            alike.setdefault(problem, []).append(layer)
        return {"status": "refused", "problems": alike}
    except UserError as error:
        return {"status": "refused", "problems": {str(error): []}}
    except Exception as error:
        return {"status": "fails", "message": f"{type(error).__name__}: {error}"}
    finally:
        if norms is not None:
            norms.remove()
    tracked = time.process_time() - began
    silent = _without_gradient(model, expected_gradient)  # whose sums are taken for cleared with it
    expected = {name: value for name, value in oracle(model, loss_fn, *batch).items() if name not in silent}
    errors = {
        "S_k": _worst({name: sums[name] for name in expected}, expected),
        "gradient": _worst(gradient, expected_gradient),
    }
    kind, (error, layer) = max(errors.items(), key=lambda item: item[1][0])
    told = {"error": error, "told": len(expected), "slow_layers": slow, "seconds": round(tracked, 2)}
    if error <= BOUND:
        return {"status": "covered", **told}
    wrong = {name: _worst({name: sums[name]}, {name: value})[0] for name, value in expected.items()}
    many = sum(value > BOUND for value in wrong.values())
    return {"status": "wrong", **told, "message": f"{kind} of {layer} off by {error:.1e}; {many} layers' S_k are off"}


def _without_gradient(model: nn.Module, gradients: dict[str, Tensor]) -> set[str]:
    """Return the layers that a loss reaches and whose gradients are exactly zero, as of a bias before BatchNorm."""
    own = {
        layer.name: [gradients[layer.prefix + local] for local in layer.parameters if layer.prefix + local in gradients]
        for layer in clars.layers(model)
    }
    return {name for name, each in own.items() if each and not any(bool(gradient.any()) for gradient in each)}


def _gradients(model: nn.Module, backward: Callable[[], None]) -> dict[str, Tensor]:
    model.zero_grad()
    backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """Return the largest relative error, infinite where one is no number or missing, and whose it is."""
    if found.keys() != expected.keys():
        return 1e300, min(found.keys() ^ expected.keys())
    floor = FLOOR * max((float(value.norm()) for value in expected.values()), default=0.0)
    worst = (0.0, "")
    for name, value in expected.items():
        error = float((found[name] - value).norm()) / max(float(value.norm()), floor, 1e-300)
        worst = max(worst, (error if error < 1e300 else 1e300, name))
    return worst
