"""The seccomp filter: compiled once for a profile and a set of capabilities, then read from the store.

libseccomp takes 15 ms to compile the containers project's profile, and crun asks it to at every start. crun also
takes a compiled filter, base64 in the annotation ``run.oci.seccomp_bpf_data``; runc takes a profile only.
"""

from __future__ import annotations

import os

from podrun.errors import WRONG_FILE, Failure, code_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

#: Stands for the content of seccomp.json in the names of cached filters; its end is from that content.
PINNED = "containers-common-0.50.1-82f08aee"
#: Changes when profile.py makes another filter of the same profile.
_COMPILER = "1"


def apply(
    config: dict[str, Any], profile: str, root: str, capabilities: Iterable[str], runtime: str, *, nested: bool = False
) -> None:
    """Puts the filter of ``profile`` ("default", "unconfined" or a path) into a runtime configuration.

    ``nested``: the default one lets it make user namespaces.

    ``root`` is $PODRUN_ROOT; ``capabilities`` are names without CAP_. Raises Failure (WRONG_FILE) for a bad profile.
    """
    if profile == "unconfined":
        return
    names = frozenset(capabilities)
    # A profile of somebody's own means what it says; CAP_SYS_ADMIN is no bar to namespaces anyway.
    nested = nested or profile != "default" or "SYS_ADMIN" in names
    if runtime == "crun":
        bpf = _cached(profile, root, names, "bpf", nested)
        if bpf:
            import binascii

            config["annotations"]["run.oci.seccomp_bpf_data"] = binascii.b2a_base64(bpf, newline=False).decode()
            return
    from podrun import jsontext

    config["linux"]["seccomp"] = jsontext.loads(_cached(profile, root, names, "json", nested).decode())


def _cached(profile: str, root: str, capabilities: frozenset[str], form: str, nested: bool = False) -> bytes:
    """The filter in one form: "bpf" (b"" where libseccomp is missing) or "json", the OCI spelling of the profile."""
    from _blake2 import blake2b

    content = None if profile == "default" else _content(profile)
    machine = os.uname()
    parts = [_COMPILER, PINNED, profile, machine.machine, machine.release, _libseccomp(machine.machine)]
    parts.append("nested" if nested else "flat")
    key = blake2b("\0".join([*parts, *sorted(capabilities)]).encode(), digest_size=16)
    key.update(content or b"")
    path = f"{root}/seccomp/{key.hexdigest()}.{form}"
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except FileNotFoundError:
        pass
    from podrun_hooks.container.seccomp import profile as profiles

    try:
        translated = profiles.translated(content, capabilities, machine.machine, machine.release)
        if not nested:
            translated = profiles.without_namespaces(translated, machine.machine)
        made = profiles.compiled(translated) if form == "bpf" else profiles.as_json(translated)
    except ValueError as error:
        raise Failure(f"seccomp profile {profile}: {error}", code=WRONG_FILE) from None
    if made:
        from podrun import atomic

        # A power cut could leave an empty file under a valid name, and no container would be protected.
        atomic.replace(path, made, parents=0o700, sync=True)
    return made


def _content(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise Failure(f"seccomp profile {path}: {error.strerror}", code=code_of(error)) from error


def _libseccomp(machine: str) -> str:
    """The version of the installed libseccomp as its file's name has it, found without loading it; "" for none."""
    for directory in (f"/usr/lib/{machine}-linux-gnu", "/usr/lib64", "/lib64", "/usr/lib", "/lib"):
        try:
            return os.readlink(f"{directory}/libseccomp.so.2")
        except OSError:
            continue
    return ""
