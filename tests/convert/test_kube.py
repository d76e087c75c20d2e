"""Kubernetes manifests become pods, and no secret's text becomes part of one."""

from __future__ import annotations

from typing import Any

import pytest

SHOP = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: shop}
spec:
  replicas: 1
  selector: {matchLabels: {app: shop}}
  template:
    spec:
      restartPolicy: Always
      terminationGracePeriodSeconds: 7
      hostAliases: [{ip: 10.0.0.1, hostnames: [db]}]
      volumes:
      - {name: data, persistentVolumeClaim: {claimName: shop-data}}
      - {name: conf, configMap: {name: settings}}
      - {name: keys, secret: {secretName: keys}}
      - {name: scratch, emptyDir: {medium: Memory, sizeLimit: 64Mi}}
      containers:
      - name: web
        image: nginx:1.27
        args: ["-g", "$$(NAME)"]
        command: [nginx]
        imagePullPolicy: IfNotPresent
        ports: [{containerPort: 80, hostPort: 8080}, {containerPort: 9, hostPort: 9, protocol: UDP}]
        env:
        - {name: A, value: "1"}
        - {name: MODE, valueFrom: {configMapKeyRef: {name: settings, key: mode}}}
        - {name: ME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        volumeMounts:
        - {name: data, mountPath: /data}
        - {name: conf, mountPath: /etc/app}
        - {name: keys, mountPath: /keys, readOnly: true}
        - {name: scratch, mountPath: /scratch}
        resources: {limits: {cpu: 500m, memory: 128Mi}}
        livenessProbe: {httpGet: {path: /healthz, port: 80}, periodSeconds: 5, failureThreshold: 2}
        readinessProbe: {tcpSocket: {port: 80}}
        securityContext: {runAsUser: 1000, runAsGroup: 1000, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
      - {name: side, image: busybox}
---
kind: ConfigMap
metadata: {name: settings}
data: {mode: prod, app.conf: "a=${b}\\n"}
---
kind: Secret
metadata: {name: keys}
stringData: {tls.key: geheim}
---
kind: Service
metadata: {name: shop}
"""


@pytest.fixture
def shop(convert: Any) -> Any:
    return convert("kube", convert.write("shop.yaml", SHOP))


def test_a_deployment_is_a_pod_with_its_containers_in_order(shop: Any) -> None:
    assert shop.code == 0, shop.told
    chain = shop.files["shop.toml"]["chain"]
    assert [step["name"] for step in chain if step["hook"] == "container"] == ["web", "side"]
    assert shop.files["shop.toml"]["pod"]["stop_timeout"] == "7s"
    assert shop.files["shop.toml"]["service"]["Restart"] == "always"
    network = next(step for step in chain if step["hook"] == "network")
    assert network == {
        "hook": "network",
        "hosts": {"db": "10.0.0.1"},
        "publish": ["0.0.0.0:8080:80/tcp", "0.0.0.0:9:9/udp"],
    }


def test_a_container_s_keys_become_those_that_mean_the_same(shop: Any) -> None:
    web = shop.step("shop")
    assert (web["entrypoint"], web["command"]) == (["nginx"], ["-g", "$(NAME)"])
    assert web["env"] == {"A": "1", "MODE": "prod", "ME": "shop"}
    assert (web["cpus"], web["memory"], web["user"]) == (0.5, "128M", "1000:1000")
    assert (web["read_only"], web["cap_drop"]) == (True, ["ALL"])
    assert web["live"] == {"http": ":80/healthz", "interval": "5s", "timeout": "1s", "retries": 2}
    assert web["ready"]["tcp"] == ":80"
    assert web["volumes"] == ["shop-data:/data"]
    assert web["tmpfs"] == ["/scratch:size=64M"]
    assert shop.step("shop", "image")["pull"] == "missing"


def test_a_config_map_is_files_and_a_secret_s_are_credentials_of_the_unit(shop: Any) -> None:
    files = {step["target"]: step for step in shop.files["shop.toml"]["chain"] if step["hook"] == "storage"}
    assert files["/etc/app/app.conf"]["content"] == "a=$${b}\n"
    assert files["/keys/tls.key"]["credential"] == "keys-tls.key"
    assert "geheim" not in str(shop.text) + str(shop.told)
    assert shop.files["shop.toml"]["service"]["LoadCredential"] == ["keys-tls.key:/etc/podrun/secrets/keys-tls.key"]


def test_what_has_no_equivalent_is_told(shop: Any) -> None:
    assert shop.notes("by hand", "Service shop")


CASES = [
    ("kind: Job\nmetadata: {name: a}\nspec: {template: {spec: {containers: [{name: x, image: y}]}}}", "pod", "type", "job"),
    ("kind: Pod\nmetadata: {name: a}\nspec: {restartPolicy: Never, containers: [{name: x, image: y}]}", "service", "Restart", "no"),
    ("kind: List\nitems: [{kind: Pod, metadata: {name: A.b}, spec: {containers: [{name: x, image: y}]}}]", "pod", "name", "a-b"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "section", "key", "value"), CASES, ids=[case[0].split("\n")[0] for case in CASES])
def test_other_kinds_of_manifest_are_read_too(convert: Any, text: Any, section: Any, key: Any, value: Any) -> None:
    done = convert("kube", convert.write("a.yaml", text))
    (file,) = done.files.values()
    assert file[section][key] == value


REFUSED = [
    ("a: b", "without a kind"),
    ("kind: ConfigMap\nmetadata: {name: a}", "no pod"),
    ("kind: Pod\nmetadata: {name: a}\nspec: {}", "no containers"),
    ("kind: Pod\nspec: {containers: [{name: x, image: y}]}", "metadata.name"),
    ("kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: x}]}", "no image"),
    ("kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: x, image: y, volumeMounts: [{name: v, mountPath: /v}]}]}", "no volume v"),
    ("kind: Pod\nmetadata: {name: a}\nspec: {containers: 5}", "a.yaml"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "word"), REFUSED, ids=[word for _, word in REFUSED])
def test_what_is_no_pod_is_refused(convert: Any, text: Any, word: Any) -> None:
    done = convert("kube", convert.write("a.yaml", text))
    assert done.code == 78, done.told
    assert word in done.told[-1]


@pytest.mark.parametrize("probe", ["{grpc: {port: 1}}", "{httpGet: {port: 1, scheme: HTTPS}}"])
def test_a_probe_that_podrun_does_not_have_is_told(convert: Any, probe: str) -> None:
    text = f"kind: Pod\nmetadata: {{name: a}}\nspec: {{containers: [{{name: x, image: y, livenessProbe: {probe}}}]}}"
    assert convert("kube", convert.write("a.yaml", text)).notes("by hand", "livenessProbe")


def test_an_init_container_is_left_to_the_reader(convert: Any) -> None:
    text = "kind: Pod\nmetadata: {name: a}\nspec: {initContainers: [{name: i, image: z}], containers: [{name: x, image: y}]}"
    done = convert("kube", convert.write("a.yaml", text))
    assert done.notes("by hand", "initContainers.i", "job")
