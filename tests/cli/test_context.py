"""What commands print for people can be copied."""

import re

import pytest

from ximler.cli.context import print_table

ROWS = [("6b0766aa601b31dc9725f05e", "accounts.send_confirmation", f"MAIL_UNAVAILABLE: {'no answer ' * 20}".strip())]
COLUMNS = ("Id", "Kind", "Last error")


def test_a_piped_table_has_one_whole_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, ROWS)
    _, line = capsys.readouterr().out.splitlines()
    assert re.split(" {2,}", line.strip()) == list(ROWS[0])


def test_a_narrow_terminal_cuts_nothing_off(capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    print_table(COLUMNS, ROWS)
    printed = capsys.readouterr().out
    assert ROWS[0][0] in printed
    assert "…" not in printed
    assert max(len(line) for line in printed.splitlines()[1:]) <= 60
    assert printed.count("answer") == 20
