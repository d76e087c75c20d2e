"""The compiled filter gives the verdicts of the profile: for every system call, architecture and argument rule."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import WRONG_FILE, Failure
from podrun_hooks.container import paths as places
from podrun_hooks.container.options import CAPABILITIES
from podrun_hooks.container.seccomp import filter, profile
from podrun_hooks.container.spec import DEFAULT_CAPABILITIES
from support.container_case import Case

X86_64, I386, X32_BIT = 0xC000003E, 0x40000003, 0x40000000
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0
PINNED = Path(profile.__file__).with_name("seccomp.json")

DEFAULT = DEFAULT_CAPABILITIES
SETS = {
    "default": DEFAULT,
    "none": frozenset(),
    "without audit write": DEFAULT - {"AUDIT_WRITE"},
    "administrator": DEFAULT | {"SYS_ADMIN", "SYS_PTRACE"},
    "all": frozenset(CAPABILITIES),
}
# personality's persona, clone's flags, socket's family and protocol; and what lies beside the values of the profile.
ARGUMENTS = [
    (0, 0, 0), (8, 0, 0), (0x20000, 0, 0), (0x20008, 0, 0), (0xFFFFFFFF, 0, 0), (1, 0, 0), (0x40000, 0, 0),
    (0xFFFFFFFF00000008, 0, 0), (0x100000000, 0, 0), (16, 3, 9), (16, 3, 0), (2, 1, 9), (2, 1, 0), (16, 1, 0x100000009),
    (0x10000000, 0, 0), (0x7E020000, 0, 0), (2**64 - 1, 2**64 - 1, 2**64 - 1),
]  # fmt: skip


def verdict(program: bytes, arch: int, number: int, arguments: tuple[int, ...]) -> int:
    """Runs a classic BPF program, as far as seccomp(2) allows one, on a struct seccomp_data."""
    data = struct.pack(
        "<iIQ6Q", number - (1 << 32) if number >> 31 else number, arch, 0, *arguments, *[0] * (6 - len(arguments))
    )
    accumulator = 0
    at = 0
    memory = [0] * 16
    while True:
        code, true, false, k = struct.unpack_from("<HBBI", program, at * 8)
        at += 1
        if code == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif code == 0x05:  # BPF_JMP | BPF_JA
            at += k
        elif code in (0x15, 0x25, 0x35, 0x45):  # JEQ, JGT, JGE, JSET
            holds = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}
            at += true if holds[code] else false
        elif code == 0x54:  # BPF_ALU | BPF_AND
            accumulator &= k
        elif code == 0x02:  # BPF_ST
            memory[k] = accumulator
        elif code == 0x60:  # BPF_LD | BPF_MEM
            accumulator = memory[k]
        elif code == 0x06:  # BPF_RET
            return int(k)
        else:
            raise AssertionError(f"instruction {code:#x} is not expected in a seccomp filter")


def translated(capabilities: frozenset[str]) -> dict[str, object]:
    return profile.translated(None, capabilities, "x86_64", "6.1.0")


def points() -> list[tuple[int, int, tuple[int, ...]]]:
    numbers = [*range(600), 1023, 1024, 0x7FFFFFFF]
    found = [(arch, number, (0, 0, 0)) for arch in (X86_64, I386, 0xC00000B7) for number in numbers]
    found += [(X86_64, X32_BIT | number, (0, 0, 0)) for number in numbers]
    tested = (41, 56, 135, 272, 308, 102, 120, 136, 359, 435, X32_BIT | 41, X32_BIT | 135, X32_BIT | 56)
    found += [(arch, number, values) for arch in (X86_64, I386) for number in tested for values in ARGUMENTS]
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("capabilities", SETS.values(), ids=SETS)
def test_the_binary_tree_gives_the_verdicts_of_the_plain_filter(capabilities: frozenset[str]) -> None:
    oci = translated(capabilities)
    tree, plain = profile.compiled(oci), profile.compiled(oci, binary_tree=False)
    assert tree != plain
    assert [p for p in points() if verdict(tree, *p) != verdict(plain, *p)] == []


@pytest.mark.root
@pytest.mark.parametrize("capabilities", [DEFAULT, frozenset({"CHOWN"})], ids=["default", "chown only"])
def test_the_filter_gives_the_verdicts_of_the_one_that_crun_compiles(
    tmp_path: Path, capabilities: frozenset[str]
) -> None:
    oci = translated(capabilities)
    program = crun_compiles(tmp_path, oci)
    ours = profile.compiled(oci)
    assert [p for p in points() if verdict(ours, *p) != verdict(program, *p)] == []


def crun_compiles(tmp_path: Path, oci: dict[str, object]) -> bytes:
    """The filter that crun makes of an OCI profile: it leaves it in its state directory."""
    case = Case(tmp_path)
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(oci))
    compiled = profile.compiled
    profile.compiled = lambda *_: b""  # without libseccomp for podrun, crun gets the profile itself
    try:
        case.up("sleep", "60", seccomp=str(file), stop_signal="KILL", runtime="crun")
        return (Path(places.of(case.step()).state) / "seccomp.bpf").read_bytes()
    finally:
        profile.compiled = compiled
        case.down()


def test_the_default_profile_allows_what_it_lists_and_refuses_the_rest() -> None:
    tree = profile.compiled(translated(DEFAULT))
    assert verdict(tree, X86_64, 0, ()) == ALLOW  # read
    assert verdict(tree, X86_64, X32_BIT | 0, ()) == ALLOW
    assert verdict(tree, I386, 3, ()) == ALLOW
    assert verdict(tree, X86_64, 246, ()) == ERRNO | errno.EPERM  # kexec_load
    assert verdict(tree, I386, 283, ()) == ERRNO | errno.EPERM
    assert verdict(tree, X86_64, 1023, ()) == ERRNO | errno.ENOSYS
    assert verdict(tree, X86_64, 175, ()) == ERRNO | errno.EPERM  # init_module
    assert verdict(tree, X86_64, 321, ()) == ERRNO | errno.EPERM  # bpf
    assert verdict(tree, X86_64, 135, (0x40000,)) == ERRNO | errno.ENOSYS  # personality(ADDR_NO_RANDOMIZE)
    assert verdict(tree, X86_64, 135, (8,)) == ALLOW
    assert verdict(tree, 0xC00000B7, 0, ()) == KILL  # an architecture that the profile does not name


@pytest.mark.parametrize(
    ("capability", "number"), [("SYS_ADMIN", 321), ("SYS_MODULE", 175), ("SYS_PTRACE", 312), ("SYS_TIME", 227)]
)
def test_a_capability_opens_its_system_calls(capability: str, number: int) -> None:
    without = profile.compiled(translated(DEFAULT))
    given = profile.compiled(translated(DEFAULT | {capability}))
    assert verdict(without, X86_64, number, ()) == ERRNO | errno.EPERM
    assert verdict(given, X86_64, number, ()) == ALLOW


def test_netlink_audit_is_refused_without_audit_write() -> None:
    program = profile.compiled(translated(DEFAULT - {"AUDIT_WRITE"}))
    assert verdict(program, X86_64, 41, (16, 3, 9)) == ERRNO | errno.EINVAL
    assert verdict(program, X86_64, 41, (16, 3, 0)) == ALLOW
    assert verdict(program, X86_64, 41, (2, 1, 6)) == ALLOW


def test_a_rule_counts_from_its_kernel_on() -> None:
    text = json.dumps(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}}],
        }
    ).encode()
    for release, count in (("4.7.9", 0), ("4.8.0-1-amd64", 1), ("6.1.0", 1)):
        assert len(profile.translated(text, frozenset(), "x86_64", release)["syscalls"]) == count


def test_conditions_on_one_argument_are_alternatives() -> None:
    rule = {"index": 0, "valueTwo": 0, "op": "SCMP_CMP_EQ"}
    oci = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["close"], "action": "SCMP_ACT_ALLOW", "args": [{**rule, "value": 3}, {**rule, "value": 7}]}
        ],
    }
    program = profile.compiled(oci)
    assert [verdict(program, X86_64, 3, (n,)) == ALLOW for n in (3, 5, 7)] == [True, False, True]


def test_the_pinned_profile_is_the_one_that_the_cache_knows() -> None:
    from _blake2 import blake2b

    digest = blake2b(PINNED.read_bytes(), digest_size=4).hexdigest()
    assert digest in filter.PINNED, f"seccomp.json has changed: PINNED has to name {digest}, or old filters stay in use"


def test_the_second_start_reads_the_filter_and_compiles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def filter_of() -> str:
        config = {"annotations": {}, "linux": {}}
        filter.apply(config, "default", str(tmp_path), DEFAULT, "crun")
        return config["annotations"]["run.oci.seccomp_bpf_data"]

    first = filter_of()
    monkeypatch.setattr(profile, "translated", None)
    assert filter_of() == first
    assert [file.stat().st_mode & 0o777 for file in (tmp_path / "seccomp").iterdir()] == [0o600]


def test_filters_of_other_capabilities_and_profiles_are_others(tmp_path: Path) -> None:
    custom = tmp_path / "mine.json"
    for content, capabilities in (("", DEFAULT), ("", DEFAULT - {"CHOWN"}), ("ALLOW", DEFAULT), ("LOG", DEFAULT)):
        custom.write_text(json.dumps({"defaultAction": f"SCMP_ACT_{content}", "syscalls": []}))
        filter.apply(
            {"annotations": {}, "linux": {}}, str(custom) if content else "default", str(tmp_path), capabilities, "crun"
        )
    assert len(list((tmp_path / "seccomp").iterdir())) == 4


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"defaultAction": "SCMP_ACT_MAYBE"}'])
def test_a_profile_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(Failure) as failure:
        filter.apply({"annotations": {}, "linux": {}}, str(file), str(tmp_path), DEFAULT, "crun")
    assert failure.value.code == WRONG_FILE


def test_the_cached_path_imports_no_json_and_no_profile(tmp_path: Path) -> None:
    code = (
        "import sys; from podrun_hooks.container.seccomp import filter as seccomp; c={'annotations': {}, 'linux': {}};"
        f"seccomp.apply(c, 'default', {str(tmp_path)!r}, ['CHOWN'], 'crun');"
        "print(sorted({'json', 're', 'typing', 'podrun_hooks.container.seccomp.profile'} & set(sys.modules)))"
    )
    lines = [
        subprocess.run(
            ["/usr/bin/python3", "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env=dict(os.environ, PYTHONPATH=":".join(_paths())),
        ).stdout.strip()
        for _ in range(2)
    ]
    assert "podrun_hooks.container.seccomp.profile" in lines[0]
    assert lines[1] == "[]"


def _paths() -> list[str]:
    import podrun
    import podrun_hooks

    return [str(Path(module.__file__).parents[1]) for module in (podrun, podrun_hooks)]


PROBE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <sys/personality.h>
#include <sys/syscall.h>
#include <unistd.h>
static void say(const char *what, long result) { printf("%s %d\n", what, result < 0 ? errno : 0); }
int main(void) {
    say("getpid", syscall(SYS_getpid));
    say("personality8", syscall(SYS_personality, 8));
    say("personality0", syscall(SYS_personality, 0));
    say("norandom", syscall(SYS_personality, 0x40000));
    say("kexec", syscall(SYS_kexec_load, 0, 0, 0, 0));
    say("module", syscall(SYS_init_module, 0, 0, ""));
    say("bpf", syscall(SYS_bpf, 0, 0, 0));
    say("perf", syscall(SYS_perf_event_open, 0, 0, 0, 0, 0));
    say("userfaultfd", syscall(SYS_userfaultfd, 0));
    say("unknown", syscall(1000));
    say("x32", syscall(0x40000000 | SYS_kexec_load, 0, 0, 0, 0));
    say("openhandle", syscall(SYS_open_by_handle_at, 0, 0, 0));
    say("swapon", syscall(SYS_swapon, "/", 0));
    say("clocksettime", syscall(SYS_clock_settime, 0, 0));
    return 0;
}
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("probe")
    (directory / "probe.c").write_text(PROBE)
    subprocess.run(["cc", "-static", "-o", directory / "probe", directory / "probe.c"], check=True)
    return directory / "probe"


@pytest.mark.root
@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_system_calls_in_a_container_get_the_profiles_answers(tmp_path: Path, probe: Path, runtime: str) -> None:
    case = Case(tmp_path)
    os.link(probe, case.layer / "bin/probe") if os.stat(probe).st_dev == os.stat(case.layer).st_dev else None
    found = dict(line.split() for line in case.run("probe", runtime=runtime).splitlines())
    refused = ("kexec", "module", "bpf", "perf", "userfaultfd", "openhandle", "swapon", "clocksettime")
    assert {name: int(found[name]) for name in ("getpid", "personality8", "personality0", *refused)} == {
        **dict.fromkeys(("getpid", "personality8", "personality0"), 0),
        **dict.fromkeys(refused, errno.EPERM),
    }
    assert int(found["norandom"]) == int(found["unknown"]) == errno.ENOSYS
    assert int(found["x32"]) in (errno.EPERM, errno.ENOSYS)
    assert case.left() == []


@pytest.mark.root
def test_an_unconfined_container_has_no_filter(tmp_path: Path) -> None:
    case = Case(tmp_path)
    assert "Seccomp:\t0" in case.run("cat", "/proc/self/status", seccomp="unconfined")
    assert "Seccomp:\t2" in case.run("cat", "/proc/self/status", seccomp="default")


@pytest.mark.root
def test_what_exec_starts_is_filtered_too(tmp_path: Path) -> None:
    case = Case(tmp_path)
    try:
        case.up("sleep", "60", stop_signal="KILL")
        assert "Seccomp:\t2" in case.exec("cat", "/proc/self/status")
    finally:
        case.down()


def test_libseccomp_is_the_one_whose_version_is_in_the_key() -> None:
    version = ctypes.CDLL("libseccomp.so.2").seccomp_version
    version.restype = ctypes.POINTER(ctypes.c_uint * 3)
    assert filter._libseccomp(os.uname().machine).endswith(".".join(map(str, version().contents)))


@pytest.mark.root
@pytest.mark.parametrize("runtime", ["crun", "runc"])
@pytest.mark.parametrize("user", ["0", "1000"])
def test_user_namespaces_in_a_container_are_made_where_they_are_asked_for(
    tmp_path: Path, runtime: str, user: str
) -> None:
    case = Case(tmp_path)
    script = "unshare -U true; echo $?"
    assert case.run("sh", "-c", script, user=user, runtime=runtime).splitlines()[-1] == "1"
    assert case.run("sh", "-c", script, user=user, runtime=runtime, nested_userns=True) == "0\n"
    own = tmp_path / "own.json"
    own.write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    assert case.run("sh", "-c", script, user=user, runtime=runtime, seccomp=str(own)) == "0\n"


@pytest.mark.root
def test_threads_and_processes_are_made_as_ever_where_namespaces_are_not(podrun: Any) -> None:
    program = (
        "import subprocess, threading; t = threading.Thread(target=print, args=('thread',)); t.start(); t.join(); "
        "print(subprocess.run(['true']).returncode)"
    )
    assert podrun("run", "--rm", "host:", "python3", "-Ic", program, check=True).stdout == "thread\n0\n"


@pytest.mark.parametrize("machine", ["x86_64", "s390x"])
def test_no_rule_that_is_left_allows_a_new_namespace(machine: str) -> None:
    oci = profile.translated(None, frozenset(), machine, "6.1")
    left = profile.without_namespaces(oci, machine)["syscalls"]
    allowed = [rule for rule in left if rule["action"] == "SCMP_ACT_ALLOW"]
    assert not [rule for rule in allowed if {"clone3", "unshare", "setns"} & {*rule["names"]}]
    [clone] = [rule for rule in allowed if "clone" in rule["names"]]
    assert clone["args"][0]["index"] == (1 if machine == "s390x" else 0)
