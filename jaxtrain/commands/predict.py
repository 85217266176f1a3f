"""Say what a run makes of images or texts, or how it goes on with prompts.

jaxtrain predict --workdir=runs/vgg16_folder photo.jpg holiday/
"""

from absl.flags import FlagValues

from jaxtrain.commands import flags
from jaxtrain.commands.arguments import Arguments
from jaxtrain.commands.start import start_jax


def _predictions(values: FlagValues) -> None:
    text = 'file to write; predictions.jsonl in the run directory if empty'
    flags.string(values, 'output', '', text)
    flags.string(values, 'on_bad_image', 'error', "'error', or 'skip' what cannot be read")
    flags.integer(values, 'top', 5, 'classes listed for each')


def _sampling(values: FlagValues) -> None:
    flags.integer(values, 'new_tokens', 64, 'of a language model: tokens to add to a prompt')
    flags.number(values, 'temperature', 1.0, '0 always takes the most probable token')
    flags.integer(values, 'top_k', 0, 'choose among so many most probable; 0 among all')
    flags.number(values, 'top_p', 1.0, 'choose among the most probable of this probability')
    flags.integer(values, 'seed', 0, 'of the choice')


FLAGS = (flags.workdir, flags.checkpoint, _predictions, _sampling)
WORDS = 'PATH...'


def run(given: Arguments) -> None:
    values = given.flags
    start_jax()
    from jaxtrain.inference.predict import Sampling, predict
    from jaxtrain.terminal import predictions

    sampling = Sampling(
        values.new_tokens, values.temperature, values.top_k, values.top_p, values.seed
    )
    found = predict(
        values.workdir, given.words, values.checkpoint, values.output, values.on_bad_image,
        values.top, sampling,
    )  # fmt: skip
    print(predictions(found))
