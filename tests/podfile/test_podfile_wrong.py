"""What a wrong pod file is told: code 78, one line, and the place."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from podrun.engine import hook_loader
from podrun.errors import WRONG_FILE, Failure
from podrun.podfile import loader
from support.podfile_fakes import load_hook, loaded, write


def refused(path: Any, **more: Any) -> Any:
    with pytest.raises(Failure) as caught:
        loader.load(str(path), **{"environ": {}, "load_hook": load_hook, **more})
    assert caught.value.code == WRONG_FILE
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused_text(tmp_path: Path, text: Any, **more: Any) -> Any:
    path = tmp_path / "web.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refused(path, **more)
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


CHAIN = '[[chain]]\nhook = "container"\n'


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a =", ":1:4"),
        ("\n\na = 1 2", ":3:7"),
        ("[pod\nname = 'x'", ":1:5"),
        ("[pod]\nname = 'x'\nname = 'y'\n", ":3:11"),
        ("[pod]\r\nname = 'a\r\n'", ":2:10"),
        ("[pod]\n[pod]\n", ":2:5"),
        ("x = 1979-02-30", ":1:5"),
        ('s = "\\q"', ":1:8"),
        ('s = """abc', ":1:11"),
        ("x = {a = 1,\n\0 = 2}", ":1:12"),
        ("\0", ":1:1"),
        ("[[chain]]\nhook: image", ":2:5"),
    ],
)
def test_wrong_toml_is_told_with_line_and_column(tmp_path: Path, text: str, place: str) -> None:
    told = refused_text(tmp_path, text)
    assert told.startswith(f"{place}: ")
    assert "(at " not in told


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xef\xbb\xbf[pod]\n", ":1:1: a byte order mark is not TOML: save the file as UTF-8 without it"),
        (b"# \xc3\xa4\n# \xc3\xa4 \xff\n", ":2:5: byte 0xff is not UTF-8"),
        (b"\xff\xfe[\0p\0", ":1:1: byte 0xff is not UTF-8"),
        (b"# \xc3", ":1:3: byte 0xc3 is not UTF-8"),
        (b"# \xed\xa0\x80", ":1:3: byte 0xed is not UTF-8"),
    ],
)
def test_what_is_not_utf_8_is_told_with_line_and_column(tmp_path: Path, data: bytes, message: str) -> None:
    assert refused_text(tmp_path, data) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: there is no [[chain]]: a pod is at least one step"),
        ("# nothing\n", ":1: there is no [[chain]]: a pod is at least one step"),
        ("[pod]\n", ":1: there is no [[chain]]: a pod is at least one step"),
        ("chain = []", ":1: there is no [[chain]]: a pod is at least one step"),
        ("\n[chain]\nhook = 'container'\n", ":2: chain: expected an array of tables, [[chain]] rather than [chain]"),
        ("chain = [\n 'container' ]", ":2: chain: expected a table, not a string"),
        ("chain = 'x'", ":1: chain: expected an array, not a string"),
        ("[[chain]]\nname = 'x'\n", ":1: hook is missing"),
        ("[[chain]]\nhook = 5\n", ":2: hook: expected a string, not an integer"),
        ("[[chain]]\nhook = ''\n", ":2: unknown hook '' (known: image, storage, network, ambassador, container)"),
        ("[[chain]]\n# x\nhook = 'contaner'\n", ":3: unknown hook 'contaner'; did you mean 'container'?"),
    ],
)
def test_a_chain_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert refused_text(tmp_path, text) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[pood]\n" + CHAIN, ":1: unknown key 'pood'; did you mean 'pod'?"),
        (CHAIN + "[[chains]]\n", ":3: unknown key 'chains'; did you mean 'chain'?"),
        (
            "\nnam = 'x'\n" + CHAIN,
            ":2: unknown key 'nam' (known: pod, placement, update, chain, unit, service, install, socket, timer)",
        ),
        ("[pod]\nnam = 'x'\n" + CHAIN, ":2: unknown key 'nam'; did you mean 'name'?"),
        (CHAIN + "optionl = true\n", ":3: unknown key 'optionl'; did you mean 'optional'?"),
        (CHAIN + "\ncomand = []\n", ":4: unknown key 'comand'; did you mean 'command'?"),
        (CHAIN + "ready = { prot = 5 }\n", ":3: unknown key 'prot'; did you mean 'port'?"),
        (CHAIN + "[chain.ready]\nx.y = 5\n", ":4: unknown key 'x' (known: port)"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest(tmp_path: Path, text: Any, message: str) -> None:
    assert refused_text(tmp_path, text) == message


NAME = "expected a pod's name (a-z, 0-9 and -, first a letter or digit), not"
STEP = "expected a name (a-z, 0-9 and _ . -, first a letter or digit), not"


@pytest.mark.parametrize(
    ("pod", "message"),
    [
        ("name = 5", "name: expected a string, not an integer"),
        ("name = 'a/b'", f"name: {NAME} 'a/b'"),
        ("name = '..'", f"name: {NAME} '..'"),
        ("name = ''", f"name: {NAME} ''"),
        ("name = 'Web'", f"name: {NAME} 'Web'"),
        ("name = '-web'", f"name: {NAME} '-web'"),
        ("name = 'web@blue'", f"name: {NAME} 'web@blue'"),
        ("name = 'wéb'", f"name: {NAME} 'wéb'"),
        ('name = "a\\nb"', f"name: {NAME} 'a\\nb'"),
        (f"name = '{'a' * 64}'", "name: expected a pod's name of at most 63 characters, not 64"),
        (
            "stop_timeout = '20 parsecs'",
            "stop_timeout: expected a time span such as '20s' or '1min 30s' (systemd.time(7)), not '20 parsecs'",
        ),
        (
            "stop_timeout = -1",
            "stop_timeout: expected a time span such as '20s' or '1min 30s' (systemd.time(7)), not -1",
        ),
        ("stop_timeout = nan", "inf and nan are not numbers here"),
        ("type = 'cron'", "type: expected one of service, job, not 'cron'"),
        ("type = ['job']", "type: expected one of service, job, not ['job']"),
    ],
)
def test_a_wrong_pod_table_is_refused(tmp_path: Path, pod: str, message: str) -> None:
    assert refused_text(tmp_path, f"{CHAIN}[pod]\n{pod}\n") == f":4: {message}"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("name = 'a/b'", f"name: {STEP} 'a/b'"),
        ("name = '../x'", f"name: {STEP} '../x'"),
        ("name = '.'", f"name: {STEP} '.'"),
        ("name = 'podrun'", "'podrun' is podrun's own name: choose another step name"),
        ("name = 'pod'", "'pod' is podrun's own name: choose another step name"),
        ("optional = 'yes'", "optional: expected true or false, not a string"),
        ("background = 1", "background: expected true or false, not an integer"),
        ("background = true", "a step that leaves a process running cannot be in the background"),
        ("timeout = true", "timeout: expected a time span such as '20s' or '1min 30s' (systemd.time(7)), not True"),
        ("for = 'app'", "for: expected an array, not a string"),
        ("for = [1]", "for: expected a string, not an integer"),
        ("for = ['app']", "for: no container comes after this step, so none is named 'app'"),
        ("command = 'serve'", "command: expected an array, not a string"),
        ("command = ['a', 5]", "command: expected a string, not an integer"),
        ("env = { A = 1 }", "A: expected a string, not an integer"),
        ("env = ['A=1']", "env: expected a table, not an array"),
        ("ready = { }", "ready: port is missing"),
        ("ready = { port = 0 }", "port: expected a port from 1 to 65535, not 0"),
        ("ready = { port = 70000 }", "port: expected a port from 1 to 65535, not 70000"),
        ("ready = { port = true }", "port: expected a port from 1 to 65535, not True"),
        ("user = 4294967296", "user: 4294967296 is not a uid"),
        ("user = 99999999999999999999", "an integer has at most 64 bits"),
        ("memory = 'much'", "memory: expected a size such as '256M' (systemd.resource-control(5)), not 'much'"),
        ("memory = inf", "inf and nan are not numbers here"),
        ("memory = 1979-05-27", "a date or time is not allowed here: write it as a string"),
        ('command = ["a\\u0000b"]', "command: a NUL character cannot be part of a string here"),
        ("command = ['${NO}']", "the variable NO is not set; $${ stands for a plain ${"),
        ("command = ['${HOME']", "'${HOME': expected ${NAME}; $${ stands for a plain ${"),
        ("command = ['x ${A:-b}']", "'${A:-b}': expected ${NAME}; $${ stands for a plain ${"),
        ("command = ['${}']", "'${}': expected ${NAME}; $${ stands for a plain ${"),
    ],
)
def test_a_wrong_step_is_refused(tmp_path: Path, step: str, message: str) -> None:
    assert refused_text(tmp_path, f"# a comment\n{CHAIN}{step}\n") == f":4: {message}"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("target = 'data'", ":4: target: expected an absolute path, not 'data'"),
        ("target = '/a/../b'", ":4: target: '..' is not allowed in '/a/../b'"),
        ("target = ''", ":4: target: expected an absolute path, not ''"),
        ("", ":1: target is missing"),
        ("target = '/a'\noptions = [\n 'ro',\n # x\n 5 ]", ":8: options: expected a string, not an integer"),
    ],
)
def test_a_wrong_mount_is_refused_where_it_stands(tmp_path: Path, key: str, message: str) -> None:
    assert refused_text(tmp_path, f"[[chain]]\n\nhook = 'storage'\n{key}\n") == message


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ("container container", ":3: an earlier container step is named 'main', too: give this one another name"),
        ("container:a container:a", ":3: an earlier container step is named 'a', too: give this one another name"),
        ("image:x image:x", ":3: an earlier image step is named 'x', too: give this one another name"),
        ("ambassador:a container:a", ":2: a later step that leaves a process running is named 'a' too"),
    ],
)
def test_two_steps_of_one_name_are_refused(tmp_path: Path, chain: str, message: str) -> None:
    needs = {"image": ", ref = 'x'", "ambassador": ", port = 1", "container": ""}
    steps = [word.partition(":") for word in chain.split()]
    text = "chain = [\n" + ",\n".join(
        f"{{ hook = '{hook}'{needs[hook]}" + (f", name = '{name}' }}" if name else " }") for hook, _, name in steps
    )
    assert refused_text(tmp_path, text + "\n]\n") == message


def test_steps_of_different_hooks_may_share_a_name(tmp_path: Path) -> None:
    text = loaded(
        tmp_path, "chain = [ { hook = 'image', name = 'app', ref = 'x' }, { hook = 'container', name = 'app' } ]"
    )
    assert [step.name for step in text.steps] == ["app", "app"]


def test_for_names_a_container_that_comes_later(tmp_path: Path) -> None:
    text = "[[chain]]\nhook = 'container'\nname = 'db'\n[[chain]]\nhook = 'network'\nfor = ['db']\n" + CHAIN
    assert refused_text(tmp_path, text) == ":6: for: unknown container 'db' (known: main)"
    near = "[[chain]]\nhook = 'network'\nfor = [\n'main', 'man']\n" + CHAIN
    assert refused_text(tmp_path, near) == ":4: for: unknown container 'man'; did you mean 'main'?"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("unit = 'x'", "unit: expected a table, not a string"),
        (
            "[service]\nExecStart = { a = 1 }",
            "ExecStart: expected a string, a number, true, false or an array of these",
        ),
        ('[service]\nNice = "5\\n[Unit]"', "a line break or control character cannot be part of a systemd setting"),
        ("[service]\n'a b' = 1", "'a b' is not the name of a systemd setting"),
        ("[install]\nAlias = [['x']]", "Alias: expected a string, a number, true, false or an array of these"),
    ],
)
def test_wrong_settings_for_systemd_are_refused(tmp_path: Path, table: str, message: str) -> None:
    line = table.count("\n") + 1
    told = refused_text(tmp_path, f"{table}\n{CHAIN}")
    assert told.startswith(f":{line}: ")
    assert message in told


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 5000, "a = " + "[" * 900 + "]" * 900, ".".join("a" * 3000) + " = 1", "a = " + "9" * 5000],
)
def test_a_hostile_text_is_refused_in_one_line(tmp_path: Path, text: Any) -> None:
    assert len(refused_text(tmp_path, text)) < 500
    assert len(refused_text(tmp_path, f"[[chain]]\nhook = 'exec:/x'\n{text}")) < 500


def test_a_long_value_is_cut_in_the_message(tmp_path: Path) -> None:
    assert len(refused_text(tmp_path, f"[pod]\nname = '{'x!' * 9999}'\n{CHAIN}")) < 500


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    assert refused(tmp_path / "web.toml") == f"{tmp_path}/web.toml: there is no such file"


def test_a_missing_pod_is_told_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, CHAIN)
    assert refused("wbe", etc=str(tmp_path)) == (
        f"there is no pod 'wbe': {tmp_path}/wbe.toml does not exist; did you mean 'web'?"
    )
    assert refused("x", etc="/nonexistent").endswith("; a path has a slash or ends in .toml")


@pytest.mark.parametrize("word", ["", ".", "..", "@", "@x", "a b", "web\n", "x" * 300])
def test_a_word_that_can_be_no_pod_is_refused(tmp_path: Path, word: Any) -> None:
    refused(word, etc=str(tmp_path))


def test_a_template_needs_an_instance(tmp_path: Path) -> None:
    path = write(tmp_path, CHAIN, "web@.toml")
    assert refused(path) == f"{path}: a template needs an instance, as in web@blue"
    assert refused("web@", etc=str(tmp_path)) == f"{path}: a template needs an instance, as in web@blue"


@pytest.mark.parametrize("instance", ["..", "-x", "A", "a b", "a@b", "x" * 64])
def test_a_wrong_instance_is_refused(tmp_path: Path, instance: Any) -> None:
    write(tmp_path, CHAIN, "web@.toml")
    assert "web@.toml:1: expected a name" in refused(f"web@{instance}", etc=str(tmp_path))


def test_an_instance_outside_a_template_is_a_plain_missing_file(tmp_path: Path) -> None:
    write(tmp_path, CHAIN)
    assert "does not exist" in refused("web@blue", etc=str(tmp_path))


def test_a_file_whose_name_is_no_pod_s_needs_a_name(tmp_path: Path) -> None:
    path = write(tmp_path, CHAIN, "My Pod.toml")
    assert refused(path) == f"{path}:1: 'My Pod', from the file's name, cannot be a pod's name: set name in [pod]"
    assert loaded(tmp_path, f"[pod]\nname = 'web'\n{CHAIN}", "My Pod.toml").name == "web"


def test_a_path_with_a_line_break_is_told_in_one_line(tmp_path: Path) -> None:
    assert "web\\n.toml'" in refused(write(tmp_path, "x", "web\n.toml"))


def _socket(path: Any) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkdir, "it is a directory"),
        (os.mkfifo, "it is not a plain file"),
        (_socket, "it is not a plain file"),
        (lambda path: path.symlink_to("/dev/null"), "it is not a plain file"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
        (lambda path: path.symlink_to("nowhere"), "there is no such file"),
    ],
)
def test_what_is_not_a_file_is_refused_at_once(
    tmp_path: Path, make: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "web.toml"
    make(path)
    began = time.monotonic()
    assert refused(path) == f"{path}: {message}"
    assert time.monotonic() - began < 5


def test_100_mb_are_refused_unread(tmp_path: Path) -> None:
    path = write(tmp_path, CHAIN)
    os.truncate(path, 100_000_000)
    began = time.monotonic()
    assert refused(path) == f"{path}: bigger than 1 MiB: this cannot be a pod file"
    assert time.monotonic() - began < 5


def test_a_megabyte_is_read(tmp_path: Path) -> None:
    assert loaded(tmp_path, CHAIN + "#" * ((1 << 20) - len(CHAIN))).name == "web"


# --- whom root believes ----------------------------------------------------------------------------------------------

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to be careful")


@as_root
@pytest.mark.root
@pytest.mark.parametrize(("mode", "group", "fine"), [
    (0o644, 0, True), (0o664, 0, True), (0o664, 100, False), (0o646, 0, False), (0o666, 0, False), (0o600, 100, True),
])  # fmt: skip
def test_root_refuses_a_file_that_others_can_write(tmp_path: Path, mode: int, group: int, fine: bool) -> None:
    path = write(tmp_path, CHAIN)
    os.chown(path, 0, group)
    path.chmod(mode)
    if fine:
        assert loader.load(str(path), environ={}, load_hook=load_hook).name == "web"
    else:
        who = "everybody" if mode & 0o002 else f"group {group}"
        what = f"{path}: can be changed by {who} (mode {mode:04o}), and podrun runs as root"
        assert refused(path) == f"{what}; chmod go-w {path}"


@as_root
@pytest.mark.root
def test_a_unit_reads_only_files_that_belong_to_root(tmp_path: Path) -> None:
    path = write(tmp_path, CHAIN)
    os.chown(path, 1000, 0)
    assert loader.load(str(path), environ={}, load_hook=load_hook).name == "web"
    assert refused(path, in_unit=True) == f"{path}: belongs to uid 1000, and podrun runs as root; chown root {path}"


@as_root
@pytest.mark.root
@pytest.mark.parametrize("prepare", [
    lambda directory, file: directory.chmod(0o777),
    lambda directory, file: file.chmod(0o666),
    lambda directory, file: os.chown(directory, 1000, 0),
    lambda directory, file: os.chown(file, 1000, 0),
])  # fmt: skip
def test_root_refuses_drop_ins_that_others_can_add_or_write(tmp_path: Path, prepare: Any) -> None:
    path = write(tmp_path, CHAIN)
    extra = write(tmp_path, "[pod]\nname = 'evil'\n", "web.toml.d/x.toml")
    extra.parent.chmod(0o755)
    assert loader.load(str(path), environ={}, load_hook=load_hook).name == "evil"
    prepare(extra.parent, extra)
    assert ".toml.d" in refused(path)


@as_root
@pytest.mark.root
def test_the_owner_of_a_pod_file_may_write_its_drop_ins(tmp_path: Path) -> None:
    path = write(tmp_path, CHAIN)
    extra = write(tmp_path, "[pod]\nname = 'own'\n", "web.toml.d/x.toml")
    for each in (path, extra, extra.parent):
        os.chown(each, 1000, 0)
    assert loader.load(str(path), environ={}, load_hook=load_hook).name == "own"


@pytest.mark.parametrize(
    "table",
    [
        'hook = "network"\npublish = ["{n}:80"]',
        'hook = "network"\npublish = ["80-{n}:80"]',
        'hook = "network"\naddress = "10.0.0.1/{n}"',
        'hook = "network"\nsubnet = "10.0.0.0/{n}"',
        'hook = "register"\nservice = "a"\nport = 80\nregistry = "etcd://127.0.0.1:{n}"',
        'hook = "container"\nready = {{ tcp = ":{n}" }}',
        'hook = "container"\nready = {{ http = ":{n}/" }}',
        'hook = "container"\ncpuset = "0-{n}"',
        'hook = "storage"\nsource = "/srv"\ntarget = "/t"\nidmap = ["{n}:0:1"]',
    ],
)
def test_a_number_of_more_digits_than_int_takes_is_wrong_like_any_other(tmp_path: Path, table: str) -> None:
    path = tmp_path / "web.toml"
    path.write_text(f"[[chain]]\n{table.format(n='9' * 5000)}\n")
    assert len(refused(path, load_hook=hook_loader.load)) < 12_000
