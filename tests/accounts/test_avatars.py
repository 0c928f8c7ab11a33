"""Pictures: whatever is sent, what is kept is a small picture and nothing else, and it ends with its owner's wish."""

import asyncio
import io
import random
import struct
import zlib
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import HealthCheck, given, settings, strategies
from PIL import Image
from tests.serving import Client

from ximler.accounts import avatars, closing, pictures
from ximler.core.actor import Actor
from ximler.core.errors import Invalid, NotFound
from ximler.database import Database, files
from ximler.privacy import erasure
from ximler.schema.user import User

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def picture(kind: str = "PNG", size: tuple[int, int] = (800, 400), **more: Any) -> bytes:
    out = io.BytesIO()
    mode = "RGB" if kind == "JPEG" else "RGBA"
    Image.linear_gradient("L").resize(size).convert(mode).save(out, kind, **more)
    return out.getvalue()


@pytest.fixture
def me(ada: User, database: Database) -> Actor:
    return Actor(kind="user", via="session", user_id=ada.id, authenticated_at=database.clock.now())


@pytest.fixture(autouse=True)
async def no_files(database: Database) -> Any:
    yield
    for name in ("files", "chunks"):
        await database.raw[f"avatars.{name}"].delete_many({})


async def content(database: Database, path: str) -> bytes:
    file = await avatars.get(database, ObjectId(path.removeprefix("/v1/avatars/")))
    return b"".join([chunk async for chunk in avatars.read(database, file)])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
async def test_a_picture_of_any_usual_kind_becomes_a_small_one(database, me, kind: str) -> None:
    path = await avatars.set_picture(database, me, picture(kind))
    assert (await database.users.get(me.require_user())).avatar == path
    with Image.open(io.BytesIO(await content(database, path))) as kept:
        assert (kept.format, kept.size) == ("WEBP", (512, 256))


async def test_a_small_picture_is_not_blown_up(database, me) -> None:
    path = await avatars.set_picture(database, me, picture(size=(30, 20)))
    with Image.open(io.BytesIO(await content(database, path))) as kept:
        assert kept.size == (30, 20)


async def test_nothing_but_pixels_survives(database, me) -> None:
    exif = Image.Exif()
    exif[0x010E] = "SECRET description"
    exif[0x0112] = 6  # it was held sideways
    sent = picture("JPEG", exif=exif, comment=b"SECRET comment") + b"<script>SECRET</script>PK\x03\x04SECRET"
    kept = await content(database, await avatars.set_picture(database, me, sent))
    assert b"SECRET" not in kept
    assert b"script" not in kept
    with Image.open(io.BytesIO(kept)) as seen:
        assert seen.size == (256, 512)  # upright
        assert not seen.getexif()
        assert not seen.info.get("icc_profile")


async def test_of_an_animation_the_first_frame_is_kept(database, me) -> None:
    frames = [Image.new("RGB", (10, 10), colour) for colour in ("red", "blue", "green")]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    kept = await content(database, await avatars.set_picture(database, me, out.getvalue()))
    with Image.open(io.BytesIO(kept)) as seen:
        assert getattr(seen, "n_frames", 1) == 1
        red, _, blue = seen.convert("RGB").getpixel((5, 5))
        assert red > 200 > 50 > blue


def huge_png(side: int) -> bytes:
    """A few kB that claim, and hold, side × side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"", "not a picture"),
        (SVG, "not a picture"),
        (b"%PDF-1.7 and so on", "not a picture"),
        (b"GIF89a", "not a picture"),
        (picture()[:2000], "not a picture"),
        (b"\0" * (pictures.MAX_BYTES + 1), "larger than"),
        (huge_png(8000), "pixels"),
        (huge_png(20000), "pixels"),
    ],
    ids=["empty", "svg", "pdf", "a header", "cut off", "10 MB", "64 million pixels", "400 million pixels"],
)
async def test_what_is_no_picture_is_refused_by_name_and_changes_nothing(database, me, sent: bytes, why: str) -> None:
    with pytest.raises(Invalid, match=why) as refused:
        await avatars.set_picture(database, me, sent)
    assert refused.value.fields.keys() == {"avatar"}
    assert (await database.users.get(me.require_user())).avatar is None
    assert await files.stored_by(database, "avatars", me.require_user()) == []


@given(strategies.randoms(use_true_random=False), strategies.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_broken_picture_is_read_or_refused_and_nothing_else(chance: random.Random, kind: str) -> None:
    sent = bytearray(picture(kind, (40, 40)))
    for _ in range(chance.randint(1, 8)):
        sent[chance.randrange(len(sent))] = chance.randrange(256)
    try:
        kept = pictures._encode(bytes(sent), "avatar")
    except Invalid:
        return
    with Image.open(io.BytesIO(kept)) as seen:
        assert max(seen.size) <= pictures.SIDE


async def test_the_event_loop_is_free_while_a_large_picture_is_decoded(database, me) -> None:
    sent = picture(size=(4000, 4000), compress_level=1)
    turns = 0
    work = asyncio.ensure_future(avatars.set_picture(database, me, sent))
    while not work.done():
        await asyncio.sleep(0.001)
        turns += 1
    await work
    assert turns > 30


async def test_a_new_picture_replaces_the_old_one_for_good(database, me) -> None:
    first = await avatars.set_picture(database, me, picture())
    second = await avatars.set_picture(database, me, picture("JPEG"))
    assert first != second
    with pytest.raises(NotFound):
        await content(database, first)
    assert [f"/v1/avatars/{f.id}" for f in await files.stored_by(database, "avatars", me.require_user())] == [second]
    log = await database.audit_logs.find({"action": "accounts.avatar.changed"}, sort=[("_id", 1)])
    assert [e.metadata["after"]["avatar"] for e in log] == [first, second]


async def test_ten_pictures_at_once_leave_one_that_can_be_seen(database, me) -> None:
    await asyncio.gather(*(avatars.set_picture(database, me, picture(size=(20, 20))) for _ in range(10)))
    path = (await database.users.get(me.require_user())).avatar
    assert path is not None
    assert await content(database, path)
    assert len(await files.stored_by(database, "avatars", me.require_user())) == 1


async def test_what_a_process_left_behind_when_it_died_goes_with_the_next_upload(database, me) -> None:
    orphan = await files.store(database, "avatars", me.require_user(), b"x", content_type="image/webp")
    await avatars.set_picture(database, me, picture())
    assert await files.find(database, "avatars", orphan)  # it may be an upload that is under way
    database.clock.offset_ms += 3_601_000
    path = await avatars.set_picture(database, me, picture())
    assert await files.find(database, "avatars", orphan) is None
    assert await content(database, path)


async def test_an_address_that_another_application_chose_is_kept_until_there_is_a_picture(database, me) -> None:
    theirs = "https://example.org/ada.png"
    await database.users.patch({"_id": me.user_id}, {"$set": {"avatar": theirs}})
    await avatars.set_picture(database, me, picture())
    assert await avatars.remove(database, me)
    assert (await database.users.get(me.require_user())).avatar is None
    assert not await avatars.remove(database, me)
    assert await files.stored_by(database, "avatars", me.require_user()) == []


async def test_a_picture_ends_with_its_owners_account(database, me, ada: User) -> None:
    path = await avatars.set_picture(database, me, picture())
    await closing.close(database, me, await database.users.get(ada.id))
    with pytest.raises(NotFound):
        await content(database, path)
    assert await files.stored_by(database, "avatars", ada.id) != []
    closed = (await database.users.get(ada.id, deleted=True)).deleted_at
    assert closed is not None
    await erasure.erase(closing.Closed(user_id=ada.id, closed_at=closed), database=database)
    assert await files.stored_by(database, "avatars", ada.id) == []
    assert await database.raw["avatars.chunks"].count_documents({}) == 0


async def test_over_http(app: Any, client: Client) -> None:
    eve = await Client(app).join("eve@example.com")
    signed_in = {"Authorization": f"Bearer {eve.token}"}
    assert (await eve.http.put("/v1/avatar", content=picture())).status_code == 401
    for more in ({"content": picture()}, {"files": {"file": ("me.png", picture(), "image/png")}}):
        answer = await eve.http.put("/v1/avatar", headers=signed_in, **more)
        assert answer.status_code == 200, answer.text
        path = answer.json()["avatar"]
        shown = await client.http.get(path)
        assert shown.status_code == 200
        assert shown.headers["content-type"] == "image/webp"
        assert shown.headers["content-length"] == str(len(shown.content))
        assert shown.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in shown.headers["content-security-policy"]
        again = await client.http.get(path, headers={"If-None-Match": shown.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert (await client.http.head(path)).status_code == 200
    assert (await eve.ask("{ me { avatar } }"))["me"]["avatar"] == path
    assert (await client.http.get(f"/v1/avatars/{ObjectId()}")).status_code == 404
    assert (await client.http.get("/v1/avatars/../../etc/passwd")).status_code in (404, 422)
    assert (await client.http.get("/v1/avatars/x")).status_code == 422
    for bad, status in ((SVG, 422), (b"\0" * 10_100_000, 413), (b"", 422)):
        answer = await eve.http.put("/v1/avatar", headers=signed_in, content=bad)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
    no_file = await eve.http.put("/v1/avatar", headers=signed_in, files={"file": (None, "just text")})
    assert no_file.status_code == 422
    assert (await eve.http.delete("/v1/avatar", headers=signed_in)).json() == {"avatar": None}
    assert (await client.http.get(path)).status_code == 404
    await eve.http.aclose()
