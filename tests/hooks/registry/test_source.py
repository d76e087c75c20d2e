"""Which registry an option means, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from podrun.errors import Failure
from podrun.options import Wrong
from podrun_hooks.registry import source as sources
from podrun_hooks.registry.source import Source, from_json, parse, resolved, to_json


@pytest.mark.parametrize(
    ("value", "source"),
    [
        ("", Source()),
        ("file:", Source("file")),
        ("file:/srv/registry", Source("file", "/srv/registry")),
        ("etcd://10.0.0.1", Source("etcd", "", (("10.0.0.1", 2379),))),
        ("etcd://a:1,b:2", Source("etcd", "", (("a", 1), ("b", 2)))),
        ("etcds://[2001:db8::1]:2379", Source("etcd", "", (("2001:db8::1", 2379),), True)),
        ("consul://127.0.0.1", Source("consul", "", (("127.0.0.1", 8500),))),
        ("consuls://c.example", Source("consul", "", (("c.example", 8501),), True)),
        (
            {"url": "etcds://a", "ca": "/ca", "cert": "/c", "key": "/k", "user": "u", "password": "credential:p"},
            Source("etcd", "", (("a", 2379),), True, "/ca", "/c", "/k", "u", "credential:p"),
        ),
    ],
)
def test_a_registry_is_read_and_written_down(value: Any, source: Any) -> None:
    assert parse(value) == source
    assert from_json(to_json(source)) == source
    if source.kind:
        assert parse(source.url)._replace(**dict(zip(source._fields[4:], source[4:], strict=True))) == source


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("zookeeper://a", "expected file:"),
        ("etcd:a", "expected file:"),
        ("file:relative", "expected an absolute path"),
        ("file:/a/../b", "expected an absolute path"),
        ("etcd://", "is not a host"),
        ("etcd://a:0", "is not a port"),
        ("etcd://a:http", "is not a port"),
        ("etcd://a/path", "is not a host|is not a port"),
        ("etcd://a b", "is not a host"),
        ("etcd://root:secret@a", "do not belong in the URL"),
        (5, "expected a URL"),
        ({}, "url is missing"),
        ({"url": "etcd://a", "tls": "yes"}, "unknown key 'tls'"),
        ({"url": "etcd://a", "ca": "/ca"}, "are for etcds://"),
        ({"url": "etcds://a", "ca": "ca.pem"}, "absolute path"),
        ({"url": "etcds://a", "cert": "/c"}, "belong together"),
        ({"url": "file:", "user": "u"}, "only a registry with a server"),
        ({"url": "etcd://a", "password": "secret"}, "absolute path of a file, or credential:NAME"),
        ({"url": "etcd://a", "password": "credential:../x"}, "absolute path of a file, or credential:NAME"),
    ],
)
def test_what_is_no_registry_is_refused(value: Any, why: str) -> None:
    with pytest.raises(Wrong, match=why):
        parse(value)


def test_the_hosts_default_is_in_podrun_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PODRUN_CONFIG", str(tmp_path / "podrun.toml"))
    assert resolved(Source(), "/run/x") == Source("file", "/run/x/registry")
    (tmp_path / "podrun.toml").write_text('[defaults]\nregistry = "etcd://10.0.0.1"\n')
    assert resolved(Source(), "/run/x").url == "etcd://10.0.0.1:2379"
    assert resolved(parse("file:"), "/run/x").directory == "/run/x/registry"
    (tmp_path / "podrun.toml").write_text('[defaults]\nregistry = "etcd:"\n')
    with pytest.raises(Failure, match=r"podrun.toml: registry: expected file:"):
        resolved(Source(), "/run/x")


@pytest.mark.root
def test_defaults_that_others_can_write_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PODRUN_CONFIG", str(tmp_path / "podrun.toml"))
    (tmp_path / "podrun.toml").write_text("")
    (tmp_path / "podrun.toml").chmod(0o666)
    with pytest.raises(Failure, match=r"podrun\.toml"):
        sources.defaults("registry")


def test_a_credential_is_a_path_of_the_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = parse({"url": "etcd://a", "user": "u", "password": "credential:etcd"})
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/web.service")
    assert resolved(wanted, "/run/x").password == "/run/credentials/web.service/etcd"
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    with pytest.raises(Failure, match="podrun was given no credentials"):
        resolved(wanted, "/run/x")
