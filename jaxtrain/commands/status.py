"""Report what a run is doing, its goodput, when it will finish, and why it last stopped.

jaxtrain status --workdir=runs/alphabets/full
"""

import json

from absl.flags import FlagValues

from jaxtrain.commands import flags
from jaxtrain.commands.arguments import Arguments


def _json(values: FlagValues) -> None:
    flags.switch(values, 'json', 'print one line of JSON')


FLAGS = (flags.workdir, _json)
WORDS = ''


def run(given: Arguments) -> None:
    # Devices are not touched, so that it works while a run holds them.
    from jaxtrain.inspection import status, status_text

    result = status.status(given.flags.workdir)
    if given.flags.json:
        print(json.dumps(status_text.to_json(result)))
    else:
        print(status_text.to_text(result))
