"""What a recipe may say. Unknown keys, wrong types and impossible values are errors."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Settings(BaseModel):
    """Base of every section: unknown keys are refused, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Model(Settings):
    """A timm model, the small networks of this package included."""

    name: str
    arguments: dict[str, bool | int | float | str] = {}


class Data(Settings):
    """`digits`, `glyphs`, a Hub data set by id, or a local folder (parquet files or images) in the same schema.

    `train_examples` is the number of glyphs to train on, from the first.
    """

    name: str
    config: str | None = None
    path: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    train_split: str = "train"
    test_split: str = "test"
    image_size: PositiveInt
    channels: Literal[1, 3] = 3
    mean: list[float] | None = None
    std: list[PositiveFloat] | None = None
    augmentation: Literal["none", "crop", "imagenet"] = "none"
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    train_examples: PositiveInt | None = None
    workers: NonNegativeInt = 0


class Optimizer(Settings):
    """The method. `layers`, `trust_coefficient` and `overrides` have a meaning for layer-wise methods only.

    `estimator` and `fraction` are CLARS's: whether every example's norm is formed, or those of a drawn share.
    """

    name: Literal["clars", "lars", "sgd"]
    momentum: Fraction = 0.9
    nesterov: bool = True
    weight_decay: NonNegativeFloat = 5e-4
    trust_coefficient: PositiveFloat = 1e-3
    layers: Literal["module", "parameter"] = "module"
    overrides: dict[str, dict[str, float | bool]] = {}
    estimator: Literal["exact", "subset"] = "exact"
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None


class Schedule(Settings):
    """The rate over time: linear scaling from a base batch, an optional gradual warmup, then a decay per step.

    The peak rate is `base_rate * batch_size / base_batch`.
    """

    name: Literal["polynomial", "cosine", "constant"] = "polynomial"
    base_rate: PositiveFloat
    base_batch: PositiveInt
    power: PositiveFloat = 2.0
    warmup_epochs: NonNegativeFloat = 0.0


class Evaluation(Settings):
    """Where accuracy is measured, and with which BatchNorm statistics.

    `recalibrated` re-estimates the running statistics over the training set before each evaluation: with very few
    steps the running averages still remember their initial values.
    """

    split: Literal["test", "validation"] = "test"
    batch_norm: Literal["running", "recalibrated"] = "running"
    batch_size: PositiveInt = 512


class Average(Settings):
    """An exponential moving average of weights and buffers over the steps, which is then evaluated and saved.

    With `warmup` the decay grows to its value over the steps, so that the average forgets the beginning sooner.
    """

    decay: Annotated[float, Field(gt=0, lt=1)]
    warmup: bool = False


class Recipe(Settings):
    """One row of a table: everything that decides the numbers, nothing about the machine.

    `init` names a published checkpoint, or its folder, whose weights the network begins with.
    """

    description: str
    model: Model
    data: Data
    optimizer: Optimizer
    schedule: Schedule
    evaluation: Evaluation = Evaluation()
    batch_size: PositiveInt
    epochs: PositiveInt
    label_smoothing: Fraction = 0.0
    ema: Average | None = None
    init: str | None = None
    layer_statistics: Annotated[NonNegativeInt, Field(description="write layers.jsonl every N steps; 0: never")] = 0


class Row(Settings):
    """One row of a table: a label and the recipe (by name, without version) that fills it."""

    label: str
    recipe: str


class Search(Settings):
    """A search for base rates at the base batch, on the validation split: the same grid size for every method."""

    grid: dict[str, list[PositiveFloat]]
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]


class Table(Settings):
    """`table.yaml` of a recipe folder: the rows in order, the seeds of each, and the search behind the base rates."""

    title: str
    claim: str
    rows: Annotated[list[Row], Field(min_length=1)]
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]
    search: Search | None = None
