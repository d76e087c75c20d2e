"""What is refused of pods in a cluster, all at once; what people are told of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from podrun.cluster import configuration, files, pacemaker, pods, rollout
from podrun.errors import CANNOT_CREATE, WRONG_FILE, Failure

CHAIN = '[[chain]]\nhook = "image"\nref = "host:"\n[[chain]]\nhook = "container"\n'


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Writes pod files, given as TOML before the chain; returns them read."""

    def write(**texts: Any) -> Any:
        found = []
        for name, text in texts.items():
            path = tmp_path / f"{name}.toml"
            path.write_text(text if "[[chain]]" in text else text + "\n" + CHAIN)
            found.append(pods.read(str(path)))
        return found

    return write


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ({"a": "[install]\nWantedBy = 'multi-user.target'"}, "[install] has systemd start the pod at boot"),
        ({"a": "[socket]\nListenStream = 80"}, "[socket] has systemd start the pod on a connection"),
        ({"a": "[pod]\ntype = 'job'"}, "a job ends by itself"),
        ({"a": "[service]\nTimeoutStopSec = 'infinity'"}, "TimeoutStopSec=infinity"),
        ({"a": "[unit]\nRequires = 'b.service'", "b": ""}, "a second b here; wait for it with a wait-for step"),
        ({"a": "[unit]\nBindsTo = ['x.service', 'b.service']", "b": ""}, "a second b here"),
        ({"a": "[unit]\nWants = 'x.service b.service'", "b": ""}, "a second b here"),
        ({"a": "[pod]\nrequires = ['b']", "b": ""}, "wait-for step, or say machine_of = 'b' in [placement]"),
        ({"a": "[placement]\nmachine_of = 'b'"}, "there is no pod b among the files"),
        ({"a": "[placement]\nmachine_of = 'a'"}, "the pod names itself"),
        ({"a": "[placement]\nmachine_of = 'b'", "b": "[placement]\nmachine_of = 'a'"}, "in a circle"),
        ({"a": "[placement]\nmachine_of = 'b'\nglobal = true", "b": ""}, "machine_of: the pod is global"),
        ({"a": "[placement]\nprefer = ['n1']\nglobal = true"}, "prefer: the pod is global"),
        ({"a": "[placement]\nconflicts = ['b']", "b": "[placement]\nglobal = true"}, "b is global, so"),
        ({"a": "[placement]\nglobal = true\nconflicts = ['b*']", "b": ""}, "a is global, so"),
        ({"a": "[placement]\nconflicts = ['b']\nmachine_of = 'b'", "b": ""}, "because of machine_of"),
        ({"a": "[placement]\nmachine_of = 'b'", "b": "[placement]\nconflicts = ['a']"}, "because of machine_of"),
        (
            {"a": "[placement]\nmachine_of = 'c'\nconflicts = ['b']", "b": "[placement]\nmachine_of = 'd'"}
            | {"c": "", "d": "[placement]\nmachine_of = 'c'"},
            "b is on the same machine because of machine_of",
        ),
    ],
)
def test_what_a_cluster_cannot_do_is_refused(written: Any, texts: Any, told: str) -> None:
    found = pods.mistakes(written(**texts))
    assert any(told in line for line in found), found


def test_all_mistakes_are_told_at_once(written: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = written(a="[install]\nWantedBy = 'x.target'\n[socket]\nListenStream = 80", b="[pod]\ntype = 'job'")
    with pytest.raises(Failure) as caught:
        rollout.statements(rollout.Wanted(found, {pod.name: {} for pod in found}), None, fencing=True)
    assert caught.value.code == WRONG_FILE
    assert len([*capsys.readouterr().err.splitlines(), caught.value.what]) == 3


def test_somebody_elses_resource_is_refused_before_anything_is_sent(written: Any) -> None:
    before = pacemaker.Configuration({}, frozenset({"a"}), frozenset(), {}, True, 1)
    with pytest.raises(Failure, match="a resource a that is not a pod") as caught:
        rollout.statements(rollout.Wanted(written(a=""), {"a": {}}), before, fencing=True)
    assert caught.value.code == CANNOT_CREATE


def test_only_a_pod_that_is_new_is_applied_stopped(written: Any) -> None:
    found = written(a="", b="[placement]\nglobal = true", c="")
    before = pacemaker.Configuration({"c": "c"}, frozenset(), frozenset(), {}, True, 1)
    wanted = rollout.Wanted(found, {pod.name: {} for pod in found})
    stopped = [s.id for s in rollout.statements(wanted, before, fencing=True, stopped=True) if "Stopped" in s.text]
    assert stopped == ["a", "b-Global"]


def test_a_file_of_the_clusters_that_was_changed_here_goes_nowhere_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pods, "ETC", str(tmp_path))
    texts = {"a": {"a.toml": CHAIN}, "web@blue": {"web@.toml": CHAIN, "web@.toml.d/1.toml": "[pod]\n"}}
    files.receive(files.message(texts, files.NOTHING), str(tmp_path))
    known = files.manifest(str(tmp_path))
    assert rollout.read([], known).texts == texts
    assert list(rollout.read([], known, without="a").texts) == ["web@blue"]
    (tmp_path / "web@.toml.d/2.toml").write_text("[pod]\n")
    with pytest.raises(Failure, match=r"2.toml was changed on this host; 'podrun cluster apply web@blue'"):
        rollout.read(["a"], known)
    assert "web@.toml.d/2.toml" in rollout.read(["web@blue"], known).texts["web@blue"]


@pytest.mark.parametrize(
    "texts",
    [
        {"a": "[unit]\nRequires = 'b.service'\n[placement]\nmachine_of = 'b'", "b": ""},
        {"a": "[unit]\nRequires = 'b.service'", "b": "[placement]\nglobal = true"},
        {"a": "[pod]\nrequires = ['b']\n[placement]\nmachine_of = 'b'", "b": ""},
        {"a": "[unit]\nRequires = 'sshd.service'"},
        {"a": "[placement]\nconflicts = ['a', 'b*']"},
        {"a": "[placement]\nmachine_of = 'c'\nconflicts = ['b']", "b": "[placement]\nmachine_of = 'c'"}
        | {"c": "[placement]\nglobal = true"},
    ],
)
def test_what_a_cluster_can_do_is_not(written: Any, texts: Any) -> None:
    assert pods.mistakes(written(**texts)) == []


def test_the_stop_limits_of_all_units_add_up(written: Any) -> None:
    (pod,) = written(a=f'{CHAIN}name = "one"\nstop_timeout = "10s"\n[[chain]]\nhook = "container"\nname = "two"\n')
    assert pod.stop_seconds == 15 + 25 + 35


@pytest.mark.parametrize(
    ("step", "what"),
    [
        ('hook = "storage"\nsource = "volume:data"\ntarget = "/x"', "volume:data"),
        ('hook = "storage"\nsource = "/srv"\ntarget = "/x"', "/srv"),
        ('hook = "storage"\nsource = "nfs:n1:/x"\ntarget = "/x"', ""),
        ('hook = "storage"\nsource = "/dev/drbd0"\ntype = "ext4"\ntarget = "/x"', ""),
        ('hook = "storage"\nsource = "tmpfs:"\ntarget = "/x"', ""),
        ('hook = "container"\nname = "b"\nvolumes = ["data:/x"]', "data"),
        ('hook = "container"\nname = "b"\npersist = true', "its writable layer"),
    ],
)
def test_data_that_does_not_follow_the_pod_is_told(written: Any, step: str, what: str) -> None:
    found = pods.notes(written(a=f"{CHAIN}[[chain]]\n{step}\n"), fencing=True)
    assert [what in line and "stays on the machine" in line for line in found] == [True] * bool(what)


def test_a_global_pods_data_is_where_the_pod_is(written: Any) -> None:
    text = f'[placement]\nglobal = true\n{CHAIN}[[chain]]\nhook = "storage"\nsource = "volume:x"\ntarget = "/x"\n'
    assert pods.notes(written(a=text), fencing=False) == []


def test_a_singleton_without_fencing_is_warned_about_once(written: Any) -> None:
    assert ["without fencing" in line for line in pods.notes(written(a="", b=""), fencing=False)] == [True]


def test_a_pattern_that_no_pod_matches_and_an_order_that_orders_nothing_are_told(written: Any) -> None:
    found = pods.notes(written(a="[placement]\nconflicts = ['c*']\n[unit]\nAfter = 'b.service'", b=""), fencing=True)
    assert [line.partition(" ")[2] for line in found] == [
        "conflicts: no pod is called c*",
        "after b orders nothing between machines; a wait-for step does",
    ]


def test_what_pod_files_say_of_other_pods_is_exported_also_of_instances(tmp_path: Path) -> None:
    (tmp_path / "db@.toml").write_text(CHAIN)
    (tmp_path / "web@.toml").write_text(
        f"[pod]\nrequires = ['db@%i']\nafter = ['utils']\n[placement]\nmachine_of = 'db@%i'\n{CHAIN}"
    )
    (tmp_path / "utils.toml").write_text(f"[placement]\nglobal = true\n{CHAIN}")
    words = [str(tmp_path / f"{name}.toml") for name in ("web@blue", "db@blue", "utils")]
    web, db, _ = found = [pods.read(word) for word in words]
    assert (web.requires, web.after, pods.mistakes(found)) == (("db@blue",), ("utils",), [])
    lines = configuration.text(configuration.statements(found)).splitlines()
    assert [line for line in lines if line.startswith(("colocation", "order"))] == [
        "colocation web.blue-With-db.blue inf: web.blue db.blue",
        "order web.blue-After-db.blue Optional: db.blue web.blue",
        "order web.blue-After-utils Optional: utils-Global web.blue",
    ]
    # Placed elsewhere, systemd would start a db of this host's.
    apart = web._replace(placement=pods.Placement())
    assert any("wait for it with a wait-for step, or say machine_of" in line for line in pods.mistakes([apart, db]))


def test_an_instance_is_its_templates_file_and_the_drop_ins_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "web@.toml").write_text(f"[placement]\nmachine_of = 'db@%i'\n{CHAIN}")
    for name in ("web@.toml.d", "web@blue.toml.d"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.toml").write_text("[placement]\npriority = 1\n")
    word = str(tmp_path / "web@blue.toml")
    assert (pods.read(word).name, pods.read(word).placement.machine_of) == ("web@blue", "db@blue")
    assert sorted(pods.sources(word)) == ["web@.toml", "web@.toml.d/1.toml", "web@blue.toml.d/1.toml"]
