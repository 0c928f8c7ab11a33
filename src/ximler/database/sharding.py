"""The plan for a sharded cluster, from the catalogue:
which collections are sharded, by which key, and why."""

import json
from typing import Any, Literal

import msgspec

from ximler.schema import CATALOGUE
from ximler.schema.document import Collection

__all__ = ["Placement", "commands", "key_index", "placements"]

Key = dict[str, Literal[1, "hashed"]]


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """A collection on a cluster. Without `key` it stays whole on the database's primary shard.

    `unique` names indexes that decide about the key:
    MongoDB keeps one unique across shards only if it begins with the shard key.
    """

    collection: str
    key: Key | None
    why: str
    unique: list[str]


def placements() -> list[Placement]:
    """Every collection, in the catalogue's order."""
    return [
        Placement(
            collection=each.name,
            key=dict(each.shard_key.fields) or None,
            why=each.shard_key.why,
            unique=[index.name for index in each.indexes if index.unique],
        )
        for each in CATALOGUE
    ]


def commands(database: str) -> str:
    """The plan as commands for mongosh. They can be run before or after `ximler db init`, and repeated."""
    lines = [
        "// Ximler's collections on a sharded cluster. Run in mongosh, connected to a mongos.",
        f"sh.enableSharding({json.dumps(database)})",
    ]
    whole = []
    for each in placements():
        if each.key is None:
            unique = f" (unique: {', '.join(each.unique)})" if each.unique else ""
            whole.append(f"//   {each.collection}: {each.why}{unique}")
            continue
        key = json.dumps(each.key)
        lines += ["", f"// {each.collection}: {each.why}"]
        if each.key != {"_id": 1}:
            lines.append(f"db.getSiblingDB({json.dumps(database)}).{each.collection}.createIndex({key})")
        lines.append(f"sh.shardCollection({json.dumps(f'{database}.{each.collection}')}, {key})")
    return "\n".join([*lines, "", "// These stay whole, on the database's primary shard:", *whole, ""])


def key_index(collection: Collection[Any]) -> str:
    """The name of the index on the collection's shard key."""
    return "_".join(f"{name}_{kind}" for name, kind in collection.shard_key.fields)
