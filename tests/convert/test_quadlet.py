"""Quadlet units become pods: systemd's syntax, the keys, what units refer to, and what is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

#: What [Container] says beside an image, the step where it is found, and what is there.
KEYS = [
    ("Exec=/bin/x \"an arg\" 'b\\tc' \\\n# a comment in between\n  d", "container", {"command": ["/bin/x", "an arg", "b\tc", "d"]}),
    ("Exec=sh -c \"echo ${WHO} $$HOME\"", "container", {"command": ["sh", "-c", "echo ${WHO} $HOME"]}),
    ("Entrypoint=/run.sh", "container", {"entrypoint": ["/run.sh"]}),
    ("Environment=A=1 \"B=2 3\"\nEnvironment=C=%N", "container", {"env": {"A": "1", "B": "2 3", "C": "web"}}),
    ("Environment=A=1\nEnvironment=\nEnvironment=B=2", "container", {"env": {"B": "2"}}),
    ("User=998\nGroup=999", "container", {"user": "998:999"}),
    ("WorkingDir=%h", "container", {"workdir": "/root"}),
    ("Volume=/etc:/e:ro,Z\nVolume=named:/n\nVolume=%t/x:/x", "container", {"volumes": ["/etc:/e:ro,Z", "named:/n", "/run/x:/x"]}),
    ("Volume=data.volume:/d", "container", {"volumes": ["shop:/d"]}),
    ("Volume=disk.volume:/d:ro", "storage", {"source": "/dev/vdz", "type": "btrfs", "target": "/d", "options": ["compress=zstd", "ro"]}),
    ("Mount=type=volume,source=data.volume,destination=/d,ro=true", "container", {"volumes": ["shop:/d:ro"]}),
    ("Mount=\"type=bind,src=/etc,dst=/with space\"", "container", {"volumes": ["/etc:/with space"]}),
    ("Mount=type=tmpfs,tmpfs-size=512M,destination=/t", "container", {"tmpfs": ["/t:size=512M"]}),
    ("Mount=type=image,source=base.image,destination=/i", "storage", {"source": "image:quay.example/base:1"}),
    ("Image=base.image", "image", {"ref": "quay.example/base:1", "platform": "linux/arm64"}),
    ("Rootfs=/srv/root", "image", {"ref": "dir:/srv/root"}),
    ("Pull=never", "image", {"pull": "never"}),
    ("AutoUpdate=registry", "image", {"pull": "newer"}),
    ("Network=host", "network", {"mode": "host"}),
    ("Network=lan.network", "network", {"bridge": "lan"}),
    ("Network=other.container", "network", {"mode": "pod:other"}),
    ("Network=lan:ip=10.9.0.9,mac=02:00:00:00:00:01", "network", {"bridge": "lan", "address": "10.9.0.9", "mac": "02:00:00:00:00:01"}),
    ("PublishPort=80:80\nPublishPort=[::]:81:81", "network", {"publish": ["0.0.0.0:80:80", "[::]:81:81"]}),
    ("HostName=front\nDNS=9.9.9.9\nAddHost=a:10.0.0.1", "network", {"hostname": "front", "dns": ["9.9.9.9"], "hosts": {"a": "10.0.0.1"}}),
    ("ContainerName=front", "network", {"hostname": "front"}),
    ("IP=10.88.0.9\nIP6=fd00::9", "network", {"address": "10.88.0.9", "address6": "fd00::9"}),
    ("AddCapability=CAP_NET_ADMIN CAP_SYS_TIME\nDropCapability=all", "container", {"cap_add": ["CAP_NET_ADMIN", "CAP_SYS_TIME"], "cap_drop": ["all"]}),
    ("ReadOnly=yes", "container", {"read_only": True, "tmpfs": ["/run", "/tmp", "/var/tmp"]}),
    ("ReadOnly=yes\nReadOnlyTmpfs=no", "container", {"read_only": True, "tmpfs": None}),
    ("Notify=yes\nRunInit=yes", "container", {"ready": {"notify": True}, "init": True}),
    ("HealthCmd=/bin/check\nHealthRetries=5\nHealthInterval=2m", "container", {"live": {"exec": ["/bin/sh", "-c", "/bin/check"], "interval": "2m", "timeout": "30s", "retries": 5}}),
    ("HealthCmd=[\"CMD\", \"/c\"]\nHealthInterval=1s\nHealthTimeout=1s\nNotify=healthy", "container", {"ready": {"exec": ["/c"], "timeout": "6s"}}),
    ("Memory=20g\nPidsLimit=100\nStopTimeout=20\nStopSignal=SIGKILL", "container", {"memory": "20G", "pids": 100, "stop_timeout": "20s", "stop_signal": "SIGKILL"}),
    ("PodmanArgs=--cpus 2 --memory=1g", "container", {"cpus": 2.0, "memory": "1G"}),
    ("Ulimit=nproc=1234:5678\nShmSize=5g\nTimezone=local\nGroupAdd=users", "container", {"ulimits": {"nproc": "1234:5678"}, "shm_size": "5G", "tz": "local", "groups": ["users"]}),
    ("EnvironmentFile=/opt/a rel\nAddDevice=/dev/fuse", "container", {"env_files": ["/opt/a", "UNITS/rel"], "devices": ["/dev/fuse"]}),
    ("Sysctl=net.core.somaxconn=9 kernel.msgmax=9", "container", {"sysctls": {"kernel.msgmax": "9"}}),
    ("Unmask=/proc/a:/proc/b\nUnmask=all", "container", {"unmask": ["/proc/a", "/proc/b", "ALL"]}),
    ("SeccompProfile=unconfined", "container", {"seccomp": "unconfined"}),
    ("NetworkAlias=x", "network", {"aliases": ["x"]}),
    ("Label=a=b \"c=d e\"", "container", {"labels": {"a": "b", "c": "d e"}}),
    ("Secret=key,type=mount,mode=0400", "storage", {"source": "file:", "secret": "key", "target": "/run/secrets/key", "options": ["mode=0400"]}),
]  # fmt: skip
AROUND = {
    "data.volume": "[Volume]\nVolumeName=shop\n",
    "disk.volume": "[Volume]\nDevice=/dev/vdz\nType=btrfs\nOptions=compress=zstd\n",
    "base.image": "[Image]\nImage=quay.example/base:1\nArch=aarch64\n",
    "lan.network": "[Network]\nSubnet=10.9.0.0/24\nDNS=9.9.9.9\n",
    "other.container": "[Container]\nImage=b\n",
}


@pytest.fixture
def around(convert: Any) -> Any:
    for name, text in AROUND.items():
        convert.write(f"units/{name}", text)
    return convert


@pytest.mark.parametrize(("text", "hook", "found"), KEYS, ids=[key[0].split("\n")[0] for key in KEYS])
def test_a_key_becomes_the_key_that_means_the_same(around: Any, text: Any, hook: Any, found: Any) -> None:
    done = around.unit("web.container", f"[Container]\nImage=a\n{text}\n")
    assert done.code == 0, done.told
    step = json.loads(json.dumps(done.step("web", hook)).replace(f"{around.directory}/units", "UNITS"))
    assert {key: step.get(key) for key in found} == found


NOTED = [
    ("GlobalArgs=\x07", "\\x07"),
    ("Environment=A.B", "variable"),
    ("Environment==geheim", "Environment"),
    ("ReloadSignal=${X}", "[pod]"),
    ("[Service]\nX-Own=1", "X-Own"),
    ("[Service]\nExecStartPre=a\x07b", "control character"),
    ("GlobalArgs=--x", "podman's own"),
    ("UIDMap=0:1:2", "chooses the ids"),
    ("Mask=/x", "a path in /proc or /sys"),
    ("PodmanArgs=--frob=1", "--frob"),
    ("Exec='a\\.b'", "escape"),
    ("Exec='a", "quote"),
    ("HealthStartupCmd=x", "ready"),
    ("NoSuchKey=1", "misspelled"),
    ("PublishPort=97", "publish"),
    ("Mount=type=artifact,source=a,destination=/x", "artifact"),
    ("Secret=key,type=env,target=KEY", "files only"),
    ("[Service]\nUser=x", "user in the container step"),
    ("[Other]\nKey=x", "[Other] Key="),
]


@pytest.mark.parametrize(("text", "word"), NOTED, ids=[text.split("\n")[-1] for text, _ in NOTED])
def test_what_has_no_equivalent_is_told_with_its_line(convert: Any, text: Any, word: Any) -> None:
    done = convert.unit("web.container", f"[Container]\nImage=a\n{text}\n")
    assert done.code == 0, done.told
    assert done.notes("by hand: web.container:", word), done.told
    assert word in done.text["web.toml"]
    assert "geheim" not in str(done.text) + str(done.told)


def test_the_sections_of_systemd_are_handed_on_and_units_keep_their_names(convert: Any) -> None:
    done = convert.unit(
        "web.container",
        "[Unit]\nAfter=db.container lan.network x.service\nRequires=db.container\nDescription=for %n\n"
        "[Container]\nImage=a\n[Service]\nType=oneshot\nRestart=on-failure\nEnvironment=A=%i\nKillMode=process\n"
        "[Install]\nWantedBy=multi-user.target\nWantedBy=other.target\n",
    )
    web = done.files["web.toml"]
    assert web["unit"] == {"After": "db.service x.service", "Requires": "db.service", "Description": "for %n"}
    assert web["service"] == {"Restart": "on-failure", "Environment": "A=%i"}
    assert web["install"]["WantedBy"] == ["multi-user.target", "other.target"]
    assert web["pod"]["type"] == "job"
    assert done.notes("note:", "KillMode")


def test_drop_ins_count_the_more_particular_ones_later_and_of_one_name_only_they(convert: Any) -> None:
    for folder, value in (("container.d", "1"), ("web-.container.d", "2"), ("web-a.container.d", "3")):
        convert.write(f"units/{folder}/10-x.conf", f"[Container]\nEnvironment=X={value}\n")
        convert.write(f"units/{folder}/{value}-own.conf", f"[Container]\nEnvironment=OWN{value}=1\n")
    convert.write("units/web-a.container.d/90-reset.conf", "[Container]\nLabel=\nLabel=b=2\n")
    done = convert.unit("web-a.container", "[Container]\nImage=a\nLabel=a=1\n")
    assert done.step("web-a")["env"] == {"OWN1": "1", "X": "3", "OWN2": "1", "OWN3": "1"}
    assert done.step("web-a")["labels"] == {"b": "2"}


def test_a_template_stays_one_and_its_instance_is_filled_in_at_the_start(convert: Any) -> None:
    done = convert.unit("web@.container", "[Container]\nImage=a\nEnvironment=A=%i B=100%%\nVolume=data-%i:/d\n")
    step = done.step("web@")
    assert step["env"] == {"A": "%i", "B": "100%%"}
    assert step["volumes"] == ["data-%i:/d"]


def test_an_instance_knows_what_it_is(convert: Any) -> None:
    done = convert.unit("web@blue.container", "[Container]\nImage=a\nEnvironment=A=%i\n")
    assert done.step("web@blue")["env"] == {"A": "blue"}


def test_a_pod_is_one_file_with_its_containers_whichever_of_them_is_named(convert: Any) -> None:
    convert.write("units/front.container", "[Container]\nImage=a\nPod=shop.pod\n[Service]\nRestart=always\n")
    convert.write("units/back.container", "[Container]\nImage=b\nPod=shop.pod\nVolume=/etc:/e\n")
    text = "[Pod]\nPublishPort=80:80\nNetwork=lan.network\nVolume=data:/d\n"
    convert.write("units/lan.network", "[Network]\nSubnet=10.9.0.0/24\n")
    done = convert.unit("shop.pod", text)
    shop = done.files["shop.toml"]
    assert [(step["hook"], step.get("name")) for step in shop["chain"]] == [
        ("network", None), ("image", "back"), ("container", "back"), ("image", "front"), ("container", "front"),
    ]  # fmt: skip
    assert shop["chain"][0] == {"hook": "network", "publish": ["0.0.0.0:80:80"], "bridge": "lan"}
    assert done.step("shop", number=0)["volumes"] == ["/etc:/e", "data:/d"]
    assert shop["service"]["Restart"] == "always"
    assert done.files["networks.toml"]["networks"]["lan"] == {"subnet": "10.9.0.0/24"}
    again = convert("quadlet", f"{convert.directory}/units/front.container")
    assert again.text["shop.toml"] == done.text["shop.toml"]
    assert convert("quadlet", f"{convert.directory}/units").text["shop.toml"] == done.text["shop.toml"]


def test_an_image_on_its_own_is_a_pod_that_brings_it(convert: Any) -> None:
    done = convert.unit("base.image", "[Image]\nImage=quay.example/a\nVariant=arm/v7\nArch=arm\nCreds=user:geheim\n")
    assert done.step("base-image", "image") == {"hook": "image", "ref": "quay.example/a", "platform": "linux/arm/v7"}
    assert done.notes("by hand", "Creds", "podrun login")
    assert "geheim" not in str(done.text)


def test_a_kube_unit_is_its_manifest_with_the_unit_s_network_and_ports(convert: Any) -> None:
    convert.write(
        "units/web.yaml",
        "kind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a, image: x, ports: [{containerPort: 1, hostPort: 2}]}]}",
    )
    done = convert.unit(
        "web.kube", "[Kube]\nYaml=web.yaml\nPublishPort=80:80\nNetwork=host\n[Install]\nWantedBy=x.target\n"
    )
    assert done.step("web", "network") == {
        "hook": "network",
        "publish": ["0.0.0.0:2:1/tcp", "0.0.0.0:80:80"],
        "mode": "host",
    }
    assert done.files["web.toml"]["install"] == {"WantedBy": "x.target"}


REFUSED = [
    ("web.container", "[Container]\n", "neither Image nor Rootfs"),
    ("web.container", "[Container]\nImage=a\nServiceName=web@../../etc/x\n", "no instance"),
    ("web@Blue.container", "[Container]\nImage=a\n", "no instance"),
    ("web.container", "Image=a\n", "before the first section"),
    ("web.container", "[Container]\nImage\n", "web.container:2"),
    ("web.container", "[Container\n", "not a section"),
    ("web.container", "[Container]\nImage=a\nGroup=x\n", "User="),
    ("web.container", "[Container]\nImage=a\nReloadCmd=x\nReloadSignal=HUP\n", "exclude"),
    ("web.container", "[Container]\nImage=a\nPod=none.pod\n", "none.pod"),
    ("web.container", "[Container]\nImage=a\nVolume=none.volume:/x\n", "none.volume"),
    ("web.container", "[Container]\nImage=none.image\n", "none.image"),
    ("web.build", "[Build]\nImageTag=localhost/a\n", "builds no images"),
    ("web.artifact", "[Artifact]\nArtifact=a\n", "[Artifact]"),
    ("web.volume", "[Volume]\nDriver=image\n", "without Image"),
    ("web.image", "[Image]\n", "Image is missing"),
    ("web.kube", "[Kube]\n", "Yaml is missing"),
    ("web.kube", "[Kube]\nYaml=none.yaml\n", "none.yaml"),
    ("web.service", "[Service]\n", ".container"),
]


@pytest.mark.parametrize(("name", "text", "word"), REFUSED, ids=[f"{case[0]} {case[2]}" for case in REFUSED])
def test_what_cannot_be_a_pod_is_refused_with_the_key(convert: Any, name: Any, text: Any, word: Any) -> None:
    done = convert.unit(name, text)
    assert done.code == 78, done.told
    assert word in done.told[-1]
    assert not done.files
