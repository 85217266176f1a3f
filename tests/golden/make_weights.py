"""Makes weights.npz and weights.json: what the reference implementations compute, and their keys.

Needs, on Python 3.11: torch==2.13.0 torchvision==0.28.0 timm==1.0.31 transformers==5.23.0
keras==3.15.1 jax==0.10.2 (a CPU build of torch has not the operators that torchvision wants; they
are declared below). No weights are stored: they are made again from each array's key by `weight`,
here and in the tests. Outputs are float64 logits.

    KERAS_BACKEND=jax python -m tests.golden.make_weights
"""

import json
import os
import tempfile
import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
VIT = {'name': 'vit', 'patch': (16, 16), 'width': 48, 'depth': 2, 'heads': 3, 'mlp': 96}
DINO = {**VIT, 'patch': (14, 14), 'layer_scale': 1.0}
GPT = {'name': 'gpt', 'width': 48, 'depth': 3, 'heads': 4, 'context': 40}
BERT = {
    'name': 'bert', 'vocabulary': 97, 'positions': 40, 'width': 48, 'depth': 2, 'heads': 4,
    'mlp': 96, 'pool': 'token',
}  # fmt: skip
KERAS_RESNET = {
    'name': 'resnet', 'depth': 50, 'stride': '1x1', 'conv_bias': True, 'norm_eps': 1.001e-5,
}  # fmt: skip
VGG = {'name': 'vgg', 'depth': 11, 'pool': 7, 'hidden': (24, 16)}
# Name -> (origin, fields of our model, outputs, shape of one input).
CASES = {
    'torchvision_resnet18_even': ('torchvision', {'name': 'resnet', 'depth': 18}, 7, (64, 96, 3)),
    'torchvision_resnet18_odd': ('torchvision', {'name': 'resnet', 'depth': 18}, 7, (65, 97, 3)),
    'torchvision_resnet50_even': ('torchvision', {'name': 'resnet', 'depth': 50}, 7, (64, 64, 3)),
    'torchvision_resnet50_odd': ('torchvision', {'name': 'resnet', 'depth': 50}, 7, (65, 97, 3)),
    'torchvision_vgg11_even': ('torchvision', VGG, 7, (64, 96, 3)),
    'torchvision_vgg11_odd': ('torchvision', VGG, 7, (97, 65, 3)),
    'torchvision_vit': ('torchvision', {**VIT, 'norm_eps': 1e-6}, 7, (48, 48, 3)),
    'timm_resnet50': ('timm', {'name': 'resnet', 'depth': 50}, 7, (64, 65, 3)),
    'timm_vit': ('timm', VIT, 7, (48, 80, 3)),
    'timm_vit_mean': ('timm', {**VIT, 'pool': 'mean', 'norm_after_pool': True}, 7, (48, 48, 3)),
    'timm_vit_bare': (
        'timm', {**VIT, 'pool': 'mean', 'norm_after_pool': True, 'class_token': False}, 7,
        (48, 48, 3),
    ),
    'timm_dinov2_registers': (
        'timm', {**DINO, 'registers': 4, 'class_position': False}, 7, (42, 56, 3),
    ),
    'huggingface_vit': ('huggingface', {**VIT, 'norm_eps': 1e-12}, 7, (48, 48, 3)),
    'huggingface_dinov2': ('huggingface', {**DINO, 'pool': 'both'}, 7, (42, 42, 3)),
    'huggingface_dinov2_registers': (
        'huggingface', {**DINO, 'pool': 'both', 'registers': 4}, 7, (42, 42, 3),
    ),
    'huggingface_gpt2': ('huggingface', GPT, 97, (11,)),
    'huggingface_bert': ('huggingface', BERT, 7, (13,)),
    'augreg_vit': ('augreg', {**VIT, 'gelu': 'tanh'}, 7, (48, 48, 3)),
    'keras_resnet50_even': ('keras', KERAS_RESNET, 7, (64, 64, 3)),
    'keras_resnet50_odd': ('keras', KERAS_RESNET, 7, (65, 97, 3)),
}  # fmt: skip
# The models as they are, by key and shape alone: name -> (origin, model, outputs).
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


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """float64 from a key; statistics are wide, biases large enough to be seen."""
    random = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith(('running_var', 'moving_variance', '/3')):
        return np.exp(random.uniform(np.log(1e-4), np.log(10.0), shape))
    normal = random.standard_normal(shape)
    if len([n for n in shape if n > 1]) > 1:
        conv = len(shape) == 4
        # Kernels in OIHW and (out, in); others only change in size.
        return normal / np.sqrt(np.prod(shape[1:] if not conv or shape[-1] < 20 else shape[:-1]))
    if key.endswith(('weight', 'scale', 'gamma')):
        return 0.2 + 0.3 * normal
    return 0.3 * normal


def inputs(shape: tuple[int, ...]) -> np.ndarray:
    """Two images, float64 around 0, or two rows of tokens of which the second ends in padding."""
    random = np.random.RandomState(sum(shape))
    if len(shape) > 1:
        return random.standard_normal((2, *shape))
    tokens = random.randint(1, 97, (2, *shape))
    tokens[1, -4:] = 0
    return tokens


def main() -> None:
    import torch

    library = torch.library.Library('torchvision', 'DEF')
    for name in ('nms', 'qnms'):
        library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    outputs, keys = {}, {}
    for name, (origin, fields, count, shape) in CASES.items():
        if origin == 'keras':
            outputs[name], keys[name] = _keras(fields, count, shape)
            continue
        model = _build(name, count, shape)
        model = model.double().eval()
        with torch.no_grad():
            state = model.state_dict()
            for key, value in state.items():
                if value.dtype == torch.float64 and 'attn.bias' not in key.replace('c_attn', ''):
                    value.copy_(torch.from_numpy(weight(key, tuple(value.shape))))
            if origin == 'augreg':
                keys[name] = _load_npz(model, fields, count, shape)
            else:
                keys[name] = {k: list(v.shape) for k, v in state.items() if v.is_floating_point()}
            outputs[name] = _logits(model, inputs(shape)).numpy()
        assert outputs[name].dtype == np.float64
        print(name, outputs[name].shape, float(np.abs(outputs[name]).max()), flush=True)
    np.savez_compressed(HERE / 'weights.npz', **outputs)
    whole = {name: _keys(name) for name in WHOLE}
    text = {'cases': keys, 'whole': whole}
    (HERE / 'weights.json').write_text(json.dumps(text, separators=(',', ':')) + '\n')


def _logits(model, x: np.ndarray):
    import torch

    if x.ndim == 4:
        found = model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    elif 'Bert' in type(model).__name__:
        tokens = torch.from_numpy(x)
        found = model(input_ids=tokens, attention_mask=(tokens != 0).long())
    else:
        found = model(input_ids=torch.from_numpy(x))
    return found if isinstance(found, torch.Tensor) else found.logits


def _build(name: str, count: int, shape: tuple[int, ...]):
    """The reference model of a case, small."""
    import timm
    import torchvision
    import transformers
    from torch import nn

    size = shape[:2]
    small = {'patch_size': 16, 'embed_dim': 48, 'depth': 2, 'num_heads': 3, 'mlp_ratio': 2.0}
    vit = timm.models.vision_transformer.VisionTransformer
    config = {
        'hidden_size': 48, 'num_hidden_layers': 2, 'num_attention_heads': 3,
        'intermediate_size': 96, 'image_size': shape[0], 'num_labels': count,
    }  # fmt: skip
    dino = {**config, 'patch_size': 14, 'mlp_ratio': 2, 'layerscale_value': 1.0}
    family = name.removesuffix('_even').removesuffix('_odd')
    if family == 'torchvision_vgg11':
        model = torchvision.models.vgg11()
        sizes = (512 * 49, 24, 16, count)
        for place, (i, o) in zip((0, 3, 6), zip(sizes, sizes[1:], strict=False), strict=True):
            model.classifier[place] = nn.Linear(i, o)
        return model
    return {
        'torchvision_resnet18': lambda: torchvision.models.resnet18(num_classes=count),
        'torchvision_resnet50': lambda: torchvision.models.resnet50(num_classes=count),
        'torchvision_vit': lambda: torchvision.models.VisionTransformer(
            shape[0], 16, 2, 3, 48, 96, num_classes=count
        ),
        'timm_resnet50': lambda: timm.create_model('resnet50', num_classes=count),
        'timm_vit': lambda: vit(img_size=size, num_classes=count, **small),
        'timm_vit_mean': lambda: vit(
            img_size=size, num_classes=count, global_pool='avg', **small
        ),
        'timm_vit_bare': lambda: vit(
            img_size=size, num_classes=count, global_pool='avg', class_token=False, **small
        ),
        'timm_dinov2_registers': lambda: vit(
            img_size=size, num_classes=count, init_values=1.0, reg_tokens=4, no_embed_class=True,
            **{**small, 'patch_size': 14},
        ),
        'augreg_vit': lambda: vit(
            img_size=size, num_classes=count, act_layer='gelu_tanh', **small
        ),
        'huggingface_vit': lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(patch_size=16, **config)
        ),
        'huggingface_dinov2': lambda: transformers.Dinov2ForImageClassification(
            transformers.Dinov2Config(**dino)
        ),
        'huggingface_dinov2_registers': lambda: (
            transformers.Dinov2WithRegistersForImageClassification(
                transformers.Dinov2WithRegistersConfig(num_register_tokens=4, **dino)
            )
        ),
        'huggingface_gpt2': lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=97, n_positions=40, n_embd=48, n_layer=3, n_head=4
            )
        ),
        'huggingface_bert': lambda: transformers.BertForSequenceClassification(
            transformers.BertConfig(
                vocab_size=97, intermediate_size=96, max_position_embeddings=40, num_labels=count,
                hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
            )
        ),
    }[family]()  # fmt: skip


def _load_npz(model, fields: dict, count: int, shape: tuple[int, ...]) -> dict[str, list[int]]:
    """Loads an npz as timm reads AugReg's; returns its keys and shapes."""
    width, heads, mlp = fields['width'], fields['heads'], fields['mlp']
    grid = (shape[0] // 16) * (shape[1] // 16)
    keys = {
        'embedding/kernel': (16, 16, 3, width), 'embedding/bias': (width,), 'cls': (1, 1, width),
        'Transformer/posembed_input/pos_embedding': (1, 1 + grid, width),
        'Transformer/encoder_norm/scale': (width,), 'Transformer/encoder_norm/bias': (width,),
        'head/kernel': (width, count), 'head/bias': (count,),
    }  # fmt: skip
    for i in range(fields['depth']):
        block = f'Transformer/encoderblock_{i}/'
        attention = block + 'MultiHeadDotProductAttention_1/'
        for name in ('query', 'key', 'value'):
            keys[f'{attention}{name}/kernel'] = (width, heads, width // heads)
            keys[f'{attention}{name}/bias'] = (heads, width // heads)
        keys |= {
            attention + 'out/kernel': (heads, width // heads, width),
            attention + 'out/bias': (width,),
            block + 'MlpBlock_3/Dense_0/kernel': (width, mlp),
            block + 'MlpBlock_3/Dense_0/bias': (mlp,),
            block + 'MlpBlock_3/Dense_1/kernel': (mlp, width),
            block + 'MlpBlock_3/Dense_1/bias': (width,),
        }
        for norm in ('LayerNorm_0', 'LayerNorm_2'):
            keys |= {f'{block}{norm}/scale': (width,), f'{block}{norm}/bias': (width,)}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'vit.npz')
        np.savez(path, **{key: weight(key, shape) for key, shape in keys.items()})
        model.load_pretrained(path)
    return {key: list(shape) for key, shape in keys.items()}


def _keras(fields: dict, count: int, shape: tuple[int, ...]):
    """(logits, layer/array -> shape) of Keras's ResNet50."""
    import jax

    jax.config.update('jax_enable_x64', True)
    import keras

    keras.backend.set_floatx('float64')
    model = keras.applications.ResNet50(
        weights=None, input_shape=shape, classes=count, classifier_activation=None, pooling='avg'
    )
    keys = {}
    for layer in model.layers:
        for variable in layer.weights:
            key = f'{layer.name}/{variable.name}'
            keys[key] = list(variable.shape)
            variable.assign(weight(key, tuple(variable.shape)))
    return np.asarray(model(inputs(shape), training=False)), keys


def _keys(name: str) -> dict[str, list[int]]:
    """Keys and shapes of a whole model; no memory is taken."""
    import timm
    import torch
    import torchvision
    import transformers

    origin, _, rest = name.partition('_')
    with torch.device('meta'):
        if origin == 'torchvision':
            model = getattr(torchvision.models, rest)()
        elif origin == 'timm':
            model = timm.create_model(rest)
        else:
            model = {
                'vit': lambda: transformers.ViTForImageClassification(transformers.ViTConfig()),
                'dinov2': lambda: transformers.Dinov2Model(transformers.Dinov2Config()),
                'gpt2': lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config()),
                'gpt2_medium': lambda: transformers.GPT2LMHeadModel(
                    transformers.GPT2Config(n_embd=1024, n_layer=24, n_head=16)
                ),
                'bert': lambda: transformers.BertForSequenceClassification(
                    transformers.BertConfig()
                ),
            }[rest]()
    return {k: list(v.shape) for k, v in model.state_dict().items()}


if __name__ == '__main__':
    main()
