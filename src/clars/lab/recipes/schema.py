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
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Key = Annotated[str, Field(pattern=r"^[^.=\s]+(\.[^.=\s]+)*$")]
# The upper ends lie beyond every use that is known; what lies beyond them is a slip, and would take the machine.
Pixels = Annotated[int, Field(gt=0, le=4096)]
Batch = Annotated[int, Field(gt=0, le=2**24)]
Examples = Annotated[int, Field(gt=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy takes
# 1 == True == 1.0, of which Literal would take each for the others.
Channels = Annotated[Literal[1, 3], BeforeValidator(lambda value: value if type(value) is int else str(value))]
Figure = Literal[
    *("curves", "accuracy-by-batch", "steps-to-target", "layers", "spread"),
    *("accuracy-by-rate", "warmup-gain", "first-epoch"),
]
Rates = Literal["linear", "sqrt", "tuned"]
Changes = dict[Key, object]  # values by dotted key, as overrides on the command line


def _from_words(value: bool | str) -> bool | str:
    """Return true for host and false for no: records say so, from before there was a device to choose."""
    return {"host": True, "no": False}.get(value, value)


InMemory = Annotated[bool | Literal["host", "device", "no"], AfterValidator(_from_words)]


class Settings(BaseModel):
    """Base of every section: unknown keys are refused, values never change after reading."""

    # Built at first use: a mistake in a name is told before.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class Model(Settings):
    """A timm model, the small networks of this package included."""

    name: str
    arguments: dict[str, bool | int | float | str] = {}


class Data(Settings):
    """`digits`, `glyphs`, `fashion`, a Hub data set by id, or a local folder (parquet files or images) in its schema.

    `train_examples` is the number of glyphs or of `fashion`'s images to train on, or of a stream's examples in an
    epoch. With `hold_out` the share for validation is never trained on, so that runs that are tested take the steps of
    those that are validated, on the same images; `fashion` has it so always.
    `in_memory` decodes every image once, before training, and changes no number: `host` (or true) holds them in the
    memory of the machine, `device` in that of the device that trains, where batches are made. `streaming` reads a data
    set from its place on the way, shuffled within a buffer of `shuffle_buffer` images. `prefetch` is how many batches
    each of the `workers` prepares ahead; `auto` is as many workers as there are cores, at most 8.
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
    does. `clip_norm` is what the norm of the whole gradient is cut down to before the step.

    `trust_coefficient`, `max_ratio`, `decay_in_ratio`, `rate_in_buffer` and `norm_floor` are CLARS's and LARS's.
    `estimator` is CLARS's: whether the norm of every example is formed, those of groups of `group` of them, or those of
    a drawn share, `fraction`. `lamb` and `adamw` have `momentum` as their first beta. `author2019` is CLARS with other
    values where none are given: those of its first author's code. `eps` is the method's own where none is given.
    """

    name: Literal["clars", "author2019", "lars", "sgd", "lamb", "adamw", "muon"]
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
    batch_size: Batch
    epochs: Annotated[int, Field(gt=0, le=1_000_000)]
    label_smoothing: Fraction = 0.0
    ema: Average | None = None
    init: str | None = None
    layer_statistics: Annotated[int, Field(ge=0, lt=2**31, description="write layers.jsonl each N steps; 0: never")] = 0


class Row(Settings):
    """One row of a table: a label, the recipe (by name, without version) that fills it, and what it changes of it.

    `name` is the folder of its runs, the recipe's name by default.
    """

    label: str
    recipe: str
    name: Name | None = None
    set: Changes = {}


class Method(Settings):
    """One method of a product: its settings, those of single batches beside them, and whose base rate it takes.

    `warmup_of` names the method that this one is with warmup, for figures that show them beside each other.
    """

    label: str
    warmup_of: str | None = None
    set: Changes = {}
    at: dict[Batch, Changes] = {}
    rate_of: str | None = None


class Product(Settings):
    """Rows for each recipe (a network on its data), method and global batch.

    Rates follow from the best at the recipe's base batch by its schedule's scaling; the methods in `tuned` have a
    second row at every other batch, with the rate that was best there. With `rates` there is a row for each of these
    instead: scaled in this way from the best at the base batch, for methods in `scaled` (all by default), or tuned.
    """

    recipes: Annotated[list[str], Field(min_length=1)]
    methods: Annotated[dict[Name, Method], Field(min_length=1)]
    batches: Annotated[list[Batch], Field(min_length=1)]
    batches_of: dict[str, list[Batch]] = {}
    tuned: list[str] = []
    rates: Annotated[list[Rates], Field(min_length=1)] | None = None
    scaled: list[str] | None = None


class Search(Settings):
    """A search for base rates on the validation split: the same grid size for every method.

    The names in `grid` are recipes where rows are listed, methods where they are a product. At another batch than the
    base, a product's rates are tried times a power of two: that nearest to the batch's factor, or its root, by
    `scaling`. With `extend` a grid goes on, rate by rate, for as long as the best lies at an end of it.
    """

    grid: dict[str, list[PositiveFloat]]
    scaling: Literal["linear", "sqrt", "none"] = "none"
    extend: bool = False
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=1000)]
    set: Changes = {}


class Tier(Settings):
    """The rows of a table at one scale, the seeds of each, and the search behind the base rates.

    `set` changes every recipe. `result: false` says that the runs only show that they work: a tier without a result.
    """

    rows: list[Row] = []
    product: Product | None = None
    set: Changes = {}
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=1000)]
    search: Search | None = None
    result: bool = True


class Tiers(Settings):
    """A table at the scale of a plain machine, of one GPU, and of the paper."""

    lite: Tier | None = None
    medium: Tier | None = None
    full: Tier | None = None


class Comparison(Settings):
    """Two methods of a product, or two listed rows, by name, whose difference is judged seed by seed.

    `rates` and `second_rates` say of which rows where a product has several at a batch; the second's are those of the
    first by default. Intervals of comparisons that are `primary` are corrected for their number.
    """

    first: str
    second: str
    claim: str
    batches: list[Batch] | None = None
    rates: Rates | None = None
    second_rates: Rates | None = None
    primary: bool = False


class Head(Settings):
    """What the tiers of a table share: what it says, what is compared, and which figures show it.

    `targets` are top-1 accuracies in percent by recipe, for the steps it takes to reach them. `paper` holds the
    paper's top-1 by row name as far as it is known; giving it, even empty, gives the table its column. `public` holds
    numbers of others to compare a row with, as text with its source, by row name. `chance` is the accuracy of
    guessing, in percent: with it, runs that diverged count as that, and cells in which no method learns are void.
    `supersedes` says what was wrong with the version before.
    """

    title: str
    claim: str
    comparisons: list[Comparison] = []
    figures: Annotated[list[Figure], Field(min_length=1)] = ["curves"]
    targets: dict[str, Annotated[float, Field(gt=0, lt=100)]] = {}
    paper: dict[str, float] | None = None
    public: dict[str, str] = {}
    chance: Annotated[float, Field(gt=0, lt=100)] | None = None
    supersedes: str | None = None


class Table(Head):
    """`table.yaml` of a recipe folder."""

    tiers: Tiers


class SingleTable(Head, Tier):
    """`table.yaml` of a folder with one tier, lite, whose keys stand at the top."""
