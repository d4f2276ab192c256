"""The chat page in a real browser, against the real bento."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from scripts.screenshot_page import FLAGS, find_browser
from tests.serving.bento_server import Server

playwright = pytest.importorskip("playwright.sync_api")

SHOWN = "document.querySelector('#face .layer.on')?.src"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = find_browser()
    if path is None:
        pytest.skip("no chromium on this machine (apt-get install chromium fonts-nanum)")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, locale="ko-KR")
    context.set_default_timeout(300_000)  # a busy machine is no failure
    page = context.new_page()
    page.troubles = []
    page.requests = []
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("console", lambda m: page.troubles.append(m.text) if "Content Security" in m.text else None)
    page.goto(server.url)
    page.wait_for_selector("#message:enabled", timeout=300_000)
    page.wait_for_function(SHOWN)
    yield page
    assert page.troubles == []
    context.close()


def answer_in_one_piece(page: Any) -> None:
    """Let streams fail, as behind a proxy that breaks them; the page then asks for the whole answer."""
    page.route("**/api/chat/stream", lambda route: route.abort())


def test_what_she_says_appears_while_she_writes(page: Any) -> None:
    picture = page.evaluate(SHOWN)
    # a stream whose end this test holds back: only the reader in the page is not the real one
    page.evaluate(
        """() => {
          const whole = window.fetch;
          const encoder = new TextEncoder();
          window.fetch = (path, options) => {
            if (path !== "/api/chat/stream") return whole(path, options);
            const body = new ReadableStream({ start: (c) => (window.stream = c) });
            return Promise.resolve(new Response(body, { headers: { "Content-Type": "text/event-stream" } }));
          };
          window.send = (name, data) =>
            window.stream.enqueue(encoder.encode(`event: ${name}\\ndata: ${JSON.stringify(data)}\\n\\n`));
        }"""
    )
    page.fill("#message", "안녕")
    page.press("#message", "Enter")
    page.wait_for_function("window.stream")
    page.evaluate("send('speech', { text: '왔구' })")
    page.wait_for_selector(".turn.her:not(.typing) >> nth=1")
    assert page.locator(".turn.her .bubble").last.inner_text() == "왔구"
    page.evaluate("send('speech', { text: '나, <b>민수</b>!' })")
    page.wait_for_function("[...document.querySelectorAll('.her .bubble')].at(-1).textContent.endsWith('!')")
    assert page.locator(".turn.her .bubble").last.inner_text() == "왔구나, <b>민수</b>!"
    assert page.locator(".turn.her").count() == 2
    assert page.is_disabled("#message")  # one message at a time
    turn = {
        "text": "왔구나, <b>민수</b>!",
        "expression": {"name": "joy", "label": "기쁨", "eyes": 0.7, "mouth": 0.5, "pose": 0},
        "memories_used": [],
        "memories_written": ["이름: 민수"],
        "image": picture,
        "seconds": {},
    }
    page.evaluate("turn => send('turn', turn)", turn)
    page.wait_for_selector(".chip.written")
    page.wait_for_selector("#message:enabled")
    assert page.locator(".turn.her").count() == 2
    assert page.locator("#mood").inner_text() == "기쁨"


def test_where_streams_break_the_answer_comes_in_one_piece(page: Any) -> None:
    answer_in_one_piece(page)
    page.fill("#message", "안녕")
    with page.expect_response("**/api/chat") as answer:
        page.press("#message", "Enter")
    page.wait_for_selector("#message:enabled", timeout=300_000)
    assert page.locator(".turn.her .bubble").last.inner_text().strip() == answer.value.json()["text"]
    assert page.locator(".turn.her").count() == 2


HEAR = """() => {
    const plain = window.fetch;
    window.fetch = async (...request) => {
        const response = await plain(...request);
        if (String(request[0]).includes("/api/chat/stream"))
            response.clone().text().then(text => { window.heard = text; });
        return response;
    };
}"""
"""Keeps what a stream said: the browser itself does not always."""


def test_she_answers_and_her_face_follows(page: Any, server: Server) -> None:
    page.evaluate(HEAR)
    page.fill("#message", "안녕! 나는 민수야.")
    page.press("#message", "Enter")
    assert page.locator(".turn.me .bubble").inner_text() == "안녕! 나는 민수야."
    page.wait_for_selector("#message:enabled", timeout=300_000)
    assert page.locator(".turn.her").count() == 2  # the greeting and the reply
    assert page.locator(".turn.her .bubble").last.inner_text().strip()
    page.wait_for_function("() => window.heard !== undefined")
    turn = json.loads(page.evaluate("window.heard").rstrip().rsplit("data: ", 1)[1])
    page.wait_for_function(f"image => {SHOWN} === image", arg=turn["image"])
    assert page.locator(".turn.her .bubble").last.inner_text() == turn["text"]
    assert page.input_value("#message") == ""
    outside = [url for url in page.requests if not url.startswith((server.url, "data:", "blob:"))]
    assert outside == []
    page.reload()  # what was said survives
    page.wait_for_selector("#message:enabled", timeout=300_000)
    assert page.locator(".turn.me .bubble").inner_text() == "안녕! 나는 민수야."


def test_another_expression_shows_another_picture(page: Any, server: Server) -> None:
    before = page.evaluate(SHOWN)
    asleep = httpx.get(f"{server.url}/api/face", params={"eyes": 0}, timeout=300).content
    image = "data:image/webp;base64," + base64.b64encode(asleep).decode()

    def fall_asleep(route: Any) -> None:  # an untrained voice may keep the same expression for ever
        answer = route.fetch(timeout=300_000)
        expression = {**answer.json()["expression"], "name": "sad", "label": "졸림", "eyes": 0}
        route.fulfill(response=answer, json={**answer.json(), "expression": expression, "image": image})

    answer_in_one_piece(page)
    page.route("**/api/chat", fall_asleep)
    page.fill("#message", "잘 자")
    page.press("#message", "Enter")
    page.wait_for_function(f"image => {SHOWN} === image", arg=image)
    assert image != before
    assert "졸림" in page.get_attribute("#face", "aria-label")
    page.wait_for_selector("#message:enabled")
    assert page.locator("#mood").inner_text() == "졸림"


def test_enter_belongs_to_the_input_method_while_it_composes(page: Any) -> None:
    page.fill("#message", "한")
    page.evaluate(
        "document.getElementById('message').dispatchEvent(new KeyboardEvent('keydown',"
        "{key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))"
    )
    page.press("#message", "Shift+Enter")
    page.type("#message", "글")
    assert page.input_value("#message") == "한\n글"
    assert page.locator(".turn.me").count() == 0


def test_a_failure_keeps_the_text_and_offers_another_try(page: Any) -> None:
    answer_in_one_piece(page)
    page.route("**/api/chat", lambda route: route.abort())
    page.fill("#message", "이건 잃어버리면 안 돼")
    page.press("#message", "Enter")
    page.wait_for_selector(".toast.trouble")
    assert page.input_value("#message") == "이건 잃어버리면 안 돼"
    assert page.locator(".turn.me").count() == 0
    assert page.is_enabled("#message")
    page.unroute("**/api/chat")
    page.click(".toast button >> nth=0")
    page.wait_for_selector("#message:enabled", timeout=300_000)
    page.wait_for_selector(".turn.her:not(.typing) >> nth=1")
    assert page.locator(".turn.me .bubble").inner_text() == "이건 잃어버리면 안 돼"
    assert page.locator(".toast").count() == 0


def test_text_is_never_markup(page: Any) -> None:
    evil = "<img src=x onerror=\"document.title='owned'\"><b>굵게</b>"
    answer = {
        "text": evil,
        "expression": {"name": "joy", "label": evil, "eyes": 0.5, "mouth": 0.5, "pose": 0},
        "memories_used": [evil],
        "memories_written": [f"이름: {evil}"],
        "image": page.evaluate(SHOWN),
        "seconds": {},
    }
    body = json.dumps(answer)
    answer_in_one_piece(page)
    page.route("**/api/chat", lambda r: r.fulfill(body=body, content_type="application/json"))
    page.fill("#message", evil)
    page.press("#message", "Enter")
    page.wait_for_selector(".chip.written")
    assert page.locator(".turn.her .bubble").last.inner_text() == evil
    assert page.locator(".turn.me .bubble").inner_text() == evil
    assert page.locator(".chip.used").inner_text() == f"떠올린 기억: {evil}"
    assert page.locator(".chip.written").inner_text() == f"기억했어: 이름: {evil}"
    assert page.locator("#log img, #log b").count() == 0
    assert "owned" not in page.title()


def test_a_message_over_the_limit_cannot_be_sent(page: Any) -> None:
    page.fill("#message", "가" * 10_000)
    assert page.is_disabled("#send")
    assert page.locator("#counter").inner_text().startswith("10000 / ")
    page.press("#message", "Enter")
    assert page.locator(".turn.me").count() == 0


def test_a_new_conversation_can_be_undone(page: Any) -> None:
    page.fill("#message", "안녕")
    page.press("#message", "Enter")
    page.wait_for_selector(".turn.her:not(.typing) >> nth=1", timeout=300_000)
    page.wait_for_selector("#message:enabled", timeout=300_000)
    session = "JSON.parse(localStorage.getItem('ohlora.conversation')).session"
    before = page.evaluate(session)
    page.click("#new-chat")
    assert page.locator(".turn.me").count() == 0
    assert page.evaluate(session) != before
    page.click(".toast button >> nth=0")
    assert page.locator(".turn.me").count() == 1
    assert page.evaluate(session) == before


def test_it_fits_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    width, height = page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    )
    assert (width, height) == (390, 844)
    assert page.locator("#face").bounding_box()["width"] >= 140
    box = page.locator("#send").bounding_box()
    assert box["x"] + box["width"] <= 390
    assert box["y"] + box["height"] <= 844
