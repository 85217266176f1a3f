"""config.json of ViT, DINOv2 and DINOv2 with registers in transformers."""

from jaxtrain.weights.schemas.schema import Only, Schema, computed, no_effect
from jaxtrain.weights.schemas.transformers_config import BASE, kind

_BOTH: Schema = {
    **BASE,
    **computed(
        'hidden_size',
        'num_hidden_layers',
        'num_attention_heads',
        'hidden_act',
        'layer_norm_eps',
        'image_size',
        'patch_size',
        'num_channels',
        'intermediate_size',
    ),
    **no_effect('only training', 'hidden_dropout_prob', 'attention_probs_dropout_prob'),
    'qkv_bias': Only((True,), 'attention whose query, key and value have no bias'),
}
_NEEDS = 'a name map of that model, and its computation'
VIT: Schema = {
    **kind(('vit',), ('ViTForImageClassification', 'ViTModel'), _NEEDS),
    **_BOTH,
    **no_effect('only the decoder of masked images', 'encoder_stride'),
    **no_effect('only the pooler, which is not read', 'pooler_output_size', 'pooler_act'),
}  # fmt: skip
DINOV2: Schema = {
    **kind(
        ('dinov2', 'dinov2_with_registers'),
        ('Dinov2ForImageClassification', 'Dinov2Model', 'Dinov2WithRegistersForImageClassification',
         'Dinov2WithRegistersModel'),
        _NEEDS,
    ),
    **_BOTH,
    **computed('mlp_ratio', 'num_register_tokens'),
    **no_effect('only training', 'drop_path_rate', 'use_mask_token'),
    **no_effect('only initial values', 'layerscale_value'),
    **no_effect(
        'only feature maps of a backbone', 'apply_layernorm', 'reshape_hidden_states',
        'stage_names', 'out_features', 'out_indices', '_out_features', '_out_indices',
    ),
    **no_effect(
        'how positions are resized, which are kept here', 'interpolate_antialias',
        'interpolate_offset',
    ),
    'use_swiglu_ffn': Only((False,), 'MLPs with SwiGLU'),
}  # fmt: skip
