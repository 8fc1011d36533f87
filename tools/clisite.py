"""The commands for the place where daemons run: `atlasd proxy` and `atlasd doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

PANEL = "Where daemons run"


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (proxy,):
        app.command(rich_help_panel=PANEL)(command)


def proxy(
    sources: Annotated[
        list[str], typer.Option("--from", help="A daemon's bus; repeat it for several.")
    ],
    endpoint: Annotated[
        str, typer.Option("--to", help="Where subscribers connect.")
    ] = "tcp://127.0.0.1:6557",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow an address that other machines reach.")
    ] = False,
) -> None:
    """Join the streams of several daemons on one bus, for many subscribers, until SIGTERM comes."""
    from ..daemon.proxy import run

    run(sources, endpoint, insecure=insecure)
