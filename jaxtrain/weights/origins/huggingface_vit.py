"""Hugging Face's names of the Vision Transformer and of DINOv2 (transformers' ViT, Dinov2 and
Dinov2WithRegisters), for image classification or without a head.

config.json beside the weights gives the GELU, eps and class names, and preprocessor_config.json the
preprocessing. Without these files, the values of the best-known weights are assumed.
"""

from typing import Any

from jaxtrain.data.features import IMAGE, feature
from jaxtrain.errors import UserError
from jaxtrain.json_file import Record
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.hub import activation, check_sizes, class_names, epsilon, head_count
from jaxtrain.weights.origins import positions, timm, torchvision
from jaxtrain.weights.origins.names import (
    CONV,
    DENSE,
    HEADS_BIAS,
    HEADS_IN,
    HEADS_OUT,
    SAME1,
    Match,
    Row,
    expand,
    row,
)
from jaxtrain.weights.schemas.image_processor import PROCESSOR, preprocessing
from jaxtrain.weights.schemas.schema import assumptions
from jaxtrain.weights.schemas.vit import DINOV2, VIT

_VIT = {'norm_eps': 1e-12}
_DINO = {'pool': 'both', 'layer_scale': 1.0}
MODELS = {
    **{
        name: {**fields, **(_DINO if name.startswith('dinov2') else _VIT)}
        for name, fields in timm.MODELS.items()
        if fields['name'] == 'vit'
    }
}


def _both(source: str, target: str, first: str) -> tuple[Row, ...]:
    return (
        row(f'{source}.weight', f'{target}/{first}', DENSE if first == 'kernel' else SAME1),
        row(f'{source}.bias', f'{target}/bias', SAME1),
    )


def _attention(layer: str) -> tuple[Row, ...]:
    table = []
    for name in ('query', 'key', 'value'):
        source, target = (
            f'{layer}attention.attention.{name}',
            f'backbone/block_{{i}}/attention/{name}',
        )
        table.append(row(f'{source}.weight', f'{target}/kernel', HEADS_IN))
        table.append(row(f'{source}.bias', f'{target}/bias', HEADS_BIAS))
    out = 'backbone/block_{i}/attention/out'
    table.append(row(f'{layer}attention.output.dense.weight', f'{out}/kernel', HEADS_OUT))
    table.append(row(f'{layer}attention.output.dense.bias', f'{out}/bias', SAME1))
    return tuple(table)


_LAYER = '{p}encoder.layer.{i}.'
_TARGET = 'backbone/block_{i}'
EMBEDDINGS = (
    row('{p}embeddings.cls_token', 'backbone/class_token', 'n d -> 1 n d'),
    row('{p}embeddings.patch_embeddings.projection.weight', 'backbone/patch/kernel', CONV),
    row('{p}embeddings.patch_embeddings.projection.bias', 'backbone/patch/bias', SAME1),
    Row('{p}embeddings.position_embeddings', (timm.CLASS_POSITION, timm.POSITION), axis=1),
    *_both('{p}layernorm', 'backbone/norm', 'scale'),
)
VIT_BLOCK = (
    *_both(_LAYER + 'layernorm_before', f'{_TARGET}/norm_1', 'scale'),
    *_attention(_LAYER),
    *_both(_LAYER + 'layernorm_after', f'{_TARGET}/norm_2', 'scale'),
    *_both(_LAYER + 'intermediate.dense', f'{_TARGET}/mlp/up', 'kernel'),
    *_both(_LAYER + 'output.dense', f'{_TARGET}/mlp/down', 'kernel'),
)
DINO_BLOCK = (
    *_both(_LAYER + 'norm1', f'{_TARGET}/norm_1', 'scale'),
    *_attention(_LAYER),
    row(_LAYER + 'layer_scale1.lambda1', f'{_TARGET}/scale_1', SAME1),
    *_both(_LAYER + 'norm2', f'{_TARGET}/norm_2', 'scale'),
    *_both(_LAYER + 'mlp.fc1', f'{_TARGET}/mlp/up', 'kernel'),
    *_both(_LAYER + 'mlp.fc2', f'{_TARGET}/mlp/down', 'kernel'),
    row(_LAYER + 'layer_scale2.lambda1', f'{_TARGET}/scale_2', SAME1),
)
REGISTERS = row('{p}embeddings.register_tokens', 'backbone/registers', 'n d -> 1 n d')
IGNORED = (
    (r'(\w+\.)?pooler\.dense\.(weight|bias)', 'a pooler not used in classification'),
    (r'(\w+\.)?embeddings\.mask_token', 'used only in pretraining'),
)


def rows(fields: dict[str, Any], outputs: int, prefix: str | None = None) -> tuple[Row, ...]:
    """Return the map; by default, keys with a head have the prefix 'vit.' or 'dinov2.'."""
    dino = bool(fields.get('layer_scale'))
    registers = fields.get('registers')
    if prefix is None:
        family = 'dinov2_with_registers.' if registers else 'dinov2.'
        prefix = (family if dino else 'vit.') if outputs else ''
    table = expand((*EMBEDDINGS, *([REGISTERS] if registers else [])), p=prefix)
    for i in range(fields['depth']):
        table += expand(DINO_BLOCK if dino else VIT_BLOCK, p=prefix, i=i)
    return (*table, *(_both('classifier', 'head/logits', 'kernel') if outputs else ()))


def match(archive: Archive, model: str) -> Match:
    """Match a file to one of MODELS.

    Raises:
      UserError: a file beside the weights describes another computation.
    """
    dino, fields = 'layer_scale' in MODELS[model], dict(MODELS[model])
    config = archive.given.read(archive.folder / 'config.json', DINOV2 if dino else VIT)
    start = next((k for k in archive.arrays if k.endswith('embeddings.cls_token')), '')
    prefix = start.removesuffix('embeddings.cls_token')
    if registers := archive.arrays.get(f'{prefix}embeddings.register_tokens'):
        fields['registers'] = registers.shape[1]
    fields = _described(config, fields, model)
    outputs = torchvision.head_outputs(archive, 'classifier.bias')
    size, channels, words = _image_size(archive, config, fields, prefix)
    check_sizes(config, {'num_channels': channels}, model)
    processor = archive.given.read(archive.folder / 'preprocessor_config.json', PROCESSOR)
    settings, more = _preprocessing(processor, dino, size)
    usual = {
        'num_attention_heads': fields['heads'], 'hidden_act': 'gelu',
        'layer_norm_eps': fields.get('norm_eps', 1e-6),
    }  # fmt: skip
    return Match(
        fields=fields,
        outputs=outputs,
        inputs=feature(IMAGE, *size, channels),
        rows=rows(fields, outputs, prefix),
        ignored=IGNORED,
        preprocessing=torchvision.for_channels(settings, channels),
        classes=class_names(config, outputs),
        assumed=(*assumptions(config, usual), *words, *more),
    )


def _described(config: Record, fields: dict[str, Any], model: str) -> dict[str, Any]:
    """Return the fields with those of config.json. UserError for sizes of another model."""
    sizes = {
        'hidden_size': fields['width'],
        'num_hidden_layers': fields['depth'],
        'num_register_tokens': fields.get('registers', 0),
    }
    check_sizes(config, sizes, model)
    if _pair(config, 'patch_size', fields['patch']) != fields['patch']:
        raise UserError(
            f'{config.at("patch_size")}, but {model} has {fields["patch"][0]}; give the --model of '
            'that size'
        )
    hidden = config.integer('intermediate_size', fields['mlp'])
    if 'mlp_ratio' in config:
        hidden = int(fields['width'] * config.number('mlp_ratio'))
    return {
        **fields,
        'mlp': hidden,
        'heads': head_count(config, ('num_attention_heads',), fields),
        **epsilon(config, 'layer_norm_eps'),
        **activation(config, 'hidden_act'),
    }


def _image_size(
    archive: Archive, config: Record, fields: dict[str, Any], prefix: str
) -> tuple[tuple[int, int], int, tuple[str, ...]]:
    """Return (height and width of the images that the positions fit, channels, what is assumed).

    Raises:
      UserError: config.json states images for which the file has no positions.
    """
    key = f'{prefix}embeddings.position_embeddings'
    patches = f'{prefix}embeddings.patch_embeddings.projection.weight'
    channels = torchvision.channels_of(archive, patches)
    if 'image_size' not in config:
        grid = positions.find(archive, positions.Positions(key, fields['patch']))
        return grid.size, channels, grid.assumed
    size, leaf = _pair(config, 'image_size', (224, 224)), archive.arrays.get(key)
    if 'layer_scale' in fields and size[0] != size[1]:
        raise UserError(
            f'{config.at("image_size")} is not supported for DINOv2, only squares as in '
            'transformers'
        )
    rows, columns = (side // patch for side, patch in zip(size, fields['patch'], strict=True))
    if leaf is not None and len(leaf.shape) == 3 and leaf.shape[1] != rows * columns + 1:
        raise UserError(
            f'{config.at("image_size")} has {rows}x{columns} patches, but {archive.path} has '
            f'{leaf.shape[1] - 1} patch positions; correct the file'
        )
    return (rows * fields['patch'][0], columns * fields['patch'][1]), channels, ()


def _pair(config: Record, name: str, usual: tuple[int, int]) -> tuple[int, int]:
    """Return a size that config.json states as an integer or as a list of two."""
    if name not in config:
        return usual
    if not isinstance(config.values[name], list):
        return config.integer(name), config.integer(name)
    values = config.numbers(name)
    if len(values) != 2:
        raise UserError(f'{config.at(name)} should be an integer or [height, width]')
    return int(values[0]), int(values[1])


def _preprocessing(
    processor: Record, dino: bool, size: tuple[int, int]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return (keys of `config.data`, what is assumed).

    Raises:
      UserError: preprocessor_config.json makes images of another size.
    """
    if not processor.values:
        usual = {
            'image_size': size,
            'scale': 255.0,
            'channel_order': 'rgb',
            'mean': torchvision.PREPROCESSING['mean'] if dino else (0.5,),
            'std': torchvision.PREPROCESSING['std'] if dino else (0.5,),
            'crop': 0.875 if dino else 0.0,
            'interpolation': 'bicubic' if dino else 'bilinear',
        }
        if dino:
            usual['crop_rounding'] = 'down'
        return usual, (
            'preprocessing is that of the best-known weights of this kind '
            '(preprocessor_config.json)',
        )
    result = preprocessing(processor, dino)
    made, field = result['image_size'], 'crop_size' if result['crop'] else 'size'
    result['image_size'] = size
    if made == size or field not in processor:
        return result, ()
    if not dino:
        raise UserError(
            f'{processor.at(field)}, but the positions are those of images of {size[0]}x{size[1]}; '
            'correct the file'
        )
    # transformers' DINOv2 resizes the positions to the images, in each call.
    return result, (
        f'images of {size[0]}x{size[1]}, to which the positions belong, and not of '
        f'{made[0]}x{made[1]} ({processor.name}), for which transformers resizes the positions',
    )
