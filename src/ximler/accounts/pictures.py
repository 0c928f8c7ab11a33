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
_PNG = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = (
    b"IHDR",
    b"PLTE",
    b"tRNS",
    b"IDAT",
    b"IEND",
    b"iCCP",
    b"eXIf",
)  # pixels, their colours, their orientation

# One at a time: the largest pictures take 150 MB while they are decoded, and WebP 250 MB.
_thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")


async def thumbnail(sent: bytes, field: str = "avatar", *, side: int = SIDE) -> bytes:
    """A WebP picture of at most `side` × `side` pixels, upright, with its proportions; of an animation, the first
    frame.

    Raises Invalid if it is not a PNG, JPEG, WebP or GIF picture, or is too large to be decoded.
    """
    return await asyncio.get_running_loop().run_in_executor(_thread, _encode, sent, field, side)


def _encode(sent: bytes, field: str, side: int = SIDE) -> bytes:
    if len(sent) > MAX_BYTES:
        raise Invalid.field(field, f"is larger than {MAX_BYTES // 1_000_000} MB")
    try:
        with Image.open(io.BytesIO(_without_metadata(sent)), formats=_FORMATS) as opened:
            width, height = opened.size
            opened.draft("RGB", (2 * side, 2 * side))
            # From the header, before decoding. A progressive JPEG is held in memory at its full size in any case.
            whole = opened.format != "JPEG" or "progressive" in opened.info or opened.size == (width, height)
            most = _MAX_DECODED if whole else _MAX_PIXELS
            if width * height > most or opened.width * opened.height > _MAX_DECODED:
                raise Invalid.field(field, f"has {width} × {height} pixels: send at most {most // 1_000_000} million")
            opened.load()
            picture = _upright(_in_srgb(opened))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Invalid.field(field, "has too many pixels") from None
    except _UNREADABLE:
        raise Invalid.field(field, "is not a picture that can be read: send a PNG, JPEG, WebP or GIF file") from None
    picture.thumbnail((side, side))
    bare = Image.new("RGBA", picture.size)  # without metadata
    bare.paste(picture)
    out = io.BytesIO()
    bare.save(out, "WEBP", quality=85, method=4)
    return out.getvalue()


def _in_srgb(opened: Image.Image) -> Image.Image:
    """Converted to RGBA in sRGB, by the picture's own profile. A damaged profile is ignored."""
    if opened.mode.startswith("I"):  # 16-bit grey, which `convert` would clip at 255
        opened = opened.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    profile, rgba = opened.info.get("icc_profile"), opened.convert("RGBA")
    if not profile:
        return rgba
    coloured = opened if opened.mode in ("L", "CMYK") else rgba.convert("RGB")
    try:
        converted = ImageCms.profileToProfile(
            coloured, ImageCms.ImageCmsProfile(io.BytesIO(profile)), _SRGB, outputMode="RGB"
        )
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


def _without_metadata(sent: bytes) -> bytes:
    """A PNG with only the chunks that its pixels need, because damaged comments must not make it unreadable."""
    if not sent.startswith(_PNG):
        return sent
    kept, place = [_PNG], len(_PNG)
    while place + 8 <= len(sent):
        length, kind = struct.unpack_from(">I4s", sent, place)
        end = place + length + 12
        if kind in _PIXEL_CHUNKS:
            kept.append(sent[place:end])
        place = end
    return b"".join(kept)
