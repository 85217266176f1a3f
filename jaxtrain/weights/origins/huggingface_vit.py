"""Hugging Face's names of the Vision Transformer and of DINOv2 (transformers' ViT, Dinov2 and
Dinov2WithRegisters), for image classification or without a head.

config.json beside the weights tells the GELU, eps and class names, and preprocessor_config.json the
preprocessing; without them those of the best known weights are assumed.
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


def _both(theirs: str, ours: str, first: str) -> tuple[Row, ...]:
    return (
        row(f'{theirs}.weight', f'{ours}/{first}', DENSE if first == 'kernel' else SAME1),
        row(f'{theirs}.bias', f'{ours}/bias', SAME1),
    )


def _attention(layer: str) -> tuple[Row, ...]:
    found = []
    for name in ('query', 'key', 'value'):
        theirs, ours = (
            f'{layer}attention.attention.{name}',
            f'backbone/block_{{i}}/attention/{name}',
        )
        found.append(row(f'{theirs}.weight', f'{ours}/kernel', HEADS_IN))
        found.append(row(f'{theirs}.bias', f'{ours}/bias', HEADS_BIAS))
    out = 'backbone/block_{i}/attention/out'
    found.append(row(f'{layer}attention.output.dense.weight', f'{out}/kernel', HEADS_OUT))
    found.append(row(f'{layer}attention.output.dense.bias', f'{out}/bias', SAME1))
    return tuple(found)


_LAYER = '{p}encoder.layer.{i}.'
_OURS = 'backbone/block_{i}'
EMBEDDINGS = (
    row('{p}embeddings.cls_token', 'backbone/class_token', 'n d -> 1 n d'),
    row('{p}embeddings.patch_embeddings.projection.weight', 'backbone/patch/kernel', CONV),
    row('{p}embeddings.patch_embeddings.projection.bias', 'backbone/patch/bias', SAME1),
    Row('{p}embeddings.position_embeddings', (timm.CLASS_POSITION, timm.POSITION), axis=1),
    *_both('{p}layernorm', 'backbone/norm', 'scale'),
)
VIT_BLOCK = (
    *_both(_LAYER + 'layernorm_before', f'{_OURS}/norm_1', 'scale'),
    *_attention(_LAYER),
    *_both(_LAYER + 'layernorm_after', f'{_OURS}/norm_2', 'scale'),
    *_both(_LAYER + 'intermediate.dense', f'{_OURS}/mlp/up', 'kernel'),
    *_both(_LAYER + 'output.dense', f'{_OURS}/mlp/down', 'kernel'),
)
DINO_BLOCK = (
    *_both(_LAYER + 'norm1', f'{_OURS}/norm_1', 'scale'),
    *_attention(_LAYER),
    row(_LAYER + 'layer_scale1.lambda1', f'{_OURS}/scale_1', SAME1),
    *_both(_LAYER + 'norm2', f'{_OURS}/norm_2', 'scale'),
    *_both(_LAYER + 'mlp.fc1', f'{_OURS}/mlp/up', 'kernel'),
    *_both(_LAYER + 'mlp.fc2', f'{_OURS}/mlp/down', 'kernel'),
    row(_LAYER + 'layer_scale2.lambda1', f'{_OURS}/scale_2', SAME1),
)
REGISTERS = row('{p}embeddings.register_tokens', 'backbone/registers', 'n d -> 1 n d')
IGNORED = (
    (r'(\w+\.)?pooler\.dense\.(weight|bias)', 'a pooler that classification leaves out'),
    (r'(\w+\.)?embeddings\.mask_token', 'of pretraining alone'),
)


def rows(fields: dict[str, Any], outputs: int, prefix: str | None = None) -> tuple[Row, ...]:
    """The map; with a head, keys begin with 'vit.' or 'dinov2.' unless a prefix is given."""
    dino = bool(fields.get('layer_scale'))
    registers = fields.get('registers')
    if prefix is None:
        own = 'dinov2_with_registers.' if registers else 'dinov2.'
        prefix = (own if dino else 'vit.') if outputs else ''
    found = expand((*EMBEDDINGS, *([REGISTERS] if registers else [])), p=prefix)
    for i in range(fields['depth']):
        found += expand(DINO_BLOCK if dino else VIT_BLOCK, p=prefix, i=i)
    return (*found, *(_both('classifier', 'head/logits', 'kernel') if outputs else ()))


def match(archive: Archive, model: str) -> Match:
    """What a file is for one of MODELS.

    Raises:
      UserError: positions that are no square grid, or a config.json of another model.
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
    said = read_json(archive, 'preprocessor_config.json')
    return Match(
        fields=fields,
        outputs=outputs,
        inputs=feature(IMAGE, *size, channels),
        rows=rows(fields, outputs, prefix),
        ignored=IGNORED,
        preprocessing=torchvision.for_channels(_preprocessing(said, fields, size), channels),
        classes=class_names(described, outputs),
        assumed=() if said else ('preprocessing is that of the best known weights of this kind',),
    )


def _checked(
    archive: Archive, described: dict[str, Any], fields: dict[str, Any], model: str
) -> dict[str, Any]:
    """Fields that config.json tells. UserError if it tells another size than the model's."""
    sizes = {
        'hidden_size': fields['width'],
        'num_hidden_layers': fields['depth'],
        'num_attention_heads': fields['heads'],
        'patch_size': fields['patch'][0],
    }
    check_sizes(archive, described, sizes, model)
    eps = described.get('layer_norm_eps')
    found = {} if eps is None else {'norm_eps': float(eps)}
    return {**found, **activation(archive, described, 'hidden_act')}


def _preprocessing(
    said: dict[str, Any], fields: dict[str, Any], size: tuple[int, int]
) -> dict[str, Any]:
    """Keys of `config.data` by preprocessor_config.json."""
    dino = bool(fields.get('layer_scale'))
    found = {
        'image_size': size,
        'scale': 255.0,
        'channel_order': 'rgb',
        'mean': torchvision.PREPROCESSING['mean'] if dino else (0.5,),
        'std': torchvision.PREPROCESSING['std'] if dino else (0.5,),
        'crop': 0.875 if dino else 0.0,
        'interpolation': 'bicubic' if dino else 'bilinear',
    }
    if 'image_mean' in said:
        found |= {'mean': tuple(said['image_mean']), 'std': tuple(said['image_std'])}
    if 'rescale_factor' in said:
        found['scale'] = 1 / said['rescale_factor']
    if 'resample' in said:
        found['interpolation'] = RESAMPLE.get(said['resample'], 'auto')
    # The size itself stays that of the positions, which transformers resizes without a word.
    if said.get('do_center_crop') and 'shortest_edge' in said.get('size', {}):
        found['crop'] = said['crop_size']['height'] / said['size']['shortest_edge']
    elif 'size' in said:
        found['crop'] = 0.0
    return found
