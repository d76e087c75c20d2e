"""The targets of fuzz.py, guided by coverage (pip install atheris): python fuzz_guided.py TARGET [libFuzzer's options] [CORPUS]

Such as: python tests/support/fuzz_guided.py consul -runs=1000000 -seed=1 /var/tmp/corpus
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

sys.path[:0] = [str(Path(__file__).parents[1])]
with atheris.instrument_imports(include=["podrun", "podrun_hooks"]):
    from support import fuzz


def main() -> None:
    target = next(one for one in fuzz.targets() if one.name == sys.argv[1])
    # libFuzzer begins with what is in a directory.
    samples = Path(tempfile.mkdtemp(prefix="podrun-fuzz-"))
    for number, sample in enumerate(target.samples):
        (samples / str(number)).write_bytes(sample)

    def once(content: bytes) -> None:
        try:
            target.read(content)
        except target.errors:
            pass

    atheris.Setup([sys.argv[0], *sys.argv[2:], str(samples)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
