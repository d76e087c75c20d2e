"""The file registry: one record a file, whole or absent, and only its own invocation removes it."""

import json
import time

import pytest

from podrun.hook import Pod, Step
from podrun.options import Wrong, read
from podrun_hooks import register


def step_of(directory, invocation="1", **options):
    pod = Pod("web", f"{directory}/root", f"{directory}/run", invocation=invocation)
    return Step(pod, "register", "register", read(register.Options, {"service": "web", "port": 80, **options}))


def test_a_record_tells_where_the_service_is(tmp_path):
    facts = register.up(step_of(tmp_path), {"addresses": ["10.88.0.7/16"], "ready": True})
    record = json.loads(open(facts["record"]).read())
    assert (record["v"], record["service"], record["addr"], record["port"]) == (1, "web", "10.88.0.7", 80)
    assert (record["ready"], record["gen"], record["unit"]) == (True, "1", "web")


def test_anybody_may_read_a_record(tmp_path):
    facts = register.up(step_of(tmp_path), {})
    path = tmp_path / facts["record"]
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.parent.stat().st_mode & 0o777 == 0o755


def test_down_removes_the_record_and_may_be_repeated(tmp_path):
    step = step_of(tmp_path)
    facts = register.up(step, {})
    register.down(step, facts)
    register.down(step, facts)
    register.down(step, {})
    assert list((tmp_path / "run/registry").iterdir()) == []


def test_an_earlier_start_does_not_remove_its_successors_record(tmp_path):
    register.up(step_of(tmp_path, "1"), {})
    facts = register.up(step_of(tmp_path, "2"), {})
    register.down(step_of(tmp_path, "1"), facts)
    assert (tmp_path / facts["record"]).exists()


def test_clients_are_given_time_to_drain_once(tmp_path):
    step = step_of(tmp_path, drain="1s")
    facts = register.up(step, {})
    began = time.monotonic()
    register.down(step, facts)
    assert time.monotonic() - began >= 1
    began = time.monotonic()
    register.down(step, facts)
    assert time.monotonic() - began < 0.9


@pytest.mark.parametrize(
    "options",
    [{"service": "../x"}, {"service": ""}, {"port": 0}, {"registry": "etcd3:"}, {"registry": "file:relative"}],
)
def test_wrong_options_are_refused(tmp_path, options):
    with pytest.raises(Wrong):
        step_of(tmp_path, **options)


def test_a_registry_that_is_not_there_is_a_problem(tmp_path):
    assert register.check(step_of(tmp_path, registry=f"file:{tmp_path}/none"))
    assert not register.check(step_of(tmp_path, registry=f"file:{tmp_path}"))
