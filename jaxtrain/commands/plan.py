"""Estimate memory, operations, communication, time and cost of a config; train nothing.

jaxtrain plan --config=configs/full/imagenet_vit_s16.py --topology=v5e:4x4
"""

import json
import sys
from typing import Any

from absl.flags import FlagValues

from jaxtrain.commands import flags
from jaxtrain.commands.arguments import Arguments
from jaxtrain.commands.start import load_run, start_jax
from jaxtrain.errors import UserError


def _devices(values: FlagValues) -> None:
    flags.string(values, 'topology', '', "TPU slice, such as 'v5e:4x4'; empty for these devices")
    flags.integer(values, 'slices', 1, 'number of slices')
    flags.number(values, 'price', 0.0, 'price of a device-hour, for the cost')
    text = 'search meshes, accumulation, remat and batches for the fastest that fits'
    flags.switch(values, 'suggest', text)
    flags.string(values, 'output', 'plan.json', 'file to write')


FLAGS = (flags.config, _devices)
WORDS = ''


def run(given: Arguments) -> None:
    values = given.flags
    cfg = load_run(given)
    start_jax()
    from jaxtrain.inspection import plan, plan_text, suggest, suggest_text

    target = plan.find_target(values.topology, values.slices, values.price)
    result = plan.plan(cfg, target, _progress)
    content = plan_text.to_json(result)
    print(plan_text.to_text(result))
    if values.suggest:
        suggestion = suggest.suggest(cfg, target, _progress)
        content['suggest'] = suggest_text.to_json(suggestion)
        print(f'\n{suggest_text.to_text(suggestion)}')
    _write(values.output, content)


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _write(path: str, value: dict[str, Any]) -> None:
    """Writes a JSON file that the user has named. UserError if that cannot be done."""
    from jaxtrain import storage

    try:
        storage.write(storage.path(path), (json.dumps(value, indent=2) + '\n').encode())
    except OSError as error:
        raise UserError(
            f'--output={path} cannot be written ({error.strerror}); name another file'
        ) from error
