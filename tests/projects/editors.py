"""A process that edits a canvas for twenty clients until it is killed:
`python editors.py URI DATABASE USER PROJECT SEQ…`. The canvas becomes large on the way.

For each answer it prints the client, the patch's number and the revision.
The numbers are the first to send, one a client.
"""

import asyncio
import sys

from bson import ObjectId

from ximler.core.actor import Actor
from ximler.database import connect
from ximler.projects import bases, edits
from ximler.projects.patches import Saver

LAST = 30


def patch(client: int, seq: int) -> dict[str, object]:
    """Each client moves a shape of all, draws shapes of its own, and removes its earlier ones."""
    change: dict[str, object] = {"set": {"shared": {f"x{client}": seq, "last": f"{client}-{seq}"}}}
    if seq % 3 == 0:
        change["put"] = [{"id": f"{client}-{seq}", "n": seq}]
    if seq % 9 == 0:
        change["remove"] = [f"{client}-{seq - 3}"]
    return {"client": f"tab{client}", "seq": seq, **change}


def lower() -> None:
    """So that patches go through a value, a base and its tail, and whole bases."""
    bases.LIMIT, edits.MAX_TAIL = 1500, 4000


async def main(uri: str, name: str, user: str, project: str, *first: str) -> None:
    database = await connect(uri, name=name, quiet=True)
    saver, ada = Saver(database), Actor(kind="user", user_id=ObjectId(user))

    async def edit(client: int) -> None:
        for seq in range(int(first[client]), LAST + 1):
            saved = await saver.save(ada, ObjectId(project), patch(client, seq))
            sys.stdout.write(f"saved {client} {seq} {saved.revision}\n")  # at once, because threads log beside it
            sys.stdout.flush()

    await asyncio.gather(*map(edit, range(len(first))))
    await saver.close()
    await database.close()


if __name__ == "__main__":
    lower()
    asyncio.run(main(*sys.argv[1:]))
