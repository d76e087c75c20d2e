"""Compose projects become pods: key by key, file on top of file, variable by variable."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest

from podrun.convert.compose.service import KEYS as SERVICE_KEYS
from support.launcher import Podrun

SHOP = """
services:
  web:
    image: nginx:1.27
    ports: ["8080:80", "127.0.0.1:8443:443/TCP", {target: 9000, published: "9001", protocol: udp}]
    depends_on:
      db: {condition: service_healthy}
      migrate: {condition: service_completed_successfully}
    volumes: [".:/srv:ro", "cache:/var/cache/nginx"]
    restart: unless-stopped
  db:
    image: postgres
    environment: [POSTGRES_DB=shop, POSTGRES_PASSWORD_FILE=/run/secrets/password]
    secrets: [password]
    volumes: [{type: volume, source: data, target: /var/lib/postgresql/data}]
    healthcheck: {test: [CMD, pg_isready], interval: 10s, timeout: 5s, retries: 5}
  migrate:
    image: shop/migrate
    depends_on: [db]
secrets:
  password: {file: ./password.txt}
volumes:
  cache:
  data: {name: shop-data}
"""


@pytest.fixture
def shop(convert: Any) -> Any:
    convert.write("shop/password.txt", "geheim")
    return convert.compose(SHOP)


def test_each_service_is_a_pod_on_the_bridge_of_its_project(shop: Any) -> None:
    assert shop.code == 0, shop.told
    assert sorted(shop.files) == ["shop-db.toml", "shop-migrate.toml", "shop-web.toml"]
    assert {shop.step(f"shop-{name}", "network")["bridge"] for name in ("db", "migrate", "web")} == {"shop"}
    assert shop.step("shop-db", "network")["hostname"] == "db"


def test_ports_are_open_to_all_addresses_as_they_were(shop: Any) -> None:
    publish = shop.step("shop-web", "network")["publish"]
    assert publish == ["0.0.0.0:8080:80", "127.0.0.1:8443:443/tcp", "0.0.0.0:9001:9000/udp"]


def test_paths_are_absolute_and_volumes_carry_the_project_s_name(shop: Any, convert: Any) -> None:
    assert shop.step("shop-web")["volumes"] == [f"{convert.directory}/shop:/srv:ro", "shop_cache:/var/cache/nginx"]
    assert "shop-data:/var/lib/postgresql/data" in shop.step("shop-db")["volumes"]


def test_who_waits_for_a_healthy_service_waits_for_its_health_check(shop: Any) -> None:
    database = shop.step("shop-db")
    assert database["ready"] == {"exec": ["pg_isready"], "timeout": "75s"}
    assert database["live"] == {"exec": ["pg_isready"], "interval": "10s", "timeout": "5s", "retries": 5}


def test_who_waits_for_a_service_to_complete_waits_for_a_job(shop: Any) -> None:
    assert shop.files["shop-migrate.toml"]["pod"]["type"] == "job"


def test_what_a_service_depends_on_is_required_and_comes_before(shop: Any) -> None:
    text = shop.text["shop-web.toml"]
    assert "shop-db" in text
    web = shop.files["shop-web.toml"]
    required = web["pod"].get("requires") or [unit.removesuffix(".service") for unit in web["unit"]["Requires"]]
    assert required == ["shop-db", "shop-migrate"]


def test_what_starts_again_after_a_reboot_is_enabled(shop: Any) -> None:
    web = shop.files["shop-web.toml"]
    assert web["service"]["Restart"] == "always"
    assert web["install"]["WantedBy"] == "multi-user.target"


def test_a_secret_s_text_is_in_no_pod_file(shop: Any) -> None:
    assert "geheim" not in str(shop.text)
    assert any(text.endswith("/password.txt:/run/secrets/password:ro") for text in shop.step("shop-db")["volumes"])


# --- keys -----------------------------------------------------------------------------------------------------------

#: What a service says, the step where it is found, and what is there.
KEYS = [
    ("command: echo 'a b' $$HOME", "container", {"command": ["echo", "a b", "$HOME"]}),
    ("command: [a, 1, true]", "container", {"command": ["a", "1", "true"]}),
    ("entrypoint: /run.sh -x", "container", {"entrypoint": ["/run.sh", "-x"]}),
    ("entrypoint: ''", "container", {"entrypoint": []}),
    ("environment: {A: 1, B: yes, C: true, HOME: , UNSET: }", "container", {"env": {"A": "1", "B": "yes", "C": "true", "HOME": "${HOME}"}}),
    ("environment: [A=1, HOME, UNSET]", "container", {"env": {"A": "1", "HOME": "${HOME}"}}),
    ("user: '1000:1000'", "container", {"user": "1000:1000"}),
    ("user: 1000", "container", {"user": "1000"}),
    ("working_dir: /app", "container", {"workdir": "/app"}),
    ("mem_limit: 64mb", "container", {"memory": "64M"}),
    ("deploy: {resources: {limits: {memory: 1.5G, cpus: '0.5', pids: 100}}}", "container", {"memory": "1.5G", "cpus": 0.5, "pids": 100}),
    ("cap_add: [NET_ADMIN]\n    cap_drop: [ALL]", "container", {"cap_add": ["NET_ADMIN"], "cap_drop": ["ALL"]}),
    ("tmpfs: /run:size=64mb,mode=755", "container", {"tmpfs": ["/run:size=64M,mode=755"]}),
    ("read_only: true\n    init: true", "container", {"read_only": True, "init": True}),
    ("stop_signal: SIGINT\n    stop_grace_period: 1m30s", "container", {"stop_signal": "SIGINT", "stop_timeout": "1m30s"}),
    ("ulimits: {nproc: 65535, nofile: {soft: 1024, hard: 2048}, memlock: {soft: -1, hard: -1}}", "container", {"ulimits": {"nproc": "65535", "nofile": "1024:2048", "memlock": "-1:-1"}}),
    ("devices: ['/dev/fuse:/dev/fuse:rw']\n    group_add: [100, audio]\n    shm_size: 128mb", "container", {"devices": ["/dev/fuse:/dev/fuse:rw"], "groups": ["100", "audio"], "shm_size": "128M"}),
    ("pid: host\n    ipc: host\n    oom_score_adj: 500", "container", {"pid": "host", "ipc": "host", "oom_score_adj": 500}),
    ("mem_reservation: 64m\n    memswap_limit: -1\n    cpu_shares: 512\n    cpuset: 0-1", "container", {"memory_reservation": "64M", "memory_swap": -1, "cpu_shares": 512, "cpuset": "0-1"}),
    ("env_file: [a.env, {path: none.env, required: false}]", "container", {"env_files": ["PROJECT/a.env"]}),
    ("security_opt: ['no-new-privileges:false', 'unmask=/proc/a:/proc/b', 'systempaths=unconfined']", "container", {"no_new_privileges": False, "unmask": ["/proc/a", "/proc/b", "ALL"]}),
    ("labels: {a.b: 1}", "container", {"labels": {"a.b": "1"}}),
    ("labels: [a=b]", "container", {"labels": {"a": "b"}}),
    ("security_opt: ['seccomp:unconfined']", "container", {"seccomp": "unconfined"}),
    ("sysctls: [net.core.somaxconn=1024]", "network", {"sysctls": {"net.core.somaxconn": "1024"}}),
    ("sysctls: {net.core.somaxconn: 1024}", "network", {"sysctls": {"net.core.somaxconn": "1024"}}),
    ("dns: 9.9.9.9\n    dns_search: [a.example]", "network", {"dns": ["9.9.9.9"], "search": ["a.example"]}),
    ("extra_hosts: ['db:10.0.0.1', 'v6=[fd00::1]']", "network", {"hosts": {"db": "10.0.0.1", "v6": "fd00::1"}}),
    ("hostname: front\n    domainname: example.org", "network", {"hostname": "front.example.org"}),
    ("network_mode: host", "network", {"mode": "host"}),
    ("ports: ['3000-3001:3000-3001', '[::1]:80:80', 81:81]", "network", {"publish": ["0.0.0.0:3000-3001:3000-3001", "0.0.0.0:81:81"]}),
    ("platform: linux/arm64\n    pull_policy: if_not_present", "image", {"platform": "linux/arm64", "pull": "missing"}),
    ("healthcheck: {test: curl -f localhost}", "container", {"live": {"exec": ["/bin/sh", "-c", "curl -f localhost"], "interval": "30s", "timeout": "30s"}}),
    ("healthcheck: {disable: true}", "container", {"live": None}),
    ("volumes: ['/anon']", "container", {"volumes": ["/anon"]}),
    ("volumes: [{type: tmpfs, target: /t, tmpfs: {size: 1048576, mode: 0o1777}}]", "container", {"tmpfs": ["/t:size=1048576,mode=1777"]}),
    ("volumes: [{type: image, source: busybox, target: /i}]", "storage", {"source": "image:busybox", "target": "/i"}),
    ("configs: [{source: c, target: /etc/c, mode: 0440}]", "storage", {"source": "file:", "content": "a $${b}\n", "target": "/etc/c", "options": ["mode=440"]}),
    ("secrets: [s]", "storage", {"source": "file:", "content": "${SECRET}", "target": "/run/secrets/s", "options": ["mode=0444"]}),
    ("volumes: ['nfs:/mnt']", "storage", {"source": "nfs:10.0.0.9:/export", "target": "/mnt", "options": ["rw"]}),
]  # fmt: skip
AROUND = """
configs: {c: {content: "a $${b}\\n"}}
secrets: {s: {environment: SECRET}}
volumes: {nfs: {driver_opts: {type: nfs, o: "addr=10.0.0.9,rw", device: ":/export"}}}
"""


@pytest.mark.parametrize(("text", "hook", "found"), KEYS, ids=[key[0].split("\n")[0] for key in KEYS])
def test_a_key_becomes_the_key_that_means_the_same(convert: Any, text: Any, hook: Any, found: Any) -> None:
    done = convert.compose(f"services:\n  web:\n    image: a\n    {text}\n{AROUND}")
    assert done.code == 0, done.told
    step = json.loads(json.dumps(done.step("shop-web", hook)).replace(f"{convert.directory}/shop", "PROJECT"))
    assert {key: step.get(key) for key in found} == found


#: What has no equivalent, and a word of the line that says so.
NOTED = [
    ("build: ./src", "builds no images"),
    ("image: a\n    tty: true", "terminal"),
    ("image: a\n    runtime: io.containerd.wasmedge.v1", "runtime"),
    ("image: a\n    deploy: {replicas: 3}", "template"),
    ("image: a\n    deploy: {placement: {constraints: [x]}}", "swarm"),
    ("image: a\n    logging: {driver: gelf}", "gelf"),
    ("image: a\n    volumes_from: [db]", "volumes"),
    ("image: a\n    post_start: [{command: x}]", "hook"),
    ("image: a\n    blkio_config: {weight: 1}", "IOWeight="),
    ("image: a\n    some_new_key: 1", "no equivalent"),
    ("image: a\n    ports: [80]", "publish"),
    ("image: a\n    cap_add: [NOT_ONE]", "capability"),
]


@pytest.mark.parametrize(("text", "word"), NOTED, ids=[text.split("\n")[-1].strip() for text, _ in NOTED])
def test_what_has_no_equivalent_is_told_with_its_line_and_exits_78_only_when_asked_to(
    convert: Any, text: Any, word: Any
) -> None:
    key = text.split("\n")[-1].strip().partition(":")[0]
    done = convert.compose(f"services:\n  web:\n    {text}\n")
    assert done.code == 0, done.told
    assert done.notes("by hand: compose.yaml:", f"services.web.{key}", word), done.told
    assert f"services.web.{key}" in done.text["shop-web.toml"]
    assert convert.compose(f"services:\n  web:\n    {text}\n", "--strict").code == 78


# --- variables ------------------------------------------------------------------------------------------------------

VARIABLES = [
    ("${SET}", "value"),
    ("$SET-$SET", "value-value"),
    ("${UNSET:-x}", "x"),
    ("${UNSET-${SET:-y}}", "value"),
    ("${EMPTY-x}", ""),
    ("${EMPTY:-x}", "x"),
    ("${SET:+x}", "x"),
    ("${UNSET+x}", ""),
    ("$$SET", "$SET"),
    ("$${SET}", "$${SET}"),
    ("${UNSET}", "${UNSET}"),
    ("${DB_PASSWORD}", "${DB_PASSWORD}"),
    ("${FROM_FILE}", "of the file"),
    ("${QUOTED}", "a 'b' # c"),
]


@pytest.mark.parametrize(("text", "value"), VARIABLES)
def test_variables_are_read_as_compose_reads_them_and_what_is_open_or_secret_is_left_to_the_start(
    convert: Any, text: Any, value: Any
) -> None:
    convert.write(
        "shop/.env", "FROM_FILE=of the file # a comment\nSET=of the file\nQUOTED=\"a 'b' # c\"\nDB_PASSWORD=x\n"
    )
    done = convert.compose(
        f"services: {{web: {{image: a, environment: {{A: '{text}'}}}}}}", environ={"SET": "value", "EMPTY": ""}
    )
    assert done.code == 0, done.told
    assert done.step("shop-web")["env"]["A"] == value
    assert "=x" not in str(done.text)


def test_a_variable_left_open_has_the_unit_read_the_project_s_env_file(convert: Any) -> None:
    path = convert.write("shop/.env", "DB_PASSWORD=secret\n")
    done = convert.compose("services: {web: {image: a, environment: ['A=${DB_PASSWORD}']}}")
    assert done.files["shop-web.toml"]["service"]["EnvironmentFile"] == [path]
    assert done.notes("by hand", "DB_PASSWORD")


# --- files on top of each other -------------------------------------------------------------------------------------


def test_a_later_file_adds_to_lists_and_mappings_and_replaces_commands(convert: Any) -> None:
    first = convert.write(
        "shop/compose.yaml",
        "services:\n  web:\n    image: a\n    command: [x]\n    environment: {A: 1, B: 1}\n    ports: ['80:80']\n    volumes: ['/etc:/e']\n",
    )
    second = convert.write(
        "shop/more.yaml",
        "services:\n  web:\n    command: [y]\n    environment: [B=2]\n    ports: !override ['81:81']\n    volumes: ['/usr:/e']\n    cap_add: !reset null\n",
    )
    done = convert("compose", first, second)
    assert done.code == 0, done.told
    step = done.step("shop-web")
    assert (step["command"], step["env"], step["volumes"]) == (["y"], {"A": "1", "B": "2"}, ["/usr:/e"])
    assert done.step("shop-web", "network")["publish"] == ["0.0.0.0:81:81"]


def test_the_override_file_beside_a_project_counts_when_no_file_is_named(convert: Any) -> None:
    convert.write("shop/compose.yaml", "services: {web: {image: a}}")
    convert.write("shop/compose.override.yaml", "services: {web: {image: b}}")
    assert convert("compose", f"{convert.directory}/shop").step("shop-web", "image")["ref"] == "b"


def test_a_service_extends_one_of_another_file_whose_paths_start_there(convert: Any) -> None:
    convert.write("shop/base/common.yaml", "services: {app: {image: a, volumes: ['./conf:/conf'], depends_on: [x]}}")
    done = convert.compose("services: {web: {extends: {file: base/common.yaml, service: app}, command: [b]}}")
    assert done.code == 0, done.told
    assert done.step("shop-web")["volumes"] == [f"{convert.directory}/shop/base/conf:/conf"]
    assert done.notes("depends_on", "not taken over")


def test_an_anchor_and_a_merge_key_count(convert: Any) -> None:
    done = convert.compose(
        "x-base: &base {image: a, init: true}\nservices: {web: {<<: *base, image: b}, db: {<<: [*base]}}"
    )
    assert (done.step("shop-web", "image")["ref"], done.step("shop-web")["init"]) == ("b", True)
    assert done.step("shop-db", "image")["ref"] == "a"


def test_a_service_of_a_profile_is_left_out_until_the_profile_is_active(convert: Any) -> None:
    text = "services: {web: {image: a}, debug: {image: b, profiles: [dev]}}"
    done = convert.compose(text)
    assert list(done.files) == ["shop-web.toml"]
    assert done.notes("services.debug", "--profile dev")
    assert "shop-debug.toml" in convert.compose(text, "--profile", "dev").files


def test_compose_s_own_variables_count_in_the_environment_and_in_the_env_file(convert: Any) -> None:
    convert.write("shop/.env", "COMPOSE_PROJECT_NAME=mine\nCOMPOSE_PROFILES=dev,test\n")
    path = convert.write(
        "shop/other.yaml", "services: {web: {image: a, profiles: [dev]}, x: {image: b, profiles: [no]}}"
    )
    done = convert("compose", environ={"COMPOSE_FILE": path})
    assert list(done.files) == ["mine-web.toml"], done.told


def test_networks_have_their_subnet_in_networks_toml_and_a_name_that_the_kernel_takes(convert: Any) -> None:
    done = convert.compose(
        "services: {web: {image: a, networks: {a-rather-long-name: {ipv4_address: 172.20.0.2}}}}\n"
        "networks: {a-rather-long-name: {ipam: {config: [{subnet: 172.20.0.0/24}]}}}"
    )
    (name,) = done.files["networks.toml"]["networks"]
    assert len(name) <= 15
    assert done.files["networks.toml"]["networks"][name] == {"subnet": "172.20.0.0/24"}
    step = done.step("shop-web", "network")
    assert (step["bridge"], step["address"]) == (name, "172.20.0.2")


# --- what is refused ------------------------------------------------------------------------------------------------

REFUSED = [
    ("services: [", "compose.yaml:1:"),
    ("[]", "not a mapping"),
    ("services: {}", "no service"),
    ("services: {web: {command: a}}", "neither image nor build"),
    ("services: {web: {image: a, image: b}}", "twice"),
    ("services: {web: {image: '${'}}", "'}'"),
    ("services: {web: {image: '${A:?must be set}'}}", "must be set"),
    ("services: {web: {image: a, depends_on: [db]}, db: {image: a, depends_on: [web]}}", "cycle"),
    ("services: {web: {image: a, volumes: ['data:/d']}}", "data is not declared"),
    ("services: {web: {image: a, networks: [n]}}", "n is not declared"),
    ("services: {web: {image: a, secrets: [s]}}", "s is not declared"),
    ("services: {web: {extends: {file: ../../x.yaml, service: a}}}", "x.yaml"),
    ("services: {web: {image: a, env_file: ../other.env}}", "--allow-outside"),
    ("services: {web: {extends: web, image: a}}", "extends itself"),
    ("services: {web: {image: a}, Web: {image: b}}", "both become"),
    ("services: {'---': {image: a, container_name: '-'}}", "a pod's name"),
    ("services: {web: {image: a, ports: 80}}", "services.web.ports"),
    ("services: {web: {image: a, healthcheck: yes}}", "services.web.healthcheck"),
    ("services: {web: !!python/object:os.system {image: a}}", "compose.yaml"),
    ("a: &a [x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n" + "".join(f"{chr(c + 1)}: &{chr(c + 1)} [{','.join(['*' + chr(c)] * 9)}]\n" for c in range(98, 108)), "aliases expanded"),
    ("a: " + "[" * 100 + "]" * 100, "nested"),
    ("a: &a {b: *a}", "nested"),
    ("x-big: '" + "a" * (1 << 20) + "'", "1 MiB"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "word"), REFUSED, ids=[text[:60] for text, _ in REFUSED])
def test_what_is_no_project_is_refused_with_the_place_and_nothing_is_written(
    convert: Any, text: Any, word: Any
) -> None:
    convert.write("x.yaml", "services: {a: {image: a}}")
    convert.write("other.env", "A=1")
    done = convert.compose(text)
    assert done.code == 78, done.told
    assert word in done.told[-1]
    assert not done.files


def test_files_that_are_there_are_kept_unless_told_otherwise(convert: Any) -> None:
    path = convert.write("shop/compose.yaml", "services: {web: {image: a}}")
    kept = convert.write("out/shop-web.toml", "mine")
    first = convert("compose", path, "-o", f"{convert.directory}/out")
    assert (first.code, open(kept).read()) == (78, "mine")
    assert convert("compose", path, "-o", f"{convert.directory}/out", "--force").code == 0
    assert "mine" not in open(kept).read()


def test_the_image_of_a_service_that_is_built_can_be_named(convert: Any) -> None:
    done = convert.compose("services: {web: {build: .}}", "--image", "web=oci:/srv/web")
    assert done.step("shop-web", "image")["ref"] == "oci:/srv/web"
    assert convert.compose("services: {web: {build: .}}", "--image", "other=x").code == 78


WRONG = [5, "x", True, [], [[]], [{}], {"a": {"b": 1}}, [None], [{"source": "s", "type": "bind"}]]


def test_a_value_of_another_type_is_read_or_refused_and_never_a_fault_of_the_converter(convert: Any) -> None:
    """Whatever stands at a key of a service or of the project."""
    tried = 0
    for key in [*SERVICE_KEYS, "depends_on", "networks", "network_mode", "build", "extends", "profiles"]:
        for value in WRONG:
            done = convert.compose(json.dumps({"services": {"web": {"image": "a", key: value}}}))
            assert done.code in (0, 78), (key, value, done.told)
            tried += 1
    for key in ("services", "networks", "volumes", "secrets", "configs", "include", "name"):
        for value in WRONG:
            done = convert.compose(json.dumps({"services": {"web": {"image": "a"}}, key: value}))
            assert done.code in (0, 78), (key, value, done.told)
            tried += 1
    assert tried > 500


def test_one_network_has_all_names_where_the_project_has_several(convert: Any) -> None:
    text = "services: {web: {image: a, networks: [x, y]}, db: {image: b, networks: [y]}}\nnetworks: {x: , y: }"
    apart = convert.compose(text)
    assert len([step for step in apart.files["shop-web.toml"]["chain"] if step["hook"] == "network"]) == 2
    assert apart.notes("names", "--one-network")
    together = convert.compose(text, "--one-network")
    assert {together.step(f"shop-{name}", "network")["bridge"] for name in ("web", "db")} == {"shop"}
    assert len([step for step in together.files["shop-web.toml"]["chain"] if step["hook"] == "network"]) == 1


@pytest.mark.root
def test_what_is_converted_passes_check_and_has_units(convert: Any, shop: Any, podrun: Podrun) -> None:
    output = convert.directory / "output-1"
    podrun.environ["PATH"] = f"{os.path.dirname(sys.executable)}:{podrun.environ['PATH']}"
    for name in shop.files:
        # Root believes no directory that others can write to.
        path = podrun.file(name.removesuffix(".toml"), (output / name).read_text())
        done = podrun("unit", path)
        assert done.returncode == 0, done.stderr
        if name == "shop-web.toml":
            assert "Requires=shop-db.service" in done.stdout.replace(" shop-migrate.service", "")
            assert "WantedBy=multi-user.target" in done.stdout


def test_networks_are_added_to_those_that_are_there_and_never_replaced(convert: Any) -> None:
    text = "services: {web: {image: a}}\nnetworks: {default: {ipam: {config: [{subnet: 10.9.0.0/24}]}}}"
    path = convert.write("shop/compose.yaml", text)
    there = convert.write("out/networks.toml", "# mine\n[networks.lan]\nmtu = 1400 # for the tunnel\n")
    for _ in range(2):
        done = convert("compose", path, "-o", f"{convert.directory}/out", "--force")
        assert done.code == 0, done.told
        assert open(there).read() == (
            '# mine\n[networks.lan]\nmtu = 1400 # for the tunnel\n\n[networks.shop]\nsubnet = "10.9.0.0/24"\n'
        )
    assert done.notes("by hand", "/etc/podrun/networks.toml")
    convert.write("out/networks.toml", "[networks.shop]\nmtu = 1400\n")
    assert convert("compose", path, "-o", f"{convert.directory}/out", "--force").notes("with other values")


def test_a_service_is_known_by_its_name_on_each_of_its_networks(convert: Any) -> None:
    done = convert.compose("services: {web: {image: a, networks: [x, y]}}\nnetworks: {x: , y: }")
    names = [step["hostname"] for step in done.files["shop-web.toml"]["chain"] if step["hook"] == "network"]
    assert names == ["web", "web"]
