"""Tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns, numbers to the right; the first and the last column hold words."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, title in enumerate(head):
        table.add_column(title, justify="left" if index in (0, len(head) - 1) else "right", no_wrap=index == 0)
    for row in rows:
        table.add_row(*map(escape, row))  # brackets in a user's names are no markup
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file or a pipe has no edge to wrap at
    console.print(table)
