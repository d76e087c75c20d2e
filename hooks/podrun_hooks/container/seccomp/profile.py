"""seccomp profiles: the containers project's format, the OCI one, and what libseccomp compiles of them.

The data file seccomp.json is the default profile of github.com/containers/common, version 0.50.1, Apache-2.0.
"""

from __future__ import annotations

import ctypes
import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

#: uname(2)'s machine: the profile's architecture and the word of "includes": {"arches": [...]} (Go's GOARCH).
_MACHINES = {
    "x86_64": ("SCMP_ARCH_X86_64", "amd64"),
    "i686": ("SCMP_ARCH_X86", "x86"),
    "aarch64": ("SCMP_ARCH_AARCH64", "arm64"),
    "armv7l": ("SCMP_ARCH_ARM", "arm"),
    "ppc64le": ("SCMP_ARCH_PPC64LE", "ppc64le"),
    "s390x": ("SCMP_ARCH_S390X", "s390x"),
    "riscv64": ("SCMP_ARCH_RISCV64", "riscv64"),
}

# <seccomp.h>
_ACTIONS = {
    "SCMP_ACT_ALLOW": 0x7FFF0000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
}
_COMPARISONS = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"]
_CTL_OPTIMIZE, _BINARY_TREE = 8, 2
_NO_SUCH_SYSCALL = -1
_EPERM, _ENOSYS = 1, 38
#: CLONE_NEW* of <linux/sched.h>, but for the time namespace, whose number is that of a signal.
_NAMESPACES = 0x7E020000


def translated(content: bytes | None, capabilities: frozenset[str], machine: str, release: str) -> dict[str, Any]:
    """The OCI ``linux.seccomp`` object of a profile for a set of capabilities (names without CAP_) on this machine.

    ``content``: the profile's JSON text, None for the pinned one; a profile in OCI form is taken as it is. Raises
    ValueError.
    """
    if content is None:
        with open(os.path.join(os.path.dirname(__file__), "seccomp.json"), "rb") as file:
            content = file.read()
    profile = json.loads(content)
    if not isinstance(profile, dict) or "defaultAction" not in profile:
        raise ValueError("it has no defaultAction")
    native, word = _MACHINES.get(machine, ("", machine))
    given = {f"CAP_{name}" for name in capabilities}
    oci: dict[str, Any] = {"defaultAction": profile["defaultAction"]}
    if "defaultErrnoRet" in profile:
        oci["defaultErrnoRet"] = profile["defaultErrnoRet"]
    oci["architectures"] = _architectures(profile, native)
    oci["syscalls"] = [
        _rule(call)
        for call in profile.get("syscalls") or ()
        if _applies(call.get("includes") or {}, call.get("excludes") or {}, word, given, release)
    ]
    return oci


def without_namespaces(oci: Mapping[str, Any], machine: str) -> dict[str, Any]:
    """The same profile for a payload that may create no namespaces, above all no user namespaces, as in docker's.

    In a user namespace of its own a payload has every capability, and so reaches kernel code that was written for root:
    most local exploits of recent years begin there. clone3(2) has its flags in memory, where no filter sees them: told
    that there is no such call, C libraries fall back to clone(2).
    """
    shut = {"clone", "clone3", "unshare", "setns"}
    rules = []
    for rule in oci["syscalls"]:
        kept = [name for name in rule["names"] if name not in shut or rule["action"] != "SCMP_ACT_ALLOW"]
        if kept:
            rules.append({**rule, "names": kept})
    flags = {"index": 1 if machine == "s390x" else 0, "value": _NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    rules.append({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [flags]})
    rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    rules.append({"names": ["unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM})
    return {**oci, "syscalls": rules}


def as_json(oci: Mapping[str, Any]) -> bytes:
    """The text of an OCI ``linux.seccomp`` object."""
    return json.dumps(oci, separators=(",", ":")).encode()


def _architectures(profile: Mapping[str, Any], native: str) -> list[str]:
    for entry in profile.get("archMap") or ():
        if entry["architecture"] == native:
            return [native, *(entry.get("subArchitectures") or ())]
    return list(profile.get("architectures") or ([native] if native else []))


def _applies(
    includes: Mapping[str, Any], excludes: Mapping[str, Any], arch: str, capabilities: set[str], release: str
) -> bool:
    """Whether a rule counts here: every capability it includes and none it excludes; the like for architectures."""
    if arch in (excludes.get("arches") or ()) or capabilities & set(excludes.get("caps") or ()):
        return False
    if includes.get("arches") and arch not in includes["arches"]:
        return False
    if includes.get("minKernel") and _version(release) < _version(includes["minKernel"]):
        return False
    if excludes.get("minKernel") and _version(release) >= _version(excludes["minKernel"]):
        return False
    return capabilities >= set(includes.get("caps") or ())


def _version(release: str) -> tuple[int, int]:
    major, _, rest = release.partition(".")
    minor = rest.partition(".")[0].partition("-")[0]
    return int(major), int(minor or 0)


def _rule(call: Mapping[str, Any]) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": call.get("names") or [call["name"]], "action": call["action"]}
    if call.get("errnoRet") is not None:
        rule["errnoRet"] = call["errnoRet"]
    if call.get("args"):
        rule["args"] = [{**argument, "valueTwo": argument.get("valueTwo") or 0} for argument in call["args"]]
    return rule


class _Comparison(ctypes.Structure):
    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    ]


def compiled(oci: Mapping[str, Any], *, binary_tree: bool = True) -> bytes:
    """The BPF program of an OCI ``linux.seccomp`` object, an array of struct sock_filter; b"" without libseccomp.

    ``binary_tree``: a verdict takes O(log n) instructions instead of O(n). Raises ValueError for what is no rule.
    """
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return b""
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(
        library.seccomp_init(ctypes.c_uint32(_action(oci["defaultAction"], oci.get("defaultErrnoRet"))))
    )
    try:
        if binary_tree:
            # libseccomp before 2.5 does not know the attribute: its programs are longer, not weaker.
            library.seccomp_attr_set(context, _CTL_OPTIMIZE, ctypes.c_uint32(_BINARY_TREE))
        for name in oci.get("architectures") or ():
            _add_architecture(library, context, name)
        default = _action(oci["defaultAction"], oci.get("defaultErrnoRet"))
        for rule in oci.get("syscalls") or ():
            action = _action(rule["action"], rule.get("errnoRet"))
            if action != default:
                for name in rule["names"]:
                    _add_rule(library, context, action, name, rule.get("args") or ())
        fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        try:
            _check(library.seccomp_export_bpf(context, fd), "export")
            return os.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)
    finally:
        library.seccomp_release(context)


def _action(word: str, number: int | None) -> int:
    if word not in _ACTIONS:
        raise ValueError(f"unknown action {word!r}")
    carries_number = word in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
    return _ACTIONS[word] | ((_EPERM if number is None else number) & 0xFFFF if carries_number else 0)


def _add_architecture(library: Any, context: Any, name: str) -> None:
    token = library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
    if not token:
        raise ValueError(f"unknown architecture {name!r}")
    if library.seccomp_arch_exist(context, ctypes.c_uint32(token)) != 0:
        _check(library.seccomp_arch_add(context, ctypes.c_uint32(token)), name)


def _add_rule(library: Any, context: Any, action: int, name: str, arguments: Sequence[Mapping[str, Any]]) -> None:
    """Adds a rule the way both runtimes do: an unknown system call is skipped, and conditions on one and the same
    argument are alternatives, each a rule of its own, because libseccomp wants one comparison an argument.
    """
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number == _NO_SUCH_SYSCALL:
        return
    comparisons = [
        _Comparison(
            argument["index"], 1 + _COMPARISONS.index(argument["op"].removeprefix("SCMP_CMP_")),
            argument["value"], argument.get("valueTwo") or 0,
        )
        for argument in arguments
    ]  # fmt: skip
    indexes = [argument["index"] for argument in arguments]
    one_each = [[comparison] for comparison in comparisons]
    for group in one_each if len(set(indexes)) < len(indexes) else [comparisons]:
        array = (_Comparison * len(group))(*group)
        wide = ctypes.c_uint32(action)
        _check(library.seccomp_rule_add_array(context, wide, number, ctypes.c_uint(len(group)), array), name)


def _check(result: int, what: str) -> None:
    if result < 0:
        raise ValueError(f"{what}: libseccomp: {os.strerror(-result)}")
