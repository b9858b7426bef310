"""DWARF's published properties come out as documented, and what does not is noticed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from longwave import cli
from longwave.verification import dwarf, properties_of
from longwave.verification.dwarf import PROPERTIES, Finding, Outcome, measure_properties

CRATE = range(1, 59)
REPORTED = (7, 8, 31, 38, 48, 49, 55)
KNOWN = (56, 57, 58)
#: What needs no random numbers is met to the published digits.
EXACT = (3, 14, 21, 22, 23, 24, 25, 27, 33, 34, 36, 43, 44, 45, 49, 50, 54)
#: Numbers of many draws.
MANY = (4, 5, 17, 19, 20)
SUMMARY = "58 properties: 55 hold, 3 known failures, 3 corrected twins hold; 7 added properties hold"
BY_NUMBER = {given.number: given for given in PROPERTIES}


@pytest.fixture(scope="module")
def report():
    return measure_properties("dwarf", PROPERTIES)


@pytest.fixture
def longwave(monkeypatch, capfd):
    """Run a command in this process: exit code, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["longwave", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code or 0, *capfd.readouterr())

    return run


def expected(number):
    if number in KNOWN:
        return Outcome.KNOWN_FAILURE
    return Outcome.REPORT if number in REPORTED else Outcome.PASS


def line_of(report, number):
    (line,) = (line for line in report.lines if line.number == number)
    return line


class TestRegistry:
    def test_holds_all_58_the_three_twins_and_the_seven_added(self):
        numbers = {part: [p.number for p in PROPERTIES if p.part == part] for part in ("crate", "twin", "added")}
        assert sorted(numbers["crate"]) == list(CRATE)
        assert numbers["twin"] == ["56c", "57c", "58c"]
        assert numbers["added"] == list("abcdefg")

    def test_every_property_says_what_must_hold(self):
        assert all(given.title and given.statement.endswith(".") for given in PROPERTIES)
        assert len({given.title for given in PROPERTIES if given.part == "added"}) == 7

    @pytest.mark.parametrize("name", ["dwarf", "dwarf_field", "dwarf_grid", "dwarf@wide"])
    def test_is_found_by_the_mixers_name(self, name):
        assert properties_of(name) is PROPERTIES

    def test_another_mixer_has_none(self):
        with pytest.raises(ValueError, match="no properties were published of 'softmax'"):
            properties_of("softmax")


class TestOutcomes:
    @pytest.mark.parametrize("number", BY_NUMBER)
    def test_each_property_comes_out_as_documented(self, report, number):
        line = line_of(report, number)
        assert line.error == ""
        assert line.outcome is expected(number), line.measured

    def test_the_whole_is_as_documented(self, report):
        assert report.passed
        assert report.summary == SUMMARY

    @pytest.mark.parametrize(("numbers", "tolerance"), [(EXACT, 0.006), (MANY, 0.07)], ids=["exact", "drawn"])
    def test_measured_numbers_are_the_published_ones(self, report, numbers, tolerance):
        for number in numbers:
            line = line_of(report, number)
            measured = {name: line.measured[name] for name in line.published}
            assert measured == pytest.approx(line.published, rel=tolerance, abs=1e-9), number

    def test_it_is_quick(self, report):
        assert sum(line.seconds for line in report.lines) < 60


def altered(number, finding):
    """A registry of one property, which finds what it is told."""

    def measure():
        if isinstance(finding, Exception):
            raise finding
        return finding

    return (replace(BY_NUMBER[number], measure=measure),)


class TestSabotage:
    @pytest.mark.parametrize(
        ("number", "finding"),
        [
            (5, Finding(False, {"weight": 0.2})),
            (56, Finding(True, {"D4": 70.0})),
            ("57c", Finding(False, {"E / E0": 101.0})),
            ("b", Finding(False, {"dwarf": 0.1})),
            (33, RuntimeError("no wave")),
            (7, RuntimeError("no cosine")),
            (57, RuntimeError("no noise")),
        ],
        ids=str,
    )
    def test_what_is_not_as_documented_fails(self, number, finding):
        report = measure_properties("dwarf", altered(number, finding))
        assert not report.passed
        assert report.lines[0].outcome is Outcome.FAIL
        assert report.summary.endswith(f"not as documented: {number}")
        if isinstance(finding, Exception):
            assert report.lines[0].error == f"raised RuntimeError: {finding}"

    def test_the_command_ends_with_1(self, longwave, monkeypatch):
        monkeypatch.setattr(dwarf, "PROPERTIES", altered(5, Finding(False, {"weight": 0.2})))
        code, out, _ = longwave("verify", "dwarf", "--properties")
        assert code == 1
        assert "FAIL" in out
        assert "weight 0.2 (0.877), cosine (0.998)" in out
        assert "not as documented: 5" in out


class TestCommand:
    @pytest.fixture
    def few(self, monkeypatch):
        """Four quick ones."""
        monkeypatch.setattr(dwarf, "PROPERTIES", tuple(BY_NUMBER[number] for number in (2, 43, 57, "57c")))

    @pytest.mark.usefixtures("few")
    def test_prints_groups_and_one_line_for_each(self, longwave):
        code, out, _ = longwave("verify", "dwarf", "--properties")
        assert code == 0
        lines = out.splitlines()
        for group in ("Gather and K⊗V algebra", "Field update", "D4 and KdV on matrix fields"):
            assert group in lines
        (known,) = (line for line in lines if line.startswith("  57  "))
        assert known.split("  ")[2] == "noise stays bounded"
        assert known.endswith("KNOWN-FAILURE  E / E0 nan (nan)")
        assert "PASS           D4 2 (2), Morlet 5 (5)" in out
        assert lines[-1] == "3 properties: 2 hold, 1 known failures, 1 corrected twins hold; 0 added properties hold"

    @pytest.mark.usefixtures("few")
    def test_prints_one_json_document(self, longwave):
        code, out, _ = longwave("verify", "dwarf_grid", "--properties", "--json")
        found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert code == 0
        assert found["passed"]
        assert found["name"] == "dwarf_grid"
        assert [line["number"] for line in found["lines"]] == [2, 43, 57, "57c"]
        assert found["lines"][2]["measured"] == {"E / E0": "nan"}
        assert found["lines"][2]["outcome"] == "KNOWN-FAILURE"
        assert found["lines"][1]["published"] == {"D4": 2, "Morlet": 5}

    @pytest.mark.parametrize("target", ["softmax", "nonsense", "tests.toys:RawMean"])
    def test_a_mixer_without_properties_is_refused(self, longwave, target):
        code, out, err = longwave("verify", target, "--properties")
        assert (code, out) == (2, "")
        legal = "dwarf, dwarf_field, dwarf_grid"
        assert err == f"longwave: no properties were published of {target!r}; of these there were: {legal}\n"

    def test_arguments_of_the_mixer_are_refused(self, longwave):
        code, out, err = longwave("verify", "dwarf", "--properties", "--set", "window=3")
        assert (code, out) == (2, "")
        assert err == "longwave: --properties measures the published configurations; it takes no --set\n"
