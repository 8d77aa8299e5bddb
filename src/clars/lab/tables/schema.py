"""What `table.yaml` of a recipe folder may say."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from clars.lab.recipes.schema import Batch, Settings

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Key = Annotated[str, Field(pattern=r"^[^.=\s]+(\.[^.=\s]+)*$")]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy takes
Figure = Literal[
    *("curves", "accuracy-by-batch", "steps-to-target", "layers", "spread"),
    *("accuracy-by-rate", "warmup-gain", "first-epoch"),
]
Rates = Literal["linear", "sqrt", "tuned"]
Changes = dict[Key, object]  # values by dotted key, as overrides on the command line


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
