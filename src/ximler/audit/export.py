"""Export of the log as text, streamed, oldest first: NDJSON with all fields, and CSV for spreadsheets."""

import csv
import io
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Literal

import bson
import msgspec

from ximler.audit import fingerprint, records
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.database import Database
from ximler.database.failures import DRIVER_ERRORS, translated
from ximler.schema.audit_log import AUDIT_LOGS

__all__ = ["COLUMNS", "Format", "lines"]

Format = Literal["ndjson", "csv"]
COLUMNS = ("id", "createdAt", "action", "resource", "resourceId", "userId", "actor", "actorId", "via", "ipAddress", "userAgent",
           "requestId", "apiKeyId", "details", "hash")  # fmt: skip
_OF_METADATA = ("actor", "actorId", "via", "requestId", "apiKeyId")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


async def lines(
    database: Database, actor: Actor, where: dict[str, Any], *, form: Format = "ndjson", batch: int = 2_000
) -> AsyncIterator[str]:
    """Chunks of many entries, each ending in a newline; `where` is a filter from `search.condition`.
    Operators only.

    NDJSON has entries as stored, with fingerprints: bytes in base64, times in RFC 3339, ids in hexadecimal.
    In CSV a cell that a spreadsheet would evaluate as a formula starts with an apostrophe. Raises Forbidden.
    """
    actor.require_operator()
    await records.write(
        database, actor, Action.LOG_READ, resource=AUDIT_LOGS.name, user_id=where.get("userId"), export=form
    )
    if form == "csv":
        yield _row(dict(zip(COLUMNS, COLUMNS, strict=True)))
    text = _json if form == "ndjson" else _csv
    raw: Any = database.raw[AUDIT_LOGS.name].with_options(codec_options=fingerprint.OPTIONS)
    try:
        async for received in raw.find_raw_batches(where, sort=[("createdAt", 1)], batch_size=batch):
            yield "".join([text(entry) for entry in bson.decode_all(received, fingerprint.OPTIONS)])
    except DRIVER_ERRORS as error:
        raise translated(error, AUDIT_LOGS.name) from error


def _json(entry: dict[str, Any]) -> str:
    return f"{msgspec.json.encode({'id': entry.pop('_id'), **_plain(entry)}, enc_hook=str).decode()}\n"


def _csv(entry: dict[str, Any]) -> str:
    metadata = entry.get("metadata")
    metadata = dict(metadata) if isinstance(metadata, dict) else {}
    mark = metadata.pop("_audit", {})
    row = {name: entry.get(name) for name in COLUMNS} | {"id": entry["_id"]}
    row |= {name: metadata.pop(name, None) for name in _OF_METADATA}
    row["details"] = msgspec.json.encode(_plain(metadata), enc_hook=str).decode() if metadata else None
    digest = mark.get("hash") if isinstance(mark, dict) else None
    row["hash"] = digest.hex() if isinstance(digest, bytes) else None
    return _row({name: _plain(value) for name, value in row.items()})


def _row(row: dict[str, Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow([_cell(row[name]) for name in COLUMNS])
    return line.getvalue()


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _plain(value: Any) -> Any:
    """Times as RFC 3339 in UTC. Values outside JSON, such as NaN, are left to the encoder."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, datetime):
        return f"{value.isoformat(timespec='milliseconds')}Z"
    return value
