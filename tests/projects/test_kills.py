"""Twenty editors, in a process that is killed again and again: every answered patch holds, once, in a revision of its own."""

import asyncio
import json
import random
import sys
from pathlib import Path

import pytest
from tests.projects import editors

from ximler.core.actor import Actor
from ximler.core.stopping import end
from ximler.database import Database
from ximler.database.changes import Feed
from ximler.projects import canvas, projects
from ximler.projects.live import Event, Live

EDITORS = 20


async def _edit(
    database: Database, uri: str, ada: Actor, project: str, answered: dict[int, int], until: int
) -> set[int]:
    """One process's life, ended after `until` answers. Returns the revisions of its answers."""
    script, user = str(Path(editors.__file__)), str(ada.user_id)
    first = [str(answered[client] + 1) for client in range(EDITORS)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, script, uri, database.name, user, project, *first, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    revisions = set()
    try:
        async for line in process.stdout:
            if not line.startswith(b"saved "):
                continue
            client, seq, revision = map(int, line.split()[1:])
            assert seq == answered[client] + 1
            answered[client] = seq
            revisions.add(revision)
            until -= 1
            if until == 0:
                process.kill()
    except BaseException:
        process.kill()
        raise
    finally:
        await process.wait()
    return revisions


async def _run(database: Database, uri: str, ada: Actor, kills: int) -> None:
    made = await projects.create(database, ada, name="P", canvas_data={"elements": [{"id": "shared"}]})
    feed, stop = Feed(database), asyncio.Event()
    live = Live(database, feed)
    following = asyncio.create_task(feed.run(stop))
    await feed.caught_up()
    answered, revisions = dict.fromkeys(range(EDITORS), 0), set[int]()
    events: list[Event] = []
    total = EDITORS * editors.LAST
    with live.follow(ada, made.id) as follower:
        await live.begin(follower, 0)

        async def collect() -> None:  # all the time: the queue has room for 256
            while True:
                events.extend(await follower.events(60))

        collecting = asyncio.create_task(collect())
        for kill in range(kills + 1):
            left = total - sum(answered.values())
            until = -1 if kill == kills else random.randint(1, max(1, left // 2))
            revisions |= await _edit(database, uri, ada, str(made.id), answered, until)
        await feed.caught_up()
        await end([collecting], patience_s=0)
        events += await follower.events(0)
    now = await canvas.read(database, ada, made.id)
    stop.set()
    await end([following], patience_s=5)
    assert answered == dict.fromkeys(range(EDITORS), editors.LAST)
    assert [event.revision for event in events] == list(range(1, now.canvas_revision + 1))
    assert revisions <= {event.revision for event in events}
    applied = [tuple(by) for event in events for by in json.loads(event.patch or b"{}")["by"]]
    assert len(applied) == total
    assert set(applied) == {(f"tab{client}", seq) for client in range(EDITORS) for seq in range(1, editors.LAST + 1)}
    records = {record["id"]: record for record in now.canvas_data["elements"]}
    client, seq = applied[-1]
    assert records.pop("shared") == {
        "id": "shared",
        "last": f"{client.removeprefix('tab')}-{seq}",
        **{f"x{client}": editors.LAST for client in range(EDITORS)},
    }
    drawn = {
        f"{client}-{seq}": seq for client in range(EDITORS) for seq in range(3, editors.LAST + 1, 3) if seq % 9 != 6
    }
    assert {name: record["n"] for name, record in records.items()} == drawn


@pytest.mark.slow
async def test_editors_survive_a_killed_process(database: Database, mongodb_uri: str, ada: Actor) -> None:
    await _run(database, mongodb_uri, ada, kills=1)


@pytest.mark.soak
async def test_editors_survive_many_killed_processes(database: Database, mongodb_uri: str, ada: Actor) -> None:
    await _run(database, mongodb_uri, ada, kills=25)
