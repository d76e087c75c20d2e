"""Pods as crm's configuration: the whole text, names and values through the encoder, and crm itself reading it."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from podrun.cluster import agent, configuration, pacemaker
from podrun.cluster.pods import Placement, Pod, repels
from podrun.options import Wrong

UTILS = Pod("utils", "utils.toml", Placement(everywhere=True))
ONE = Pod("service1", "service1.toml", Placement(metadata={"disk": "ssd", "zone": "a"}), requires=("utils",))
TWO = Pod("service2", "service2.toml", Placement(("service1",), machine_of="utils", prefer=("n2", "n1"), priority=7))

GOLDEN = """\
property batch-limit=30 no-quorum-policy=stop
primitive service1 ocf:podrun:pod params pod=service1 op start timeout=30s interval=0s op stop timeout=65s interval=0s \
op monitor interval=10s timeout=20s meta resource-stickiness=100 migration-threshold=5 failure-timeout=600s
primitive service2 ocf:podrun:pod params pod=service2 op start timeout=30s interval=0s op stop timeout=65s interval=0s \
op monitor interval=10s timeout=20s meta resource-stickiness=100 migration-threshold=5 failure-timeout=600s priority=7
primitive utils ocf:podrun:pod params pod=utils op start timeout=30s interval=0s op stop timeout=65s interval=0s \
op monitor interval=10s timeout=20s meta resource-stickiness=100 migration-threshold=5 failure-timeout=600s
clone utils-Global utils meta interleave=true
colocation service1-With-utils inf: service1 utils-Global
order service1-After-utils Optional: utils-Global service1
location service1-On service1 rule -inf: not_defined disk or disk ne ssd or not_defined zone or zone ne a
colocation service2-With-utils inf: service2 utils-Global
order service2-After-utils Optional: utils-Global service2
location service2-Prefers-n2 service2 50: n2
location service2-Prefers-n1 service2 40: n1
colocation service2-Apart-service1 -inf: service2 service1
"""


def text(*pods: Pod, **more: Any) -> Any:
    return configuration.text(configuration.statements(pods, **more))


def test_the_whole_text() -> None:
    assert text(ONE, TWO, UTILS) == GOLDEN


def test_a_stop_may_take_longer_than_systemd_gives_it() -> None:
    assert "op stop timeout=150s" in text(Pod("web", "f", stop_seconds=120.2))


def test_without_fencing_is_said_only_when_asked_for() -> None:
    assert "stonith" not in text(UTILS)
    assert "stonith-enabled=false\n" in text(UTILS, fencing=False)


def test_what_people_have_stopped_or_taken_over_stays_so() -> None:
    kept = {"service1": {"target-role": "Stopped"}, "utils-Global": {"is-managed": "false"}}
    found = text(ONE, UTILS, kept=kept)
    assert "failure-timeout=600s target-role=Stopped\n" in found
    assert "meta interleave=true is-managed=false\n" in found


def apart(*pods: Pod) -> list[str]:
    """What keeps pods apart, without what they all have in front."""
    lines = text(*pods).splitlines()
    return [line.removeprefix("colocation ").replace(" -inf:", "") for line in lines if "-Apart" in line]


WEB = [Pod(f"web@{n}", "f", Placement(("web@*",))) for n in "abc"]
BACKUPS = [Pod(f"backup{n}", "f", Placement(("web@*",))) for n in "12"]


@pytest.mark.parametrize(
    ("pods", "told"),
    [
        (WEB[:2], ["web.b-Apart-web.a web.b web.a"]),
        (WEB, ["web.a-Apart web.a web.b web.c"]),
        ([*BACKUPS[:1], *WEB], ["web.a-Apart web.a web.b web.c", "backup1-Apart-web.a backup1 ( web.a web.b web.c )"]),
        (
            [*BACKUPS, Pod("db", "f", Placement(("db",))), *WEB],
            ["web.a-Apart web.a web.b web.c", "backup1-Apart-web.a ( backup1 backup2 ) ( web.a web.b web.c )"],
        ),
        (
            [Pod("one", "f", Placement(("two", "three"))), Pod("two", "f", Placement(("one",))), Pod("three", "f")],
            ["one-Apart-three one three", "two-Apart-one two one"],
        ),
    ],
)
def test_conflicts_are_as_few_constraints_as_say_them(pods: list[Pod], told: list[str]) -> None:
    assert apart(*pods) == told


def sets(line: str) -> list[list[str]]:
    """The sets of a constraint that keeps pods apart; a member outside of parentheses is one of its own."""
    found: list[list[str]] = []
    inside = False
    for word in line.split()[1:]:
        if word in "()":
            inside = word == "("
            found += [[]] if inside else []
        elif inside:
            found[-1].append(word)
        else:
            found.append([word])
    return found


SOME = st.sampled_from(["a", "b", "c", "d@1", "d@2", "d@3", "e"])
PATTERNS = st.sampled_from(["*", "d@*", "[abc]", "a", "e", "d@1", "nobody"])


@given(st.dictionaries(SOME, st.lists(PATTERNS, max_size=3)))
def test_each_pair_that_is_to_be_apart_is_once_and_no_other_is(wanted: dict[str, list[str]]) -> None:
    pods = [Pod(name, "f", Placement(tuple(patterns))) for name, patterns in wanted.items()]
    found = [
        frozenset((one, other))
        for line in apart(*pods)
        for mine, theirs in itertools.combinations(sets(line), 2)
        for one, other in itertools.product(mine, theirs)
    ]
    wanted_pairs = {
        frozenset((configuration.resource(one.name), configuration.resource(other.name)))
        for one, other in itertools.permutations(pods, 2)
        if repels(one, other)
    }
    assert sorted(map(sorted, found)) == sorted(map(sorted, wanted_pairs))


def test_no_preference_outweighs_staying() -> None:
    many = Pod("web", "f", Placement(prefer=tuple(f"n{number}" for number in range(9))))
    scores = [int(line.split()[3].rstrip(":")) for line in text(many).splitlines() if line.startswith("location")]
    assert scores == sorted(scores, reverse=True)
    assert max(scores) < configuration.STICKINESS


@pytest.mark.parametrize("value", ["", "a b", 'a"b', "a'b", "a{b}", "a\nb", "a;b", "a\\b", "$a", "a#b", "ü", "<", "&"])
def test_what_has_no_safe_spelling_is_refused(value: str) -> None:
    with pytest.raises(Wrong):
        text(Pod("web", "f", Placement(metadata={"disk": value})))


#: Anything at all, and what would be a word of crm's, or more than one.
TEXTS = st.text(max_size=8) | st.sampled_from(
    ["(", ")", "a b", "a\nproperty x=y", "\\", "$id=x", "rule", "a=b", "", "#"]
)


@example("disk", "ssd", "n1", "Stopped")
@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_no_text_of_a_pod_file_becomes_more_than_one_word(key: str, value: str, machine: str, name: str) -> None:
    pods = [
        Pod("web", "f", Placement(metadata={key: value}, prefer=(machine,))),
        Pod("db", "f", Placement(("web",))),
    ]
    try:
        found = text(*pods, kept={"web": {"target-role": name}})
    except Wrong:
        return
    lines = [line.split(" ") for line in found.splitlines()]
    assert [words[0] for words in lines] == ["property", "primitive", "primitive", "location", "location", "colocation"]
    assert [len(words) for words in lines] == [3, 22, 21, 11, 5, 5]
    assert lines[1][-1] == f"target-role={name}"
    assert lines[3][6:] == [key, "or", key, "ne", value]
    assert lines[4][-1] == machine
    assert not {*found} - {*configuration._PLAIN, " ", "\n"}


NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}(@[a-z0-9][a-z0-9_.-]{0,10})?", fullmatch=True)


@given(NAMES)
def test_names_of_resources_are_xml_names_and_lead_back_to_their_pods(name: Any) -> None:
    identifier = configuration.resource(name)
    assert configuration.pod_of(identifier) == name
    assert configuration.pod_of(f"{identifier}-Global") == name
    assert identifier[0] in "abcdefghijklmnopqrstuvwxyz_"
    assert set(identifier) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.-")


# --- crm itself -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cib(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Loads a text with crm into an empty configuration of three machines; returns its XML.

    crm asks the agent for its meta-data, so it is installed as long as that takes.
    """
    home = tmp_path_factory.mktemp("cib")
    place = Path(agent.AGENT)
    there = place.exists()
    if not there:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(agent.SOURCE, place)
        place.chmod(0o755)
    empty = subprocess.run(["cibadmin", "--empty"], capture_output=True, text=True, check=True).stdout
    machines = "".join(f'<node id="{n}" uname="n{n}"/>' for n in (1, 2, 3))

    def load(found: str, again: bool = False) -> ElementTree.Element:
        if not again:
            (home / "cib.xml").write_text(empty.replace("<nodes/>", f"<nodes>{machines}</nodes>"))
        (home / "pods.crm").write_text(found.replace("property ", "property stonith-enabled=false ", 1))
        environ = {**os.environ, "CIB_file": str(home / "cib.xml"), "TERM": "dumb"}
        argv = ["crm", "-F", "configure", "load", "update", str(home / "pods.crm")]
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60)
        assert "Traceback" not in done.stderr, done.stderr
        return ElementTree.parse(home / "cib.xml").getroot()

    load.file = home / "cib.xml"
    yield load
    if not there:
        shutil.rmtree(place.parent)


def edges(root: Any) -> Any:
    """What the constraints say, as Pacemaker reads them."""
    found = []
    for constraint in root.findall("configuration/constraints/*"):
        told = {key: value for key, value in constraint.attrib.items() if key != "id"}
        rules = [tuple(map(one.get, ("attribute", "operation", "value"))) for one in constraint.iter("expression")]
        found.append((constraint.tag, constraint.get("id"), told, rules))
    return found


@pytest.mark.root
def test_crm_understands_the_whole_text(cib: Any) -> None:
    root = cib(GOLDEN)
    near, apart = {"score": "INFINITY"}, {"score": "-INFINITY"}
    on = [("disk", "not_defined", None), ("disk", "ne", "ssd"), ("zone", "not_defined", None), ("zone", "ne", "a")]
    after = {"kind": "Optional", "first": "utils-Global"}
    assert edges(root) == [
        ("rsc_colocation", "service1-With-utils", {**near, "rsc": "service1", "with-rsc": "utils-Global"}, []),
        ("rsc_order", "service1-After-utils", {**after, "then": "service1"}, []),
        ("rsc_location", "service1-On", {"rsc": "service1"}, on),
        ("rsc_colocation", "service2-With-utils", {**near, "rsc": "service2", "with-rsc": "utils-Global"}, []),
        ("rsc_order", "service2-After-utils", {**after, "then": "service2"}, []),
        ("rsc_location", "service2-Prefers-n2", {"rsc": "service2", "score": "50", "node": "n2"}, []),
        ("rsc_location", "service2-Prefers-n1", {"rsc": "service2", "score": "40", "node": "n1"}, []),
        ("rsc_colocation", "service2-Apart-service1", {**apart, "rsc": "service2", "with-rsc": "service1"}, []),
    ]
    found = pacemaker.parsed_configuration(root)
    assert found.pods == {"service1": "service1", "service2": "service2", "utils": "utils"}
    assert found.own == {one.id for one in configuration.statements((ONE, TWO, UTILS)) if one.id} - found.pods.keys()
    assert not found.foreign


def starts(cib: Any) -> dict[str, str]:
    """What Pacemaker would start on three machines, and where."""
    up = [f"--node-up=n{number}" for number in (1, 2, 3)]
    argv = ["crm_simulate", "--xml-file", cib.file, "--quorum=true", "--run", *up]
    told = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in told.splitlines() if "* Start " in line]
    return {words[2]: words[4] for words in lines}


@pytest.mark.root
def test_pacemaker_keeps_the_members_of_sets_apart_while_they_become_more(cib: Any) -> None:
    last = Pod("web@d", "f", Placement(("web@*",)))
    # On three machines, how many of each run: backups have what is left of them, and the fourth of web has none.
    table = (
        ([BACKUPS[0], WEB[0]], 1, 1),
        ([*BACKUPS, *WEB[:2]], 2, 2),
        ([*BACKUPS, *WEB], 3, 0),
        ([*BACKUPS, *WEB, last], 3, 0),
    )
    for number, (pods, web, backups) in enumerate(table):
        cib(text(*pods), again=bool(number))
        found = starts(cib)
        of_web = {place for name, place in found.items() if name in ("web.a", "web.b", "web.c")}
        of_backups = [place for name, place in found.items() if name.startswith("backup")]
        assert (len(found), len(of_web), len(of_backups)) == (web + backups, web, backups), found
        assert not of_web & {*of_backups}


#: Words of crm's own language.
TRICKY = st.sampled_from(
    "and or in inf rule rules role first then params meta op primitive clone group property 1st 0 9-9 start stop".split()
)


@pytest.mark.root
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(TRICKY | NAMES, min_size=2, max_size=2, unique=True),
    values=st.lists(
        TRICKY | st.from_regex("[A-Za-z0-9][A-Za-z0-9_.:@+-]{0,8}", fullmatch=True), min_size=1, max_size=2
    ),
)
def test_whatever_pods_and_values_are_called_crm_takes_them_for_names_and_values(
    cib: Any, names: Any, values: Any
) -> None:
    first, second = names
    metadata = {f"k{number}": value for number, value in enumerate(values)}
    pods = (
        Pod(first, "f", Placement(everywhere=True)),
        Pod(second, "f", Placement(machine_of=first, metadata=metadata)),
    )
    root = cib(text(*pods))
    one, two = configuration.resource(first), configuration.resource(second)
    rules = [rule for key, value in metadata.items() for rule in ((key, "not_defined", None), (key, "ne", value))]
    assert pacemaker.parsed_configuration(root).pods == {one: first, two: second}
    assert edges(root) == [
        ("rsc_colocation", f"{two}-With-{one}", {"score": "INFINITY", "rsc": two, "with-rsc": f"{one}-Global"}, []),
        ("rsc_order", f"{two}-After-{one}", {"kind": "Optional", "first": f"{one}-Global", "then": two}, []),
        ("rsc_location", f"{two}-On", {"rsc": two}, rules),
    ]
