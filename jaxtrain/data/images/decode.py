"""Decodes JPEG, PNG, WebP, BMP and GIF files to uint8 pixels.

PIL decodes, because it says so when a file ends too early, and says nothing else. OpenCV does the
same to JPEG somewhat faster, but its libjpeg writes to stderr; for the plain PNGs that data sets
are made of it is two to three times as fast, and silent once their checksums are known to be right.
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
# More than this is taken for a decompression bomb. PIL's limit: its warning is an error here.
MAX_PIXELS = 2**28 // 3

_PNG = b'\x89PNG\r\n\x1a\n'
_PLAIN_CHUNKS = {b'IHDR', b'IDAT', b'IEND', b'pHYs', b'tEXt', b'tIME'}
_PLAIN_KINDS = (b'\x08\x00', b'\x08\x02')  # bit depth 8; grey, or red, green and blue
_ORIENTATION = 0x0112
# What turns an image upright, by its EXIF orientation (EXIF 2.32, 4.6.4).
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
    """Not an image, or a broken one."""


def decode(data: bytes, channels: int, upright: bool = False) -> np.ndarray:
    """Encoded image -> uint8 [height, width, channels] or (grey) [height, width].

    Alpha is dropped and shows the colour beneath, 16 bits are scaled to 8, CMYK is taken for
    inverted as Adobe writes it (and PIL, TensorFlow and browsers read it), and of an animation the
    first frame is taken.

    Args:
      data: a JPEG, PNG, WebP, BMP or GIF file.
      channels: 3 for RGB, 1 for grey.
      upright: turn the image as its EXIF orientation says.

    Raises:
      BadImage: none of these formats, broken, or of more than MAX_PIXELS.
    """
    pixels = _decode_png(data, channels) if _is_plain_png(data) else None
    return _decode_any(data, channels, upright) if pixels is None else pixels


def decode_part(
    data: bytes, shape: tuple[int, int, int], region: Region, upright: bool = False
) -> np.ndarray:
    """As `decode`, a part of the image alone.

    Args:
      data: as of `decode`.
      shape: (height, width, channels) that the part will be resized to. Of a JPEG as few pixels are
        decoded as that takes.
      region: of the image, turned.
      upright: as of `decode`.

    Raises:
      BadImage: as `decode` does.
    """
    pixels = _decode_png(data, shape[2]) if _is_plain_png(data) else None
    if pixels is None:
        return _decode_reduced(data, shape, region, upright)
    return cut(pixels, region(*pixels.shape[:2]))


def _is_plain_png(data: bytes) -> bool:
    """Whether a file is a PNG that OpenCV reads as PIL does.

    Raises:
      BadImage: a PNG whose checksums are wrong. PIL does not look at those of the pixels.
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
    """uint8 [h, w] or [h, w, 3] of a plain PNG; None where OpenCV cannot."""
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
    """uint8 [h, w] or [h, w, 3] of any image, by PIL."""
    with _opened(data) as image:
        image.load()
        pixels = _grey(image) if channels == 1 else _rgb(image)
        turn = _TURNS.get(_orientation(image)) if upright else None
    return turn(pixels) if turn else pixels


def _decode_reduced(
    data: bytes, shape: tuple[int, int, int], region: Region, upright: bool
) -> np.ndarray:
    """The part by PIL, at the smallest scale at which it has the height and width of `shape`.

    libjpeg leaves out the higher frequencies of each block, and computes 4, 2 or 1 pixels for 8.
    """
    with _opened(data) as image:
        orientation = _orientation(image) if upright else 1
        width, height = image.size
        tall, wide = (width, height) if orientation >= 5 else (height, width)
        top, left, rows, columns = region(tall, wide)
        scale = max(1, min(rows // shape[0], columns // shape[1]))
        # PIL takes 8, 4, 2 or 1, at most what is asked for; formats other than JPEG always 1.
        image.draft(None, (width // scale, height // scale))
        image.load()
        pixels = _grey(image) if shape[2] == 1 else _rgb(image)
    pixels = _TURNS[orientation](pixels) if orientation in _TURNS else pixels
    top, rows = _scaled(top, rows, pixels.shape[0] / tall, pixels.shape[0])
    left, columns = _scaled(left, columns, pixels.shape[1] / wide, pixels.shape[1])
    return cut(pixels, (top, left, rows, columns))


def _scaled(first: int, count: int, scale: float, most: int) -> tuple[int, int]:
    """Of rows or columns at another scale, of which there are `most`."""
    count = round(count * scale)
    return min(round(first * scale), most - count), count


@contextmanager
def _opened(data: bytes) -> 'Iterator[Image.Image]':
    """An image by PIL. BadImage for whatever is wrong with it, also while it is read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_pixels(*image.size)
            yield image
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage('it is no JPEG, PNG, WebP, BMP or GIF' if data else 'it is empty') from error
    except Exception as error:  # PIL has no one type for what is wrong with a file
        raise BadImage(' '.join(str(error).split()) or type(error).__name__) from error


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(f'its {width}x{height} pixels are more than the {MAX_PIXELS} allowed')


def _grey(image: 'Image.Image') -> np.ndarray:
    if image.mode.startswith('I'):  # 16 bits: 65535 becomes 255, where PIL's convert would clip
        return ((np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if image.mode not in ('1', 'L', 'LA'):
        image = image.convert('RGB')
    return np.asarray(image.convert('L'))


def _rgb(image: 'Image.Image') -> np.ndarray:
    """uint8 [h, w, 3], by strips: PIL keeps four bytes a pixel, and hands them over fastest so."""
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
    except Exception:  # PIL has no one type for it; metadata that is broken says nothing
        return 1
