"""Image files of every kind that is read, and their pixels."""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 30, 41
# Smooth, so that lossy kinds preserve it, and with every brightness.
RGB = cv2.resize(
    RNG.integers(0, 256, (4, 5, 3)).astype(np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
)
GREY = RGB[..., 0]
ALPHA = RNG.integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)
DEEP = RNG.integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(np.uint16)


def encoded(kind: str, image, **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3, -1)


def luma(pixels: np.ndarray) -> np.ndarray:
    return pixels @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def by_pil(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))


def levels(bits: int) -> tuple[bytes, np.ndarray]:
    """Return a handwritten grey PNG of fewer than 8 bits, and its pixels scaled to 0..255."""
    top = 2**bits - 1
    values = RNG.integers(0, top + 1, (HEIGHT, WIDTH)).astype(np.uint8)
    flags = np.unpackbits(values[..., None], axis=-1)[..., 8 - bits :].reshape(HEIGHT, -1)
    lines = b''.join(b'\0' + line.tobytes() for line in np.packbits(flags, axis=-1))
    head = struct.pack('>IIBBBBB', WIDTH, HEIGHT, bits, 0, 0, 0, 0)
    return png((b'IHDR', head), (b'IDAT', zlib.compress(lines)), (b'IEND', b'')), values * (
        255 // top
    )


def deep(pixels: np.ndarray, colour: int) -> bytes:
    """Return a handwritten PNG of 16 bits per channel."""
    lines = b''.join(b'\0' + line.astype('>u2').tobytes() for line in pixels)
    head = struct.pack('>IIBBBBB', WIDTH, HEIGHT, 16, colour, 0, 0, 0)
    return png((b'IHDR', head), (b'IDAT', zlib.compress(lines)), (b'IEND', b''))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        for kind, data in chunks
    )


def palette() -> tuple[Image.Image, np.ndarray]:
    """Return an image with a palette of 64 colours, and its pixels."""
    colours = RNG.integers(0, 256, (64, 3)).astype(np.uint8)
    places = RNG.integers(0, 64, (HEIGHT, WIDTH)).astype(np.uint8)
    image = Image.fromarray(places, 'P')
    image.putpalette(colours.tobytes())
    return image, colours[places]


def bilevel() -> tuple[Image.Image, np.ndarray]:
    pixels = np.where(GREY > 128, 255, 0).astype(np.uint8)
    return Image.fromarray(pixels).convert('1', dither=Image.Dither.NONE), rgb(pixels)


def cmyk(inks: np.ndarray, transform: int = 0) -> bytes:
    """Return an Adobe JPEG whose four components hold 255 - inks, so that 0 is full ink.

    PIL inverts its input and writes an APP14 marker with transform 0; the last byte of the marker
    gives the colour space of the components.
    """
    data = bytearray(encoded('JPEG', Image.fromarray(inks, 'CMYK'), quality=100, subsampling=0))
    place = data.index(b'Adobe')
    assert data[place - 4 : place - 2] == b'\xff\xee' and data[place + 11] == 0
    data[place + 11] = transform
    return bytes(data)


def lossless() -> dict[str, tuple[bytes, np.ndarray]]:
    """Return name -> (file, its original RGB pixels, as float if they had more than 8 bits)."""
    paletted, colours = palette()
    black, white = bilevel()
    clear = bytes(RNG.integers(0, 256, 64).astype(np.uint8))
    many = np.dstack([RGB, ALPHA])
    both = Image.merge('LA', [Image.fromarray(GREY), Image.fromarray(ALPHA)])
    wide = DEEP.astype(float) * 255 / 65535
    alpha16 = DEEP[..., :1]
    few = {bits: levels(bits) for bits in (1, 2, 4)}
    return {
        **{f'png-grey{bits}': (data, rgb(pixels)) for bits, (data, pixels) in few.items()},
        'png-grey8': (encoded('PNG', GREY), rgb(GREY)),
        'png-grey16': (deep(DEEP[..., :1], 0), rgb(wide[..., 0])),
        'png-rgb8': (encoded('PNG', RGB), RGB),
        'png-rgb8-cv2': (cv2.imencode('.png', RGB[..., ::-1])[1].tobytes(), RGB),
        'png-rgb16': (deep(DEEP, 2), wide),
        'png-rgba16': (deep(np.dstack([DEEP, alpha16]), 6), wide),
        'png-la16': (deep(np.dstack([DEEP[..., :1], alpha16]), 4), rgb(wide[..., 0])),
        'png-rgb8-one-colour-clear': (
            encoded('PNG', RGB, transparency=tuple(RGB[3, 4].tolist())),
            RGB,
        ),
        'png-grey8-one-level-clear': (
            encoded('PNG', GREY, transparency=int(GREY[3, 4])),
            rgb(GREY),
        ),
        'png-palette': (encoded('PNG', paletted), colours),
        'png-palette-one-clear': (encoded('PNG', paletted, transparency=5), colours),
        'png-palette-alpha': (encoded('PNG', paletted, transparency=clear), colours),
        'png-rgba': (encoded('PNG', many), RGB),
        'png-la': (encoded('PNG', both), rgb(GREY)),
        'webp-lossless': (encoded('WEBP', RGB, lossless=True), RGB),
        'webp-lossless-alpha': (encoded('WEBP', many, lossless=True, exact=True), RGB),
        'bmp-1': (encoded('BMP', black), white),
        'bmp-palette': (encoded('BMP', paletted), colours),
        'bmp-24': (encoded('BMP', RGB), RGB),
        'bmp-32': (encoded('BMP', many), RGB),
        'bmp-grey': (encoded('BMP', GREY), rgb(GREY)),
        'gif': (encoded('GIF', paletted), colours),
        'gif-first-of-two': (
            encoded('GIF', paletted, save_all=True, append_images=[palette()[0]]),
            colours,
        ),
        'gif-clear': (encoded('GIF', paletted, transparency=5), colours),
    }


def lossy() -> dict[str, bytes]:
    many = np.dstack([RGB, ALPHA])
    return {
        'jpeg-grey': encoded('JPEG', GREY),
        'jpeg-rgb': encoded('JPEG', RGB),
        'jpeg-444': encoded('JPEG', RGB, subsampling=0),
        'jpeg-progressive': encoded('JPEG', RGB, progressive=True),
        'jpeg-kept-rgb': encoded('JPEG', RGB, keep_rgb=True),
        'jpeg-cv2': cv2.imencode('.jpg', RGB)[1].tobytes(),
        'webp': encoded('WEBP', RGB),
        'webp-alpha': encoded('WEBP', many),
    }


LOSSLESS, LOSSY = lossless(), lossy()
ALL = {**{name: data for name, (data, _) in LOSSLESS.items()}, **LOSSY}
