"""Drop-ins: what an operator adds to a pod file without touching it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from podrun.errors import WRONG_FILE, Failure
from podrun.podfile import loader
from support.podfile_fakes import load_hook, loaded, write

WEB = """
[pod]
name = "shop"
stop_timeout = "5s"

[[chain]]
hook = "image"
ref = "shop:1"

[[chain]]
hook = "storage"
target = "/a"
options = ["ro"]

[[chain]]
hook = "container"
env = { A = "1" }

[service]
Nice = 1
Environment = ["A=1"]
"""


def with_drop_ins(tmp_path: Path, base: Any = WEB, **texts: Any) -> Any:
    for name, text in texts.items():
        write(tmp_path, text, f"web.toml.d/{name}.toml")
    return loaded(tmp_path, base)


def refused(tmp_path: Path, **texts: Any) -> Any:
    with pytest.raises(Failure) as caught:
        with_drop_ins(tmp_path, **texts)
    assert caught.value.code == WRONG_FILE
    return str(caught.value).removeprefix(f"{tmp_path}/")


def test_keys_of_tables_are_replaced_one_by_one(tmp_path: Path) -> None:
    text = with_drop_ins(
        tmp_path, a='[pod]\nname = "store"\n[service]\nEnvironment = ["B=1"]\n[unit]\nAfter = "x.service"\n'
    )
    assert (text.name, text.stop_timeout) == ("store", 5.0)
    assert text.sections == {"service": {"Nice": 1, "Environment": ["B=1"]}, "unit": {"After": "x.service"}}


def test_drop_ins_are_applied_in_the_order_of_their_names(tmp_path: Path) -> None:
    text = with_drop_ins(tmp_path, b='[pod]\nname = "b"\n', a='[pod]\nname = "a"\nstop_timeout = 1\n')
    assert (text.name, text.stop_timeout) == ("b", 1.0)


def test_other_files_in_the_directory_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, "nonsense", "web.toml.d/README")
    write(tmp_path, "nonsense", "web.toml.d/.#web.toml")
    assert loaded(tmp_path, WEB).name == "shop"


def test_an_entry_without_a_name_changes_the_only_step_of_its_hook(tmp_path: Path) -> None:
    text = with_drop_ins(
        tmp_path, a='[[chain]]\nhook = "image"\nref = "shop:2"\n[[chain]]\nhook = "container"\noptional = true\n'
    )
    assert [step.hook for step in text.steps] == ["image", "storage", "container"]
    assert text.steps[0].options == {"ref": "shop:2"}
    assert (text.steps[2].optional, text.steps[2].options) == (True, {"env": {"A": "1"}})


def test_a_key_is_replaced_whole(tmp_path: Path) -> None:
    text = with_drop_ins(tmp_path, a='[[chain]]\nhook = "container"\nname = "main"\nenv = { B = "2" }\n')
    assert text.steps[2].options == {"env": {"B": "2"}}


def test_an_entry_with_a_new_name_is_a_new_step_at_the_end(tmp_path: Path) -> None:
    text = with_drop_ins(
        tmp_path, a='[[chain]]\nhook = "container"\nname = "logs"\n[[chain]]\nhook = "exec:/opt/metrics"\n'
    )
    assert [step.name for step in text.steps] == ["image", "storage", "main", "logs", "metrics"]


def test_a_new_step_may_say_what_it_comes_before(tmp_path: Path) -> None:
    storage = '[[chain]]\nhook = "storage"\nbefore = "main"\n'
    text = with_drop_ins(tmp_path, a=f'{storage}target = "/b"\nname = "b"\n{storage}target = "/c"\nname = "c"\n')
    assert [step.name for step in text.steps] == ["image", "storage", "b", "c", "main"]
    assert text.steps[2].options == {"target": "/b"}


def test_two_unnamed_entries_of_one_drop_in_are_two_steps(tmp_path: Path) -> None:
    network = '[[chain]]\nhook = "network"\n'
    text = with_drop_ins(tmp_path, a=network + network)
    assert [step.name for step in text.steps] == ["image", "storage", "main", "network", "network-2"]


def test_a_chain_may_come_from_drop_ins_alone(tmp_path: Path) -> None:
    text = with_drop_ins(
        tmp_path, base="", a='[[chain]]\nhook = "network"\n', b='[[chain]]\nhook = "network"\nmode = "host"\n'
    )
    assert [step.options for step in text.steps] == [{"mode": "host"}]


def test_an_instance_has_drop_ins_of_the_template_and_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, WEB, "web@.toml")
    write(tmp_path, '[[chain]]\nhook = "container"\ncommand = ["all", "%i"]\n', "web@.toml.d/z.toml")
    write(tmp_path, '[[chain]]\nhook = "container"\nenv = { I = "%i" }\n', "web@blue.toml.d/a.toml")
    blue, red = (
        loader.load(f"web@{word}", environ={}, load_hook=load_hook, etc=str(tmp_path)).steps[2].options
        for word in ("blue", "red")
    )
    assert blue == {"command": ["all", "blue"], "env": {"I": "blue"}}
    assert red == {"command": ["all", "red"], "env": {"A": "1"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\na =", "web.toml.d/x.toml:2:4: "),
        ("[pod]\n\nstop_timeout = 'x'", "web.toml.d/x.toml:3: stop_timeout: expected a time span"),
        ("[[chain]]\nhook = 'container'\nenv = 5", "web.toml.d/x.toml:3: env: expected a table, not an integer"),
        ("[[chain]]\nhook = 'container'\nenvy = 5", "web.toml.d/x.toml:3: unknown key 'envy'; did you mean 'env'?"),
        ("[[chain]]\nname = 'x'", "web.toml.d/x.toml:1: hook is missing"),
        ("[[chain]]\n\nhook = 'imag'", "web.toml.d/x.toml:3: unknown hook 'imag'; did you mean 'image'?"),
        ("\n[[chain]]\nhook = 'image'\nname = 'b'", "web.toml.d/x.toml:2: ref is missing"),
        ("[[chain]]\nhook = 'image'\nbefore = 'main'", "web.toml.d/x.toml:3: before is for a new step"),
        (
            "[[chain]]\nhook = 'network'\nbefore = 'man'",
            "web.toml.d/x.toml:3: unknown step 'man'; did you mean 'main'?",
        ),
        (
            "[[chain]]\nhook = 'network'\nbefore = 5",
            "web.toml.d/x.toml:3: unknown step '5' (known: image, storage, main)",
        ),
        ("[[chain]]\nhook = 'storage'\nfor = ['x']", "web.toml.d/x.toml:3: for: unknown container 'x' (known: main)"),
        ("[pood]", "web.toml.d/x.toml:1: unknown key 'pood'; did you mean 'pod'?"),
    ],
)
def test_what_is_wrong_in_a_drop_in_is_told_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    assert refused(tmp_path, x=text).startswith(message)


def test_what_is_wrong_below_a_drop_in_keeps_its_own_place(tmp_path: Path) -> None:
    write(tmp_path, "[[chain]]\nhook = 'container'\nuser = 1\n", "web.toml.d/x.toml")
    with pytest.raises(Failure, match=r"/web\.toml:17: env: expected a table"):
        loaded(tmp_path, WEB.replace('{ A = "1" }', "5"))


def test_an_entry_that_may_mean_several_steps_is_refused(tmp_path: Path) -> None:
    write(tmp_path, '\n[[chain]]\nhook = "storage"\n', "web.toml.d/x.toml")
    with pytest.raises(Failure) as caught:
        loaded(tmp_path, WEB + '[[chain]]\nhook = "storage"\ntarget = "/b"\n')
    assert str(caught.value).endswith(
        "x.toml:2: the pod has several storage steps: name the one to change (storage, storage-2), or choose a new name"
    )


def test_a_pod_file_itself_has_no_key_before(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"web\.toml:3: unknown key 'before'"):
        loaded(tmp_path, '[[chain]]\nhook = "network"\nbefore = "main"\n[[chain]]\nhook = "container"\n')


def test_a_drop_in_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "web.toml.d" / "x.toml").mkdir(parents=True)
    assert refused(tmp_path) == "web.toml.d/x.toml: it is a directory"
    (tmp_path / "web.toml.d" / "x.toml").rmdir()
    (tmp_path / "web.toml.d" / "x.toml").symlink_to("nowhere")
    assert refused(tmp_path) == "web.toml.d/x.toml: a link that leads nowhere"


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "", "web.toml.d")
    assert refused(tmp_path) == "web.toml.d: Not a directory"
