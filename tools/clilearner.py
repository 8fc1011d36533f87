"""The commands that order a daemon's learner, and show what it answers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..daemon.orders import Carried, Order

IntakeEndpoint = Annotated[
    str, typer.Option(help="The daemon's intake, as `intake.endpoint` says.")
]
AsJson = Annotated[bool, typer.Option("--json", help="A JSON object instead of words.")]
Patience = Annotated[
    float, typer.Option("--timeout", min=0.01, help="Seconds to wait for the answer.")
]
BatchNumber = Annotated[
    int, typer.Argument(min=1, help="The batch, as the event `batch_refused` and the log name it.")
]
PANEL = "A daemon that learns"
ENDPOINT = "tcp://127.0.0.1:5558"
TIMEOUT_S = 75.0
"""Longer than the daemon waits for its learner, so that it can say what became of an order."""


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (pause, resume, checkpoint, consolidate, versions, rollback, release, discard):
        app.command(rich_help_panel=PANEL)(command)


def pause(
    endpoint: IntakeEndpoint = ENDPOINT, as_json: AsJson = False, timeout_s: Patience = TIMEOUT_S
) -> None:
    """Let a daemon learn nothing until `atlasd resume`; labels are taken all the same."""
    _order(endpoint, as_json, timeout_s, order="pause")


def resume(
    endpoint: IntakeEndpoint = ENDPOINT, as_json: AsJson = False, timeout_s: Patience = TIMEOUT_S
) -> None:
    """Let a daemon learn again, also after its learner was given up."""
    _order(endpoint, as_json, timeout_s, order="resume")


def checkpoint(
    endpoint: IntakeEndpoint = ENDPOINT, as_json: AsJson = False, timeout_s: Patience = TIMEOUT_S
) -> None:
    """Keep what a daemon has learned so far and the canary passed, now."""
    _order(endpoint, as_json, timeout_s, order="checkpoint")


def consolidate(
    endpoint: IntakeEndpoint = ENDPOINT, as_json: AsJson = False, timeout_s: Patience = TIMEOUT_S
) -> None:
    """Hold on to what was learned so far, as at a task's end, once its last batch is judged."""
    _order(endpoint, as_json, timeout_s, order="consolidate")


def versions(
    endpoint: IntakeEndpoint = ENDPOINT, as_json: AsJson = False, timeout_s: Patience = TIMEOUT_S
) -> None:
    """List the weights that a daemon can go back to.

    Each is a checkpoint like any other: `atlasd segment --set model.weights=PATH`.
    """
    _order(endpoint, as_json, timeout_s, order="versions")


def rollback(
    version: Annotated[
        str, typer.Argument(help="As `atlasd versions` lists it; none: the one before.")
    ] = "",
    endpoint: IntakeEndpoint = ENDPOINT,
    as_json: AsJson = False,
    timeout_s: Patience = TIMEOUT_S,
) -> None:
    """Go back to earlier weights; what was learned since is set aside, not lost.

    `atlasd status` shows the batches that were set aside; `atlasd release` lets one be learned
    again, `atlasd discard` throws it away.
    """
    _order(endpoint, as_json, timeout_s, order="rollback", version=version)


def release(
    batch: BatchNumber,
    endpoint: IntakeEndpoint = ENDPOINT,
    as_json: AsJson = False,
    timeout_s: Patience = TIMEOUT_S,
) -> None:
    """Let the clips of a batch that was set aside be learned again."""
    _order(endpoint, as_json, timeout_s, order="release", batch=batch)


def discard(
    batch: BatchNumber,
    endpoint: IntakeEndpoint = ENDPOINT,
    as_json: AsJson = False,
    timeout_s: Patience = TIMEOUT_S,
) -> None:
    """Throw the clips of a batch away that was set aside."""
    _order(endpoint, as_json, timeout_s, order="discard", batch=batch)


def _order(endpoint: str, as_json: bool, timeout_s: float, **fields: object) -> None:
    import json

    from ..daemon.fields import from_map, to_map
    from ..daemon.labelclient import LabelClient
    from ..daemon.orders import Order

    order: Order = from_map(Order, fields)
    with LabelClient(endpoint, timeout_s=timeout_s, attempts=1) as client:
        carried = client.order(order)
    if as_json:
        typer.echo(json.dumps(to_map(carried), separators=(",", ":")))
    else:
        _show(carried)


def _show(carried: Carried) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(carried.detail, highlight=False)
    if carried.order not in {"versions", "rollback", "checkpoint"}:
        return
    table = Table(show_edge=False)
    for column in ("version", "batch", "clips", "mean J so far", "made", ""):
        table.add_column(column)
    for each in carried.versions:
        table.add_row(
            each.version,
            str(each.batch),
            str(each.clips),
            "" if each.a_auc is None else f"{each.a_auc:.3f}",
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.made_s)),
            "served" if each.served else "",
        )
    console.print(table)
