"""Batches of BSON as the server sent them, for `TypedCollection.find` and `stream` to decode.

PyMongo's own `find_raw_batches` creates a RawBSONDocument per document before it returns the batch's bytes,
which doubles the cost of decoding into Structs. `RawBatches` takes the array of documents from the reply as
bytes. It overrides an undocumented method of PyMongo, and falls back to PyMongo's implementation in a release
without that method.
"""

from typing import Any

import bson
from bson import raw_bson
from pymongo.asynchronous.cursor import AsyncRawBatchCursor

__all__ = ["RawBatches"]

_RAW_ARRAY = getattr(raw_bson, "_RAW_ARRAY_BSON_OPTIONS", None)
_to_document = getattr(bson, "_bson_to_dict", None)
_to_stream = getattr(bson, "_array_of_documents_to_buffer", None)
_KNOWN = None not in (_RAW_ARRAY, _to_document, _to_stream)


class RawBatches(AsyncRawBatchCursor[dict[str, Any]]):
    """`AsyncRawBatchCursor` at half the cost. Each item is a stream of BSON documents. Arguments as for
    `find`.
    """

    def _unpack_response(self, response: Any, cursor_id: int | None, *arguments: Any, **options: Any) -> list[Any]:
        if not _KNOWN or not hasattr(response, "raw_command_response"):
            return super()._unpack_response(response, cursor_id, *arguments, **options)
        raw = _to_document(response.raw_command_response(), _RAW_ARRAY)  # type: ignore[misc]  # known
        if "cursor" not in raw:
            return super()._unpack_response(response, cursor_id, *arguments, **options)  # an error: read as a whole
        cursor = dict(raw["cursor"])
        for part in ("firstBatch", "nextBatch"):
            if part in cursor:
                stream = _to_stream(cursor[part])  # type: ignore[misc]  # known
                cursor[part] = [stream] if stream else []
        # The cluster time is sent back with the next command and must be a plain document.
        rest = {
            name: bson.decode(value.raw) if hasattr(value, "raw") else value
            for name, value in raw.items()
            if name != "cursor"
        }
        return [{**rest, "cursor": cursor}]
