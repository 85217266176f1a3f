"""Keras's VGG16 and VGG19 -> jaxtrain's `vgg`: which array of a file becomes which parameter.

The map goes by layer name. Kernels (height, width, in, out) and (in, out) and biases are taken
unchanged, and the flattened features have the same order (height, width, channels):

| Keras                            | jaxtrain                                  |
|----------------------------------|-------------------------------------------|
| `block1_conv1` .. `block5_conv4` | `backbone/block1_conv1` ..                |
| `fc1`, `fc2`                     | `head/dense_0`, `head/dense_1`            |
| `predictions`                    | `head/logits` (before its softmax)        |

If a file has only names that Keras generates (`conv2d`, `conv2d_1`, ...; `dense`, ...), layers are
mapped by their order within one model. Shapes play no part here; they are checked afterwards.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtrain.errors import UserError
from jaxtrain.models.vgg import WIDTHS, convolutions
from jaxtrain.weights.formats.h5 import Layer, Layout
from jaxtrain.weights.origins.keras_config import Reading

DEPTHS = {'vgg16': 16, 'vgg19': 19}
# The weights expect images in 0..255, BGR, minus the mean of ImageNet (mode 'caffe' in Keras).
PREPROCESSING = {
    'scale': 1.0,
    'channel_order': 'bgr',
    'mean': (103.939, 116.779, 123.68),
    'std': (1.0,),
}

_TOP = ('fc1', 'fc2', 'predictions')
_STRIDE = 2 ** len(WIDTHS)  # a pooling per block: pixels per position of the last features
# Layers without arrays that our model has too, or that act only in training.
_PLAIN = re.compile(
    r'input(_layer)?|block\d_pool|max_pooling2d|flatten|dropout|random_\w+'
    r'|global_(average|max)_pooling2d'
)
_POOLS = {
    'global_max_pooling2d': 'max', 'global_average_pooling2d': 'mean', 'flatten': 'flatten',
}  # fmt: skip
# Arrays that do not affect what a model computes.
_IGNORED = re.compile(r'optimizer(_weights)?/.*|.*/seed_generator/.*|.*/seed_generator_state(:0)?')
_ALONE = "save the VGG alone, as in model.get_layer('vgg16').save_weights('vgg16.weights.h5')"


@dataclass(frozen=True)
class VGGMatch:
    """The result of matching a file to our model.

    Attributes:
      fields: fields of `config.model`.
      outputs: width of the top, 0 without a top.
      image_size: height and width of the images that the top requires, () without a top.
      sources: parameter path -> address in the file.
      ignored: addresses of arrays that are not weights.
      assumed: sentences about what the file leaves open.
      named: whether layers have the names of keras.applications.
    """

    fields: dict[str, Any]
    outputs: int
    image_size: tuple[int, ...]
    sources: dict[str, str]
    ignored: tuple[str, ...]
    assumed: tuple[str, ...]
    named: bool = True


def match(layout: Layout, model: str, path: Path, stated: Reading) -> VGGMatch:
    """Find every layer of `model` in a file, and account for every array of the file.

    Args:
      layout: the file's layers.
      model: one of DEPTHS.
      path: the file, for messages.
      stated: what the model config and the user state.

    Raises:
      UserError: a layer is missing or unused, or our model does not support the top.
    """
    depth = DEPTHS[model]
    filled = [layer for layer in layout.layers if layer.arrays]
    backbone = _backbone(filled, depth)
    if backbone is None:
        raise UserError(_missing(filled, depth, model, path))
    top = _top(filled, path)
    head = [*(f'dense_{i}' for i in range(len(top) - 1)), 'logits'] if top else []
    targets = {f'backbone/{name}': layer for name, layer in backbone.items()}
    targets |= {f'head/{name}': layer for name, layer in zip(head, top, strict=True)}
    ignored = _left_over(layout, list(targets.values()), path)
    sources = _sources(layout, targets, path)
    fields: dict[str, Any] = {'name': 'vgg', 'depth': depth}
    size, outputs = stated.image_size, 0
    if top:
        fields['features'], size = _features(layout, top, path, stated)
        *hidden, outputs = (layout.shapes[layer.arrays[1]][0] for layer in top)
        fields['hidden'] = tuple(hidden)
    elif (pool := _pooling(layout, stated)) not in ('', 'flatten'):
        fields['features'] = pool
    assumed = _assumed(backbone, top, size, stated)
    named = not (assumed or (top and top[0].name != _TOP[0]))
    if fields.get('features') == 'flatten' and not stated.image_size and named:
        assumed = (*assumed, f'images are {size[0]}x{size[1]}, since positions form a square')
    return VGGMatch(fields, outputs, size, sources, ignored, assumed, named)


def is_held(layout: Layout, depth: int) -> bool:
    """Whether a file has the convolutions of a VGG."""
    return _backbone([layer for layer in layout.layers if layer.arrays], depth) is not None


def _sources(layout: Layout, targets: dict[str, Layer], path: Path) -> dict[str, str]:
    """Return the address of every parameter by path, given Keras's layer of each of our modules."""
    addresses: dict[str, str] = {}
    for target, layer in targets.items():
        dimensions = [len(layout.shapes[address]) for address in layer.arrays]
        if dimensions != [2 if target.startswith('head/') else 4, 1]:
            raise UserError(
                f'{path}: layer {layer.name!r} has {len(layer.arrays)} array(s) of dimensions '
                f'{dimensions}, not a kernel and a bias as in VGG; {_ALONE}'
            )
        addresses |= dict(zip((f'{target}/kernel', f'{target}/bias'), layer.arrays, strict=True))
    return addresses


def _assumed(
    backbone: dict[str, Layer], top: list[Layer], size: tuple[int, ...], stated: Reading
) -> tuple[str, ...]:
    """Return sentences about what is assumed of a file without the standard names."""
    texts = []
    if any(name != layer.name for name, layer in backbone.items()):
        texts.append('the convolutions are in the order of VGG (restore.json lists them)')
    if top and top[0].name != _TOP[0]:
        if not stated.task:
            texts.append('hidden dense layers use ReLU')
        if not stated.preprocessing:
            texts.append(
                f'images are {size[0]}x{size[1]}, preprocessed as in keras.applications.vgg16 '
                '(else change image_size, scale, channel_order, mean and std of config.data)'
            )
    return tuple(texts)


def _backbone(filled: list[Layer], depth: int) -> dict[str, Layer] | None:
    """Return the layers by our names; None if the file does not hold those of this depth."""
    names = convolutions(depth)
    by_name = {layer.name: layer for layer in filled}
    known = [name for name in by_name if re.fullmatch(r'block\d_conv\d', name)]
    if known:
        return {name: by_name[name] for name in names} if set(known) == set(names) else None
    ordered = [layer for layer in filled if layer.kind == 'conv2d']
    if len(ordered) != len(names) or len({layer.parent for layer in ordered}) > 1:
        return None
    return dict(zip(names, ordered, strict=True))


def _top(filled: list[Layer], path: Path) -> list[Layer]:
    """Return the dense layers in order, [] without a top."""
    by_name = {layer.name: layer for layer in filled}
    named = [by_name[name] for name in _TOP if name in by_name]
    if named:
        if len(named) != len(_TOP):
            missing = ', '.join(name for name in _TOP if name not in by_name)
            raise UserError(f'{path}: the top lacks the layers {missing}; {_ALONE}')
        return named
    dense = [layer for layer in filled if layer.kind == 'dense']
    if len({layer.parent for layer in dense}) > 1:
        raise UserError(f'{path}: the dense layers are in several models; {_ALONE}')
    return dense


def _pooling(layout: Layout, stated: Reading) -> str:
    """Return how positions are pooled, '' if neither the layers nor the user state it."""
    kinds = {layer.kind for layer in layout.layers}
    return stated.pool or next((pool for kind, pool in _POOLS.items() if kind in kinds), '')


def _features(
    layout: Layout, top: list[Layer], path: Path, stated: Reading
) -> tuple[str, tuple[int, ...]]:
    """Return how the features reach the top, and the height and width of the images."""
    width, pool = layout.shapes[top[0].arrays[0]][0], _pooling(layout, stated)
    if pool not in ('', 'flatten'):
        return pool, stated.image_size or (224, 224)  # any size works; this is Keras's default
    if not pool and top[0].name != _TOP[0] and width == WIDTHS[-1]:
        raise UserError(
            f'{path} does not say whether the {width} features are flattened or averaged; {_ALONE}'
        )
    size = stated.image_size
    if not size:
        side = math.isqrt(width // WIDTHS[-1])
        size = (_STRIDE * side, _STRIDE * side)
    positions = math.prod(side // _STRIDE for side in size)
    if WIDTHS[-1] * positions != width or not positions:
        raise UserError(
            f'{path}: layer {top[0].name!r} takes {width} features, which are not the '
            f'{WIDTHS[-1]} channels of a square image; state the size, as in '
            '--field=image_size=[64,96], or save the model with include_top=False'
            if not stated.image_size
            else f'{path}: layer {top[0].name!r} takes {width} features, but images of '
            f'{size[0]}x{size[1]} have {WIDTHS[-1] * positions}; correct the size'
        )
    return 'flatten', size


def _left_over(layout: Layout, used: list[Layer], path: Path) -> tuple[str, ...]:
    """Return addresses of arrays that are not weights. UserError for unused layers or arrays."""
    for layer in layout.layers:
        if layer not in used and (layer.arrays or not _PLAIN.fullmatch(layer.kind)):
            raise UserError(f'{path}: layer {layer.name!r} is not part of VGG; {_ALONE}')
    wanted = {address for layer in used for address in layer.arrays}
    rest = tuple(address for address in layout.shapes if address not in wanted)
    for address in rest:
        if not _IGNORED.fullmatch(address):
            raise UserError(f'{path}: array {address} belongs to no layer of VGG; {_ALONE}')
    return rest


def _missing(filled: list[Layer], depth: int, model: str, path: Path) -> str:
    for other, other_depth in DEPTHS.items():
        if other_depth != depth and _backbone(filled, other_depth):
            return f'{path} holds {other}, not {model}; give --model={other}'
    names = [layer.name for layer in filled]
    missing = [name for name in convolutions(depth) if name not in names]
    present = ', '.join(names[:5]) + (' ...' if len(names) > 5 else '')
    return (
        f'{path} is not {model}: of its {len(convolutions(depth))} convolutions it lacks '
        f'{len(missing)} ({", ".join(missing[:3])}{" ..." if len(missing) > 3 else ""}), and its '
        f'{len(names)} layers with weights are {present or "none"}; give the file of a {model} '
        'as keras.applications makes it'
    )
