from __future__ import annotations

import json
from statistics import median

import pytest
import torch

from longwave.benchmarks import Watch, certificates, mixers, run_benchmark
from longwave.ops import BackendUnavailable, _dispatch

KEYS = {
    "mixer", "num_tokens", "pass", "dtype", "seconds", "softmax_seconds", "softmax_floor_seconds", "ratio",
    "peak_bytes", "state_bytes", "batch_size", "hidden_size", "num_heads", "backend", "arguments", "repeats",
}  # fmt: skip


class TestRows:
    def test_of_every_mixer_pass_and_length_with_exactly_these_keys(self, tiny, trusted):
        settings = tiny(overrides=[("hale.window", 5)], passes="forward,forward_backward,decode")
        document = json.loads(json.dumps(run_benchmark(settings).as_dict()))
        assert set(document) == {"machine", "commit", "certificates", "rows", "failures", "exponents"}
        assert set(document["machine"]) == {"cpu", "cores", "threads", "torch", "python", "device"}
        assert document["commit"]
        assert [(row["pass"], row["num_tokens"], row["mixer"]) for row in document["rows"]] == [
            (kind, length, mixer)
            for kind in ("forward", "forward_backward", "decode")
            for length in (24, 40)
            for mixer in ("softmax", "hale")
        ]
        for row in document["rows"]:
            assert set(row) == KEYS
            assert row["repeats"] == 2
            assert row["arguments"] == ({"window": 5} if row["mixer"] == "hale" else {})
            assert row["peak_bytes"] > 0

    def test_the_ratio_is_softmax_over_the_mixer_of_the_same_rounds(self, tiny, trusted, monkeypatch):
        times = {"softmax": [3.0, 5.0, 4.0], "hale": [2.0, 1.0, 9.0], mixers.FLOOR: [1.0, 2.0, 3.0]}
        given = []

        def interleave(measures, repeats):
            given.append(list(measures))
            return times

        monkeypatch.setattr(mixers, "interleave", interleave)
        softmax, hale = run_benchmark(tiny(lengths="24", passes="forward")).rows
        assert given == [["softmax", "hale", mixers.FLOOR]]
        assert (softmax.seconds, softmax.ratio) == (median(times["softmax"]), 1.0)
        assert (hale.seconds, hale.softmax_seconds, hale.softmax_floor_seconds, hale.ratio) == (2.0, 4.0, 2.0, 2.0)
        assert (hale.repeats, softmax.repeats) == (3, 3)

    def test_the_state_is_what_the_mixer_declares_or_in_decoding_holds(self, tiny, trusted):
        rows = run_benchmark(tiny(lengths="24", passes="forward,decode", batch_size=3)).rows
        for row in rows:
            size = {"softmax": 4 * 2 * 32 * 16 + 8, "hale": None}[row.mixer]
            if size is not None:
                assert row.state_bytes == 3 * size
        assert rows[1].state_bytes == rows[3].state_bytes

    def test_softmax_is_there_once_and_first_whoever_asked_for_it(self, tiny, trusted):
        rows = run_benchmark(tiny(mixers="hale,softmax", lengths="24", passes="forward")).rows
        assert [row.mixer for row in rows] == ["softmax", "hale"]

    @pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
    def test_in_other_precisions(self, tiny, trusted, dtype):
        assert {row.dtype for row in run_benchmark(tiny(dtype=dtype, lengths="24")).rows} == {dtype}

    def test_exponents_are_fitted_to_three_lengths_or_more(self, tiny, trusted):
        assert run_benchmark(tiny()).exponents() == []
        (softmax, hale) = run_benchmark(tiny(lengths="32,64,128", passes="forward")).exponents()
        assert (softmax["mixer"], hale["mixer"], hale["pass"]) == ("softmax", "hale", "forward")
        assert softmax["peak_bytes"] == pytest.approx(1.0, abs=0.1)


class TestFailures:
    """Contestants that stop with an error where their certificate did not see it."""

    def test_of_a_mixer_leave_the_others_in_the_race(self, tiny, trusted):
        label, said = f"{__name__}:Raising", []
        report = run_benchmark(tiny(mixers=f"{label},hale", lengths="24", passes="forward"), Watch(say=said.append))
        assert [row.mixer for row in report.rows] == ["softmax", "hale"]
        assert said[-1] == f"{label}: NOT TIMED, forward of 24 tokens in float32: RuntimeError: out of order"
        assert not report.passed
        (failure,) = report.as_dict()["failures"]
        assert failure == {"mixer": label, "num_tokens": 24, "pass": "forward", "reason": "RuntimeError: out of order"}

    def test_of_softmax_leave_nothing_to_compare_with(self, tiny, trusted, monkeypatch):
        def exhausted(contestant, kind, num_tokens, enter=mixers._enter):
            if num_tokens > 24 and contestant.label == "softmax":
                raise MemoryError("can't allocate")
            return enter(contestant, kind, num_tokens)

        monkeypatch.setattr(mixers, "_enter", exhausted)
        report = run_benchmark(tiny(passes="forward"))
        assert {row.num_tokens for row in report.rows} == {24}
        assert [failure.reason for failure in report.failures] == ["MemoryError: can't allocate"]


class TestCertificates:
    def test_a_red_one_is_not_timed(self, tiny):
        said = []
        settings = tiny(mixers="tests.verification.gallery:LengthScaled", lengths="24", passes="forward")
        report = run_benchmark(settings, Watch(say=said.append))
        assert not report.passed
        assert [row.mixer for row in report.rows] == ["softmax"]
        assert report.certificates["softmax"] == "passed"
        assert report.certificates["tests.verification.gallery:LengthScaled"].startswith("failed: P2")
        assert "gallery:LengthScaled: NOT TIMED, its certificate is red: P2 length independence" in said[-1]

    def test_nothing_is_timed_beside_a_red_softmax(self, tiny, monkeypatch):
        red = certificates.Certificate("softmax", (_line("P3", certificates.Verdict.FAIL),))
        monkeypatch.setattr(certificates, "certify", lambda subject, longest: red)
        report = run_benchmark(tiny())
        assert (report.rows, report.certificates, report.passed) == ([], {"softmax": "failed: P3"}, False)

    def test_a_declared_failure_is_timed_and_marked(self, tiny, monkeypatch):
        declared = certificates.Certificate("x", (_line("P3", certificates.Verdict.DECLARED_FAIL),))
        monkeypatch.setattr(certificates, "certify", lambda subject, longest: declared)
        said = []
        report = run_benchmark(tiny(lengths="24", passes="forward"), Watch(say=said.append))
        assert report.passed
        assert report.certificates["hale"] == "declared: P3"
        assert [row.mixer for row in report.rows] == ["softmax", "hale"]
        assert said[-1] == "hale: certificate passed but for the declared P3 (longest 65 tokens)"

    def test_is_of_the_same_arguments_heads_and_backend(self, tiny, monkeypatch):
        held = []

        def certify(subject, longest):
            from longwave.ops import _dispatch

            held.append((subject.mixer.window, subject.mixer.num_heads, _dispatch._preferred))
            return certificates.Certificate(subject.name, ())

        monkeypatch.setattr(certificates, "certify", certify)
        settings = tiny(overrides=[("hale.window", 5)], backend="torch", lengths="24", passes="forward")
        run_benchmark(settings)
        assert held == [(None, 2, "torch"), (5, 2, "torch")]

    def test_a_mixer_that_raises_is_named_by_its_certificate(self, tiny):
        report = run_benchmark(tiny(mixers=f"{__name__}:Raising", lengths="24", passes="forward"))
        assert report.certificates[f"{__name__}:Raising"].startswith("failed: P1")


def test_a_backend_that_an_op_lacks_is_refused_before_anything_runs(tiny, trusted):
    said = []
    with pytest.raises(BackendUnavailable, match="has no backend 'triton'"):
        run_benchmark(tiny(backend="triton"), Watch(say=said.append))
    assert not said


def test_certificates_are_of_the_forms_that_long_sequences_take(tiny, monkeypatch):
    taken = []

    def look(subject, *, longest):
        forms = ("naive", "torch", torch.randn(1, 1, 2, 4))
        taken.append(_dispatch.select_form("linear_attention", "auto", *forms))
        return certificates.Certificate(subject.name, ())

    monkeypatch.setattr(certificates, "certify", look)
    run_benchmark(tiny(mixers="softmax", lengths="24", passes="forward"))
    assert taken[0] is _dispatch._fast_forms["numba", "linear_attention"].function


def _line(key, verdict):
    from longwave.verification.certificate import Line

    return Line(key, "split law", verdict, 1.0, 1e-10, "N=3", 0.1)


def _raising():
    from tests.toys import CumulativeMean

    class Raising(CumulativeMean):
        """Breaks down on long pieces."""

        def forward(self, x, state=None, *, starts=None, return_state=False):
            if x.shape[1] > 20:
                raise RuntimeError("out of order")
            return super().forward(x, state, starts=starts, return_state=return_state)

    return Raising


Raising = _raising()
