"""An in-memory fake of Google Cloud Storage, for tests of `gs://` paths without a network.

It serves the part of the JSON API that is used by gcsfs (under fsspec and `etils.epath`),
TensorStore's gcs driver and google-cloud-storage (which Orbax asks for the type of a bucket). As in
the real service, an object appears as a whole or not at all, listings are up to date at once, and
folders do not exist, only names with slashes.
"""

import itertools
import json
import re
import sys
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote, urlsplit

# Generations only increase, as in the service.
_GENERATIONS = itertools.count(1_700_000_000_000_000)
_CHUNK = 2**18  # Every chunk of an upload except the last must be a multiple of this.
_PAGE = 1000  # The maximum number of entries in a page of a listing.

# Status, headers and body.
Answer = tuple[int, dict[str, str], bytes]


class Stored(bytes):
    """The bytes of an object, with its `generation`, `metageneration`, `time` and `about`."""

    def __new__(cls, data: bytes, about: dict | None = None):
        stored = super().__new__(cls, data)
        stored.about = {'contentType': 'application/octet-stream'} | (about or {})
        stored.generation, stored.metageneration = next(_GENERATIONS), 1
        stored.time = datetime.now(UTC).strftime('%Y-%m-%dT%H:%M:%S.%fZ')
        return stored


class _Objects(dict):
    """(bucket, name) -> Stored; converts plain bytes that a test assigns."""

    def __setitem__(self, key: tuple[str, str], data: bytes) -> None:
        super().__setitem__(key, data if isinstance(data, Stored) else Stored(data))


class _Refusal(Exception):
    """The status and message of an error."""


class FakeGcs:
    """A server with empty buckets; `with FakeGcs() as gcs:` runs it until the block ends.

    The process of a client must have `gcs.environment` set before it imports anything.

    Attributes:
      url: the address of the server, 'http://127.0.0.1:PORT'.
      buckets: the names of the buckets; 'bucket' by default.
      objects: the stored objects, {(bucket, name): Stored}; a test may change them.
      requests: the requests in order: (method, path and query without escapes). For an object that
        is uploaded in one body with its metadata, its name is added to the query.
    """

    def __init__(self, *buckets: str):
        self.buckets = set(buckets or ['bucket'])
        self.objects, self.requests = _Objects(), []
        self._failures, self._uploads, self._lock = [], {}, threading.Lock()
        self._server = _Server(('127.0.0.1', 0), _Handler)
        self._server.answer = self._answer
        self.url = f'http://127.0.0.1:{self._server.server_port}'

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that direct every client to this server, without credentials."""
        return {
            # gcsfs and google-cloud-storage; the latter then uses no credentials.
            'STORAGE_EMULATOR_HOST': self.url,
            'FSSPEC_GCS_TOKEN': 'anon',
            # Otherwise gcsfs asks for the type of each bucket over gRPC, which is not served here,
            # and waits for a minute each time.
            'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
            # epath prefers TensorFlow if it is installed, which uses the real service.
            'EPATH_USE_TF': 'false',
            'TENSORSTORE_GCS_HTTP_URL': self.url,
            # TensorStore searches for credentials in a file, in gcloud's folder, and on the
            # machine's metadata server: this one, which has none. It then uses no credentials.
            'GOOGLE_APPLICATION_CREDENTIALS': '',
            'CLOUDSDK_CONFIG': '/nonexistent',
            'GCE_METADATA_ROOT': self.url.removeprefix('http://'),
            # A proxy would be used for 127.0.0.1 as well.
            'no_proxy': '127.0.0.1',
        }

    def fail(self, pattern: str, times: int, status: int = 503) -> None:
        """Makes the next `times` requests that match return this status and do nothing else.

        Args:
          pattern: regular expression, searched for in 'METHOD PATH' with PATH as in `requests`.
          times: the number of requests that fail.
          status: the HTTP status.
        """
        self._failures.append([re.compile(pattern), times, status])

    def _answer(self, method: str, target: str, headers, body: bytes) -> Answer:
        """Answers one request at a time, so that each is atomic."""
        url = urlsplit(target)
        query, about = dict(parse_qsl(url.query, keep_blank_values=True)), {}
        if query.get('uploadType') == 'multipart':
            about, body = _split(headers, body)
            query['name'] = about['name']
        asked = '&'.join(f'{key}={value}' for key, value in query.items())
        asked = unquote(url.path) + (asked and f'?{asked}')
        area, _, place = url.path.partition('storage/v1/b/')
        # Names of buckets and objects are escaped: the remaining slashes belong to the API.
        bucket, *path = [unquote(part) for part in place.split('/')]
        with self._lock:
            self.requests.append((method, asked))
            try:
                for failure in self._failures:
                    if failure[1] and failure[0].search(f'{method} {asked}'):
                        failure[1] -= 1
                        raise _Refusal(failure[2], 'this request is set to fail')
                if 'Authorization' in headers:
                    raise _Refusal(401, 'a client of this server must not use credentials')
                if bucket not in self.buckets:
                    raise _Refusal(404, f'no such bucket: {bucket!r}')
                if area == '/upload/':
                    return self._upload(method, bucket, query, headers, about, body)
                query |= {'alt': 'media'} if area == '/download/' else {}
                return self._route(method, bucket, path, query, headers)
            except _Refusal as e:
                status, message = e.args
                error = {'error': {'code': status, 'message': message}}
                return status, {}, b'' if status == 304 else json.dumps(error).encode()

    def _route(self, method: str, bucket: str, path: list[str], query: dict, headers) -> Answer:
        """Answers all requests but uploads."""
        match method, *path:
            case ['GET']:
                return _json({'kind': 'storage#bucket', 'id': bucket, 'name': bucket})
            case 'GET', 'o':
                return self._list(bucket, query)
            case 'GET', 'o', name:
                stored = self._find(bucket, name, query)
                if query.get('alt') == 'media':
                    return _media(stored, headers.get('Range', ''))
                return _json(self._resource(bucket, name))
            case 'DELETE', 'o', name:
                self._find(bucket, name, query)
                del self.objects[bucket, name]
                return 204, {}, b''
            case 'POST', 'o', name, 'moveTo', 'o', to:
                stored = self._find(bucket, name, query, source='Source')
                resource = self._insert(bucket, to, query, stored.about, stored)
                del self.objects[bucket, name]
                return _json(resource)
            case 'POST', 'o', name, 'copyTo' | 'rewriteTo' as way, 'b', other, 'o', to:
                stored = self._find(bucket, name, query, source='Source')
                resource = self._insert(other, to, query, stored.about, stored)
                return _json(resource if way == 'copyTo' else {'done': True, 'resource': resource})
        raise _Refusal(404, 'not served here')

    def _find(self, bucket: str, name: str, query: dict, source: str = '') -> Stored:
        """The object with a name, if the preconditions and the generation of the request match."""
        stored = self.objects.get((bucket, name))
        _check(stored, query, source)
        generation = query.get('sourceGeneration' if source else 'generation')
        if stored is None or generation not in (None, str(stored.generation)):
            raise _Refusal(404, f'No such object: {bucket}/{name}')
        return stored

    def _insert(self, bucket: str, name: str, query: dict, about: dict, data: bytes) -> dict:
        _check(self.objects.get((bucket, name)), query)
        self.objects[bucket, name] = Stored(data, about)
        return self._resource(bucket, name)

    def _resource(self, bucket: str, name: str) -> dict:
        """An object's metadata."""
        stored = self.objects[bucket, name]
        where = {'kind': 'storage#object', 'bucket': bucket, 'name': name, 'size': str(len(stored))}
        version = {key: str(getattr(stored, key)) for key in ('generation', 'metageneration')}
        return (
            stored.about | where | version | dict.fromkeys(['timeCreated', 'updated'], stored.time)
        )

    def _list(self, bucket: str, query: dict) -> Answer:
        """A page of a bucket's objects; names with the delimiter are grouped by prefix."""
        prefix, delimiter = query.get('prefix', ''), query.get('delimiter', '')
        start, end = query.get('startOffset', ''), query.get('endOffset', '')
        entries = {}  # In order: an object's name or a prefix -> the object or None.
        for name in sorted(name for place, name in self.objects if place == bucket):
            if name.startswith(prefix) and start <= name and (not end or name < end):
                cut = name.find(delimiter, len(prefix)) if delimiter else -1
                entry = name if cut < 0 else name[: cut + len(delimiter)]
                if entry > query.get('pageToken', ''):
                    entries[entry] = None if cut >= 0 else self._resource(bucket, name)
        page = list(entries)[: min(int(query.get('maxResults', _PAGE)), _PAGE)]
        answer = {
            'kind': 'storage#objects',
            'items': [entries[entry] for entry in page if entries[entry]],
            'prefixes': [entry for entry in page if not entries[entry]],
        }
        return _json(answer | ({'nextPageToken': page[-1]} if len(page) < len(entries) else {}))

    def _upload(self, method: str, bucket: str, query: dict, headers, about: dict, body) -> Answer:
        """Inserts an object: in one request, or in a first request and others with chunks."""
        upload = query.get('upload_id')
        if upload is None and query['uploadType'] != 'resumable':
            return _json(self._insert(bucket, query['name'], query, about, body))
        if upload is None:
            about, upload = json.loads(body or '{}'), str(next(_GENERATIONS))
            name = query.get('name') or about['name']
            self._uploads[upload] = name, query, about, bytearray()
            where = f'{self.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable'
            return 200, {'Location': f'{where}&name={quote(name)}&upload_id={upload}'}, b''
        if upload not in self._uploads:
            raise _Refusal(404, 'no such upload')
        if method == 'DELETE':
            del self._uploads[upload]
            return 499, {}, b''
        name, begun, about, data = self._uploads[upload]
        # 'bytes 0-5/*' continues, 'bytes 6-9/10' ends, and so does 'bytes */10' after 10 bytes.
        span = headers.get('Content-Range', f'bytes 0-/{len(body)}')
        first, total = re.fullmatch(r'bytes (\*|\d+)(?:-\d*)?/(\*|\d+)', span).groups()
        if first != '*':
            data[int(first) :] = body
        if total == str(len(data)):
            resource = self._insert(bucket, name, begun, about, bytes(data))
            del self._uploads[upload]
            return _json(resource)
        if len(body) % _CHUNK:
            raise _Refusal(400, f'a chunk of {len(body)} bytes is not a multiple of {_CHUNK}')
        return 308, {'Range': f'bytes=0-{len(data) - 1}'} if data else {}, b''


def _check(stored: Stored | None, query: dict, source: str = '') -> None:
    """Rejects a request whose preconditions do not hold; a missing object has generation 0."""
    for field in ('Generation', 'Metageneration'):
        now = getattr(stored, field.lower(), 0)
        if int(query.get(f'if{source}{field}Match', now)) != now:
            raise _Refusal(412, f'if{source}{field}Match: it is {now}')
        if int(query.get(f'if{source}{field}NotMatch', -1)) == now:
            raise _Refusal(304, f'if{source}{field}NotMatch: it is {now}')


def _media(stored: Stored, span: str) -> Answer:
    """The bytes of an object, all or a range ('bytes=1-3', 'bytes=1-' or 'bytes=-3')."""
    # TensorStore reads the generation from these headers.
    headers = {
        'Content-Type': stored.about['contentType'],
        'X-Goog-Generation': str(stored.generation),
        'X-Goog-Metageneration': str(stored.metageneration),
    }
    if not (wanted := re.fullmatch(r'bytes=(\d*)-(\d*)', span)):
        return 200, headers, stored
    first, last = wanted.groups()
    start = int(first) if first else max(len(stored) - int(last), 0)
    stop = min(int(last) + 1, len(stored)) if first and last else len(stored)
    if start >= stop:
        raise _Refusal(416, 'the range is not satisfiable')
    headers['Content-Range'] = f'bytes {start}-{stop - 1}/{len(stored)}'
    return 206, headers, stored[start:stop]


def _json(value: dict) -> Answer:
    return 200, {'Content-Type': 'application/json'}, json.dumps(value).encode()


def _split(headers, body: bytes) -> tuple[dict, bytes]:
    """The metadata and the bytes of a multipart upload."""
    mark = b'--' + re.search(r'boundary="?([^";]+)', headers['Content-Type'])[1].encode()
    line = b'\r\n' if body.startswith(mark + b'\r\n') else b'\n'
    # The object may contain the mark or newlines: only the first two marks and the last count.
    parts = body[: body.rindex(line + mark)].split(mark + line, 2)[1:]
    (_, about), (_, data) = (part.split(line * 2, 1) for part in parts)
    return json.loads(about), data


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # The clients open dozens of connections at a time.

    def handle_error(self, request, client_address):
        # gcsfs checks in two ways whether a file exists, and closes the slower connection.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Reads requests and writes answers, many over one connection."""

    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True

    def _handle(self):
        body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        status, headers, answer = self.server.answer(self.command, self.path, self.headers, body)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status not in (204, 304):  # By definition, these have no body.
            self.send_header('Content-Length', str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def log_message(self, *_):
        """Prints nothing."""
