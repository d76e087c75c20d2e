"""``host:``: the machine itself as an image: its /usr, read-only, in a root directory that holds none of its secrets.

From /etc it copies only what programs in /usr need to run and every user may read anyway: the loader's cache,
alternatives, CA certificates. Users and a few other files are replaced by generic ones; keys and the rest are left out.
"""

from __future__ import annotations

import os
import stat

from podrun_hooks.image.store import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Files and directories (with their files and symlinks) below /etc that are copied if they exist.
_COPIED = (
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "alternatives",
    "ssl/openssl.cnf",
    "ssl/certs",
    "ca-certificates.conf",
    "ca-certificates",
    "pki/tls/certs",
    "pki/ca-trust/extracted",
    "crypto-policies",
    "protocols",
    "services",
    "localtime",
    "mime.types",
)
#: Top-level directories that most machines have merged into /usr and keep as symlinks.
_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")

_WRITTEN = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\nnogroup:x:65534:\nnobody:x:65534:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\nservices: files\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "hostname": "localhost\n",
    "resolv.conf": "",
    "shells": "/bin/sh\n",
}
_DIRECTORIES = {
    "tmp": 0o1777, "root": 0o700, "run": 0o755, "dev": 0o755, "proc": 0o555, "sys": 0o555, "usr": 0o755,
    "home": 0o755, "mnt": 0o755, "srv": 0o755, "opt": 0o755, "var": 0o755, "var/tmp": 0o1777, "var/lib": 0o755,
    "var/cache": 0o755, "var/log": 0o755, "var/spool": 0o755,
}  # fmt: skip

_CONFIG: dict[str, Any] = {
    "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
    "WorkingDir": "/",
    "Cmd": ["/bin/sh"],
}
#: Part of the directory's name. Raise it when this module fills the directory differently.
_FORM = 1
_OPTIONS = ["rbind", "ro", "rro", "nosuid", "nodev"]


def ready(root: str) -> layout.Image | None:
    """The image of the machine as it is now; None if its directory has to be created first."""
    name = _name()
    path = layout.layer(root, name)
    try:
        os.lstat(path)
    except FileNotFoundError:
        return None
    return layout.Image("host:", f"host:{name.removeprefix('host-')}", [path], _CONFIG, _mounts())


def make(root: str) -> layout.Image:
    """The image of the machine as it is now; creates its directory if needed. Raises Failure if the disk is full."""
    from podrun.errors import of_oserror
    from podrun_hooks.image.store import publish
    from podrun_hooks.image.store.locks import locked
    from podrun_hooks.image.store.scratch import reclaim, work

    publish.prepare(root)
    reclaim(root)
    with locked(root, "store", shared=True), locked(root, "host"):
        found = ready(root)
        while found is None:
            with work(root) as scratch:
                name = _name()
                try:
                    written = publish.Written(f"{scratch}/host", "", name)
                    os.mkdir(written.scratch)
                    _fill(written.unpacked)
                    publish.publish_written(root, scratch, [(written, {})], {})
                except OSError as error:
                    raise of_oserror(error, "host:") from None
            # The name may have changed: a package was installed meanwhile.
            found = ready(root)
        return found


def _mounts() -> list[dict[str, Any]]:
    split = [f"/{name}" for name in _SYSTEM if os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}")]
    return [
        {"hostPath": path, "containerPath": path, "type": "bind", "options": list(_OPTIONS)}
        for path in ("/usr", *split)
    ]


def _name() -> str:
    """A name that changes whenever one of the copied files does."""
    from _blake2 import blake2s

    seen: list[Any] = [_FORM, os.getuid()]
    for path in (*(f"/etc/{name}" for name in _COPIED), *(f"/{name}" for name in _SYSTEM)):
        try:
            status = os.lstat(path)
        except OSError:
            continue
        seen += (path, status.st_mtime_ns, status.st_ino, status.st_mode, status.st_size)
    return f"host-{blake2s(repr(seen).encode(), digest_size=16).hexdigest()}"


def _fill(target: str) -> None:
    _directory(target)
    for name, mode in _DIRECTORIES.items():
        _directory(f"{target}/{name}", mode)
    os.symlink("/run", f"{target}/var/run")
    for name in _SYSTEM:
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{target}/{name}")
        elif os.path.isdir(f"/{name}"):
            _directory(f"{target}/{name}")
    _directory(f"{target}/etc")
    for name, content in _WRITTEN.items():
        _write(f"{target}/etc/{name}", content.encode())
    for name in _COPIED:
        if os.path.lexists(f"/etc/{name}"):
            _make_parents(f"{target}/etc", name)
            _copy(f"/etc/{name}", f"{target}/etc/{name}")


def _make_parents(top: str, name: str) -> None:
    parts = name.split("/")[:-1]
    for count in range(1, len(parts) + 1):
        path = f"{top}/{'/'.join(parts[:count])}"
        if not os.path.isdir(path):
            _directory(path)


def _copy(path: str, to: str) -> None:
    """Copies files and directories that everybody may read, and symlinks as they are; leaves the rest out."""
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(path), to)
    elif stat.S_ISDIR(status.st_mode) and status.st_mode & 0o005 == 0o005:
        _directory(to)
        for name in os.listdir(path):
            _copy(f"{path}/{name}", f"{to}/{name}")
    elif stat.S_ISREG(status.st_mode) and status.st_mode & 0o004:
        with open(path, "rb") as file:
            _write(to, file.read())
        os.utime(to, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _directory(path: str, mode: int = 0o755) -> None:
    os.mkdir(path)
    # mkdir(2) applies the umask; chmod(2) does not.
    os.chmod(path, mode)


def _write(path: str, content: bytes) -> None:
    with open(path, "xb") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(content)
