"""Keras's names: VGG (keras_vgg.py) and the ResNets of keras.applications, from HDF5 files.

Arrays have the same layout as in jaxtrain, so a map is a table of layers. Keras's files have
several layouts (h5.py), which share only the names of layers. The map can only import, because no
Keras format takes arrays by name.
"""

import re
from collections.abc import Container
from dataclasses import replace
from typing import Any

from jaxtrain.data.features import IMAGE, feature
from jaxtrain.errors import UserError
from jaxtrain.models.resnet import STAGES
from jaxtrain.weights.formats import h5
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.formats.h5 import Layout
from jaxtrain.weights.origins import keras_config, keras_vgg
from jaxtrain.weights.origins.keras_config import Reading
from jaxtrain.weights.origins.names import SAME1, SAME2, Match, Row, row
from jaxtrain.weights.schemas import keras as schema

_RESNET = {
    'name': 'resnet', 'stride': '1x1', 'conv_bias': True, 'norm_eps': 1.001e-5,
    'norm_momentum': 0.99,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    **{name: {'name': 'vgg', 'depth': depth} for name, depth in keras_vgg.DEPTHS.items()},
    **{f'resnet{depth}': {**_RESNET, 'depth': depth} for depth in (50, 101, 152)},
}

# (Keras's layer, our layer, our arrays in Keras's order).
CONV = ('kernel', 'bias')
NORM = ('scale', 'bias', 'mean', 'var')
STEM = (('conv1_conv', 'backbone/conv_0', CONV), ('conv1_bn', 'backbone/norm_0', NORM))
LAYER = (
    ('conv{k}_block{n}_{i}_conv', 'backbone/stage{s}_block{b}/conv_{i}', CONV),
    ('conv{k}_block{n}_{i}_bn', 'backbone/stage{s}_block{b}/norm_{i}', NORM),
)
DOWN = (
    ('conv{k}_block1_0_conv', 'backbone/stage{s}_block0/conv_down', CONV),
    ('conv{k}_block1_0_bn', 'backbone/stage{s}_block0/norm_down', NORM),
)
TOP = (('predictions', 'head/logits', CONV), ('probs', 'head/logits', CONV))

SAME4 = 'h w i o -> h w i o'
IGNORED = (
    (r'(optimizer(_weights)?/.*)', 'the state of the optimizer'),
    (r'.*/seed_generator(_state(:0)?|/.*)', 'the state of random layers'),
)

# Layers without arrays in a file that lists layers, but has no model config.
PLAIN = re.compile(
    r'input(_layer)?|zero_padding2d|max_pooling2d|activation|add|dropout|seed_generator'
    r'|random_(flip|rotation|zoom|contrast|brightness|translation)'
)
POOLS = {
    'avg_pool': 'mean', 'global_average_pooling2d': 'mean', 'max_pool': 'max',
    'global_max_pooling2d': 'max',
}  # fmt: skip
LAYERS_ASSUMED = (
    'activations, strides, paddings and eps are those of keras.applications, since a file of '
    'weights alone lacks them (--field=epsilon=NUMBER states another eps)'
)


def match(archive: Archive, model: str) -> Match:
    """Match a file to one of MODELS.

    Raises:
      UserError: the file holds another network than that of keras.applications, or its model
        config states one.
    """
    file, fields = archive.files[0], dict(MODELS[model])
    with h5.open_file(file) as opened:
        layout = h5.read_layout(opened, file)
    family, reading = str(fields['name']), None
    text = h5.read_model_config(file)
    if text and _is_held(layout, fields):  # a file of another network is reported below
        network = schema.read(text, f'{file}, model_config', archive.given)
        read = {'vgg': keras_config.read_vgg, 'resnet': keras_config.read_resnet}[family]
        reading = read(network, fields['depth'], archive.given)
    stated = keras_config.stated(archive.given, str(file), reading)
    if family == 'vgg':
        made = _match_vgg(layout, archive, model, stated)
    else:
        made = _match_resnet(layout, archive, fields, stated)
    preprocessing = {**(made.preprocessing or {}), **stated.preprocessing}
    made = replace(made, ignored=IGNORED, preprocessing=preprocessing)
    if reading:
        return replace(made, task=reading.task) if made.outputs else made
    return replace(made, assumed=(*made.assumed, LAYERS_ASSUMED))


def _is_held(layout: Layout, fields: dict[str, Any]) -> bool:
    """Whether a file has the layers of a backbone."""
    if fields['name'] == 'vgg':
        return keras_vgg.is_held(layout, fields['depth'])
    names = {layer.name for layer in layout.layers if layer.arrays}
    return all(source in names for source, _, _ in resnet_layers(fields['depth'], ()))


def _match_vgg(layout: Layout, archive: Archive, model: str, stated: Reading) -> Match:
    vgg = keras_vgg.match(layout, model, archive.path, stated)
    size = vgg.image_size or (224, 224)  # the shapes of a backbone do not depend on it
    return Match(
        fields=vgg.fields,
        outputs=vgg.outputs,
        inputs=feature(IMAGE, *size, 3),
        rows=tuple(array(key, path) for path, key in vgg.sources.items()),
        preprocessing={**keras_vgg.PREPROCESSING, 'image_size': vgg.image_size},
        assumed=vgg.assumed,
        task='binary' if vgg.outputs == 1 else 'classify',
        imagenet=vgg.named,
    )


def _match_resnet(layout: Layout, archive: Archive, fields: dict, stated: Reading) -> Match:
    layers = {layer.name: layer.arrays for layer in layout.layers if layer.arrays}
    tops = [layers[name][-1] for name, _, _ in TOP if name in layers]
    outputs = layout.shapes[tops[0]][0] if tops else 0
    rows = []
    for source, target, names in resnet_layers(fields['depth'], layers):
        # A missing layer is reported by its name in Keras.
        keys = layers.get(source) or tuple(f'{source}/{name}' for name in names)
        rows += [array(k, f'{target}/{n}') for k, n in zip(keys, names, strict=False)]
    result = {**fields, 'pool': stated.pool or _pooling(layout, fields['depth'], archive)}
    if stated.eps is not None:
        result['norm_eps'] = stated.eps
    if result['pool'] == 'flatten':
        raise UserError(f'{archive.path}: the positions are flattened, which is not supported')
    size = stated.image_size or (224, 224)
    return Match(
        fields=result,
        outputs=outputs,
        inputs=feature(IMAGE, *size, stated.channels),
        rows=tuple(rows),
        preprocessing={**keras_vgg.PREPROCESSING, 'image_size': size},
        task='binary' if outputs == 1 else 'classify',
    )


def _pooling(layout: Layout, depth: int, archive: Archive) -> str:
    """Return how positions are pooled, by the layers that a file lists. UserError for others."""
    known, held = keras_config.resnet(depth), _is_held(layout, {'name': 'resnet', 'depth': depth})
    pools = []
    for layer in layout.layers:
        names = (layer.name, layer.kind)
        if pool := [POOLS[name] for name in names if name in POOLS]:
            pools += pool[:1]
        elif not (layer.arrays or layer.name in known or PLAIN.fullmatch(layer.kind)) and held:
            raise UserError(
                f'{archive.path}: layer {layer.name!r} is not part of ResNet; save the network as '
                'keras.applications makes it'
            )
    return pools[-1] if pools else 'mean'


def resnet_layers(depth: int, layers: Container[str]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return (Keras's layer, our layer, our arrays in Keras's order) of every layer of a ResNet.

    The top is included if it is in `layers`.
    """
    table = list(STEM)
    for s, count in enumerate(STAGES[depth][0], start=1):
        for b in range(count):
            for i in (1, 2, 3):
                table += _named(LAYER, k=s + 1, n=b + 1, s=s, b=b, i=i)
        table += _named(DOWN, k=s + 1, s=s)
    return table + [entry for entry in TOP if entry[0] in layers]


def _named(table, **values: int) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(t.format(**values), o.format(**values), names) for t, o, names in table]


def array(key: str, path: str) -> Row:
    """Return the row of an array; the layout is unchanged, the pattern gives the number of axes."""
    if not path.endswith('kernel'):
        return row(key, path, SAME1)
    return row(key, path, SAME2 if path.startswith('head/') else SAME4)
