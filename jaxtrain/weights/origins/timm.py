"""timm's names: Vision Transformers, timm's DINOv2, and ResNets (named as in torchvision).

A folder from the Hugging Face Hub also holds config.json, whose `pretrained_cfg` gives the
preprocessing; without it, the preprocessing of the family's best-known weights is assumed.
"""

import math
from typing import Any

from jaxtrain.data.features import IMAGE, feature
from jaxtrain.errors import UserError
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.hub import read_json
from jaxtrain.weights.origins import torchvision
from jaxtrain.weights.origins.names import (
    CONV,
    DENSE,
    HEADS_BIAS,
    HEADS_IN,
    HEADS_OUT,
    SAME1,
    Match,
    Part,
    Row,
    expand,
    row,
)

SIZES = {
    'ti': {'width': 192, 'depth': 12, 'heads': 3, 'mlp': 768},
    's': {'width': 384, 'depth': 12, 'heads': 6, 'mlp': 1536},
    'b': {'width': 768, 'depth': 12, 'heads': 12, 'mlp': 3072},
    'l': {'width': 1024, 'depth': 24, 'heads': 16, 'mlp': 4096},
}
PATCHES = {'ti': (16,), 's': (32, 16, 14, 8), 'b': (32, 16, 14, 8), 'l': (32, 16, 14)}

MODELS: dict[str, dict[str, Any]] = {
    **{
        f'vit_{size}{patch}': {'name': 'vit', 'patch': (patch, patch), **SIZES[size]}
        for size, patches in PATCHES.items()
        for patch in patches
    },
    **{
        f'dinov2_{size}14': {'name': 'vit', 'patch': (14, 14), 'layer_scale': 1e-5, **SIZES[size]}
        for size in ('s', 'b', 'l')
    },
    **{name: fields for name, fields in torchvision.MODELS.items() if fields['name'] == 'resnet'},
}

# The order of timm.models.load_checkpoint, which prefers averaged weights.
STATE_DICTS = ('state_dict_ema', 'model_ema', 'state_dict', 'model')

HALF = {'crop': 0.9, 'interpolation': 'bicubic', 'scale': 255.0, 'mean': (0.5,), 'std': (0.5,)}


def _layer(source: str, target: str, first: str) -> tuple[Row, ...]:
    """Return the rows of a norm or dense layer, whose weight is named `first` in jaxtrain."""
    pattern = DENSE if first == 'kernel' else SAME1
    return (
        row(f'{source}.weight', f'{target}/{first}', pattern),
        row(f'{source}.bias', f'{target}/bias', SAME1),
    )


def _fused(source: str, part: str, pattern: str) -> Row:
    """Return the row of the concatenated query, key and value."""
    names = ('query', 'key', 'value')
    return Row(
        source, tuple(Part(f'backbone/block_{{i}}/attention/{n}/{part}', pattern) for n in names)
    )


BLOCK = (
    *_layer('blocks.{i}.norm1', 'backbone/block_{i}/norm_1', 'scale'),
    _fused('blocks.{i}.attn.qkv.weight', 'kernel', HEADS_IN),
    _fused('blocks.{i}.attn.qkv.bias', 'bias', HEADS_BIAS),
    row('blocks.{i}.attn.proj.weight', 'backbone/block_{i}/attention/out/kernel', HEADS_OUT),
    row('blocks.{i}.attn.proj.bias', 'backbone/block_{i}/attention/out/bias', SAME1),
    *_layer('blocks.{i}.norm2', 'backbone/block_{i}/norm_2', 'scale'),
    *_layer('blocks.{i}.mlp.fc1', 'backbone/block_{i}/mlp/up', 'kernel'),
    *_layer('blocks.{i}.mlp.fc2', 'backbone/block_{i}/mlp/down', 'kernel'),
)
SCALES = tuple(
    row(f'blocks.{{i}}.ls{n}.gamma', f'backbone/block_{{i}}/scale_{n}', SAME1) for n in (1, 2)
)
PATCH = (
    row('patch_embed.proj.weight', 'backbone/patch/kernel', CONV),
    row('patch_embed.proj.bias', 'backbone/patch/bias', SAME1),
)
CLASS_POSITION = Part('backbone/class_position', 'n d -> 1 n d')
POSITION = Part('backbone/position', 'h w d -> 1 (h w) d')


def rows(fields: dict[str, Any], outputs: int) -> tuple[Row, ...]:
    """Return the map of a model with these fields; without a head if `outputs` is 0."""
    if fields['name'] == 'resnet':
        return torchvision.resnet_rows(fields, outputs)
    full = {**DEFAULTS, **fields}
    table = list(PATCH)
    if full['class_token']:
        table.append(row('cls_token', 'backbone/class_token', 'n d -> 1 n d'))
    if full['registers']:
        table.append(row('reg_token', 'backbone/registers', 'n d -> 1 n d'))
    front = (CLASS_POSITION,) if full['class_token'] and full['class_position'] else ()
    table.append(Row('pos_embed', (*front, POSITION), axis=1))
    for i in range(full['depth']):
        table += expand(BLOCK, i=i) + (expand(SCALES, i=i) if full['layer_scale'] else [])
    table += _layer('fc_norm' if full['norm_after_pool'] else 'norm', 'backbone/norm', 'scale')
    if outputs and full['representation']:
        table += _layer('pre_logits.fc', 'head/representation', 'kernel')
    if outputs:
        table += _layer('head', 'head/logits', 'kernel')
    return tuple(table)


DEFAULTS = {
    'class_token': True, 'class_position': True, 'registers': 0, 'layer_scale': 0.0,
    'norm_after_pool': False, 'representation': 0,
}  # fmt: skip


def match(archive: Archive, model: str) -> Match:
    """Match a file to one of MODELS.

    Raises:
      UserError: the positions do not form a square grid, or config.json is not valid JSON.
    """
    described = read_json(archive)
    if MODELS[model]['name'] == 'resnet':
        resnet = torchvision.match(archive, model)
        size, channels = resnet.inputs.shape[:2], resnet.inputs.shape[2]
        preprocessing = {
            **(resnet.preprocessing or {}),
            **_preprocessing(described, size, positions=False),
        }
        inputs = feature(IMAGE, *preprocessing['image_size'], channels)
        return Match(
            resnet.fields, resnet.outputs, inputs, resnet.rows, resnet.ignored, preprocessing,
            _labels(described, resnet.outputs),
        )  # fmt: skip
    fields = _fields(archive, MODELS[model])
    outputs = torchvision.head_outputs(archive, 'head.bias')
    size, channels = image_size(archive, fields, 'pos_embed', 'patch_embed.proj.weight')
    dino = 'layer_scale' in MODELS[model]
    usual = {**torchvision.PREPROCESSING, 'crop': 1.0, 'interpolation': 'bicubic'} if dino else HALF
    usual = {**usual, 'channel_order': 'rgb', 'image_size': size}
    assumed = () if described else ('preprocessing is that of the best-known weights of this kind',)
    return Match(
        fields=fields,
        outputs=outputs,
        inputs=feature(IMAGE, *size, channels),
        rows=rows(fields, outputs),
        ignored=(('mask_token', 'used only in pretraining'),),
        preprocessing=torchvision.for_channels(
            {**usual, **_preprocessing(described, size)}, channels
        ),
        classes=_labels(described, outputs),
        assumed=assumed,
    )


def _fields(archive: Archive, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the model, extended by those that the keys of the file imply."""
    keys = archive.arrays
    result = dict(fields)
    if 'reg_token' in keys:
        result |= {'registers': keys['reg_token'].shape[1], 'class_position': False}
    if 'cls_token' not in keys:
        result |= {'class_token': False, 'pool': 'mean'}
    if 'fc_norm.weight' in keys:
        result |= {'norm_after_pool': True, 'pool': 'mean'}
    if 'pre_logits.fc.bias' in keys:
        result['representation'] = keys['pre_logits.fc.bias'].shape[0]
    return result


def image_size(
    archive: Archive, fields: dict[str, Any], position: str, patch: str
) -> tuple[tuple[int, int], int]:
    """Return (height and width of the images that the positions fit, number of channels).

    Args:
      archive: the file.
      fields: fields of the model.
      position: key of the position embeddings, [1, tokens, width].
      patch: key of the patch kernel, [width, channels, rows, columns].

    Raises:
      UserError: the positions do not form a square grid.
    """
    full = {**DEFAULTS, **fields}
    kernel, channels = archive.arrays.get(patch), 3
    if kernel is not None and len(kernel.shape) == 4:
        channels = kernel.shape[1]
    leaf = archive.arrays.get(position)
    if leaf is None or len(leaf.shape) != 3:
        return tuple(224 // side * side for side in full['patch']), channels
    front = int(full['class_token'] and full['class_position'])
    side = math.isqrt(leaf.shape[1] - front)
    if side * side != leaf.shape[1] - front or not side:
        raise UserError(
            f'{archive.path}: {position} has {leaf.shape[1] - front} patch positions, which do '
            'not form a square; give weights for square images'
        )
    return (side * full['patch'][0], side * full['patch'][1]), channels


def _preprocessing(
    described: dict[str, Any], size: tuple[int, ...], positions: bool = True
) -> dict[str, Any]:
    """Return the keys of `config.data` in `pretrained_cfg`; the size unless positions fix it."""
    pretrained = described.get('pretrained_cfg', {})
    result: dict[str, Any] = {'image_size': size}
    if 'mean' in pretrained:
        result |= {'mean': tuple(pretrained['mean']), 'std': tuple(pretrained['std'])}
    if 'crop_pct' in pretrained:
        result['crop'] = float(pretrained['crop_pct'])
    if 'interpolation' in pretrained:
        result['interpolation'] = pretrained['interpolation']
    if 'input_size' in pretrained and not positions:
        result['image_size'] = tuple(pretrained['input_size'][1:])
    return result


def _labels(described: dict[str, Any], outputs: int) -> tuple[str, ...]:
    pretrained = described.get('pretrained_cfg', {})
    names = tuple(pretrained['label_names']) if pretrained.get('label_names') else ()
    return names if len(names) == outputs else ()
