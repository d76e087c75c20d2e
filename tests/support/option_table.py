"""What a container's options come to, as the payload sees it: one table for the foreground, detached and units."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One option: its line of the pod file, what the payload runs, and what that prints."""

    line: str
    script: str
    printed: str


#: With the host's /usr as the image. Scripts are the shell's; each prints one line.
ROWS = [
    Row('ulimits = { nofile = "512:1024", core = 0 }', "echo $(ulimit -Sn) $(ulimit -Hn) $(ulimit -c)", "512 1024 0"),
    Row("oom_score_adj = 321", "cat /proc/self/oom_score_adj", "321"),
    Row('shm_size = "8M"', "stat -f -c '%S %b' /dev/shm", "4096 2048"),
    Row('umask = "0027"', "umask", "0027"),
    Row("groups = [4711]", "id -G | grep -ow 4711", "4711"),
    Row('tz = "Asia/Tokyo"', "date +%Z", "JST"),
    Row('sysctls = { "kernel.shmmax" = "12345678" }', "cat /proc/sys/kernel/shmmax", "12345678"),
    Row('devices = ["/dev/null:/dev/mine:rw"]', "test -c /dev/mine && exec 3<>/dev/mine && echo open", "open"),
    Row("no_new_privileges = false", "grep NoNewPrivs /proc/self/status | tr '\\t' ' '", "NoNewPrivs: 0"),
    Row('mask = ["/proc/meminfo", "/sys/kernel"]', "echo $(wc -c </proc/meminfo) $(ls /sys/kernel | wc -l)", "0 0"),
    Row('unmask = ["/proc/keys"]', "wc -c </proc/keys >/dev/null && echo open", "open"),
    Row('env = { A = "x y" }', 'echo "$A"', "x y"),
    Row('env_files = ["/etc/podrun-test.env"]', 'echo "$FROM_FILE"', "one two"),
    Row('labels = { "a.b" = "c" }', "echo -", "-"),
    Row('pid = "host"', "test $$ != 1 && echo others", "others"),
    Row('cap_add = ["SYS_TIME"]', "echo $((0x$(grep CapBnd /proc/self/status | cut -f 2) >> 25 & 1))", "1"),
    Row('device_rules = ["c 189:* rwm"]', "echo -", "-"),
    Row('workdir = "/var/tmp"', "pwd", "/var/tmp"),
    Row('tmpfs = ["/mnt:size=64k"]', "stat -f -c %b /mnt", "16"),
    Row('volumes = ["/srv"]', "touch /srv/x && echo written", "written"),
    Row('hostname = "mine"', "uname -n", "mine"),
    Row("init = true", "cat /proc/1/comm", "init"),
    Row("nested_userns = true", "unshare -U true && echo made", "made"),
    Row('annotations = { "a.b" = "c" }', "echo -", "-"),
    Row('cap_drop = ["ALL"]', "grep CapBnd /proc/self/status | tail -c 17", "0000000000000000"),
]
ENV_FILE = "# variables\nFROM_FILE=one two\n\n"


def pod(lines: list[str], script: str, name: str = "web") -> str:
    """A pod file whose container has these lines."""
    return "\n".join([
        f'[pod]\nname = "{name}"\nstop_timeout = "2s"\n[[chain]]\nhook = "image"\nref = "host:"\n[[chain]]',
        f"hook = \"container\"\ncommand = ['''sh''', '''-c''', '''{script}''']",
        *lines,
    ])  # fmt: skip


def together(*without: str) -> tuple[list[str], str, list[str]]:
    """Options that one container can have at once, a script that tries them all, and the lines that it prints.

    What a line of the script printed stands behind "> ".
    """
    rows = [row for row in ROWS if not row.line.startswith(("cap_drop", "pid", *without))]
    script = "; ".join(marked(row.script) for row in rows)
    return [row.line for row in rows], script, [row.printed for row in rows]


def marked(script: str) -> str:
    """A script whose output stands behind "> "."""
    return f'echo "> $({script})"'


def told(text: str) -> list[str]:
    """What stands behind "> "."""
    return [line[2:] for line in text.splitlines() if line.startswith("> ")]
