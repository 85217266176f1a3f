"""Makes weights.npz and weights.json: outputs and keys of the reference implementations.

This requires, on Python 3.11: torch==2.13.0 torchvision==0.28.0 timm==1.0.31 transformers==5.23.0
keras==3.15.1 jax==0.10.2 (a CPU build of torch lacks operators that torchvision needs; they are
declared below). No weights are stored: `weight` makes them from each array's key, here and in the
tests. Outputs are float64 logits, or embeddings if a case has no outputs.

    KERAS_BACKEND=jax python -m tests.golden.make_weights

weights.json has the keys and shapes of every case (the same for even and odd sizes) and of whole
models. The numbers in the keys are separate: {'h.#.ln_1.weight': [[[48], '0 1 2']]}.
"""

import functools
import json
import os
import re
import tempfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).parent
VIT = {'name': 'vit', 'patch': (16, 16), 'width': 48, 'depth': 2, 'heads': 3, 'mlp': 96}
MEAN = {**VIT, 'pool': 'mean', 'norm_after_pool': True}
DINO = {**VIT, 'patch': (14, 14), 'layer_scale': 1.0}
AUGREG = {**VIT, 'gelu': 'tanh'}
GPT = {'name': 'gpt', 'width': 48, 'depth': 3, 'heads': 4, 'context': 40}
BERT = {
    'name': 'bert', 'vocabulary': 97, 'positions': 40, 'width': 48, 'depth': 2, 'heads': 4,
    'mlp': 96, 'pool': 'token',
}  # fmt: skip
KERAS_RESNET = {
    'name': 'resnet', 'depth': 50, 'stride': '1x1', 'conv_bias': True, 'norm_eps': 1.001e-5,
}  # fmt: skip
VGG = {'name': 'vgg', 'depth': 11, 'pool': 7, 'hidden': (24, 16)}


class Case(NamedTuple):
    """A small model of an origin.

    Attributes:
      origin: of `jaxtrain.weights.origins.origins.ORIGINS`.
      fields: the fields of our model.
      outputs: width of its head; 0 compares embeddings.
      shape: the shape of one input.
      naming: further arguments of the origin's `rows`, for another naming than its usual one.
    """

    origin: str
    fields: dict[str, Any]
    outputs: int
    shape: tuple[int, ...]
    naming: dict[str, Any] = {}


def _resnet(depth: int) -> dict[str, Any]:
    return {'name': 'resnet', 'depth': depth}


CASES = {
    'torchvision_resnet18_even': Case('torchvision', _resnet(18), 7, (64, 96, 3)),
    'torchvision_resnet18_odd': Case('torchvision', _resnet(18), 7, (65, 97, 3)),
    'torchvision_resnet34_even': Case('torchvision', _resnet(34), 7, (72, 100, 3)),
    'torchvision_resnet50_even': Case('torchvision', _resnet(50), 7, (64, 64, 3)),
    'torchvision_resnet50_odd': Case('torchvision', _resnet(50), 7, (65, 97, 3)),
    'torchvision_vgg11_even': Case('torchvision', VGG, 7, (64, 96, 3)),
    'torchvision_vgg11_odd': Case('torchvision', VGG, 7, (97, 65, 3)),
    'torchvision_vit': Case('torchvision', VIT, 7, (48, 48, 3)),
    'torchvision_vit_old': Case('torchvision', VIT, 7, (32, 32, 3), {'old': True}),
    'timm_resnet50_even': Case('timm', _resnet(50), 7, (70, 64, 3)),
    'timm_resnet18_odd': Case('timm', _resnet(18), 7, (65, 63, 3)),
    'timm_vit': Case('timm', VIT, 7, (48, 80, 3)),
    'timm_vit_mean': Case('timm', MEAN, 7, (48, 48, 3)),
    'timm_vit_bare': Case('timm', {**MEAN, 'class_token': False}, 7, (48, 48, 3)),
    'timm_dinov2': Case('timm', DINO, 7, (42, 28, 3)),
    'timm_dinov2_registers': Case(
        'timm', {**DINO, 'registers': 4, 'class_position': False}, 7, (42, 56, 3)
    ),
    'huggingface_vit': Case('huggingface', {**VIT, 'norm_eps': 1e-12}, 7, (48, 48, 3)),
    'huggingface_dinov2': Case('huggingface', {**DINO, 'pool': 'both'}, 7, (42, 42, 3)),
    'huggingface_dinov2_registers': Case(
        'huggingface', {**DINO, 'pool': 'both', 'registers': 4}, 7, (42, 42, 3)
    ),
    'huggingface_gpt2_even': Case('huggingface', GPT, 97, (12,)),
    'huggingface_gpt2_odd': Case('huggingface', GPT, 97, (11,)),
    'huggingface_gpt2_bare': Case('huggingface', GPT, 97, (9,), {'prefix': ''}),
    'huggingface_gpt2_untied': Case('huggingface', {**GPT, 'tied': False}, 97, (9,)),
    'huggingface_bert_even': Case('huggingface', BERT, 7, (12,)),
    'huggingface_bert_odd': Case('huggingface', BERT, 7, (13,)),
    'huggingface_bert_old': Case('huggingface', BERT, 7, (11,), {'old': True}),
    'huggingface_minilm': Case('huggingface', {**BERT, 'pool': 'mean'}, 0, (13,)),
    'augreg_vit': Case('augreg', AUGREG, 7, (48, 48, 3)),
    'augreg_representation': Case('augreg', {**AUGREG, 'representation': 24}, 7, (32, 64, 3)),
    'augreg_big_vision': Case('augreg', {**AUGREG, 'class_position': False}, 7, (48, 32, 3)),
    'augreg_big_vision_mean': Case(
        'augreg', {**AUGREG, 'class_token': False, 'class_position': False, 'pool': 'mean'}, 7,
        (32, 48, 3),
    ),
    'keras_resnet50_even': Case('keras', KERAS_RESNET, 7, (64, 64, 3)),
    'keras_resnet50_odd': Case('keras', KERAS_RESNET, 7, (65, 97, 3)),
}  # fmt: skip
# Whole models, of which only keys and shapes are stored: name -> (origin, model, outputs).
WHOLE = {
    'torchvision_resnet18': ('torchvision', 'resnet18', 1000),
    'torchvision_resnet34': ('torchvision', 'resnet34', 1000),
    'torchvision_resnet101': ('torchvision', 'resnet101', 1000),
    'torchvision_resnet152': ('torchvision', 'resnet152', 1000),
    'torchvision_vgg11': ('torchvision', 'vgg11', 1000),
    'torchvision_vgg13': ('torchvision', 'vgg13', 1000),
    'torchvision_vgg16': ('torchvision', 'vgg16', 1000),
    'torchvision_vgg19': ('torchvision', 'vgg19', 1000),
    'torchvision_vit_b_16': ('torchvision', 'vit_b16', 1000),
    'torchvision_vit_l_32': ('torchvision', 'vit_l32', 1000),
    'timm_resnet50': ('timm', 'resnet50', 1000),
    'timm_vit_tiny_patch16_224': ('timm', 'vit_ti16', 1000),
    'timm_vit_small_patch32_224': ('timm', 'vit_s32', 1000),
    'timm_vit_base_patch16_384': ('timm', 'vit_b16', 1000),
    'timm_vit_large_patch16_224': ('timm', 'vit_l16', 1000),
    'timm_vit_small_patch14_dinov2': ('timm', 'dinov2_s14', 0),
    'timm_vit_base_patch14_reg4_dinov2': ('timm', 'dinov2_b14', 0),
    'huggingface_vit': ('huggingface', 'vit_b16', 2),
    'huggingface_dinov2': ('huggingface', 'dinov2_b14', 0),
    'huggingface_gpt2': ('huggingface', 'gpt2', 50257),
    'huggingface_gpt2_medium': ('huggingface', 'gpt2_medium', 50257),
    'huggingface_bert': ('huggingface', 'bert_base', 2),
}


def family(name: str) -> str:
    """The common name of cases that share keys and weights."""
    return name.removesuffix('_even').removesuffix('_odd')


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """float64 weights for a key: a wide range of statistics, and biases large enough to matter."""
    random = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith(('running_var', 'moving_variance')):
        return np.exp(random.uniform(np.log(1e-4), np.log(10.0), shape))
    normal = random.standard_normal(shape)
    if len([n for n in shape if n > 1]) > 1:
        conv = len(shape) == 4
        # This suits kernels in OIHW and (out, in); other kernels only get another scale.
        return normal / np.sqrt(np.prod(shape[1:] if not conv or shape[-1] < 20 else shape[:-1]))
    if variance := _variance_beside(key):
        # Otherwise the channels with a variance near 0 would dominate, and grow from block to block
        # until float32 has no digits left for the others.
        return (1 + 0.3 * normal) * np.sqrt(weight(variance, shape))
    if key.endswith(('weight', 'scale', 'gamma')):
        return 0.2 + 0.3 * normal
    return 0.3 * normal


def _variance_beside(key: str) -> str:
    """The key of the variance that belongs to a BatchNorm's scale; '' for any other key."""
    if re.search(r'(bn\d|downsample\.1)\.weight$', key):
        return key.removesuffix('weight') + 'running_var'
    return key.removesuffix('gamma') + 'moving_variance' if key.endswith('_bn/gamma') else ''


def inputs(shape: tuple[int, ...]) -> np.ndarray:
    """Two standard normal float64 images, or two rows of tokens, the second ending in padding."""
    random = np.random.RandomState(sum(shape))
    if len(shape) > 1:
        return random.standard_normal((2, *shape))
    tokens = random.randint(1, 97, (2, *shape))
    tokens[1, -4:] = 0
    return tokens


def folded(keys: dict[str, list[int]]) -> dict[str, list]:
    """Keys and shapes with separate numbers: key with # -> [[shape, 'numbers numbers ...'], ...].

    Several numbers of one key are joined by commas.
    """
    groups: dict[str, dict[str, list[str]]] = {}
    for key, shape in keys.items():
        numbers = ','.join(re.findall(r'\d+', key))
        alike = groups.setdefault(re.sub(r'\d+', '#', key), {})
        alike.setdefault(json.dumps(shape), []).append(numbers)
    return {
        key: [[json.loads(shape), ' '.join(numbers)] for shape, numbers in alike.items()]
        for key, alike in groups.items()
    }


def unfolded(groups: dict[str, list]) -> dict[str, list[int]]:
    """The inverse of `folded`."""
    return {
        _filled(key, iter(numbers.split(','))): shape
        for key, alike in groups.items()
        for shape, every in alike
        for numbers in every.split(' ')
    }


def _filled(key: str, numbers: Iterator[str]) -> str:
    return re.sub('#', lambda _: next(numbers), key)


def main() -> None:
    import torch

    declare_operators()
    outputs, keys = {}, {}
    for name, case in CASES.items():
        model = build(case) if case.origin != 'keras' else None
        with torch.no_grad():
            outputs[name], keys[family(name)] = WAYS[case.origin](model, case)
        assert outputs[name].dtype == np.float64
        print(name, outputs[name].shape, float(np.abs(outputs[name]).max()), flush=True)
    np.savez_compressed(HERE / 'weights.npz', **outputs)
    whole = {name: _keys(name) for name in WHOLE}
    text = {
        'cases': {name: folded(model) for name, model in keys.items()},
        'whole': {name: folded(model) for name, model in whole.items()},
    }
    (HERE / 'weights.json').write_text(json.dumps(text, separators=(',', ':')) + '\n')


@functools.cache  # the declarations end with the object
def declare_operators():
    """Declares operators that torchvision requires and a CPU build of torch lacks."""
    import torch

    library = torch.library.Library('torchvision', 'DEF')
    for name in ('nms', 'qnms'):
        library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    return library


def build(case: Case):
    """The float64 reference model of a case, if it is a PyTorch model."""
    make = {
        'torchvision': _torchvision, 'timm': _timm, 'augreg': _timm, 'huggingface': _huggingface
    }[case.origin]  # fmt: skip
    return make(case).double().eval()


def logits(model, case: Case) -> np.ndarray:
    """The outputs of the reference model for `inputs`."""
    import torch

    x = inputs(case.shape)
    if x.ndim == 4:
        outputs = model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
        return (outputs if isinstance(outputs, torch.Tensor) else outputs.logits).numpy()
    tokens = torch.from_numpy(x)
    if case.fields['name'] == 'gpt':
        return model(input_ids=tokens).logits.numpy()
    mask = (tokens != 0).long()
    outputs = model(input_ids=tokens, attention_mask=mask)
    if case.outputs:
        return outputs.logits.numpy()
    # As in sentence-transformers: the mean over the tokens, normalised to length 1.
    wide = mask[..., None].to(torch.float64)
    mean = (outputs.last_hidden_state * wide).sum(1) / wide.sum(1)
    return torch.nn.functional.normalize(mean, dim=1).numpy()


def _torchvision(case: Case):
    import torchvision
    from torch import nn

    fields, count = case.fields, case.outputs
    if fields['name'] == 'resnet':
        return getattr(torchvision.models, f'resnet{fields["depth"]}')(num_classes=count)
    if fields['name'] == 'vit':
        return torchvision.models.VisionTransformer(
            case.shape[0], fields['patch'][0], fields['depth'], fields['heads'], fields['width'],
            fields['mlp'], num_classes=count,
        )  # fmt: skip
    model = torchvision.models.vgg11()
    sizes = (512 * 49, *fields['hidden'], count)
    for place, (i, o) in zip((0, 3, 6), zip(sizes, sizes[1:], strict=False), strict=True):
        model.classifier[place] = nn.Linear(i, o)
    return model


def _timm(case: Case):
    import timm
    from torch import nn

    fields, count = case.fields, case.outputs
    if fields['name'] == 'resnet':
        return timm.create_model(f'resnet{fields["depth"]}', num_classes=count)
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=case.shape[:2], patch_size=fields['patch'][0], embed_dim=fields['width'],
        depth=fields['depth'], num_heads=fields['heads'], num_classes=count,
        mlp_ratio=fields['mlp'] / fields['width'],
        class_token=fields.get('class_token', True),
        no_embed_class=not fields.get('class_position', True),
        reg_tokens=fields.get('registers', 0),
        init_values=fields.get('layer_scale'),
        global_pool={'mean': 'avg', 'token': 'token'}[fields.get('pool', 'token')],
        fc_norm=fields.get('norm_after_pool', False),
        act_layer={'erf': 'gelu', 'tanh': 'gelu_tanh'}[fields.get('gelu', 'erf')],
    )  # fmt: skip
    if width := fields.get('representation'):
        # timm no longer has this layer; torchvision's VisionTransformer has it in this form.
        layers = (nn.Linear(fields['width'], width), nn.Tanh(), nn.Linear(width, count))
        model.head = nn.Sequential(
            OrderedDict(zip(('pre_logits', 'act', 'head'), layers, strict=True))
        )
    return model


def _huggingface(case: Case):
    import transformers

    fields, count = case.fields, case.outputs
    sizes = {
        'hidden_size': fields['width'], 'num_hidden_layers': fields['depth'],
        'num_attention_heads': fields['heads'], 'num_labels': count,
    }  # fmt: skip
    if fields['name'] == 'gpt':
        config = transformers.GPT2Config(
            vocab_size=count, n_positions=fields['context'], n_embd=fields['width'],
            n_layer=fields['depth'], n_head=fields['heads'], bos_token_id=0, eos_token_id=0,
            tie_word_embeddings=fields.get('tied', True),
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config)
    if fields['name'] == 'bert':
        config = transformers.BertConfig(
            vocab_size=fields['vocabulary'], intermediate_size=fields['mlp'],
            max_position_embeddings=fields['positions'], **sizes,
        )  # fmt: skip
        if count:
            return transformers.BertForSequenceClassification(config)
        return transformers.BertModel(config, add_pooling_layer=False)
    sizes |= {'image_size': case.shape[0], 'patch_size': fields['patch'][0]}
    if not fields.get('layer_scale'):
        config = transformers.ViTConfig(intermediate_size=fields['mlp'], **sizes)
        return transformers.ViTForImageClassification(config)
    sizes |= {'mlp_ratio': fields['mlp'] // fields['width'], 'layerscale_value': 1.0}
    if registers := fields.get('registers'):
        config = transformers.Dinov2WithRegistersConfig(num_register_tokens=registers, **sizes)
        return transformers.Dinov2WithRegistersForImageClassification(config)
    return transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**sizes))


Outputs = tuple[np.ndarray, dict[str, list[int]]]


def _of_state(model, case: Case) -> Outputs:
    """(logits, keys and shapes) of a model that gets our weights as its state dict."""
    import torch

    state = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    if case.naming.get('old'):
        # torchvision renames these keys when it reads them.
        state = {k.replace('mlp.0', 'mlp.linear_1'): v for k, v in state.items()}
        state = {k.replace('mlp.3', 'mlp.linear_2'): v for k, v in state.items()}
    state = {k: torch.from_numpy(weight(k, tuple(v.shape))) for k, v in state.items()}
    model.load_state_dict(state)
    return logits(model, case), {k: list(v.shape) for k, v in state.items()}


def _of_disk(model, case: Case) -> Outputs:
    """The same for transformers, whose names in memory and in a file differ."""
    import torch
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        path = os.path.join(folder, 'model.safetensors')
        shapes = {_renamed(k, case): tuple(v.shape) for k, v in load_file(path).items()}
        save_file({k: torch.from_numpy(weight(k, s)) for k, s in shapes.items()}, path)
        outputs = logits(from_folder(type(model), folder, case), case)
    return outputs, {k: list(s) for k, s in shapes.items()}


def _renamed(key: str, case: Case) -> str:
    if case.naming.get('prefix') == '':
        return key.removeprefix('transformer.')
    if case.naming.get('old'):
        key = re.sub(r'LayerNorm\.weight$', 'LayerNorm.gamma', key)
        return re.sub(r'LayerNorm\.bias$', 'LayerNorm.beta', key)
    return key


def from_folder(cls, folder: str, case: Case, without: str = '-'):
    """A model that transformers reads from a folder.

    No key may be missing (except keys that end with `without`), unexpected or of another shape.
    """
    import torch

    options = {} if case.outputs else {'add_pooling_layer': False}
    model, info = cls.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float64, **options
    )
    missing = [key for key in info['missing_keys'] if not key.endswith(without)]
    assert not (missing or info['unexpected_keys'] or info['mismatched_keys']), info
    return model.double().eval()


def _of_npz(model, case: Case) -> Outputs:
    """The same for an npz file of AugReg or big_vision, as timm reads it."""
    shapes = npz_shapes(case)
    load_npz(model, case, {key: weight(key, shape) for key, shape in shapes.items()})
    return logits(model, case), {key: list(shape) for key, shape in shapes.items()}


def load_npz(model, case: Case, arrays: dict[str, np.ndarray]) -> None:
    """Loads the arrays of such a file into timm's model."""
    import torch

    if 'representation' in case.fields:
        for name in ('pre_logits', 'head'):
            layer = getattr(model.head, name)
            layer.weight.copy_(torch.from_numpy(arrays[f'{name}/kernel'].T))
            layer.bias.copy_(torch.from_numpy(arrays[f'{name}/bias']))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'vit.npz')
        np.savez(path, **arrays)
        model.load_pretrained(path)


def npz_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """The keys and shapes that timm reads from files of AugReg or big_vision.

    The files of big_vision are those in which the class token has no position.
    """
    fields, count = case.fields, case.outputs
    width, heads, mlp = fields['width'], fields['heads'], fields['mlp']
    grid = (case.shape[0] // 16) * (case.shape[1] // 16)
    keys = {
        'embedding/kernel': (16, 16, 3, width), 'embedding/bias': (width,),
        'Transformer/encoder_norm/scale': (width,), 'Transformer/encoder_norm/bias': (width,),
    }  # fmt: skip
    if fields.get('class_token', True):
        keys['cls'] = (1, 1, width)
    big_vision = not fields.get('class_position', True)
    if big_vision:
        attention, norm, dense = 'MultiHeadDotProductAttention_0', 'LayerNorm_1', 'MlpBlock_0'
        keys['pos_embedding'] = (1, grid, width)
    else:
        attention, norm, dense = 'MultiHeadDotProductAttention_1', 'LayerNorm_2', 'MlpBlock_3'
        keys['Transformer/posembed_input/pos_embedding'] = (1, 1 + grid, width)
    last = fields.get('representation') or width
    if last != width:
        keys |= {'pre_logits/kernel': (width, last), 'pre_logits/bias': (last,)}
    keys |= {'head/kernel': (last, count), 'head/bias': (count,)}
    for i in range(fields['depth']):
        block = f'Transformer/encoderblock_{i}/'
        for name in ('query', 'key', 'value'):
            keys[f'{block}{attention}/{name}/kernel'] = (width, heads, width // heads)
            keys[f'{block}{attention}/{name}/bias'] = (heads, width // heads)
        keys |= {
            f'{block}{attention}/out/kernel': (heads, width // heads, width),
            f'{block}{attention}/out/bias': (width,),
            f'{block}{dense}/Dense_0/kernel': (width, mlp),
            f'{block}{dense}/Dense_0/bias': (mlp,),
            f'{block}{dense}/Dense_1/kernel': (mlp, width),
            f'{block}{dense}/Dense_1/bias': (width,),
        }
        for each in ('LayerNorm_0', norm):
            keys |= {f'{block}{each}/scale': (width,), f'{block}{each}/bias': (width,)}
    return {('params/' if big_vision else '') + key: shape for key, shape in keys.items()}


def _of_keras(_, case: Case) -> Outputs:
    """(logits, layer/array -> shape) of Keras's ResNet50."""
    import jax

    jax.config.update('jax_enable_x64', True)
    import keras
    from keras.src.backend.common import dtypes

    # Otherwise Keras would convert float64 to float32 in BatchNorm and in means.
    dtypes.BIT64_TO_BIT32_DTYPE['float64'] = 'float64'
    keras.backend.set_floatx('float64')
    model = keras.applications.ResNet50(
        weights=None, input_shape=case.shape, classes=case.outputs, classifier_activation=None,
        pooling='avg',
    )  # fmt: skip
    keys = {}
    for layer in model.layers:
        for variable in layer.weights:
            key = f'{layer.name}/{variable.name}'
            keys[key] = list(variable.shape)
            variable.assign(weight(key, tuple(variable.shape)))
    return np.asarray(model(inputs(case.shape), training=False)), keys


WAYS = {
    'torchvision': _of_state, 'timm': _of_state, 'huggingface': _of_disk, 'augreg': _of_npz,
    'keras': _of_keras,
}  # fmt: skip


def _keys(name: str) -> dict[str, list[int]]:
    """Keys and shapes of a whole model."""
    import timm
    import torch
    import torchvision

    origin, _, rest = name.partition('_')
    if origin == 'huggingface':
        return _keys_on_disk(rest)
    with torch.device('meta'):
        if origin == 'torchvision':
            model = getattr(torchvision.models, rest)()
        else:
            model = timm.create_model(rest)
    return {k: list(v.shape) for k, v in model.state_dict().items()}


def _keys_on_disk(name: str) -> dict[str, list[int]]:
    import torch
    import transformers
    from safetensors import safe_open

    medium = {'n_embd': 1024, 'n_layer': 24, 'n_head': 16}
    kinds = {
        'vit': ('ViTForImageClassification', transformers.ViTConfig()),
        'dinov2': ('Dinov2Model', transformers.Dinov2Config()),
        'gpt2': ('GPT2LMHeadModel', transformers.GPT2Config()),
        'gpt2_medium': ('GPT2LMHeadModel', transformers.GPT2Config(**medium)),
        'bert': ('BertForSequenceClassification', transformers.BertConfig()),
    }
    kind, config = kinds[name]
    model = getattr(transformers, kind)(config).to(torch.float16)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with safe_open(os.path.join(folder, 'model.safetensors'), 'pt') as file:
            return {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


if __name__ == '__main__':
    main()
