"""Reports as plots in the terminal, by plotext: a line for each currency, resource or plan."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import date

import click

__all__ = ["plot"]

_HEIGHT, _WIDEST = 20, 120


def plot(title: str, lines: Mapping[str, Sequence[tuple[date, float]]], *, empty: str) -> None:
    """Print each line's values by day, or `empty` if there is none. Without colours if the output is not a terminal."""
    if not any(lines.values()):
        click.echo(empty)
        return
    import plotext

    days = sorted({day for points in lines.values() for day, _ in points})
    places = {day: index for index, day in enumerate(days)}
    plotext.clear_figure()
    plotext.plot_size(min(shutil.get_terminal_size((80, 24)).columns, _WIDEST), _HEIGHT)
    if not sys.stdout.isatty():
        plotext.theme("clear")
    for name, points in sorted(lines.items()):
        plotext.plot([places[day] for day, _ in points], [value for _, value in points], label=name, marker="braille")
    step = max(1, len(days) // 8)
    plotext.xticks(list(places.values())[::step], [str(day) for day in days[::step]])
    plotext.title(title)
    click.echo(plotext.build())
