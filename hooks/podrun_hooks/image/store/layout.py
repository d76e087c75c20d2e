"""The paths of the image store, and the quick look-up that turns a stored image's name into layer directories.

The store is an OCI image layout (image-layout.md of the OCI image specification), which other tools can read. Beside
it are ``layers/<diffID>/``, one directory per unpacked layer in the form that overlayfs stacks, and its metadata in
``layers/<diffID>.json``; ``refs/<name>``, one record per image name and the only file that a start reads; ``tmp/``,
work in progress; ``locks/``. All of it is below one directory of mode 0700: layers hold other people's setuid programs
and devices.
"""

from __future__ import annotations

import os

from podrun import jsontext
from podrun.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from podrun_hooks.image.reference import Reference

#: Version of the records in refs/. A record of another version counts as missing, and the image is pulled again.
VERSION = 1

_LONGEST_FILE_NAME = 200


class Image(NamedTuple):
    """An image that is ready to be mounted."""

    #: The full spelling: "docker.io/library/nginx:1.27".
    ref: str
    #: "sha256:..." of the manifest; "host:..." for an image of the machine itself; "" for a directory.
    digest: str
    #: Absolute directories, lowest first.
    layers: list[str]
    #: The "config" object of the OCI image configuration.
    config: dict[str, Any]
    #: Mounts that belong to the image, as in the facts.
    mounts: list[dict[str, Any]] = []
    #: Files in the image that open its standard output or error by name: symlinks to it ("/var/log/nginx/access.log"),
    #: configurations and scripts that mention it.
    stdio: list[str] = []

    def facts(self) -> dict[str, Any]:
        """The facts that the image hook gives to later steps."""
        return self._asdict()


class Stored(NamedTuple):
    """A record in refs/."""

    ref: str
    digest: str
    #: Digest that the name refers to at its source: that of the image index where there is one.
    remote: str
    #: "linux/arm64" if a platform was asked for; "" for the machine's own.
    platform: str
    #: Names of directories in layers/, lowest first.
    layers: list[str]
    config: dict[str, Any]
    stdio: list[str]
    #: If the image came from a file, the file's [mtime in ns, size, inode]; else [].
    source: list[int]
    #: When the image was pulled, in seconds since 1970.
    pulled: float
    #: Bytes of the blobs.
    size: int


def base(root: str) -> str:
    """The store's directory."""
    return f"{root}/images"


def blob(root: str, digest: str) -> str:
    """The path of a blob by its digest."""
    return f"{root}/images/blobs/sha256/{digest.removeprefix('sha256:')}"


def layer(root: str, diff_id: str) -> str:
    """The path of an unpacked layer by its diffID."""
    return f"{root}/images/layers/{diff_id.removeprefix('sha256:')}"


def record(root: str, text: str, platform: str = "") -> str:
    """The path of the record of an image name."""
    name = f"{text} {platform}" if platform else text
    quoted = name.replace("%", "%25").replace("/", "%2F")
    if len(os.fsencode(quoted)) > _LONGEST_FILE_NAME:
        from _blake2 import blake2s

        quoted = f"%long-{blake2s(os.fsencode(name)).hexdigest()}"
    return f"{root}/images/refs/{quoted}"


def read(path: str) -> Stored | None:
    """The record in a file; None if there is none or it is of another version."""
    try:
        with open(path, "rb") as file:
            value = jsontext.loads(file.read().decode())
        if value.pop("v") != VERSION:
            return None
        return Stored(**value)
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_form(stored: Stored) -> str:
    """The text of a record."""
    return jsontext.dumps({"v": VERSION, **stored._asdict()})


def stored(root: str, text: str, platform: str = "") -> Stored | None:
    """The record of an image name, if all its layers are there."""
    image = read(record(root, text, platform))
    if image is None:
        return None
    for name in image.layers:
        try:
            os.lstat(f"{root}/images/layers/{name}")
        except FileNotFoundError:
            return None
    return image


def stamp(path: str) -> list[int]:
    """A file's mtime, size and inode, which change when it is written anew; [] if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_mtime_ns, status.st_size, status.st_ino]


def source_file(reference: Reference) -> str:
    """The file whose stamp shows whether a local image has changed; "" if the image is not local."""
    if reference.kind == "oci":
        return f"{reference.path}/index.json"
    return reference.path if reference.kind in ("oci-archive", "docker-archive") else ""


def image(root: str, found: Stored) -> Image:
    """A record as an Image."""
    layers = [f"{root}/images/layers/{name}" for name in found.layers]
    return Image(found.ref, found.digest, layers, found.config, [], found.stdio)


def cached(root: str, reference: Reference, policy: str, platform: str = "") -> Image | None:
    """The stored image, if the pull policy is content with it; None if it has to be pulled.

    ``policy``: "missing"; "never" (whatever the store has will do); "always" or "newer" (all but a pinned digest is
    pulled).
    """
    pinned = reference.digest and policy != "never"
    if policy in ("always", "newer") and not pinned:
        return None
    found = stored(root, reference.text, platform)
    if found is None:
        return None
    if policy != "never":
        file = source_file(reference)
        now = stamp(file) if file else []
        if file and now and now != found.source:
            return None
    return image(root, found)


def has_something(directory: str) -> bool:
    """True for a directory that exists and is not empty."""
    return os.path.isdir(directory) and bool(os.listdir(directory))
