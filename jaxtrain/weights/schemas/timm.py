"""timm's config.json: what the file states at its top, in `pretrained_cfg` and in `model_args`.

Early files have no `pretrained_cfg`, but its fields at the top.
"""

from typing import Any

from jaxtrain.weights.schemas.schema import Only, Schema, computed, no_effect

_OTHER = 'another network'


def _only(*values: Any) -> Only:
    return Only(values, _OTHER)


TOP: Schema = {
    **computed(
        'architecture', 'num_classes', 'num_features', 'global_pool', 'label_names', 'labels',
        'id2label', 'model_args', 'pretrained_cfg',
    ),
    **no_effect('describes the labels', 'label_descriptions', 'label2id'),
    **no_effect(
        'states how the file was made', 'timm_version', 'framework', 'library_name', 'license',
        'tags', 'transformers_version', 'torch_dtype', 'dtype', 'problem_type',
        'initializer_range', 'architectures', '_name_or_path', 'num_labels', 'task', 'datasets',
    ),
    # transformers' wrapper of timm's models.
    'model_type': _only('timm_wrapper', 'timm'),
    'do_pooling': _only(True),
}  # fmt: skip

PRETRAINED: Schema = {
    **computed(
        'architecture', 'input_size', 'interpolation', 'crop_pct', 'crop_mode', 'mean', 'std',
        'num_classes', 'label_names', 'fixed_input_size',
    ),
    **no_effect(
        'states where the weights come from', 'url', 'file', 'hf_hub_id', 'hf_hub_filename',
        'source', 'tag', 'custom_load', 'license', 'description', 'origin_url', 'paper_name',
        'paper_ids', 'notes', 'state_dict', 'hf_hub', 'vocab_size',
    ),
    **no_effect(
        'is advice for other sizes, which timm follows only on request', 'test_input_size',
        'test_crop_pct', 'min_input_size', 'test_pool_size', 'pool_size',
    ),
    **no_effect('names layers, whose keys are compared', 'first_conv', 'classifier'),
    **no_effect('describes the labels', 'label_descriptions'),
    'label_offset': _only(None, 0),
}  # fmt: skip

_TRAINING = no_effect(
    'acts only in training, or while a model is made', 'drop_rate', 'pos_drop_rate',
    'patch_drop_rate', 'proj_drop_rate', 'attn_drop_rate', 'drop_path_rate', 'drop_block_rate',
    'drop_connect_rate', 'weight_init', 'fix_init', 'init_values', 'zero_init_last', 'device',
    'dtype', 'scriptable', 'exportable', 'no_jit', 'pretrained_strict', 'cache_dir',
)  # fmt: skip
_EITHER: Schema = {
    **_TRAINING,
    **computed('in_chans', 'num_classes', 'global_pool'),
    'features_only': _only(False),
    'output_stride': _only(None, 32),
}

VIT: Schema = {
    **_EITHER,
    **computed(
        'img_size', 'patch_size', 'embed_dim', 'depth', 'num_heads', 'mlp_ratio', 'class_token',
        'no_embed_class', 'reg_tokens', 'fc_norm', 'act_layer',
    ),
    **no_effect(
        'concerns images of other sizes', 'dynamic_img_size', 'dynamic_img_pad', 'strict_img_size'
    ),
    'qkv_bias': _only(True),
    'qk_norm': _only(False),
    'scale_attn_norm': _only(False),
    'scale_mlp_norm': _only(False),
    'proj_bias': _only(True),
    'pos_embed': _only('learn'),
    'pre_norm': _only(False),
    'final_norm': _only(True),
    'pool_include_prefix': _only(False),
    'norm_layer': _only(None, 'layernorm'),
    **dict.fromkeys(
        ('embed_layer', 'embed_norm_layer', 'block_fn', 'mlp_layer', 'attn_layer', 'use_naflex'),
        _only(None),
    ),
}  # fmt: skip

RESNET: Schema = {
    **_EITHER,
    'layers': computed('layers')['layers'],
    'channels': _only([64, 128, 256, 512]),
    'cardinality': _only(1),
    'base_width': _only(64),
    'stem_width': _only(64),
    'stem_type': _only(''),
    'replace_stem_pool': _only(False),
    'block_reduce_first': _only(1),
    'down_kernel_size': _only(1),
    'avg_down': _only(False),
    'act_layer': _only('relu', None),
    'norm_layer': _only('batchnorm2d', 'batchnorm', None),
    'aa_layer': _only(None, ''),
    'block_args': _only(None, {}),
}

# (regular expression of an architecture, the arguments with which timm makes it). The size of
# images is the group `size`, else the argument img_size.
_SIZES = '(tiny|small|base|large)'
ARCHITECTURES: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    'resnet': (
        (r'(tv_|gluon_|ssl_|swsl_)?resnet(18|34|50|101|152)(_v1b)?', {}),
    ),
    'vit': (
        (rf'(vit|deit)_{_SIZES}_patch\d+_(?P<size>\d+)(_in21k|_in1k|_dino|_sam|_mae)?', {}),
        (r'vit_(small|base|large)_patch14_dinov2', {'img_size': 518}),
        (r'vit_(small|base|large)_patch14_reg4_dinov2',
         {'img_size': 518, 'reg_tokens': 4, 'no_embed_class': True}),
        (rf'deit3_{_SIZES}_patch16_(?P<size>\d+)(_in21ft1k)?', {'no_embed_class': True}),
        (rf'vit_{_SIZES}_patch16_gap_(?P<size>\d+)',
         {'class_token': False, 'global_pool': 'avg', 'fc_norm': False}),
        (r'flexivit_(small|base|large)', {'img_size': 240, 'no_embed_class': True}),
    ),
}  # fmt: skip
