"""OCI hooks: at every moment, with both runtimes, from hooks.d directories as podman reads them, and from the pod file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from podrun.errors import Failure
from podrun.hook import Pod, Step
from podrun.options import Wrong, read
from podrun_hooks import oci_hooks
from support.launcher import Podrun

pytestmark = pytest.mark.root


@pytest.fixture
def stock(home: Path) -> Any:
    """An OCI hook as anybody would write it: it reads the state and knows nothing of podrun."""
    path = home / "stock"
    path.write_text(f'#!/bin/sh\n/bin/cat >{home}/state\necho "$1 $COLOUR" >>{home}/called\n')
    path.chmod(0o755)
    return path


def pod(podrun: Podrun, tables: Any, command: str = '["/bin/true"]', more: str = "") -> Any:
    return podrun.file(
        "web",
        f'chain = [ {{ hook = "image", ref = "host:" }}, {tables} {{ hook = "container", command = {command}{more} }} ]',
    )


def said(path: Any, *stages: Any, **more: Any) -> Any:
    table = {"path": str(path), "stages": list(stages), **more}
    return "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in table.items()) + " }"


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_a_stock_hook_of_the_host_is_called_at_every_moment(
    podrun: Podrun, home: Path, stock: Any, runtime: str
) -> None:
    hooks = ", ".join(
        said(stock, stage, args=["stock", stage], env=["COLOUR=blue"], timeout=5)
        for stage in oci_hooks.STAGES
        if stage != "startContainer"
    )
    # In the container's namespaces the hook writes where the container sees the host's directory.
    tables = (
        f'{{ hook = "storage", source = "{home}", target = "{home}" }}, {{ hook = "oci-hooks", hooks = [ {hooks} ] }},'
    )
    done = podrun("up", pod(podrun, tables, more=f', runtime = "{runtime}"'))
    assert done.returncode == 0, done.stderr
    called = [line.split() for line in (home / "called").read_text().splitlines()]
    assert called == [[stage, "blue"] for stage in oci_hooks.STAGES if stage != "startContainer"]
    state = json.loads((home / "state").read_text())
    assert (state["id"].endswith("web.main"), state["status"]) == (True, "stopped")


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_the_hook_of_start_container_is_one_in_the_container(podrun: Podrun, home: Path, runtime: str) -> None:
    (home / "inside").mkdir()
    script = home / "inside/greet"
    script.write_text("#!/bin/sh\ncat >/inside/state\necho $1 >/inside/called\n")
    script.chmod(0o755)
    hooks = said("/inside/greet", "startContainer", args=["greet", "hello"], env=["PATH=/bin:/usr/bin"])
    tables = f'{{ hook = "storage", source = "{home}/inside", target = "/inside" }}, {{ hook = "oci-hooks", hooks = [ {hooks} ] }},'
    done = podrun("up", pod(podrun, tables, '["/bin/cat", "/inside/called"]', more=f', runtime = "{runtime}"'))
    assert (done.stdout, done.returncode) == ("hello\n", 0), done.stderr
    assert json.loads((home / "inside/state").read_text())["id"].endswith("web.main")


@pytest.mark.parametrize("runtime", ["crun", "runc"])
@pytest.mark.parametrize("stage", ["prestart", "createRuntime", "createContainer"])
def test_a_hook_that_fails_keeps_the_container_from_starting(
    podrun: Podrun, home: Path, runtime: str, stage: str
) -> None:
    (home / "broken").write_text("#!/bin/sh\nexit 3\n")
    (home / "broken").chmod(0o755)
    tables = f'{{ hook = "oci-hooks", hooks = [ {said(home / "broken", stage)} ] }},'
    done = podrun("up", pod(podrun, tables, f'["touch", "{home}/started"]', more=f', runtime = "{runtime}"'))
    assert done.returncode == 76
    assert re.search(
        r"(?m)^podrun: web: container main: \w+ create: [^{]*; undone: container main, oci-hooks, image", done.stderr
    )
    # The runtimes say so themselves, too: crun's last word may be that its child has gone.
    assert "hook" in done.stderr
    assert not (home / "started").exists()


# --- hooks.d ----------------------------------------------------------------------------------------------------------


def place(home: Path, name: Any, told: Any, directory: str = "hooks.d") -> None:
    (home / directory).mkdir(exist_ok=True)
    (home / directory / name).write_text(told if isinstance(told, str) else json.dumps(told))


def stated(stock: Any, when: Any, *stages: Any, version: str = "1.0.0", **more: Any) -> Any:
    return {
        "version": version,
        "hook": {"path": str(stock), **more},
        "when": when,
        "stages": list(stages or ["prestart"]),
    }


@pytest.fixture
def step(home: Path) -> Any:
    def make(*directories: Any, **table: Any) -> Any:
        given = {"directories": [f"{home}/{name}" for name in directories], **table}
        return Step(Pod("web", "/r", "/r"), "oci-hooks", "oci-hooks", read(oci_hooks.Options, given))

    return make


def test_what_podman_reads_is_called_where_its_conditions_hold(podrun: Podrun, home: Path, stock: Any) -> None:
    conditions = {
        "always": {"always": True},
        "command": {"commands": [".*/true$"]},
        "other-command": {"commands": [".*/systemd$"]},
        "annotation": {"annotations": {r"^com\.example\.department$": "fluid-dynamics$"}},
        "other-annotation": {"annotations": {r"^com\.example\.department$": "^finance"}},
        "binds": {"hasBindMounts": True},
        "both": {"always": True, "commands": ["^/bin/sh$"]},
    }
    for number, (name, when) in enumerate(conditions.items()):
        place(home, f"0{number}-{name}.json", stated(stock, when, args=["stock", name]))
    tables = f'{{ hook = "oci-hooks", directories = ["{home}/hooks.d"] }},'
    more = ', annotations = { "com.example.department" = "computational-fluid-dynamics" }'
    podrun("up", pod(podrun, tables, more=more), check=True)
    assert (home / "called").read_text().split() == ["always", "command", "annotation"]
    tables += f'{{ hook = "storage", source = "{home}", target = "/data" }},'
    (home / "called").unlink()
    podrun("up", pod(podrun, tables), check=True)
    assert (home / "called").read_text().split() == ["always", "command", "binds"]


@pytest.mark.parametrize(
    ("when", "command", "holds"),
    [
        ([{"always": True}], "x", True),
        ([{"always": False}], "x", False),
        ([{"always": False, "commands": ["x"]}], "x", False),
        ([{"commands": ["^[[:alpha:]]+$"]}], "x", True),
        ([{"commands": ["^[^[:space:]_]$"]}], "_", False),
        ([{"commands": ["a", "x"]}], "x", True),
        ([{"commands": ["a"]}, {"hasBindMounts": True}], "x", True),
        ([{"hasBindMounts": False}], "x", False),
        ([{"hasBindMounts": True}], "x", True),
        ([], "x", False),
    ],
)
def test_conditions(when: Any, command: str, holds: bool) -> None:
    assert oci_hooks.applies(when, command, {}, binds=True) is holds


def test_files_are_taken_by_name_and_a_later_directory_wins(home: Path, stock: Any, step: Any) -> None:
    place(home, "02-b.json", stated(stock, {"always": True}, args=["b"]))
    place(home, "01-A.json", stated(stock, {"always": True}, args=["a"]))
    place(home, "README", "no hook")
    place(home, "02-b.json", stated(stock, {"always": True}, args=["mine"]), "etc")
    told = oci_hooks.up(
        step("hooks.d", "etc", hooks=[{"path": str(stock), "stages": ["poststop"], "args": ["own"]}]), {}
    )
    assert [hook["args"] for hook in told["hooks"]] == [["a"], ["mine"], ["own"]]


def test_the_format_without_a_version_needs_one_condition_only(home: Path, stock: Any, step: Any) -> None:
    old = {"hook": str(stock), "arguments": ["--debug"], "stage": ["prestart"], "cmds": ["sh$"], "annotation": ["blue"]}
    place(home, "old.json", old)
    [hook] = oci_hooks.up(step("hooks.d"), {})["hooks"]
    assert hook["args"] == [str(stock), "--debug"]
    asked = (({}, "/bin/sh"), ({"colour": "light blue"}, "/bin/true"), ({"blue": "x"}, "/bin/true"))
    assert [oci_hooks.applies(hook["when"], word, notes, binds=True) for notes, word in asked] == [True, True, False]


@pytest.mark.parametrize(
    ("told", "what"),
    [
        ("{", "Expecting"),
        ([], "expected a JSON object"),
        ({"version": "2.0.0"}, "version '2.0.0'"),
        ({"version": "1.0.0", "hook": {}, "when": {}}, "when: expected a table"),
        ({"version": "1.0.0", "hook": 1, "when": {"always": True}}, "hook: expected an object"),
        (
            {"version": "1.0.0", "hook": {"path": "x"}, "when": {"always": True}, "stages": []},
            "expected an absolute path",
        ),
        (("STOCK", {"always": True}, "sometimes"), "expected one of prestart"),
        (("STOCK", {"always": True}, "precreate"), "podman's own"),
        (("STOCK", {"allways": True}), "unknown condition 'allways'"),
        (("STOCK", {"always": 1}), "expected true or false"),
        (("STOCK", {"commands": "x"}), "expected regular expressions"),
        (("STOCK", {"commands": ["("]}), "not a regular expression"),
        (("/nowhere", {"always": True}), "there is no executable /nowhere"),
    ],
)
def test_a_file_that_is_wrong_is_refused_before_anything_is_started(
    home: Path, stock: Any, step: Any, told: Any, what: str
) -> None:
    if isinstance(told, tuple):
        told = stated(stock if told[0] == "STOCK" else told[0], *told[1:])
    place(home, "wrong.json", told)
    [problem] = oci_hooks.check(step("hooks.d"))
    assert problem.what.startswith(f"{home}/hooks.d/wrong.json: ")
    assert what in problem.what
    with pytest.raises(Failure):
        oci_hooks.up(step("hooks.d"), {})


def test_what_others_can_change_is_not_believed(home: Path, stock: Any, step: Any) -> None:
    place(home, "a.json", stated(stock, {"always": True}))
    stock.chmod(0o775)
    assert [problem.code for problem in oci_hooks.check(step("hooks.d"))] == [77]
    stock.chmod(0o755)
    (home / "hooks.d").chmod(0o777)
    assert [problem.code for problem in oci_hooks.check(step("hooks.d"))] == [77]


def test_a_directory_that_was_named_has_to_be_there_and_podmans_own_need_not(step: Any) -> None:
    assert "there is no directory" in oci_hooks.check(step("nowhere"))[0].what
    assert oci_hooks.check(step(directories=["/usr"])) == []


@pytest.mark.parametrize(
    "entry",
    [
        {"path": "x", "stages": ["prestart"]},
        {"path": "/x", "stages": []},
        {"path": "/x", "stages": ["never"]},
        {"path": "/x", "stages": ["prestart"], "timeout": 0},
        {"path": "/x", "stages": ["prestart"], "env": ["COLOUR"]},
        {"stages": ["prestart"]},
    ],
)
def test_a_hook_said_wrongly_is_refused(entry: Any) -> None:
    with pytest.raises(Wrong):
        read(oci_hooks.Options, {"hooks": [entry]})


@pytest.mark.parametrize(
    ("hook", "code", "message"),
    [
        (
            {"hookName": "precreate", "path": "/bin/true"},
            78,
            "container main: an OCI hook has a path and one of prestart, createRuntime",
        ),
        ({"hookName": "prestart"}, 76, "gives: fact hooks lacks path"),
        ({"path": "/bin/true"}, 76, "gives: fact hooks lacks hookName"),
    ],
)
def test_a_fact_that_the_runtime_would_leave_out_is_refused(
    podrun: Podrun, home: Path, hook: Any, code: int, message: str
) -> None:
    (home / "gives").write_text(f"#!/bin/sh\n[ $PODRUN_VERB != up ] || echo '{json.dumps({'hooks': [hook]})}'\n")
    (home / "gives").chmod(0o755)
    done = podrun("up", pod(podrun, f'{{ hook = "exec:{home}/gives" }},'))
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
