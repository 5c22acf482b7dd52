"""The live page keeps its connection: what is stale is shown as such, tokens are asked for, a pause loses nothing."""

import itertools
import json

import pytest

from tests.server.page_browser import field, live_page, playwright
from tests.server.page_server import BREAK, END
from tests.server.page_snapshots import model, snapshot

expect = playwright.expect

LOSSES = {
    "the server ends it": (END, "the server ended the connection"),
    "the connection breaks": (BREAK, "the connection broke"),
    "no snapshot": ({"server": None}, "a snapshot was not understood"),
}


@pytest.mark.parametrize(("step", "reason"), LOSSES.values(), ids=LOSSES)
def test_a_lost_connection_shows_stale_data_as_such_until_it_is_back(live, step, reason):
    live.open(snapshot(100, in_flight=7))
    expect(live.page.locator("#banner")).to_be_hidden()
    shown_at = (live.page.locator("#freshness").text_content() or "").removeprefix("Live, ")
    live.server.send(step)
    banner = live.page.locator("#banner")
    expect(banner).to_contain_text(reason)
    expect(banner).to_contain_text(f"What is shown is stale, as of {shown_at}")
    expect(live.page.locator("#freshness")).to_have_text(f"Stale, as of {shown_at}")
    expect(live.page.locator("#server-state")).to_have_text("! Not connected")
    expect(live.page).to_have_title("Not connected - jaxserve")
    expect(live.page.locator("#announcement")).to_have_text("Server: Not connected.")
    expect(field(live.page, "in_flight")).to_have_text("7")
    live.server.send(snapshot(101, in_flight=8))
    expect(field(live.page, "in_flight")).to_have_text("8")
    expect(banner).to_be_hidden()
    expect(live.page.locator("#server-state")).to_have_text("✓ Ready")
    expect(live.page.locator("#freshness")).to_contain_text("Live, ")


def test_silence_is_a_lost_connection(browser):
    with live_page(browser, patient=False) as live:
        live.page.clock.install()
        live.open(snapshot(100))
        live.page.clock.fast_forward(6_000)
        expect(live.page.locator("#banner")).to_contain_text("What is shown is stale")
        with live.page.expect_response("**/events"):
            live.page.get_by_role("button", name="Try now").click()
        live.server.send(snapshot(107))
        expect(live.page.locator("#banner")).to_be_hidden()
        expect(live.page.locator("#uptime")).to_have_text("1 min 47 s")


def test_pauses_between_attempts_grow_and_the_reader_may_ask_at_once(browser):
    with live_page(browser, patient=False) as live:
        live.server.status = 503
        live.page.clock.install(time=0)
        live.page.clock.pause_at(1)
        live.open()
        for asked, pause_s in enumerate((1, 2, 4, 8, 16, 30, 30), start=1):
            expect(live.page.locator("#banner")).to_contain_text("the server answered with status 503. Trying again in")
            live.page.clock.run_for(740 * pause_s)  # it is never less than three quarters
            assert len(live.server.authorizations) == asked
            with live.page.expect_response("**/events"):
                live.page.clock.run_for(261 * pause_s)
        live.server.status = 200
        live.server.send(snapshot(100))
        live.page.clock.resume()
        live.page.get_by_role("button", name="Try now").click()
        expect(live.page.locator("#uptime")).to_have_text("1 min 40 s")


def test_a_server_that_drains_says_so_and_then_is_gone(live):
    live.open(snapshot(100))
    live.shows(snapshot(101, accepting=False, ready=False, in_flight=3))
    expect(live.page.locator("#server-state")).to_have_text("! Draining")
    expect(live.page.locator("#banner")).to_contain_text(
        "it takes in nothing more, and finishes the 3 requests in flight"
    )
    live.server.send(END)
    expect(live.page.locator("#banner")).to_contain_text("It was draining: it may have stopped. What is shown is stale")


def test_a_token_is_asked_for_tried_kept_for_the_tab_and_forgotten(live):
    live.server.token = "right"
    live.open()
    token = live.page.get_by_label("Bearer token")
    expect(token).to_be_focused()
    expect(live.page.locator("#server-state")).to_have_text("! Token needed")
    token.fill("wrong")
    token.press("Enter")
    expect(live.page.get_by_role("alert")).to_have_text("The server did not accept this token.")
    expect(token).to_be_focused()
    expect(token).to_have_value("")
    live.server.send(snapshot(100))
    token.fill("right")
    token.press("Enter")
    expect(live.page.locator("#uptime")).to_have_text("1 min 40 s")
    expect(token).to_be_hidden()
    expect(live.page.get_by_role("button", name="Pause")).to_be_focused()
    assert live.server.authorizations == [None, "Bearer wrong", "Bearer right"]
    assert live.page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [
        ["right"],
        0,
        "",
    ]
    assert "right" not in live.page.url

    with live.page.expect_response("**/events"):
        live.page.reload()
    live.server.send(snapshot(101))
    expect(live.page.locator("#uptime")).to_have_text("1 min 41 s")
    live.page.get_by_role("button", name="Forget the token").click()
    expect(token).to_be_focused()
    expect(live.page.locator("#banner")).to_contain_text("What is shown is stale")
    assert live.page.evaluate("sessionStorage.length") == 0
    assert live.server.authorizations[3:] == ["Bearer right", None]


def test_a_token_that_may_not_watch_is_told_so(live):
    live.server.status = 403
    live.open()
    expect(live.page.get_by_role("alert")).to_have_text("The server knows this token, but does not let it watch.")


def test_a_pause_holds_what_is_shown_and_misses_nothing(live):
    live.open(*(snapshot(100 + i, models=[model(requests=10 * i)]) for i in range(4)))
    live.page.get_by_role("button", name="Pause").click()
    expect(live.page.locator("#freshness")).to_contain_text("Paused at")
    # The stream goes on, which the state in the header shows; the figures stand still.
    live.server.send(*(snapshot(104 + i, models=[model(requests=40 + 50 * i)]) for i in range(5)))
    live.server.send(snapshot(109, accepting=False, models=[model(requests=290)]))
    expect(live.page.locator("#server-state")).to_have_text("! Draining")
    expect(live.page.locator("#uptime")).to_have_text("1 min 43 s")
    expect(field(live.model("minilm"), "rate")).to_have_text("10/s")
    live.page.get_by_role("button", name="Resume").click()
    expect(live.page.locator("#uptime")).to_have_text("1 min 49 s")
    expect(field(live.model("minilm"), "rate")).to_have_text("50/s")


def test_events_are_understood_however_they_are_cut(live):
    live.open()
    sent = (
        ": a comment\r\nevent: snapshot\r\ndata: {\r\ndata:  1}\r\n\r\n"
        "event: other\ndata\n\nid: 7\nretry: 3\ndata:x:y\r\rdata: \N{SNOWMAN}\nevent: snapshot\n\ndata: cut off"
    )
    expected = [["snapshot", "{\n 1}"], ["other", ""], ["message", "x:y"], ["snapshot", "\N{SNOWMAN}"]]
    cuts = [[i, j] for i, j in itertools.combinations_with_replacement(range(len(sent) + 1), 2)]
    understood = live.page.evaluate(
        """async ([sent, cuts]) => {
          const { EventParser } = await import("/page/events.js");
          const understood = cuts.map(([i, j]) => {
            const parser = new EventParser();
            const events = [sent.slice(0, i), sent.slice(i, j), sent.slice(j)].flatMap((piece) => parser.feed(piece));
            return JSON.stringify(events.map(({ name, data }) => [name, data]));
          });
          return [...new Set(understood)];
        }""",
        [sent, cuts],
    )
    assert [json.loads(events) for events in understood] == [expected]
