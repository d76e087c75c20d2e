"""A power switch for the hosts of a cluster, and the fence agent that Pacemaker works it by (Fence Agent API)."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
import time
from collections.abc import Mapping
from typing import Protocol

PORT = 7777
_CLONE_NEWNET = 0x40000000

#: /usr/sbin/fence_switch: options come on standard input, a line each. Exit status of "status": 0 on, 2 off.
AGENT = """#!/bin/sh
action=reboot plug=
while IFS='=' read -r key value; do
    case $key in
    action) action=$value ;;
    plug | port) plug=$value ;;
    ip | ipaddr) ip=$value ;;
    esac
done
[ $# = 0 ] || [ "$1" != -o ] || action=$2
case $action in
metadata)
    cat <<'END'
<?xml version="1.0" ?>
<resource-agent name="fence_switch" shortdesc="Cuts the power of a host of the trial">
<longdesc>Cuts the power of a host of the trial.</longdesc>
<parameters>
<parameter name="action" required="1"><content type="string" default="off"/><shortdesc lang="en">What to do</shortdesc></parameter>
<parameter name="ip" required="1"><content type="string"/><shortdesc lang="en">The switch</shortdesc></parameter>
<parameter name="plug" required="1"><content type="string"/><shortdesc lang="en">The host</shortdesc></parameter>
</parameters>
<actions>
<action name="on" automatic="0"/><action name="off"/><action name="reboot"/><action name="status"/><action name="monitor"/>
<action name="metadata"/>
</actions>
</resource-agent>
END
    ;;
off | reboot) [ "$(echo "off $plug" | nc -N -w 10 "$ip" PORT)" = off ] ;;
status)
    case $(echo "status $plug" | nc -N -w 10 "$ip" PORT) in on) exit 0 ;; off) exit 2 ;; *) exit 1 ;; esac
    ;;
monitor) [ -n "$(echo "status" | nc -N -w 10 "$ip" PORT)" ] ;;
*) exit 1 ;;
esac
""".replace("PORT", str(PORT))


class Host(Protocol):
    """What the switch knows of a host."""

    leader: int

    def power_off(self) -> None: ...


class PowerSwitch(threading.Thread):
    """The switch, at an address of a network namespace."""

    def __init__(self, hosts: Mapping[str, Host], namespace: str, address: str) -> None:
        super().__init__(daemon=True)
        self.hosts, self.namespace, self.address = hosts, namespace, address
        #: Hosts whose power was cut, with the moment (time.monotonic()).
        self.cut: list[tuple[str, float]] = []
        self.ready = threading.Event()

    def run(self) -> None:
        # setns(2) is the thread's own affair.
        fd = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(fd)
        with socket.create_server((self.address, PORT)) as server:
            self.ready.set()
            while True:
                connection, _ = server.accept()
                with connection:
                    words = connection.recv(100).decode().split()
                    connection.sendall(f"{self._answer(*words)}\n".encode())

    def _answer(self, action: str = "", name: str = "") -> str:
        host = self.hosts.get(name)
        if host is None:
            return "here"
        if action == "off" and host.leader:
            host.power_off()
            self.cut.append((name, time.monotonic()))
        return "on" if host.leader else "off"
