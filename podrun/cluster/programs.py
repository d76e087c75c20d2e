"""Programs that podrun asks: with a deadline and a limit of output, whatever the other side does."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from podrun.errors import NOT_FOUND, UNAVAILABLE, Failure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Bytes of output: the state of 16 hosts with 500 pods takes less than one MiB.
LIMIT = 64 << 20
#: What Done says of a program that took too long.
TIMED_OUT = -1


class Done(NamedTuple):
    """How a program ended: its exit status (TIMED_OUT; 127: it is not there) and what it printed."""

    code: int
    out: str
    err: str

    @property
    def last_words(self) -> str:
        """The last line of its complaint, for a message; of XML (Pacemaker's pacemaker-result) the message in it."""
        lines = [line.strip() for text in (self.out, self.err) for line in text.splitlines()]
        words = [line for line in lines if line and not line.startswith("<")]
        if not words and (told := re.search('<status code="[0-9]+" message="([^"]*)"', self.out)):
            words = [told[1]]
        printable = "".join(c for c in (words or [""])[-1] if c.isprintable())
        return printable[:300] or ("it took too long" if self.code == TIMED_OUT else f"it ended with {self.code}")


def run(argv: Sequence[str], seconds: float, text: str = "") -> Done:
    """Runs a program with ``text`` on its standard input; kills it after ``seconds``, or when it prints without end."""
    environ = {**os.environ, "LC_ALL": "C.UTF-8", "TERM": "dumb", "NO_COLOR": "1"}
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        source.write(text.encode())
        source.seek(0)
        try:
            process = subprocess.Popen(argv, stdin=source, stdout=out, stderr=err, env=environ)
        except FileNotFoundError:
            return Done(NOT_FOUND, "", f"there is no {argv[0]}")
        deadline = time.monotonic() + seconds
        code = TIMED_OUT
        try:
            while time.monotonic() < deadline and os.fstat(out.fileno()).st_size <= LIMIT:
                try:
                    code = process.wait(0.2)
                    break
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(LIMIT).decode(errors="replace"))
    return Done(code, *texts)


def run_all(commands: Mapping[str, Sequence[str]], seconds: float, text: str = "") -> dict[str, Done]:
    """Runs several programs side by side; their ends by the same keys."""
    if not commands:
        return {}
    with ThreadPoolExecutor(len(commands)) as pool:
        waiting = {key: pool.submit(run, argv, seconds, text) for key, argv in commands.items()}
        return {key: future.result() for key, future in waiting.items()}


def asked(argv: Sequence[str], seconds: float, text: str = "", *, hint: str = "") -> str:
    """What a program prints. Raises Failure when it fails."""
    done = run(argv, seconds, text)
    if done.code:
        raise Failure(f"{argv[0]}: {done.last_words}", code=UNAVAILABLE, hint=hint)
    return done.out
