"""Snapshots as the server sends them to the live page: small ones to change a value in, and believable minutes."""

import dataclasses
from typing import Any

import numpy as np

Json = dict[str, Any]


def model(name: str = "minilm", **changes: Any) -> Json:
    """A model that has served everything; `changes` replace its fields."""
    return {
        "name": name,
        "ready": True,
        "groups": [0],
        "requests": 0,
        "served": 0,
        "refused": {"late": 0, "cold": 0, "full": 0, "share": 0},
        "expired": 0,
        "failed": 0,
        "cancelled": 0,
        "invalid": 0,
        "batches": 0,
        "attainment": {"1m": None, "5m": None, "1h": None},
        "predicted_attainment": None,
        "latency_p50_s": None,
        "latency_p99_s": None,
        "predicted_latency_s": None,
        "deadline_s": None,
        "drift": None,
        "predicted_error_p50_s": None,
        **changes,
    }


def group(index: int = 0, *, stages: int = 1, **changes: Any) -> Json:
    """An idle group of stages on one device each; `changes` replace its fields."""
    return {
        "index": index,
        "healthy": True,
        "stuck": False,
        "intra_op": 1,
        "inter_op": stages,
        "devices": list(range(stages)),
        "queue": 0,
        "in_flight": 0,
        "requests": 0,
        "busy_s": [0.0] * stages,
        "running": [None] * stages,
        "models": ["minilm"],
        "predicted_utilization": None,
        **changes,
    }


def snapshot(
    uptime_s: float = 10.0,
    *,
    models: list[Json] | None = None,
    groups: list[Json] | None = None,
    plan: Json | None = None,
    **server: Any,
) -> Json:
    """A snapshot of a server that is well; `server` replaces fields of the server itself."""
    return {
        "server": {
            "name": "jaxserve",
            "version": "0.1.0",
            "uptime_s": uptime_s,
            "ready": True,
            "accepting": True,
            "in_flight": 0,
            "addresses": ["127.0.0.1:8500"],
            **server,
        },
        "models": [model()] if models is None else models,
        "groups": [group()] if groups is None else groups,
        "plan": plan,
    }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Traffic:
    """A model of the believable server: where it is, how often it is called, and what becomes of the calls."""

    groups: tuple[int, ...]
    per_second: float
    latency_s: float
    deadline_s: float
    predicted: float | None
    burst: float = 0.0
    late: float = 0.0
    cold: float = 0.0
    drift: float = 1.0


_TRAFFIC = {
    "bert-large": _Traffic(groups=(1, 2), per_second=38, latency_s=0.041, deadline_s=0.25, predicted=0.991, late=0.006),
    "gpt-125m": _Traffic(
        groups=(2,), per_second=21, latency_s=0.118, deadline_s=0.6, predicted=0.975, burst=2.2, late=0.16, drift=1.19
    ),
    "intent": _Traffic(groups=(0, 3), per_second=164, latency_s=0.0031, deadline_s=0.05, predicted=0.999),
    "minilm": _Traffic(groups=(0,), per_second=312, latency_s=0.0064, deadline_s=0.1, predicted=0.998, late=0.001),
    "moe-8x": _Traffic(groups=(2,), per_second=6, latency_s=0.34, deadline_s=1.5, predicted=0.962, late=0.03),
    "reranker": _Traffic(groups=(1,), per_second=57, latency_s=0.027, deadline_s=0.2, predicted=0.988, burst=0.8),
    "toxicity": _Traffic(groups=(3,), per_second=2.4, latency_s=0.0052, deadline_s=0.04, predicted=None, cold=0.22),
    "vit-b16": _Traffic(groups=(3,), per_second=44, latency_s=0.0139, deadline_s=0.15, predicted=0.994),
}
_GROUPS = ((1, 1, [0]), (1, 2, [1, 2]), (2, 2, [3, 4, 5, 6]), (1, 1, [7]))
_PREDICTED_UTILIZATION = (0.58, 0.66, 0.81, 0.42)


def believable(seconds: int, *, seed: int = 0) -> list[Json]:
    """One snapshot a second of a server with four groups, one of which meets a burst."""
    rng = np.random.default_rng(seed)
    start_s = 3 * 3600 + 721.0
    totals: dict[str, Json] = {
        name: {"requests": 0, "served": 0, "late": 0, "cold": 0, "expired": 0, "batches": 0} for name in _TRAFFIC
    }
    for name, traffic in _TRAFFIC.items():
        _advance(totals[name], traffic, traffic.per_second * start_s, traffic.late / 50, rng)
    load = np.full(len(_GROUPS), 0.5)
    busy = [[0.3 * start_s] * inter_op for _, inter_op, _ in _GROUPS]
    taken = [0] * len(_GROUPS)
    snapshots = []
    for second in range(seconds):
        swell = np.exp(-(((second - 0.94 * seconds) / (0.11 * seconds)) ** 2))
        for name, traffic in _TRAFFIC.items():
            offered = traffic.per_second * (1 + traffic.burst * swell) * rng.lognormal(0.0, 0.12)
            requests = _advance(totals[name], traffic, offered, traffic.late * swell, rng)
            for index in traffic.groups:
                taken[index] += requests // len(traffic.groups)
        groups = []
        for index, (intra_op, inter_op, devices) in enumerate(_GROUPS):
            target = min(_PREDICTED_UTILIZATION[index] * (0.93 + (0.42 * swell if index == 2 else 0.1 * swell)), 0.98)
            load[index] += 0.35 * (target - load[index]) + rng.normal(0.0, 0.025)
            here = [name for name, traffic in _TRAFFIC.items() if index in traffic.groups]
            shares = np.clip(load[index] * (1.0 - 0.07 * np.arange(inter_op)), 0.0, 0.99)
            busy[index] = [spent + float(share) for spent, share in zip(busy[index], shares, strict=True)]
            waiting = int(rng.poisson(max(load[index], 0.0) ** 4 * (9 if index == 2 else 2.5)))
            running = [here[int(rng.integers(len(here)))] if rng.random() < share else None for share in shares]
            groups.append(
                group(
                    index,
                    stages=inter_op,
                    intra_op=intra_op,
                    devices=devices,
                    queue=waiting,
                    in_flight=waiting + sum(one is not None for one in running),
                    requests=taken[index],
                    busy_s=list(busy[index]),
                    running=running,
                    models=here,
                    predicted_utilization=_PREDICTED_UTILIZATION[index],
                )
            )
        models = [_model(name, traffic, totals[name], float(swell)) for name, traffic in _TRAFFIC.items()]
        snapshots.append(
            snapshot(
                start_s + second,
                models=models,
                groups=groups,
                plan={"slo_attainment": 0.987, "policy": "search"},
                in_flight=sum(one["in_flight"] for one in groups),
                addresses=["127.0.0.1:8500", "127.0.0.1:8501", "127.0.0.1:8502"],
            )
        )
    return snapshots


def _advance(total: Json, traffic: _Traffic, offered: float, late: float, rng: np.random.Generator) -> int:
    requests = int(rng.poisson(offered))
    refused = int(rng.binomial(requests, min(late, 1.0)))
    cold = int(rng.binomial(requests - refused, traffic.cold))
    expired = int(rng.binomial(requests - refused - cold, late / 20))
    total["requests"] += requests
    total["late"] += refused
    total["cold"] += cold
    total["expired"] += expired
    total["served"] += requests - refused - cold - expired
    total["batches"] += max(1, int(requests / (1 + 6 * traffic.late + traffic.per_second / 90)))
    return requests


def _model(name: str, traffic: _Traffic, total: Json, swell: float) -> Json:
    missed = traffic.late * swell + traffic.cold
    return model(
        name,
        groups=list(traffic.groups),
        requests=total["requests"],
        served=total["served"],
        refused={"late": total["late"], "cold": total["cold"], "full": 0, "share": 0},
        expired=total["expired"],
        batches=total["batches"],
        attainment={"1m": 1 - missed, "5m": 1 - missed / 2.5, "1h": 1 - missed / 9},
        predicted_attainment=traffic.predicted,
        latency_p50_s=traffic.latency_s * (1.1 + 0.3 * traffic.late + 0.5 * swell * bool(traffic.burst)),
        latency_p99_s=traffic.latency_s * (2.1 + 2 * swell * bool(traffic.burst)),
        predicted_latency_s=traffic.latency_s,
        deadline_s=traffic.deadline_s,
        drift=traffic.drift + 0.01,
        predicted_error_p50_s=traffic.latency_s * 0.012 * (traffic.drift * 4 - 4.1),
    )
