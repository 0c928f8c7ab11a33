"""Pictures: uploads are decoded within limits and re-encoded.

Only the pixels survive: no EXIF data (such as the location), and no second file appended to the picture.
"""

import asyncio
import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

from PIL import Image, ImageCms, ImageOps

from ximler.core.errors import Invalid

__all__ = ["CONTENT_TYPE", "MAX_BYTES", "SIDE", "thumbnail"]

CONTENT_TYPE = "image/webp"
SIDE = 512
MAX_BYTES = 10_000_000  # of an upload; a phone's photograph has half of that
_MAX_PIXELS = 30_000_000  # of a JPEG, which is decoded at a reduced size
_MAX_DECODED = 12_000_000  # each takes 4 bytes, up to five times at once
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)

warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # damaged metadata are ignored
_SRGB = ImageCms.createProfile("sRGB")
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_LOOK_CHUNKS = (b"tRNS", b"iCCP", b"eXIf")  # transparency, colours, orientation
_SCAN, _COMMENT, _FILL = 0xDA, 0xFE, 0xFF  # markers of JPEG
_APPLICATION = range(0xE0, 0xF0)
# Beginnings of JPEG's segments for applications, and the least length of a whole one.
_PIXEL_SEGMENTS = ((b"JFIF\0", 14), (b"Adobe", 12))
_LOOK_SEGMENTS = ((b"ICC_PROFILE\0", 14), (b"Exif\0\0", 6))
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of pixels that a profile for this space describes
_GREY = ("1", "L", "LA", "I", "I;16")
_END = b"\xff\xd9"  # of a JPEG

# One at a time: the largest pictures take 150 MB while they are decoded, and WebP 250 MB.
_thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")


async def thumbnail(sent: bytes, field: str = "avatar", *, side: int = SIDE) -> bytes:
    """A WebP picture of at most `side` × `side` pixels, upright, with its proportions;
    of an animation, the first frame.

    Raises Invalid if it is not a PNG, JPEG, WebP or GIF picture, or is too large to be decoded.
    """
    return await asyncio.get_running_loop().run_in_executor(_thread, _encode, sent, field, side)


def _encode(sent: bytes, field: str, side: int = SIDE) -> bytes:
    if len(sent) > MAX_BYTES:
        raise Invalid.field(field, f"is larger than {MAX_BYTES // 1_000_000} MB")
    picture = _read(sent, field, side)
    picture.thumbnail((side, side))
    bare = Image.new("RGBA", picture.size)  # without metadata
    bare.paste(picture)
    out = io.BytesIO()
    bare.save(out, "WEBP", quality=85, method=4)
    return out.getvalue()


def _read(sent: bytes, field: str, side: int) -> Image.Image:
    for look in (True, False):  # damaged data about the look must not make the pixels unreadable
        try:
            return _decode(_without_metadata(sent, look=look), field, side)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise Invalid.field(field, "has too many pixels") from None
        except _UNREADABLE:
            continue
    if sent.startswith(_JPEG) and (picture := _unended(_without_metadata(sent, look=True), field, side)):
        return picture
    raise Invalid.field(field, "is not a picture that can be read: send a PNG, JPEG, WebP or GIF file")


def _unended(jpeg: bytes, field: str, side: int) -> Image.Image | None:
    """The picture of a JPEG that only lacks the marker of its end, as those of some cameras do.

    The decoder does not report missing pixels: if there are any, they depend on the bytes that follow.
    """
    known = jpeg.removesuffix(_END[:1])
    try:
        one, other = (_decode(known + filler * 100 + _END, field, side) for filler in (b"\x00", b"\x55"))
    except _UNREADABLE:
        return None
    return one if one.tobytes() == other.tobytes() else None


def _decode(sent: bytes, field: str, side: int) -> Image.Image:
    """In RGBA, upright. Raises Invalid for too many pixels,
    and what Pillow raises for a file that it cannot read."""
    with Image.open(io.BytesIO(sent), formats=_FORMATS) as opened:
        width, height = opened.size
        opened.draft("RGB", (2 * side, 2 * side))
        # From the header, before decoding. A progressive JPEG is held in memory at its full size in any case.
        whole = opened.format != "JPEG" or "progressive" in opened.info or opened.size == (width, height)
        most = _MAX_DECODED if whole else _MAX_PIXELS
        if width * height > most or opened.width * opened.height > _MAX_DECODED:
            raise Invalid.field(field, f"has {width} × {height} pixels: send at most {most // 1_000_000} million")
        # Pillow makes RGBA of grey with transparency in 16 bits.
        grey = opened.mode in _GREY or (opened.tile and opened.tile[0].args == "LA;16B")
        opened.load()
        return _upright(_in_srgb(opened, is_grey=bool(grey)))


def _in_srgb(opened: Image.Image, *, is_grey: bool) -> Image.Image:
    """Converted to RGBA in sRGB, by the picture's own profile.
    One that is damaged, or for other pixels, is ignored."""
    if opened.mode.startswith("I"):  # 16-bit grey, which `convert` would clip at 255
        transparent = opened.info.pop("transparency", None)
        opened = opened.convert("I").point(lambda value: value * (1 / 257)).convert("L")
        if isinstance(transparent, int):
            opened.info["transparency"] = transparent // 257
    profile, rgba = opened.info.get("icc_profile"), opened.convert("RGBA")
    if not profile:
        return rgba
    try:
        described = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES.get(described.profile.xcolor_space)
        if mode is None or (mode == "CMYK") != (opened.mode == "CMYK") or (mode == "L" and not is_grey):
            return rgba
        coloured = opened if mode == "CMYK" else rgba.convert(mode)
        converted = ImageCms.profileToProfile(coloured, described, _SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, *_UNREADABLE):
        return rgba
    if converted is None:
        return rgba
    converted.putalpha(rgba.getchannel("A"))
    return converted


def _upright(picture: Image.Image) -> Image.Image:
    """Rotated as its EXIF data say. Damaged data are ignored."""
    try:
        return ImageOps.exif_transpose(picture)
    except (UserWarning, *_UNREADABLE):
        return picture


def _without_metadata(sent: bytes, *, look: bool) -> bytes:
    """A PNG or JPEG with only the parts that its pixels need, because damaged comments must not make it
    unreadable. With `look`, its transparency, colours and orientation are kept.
    """
    if sent.startswith(_PNG):
        return _chunks(sent, _PIXEL_CHUNKS + _LOOK_CHUNKS * look)
    if sent.startswith(_JPEG):
        return _segments(sent, _PIXEL_SEGMENTS + _LOOK_SEGMENTS * look)
    return sent


def _chunks(png: bytes, kinds: tuple[bytes, ...]) -> bytes:
    kept, place = [_PNG], len(_PNG)
    while place + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, place)
        end = place + length + 12
        if kind in kinds:
            kept.append(png[place:end])
        place = end
    return b"".join(kept)


def _segments(jpeg: bytes, kinds: tuple[tuple[bytes, int], ...]) -> bytes:
    kept, place = [jpeg[:2]], 2
    while place + 4 <= len(jpeg) and jpeg[place] == _FILL and jpeg[place + 1] != _SCAN:
        marker = jpeg[place + 1]
        if marker == _FILL:
            place += 1
            continue
        end = place + 2 + max(2, *struct.unpack_from(">H", jpeg, place + 2))
        body = jpeg[place + 4 : end]
        is_metadata = marker in _APPLICATION or marker == _COMMENT
        if not is_metadata or any(body.startswith(start) and len(body) >= least for start, least in kinds):
            kept.append(jpeg[place:end])
        place = end
    return b"".join(kept) + jpeg[place:]
