"""Makes fields_timm.json: what each field of timm's config.json changes.

The script walks through the arguments of timm's VisionTransformer and ResNet and the fields of
PretrainedCfg, sets each to other legal values, lets timm write config.json, and computes the
float64 logits of a small model, or the pixels that timm's transforms return. No weights are stored:
`make_weights.weight` makes them from each array's key, here and in the tests. It also lists which
of timm's architectures are the plain network.

This requires timm==1.0.31 and torch; the versions are recorded.

    python -m tests.golden.make_fields_timm
"""

import inspect
import json
import lzma
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.make_weights import inputs, weight

HERE = Path(__file__).parent
SMALL = {'embed_dim': 48, 'depth': 2, 'num_heads': 3, 'mlp_ratio': 2.0}
VIT = {**SMALL, 'num_classes': 7, 'img_size': [48, 32]}
# Argument -> values; with some, another argument must be set too.
VIT_VALUES: dict[str, list[Any]] = {
    'img_size': [[32, 48], [96, 16], [16, 96], 64],
    'patch_size': [8],
    'in_chans': [1],
    'num_classes': [5, 0],
    'global_pool': ['avg', 'max', 'avgmax', 'map', 'prr', ''],
    'embed_dim': [96],
    'depth': [1],
    'num_heads': [1, 6, 12],
    'mlp_ratio': [4.0],
    'qkv_bias': [False],
    'qk_norm': [True],
    'scale_attn_norm': [True],
    'scale_mlp_norm': [True],
    'proj_bias': [False],
    'init_values': [0.1],
    'class_token': [{'class_token': False, 'global_pool': 'avg'},
                    {'class_token': False, 'global_pool': 'max', 'fc_norm': False}],
    'pos_embed': ['none'],
    'no_embed_class': [True],
    'reg_tokens': [2, {'reg_tokens': 2, 'no_embed_class': True},
                   {'reg_tokens': 2, 'no_embed_class': True, 'global_pool': 'max'}],
    'pre_norm': [True],
    'final_norm': [False],
    'fc_norm': [True, {'fc_norm': False, 'global_pool': 'avg'},
                {'fc_norm': False, 'global_pool': 'max'},
                {'fc_norm': False, 'global_pool': 'avgmax'}],
    'pool_include_prefix': [{'pool_include_prefix': True, 'global_pool': 'avg'}],
    'dynamic_img_size': [True],
    'dynamic_img_pad': [True],
    'drop_rate': [0.1],
    'pos_drop_rate': [0.1],
    'patch_drop_rate': [0.1],
    'proj_drop_rate': [0.1],
    'attn_drop_rate': [0.1],
    'drop_path_rate': [0.1],
    'weight_init': ['jax', 'moco', 'skip'],
    'fix_init': [True],
    'embed_layer': [],
    'embed_norm_layer': ['layernorm'],
    'norm_layer': ['layernorm', 'rmsnorm'],
    'act_layer': ['gelu', 'gelu_tanh', 'quick_gelu', 'relu', 'silu'],
    'block_fn': [],
    'mlp_layer': [],
    'attn_layer': ['diff'],
    'device': [],
    'dtype': [],
}  # fmt: skip
RESNET_VALUES: dict[str, list[Any]] = {
    'block': [],
    'layers': [],
    'num_classes': [5],
    'in_chans': [1],
    'output_stride': [16],
    'global_pool': ['max', 'avgmax', 'catavgmax'],
    'cardinality': [],
    'base_width': [],
    'stem_width': [{'stem_width': 32, 'stem_type': 'deep'}],
    'stem_type': ['deep', 'deep_tiered'],
    'replace_stem_pool': [True],
    'block_reduce_first': [2],
    'down_kernel_size': [3],
    'avg_down': [True],
    'channels': [[32, 64, 128, 256]],
    'act_layer': ['relu', 'silu', 'gelu'],
    'norm_layer': ['batchnorm2d'],
    'aa_layer': ['blurpool', 'avg'],
    'drop_rate': [0.1],
    'drop_path_rate': [0.1],
    'drop_block_rate': [0.1],
    'zero_init_last': [False],
    'block_args': [{'block_args': {'attn_layer': 'se'}}],
    'device': [],
    'dtype': [],
}
CFG_VALUES: dict[str, list[Any]] = {
    'url': ['https://example.org/a.pth'], 'file': ['a.pth'], 'state_dict': [],
    'hf_hub_id': ['timm/a'], 'hf_hub_filename': ['a.bin'], 'source': ['hf-hub'],
    'architecture': [], 'tag': ['other'], 'custom_load': [True],
    'input_size': [[3, 48, 32]], 'test_input_size': [[3, 96, 96]], 'min_input_size': [[3, 16, 16]],
    'fixed_input_size': [False], 'interpolation': ['bilinear', 'nearest', 'lanczos', 'random'],
    'crop_pct': [0.5, 0.875, 1.0], 'test_crop_pct': [0.5],
    'crop_mode': ['squash', 'border', {'crop_mode': 'squash', 'crop_pct': 1.0}],
    'mean': [[0.1, 0.2, 0.3]], 'std': [[0.4, 0.5, 0.6]], 'num_classes': [],
    'label_offset': [1], 'label_names': [['a', 'b', 'c', 'd', 'e', 'f', 'g']],
    'label_descriptions': [{'label_descriptions': {'a': 'the first'}}],
    'pool_size': [[3, 3]], 'test_pool_size': [[3, 3]], 'first_conv': ['stem'],
    'classifier': ['fc'], 'license': ['mit'], 'description': ['a model'],
    'origin_url': ['https://example.org'], 'paper_name': ['a'], 'paper_ids': ['arXiv:1'],
    'notes': [['a']],
}  # fmt: skip
TRANSFORM = (
    'input_size', 'interpolation', 'crop_pct', 'crop_mode', 'mean', 'std', 'test_input_size',
    'test_crop_pct', 'fixed_input_size',
)  # fmt: skip


def image() -> np.ndarray:
    """The uint8 image that is preprocessed."""
    return np.random.RandomState(0).randint(0, 256, (75, 61, 3)).astype(np.uint8)


def sampled(pixels: np.ndarray) -> np.ndarray:
    """A few of the pixels [h, w, c] of a preprocessed image."""
    return pixels[3::11, 2::9]


def _built(name: str, args: dict[str, Any]):
    import timm
    import torch

    model = timm.create_model(name, **args)
    state = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    state = {k: torch.from_numpy(weight(k, tuple(v.shape))) for k, v in state.items()}
    model.double().eval().load_state_dict(state, strict=False)
    return model, {k: list(v.shape) for k, v in state.items()}


def _logits(model, shape: tuple[int, int, int]) -> list[list[float]]:
    import torch

    with torch.no_grad():
        x = torch.from_numpy(inputs(shape).transpose(0, 3, 1, 2).copy())
        return model(x).numpy().tolist()


def _config(model) -> dict[str, Any]:
    from timm.models._hub import save_config_for_hf

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'config.json'
        save_config_for_hf(model, str(path))
        return json.loads(path.read_text())


def _case(name: str, base: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """One value of an argument: what timm writes, and what its model computes or raises."""
    more = value if isinstance(value, dict) else {field: value} if field else {}
    args = {**base, **more}
    case = {'architecture': name, 'place': 'model_args', 'field': field, 'value': value}
    try:
        model, arrays = _built(name, args)
        config = _config(model)
        # timm does not record what its factory consumes.
        config.setdefault('model_args', {}).update(more)
        size = args.get('img_size', [64, 64])
        size = [size, size] if isinstance(size, int) else size
        shape = (*size, args.get('in_chans', 3))
        outputs = _logits(model, shape)
    except Exception as error:
        return {**case, 'error': f'{type(error).__name__}: {error}'.splitlines()[0][:100]}
    return {**case, 'config': config, 'arrays': arrays, 'shape': shape, 'outputs': outputs}


def _pretrained(base: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """One value of a field of pretrained_cfg: the pixels that timm's transform returns."""
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    more = value if isinstance(value, dict) else {field: value} if field else {}
    config = json.loads(json.dumps(base))
    config['pretrained_cfg'].update(more)
    case = {'architecture': config['architecture'], 'place': 'pretrained_cfg', 'field': field,
            'value': value, 'config': config}  # fmt: skip
    if field and field not in TRANSFORM:
        return case
    try:
        settings = resolve_data_config(pretrained_cfg=config['pretrained_cfg'])
        pixels = create_transform(**settings)(Image.fromarray(image()))
    except Exception as error:
        return {**case, 'error': f'{type(error).__name__}: {error}'.splitlines()[0][:100]}
    rows = sampled(pixels.numpy().transpose(1, 2, 0))
    return {**case, 'pixels': np.round(rows.astype(float), 5).tolist()}


def _architectures() -> dict[str, Any]:
    """Architecture -> whether it is the plain ResNet, or the logits of its small ViT."""
    import timm
    import torch

    result: dict[str, Any] = {}
    plain = {}
    for name in timm.list_models(module='resnet'):
        with torch.device('meta'):
            text = str(timm.create_model(name))
        plain[name] = text
    usual = {plain[f'resnet{depth}'] for depth in (18, 34, 50, 101, 152)}
    result['resnet'] = {name: text in usual for name, text in plain.items()}
    result['vit'] = {}
    for name in timm.list_models(module='vision_transformer'):
        entry: dict[str, Any] = {'patch': 0}
        try:
            with torch.device('meta'):
                patch = timm.create_model(name).patch_embed.patch_size
            size = [2 * patch[0], 3 * patch[1]]
            small = {**SMALL, 'num_classes': 3, 'img_size': size}
            model, arrays = _built(name, small)
            entry = {'patch': patch[0], 'arrays': sorted(arrays), 'config': _config(model),
                     'shapes': arrays, 'outputs': _logits(model, (*size, 3))}  # fmt: skip
        except Exception as error:
            entry['error'] = f'{type(error).__name__}: {error}'.splitlines()[0][:60]
        result['vit'][name] = entry
    return result


def _lean(architectures: dict[str, Any]) -> dict[str, Any]:
    """Without what a ViT has whose keys are not those of a plain one, at another patch size."""
    keys = set(architectures['vit']['vit_base_patch16_224']['arrays'])
    late = {key.replace('norm.', 'fc_norm.') if key.startswith('norm.') else key for key in keys}
    scales = {f'blocks.{i}.ls{n}.gamma' for i in (0, 1) for n in (1, 2)}
    options = [
        (base - gone) | more
        for base in (keys, late)
        for gone in (set(), {'cls_token'})
        for more in (set(), {'reg_token'}, scales, {'reg_token', *scales})
    ]
    vit = {}
    for name, entry in architectures['vit'].items():
        if set(entry.get('arrays', ())) not in options:
            vit[name] = None
            continue
        config = {k: entry['config'][k] for k in ('architecture', 'global_pool', 'model_args')}
        vit[name] = {
            'patch': entry['patch'], 'config': config, 'outputs': entry['outputs'],
            'shapes': {k: v for k, v in entry['shapes'].items() if 'blocks.1' not in k},
        }  # fmt: skip
    return {'resnet': architectures['resnet'], 'vit': vit}


def main() -> None:
    import timm
    import torch
    from timm.models._pretrained import PretrainedCfg
    from timm.models.resnet import ResNet
    from timm.models.vision_transformer import VisionTransformer

    walked = (
        (VisionTransformer.__init__, VIT_VALUES), (ResNet.__init__, RESNET_VALUES),
    )  # fmt: skip
    for function, values in walked:
        names = set(inspect.signature(function).parameters) - {'self'}
        assert names == set(values), names ^ set(values)
    names = {each.name for each in fields(PretrainedCfg)}
    assert names == set(CFG_VALUES), names ^ set(CFG_VALUES)
    cases = []
    for name, base, table in (
        ('vit_tiny_patch16_224', VIT, VIT_VALUES), ('resnet18', {'num_classes': 7}, RESNET_VALUES),
    ):  # fmt: skip
        cases.append(_case(name, base, '', None))
        cases += [_case(name, base, field, v) for field, values in table.items() for v in values]
    config = cases[0]['config']
    cases.append(_pretrained(config, '', None))
    cases += [_pretrained(config, f, value) for f, values in CFG_VALUES.items() for value in values]
    # Shapes are stored once for all cases that have the same.
    arrays: list[Any] = []
    for case in cases:
        if 'arrays' in case:
            if case['arrays'] not in arrays:
                arrays.append(case['arrays'])
            case['arrays'] = arrays.index(case['arrays'])
    content = {
        'versions': {'timm': timm.__version__, 'torch': torch.__version__.split('+')[0]},
        'arrays': arrays, 'cases': cases, 'architectures': _lean(_architectures()),
    }  # fmt: skip
    text = json.dumps(content, separators=(',', ':'))
    (HERE / 'fields_timm.json.xz').write_bytes(lzma.compress(text.encode(), preset=9))
    print(len(cases), 'cases', len(text), 'characters')


if __name__ == '__main__':
    main()
