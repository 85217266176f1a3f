"""The config.json with which timm and transformers compute what exported weights compute here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Exported:
    """Exported weights.

    Attributes:
      model: the fields of `config.model`, all of them.
      data: the keys of `config.data` that belong to the weights.
      outputs: width of the head, 0 without a head.
      classes: class names, () if they are numbers or unknown.
      shapes: shape of each parameter by path.
    """

    model: Fields
    data: Fields
    outputs: int
    classes: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]


def config(origin: str, exported: Exported) -> dict[str, Any] | None:
    """Return the content of config.json, None if the origin has no such file."""
    make = CONFIGS.get((origin, exported.model['name']))
    return make(exported) if make else None


def _timm_vit(exported: Exported) -> dict[str, Any]:
    model, patch = exported.model, exported.model['patch']
    rows, columns = _grid(exported)
    pools = {'token': 'token', 'mean': 'avg', 'max': 'max', 'avgmax': 'avgmax'}
    args = {
        'img_size': [rows * patch[0], columns * patch[1]],
        'patch_size': list(patch),
        'embed_dim': model['width'],
        'depth': model['depth'],
        'num_heads': model['heads'],
        'mlp_ratio': model['mlp'] / model['width'],
        'class_token': model['class_token'],
        'no_embed_class': not (model['class_token'] and model['class_position']),
        'reg_tokens': model['registers'],
        'global_pool': pools.get(model['pool'], 'token'),
        'fc_norm': model['norm_after_pool'],
        'act_layer': {'erf': 'gelu', 'tanh': 'gelu_tanh'}[model['gelu']],
    }
    if model['layer_scale']:
        args['init_values'] = model['layer_scale']
    size = {192: 'tiny', 384: 'small', 1024: 'large'}.get(model['width'], 'base')
    names = {'first_conv': 'patch_embed.proj', 'classifier': 'head', 'fixed_input_size': True}
    return _timm(exported, f'vit_{size}_patch16_224', args, names)


def _timm_resnet(exported: Exported) -> dict[str, Any]:
    pools = {'mean': 'avg', 'max': 'max', 'avgmax': 'avgmax'}
    args = {'global_pool': pools[exported.model['pool']]}
    names = {'first_conv': 'conv1', 'classifier': 'fc', 'fixed_input_size': False}
    return _timm(exported, f'resnet{exported.model["depth"]}', args, names)


def _timm(
    exported: Exported, architecture: str, args: dict[str, Any], names: dict[str, Any]
) -> dict[str, Any]:
    kernel = 'patch' if exported.model['name'] == 'vit' else 'conv_0'
    channels = exported.shapes[f'backbone/{kernel}/kernel'][2]
    args = {**args, 'in_chans': channels, 'num_classes': exported.outputs}
    data = exported.data
    size = args.get('img_size') or [*(data['image_size'] or (224, 224))]
    pretrained = {**names, 'num_classes': exported.outputs, 'input_size': [channels, *size]}
    crop, factor = data['crop'], data['scale'] / 255
    pretrained |= {'crop_pct': crop or 1.0, 'crop_mode': 'center' if crop else 'squash'}
    if data['interpolation'] != 'auto':
        pretrained['interpolation'] = data['interpolation']
    for key in ('mean', 'std'):
        values = [value * factor for value in data[key]]
        pretrained[key] = values * channels if len(values) == 1 else values
    labels = {'label_names': list(exported.classes)} if exported.classes else {}
    return {
        'architecture': architecture,
        'num_classes': exported.outputs,
        'global_pool': args['global_pool'],
        **labels,
        'model_args': args,
        'pretrained_cfg': pretrained,
    }


def _transformers_vit(exported: Exported) -> dict[str, Any]:
    model = exported.model
    rows, columns = _grid(exported)
    patch = model['patch']
    size = [rows * patch[0], columns * patch[1]]
    sizes = {
        'hidden_size': model['width'],
        'num_hidden_layers': model['depth'],
        'num_attention_heads': model['heads'],
        'image_size': size[0] if size[0] == size[1] else size,
        'patch_size': patch[0] if patch[0] == patch[1] else list(patch),
        'num_channels': exported.shapes['backbone/patch/kernel'][2],
        'layer_norm_eps': model['norm_eps'],
        'hidden_act': _ACTIVATIONS[model['gelu']],
        'qkv_bias': True,
    }
    if not model['layer_scale']:
        return _transformers(exported, 'vit', 'ViT', {**sizes, 'intermediate_size': model['mlp']})
    sizes |= {'mlp_ratio': model['mlp'] / model['width'], 'layerscale_value': model['layer_scale']}
    sizes['mlp_ratio'] = int(sizes['mlp_ratio'])
    if model['registers']:
        sizes['num_register_tokens'] = model['registers']
        return _transformers(exported, 'dinov2_with_registers', 'Dinov2WithRegisters', sizes)
    return _transformers(exported, 'dinov2', 'Dinov2', sizes)


def _transformers_gpt(exported: Exported) -> dict[str, Any]:
    model = exported.model
    sizes = {
        'vocab_size': exported.shapes['backbone/tokens/embedding'][0],
        'n_positions': exported.shapes['backbone/positions/embedding'][0],
        'n_embd': model['width'],
        'n_layer': model['depth'],
        'n_head': model['heads'],
        'n_inner': exported.shapes['backbone/block_0/mlp/up/kernel'][1],
        'layer_norm_epsilon': model.get('norm_eps', 1e-5),
        'activation_function': _ACTIVATIONS[model.get('gelu', 'tanh')],
        'tie_word_embeddings': model['tied'],
        'scale_attn_weights': model.get('scale_attention', True),
    }
    return {'model_type': 'gpt2', 'architectures': ['GPT2LMHeadModel'], **sizes}


def _transformers_bert(exported: Exported) -> dict[str, Any]:
    model = exported.model
    sizes = {
        'vocab_size': model['vocabulary'],
        'hidden_size': model['width'],
        'num_hidden_layers': model['depth'],
        'num_attention_heads': model['heads'],
        'intermediate_size': model['mlp'],
        'max_position_embeddings': model['positions'],
        'type_vocab_size': exported.shapes['backbone/types/embedding'][0],
        'pad_token_id': model['pad'],
        'layer_norm_eps': model.get('norm_eps', 1e-12),
        'hidden_act': _ACTIVATIONS[model.get('gelu', 'erf')],
    }
    made = _transformers(exported, 'bert', 'Bert', sizes)
    if exported.outputs:
        made['architectures'] = ['BertForSequenceClassification']
    return made


def _transformers(
    exported: Exported, kind: str, name: str, sizes: dict[str, Any]
) -> dict[str, Any]:
    made = {'model_type': kind, 'architectures': [f'{name}Model'], **sizes}
    if exported.outputs:
        names = exported.classes or tuple(f'LABEL_{i}' for i in range(exported.outputs))
        made |= {
            'architectures': [f'{name}ForImageClassification'],
            'id2label': {str(i): label for i, label in enumerate(names)},
            'label2id': {label: i for i, label in enumerate(names)},
        }
    return made


def _grid(exported: Exported) -> tuple[int, int]:
    rows, columns, _ = exported.shapes['backbone/position']
    return rows, columns


_ACTIVATIONS = {'erf': 'gelu', 'tanh': 'gelu_new'}
CONFIGS: dict[tuple[str, str], Callable[[Exported], dict[str, Any]]] = {
    ('timm', 'vit'): _timm_vit,
    ('timm', 'resnet'): _timm_resnet,
    ('huggingface', 'vit'): _transformers_vit,
    ('huggingface', 'gpt'): _transformers_gpt,
    ('huggingface', 'bert'): _transformers_bert,
}
