"""JSON of values that are of BSON's types, which other applications may have stored in free-form fields.

Ids are hexadecimal text, times RFC 3339 and binary data base64, as Mongoose writes them. The types that JSON
has no counterpart for are objects of MongoDB's Extended JSON, relaxed: a regular expression is
`{"$regularExpression": {"pattern": "^a", "options": "i"}}`.
"""

import json
from typing import Any

from bson import Code, ObjectId

__all__ = ["plain"]

_BASES: tuple[type[Any], ...] = (int, float, str, bytes, dict, list)


def plain(value: Any) -> Any:
    """For msgspec's `enc_hook`: a value that it can encode.
    An object that BSON has no type for becomes its text."""
    if isinstance(value, ObjectId):
        return str(value)
    for base in _BASES:
        if isinstance(value, base) and not isinstance(value, Code):  # a subclass of str
            return base(value)  # the driver's subclasses: Int64, Binary
    from bson import json_util

    try:
        return json.loads(json_util.dumps(value, json_options=json_util.RELAXED_JSON_OPTIONS))
    except TypeError:
        return str(value)
