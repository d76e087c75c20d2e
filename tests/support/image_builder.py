"""Builds images for tests: layers with any tar entry, OCI layouts and docker archives around them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from typing import Any, NamedTuple

BLOCK = 512


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


# --- layers


def field(value: int, width: int) -> bytes:
    """An octal field, or base-256 for what octal cannot say."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    raw = bytearray(value.to_bytes(width, "big", signed=True))
    raw[0] |= 0x80
    return bytes(raw)


def header(
    name: bytes,
    kind: bytes = b"0",
    size: int | bytes = 0,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 1_700_000_000,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    prefix: bytes = b"",
) -> bytes:
    """One raw tar header, with nothing checked."""
    sized = size if isinstance(size, bytes) else field(size, 12)
    block = bytearray(
        name[:100].ljust(100, b"\0")
        + field(mode, 8)
        + field(uid, 8)
        + field(gid, 8)
        + sized
        + field(mtime, 12)
        + b" " * 8
        + kind
        + link[:100].ljust(100, b"\0")
        + b"ustar\x0000"
        + bytes(64)
        + field(device[0], 8)
        + field(device[1], 8)
        + prefix.ljust(155, b"\0")
    ).ljust(BLOCK, b"\0")
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def pax(records: dict[bytes, bytes] | bytes) -> bytes:
    """A PAX extended header for the entry after it."""
    if isinstance(records, dict):
        content = b""
        for key, value in records.items():
            length = len(key) + len(value) + 3
            length += len(str(length + len(str(length))))
            content += b"%d %s=%s\n" % (length, key, value)
    else:
        content = records
    return header(b"PaxHeaders/x", b"x", len(content)) + padded(content)


def file(name: bytes | str, content: bytes = b"", **fields: Any) -> bytes:
    raw = name.encode() if isinstance(name, str) else name
    return header(raw, b"0", len(content), **fields) + padded(content)


def directory(name: bytes | str, mode: int = 0o755, **fields: Any) -> bytes:
    raw = name.encode() if isinstance(name, str) else name
    return header(raw, b"5", mode=mode, **fields)


def symlink(name: str, target: str, **fields: Any) -> bytes:
    return header(name.encode(), b"2", mode=0o777, link=target.encode(), **fields)


def hardlink(name: str, target: str) -> bytes:
    return header(name.encode(), b"1", link=target.encode())


def tar(*parts: bytes, end: bool = True) -> bytes:
    """A layer's plain tar stream of raw parts."""
    return b"".join(parts) + (bytes(2 * BLOCK) if end else b"")


def tar_of(build: Any) -> bytes:
    """A plain tar stream written by tarfile: ``build(archive)`` adds what it likes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        build(archive)
    return buffer.getvalue()


# --- images


class Layer(NamedTuple):
    """A layer's plain tar stream, and how it is stored: "gzip", "zstd" or "" """

    plain: bytes
    compression: str = "gzip"
    #: Instead of the compressed stream: what a broken image has.
    stored: bytes | None = None
    diff_id: str = ""

    def blob(self) -> bytes:
        if self.stored is not None:
            return self.stored
        if self.compression == "gzip":
            return gzip.compress(self.plain, 1, mtime=0)
        if self.compression == "zstd":
            return subprocess.run(["zstd", "-q", "-c"], input=self.plain, capture_output=True, check=True).stdout
        return self.plain

    def media_type(self) -> str:
        base = "application/vnd.oci.image.layer.v1.tar"
        return f"{base}+{self.compression}" if self.compression else base


class Built(NamedTuple):
    """An image's blobs by digest, and its manifest."""

    blobs: dict[str, bytes]
    manifest: bytes
    config: bytes

    @property
    def digest(self) -> str:
        return digest(self.manifest)


def image(*layers: Layer | bytes, architecture: str = "amd64", variant: str = "", **config: Any) -> Built:
    """An image of layers, lowest first; plain bytes are a gzip'd layer of them."""
    blobs: dict[str, bytes] = {}
    described = []
    diff_ids = []
    for layer in layers:
        layer = layer if isinstance(layer, Layer) else Layer(layer)
        blob = layer.blob()
        blobs[digest(blob)] = blob
        described.append({"mediaType": layer.media_type(), "digest": digest(blob), "size": len(blob)})
        diff_ids.append(layer.diff_id or digest(layer.plain))
    configuration: dict[str, Any] = {
        "architecture": architecture,
        "os": "linux",
        "config": config or {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    if variant:
        configuration["variant"] = variant
    text = json.dumps(configuration).encode()
    blobs[digest(text)] = text
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(text),
                "size": len(text),
            },
            "layers": described,
        }
    ).encode()
    blobs[digest(manifest)] = manifest
    return Built(blobs, manifest, text)


def descriptor(built: Built, **more: Any) -> dict[str, Any]:
    return {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": built.digest,
        "size": len(built.manifest),
        **more,
    }


def layout(path: str, images: dict[str, Built]) -> str:
    """Writes an OCI image layout with images by name ("" for none); returns its path."""
    os.makedirs(f"{path}/blobs/sha256", exist_ok=True)
    with open(f"{path}/oci-layout", "w") as marker:
        marker.write('{"imageLayoutVersion":"1.0.0"}')
    items = []
    for name, built in images.items():
        for known, content in built.blobs.items():
            with open(f"{path}/blobs/sha256/{known[7:]}", "wb") as blob:
                blob.write(content)
        notes = {"annotations": {"org.opencontainers.image.ref.name": name}} if name else {}
        items.append(descriptor(built, **notes))
    with open(f"{path}/index.json", "w") as index:
        json.dump({"schemaVersion": 2, "manifests": items}, index)
    return path


def multi_platform(path: str, name: str, images: dict[str, Built]) -> str:
    """Writes a layout with one image index for images by "os/architecture[/variant]"; returns the index's digest."""
    layout(path, dict(images.items()))
    manifests = []
    for platform, built in images.items():
        system, architecture, *variant = platform.split("/")
        of = {"os": system, "architecture": architecture, **({"variant": variant[0]} if variant else {})}
        manifests.append(descriptor(built, platform=of))
    kind = "application/vnd.oci.image.index.v1+json"
    index = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": manifests}).encode()
    with open(f"{path}/blobs/sha256/{digest(index)[7:]}", "wb") as blob:
        blob.write(index)
    notes = {"org.opencontainers.image.ref.name": name}
    top = {"mediaType": kind, "digest": digest(index), "size": len(index), "annotations": notes}
    with open(f"{path}/index.json", "w") as file:
        json.dump({"schemaVersion": 2, "manifests": [top]}, file)
    return digest(index)


def add_to(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def docker_archive(path: str, images: dict[str, Built], compressed: bool = False) -> str:
    """Writes what ``docker save`` of old wrote: a directory per layer, one that is shared only once, links to it."""
    written: dict[str, str] = {}
    listed = []
    with tarfile.open(path, "w") as archive:
        for number, (name, built) in enumerate(images.items()):
            config = json.loads(built.config)
            manifest = json.loads(built.manifest)
            names = []
            for index, layer in enumerate(manifest["layers"]):
                blob = built.blobs[layer["digest"]]
                content = blob if compressed or blob[:2] != b"\x1f\x8b" else gzip.decompress(blob)
                member = f"image{number}-{index}/layer.tar"
                if digest(content) in written:
                    link = tarfile.TarInfo(member)
                    link.type = tarfile.SYMTYPE
                    link.linkname = f"../{written[digest(content)]}"
                    archive.addfile(link)
                else:
                    add_to(archive, member, content)
                    written[digest(content)] = member
                names.append(member)
            config_name = f"{digest(json.dumps(config).encode())[7:]}.json"
            add_to(archive, config_name, json.dumps(config).encode())
            listed.append({"Config": config_name, "RepoTags": [name] if name else None, "Layers": names})
        add_to(archive, "manifest.json", json.dumps(listed).encode())
    return path


# --- what came out


def _content(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree(path: str) -> dict[str, tuple[Any, ...]]:
    """Everything below a directory: type, mode, owner, size, target, device, xattrs and number of links, of a file also
    what is in it and its mtime."""
    found: dict[str, tuple[Any, ...]] = {}
    pending = [""]
    while pending:
        below = pending.pop()
        for item in os.scandir(f"{path}/{below}"):
            name = f"{below}/{item.name}" if below else item.name
            status = item.stat(follow_symlinks=False)
            keys = [
                key for key in os.listxattr(item.path, follow_symlinks=False) if not key.startswith("trusted.overlay.")
            ]
            directory = item.is_dir(follow_symlinks=False)
            found[name] = (
                oct(status.st_mode),
                status.st_uid,
                status.st_gid,
                0 if directory else status.st_size,
                os.readlink(item.path) if item.is_symlink() else "",
                status.st_rdev,
                tuple(sorted((key, os.getxattr(item.path, key, follow_symlinks=False)) for key in keys)),
                0 if directory else status.st_nlink,
                (_content(item.path), status.st_mtime_ns) if item.is_file(follow_symlinks=False) else "",
            )
            if directory:
                pending.append(name)
    return found
