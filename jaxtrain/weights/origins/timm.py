"""timm's names: Vision Transformers, DINOv2 as timm has it, and ResNets (named as torchvision's).

A folder as the Hugging Face Hub has it holds config.json too, whose `pretrained_cfg` tells the
preprocessing; without it that of the family's best known weights is assumed.
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

HALF = {'crop': 0.9, 'interpolation': 'bicubic', 'scale': 255.0, 'mean': (0.5,), 'std': (0.5,)}


def _layer(theirs: str, ours: str, first: str) -> tuple[Row, ...]:
    """Weight and bias of a layer of norm or of dense, whose weight is called `first` here."""
    pattern = DENSE if first == 'kernel' else SAME1
    return (
        row(f'{theirs}.weight', f'{ours}/{first}', pattern),
        row(f'{theirs}.bias', f'{ours}/bias', SAME1),
    )


def _fused(theirs: str, part: str, pattern: str) -> Row:
    """Query, key and value, one after the other."""
    names = ('query', 'key', 'value')
    return Row(
        theirs, tuple(Part(f'backbone/block_{{i}}/attention/{n}/{part}', pattern) for n in names)
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
    """The map of a model with these fields; without a head where `outputs` is 0."""
    if fields['name'] == 'resnet':
        return torchvision.resnet_rows(fields, outputs)
    full = {**DEFAULTS, **fields}
    found = list(PATCH)
    if full['class_token']:
        found.append(row('cls_token', 'backbone/class_token', 'n d -> 1 n d'))
    if full['registers']:
        found.append(row('reg_token', 'backbone/registers', 'n d -> 1 n d'))
    front = (CLASS_POSITION,) if full['class_token'] and full['class_position'] else ()
    found.append(Row('pos_embed', (*front, POSITION), axis=1))
    for i in range(full['depth']):
        found += expand(BLOCK, i=i) + (expand(SCALES, i=i) if full['layer_scale'] else [])
    found += _layer('fc_norm' if full['norm_after_pool'] else 'norm', 'backbone/norm', 'scale')
    if outputs and full['representation']:
        found += _layer('pre_logits.fc', 'head/representation', 'kernel')
    if outputs:
        found += _layer('head', 'head/logits', 'kernel')
    return tuple(found)


DEFAULTS = {
    'class_token': True, 'class_position': True, 'registers': 0, 'layer_scale': 0.0,
    'norm_after_pool': False, 'representation': 0,
}  # fmt: skip


def match(archive: Archive, model: str) -> Match:
    """What a file is for one of MODELS.

    Raises:
      UserError: positions that are no square grid, or a config.json that is none.
    """
    described = read_json(archive)
    if MODELS[model]['name'] == 'resnet':
        found = torchvision.match(archive, model)
        size, channels = found.inputs.shape[:2], found.inputs.shape[2]
        preprocessing = {
            **(found.preprocessing or {}),
            **_preprocessing(described, size, positions=False),
        }
        inputs = feature(IMAGE, *preprocessing['image_size'], channels)
        return Match(
            found.fields, found.outputs, inputs, found.rows, found.ignored, preprocessing,
            _labels(described, found.outputs),
        )  # fmt: skip
    fields = _fields(archive, MODELS[model])
    outputs = torchvision.head_outputs(archive, 'head.bias')
    size, channels = image_size(archive, fields, 'pos_embed', 'patch_embed.proj.weight')
    dino = 'layer_scale' in MODELS[model]
    usual = {**torchvision.PREPROCESSING, 'crop': 1.0, 'interpolation': 'bicubic'} if dino else HALF
    usual = {**usual, 'channel_order': 'rgb', 'image_size': size}
    assumed = () if described else ('preprocessing is that of the best known weights of this kind',)
    return Match(
        fields=fields,
        outputs=outputs,
        inputs=feature(IMAGE, *size, channels),
        rows=rows(fields, outputs),
        ignored=(('mask_token', 'of pretraining alone'),),
        preprocessing=torchvision.for_channels(
            {**usual, **_preprocessing(described, size)}, channels
        ),
        classes=_labels(described, outputs),
        assumed=assumed,
    )


def _fields(archive: Archive, fields: dict[str, Any]) -> dict[str, Any]:
    """The model's, with what the keys of a file add."""
    keys = archive.arrays
    found = dict(fields)
    if 'reg_token' in keys:
        found |= {'registers': keys['reg_token'].shape[1], 'class_position': False}
    if 'cls_token' not in keys:
        found |= {'class_token': False, 'pool': 'mean'}
    if 'fc_norm.weight' in keys:
        found |= {'norm_after_pool': True, 'pool': 'mean'}
    if 'pre_logits.fc.bias' in keys:
        found['representation'] = keys['pre_logits.fc.bias'].shape[0]
    return found


def image_size(
    archive: Archive, fields: dict[str, Any], position: str, patch: str
) -> tuple[tuple[int, int], int]:
    """(height and width of the images that positions are for, their channels).

    Args:
      archive: the file.
      fields: of the model.
      position: key of the positions, [1, tokens, width].
      patch: key of the patches' kernel, [width, channels, rows, columns].

    Raises:
      UserError: the positions are no square grid.
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
            f'{archive.path}: {position} has {leaf.shape[1] - front} positions of patches, which '
            'are no square; give weights for square images'
        )
    return (side * full['patch'][0], side * full['patch'][1]), channels


def _preprocessing(
    described: dict[str, Any], size: tuple[int, ...], positions: bool = True
) -> dict[str, Any]:
    """Keys of `config.data` by `pretrained_cfg`; the size too, where no positions tell it."""
    said = described.get('pretrained_cfg', {})
    found: dict[str, Any] = {'image_size': size}
    if 'mean' in said:
        found |= {'mean': tuple(said['mean']), 'std': tuple(said['std'])}
    if 'crop_pct' in said:
        found['crop'] = float(said['crop_pct'])
    if 'interpolation' in said:
        found['interpolation'] = said['interpolation']
    if 'input_size' in said and not positions:
        found['image_size'] = tuple(said['input_size'][1:])
    return found


def _labels(described: dict[str, Any], outputs: int) -> tuple[str, ...]:
    said = described.get('pretrained_cfg', {})
    names = tuple(said['label_names']) if said.get('label_names') else ()
    return names if len(names) == outputs else ()
