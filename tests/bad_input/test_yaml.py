"""YAML that would take memory or time, or that nobody means: one sentence with its place, at once."""

from __future__ import annotations

import os
import time

import pytest
import yaml

from longwave.training import load_run
from longwave.training.values import DEEPEST, LARGEST, parse_override, parse_yaml

LAUGHS = "a0: &a0 [ha, ha]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
REFUSED = {  # a text, and what the sentence says
    "[" * 60000: f"column {DEEPEST + 1}: nested deeper than {DEEPEST} levels",
    "a: {" * 16000: f"nested deeper than {DEEPEST} levels",
    "- " * 30000: f"nested deeper than {DEEPEST} levels",
    "? " * 30000: f"nested deeper than {DEEPEST} levels",
    "\n".join(" " * i + "a:" for i in range(300)): f"nested deeper than {DEEPEST} levels",
    "published: &a {x: *a}": "line 1, column 19: the alias *a is not taken here",
    "a: &a [*a]": "the alias *a is not taken here",
    "published:\n  x: &x 1\n  y: *x": "line 3, column 6: the alias *x is not taken here; write the value again",
    LAUGHS: "the alias *a0 is not taken here",
    "model: &m {a: 1}\ndata: {<<: *m}": "the alias *m is not taken here",
    "data: {<<: {a: 1}}": "key '<<' is no text",
    "seed: 1\nseed: 1": "line 2, column 1: key 'seed' is given twice",
    "a: {b: 1, 'b': 2}": "key 'b' is given twice",
    "1: 2": "key '1' is no text; write it in quotes",
    "1.5: 2": "key '1.5' is no text",
    "true: 2": "key 'true' is no text",
    "on: 2": "key 'on' is no text",
    "~: 2": "key '~' is no text",
    "2024-01-01: 2": "key '2024-01-01' is no text",
    "? [a]\n: b": "key that is a list or mapping is no text",
    "? {a: b}\n: c": "key that is a list or mapping is no text",
    "=: 2": "key '=' is no text",
    "a: !!python/object/apply:os.system [exit]": "the tag 'tag:yaml.org,2002:python/object/apply:os.system'",
    "a: !!bool perhaps": "the tag 'tag:yaml.org,2002:bool' is not taken here; write a plain value",
    "a: !!int many": "the tag",
    "a: !own b": "the tag '!own' is not taken here",
    "!!set {a, b}": "the tag",
    "a: 2024-99-99": "line 1, column 4: '2024-99-99' is no value; write it in quotes if it is text",
    "a: 2024-01-01 99:00:00": "is no value",
    f"a: {'9' * 5000}": "is no value",
    'a: "\\ud800"': "is no value",
    "a: \0": "not YAML: unacceptable character #x0000",
    "a: \x1b[2J": "not YAML: unacceptable character #x001b",
    "a: [": "not YAML: line 1, column 5",
    "a: b: c": "not YAML: line 1, column 5: mapping values are not allowed here",
    "a:\n\t- b": "not YAML: line 2, column 1",
    "a: 'b": "not YAML: ",
    "--- a\n--- b": "not YAML: line 2, column 1: but found another document",
    "a: @b": "not YAML: ",
    "%WHAT": "not YAML: ",
    "#" * (LARGEST + 1): "65,537 bytes, more than the 65,536 that are read of YAML",
}


@pytest.mark.parametrize(("text", "sentence"), REFUSED.items(), ids=lambda value: value[:24])
def test_a_document_is_refused_by_its_place(text, sentence):
    began_at = time.monotonic()
    with pytest.raises(ValueError, match=r"^run\.yaml: ") as refusal:
        parse_yaml(text, "run.yaml")
    assert time.monotonic() - began_at < 1
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("text", [text for text in REFUSED if "=" not in text], ids=lambda value: value[:24])
@pytest.mark.parametrize("name", ["published", "model.mixer_kwargs", "data.train"])
def test_a_value_of_set_is_refused_likewise(name, text):
    with pytest.raises(ValueError, match=f"^--set .{name}=") as refusal:
        parse_override(f"{name}={text}")
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 600


@pytest.mark.parametrize(
    "override",
    ["a..b=1", ".a=1", "a.=1", "=1", "a", "", ".=1", "a" + ".a" * 99 + "=1", "a" * 10000],
    ids=lambda o: o[:9],
)
def test_a_path_that_is_none_is_refused(override):
    with pytest.raises(ValueError, match=r"^--set '.*(expected name=value|more than 32 parts in a path)$"):
        parse_override(override)


@pytest.mark.parametrize(
    "value", [{"a": 1, "b": [1.5, None, True, "x"], "c": {"d": {}}}, {"4": "4"}, [], "text", {"a": "é☃𝄞"}], ids=str
)
def test_what_is_written_is_read(value):
    assert parse_yaml(yaml.safe_dump(value, allow_unicode=True), "run.yaml") == value


@pytest.mark.parametrize("kind", ["folder", "pipe", "a gigabyte", "latin", "utf-16", "nothing", "link to nothing"])
def test_what_is_no_file_of_text_is_refused_by_name(tmp_path, kind):
    path = tmp_path / "run.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "a gigabyte":
        with path.open("wb") as file:
            file.truncate(10**9)
    elif kind.startswith("link"):
        path.symlink_to(tmp_path / "absent")
    elif kind != "nothing":
        path.write_bytes("description: é".encode("latin-1" if kind == "latin" else kind))
    began_at = time.monotonic()
    with pytest.raises(ValueError, match=r"run\.yaml: (not a file|no such file|byte|1,000,000,000 bytes, more than)"):
        load_run(str(path))
    assert time.monotonic() - began_at < 1


def test_an_empty_file_is_a_run_of_defaults(tmp_path):
    (tmp_path / "run.yaml").write_text("")
    assert load_run(str(tmp_path / "run.yaml")) == load_run(str(tmp_path / "run.yaml"), ["training.seed=0"])
