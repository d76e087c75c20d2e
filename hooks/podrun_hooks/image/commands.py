"""The functions behind ``podrun image``. They take and return data; none of them prints."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from podrun.errors import WRONG_FILE, Failure, of_oserror
from podrun_hooks.image import lookup, manifest, reference
from podrun_hooks.image.fetch import Progress
from podrun_hooks.image.layer.stream import chunks_in_time
from podrun_hooks.image.pull import pull as _pull
from podrun_hooks.image.reference import Reference
from podrun_hooks.image.removal import Used as Used
from podrun_hooks.image.removal import prune as prune
from podrun_hooks.image.removal import rm as rm
from podrun_hooks.image.removal import spelled as spelled
from podrun_hooks.image.sources import host
from podrun_hooks.image.store import layout, leftovers, publish
from podrun_hooks.image.store.index import list_in_index
from podrun_hooks.image.store.locks import locked
from podrun_hooks.image.store.scratch import work
from podrun_hooks.image.trust.requirements import Verify, demands, proved


class Listed(NamedTuple):
    """An image in the store. ``pulled`` is in seconds since 1970; ``size`` counts the bytes of its blobs and unpacked
    layers on the disk; a blob or layer that several images share counts for each."""

    ref: str
    digest: str
    platform: str
    size: int
    pulled: float
    #: The digest of its configuration, docker's and podman's "image id".
    id: str = ""
    #: When it was built (RFC 3339), and its labels, as its configuration states them.
    created: str = ""
    labels: dict[str, str] = {}


class Made(NamedTuple):
    """A build step of an image, as the history in its configuration states it."""

    #: diffID of the layer that the step created; "" if it created none.
    layer: str
    created: str
    #: Bytes of the layer's files on the disk.
    size: int
    created_by: str
    comment: str


def _quietly(_assignments: str) -> None:
    pass


def pull(
    root: str,
    ref: str,
    policy: str = "always",
    platform: str = "",
    notify: Callable[[str], None] = _quietly,
    cwd: str = "",
    verify: Verify | None = None,
    progress: Progress | None = None,
    changed: bool = False,
) -> layout.Image:
    """Pulls an image of any kind into the store. ``podrun image pull`` prints its ``digest``.

    Relative paths in ``ref`` start from ``cwd`` (absolute). ``changed``: the caller knows that the name no longer
    resolves to the stored image (see freshness.ask). Raises Failure as the hook does.
    """
    named = reference.parse(ref, cwd)
    demanded = demands(verify, named)
    if named.kind == reference.HOST:
        return host.make(root)
    if named.kind == reference.DIR:
        if not os.path.isdir(named.path):
            raise Failure(f"{named.path} is not a directory", code=WRONG_FILE)
        return layout.Image(named.text, "", [named.path], {})
    found = layout.cached(root, named, policy, platform)
    if found and proved(root, demanded, found.digest):
        return found
    return _pull(root, named, policy, platform, notify, demanded, progress, changed)


def import_(
    root: str, path: str, notify: Callable[[str], None] = _quietly, name: str = "", progress: Progress | None = None
) -> list[layout.Image]:
    """Imports every image of a layout, an archive of one, or a docker archive; detects which of these ``path`` is.

    As with ``docker load``, an image gets its name in the archive, or ``name``; if there is neither, its name is the
    archive's path. "-" is standard input.
    """
    if os.path.isdir(path):
        path = os.path.abspath(path)
        return _named(
            root, [f"oci:{path}{tag}" for tag in _tags_of_layout(f"{path}/index.json")], name, notify, progress
        )
    publish.prepare(root)
    from podrun_hooks.image.sources import archive

    with work(root) as scratch:
        place = _spooled(path, scratch) if path == "-" or not _is_file(path) else os.path.abspath(path)
        try:
            kind, tags = archive.contents(Reference(reference.OCI_ARCHIVE, place, path=place), scratch)
            refs = [f"{kind}:{place}{tag}" for tag in tags]
            return _named(root, refs, name, notify, progress, strict=place.startswith(scratch))
        except Failure as failure:
            # Nobody knows where a pipe's content lies.
            shown = "standard input" if path == "-" else path
            failure.what = failure.what.replace(place, shown) if place.startswith(scratch) else failure.what
            raise


#: Seconds for which a pipe may send nothing.
_SILENCE = 30.0


def _is_file(path: str) -> bool:
    """Whether a path can be read more than once; /dev/stdin and process substitutions are pipes and cannot."""
    return os.path.isfile(path) or not os.path.exists(path)


def _spooled(path: str, scratch: str) -> str:
    """Copies the content of a pipe into a file on the store's file system; returns its path."""
    place = f"{scratch}/archive"
    try:
        # O_NONBLOCK: else opening a FIFO waits for a writer.
        fd = os.dup(0) if path == "-" else os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(fd, "rb", buffering=0) as pipe, open(place, "xb") as file:
            # No time-out for standard input: a person can end that.
            for chunk in chunks_in_time(pipe, "the archive", None if path == "-" else _SILENCE):
                file.write(chunk)
    except OSError as error:
        raise of_oserror(error, "reading the archive") from None
    return place


def _named(
    root: str,
    refs: list[str],
    name: str,
    notify: Callable[[str], None],
    progress: Progress | None,
    *,
    strict: bool = False,
) -> list[layout.Image]:
    """Pulls images from an archive and gives them their own names. ``strict``: the archive's path must not be one."""
    if name and len(refs) != 1:
        raise Failure(f"there are {len(refs)} images in it, and one name", code=WRONG_FILE)
    images = []
    for ref in refs:
        known = layout.stored(root, reference.parse(ref).text) is not None
        own = name or _name_in(ref)
        if strict and not own:
            what = "the archive does not say what the image is called"
            raise Failure(what, code=WRONG_FILE, hint="podrun image import --name NAME")
        image = pull(root, ref, notify=_importing(notify, reference.parse(ref).text, own), progress=progress)
        if own:
            image = tag(root, image.ref, own)
            if not known:
                untag(root, [reference.parse(ref).text])
        images.append(image)
    return images


def _importing(notify: Callable[[str], None], ref: str, name: str) -> Callable[[str], None]:
    """``notify`` for a pull of ``ref``, which it calls by the image's own name."""
    return lambda told: notify(told.replace(f"Pulling {ref}", f"Importing {name or ref}"))


def _name_in(ref: str) -> str:
    """The full name of an image in its archive; "" if the archive has only a tag or a number."""
    name = reference.parse(ref).tag
    if "/" not in name or name.startswith("@"):
        return ""
    try:
        return reference.parse(name).text
    except Failure:
        return ""


def tag(root: str, ref: str, name: str, cwd: str = "") -> layout.Image:
    """Gives an image in the store an additional name, in the form of a registry's image. Raises Failure."""
    named = reference.parse(name)
    if named.kind != reference.REGISTRY or named.digest:
        raise Failure(f"{name!r} cannot be a name: it is to be like registry.example/team/web:1.4", code=WRONG_FILE)
    with locked(root, "store", shared=True), work(root) as scratch:
        for _, one in lookup.find(root, ref, cwd):
            # Drop the image's origin, so that no later pull compares with it: the name counts as pulled.
            made = one._replace(ref=named.text, source=[], remote=one.digest)
            publish.put_record(root, scratch, made)
            content = lookup.read(layout.blob(root, one.digest))
            found = manifest.manifest(content, manifest.Descriptor("", one.digest, len(content)), one.ref)
            if found.descriptor.media_type != manifest.OCI_MANIFEST:
                content = manifest.as_oci(found)
            described = {
                "mediaType": manifest.OCI_MANIFEST,
                "digest": manifest.digest_of(content),
                "size": len(content),
                "platform": _platform_of(root, one),
            }
            list_in_index(root, scratch, reference.layout_name(named), described)
    return layout.image(root, made)


def untag(root: str, refs: list[str], cwd: str = "") -> list[str]:
    """Removes names, all of an image for an id or digest of it; the images stay until ``prune``.

    Raises Failure (UNAVAILABLE) for what does not exist.
    """
    with locked(root, "store", shared=True), work(root) as scratch:
        found = [pair for ref in refs for pair in lookup.find(root, ref, cwd)]
        for path, one in found:
            os.unlink(path)
            list_in_index(root, scratch, reference.layout_name(reference.parse(one.ref)), None)
    return [one.ref for _, one in found]


def _platform_of(root: str, stored: layout.Stored) -> dict[str, str]:
    """The platform in the image's configuration; the one that was asked for if the configuration cannot be read."""
    config = _configuration(root, stored)
    if config:
        platform = {key: str(config.get(key) or "") for key in ("os", "architecture", "variant")}
    else:
        platform = dict(zip(("os", "architecture", "variant"), [*stored.platform.split("/"), "", ""], strict=False))
    return {key: value for key, value in platform.items() if value}


def _configuration(root: str, stored: layout.Stored) -> dict[str, Any]:
    """An image's configuration; {} if it cannot be read."""
    try:
        content = lookup.read(layout.blob(root, stored.digest))
        found = manifest.manifest(content, manifest.Descriptor("", stored.digest, len(content)), stored.ref)
        config = json.loads(lookup.read(layout.blob(root, found.config.digest)))
    except (Failure, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _tags_of_layout(index: str) -> list[str]:
    from podrun_hooks.image.sources.archive import opened, tags_of

    with opened(index, "image layout") as file:
        return tags_of(manifest.document(file.read(manifest.MAX_DOCUMENT + 1), index))


def names(root: str) -> set[str]:
    """The names of the images in the store, for completion: no image is looked at."""
    return {one.ref for _, one in lookup.records(root)}


def ls(root: str) -> list[Listed]:
    """The images in the store, sorted by name."""
    rows = [_listed(root, one) for _, one in lookup.records(root)]
    return sorted(rows, key=lambda row: (row.ref, row.digest, row.platform))


def _listed(root: str, stored: layout.Stored) -> Listed:
    config = _configuration(root, stored)
    inner = config.get("config")
    labels = (inner.get("Labels") if isinstance(inner, dict) else None) or {}
    return Listed(
        stored.ref,
        stored.digest,
        "/".join(_platform_of(root, stored).values()),
        _size(root, stored),
        stored.pulled,
        lookup.id_of(root, stored),
        _line(config.get("created")),
        {str(key): str(value) for key, value in labels.items()} if isinstance(labels, dict) else {},
    )


def _size(root: str, stored: layout.Stored) -> int:
    digests = {stored.digest}
    if os.path.exists(layout.blob(root, stored.digest)):
        found = lookup.manifest_of(root, stored.digest)
        digests |= {found.config.digest, *(layer.digest for layer in found.layers)}
    paths = (layout.blob(root, digest) for digest in digests)
    blobs = sum(os.stat(path).st_blocks * 512 for path in paths if os.path.exists(path))
    return blobs + sum(int((publish.about_layer(root, name) or {}).get("size_on_disk", 0)) for name in stored.layers)


def inspect(root: str, ref: str, cwd: str = "") -> list[dict[str, Any]]:
    """Describes the images with a name or digest: record, layer directories, manifest and configuration of each.

    Raises Failure (UNAVAILABLE) if there is none.
    """
    shown = []
    for _, one in lookup.find(root, ref, cwd):
        image = layout.image(root, one)
        found = lookup.manifest_of(root, one.digest)
        shown.append(
            {
                **{key: value for key, value in one._asdict().items() if key not in ("layers", "source", "stdio")},
                "id": found.config.digest,
                "layers": image.layers,
                "manifest": json.loads(lookup.read(layout.blob(root, one.digest))),
                "configuration": json.loads(lookup.read(layout.blob(root, found.config.digest))),
            }
        )
    return shown


def history(root: str, ref: str, cwd: str = "") -> list[Made]:
    """The build steps of an image, the newest first. Raises Failure (UNAVAILABLE) if it is not in the store."""
    _, stored = lookup.find(root, ref, cwd)[0]
    found = lookup.manifest_of(root, stored.digest)
    text = lookup.read(layout.blob(root, found.config.digest))
    diff_ids = manifest.configuration(text, len(found.layers), stored.ref).diff_ids
    listed = json.loads(text).get("history")
    steps = [step for step in listed if isinstance(step, dict)] if isinstance(listed, list) else []
    # The history may have fewer steps than there are layers, and no digest proves it.
    unpacked = iter(diff_ids)
    made = []
    for step in steps or [{} for _ in diff_ids]:
        layer = "" if step.get("empty_layer") else next(unpacked, "")
        size = int((publish.about_layer(root, layer) or {}).get("size_on_disk", 0)) if layer else 0
        made.append(
            Made(layer, _line(step.get("created")), size, _line(step.get("created_by")), _line(step.get("comment")))
        )
    return made[::-1]


def _line(value: Any) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in str(value or "")).split())


def export(root: str, refs: list[str], path: str, form: str = "oci-archive", cwd: str = "") -> list[str]:
    """Writes images to a path, or standard output ("-"), in one of export.FORMATS; returns their digests."""
    from podrun_hooks.image import export as exporting

    wanted = [lookup.find(root, ref, cwd)[0][1] for ref in refs]
    named = [(one, _names_of(root, one, ref, cwd)) for one, ref in zip(wanted, refs, strict=True)]
    with locked(root, "store", shared=True):
        exporting.export(root, named, path, form)
    return [one.digest for one in wanted]


def _names_of(root: str, stored: layout.Stored, ref: str, cwd: str) -> list[str]:
    """The names under which an image is to be loaded from its archive."""
    from podrun_hooks.image import export as exporting

    names = [exporting.name_of(stored)] if stored.ref == lookup.text_of(ref, cwd) else []
    if not any(names):
        same = [
            one for _, one in lookup.records(root) if one.digest == stored.digest and one.platform == stored.platform
        ]
        names = [exporting.name_of(one) for one in same] or [""]
    if not any(names):
        names = [_only_name_in(root, stored.ref)]
    return list(dict.fromkeys(filter(None, names)))


def _only_name_in(root: str, ref: str) -> str:
    """The name that an archive which is still there has for its only image; "" where there is none."""
    from podrun_hooks.image.sources import archive

    named = reference.parse(ref)
    if named.tag or not os.path.isfile(named.path):
        return ""
    with work(root) as scratch:
        try:
            kind, tags = archive.contents(Reference(reference.OCI_ARCHIVE, named.path, path=named.path), scratch)
        except (Failure, OSError):
            return ""
        return _name_in(f"{kind}:{named.path}{tags[0]}") if len(tags) == 1 else ""


def collect(root: str) -> None:
    """Removes what killed processes, and failed pulls a day ago, left in the store; see leftovers.sweep()."""
    if os.path.isdir(layout.base(root)):
        leftovers.sweep(root)


def login(registry: str, user: str, password: str) -> str:
    """Checks credentials with a registry (host[:port]) and stores them; returns where.

    Raises Failure: NOT_ALLOWED, UNAVAILABLE, or WRONG_FILE if ``registry`` is not one.
    """
    from podrun_hooks.image.registry import credentials
    from podrun_hooks.image.registry.source import login

    if not user or not password or ":" in user or not (user + password).isprintable():
        raise Failure("a name without ':' and a password are wanted", code=WRONG_FILE)
    return login(_registry(registry), credentials.Credentials(user, password))


def logout(registry: str) -> bool:
    """Removes the credentials for a registry; returns False if there were none."""
    from podrun_hooks.image.registry import credentials

    return credentials.forget(_registry(registry))


def user_of(registry: str) -> str:
    """The user name that is stored for a registry; "" if there is none."""
    from podrun_hooks.image.registry import credentials

    return credentials.known(_registry(registry)).user


def registries() -> list[str]:
    """The registries for which credentials are stored."""
    from podrun_hooks.image.registry import credentials

    return credentials.stored()


def _registry(text: str) -> str:
    from podrun.options import Wrong
    from podrun_hooks.image.registry.config import location

    try:
        host, prefix = location(text)
    except Wrong as wrong:
        raise Failure(wrong.what, code=WRONG_FILE) from None
    if prefix:
        raise Failure(f"{text!r}: a registry is host[:port]", code=WRONG_FILE)
    return host
