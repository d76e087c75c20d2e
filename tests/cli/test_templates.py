"""Go templates of --format: what they print, and what is refused."""

from __future__ import annotations

import pytest

from podrun.cli.docker_names import name_and_tag
from podrun.cli.templates import Struct, Text, lines
from podrun.cli.times import age
from podrun.errors import Failure

WEB = Struct(
    {
        "Names": "web",
        "ID": "abc",
        "Labels": {"b": "2", "a": "1"},
        "Networks": {"n": Struct({"IPAddress": "10.0.0.2"})},
        "Ports": ["80/tcp", "443/tcp"],
        "Running": True,
        "Health": None,
        "Text": Text.of({"a": "1", "b.c": "2"}),
        "Label": lambda key: {"a": "1"}.get(key, ""),
    },
    {"name": "web", "started": 5},
)


@pytest.mark.parametrize(
    ("form", "printed"),
    [
        ("{{.Names}}", "web"),
        ("{{ .Names }}-{{.ID}}", "web-abc"),
        (r"{{.Names}}\t{{.ID}}\n", "web\tabc\n"),
        ("{{.name}} {{.started}}", "web 5"),
        ("{{.Running}} {{.Health}} {{.Health.Status}}", "true <no value> <no value>"),
        ("{{.Labels}} {{.Ports}}", "map[a:1 b:2] [80/tcp 443/tcp]"),
        ("{{.Labels.a}} {{.Labels.zz}}", "1 <no value>"),
        ('{{.Label "a"}}{{index .Labels "b"}}{{index .Ports 1}}', "12443/tcp"),
        ('{{(index .Networks "n").IPAddress}}', "10.0.0.2"),
        ("{{range .Networks}}{{.IPAddress}}{{end}}", "10.0.0.2"),
        ("{{range $k, $v := .Networks}}{{$k}}={{$v.IPAddress}} of {{$.Names}};{{end}}", "n=10.0.0.2 of web;"),
        ("{{range .Ports}}<{{.}}>{{else}}none{{end}}", "<80/tcp><443/tcp>"),
        ("{{range .Health}}x{{else}}none{{end}}", "none"),
        ("{{if .Health}}ill{{else}}{{if .Running}}runs{{end}}{{end}}", "runs"),
        ("{{with .Labels}}{{.a}}{{end}}", "1"),
        ("{{$x := .Names}}{{$x}}", "web"),
        ('{{json .Labels}} {{.Ports | json}} {{json "<é>"}}', '{"b":"2","a":"1"} ["80/tcp","443/tcp"] "<é>"'),
        ("{{.Names | upper}} {{upper .ID | lower}} {{title `ab cd`}}", "WEB abc Ab Cd"),
        ('{{join .Ports ", "}} {{len .Ports}} {{index (split "a:b" ":") 1}}', "80/tcp, 443/tcp 2 b"),
        ('{{printf "%-5s|%3d|%q|%v%%" .ID 7 "x" true}}', 'abc  |  7|"x"|true%'),
        ('{{eq .ID "x" "abc"}} {{ne .ID "x"}} {{and true .ID}} {{or .Health 3}} {{not .ID}}', "true true abc 3 false"),
        ("a {{- .ID -}} b{{/* said */}}", "aabcb"),
        ('{{"{{"}}', "{{"),
        ('{{.Text}} {{.Text.a}} {{index .Text "b.c"}} {{json .Text}}', 'a=1,b.c=2 1 2 "a=1,b.c=2"'),
        ("{{truncate .Names 2}}{{slice .ID 1}}{{println .ID}}", "webcabc\n"),
    ],
)
def test_a_template_prints(form: str, printed: str) -> None:
    assert list(lines(form, [WEB])) == [printed]


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ("{{.Nmaes}}", "did you mean 'Names'"),
        ("{{nosuch .ID}}", "unknown function 'nosuch'"),
        ("{{.Names", "is not closed"),
        ("x {{", "is not closed"),
        ("{{}}", "names nothing"),
        ("{{end}}", "ends nothing"),
        ("{{else}}", "ends nothing"),
        ("{{if .ID}}", "has no {{end}}"),
        ("{{if .ID}}{{else if .ID}}{{end}}", "is not known"),
        ("{{.ID.Deep}}", "has no fields"),
        ("{{.ID 3}}", "takes no words"),
        ("{{.ID | }}", "nothing beside it"),
        ("{{(.ID}}", "has no )"),
        ("{{.ID)}}", "not expected"),
        ("{{$no}}", "there is no '$no'"),
        ("{{index .Ports 9}}", "out of range"),
        ('{{index .Ports "a"}}', "out of range"),
        ("{{len 3}}", "len"),
        ('{{printf "%d" .Names}}', "printf"),
        ("{{printf `%s`}}", "printf"),
        ("{{range .ID}}{{end}}", "lists and maps"),
        ("{{.Label}}", "number of words"),
        ("{{" + "(" * 50 + ".ID" + ")" * 50 + "}}", "too many parentheses"),
        ("{{if .ID}}" * 50, "too many blocks"),
        ("{{.ID ?}}", "not understood"),
    ],
)
def test_what_is_no_template_is_refused_with_the_reason(form: str, told: str) -> None:
    with pytest.raises(Failure, match="--format") as caught:
        list(lines(form, [WEB]))
    assert told in str(caught.value)


def test_a_table_has_docker_s_headings_and_columns() -> None:
    form = 'table {{.ID}}\\t{{.Names}} {{.CreatedSince}}{{range .Ports}}!{{end}}\\t{{.Label "a"}}'
    row = Struct({**WEB, "CreatedSince": "now"})
    heading = "CONTAINER ID   NAMES   CREATED   a"
    body = "abc            web     now!!     1"
    assert list(lines(form, [row], kind="CONTAINER")) == [heading, body]
    assert list(lines(form, [row], heading=False)) == ["abc   web   now!!   1"]
    assert list(lines(form, [], kind="CONTAINER")) == [heading]


@pytest.mark.parametrize(
    ("ref", "parts"),
    [
        ("docker.io/library/nginx:1.27", ("docker.io/library/nginx", "1.27")),
        ("localhost:5000/a", ("localhost:5000/a", "<none>")),
        ("r.example/a@sha256:00", ("r.example/a", "<none>")),
    ],
)
def test_a_stored_name_has_a_repository_and_a_tag(ref: str, parts: tuple[str, str]) -> None:
    assert name_and_tag(ref) == parts


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-1, "0 seconds"), (1, "1 second"), (150, "2 minutes"), (86400, "1 day"), (15 * 86400, "2 weeks"),
     (70 * 86400, "2 months"), (1600 * 86400, "4 years")],
)  # fmt: skip
def test_ages_are_told_as_docker_tells_them(seconds: float, words: str) -> None:
    assert age(seconds) == words
