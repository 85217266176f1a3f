"""The data set `glyphs`: letters of three scripts, rendered from fonts and then badly treated.

Nothing is downloaded: the fonts come with matplotlib. The scripts are the point. A network can
learn what strokes are from Latin and Cyrillic, and then be asked about Greek, of which it saw no
letter.
"""

import functools
import pathlib
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np
import tensorflow_datasets as tfds

SIZE = 20  # pixels of an image, each way
ZOOM = 6  # pixels of a rendered glyph for one of the image
CANVAS = 24 * ZOOM  # pixels of a rendered glyph, each way; the widest, a bold serif Ж, has 134
FONT_SIZE = 16 * ZOOM  # one size for all, so that a capital stays larger than its small letter
HALF = CANVAS // 2  # pixels of what is blurred and warped

LATIN = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'
# Left out: letters that are drawn like a Latin one (А, е, о, ...) and one of each pair whose two
# cases differ in size alone (ж, ц, ш, ...), for no one could tell these apart after the warp.
CYRILLIC = 'БГДЖЗИЙЛПУФЦЧШЩЪЫЬЭЮЯ' + 'бвкмнтф' + 'ЂЄЇЉЊЋЏѢѲђ'
GREEK = 'αβγδεζηθικλμνξοπρστυφχψω'

# The faces that have all the letters above.
FACES = (
    *(
        f'DejaVu{family}{style}.ttf'
        for family, slanted in (('Sans', 'Oblique'), ('SansMono', 'Oblique'), ('Serif', 'Italic'))
        for style in ('', '-Bold', f'-{slanted}', f'-Bold{slanted}')
    ),
    *(f'STIXGeneral{style}.ttf' for style in ('', 'Bol', 'Italic', 'BolIta')),
)

# What is drawn for each example, uniformly: (lowest, highest).
RANGES = {
    'rotation': (-25.0, 25.0),  # degrees
    'scale_x': (0.75, 1.15),
    'scale_y': (0.75, 1.15),
    'shear': (-0.3, 0.3),
    'shift_x': (-2.0, 2.0),  # pixels of the image, as are the other lengths
    'shift_y': (-2.0, 2.0),
    'stroke': (-0.2, 0.3),  # added to a stroke on either side
    'blur': (0.4, 0.8),  # standard deviation; below 0.4 the smaller image would alias
    'ground': (10.0, 70.0),  # grey levels, as are the two below
    'contrast': (90.0, 180.0),  # ink minus ground
    'noise': (5.0, 20.0),  # standard deviation
}
_LOW, _HIGH = np.transpose(list(RANGES.values()))


@dataclass(eq=False)
class GlyphsConfig(tfds.core.BuilderConfig):
    """Which characters are the classes, in this order, and how many images a split has."""

    characters: str = ''
    splits: dict[str, int] = field(default_factory=dict)


class Glyphs(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of 20x20 grey images of letters; see `_DESCRIPTION`."""

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'Initial release.'}
    BUILDER_CONFIGS = [
        GlyphsConfig(
            name='latin_cyrillic',
            description='52 Latin and 38 Cyrillic letters.',
            characters=LATIN + CYRILLIC,
            splits={'train': 54_000, 'val': 3_000, 'test': 3_000},
        ),
        GlyphsConfig(
            name='greek',
            description='The 24 lower-case Greek letters, without the final sigma.',
            characters=GREEK,
            splits={'train': 2_000, 'val': 1_000, 'test': 2_000},
        ),
    ]
    quiet = False  # True: no progress bar, on a terminal either

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    'image': tfds.features.Image(shape=(SIZE, SIZE, 1), encoding_format='png'),
                    'label': tfds.features.ClassLabel(names=list(self.builder_config.characters)),
                }
            ),
            supervised_keys=('image', 'label'),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # nothing to download
        splits = self.builder_config.splits
        return {split: self._generate_examples(split, count) for split, count in splits.items()}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        for index in _progress(range(count), f'{self.name}/{config.name} {split}', self.quiet):
            image, label = example(config.name, config.characters, split, index)
            yield index, {'image': cv2.imencode('.png', image)[1].tobytes(), 'label': label}


def example(config: str, characters: str, split: str, index: int) -> tuple[np.ndarray, int]:
    """Makes one example, the same one for the same arguments on every run.

    Returns:
        The image, uint8 of shape (20, 20), light ink on a dark ground; and its label, an index
        into `characters`. Labels go round by `index`, so that the classes are of one size, or
        differ by one.
    """
    # RandomState, for numpy promises never to change what it draws; on PCG64, for that seeds
    # faster; crc32, for hash() is salted.
    seed = [zlib.crc32(f'{config}/{split}'.encode()), index]
    rng = np.random.RandomState(np.random.PCG64(seed))
    label = index % len(characters)
    glyph = render(characters[label], FACES[rng.randint(len(FACES))])
    return distort(glyph, rng), label


@functools.cache
def render(character: str, face: str) -> np.ndarray:
    """Returns one clean glyph, uint8 of shape (144, 144), its ink in the centre."""
    from PIL import Image, ImageDraw

    image = Image.new('L', (3 * CANVAS, 3 * CANVAS))  # room on all sides, to be cut off
    ImageDraw.Draw(image).text((CANVAS, CANVAS), character, fill=255, font=_font(face))
    box = image.getbbox()
    assert box, f'{character!r} has no ink'
    left, top, right, bottom = box
    x, y = (left + right - CANVAS) // 2, (top + bottom - CANVAS) // 2
    return np.asarray(image.crop((x, y, x + CANVAS, y + CANVAS)))


def distort(glyph: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Returns a warped, blurred, faded and noisy image of a glyph.

    Args:
        glyph: uint8 of shape (144, 144).
        rng: drawn from; `RANGES` tells what.

    Returns:
        uint8 of shape (20, 20).
    """
    draw = dict(zip(RANGES, rng.uniform(_LOW, _HIGH), strict=True))
    ink = _thicken(glyph, draw['stroke'] * ZOOM)
    # The full canvas was for the strokes alone. float32, for OpenCV blurs uint8 in threads, which
    # at this size costs ten times the CPU.
    ink = cv2.resize(ink, (HALF, HALF), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    # The blur comes before the warp, for it is also what keeps the shrinking from aliasing.
    ink = cv2.GaussianBlur(ink, (0, 0), draw['blur'] * ZOOM / 2)
    ink = cv2.warpAffine(ink, _affine(draw), (SIZE, SIZE))
    grey = draw['ground'] + draw['contrast'] * ink + draw['noise'] * rng.standard_normal(ink.shape)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _thicken(glyph: np.ndarray, pixels: float) -> np.ndarray:
    """Grows the strokes by so many pixels on either side, rounded; shrinks them if negative."""
    radius = round(abs(pixels))
    if radius == 0:
        return glyph
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return (cv2.dilate if pixels > 0 else cv2.erode)(glyph, disc)


def _affine(draw: dict[str, float]) -> np.ndarray:
    """Returns the 2x3 map from the half canvas to the image: scale, shear, turn, shift."""
    angle = np.deg2rad(draw['rotation'])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1.0, draw['shear']], [0.0, 1.0]])
    linear = turn @ shear @ np.diag([draw['scale_x'], draw['scale_y']]) * (2 / ZOOM)
    centre_in, centre_out = (HALF - 1) / 2, (SIZE - 1) / 2  # the centre is to stay the centre
    shift = centre_out - linear.sum(1) * centre_in + (draw['shift_x'], draw['shift_y'])
    return np.column_stack([linear, shift])


@functools.cache
def _font(face: str):
    import matplotlib
    from PIL import ImageFont

    path = pathlib.Path(matplotlib.get_data_path(), 'fonts', 'ttf', face)
    # The basic layout, for the other one is there or not as Pillow was built.
    return ImageFont.truetype(str(path), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


def _progress(indices: range, title: str, quiet: bool) -> Iterator[int]:
    """Iterates over the indices, with a bar on stderr if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield from indices
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(indices, title, console=Console(stderr=True))


_DESCRIPTION = """
Grey 20x20 images of letters, light on dark. A letter is drawn in one of 16 faces of DejaVu and STIX
and then turned, stretched, sheared, shifted, made bolder or finer, blurred, faded and covered with
noise. The classes of a split are of one size, or differ by one. The configs share no character.
"""
