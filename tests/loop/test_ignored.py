"""Keys that have no effect beside the values of others are reported, and no others."""

import functools

import jax
import pytest

from jaxtrain.config.files import load
from jaxtrain.inspection.prepare import prepare
from jaxtrain.loop.ignored import USES
from jaxtrain.models import MODELS
from jaxtrain.models.gpt import GPT
from tests.conftest import TINY

# Key -> (variant and overrides with which it is ignored, those with which it is not). W is a run.
CASES = {
    'steps_per_call=3': (['scratch', 'eval_every=2'], ['scratch', 'eval_every=7']),
    'log_every=21': (['scratch'], ['scratch', 'steps=21']),
    'eval_every=21': (['scratch'], ['scratch', 'steps=21']),
    'save_every=13': (['scratch', 'every=epochs'], ['scratch']),
    'eval_batch_size=8': (['scratch', 'data.val=', 'data.test='], ['scratch', 'data.test=']),
    'budgets.eval=8.0': (['scratch', 'data.val=', 'data.test='], ['scratch', 'data.val=']),
    'best_metric=loss': (['scratch', 'data.val='], ['scratch']),
    "mesh.rules=(('.*','replicated'),)": (['scratch'], ['scratch', 'mesh.fsdp=-1', 'mesh.data=1']),
    'init_checkpoint=last': (None, ['finetune', 'init_from=W']),
    'restore.settings=config': (['scratch'], ['finetune', 'init_from=W']),
    'frozen_norm=adapt': (
        ['linear', 'init_from=W', "groups=(('backbone/conv_0/.*','frozen'),('.*','rest'))"],
        ['linear', 'init_from=W'],
    ),
    "optim.lr_mult=(('backbone/.*',0.1),('.*',1.0))": (
        ['linear', 'init_from=W'], ['finetune', 'init_from=W'],
    ),
    'optim.weight_decay=0.5': (
        ['scratch', "optim.decay_mult=(('.*',0.0),)"], ['scratch'],
    ),
    "optim.clip_norm=(('backbone/.*',1.0),('.*',0.0))": (
        ['linear', 'init_from=W'], ['finetune', 'init_from=W'],
    ),
    'data.crop_rounding=down': (['scratch'], ['scratch', 'data.crop=0.5']),
    'data.interpolation=bicubic': (['scratch'], ['scratch', 'data.image_size=(9,9)']),
    'data.threads=3': (['scratch', 'data.workers=1'], ['scratch']),
    'model.dropout=0.1': (['scratch'], ['scratch', 'model.hidden=(4,)']),
}  # fmt: skip


def remark(run, override: str, words: list[str]) -> str:
    variant, *others = words
    words = [f'--config.{word}'.replace('=W', f'={run}') for word in (*others, override)]
    remarks = prepare(load(f'{TINY}:{variant}', words)).remarks
    (line,) = [line for line in remarks if line.startswith('ignored: ')] or ['']
    return line


@pytest.mark.parametrize('override', CASES)
def test_a_key_is_reported_exactly_where_it_has_no_effect(override, pretrained):
    idle, used = CASES[override]
    key = f'config.{override.split("=")[0]} ('
    if idle:
        assert key in remark(pretrained, override, idle)
    assert key not in remark(pretrained, override, used)


def test_all_keys_have_a_case():
    assert {case.split('=')[0] for case in CASES} == {*USES, 'model.dropout'}


def test_a_config_that_uses_all_of_its_keys_is_not_remarked_upon(pretrained):
    assert prepare(load(f'{TINY}:full', [])).remarks == ()
    start = f'--config.init_from={pretrained}'
    assert prepare(load(f'{TINY}:finetune', [start])).remarks == ()
    assert prepare(load(f'{TINY}:linear', [start])).remarks == ()


SMALL = {
    'bert': {'vocabulary': 9, 'width': 4, 'depth': 2, 'heads': 1, 'positions': 6},
    'cnn': {'widths': (2,)},
    'gpt': {'width': 4, 'depth': 2, 'heads': 1, 'context': 6},
    'mlp': {'hidden': (3,)},
    'resnet': {'depth': 18, 'widths': (2, 2, 2, 2), 'stem': 'conv3'},
    'vgg': {'depth': 11, 'widths': (2, 2, 2, 2, 2), 'hidden': (3,)},
    'vit': {'patch': (4, 4), 'width': 4, 'depth': 2, 'heads': 1, 'mlp': 4},
}
OTHER = {'dropout': 0.5, 'scan_ends': (1,), 'class_position': False}


@pytest.mark.parametrize('name', MODELS)
def test_fields_that_a_model_declares_idle_do_not_change_its_program(name):
    """And the same fields do where it declares no such thing."""
    cls = MODELS[name]
    inputs = ((1, 6), 'int32') if cls.READS == 'tokens' else ((1, 32, 32, 3), 'float32')
    outputs = 9 if cls is GPT else 3
    plain = cls(outputs=outputs, **SMALL[name])
    changes = [{}, {'hidden': ()}, {'scan': True}, {'class_token': False, 'pool': 'mean'}]
    for change in changes:
        if not set(change) <= set(plain.__dataclass_fields__):
            continue
        model = plain.clone(**change)
        for field in set(OTHER) & set(model.__dataclass_fields__):
            programs = {program(model.clone(**{field: value}), *inputs)
                        for value in (getattr(plain, field), OTHER[field])}  # fmt: skip
            assert (len(programs) == 1) == (field in model.idle()), (change, field)


@functools.cache
def program(model, shape, dtype) -> str:
    """The parameters and the forward pass in training."""
    inputs, key = jax.ShapeDtypeStruct(shape, dtype), jax.random.key(0)
    variables = jax.eval_shape(lambda x: model.init(key, x, train=False), inputs)
    others = [name for name in variables if name != 'params']

    def run(variables, x):
        return model.apply(variables, x, train=True, rngs={'dropout': key}, mutable=others)

    return str(jax.make_jaxpr(run)(variables, inputs))
