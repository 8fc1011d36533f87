"""The commands for the place where daemons run: `atlasd proxy` and `atlasd doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PANEL = "Where daemons run"


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (proxy, doctor):
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


def doctor(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="YAML file; default: ./config.yaml where it exists."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="SECTION.KEY=VALUE", help="Override one setting."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object, not a table.")] = False,
    deadline_s: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds that one check may take.")
    ] = 30.0,
) -> None:
    """Examine this machine and the configuration: each finding with its remedy; 1 if one fails."""
    from .doctor import doctor as examine

    findings = examine(config, overrides or (), as_json=as_json, deadline_s=deadline_s)
    raise typer.Exit(1 if any(finding.status == "fail" for finding in findings) else 0)
