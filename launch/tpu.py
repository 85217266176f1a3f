"""Creates a Cloud TPU slice, copies this checkout to it, trains there, and deletes the slice.

    python launch/tpu.py babysit NAME --zone=ZONE --type=v5litepod-16 --spot -- \\
        --config=configs/CONFIG.py --workdir=gs://BUCKET/RUN

Requires gcloud and Python's standard library on this machine, and no preparation of the slice
(gcloud.py makes the calls, workers.py has the scripts that run there, checkout.py packs the code).
Every command may be repeated after an interruption: it continues from the present state. The exit
codes are those of jaxtrain: 0 finished; 42 stopped early, run the same command again to resume; 2
wrong input, one line states the error; anything else is a failure that a retry does not fix.
"""

import argparse
import os
import re
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

from checkout import archive
from gcloud import AGAIN, FAILED, WRONG, Cloud, Failure, Lost, Stop, Stopped, say
from workers import (
    CHECK,
    ENDED,
    INSTALL,
    JOB,
    ROUNDS,
    START,
    STATE,
    STOP,
    answers,
    ask,
    describe,
    fleet,
    in_order,
    ssh,
)

RUNTIMES = {  # Google's table of software versions for JAX, by the prefix of the accelerator type
    'v6e-': 'v2-alpha-tpuv6e',
    'v5litepod-': 'v2-alpha-tpuv5-lite',
    'v5p-': 'v2-alpha-tpuv5',
} | dict.fromkeys(('v4-', 'v3-', 'v2-'), 'tpu-ubuntu2204-base')
NETWORKING = ('--network', '--subnetwork', '--service-account')


def create(cloud: Cloud, args: argparse.Namespace) -> None:
    """Requests the slice unless it exists or is being created, and waits until it is active.

    Raises:
      Lost: the slice that was requested here failed, or was preempted at once.
      Failure: gcloud rejected the request, or `args.wait` seconds have passed.
    """
    end = time.monotonic() + args.wait
    requested, seen = False, None
    while True:
        queued = describe(cloud, args.name, args.slices if requested else None)
        state = queued.state if queued else None
        if state != seen:
            say(f'{args.name} is {state}' if state else f'{args.name} does not exist')
        seen = state
        if state == 'ACTIVE':
            return
        if state in ENDED and requested:
            raise Lost(f'{args.name} is {state} {queued.why}'.strip())
        if time.monotonic() > end:
            raise Failure(AGAIN, f'{args.name} is {state} after {args.wait:.0f} s of waiting')
        if state in ENDED:
            if not delete(cloud, args.name):
                raise Failure(FAILED, f'{args.name} is {state} and cannot be deleted')
        elif state is None and not requested:
            # The grace lets a call complete that was just made, so that its slice is deleted.
            reply = cloud.call(*create_words(args), timeout=900, grace=60)
            if reply.code and 'ALREADY_EXISTS' not in reply.err:
                raise Failure(WRONG, reply.reason)
            requested = True
        else:
            cloud.pause(cloud.poll)


def create_words(args: argparse.Namespace) -> list[str]:
    runtime = args.version or next(
        (version for start, version in RUNTIMES.items() if args.type.startswith(start)), None
    )
    if runtime is None:
        raise Failure(WRONG, f'the runtime version for {args.type} is not known: give --version')
    many = [f'--node-count={args.slices}', f'--node-prefix={args.name}']
    words = many if args.slices > 1 else [f'--node-id={args.name}']
    words += [f'--accelerator-type={args.type}', f'--runtime-version={runtime}']
    words += [f'--{flag}' for flag in ('spot', 'reserved') if getattr(args, flag)]
    words += ['--internal-ips'] * args.internal_ip
    given = {flag: getattr(args, flag[2:].replace('-', '_')) for flag in NETWORKING}
    words += [f'{flag}={value}' for flag, value in given.items() if value]
    return ['queued-resources', 'create', args.name, *words]


def delete(cloud: Cloud, name: str) -> bool:
    """Deletes the slice, in any state, and returns whether it is gone; it need not exist."""
    words = ('queued-resources', 'delete', name, '--force')
    for attempt in range(ROUNDS):
        reply = cloud.together([words], timeout=900)[0]
        if reply.code == 0 or reply.missing:
            say(f'{name} is deleted' if reply.code == 0 else f'{name}: nothing to delete')
            return True
        say(f'{name} is not deleted yet: {reply.reason}')
        cloud.backoff(attempt)
    say(f'{name} COULD NOT BE DELETED and may still cost money: python launch/tpu.py delete')
    return False


def sync(cloud: Cloud, name: str, path: Path, digest: str) -> None:
    """Copies the archive to every worker, and verifies, unpacks and installs it there.

    Raises:
      Lost: the slice is gone.
      Failure: a worker received other bytes, or cannot install the archive.
    """
    workers = fleet(cloud, name)
    target = f'jaxtrain-{digest[:12]}.tar'
    for attempt in range(3):
        scp = ('tpu-vm', 'scp', str(path))
        where = (*cloud.reach, '--worker=all')
        calls = [[*scp, f'{node}:{target}', *where] for node in workers]
        replies = cloud.together(calls, timeout=1800)  # the workers' answers decide
        got = ask(cloud, name, workers, CHECK, f'same {digest}', archive=target, sha=digest)
        bad = [host for (_, host), words in got.items() if words != ['same', digest]]
        if not bad:
            break
        why = next((reply.reason for reply in replies if reply.code), 'the sha256 is wrong')
        say(f'the archive arrived damaged on {", ".join(bad)}: {why}')
        cloud.backoff(attempt)
    else:
        raise Failure(FAILED, f'the archive does not reach {", ".join(bad)}: {why}')
    got = ask(cloud, name, workers, INSTALL, 'installed', archive=target, sha=digest)
    for (_, host), words in got.items():
        if words[:1] not in (['installed'], ['already']):
            raise Failure(FAILED, f'{host} cannot install the code: {" ".join(words[1:])}')
    say(f'{len(got)} workers have the code')


def run(cloud: Cloud, name: str, words: list[str], env: list[str]) -> int:
    """Starts `jaxtrain train` on every worker unless it is running, and waits until it ends.

    Returns:
      The combined exit code.
    Raises:
      Lost: the slice is gone, or a process ended without an exit code.
      Failure: the code is not installed there.
    """
    workers = fleet(cloud, name)
    job = JOB % (shlex.join(env), shlex.join(words))
    states = [state for state, *_ in ask(cloud, name, workers, STATE, 'none -', name=name).values()]
    if set(states) == {'alive'}:
        say(f'{name} is already running; waiting for it')
    else:
        values = {'name': name, 'job': job, 'join': 'yes' if 'alive' in states else 'no'}
        values['token'] = secrets.token_hex(8)  # a repeated request starts nothing twice
        got = ask(cloud, name, workers, START, 'started', **values)
        bad = [host for (_, host), (state, *_) in got.items() if state in ('missing', 'failed')]
        if bad:
            raise Failure(WRONG, f'{", ".join(bad)}: the code is not installed; run sync first')
        say(f'{name} started on {len(got)} workers')
    while True:
        got = ask(cloud, name, workers, STATE, 'exit 0', name=name)
        for (_, host), (state, *_) in got.items():
            if state in ('dead', 'none'):
                raise Lost(f'{host}: the run ended without an exit code')
        if all(state == 'exit' for state, *_ in got.values()):
            break
        cloud.pause(cloud.poll)
    for (_, host), (_, code, *last) in got.items():
        if code != '0':
            say(f'{host} ended with exit code {code}: {" ".join(last)}')
    return combined([int(code) for _, code, *_ in got.values()])


def combined(codes: list[int]) -> int:
    """One exit code for all workers: 2 if any has it, else that of a crash, else 42, else 0."""
    fatal = [code for code in codes if code not in (0, AGAIN)]
    return (WRONG if WRONG in fatal else fatal[0]) if fatal else max(codes)


def status(cloud: Cloud, name: str) -> None:
    """Prints the state of the slice, and a row for each worker."""
    queued = describe(cloud, name)
    print(*([name, queued.state, queued.why] if queued else [name, 'does not exist']))
    if queued is None or queued.state != 'ACTIVE':
        return
    for node, count in fleet(cloud, name).items():
        reply = cloud.together(
            [ssh(cloud, node, STATE, name=name)], 'jaxtrain-answer worker none -'
        )[0]
        got = answers(node, reply)
        for (_, host), (state, code, *last) in in_order(got).items():
            print(f'{host:24} {state:6} {code:>4}  {" ".join(last)}')
        if len(got) < count:
            print(f'{node:24} {count - len(got)} of {count} workers did not answer')


def logs(cloud: Cloud, name: str, worker: int, follow: bool) -> int:
    """Prints the end of a worker's log; workers are numbered through all slices."""
    workers = {name: worker + 1} if cloud.dry else fleet(cloud, name)
    for node, count in workers.items():
        if worker < count:
            script = f'exec tail -n 100 {"-F " * follow}"jaxtrain-runs/$name/log"'
            call = ssh(cloud, node, script, str(worker), name=name)
            timeout = float('inf') if follow else 300
            return cloud.together([call], timeout=timeout, capture=False)[0].code
        worker -= count
    raise Failure(WRONG, f'--worker is too large: {name} has {sum(workers.values())} workers')


def stop(cloud: Cloud, name: str) -> None:
    """Asks the run to save its state and exit with code 42."""
    got = ask(cloud, name, fleet(cloud, name), STOP, 'stopping', name=name)
    stopping = sum(words == ['stopping'] for words in got.values())
    say(f'{name}: {stopping} of {len(got)} workers had a run and are stopping it')


def babysit(cloud: Cloud, args: argparse.Namespace, path: Path, digest: str) -> int:
    """Creates, syncs and runs, on a new slice after a preemption; deletes the slice at the end."""
    clean = args.keep
    if not any('gs://' in word for word in args.words):
        say('no argument is a gs:// folder: what is saved on the slice is deleted with it')
    try:
        for attempt in range(max(args.retries, 0) + 1):
            if attempt:
                seconds = min(args.backoff * 2 ** (attempt - 1), 600)
                say(f'retry {attempt} of {args.retries} in {seconds:g} s, on a new slice')
                delete(cloud, args.name)
                cloud.pause(seconds)
            try:
                create(cloud, args)
                sync(cloud, args.name, path, digest)
                code = run(cloud, args.name, args.words, args.env)
            except Lost as lost:
                say(str(lost))
                code = AGAIN
            if code != AGAIN:
                break
        else:
            say(f'stopped early, and all {args.retries} retries are used up')
    finally:
        if not args.keep:
            cloud.stop.shield = f'deleting {args.name}: wait for it, otherwise it still costs money'
            say(f'deleting {args.name}')
            clean = delete(cloud, args.name)
    return code or (0 if clean else FAILED)


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog='tpu.py', description=__doc__, formatter_class=raw)
    commands = top.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def matching(pattern: str, what: str):
        def check(word: str) -> str:
            if not re.fullmatch(pattern, word):
                raise argparse.ArgumentTypeError(f'{word!r} is not {what}')
            return word

        return check

    def command(name: str, about: str, words: bool = False):
        usage = f'%(prog)s NAME [flags]{" -- ARGUMENTS OF jaxtrain train" * words}'
        sub = commands.add_parser(name, help=about, description=about, usage=usage)
        add = sub.add_argument
        named = matching('[a-z]([a-z0-9-]{0,60}[a-z0-9])?', 'lower-case letters, digits, hyphens')
        add('name', type=named, metavar='NAME', help='name of the slice, and of its run')
        add('--zone', help="default: gcloud's own")
        add('--project', help="default: gcloud's own")
        add('--internal-ip', action='store_true', help='use only internal IP addresses')
        add('--dry-run', action='store_true', help='print the calls of gcloud, but make none')
        if words:
            pair = dict(type=matching(r'[A-Za-z_]\w*=(.|\n)*', 'KEY=VALUE'), metavar='KEY=VALUE')
            add('--env', action='append', default=[], help='for jaxtrain; may be repeated', **pair)
        return add

    def creates(add) -> None:
        add('--type', required=True, help='accelerator type, such as v5litepod-16')
        add('--version', help='software version; default: by --type')
        add('--spot', action='store_true', help='preemptible; default: on demand')
        add('--reserved', action='store_true', help='use a reservation')
        add('--slices', type=int, default=1, help='number of slices; default: 1')
        add('--wait', type=float, default=86400, help='seconds to wait for it; default: a day')
        for flag in NETWORKING:
            add(flag, help="default: the project's")

    creates(command('create', 'requests a slice and waits until it is active'))
    command('sync', 'copies this checkout, with its local changes, to every worker and installs it')
    command('run', 'trains on every worker and waits; the run outlives this program', words=True)
    command('status', 'prints the state of the slice and of each worker')
    add = command('logs', "prints the end of a worker's log")
    add('--worker', type=int, default=0, help='counted through all slices; default: 0')
    add('--follow', action='store_true', help='print new lines until Ctrl-C')
    command('stop', 'asks the run to save its state and end')
    command('delete', 'deletes the slice')
    add = command('babysit', 'creates, syncs, runs; again after preemption; deletes', words=True)
    creates(add)
    add('--retries', type=int, default=10, help='new slices at most; default: 10')
    add('--backoff', type=float, default=30, help='seconds before a retry, doubled; default: 30')
    add('--keep', action='store_true', help='do not delete the slice at the end')
    return top


def execute(cloud: Cloud, args: argparse.Namespace) -> int:
    if args.command in ('run', 'babysit') and not args.words:
        raise Failure(WRONG, f'{args.command} requires the arguments of `jaxtrain train` after --')
    if getattr(args, 'spot', False) and args.reserved:
        raise Failure(WRONG, 'a slice is either --spot or --reserved')
    if not cloud.dry and shutil.which('gcloud') is None:
        raise Failure(WRONG, 'gcloud is not on PATH: install the Google Cloud CLI')
    if cloud.dry:
        say('dry run: no call is made')
    cloud.stop.install()
    with tempfile.TemporaryDirectory() as folder:
        if args.command in ('sync', 'babysit'):
            # Packed once, before anything costs money, so that a later slice gets the same code.
            packed = archive(Path(folder))
        match args.command:
            case 'create':
                create(cloud, args)
            case 'sync':
                sync(cloud, args.name, *packed)
            case 'run':
                return run(cloud, args.name, args.words, args.env)
            case 'status':
                status(cloud, args.name)
            case 'logs':
                return logs(cloud, args.name, args.worker, args.follow)
            case 'stop':
                stop(cloud, args.name)
            case 'delete':
                return 0 if delete(cloud, args.name) else FAILED
            case 'babysit':
                return babysit(cloud, args, *packed)
    return 0


def main(argv: list[str]) -> int:
    """Runs one command and returns its exit code."""
    split = argv.index('--') if '--' in argv else len(argv)
    args = parser().parse_args(argv[:split])
    args.words = argv[split + 1 :]
    where = [f'--{key}={value}' for key in ('zone', 'project') if (value := getattr(args, key))]
    poll = float(os.environ.get('JAXTRAIN_LAUNCH_POLL', 15))
    reach = ('--internal-ip',) * args.internal_ip
    cloud = Cloud((*where, '--quiet'), reach, poll, args.dry_run, Stop())
    try:
        return execute(cloud, args)
    except Failure as failure:
        say(str(failure))
        return failure.code
    except Stopped:
        if args.command in ('create', 'run'):
            say(f'{args.name} continues there: run the same command to wait for it again')
        return 128 + cloud.stop.number


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
