"""Say what a run is doing, how its time was spent, when it is done and why it stopped.

jaxtrain status --workdir=runs/alphabets/full
"""

import json

from absl.flags import FlagValues

from jaxtrain.commands import flags
from jaxtrain.commands.arguments import Arguments


def _json(values: FlagValues) -> None:
    flags.switch(values, 'json', 'one line of JSON, for programs')


FLAGS = (flags.workdir, _json)
WORDS = ''


def run(given: Arguments) -> None:
    # Without JAX, so that it answers at once, and beside a run that holds the devices.
    from jaxtrain.inspection import status, status_text

    found = status.status(given.flags.workdir)
    if given.flags.json:
        print(json.dumps(status_text.to_json(found)))
    else:
        print(status_text.to_text(found))
