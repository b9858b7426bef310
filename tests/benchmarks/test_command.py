"""``longwave benchmark`` and ``longwave list --backends``, as the shell sees them."""

from __future__ import annotations

import json
import sys

import pytest

from longwave import cli

TINY = ("--lengths", "24", "--hidden-size", "16", "--num-heads", "2", "--repeats", "1")


@pytest.fixture
def longwave(monkeypatch, capfd):
    """Run a command in this process: exit code, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["longwave", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code or 0, *capfd.readouterr())

    return run


class TestBenchmark:
    def test_json_alone_is_on_standard_output(self, longwave, trusted):
        code, out, err = longwave("benchmark", "mixers", "--mixers", "hale", *TINY, "--json")
        assert code == 0
        assert {row["mixer"] for row in json.loads(out)["rows"]} == {"softmax", "hale"}
        assert err.splitlines() == [f"{name}: certificate passed (longest 65 tokens)" for name in ("softmax", "hale")]

    def test_a_table_for_each_pass(self, longwave, trusted):
        more = ("--set", "hale.window=4", "--passes", "forward,decode")
        code, out, _ = longwave("benchmark", "mixers", "--mixers", "hale", *TINY, *more)
        assert code == 0
        for word in ("forward", "decode", "tokens/s", "ratio", "peak MiB", "state KiB", "commit", "hale"):
            assert word in out

    def test_ops_and_breakdown_have_theirs(self, longwave, trusted):
        code, out, _ = longwave("benchmark", "ops", *TINY, "--set", "offset_attention.window=4")
        assert code == 0
        assert "offset_attention" in out
        code, out, _ = longwave("benchmark", "mixers", "--mixers", "softmax", "--breakdown", *TINY)
        assert code == 0
        for word in ("fused attention", "q_proj", "rest", "Gflop/s"):
            assert word in out

    def test_a_red_certificate_ends_with_code_1(self, longwave):
        broken = "tests.verification.gallery:LengthScaled"
        code, out, err = longwave("benchmark", "decode", "--mixers", broken, *TINY)
        assert code == 1
        assert f"{broken}: NOT TIMED, its certificate is red: P2" in err
        assert "softmax" in out
        assert broken not in out


class TestList:
    def test_backends_are_listed_if_asked_for(self, longwave):
        from longwave.ops import describe_backends

        code, out, _ = longwave("list", "--backends", "--json")
        assert code == 0
        assert json.loads(out)["backends"] == describe_backends()
        assert "backends" not in json.loads(longwave("list", "--json")[1])

    def test_as_a_table(self, longwave, monkeypatch):
        described = [{"op": "some_op", "backends": "naive, torch", "auto": "torch", "why": "it is"}]
        monkeypatch.setattr("longwave.ops.describe_backends", lambda: described)
        assert "some_op" in longwave("list", "--backends")[1]
        assert "some_op" not in longwave("list")[1]
