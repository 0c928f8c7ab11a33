"""Avatars: uploads are re-encoded as small pictures, and removed when their owner wishes."""

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


def kept_as(sent: bytes) -> Image.Image:
    return Image.open(io.BytesIO(pictures._encode(sent, "avatar"))).convert("RGB")


def test_sixteen_bits_of_grey_keep_their_shades() -> None:
    """Cut off at eight bits, all but black would be white."""
    grey = Image.new("I;16", (5, 1))
    for x, shade in enumerate((0, 16384, 32768, 49151, 65535)):
        grey.putpixel((x, 0), shade)
    out = io.BytesIO()
    grey.resize((500, 100), Image.Resampling.NEAREST).save(out, "PNG")
    kept = kept_as(out.getvalue())
    for x, shade in enumerate((0, 64, 128, 191, 255)):
        assert all(abs(channel - shade) <= 3 for channel in kept.getpixel((x * 100 + 50, 50)))


def profile(*primaries: tuple[float, float], gamma: float) -> bytes:
    """An ICC profile (v2, matrix and gamma) of a colour space with white D65."""
    white = (0.3127, 0.3290)
    xyz = [(x / y, 1.0, (1 - x - y) / y) for x, y in (*primaries, white)]
    columns, target = xyz[:3], xyz[3]
    scales = solve([[column[row] for column in columns] for row in range(3)], list(target))
    rgb = [[scale * part for part in column] for scale, column in zip(scales, columns, strict=True)]
    # Bradford, from D65 to the D50 of profiles (ICC.1, annex E).
    adapt = [(1.0478112, 0.0228866, -0.0501270), (0.0295424, 0.9904844, -0.0170491), (-0.0092345, 0.0150436, 0.7521316)]
    rgb = [[sum(a * part for a, part in zip(row, column, strict=True)) for row in adapt] for column in rgb]

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def text(name: str) -> bytes:
        return b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name.encode() + bytes(1 + 78)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {
        b"desc": text("test"),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + b"".join(map(number, (0.9642, 1, 0.8249))),
    }
    for name, column in zip((b"r", b"g", b"b"), rgb, strict=True):
        tags[name + b"XYZ"] = b"XYZ " + bytes(4) + b"".join(map(number, column))
        tags[name + b"TRC"] = curve
    table, data, place = b"", b"", 128 + 4 + 12 * len(tags)
    for name, body in tags.items():
        table += name + struct.pack(">II", place + len(data), len(body))
        data += body + bytes(-len(body) % 4)
    head = bytes(4) + struct.pack(">I", 0x02100000) + b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    head += b"".join(map(number, (0.9642, 1, 0.8249)))
    whole = head.ljust(124, b"\0") + struct.pack(">I", len(tags)) + table + data
    return struct.pack(">I", len(whole) + 4) + whole


def solve(rows: list[list[float]], right: list[float]) -> list[float]:
    def det(m: list[list[float]]) -> float:
        (a, b, c), (d, e, f), (g, h, i) = m
        return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)

    replaced = [[[right[r] if c == k else rows[r][c] for c in range(3)] for r in range(3)] for k in range(3)]
    return [det(each) / det(rows) for each in replaced]


ADOBE = profile((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), gamma=563 / 256)
P3 = profile((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), gamma=2.2)


@pytest.mark.parametrize(
    ("icc", "sent", "seen"), [(P3, (100, 180, 90), (64, 184, 76)), (ADOBE, (120, 180, 90), (81, 181, 83))]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_colours_are_those_of_the_pictures_own_profile(icc: bytes, sent: Any, seen: Any, kind: str) -> None:
    out = io.BytesIO()
    more = {"PNG": {}, "JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}[kind]
    Image.new("RGB", (64, 64), sent).save(out, kind, icc_profile=icc, **more)
    found = kept_as(out.getvalue()).getpixel((30, 30))
    assert all(abs(one - other) <= 4 for one, other in zip(found, seen, strict=True)), found


def test_transparency_survives_a_profile() -> None:
    out = io.BytesIO()
    Image.new("RGBA", (64, 64), (100, 180, 90, 128)).save(out, "PNG", icc_profile=P3)
    with Image.open(io.BytesIO(pictures._encode(out.getvalue(), "avatar"))) as kept:
        assert abs(kept.convert("RGBA").getpixel((30, 30))[3] - 128) <= 2


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # which the product ignores
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "damaged",
    [
        {"icc_profile": b"no profile"},
        {"icc_profile": P3[:200]},
        {"icc_profile": P3[:128] + b"\xff" * 400},
        {"exif": b"Exif\0\0garbage" * 20},
        {"exif": b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 30},
    ],
)
def test_damaged_metadata_are_no_reason_to_refuse_pixels(kind: str, damaged: dict[str, bytes]) -> None:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(out, kind, **damaged)
    assert kept_as(out.getvalue()).getpixel((30, 30))[0] > 180


def test_a_damaged_comment_in_a_png_is_left_out() -> None:
    whole = picture()
    damaged = struct.pack(">I", 40) + b"zTXt" + b"Comment\0\0" + b"\xff" * 31 + bytes(4)
    large = struct.pack(">I", 2_000_000) + b"tEXt" + b"a\0" + b"x" * 1_999_998 + bytes(4)
    for chunk in (damaged, large):
        assert kept_as(whole[:33] + chunk + whole[33:]).size == (512, 256)


def whole_chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    return struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", checksum or zlib.crc32(kind + data))


@pytest.mark.parametrize(
    "damaged",
    [
        whole_chunk(b"iCCP", b"x\0\0" + zlib.compress(P3), 1),
        whole_chunk(b"iCCP", b""),
        whole_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(5_000_000))),
        whole_chunk(b"eXIf", b"MM\0*", 1),
        whole_chunk(b"tRNS", b"\1"),
    ],
)
def test_pixels_of_a_png_are_read_without_what_is_damaged_about_their_look(damaged: bytes) -> None:
    whole = picture(size=(60, 40))
    assert kept_as(whole[:33] + damaged + whole[33:]).size == (60, 40)


@pytest.mark.parametrize(
    ("marker", "damaged"),
    [
        (0xE0, b"JFIF\0"), (0xE1, b"Exif\0\0\xff"), (0xE2, b"ICC_PROFILE\0"), (0xE2, b"ICC_PROFILE\0\1"), (0xE2, b"MPF\0x"),
        (0xE2, b"ICC_PROFILE\0\1\2" + P3[:300]), (0xED, b"Photoshop 3.0\08BIM"), (0xEE, b"Adobe"), (0xFE, b"\xff\xfe\0"),
    ],
)  # fmt: skip
def test_pixels_of_a_jpeg_are_read_without_damaged_segments(marker: int, damaged: bytes) -> None:
    whole = picture("JPEG", size=(60, 40))
    segment = struct.pack(">BBH", 0xFF, marker, len(damaged) + 2) + damaged
    assert kept_as(whole[:2] + segment + whole[2:]).size == (60, 40)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_only_its_end_is_read_and_one_that_lacks_pixels_is_not(progressive: bool) -> None:
    out = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(out, "JPEG", progressive=progressive)
    whole = out.getvalue()
    assert whole.endswith(b"\xff\xd9")
    for unended in (whole[:-1], whole[:-2]):
        assert kept_as(unended).tobytes() == kept_as(whole).tobytes()
    for cut in (20, len(whole) // 3):
        with pytest.raises(Invalid):
            kept_as(whole[:-cut])


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_is_converted_by_a_profile_for_grey_alone(mode: str) -> None:
    linear = profile((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), gamma=1.0)
    grey = linear[:16] + b"GRAY" + linear[20:].replace(b"rTRC", b"kTRC")
    out = io.BytesIO()
    Image.new("L", (64, 64), 255 if mode == "1" else 100).convert(mode).save(out, "PNG", icc_profile=grey)
    red, *others = kept_as(out.getvalue()).getpixel((30, 30))
    assert abs(red - (255 if mode == "1" else 168)) <= 3
    assert max(abs(each - red) for each in others) <= 2
    deep = _png_of_16_bits(b"\x64\x64\xff\xff", grey)  # grey with transparency, which Pillow cannot write
    assert abs(kept_as(deep).getpixel((30, 30))[0] - 168) <= 3
    out = io.BytesIO()
    Image.new("RGB", (64, 64), (100, 180, 90)).save(out, "PNG", icc_profile=grey)
    assert abs(kept_as(out.getvalue()).getpixel((30, 30))[0] - 100) <= 3


def _png_of_16_bits(pixel: bytes, icc: bytes) -> bytes:
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", 64, 64, 16, 4, 0, 0, 0),
        b"iCCP": b"grey\0\0" + zlib.compress(icc),
        b"IDAT": zlib.compress((b"\0" + pixel * 64) * 64),
        b"IEND": b"",
    }
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


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
async def test_a_file_that_is_not_a_picture_is_rejected_and_changes_nothing(
    database, me, sent: bytes, why: str
) -> None:
    with pytest.raises(Invalid, match=why) as refused:
        await avatars.set_picture(database, me, sent)
    assert refused.value.fields.keys() == {"avatar"}
    assert (await database.users.get(me.require_user())).avatar is None
    assert await files.stored_by(database, "avatars", me.require_user()) == []


@pytest.mark.slow
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


@pytest.mark.slow
async def test_the_event_loop_is_free_while_a_large_picture_is_decoded(database, me) -> None:
    sent = picture(size=(4000, 3000), compress_level=1)
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


@pytest.mark.slow
async def test_ten_pictures_at_once_leave_one_that_can_be_seen(database, me) -> None:
    await asyncio.gather(*(avatars.set_picture(database, me, picture(size=(20, 20))) for _ in range(10)))
    path = (await database.users.get(me.require_user())).avatar
    assert path is not None
    assert await content(database, path)
    assert len(await files.stored_by(database, "avatars", me.require_user())) == 1


async def test_orphans_of_a_crashed_upload_are_removed_by_the_next(database, me) -> None:
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


@pytest.mark.slow
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


@pytest.mark.slow
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
