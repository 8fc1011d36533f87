"""What the command line says of what it was told: never what is secret in an address."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

from typer.core import TyperGroup

_WORDS = "atlasd.words"


def discreet(text: str, words: Sequence[str] = ()) -> str:
    """A text without accounts, and without what is secret in addresses that it quotes.

    Args:
        text: what is to be printed.
        words: of the command line, which it may quote.
    """
    from ..streams.addresses import redacted, without_accounts

    parts = [part.strip() for word in words for part in (word, word.partition("=")[2])]
    quoted = [*parts, *(str(PurePath(part)) for part in parts)]  # which makes one slash of two
    for address in (part for part in quoted if redacted(part) != part):
        text = text.replace(address, redacted(address))
    return without_accounts(text)


class DiscreetFormatter(logging.Formatter):
    """Writes a record of the log without accounts, whichever library it comes from."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, with its traceback where there is one."""
        return discreet(super().format(record))


class DiscreetGroup(TyperGroup):
    """Commands whose usage errors quote no secret word of the command line."""

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> Any:  # noqa: ANN401 (Typer's Context, which moved)
        """Read the words before the command."""
        words = tuple(args)
        with _discreet_errors(words):
            context = super().make_context(info_name, args, *more, **extra)
        context.meta[_WORDS] = words
        return context

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 (as above)
        """Read the words after the command, and run it."""
        with _discreet_errors(ctx.meta.get(_WORDS, ())):
            return super().invoke(ctx)


@contextmanager
def _discreet_errors(words: Sequence[str]) -> Generator[None]:
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message"):  # Click's errors, wherever Typer keeps Click
            error.message = discreet(error.message, words)  # pyright: ignore[reportAttributeAccessIssue]
        raise
