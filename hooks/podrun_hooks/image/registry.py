"""The registry as a source: the OCI distribution API (and docker's V2) over urllib3."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlencode, urljoin, urlsplit

import urllib3

from podrun.errors import NOT_ALLOWED, UNAVAILABLE, Failure

from .manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MAX_DOCUMENT,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    digest_of,
    document,
    is_index,
)
from .reference import Reference, is_digest
from .source import Source
from .stream import CHUNK, malformed

_ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST))
_TIMEOUT = urllib3.Timeout(connect=10, read=30)
_ATTEMPTS = 4
#: A registry that asks for a longer pause is taken to be unavailable.
_LONGEST_PAUSE = 30.0
_REDIRECTS = 5
_LITTLE = 1 << 16
_PASSING = (429, 500, 502, 503, 504)


class Credentials(NamedTuple):
    """What a person has for a registry; the empty ones are anonymous."""

    user: str = ""
    password: str = ""
    #: An OAuth2 refresh ("identity") token instead of a password.
    identity_token: str = ""


#: Called with the registry's host[:port] when it asks who we are.
Ask = Callable[[str], Credentials]


def anonymous(_registry: str) -> Credentials:
    """No credentials for anybody."""
    return Credentials()


def is_loopback(registry: str) -> bool:
    """Whether a registry's host[:port] is this machine, where plain HTTP is allowed."""
    host = urlsplit(f"//{registry}").hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def source(named: Reference, known: str = "", ask: Ask = anonymous) -> Source | None:
    """The image at its registry; None when its name still stands for the digest ``known``.

    Raises Failure: UNAVAILABLE (unreachable, unknown there), NOT_ALLOWED, MALFORMED.
    """
    client = _Client(named, ask)
    target = named.digest or named.tag
    if known:
        head = client.get(f"manifests/{target}", {"Accept": _ACCEPT}, method="HEAD")
        _done(head)
        if head.headers.get("Docker-Content-Digest") == known:
            client.close()
            return None
    response = client.get(f"manifests/{target}", {"Accept": _ACCEPT})
    content = client.whole(response, f"{named.text}: manifest")
    found = digest_of(content)
    told = named.digest or response.headers.get("Docker-Content-Digest") or found
    if is_digest(told) and told != found:
        raise malformed(f"{named.text}: the manifest's digest is {found}, not {told}")

    def open_blob(wanted: Descriptor) -> Iterator[bytes]:
        kind = "manifests" if is_index(wanted.media_type) or wanted.media_type.endswith("manifest.v1+json") else "blobs"
        if wanted.media_type == DOCKER_MANIFEST:
            kind = "manifests"
        return client.blob(f"{kind}/{wanted.digest}", wanted.size)

    return Source(named.text, content, response.headers.get("Content-Type", ""), found, open_blob, client.close)


class _Client:
    """One repository at one registry."""

    def __init__(self, named: Reference, ask: Ask) -> None:
        self.named = named
        self.ask = ask
        self.host = "registry-1.docker.io" if named.registry == "docker.io" else named.registry
        self.pool = urllib3.PoolManager(maxsize=8, retries=False, timeout=_TIMEOUT)
        self.authorization = ""
        self.lock = threading.Lock()
        self.base = f"https://{self.host}/v2/{named.repository}/"
        if is_loopback(self.host) and self.speaks_plainly():
            self.base = "http" + self.base.removeprefix("https")

    def close(self) -> None:
        self.pool.clear()

    def speaks_plainly(self) -> bool:
        """Whether a loopback registry answers HTTP: a TLS server says 400 to it, or nothing that is HTTP."""
        try:
            answer = self.pool.request("GET", f"http://{self.host}/v2/", redirect=False)
        except urllib3.exceptions.ProtocolError:
            return False
        except urllib3.exceptions.HTTPError:
            return True
        return answer.status != 400

    # --- requests

    def get(self, path: str, headers: dict[str, str], method: str = "GET") -> Any:
        """A response with status 200 or 206, not yet read."""
        pause = 0.25
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                response = self.authorized(method, urljoin(self.base, path), headers)
            except urllib3.exceptions.NewConnectionError as error:
                # Nobody listens, or there is no such host: once more is enough.
                if attempt > 1:
                    raise self.unreachable(error) from None
                time.sleep(pause)
                continue
            except urllib3.exceptions.HTTPError as error:
                if attempt == _ATTEMPTS or isinstance(
                    error, urllib3.exceptions.SSLError | urllib3.exceptions.ConnectTimeoutError
                ):
                    raise self.unreachable(error) from None
                time.sleep(pause)
                pause *= 2
                continue
            if response.status in (200, 206):
                return response
            if response.status not in _PASSING or attempt == _ATTEMPTS:
                raise self.refused(response)
            after = response.headers.get("Retry-After", "")
            wait = float(after) if after.isdigit() else pause
            if wait > _LONGEST_PAUSE:
                raise self.refused(response)
            _done(response)
            time.sleep(wait)
            pause *= 2
        raise AssertionError("unreachable")

    def authorized(self, method: str, url: str, headers: dict[str, str]) -> Any:
        """A response; when the registry asks who we are, it is told, once."""
        for again in (True, False):
            used = self.authorization
            response = self.follow(method, url, headers, used)
            if response.status != 401 or not again:
                return response
            challenge = response.headers.get("WWW-Authenticate", "")
            _done(response)
            with self.lock:
                if self.authorization == used:
                    self.authorization = self.answer(challenge)
        raise AssertionError("unreachable")

    def follow(self, method: str, url: str, headers: dict[str, str], authorization: str) -> Any:
        """Follows redirects itself: what authorizes us stays at the registry's own origin (scheme, host and port)."""
        origin = urlsplit(url)[:2]
        for _ in range(_REDIRECTS):
            own = {"Authorization": authorization} if authorization and urlsplit(url)[:2] == origin else {}
            response = self.pool.request(method, url, headers={**headers, **own}, preload_content=False, redirect=False)
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or not location:
                return response
            _done(response)
            before, url = url, urljoin(url, location)
            scheme = urlsplit(url).scheme
            if scheme != "https" and (scheme != "http" or urlsplit(before).scheme == "https"):
                raise Failure(f"{self.named.text}: {self.host} redirects to {scheme}://", code=UNAVAILABLE)
        raise Failure(f"{self.named.text}: {self.host} redirects more than {_REDIRECTS} times", code=UNAVAILABLE)

    def whole(self, response: Any, what: str) -> bytes:
        """The body of a small response."""
        try:
            content = b""
            while len(content) <= MAX_DOCUMENT and (chunk := response.read(CHUNK)):
                content += chunk
        except urllib3.exceptions.HTTPError as error:
            raise self.unreachable(error) from None
        if len(content) > MAX_DOCUMENT:
            raise malformed(f"{what} is larger than {MAX_DOCUMENT} bytes")
        _done(response)
        return content

    def blob(self, path: str, size: int) -> Iterator[bytes]:
        """A blob's bytes; a connection that breaks is taken up where it ended (RFC 9110, Range)."""
        done, failures = 0, 0
        while done < size or not size:
            headers = {"Accept": _ACCEPT, "Accept-Encoding": "identity"}
            if done:
                headers["Range"] = f"bytes={done}-"
            response = self.get(path, headers)
            skip = done if response.status == 200 else 0
            before = done
            error: Exception | None = None
            try:
                while chunk := response.read(CHUNK, decode_content=False):
                    if skip:
                        chunk, skip = chunk[skip:], max(0, skip - len(chunk))
                    if chunk:
                        done += len(chunk)
                        yield chunk
                if not size:
                    return
            except urllib3.exceptions.HTTPError as broken:
                error = broken
            finally:
                _done(response)
            if done < size:
                failures = failures + 1 if done == before else 1
                if failures > _ATTEMPTS:
                    if error is None:
                        return  # a registry that always ends early: the size check tells
                    raise self.unreachable(error)
                time.sleep(0.1 * failures)

    # --- who we are

    def answer(self, challenge: str) -> str:
        """The Authorization header for a WWW-Authenticate one (RFC 7235; distribution's token authentication)."""
        scheme, words = _challenge(challenge)
        who = self.ask(self.named.registry)
        basic = urllib3.make_headers(basic_auth=f"{who.user}:{who.password}")["authorization"] if who.user else ""
        if scheme == "basic" and basic:
            return basic
        realm = words.get("realm", "")
        if scheme != "bearer" or not realm:
            raise Failure(f"{self.named.text}: {self.host} wants credentials, and there are none", code=NOT_ALLOWED)
        parts = urlsplit(realm)
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.netloc)):
            raise Failure(f"{self.named.text}: {self.host} sends for a token to {realm[:200]}", code=NOT_ALLOWED)
        query = [("service", words["service"])] if words.get("service") else []
        query.append(("scope", words.get("scope") or f"repository:{self.named.repository}:pull"))
        url = f"{realm}{'&' if parts.query else '?'}{urlencode(query)}"
        try:
            response = self.follow("GET", url, {}, basic)
        except urllib3.exceptions.HTTPError as error:
            raise self.unreachable(error) from None
        if response.status != 200:
            raise self.refused(response)
        value = document(self.whole(response, "token"), f"{self.named.text}: token")
        token = value.get("token") or value.get("access_token")
        if not isinstance(token, str) or not token.isprintable():
            raise Failure(f"{self.named.text}: {parts.netloc} gave no token", code=NOT_ALLOWED)
        return f"Bearer {token}"

    # --- what goes wrong

    def unreachable(self, error: Exception) -> Failure:
        reason = str(getattr(error, "reason", None) or error)
        # urllib3 leads its messages with the object's repr: "<urllib3...HTTPConnection object at 0x...>: Failed ...".
        reason = reason.rpartition(">: ")[2] if reason.startswith("<") else reason
        return Failure(f"{self.named.text}: {self.host} cannot be reached: {reason}", code=UNAVAILABLE)

    def refused(self, response: Any) -> Failure:
        status = response.status
        try:
            said = document(self.whole(response, "answer"), "answer")["errors"][0]
            words = f" ({str(said.get('message') or said.get('code'))[:200]})"
        except (Failure, LookupError, TypeError, AttributeError):
            words = ""
        text = self.named.text
        if status in (401, 403):
            return Failure(f"{text}: {self.host} does not let us pull it{words}", code=NOT_ALLOWED)
        if status == 404:
            return Failure(f"{text}: {self.host} does not have it{words}", code=UNAVAILABLE)
        return Failure(f"{text}: {self.host} answers {status}{words}", code=UNAVAILABLE, hint="try again later")


def _done(response: Any) -> None:
    """Gives the connection back when little is left to read on it: it serves the next request only when all is read."""
    try:
        if len(response.read(_LITTLE, decode_content=False)) == _LITTLE:
            response.close()
    except urllib3.exceptions.HTTPError:
        response.close()
    response.release_conn()


def _challenge(header: str) -> tuple[str, dict[str, str]]:
    """'Bearer realm="https://a/token",service="b"' as ("bearer", {"realm": ..., "service": ...})."""
    scheme, _, rest = header.strip().partition(" ")
    words: dict[str, str] = {}
    while rest:
        key, equals, rest = rest.partition("=")
        if not equals:
            break
        if rest.startswith('"'):
            value, _, rest = rest[1:].partition('"')
        else:
            value, _, rest = rest.partition(",")
        words[key.strip(" ,").lower()] = value.strip()
    return scheme.lower(), words
