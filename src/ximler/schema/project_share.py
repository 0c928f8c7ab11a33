"""`projectshares` and `projectlinks`: who else may see or edit a project. Private to projects."""

from datetime import datetime
from typing import Annotated, Literal

from bson import ObjectId
from msgspec import field

from ximler.schema.document import (
    AT_WRITE,
    Collection,
    Created,
    Document,
    Index,
    Internal,
    Lowercase,
    ShardKey,
    UserId,
    ascending,
    ref,
)

__all__ = ["PROJECT_LINKS", "PROJECT_SHARES", "ProjectLink", "ProjectShare", "Role"]

Role = Literal["READER", "EDITOR"]


class ProjectShare(Document, kw_only=True):
    """Access of a person to a project. `user_id` is the project's owner.

    `id` is the project's id and a digest of the address, so that an address has one share of a project.
    """

    id: Internal[bytes] = field(name="_id")
    user_id: UserId
    project_id: Internal[Annotated[ObjectId, ref("projects")]]
    email: Internal[Lowercase]
    member_id: Internal[ObjectId | None] = None  # set once an account with the confirmed address uses the share
    role: Internal[Role]
    created_at: Internal[datetime] = AT_WRITE


PROJECT_SHARES = Collection(
    name="projectshares",
    document=ProjectShare,
    purpose="Access of other people to projects, by e-mail address.",
    owner="projects",
    indexes=(
        ascending("projectId", "memberId", ours=True, why="a member's access to a project"),
        ascending("memberId", "-_id", "userId", ours=True, why="the projects that are shared with a person"),
        ascending("email", "memberId", ours=True, why="shares with an address that has had no account"),
        ascending("userId", "projectId", ours=True, why="a project's shares, and erasure with their owner"),
    ),
    shard_key=ShardKey((("projectId", 1),), "every access reads one by project"),
)


class ProjectLink(Created, kw_only=True):
    """A link that reads a project until `expires_at`. The token is stored as its SHA-256."""

    user_id: UserId
    project_id: Internal[Annotated[ObjectId, ref("projects")]]
    token_hash: Internal[bytes]
    expires_at: Internal[datetime]


PROJECT_LINKS = Collection(
    name="projectlinks",
    document=ProjectLink,
    purpose="Public links that read a project.",
    owner="projects",
    indexes=(
        ascending("projectId", "-createdAt", "-_id", ours=True, why="a project's links, newest first"),
        ascending("userId", ours=True, why="erasure with their owner"),
        Index(keys=(("expiresAt", 1),), ttl_seconds=0, ours=True, why="removed by MongoDB when they expire"),
    ),
    shard_key=ShardKey((("projectId", 1), ("_id", 1)), "a link's token names its project"),
)
