"""`projects`: a customer's canvas projects."""

from datetime import datetime
from typing import Any, ClassVar

from msgspec import field

from ximler.schema.document import (
    Collection,
    Index,
    Internal,
    Mixed,
    ShardKey,
    Stamped,
    Theirs,
    Trimmed,
    UserId,
    ascending,
)

BY_KEY = "userId_1_searchKeys_1_createdAt_-1__id_-1"

__all__ = ["ALPHABET", "BY_KEY", "LOCATED", "PROJECTS", "Project"]

# Without regard to case, numbers by their value: "plan 2", "Plan 10".
ALPHABET = {"locale": "en", "strength": 2, "numericOrdering": True}

# Projects with a location: not those with the empty point that Mongoose writes,
# which no 2dsphere index accepts.
LOCATED = {"location.coordinates.1": {"$type": "number"}}


class Project(Stamped, kw_only=True):
    FORGIVEN: ClassVar[tuple[str, ...]] = ("description", "tags", "starred")

    user_id: UserId
    name: Theirs[Trimmed]
    description: Theirs[str | None] = None
    settings: Theirs[Mixed] = field(default_factory=dict[str, Any])
    canvas_data: Theirs[Mixed] = field(default_factory=dict[str, Any])
    storage_size: Theirs[int] = 0  # bytes
    deleted_at: Theirs[datetime | None] = None
    # Ours: the owner's, in lower case (`projects.tags`).
    tags: Theirs[list[str] | None] = None
    # Ours: true or absent.
    starred: Theirs[bool | None] = None
    location: Theirs[Mixed] = None  # Ours: a GeoJSON point
    # Ours: the words of name and description, lowercased, for prefix search; those of the name also with `=`
    # before them. None: written by another application.
    search_terms: Internal[list[str] | None] = None
    # Ours: hashes of the beginnings of these words, for the index (`projects.search`).
    search_keys: Internal[list[int] | None] = None
    # Ours: incremented by each change of the canvas. A change names the revision that it is based on.
    canvas_revision: Internal[int] = 0
    # Ours: the latest patches, by revision modulo 64: `r` is the revision, `q` a patch of records as JSON
    # and a byte (`p` in earlier releases: another form), or `h` the digest of a large one, `b` its senders'
    # numbers, `x` the ids that they set in vain; `j` is a JSON Patch, `m` a JSON Merge Patch.
    canvas_log: Internal[Mixed] = None
    # Ours: the latest patch of each client: `s` is its number, `r` its revision,
    # `x` the ids that it set in vain.
    canvas_clients: Internal[Mixed] = None
    # Ours: of a large canvas, whose `canvas_data` is null: the id of its base, the revision that the base
    # has, its bytes in BSON, and the number of its parts.
    canvas_base: Internal[Mixed] = None
    # Ours: of a large canvas: patches of records since the base. `r` is the revision, `p` the patch as JSON,
    # `d` the list of records, unless it is `elements`.
    canvas_tail: Internal[Mixed] = None
    # Ours: bytes that are reserved for this project beyond `storage_size`.
    storage_room: Internal[int | None] = None
    versions_size: Internal[int] = 0  # Ours: bytes of the canvas's versions, a part of storageSize
    assets_size: Internal[int] = 0  # Ours: bytes of assets and running uploads, a part of storageSize


PROJECTS = Collection(
    name="projects",
    document=Project,
    purpose="A customer's canvas projects.",
    owner="projects",
    indexes=(
        ascending("userId", "deletedAt", why="a user's projects"),
        ascending("-createdAt", why="all users' projects, newest first"),
        ascending("deletedAt", why="projects to purge"),
        Index(keys=(("name", "text"), ("description", "text")), why="operators search all users' projects"),
        ascending("userId", "deletedAt", "-createdAt", "-_id", ours=True, why="a user's list, newest first"),
        ascending("userId", "deletedAt", "-updatedAt", "-_id", ours=True, why="a user's list, last changed first"),
        Index(
            keys=(("userId", 1), ("deletedAt", 1), ("name", 1), ("_id", 1)),
            collation=ALPHABET,
            ours=True,
            why="a user's list, by name",
        ),
        Index(
            keys=(("userId", 1), ("deletedAt", -1), ("_id", -1)),
            partial={"deletedAt": {"$exists": True}},
            ours=True,
            why="a user's trash, last deleted first",
        ),
        ascending("userId", "searchKeys", "-createdAt", "-_id", ours=True, why="a user's own search, by prefix"),
        Index(
            keys=(("userId", 1), ("tags", 1), ("createdAt", -1), ("_id", -1)),
            partial={"tags": {"$exists": True}},
            ours=True,
            why="a user's projects with a tag, newest first",
        ),
        Index(
            keys=(("userId", 1), ("starred", 1), ("createdAt", -1), ("_id", -1)),
            partial={"starred": True},
            ours=True,
            why="a user's starred projects, newest first",
        ),
        Index(
            keys=(("userId", 1), ("location", "2dsphere")),
            partial=LOCATED,
            ours=True,
            why="a user's projects by distance",
        ),
    ),
    shard_key=ShardKey((("userId", 1), ("_id", 1)), "read by user; `_id` lets a chunk split within one"),
)
