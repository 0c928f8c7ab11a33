"""Patches by position, JSON Patch and JSON Merge Patch, applied to a value. Pure."""

from typing import Any

import jsonpatch
import jsonpointer
import msgspec

from ximler.core.errors import Invalid
from ximler.core.extended_json import plain

__all__ = ["MAX_OPERATIONS", "apply_patch", "merged", "patched"]

MAX_OPERATIONS = 10_000
_MAX_COPIED = 5_000_000  # bytes of JSON that the operations of a patch may copy, together
_MAX_SHIFTED = 300_000_000  # elements of arrays that they may shift by inserting and removing, together: half a second
# Microseconds for an operation, a step of its pointers, a byte that is copied and an element that is shifted.
_OPERATION_US, _STEP_US, _COPIED_US, _SHIFTED_US = 30, 2, 0.5, 0.001
_REJECTED = (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException)


def patched(data: Any, operations: Any) -> Any:
    """`data` after a JSON Patch; it is changed in place.
    Raises Invalid naming the operation that does not apply."""
    return apply_patch(data, operations)[0]


def apply_patch(data: Any, operations: Any) -> tuple[Any, float]:
    """As `patched`, with about the microseconds that it takes to apply the patch again."""
    if not isinstance(operations, list):
        raise Invalid.field("patch", "must be an array of operations")
    if len(operations) > MAX_OPERATIONS:
        raise Invalid.field(
            "patch", f"has {len(operations):,} operations, the limit is {MAX_OPERATIONS:,}: send several"
        )
    copied = shifted = steps = 0
    for index, operation in enumerate(operations):
        place = f"patch/{index}"
        if not isinstance(operation, dict):
            raise Invalid.field(place, "must be an object")
        try:
            steps += sum(str(operation.get(name)).count("/") for name in ("path", "from"))
            copied += _copies(data, operation)
            if copied > _MAX_COPIED:
                raise Invalid.field(place, f"copies more than {_MAX_COPIED:,} bytes, together with those before it")
            shifted += _shifts(data, operation)
            if shifted > _MAX_SHIFTED:
                raise Invalid.field(place, "inserts and removes too much in long arrays: send several patches")
            data = jsonpatch.JsonPatch([operation]).apply(data, in_place=True)
        except RecursionError:
            raise Invalid.field(place, "is nested too deeply") from None
        except _REJECTED as problem:
            raise Invalid.field(place, str(problem)) from None
    again_us = len(operations) * _OPERATION_US + steps * _STEP_US + copied * _COPIED_US + shifted * _SHIFTED_US
    return data, again_us


def merged(data: Any, change: Any) -> Any:
    """`data` after a JSON Merge Patch, which replaces everything but objects. It is changed in place."""
    if not isinstance(change, dict):
        return change
    result = data if isinstance(data, dict) else {}
    pending = [(result, change)]
    while pending:
        target, given = pending.pop()
        for key, value in given.items():
            if value is None:
                target.pop(key, None)
            elif isinstance(value, dict):
                if not isinstance(target.get(key), dict):
                    target[key] = {}
                pending.append((target[key], value))
            else:
                target[key] = value
    return result


def _copies(data: Any, operation: dict[str, Any]) -> int:
    """Bytes of JSON that an operation copies:
    each copy of a copy doubles, so patches of 1 kB could write gigabytes."""
    source = operation.get("from")
    if operation.get("op") != "copy" or not isinstance(source, str):
        return 0
    return len(msgspec.json.encode(jsonpointer.resolve_pointer(data, source), enc_hook=plain))


def _shifts(data: Any, operation: dict[str, Any]) -> int:
    """Elements of arrays that an operation shifts, at most:
    an insertion into a million takes a millisecond."""
    if operation.get("op") not in ("add", "copy", "move", "remove"):
        return 0
    count = 0
    for place in (operation.get("path"), operation.get("from")):
        if isinstance(place, str) and "/" in place:
            parent = jsonpointer.resolve_pointer(data, place.rpartition("/")[0], None)
            count += len(parent) if isinstance(parent, list) else 0
    return count
