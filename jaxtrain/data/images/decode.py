"""Image files: finding them, and decoding JPEG, PNG, WebP, BMP and GIF to uint8 pixels.

PIL decodes, because it says so when a file ends too early, and says nothing else. OpenCV does the
same to JPEG somewhat faster, but its libjpeg writes to stderr; for the plain PNGs that data sets
are made of it is two to three times as fast, and silent once their checksums are known to be right.
"""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from jaxtrain.errors import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif')
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
# PIL remarks on odd metadata in the middle of a progress bar; what matters is raised below.
warnings.filterwarnings('ignore', module=r'PIL\.')


_FILTERS = {
    'bilinear': Image.Resampling.BILINEAR,
    'bicubic': Image.Resampling.BICUBIC,
    'nearest': Image.Resampling.NEAREST,
}


Box = tuple[int, int, int, int]  # the first row and column, height, width
# (height, width) of an image -> the part of it that is wanted.
Region = Callable[[int, int], Box]


@dataclass(frozen=True)
class Fit:
    """How an image gets the size that is asked for.

    Attributes:
      crop: 0 stretches it. Otherwise it is resized so that the size, divided by `crop`, is just
        covered, and the middle is cut out, as torchvision and timm do for evaluation.
      interpolation: 'auto' (by area if it shrinks, else bilinear); 'bilinear', 'bicubic' and
        'nearest' are PIL's, with antialiasing.
    """

    crop: float = 0.0
    interpolation: str = 'auto'


PLAIN = Fit()


def make_fit(cfg) -> Fit:
    """As `config.data` says. UserError for what is not known or out of range."""
    interpolation = cfg.choose('interpolation', ('auto', *_FILTERS))
    if not 0 <= cfg.crop <= 1:
        raise UserError(f'config.data.crop={cfg.crop} must be a share from 0 to 1')
    return Fit(float(cfg.crop), interpolation)


def asked_size(cfg) -> tuple[int, ...]:
    """(height, width) as `config.data.image_size` says, () for none. UserError for another form."""
    size = tuple(cfg.image_size)
    if size and (len(size) != 2 or min(size) < 1):
        raise UserError(
            f'config.data.image_size={size} must be (height, width), or () for as it is'
        )
    return size


class BadImage(UserError):
    """Not an image, or a broken one."""


def read(
    path: str,
    shape: tuple[int, int, int],
    upright: bool = False,
    fit: Fit = PLAIN,
    region: Region | None = None,
) -> np.ndarray:
    """The image in a file, as `decode` gives it.

    Raises:
      BadImage: no such file, not an image, or a broken one; the message names the file.
      UserError: the file system failed, which says nothing about the image.
    """
    try:
        with open(path, 'rb') as file:
            data = file.read()
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise BadImage(f'{path} cannot be read ({error.strerror}); mend or remove it') from error
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}); try again') from error
    try:
        return decode(data, shape, upright, fit, region)
    except BadImage as error:
        raise BadImage(
            f'{path} cannot be read as an image ({error}); replace or remove it'
        ) from error


def decode(
    data: bytes,
    shape: tuple[int, int, int],
    upright: bool = False,
    fit: Fit = PLAIN,
    region: Region | None = None,
) -> np.ndarray:
    """Encoded image -> uint8 [height, width, channels], RGB or (one channel) grey.

    Alpha is dropped and shows the colour beneath, 16 bits are scaled to 8, CMYK is taken for
    inverted as Adobe writes it (and PIL, TensorFlow and browsers read it), and of an animation the
    first frame is taken.

    Args:
      data: a JPEG, PNG, WebP, BMP or GIF file.
      shape: (height, width, channels) to return; another size is made this one as `fit` says.
      upright: turn the image as its EXIF orientation says.
      fit: how.
      region: of the image, turned, only this part is returned; it is stretched, by area if it
        shrinks, else bilinear. Of a JPEG as few pixels are decoded as that takes.

    Raises:
      BadImage: none of these formats, broken, or of more than MAX_PIXELS.
    """
    height, width, channels = shape
    pixels = _decode_png(data, channels) if _is_plain_png(data) else None
    if region is not None and pixels is not None:
        return resize_part(pixels, (height, width), region).reshape(shape)
    if region is not None:
        return _stretch(_decode_part(data, shape, upright, region), (height, width)).reshape(shape)
    if pixels is None:
        pixels = _decode_any(data, channels, upright)
    return resize(pixels, (height, width), fit).reshape(shape)


def resize_part(image: np.ndarray, size: tuple[int, ...], region: Region) -> np.ndarray:
    """uint8 [h, w] or [h, w, c] -> its region at `size`."""
    return _stretch(_cut(image, region(*image.shape[:2])), size)


def _cut(image: np.ndarray, box: Box) -> np.ndarray:
    top, left, height, width = box
    return image[top : top + height, left : left + width]


def resize(image: np.ndarray, size: tuple[int, ...], fit: Fit = PLAIN) -> np.ndarray:
    """uint8 [h, w] or [h, w, c] -> the same at `size`."""
    if image.shape[2:] == (1,):  # which PIL does not know
        return resize(image[..., 0], size, fit)[..., None]
    if not fit.crop:
        return _stretch(image, size, fit.interpolation)
    (height, width), (rows, columns) = image.shape[:2], size
    # A hair more, so that 224 / 0.875 is 256 whatever the rounding.
    down, across = (int(side / fit.crop + 1e-6) for side in size)
    if height * across <= width * down:
        across = int(down * width / height)
    else:
        down = int(across * height / width)
    image = _stretch(image, (down, across), fit.interpolation)
    top, left = round((down - rows) / 2), round((across - columns) / 2)
    return image[top : top + rows, left : left + columns]


def _stretch(image: np.ndarray, size: tuple[int, ...], interpolation: str = 'auto') -> np.ndarray:
    height, width = size
    if image.shape[:2] == size:
        return image
    image = np.ascontiguousarray(image)
    if interpolation != 'auto':
        return np.asarray(Image.fromarray(image).resize((width, height), _FILTERS[interpolation]))
    shrinks = image.shape[0] > height or image.shape[1] > width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=method)


def find(paths: Iterable[str]) -> list[str]:
    """Image files: those named, whatever their suffix, and those anywhere under folders named.

    Raises:
      UserError: a path that does not exist, or a folder without images.
    """
    found = []
    for path in map(os.path.expanduser, paths):
        if not os.path.exists(path):
            raise UserError(f'{path}: no such file or folder; name an image or a folder of images')
        inside = [os.path.join(path, name) for name in walk(path)] if os.path.isdir(path) else None
        if inside == []:
            raise UserError(f'{path} holds no images ({", ".join(SUFFIXES)}); name another folder')
        found += [path] if inside is None else inside
    return found


def walk(folder: str) -> list[str]:
    """Paths relative to a folder of the image files anywhere under it, sorted; none is hidden."""
    found, pending = [], ['']
    while pending:
        inside = pending.pop()
        for entry in scan(os.path.join(folder, inside)):
            if _is_folder(entry):
                pending.append(f'{inside}{entry.name}/')
            elif entry.name.lower().endswith(SUFFIXES):
                found.append(inside + entry.name)
    return sorted(found)


def scan(folder: str) -> Sequence[os.DirEntry]:
    """What lies directly in a folder and is not hidden.

    Raises:
      UserError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith('.')]
    except OSError as error:
        raise UserError(f'{folder} cannot be listed ({error.strerror}); mend or move it') from error


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        folder = entry.is_dir()
        linked = os.path.realpath(entry.path) if folder and entry.is_symlink() else ''
    except OSError as error:
        raise UserError(f'{entry.path}: {error.strerror}; mend or remove it') from error
    if linked and os.path.commonpath([linked, os.path.realpath(os.path.dirname(entry.path))]) == (
        linked
    ):
        raise UserError(f'{entry.path} is a link to a folder that it lies in; remove it')
    return folder


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


def _decode_part(
    data: bytes, shape: tuple[int, int, int], upright: bool, region: Region
) -> np.ndarray:
    """As `_decode_any`, of a region, at a scale at which it has the height and width of `shape`.

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
    return _cut(pixels, (top, left, rows, columns))


def _scaled(first: int, count: int, scale: float, most: int) -> tuple[int, int]:
    """Of rows or columns at another scale, of which there are `most`."""
    count = round(count * scale)
    return min(round(first * scale), most - count), count


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """An image by PIL. BadImage for whatever is wrong with it, also while it is read."""
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


def _grey(image: Image.Image) -> np.ndarray:
    if image.mode.startswith('I'):  # 16 bits: 65535 becomes 255, where PIL's convert would clip
        return ((np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if image.mode not in ('1', 'L', 'LA'):
        image = image.convert('RGB')
    return np.asarray(image.convert('L'))


def _rgb(image: Image.Image) -> np.ndarray:
    """uint8 [h, w, 3], by strips: PIL keeps four bytes a pixel, and hands them over fastest so."""
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


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # PIL has no one type for it; metadata that is broken says nothing
        return 1
