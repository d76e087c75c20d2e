"""Image references: the grammar of ``ref``, and the full spelling by which the store identifies an image.

Registry references follow the distribution project's grammar (reference.go): [host[:port]/]repository[:tag][@digest].
"""

from __future__ import annotations

from podrun.errors import WRONG_FILE, Failure
from podrun.options import whole as number
from podrun.record import NamedTuple

_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_ALNUM = _LOWER | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_WORD = _ALNUM | {"_"}
_HEX = frozenset("0123456789abcdef")

REGISTRY = "registry"
HOST = "host"
DIR = "dir"
OCI = "oci"
OCI_ARCHIVE = "oci-archive"
DOCKER_ARCHIVE = "docker-archive"
DOCKER_DAEMON = "docker-daemon"

#: Kinds that are imported from the file or directory at ``path``.
FILES = frozenset({OCI, OCI_ARCHIVE, DOCKER_ARCHIVE})

_LONGEST_NAME = 255
_LONGEST_TAG = 128


class Reference(NamedTuple):
    """A parsed ``ref``. ``text`` is its normalized spelling: two spellings of one name have equal texts."""

    kind: str
    text: str
    #: The registry's host[:port]: "docker.io"; "" for every other kind.
    registry: str = ""
    #: "library/nginx"; for docker-daemon the image's name in dockerd.
    repository: str = ""
    #: "latest"; for oci and oci-archive the name in the layout's index, for docker-archive the RepoTag; may be "".
    tag: str = ""
    #: "sha256:..." of a pinned reference, else "".
    digest: str = ""
    #: Absolute, for dir, oci, oci-archive and docker-archive.
    path: str = ""


def parse(text: str, cwd: str = "") -> Reference:
    """Parses a ``ref``. Relative paths start from ``cwd`` (absolute; "" allows none).

    Raises Failure (WRONG_FILE) that says which part is wrong.
    """
    scheme, colon, rest = text.partition(":")
    if text == "host:":
        return Reference(HOST, text)
    if colon and scheme == HOST:
        raise _wrong(text, "nothing follows host:")
    if colon and scheme == DIR:
        path = _path(text, rest, cwd)
        return Reference(DIR, f"dir:{path}", path=path)
    if colon and scheme in FILES:
        # As containers-transports(5): the path ends at the first colon.
        path, colon, tag = rest.partition(":")
        path = _path(text, path, cwd)
        if colon and not tag:
            raise _wrong(text, "nothing follows the last colon")
        if tag and scheme == DOCKER_ARCHIVE and not tag.startswith("@"):
            tag = _registry(text, tag).text
        return Reference(scheme, f"{scheme}:{path}" + (f":{tag}" if tag else ""), tag=tag, path=path)
    if colon and scheme == DOCKER_DAEMON:
        return _daemon(text, rest)
    if "://" in text:
        raise _wrong(text, "a registry reference has no '://'", f"write {text.partition('://')[2]!r}")
    return _registry(text, text)


def _wrong(text: str, why: str, hint: str = "for example registry.example:5000/team/web:1.4") -> Failure:
    return Failure(f"{text!r} is not an image reference: {why}", code=WRONG_FILE, hint=hint)


def _path(text: str, path: str, cwd: str) -> str:
    if not path:
        raise _wrong(text, "the path is missing", "for example oci:/srv/images/web:1.4 or dir:/srv/rootfs")
    if "\0" in path:
        raise _wrong(text, "a path has no NUL")
    if not path.startswith("/"):
        if not cwd:
            raise _wrong(text, "the path is not absolute", "for example oci:/srv/images/web:1.4 or dir:/srv/rootfs")
        path = f"{cwd}/{path}"
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            parts[-1:] = []
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def _daemon(text: str, name: str) -> Reference:
    identity = name.removeprefix("sha256:")
    if len(identity) == 64 and set(identity) <= _HEX:
        return Reference(DOCKER_DAEMON, f"docker-daemon:sha256:{identity}", repository=f"sha256:{identity}")
    named = _registry(text, name)
    return Reference(DOCKER_DAEMON, f"docker-daemon:{named.text}", repository=familiar(named))


def familiar(named: Reference) -> str:
    """A registry reference in docker's short form: without docker.io/library/."""
    return named.text.removeprefix("docker.io/library/").removeprefix("docker.io/")


def _registry(whole: str, text: str) -> Reference:
    name, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise _wrong(whole, f"{digest!r} is not a digest", "a digest is sha256: and 64 of 0-9a-f")
    slash, colon = name.rfind("/"), name.rfind(":")
    tag = ""
    if colon > slash:
        name, tag = name[:colon], name[colon + 1 :]
        _check_tag(whole, tag)
    if not name:
        raise _wrong(whole, "the name is missing")
    first, separator, others = name.partition("/")
    if separator and (not {".", ":"}.isdisjoint(first) or first == "localhost" or first != first.lower()):
        registry, repository = first, others
        _check_host(whole, registry)
    else:
        registry, repository = "docker.io", name
    if registry in ("docker.io", "index.docker.io"):
        registry = "docker.io"
        repository = repository if "/" in repository else f"library/{repository}"
    for part in repository.split("/"):
        _check_component(whole, part)
    if len(registry) + 1 + len(repository) > _LONGEST_NAME:
        raise _wrong(whole, f"the name is longer than {_LONGEST_NAME} characters")
    if not tag and not at:
        tag = "latest"
    full = f"{registry}/{repository}" + (f":{tag}" if tag else "") + (f"@{digest}" if at else "")
    return Reference(REGISTRY, full, registry, repository, tag, digest)


def digits(named: Reference) -> str:
    """The digits of what can be an id or a digest of an image rather than its name: at least 12 of them; else "".

    Fewer, of a word like "decade", would more likely be a name.
    """
    if named.registry != "docker.io" or named.digest:
        return ""
    name = named.repository.removeprefix("library/")
    found = named.tag if name == "sha256" else name if named.tag == "latest" else ""
    return found if 12 <= len(found) <= 64 and set(found) <= _HEX else ""


def is_digest(text: object) -> bool:
    """Whether ``text`` is "sha256:" and 64 lower-case hexadecimal digits."""
    return isinstance(text, str) and len(text) == 71 and text.startswith("sha256:") and set(text[7:]) <= _HEX


def _check_tag(whole: str, tag: str) -> None:
    if not tag:
        raise _wrong(whole, "the tag is empty")
    if len(tag) > _LONGEST_TAG:
        raise _wrong(whole, f"the tag is longer than {_LONGEST_TAG} characters")
    if not set(tag) <= _WORD | {".", "-"} or tag[0] in ".-":
        raise _wrong(whole, f"{tag!r} is not a tag", "a tag is made of A-Z a-z 0-9 _ . - and starts with none of . -")


def _check_component(whole: str, part: str) -> None:
    """One component: runs of [a-z0-9] separated by one '.', one or two '_', or any number of '-'."""
    if not part:
        raise _wrong(whole, "a part of the name is empty")
    if part != part.lower():
        raise _wrong(whole, f"{part!r} has upper-case letters", "repository names are lower-case")
    if not set(part) <= _LOWER | {".", "_", "-"} or part[0] not in _LOWER or part[-1] not in _LOWER:
        raise _wrong(whole, f"{part!r} is not a part of a name", "a-z and 0-9, separated by . _ __ or -")
    between = ""
    for character in f"{part}":
        if character not in _LOWER:
            between += character
        else:
            if between not in ("", ".", "_", "__") and set(between) != {"-"}:
                raise _wrong(whole, f"{between!r} in {part!r}", "separators are . _ __ or -")
            between = ""


def _check_host(whole: str, registry: str) -> None:
    host, colon, port = registry.rpartition(":")
    if not colon or registry.endswith("]"):
        host, port = registry, "443"
    if not number(port, 65535):
        raise _wrong(whole, f"{port!r} is not a port")
    if host.startswith("[") and host.endswith("]"):
        if not host[1:-1] or not set(host[1:-1].lower()) <= _HEX | {":"}:
            raise _wrong(whole, f"{host!r} is not an IPv6 address")
        return
    for label in host.split("."):
        if not label or not set(label) <= _ALNUM | {"-"} or "-" in (label[0], label[-1]):
            raise _wrong(whole, f"{host!r} is not a host name")


def layout_name(reference: Reference) -> str:
    """The org.opencontainers.image.ref.name under which the store's index.json lists the image."""
    return reference.text.replace(":/", "/", 1) if reference.path else reference.text
