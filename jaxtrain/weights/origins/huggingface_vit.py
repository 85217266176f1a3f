"""Hugging Face's names of the Vision Transformer and of DINOv2 (transformers' ViT, Dinov2 and
Dinov2WithRegisters), for image classification or without a head.

config.json beside the weights gives the GELU, eps and class names, and preprocessor_config.json the
preprocessing. Without these files, the values of the best-known weights are assumed.
"""

from typing import Any

from jaxtrain.data.features import IMAGE, feature
from jaxtrain.weights.formats.archive import Archive
from jaxtrain.weights.hub import activation, check_sizes, class_names, read_json
from jaxtrain.weights.origins import timm, torchvision
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

_VIT = {'norm_eps': 1e-12}
_DINO = {'pool': 'both', 'layer_scale': 1.0}
MODELS = {
    **{
        name: {**fields, **(_DINO if name.startswith('dinov2') else _VIT)}
        for name, fields in timm.MODELS.items()
        if fields['name'] == 'vit'
    }
}

RESAMPLE = {0: 'nearest', 2: 'bilinear', 3: 'bicubic'}


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
      UserError: the positions do not form a square grid, or config.json describes another model.
    """
    described = read_json(archive)
    fields = {**MODELS[model], **_checked(archive, described, MODELS[model], model)}
    start = next((k for k in archive.arrays if k.endswith('embeddings.cls_token')), '')
    prefix = start.removesuffix('embeddings.cls_token')
    if f'{prefix}embeddings.register_tokens' in archive.arrays:
        registers = archive.arrays[f'{prefix}embeddings.register_tokens']
        fields['registers'] = registers.shape[1]
    outputs = torchvision.head_outputs(archive, 'classifier.bias')
    size, channels = timm.image_size(
        archive,
        fields,
        f'{prefix}embeddings.position_embeddings',
        f'{prefix}embeddings.patch_embeddings.projection.weight',
    )
    processor = read_json(archive, 'preprocessor_config.json')
    return Match(
        fields=fields,
        outputs=outputs,
        inputs=feature(IMAGE, *size, channels),
        rows=rows(fields, outputs, prefix),
        ignored=IGNORED,
        preprocessing=torchvision.for_channels(_preprocessing(processor, fields, size), channels),
        classes=class_names(described, outputs),
        assumed=()
        if processor
        else ('preprocessing is that of the best-known weights of this kind',),
    )


def _checked(
    archive: Archive, described: dict[str, Any], fields: dict[str, Any], model: str
) -> dict[str, Any]:
    """Return the model fields in config.json. UserError for sizes of another model."""
    sizes = {
        'hidden_size': fields['width'],
        'num_hidden_layers': fields['depth'],
        'num_attention_heads': fields['heads'],
        'patch_size': fields['patch'][0],
    }
    check_sizes(archive, described, sizes, model)
    eps = described.get('layer_norm_eps')
    result = {} if eps is None else {'norm_eps': float(eps)}
    return {**result, **activation(archive, described, 'hidden_act')}


def _preprocessing(
    processor: dict[str, Any], fields: dict[str, Any], size: tuple[int, int]
) -> dict[str, Any]:
    """Return the keys of `config.data` that preprocessor_config.json sets."""
    dino = bool(fields.get('layer_scale'))
    result = {
        'image_size': size,
        'scale': 255.0,
        'channel_order': 'rgb',
        'mean': torchvision.PREPROCESSING['mean'] if dino else (0.5,),
        'std': torchvision.PREPROCESSING['std'] if dino else (0.5,),
        'crop': 0.875 if dino else 0.0,
        'interpolation': 'bicubic' if dino else 'bilinear',
    }
    if 'image_mean' in processor:
        result |= {'mean': tuple(processor['image_mean']), 'std': tuple(processor['image_std'])}
    if 'rescale_factor' in processor:
        result['scale'] = 1 / processor['rescale_factor']
    if 'resample' in processor:
        result['interpolation'] = RESAMPLE.get(processor['resample'], 'auto')
    # The image size stays that of the positions, which transformers resizes silently.
    if processor.get('do_center_crop') and 'shortest_edge' in processor.get('size', {}):
        result['crop'] = processor['crop_size']['height'] / processor['size']['shortest_edge']
    elif 'size' in processor:
        result['crop'] = 0.0
    return result
