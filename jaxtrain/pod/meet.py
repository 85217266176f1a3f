"""The processes of a run meet before JAX starts, and agree on what they run.

Each connects to process 0 and greets it with what it is about to run. The port is that of JAX's own
coordinator, which takes it over once all are there; the connections stay, for peers.py to watch.
"""

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxtrain.errors import Preempted, UserError
from jaxtrain.pod.link import SENDING, Link, settled
from jaxtrain.pod.peers import Peers
from jaxtrain.pod.place import Place

VERSION = 'jaxtrain-1'
# Seconds for those that come a little later, to be told why all end.
LATE = 5.0


def meet(
    place: Place,
    facts: Mapping[str, Any],
    timeout: float,
    stopped: Callable[[], bool] = lambda: False,
) -> Peers:
    """Waits for all processes of a run, and checks that they are about to do the same.

    Args:
      place: of this process.
      facts: what must be the same everywhere, JSON values by name.
      timeout: seconds to wait for all to be there.
      stopped: whether to give up.

    Raises:
      UserError: processes that differ, two with one number, or a port that something else uses.
      Preempted: not all were there in time, or this one was asked to stop.
    """
    if place.processes == 1:
        return Peers(place, [])
    facts = json.loads(json.dumps(facts))
    deadline = time.monotonic() + timeout
    give_up = _giver_up(stopped)
    links = (_join if place.process else _gather)(place, facts, deadline, timeout, give_up)
    return Peers(place, links)


def _gather(
    place: Place, facts: Mapping[str, Any], deadline: float, timeout: float, give_up: Callable
) -> list[Link]:
    """On process 0: the links to all others."""
    links: dict[int, Link] = {}
    refused: list[Link] = []
    expected, problem, code = place.processes, '', UserError.exit_code
    with _listen(place) as door, selectors.DefaultSelector() as ready:
        ready.register(door, selectors.EVENT_READ)
        while len(links) + len(refused) < expected - 1 and time.monotonic() < deadline:
            give_up()
            for link, greeting in _comers(door, ready):
                if greeting is None:
                    if links.get(link.process) is link:  # it may come again
                        del links[link.process]
                elif objection := _objection(place, facts, links, link, greeting):
                    refused.append(link)
                    problem = problem or objection
                    expected = max(expected, greeting['processes'])
                    # Those that come a little later shall know it as well.
                    deadline = min(deadline, time.monotonic() + LATE)
                else:
                    links[link.process] = link
    missing = [str(n) for n in range(1, place.processes) if n not in links]
    if missing and not problem:
        code = Preempted.exit_code
        problem = (
            f'of {place.processes} processes {_some(missing)} did not come within {timeout:.0f} s '
            f'to {place.coordinator}'
        )
    if problem:
        for link in (*links.values(), *refused):
            link.send(error=problem, code=code)
        raise _error(problem, code)
    for link in links.values():
        link.heard = time.monotonic()
        link.send(welcome=VERSION, host=socket.gethostname())
    return [links[n] for n in sorted(links)]


def _comers(
    door: socket.socket, ready: selectors.BaseSelector
) -> Iterator[tuple[Link, dict[str, Any] | None]]:
    """The processes that greet within a moment, with their greeting; None for one that is gone.

    What else connects is left where it is until it speaks, and holds nobody up.
    """
    for key, _ in ready.select(0.2):
        link: Link = key.data
        if not link:
            with contextlib.suppress(OSError):  # it is gone again
                link = Link(door.accept()[0], -1)
                ready.register(settled(link).socket, selectors.EVENT_READ, link)
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


def _objection(
    place: Place, facts: Mapping[str, Any], links: Mapping[int, Link], link: Link, greeting: dict
) -> str:
    """What speaks against a process that has come; '' if nothing does."""
    if greeting['processes'] != place.processes or not 0 < link.process < place.processes:
        return (
            f'{link} says that it is one of {greeting["processes"]} processes, and process 0 that '
            f'there are {place.processes}; start all with the same --processes'
        )
    if link.process in links:
        return (
            f'there are two of process {link.process}, on {links[link.process].host} and '
            f'{link.host}; start each with its own --process'
        )
    theirs = greeting['facts']
    differing = [key for key in {**facts, **theirs} if facts.get(key) != theirs.get(key)]
    if not differing:
        return ''
    said = '; '.join(
        f'{key} is {theirs.get(key)!r} there and {facts.get(key)!r} on process 0'
        for key in differing[:3]
    )
    more = f' and {len(differing) - 3} more' if len(differing) > 3 else ''
    return f'{link} differs: {said}{more}; start all with the same code and config'


def _join(
    place: Place, facts: Mapping[str, Any], deadline: float, timeout: float, give_up: Callable
) -> list[Link]:
    """On the other processes: the link to process 0."""
    connection = None
    while connection is None:
        give_up()
        try:
            connection = socket.create_connection(place.address, timeout=5)
        except OSError as error:
            if time.monotonic() > deadline:
                raise Preempted(
                    f'process {place.process} could not reach process 0 at {place.coordinator} '
                    f'within {timeout:.0f} s ({error}); is it running, and the port open?'
                ) from error
            time.sleep(0.2)
    link = Link(connection, 0, place.address[0])
    link.send(
        hello=VERSION, process=place.process, processes=place.processes,
        host=socket.gethostname(), facts=facts,
    )  # fmt: skip
    connection.settimeout(0.2)
    stranger = UserError(f'something else than jaxtrain answers at {place.coordinator}')
    while True:
        give_up()
        try:
            answers = link.receive()
        except ValueError:
            raise stranger from None
        if answers is None:
            raise Preempted(f'process 0 at {place.coordinator} went away before all were there')
        # Process 0 says who is missing; it may have started later than this one.
        if not answers and time.monotonic() > deadline + timeout + SENDING:
            raise Preempted(f'process 0 at {place.coordinator} does not answer')
        if answers:
            break
    answer, *link.early = answers
    if 'error' in answer:
        raise _error(answer['error'], answer['code'])
    if answer.get('welcome') != VERSION:
        raise stranger
    link.host = answer['host']
    return [settled(link)]


def _listen(place: Place) -> socket.socket:
    host, port = place.address
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(('', port), family=family, dualstack_ipv6=dual, backlog=1024)
    except OSError as error:
        raise UserError(
            f'port {port} of {host} cannot be used ({error.strerror}); '
            'choose another, the same for all processes'
        ) from error


def _giver_up(stopped: Callable[[], bool]) -> Callable[[], None]:
    def give_up() -> None:
        if stopped():
            raise Preempted('stopped while waiting for the other processes')

    return give_up


def _error(problem: str, code: int) -> Exception:
    return (UserError if code == UserError.exit_code else Preempted)(problem)


def _some(names: list[str]) -> str:
    return ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '')
