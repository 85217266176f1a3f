"""Tests that every kind of image decodes to the right pixels, and that a broken one is an error.

The reference for a lossless kind is the encoded array; for a lossy kind it is PIL's decoder or the
arithmetic of the format.
"""

import io
import os
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxtrain.data.images import decode as images
from jaxtrain.data.images.decode import BadImage
from jaxtrain.data.images.find import find
from jaxtrain.data.images.resize import Fit, resize
from jaxtrain.data.images.transforms import Decode, Resize, Transforms, read_image
from jaxtrain.errors import UserError
from tests.support.image_files import (
    ALL,
    GREY,
    HEIGHT,
    LOSSLESS,
    LOSSY,
    RGB,
    WIDTH,
    by_pil,
    cmyk,
    deep,
    encoded,
    luma,
    png,
    rgb,
)
from tests.support.inputs import decode


@pytest.mark.parametrize('name', LOSSLESS)
def test_lossless_pixels_are_the_original_ones(name):
    data, expected = LOSSLESS[name]
    result = decode(data, (HEIGHT, WIDTH, 3))
    assert result.dtype == np.uint8
    np.testing.assert_allclose(result, expected, atol=1 if expected.dtype == float else 0)


@pytest.mark.parametrize('name', LOSSY)
def test_lossy_pixels_are_those_of_pil(name):
    result = decode(LOSSY[name], (HEIGHT, WIDTH, 3))
    np.testing.assert_allclose(result, by_pil(LOSSY[name]).astype(int), atol=1)
    if name != 'jpeg-cv2':  # PIL itself is right: these kinds preserve the picture
        assert np.abs(result - (rgb(GREY) if 'grey' in name else RGB).astype(float)).mean() < 6


@pytest.mark.parametrize('name', ALL)
def test_decoding_to_grey_gives_the_luma(name):
    coloured = decode(ALL[name], (HEIGHT, WIDTH, 3)).astype(float)
    result = decode(ALL[name], (HEIGHT, WIDTH, 1))
    np.testing.assert_allclose(result[..., 0], luma(coloured), atol=1)


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1).astype(np.uint16)
    result = decode(deep(ramp, 0), (HEIGHT, WIDTH, 1))
    np.testing.assert_allclose(result, ramp * (255 / 65535), atol=0.51)


def test_cmyk_as_adobe_writes_it():
    inks = np.dstack([RGB, GREY // 2])
    pure = (255 - RGB.astype(float)) * (255 - GREY[..., None] // 2) / 255
    result = decode(cmyk(inks), (HEIGHT, WIDTH, 3))
    np.testing.assert_allclose(result, pure, atol=4)  # the rounding of JPEG in four planes
    raw = Image.open(io.BytesIO(cmyk(inks)))
    assert raw.mode == 'CMYK'
    planes = 255 - np.asarray(raw).astype(float)
    np.testing.assert_allclose(result, planes[..., :3] * planes[..., 3:] / 255, atol=1)


def test_ycck():
    """Adobe's YCCK holds Y, Cb, Cr of the inks (255 - the values of a CMYK file), and 255 - K."""
    y, cr, cb = np.moveaxis(cv2.cvtColor(RGB, cv2.COLOR_RGB2YCrCb), -1, 0)
    stored = np.dstack([y, cb, cr, 255 - GREY // 2])
    result = decode(cmyk(255 - stored, transform=2), (HEIGHT, WIDTH, 3))
    expected = (255 - RGB.astype(float)) * (255 - GREY[..., None] // 2) / 255
    np.testing.assert_allclose(result, expected, atol=6)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(kind, RGB, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert('RGB'))
    np.testing.assert_array_equal(decode(data, expected.shape, upright=True), expected)
    np.testing.assert_array_equal(decode(data, RGB.shape), by_pil(data))


def test_broken_exif_is_ignored():
    data = encoded('JPEG', RGB, exif=b'Exif\0\0MM\0*\xff\xff\xff\xff rubbish')
    np.testing.assert_array_equal(decode(data, RGB.shape, upright=True), by_pil(data))


@pytest.mark.parametrize(
    ('size', 'method'),
    [((60, 82), cv2.INTER_LINEAR), ((15, 82), cv2.INTER_AREA), ((7, 9), cv2.INTER_AREA)],
)
def test_resizing(size, method):
    expected = cv2.resize(RGB, size[::-1], interpolation=method)
    np.testing.assert_array_equal(decode(ALL['png-rgb8'], (*size, 3)), expected)
    np.testing.assert_array_equal(decode(ALL['bmp-24'], (*size, 3)), expected)


def test_images_are_turned_upright_before_they_are_resized():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded('PNG', RGB, exif=exif)
    expected = cv2.resize(
        np.ascontiguousarray(np.rot90(RGB, -1)), (8, 16), interpolation=cv2.INTER_AREA
    )
    np.testing.assert_array_equal(decode(data, (16, 8, 3), upright=True), expected)


def test_image_larger_than_a_strip():
    """700 x 1100 pixels are copied in several strips."""
    large = cv2.resize(RGB, (1100, 700), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(decode(encoded('BMP', large), large.shape), large)


@pytest.mark.parametrize('share', [0.2, 0.5, 0.9])
@pytest.mark.parametrize('name', [name for name in ALL if name != 'gif-first-of-two'])
def test_truncated_file_is_an_error(name, share):
    data = ALL[name]
    with pytest.raises(BadImage):
        decode(data[: int(share * len(data))], (HEIGHT, WIDTH, 3))


@pytest.mark.parametrize('name', ['png-grey8', 'png-rgba', 'png-palette', 'png-grey16'])
def test_one_wrong_byte_in_a_png_is_an_error(name):
    data = bytearray(ALL[name])
    data[len(data) // 2] ^= 255
    with pytest.raises(BadImage, match='checksums are wrong'):
        decode(bytes(data), (HEIGHT, WIDTH, 3))


def bomb(kind: int) -> bytes:
    head = struct.pack('>IIBBBBB', 20_000, 20_000, 8, kind, 0, 0, 0)
    return png((b'IHDR', head), (b'IDAT', zlib.compress(b'\0' * 100)), (b'IEND', b''))


@pytest.mark.parametrize('kind', [0, 6])
def test_decompression_bomb_is_an_error(kind):
    with pytest.raises(BadImage, match='400000000|20000x20000'):
        decode(bomb(kind), (8, 8, 3))


@pytest.mark.parametrize('kind', ['PNG', 'BMP'])
def test_sizes_of_which_pil_only_warns_are_an_error(kind, monkeypatch):
    """Between one and two times the limit, PIL only warns."""
    monkeypatch.setattr(images, 'MAX_PIXELS', HEIGHT * WIDTH - 1)
    with pytest.raises(BadImage, match='its 41x30 pixels are more than the limit of 1229'):
        decode(encoded(kind, RGB), RGB.shape)


@pytest.mark.parametrize(
    ('data', 'words'),
    [
        (b'', 'it is empty'),
        (b'<html>Not result</html>', 'it is not a JPEG, PNG, WebP, BMP or GIF'),
        (b'\0' * 5000, 'it is not a JPEG'),
        (b'\x89PNG\r\n\x1a\n', 'it is not a JPEG'),
    ],
)
def test_data_that_is_not_an_image_is_an_error(data, words):
    with pytest.raises(BadImage, match=words):
        decode(data, (8, 8, 3))


BROKEN = """
import io, pickle, sys
from jaxtrain.data.images import quiet_pil
from jaxtrain.data.images.decode import BadImage, decode
quiet_pil()  # as commands and workers do
for data in pickle.load(sys.stdin.buffer):
    try:
        decode(data, 3, upright=True)
    except BadImage:
        pass
"""


def test_decoding_prints_nothing():
    """This runs in a separate process, because output of C libraries bypasses Python's stderr."""
    import pickle

    half = [data[: len(data) // 2] for data in ALL.values()]
    jpeg = bytearray(encoded('JPEG', np.tile(RGB, (9, 9, 1)), quality=95))
    jpeg[len(jpeg) // 2 : len(jpeg) // 2 + 300] = b''  # libjpeg warns of this one
    icc = encoded('PNG', RGB, icc_profile=b'no profile' * 9)
    exif = encoded('JPEG', RGB, exif=b'Exif\0\0MM\0*\xff\xff\xff\xff rubbish')
    files = [*ALL.values(), *half, bytes(jpeg), icc, exif, bomb(0), bomb(6), b'no image']
    run = subprocess.run(
        [sys.executable, '-c', BROKEN], input=pickle.dumps(files), capture_output=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, b'', b'')


def whole(*shape: int) -> Transforms:
    return Transforms(shape, (Decode(shape[2]), Resize(shape[:2])))


def test_the_error_of_reading_names_the_file(tmp_path):
    path = str(tmp_path / 'a b.jpg')
    for data, words in (
        (b'x', 'cannot be read as an image (it is not a JPEG'),
        (None, 'No such file'),
    ):
        if data is None:
            os.remove(path)
        else:
            (tmp_path / 'a b.jpg').write_bytes(data)
        with pytest.raises(UserError) as caught:
            read_image(path, whole(8, 8, 3))
        assert path in str(caught.value) and words in str(caught.value)
        assert '\n' not in str(caught.value)


def test_the_kind_depends_on_the_content_not_the_suffix(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(ALL['png-rgb8'])
    np.testing.assert_array_equal(read_image(str(tmp_path / 'a.jpg'), whole(*RGB.shape)), RGB)


def test_find_returns_named_files_and_visible_images_in_folders(tmp_path):
    for name in ('b/2.PNG', 'b/c/1.jpeg', 'b/.hidden.jpg', 'b/.git/3.jpg', 'b/notes.txt', 'a.dat'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    result = find([str(tmp_path / 'b'), str(tmp_path / 'a.dat')])
    assert [os.path.relpath(path, tmp_path) for path in result] == [
        'b/2.PNG',
        'b/c/1.jpeg',
        'a.dat',
    ]


@pytest.mark.parametrize(('name', 'words'), [('x', 'no such file'), ('empty', 'holds no images')])
def test_finding_nothing_is_an_error(name, words, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match=words):
        find([str(tmp_path / name)])


def test_a_link_to_a_folder_above_is_an_error(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'up').symlink_to(tmp_path)
    with pytest.raises(UserError, match='a/up is a link to a folder that contains it'):
        find([str(tmp_path)])


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b' / '1.png').touch()
    (tmp_path / 'a' / 'other').symlink_to(tmp_path / 'b')
    assert find([str(tmp_path / 'a')]) == [str(tmp_path / 'a' / 'other' / '1.png')]


@pytest.mark.parametrize('interpolation', ['auto', 'bilinear', 'bicubic', 'nearest'])
def test_one_channel_is_resized_like_a_grey_image(interpolation):
    fit = Fit(0.5, interpolation)
    image = np.random.default_rng(0).integers(0, 256, (9, 7), np.uint8)
    result = resize(image[..., None], (4, 6), fit)
    np.testing.assert_array_equal(result, resize(image, (4, 6), fit)[..., None])


@pytest.mark.parametrize(('width', 'left'), [(4, 0), (5, 0), (6, 1), (7, 2), (9, 2), (11, 4)])
def test_the_centre_crop_is_that_of_torchvision(width, left):
    """Its center_crop starts at round((width - 4) / 2), which rounds halves to even."""
    row = np.tile(np.arange(width, dtype=np.uint8), (4, 1))
    fit = Fit(1.0, 'bilinear')
    np.testing.assert_array_equal(resize(row, (4, 4), fit), row[:, left : left + 4])
    np.testing.assert_array_equal(resize(row.T, (4, 4), fit), row.T[left : left + 4])
