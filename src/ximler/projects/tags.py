"""Tags of projects: short words, chosen by the owner, by which a list is filtered.

They are stored as they are compared: composed, in lower case, with single spaces.
"""

from collections.abc import Iterable

from ximler.core import names
from ximler.core.errors import Invalid

__all__ = ["MAX_TAG", "MAX_TAGS", "normal"]

MAX_TAGS = 20
MAX_TAG = 40  # characters


def normal(tags: Iterable[str] | None) -> list[str]:
    """The distinct tags in their stored form, in order.
    Raises Invalid for more than 20, or one that is no name."""
    found: dict[str, None] = {}
    for tag in tags or ():
        found[names.checked(" ".join(tag.lower().split()), most=MAX_TAG, field="tags")] = None
        if len(found) > MAX_TAGS:
            raise Invalid.field("tags", f"has more than {MAX_TAGS} tags")
    return list(found)
