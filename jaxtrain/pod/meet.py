"""Connects the processes of a run before JAX starts, and checks that they run the same.

Each process connects to process 0 and sends what it is about to run. The port is that of JAX's own
coordinator, which takes it over once all processes have connected; the connections stay open, and
peers.py watches them.
"""

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxtrain.errors import Preempted, UserError
from jaxtrain.pod.link import SENDING, Link, configured
from jaxtrain.pod.peers import Peers
from jaxtrain.pod.place import Place

VERSION = 'jaxtrain-1'
# Seconds to wait, after an error, for processes that connect later, so that they get its message.
LATE = 5.0


def meet(
    place: Place,
    facts: Mapping[str, Any],
    timeout: float,
    stopped: Callable[[], bool] = lambda: False,
) -> Peers:
    """Waits for all processes of a run, and checks that they run the same.

    Args:
      place: the place of this process.
      facts: what must be the same on all processes, JSON values by name.
      timeout: seconds to wait for all processes to connect.
      stopped: () -> whether to stop waiting.

    Raises:
      UserError: processes differ, two have the same number, or another program uses the port.
      Preempted: not all connected in time, or this process was asked to stop.
    """
    if place.processes == 1:
        return Peers(place, [])
    facts = json.loads(json.dumps(facts))
    connect = _join if place.process else _gather
    return Peers(place, connect(place, facts, timeout, _stop_check(stopped)))


def _gather(
    place: Place, facts: Mapping[str, Any], timeout: float, check_stopped: Callable[[], None]
) -> list[Link]:
    """The links from process 0 to all others."""
    deadline = time.monotonic() + timeout
    links: dict[int, Link] = {}
    refused: list[Link] = []
    expected, problem, code = place.processes, '', UserError.exit_code
    with _listen(place) as server, selectors.DefaultSelector() as ready:
        ready.register(server, selectors.EVENT_READ)
        while len(links) + len(refused) < expected - 1 and time.monotonic() < deadline:
            check_stopped()
            for link, greeting in _greetings(server, ready):
                if greeting is None:
                    if links.get(link.process) is link:  # it may connect again
                        del links[link.process]
                elif objection := (
                    _misplaced(place, links, link, greeting['processes'])
                    or _differing(facts, link, greeting['facts'])
                ):
                    refused.append(link)
                    problem = problem or objection
                    expected = max(expected, greeting['processes'])
                    # Processes that connect a little later get the message too.
                    deadline = min(deadline, time.monotonic() + LATE)
                else:
                    links[link.process] = link
    missing = [str(n) for n in range(1, place.processes) if n not in links]
    if missing and not problem:
        code = Preempted.exit_code
        problem = (
            f'{"processes" if len(missing) > 1 else "process"} {_some(missing)} of '
            f'{place.processes} did not connect to {place.coordinator} within {timeout:.0f} s'
        )
    if problem:
        for link in (*links.values(), *refused):
            link.send(error=problem, code=code)
        raise _error(problem, code)
    for link in links.values():
        link.heard = time.monotonic()
        link.send(welcome=VERSION, host=socket.gethostname())
    return [links[n] for n in sorted(links)]


def _greetings(
    server: socket.socket, ready: selectors.BaseSelector
) -> Iterator[tuple[Link, dict[str, Any] | None]]:
    """Yields the processes that send a greeting now, with it; with None, one that is gone.

    Any other program may connect as well. Its connection stays open until it sends something, and
    delays nothing.
    """
    for key, _ in ready.select(0.2):
        link: Link = key.data
        if not link:
            with contextlib.suppress(OSError):  # the connection is closed already
                link = Link(server.accept()[0], -1)
                ready.register(configured(link).socket, selectors.EVENT_READ, link)
            continue
        try:
            messages = link.receive()
        except ValueError:
            messages = None
        known = link.process >= 0
        if messages is None or (messages and not known and messages[0].get('hello') != VERSION):
            ready.unregister(link.socket)
            link.socket.close()
            yield link, None
        elif messages and not known:
            link.process, link.host = messages[0]['process'], messages[0]['host']
            yield link, messages[0]


def _misplaced(place: Place, links: Mapping[int, Link], link: Link, processes: int) -> str:
    """What is wrong with the place of a process, which expects `processes`; '' if nothing is."""
    if processes != place.processes or not 0 < link.process < place.processes:
        return (
            f'{link} expects {processes} processes, but process 0 expects '
            f'{place.processes}; start all with the same --processes'
        )
    if link.process in links:
        return (
            f'process {link.process} was started twice, on {links[link.process].host} and '
            f'{link.host}; start each process with a different --process'
        )
    return ''


def _differing(facts: Mapping[str, Any], link: Link, others: Mapping[str, Any]) -> str:
    """How the facts of a process differ from those of process 0; '' if they do not."""
    differing = [key for key in {**facts, **others} if facts.get(key) != others.get(key)]
    if not differing:
        return ''
    differences = '; '.join(
        f'{key} is {others.get(key)!r} there and {facts.get(key)!r} on process 0'
        for key in differing[:3]
    )
    more = f' and {len(differing) - 3} more' if len(differing) > 3 else ''
    return f'{link} differs: {differences}{more}; start all with the same code and config'


def _join(
    place: Place, facts: Mapping[str, Any], timeout: float, check_stopped: Callable[[], None]
) -> list[Link]:
    """The link from another process to process 0."""
    deadline, connection = time.monotonic() + timeout, None
    while connection is None:
        check_stopped()
        try:
            connection = socket.create_connection(place.address, timeout=5)
        except OSError as error:
            if time.monotonic() > deadline:
                raise Preempted(
                    f'process {place.process} could not reach process 0 at {place.coordinator} '
                    f'within {timeout:.0f} s ({error}); check that it runs and the port is open'
                ) from error
            time.sleep(0.2)
    link = Link(connection, 0, place.address[0])
    link.send(
        hello=VERSION, process=place.process, processes=place.processes,
        host=socket.gethostname(), facts=facts,
    )  # fmt: skip
    connection.settimeout(0.2)
    foreign = UserError(f'a program other than jaxtrain answers at {place.coordinator}')
    while True:
        check_stopped()
        try:
            answers = link.receive()
        except ValueError:
            raise foreign from None
        if answers is None:
            raise Preempted(f'process 0 at {place.coordinator} ended before all had connected')
        # Process 0 reports which processes are missing; it may have started later than this one.
        if not answers and time.monotonic() > deadline + timeout + SENDING:
            raise Preempted(f'process 0 at {place.coordinator} does not answer')
        if answers:
            break
    answer, *link.early = answers
    if 'error' in answer:
        raise _error(answer['error'], answer['code'])
    if answer.get('welcome') != VERSION:
        raise foreign
    link.host = answer['host']
    return [configured(link)]


def _listen(place: Place) -> socket.socket:
    host, port = place.address
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(('', port), family=family, dualstack_ipv6=dual, backlog=1024)
    except OSError as error:
        raise UserError(
            f'port {port} of {host} cannot be used ({error.strerror}); '
            'choose another port, the same for all processes'
        ) from error


def _stop_check(stopped: Callable[[], bool]) -> Callable[[], None]:
    def check_stopped() -> None:
        if stopped():
            raise Preempted('stopped while waiting for the other processes')

    return check_stopped


def _error(problem: str, code: int) -> Exception:
    return (UserError if code == UserError.exit_code else Preempted)(problem)


def _some(names: list[str]) -> str:
    return ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '')
