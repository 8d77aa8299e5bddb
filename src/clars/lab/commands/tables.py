"""`clars table` and `clars tune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from clars.lab import terminal
from clars.lab.commands.options import (
    Figures,
    Folder,
    Launch,
    Overrides,
    Overwrite,
    Parallel,
    Precision,
    Publish,
    TierName,
    numbers,
)
from clars.lab.commands.options import seeds as seeds_of
from clars.lab.launching import exits
from clars.lab.tables.kinds import KIND
from clars.lab.terminal import say

if TYPE_CHECKING:
    from clars.lab.runs.jobs import Job
    from clars.lab.tables.definition import ResolvedTable
    from clars.lab.tables.results import Generated


def table(
    folder: Folder,
    tier: TierName = "lite",
    rows: Annotated[str | None, typer.Option(metavar="PATTERN", help="run only these, such as '*/clars-*'")] = None,
    seeds: Annotated[str | None, typer.Option(help="such as 0,1,2; those of table.yaml by default")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the runs; runs/FOLDER by default")] = None,
    launch: Launch = "auto",
    mixed_precision: Precision = None,
    parallel: Parallel = None,
    overwrite: Overwrite = False,
    publish: Publish = False,
    search: Annotated[bool, typer.Option("--search", help="search base rates anew, whatever is published")] = False,
    no_run: Annotated[bool, typer.Option("--no-run", help="make the table from the runs that are there")] = False,
    published: Annotated[
        bool, typer.Option("--published", help="make it from published records, in OUT or runs/FOLDER/published")
    ] = False,
    figures: Figures = None,
) -> None:
    """Run what a table lacks, then write table.md, table.csv and its figures and show the table.

    Base rates that were not searched yet are searched first, in OUT/search.

    \b
    Examples:
      clars table quickstart
      clars table warmup --rows 'resnet8/clars-*' --seeds 0
      clars table scaling --no-run
      clars table warmup --published --figures svg
    """
    if published:
        return _from_published(folder, tier, out, figures or KIND, publish or search)
    resolved, chosen = _table(folder, tier, out, search), seeds_of(seeds)
    out = out or _table_out(resolved)
    if not no_run:
        from clars.lab.tables.jobs import table_jobs

        machine = (launch, mixed_precision, parallel, overwrite)
        if resolved.tier.search and (search or any(row.lacking for row in resolved.rows)):
            _searched(resolved, out / "search", machine)
            resolved = _table(folder, tier, out, True)
        jobs = table_jobs(resolved, chosen or resolved.tier.seeds, out, rows)
        _run_jobs(jobs, out, *machine)

    from clars.lab.tables import results

    _show(resolved, results.generate(resolved, out, kind=figures or KIND))
    if publish:
        files = [_publish_search(resolved)] if resolved.searched else []
        files += results.keep(resolved, out, resolved.results, figures or KIND)
        say("\n".join(f"wrote {file}" for file in files))


def tune(
    name: Annotated[str, typer.Argument(metavar="FOLDER|RECIPE", help="a folder with a table, or a single recipe")],
    overrides: Overrides = None,
    tier: TierName = "lite",
    rates: Annotated[str | None, typer.Option(help="of a recipe: base rates to try, which it scales")] = None,
    seeds: Annotated[str | None, typer.Option(help="of a recipe: such as 100,101; 100,101,102 by default")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the runs; runs/FOLDER/search by default")] = None,
    launch: Launch = "auto",
    mixed_precision: Precision = None,
    parallel: Parallel = None,
    overwrite: Overwrite = False,
    publish: Publish = False,
) -> None:
    """Search the base rates of a table, or of a recipe, on the validation split, and write search.json.

    \b
    Examples:
      clars tune warmup
      clars tune quickstart/clars-512 --rates 16,32,64
    """
    if "/" in name or name.endswith((".yaml", ".yml")):
        tried = numbers(rates, "--rates", float), seeds_of(seeds)
        found, title, version, out = _search_of_recipe(name, overrides, tried, out, publish or tier != "lite")
        what = Subject(title, version, None, False)
        return _search(found, what, [out], (launch, mixed_precision, parallel, overwrite))
    table = _table_to_search(name, tier, publish, rates or seeds or overrides)
    _searched(table, out or _table_out(table) / "search", (launch, mixed_precision, parallel, overwrite), publish)


def _from_published(folder: str, tier: str, out: Path | None, kind: str, changing: bool) -> None:
    """Make a table, in `out`, from the records beside its recipes; `changing`: options are given that write there."""
    from clars.errors import UserError
    from clars.lab.tables.definition import load_table

    if changing:
        raise UserError("--published makes a table from what is published; leave out --publish and --search.")
    resolved = load_table(folder, tier)
    if not any(resolved.results.glob("**/seed*.json")):
        raise UserError(f"{resolved.results} holds no records. Run the table: clars table {resolved.command}")

    from clars.lab.tables import results

    _show(resolved, results.generate(resolved, resolved.results, out or _table_out(resolved) / "published", kind))


def _show(resolved: "ResolvedTable", made: "Generated") -> None:
    from clars.lab.tables.render import as_rich

    terminal.console().print(as_rich(made.rows, made.judgements, resolved))
    lines = [f"wrote {file}" for file in made.files] + [figure.note for figure in made.figures if figure.note]
    say("\n".join(lines))


class Subject(NamedTuple):
    """What is searched: of a table or recipe, what a diverged run counts as, and whether grids are extended."""

    title: str
    version: str
    chance: float | None
    extend: bool


def _searched(table: "ResolvedTable", out: Path, machine: tuple, publish: bool = False) -> None:
    """Run the search of a table in `out`, and write what it finds there, or also beside the table's results."""
    from clars.lab.tables import search

    what = Subject(
        table.folder, table.version, table.head.chance, table.tier.search.extend if table.tier.search else False
    )
    _search(search.candidates(table, out), what, [out, table.results] if publish else [out], machine)


def _search(found: list, what: Subject, targets: list[Path], machine: tuple) -> None:
    from clars.lab.files import write_json
    from clars.lab.tables import search
    from clars.lab.tables.render import search_as_rich

    _run_jobs(search.jobs_of(found), targets[0], *machine)
    while what.extend:
        before, found = {job.folder for job in search.jobs_of(found)}, search.extended(found, what.chance)
        if len(search.jobs_of(found)) == len(before):
            break
        _run_jobs([job for job in search.jobs_of(found) if job.folder not in before], targets[0], *machine)
    summary = search.summarise(found, what.title, what.version, what.chance)
    terminal.console().print(search_as_rich(summary, f"Base rates of {what.title}"))
    for target in targets:
        write_json(target / search.FILE, summary)
        say(f"wrote {target / search.FILE}")


def _publish_search(table: "ResolvedTable") -> Path:
    from clars.lab.files import write_json
    from clars.lab.tables import frozen, search
    from clars.lab.tables.definition import read_search

    frozen.check_search(table)
    write_json(table.results / search.FILE, read_search(table.search))
    return table.results / search.FILE


def _run_jobs(
    jobs: "list[Job]", out: Path, launch: str, precision: str | None, parallel: int | None, overwrite: bool
) -> None:
    """Run the jobs that are not done; end here unless all of them ended in a record."""
    from clars.lab import runs
    from clars.lab.files import held
    from clars.lab.launching import launch as launcher
    from clars.lab.launching.progress import Count, Merged
    from clars.lab.runs.consistency import require_comparable
    from clars.lab.runs.jobs import pending, write_jobs
    from clars.lab.tables.jobs import shares

    missing = jobs if overwrite else pending(jobs, precision)
    require_comparable([runs.read_folder(job.folder) for job in jobs if job not in missing])
    if not missing:
        return
    recipes = [job.resolved.recipe for job in missing]
    batches, groups = ([recipe.batch_size for recipe in recipes], [recipe.optimizer.together for recipe in recipes])
    config = launcher.find_config(launch, batches, groups)
    done = len(jobs) - len(missing)
    parts = shares(missing, launcher.at_once(config, len(missing), parallel))
    with held(out):
        files = [out / ("jobs.json" if len(parts) == 1 else f"jobs-{number}.json") for number in range(len(parts))]
        for part, file in zip(parts, files):
            write_jobs(part, file)
        options = [*(["--overwrite"] if overwrite else []), *(["--mixed-precision", precision] if precision else [])]
        arguments = [["--jobs", str(file), *options] for file in files]
        if len(parts) == 1:
            code = launcher.launch([*arguments[0], *([f"--done={done}"] if done else [])], config)
        else:
            code = launcher.launch_together(arguments, config, Merged(Count(len(missing), done)))
    if code not in (exits.FINISHED, exits.DIVERGED):
        raise typer.Exit(code)


def _search_of_recipe(name: str, overrides: list[str] | None, tried: tuple, out: Path | None, ignored: bool) -> tuple:
    """Return what to search of a single recipe, its name and version, and the folder for it."""
    from clars.errors import UserError
    from clars.lab.recipes.load import load

    rates, seeds = tried
    if not rates or ignored:
        raise UserError(f"{name} is a recipe: say --rates to try, such as 1,2,4, and neither --publish nor --tier.")
    recipe = load(name, overrides or ())

    from clars.lab.tables.search import candidate

    out = out or Path("runs", "tune", *recipe.name.split("/"))
    found = candidate(recipe.full_name, recipe, rates, seeds or [100, 101, 102], out, {})
    return [found], recipe.name, recipe.version, out


def _table_to_search(name: str, tier: str, publish: bool, ignored: object) -> "ResolvedTable":
    from clars.errors import UserError
    from clars.lab.tables.definition import load_table

    if ignored:
        raise UserError(f"{name} is a table, and its table.yaml says what is tried; name a recipe to try other rates.")
    table = load_table(name, tier)

    from clars.lab.tables import frozen

    if publish:
        frozen.check_search(table)
    return table


def _table(folder: str, tier: str, out: Path | None, own: bool) -> "ResolvedTable":
    """Read a table, with base rates from the search in its folder of runs where none is published, or if `own`."""
    from clars.lab.tables.definition import SEARCH, load_table

    table = load_table(folder, tier)
    found = (out or _table_out(table)) / "search" / SEARCH
    if not found.exists() or (table.search.exists() and not own):
        return table
    return load_table(folder, tier, found)


def _table_out(table: "ResolvedTable") -> Path:
    """Return where the runs of a table go: those of the full tier apart."""
    return Path("runs", table.folder if table.tier_name == "lite" else f"{table.folder}-{table.tier_name}")
