"""The page of tokens: whole, alone, and a click on a token shows another picture, in a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from pages import Page

from mefar.generation.dictionary import fit
from mefar.generation.editing import chosen
from mefar.report.explore_page import write_exploration
from mefar.tokenizer.plain import PlainTokenizer
from mefar.tokenizer.warp_network import WarpNetwork

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
L, K = 4, 3


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    network = WarpNetwork(48, dim=8, depth=0, num_codes=K, num_tokens=L, code_dim=4)
    torch.nn.init.normal_(network.paint.weight, std=0.3)
    tokenizer = PlainTokenizer(network)
    tokens = chosen(tokenizer, torch.randint(0, K, (24, L)), torch.ones(24))
    words = fit(tokenizer, tokens, torch.rand(24, 2), torch.arange(24) // 3, (12, 4))
    path = tmp_path_factory.mktemp("page") / "explore.html"
    faces = torch.rand(2, 3, 48, 48)
    write_exploration(path, "<b>mine</b>", "abc", tokenizer, words, faces, tokens, {"AU12 </script>": 3}, 1.0)
    return path


def test_the_page_needs_nothing_else_and_the_numbers_stand_beside_it(page: Path) -> None:
    html = page.read_text()
    read = Page(html)
    inside = ("data:image/webp;base64,",)
    assert not [link for link in read.links if not link.startswith(inside)]
    assert html.count("</script>") == 1 and "<b>mine</b>" not in html
    numbers = json.loads(page.with_suffix(".json").read_text())
    assert (
        len(numbers["effect"]) == L and len(numbers["effect"][0]) == K and len(numbers["motion"][0][0]) == 8
    )
    assert sum(numbers["claims"][f"by_{name}"] for name in ("position", "code", "both")) == pytest.approx(1)


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_a_click_changes_a_token_and_shows_its_picture(page: Path) -> None:
    """What the page holds after clicks, told by the page itself."""
    told = """<script>
    const seen = () => [all("#tokens b").map((b) => b.textContent).join(" "),
      all(".view").filter((v) => !v.hidden).map((v) => v.style.backgroundPosition).join(" "),
      document.querySelectorAll("#motion line").length];
    const log = [seen()];
    all("#tokens button")[2].click(); log.push(seen());
    all("#tokens button")[2].click(); log.push(seen());
    all("#palette button")[0].click(); log.push(seen());
    all("input[name=base]")[1].click(); log.push(seen());
    document.title = JSON.stringify(log);
    </script></body>"""
    clicked = page.with_name("clicked.html")
    clicked.write_text(page.read_text().replace("</body>", told))
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", clicked.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    title = done.stdout.split("<title>")[1].split("</title>")[0]
    log = json.loads(title)
    data = json.loads(page.with_suffix(".json").read_text())
    rest, smile = data["bases"].values()
    first, one, two, three, other = ([int(code) for code in entry[0].split()] for entry in log)
    assert one == [*rest[:2], (first[2] + 1) % K, rest[3]] and two[2] == (first[2] + 2) % K and three[2] == 0
    assert other == [*smile[:2], 0, smile[3]]
    for entry, code in zip(log[1:], (one[2], two[2], 0, 0), strict=True):
        assert entry[1] == " ".join([f"{-160 * code}px -320px"] * 4) and entry[2] == 64  # 2 faces, 2 maps
