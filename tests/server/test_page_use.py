"""The live page for every reader: by keyboard, on a phone, in the dark, without colours, read aloud, and in peace."""

import pytest

from tests.server.page_browser import field, live_page, playwright
from tests.server.page_contrast import contrasts
from tests.server.page_server import END
from tests.server.page_snapshots import group, model, snapshot

expect = playwright.expect

LONG = "a-model-whose-name-has-no-end-" * 5
STATES = {
    "models": [
        model("ready", requests=10, attainment={"1m": 0.9, "5m": 0.9, "1h": 0.9}, predicted_attainment=0.99),
        model("not-ready", ready=False, latency_p99_s=2.0, deadline_s=1.0, refused={"late": 1, "full": 2}, failed=3),
    ],
    "groups": [
        group(0, stages=2, running=["ready", None], predicted_utilization=0.5),
        group(1, stuck=True),
        group(2, healthy=False),
    ],
    "plan": {"slo_attainment": 0.99, "policy": "search"},
}
SCHEMES = ("light", "dark")


def many(uptime_s, models=300, groups=64):
    """The most that a server is expected to have; every figure differs from that of the second before."""
    return snapshot(
        uptime_s,
        models=[
            model(
                f"model-{i:03}",
                requests=int(uptime_s) * i,
                served=int(uptime_s) * i,
                attainment={"1m": (uptime_s * 7 + i) % 100 / 100, "5m": 0.9, "1h": 0.9},
                predicted_attainment=0.9,
                latency_p50_s=uptime_s * i / 1e4,
                refused={"late": int(uptime_s) * i, "full": 1},
                groups=[i % groups],
            )
            for i in range(models)
        ],
        groups=[
            group(
                i,
                stages=4,
                queue=int(uptime_s) * 7 % 13,
                busy_s=[uptime_s * (i + k) / 70 for k in range(4)],
                running=[f"model-{(int(uptime_s) + k) % models:03}" for k in range(4)],
                models=[f"model-{k:03}" for k in range(i, models, groups)],
            )
            for i in range(groups)
        ],
    )


def focused(live):
    """What has the focus, and whether that is seen."""
    return live.page.evaluate(
        """() => {
          const element = document.activeElement;
          const style = getComputedStyle(element);
          const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
          return [element.id || element.textContent, seen];
        }"""
    )


def test_everything_is_reached_and_worked_by_keyboard(live):
    live.open(snapshot(100, models=[model("a"), model("b", refused={"late": 3})]))
    press = live.page.keyboard.press
    reached = []
    for _ in range(7):
        press("Tab")
        reached.append(focused(live))
    order = ["Groups", "Models", "Words", "pause", "filter", "sort", "What the words mean"]
    assert reached == [[name, True] for name in order]
    press("Enter")
    expect(live.page.get_by_text("Refused because the queue of its group")).to_be_visible()
    press("Shift+Tab")
    press("m")  # to "Most traffic first"
    press("m")  # and on to "Most refused first"
    expect(live.page.get_by_role("combobox", name="Order")).to_have_value("refused")
    assert live.names() == ["b", "a"]
    press("Shift+Tab")
    live.page.keyboard.type("a")
    press("Enter")  # nothing is submitted anywhere
    assert live.names() == ["a"]
    press("Shift+Tab")
    press("Space")
    expect(live.page.get_by_role("button", name="Resume")).to_be_focused()
    press("Space")
    expect(live.page.get_by_role("button", name="Pause")).to_be_focused()
    for _ in range(3):
        press("Shift+Tab")
    press("Enter")
    expect(live.page.get_by_role("heading", name="Groups")).to_be_focused()
    press("Tab")
    assert focused(live) == ["filter", True]


def test_a_lost_connection_is_retried_by_keyboard_and_the_focus_is_not_lost(live):
    live.open(snapshot(100))
    live.server.send(END)
    retry = live.page.get_by_role("button", name="Try now")
    expect(retry).to_be_visible()
    retry.focus()
    with live.page.expect_response("**/events"):
        live.page.keyboard.press("Enter")
    live.server.send(snapshot(101))
    expect(retry).to_be_hidden()
    expect(live.page.get_by_role("button", name="Pause")).to_be_focused()


def test_a_reader_finds_landmarks_and_headings(live):
    live.open(snapshot(100, **STATES))
    for landmark in ("banner", "main", "contentinfo", "navigation", "search"):
        expect(live.page.get_by_role(landmark)).to_have_count(1)
    headings = live.page.get_by_role("heading").evaluate_all(
        "all => all.map((one) => [one.tagName, one.textContent.trim()])"
    )
    sections = [text for level, text in headings if level == "H2"]
    assert headings[0] == ["H1", "jaxserve"]
    assert sections == ["Overview", "Groups", "Models"]
    assert {text for level, text in headings if level == "H3"} >= {
        "Group 0",
        "Group 1",
        "Group 2",
        "ready",
        "not-ready",
    }
    expect(live.group(0).get_by_role("list", name="Stages, in the order of the pipeline")).to_be_visible()


def test_ordinary_snapshots_are_not_read_aloud(live):
    live.open(many(100, 5, 2))
    spoken = live.page.evaluate(
        """() => {
          globalThis.spoken = 0;
          const count = new MutationObserver((records) => { globalThis.spoken += records.length; });
          for (const region of document.querySelectorAll("[role=status], [role=alert], [aria-live]")) {
            count.observe(region, { subtree: true, childList: true, characterData: true });
          }
          return document.querySelectorAll("[role=status], [role=alert], [aria-live]").length;
        }"""
    )
    assert spoken == 3
    live.shows(*(many(101 + i, 5, 2) for i in range(12)))
    assert live.page.evaluate("globalThis.spoken") == 0


def test_states_are_told_apart_without_colour(live):
    live.open(snapshot(100, **STATES), snapshot(101, **STATES))
    states = [live.group(0), live.group(1), live.group(2), live.model("ready"), live.model("not-ready")]
    words = [part.locator(".state").inner_text() for part in states]
    assert words == ["✓ Healthy", "! Stuck", "✕ Failed", "✓ Ready", "✕ Not ready"]
    # What is set off by its colour says the same in words or by a sign.
    for part in live.page.locator(".attention:visible").all():
        assert part.inner_text().startswith(("▼ ", "▲ "))
    assert live.page.locator(".attention:visible").count() >= 2
    expect(live.page.locator("#troubles li").first).to_have_css("list-style-type", "none")
    assert live.page.evaluate(
        "getComputedStyle(document.querySelector('#troubles li'), '::before').content"
    ).startswith('"!')


@pytest.mark.parametrize("scheme", SCHEMES)
def test_contrast_is_enough_in_every_state(browser, scheme):
    with live_page(browser, color_scheme=scheme, viewport={"width": 1280, "height": 3000}) as live:
        live.open(snapshot(100, **STATES), snapshot(101, **STATES))
        live.page.get_by_text("What the words mean").click()
        background = live.page.evaluate("getComputedStyle(document.body).backgroundColor")
        well = contrasts(live.page)
        live.shows(snapshot(102, accepting=False, **STATES))
        draining = contrasts(live.page)
        live.server.send(END)
        expect(live.page.locator("#freshness")).to_contain_text("Stale")
        stale = contrasts(live.page)
        live.server.token = "secret"
        live.page.get_by_role("button", name="Try now").click()
        live.page.get_by_label("Bearer token").fill("wrong")
        live.page.keyboard.press("Enter")
        expect(live.page.get_by_role("alert")).to_contain_text("did not accept")
        locked = contrasts(live.page)
    assert (sum(int(part) for part in background.strip("rgb()").split(",")) < 3 * 64) == (scheme == "dark")
    assert min(map(len, (well, draining, stale, locked))) > 100
    assert [low for low in well + draining + stale + locked if low.ratio < low.needed] == []


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen(browser, width):
    names = {"models": [LONG, "\N{SNOWMAN}" * 90, "b"], "running": [LONG] * 8}
    sent = {
        "models": [
            model(LONG, ready=False, refused={"late": 10**9}, requests=10**12, groups=list(range(0, 64, 2))),
            model("b"),
        ],
        "groups": [
            group(0, stages=8, queue=10**6, requests=10**10, **names),
            group(1, healthy=False),
            group(2, stuck=True),
        ],
        "plan": {"slo_attainment": 0.9, "policy": LONG},
        "addresses": [f"{LONG}:8500", "[2001:db8:85a3:8d3:1319:8a2e:370:7348]:8501"],
    }
    with live_page(browser, viewport={"width": width, "height": 800}, color_scheme="dark") as live:
        live.open(snapshot(36_000, **sent), snapshot(36_060, **sent))
        live.page.get_by_text("What the words mean").click()
        live.server.send(END)
        expect(live.page.locator("#freshness")).to_contain_text("Stale")
        sticking_out = live.page.evaluate(
            """() => [...document.querySelectorAll("body *")].filter((element) => {
              const box = element.getBoundingClientRect();
              const clipped = element.closest(".unseen, .running, .meter, svg");
              return !clipped && element.checkVisibility() && (box.right > innerWidth + 0.5 || box.left < -0.5);
            }).map((element) => element.outerHTML.slice(0, 80))"""
        )
        assert sticking_out == []
        assert live.page.evaluate("document.documentElement.scrollWidth") <= width


def test_text_may_be_twice_as_large(browser):
    with live_page(browser, viewport={"width": 640, "height": 800}) as live:
        live.open(snapshot(100, **STATES))
        live.page.evaluate("document.documentElement.style.fontSize = '28px'")
        assert live.page.evaluate("document.documentElement.scrollWidth") <= 640


def test_motion_is_left_out_where_it_is_not_wanted(browser):
    for motion, transition in (("reduce", "none"), ("no-preference", "transform")):
        with live_page(browser, reduced_motion=motion) as live:
            live.open(snapshot(100))
            expect(live.page.locator(".stage [data-bar]")).to_have_css("transition-property", transition)


def test_bars_and_lines_are_seen_in_forced_colors(browser):
    with live_page(browser, forced_colors="active") as live:
        live.open(snapshot(100, **STATES), snapshot(101, **STATES))
        expect(live.page.locator(".stage .meter").first).to_have_css("border-top-style", "solid")
        bar, page = (
            live.page.evaluate(f"getComputedStyle(document.querySelector('{which}')).backgroundColor")
            for which in (".stage [data-bar]", "body")
        )
        assert bar != page


def test_many_models_and_groups_are_written_to_in_place(live):
    live.open(many(100))
    live.page.evaluate(
        """() => {
          globalThis.changed = [];
          new MutationObserver((records) => {
            for (const { target, addedNodes, removedNodes } of records) {
              if (addedNodes.length + removedNodes.length) globalThis.changed.push(target.outerHTML.slice(0, 80));
            }
          }).observe(document.querySelector("main"), { subtree: true, childList: true });
        }"""
    )
    for t in range(101, 113):
        live.shows(many(t))
    assert live.page.evaluate("globalThis.changed") == []
    expect(field(live.model("model-200").locator(".spread").nth(1), "rate")).to_have_text("200/s")
    expect(live.model("model-299").locator(".outcomes li").first).to_contain_text(f"{112 * 299:,} late")
    expect(field(live.group(63).locator(".stage").nth(3), "busy")).to_have_text("94 %")
    expect(field(live.group(5).locator(".stage").nth(1), "running")).to_have_text("model-113")
    expect(field(live.group(0), "models")).to_have_text("Holds model-000, model-064, model-128, model-192, model-256")


def test_focus_and_caret_stay_while_snapshots_come(live):
    live.open(many(100, 40, 4))
    live.page.get_by_label("Name has").fill("model")
    live.page.get_by_label("Name has").evaluate("(input) => input.setSelectionRange(2, 4)")
    live.shows(*(many(101 + t, 40, 4) for t in range(12)))
    where = "[document.activeElement.id, document.activeElement.selectionStart, document.activeElement.selectionEnd]"
    assert live.page.evaluate(where) == ["filter", 2, 4]


def test_what_is_selected_stays_while_snapshots_come(live):
    live.open(many(100, 40, 4))
    live.page.get_by_role("combobox", name="Order").select_option("Worst attainment first")
    live.model("model-007").get_by_role("heading").evaluate("(heading) => getSelection().selectAllChildren(heading)")
    tiles = live.names()
    live.shows(*(many(101 + t, 40, 4) for t in range(12)))
    assert live.page.evaluate("getSelection().toString()").strip() == "model-007"
    assert live.names() == tiles  # in spite of their order: what is selected does not jump away
    live.page.evaluate("getSelection().removeAllRanges()")
    live.shows(many(113, 40, 4))
    assert live.names() != tiles


def test_tiles_follow_their_order_in_time(live):
    def sent(t, alpha, beta):
        known = {"5m": None, "1h": None}
        return snapshot(
            t,
            models=[model("alpha", attainment={"1m": alpha, **known}), model("beta", attainment={"1m": beta, **known})],
        )

    live.open(sent(100, 0.5, 0.9))
    live.page.get_by_role("combobox", name="Order").select_option("Worst attainment first")
    assert live.names() == ["alpha", "beta"]
    live.shows(sent(101, 0.9, 0.5))
    assert live.names() == ["alpha", "beta"]
    live.shows(sent(105, 0.9, 0.5))
    assert live.names() == ["beta", "alpha"]


def test_models_and_groups_come_and_go(live):
    live.open(snapshot(100, models=[model("a"), model("b")], groups=[group(0), group(1, stages=3)]))
    live.page.evaluate("document.querySelectorAll('.model, .group').forEach((one) => { one.kept = true; })")
    live.shows(snapshot(101, models=[model("c"), model("b")], groups=[group(1, stages=2), group(2)]))
    assert live.names() == ["b", "c"]
    assert live.page.locator(".group h3").all_text_contents() == ["Group 1", "Group 2"]
    expect(live.group(1).locator(".stage")).to_have_count(2)
    kept = "(all) => all.map((one) => one.kept ?? false)"
    assert live.page.locator(".model").evaluate_all(kept) == [True, False]
    assert live.page.locator(".group").evaluate_all(kept) == [True, False]
