"""config.json of BERT (transformers' BertConfig)."""

from jaxtrain.weights.schemas.schema import Only, Schema, computed, no_effect
from jaxtrain.weights.schemas.transformers_config import BASE, kind

BERT: Schema = {
    **kind(
        ('bert',),
        ('BertModel', 'BertForSequenceClassification', 'BertForMaskedLM', 'BertForPreTraining',
         'BertForNextSentencePrediction'),
        'a name map of that model, and its computation (RoBERTa counts positions differently)',
    ),
    **BASE,
    **computed(
        'vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads',
        'intermediate_size', 'hidden_act', 'max_position_embeddings', 'type_vocab_size',
        'layer_norm_eps', 'pad_token_id',
    ),
    **no_effect(
        'only training', 'hidden_dropout_prob', 'attention_probs_dropout_prob',
        'classifier_dropout', 'pooler_dropout', 'classifier_dropout_prob', 'embedding_dropout',
    ),
    **no_effect(
        'fields that the code of BERT never read', 'directionality', 'pooler_fc_size',
        'pooler_num_attention_heads', 'pooler_num_fc_layers', 'pooler_size_per_head', 'pooler_type',
    ),
    'position_embedding_type': Only(('absolute', None), 'relative positions in attention'),
}  # fmt: skip

USUAL = {'layer_norm_eps': 1e-12, 'hidden_act': 'gelu', 'pad_token_id': 0}
