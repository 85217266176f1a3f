"""What a run prints before its first compile and at its end."""

import json
from typing import Any

from jaxtrain.loop.job import Job
from jaxtrain.loop.session import Session
from jaxtrain.params.table import COLUMNS, short_text
from jaxtrain.terminal import Terminal, number
from jaxtrain.weights.bundle import TOKENIZER


def describe(job: Job, session: Session) -> None:
    """Writes and prints the parameter table and the restore plan, before the first compile."""
    folder, terminal = session.folder, session.terminal
    rows, sizes = job.table(), job.sizes()
    if not job.start.resumes:
        folder.write_table('params.tsv', COLUMNS, rows)
        if job.train.tokenizer:
            folder.write_bytes(TOKENIZER, job.train.tokenizer.definition.encode())
    if job.start.plan:
        folder.write_json('restore.json', job.start.plan.to_json())
    terminal.say(short_text(rows))
    terminal.say(
        f'{job.regime}: trains {sizes["params_trainable"]:,} of {sizes["params_total"]:,} '
        f'parameters, optimizer {sizes["opt_state_bytes"]:,} bytes, '
        f'{len(job.train):,} examples, {job.steps:,} steps on {job.layout.mesh.size} device(s)'
    )
    if skipped := job.train.skipped:
        terminal.say(
            f'left out {len(skipped)} images that cannot be read: {", ".join(skipped[:3])}'
            f'{" ..." if len(skipped) > 3 else ""}'
        )
    if cut := job.train.cut:
        terminal.say(f'truncated {cut:,} texts that are longer than {job.train.shape[0]} tokens')
    if plan := job.start.plan:
        terminal.say(plan.summary())
        if assumed := plan.stored.assumed:
            terminal.say(f'assumed, since no file states it: {"; ".join(assumed)}')
    for remark in job.remarks:
        terminal.say(remark)
    if session.clock.step:
        terminal.say(f'resumes after step {session.clock.step}')


def say_result(result: dict[str, Any], terminal: Terminal) -> None:
    """Prints the metrics and the seconds by phase."""
    for split, values in result['metrics'].items():
        metrics = ', '.join(f'{name} {number(value)}' for name, value in values.items())
        terminal.say(f'{split} at step {result["best_step"]}: {metrics}')
    seconds = {k: round(v, 1) for k, v in result['seconds'].items()}
    terminal.say(f'seconds: {json.dumps(seconds)[1:-1].replace(chr(34), "")}')
