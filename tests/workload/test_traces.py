"""Readers of published traces, on tiny files in their formats."""

import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserve.errors import ConfigError, FileFormatError
from jaxserve.workload import fit, read_azure_2019, read_azure_2021, read_azure_llm
from jaxserve.workload.dealing import Deal, deal_functions

MINUTES = ",".join(str(minute) for minute in range(1, 1441))
HEADER_2019 = f"HashOwner,HashApp,HashFunction,Trigger,{MINUTES}"
HEADER_2021 = "app,func,end_timestamp,duration"
HEADER_LLM = "TIMESTAMP,ContextTokens,GeneratedTokens"


def write(path: Path, lines: Sequence[str], *, end: str = "\n") -> Path:
    path.write_bytes(end.join(lines).encode())
    return path


def day(path: Path, rows: Sequence[tuple[str, dict[int, int]]]) -> Path:
    """A file of 2019: (function, minute from 1 -> count)."""
    lines = [
        ",".join(["owner", "app", function, "timer", *(str(counts.get(minute, 0)) for minute in range(1, 1441))])
        for function, counts in rows
    ]
    return write(path, [HEADER_2019, *lines])


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=50), st.integers(1, 5), st.sampled_from(("stripe", "round_robin"))
)
def test_functions_are_dealt_in_their_order(function: list[int], models: int, deal: Deal) -> None:
    used = sorted(set(function))
    if len(used) < models:
        with pytest.raises(ConfigError, match=f"{len(used)} functions with arrivals are dealt to {models} models"):
            deal_functions(np.array(function, np.int32), models=models, deal=deal)
        return
    ranks = [used.index(each) for each in function]
    expected = [rank % models if deal == "stripe" else models * rank // len(used) for rank in ranks]
    assert deal_functions(np.array(function, np.int32), models=models, deal=deal).tolist() == expected


def test_2019_counts_calls_of_models_in_windows(tmp_path: Path) -> None:
    first = day(tmp_path / "d01.csv", [("f", {1: 5, 2: 1, 1440: 7}), ("never", {}), ("g", {3: 4}), ("f", {2: 10})])
    second = day(tmp_path / "d02.csv", [("h", {1: 2}), ("g", {1: 1})])
    trace = read_azure_2019([first, second], strict=True)
    assert trace.functions == ("app/f", "app/never", "app/g", "app/h")
    assert trace.duration_s == 2 * 86_400
    assert trace.count.sum() == 30
    fitted = trace.fitted(model_names=("a", "b"), slo_s=(1.0, 2.0), window_s=120.0)
    counts = fitted.rate * 120
    assert counts.shape == (1440, 2)
    found = {(int(window), int(model)): counts[window, model] for window, model in np.argwhere(counts)}
    expected = {(0, 0): 16, (1, 1): 4, (719, 0): 7, (720, 0): 2, (720, 1): 1}  # f and h go to a, g goes to b
    assert found == pytest.approx(expected)
    assert (fitted.cv == 1).all()
    drawn = fitted.sample(np.random.default_rng(0), rate_scale=200.0, cv_scale=2.0)
    assert len(drawn) == pytest.approx(30 * 200, rel=0.15)
    assert set(drawn.slo_s[drawn.model == 1]) == {2.0}
    blocks = trace.fitted(model_names=("a", "b"), slo_s=1.0, window_s=2 * 86_400, deal="round_robin")
    np.testing.assert_allclose(blocks.rate * 2 * 86_400, [[28, 2]])  # f and g go to a, h goes to b


def test_2019_ranges_of_time(tmp_path: Path) -> None:
    first = day(tmp_path / "d01.csv", [("f", {1: 5, 1440: 7}), ("g", {2: 1})])
    second = day(tmp_path / "d02.csv", [("f", {1: 2, 2: 3})])
    trace = read_azure_2019([first, second], start_s=86_340.0, end_s=86_460.0)
    assert (trace.function.tolist(), trace.minute.tolist(), trace.count.tolist()) == ([0, 0], [0, 1], [7, 2])
    assert trace.duration_s == 120
    with pytest.raises(ConfigError, match="1 functions with arrivals are dealt to 2 models"):
        trace.fitted(model_names=("a", "b"), slo_s=1.0)
    with pytest.raises(ConfigError, match=r"window_s is 90.0, but calls are counted per minute; give a multiple of 60"):
        trace.fitted(model_names=("a",), slo_s=1.0, window_s=90.0)
    for start_s, end_s in ((30.0, None), (0.0, 3 * 86_400.0), (120.0, 60.0)):
        with pytest.raises(ConfigError, match=f"from {start_s} s"):
            read_azure_2019([first, second], start_s=start_s, end_s=end_s)
    with pytest.raises(ConfigError, match="no files were given"):
        read_azure_2019([])


def test_2021_arrivals_are_ends_less_durations(tmp_path: Path) -> None:
    rows = ["a,f,10.5,0.5", "a,g,11.0,3.0", "b,f,30.0,1.0", "a,f,9.5,0.5", "a,g,2.0,3.0", ""]
    path = write(tmp_path / "trace.txt", [HEADER_2021, *rows])
    trace = read_azure_2021(path, strict=True)
    assert trace.functions == ("a/f", "a/g", "b/f")
    np.testing.assert_allclose(trace.arrival_s, [8.0, 9.0, 10.0, 29.0])  # the last row began before the trace did
    assert trace.function.tolist() == [1, 0, 0, 2]
    workload = trace.workload(model_names=("x", "y"), slo_s=(1.0, 2.0))
    assert workload.model.tolist() == [1, 0, 0, 0]
    assert workload.slo_s.tolist() == [2.0, 1.0, 1.0, 1.0]
    assert trace.workload(model_names=("x", "y"), slo_s=1.0, deal="round_robin").model.tolist() == [0, 0, 0, 1]
    later = read_azure_2021(path, start_s=9.0, end_s=10.0)
    np.testing.assert_allclose(later.arrival_s, [0.0])
    assert later.skipped.count == 0
    with pytest.raises(ConfigError, match=r"slo_s has shape \(3,\), but there are 2 models"):
        trace.workload(model_names=("x", "y"), slo_s=(1.0, 2.0, 3.0))
    with pytest.raises(ConfigError, match="deal is 'random', but must be one of"):
        trace.workload(model_names=("x", "y"), slo_s=1.0, deal="random")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"from 2.0 s to 1.0 s"):
        read_azure_2021(path, start_s=2.0, end_s=1.0)


def test_2021_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """Besides the arrays (12 bytes a call, twice while they are sorted) nothing that grows with the file is kept."""
    calls = 200_000
    rng = np.random.default_rng(0)
    app = "7b2c43a2bc30f6bb438074df88b603d2cb982d3e7961de05270735055950a568"
    ends, functions = np.sort(rng.random(calls) * 1e6).tolist(), rng.integers(400, size=calls).tolist()
    path = tmp_path / "trace.txt"
    with open(path, "w") as file:
        file.write(f"{HEADER_2021}\n")
        file.writelines(f"{app},{app}{f},{end},0.078\n" for f, end in zip(functions, ends, strict=True))
    tracemalloc.start()
    try:
        trace = read_azure_2021(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(trace.arrival_s) >= calls - 1
    assert len(trace.functions) == 400
    assert path.stat().st_size > 30e6
    assert peak_bytes < 48 * calls + 1e6
    fitted = fit(trace.workload(model_names=[f"m{i}" for i in range(8)], slo_s=1.0), window_s=5400.0)
    assert len(fitted.sample(rng)) == pytest.approx(calls, rel=0.05)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_llm_requests_of_several_files_share_a_clock(tmp_path: Path, end: str) -> None:
    code = ["2023-11-16 18:17:03.9799600,4808,10", "2023-11-16 18:17:04.0319600,3180,8"]
    conv = ["2023-11-16 18:17:02.9799599,374,44", "2024-01-01 00:00:00+00:00,1,2"]
    paths = {
        "code": write(tmp_path / "code.csv", [HEADER_LLM, *code], end=end),
        "conv": write(tmp_path / "conv.csv", [HEADER_LLM, *conv], end=end),
    }
    trace = read_azure_llm(paths, end_s=3600.0, strict=True)
    np.testing.assert_allclose(trace.arrival_s, [0.0, 1.0000001, 1.0520001], rtol=0, atol=1e-12)
    assert trace.model.tolist() == [1, 0, 0]
    assert trace.context_tokens.tolist() == [374, 4808, 3180]
    assert trace.generated_tokens.tolist() == [44, 10, 8]
    workload = trace.workload(slo_s=(1.0, 2.0))
    assert workload.model_names == ("code", "conv")
    assert workload.slo_s.tolist() == [2.0, 1.0, 1.0]
    assert len(read_azure_llm(paths, start_s=1.0, end_s=1.02).arrival_s) == 1


ROW_2019 = "o,a,f,timer," + ",".join(["0"] * 1440)
READERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "2019": (HEADER_2019, lambda path, **options: read_azure_2019([path], **options)),
    "2021": (HEADER_2021, read_azure_2021),
    "llm": (HEADER_LLM, lambda path, **options: read_azure_llm({"m": path}, **options)),
}


@pytest.mark.parametrize(
    ("reader", "row", "problem"),
    [
        ("2019", "o,a,f,timer,1,2", "has 6 columns, but must have 1444"),
        ("2019", ROW_2019[:-1] + "x", "has a count that is no whole number"),
        ("2019", ROW_2019[:-1] + "nan", "has a count that is no whole number"),
        ("2019", ROW_2019[:-1] + "-3", "has a count of -3 in minute 1440"),
        ("2019", ROW_2019[:-1] + "9" * 12, "has a count of 999999999999 in minute 1440"),
        ("2019", ROW_2019[:-1] + "9" * 30, "has a count that is no whole number"),
        ("2021", "a,f,1.0", "has 3 columns, but must have 4"),
        ("2021", "a,f,soon,1.0", "has end_timestamp 'soon' and duration '1.0', but both must be numbers"),
        ("2021", "a,f,1.0,-1.0", "has end_timestamp 1.0 and duration -1.0, but they must be finite, from 0 s"),
        ("2021", "a,f,nan,1.0", "has end_timestamp nan"),
        ("2021", "a,f,inf,1.0", "has end_timestamp inf"),
        ("llm", "2023-11-16 18:17:03,1", "has 2 columns, but must have 3"),
        ("llm", "yesterday,1,2", "has TIMESTAMP 'yesterday', which is not like 2023-11-16"),
        ("llm", "2023-13-16 18:17:03,1,2", "has TIMESTAMP '2023-13-16 18:17:03'"),
        ("llm", "2023-11-16 18:17:03,-1,2", "has tokens '-1' and '2', which are no counts"),
        ("llm", "2023-11-16 18:17:03,1,nan", "has tokens '1' and 'nan'"),
    ],
)
def test_broken_rows_are_counted_or_refused(tmp_path: Path, reader: str, row: str, problem: str) -> None:
    header, read = READERS[reader]
    path = write(tmp_path / "trace", [header, "", row, *[row] * 9, ""])
    skipped = read(path).skipped
    assert skipped.count == 10
    assert len(skipped.first) == 5
    assert skipped.first[0].startswith(f"{path}: line 3 {problem}")
    assert skipped.first[1].startswith(f"{path}: line 4 ")
    with pytest.raises(
        FileFormatError, match=r"line 3 has .*; mend it, or read the file without strict=True"
    ) as raised:
        read(path, strict=True)
    assert f"{path}: line 3 {problem}" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("reader", "expected"),
    [
        ("2019", "HashOwner,HashApp,HashFunction,Trigger,1,2,...,1440"),
        ("2021", HEADER_2021),
        ("llm", HEADER_LLM),
    ],
)
def test_other_files_are_refused_with_the_header_that_is_needed(tmp_path: Path, reader: str, expected: str) -> None:
    _, read = READERS[reader]
    for content, shown in ((b"", "''"), (b"a,b\n1,2\n", "'a,b'"), (b"\xff\xfe\x00" * 100_000, "'")):
        path = tmp_path / "trace"
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=r"line 1 is .*give the file as it was published") as raised:
            read(path)
        assert f"line 1 is {shown}" in str(raised.value)
        assert f"but must be '{expected}'" in str(raised.value)
        assert len(str(raised.value)) < 1000
    for path, why in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(FileFormatError, match=why) as raised:
            read(path)
        assert expected in str(raised.value)


def test_a_byte_order_mark_is_no_header(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(b"\xef\xbb\xbf" + f"{HEADER_2021}\r\na,f,2.0,1.0\r\n".encode())
    assert read_azure_2021(path, strict=True).arrival_s.tolist() == [1.0]
