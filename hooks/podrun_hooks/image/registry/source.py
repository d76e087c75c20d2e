"""Registries as sources: tries an image's mirrors and then its registry."""

from __future__ import annotations

from collections.abc import Iterator

from podrun.errors import MALFORMED, Failure
from podrun_hooks.image.layer.stream import malformed
from podrun_hooks.image.manifest import DOCKER_MANIFEST, Descriptor, digest_of, is_index
from podrun_hooks.image.reference import Reference, is_digest
from podrun_hooks.image.registry import config, credentials
from podrun_hooks.image.registry.client import ACCEPT, Ask, Client
from podrun_hooks.image.registry.credentials import Credentials
from podrun_hooks.image.sources.source import Source


def source(named: Reference, known: str = "", ask: Ask = credentials.known) -> Source | None:
    """The image at its registry or a mirror; None if its name still resolves to the digest ``known``.

    Raises Failure: UNAVAILABLE (unreachable, unknown there), NOT_ALLOWED, MALFORMED.
    """
    clients = [Client(at, named.text, ask) for at in config.endpoints(config.load(), named)]
    while True:
        try:
            return _at(clients, named, known)
        except Failure:
            # Any failure of a mirror is ignored; only the registry's own failure counts.
            clients.pop(0).close()
            if not clients:
                raise


def _at(clients: list[Client], named: Reference, known: str) -> Source | None:
    client = clients[0]
    target = named.digest or named.tag
    if known and client.digest(f"manifests/{target}") == known:
        client.close()
        return None
    response = client.get(f"manifests/{target}", {"Accept": ACCEPT})
    content = client.whole(response, f"{named.text}: manifest")
    computed = digest_of(content)
    stated = named.digest or response.headers.get("Docker-Content-Digest") or computed
    if is_digest(stated) and stated != computed:
        raise malformed(f"{named.text}: the manifest's digest is {computed}, not {stated}")
    if known == computed:
        client.close()
        return None

    def open_blob(wanted: Descriptor) -> Iterator[bytes]:
        return _blob(clients, _path(wanted), wanted.size)

    def close() -> None:
        for client in clients:
            client.close()

    return Source(named.text, content, response.headers.get("Content-Type", ""), computed, open_blob, close, close)


def _path(wanted: Descriptor) -> str:
    of_manifest = wanted.media_type == DOCKER_MANIFEST or wanted.media_type.endswith("manifest.v1+json")
    return f"{'manifests' if of_manifest or is_index(wanted.media_type) else 'blobs'}/{wanted.digest}"


def _blob(clients: list[Client], path: str, size: int) -> Iterator[bytes]:
    """A blob's bytes. If one endpoint fails, continues at the same byte with the next one."""
    at = 0
    for client in clients:
        try:
            for chunk in client.blob(path, size, at):
                at += len(chunk)
                yield chunk
            return
        except Failure as failure:
            if client is clients[-1] or failure.code == MALFORMED:
                raise


def login(registry: str, who: Credentials) -> str:
    """Checks credentials with a registry and stores them; returns where, for messages.

    Raises Failure: NOT_ALLOWED if the registry refuses them, UNAVAILABLE if it does not answer.
    """
    client = Client(config.endpoint(config.load(), registry, ""), registry, lambda _: who)
    try:
        client.get("", {}).done()
    except Failure as failure:
        if failure.code == MALFORMED:
            raise
        raise Failure(failure.what.replace("does not let us pull it", "refuses us"), code=failure.code) from None
    finally:
        client.close()
    return credentials.keep(registry, who)
