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


def test_a_narrow_terminal_gets_a_record_a_row_and_every_value_whole(capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    print_table(COLUMNS, [*ROWS, ("2", "mail", "")])
    first, second = capsys.readouterr().out.split("\n\n")
    assert [re.split(" {2,}", line) for line in first.splitlines()] == [
        [column, value] for column, value in zip(COLUMNS, ROWS[0], strict=True)
    ]
    assert second == "Id          2\nKind        mail\n"
    monkeypatch.setenv("COLUMNS", "400")
    print_table(COLUMNS, ROWS)
    assert len(capsys.readouterr().out.splitlines()) == 2
