"""The page of `mefar app`: what its parts answer, and the page itself in a real browser."""

from __future__ import annotations

import json
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from waiting import wait_for

import mefar
from datamodules.demo.long_videos import make_long_video
from mefar.__main__ import main

ONSET, APEX, OTHER = (mefar.example(name) for name in ("onset", "apex", "other"))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_missing_gradio_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mefar.commands.app.find_spec", lambda name: None)
    assert main(["app"]) == 2
    assert "pip install 'mefar[app]'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def page() -> Any:
    pytest.importorskip("gradio")
    from mefar.commands.app_page import Page

    return Page(mefar.load("demo"))


def test_two_pictures_are_read_and_shown_on_faces(page: Any) -> None:
    codes, strength = page.read(pixels(ONSET), pixels(APEX), None, 1)
    assert len(codes) == 16 and strength > 0.1
    classes, units, sentence = page.says(codes, strength)
    assert max(classes, key=lambda name: classes[name]) == "surprise" and units["AU1"] > 0.9
    assert "brow" in sentence
    shown = page.shows(codes, strength, 1.0, [str(OTHER), (pixels(ONSET), None)])
    assert [title for _, title in shown] == ["1: at rest", "1: in action", "2: at rest", "2: in action"]
    far = [np.abs(shown[i][0].astype(int) - shown[i + 1][0].astype(int)).mean() for i in (0, 2)]
    assert min(far) > 0.5
    assert page.shows([], 1.0, 1.0, [str(OTHER)]) == page.shows(codes, 1.0, 1.0, None) == []


def test_the_page_says_what_is_wrong(page: Any) -> None:
    import gradio

    for given, match in (
        ((None, None, None, 1), "give two pictures"),
        ((np.full((200, 200, 3), 90, np.uint8), pixels(APEX), None, 1), "no face is found"),
        ((pixels(ONSET), pixels(APEX), None, 3), "face 3 is asked for"),
    ):
        with pytest.raises(gradio.Error, match=match):
            page.read(*given)
    with pytest.raises(gradio.Error, match="13 faces"):
        page.shows([1] * 16, 1.0, 1.0, [str(OTHER)] * 13)


@pytest.mark.slow
def test_the_strongest_event_of_a_video_is_read(page: Any, tmp_path: Path) -> None:
    import gradio

    video = make_long_video(tmp_path / "face.mp4", seed=15, seconds=5, fps=30)
    codes, strength = page.read(None, None, str(tmp_path / "face.mp4"), 1)
    assert len(codes) == 16 and strength > 0.1 and video.events
    make_long_video(tmp_path / "long.mp4", seed=15, seconds=25, fps=5)
    with pytest.raises(gradio.Error, match="lasts 25 s; give at most 20"):
        page.read(None, None, str(tmp_path / "long.mp4"), 1)


def test_a_port_that_is_taken_is_one_line(page: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["app", "--port", str(port), "--browser", "false"]) == 2
    assert f"port {port}" in capsys.readouterr().err


@pytest.fixture
def url(page: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    """The page, served by the command itself, which does not wait for Ctrl-C here."""
    import gradio

    served: dict[str, Any] = {}
    launch = gradio.Blocks.launch

    def started(blocks: Any, **how: Any) -> Any:
        served["blocks"], served["how"] = blocks, how
        return launch(blocks, **how)

    monkeypatch.setattr(gradio.Blocks, "launch", started)
    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda blocks: None)
    assert main(["app", "--browser", "false"]) == 0
    assert served["how"]["server_name"] == "127.0.0.1" and not served["how"]["share"]
    assert served["how"]["max_file_size"] == "50mb" and not served["blocks"].analytics_enabled
    yield capsys.readouterr().out.split()[0]
    served["blocks"].close()


@pytest.fixture
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium with chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1300,1500"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    service = webdriver.ChromeService(driver)
    with webdriver.Chrome(options=options, service=service) as opened:
        yield opened


def asked_for(browser: Any) -> set[str]:
    """Addresses that the page asked anything of."""
    told = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [
        each["params"]["request"]["url"] for each in told if each["method"] == "Network.requestWillBeSent"
    ]
    return {url for url in sent if url.startswith(("http", "ws"))}


@pytest.mark.slow
def test_a_file_that_is_too_large_is_refused(url: str) -> None:
    start = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    for size, right in ((1 << 20, True), (51 << 20, False)):
        request = urllib.request.Request(
            f"{url}gradio_api/upload", start + bytes(size) + b"\r\n--x--\r\n", kind
        )
        if right:
            assert urllib.request.urlopen(request).status == 200
        else:
            with pytest.raises(urllib.error.HTTPError, match="413"):
                urllib.request.urlopen(request)


@pytest.mark.slow
def test_upload_click_and_the_picture_changes(url: str, browser: Any) -> None:
    from selenium.common.exceptions import StaleElementReferenceException

    def all_of(what: str) -> list[Any]:
        return list(browser.find_elements("css selector", what))

    def sources() -> list[str]:
        return [image.get_attribute("src") for image in all_of("#out img")]

    def until(true: Callable[[], Any]) -> None:
        def holds() -> Any:
            with suppress(StaleElementReferenceException, IndexError):  # the page is drawn anew
                return true()

        wait_for(holds, 120)

    browser.get(url)
    until(lambda: all_of("#onset input[type=file]"))
    all_of("#onset input[type=file]")[0].send_keys(str(ONSET))
    all_of("#apex input[type=file]")[0].send_keys(str(APEX))
    until(lambda: all_of("#onset img") and all_of("#apex img"))
    all_of("#read")[0].click()
    until(lambda: all_of("#token15")[0].text.isdigit() and len(sources()) == 4)
    model = mefar.load("demo")
    codes = model.tokenize(ONSET, APEX).indices[0].tolist()
    assert [int(all_of(f"#token{place}")[0].text) for place in range(16)] == codes
    until(lambda: "surprise" in all_of("#classes")[0].text)
    before, code = sources(), (codes[3] + 2) % 32
    all_of("#token3")[0].click()
    until(lambda: "Token 4 of 16" in all_of("#picked")[0].text)
    all_of("#palette label")[code].click()
    until(lambda: all_of("#token3")[0].text == str(code) and len(sources()) == 4 and sources() != before)
    after = sources()
    assert after[1] != before[1] and after[3] != before[3]  # both faces in action
    assert {address for address in asked_for(browser) if not address.startswith(url)} == set()
