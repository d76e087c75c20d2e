"""What a pod, or a step of it, is called where a name has to stand for it: files, records, units, kernel objects.

A pod is NAME or NAME@INSTANCE. NAME has letters, digits and "-"; an instance and a step's name may hold dots, too. So
that no two of them meet under one name, and each name can be read again:

- in files and records their dots are doubled and a single one joins pod and step ("web.app", "web@1..2.app");
- units join name and step in front of the instance, which is systemd's own way ("web.app@1.2.service");
- runtimes and kernel objects know no "@": the tag has "+" for it, which is in no name ("podrun-web+1.2"), and of a
  later generation its number behind one more ("podrun-web+1.2+3", "podrun-web++3").
"""

from __future__ import annotations

from podrun.record import NamedTuple

#: The run directory whose pods' tags carry no hash.
RUN = "/run/podrun"


class Identity(NamedTuple):
    """A pod, or a step or segment of it."""

    #: "web", "web@blue".
    pod: str
    #: The name of the step or segment; "": the pod as a whole.
    part: str = ""

    @property
    def text(self) -> str:
        """The name for files and records."""
        pod = self.pod.replace(".", "..")
        return f"{pod}.{self.part.replace('.', '..')}" if self.part else pod

    def record(self, host: str) -> str:
        """The name for a record that each host has of its own."""
        return f"{self.text}@{host}"

    def unit(self, kind: str = "service") -> str:
        """The unit that ``podrun unit`` makes for it."""
        name, at, instance = self.pod.partition("@")
        return f"{name}{'.' * bool(self.part)}{self.part}{at}{instance}.{kind}"

    def tag(self, run: str = RUN, generation: int = 1) -> str:
        """What the kernel objects of the pod are called; ``run``: the run directory."""
        return f"{_prefix(run)}{self.pod.replace('@', '+')}{self.generation(generation)}"

    def generation(self, number: int) -> str:
        """What the tag of a later generation ends in: "++2", "+2" behind an instance. No instance is empty."""
        return "" if number == 1 else f"{'+' if '@' in self.pod else '++'}{number}"


def of_text(text: str) -> Identity:
    """The identity whose :attr:`Identity.text` it is."""
    # A step's name does not begin with a dot: of an odd number of dots the last one joins.
    words = text.replace("..", "\0").replace("\0.", "\0\n").replace(".", "\n").split("\n")
    pod, part = words if len(words) == 2 else (words[0], "")
    return Identity(pod.replace("\0", "."), part.replace("\0", "."))


def of_record(record: str, host: str) -> Identity:
    """The identity whose :meth:`Identity.record` it is."""
    return of_text(record.removesuffix(f"@{host}"))


def of_unit(unit: str) -> Identity:
    """The identity whose :meth:`Identity.unit` it is."""
    stem, at, instance = unit.rpartition(".")[0].partition("@")
    name, _, part = stem.partition(".")
    return Identity(name + at + instance, part)


def of_tag(tag: str, run: str = RUN) -> Identity:
    """The pod whose :meth:`Identity.tag` it is, whichever its generation."""
    name, _, more = tag.removeprefix(_prefix(run)).partition("+")
    instance = more.partition("+")[0]
    return Identity(f"{name}@{instance}" if instance else name)


def of_run(word: str, run: str) -> str:
    """A name that a host has once for each run directory: ``word``, with a hash where it is not the usual one."""
    if run == RUN:
        return word
    from _blake2 import blake2s

    return f"{word}-{blake2s(run.encode(), digest_size=2).hexdigest()}"


def _prefix(run: str) -> str:
    return f"{of_run('podrun', run)}-"
