"""The e-mails of development, which `email.Folder` writes instead of sending them."""

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

import msgspec

__all__ = ["Letter", "newest", "one"]

_LINK = re.compile(r"https?://[^\s<>\"]+")
_NAME = re.compile(r"[0-9a-f]{32}")


class Letter(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    id: str
    written_at: datetime
    sender: str = msgspec.field(name="from")
    to: str
    subject: str
    links: list[str]
    text: str
    html: str


def newest(folder: Path, *, to: str | None = None, most: int = 100) -> list[Letter]:
    """At most `most` e-mails, newest first, of all recipients or of one address."""
    wanted = to.strip().lower() if to else None
    found = []
    for letter in _letters(folder):
        if wanted is None or letter.to.lower() == wanted:
            found.append(letter)
            if len(found) == most:
                break
    return found


def one(folder: Path, name: str) -> Letter | None:
    return _read(folder / f"{name}.eml") if _NAME.fullmatch(name) else None


def _letters(folder: Path) -> Iterator[Letter]:
    """Newest first. A file that disappears meanwhile is left out."""
    written = []
    for path in folder.glob("*.eml"):
        with contextlib.suppress(FileNotFoundError):
            written.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(written, reverse=True):
        if letter := _read(path):
            yield letter


def _read(path: Path) -> Letter | None:
    try:
        message = message_from_bytes(path.read_bytes(), _class=EmailMessage, policy=default)
        written = path.stat().st_mtime
    except FileNotFoundError:
        return None
    text = _part(message, "plain")
    return Letter(
        id=path.stem,
        written_at=datetime.fromtimestamp(round(written, 3), UTC),
        sender=str(message["From"]),
        to=str(message["To"]),
        subject=str(message["Subject"]),
        links=list(dict.fromkeys(_LINK.findall(text))),
        text=text,
        html=_part(message, "html"),
    )


def _part(message: EmailMessage, kind: str) -> str:
    body = message.get_body((kind,))
    return str(body.get_content()).replace("\r\n", "\n") if body else ""
