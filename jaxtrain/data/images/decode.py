"""Decodes JPEG, PNG, WebP, BMP and GIF files to uint8 pixels.

PIL decodes most files, because it raises an error when a file is truncated and prints nothing.
OpenCV decodes JPEG somewhat faster, but its libjpeg writes to stderr. It is used for plain PNGs,
which data sets often consist of: it is two to three times as fast on them, and prints nothing once
their checksums are verified.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from jaxtrain.data.images.resize import Region, cut
from jaxtrain.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF')
# Larger images are taken for decompression bombs: PIL only warns at this limit.
MAX_PIXELS = 2**28 // 3

_PNG = b'\x89PNG\r\n\x1a\n'
_PLAIN_CHUNKS = {b'IHDR', b'IDAT', b'IEND', b'pHYs', b'tEXt', b'tIME'}
_PLAIN_KINDS = (b'\x08\x00', b'\x08\x02')  # bit depth 8; grey or RGB
_ORIENTATION = 0x0112
# The transforms that turn an image upright, by EXIF orientation (EXIF 2.32, 4.6.4).
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


class BadImage(UserError):
    """The error for data that is not an image, or is a broken one."""


def decode(data: bytes, channels: int, upright: bool = False) -> np.ndarray:
    """Decode an image to uint8 [height, width, channels], or [height, width] if it is grey.

    Alpha is dropped without blending, 16 bits are scaled to 8, and CMYK is read as inverted, as
    Adobe writes it and PIL, TensorFlow and browsers read it. The first frame of an animation is
    used.

    Args:
      data: a JPEG, PNG, WebP, BMP or GIF file.
      channels: 3 for RGB, 1 for grey.
      upright: whether to apply the EXIF orientation.

    Raises:
      BadImage: If the data has none of these formats, is broken, or has more than MAX_PIXELS.
    """
    pixels = _decode_png(data, channels) if _is_plain_png(data) else None
    return _decode_any(data, channels, upright) if pixels is None else pixels


def decode_part(
    data: bytes, shape: tuple[int, int, int], region: Region, upright: bool = False
) -> np.ndarray:
    """Decode a part of an image; see `decode`.

    Args:
      data: as in `decode`.
      shape: (height, width, channels) to which the part will be resized. A JPEG is decoded at the
        smallest scale that suffices for it.
      region: gives the part of the (upright) image.
      upright: as in `decode`.

    Raises:
      BadImage: As in `decode`.
    """
    pixels = _decode_png(data, shape[2]) if _is_plain_png(data) else None
    if pixels is None:
        return _decode_reduced(data, shape, region, upright)
    return cut(pixels, region(*pixels.shape[:2]))


def _is_plain_png(data: bytes) -> bool:
    """Return whether a file is a PNG that OpenCV decodes to the same pixels as PIL.

    Raises:
      BadImage: If the file is a PNG with wrong checksums. PIL does not check those of the pixels.
    """
    if data[:8] != _PNG:
        return False
    view, place, kinds = memoryview(data), 8, set()
    while place + 12 <= len(data) and b'IEND' not in kinds:
        length, kind = struct.unpack_from('>I4s', data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            raise BadImage('it is truncated')
        if zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise BadImage('its checksums are wrong')
        kinds.add(kind)
        place = end + 4
    return data[24:26] in _PLAIN_KINDS and b'IEND' in kinds and kinds <= _PLAIN_CHUNKS


def _decode_png(data: bytes, channels: int) -> np.ndarray | None:
    """Decode a plain PNG to uint8 [h, w] or [h, w, 3]; return None if OpenCV fails."""
    width, height = struct.unpack_from('>II', data, 16)
    _check_pixels(width, height)
    import cv2

    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        return None
    code = {
        (2, 3): cv2.COLOR_GRAY2RGB,
        (3, 3): cv2.COLOR_BGR2RGB,
        (3, 1): cv2.COLOR_BGR2GRAY,
    }.get((image.ndim, channels))
    return image if code is None else cv2.cvtColor(image, code)


def _decode_any(data: bytes, channels: int, upright: bool) -> np.ndarray:
    """Decode any image to uint8 [h, w] or [h, w, 3] with PIL."""
    with _open_image(data) as image:
        image.load()
        pixels = _grey(image) if channels == 1 else _rgb(image)
        turn = _TURNS.get(_orientation(image)) if upright else None
    return turn(pixels) if turn else pixels


def _decode_reduced(
    data: bytes, shape: tuple[int, int, int], region: Region, upright: bool
) -> np.ndarray:
    """Decode a part with PIL, at the smallest scale at which it covers `shape`.

    libjpeg scales by omitting the higher frequencies of each block: it computes 4, 2 or 1 pixels
    in place of 8.
    """
    with _open_image(data) as image:
        orientation = _orientation(image) if upright else 1
        width, height = image.size
        upright_size = (width, height) if orientation >= 5 else (height, width)
        top, left, rows, columns = region(*upright_size)
        scale = max(1, min(rows // shape[0], columns // shape[1]))
        # PIL reduces by at most this scale: 8, 4, 2 or 1 for JPEG, always 1 for other formats.
        image.draft(None, (width // scale, height // scale))
        image.load()
        pixels = _grey(image) if shape[2] == 1 else _rgb(image)
    pixels = _TURNS[orientation](pixels) if orientation in _TURNS else pixels
    height, width = pixels.shape[:2]
    top, rows = _scaled(top, rows, height / upright_size[0], height)
    left, columns = _scaled(left, columns, width / upright_size[1], width)
    return cut(pixels, (top, left, rows, columns))


def _scaled(first: int, count: int, scale: float, size: int) -> tuple[int, int]:
    """Scale a span of rows or columns, (first, count), to an image with `size` of them."""
    count = round(count * scale)
    return min(round(first * scale), size - count), count


@contextmanager
def _open_image(data: bytes) -> 'Iterator[Image.Image]':
    """Open an image with PIL, and convert every error, also while it is read, to BadImage."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(*image.size)
            yield image
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage(
            'it is not a JPEG, PNG, WebP, BMP or GIF' if data else 'it is empty'
        ) from error
    except Exception as error:  # PIL raises various types for a broken file
        raise BadImage(' '.join(str(error).split()) or type(error).__name__) from error


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(f'its {width}x{height} pixels are more than the limit of {MAX_PIXELS}')


def _grey(image: 'Image.Image') -> np.ndarray:
    if image.mode.startswith('I'):  # 16 bits: 65535 becomes 255; PIL's convert would clip instead
        return ((np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if image.mode not in ('1', 'L', 'LA'):
        image = image.convert('RGB')
    return np.asarray(image.convert('L'))


def _rgb(image: 'Image.Image') -> np.ndarray:
    """Convert to uint8 [h, w, 3] by strips, the fastest way to copy PIL's four bytes per pixel."""
    import cv2

    if image.mode.startswith('I'):
        return cv2.cvtColor(_grey(image), cv2.COLOR_GRAY2RGB)
    if image.mode != 'RGB':
        image = image.convert('RGB')
    width, height = image.size
    pixels, rows = np.empty((height, width, 3), np.uint8), max(1, 2**16 // width)
    for top in range(0, height, rows):
        strip = pixels[top : top + rows]
        data = image.crop((0, top, width, top + len(strip))).tobytes('raw', 'RGBX')
        part = np.frombuffer(data, np.uint8).reshape(-1, width, 4)
        cv2.cvtColor(part, cv2.COLOR_RGBA2RGB, dst=strip)
    return pixels


def _orientation(image: 'Image.Image') -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # PIL raises various types; broken metadata is ignored
        return 1
