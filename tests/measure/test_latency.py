"""Latency: whose turn it is, when the clock starts, what the intervals hold; then real sessions of small models."""

import json
import sys
from collections import Counter
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune.measure.host as host
from onnxprune.errors import GraphError, ProviderError, UsageError
from onnxprune.graph.sessions import open_session, ort_dtype, provider_name
from onnxprune.measure import QUICK, Rounds, bench_feeds, doubts, machine, measure_latency, profile
from onnxprune.measure.nodes import node_times
from onnxprune.measure.stats import median_interval, thin
from onnxprune.measure.timing import interleave, warm_up
from onnxprune.report import Latency, LatencyTable
from onnxprune.studies.bench import run_bench

SHORT = Rounds(runs=12, min_seconds=0.0, max_seconds=1.0)
MODEL = """<ir_version: 8, opset_import: ["" : 17]>
g (float[{batch}, 3, {side}, {side}] x) => (float[{batch}, {units}, {side}, {side}] y)
<float[{units}, 3, 3, 3] w>
{{ c = Conv <pads = [1, 1, 1, 1]> (x, w) y = Relu(c) }}"""


def make(units=8, batch="N", side="16"):
    model = onnx.parser.parse_model(MODEL.format(units=units, batch=batch, side=side))
    values = np.random.default_rng(units).standard_normal((units, 3, 3, 3)).astype(np.float32)
    del model.graph.initializer[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(values, "w"))
    return model


def loads(provider):
    try:
        open_session(make(), provider=provider)
    except ProviderError:
        return False
    return True


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "wide.onnx", tmp_path / "narrow.onnx"]
    for path, units in zip(paths, (64, 8), strict=True):
        onnx.save(make(units), path)
    return paths


class FakeTime:
    """A clock that only moves when a model runs."""

    def __init__(self):
        self.now_ns = 0
        self.log = []

    def __call__(self):
        return self.now_ns

    def model(self, name, durations_ms):
        durations = iter(durations_ms)

        def call():
            self.log.append(name)
            self.now_ns += int(1e6 * next(durations))

        return call


def test_interleaving_gives_every_model_one_turn_a_round():
    clock = FakeTime()
    calls = {name: clock.model(name, cycle([ms])) for name, ms in (("a", 4.0), ("b", 1.0), ("c", 2.0))}
    times = interleave(calls, Rounds(runs=40, min_seconds=0), np.random.default_rng(0), clock)
    assert {name: (len(v), v.min(), v.max()) for name, v in times.items()} == {
        "a": (40, 4.0, 4.0),
        "b": (40, 1.0, 1.0),
        "c": (40, 2.0, 2.0),
    }
    turns = clock.log[::2]
    assert turns == clock.log[1::2], "a turn is one untimed run and one timed run of the same model"
    rounds = [tuple(turns[k : k + 3]) for k in range(0, len(turns), 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 3, "the order within a round is random"
    assert max(Counter(r[0] for r in rounds).values()) < 30


def test_a_drift_of_the_clock_cancels_in_the_pairs():
    clock = FakeTime()
    slower = 1 + np.arange(1000) / 200
    calls = {"a": clock.model("a", 2.0 * slower), "b": clock.model("b", 1.0 * slower)}
    times = interleave(calls, Rounds(runs=200, min_seconds=0), np.random.default_rng(0), clock)
    np.testing.assert_allclose(times["b"] / times["a"], 0.5, rtol=1e-6)


def test_the_untimed_run_is_saved_where_runs_are_long():
    clock = FakeTime()
    interleave({"a": clock.model("a", cycle([50.0]))}, Rounds(runs=10, min_seconds=0), np.random.default_rng(0), clock)
    assert len(clock.log) == 11


@pytest.mark.parametrize(
    ("plan", "run_ms", "rounds"),
    [
        (Rounds(runs=10, min_seconds=0), 1.0, 10),
        (Rounds(runs=10, min_seconds=0.1), 1.0, 50),  # an untimed run and a timed one in each
        (Rounds(runs=100, min_seconds=0, max_seconds=1), 500.0, 5),  # too slow, yet never fewer than `least`
        (Rounds(runs=10, min_seconds=1e9, max_seconds=1e9, most=77), 1.0, 77),
    ],
)
def test_when_to_stop(plan, run_ms, rounds):
    clock = FakeTime()
    times = interleave({"a": clock.model("a", cycle([run_ms]))}, plan, np.random.default_rng(0), clock)
    assert len(times["a"]) == rounds


def test_warm_up_waits_until_the_times_have_settled():
    clock = FakeTime()
    falling = [10.0 * 0.8**k for k in range(20)]
    done = warm_up(clock.model("a", [*falling, *([1.0] * 1000)]), clock)
    assert done.stable
    assert 20 < done.runs <= 50
    assert warm_up(clock.model("b", [1.0] * 1000), clock).runs == 20


def test_warm_up_says_when_it_gave_up():
    clock = FakeTime()
    growing = warm_up(clock.model("a", 1.1 ** np.arange(60)), clock, max_runs=50)
    assert (growing.runs, growing.stable) == (50, False)
    slow = warm_up(clock.model("b", [2000.0] * 50), clock, max_seconds=5)
    assert (slow.runs, slow.stable) == (3, False)


def test_the_median_interval_holds_the_truth_for_independent_values():
    rng = np.random.default_rng(1)
    held = [low <= 1.0 <= high for low, high in (median_interval(rng.normal(1, 0.1, 80), k, 200) for k in range(150))]
    assert 0.88 <= np.mean(held) <= 1.0


def test_bursts_of_noise_widen_the_interval():
    rng = np.random.default_rng(0)
    quiet = rng.normal(1, 0.05, 400)
    burst = 1 + 0.05 * np.convolve(rng.standard_normal(420), np.ones(21) / 21**0.5, "valid")
    widths = [np.diff(median_interval(values))[0] for values in (quiet, burst)]
    assert widths[1] > 1.5 * widths[0]


def test_constant_times_have_a_point_for_an_interval():
    assert median_interval(np.full(10, 3.0)) == (3.0, 3.0)


def test_thinning_keeps_the_ends():
    assert thin(np.arange(5.0)) == (0, 1, 2, 3, 4)
    kept = thin(np.arange(1000.0), 10)
    assert (len(kept), kept[0], kept[-1]) == (10, 0.0, 999.0)


def test_measure_latency_of_a_model_against_a_smaller_one(files):
    table = measure_latency(
        dict(zip(("wide", "narrow"), files, strict=True)), threads=1, batch=4, rounds=SHORT, sessions=2
    )
    wide, narrow = table.latencies["wide"], table.latencies["narrow"]
    assert (wide.provider, wide.threads, wide.batch, wide.runs) == ("CPUExecutionProvider", 1, 4, 12)
    for entry in (wide, narrow):
        assert 0 < entry.min_ms <= entry.q1_ms <= entry.median_ms <= entry.q3_ms <= entry.p90_ms <= entry.p99_ms
        assert entry.throughput == pytest.approx(4 / entry.median_ms * 1e3)
        assert entry.load_ms > 0
        assert entry.warmup_runs >= 6
        assert len(entry.samples_ms) == 12
    (pair,) = table.ratios
    assert (pair.model, pair.pairs) == ("narrow", 12)
    assert pair.interval95[0] <= pair.median <= pair.interval95[1] < 1


def test_a_busy_machine_and_an_unsettled_warm_up_are_told():
    quiet = Latency("CPUExecutionProvider", 1, 1, 100, 1.05, 1.0, 1.1, min_ms=1.0, stable=True)
    busy = replace(quiet, median_ms=3.2, stable=False)
    assert doubts(LatencyTable({"a": quiet}, ())) == []
    unsettled, loaded = doubts(LatencyTable({"a": quiet, "b": busy}, ()))
    assert unsettled == "b on CPUExecutionProvider, batch 1: times had not settled when the warm-up ended"
    assert "over 3.2 times the fastest" in loaded


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_peak_memory_grows_with_the_model():
    small, large = make(8, 1, "16"), make(8, 1, "512")
    table = measure_latency({"small": small, "large": large}, threads=1, rounds=SHORT, sessions=1)
    peaks = [entry.peak_memory_bytes for entry in table.latencies.values()]
    assert None not in peaks
    assert peaks[1] - peaks[0] > 512 * 512 * 11 * 4 / 2


def test_models_in_memory_own_feeds_and_float16():
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    options = {"threads": 1, "rounds": SHORT, "sessions": 1, "memory": False}
    table = measure_latency({"a": make()}, {"x": x}, batch=2, fp16=True, **options)
    assert table.latencies["a"].precision == "float16"
    assert table.latencies["a"].peak_memory_bytes is None
    asked = []

    def feeds_for(session, batch):
        asked.append(batch)
        return {"x": x}

    measure_latency({"a": make()}, feeds_for, batch=2, **options)
    assert asked == [2]


@pytest.mark.parametrize("provider", ["cuda", "CUDAExecutionProvider", "tensorrt"])
def test_a_provider_that_does_not_load_is_never_a_cpu_number(provider):
    if loads(provider):
        pytest.skip(f"{provider} loads here")
    with pytest.raises(ProviderError, match=f"{provider_name(provider)} did not load: .*onnxruntime-gpu"):
        open_session(make(), provider=provider)
    with pytest.raises(ProviderError):
        measure_latency({"a": make()}, provider=provider, rounds=SHORT)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"cuda_graph": True}, {"prefer_nhwc": True}, {"fp16": True}])
def test_cuda_latency(options):
    if not loads("cuda"):
        pytest.skip("CUDA does not load here")
    table = measure_latency({"wide": make(64), "narrow": make(8)}, provider="cuda", batch=4, rounds=SHORT, **options)
    assert table.latencies["wide"].provider == "CUDAExecutionProvider"
    assert table.latencies["wide"].peak_memory_bytes is None
    assert 0 < table.latencies["wide"].median_ms < 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cuda_graph": True}, "CUDA graphs need the provider cuda"),
        ({"prefer_nhwc": True}, "prefer_nhwc is an option of the provider cuda"),
        ({"sparsity": True}, "sparsity is an option of the provider tensorrt"),
        ({"batch": 0}, "batch 0"),
        ({"threads": -1}, "threads -1"),
    ],
)
def test_settings_that_no_provider_has(options, message):
    with pytest.raises(UsageError, match=message):
        measure_latency({"a": make()}, **options)


def test_an_unknown_provider_is_named():
    with pytest.raises(ProviderError, match="Nonsense did not load"):
        measure_latency({"a": make()}, provider="Nonsense")


def test_feeds_find_a_size_that_runs():
    shaped = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, H, W] x) => (float[N, 5] y)
    <float[150528, 5] w, int64[2] s = {0, -1}> { f = Flatten(x) y = MatMul(f, w) }"""
    model = onnx.parser.parse_model(shaped)
    del model.graph.initializer[:]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((150528, 5), np.float32), "w"))
    session = open_session(model, threads=1)
    assert bench_feeds(session, 2)["x"].shape == (2, 3, 224, 224)
    with pytest.raises(GraphError, match="no typical size"):
        bench_feeds(session, 2, sizes={"H": 7})
    free = open_session(make(side="S"), threads=1)
    assert bench_feeds(free, 3, sizes={"S": 20})["x"].shape == (3, 3, 20, 20)


def test_a_fixed_batch_is_the_only_one_that_can_be_timed():
    with pytest.raises(UsageError, match="fixed to batch 2, so batch 5"):
        measure_latency({"a": make(batch=2)}, batch=5)


def test_profile_names_the_nodes_that_take_the_time():
    nodes = profile(make(64), threads=1, runs=5, warmup=2)
    assert "Conv" in nodes[0].op
    assert [n.microseconds for n in nodes] == sorted((n.microseconds for n in nodes), reverse=True)
    assert nodes[0].microseconds > 0


def test_node_times_take_the_median_of_runs_and_the_sum_within_one():
    def event(name, dur, op="Conv"):
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": dur, "args": {"op_name": op, "provider": "CPU"}}

    trace = [{"cat": "Session", "name": "model_run", "dur": 1}]
    for first, inner in ((900, 50), (10, 1), (30, 2), (20, 3)):
        trace += [event("a", first), event("body", inner, "Add"), event("body", inner, "Add")]
    a, body = node_times(trace, runs=4, warmup=1)
    assert (a.node, a.op, a.microseconds) == ("a", "Conv", 20.0)
    assert (body.node, body.microseconds) == ("body", 4.0)


@pytest.mark.parametrize(
    ("ort_type", "name"),
    [
        ("float", "float32"),
        ("double", "float64"),
        ("float16", "float16"),
        ("bfloat16", "bfloat16"),
        ("int64", "int64"),
        ("bool", "bool"),
        ("float8e4m3fn", "float8_e4m3fn"),
        ("string", "object"),
    ],
)
def test_dtypes_of_onnxruntime(ort_type, name):
    assert ort_dtype(f"tensor({ort_type})").name == name


def test_machine_is_json_and_does_not_import_torch():
    found = json.loads(json.dumps(machine()))
    assert found["cores"] >= 1
    assert {"onnx", "numpy"} <= found["versions"].keys()
    assert found["cpu"]


def test_gpus_are_read_from_nvidia_smi(tmp_path, monkeypatch):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'NVIDIA H200, 570.1, 345, 3201, 1980, 143771'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (gpu,) = host.gpus()
    assert (gpu["name"], gpu["driver"], gpu["sm_clock_mhz"], gpu["max_sm_clock_mhz"]) == (
        "NVIDIA H200",
        "570.1",
        345,
        1980,
    )
    fake.write_text("#!/bin/sh\nexit 9\n")
    assert host.gpus() == []
    monkeypatch.setenv("PATH", "")
    assert host.gpus() == []


def test_a_quota_limits_the_threads(monkeypatch):
    monkeypatch.setattr(host, "_read", lambda path: "150000 100000\n" if "cgroup" in path else "")
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert host.default_threads() == 2
    monkeypatch.setattr(host, "_read", lambda path: "max 100000\n" if "cgroup" in path else "")
    assert host.default_threads() == 8


def test_two_logical_cpus_of_one_core_are_one_thread(monkeypatch):
    blocks = [f"processor\t: {k}\nphysical id\t: 0\ncore id\t\t: {k // 2}\n" for k in range(4)]
    monkeypatch.setattr(host, "_read", lambda path: "\n".join(blocks) if "cpuinfo" in path else "")
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    assert host.default_threads() == 2


def test_run_bench_measures_every_combination_against_the_first(files, tmp_path):
    reports = [tmp_path / "r.json", tmp_path / "r.md", tmp_path / "r.html"]
    options = {"rounds": SHORT, "sessions": 1, "memory": False}
    report = run_bench(files, batches=[1, 2], threads=[1], reports=reports, command="onnxprune bench", **options)
    wide, narrow = report.models
    assert (wide.name, narrow.name) == ("wide", "narrow")
    assert (wide.params, narrow.params) == (64 * 27, 8 * 27)
    assert (wide.macs, narrow.macs) == (64 * 27 * 256, 8 * 27 * 256)
    assert wide.bytes == files[0].stat().st_size
    assert [(e.batch, e.threads) for e in wide.latency] == [(1, 1), (2, 1)]
    assert [r.batch for r in report.latency_ratios] == [1, 2]
    assert [(p.model, p.batch) for p in report.profile] == [("wide", 1), ("narrow", 1), ("wide", 2), ("narrow", 2)]
    assert all(path.stat().st_size > 500 for path in reports)
    assert json.loads(reports[0].read_text())["ratios"]["params"] == pytest.approx(1 / 8)


def test_run_bench_checks_what_it_can_before_it_measures(files, tmp_path):
    with pytest.raises(UsageError, match=r"none of \.json"):
        run_bench(files, reports=[tmp_path / "r.pdf"])
    with pytest.raises(UsageError, match="at least one model"):
        run_bench([])
    with pytest.raises(GraphError, match="no such file"):
        run_bench([tmp_path / "absent.onnx"])


def test_run_bench_takes_the_batch_that_models_are_fixed_to_and_tells_equal_names_apart(tmp_path):
    (tmp_path / "other").mkdir()
    paths = [tmp_path / "m.onnx", tmp_path / "other" / "m.onnx"]
    for path in paths:
        onnx.save(make(8, batch=3), path)
    report = run_bench(paths, threads=[1], rounds=SHORT, sessions=1, memory=False, profiles=False)
    assert [m.name for m in report.models] == ["m", "m#2"]
    assert report.models[0].latency[0].batch == 3
    assert report.models[0].path == str(Path(paths[0]))


def test_the_quick_plan_is_quick():
    assert QUICK.max_seconds <= 5
    assert QUICK.enough(QUICK.least, QUICK.max_seconds)


def test_an_output_of_another_rank_than_declared_is_timed():
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1, N] x) => (float[1, M] y)
    <int64[3] shape = {1, -1, 1}> { y = Reshape (x, shape) }"""
    model = onnx.parser.parse_model(text)
    table = measure_latency({"odd": model}, {"x": np.ones((1, 4), np.float32)}, threads=1, rounds=SHORT, sessions=1)
    assert table.latencies["odd"].median_ms > 0


@pytest.mark.parametrize(
    ("given", "threads", "wanted"), [("3", None, 3), ("3", 5, 5), ("", None, 0), ("many", None, 0)]
)
def test_threads_that_nobody_asked_for_are_those_of_the_environment(monkeypatch, given, threads, wanted):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    session = open_session(make(), threads=threads)
    assert session.get_session_options().intra_op_num_threads == wanted
