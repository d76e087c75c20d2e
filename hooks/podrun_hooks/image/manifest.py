"""Manifests, indexes and configurations (image-spec; docker's schema 2), checked before anything relies on them."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, NamedTuple

from podrun.errors import UNAVAILABLE, Failure
from podrun_hooks.image import reference
from podrun_hooks.image.layer.stream import malformed

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

#: Media types of a configuration. Old registries and builders use the last five (containers/image accepts them, too).
_CONFIGS = frozenset(
    (
        OCI_CONFIG,
        "application/vnd.docker.container.image.v1+json",
        *("application/octet-stream", "application/json", "text/html", "text/plain", ""),
    )
)

#: Largest manifest, index or configuration in bytes: they are read into memory.
MAX_DOCUMENT = 8 << 20
#: Limits in bytes: of one argument and of all (execve(2), with a stack of 8 MiB), of a path and of a name in it.
_MAX_WORD, _MAX_WORDS, _MAX_PATH, _MAX_NAME = (128 << 10) - 1, 2 << 20, 4096, 255
#: overlayfs's limit (OVL_MAX_STACK).
MAX_LAYERS = 500

# uname(2)'s machine as Go's GOARCH and variant.
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "i386": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "riscv64": ("riscv64", ""),
    "s390x": ("s390x", ""),
    "loongarch64": ("loong64", ""),
}


class Descriptor(NamedTuple):
    """A reference to a blob (descriptor.md of the OCI image specification)."""

    media_type: str
    digest: str
    size: int


class Manifest(NamedTuple):
    """An image manifest: its configuration and its layers, lowest first."""

    descriptor: Descriptor
    config: Descriptor
    layers: list[Descriptor]


class Configuration(NamedTuple):
    """The parts of an image configuration that are needed to run the image."""

    #: Digests of the layers' uncompressed tar streams, in the manifest's order.
    diff_ids: list[str]
    #: Entrypoint, Cmd, Env, User, WorkingDir, ...
    config: dict[str, Any]
    os: str
    architecture: str


class Platform(NamedTuple):
    """The platform to look for in an image index."""

    os: str
    architecture: str
    variant: str


def platform(text: str) -> Platform:
    """Parses "os/architecture[/variant]"; "" means this machine's platform."""
    if text:
        system, architecture, variant = ([*text.split("/"), ""])[:3]
        if architecture in ("x86_64", "aarch64"):
            architecture = _ARCHITECTURES[architecture][0]
        return Platform(system, architecture, variant)
    machine = os.uname().machine
    return Platform("linux", *_ARCHITECTURES.get(machine, (machine, "")))


def digest_of(content: bytes) -> str:
    """ "sha256:..." of some bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def document(content: bytes, what: str) -> dict[str, Any]:
    """Parses a JSON object. Raises Failure (MALFORMED) for anything else."""
    if len(content) > MAX_DOCUMENT:
        raise malformed(f"{what} is larger than {MAX_DOCUMENT} bytes")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise malformed(f"{what} is not JSON") from None
    if not isinstance(value, dict):
        raise malformed(f"{what} is not a JSON object")
    if b"\\ud" in content.lower():
        # An escaped lone surrogate (RFC 8259, 8.2) cannot be encoded for a file or an environment.
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise malformed(f"{what} has half a character in it") from None
    return value


def descriptor(value: Any, what: str) -> Descriptor:
    """Checks and converts a descriptor object. Raises Failure (MALFORMED)."""
    if not isinstance(value, dict):
        raise malformed(f"{what} is not a descriptor")
    digest, size = value.get("digest"), value.get("size")
    if not isinstance(digest, str) or not reference.is_digest(digest):
        raise malformed(f"{what}: {str(digest)[:100]!r} is not a sha256 digest")
    if type(size) is not int or not 0 <= size < 1 << 50:
        raise malformed(f"{what}: {str(size)[:40]!r} is not a size")
    return Descriptor(str(value.get("mediaType") or ""), digest, size)


def media_type(value: dict[str, Any], stated: str = "") -> str:
    """The media type in the document itself, else the one that its source stated, else a guess by its keys."""
    own = value.get("mediaType")
    if isinstance(own, str) and own:
        return own
    if stated.partition(";")[0].strip() in (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST):
        return stated.partition(";")[0].strip()
    return OCI_INDEX if "manifests" in value else OCI_MANIFEST


def is_index(kind: str) -> bool:
    """Whether a media type is that of an image index or manifest list."""
    return kind in (OCI_INDEX, DOCKER_LIST)


def choose(index: dict[str, Any], wanted: Platform, what: str) -> Descriptor:
    """The descriptor of an index's manifest for a platform: the best variant that runs there.

    Raises Failure: UNAVAILABLE, naming the platforms in the index, or MALFORMED.
    """
    items = index.get("manifests")
    if not isinstance(items, list):
        raise malformed(f"{what} has no manifests")
    if "layers" in index or "config" in index:
        raise malformed(f"{what} is an index and an image in one: readers would not agree on what it is")
    offered, fitting = [], []
    for item in items:
        of = item.get("platform") if isinstance(item, dict) else None
        if not isinstance(of, dict):
            # A manifest without a platform fits any: a layout lists its only image like this.
            fitting.append((1000.0, item))
            continue
        theirs = Platform(*(str(of.get(key) or "") for key in ("os", "architecture", "variant")))
        if theirs.os != "unknown":
            offered.append("/".join(part for part in theirs if part))
        if theirs[:2] == wanted[:2] and (distance := _distance(theirs, wanted)) is not None:
            fitting.append((distance, item))
    if not fitting:
        name = "/".join(part for part in wanted if part)
        has = f"there is {', '.join(sorted(set(offered)))}" if offered else ""
        raise Failure(f"{what} has no image for {name}", code=UNAVAILABLE, hint=has)
    return descriptor(min(fitting, key=lambda pair: pair[0])[1], what)


def _distance(theirs: Platform, wanted: Platform) -> float | None:
    """How far a variant is from the best one; None if it does not run there.

    On amd64 and arm a processor of a higher level also runs images for lower ones. An image without a variant counts
    as v1 on amd64, and fits any arm.
    """
    own, limit = _level(theirs.variant), _level(wanted.variant)
    if wanted.architecture == "amd64":
        limit = limit or _amd64_level()
        return None if own > limit else limit - (own or 1)
    if wanted.architecture == "arm":
        limit = limit or 7
        return 0.5 if not own else None if own > limit else limit - own
    exact = _variant(theirs) == _variant(wanted)
    if exact or not wanted.variant or not theirs.variant:
        return 0 if exact else 1 if not theirs.variant else 2
    return None


def _level(variant: str) -> int:
    digits = variant.removeprefix("v")
    return int(digits[:3]) if digits.isascii() and digits.isdigit() else 0


#: The features that each x86-64 psABI level adds, by their names in /proc/cpuinfo (lzcnt is "abm" there).
_AMD64_LEVELS = (
    "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3",
    "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave",
    "avx512bw avx512cd avx512dq avx512f avx512vl",
)


def _amd64_level(cpuinfo: str = "/proc/cpuinfo") -> int:
    """The x86-64 level of this machine's processor, 1 to 4; 1 on a machine of another kind."""
    try:
        with open(cpuinfo, encoding="ascii", errors="replace") as file:
            flags = next((set(line.partition(":")[2].split()) for line in file if line.startswith("flags")), set())
    except OSError:
        return 1
    level = 1
    for needed in _AMD64_LEVELS:
        if not {*needed.split()} <= flags:
            break
        level += 1
    return level


def _variant(of: Platform) -> str:
    return "v8" if of.architecture == "arm64" and not of.variant else of.variant


def manifest(content: bytes, described: Descriptor, what: str) -> Manifest:
    """Parses and checks an image manifest. Raises Failure: MALFORMED, UNAVAILABLE."""
    value = document(content, what)
    kind = media_type(value, described.media_type)
    if "manifests" in value and kind in (OCI_MANIFEST, DOCKER_MANIFEST):
        raise malformed(f"{what} is an index and an image in one: readers would not agree on what it is")
    if value.get("schemaVersion") == 1 or "fsLayers" in value:
        raise malformed(f"{what} is of docker's schema 1, which nothing verifies; push the image again")
    if kind not in (OCI_MANIFEST, DOCKER_MANIFEST):
        raise malformed(f"{what} is {kind[:100]!r}, not an image manifest")
    config = descriptor(value.get("config"), f"{what}: config")
    if config.media_type not in _CONFIGS:
        raise malformed(f"{what} is not a container image: its configuration is {config.media_type[:100]!r}")
    layers = value.get("layers")
    if not isinstance(layers, list) or len(layers) > MAX_LAYERS:
        raise malformed(f"{what} has no list of at most {MAX_LAYERS} layers")
    found = [descriptor(item, f"{what}: layer {number}") for number, item in enumerate(layers)]
    for layer in found:
        if "tar" not in layer.media_type:
            raise malformed(f"{what} has a layer of {layer.media_type[:100]!r}")
        if "foreign" in layer.media_type or "nondistributable" in layer.media_type:
            raise Failure(f"{what} has a foreign layer, which only its maker hands out", code=UNAVAILABLE)
        if "encrypted" in layer.media_type:
            raise malformed(f"{what} has encrypted layers")
    return Manifest(Descriptor(kind, digest_of(content), len(content)), config, found)


def as_oci(found: Manifest) -> bytes:
    """An OCI manifest for the blobs of a docker manifest: skopeo and umoci accept only OCI manifests in a layout."""
    layers = []
    for layer in found.layers:
        suffix = next((f"+{kind}" for kind in ("gzip", "zstd") if layer.media_type.endswith(kind)), "")
        layers.append(layer._replace(media_type=OCI_LAYER + suffix))
    return oci_manifest(found.config._replace(media_type=OCI_CONFIG), layers)


def oci_manifest(config: Descriptor, layers: list[Descriptor]) -> bytes:
    """The text of an OCI image manifest."""
    described = [{"mediaType": of.media_type, "digest": of.digest, "size": of.size} for of in (config, *layers)]
    value = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described[0], "layers": described[1:]}
    return json.dumps(value, separators=(",", ":")).encode()


def configuration(content: bytes, layers: int, what: str) -> Configuration:
    """Parses an image configuration and checks it against the number of layers in the manifest. Raises Failure."""
    value = document(content, what)
    rootfs = value.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if diff_ids is None and not layers:
        diff_ids = []
    if not isinstance(diff_ids, list) or not all(
        isinstance(item, str) and reference.is_digest(item) for item in diff_ids
    ):
        raise malformed(f"{what} has no list of diffIDs")
    if len(diff_ids) != layers:
        raise malformed(f"{what} names {len(diff_ids)} layers, the manifest {layers}")
    config = value.get("config") or {}
    if not isinstance(config, dict):
        raise malformed(f"{what}: config is not an object")
    for key in ("Entrypoint", "Cmd", "Env"):
        words = config.get(key)
        if key != "Env" and isinstance(words, str) and _is_text(words) and len(words) <= _MAX_WORD:
            continue  # docker takes a string for a list of one word
        if words is not None and not (isinstance(words, list) and all(map(_is_text, words))):
            raise malformed(f"{what}: {key} is not a list of strings")
        if words and (sum(map(len, words)) > _MAX_WORDS or max(map(len, words)) > _MAX_WORD):
            raise malformed(f"{what}: {key} is longer than a program can be given")
    for key in ("User", "WorkingDir", "StopSignal"):
        if config.get(key) is not None and not (_is_text(config[key]) and len(config[key]) < _MAX_PATH):
            raise malformed(f"{what}: {key} is not a string of less than {_MAX_PATH} characters")
    if max(map(len, str(config.get("WorkingDir") or "").encode().split(b"/"))) > _MAX_NAME:
        raise malformed(f"{what}: WorkingDir is not a path")
    for key in ("Volumes", "ExposedPorts", "Labels"):
        if config.get(key) is not None and not isinstance(config[key], dict):
            raise malformed(f"{what}: {key} is not an object")
    return Configuration(diff_ids, config, str(value.get("os") or ""), str(value.get("architecture") or ""))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value
