"""config.json of GPT-2 (transformers' GPT2Config)."""

from jaxtrain.weights.schemas.schema import Only, Schema, computed, no_effect
from jaxtrain.weights.schemas.transformers_config import BASE, kind

GPT2: Schema = {
    **kind(
        ('gpt2',), ('GPT2LMHeadModel', 'GPT2Model'), 'a name map of that model, and its computation'
    ),
    **BASE,
    **computed(
        'vocab_size', 'n_positions', 'n_ctx', 'n_embd', 'n_layer', 'n_head', 'n_inner',
        'activation_function', 'layer_norm_epsilon', 'scale_attn_weights', 'tie_word_embeddings',
        # Other names that transformers accepts for the same fields.
        'hidden_size', 'max_position_embeddings', 'num_attention_heads', 'num_hidden_layers',
    ),
    **no_effect('only training', 'resid_pdrop', 'embd_pdrop', 'attn_pdrop'),
    **no_effect(
        'only the heads of GPT2DoubleHeadsModel', 'summary_type', 'summary_use_proj',
        'summary_activation', 'summary_proj_to_labels', 'summary_first_dropout',
    ),
    **no_effect('the precision in training', 'reorder_and_upcast_attn'),
    **no_effect(
        'fields that the code of GPT-2 never read', 'n_special', 'predict_special_tokens',
    ),
    # GPT-2 is causal in any case.
    **no_effect('only cross-attention', 'is_decoder'),
    **no_effect('the token of padding, which follows the text', 'pad_token_id'),
    'scale_attn_by_inverse_layer_idx': Only((False,), 'a factor on the attention of each block'),
}  # fmt: skip

# What is assumed without the file: the defaults of GPT2Config.
USUAL = {'layer_norm_epsilon': 1e-5, 'activation_function': 'gelu_new'}
