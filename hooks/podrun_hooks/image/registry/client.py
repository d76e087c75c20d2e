"""A client for one repository at one registry: the OCI distribution API (and docker's registry API V2).

It sends credentials and tokens only to the registry's own origin and to the token service that this origin names. The
target of a redirect may serve blobs, but it neither gets our credentials nor may ask for them.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlencode, urljoin, urlsplit

from podrun.errors import MALFORMED, NOT_ALLOWED, UNAVAILABLE, WRONG_FILE, Failure
from podrun_hooks.image.layer.stream import malformed
from podrun_hooks.image.manifest import DOCKER_LIST, DOCKER_MANIFEST, MAX_DOCUMENT, OCI_INDEX, OCI_MANIFEST, document
from podrun_hooks.image.registry import credentials, http
from podrun_hooks.image.registry.config import Endpoint, is_loopback
from podrun_hooks.image.registry.credentials import Credentials
from podrun_hooks.image.registry.http import (
    Broken,
    ConnectFailed,
    Connections,
    NotRetryable,
    ProtocolError,
    Response,
    basic,
)
from podrun_hooks.support import trusted

ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST))
#: A download that receives fewer than SLOWEST bytes in http.SILENCE seconds has stalled.
SLOWEST = 32 << 10
_ATTEMPTS = 4
#: Seconds. A registry that asks for a longer pause, or fails for longer, counts as unavailable.
_LONGEST_PAUSE = 30.0
_LONGEST_TROUBLE = 120.0
_REDIRECTS = 5
_PASSING = (429, 500, 502, 503, 504)

#: Called with a registry's host[:port] when it asks for credentials.
Ask = Callable[[str], Credentials]


class Client:
    """Requests to a repository; ``what`` names the image in messages. Raises Failure as registry.source() does."""

    def __init__(self, endpoint: Endpoint, what: str, ask: Ask) -> None:
        self.endpoint = endpoint
        self.what = what
        self.ask = ask
        self.host = "registry-1.docker.io" if endpoint.registry == "docker.io" else endpoint.registry
        self.connections = Connections(self.tls)
        self.contexts: dict[bool, ssl.SSLContext] = {}
        self.authorization = ""
        self.base = ""

    def close(self) -> None:
        """Closes the connections. The next request opens new ones."""
        self.connections.close()

    # --- scheme and TLS

    def url(self, path: str) -> str:
        """The URL of a path in the repository. The first call finds out whether the registry speaks HTTPS or HTTP."""
        if not self.base:
            plain = self.speaks_plainly() if is_loopback(self.host) else self.endpoint.insecure and self.lacks_tls()
            below = f"{self.endpoint.repository}/" if self.endpoint.repository else ""
            self.base = f"{'http' if plain else 'https'}://{self.host}/v2/{below}"
        return urljoin(self.base, path)

    def speaks_plainly(self) -> bool:
        """Whether a loopback registry answers plain HTTP: a TLS server answers 400, or something that is not HTTP."""
        try:
            answer = self.connections.request("GET", f"http://{self.host}/v2/")
        except ProtocolError:
            return False
        except Broken:
            return True
        answer.done()
        return answer.status != 400

    def lacks_tls(self) -> bool:
        """Whether a registry configured as insecure does not answer HTTPS."""
        try:
            self.connections.request("GET", f"https://{self.host}/v2/").done()
        except Broken:
            return True
        return False

    def tls(self, netloc: str) -> ssl.SSLContext:
        """The context for a host[:port]. The options ``ca`` and ``insecure`` apply to the registry's own host only."""
        own = netloc == self.host
        if own not in self.contexts:
            self.contexts[own] = self.context(own)
        return self.contexts[own]

    def context(self, own: bool) -> ssl.SSLContext:
        # Reading the system's certificates takes 20 ms.
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        if own and self.endpoint.ca:
            try:
                context.load_verify_locations(trusted.place(self.endpoint.ca, "/etc/podrun", strict=False))
            except OSError as error:
                reason = error.strerror or "no certificate in it"
                raise Failure(f"{self.endpoint.ca} (ca of {self.host}): {reason}", code=WRONG_FILE) from None
        if own and self.endpoint.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    # --- requests

    def get(self, path: str, headers: dict[str, str], method: str = "GET") -> Response:
        """A response with status 200 or 206, its body unread. Retries transient errors."""
        pause = 0.25
        until = time.monotonic() + _LONGEST_TROUBLE
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                response = self.authorized(method, self.url(path), headers)
            except ConnectFailed as error:
                # Connection refused or no such host: a single retry is enough.
                if attempt > 1:
                    raise self.unreachable(error) from None
                time.sleep(pause)
                continue
            except Broken as error:
                last = attempt == _ATTEMPTS or time.monotonic() + pause > until
                if last or isinstance(error, NotRetryable):
                    raise self.unreachable(error) from None
                time.sleep(pause)
                pause *= 2
                continue
            if response.status in (200, 206):
                return response
            if response.status not in _PASSING or attempt == _ATTEMPTS:
                raise self.refused(response)
            wait = _retry_after(response.headers.get("Retry-After", ""), pause)
            if wait > _LONGEST_PAUSE or time.monotonic() + wait > until:
                raise self.refused(response)
            response.done()
            time.sleep(wait)
            pause *= 2
        raise AssertionError("unreachable")

    def digest(self, path: str) -> str:
        """The digest in the answer to a HEAD request, or "". Some registries do not support HEAD (405, 404, 500, ...);
        the GET that follows shows what is wrong."""
        try:
            response = self.authorized("HEAD", self.url(path), {"Accept": ACCEPT})
        except (Broken, Failure):
            return ""
        response.done()
        value = response.headers.get("Docker-Content-Digest", "") if response.status == 200 else ""
        return str(value)

    def authorized(self, method: str, url: str, headers: dict[str, str]) -> Response:
        """A response. If the registry's own origin answers 401, authenticates and repeats the request once."""
        for again in (True, False):
            response = self.follow(method, url, headers, self.authorization)
            if response.status != 401 or not again or origin(response.url) != origin(url):
                return response
            response.done()
            self.authorization = self.answer(", ".join(response.headers.get_all("WWW-Authenticate") or ()))
        raise AssertionError("unreachable")

    def follow(self, method: str, url: str, headers: dict[str, str], authorization: str) -> Response:
        """Follows redirects. Sends ``authorization`` only to the first URL's origin (scheme, host and port)."""
        first = origin(url)
        for _ in range(_REDIRECTS):
            own = {"Authorization": authorization} if authorization and origin(url) == first else {}
            response = self.connections.request(method, url, {**headers, **own})
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or not location:
                return response
            response.done()
            try:
                before, url = url, urljoin(url, location)
                scheme = origin(url)[0]
            except ValueError:
                raise Failure(f"{self.what}: {self.host} redirects to {location[:200]!r}", code=UNAVAILABLE) from None
            if scheme != "https" and (scheme != "http" or urlsplit(before).scheme == "https"):
                raise Failure(f"{self.what}: {self.host} redirects to {scheme}://", code=UNAVAILABLE)
        raise Failure(f"{self.what}: {self.host} redirects more than {_REDIRECTS} times", code=UNAVAILABLE)

    def whole(self, response: Response, what: str) -> bytes:
        """The whole body of a small response. Raises Failure if it is too large or too slow."""
        content = bytearray()
        until = time.monotonic() + 2 * http.SILENCE
        try:
            while len(content) <= MAX_DOCUMENT and (chunk := response.some()):
                content += chunk
                if time.monotonic() > until:
                    response.close()
                    raise self.stalled()
        except Broken as error:
            raise self.unreachable(error) from None
        if len(content) > MAX_DOCUMENT:
            response.close()
            raise malformed(f"{what} is larger than {MAX_DOCUMENT} bytes")
        response.done()
        return bytes(content)

    def blob(self, path: str, size: int, start: int = 0) -> Iterator[bytes]:
        """A blob's bytes from ``start`` on. Resumes a broken or stalled download where it ended (Range)."""
        at, failures = start, 0
        while at < size or not size:
            headers = {"Accept": ACCEPT if path.startswith("manifests/") else "*/*"}
            if at:
                headers["Range"] = f"bytes={at}-"
            response = self.get(path, headers)
            skip = at if response.status == 200 else 0
            before = at
            error: Exception | None = None
            try:
                for chunk in self.moving(response):
                    if skip:
                        chunk, skip = chunk[skip:], max(0, skip - len(chunk))
                    if chunk:
                        at += len(chunk)
                        yield chunk
                if not size:
                    return
            except (Broken, Failure) as broken:
                if isinstance(broken, Failure) and broken.code == MALFORMED:
                    raise
                error = broken
            finally:
                # A connection that stalled, or whose body ended early, cannot be reused.
                response.done() if at >= size else response.close()
            if at < size or (error and not size):
                failures = 1 if at - before >= SLOWEST else failures + 1
                if failures > _ATTEMPTS:
                    if error is None:
                        return  # the registry always sends too little: the caller's size check reports it
                    raise error if isinstance(error, Failure) else self.unreachable(error)
                time.sleep(0.1 * failures)

    def moving(self, response: Response) -> Iterator[bytes]:
        """The body in pieces as they arrive. Raises Failure when the download has stalled."""
        since, moved = time.monotonic(), 0
        while chunk := response.some():
            moved += len(chunk)
            if moved >= SLOWEST:
                since, moved = time.monotonic(), 0
            elif time.monotonic() - since > http.SILENCE:
                raise self.stalled()
            yield chunk

    # --- authentication

    def answer(self, challenge: str) -> str:
        """The Authorization header that answers a WWW-Authenticate header (RFC 7235; distribution's token
        authentication). Raises Failure."""
        offered = _challenges(challenge)
        who = self.ask(self.endpoint.registry)
        by_password = basic(who.user, who.password) if who.user else ""
        words = next((words for scheme, words in offered if scheme == "bearer" and words.get("realm")), {})
        scheme = "bearer" if words else ""
        if not words and by_password and any(scheme == "basic" for scheme, _ in offered):
            return by_password
        realm = words.get("realm", "")
        if scheme != "bearer" or not realm:
            helper = credentials.missing_helper(self.endpoint.registry)
            about = f"{helper}, which {credentials.file()} names, is not installed; " if helper else ""
            raise Failure(
                f"{self.what}: {self.host} wants credentials, and there are none",
                code=NOT_ALLOWED,
                hint=f"{about}podrun login {self.endpoint.registry}",
            )
        try:
            parts = urlsplit(realm)
        except ValueError:
            raise Failure(f"{self.what}: {self.host} sends for a token to {realm[:200]!r}", code=NOT_ALLOWED) from None
        plain = self.base.startswith("http:") and (is_loopback(parts.netloc) or parts.netloc == self.host)
        if parts.scheme != "https" and not (parts.scheme == "http" and plain):
            raise Failure(f"{self.what}: {self.host} sends for a token to {realm[:200]}", code=NOT_ALLOWED)
        words = {"service": words.get("service", ""), "scope": words.get("scope", "")}
        if not words["scope"] and self.endpoint.repository:
            words["scope"] = f"repository:{self.endpoint.repository}:pull"
        query = {key: value for key, value in words.items() if value}
        try:
            if who.identity_token:
                # The OAuth2 variant: https://distribution.github.io/distribution/spec/auth/oauth/
                form = {"grant_type": "refresh_token", "client_id": "podrun", "refresh_token": who.identity_token}
                response = self.connections.request("POST", realm, form={**form, **query})
            else:
                url = f"{realm}{'&' if parts.query else '?'}{urlencode(query)}" if query else realm
                response = self.follow("GET", url, {}, by_password)
        except Broken as error:
            raise self.unreachable(error) from None
        if response.status != 200:
            raise self.refused(response)
        value = document(self.whole(response, "token"), f"{self.what}: token")
        token = value.get("token") or value.get("access_token")
        if not isinstance(token, str) or not token.isprintable():
            raise Failure(f"{self.what}: {parts.netloc} gave no token", code=NOT_ALLOWED)
        return f"Bearer {token}"

    # --- failures

    def stalled(self) -> Failure:
        return Failure(f"{self.what}: {self.host} has stalled", code=UNAVAILABLE, hint="try again later")

    def unreachable(self, error: Exception) -> Failure:
        return Failure(f"{self.what}: {self.host} cannot be reached: {error}", code=UNAVAILABLE)

    def refused(self, response: Response) -> Failure:
        status = response.status
        try:
            error = document(self.whole(response, "answer"), "answer")["errors"][0]
            words = f" ({str(error.get('message') or error.get('code'))[:200]})"
        except (Failure, LookupError, TypeError, AttributeError):
            words = ""
        words = words if words.isprintable() else ""
        if status == 401 and origin(response.url) != origin(self.base):
            where = urlsplit(response.url).netloc.rpartition("@")[2]
            what = f"{self.what}: {self.host} sends us to {where}, which wants credentials: it is told none"
            return Failure(what, code=NOT_ALLOWED)
        if status in (401, 403):
            hint = f"podrun login {self.endpoint.registry}" if status == 401 else ""
            return Failure(f"{self.what}: {self.host} does not let us pull it{words}", code=NOT_ALLOWED, hint=hint)
        if status == 404:
            return Failure(f"{self.what}: {self.host} does not have it{words}", code=UNAVAILABLE)
        return Failure(f"{self.what}: {self.host} answers {status}{words}", code=UNAVAILABLE, hint="try again later")


def origin(url: str) -> tuple[str, str, int]:
    """The origin of a URL: scheme, host and port (RFC 6454, 4). Raises ValueError."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _retry_after(header: str, otherwise: float) -> float:
    """The seconds to wait by a Retry-After header (RFC 9110, 10.2.3), which holds a number of seconds or a date."""
    if header.isascii() and header.isdigit():
        return float(header[:9])
    import email.utils

    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return otherwise


_TOKEN = re.compile(r"""\s*,?\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:\s*=\s*("(?:[^"\\]|\\.)*"|[^\s,"]*))?""")


def _challenges(header: str) -> list[tuple[str, dict[str, str]]]:
    """Parses 'Negotiate, Bearer realm="https://a/token",service="b"': [("negotiate", {}), ("bearer", {"realm": ...})].

    RFC 9110, 11.6.1: one header may hold several challenges.
    """
    challenges: list[tuple[str, dict[str, str]]] = []
    at = 0
    while match := _TOKEN.match(header, at):
        at = match.end()
        name, value = match.group(1).lower(), match.group(2)
        if value is None:
            challenges.append((name, {}))
        elif challenges:
            plain = value[1:-1].replace('\\"', '"') if value.startswith('"') else value
            challenges[-1][1].setdefault(name, plain)
    return challenges
