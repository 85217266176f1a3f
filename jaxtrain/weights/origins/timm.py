"""timm's names: Vision Transformers, timm's DINOv2, and ResNets (named as in torchvision).

A folder from the Hugging Face Hub also holds config.json, which states the architecture, its
arguments and the preprocessing (timm_config.py). What nothing states is assumed, and reported.
"""

from dataclasses import replace
from typing import Any

from jaxtrain.data.features import IMAGE, feature
from jaxtrain.errors import UserError
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.origins import positions, timm_config, torchvision
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
from jaxtrain.weights.origins.positions import Size
from jaxtrain.weights.origins.timm_config import Stated

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
      UserError: config.json, or what a checkpoint holds beside its weights, is damaged, or states
        something that is not computed.
    """
    if MODELS[model]['name'] == 'resnet':
        return _resnet(archive, model)
    outputs = torchvision.head_outputs(archive, 'head.bias')
    stated = timm_config.read(archive, MODELS[model], outputs)
    fields = _fields(archive, MODELS[model], stated)
    grid = positions.find(archive, _positions(archive, fields, stated))
    if fields['class_token'] and not fields['registers']:
        fields['class_position'] = bool(grid.front)
    channels = torchvision.channels_of(archive, 'patch_embed.proj.weight')
    _check_channels(stated, channels)
    dino = 'layer_scale' in MODELS[model]
    usual = {**torchvision.PREPROCESSING, 'crop': 1.0, 'interpolation': 'bicubic'} if dino else HALF
    usual = {**usual, 'channel_order': 'rgb', 'image_size': grid.size}
    return Match(
        fields={
            name: value
            for name, value in fields.items()
            if name in MODELS[model] or DEFAULTS.get(name) != value
        },
        outputs=outputs,
        inputs=feature(IMAGE, *grid.size, channels),
        rows=rows(fields, outputs),
        ignored=(('mask_token', 'used only in pretraining'),),
        preprocessing=torchvision.for_channels({**usual, **stated.preprocessing}, channels),
        classes=stated.classes,
        assumed=(*_assumed(stated, fields, grid.size), *grid.assumed),
        imagenet=stated.described,
    )


def _resnet(archive: Archive, model: str) -> Match:
    resnet = torchvision.plain_match(archive, model)
    stated = timm_config.read(archive, resnet.fields, resnet.outputs)
    channels = resnet.inputs.shape[2]
    _check_channels(stated, channels)
    size: Size = stated.sizes[0][0] if stated.sizes else (224, 224)
    preprocessing = {**(resnet.preprocessing or {}), **stated.preprocessing, 'image_size': size}
    fields = {**resnet.fields, 'pool': stated.pool or 'mean'}
    if fields['pool'] == 'token':
        raise UserError(f'{archive.path}: a ResNet cannot pool by a token; correct global_pool')
    return replace(
        resnet,
        fields=fields,
        inputs=feature(IMAGE, *size, channels),
        preprocessing=torchvision.for_channels(preprocessing, channels),
        classes=stated.classes,
        assumed=_assumed(stated, fields, size),
    )


def _assumed(stated: Stated, fields: dict[str, Any], size: Size) -> tuple[str, ...]:
    """Return sentences about what neither a file nor the user states."""
    texts = []
    theirs = {ours: name for name, ours in timm_config.POOLS.items()}
    if not stated.pool:
        pool = theirs[fields['pool']]
        texts.append(f'global_pool={pool} (--field=global_pool=NAME states another)')
    if not stated.known:
        texts.append(
            'layers without parameters are those of the plain model '
            '(--field=architecture=NAME states another)'
        )
    if fields['name'] == 'vit' and 'num_heads' not in stated.args and not stated.known:
        texts.append(
            f'num_heads={fields["heads"]} (--field=model_args.num_heads=NUMBER states another)'
        )
    height, width = size
    if height != width and stated.preprocessing.get('crop', 1.0):
        texts.append(
            'the resized sides of images are rounded down, where timm rounds to the nearest pixel '
            'for sizes that are not square'
        )
    if not {'mean', 'crop', 'interpolation'} & set(stated.preprocessing):
        texts.append('preprocessing is that of the best-known weights of this kind')
    return tuple(texts)


def _check_channels(stated: Stated, channels: int) -> None:
    if stated.args.integer('in_chans', channels) not in (channels, None):
        raise UserError(f'{stated.args.at("in_chans")}, but the weights have {channels} channels')


def _fields(archive: Archive, model: dict[str, Any], stated: Stated) -> dict[str, Any]:
    """Return the fields of the model with those that the keys imply and that are stated.

    Raises:
      UserError: what is stated contradicts the keys, or cannot be computed.
    """
    keys, args = archive.arrays, stated.args
    registers = keys['reg_token'].shape[1] if 'reg_token' in keys else 0
    class_token, late = 'cls_token' in keys, 'fc_norm.weight' in keys
    for name, actual in (('class_token', class_token), ('reg_tokens', registers)):
        if name in args and args.values[name] != actual:
            raise UserError(f'{args.at(name)}, but the keys of {archive.path} show {actual}')
    if args.flag('fc_norm', None) not in (None, late):
        norm = 'fc_norm' if late else 'norm'
        raise UserError(f'{args.at("fc_norm")}, but {archive.path} has {norm}.weight')
    usual = 'mean' if late or not class_token else 'token'
    result = {
        **DEFAULTS, **model, 'registers': registers, 'class_token': class_token,
        'class_position': class_token and not registers, 'norm_after_pool': late,
        'pool': stated.pool or usual,
    }  # fmt: skip
    if result['pool'] == 'token' and not class_token:
        raise UserError(f"{archive.path}: global_pool='token', but the file has no cls_token")
    if 'pre_logits.fc.bias' in keys:
        result['representation'] = keys['pre_logits.fc.bias'].shape[0]
    if 'blocks.0.ls1.gamma' in keys:
        result['layer_scale'] = result['layer_scale'] or 1e-5
    heads = args.integer('num_heads', None)
    if heads is not None:
        if heads < 1 or result['width'] % heads:
            raise UserError(f'{args.at("num_heads")} does not divide the width {result["width"]}')
        result['heads'] = heads
    if 'act_layer' in args:
        name = args.text('act_layer', None)
        if name not in timm_config.GELUS:
            raise UserError(f'{args.at("act_layer")} is not supported, only gelu and gelu_tanh')
        result['gelu'] = timm_config.GELUS[name]
    return result


def _positions(archive: Archive, fields: dict[str, Any], stated: Stated) -> positions.Positions:
    """Return the position embeddings; registers have none, and a class token may have one."""
    front: tuple[int, ...] = (1, 0) if fields['class_token'] else (0,)
    if fields['registers']:
        front = (0,)
    elif (bare := stated.args.flag('no_embed_class', None)) is not None and fields['class_token']:
        front = (0,) if bare else (1,)
    return positions.Positions(
        'pos_embed', fields['patch'], front, stated.sizes, 'model_args.img_size'
    )
