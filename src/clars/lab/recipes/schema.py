"""What a recipe may say. Unknown keys, wrong types and impossible values are errors."""

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    model_validator,
)

from clars.presets import author2019

Fraction = Annotated[float, Field(ge=0, lt=1)]
# The upper ends lie beyond every use that is known; what lies beyond them is a slip, and would take the machine.
Pixels = Annotated[int, Field(gt=0, le=4096)]
Batch = Annotated[int, Field(gt=0, le=2**24)]
# What accelerate calls the types that a network computes in.
PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
Width = Annotated[int, Field(gt=0, le=2**16)]
Examples = Annotated[int, Field(gt=0, lt=2**31)]
# 1 == True == 1.0, of which Literal would take each for the others.
Channels = Annotated[Literal[1, 3], BeforeValidator(lambda value: value if type(value) is int else str(value))]


TIMM = "timm."  # before the name of an optimizer that timm's factory makes
FILES = r"\.(safetensors|pth|pt|bin)$"
RANDAUGMENT = r"^rand(-[a-z]+[0-9.]*)*$"
OF_TIMM = r"^timm\.[a-z0-9]+$"
# What messages say of texts that must have a form.
FORMS = {FILES: "a file of weights", RANDAUGMENT: "such as rand-m9-mstd0.5", OF_TIMM: "timm.NAME"}
Arguments = dict[str, bool | int | float | str]


def _from_words(value: bool | str) -> bool | str:
    """Return true for host and false for no: records say so, from before there was a device to choose."""
    return {"host": True, "no": False}.get(value, value)


InMemory = Annotated[bool | Literal["host", "device", "no"], AfterValidator(_from_words)]


class Settings(BaseModel):
    """Base of every section: unknown keys are refused, values never change after reading."""

    # Built at first use: a mistake in a name is told before.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class Model(Settings):
    """A timm model, the small networks of this package included.

    `pretrained` begins with weights: with true those that timm has on the Hub under the model's name, or those of a
    file (.safetensors, .pth). Where the classes are others in number, the classifier begins anew. With true, the data's
    `mean` and `std` are those that the weights were trained with, unless given.
    """

    name: str
    arguments: Arguments = {}
    pretrained: bool | Annotated[str, Field(pattern=FILES)] = False


class Data(Settings):
    """`digits`, `glyphs`, `fashion`, a Hub data set by id, or a local folder (parquet files or images) in its schema.

    `train_examples` is the number of glyphs or of `fashion`'s images to train on, or of a stream's examples in an
    epoch. With `hold_out` the share for validation is never trained on, so that runs that are tested take the steps of
    those that are validated, on the same images; `fashion` has it so always.
    `in_memory` decodes every image once, before training, and changes no number: `host` (or true) holds them in the
    memory of the machine, `device` in that of the device that trains, where batches are made. `streaming` reads a data
    set from its place on the way, shuffled within a buffer of `shuffle_buffer` images. `prefetch` is how many batches
    each of the `workers` prepares ahead; `auto` is as many workers as there are cores, at most 8.
    `randaugment` is timm's description of RandAugment, such as rand-m9-mstd0.5, for images that are decoded each time.
    `random_erasing` is the share of training images in which a rectangle becomes noise.
    """

    name: str
    config: str | None = None
    path: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    train_split: str = "train"
    test_split: str = "test"
    image_size: Pixels
    channels: Channels = 3
    mean: list[float] | None = None
    std: list[PositiveFloat] | None = None
    augmentation: Literal["none", "crop", "imagenet"] = "none"
    randaugment: Annotated[str, Field(pattern=RANDAUGMENT, max_length=100)] | None = None
    random_erasing: Annotated[float, Field(ge=0, le=1)] = 0.0
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    hold_out: bool = False
    train_examples: Examples | None = None
    in_memory: InMemory = False
    streaming: bool = False
    shuffle_buffer: Annotated[int, Field(gt=0, le=10_000_000)] = 10_000
    workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = 0
    prefetch: Annotated[int, Field(gt=0, le=1000)] = 2


class Optimizer(Settings):
    """The method. `layers` and `overrides` have a meaning for layer-wise methods only.

    `adamw` is torch's and `muon` timm's, which orthogonalises weights of convolutions too and steps the rest as AdamW
    does. `timm.NAME` is what timm's factory makes of that name (`timm.optim.list_optimizers()`), as timm's own training
    does: biases and other parameters of one dimension are not decayed. `arguments` goes to the factory, such as
    {layer_decay: 0.75}. `clip_norm` is what the norm of the whole gradient is cut down to before the step.

    `trust_coefficient`, `max_ratio`, `decay_in_ratio`, `rate_in_buffer` and `norm_floor` are CLARS's and LARS's.
    `estimator` is CLARS's: whether the norm of every example is formed, those of groups of `group` of them, or those of
    a drawn share, `fraction`. `lamb` and `adamw` have `momentum` as their first beta. `author2019` is CLARS with other
    values where none are given: those of its first author's code. `eps` is the method's own where none is given.
    """

    name: (
        Literal["clars", "author2019", "lars", "sgd", "lamb", "adamw", "muon"] | Annotated[str, Field(pattern=OF_TIMM)]
    )
    momentum: Fraction = 0.9
    nesterov: bool = True
    weight_decay: NonNegativeFloat = 5e-4
    clip_norm: PositiveFloat | None = None
    trust_coefficient: PositiveFloat = 1e-3
    layers: Literal["module", "parameter"] = "module"
    overrides: dict[str, dict[str, float | bool]] = {}
    estimator: Literal["exact", "group", "subset"] = "exact"
    group: Batch | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    eps: NonNegativeFloat | None = None
    norm_floor: NonNegativeFloat = 1e-3
    max_ratio: PositiveFloat | None = None
    decay_in_ratio: bool = True
    rate_in_buffer: bool = True
    arguments: dict[str, bool | int | float | str | list[float]] = {}

    @model_validator(mode="before")
    @classmethod
    def _own_values(cls, values: object) -> object:
        """Put in what a method has in the place of the values above, so that they are shown and recorded."""
        if not isinstance(values, dict):
            return values
        if values.get("name") == "author2019":
            values = author2019(values)
        if values.get("estimator") == "group" and values.get("group") is None:
            values = {**values, "group": 8}
        return values

    @property
    def together(self) -> int:
        """How many examples are measured together."""
        return self.group if self.estimator == "group" and self.group else 1


class Schedule(Settings):
    """The rate over time: scaled from a base batch, an optional gradual warmup, then a decay per step.

    The peak rate is `base_rate` times batch_size / base_batch (`linear`), the root of that (`sqrt`), or as it stands
    (`none`). Warmup begins at the base rate, or at `zero`. For the first `frozen_head_epochs` the classifier stays as
    it was initialised.
    """

    name: Literal["polynomial", "cosine", "constant"] = "polynomial"
    base_rate: PositiveFloat
    base_batch: Batch
    scaling: Literal["linear", "sqrt", "none"] = "linear"
    power: PositiveFloat = 2.0
    warmup_epochs: NonNegativeFloat = 0.0
    warmup_from: Literal["base", "zero"] = "base"
    frozen_head_epochs: NonNegativeFloat = 0.0

    def peak_rate(self, batch_size: int) -> float:
        """Return the rate after warmup at a global batch."""
        factor = batch_size / self.base_batch
        return self.base_rate * {"linear": factor, "sqrt": factor**0.5, "none": 1.0}[self.scaling]


class Evaluation(Settings):
    """Where accuracy is measured, and with which BatchNorm statistics.

    `recalibrated` re-estimates the running statistics over the training set before each evaluation: with very few
    steps the running averages still remember their initial values. It is measured after `every` epochs, and after the
    last.
    """

    split: Literal["test", "validation"] = "test"
    batch_norm: Literal["running", "recalibrated"] = "running"
    batch_size: Annotated[int, Field(gt=0, le=2**16)] = 512
    every: Annotated[int, Field(gt=0)] = 1


class Average(Settings):
    """An exponential moving average of weights and buffers over the steps, which is then evaluated and saved.

    With `warmup` the decay grows to its value over the steps, so that the average forgets the beginning sooner.
    """

    decay: Annotated[float, Field(gt=0, lt=1)]
    warmup: bool = False


class Mixing(Settings):
    """Mixup and CutMix of timm: two images of a micro-batch become one, and so do their labels.

    `mixup` and `cutmix` are the parameters of the beta distributions of the shares, 0 for none; where both are given,
    `switch` is the share of CutMix. `probability` is how often anything is mixed, and `mode` for what a share is drawn:
    the whole micro-batch, each pair, or each image.
    """

    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    switch: Annotated[float, Field(ge=0, le=1)] = 0.5
    probability: Annotated[float, Field(gt=0, le=1)] = 1.0
    mode: Literal["batch", "pair", "elem"] = "batch"


class SelfSupervised(Settings):
    """Training without labels, by SimSiam (arXiv 2011.10566): a network predicts, from one view of an image, another.

    Views are windows of at least the share `smallest_crop` of an image, mirrored by chance, with other brightness and
    contrast, by a factor of up to 1 + `jitter`. `projector` is the width of its two hidden layers and of its output,
    `predictor` that of the one hidden layer. Accuracy is that of logistic regression on the network's features.
    """

    projector: Width = 128
    predictor: Width = 32
    smallest_crop: Annotated[float, Field(gt=0, le=1)] = 0.2
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.4


class Recipe(Settings):
    """One row of a table: everything that decides the numbers, nothing about the machine.

    `base` names a recipe with its version, such as warmup/resnet8@v2, whose settings hold where this file has none.
    `init` names a published checkpoint, or its folder, whose weights the network begins with. `precision` is what the
    network computes in; without it, the launch says so.
    """

    base: str | None = None
    description: str
    model: Model
    data: Data
    optimizer: Optimizer
    schedule: Schedule
    evaluation: Evaluation = Evaluation()
    batch_size: Batch
    epochs: Annotated[int, Field(gt=0, le=1_000_000)]
    label_smoothing: Fraction = 0.0
    mixing: Mixing | None = None
    self_supervised: SelfSupervised | None = None
    precision: Literal[*PRECISIONS] | None = None
    ema: Average | None = None
    init: str | None = None
    layer_statistics: Annotated[int, Field(ge=0, lt=2**31, description="write layers.jsonl each N steps; 0: never")] = 0

    @property
    def mixed_precision(self) -> str | None:
        """What accelerate calls the precision that the recipe asks for; None where the launch decides."""
        return self.precision and PRECISIONS[self.precision]
