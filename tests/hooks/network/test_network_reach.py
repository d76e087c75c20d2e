"""The table of who reaches whom, with real packets: mode by way, as docs/reference/network.md has it.

The whole takes place in network namespaces that stand for a host of podrun's and another machine on its wire.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.launcher import HERE

pytestmark = pytest.mark.root

#: The columns of the table in docs/reference/network.md.
WAYS = ("pod to pod", "host to pod", "pod to outside", "from outside", "from the host", "hairpin", "IPv6")
PUBLISHED = {"from outside": "web", "from the host": "web", "hairpin": "web"}
NOBODY = ""
#: Who answers, mode by way. A way that a mode has not is not asked for.
EXPECTED: dict[str, dict[str, str]] = {
    "bridge": {"pod to pod": "web", "host to pod": "web", "pod to outside": "outside", "IPv6": "web", **PUBLISHED},
    "host": {
        "pod to pod": "web",
        "host to pod": "web",
        "pod to outside": "outside",
        "IPv6": "web",
        "from outside": "web",
        "from the host": "web",
    },
    "none": {"pod to pod": NOBODY, "host to pod": NOBODY, "pod to outside": NOBODY, "IPv6": NOBODY},
    "netns": {"pod to pod": "web", "host to pod": "web", "pod to outside": "outside"},
    "pod": {"pod to pod": "other", "host to pod": "other", "pod to outside": "outside", "IPv6": "other"},
    # The kernel's macvlan: a link and its parent do not see each other.
    "macvlan": {"pod to pod": "web", "host to pod": NOBODY, "pod to outside": "outside", "IPv6": "web"},
    "cni": {"pod to pod": "web", "host to pod": "web", "pod to outside": "outside", **PUBLISHED},
    "second": {"pod to pod": "web", "host to pod": "web", "IPv6": "web", **PUBLISHED},
}

HOST = """
import json, os, sys
sys.path[:0] = {path!r}
from podrun_hooks.support import syscalls
syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS)
syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
cgroups = syscalls.open_tree("/sys/fs/cgroup", recursive=True)
syscalls.mount("sysfs", "/sys", "sysfs")
syscalls.move_mount(cgroups, "/sys/fs/cgroup")
syscalls.mount("tmpfs", "/run/netns", "tmpfs")
from support.network_case import Place, call, inside, plain, run
run("ip", "link", "set", "lo", "up")
for name, address, other in (("out", "198.51.100", "outside"), ("lan", "203.0.113", "lan")):
    run("ip", "netns", "add", other)
    run("ip", "link", "add", name, "type", "veth", "peer", "name", "wire", "netns", other)
    for where, link, n in ((None, name, 1), (other, "wire", 2)):
        prefix = inside(other) if where else []
        run(*prefix, "ip", "address", "add", f"{{address}}.{{n}}/24", "dev", link)
        run(*prefix, "ip", "address", "add", f"2001:db8:{{len(name + other)}}::{{n}}/64", "dev", link, "nodad")
        run(*prefix, "ip", "link", "set", link, "up")
        run(*prefix, "ip", "link", "set", "lo", "up")
place = Place()
mode = {mode!r}
def who(*words, **more):
    return call(*words, timeout=0.7, **more).partition(" to ")[0]
def ask(*words, **more):
    return "y" if who(*words, **more) else "n"
try:
{body}
finally:
    place.close()
"""

BODY = """
    netns_other, outside, here = "outside", "198.51.100.2", "198.51.100.1"
    place.serve("outside", 80, "outside")
    other = place.up("other")
    place.serve(other["netns"], 80, "other")
    place.serve(other["netns"], 81, "other", host=plain(other, 6))
    table = {"publish": ["0.0.0.0:8080:80"]}
    v6 = ""
    if mode == "host":
        facts = place.up("web", mode="host")
        netns, address, v6 = "", here, "2001:db8:10::1"
        place.serve("", 80, "web"); place.serve("", 8080, "web"); place.serve("", 81, "web", host="::")
        peer = other["netns"]
    elif mode in ("bridge", "second"):
        if mode == "second":
            run("ip", "netns", "add", "t-net-own")
            first = place.up("web", mode="netns:/run/netns/t-net-own")
            facts = place.further("web", first, bridge="t-second", **table)
            peer = place.up("mate", bridge="t-second")["netns"]
            netns = first["netns"]
        else:
            facts = place.up("web", **table)
            netns, peer = facts["netns"], other["netns"]
        address, v6 = plain(facts), plain(facts, 6)
    elif mode == "none":
        facts = place.up("web", mode="none")
        netns, address, v6, peer = facts["netns"], "10.160.0.99", "fd88::99", other["netns"]
        run(*inside(netns), "ip", "address", "add", address + "/32", "dev", "lo")
        run(*inside(netns), "ip", "address", "add", v6 + "/128", "dev", "lo")
    elif mode == "pod":
        facts = place.up("web", mode="pod:other")
        netns, address, v6 = facts["netns"], plain(facts), plain(facts, 6)
        peer = place.up("third")["netns"]
    elif mode == "netns":
        run("ip", "netns", "add", "t-net-own")
        run("ip", "link", "add", "own", "type", "veth", "peer", "name", "in", "netns", "t-net-own")
        run("ip", "address", "add", "192.0.2.1/24", "dev", "own"); run("ip", "link", "set", "own", "up")
        for words in (["address", "add", "192.0.2.2/24", "dev", "in"], ["link", "set", "in", "up"],
                      ["route", "add", "default", "via", "192.0.2.1"]):
            run(*inside("t-net-own"), "ip", *words)
        run(*inside("outside"), "ip", "route", "add", "192.0.2.0/24", "via", here)
        facts = place.up("web", mode="netns:/run/netns/t-net-own")
        netns, address, peer = facts["netns"], plain(facts), other["netns"]
    elif mode == "macvlan":
        facts = place.up("web", mode="macvlan:out", address="198.51.100.7/24", address6="2001:db8:10::7/64")
        peer = place.up("mate", mode="macvlan:out", address="198.51.100.8/24", address6="2001:db8:10::8/64")["netns"]
        netns, address, v6 = facts["netns"], "198.51.100.7", "2001:db8:10::7"
    elif mode == "cni":
        from podrun_hooks.network import cni
        os.makedirs(f"{place.home}/net.d")
        cni.CONFIGURATION = f"{place.home}/net.d"
        ipam = {"type": "host-local", "ranges": [[{"subnet": "10.77.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": f"{place.home}/leases"}
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": ipam}
        plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
        open(f"{place.home}/net.d/a.conflist", "w").write(
            json.dumps({"cniVersion": "1.0.0", "name": "lan", "plugins": plugins}))
        facts = place.up("web", mode="cni:lan", publish=["8080:80"] and ["0.0.0.0:8080:80"])
        peer = place.up("mate", mode="cni:lan")["netns"]
        netns, address = facts["netns"], plain(facts)
    if mode not in ("host", "pod"):
        place.serve(netns, 80, "web")
        if v6:
            place.serve(netns, 81, "web", host=v6)
    ways = {
        "pod to pod": (peer, address, 80),
        "host to pod": ("", address, 80),
        "pod to outside": (netns, outside, 80),
        "from outside": ("outside", here, 8080),
        "from the host": ("", "127.0.0.1", 8080),
        "hairpin": (netns, here, 8080),
        "IPv6": (peer, v6, 81),
    }
    print(json.dumps({way: who(*ways[way]) for way in ASKED}))
"""


def in_a_host_of_its_own(mode: str, body: str) -> str:
    code = HOST.format(path=sys.path, mode=mode, body=body)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@functools.cache
def found(mode: str) -> Any:
    """Who answered in a mode, by way: one host for all of its ways."""
    asked = f"    ASKED = {[*EXPECTED[mode]]!r}\n"
    return json.loads(in_a_host_of_its_own(mode, asked + BODY).splitlines()[-1])


@pytest.mark.parametrize(("mode", "way"), [(mode, way) for mode, ways in EXPECTED.items() for way in ways])
def test_who_reaches_whom(mode: str, way: str) -> None:
    if mode == "cni" and not os.path.exists("/usr/lib/cni/bridge"):
        pytest.skip("containernetworking-plugins is not installed")
    assert found(mode)[way] == EXPECTED[mode][way]


def test_the_reference_page_has_the_same_table() -> None:
    page = (HERE.parent / "docs/reference/network.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    head = next(n for n, row in enumerate(rows) if row == ["mode", *WAYS])
    told = {row[0].partition(":")[0].partition(" ")[0]: row[1:] for row in rows[head + 2 : head + 2 + len(EXPECTED)]}
    assert set(told) == set(EXPECTED)
    for mode, cells in told.items():
        plain = {way: cell.partition(" ")[0] for way, cell in zip(WAYS, cells, strict=True)}
        tried = {way: "yes" if answer else "no" for way, answer in EXPECTED[mode].items()}
        assert {way: cell for way, cell in plain.items() if cell in ("yes", "no")} == tried, mode


DROPPED = """
    for words in (["-P", "FORWARD", "DROP"], ["-N", "DOCKER-USER"], ["-A", "FORWARD", "-j", "DOCKER-USER"]):
        run("iptables", *words)
    from podrun_hooks.network import health
    place.serve("outside", 80, "outside")
    web = place.up("web", publish=["0.0.0.0:8080:80"])
    place.serve(web["netns"], 80, "web")
    print("before", ask(web["netns"], "198.51.100.2", 80), ask("outside", "198.51.100.1", 8080), ask("", "127.0.0.1", 8080))
    (problem,) = health.problems(place.run)
    print(problem.what)
    for command in problem.hint.removeprefix("allow it: ").split(" && "):
        run(*command.split())
    print("after", ask(web["netns"], "198.51.100.2", 80), ask("outside", "198.51.100.1", 8080), health.problems(place.run))
"""


def test_dockers_forward_policy_blocks_is_named_and_its_remedy_works() -> None:
    lines = in_a_host_of_its_own("", DROPPED).splitlines()
    assert lines[0] == "before n n y", "dockerd's DROP stops what is forwarded; the host's own loopback is not"
    assert "chain ip filter FORWARD drops what is forwarded" in lines[1]
    assert lines[2] == "after y y []"


DOCKERD = """
    import subprocess, tempfile, time
    home = tempfile.mkdtemp(prefix="t-dock-", dir="/run")
    argv = ["dockerd", "--data-root", f"{home}/data", "--exec-root", f"{home}/exec", "--pidfile", f"{home}/pid"]
    log = open(f"{home}/log", "w")
    place.serve("outside", 80, "outside")
    open("/proc/sys/net/ipv4/ip_forward", "w").write("0")  # a new namespace has the first one's
    daemon = subprocess.Popen([*argv, "-H", f"unix://{home}/d.sock"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while subprocess.run(["docker", "-H", f"unix://{home}/d.sock", "version"], capture_output=True).returncode:
            assert daemon.poll() is None and time.monotonic() < deadline, open(f"{home}/log").read()[-2000:]
            time.sleep(0.1)
        from podrun_hooks.network import health
        web, other = place.up("web", publish=["0.0.0.0:8080:80"]), place.up("other")
        place.serve(web["netns"], 80, "web")
        def ways():
            return (ask(web["netns"], "198.51.100.2", 80), ask("outside", "198.51.100.1", 8080),
                    ask("", "127.0.0.1", 8080), ask("", plain(web), 80), ask(other["netns"], plain(web), 80))
        print("before", *ways())
        (problem,) = health.problems(place.run)
        print(problem.what)
        for command in problem.hint.removeprefix("allow it: ").split(" && "):
            run(*command.split())
        print("after", *ways(), health.problems(place.run))
    finally:
        daemon.terminate()
        daemon.wait()
        log.close()
        subprocess.run(["umount", f"{home}/exec/netns/default"], capture_output=True)
        subprocess.run(["rm", "-r", home], check=True)
"""


@pytest.mark.server
def test_beside_a_real_dockerd(tmp_path: Path) -> None:
    """It drops what is forwarded when it was the one who made the host forward: it is started before the first pod."""
    if not shutil.which("dockerd"):
        pytest.skip("dockerd is not installed")
    lines = in_a_host_of_its_own("", DOCKERD).splitlines()
    bridged = "n" if Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists() else "y"
    assert lines[0] == f"before n n y y {bridged}"
    assert "chain ip filter FORWARD drops what is forwarded" in lines[1]
    assert lines[2] == "after y y y y y []"


ROUTED = """
    from podrun_hooks.network import options
    options.NETWORKS = f"{place.home}/networks.toml"
    def declare(routed):
        with open(options.NETWORKS, "w") as file:
            file.write('[networks.lan0]\\nsubnet = "10.20.0.0/24"\\nsubnet6 = "fd20::/64"\\nrouted = ' + routed + '\\n')
    run(*inside("outside"), "ip", "route", "add", "10.20.0.0/24", "via", "198.51.100.1")
    run(*inside("outside"), "ip", "route", "add", "fd20::/64", "via", "2001:db8:10::1")
    run(*inside("lan"), "ip", "route", "add", "10.20.0.0/24", "via", "203.0.113.1")
    place.serve("outside", 80, "outside")
    place.serve("outside", 80, "outside", host="2001:db8:10::2")
    for routed in ("false", "true", "false"):
        declare(routed)
        web = place.up("web", bridge="lan0")
        own = plain(web), plain(web, 6)
        for address in own:
            place.serve(web["netns"], 80, "web", host=address)
        seen = [call(web["netns"], to, 80).removeprefix("outside to ") for to in ("198.51.100.2", "2001:db8:10::2")]
        print(routed, *(ask(other, own[0], 80) for other in ("outside", "lan", "")), ask("outside", own[1], 80),
              *("itself" if one in own else "the host" if "::1" in one or one == "198.51.100.1" else one for one in seen))
        place.servers.pop().kill(); place.servers.pop().kill(); place.down("web")
"""


def test_a_routed_subnet_is_called_by_its_own_addresses_and_no_other_is() -> None:
    """A machine on the same L2 segment can route anything to the host; that alone does not let it in."""
    assert in_a_host_of_its_own("", ROUTED).splitlines() == [
        "false n n y n the host the host",
        "true y y y y itself itself",
        "false n n y n the host the host",
    ]


BRIDGES = """
    from podrun_hooks.network import options
    options.NETWORKS = f"{place.home}/networks.toml"
    for reach in ("", "[networks.one0]\\nreach = ['two0']", "[networks.two0]\\nrouted = true", ""):
        with open(options.NETWORKS, "w") as file:
            file.write(reach)
        one, two = place.up("one", bridge="one0"), place.up("two", bridge="two0", publish=["0.0.0.0:8080:80"])
        for facts in (one, two):
            for version in (4, 6):
                place.serve(facts["netns"], 80, "web", host=plain(facts, version))
        print(*(ask(one["netns"], plain(two, v), 80) for v in (4, 6)), *(ask(two["netns"], plain(one, v), 80) for v in (4, 6)),
              ask(one["netns"], "198.51.100.1", 8080), ask("", plain(one), 80))
        place.silence(); place.down("one"); place.down("two")
"""


def test_two_bridges_do_not_reach_each_other_unless_networks_toml_says_so() -> None:
    """One to two, two to one (IPv4, IPv6), a published port of the other one's, and the host to both."""
    assert in_a_host_of_its_own("", BRIDGES).splitlines() == [
        "n n n n y y",
        "y y n n y y",
        "n n n n y y",
        "n n n n y y",
    ]


INTERNAL = """
    import time
    from podrun_hooks.network import options
    options.NETWORKS = f"{place.home}/networks.toml"
    for internal in ("true", "false", "true"):
        place.serve("outside", 80, "outside")
        place.serve("outside", 80, "outside", host="2001:db8:10::2")
        with open(options.NETWORKS, "w") as file:
            file.write(f"[networks.in0]\\ninternal = {internal}\\n[networks.out0]\\nreach = ['in0']\\n")
        one = place.up("one", bridge="in0", publish=["127.0.0.1:8080:80"])
        two, out = place.up("two", bridge="in0"), place.up("out", bridge="out0", publish=["0.0.0.0:8081:80"])
        for facts in (one, out):
            for version in (4, 6):
                place.serve(facts["netns"], 80, "web", host=plain(facts, version))
        began = time.monotonic()
        beyond = [ask(one["netns"], to, 80) for to in ("198.51.100.2", "2001:db8:10::2")]
        beyond += [ask(one["netns"], plain(out), 80), ask(one["netns"], "198.51.100.1", 8081)]
        quick = time.monotonic() - began < 2
        print(internal, *beyond, quick, *(ask(two["netns"], plain(one, v), 80) for v in (4, 6)),
              ask("", plain(one), 80), ask("", "127.0.0.1", 8080), ask(out["netns"], plain(one), 80))
        place.silence(); place.down("one"); place.down("two"); place.down("out")
"""


def test_pods_of_an_internal_network_reach_each_other_and_the_host_and_are_told_at_once_about_the_rest() -> None:
    """Outside (IPv4, IPv6), another bridge, its published port; at once; a neighbour (twice), the host (twice), a friend."""
    assert in_a_host_of_its_own("", INTERNAL).splitlines() == [
        "true n n n n True y y y y y",
        "false y y n y True y y y y y",
        "true n n n n True y y y y y",
    ]


FORWARDING = """
    for command in ("-4 route add 203.0.113.0/24 via 198.51.100.1", "-6 route add 2001:db8:6::/64 via 2001:db8:10::1"):
        run(*inside("outside"), "ip", *command.split())
    for command in ("-4 route add 198.51.100.0/24 via 203.0.113.1", "-6 route add 2001:db8:10::/64 via 2001:db8:6::1"):
        run(*inside("lan"), "ip", *command.split())
    place.serve("lan", 80, "lan", host="203.0.113.2")
    place.serve("lan", 80, "lan", host="2001:db8:6::2")
    def asked():
        return [ask("outside", to, 80) for to in ("203.0.113.2", "2001:db8:6::2")]
    for link in ("out", "lan"):
        run("ip", "address", "add", "fe80::1/64", "dev", link, "nodad")
    on = "1" if mode == "router" else "0"
    run("sysctl", "-qw", f"net.ipv4.ip_forward={on}", f"net.ipv6.conf.all.forwarding={on}")
    print(*asked())
    web = place.up("web")
    place.serve("outside", 81, "outside")
    print(*asked(), ask(web["netns"], "198.51.100.2", 81))
    run("ip", "netns", "add", "late")
    run("ip", "link", "add", "late0", "type", "veth", "peer", "name", "wire", "netns", "late")
    run("ip", "address", "add", "192.0.2.1/24", "dev", "late0")
    run("ip", "link", "set", "late0", "up")
    for command in ("link set wire up", "address add 192.0.2.2/24 dev wire", "route add default via 192.0.2.1"):
        run(*inside("late"), "ip", *command.split())
    run(*inside("outside"), "ip", "route", "add", "192.0.2.0/24", "via", "198.51.100.1")
    print(ask("late", "198.51.100.2", 81))
"""


@pytest.mark.parametrize(("host", "said"), [("no router", "n n, n n y, y"), ("router", "y y, y y y, y")])
def test_a_host_that_podrun_makes_a_router_forwards_for_its_pods_and_for_links_that_come_later(
    host: str, said: str
) -> None:
    assert ", ".join(in_a_host_of_its_own(host, FORWARDING).splitlines()) == said


UDP = """
    web = place.up("web", publish=["0.0.0.0:5300:53/udp"])
    place.serve(web["netns"], 53, "web", proto="udp")
    import socket
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(1)
    client.connect(("127.0.0.1", 5300))
    client.send(b"?"); print(client.recv(99).decode().split()[0])
    place.silence(); place.down("web")
    two = place.up("two", publish=["0.0.0.0:5300:53/udp"])
    place.serve(two["netns"], 53, "two", proto="udp")
    client.send(b"?"); print(client.recv(99).decode().split()[0])
"""


def test_a_udp_caller_that_does_not_pause_gets_to_the_ports_next_pod() -> None:
    assert in_a_host_of_its_own("", UDP).split() == ["web", "two"]


CONFLICTS = """
    from podrun.errors import Failure
    place.up("web", publish=["198.51.100.1:8080:80", "[2001:db8:10::1]:8080:80"])
    for taken in ("0.0.0.0:8080:80", "[::]:8080:80", "198.51.100.1:8080:80", "203.0.113.1:8080:80", "8000-8090:80-170"):
        problems = place.check("two", publish=[taken])
        print(taken, problems[0].what if problems else "free")
    place.up("all", publish=["0.0.0.0:9000:80"])
    print(place.check("two", publish=["203.0.113.1:9000:80"])[0].what)
    print(place.check("two", publish=["[::]:9000:80"]) or "free")
"""


def test_all_addresses_conflict_with_each_of_them() -> None:
    assert in_a_host_of_its_own("", CONFLICTS).splitlines() == [
        "0.0.0.0:8080:80 port 0.0.0.0:8080/tcp is in use by pod web",
        "[::]:8080:80 port [::]:8080/tcp is in use by pod web",
        "198.51.100.1:8080:80 port 198.51.100.1:8080/tcp is in use by pod web",
        "203.0.113.1:8080:80 free",
        "8000-8090:80-170 free",
        "port 203.0.113.1:9000/tcp is in use by pod all",
        "free",
    ]


SCTP = """
    import socket, struct, time
    web = place.up("web", publish=["0.0.0.0:3868:3868/sctp", "7000-7009:70-79"])
    from podrun_hooks.support import syscalls
    listener = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132)
    listener.close()
    watch = __import__("subprocess").Popen([*inside(web["netns"]), sys.executable, "-c",
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132); print('up', flush=True); "
        "s.settimeout(3); d = s.recv(999); print(int.from_bytes(d[22:24], 'big'), flush=True)"], stdout=-1, text=True)
    watch.stdout.readline()
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65536, 1, 1, 1)
    def crc32c(data):
        crc = 0xFFFFFFFF
        for byte in data:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        return crc ^ 0xFFFFFFFF
    head = struct.pack("!HHI", 5555, 3868, 0)
    packet = head + struct.pack("<I", crc32c(head + bytes(4) + chunk)) + chunk
    open(f"{place.home}/p", "wb").write(packet)
    run(*inside("outside"), sys.executable, "-c", "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132); "
        "s.sendto(open(sys.argv[1], 'rb').read(), ('198.51.100.1', 0))", f"{place.home}/p")
    print(watch.communicate()[0].strip())
    place.serve(web["netns"], 79, "last")
    print(call("", "127.0.0.1", 7009).split()[0])
"""


def test_sctp_and_ranges_of_ports_are_published() -> None:
    """This kernel has no SCTP sockets: an INIT chunk from a raw socket outside arrives in the pod."""
    assert in_a_host_of_its_own("", SCTP).split() == ["3868", "last"]
