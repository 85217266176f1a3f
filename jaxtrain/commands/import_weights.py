"""Make a run directory of pretrained weights, for config.init_from.

jaxtrain import timm model.safetensors --model=vit_b16 --workdir=runs/vit_b16
"""

from absl import flags as absl_flags
from absl.flags import FlagValues

from jaxtrain.commands import flags
from jaxtrain.commands.arguments import Arguments
from jaxtrain.commands.start import start_jax
from jaxtrain.errors import UserError


def _model(values: FlagValues) -> None:
    flags.string(values, 'model', None, 'model of the weights, such as resnet50 or vit_b16')


def _drop(values: FlagValues) -> None:
    text = 'regular expression of keys in the file to leave out; may be repeated'
    absl_flags.DEFINE_multi_string('drop', [], text, flag_values=values)


def _field(values: FlagValues) -> None:
    text = 'NAME=VALUE of a field that the files beside the weights do not state; may be repeated'
    absl_flags.DEFINE_multi_string('field', [], text, flag_values=values)


def _allow_field(values: FlagValues) -> None:
    text = 'name of a field beside the weights to accept without support; may be repeated'
    absl_flags.DEFINE_multi_string('allow-field', [], text, flag_values=values)


FLAGS = (_model, flags.workdir, _drop, _field, _allow_field)
WORDS = 'ORIGIN FILE_OR_FOLDER'


def run(given: Arguments) -> None:
    values, words = given.flags, given.words
    if len(words) != 2:
        raise UserError(
            f'import takes an origin and a file, not {" ".join(words) or "nothing"}; '
            'see jaxtrain import --help'
        )
    start_jax()
    from jaxtrain.weights.import_weights import import_weights
    from jaxtrain.weights.schemas.schema import make_given
    from jaxtrain.weights.stored import Foreign

    origin, path = words
    stated = make_given(
        values.field, values['allow-field'].value or (), ('--field', '--allow-field')
    )
    print(import_weights(path, Foreign(origin, values.model, stated), values.workdir, values.drop))
