"""Write the predictions of a run for images or texts, or continue prompts.

jaxtrain predict --workdir=runs/vgg16_folder photo.jpg holiday/
"""

from absl.flags import FlagValues

from jaxtrain.commands import flags
from jaxtrain.commands.arguments import Arguments
from jaxtrain.commands.start import start_jax


def _predictions(values: FlagValues) -> None:
    text = 'file to write; empty for predictions.jsonl in the run directory'
    flags.string(values, 'output', '', text)
    flags.string(values, 'on_bad_image', 'error', "'error', or 'skip' images that cannot be read")
    flags.integer(values, 'top', 5, 'number of classes to list per example')


def _sampling(values: FlagValues) -> None:
    flags.integer(values, 'new_tokens', 64, 'language models: tokens to add to each prompt')
    flags.number(values, 'temperature', 1.0, 'divides the logits; 0 takes the most probable token')
    flags.integer(values, 'top_k', 0, 'sample from this many most probable tokens; 0 from all')
    flags.number(values, 'top_p', 1.0, 'sample from the tokens that have this probability together')
    flags.integer(values, 'seed', 0, 'seed of the sampling')


FLAGS = (flags.workdir, flags.checkpoint, _predictions, _sampling)
WORDS = 'PATH...'


def run(given: Arguments) -> None:
    values = given.flags
    start_jax()
    from jaxtrain.inference.generate import Sampling
    from jaxtrain.inference.predict import predict
    from jaxtrain.terminal import predictions

    sampling = Sampling(
        values.new_tokens, values.temperature, values.top_k, values.top_p, values.seed
    )
    result = predict(
        values.workdir, given.words, values.checkpoint, values.output, values.on_bad_image,
        values.top, sampling,
    )  # fmt: skip
    print(predictions(result))
