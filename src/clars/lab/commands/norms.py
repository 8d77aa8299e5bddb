"""`clars norms ...`"""

from typing import Annotated

import typer

from clars.lab import terminal
from clars.lab.terminal import say

app = typer.Typer(help="Per-example norms: how they are formed.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def norms() -> None:
    """Per-example norms: how they are formed."""


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="a timm model, those of this package included")],
    pixels: Annotated[int, typer.Option(min=1, help="height and width of the images")] = 224,
    channels: Annotated[int, typer.Option(min=1)] = 3,
    batch: Annotated[int, typer.Option(min=1, help="examples per pass")] = 8,
    memory: Annotated[float | None, typer.Option(help="MiB that the norms of one layer may take")] = None,
    group: Annotated[int, typer.Option(min=1, help="examples that are measured together")] = 1,
    timed: Annotated[bool, typer.Option("--timed", help="time every method, and choose by that")] = False,
) -> None:
    """Print which exact method forms the norms of each layer of a model, here and for these shapes, or none.

    \b
    Examples:
      clars norms plan resnet50
      clars norms plan mobilenetv2_100 --pixels 64 --batch 4 --timed
    """
    import torch
    from torch.nn import functional as F

    import clars.lab.models  # noqa: F401  registers this package's networks
    from clars.lab.commands.plan_tables import refusals, table
    from clars.lab.models import factory
    from clars.lab.recipes import schema
    from clars.layers import covering, layers
    from clars.norms.plan import plan

    bound = None if memory is None else int(memory * 2**20)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    network = factory.create(schema.Model(name=model), 1000, channels, pixels).to(device)
    x = torch.randn(batch, channels, pixels, pixels, device=device)
    y = torch.randint(1000, (batch,), device=device)
    options = {"memory": bound, "time": timed, "group": group}
    choices, refused = plan(network, lambda net, x, y: F.cross_entropy(net(x), y), x, y, **options)
    terminal.console().print(table(choices))
    counts = {name: sum(choice.method == name for choice in choices) for name in sorted({c.method for c in choices})}
    told = ", ".join(f"{name} {count}" for name, count in counts.items())
    say(f"{model}, batch {batch}, {pixels} px, {device}, {torch.get_num_threads()} threads: {told}")
    if refused:
        terminal.console().print(refusals(refused))
        names = [layer.name for layer in layers(network)]
        patterns = covering(list(refused), [name for name in names if name not in refused])
        say(f"{len(refused)} of {len(names)} layers have none. overrides that leave them out: {patterns}")
