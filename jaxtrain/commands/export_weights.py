"""Write a run's weights as safetensors, under the names of another framework.

jaxtrain export --workdir=runs/vit_b16 --origin=timm --output=model.safetensors
"""

from absl.flags import FlagValues

from jaxtrain.commands import flags
from jaxtrain.commands.arguments import Arguments
from jaxtrain.commands.start import start_jax


def _export(values: FlagValues) -> None:
    flags.string(values, 'origin', None, 'naming scheme: torchvision, timm, huggingface, ...')
    flags.string(values, 'output', None, 'file to write')


FLAGS = (flags.workdir, flags.checkpoint, _export)
WORDS = ''


def run(given: Arguments) -> None:
    values = given.flags
    start_jax()
    from jaxtrain.inference.export_weights import export_weights

    print(export_weights(values.workdir, values.checkpoint, values.origin, values.output))
