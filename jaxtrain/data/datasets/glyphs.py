"""The data set `glyphs`: letters of three scripts, rendered from fonts and then distorted.

Nothing is downloaded: the fonts come with matplotlib. There are several scripts for the sake of
transfer: a network can learn what strokes are from Latin and Cyrillic letters, and then be
fine-tuned on Greek letters, which it has not seen.
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

SIZE = 20  # height and width of an image in pixels
ZOOM = 6  # pixels of a rendered glyph per pixel of the image
CANVAS = 24 * ZOOM  # height and width of a rendered glyph; the widest, a bold serif Ж, is 134
FONT_SIZE = 16 * ZOOM  # the same for all, so that capitals stay larger than small letters
HALF = CANVAS // 2  # height and width of the glyph while it is blurred and warped

LATIN = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'
# Letters that look like a Latin one (А, е, о, ...) are left out, and so is one of each pair whose
# two cases differ only in size (ж, ц, ш, ...), because they look the same after the warp.
CYRILLIC = 'БГДЖЗИЙЛПУФЦЧШЩЪЫЬЭЮЯ' + 'бвкмнтф' + 'ЂЄЇЉЊЋЏѢѲђ'
GREEK = 'αβγδεζηθικλμνξοπρστυφχψω'

# The font faces that contain all of the letters above.
FACES = (
    *(
        f'DejaVu{family}{style}.ttf'
        for family, slanted in (('Sans', 'Oblique'), ('SansMono', 'Oblique'), ('Serif', 'Italic'))
        for style in ('', '-Bold', f'-{slanted}', f'-Bold{slanted}')
    ),
    *(f'STIXGeneral{style}.ttf' for style in ('', 'Bol', 'Italic', 'BolIta')),
)

# The parameters drawn uniformly for each example: (lowest, highest).
RANGES = {
    'rotation': (-25.0, 25.0),  # degrees
    'scale_x': (0.75, 1.15),
    'scale_y': (0.75, 1.15),
    'shear': (-0.3, 0.3),
    'shift_x': (-2.0, 2.0),  # pixels of the image, as for the other lengths
    'shift_y': (-2.0, 2.0),
    'stroke': (-0.2, 0.3),  # added to each side of a stroke
    'blur': (0.4, 0.8),  # standard deviation; below 0.4 the smaller image would alias
    'ground': (10.0, 70.0),  # grey levels, as for the two below
    'contrast': (90.0, 180.0),  # ink minus ground
    'noise': (5.0, 20.0),  # standard deviation
}
_LOW, _HIGH = np.transpose(list(RANGES.values()))


@dataclass(eq=False)
class GlyphsConfig(tfds.core.BuilderConfig):
    """The characters that are the classes, in label order, and the number of images per split."""

    characters: str = ''
    splits: dict[str, int] = field(default_factory=dict)


class Glyphs(tfds.core.GeneratorBasedBuilder):
    """A TFDS builder of 20x20 grey images of letters; see `_DESCRIPTION`."""

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
    quiet = False  # True shows no progress bar, even on a terminal

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
    """Make one example, which depends on the arguments alone.

    Returns:
        The image, uint8 of shape (20, 20), light ink on a dark background; and its label, an index
        into `characters`. Labels cycle with `index`, so that the sizes of the classes differ by at
        most one.
    """
    # RandomState, because NumPy guarantees that its output never changes; PCG64, because it is
    # faster to seed; crc32, because hash() is salted.
    seed = [zlib.crc32(f'{config}/{split}'.encode()), index]
    rng = np.random.RandomState(np.random.PCG64(seed))
    label = index % len(characters)
    glyph = render(characters[label], FACES[rng.randint(len(FACES))])
    return distort(glyph, rng), label


@functools.cache
def render(character: str, face: str) -> np.ndarray:
    """Return an undistorted glyph, uint8 of shape (144, 144), with its ink centred."""
    from PIL import Image, ImageDraw

    image = Image.new('L', (3 * CANVAS, 3 * CANVAS))  # the margin is cropped below
    ImageDraw.Draw(image).text((CANVAS, CANVAS), character, fill=255, font=_font(face))
    box = image.getbbox()
    assert box, f'{character!r} has no ink'
    left, top, right, bottom = box
    x, y = (left + right - CANVAS) // 2, (top + bottom - CANVAS) // 2
    return np.asarray(image.crop((x, y, x + CANVAS, y + CANVAS)))


def distort(glyph: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Return a warped, blurred, faded and noisy image of a glyph.

    Args:
        glyph: uint8 of shape (144, 144).
        rng: the generator from which the parameters in `RANGES` and the noise are drawn.

    Returns:
        uint8 of shape (20, 20).
    """
    draw = dict(zip(RANGES, rng.uniform(_LOW, _HIGH), strict=True))
    ink = _thicken(glyph, draw['stroke'] * ZOOM)
    # Only the stroke operation needs the full resolution. float32, because OpenCV blurs uint8 in
    # threads, which takes ten times the CPU time at this size.
    ink = cv2.resize(ink, (HALF, HALF), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    # The blur comes before the warp, because it also prevents aliasing where the warp shrinks.
    ink = cv2.GaussianBlur(ink, (0, 0), draw['blur'] * ZOOM / 2)
    ink = cv2.warpAffine(ink, _affine(draw), (SIZE, SIZE))
    grey = draw['ground'] + draw['contrast'] * ink + draw['noise'] * rng.standard_normal(ink.shape)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _thicken(glyph: np.ndarray, pixels: float) -> np.ndarray:
    """Grow each side of the strokes by `pixels`, rounded; shrink them if it is negative."""
    radius = round(abs(pixels))
    if radius == 0:
        return glyph
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return (cv2.dilate if pixels > 0 else cv2.erode)(glyph, disc)


def _affine(draw: dict[str, float]) -> np.ndarray:
    """Return the 2x3 affine map from the half canvas to the image."""
    angle = np.deg2rad(draw['rotation'])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1.0, draw['shear']], [0.0, 1.0]])
    linear = rotation @ shear @ np.diag([draw['scale_x'], draw['scale_y']]) * (2 / ZOOM)
    centre_in, centre_out = (HALF - 1) / 2, (SIZE - 1) / 2  # the map keeps the centre in place
    shift = centre_out - linear.sum(1) * centre_in + (draw['shift_x'], draw['shift_y'])
    return np.column_stack([linear, shift])


@functools.cache
def _font(face: str):
    import matplotlib
    from PIL import ImageFont

    path = pathlib.Path(matplotlib.get_data_path(), 'fonts', 'ttf', face)
    # The basic layout, because not every build of Pillow has the other one.
    return ImageFont.truetype(str(path), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


def _progress(indices: range, title: str, quiet: bool) -> Iterator[int]:
    """Iterate over the indices, with a progress bar if stderr is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield from indices
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(indices, title, console=Console(stderr=True))


_DESCRIPTION = """
Grey 20x20 images of letters, light on dark. A letter is drawn in one of 16 faces of DejaVu and STIX
and then rotated, stretched, sheared, shifted, made bolder or thinner, blurred, faded and covered
with noise. The sizes of the classes in a split differ by at most one. The configs share no
character.
"""
