"""The live page shows what it is sent, in a real browser: figures, reasons, and what is not known."""

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest

from tests.server.page_browser import field, live_page, playwright
from tests.server.page_snapshots import believable, group, model, snapshot

expect = playwright.expect

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOT = ROOT / "docs" / "live-page.png"

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "{{7*7}} ${7*7} <%= 7*7 %>",
    "javascript:alert(3)",
    "'\"`; DROP TABLE models; --",
    "__proto__",
    "constructor",
    "a\N{RIGHT-TO-LEFT OVERRIDE}b",
    "\N{HEBREW LETTER ALEF}\N{ARABIC LETTER BEH}",
    "\N{SNOWMAN}\N{SKULL}" * 40,
]


def full(uptime_s, *, requests, busy_s, queue=3, **server):
    """A snapshot in which everything is known."""
    tile = model(
        "gpt",
        groups=[0, 1, 2, 5],
        requests=requests,
        served=requests - 20,
        refused={"late": requests // 10, "cold": 3, "full": 1, "share": 2},
        expired=requests // 50,
        failed=5,
        cancelled=6,
        invalid=7,
        batches=requests // 4,
        attainment={"1m": 0.95, "5m": 0.99951, "1h": 1.0},
        predicted_attainment=0.975,
        latency_p50_s=0.0123,
        latency_p99_s=0.65,
        predicted_latency_s=0.008,
        deadline_s=0.5,
        drift=1.016,
        predicted_error_p50_s=0.0001,
    )
    row = group(
        0,
        stages=2,
        intra_op=2,
        devices=[4, 5, 6, 7],
        queue=queue,
        in_flight=2,
        requests=requests,
        busy_s=busy_s,
        running=["gpt", None],
        models=["gpt"],
        predicted_utilization=0.4,
    )
    return snapshot(
        uptime_s, models=[tile], groups=[row], plan={"slo_attainment": 0.97, "policy": "search"}, in_flight=5, **server
    )


def has(part, **words):
    for name, text in words.items():
        expect(field(part, name)).to_have_text(text)


def test_what_is_shown_is_what_was_sent(live):
    live.open(full(100, requests=1000, busy_s=[10.5, 9.0]))
    tile, row, overview = live.model("gpt"), live.group(0), live.page.locator(".figures")
    expect(live.page.locator("#server-state")).to_have_text("✓ Ready")
    expect(live.page.locator("#addresses")).to_have_text("jaxserve 0.1.0, listens on 127.0.0.1:8500")
    expect(live.page).to_have_title("Ready - jaxserve")
    expect(tile.locator(".state")).to_have_text("✓ Ready")
    has(tile, **{"1m": "95.0 %", "5m": "99.95 %", "1h": "100 %", "predicted_attainment": "97.5 %"})
    has(tile, p50="12.3 ms", p99="650 ms", deadline="500 ms", predicted_latency="8 ms")
    has(tile, difference="▼ 2.5 points below plan", over="▲ p99 is over the deadline", where="On groups 0-2, 5")
    has(tile, drift="drift 1.02, answered 100 µs later than predicted", since="980 of 1,000 served", rate="—")
    expect(row.locator(".state")).to_have_text("✓ Healthy")
    has(row, queue="3", peak="peak 3", traffic="2 in flight, —", shape="2 stages on 2 devices each")
    has(row, predicted="Busy —, planned 40 %", models="Holds gpt")
    has(row.locator(".stage").nth(0), name="Stage 0", devices="devices 4-5", verb="runs", running="gpt", busy="—")
    has(row.locator(".stage").nth(1), name="Stage 1", devices="devices 6-7", verb="idle", running="", busy="—")
    has(overview, in_flight="5", queued="3 queued in 1 group", rate="—", refused="—", attainment="—")

    live.shows(full(102, requests=1200, busy_s=[11.5, 9.25]))
    has(tile, rate="100/s", where="On groups 0-2, 5, 4.0 requests a batch", since="1,180 of 1,200 served")
    has(row, traffic="2 in flight, 100/s", predicted="Busy 31 %, planned 40 %")
    has(row.locator(".stage").nth(0), busy="50 %")
    has(row.locator(".stage").nth(1), busy="13 %")
    has(overview, attainment="95.0 %", plan="the plan predicts 97.0 % (search)", difference="▼ 2.0 points below plan")
    has(overview, rate="100/s", served="100/s served", refused="10/s", reasons="late 10/s, also expired 2/s")
    has(overview, busy="31 %", busy_plan="the plan predicts 40 %")

    # Rates are means of the last five seconds: from 102 on, where 100 is too long ago.
    live.shows(full(108, requests=1260, busy_s=[14.5, 9.25], queue=0))
    has(tile, rate="10/s")
    has(row, queue="0", peak="peak 3", predicted="Busy 25 %, planned 40 %")
    has(row.locator(".stage").nth(0), busy="50 %")
    has(overview, rate="10/s", refused="1/s", queued="none queued")


def test_bars_are_as_long_as_what_they_stand_for(live):
    live.open(full(100, requests=0, busy_s=[0.0, 0.0]), full(102, requests=0, busy_s=[0.5, 1.5]))
    for stage, (filled, mark) in enumerate([("0.25", "40%"), ("0.75", "40%")]):
        meter = live.group(0).locator(".meter").nth(stage)
        expect(meter.locator("[data-bar]")).to_have_css("transform", f"matrix({filled}, 0, 0, 1, 0, 0)")
        expect(meter.locator("[data-mark]")).to_have_attribute("style", f"transform: translateX({mark});")


def test_refusals_and_failures_say_why(live):
    live.open(full(100, requests=100, busy_s=[0, 0]), full(102, requests=120, busy_s=[0, 0]))
    expect(live.model("gpt").locator(".outcomes li")).to_have_text(
        [
            "12 late: refused, could not be in time 1/s",
            "3 cold: refused, weights not on the devices",
            "1 full: refused, the queue is full",
            "2 share: refused, its tenant has its share",
            "2 expired: while it waited or ran",
            "5 failed: the model or its group did",
            "6 cancelled: by the caller",
            "7 invalid: inputs do not fit the model",
        ]
    )
    live.page.get_by_text("What the words mean").click()
    for word in ("Late", "Cold", "Full", "Share", "Expired", "Failed"):
        expect(live.page.get_by_role("term").filter(has_text=word).first).to_be_visible()


def test_where_nothing_was_refused_no_reason_is_shown(live):
    live.open(snapshot(100, models=[model("quiet", requests=5, served=5)]))
    expect(live.model("quiet").locator(".outcomes li")).to_have_count(0)
    has(live.model("quiet"), since="5 of 5 served")


def test_what_is_not_known_is_a_dash(live):
    live.open(snapshot(100, groups=[group(stages=2)]), snapshot(101, groups=[group(stages=2)]))
    tile, overview = live.model("minilm"), live.page.locator(".figures")
    for name in ("1m", "5m", "1h", "predicted_attainment", "p50", "p99", "deadline", "predicted_latency"):
        has(tile, **{name: "—"})
    has(tile, difference="", over="", drift="", rate="0/s")
    has(live.group(0), predicted="Busy 0 %, planned —")
    has(overview, attainment="—", plan="no plan to compare with", difference="", busy_plan="mean of all stages")
    expect(live.page.locator(".meter b:visible")).to_have_count(0)


def test_without_models_and_groups_it_says_so(live):
    live.open(snapshot(100, models=[], groups=[]))
    expect(live.page.locator("#groups-count")).to_have_text("There are no groups.")
    expect(live.page.locator("#models-count")).to_have_text("No models are loaded.")
    has(live.page.locator(".figures"), attainment="—", rate="0/s", busy="—")
    live.shows(snapshot(101))
    expect(live.page.locator("#models-count")).to_have_text("1 loaded")
    expect(live.page.locator("#groups-count")).to_have_text("1 of 1 healthy")
    live.shows(snapshot(102, models=[], groups=[]))
    expect(live.page.locator(".model, .group")).to_have_count(0)


def test_a_server_that_starts_anew_has_no_negative_rates(live):
    live.open(full(100, requests=1000, busy_s=[10, 10]), full(101, requests=1100, busy_s=[10.5, 10]))
    has(live.model("gpt"), rate="100/s")
    live.shows(full(3, requests=40, busy_s=[0.5, 0.5]))
    has(live.model("gpt"), rate="—")
    has(live.group(0).locator(".stage").nth(0), busy="—")
    expect(live.page.locator("#announcement")).to_contain_text("The server has been restarted")
    live.shows(full(4, requests=60, busy_s=[0.75, 0.5]))
    has(live.model("gpt"), rate="20/s")


def test_a_snapshot_that_comes_twice_changes_no_rate(live):
    first, second = (snapshot(100 + i, models=[model(requests=10 * i)], in_flight=i) for i in range(2))
    live.open(first, second)
    live.server.send(second, {**second, "server": {**second["server"], "in_flight": 9}})
    has(live.page.locator(".figures"), in_flight="9", rate="10/s")
    has(live.model("minilm"), rate="10/s")


def test_a_model_that_is_loaded_anew_has_no_negative_rates(live):
    live.open(*(snapshot(100 + i, models=[model(requests=10 * i)]) for i in range(3)))
    live.shows(snapshot(103, models=[model(requests=2)]))
    has(live.model("minilm"), rate="—")
    live.shows(snapshot(104, models=[model(requests=6)]))
    has(live.model("minilm"), rate="4/s")


def test_the_mean_attainment_is_weighted_by_the_traffic_of_the_last_minute(live):
    def sent(t):
        busy = model("busy", requests=30 * t, attainment={"1m": 0.9, "5m": None, "1h": None})
        calm = model("calm", requests=10 * t, attainment={"1m": 0.5, "5m": None, "1h": None})
        return snapshot(t, models=[busy, calm, model("idle")])

    live.open(sent(10), sent(12))
    has(live.page.locator(".figures"), attainment="80.0 %")


def test_what_needs_attention_is_said_first(live):
    well: dict[str, Any] = {"models": [model("a"), model("b")], "groups": [group(0), group(1), group(2)]}
    live.open(snapshot(100, **well))
    expect(live.page.get_by_role("list", name="Needs attention")).to_be_hidden()
    ill: dict[str, Any] = {
        "models": [model("a", ready=False), model("b")],
        "groups": [group(0, healthy=False), group(1, stuck=True), group(2)],
    }
    live.shows(snapshot(101, **ill))
    troubles = ["Failed: group 0", "Stuck, so that nobody is taken in: group 1", "Not ready: a"]
    expect(live.page.get_by_role("list", name="Needs attention").get_by_role("listitem")).to_have_text(troubles)
    expect(live.page.get_by_role("status").first).to_have_text(f"{'. '.join(troubles)}.")
    expect(live.page.locator("#groups-count")).to_have_text("1 of 3 healthy")
    live.shows(snapshot(102, **well))
    expect(live.page.get_by_role("list", name="Needs attention")).to_be_hidden()
    expect(live.page.get_by_role("status").first).to_have_text("Nothing needs attention any more.")


def test_names_are_text_whatever_they_hold(live):
    models = [model(name) for name in HOSTILE]
    rows = [group(0, models=HOSTILE, running=[HOSTILE[0]], predicted_utilization=0.5)]
    policy = {"slo_attainment": 0.5, "policy": HOSTILE[0]}
    sent = {"models": models, "groups": rows, "plan": policy, "name": HOSTILE[1], "addresses": HOSTILE[:2]}
    live.open(snapshot(100, **sent), snapshot(101, **sent))
    assert sorted(live.names()) == sorted(HOSTILE)
    has(live.group(0).locator(".stage"), running=HOSTILE[0])
    has(live.page.locator(".figures"), plan=f"the plan predicts 50.0 % ({HOSTILE[0]})")
    assert live.page.locator("img, iframe, object, embed, body script, [onerror]").count() == 0
    live.page.get_by_label("Name has").fill("<IMG")
    assert live.names() == [HOSTILE[0]]


def test_the_browser_itself_takes_no_string_for_markup(browser):
    with live_page(browser) as live:
        live.open(snapshot(100))
        with pytest.raises(playwright.Error, match="TrustedHTML"):
            live.page.evaluate("document.body.innerHTML = '<b>bold</b>'")
        (complaint,) = live.complaints[:1]
        assert "TrustedHTML" in complaint
        live.complaints.clear()


def test_models_are_filtered_and_ordered(live):
    def sent(t):
        known = {"1m": None, "5m": 0.7, "1h": 0.99}
        return snapshot(
            t,
            models=[
                model("Delta", requests=10 * t, attainment={"1m": 0.99, "5m": 0.5, "1h": 0.5}),
                model("alpha", requests=30 * t, attainment={"1m": 0.9, "5m": 1, "1h": 1}, refused={"late": 2}),
                model("charlie", ready=False, requests=20 * t, attainment={"1m": 1, "5m": 1, "1h": 1}),
                model("bravo", attainment=known, refused={"full": 7}),
                model("unknown"),
            ],
        )

    live.open(sent(100), sent(101))
    order, name = live.page.get_by_role("combobox", name="Order"), live.page.get_by_label("Name has")
    assert live.names() == ["Delta", "alpha", "bravo", "charlie", "unknown"]
    order.select_option("Worst attainment first")
    assert live.names() == ["charlie", "bravo", "alpha", "Delta", "unknown"]
    order.select_option("Most traffic first")
    assert live.names() == ["alpha", "charlie", "Delta", "bravo", "unknown"]
    order.select_option("Most refused first")
    assert live.names() == ["bravo", "alpha", "Delta", "charlie", "unknown"]
    name.fill("  AL")
    assert live.names() == ["alpha"]
    expect(live.page.locator("#models-count")).to_have_text("1 of 5 shown")
    live.shows(sent(110))
    assert live.names() == ["alpha"]
    name.fill("nobody")
    assert live.names() == []
    name.fill("")
    expect(live.page.locator("#models-count")).to_have_text("5 loaded")


def test_the_screenshot(browser, tmp_path):
    """Writes docs/live-page.png when JAXSERVE_SCREENSHOT is 1, and otherwise only sees that it could."""
    options = {"viewport": {"width": 1280, "height": 1240}, "color_scheme": "light", "reduced_motion": "reduce"}
    with contextlib.ExitStack() as opened:
        live = opened.enter_context(live_page(browser, timezone_id="UTC", **options))
        live.page.clock.set_fixed_time("2026-01-15T14:03:22Z")
        live.open(*believable(185))
        written = SCREENSHOT if os.environ.get("JAXSERVE_SCREENSHOT") == "1" else tmp_path / "live-page.png"
        live.page.screenshot(path=written)
    assert written.read_bytes().startswith(b"\x89PNG")
