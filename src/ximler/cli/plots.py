"""Reports as plots in the terminal, by plotext:
a line for each currency, resource or plan, or a bar for each code or plan."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import click

__all__ = ["bars", "plot"]

_HEIGHT, _WIDEST = 20, 120


def plot(title: str, lines: Mapping[str, Sequence[tuple[date, float]]], *, empty: str) -> None:
    """Print each line's values by day, or `empty` if there is none."""
    if not any(lines.values()):
        click.echo(empty)
        return
    plotext = _figure(title)
    days = sorted({day for points in lines.values() for day, _ in points})
    places = {day: index for index, day in enumerate(days)}
    for name, points in sorted(lines.items()):
        plotext.plot([places[day] for day, _ in points], [value for _, value in points], label=name, marker="braille")
    step = max(1, len(days) // 8)
    plotext.xticks(list(places.values())[::step], [str(day) for day in days[::step]])
    click.echo(plotext.build())


def bars(title: str, values: Mapping[str, float], *, empty: str) -> None:
    """Print a bar for each name, the first on top, or `empty` if there is none."""
    if not values:
        click.echo(empty)
        return
    plotext = _figure(title, height=2 * len(values) + 5)
    names = [*values][::-1]  # drawn from below
    plotext.bar(names, [values[name] for name in names], orientation="horizontal", width=0.3)
    click.echo(plotext.build())


def _figure(title: str, *, height: int = _HEIGHT) -> Any:
    """The module, empty, as wide as the terminal. Without colours if the output is not one."""
    import plotext

    plotext.clear_figure()
    plotext.plot_size(min(shutil.get_terminal_size((80, 24)).columns, _WIDEST), height)
    if not sys.stdout.isatty():
        plotext.theme("clear")
    plotext.title(title)
    return plotext
