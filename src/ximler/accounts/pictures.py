"""Pictures: an upload is decoded within limits and encoded anew.

Only the pixels survive: no EXIF (with the place where it was taken), no second file appended to the picture.
"""

import asyncio
import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

from PIL import Image, ImageOps

from ximler.core.errors import Invalid

__all__ = ["CONTENT_TYPE", "MAX_BYTES", "SIDE", "thumbnail"]

CONTENT_TYPE = "image/webp"
SIDE = 512
MAX_BYTES = 10_000_000  # of what is sent: a photograph of a telephone is half of that
_MAX_PIXELS = 30_000_000  # decoded it takes four bytes each
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

# One at a time: a large picture takes 120 MB while it is decoded.
_thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")


async def thumbnail(sent: bytes, field: str = "avatar") -> bytes:
    """A WebP picture of at most 512 × 512 pixels, upright, its proportions kept; of an animation, the first
    frame.

    Raises Invalid for what is no PNG, JPEG, WebP or GIF picture, or is too large to be decoded.
    """
    return await asyncio.get_running_loop().run_in_executor(_thread, _encode, sent, field)


def _encode(sent: bytes, field: str) -> bytes:
    if len(sent) > MAX_BYTES:
        raise Invalid.field(field, f"is larger than {MAX_BYTES // 1_000_000} MB")
    try:
        with Image.open(io.BytesIO(sent), formats=_FORMATS) as opened:
            width, height = opened.size
            if width * height > _MAX_PIXELS:  # known from the header, before anything is decoded
                raise Invalid.field(
                    field, f"has {width} × {height} pixels: send at most {_MAX_PIXELS // 1_000_000} million"
                )
            opened.draft("RGB", (2 * SIDE, 2 * SIDE))  # a JPEG is decoded smaller, at once
            picture = ImageOps.exif_transpose(opened).convert("RGBA")
    except Image.DecompressionBombError:
        raise Invalid.field(field, "has too many pixels") from None
    except _UNREADABLE:
        raise Invalid.field(field, "is not a picture that can be read: send a PNG, JPEG, WebP or GIF file") from None
    picture.thumbnail((SIDE, SIDE))
    bare = Image.new("RGBA", picture.size)  # without what Pillow remembers of the file
    bare.paste(picture)
    out = io.BytesIO()
    bare.save(out, "WEBP", quality=85, method=4)
    return out.getvalue()
