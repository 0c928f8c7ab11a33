"""Topic `assets`: a file of 200 MB stored and read again as streams, beside PyMongo's own GridFS."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import TypeVar

from bson import ObjectId
from gridfs.asynchronous import AsyncGridFSBucket

from bench.contest import Contestant, compete, ratio, timed
from bench.report import Figure, Table, ms, spread
from bench.setup import Setup
from ximler.core.actor import Actor
from ximler.database import Database
from ximler.projects import assets, assets_uploads, projects
from ximler.schema.subscription import Subscription
from ximler.schema.user import User

__all__ = ["run"]

T = TypeVar("T")

_SIZE, _PIECE = 200_000_000, 64_000
OURS_UP, OURS_DOWN = "Ximler: upload", "Ximler: download"
THEIRS_UP, THEIRS_DOWN = "PyMongo's GridFS: upload", "PyMongo's GridFS: download"


async def run(setup: Setup) -> list[Table]:
    async with setup.database(initialised=True) as database:
        user = await database.users.insert(User(name="Ada", email="ada@example.com", password="-"))
        await database.subscriptions.insert(
            Subscription(
                user_id=user.id, plan_id="enterprise", status="ACTIVE", start_date=database.clock.now(), price=99
            )
        )
        actor = Actor(kind="user", user_id=user.id)
        project = (await projects.create(database, actor, name="p")).id
        bench = _Bench(database, actor, project)
        contestants = [
            Contestant(OURS_UP, bench.ours_up),
            Contestant(THEIRS_UP, bench.theirs_up),
            Contestant(OURS_DOWN, bench.ours_down),
            Contestant(THEIRS_DOWN, bench.theirs_down),
        ]
        return [_table(await compete(contestants, setup.rounds(4)), bench.grown)]


class _Bench:
    """`grown` has the bytes by which the process's memory grew at most, for each contestant."""

    def __init__(self, database: Database, actor: Actor, project: ObjectId) -> None:
        self._database, self._actor, self._project = database, actor, project
        self._bucket = AsyncGridFSBucket(database.raw, "peer")
        self._block = os.urandom(_PIECE)
        self._asset: assets.Asset | None = None
        self._file: ObjectId | None = None
        self.grown: dict[str, int] = {}

    async def ours_up(self) -> float:
        if self._asset:
            await assets.delete(self._database, self._actor, self._project, self._asset.id)

        async def work() -> assets.Asset:
            upload = await assets_uploads.begin(
                self._database, self._actor, self._project, name="a", size_bytes=_SIZE, most=_SIZE
            )
            for _ in range(_SIZE // _PIECE):
                await upload.write(self._block)
            return await upload.finish()

        seconds, asset = await self._measured(OURS_UP, work)
        assert asset.size_bytes == _SIZE
        self._asset = asset
        return seconds

    async def theirs_up(self) -> float:
        if self._file:
            await self._bucket.delete(self._file)

        async def work() -> ObjectId:
            file = ObjectId()
            async with self._bucket.open_upload_stream_with_id(file, "a") as stream:
                for _ in range(_SIZE // _PIECE):
                    await stream.write(self._block)
            return file

        seconds, self._file = await self._measured(THEIRS_UP, work)
        return seconds

    async def ours_down(self) -> float:
        asset = self._asset
        assert asset is not None

        async def work() -> int:
            return sum([len(piece) async for piece in assets.read(self._database, asset, 0, _SIZE)])

        seconds, size = await self._measured(OURS_DOWN, work)
        assert size == _SIZE
        return seconds

    async def theirs_down(self) -> float:
        async def work() -> int:
            stream, size = await self._bucket.open_download_stream(self._file), 0
            while piece := await stream.readchunk():
                size += len(piece)
            return size

        seconds, size = await self._measured(THEIRS_DOWN, work)
        assert size == _SIZE
        return seconds

    async def _measured(self, name: str, work: Callable[[], Awaitable[T]]) -> tuple[float, T]:
        Path("/proc/self/clear_refs").write_text("5")  # noqa: ASYNC240 (the peak starts anew)
        before = _memory("VmRSS")
        seconds, result = await timed(work)
        self.grown[name] = max(self.grown.get(name, 0), _memory("VmHWM") - before)
        return seconds, result


def _memory(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _table(samples: dict[str, list[float]], grown: dict[str, int]) -> Table:
    return Table(
        title=f"assets: a file of {_SIZE // 10**6} MB, as a stream",
        figures=[
            Figure(
                what="upload speed, of PyMongo's GridFS",
                value=ratio(samples[THEIRS_UP], samples[OURS_UP]),
                least=0.6,
            ),
            Figure(
                what="download speed, of PyMongo's GridFS",
                value=ratio(samples[THEIRS_DOWN], samples[OURS_DOWN]),
                least=0.6,
            ),
            Figure(what="memory for an upload", value=grown[OURS_UP] / 1e6, unit="MB", most=32),
            Figure(what="memory for a download", value=grown[OURS_DOWN] / 1e6, unit="MB", most=32),
        ],
        columns=("", "median", "MB/s", "memory", "spread"),
        rows=[
            (
                name,
                ms(median(taken)),
                f"{_SIZE / 1e6 / median(taken):,.0f}",
                f"{grown[name] / 1e6:.1f} MB",
                spread(taken),
            )
            for name, taken in samples.items()
        ],
        notes=[
            f"{len(samples[OURS_UP])} rounds, in turn, in pieces of {_PIECE:,} bytes, within one process.",
            "Ours hashes the content, reserves its storage and renews a lease; GridFS alone does neither.",
        ],
        samples=samples,
    )
