"""The functions behind ``podrun image``. They take and return data; none of them prints."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from podrun.errors import BUSY, UNAVAILABLE, WRONG_FILE, Failure, of_oserror
from podrun_hooks.image import manifest, reference
from podrun_hooks.image.fetch import Progress
from podrun_hooks.image.layer.stream import chunks_in_time, malformed
from podrun_hooks.image.pull import pull as _pull
from podrun_hooks.image.reference import Reference
from podrun_hooks.image.sources import host
from podrun_hooks.image.store import layout, leftovers, publish
from podrun_hooks.image.store.index import list_in_index, listed_digests
from podrun_hooks.image.store.locks import locked
from podrun_hooks.image.store.scratch import names_in, reclaim, remove, work
from podrun_hooks.image.store.stack import attribute_layer_name, visible
from podrun_hooks.image.store.unclaimed import forget_marks
from podrun_hooks.image.trust.requirements import Verify, demands, proved

#: Returns the images that pods use now: the digests in their facts, and each image step's ``ref`` in a journal.
Used = Callable[[], AbstractSet[str]]


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


class Made(NamedTuple):
    """A build step of an image, as the history in its configuration states it."""

    #: diffID of the layer that the step created; "" if it created none.
    layer: str
    created: str
    #: Bytes of the layer's files on the disk.
    size: int
    created_by: str
    comment: str


class Removed(NamedTuple):
    """The names that were removed, and the bytes that were freed on the disk."""

    refs: list[str]
    freed: int


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


def import_(root: str, path: str, notify: Callable[[str], None] = _quietly, name: str = "") -> list[layout.Image]:
    """Imports every image of a layout, an archive of one, or a docker archive; detects which of these ``path`` is.

    As with ``docker load``, an image gets its name in the archive, or ``name``; if there is neither, its name is the
    archive's path. "-" is standard input.
    """
    if os.path.isdir(path):
        path = os.path.abspath(path)
        return _named(root, [f"oci:{path}{tag}" for tag in _tags_of_layout(f"{path}/index.json")], name, notify)
    publish.prepare(root)
    from podrun_hooks.image.sources import archive

    with work(root) as scratch:
        if path == "-" or not _is_file(path):
            path = _spooled(path, scratch)
        path = os.path.abspath(path)
        kind, tags = archive.contents(Reference(reference.OCI_ARCHIVE, path, path=path), scratch)
        return _named(root, [f"{kind}:{path}{tag}" for tag in tags], name, notify, strict=path.startswith(scratch))


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
    root: str, refs: list[str], name: str, notify: Callable[[str], None], *, strict: bool = False
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
        image = pull(root, ref, notify=notify)
        if own:
            image = tag(root, image.ref, own)
            if not known:
                untag(root, [reference.parse(ref).text])
        images.append(image)
    return images


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
        for _, one in _found(root, ref, cwd):
            # Drop the image's origin, so that no later pull compares with it: the name counts as pulled.
            made = one._replace(ref=named.text, source=[], remote=one.digest)
            publish.put_record(root, scratch, made)
            content = _read(layout.blob(root, one.digest))
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
    """Removes names; the images stay until ``prune``. Raises Failure (UNAVAILABLE) for a name that does not exist."""
    with locked(root, "store", shared=True), work(root) as scratch:
        found = [pair for ref in refs for pair in _found(root, ref, cwd)]
        for path, one in found:
            os.unlink(path)
            list_in_index(root, scratch, reference.layout_name(reference.parse(one.ref)), None)
    return [one.ref for _, one in found]


def _platform_of(root: str, stored: layout.Stored) -> dict[str, str]:
    """The platform in the image's configuration; the one that was asked for if the configuration cannot be read."""
    try:
        content = _read(layout.blob(root, stored.digest))
        found = manifest.manifest(content, manifest.Descriptor("", stored.digest, len(content)), stored.ref)
        config = json.loads(_read(layout.blob(root, found.config.digest)))
        platform = {key: str(config.get(key) or "") for key in ("os", "architecture", "variant")}
    except (Failure, ValueError, AttributeError):
        platform = dict(zip(("os", "architecture", "variant"), [*stored.platform.split("/"), "", ""], strict=False))
    return {key: value for key, value in platform.items() if value}


def _tags_of_layout(index: str) -> list[str]:
    from podrun_hooks.image.sources.archive import opened, tags_of

    with opened(index, "image layout") as file:
        return tags_of(manifest.document(file.read(manifest.MAX_DOCUMENT + 1), index))


def ls(root: str) -> list[Listed]:
    """The images in the store, sorted by name."""
    return sorted(
        Listed(
            one.ref,
            one.digest,
            "/".join(_platform_of(root, one).values()),
            _size(root, one),
            one.pulled,
            id_of(root, one),
        )
        for _, one in _records(root)
    )


def _size(root: str, stored: layout.Stored) -> int:
    digests = {stored.digest}
    if os.path.exists(layout.blob(root, stored.digest)):
        found = _manifest(root, stored.digest)
        digests |= {found.config.digest, *(layer.digest for layer in found.layers)}
    paths = (layout.blob(root, digest) for digest in digests)
    blobs = sum(os.stat(path).st_blocks * 512 for path in paths if os.path.exists(path))
    return blobs + sum(int((publish.about_layer(root, name) or {}).get("size_on_disk", 0)) for name in stored.layers)


def inspect(root: str, ref: str, cwd: str = "") -> list[dict[str, Any]]:
    """Describes the images with a name or digest: record, layer directories, manifest and configuration of each.

    Raises Failure (UNAVAILABLE) if there is none.
    """
    shown = []
    for _, one in _found(root, ref, cwd):
        image = layout.image(root, one)
        found = _manifest(root, one.digest)
        shown.append(
            {
                **{key: value for key, value in one._asdict().items() if key not in ("layers", "source", "stdio")},
                "id": found.config.digest,
                "layers": image.layers,
                "manifest": json.loads(_read(layout.blob(root, one.digest))),
                "configuration": json.loads(_read(layout.blob(root, found.config.digest))),
            }
        )
    return shown


def history(root: str, ref: str, cwd: str = "") -> list[Made]:
    """The build steps of an image, the newest first. Raises Failure (UNAVAILABLE) if it is not in the store."""
    _, stored = _found(root, ref, cwd)[0]
    found = _manifest(root, stored.digest)
    text = _read(layout.blob(root, found.config.digest))
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


def export(root: str, ref: str, path: str, form: str = "oci-archive", cwd: str = "") -> str:
    """Writes an image to a path, or standard output ("-"), in one of export.FORMATS; returns the image's digest."""
    from podrun_hooks.image import export as exporting

    _, stored = _found(root, ref, cwd)[0]
    names = [exporting.name_of(stored)] if stored.ref == _text_of(ref, cwd) else []
    if not any(names):
        same = [one for _, one in _records(root) if one.digest == stored.digest and one.platform == stored.platform]
        names = [exporting.name_of(one) for one in same] or [""]
    if not any(names):
        names = [_only_name_in(root, stored.ref)]
    with locked(root, "store", shared=True):
        exporting.export(root, stored, list(dict.fromkeys(filter(None, names))), path, form)
    return stored.digest


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


def rm(root: str, refs: list[str], used: Used, cwd: str = "") -> Removed:
    """Removes names, and the data that no other name and no pod needs.

    Raises Failure, having removed nothing: UNAVAILABLE for a name that does not exist, BUSY for one that a pod uses.
    """
    if not os.path.isdir(layout.base(root)):
        raise Failure(f"{refs[0]} is not in the store" if refs else "nothing to remove", code=UNAVAILABLE)
    with locked(root, "store", wait=False), work(root) as scratch:
        wanted = [pair for ref in refs for pair in _found(root, ref, cwd)]
        return _remove(root, scratch, wanted, used, strict=True)


def prune(root: str, used: Used, unused: bool = False) -> Removed:
    """Removes data that no name and no pod needs; with ``unused`` also names that no pod uses."""
    if not os.path.isdir(layout.base(root)):
        return Removed([], 0)
    publish.prepare(root)
    reclaim(root)
    with locked(root, "store", wait=False), work(root) as scratch:
        return _remove(root, scratch, list(_records(root)) if unused else [], used, strict=False)


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


# --- finding


def _records(root: str) -> list[tuple[str, layout.Stored]]:
    directory = f"{layout.base(root)}/refs"
    if not os.path.isdir(directory):
        return []
    pairs = ((f"{directory}/{name}", layout.read(f"{directory}/{name}")) for name in sorted(os.listdir(directory)))
    return [(path, one) for path, one in pairs if one is not None]


def _found(root: str, ref: str, cwd: str) -> list[tuple[str, layout.Stored]]:
    """The records, with their paths, of a name (on every platform), a digest, or the first digits of a digest."""
    digits = ref.removeprefix("sha256:")
    records = _records(root)
    text = _text_of(ref, cwd)
    found = [pair for pair in records if pair[1].ref == text]
    if not found and len(digits) >= 6:
        found = [pair for pair in records if pair[1].digest.removeprefix("sha256:").startswith(digits)]
        # Docker and podman call an image by the digest of its configuration.
        found = found or [pair for pair in records if id_of(root, pair[1]).removeprefix("sha256:").startswith(digits)]
    if not found:
        raise Failure(f"{text or ref} is not in the store", code=UNAVAILABLE, hint="see podrun image ls")
    return found


def id_of(root: str, stored: layout.Stored) -> str:
    """The digest of an image's configuration; "" for what has none."""
    try:
        return _manifest(root, stored.digest).config.digest
    except (Failure, OSError):
        return ""


def named_by(root: str, ref: str) -> str:
    """The name of the stored image with this id or digest, or the first digits of one; ``ref`` where it is a name."""
    try:
        return _found(root, ref, "")[0][1].ref
    except Failure:
        return ref


def _text_of(ref: str, cwd: str) -> str:
    """A name as the store's records spell it; "" if it is none."""
    try:
        return reference.parse(ref, cwd).text
    except Failure:
        return ""


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(manifest.MAX_DOCUMENT + 1)
    except FileNotFoundError:
        raise malformed(f"the store lacks {os.path.basename(path)[:12]}; pull the image again") from None


def _manifest(root: str, digest: str) -> manifest.Manifest:
    content = _read(layout.blob(root, digest))
    return manifest.manifest(content, manifest.Descriptor("", digest, len(content)), digest[:19])


# --- removing


def _remove(root: str, scratch: str, wanted: list[tuple[str, layout.Stored]], used: Used, *, strict: bool) -> Removed:
    """Moves the names aside before it asks which are in use. A pod writes its intent into its journal before it reads a
    name, so it is seen; a pod that finds no name has to pull, and waits for our lock."""
    busy = {spelled(text) for text in used()}
    free = [pair for pair in wanted if pair[1].ref not in busy and pair[1].digest not in busy]
    if strict and len(free) < len(wanted):
        ref = next(one.ref for path, one in wanted if (path, one) not in free)
        raise Failure(f"{ref} is in use by a pod", code=BUSY, hint="podrun ps shows which")
    aside = [(path, one, f"{scratch}/{number}") for number, (path, one) in enumerate(free)]
    moved = []
    gone = []
    try:
        for path, one, kept in aside:
            if os.path.exists(path):
                os.rename(path, kept)
                moved.append((path, one, kept))
        busy = {spelled(text) for text in used()}
        for path, one, kept in moved:
            if one.ref in busy or one.digest in busy:
                if strict:
                    raise Failure(f"{one.ref} is in use by a pod", code=BUSY, hint="podrun ps shows which")
                os.rename(kept, path)
            else:
                gone.append(one)
    except BaseException:
        for path, _, kept in moved:
            if os.path.exists(kept):
                os.rename(kept, path)
        raise
    left = {one.ref for _, one in _records(root)}
    for one in gone:
        if one.ref not in left:
            list_in_index(root, scratch, reference.layout_name(reference.parse(one.ref)), None)
    return Removed([one.ref for one in gone], _garbage(root, scratch, busy))


def spelled(text: str) -> str:
    """The normalized spelling of an image's name; leaves digests and other texts as they are."""
    try:
        return text if reference.is_digest(text) or text.startswith("host:") else reference.parse(text).text
    except Failure:
        return text


def _garbage(root: str, scratch: str, busy: AbstractSet[str]) -> int:
    """Removes the blobs and layers that neither a record nor a digest in ``busy`` needs; returns the bytes freed."""
    records = [one for _, one in _records(root)]
    blobs = {digest.removeprefix("sha256:") for digest in listed_digests(root)}
    layers: set[str] = {name for one in records for name in one.layers}
    layers |= {f"host-{text.removeprefix('host:')}" for text in busy if text.startswith("host:")}
    for digest in {one.digest for one in records} | {text for text in busy if reference.is_digest(text)}:
        if not os.path.exists(layout.blob(root, digest)):
            continue
        found = _manifest(root, digest)
        text = _read(layout.blob(root, found.config.digest))
        diff_ids = manifest.configuration(text, len(found.layers), digest[:19]).diff_ids
        blobs |= {digest[7:], found.config.digest[7:], *(layer.digest[7:] for layer in found.layers)}
        layers |= {diff_id[7:] for diff_id in diff_ids}
        layers.add(attribute_layer_name(visible(root, diff_ids)))
    freed = 0
    base = layout.base(root)
    for name in os.listdir(f"{base}/blobs/sha256"):
        if name not in blobs:
            freed += os.lstat(f"{base}/blobs/sha256/{name}").st_blocks * 512
            os.unlink(f"{base}/blobs/sha256/{name}")
    for name in os.listdir(f"{base}/verified"):
        if not os.path.exists(f"{base}/blobs/sha256/{name.partition('-')[0]}"):
            os.unlink(f"{base}/verified/{name}")
    for name in names_in(f"{base}/pairs"):
        if name.partition("-")[0] not in blobs:
            os.unlink(f"{base}/pairs/{name}")
    now = host.ready(root)
    layers |= {os.path.basename(path) for path in (now.layers if now else [])}
    for name in os.listdir(f"{base}/layers"):
        if name.removesuffix(".json") in layers:
            continue
        path = f"{base}/layers/{name}"
        if name.endswith(".json"):
            os.unlink(path)
            continue
        freed += _on_disk(path)
        os.rename(path, f"{scratch}/{name}")
        remove(f"{scratch}/{name}")
    forget_marks(root)
    return freed


def _on_disk(path: str) -> int:
    """Bytes of the files below a directory; a file with several hard links counts once."""
    inodes: dict[int, int] = {}
    for directory, _, names in os.walk(path):
        for name in names:
            status = os.lstat(f"{directory}/{name}")
            inodes[status.st_ino] = status.st_blocks * 512
    return sum(inodes.values())
