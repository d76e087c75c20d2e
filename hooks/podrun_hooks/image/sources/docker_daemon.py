"""dockerd as a source: saves the image over dockerd's API and reads it as a docker archive."""

from __future__ import annotations

from podrun.errors import UNAVAILABLE, Failure
from podrun_hooks.image.reference import Reference
from podrun_hooks.image.sources import archive
from podrun_hooks.image.sources.source import Source


def source(named: Reference, known: str, scratch: str) -> Source | None:
    """The image of a name in dockerd; None if that still has the image ID ``known``. Raises Failure (UNAVAILABLE)."""
    try:
        import docker
        import requests
    except ImportError:
        raise Failure(
            "docker-daemon: needs the Python module docker", code=UNAVAILABLE, hint="apt install python3-docker"
        ) from None
    client = None
    try:
        client = docker.from_env()
        image = client.images.get(named.repository)
        if image.id == known:
            return None
        file = archive.spooled(image.save(named=False), scratch)
    except docker.errors.ImageNotFound:
        raise Failure(f"dockerd has no image {named.repository}", code=UNAVAILABLE) from None
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise Failure(f"dockerd cannot be asked: {error}", code=UNAVAILABLE) from None
    finally:
        if client is not None:
            client.close()
    return archive.of_docker_archive(file, named.text, "@0")._replace(remote=str(image.id))
