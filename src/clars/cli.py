"""The `clars` command."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clars import exits, terminal
from clars.checkpoints.commands import app as checkpoints_app
from clars.seeds import LARGEST, problem
from clars.terminal import say

if TYPE_CHECKING:
    from clars.recipes.tables import ResolvedTable
    from clars.results.jobs import Job

app = typer.Typer(
    help="Large-batch training without warmup: recipes, runs, tables.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _launch(name: str) -> str:
    """Refuse an unknown configuration before anything is done."""
    from clars import launch

    if name != launch.AUTO:
        launch.find_config(name)
    return name


Recipe = Annotated[str, typer.Argument(help="folder/name, folder/name@v1, or a .yaml file")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="changes to the recipe")]
Folder = Annotated[str, typer.Argument(help="a recipe folder with a table, such as quickstart")]
TierName = Annotated[str, typer.Option("--tier", help="lite, for a plain machine, or full")]
Launch = Annotated[
    str,
    typer.Option(
        callback=_launch,
        help="a name in configs/accelerate, or an accelerate .yaml file; auto takes the GPUs that are there",
    ),
]
Parallel = Annotated[
    int | None, typer.Option(min=1, help="launches at once; on processors, as many as there are cores for, at most 8")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace runs that are there")]
Publish = Annotated[bool, typer.Option("--publish", help="write into the results folder beside the recipes as well")]


# Imports of a command's own stand in the command, after what a mistake in its words is found by: help, lists and
# messages need neither torch nor matplotlib.
@app.command()
def recipes(
    write: Annotated[bool, typer.Option("--write", help="write the overview of all tables, recipes/README.md")] = False,
) -> None:
    """List the recipes."""
    from clars.errors import RecipeError
    from clars.recipes import load, registry

    if write:
        from clars.results.overview import write_overview

        say(f"wrote {write_overview()}")
        return
    for name in registry.names():
        try:
            description = load.load(name).recipe.description
        except RecipeError as error:
            description = f"(cannot be used: {error})"
        say(f"{name:40} {' '.join(registry.versions(name)):6} {description}")


@app.command()
def show(recipe: Recipe, overrides: Overrides = None) -> None:
    """Print a recipe with all its settings, the defaults and overrides included."""
    from clars.recipes.load import load
    from clars.recipes.writing import dump

    resolved = load(recipe, overrides or ())
    say(f"# {resolved.name}, {resolved.version}: {resolved.path}")
    say(f"# sha256 of the file: {resolved.sha256}")
    say(f"# overrides: {' '.join(resolved.overrides) or 'none'}")
    say(f"# peak rate: {resolved.peak_rate:g}")
    say(dump(resolved.recipe.model_dump()).rstrip())


@app.command()
def run(
    recipe: Recipe,
    overrides: Overrides = None,
    seed: Annotated[
        list[int] | None, typer.Option(min=0, max=LARGEST, help="may be given several times; 0 by default")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of the runs; runs/FOLDER by default, runs/changed/FOLDER with changes")
    ] = None,
    init: Annotated[
        str | None, typer.Option(metavar="NAME", help="begin with the weights of a checkpoint; the same as init=NAME")
    ] = None,
    launch: Launch = "auto",
    overwrite: Overwrite = False,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="examples per process and pass")] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(min=1, metavar="STEPS", help="save the state between epochs as well")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="give up on a process that does not answer; 600")
    ] = None,
    log_with: Annotated[str | None, typer.Option(help="a tracker that accelerate knows, such as tensorboard")] = None,
) -> None:
    """Train a recipe, through `accelerate launch`."""
    from clars import launch as launcher
    from clars.recipes.load import load

    resolved = load(recipe, [*(overrides or ()), *([f"init={init}"] if init else ())])
    arguments = [resolved.full_name, *resolved.overrides]
    arguments += [f"--seed={number}" for number in seed or [0]]
    arguments += ["--out", str(out)] if out else []
    arguments += ["--overwrite"] if overwrite else []
    arguments += ["--micro-batch", str(micro_batch)] if micro_batch else []
    arguments += ["--checkpoint-every", str(checkpoint_every)] if checkpoint_every else []
    arguments += ["--timeout", str(timeout)] if timeout else []
    arguments += ["--log-with", log_with] if log_with else []
    raise typer.Exit(launcher.launch(arguments, launcher.find_config(launch, [resolved.recipe.batch_size])))


@app.command()
def table(
    folder: Folder,
    tier: TierName = "lite",
    rows: Annotated[str | None, typer.Option(metavar="PATTERN", help="run only these, such as '*/clars-*'")] = None,
    seeds: Annotated[str | None, typer.Option(help="such as 0,1,2; those of table.yaml by default")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the runs; runs/FOLDER by default")] = None,
    launch: Launch = "auto",
    parallel: Parallel = None,
    overwrite: Overwrite = False,
    publish: Publish = False,
    no_run: Annotated[bool, typer.Option("--no-run", help="make the table from the runs that are there")] = False,
) -> None:
    """Run what a table lacks, then write table.md, table.csv and figure.png and show the table."""
    from clars.recipes.tables import load_table

    resolved, chosen = load_table(folder, tier), _seeds(seeds)
    out = out or _table_out(resolved)
    if not no_run:
        from clars.results.jobs import table_jobs

        _run_jobs(table_jobs(resolved, chosen or resolved.tier.seeds, out, rows), out, launch, parallel, overwrite)

    from clars.results import publish as publishing
    from clars.results.render import as_rich

    made = publishing.generate(resolved, out)
    files = made.files
    terminal.console().print(as_rich(made.rows, made.judgements, resolved))
    if publish:
        files += publishing.publish(resolved, out, resolved.results)
    say("\n".join(f"wrote {file}" for file in files))


@app.command()
def tune(
    name: Annotated[str, typer.Argument(metavar="FOLDER|RECIPE", help="a folder with a table, or a single recipe")],
    overrides: Overrides = None,
    tier: TierName = "lite",
    rates: Annotated[str | None, typer.Option(help="of a recipe: the base rates to try, such as 1,2,4")] = None,
    seeds: Annotated[str | None, typer.Option(help="of a recipe: such as 100,101; 100,101,102 by default")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the runs; runs/FOLDER/search by default")] = None,
    launch: Launch = "auto",
    parallel: Parallel = None,
    overwrite: Overwrite = False,
    publish: Publish = False,
) -> None:
    """Search the base rates of a table, or of a recipe, on the validation split, and write search.json."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        tried = _numbers(rates, "--rates", float), _seeds(seeds)
        found, title, version, out = _search_of_recipe(name, overrides, tried, out, publish or tier != "lite")
        targets = [out]
    else:
        found, title, version, targets = _search_of_table(name, tier, out, publish, rates or seeds or overrides)
        out = targets[0]

    from clars.results import search
    from clars.results.files import write_json
    from clars.results.render import search_as_rich

    _run_jobs(search.jobs_of(found), out, launch, parallel, overwrite)
    summary = search.summarise(found, title, version)
    terminal.console().print(search_as_rich(summary, f"Base rates of {title}"))
    for target in targets:
        write_json(target / search.FILE, summary)
        say(f"wrote {target / search.FILE}")


app.add_typer(checkpoints_app, name="checkpoints")


@app.command()
def doctor() -> None:
    """Say what this machine has and which recipes it can run."""
    from clars.doctor import report

    for part in report():
        terminal.console().print(part)


norms_app = typer.Typer(help="Per-example norms: how they are formed.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(norms_app, name="norms")


@norms_app.callback()
def norms() -> None:
    """Per-example norms: how they are formed."""


@norms_app.command()
def plan(
    model: Annotated[str, typer.Argument(help="a timm model, those of this package included")],
    pixels: Annotated[int, typer.Option(min=1, help="height and width of the images")] = 224,
    channels: Annotated[int, typer.Option(min=1)] = 3,
    batch: Annotated[int, typer.Option(min=1, help="examples per pass")] = 8,
    memory: Annotated[float | None, typer.Option(help="MiB that the norms of one layer may take")] = None,
    timed: Annotated[bool, typer.Option("--timed", help="time every method, and choose by that")] = False,
) -> None:
    """Print which exact method forms the norms of each layer of a model, here and for these shapes, or none."""
    import torch
    from torch.nn import functional as F

    import clars.models  # noqa: F401  registers this package's networks
    from clars.layers import covering, layers
    from clars.models import factory
    from clars.norms.plan import plan, refusals, table
    from clars.recipes import schema

    bound = None if memory is None else int(memory * 2**20)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    network = factory.create(schema.Model(name=model), 1000, channels, pixels).to(device)
    x = torch.randn(batch, channels, pixels, pixels, device=device)
    y = torch.randint(1000, (batch,), device=device)
    choices, refused = plan(network, lambda net, x, y: F.cross_entropy(net(x), y), x, y, memory=bound, time=timed)
    terminal.console().print(table(choices))
    counts = {name: sum(choice.method == name for choice in choices) for name in sorted({c.method for c in choices})}
    told = ", ".join(f"{name} {count}" for name, count in counts.items())
    say(f"{model}, batch {batch}, {pixels} px, {device}, {torch.get_num_threads()} threads: {told}")
    if refused:
        terminal.console().print(refusals(refused))
        names = [layer.name for layer in layers(network)]
        patterns = covering(list(refused), [name for name in names if name not in refused])
        say(f"{len(refused)} of {len(names)} layers have none. overrides that leave them out: {patterns}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; mistakes of the user end in one message and exit code 2."""
    terminal.prepare()
    sys.exit(exits.guard(lambda: app(arguments)))


def _run_jobs(jobs: "list[Job]", out: Path, launch: str, parallel: int | None, overwrite: bool) -> None:
    """Run the jobs that are not done; end here unless all of them ended in a record."""
    from clars import launch as launcher
    from clars.results.files import held
    from clars.results.jobs import pending, shares, write_jobs
    from clars.results.progress import Count, Merged

    missing = jobs if overwrite else pending(jobs)
    if not missing:
        return
    config = launcher.find_config(launch, [job.resolved.recipe.batch_size for job in missing])
    done = len(jobs) - len(missing)
    parts = shares(missing, launcher.at_once(config, len(missing), parallel))
    with held(out):
        files = [out / ("jobs.json" if len(parts) == 1 else f"jobs-{number}.json") for number in range(len(parts))]
        for part, file in zip(parts, files):
            write_jobs(part, file)
        arguments = [["--jobs", str(file), *(["--overwrite"] if overwrite else [])] for file in files]
        if len(parts) == 1:
            code = launcher.launch([*arguments[0], *([f"--done={done}"] if done else [])], config)
        else:
            code = launcher.launch_together(arguments, config, Merged(Count(len(missing), done)))
    if code not in (exits.FINISHED, exits.DIVERGED):
        raise typer.Exit(code)


def _search_of_recipe(name: str, overrides: list[str] | None, tried: tuple, out: Path | None, ignored: bool) -> tuple:
    """Return what to search of a single recipe, its name and version, and the folder for it."""
    from clars.errors import UserError
    from clars.recipes.load import load

    rates, seeds = tried
    if not rates or ignored:
        raise UserError(f"{name} is a recipe: say --rates to try, such as 1,2,4, and neither --publish nor --tier.")
    recipe = load(name, overrides or ())

    from clars.results.search import candidate

    out = out or Path("runs", "tune", *recipe.name.split("/"))
    found = candidate(recipe.full_name, recipe, rates, seeds or [100, 101, 102], out, {})
    return [found], recipe.name, recipe.version, out


def _search_of_table(name: str, tier: str, out: Path | None, publish: bool, ignored: object) -> tuple:
    """Return what to search of a table, its name and version, and the folders to write the result to."""
    from clars.errors import UserError
    from clars.recipes.tables import load_table

    if ignored:
        raise UserError(f"{name} is a table, and its table.yaml says what is tried; name a recipe to try other rates.")
    table = load_table(name, tier)

    from clars.results import search, versions

    out = out or _table_out(table) / "search"
    if publish:
        versions.check_search(table)
    found = search.candidates(table, out)
    return found, table.folder, table.version, [out, table.results] if publish else [out]


def _table_out(table: "ResolvedTable") -> Path:
    """Return where the runs of a table go: those of the full tier apart."""
    return Path("runs", table.folder if table.tier_name == "lite" else f"{table.folder}-{table.tier_name}")


def _seeds(text: str | None) -> list[int] | None:
    found = _numbers(text, "--seeds")
    if wrong := [seed for seed in found or () if problem(seed)]:
        raise typer.BadParameter(problem(wrong[0]), param_hint="--seeds")
    return found


def _numbers(text: str | None, option: str, kind: type = int) -> list | None:
    try:
        return None if text is None else [kind(number) for number in text.split(",")]
    except ValueError:
        words = "whole numbers such as 0,1,2" if kind is int else "numbers such as 0.5,1,2"
        raise typer.BadParameter(f"{text!r} is no list of {words}", param_hint=option) from None
