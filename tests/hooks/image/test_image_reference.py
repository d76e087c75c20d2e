"""How an image is named."""

from __future__ import annotations

import pytest

from podrun.errors import WRONG_FILE, Failure
from podrun_hooks.image import reference

PIN = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("ref", "full"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        ("team/web", "docker.io/team/web:latest"),
        ("docker.io/nginx", "docker.io/library/nginx:latest"),
        ("index.docker.io/library/nginx", "docker.io/library/nginx:latest"),
        ("localhost/web", "localhost/web:latest"),
        ("localhost:5000/web:1", "localhost:5000/web:1"),
        ("127.0.0.1:5000/a/b/c:x", "127.0.0.1:5000/a/b/c:x"),
        ("[::1]:5000/web", "[::1]:5000/web:latest"),
        ("[fe80::1]/web", "[fe80::1]/web:latest"),
        ("registry.example/team/web", "registry.example/team/web:latest"),
        ("Registry.Example:5000/web", "Registry.Example:5000/web:latest"),
        (f"nginx@{PIN}", f"docker.io/library/nginx@{PIN}"),
        (f"r.example/web:1@{PIN}", f"r.example/web:1@{PIN}"),
        ("a__b/c-d.e---f_g", "docker.io/a__b/c-d.e---f_g:latest"),
        ("web:_x.Y-z", "docker.io/library/web:_x.Y-z"),
    ],
)
def test_a_registry_reference_has_one_full_spelling(ref: str, full: str) -> None:
    named = reference.parse(ref)
    assert (named.kind, named.text) == (reference.REGISTRY, full)
    assert reference.parse(full) == named


@pytest.mark.parametrize(
    "ref",
    [
        "", ":", "/", "@", "Nginx", "team/Web", "web:", "web:-x", "web:.x", "web:a b", "web:" + "t" * 129, "web@sha256:12",
        f"web@{PIN.upper()}", f"web@md5:{'0' * 32}", "a//b", "a/", "/a", "-web", "web-", "a..b", "a___b", "a._b", "we b",
        "host.example:/web", "host.example:0/web", "host.example:65536/web", "host.example:x/web", "host.example:²/web",
        "-host.example/web", "host-.example/web", "ho_st.example/web", "[::1/web", "[zz]:1/web", "x" * 256,
        "docker://nginx", "https://registry.example/web", "web\n", "wéb", "web:é", "web\0", "..", "../web", "web@", "web:1:2",
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused(ref: str) -> None:
    with pytest.raises(Failure) as caught:
        reference.parse(ref)
    assert caught.value.code == WRONG_FILE


@pytest.mark.parametrize(
    ("ref", "kind", "path", "tag"),
    [
        ("host:", reference.HOST, "", ""),
        ("dir:/srv/root", reference.DIR, "/srv/root", ""),
        ("dir:/srv/with:colon/../b/", reference.DIR, "/srv/b", ""),
        ("dir:rootfs", reference.DIR, "/here/rootfs", ""),
        ("oci:/srv/x", reference.OCI, "/srv/x", ""),
        ("oci:/srv/x:v1", reference.OCI, "/srv/x", "v1"),
        ("oci:./x:registry.example/web:1", reference.OCI, "/here/x", "registry.example/web:1"),
        ("oci-archive:/x.tar:1.0", reference.OCI_ARCHIVE, "/x.tar", "1.0"),
        ("docker-archive:/x.tar", reference.DOCKER_ARCHIVE, "/x.tar", ""),
        ("docker-archive:/x.tar:web:2", reference.DOCKER_ARCHIVE, "/x.tar", "docker.io/library/web:2"),
        ("docker-archive:/x.tar:@1", reference.DOCKER_ARCHIVE, "/x.tar", "@1"),
    ],
)
def test_local_images_are_named_by_their_path(ref: str, kind: str, path: str, tag: str) -> None:
    named = reference.parse(ref, "/here")
    assert (named.kind, named.path, named.tag) == (kind, path, tag)


@pytest.mark.parametrize(
    "ref", ["dir:", "oci:", "oci:x", "dir:x", "oci:/x:", "docker-archive:/x:UPPER", "host:x", "oci:\0/"]
)
def test_a_local_image_without_a_proper_path_is_refused(ref: str) -> None:
    with pytest.raises(Failure) as caught:
        reference.parse(ref)
    assert caught.value.code == WRONG_FILE


@pytest.mark.parametrize(
    ("ref", "name"),
    [("docker-daemon:web", "web:latest"), ("docker-daemon:team/web:1", "team/web:1"), (f"docker-daemon:{PIN}", PIN)],
)
def test_dockerd_is_asked_for_the_name_it_knows(ref: str, name: str) -> None:
    assert reference.parse(ref).repository == name
