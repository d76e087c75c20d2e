"""``podrun logs``: what containers have written, from their log files and from systemd's journal."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple, Protocol

import click

from podrun.cli import completion, times
from podrun.cli.output import Guarded
from podrun.engine import state as states
from podrun.engine.processes import alive
from podrun.errors import UNAVAILABLE, WRONG_FILE, Failure
from podrun.host import Host
from podrun.launcher import transient
from podrun.launcher.commands import host_of, name_of
from podrun.launcher.exec import no_container
from podrun.options import whole
from podrun.systemd import exit_records

#: A line and when it was written, in seconds since 1970; None: its source has no times.
Line = tuple["float | None", bytes]
#: Seconds without a line after which the journal is taken to have no more of a container that has ended.
_QUIET = 0.5


class Wanted(NamedTuple):
    """What is asked for: moments in seconds since 1970, 0.0 for none."""

    #: How many of the last lines; None: all.
    tail: int | None
    since: float
    until: float
    times: bool


class Source(Protocol):
    """Where a container's output is."""

    def past(self) -> Iterator[Line]:
        """The lines that there are."""

    def more(self) -> list[Line] | None:
        """Those that have come since; None when there will be no more."""

    def close(self) -> None: ...


class FileSource:
    """A log file, and those that it has outgrown (``log_size``)."""

    def __init__(self, path: str, older: Sequence[str], process: tuple[int, int], wanted: Wanted) -> None:
        if wanted.since or wanted.until or wanted.times:
            what = f"{path} has no times: it holds what the container wrote and nothing else"
            hint = "leave out -t, --since and --until; in a unit systemd's journal has them"
            raise Failure(what, code=UNAVAILABLE, hint=hint)
        self.path, self.older, self.process, self.wanted = path, older, process, wanted
        self.file = _plain(path)

    def past(self) -> Iterator[Line]:
        files = [_plain(path) for path in self.older]
        try:
            if self.wanted.tail is not None:
                yield from self._last(files, self.wanted.tail)
                return
            for file in (*files, self.file):
                while block := file.read(65536):
                    yield None, block
        finally:
            for file in files:
                file.close()

    def _last(self, older: Sequence[BinaryIO], count: int) -> Iterator[Line]:
        """The last lines: from the file's end backwards, in the older ones where it has too few."""
        missing = count
        begins = []
        for file in (self.file, *reversed(older)):
            begin, found = _back(file, missing)
            begins.append((file, begin))
            missing -= found
            if missing <= 0:
                break
        for file, begin in reversed(begins):
            file.seek(begin)
            while block := file.read(65536):
                yield None, block

    def more(self) -> list[Line] | None:
        running = alive(*self.process)
        rotated = _is_another(self.path, self.file)
        found: list[Line] = []
        while block := self.file.read(65536):
            found.append((None, block))
        if rotated:
            self.file.close()
            self.file = _plain(self.path)
            return found
        return found if found or running else None

    def close(self) -> None:
        self.file.close()


class JournalSource:
    """One invocation of a unit in systemd's journal; of a transient one, all since the pod was made (``made``)."""

    def __init__(self, unit: str, invocation: str, process: tuple[int, int], wanted: Wanted, made: float = 0.0) -> None:
        from podrun.systemd import journalctl

        if made:
            invocation, wanted = "", wanted._replace(since=max(made, wanted.since))
        self._reader = journalctl.Reader
        self.unit, self.invocation, self.process, self.wanted = unit, invocation, process, wanted
        self.reader: journalctl.Reader | None = None
        self.cursor = ""
        self.last = time.monotonic()

    def past(self) -> Iterator[Line]:
        wanted = self.wanted
        if 0.0 < wanted.until < wanted.since:
            return  # journalctl(1) would refuse it
        words = [f"--since=@{wanted.since:.6f}"] if wanted.since else []
        words += [f"--until=@{wanted.until:.6f}"] if wanted.until else []
        reader = self._reader(self.unit, self.invocation, *words)
        try:
            # journalctl's own --lines counts the pieces of a long line.
            yield from reader.lines() if wanted.tail is None else deque(reader.lines(), maxlen=wanted.tail)
        finally:
            self.cursor = reader.cursor
            reader.close()

    def more(self) -> list[Line] | None:
        if self.reader is None:
            after = f"--after-cursor={self.cursor}" if self.cursor else "--lines=all"
            since = [f"--since=@{self.wanted.since:.6f}"] if self.wanted.since and not self.cursor else []
            lines = ["--lines=all"] if self.cursor else []
            self.reader = self._reader(self.unit, self.invocation, "--follow", after, *lines, *since)
        found = self.reader.waiting()
        now = time.monotonic()
        if found is not None or alive(*self.process):
            self.last = now
            return [*(found or ())]
        return [] if now - self.last < _QUIET else None

    def close(self) -> None:
        if self.reader is not None:
            self.reader.close()


@click.command(cls=Guarded)
@click.option("-c", "--container", default="", metavar="NAME", help="Which container; default: the last.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the containers have ended.")
@click.option("-n", "--tail", "last", default="all", metavar="NUMBER", help="Only the last lines.")
@click.option("--since", default="", metavar="TIME", help="Only what was written from then on: 10m, 2026-11-26T17:30.")
@click.option("--until", default="", metavar="TIME", help="Only what was written up to then.")
@click.option("-t", "--timestamps", is_flag=True, help="With the time in front of each line.")
@click.argument("words", metavar="FILE|NAME...", nargs=-1, required=True, shell_complete=completion.words)
@click.pass_context
def logs(
    ctx: click.Context,
    words: Sequence[str],
    container: str,
    follow: bool,
    last: str,
    since: str,
    until: str,
    timestamps: bool,
) -> None:
    """Print what containers have written, of several pods with their names in front of the lines."""
    host = host_of(ctx.obj)
    count = whole(last)
    if count is None and last not in ("all", "-1"):
        raise Failure(f"--tail {last!r}: expected a number of lines, or all", code=WRONG_FILE)
    wanted = Wanted(
        count,
        times.moment(since, "--since") if since else 0.0,
        times.moment(until, "--until") if until else 0.0,
        timestamps,
    )
    names = list(dict.fromkeys(name_of(word, host) for word in words))
    width = max(map(len, names))
    found = [source_of(host, name, container, wanted) for name in names]
    printers = [_Printer(f"{name:{width}} | ".encode() if len(names) > 1 else b"", timestamps) for name in names]
    pairs = list(zip(found, printers, strict=True))
    try:
        for source, printer in pairs:
            for line in source.past():
                printer.put(line)
        sys.stdout.buffer.flush()
        while follow and pairs and not (wanted.until and time.time() >= wanted.until):
            heard = False
            for source, printer in list(pairs):
                lines = source.more()
                if lines is None:
                    pairs.remove((source, printer))
                for line in lines or ():
                    printer.put(line)
                    heard = True
            sys.stdout.buffer.flush()
            if not heard:
                time.sleep(0.05)
    finally:
        for printer in printers:
            printer.end()
        for source in found:
            source.close()


class _Printer:
    """Puts a name and a time in front of lines; a file's come in blocks of any size."""

    def __init__(self, prefix: bytes, with_times: bool) -> None:
        self.prefix, self.times = prefix, with_times
        self.begun = b""

    def put(self, line: Line) -> None:
        """Prints what is whole of it."""
        when, block = line
        if not (self.prefix or self.times):
            sys.stdout.buffer.write(block)
            return
        stamp = f"{times.stamp(when)} ".encode() if self.times and when is not None else b""
        *whole, self.begun = (self.begun + block).split(b"\n")
        sys.stdout.buffer.writelines(self.prefix + stamp + text + b"\n" for text in whole)

    def end(self) -> None:
        """Prints a last line that has no newline."""
        if self.begun:
            sys.stdout.buffer.write(self.prefix + self.begun + b"\n")
            self.begun = b""


def source_of(host: Host, name: str, container: str, wanted: Wanted) -> Source:
    """Where the output of a pod's container is: of one that runs, else of the last that is known. Raises Failure."""
    found = states.resident(host.run, name, container)
    if found is None:
        return _of_ended(host, name, container, wanted)
    process = found[1].facts.get("process") or found[1].process or {"pid": 0, "start": 0}
    place = (process["pid"], process["start"])
    if found[1].facts.get("log", {}).get("none"):
        raise _not_kept(name)
    path = found[1].facts.get("log", {}).get("file")
    header = found[0].header
    if path:
        options = found[1].step["options"]
        older = _older(path, options.get("log_files", 3)) if options.get("log_size") else []
        return FileSource(path, older, place, wanted)
    if header and header.pod.unit:
        made = transient.since(name, header.pod.unit, host)
        return JournalSource(header.pod.unit, header.pod.invocation, place, wanted, made)
    what = f"{name}: its output was not captured: it went to podrun's own standard output"
    raise Failure(what, code=UNAVAILABLE)


def _of_ended(host: Host, name: str, container: str, wanted: Wanted) -> Source:
    """The output of a container whose unit systemd has undone, by its exit record."""
    for ending in reversed(exit_records.all_of(host.run, name)):
        for ended in reversed(ending.containers):
            if container in ("", ended["name"]):
                if ended.get("dropped"):
                    raise _not_kept(name)
                if ended["log"]:
                    return FileSource(ended["log"], [], (0, 0), wanted)
                made = transient.since(name, ending.unit, host)
                return JournalSource(ending.unit, ending.invocation, (0, 0), wanted, made)
    failure = no_container(host.run, name)
    failure.what = f"{name}: {failure.what}"
    raise failure


def _not_kept(name: str) -> Failure:
    return Failure(f"{name}: its output is not kept: log is 'none'", code=UNAVAILABLE)


def _older(path: str, most: int) -> list[str]:
    """The files that a log has outgrown (``log_size``), the oldest first."""
    found = [f"{path}.{number}" for number in range(most, 0, -1)]
    return [older for older in found if os.path.lexists(older)]


def _back(file: BinaryIO, count: int) -> tuple[int, int]:
    """(where the last ``count`` lines begin, how many lines there are from there)."""
    size = at = os.fstat(file.fileno()).st_size
    found = 0
    while at and count > 0:
        begin = max(0, at - 65536)
        block = os.pread(file.fileno(), at - begin, begin)
        # A newline at the very end ends the last line.
        end = len(block) - (1 if at == size and block.endswith(b"\n") else 0)
        while (end := block.rfind(b"\n", 0, end)) >= 0:
            found += 1
            if found == count:
                return begin + end + 1, count
        at = begin
    return (0, found + 1) if size and count > 0 else (size, 0)


def _is_another(path: str, file: BinaryIO) -> bool:
    """Whether a new log has been begun since ``file`` was opened."""
    try:
        return os.stat(path, follow_symlinks=False).st_ino != os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _plain(path: str) -> BinaryIO:
    """A log file to read. It may lie where the payload can write: a link or a device in its place is refused."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Failure(f"{path} is not a plain file", code=UNAVAILABLE)
    return open(fd, "rb")
