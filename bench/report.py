"""Reports of topics: figures with limits first, then absolute medians."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import msgspec

__all__ = ["Figure", "Table", "ms", "spread", "summary", "us"]


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A number and its limit: at most `most`, at least `least`, exactly `exactly`, or none."""

    what: str
    value: float
    unit: str = "×"
    most: float | None = None
    least: float | None = None
    exactly: float | None = None

    @property
    def holds(self) -> bool | None:
        """None without a limit."""
        if self.most is not None:
            return self.value <= self.most
        if self.least is not None:
            return self.value >= self.least
        return None if self.exactly is None else self.value == self.exactly

    @property
    def limit(self) -> str:
        for sign, bound in (("≤", self.most), ("≥", self.least), ("=", self.exactly)):
            if bound is not None:
                return f"{sign} {bound:g} {self.unit}".rstrip()
        return "–"

    @property
    def shown(self) -> str:
        if self.unit == "×":
            number = f"{self.value:.2f}"
        else:  # a fraction matters where the number is small
            number = f"{self.value:,.{int(0 < abs(self.value) < 10 and self.value != int(self.value))}f}"
        return f"{number} {self.unit}".rstrip()


class Table(msgspec.Struct, kw_only=True):
    """One topic. `samples` are the raw measurements, in seconds unless their
    name says otherwise, for --json."""

    title: str
    figures: Sequence[Figure] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: list[str] = []
    samples: dict[str, list[float]] = {}

    @property
    def missed(self) -> list[Figure]:
        return [figure for figure in self.figures if figure.holds is False]

    def render(self) -> str:
        """Markdown that also reads well in a terminal."""
        blocks = [f"## {self.title}"]
        if self.figures:
            judged = {None: "", True: "yes", False: "NO"}
            blocks.append(
                _grid(
                    ("measured", "", "limit", "holds"),
                    [(figure.what, figure.shown, figure.limit, judged[figure.holds]) for figure in self.figures],
                )
            )
        if self.rows:
            blocks.append(_grid(self.columns, self.rows))
        if self.notes:
            blocks.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(blocks)

    def plain(self) -> dict[str, Any]:
        """For --json."""
        figures = [
            {**{k: v for k, v in msgspec.structs.asdict(figure).items() if v is not None}, "holds": figure.holds}
            for figure in self.figures
        ]
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {
            "title": self.title,
            "figures": figures,
            "rows": rows,
            "notes": self.notes,
            "samples": self.samples,
        }


def summary(facts: dict[str, str], tables: Sequence[Table], before: str = "") -> str:
    """For the README: figures with limits, and the machine that they were measured on.

    Topics that were not measured this time keep their rows of `before`, an earlier summary.
    """
    rows: dict[str, list[tuple[str, ...]]] = {}
    topic = ""
    for line in before.splitlines():
        cells = tuple(cell.strip() for cell in line.strip("|").split("|"))
        if line.startswith("|") and cells[0] != "topic" and set(cells[0]) != {"-"}:
            topic = cells[0] or topic
            rows.setdefault(topic, []).append(cells)
    for topic in {_topic(table): None for table in tables}:
        judged = [f for table in tables if _topic(table) == topic for f in table.figures if f.holds is not None]
        rows[topic] = [(topic if f is judged[0] else "", f.what, f.shown, f.limit) for f in judged]
    known = ", ".join(
        value if name == "machine" else f"{name} {value}" for name, value in facts.items() if "load" not in name
    )
    grid = _grid(("topic", "measured", "", "limit"), [row for found in rows.values() for row in found])
    return f"{grid}\n\nMeasured by `make bench` on {known}.\n"


def _topic(table: Table) -> str:
    return table.title.split(":")[0]


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds * 1e3:,.0f} ms"


def us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs"


def spread(samples: Sequence[float]) -> str:
    """Fastest to slowest, as percentages of the median."""
    middle = median(samples)
    return f"{min(samples) / middle - 1:+.0%} … {max(samples) / middle - 1:+.0%}"


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Numbers are on the right: every column but the first whose cells begin with a digit or a sign."""
    widths = [max(3, *(len(row[i]) for row in (columns, *rows))) for i in range(len(columns))]
    right = [i > 0 and all(not row[i] or row[i][0] in "0123456789+-–≤≥=" for row in rows) for i in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = [
        ("-" * (width - 1) + ":") if to_right else "-" * width for width, to_right in zip(widths, right, strict=True)
    ]
    return "\n".join([line(columns), line(rule), *(line(row) for row in rows)])
