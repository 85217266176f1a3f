"""preprocessor_config.json: the image processors of ViT and DINOv2 in transformers.

`preprocessing` computes the keys of `config.data` from it. transformers resizes the image, crops
its centre, multiplies pixels by `rescale_factor`, subtracts `image_mean` and divides by
`image_std`; each of these steps can be off.
"""

from typing import Any

from jaxtrain.errors import UserError
from jaxtrain.json_file import Record, is_number
from jaxtrain.weights.schemas.schema import Only, Schema, computed, no_effect

_VIT = ('ViTImageProcessor', 'ViTImageProcessorFast', 'ViTFeatureExtractor', 'ViTImageProcessorPil')
_BIT = ('BitImageProcessor', 'BitImageProcessorFast', 'BitImageProcessorPil')
_KIND = Only((*_VIT, *_BIT, None), 'the defaults and steps of that processor')
PROCESSOR: Schema = {
    'image_processor_type': _KIND,
    'feature_extractor_type': _KIND,
    **computed(
        'size', 'crop_size', 'do_center_crop', 'default_to_square', 'resample', 'do_rescale',
        'rescale_factor',
        'do_normalize', 'image_mean', 'image_std',
    ),
    **no_effect(
        'bookkeeping', 'processor_class', '_valid_processor_keys', 'auto_map',
        'return_tensors', 'data_format', 'input_data_format', 'device', 'disable_grouping',
        'transformers_version', 'model_input_names',
    ),
    **no_effect('images are always read as RGB', 'do_convert_rgb'),
    'do_resize': Only((True, None), 'images that already have the size of the network'),
    'do_pad': Only((False, None), 'padding'),
    'pad_size': Only((None,), 'padding'),
}  # fmt: skip

RESAMPLE = {0: 'nearest', 2: 'bilinear', 3: 'bicubic'}
CLIP = {
    'mean': (0.48145466, 0.4578275, 0.40821073),
    'std': (0.26862954, 0.26130258, 0.27577711),
}


def preprocessing(processor: Record, is_bit: bool) -> dict[str, Any]:
    """Return the keys of `config.data` for a preprocessor_config.json.

    Args:
      processor: the file, whose fields `PROCESSOR` accepts.
      is_bit: whether missing fields have the defaults of BitImageProcessor, if the file does not
        name its processor; otherwise they have those of ViTImageProcessor.

    Raises:
      UserError: a field has a wrong type, or a value that cannot be computed.
    """
    name = processor.text('image_processor_type', processor.text('feature_extractor_type', None))
    is_bit = name in _BIT if name else is_bit
    size, crop = _crop(processor, is_bit, bool(name))
    mean, std = _normalisation(processor, is_bit)
    resample = processor.integer('resample', 3 if is_bit else 2)
    if resample not in RESAMPLE:
        raise UserError(
            f'{processor.at("resample")} is not supported, only 0 (nearest), 2 (bilinear) and 3 '
            '(bicubic); make the images otherwise, and remove the field'
        )
    scale = 1.0
    if _is_on(processor, 'do_rescale', True):
        factor = processor.number('rescale_factor', 1 / 255)
        if factor <= 0:
            raise UserError(f'{processor.at("rescale_factor")} should be more than 0')
        scale = 1 / factor
        # 1 / 0.00392156862745098 is 255 up to rounding.
        scale = float(round(scale)) if abs(scale - round(scale)) < 1e-9 else scale
    return {
        'image_size': size,
        'crop': crop,
        # Where the margins differ by a pixel, the first is the smaller one.
        **({'crop_rounding': 'down'} if crop else {}),
        'interpolation': RESAMPLE[resample],
        'scale': scale,
        'mean': mean,
        'std': std,
        'channel_order': 'rgb',
    }


def _is_on(processor: Record, key: str, usual: bool) -> bool:
    """Return a flag; transformers takes null for false."""
    return bool(processor.flag(key, None)) if key in processor else usual


def _normalisation(processor: Record, is_bit: bool) -> tuple[tuple, tuple]:
    """Return mean and standard deviation per channel."""
    if not _is_on(processor, 'do_normalize', True):
        return (0.0,), (1.0,)
    usual = CLIP if is_bit else {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
    result = []
    for key in ('mean', 'std'):
        field = f'image_{key}'
        if is_number(processor.values.get(field)):
            values = (processor.number(field),)
        else:
            values = processor.numbers(field, usual[key])
        if len(values) not in (1, 3) or (key == 'std' and min(values) <= 0):
            raise UserError(f'{processor.at(field)} should be one number, or one for each of RGB')
        result.append(values)
    return result[0], result[1]


def _crop(processor: Record, is_bit: bool, named: bool) -> tuple[tuple[int, int], float]:
    """Return (size of the images, `config.data.crop`), where 0 stretches the whole image."""
    crops = _is_on(processor, 'do_center_crop', is_bit)
    # Whether an integer is the shorter side. Early files, which do not name their processor, mean
    # that wherever they crop.
    shorter = is_bit if named else is_bit or crops
    shorter = not processor.flag('default_to_square', not shorter)
    resized = _size(processor, 'size', {'shortest_edge': 224} if is_bit else 224, shorter)
    if not crops:
        if isinstance(resized, int):
            raise UserError(
                f'{processor.at("size")} keeps the aspect of images, and do_center_crop is false, '
                'which needs a network for images of any size; state height and width'
            )
        return resized, 0.0
    cropped = _size(processor, 'crop_size', 224, False)
    if isinstance(cropped, int) or cropped[0] != cropped[1]:
        raise UserError(
            f'{processor.at("crop_size")} is not supported, only a square '
            '{"height": N, "width": N} or an integer; it needs another crop'
        )
    if not isinstance(resized, int):
        if resized == cropped:
            return cropped, 0.0
        raise UserError(
            f'{processor.at("size")} stretches images before they are cropped, which is not '
            'supported; only {"shortest_edge": N} can be followed by a crop'
        )
    if cropped[0] > resized:
        raise UserError(
            f'{processor.at("crop_size")} exceeds {processor.at("size")}, which needs padding'
        )
    return cropped, cropped[0] / resized


def _size(processor: Record, key: str, usual: Any, shorter: bool) -> int | tuple[int, int]:
    """Return a size: the shorter side as an int, or (height, width)."""
    value = processor.values.get(key, usual)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value if shorter else (value, value)
    if isinstance(value, dict):
        sides = {name: side for name, side in value.items() if side is not None}
        if all(isinstance(side, int) and side > 0 for side in sides.values()):
            if set(sides) == {'shortest_edge'}:
                return sides['shortest_edge']
            if set(sides) == {'height', 'width'}:
                return sides['height'], sides['width']
    raise UserError(
        f'{processor.at(key)} should be an integer, {{"height": N, "width": N}} or '
        '{"shortest_edge": N}; correct the file'
    )
