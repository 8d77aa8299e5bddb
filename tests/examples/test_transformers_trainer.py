"""Training by transformers.Trainer equals the loop that is written out, for a ViT and a ResNet."""

import copy

import by_hand
import pytest
import torch
from accelerate.state import AcceleratorState
from torch.nn.functional import cross_entropy

transformers = pytest.importorskip("transformers")
transformers_trainer = by_hand.example("transformers_trainer")
SIZE, STEPS = 4, 6
MODELS = pytest.mark.parametrize("name", ["vit", "resnet"])


@pytest.fixture(autouse=True)
def fresh_state():
    """Accelerate keeps one precision and one way of accumulating for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def new(name, dtype=torch.float32):
    torch.manual_seed(0)
    return getattr(transformers_trainer, name)().to(dtype).train()


def falling(step, steps=STEPS):
    return 1 - step / steps


def fit(model, batches, folder, **options):
    """By default in the order of the data: batch for batch what the loop by hand is given."""
    dataset = [{"pixel_values": x, "labels": int(y)} for images, labels in batches for x, y in zip(images, labels)]
    options = {
        "per_device_train_batch_size": SIZE,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "max_steps": STEPS,
    } | options
    return transformers_trainer.train(model, dataset, str(folder), **options)


def items(count):
    """The loss as ViT forms it for the Trainer: a sum, over the number of examples of the whole step."""

    def loss(model, images, labels):
        return cross_entropy(model(pixel_values=images).logits, labels, reduction="sum") / count

    return loss


def mean(model, images, labels):
    return cross_entropy(model(pixel_values=images).logits, labels)


def losses(name, parts):
    """What is handed to the loop by hand: ViT divides by itself, ResNet not at all."""
    return {"loss": items(SIZE * parts) if name == "vit" else mean, "share": 1.0, "parts": parts}


@MODELS
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.0}, {"max_grad_norm": 0.01}, {"bf16": True}], ids=str)
def test_it_equals_the_loop_by_hand(name, options, tmp_path):
    """The first of the options are the defaults, which clip to 1."""
    model, batches = new(name), by_hand.batches(STEPS, SIZE)
    start, expected = copy.deepcopy(model), copy.deepcopy(model)
    fit(model, batches, tmp_path, **options)
    clip, bf16 = options.get("max_grad_norm", 1.0), options.get("bf16", False)
    by_hand.train(expected, batches, **losses(name, 1), clip=clip, rate=falling, bf16=bf16)
    by_hand.assert_same(model, expected)
    by_hand.assert_moved(model, start)


@MODELS
def test_accumulation(name, tmp_path):
    """ResNet's loss is not divided by the number of micro-batches, by nobody."""
    model, batches = new(name), by_hand.batches(STEPS, SIZE)
    expected = copy.deepcopy(model)
    fit(model, batches, tmp_path, gradient_accumulation_steps=2, max_steps=STEPS // 2)
    rate = lambda step: falling(step, STEPS // 2)  # noqa: E731
    by_hand.train(expected, batches, **losses(name, 2), clip=1.0, rate=rate)
    by_hand.assert_same(model, expected)


@pytest.mark.skipif(
    not hasattr(transformers.Trainer, "loss_is_scaled_for_ga"),
    reason="needs a newer transformers, which make test installs",
)
def test_accumulation_of_a_loss_that_is_to_be_divided(tmp_path):
    class Dividing(transformers.Trainer):
        loss_is_scaled_for_ga = False

    model, batches = new("resnet"), by_hand.batches(STEPS, SIZE)
    expected = copy.deepcopy(model)
    options = {"gradient_accumulation_steps": 2, "max_steps": STEPS // 2, "lr_scheduler_type": "constant"}
    fit(model, batches, tmp_path, make_trainer=Dividing, **options)
    by_hand.train(expected, batches, loss=mean, parts=2, clip=1.0)
    by_hand.assert_same(model, expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant, tmp_path):
    """Of ViT, which has no batch statistics that a second forward would change; ResNet does not support it."""
    model, batches = new("vit"), by_hand.batches(STEPS, SIZE)
    expected = copy.deepcopy(model)
    kwargs = {"use_reentrant": reentrant}
    fit(model, batches, tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs=kwargs)
    assert model.is_gradient_checkpointing
    by_hand.train(expected, batches, **losses("vit", 1), clip=1.0, rate=falling)
    by_hand.assert_same(model, expected)


@MODELS
def test_it_equals_the_definition(name, tmp_path):
    model, batches = new(name, torch.float64), by_hand.batches(STEPS, SIZE, torch.float64)
    expected = copy.deepcopy(model)
    options = {"gradient_accumulation_steps": 2, "max_steps": STEPS // 2, "lr_scheduler_type": "constant"}
    fit(model, batches, tmp_path, max_grad_norm=0.1, **options)
    by_hand.train_by_definition(expected, batches, **losses(name, 2), clip=0.1)
    by_hand.assert_same(model, expected, rtol=1e-9)


@MODELS
def test_a_checkpoint_goes_on_to_the_same_numbers(name, tmp_path):
    """Shuffled, as by default: the Trainer finds the place in its order again.

    The weights come by from_pretrained: ViT saves them under other names than those that a resuming Trainer looks for.
    """
    straight, batches, saved = new(name), by_hand.batches(STEPS // 2, SIZE), tmp_path / "checkpoint-2"
    options = {"train_sampling_strategy": "random", "gradient_accumulation_steps": 2}
    fit(straight, batches, tmp_path, save_strategy="steps", save_steps=2, **options)
    resumed = type(straight).from_pretrained(saved)
    fit(resumed, batches, tmp_path, resume=str(saved), **options)
    by_hand.assert_same(resumed, straight)


def test_the_script(capsys):
    by_hand.run_as_script("transformers_trainer")
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "at first" in line]
    assert [float(line[5]) < 0.8 * float(line[2]) for line in lines] == [True, True]
