"""pictures/flipbook.py: every drawing is sent, and in a browser the controls show the right one."""

import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest

from pictures.flipbook import flipbook
from tests.test_explorer import chromium, find  # noqa: F401 (the fixture acts by being here)

PICTURE = np.arange(3 * 4 * 6, dtype=np.uint8).reshape(3, 4, 6)
BOTH = {"power": [1, 2, 3], "sign": ["plus", "minus"]}


def draw(*values):
    figure, ax = plt.subplots(figsize=(2, 1), dpi=50)
    ax.plot([0, 1], [0, sum(v if isinstance(v, int) else len(v) for v in values)])
    ax.set_title(f"of {values}")
    return figure


def given(page):
    return json.loads(re.search(r"\(document.currentScript.parentElement, (.*)\);\n", page)[1])


def test_every_combination_is_drawn_in_order_and_the_start_stands_still():
    opened = plt.get_fignums()
    page = flipbook(draw, BOTH, start=[2, "minus"]).data
    facts = given(page)
    every = [(n, sign) for n in (1, 2, 3) for sign in ("plus", "minus")]
    assert facts["said"] == [f"of {values}" for values in every]
    assert len(facts["drawings"]) == 6 and f'src="{facts["drawings"][3]}"' in page
    assert [c["slide"] for c in facts["controls"]] == [True, False]
    assert [c["start"] for c in facts["controls"]] == [1, 1]
    assert page == flipbook(draw, BOTH, start=[2, "minus"]).data  # the same bytes
    assert plt.get_fignums() == opened  # none is left for the notebook to show again
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "</script>" not in page.split("<script>")[1].rpartition("</script>")[0]


def test_what_cannot_be_sent_is_refused():
    def noise(seed):
        figure = plt.figure(figsize=(6, 4), dpi=100)
        figure.figimage(np.random.default_rng(seed).random((400, 600)))
        return figure

    for arguments, message in (
        (dict(draw=draw, controls={"n": range(81)}), "81 drawings asked for"),
        (dict(draw=draw), "1 drawings asked for"),
        (dict(draw=draw, controls=BOTH, start=[4, "plus"]), "start is .4, 'plus'."),
        (dict(draw=noise, controls={"n": range(4)}), "250 kB is the limit"),
    ):
        with pytest.raises(ValueError, match=message):
            flipbook(**arguments)


def shown(driver):
    """(number of the drawing that is shown, what is said of it)."""
    (drawing,) = find(driver, ".fb-live img")
    assert drawing.is_displayed() and drawing.get_property("naturalWidth") == 100
    return drawing.get_attribute("src"), find(driver, ".fb-said")[0].get_property("textContent")


def test_controls_in_a_browser(chromium, tmp_path):  # noqa: F811
    from selenium.webdriver import ActionChains, Keys

    html = flipbook(draw, {"power": [1, 2, 3]}, start=[4, 2], patches=PICTURE, grid=(2, 3)).data
    facts, path = given(html), tmp_path / "page.html"
    path.write_text(f"<meta charset=utf-8>{html}", encoding="utf-8")
    chromium.get(path.as_uri())
    every = [(patch, n) for patch in range(6) for n in (1, 2, 3)]

    def must_show(*values):
        i = every.index(values)
        assert shown(chromium) == (facts["drawings"][i], f"of {values}")

    def press(element, *keys):
        element.send_keys(*(getattr(Keys, key) for key in keys))

    must_show(4, 2)
    assert not find(chromium, ".fb-still")[0].is_displayed()
    (slider,) = find(chromium, "input[type=range]")
    press(slider, "ARROW_RIGHT")
    must_show(4, 3)
    assert find(chromium, "output")[0].text == slider.get_attribute("aria-valuetext") == "3"
    (patches,) = find(chromium, ".fb-patches")
    assert patches.size == {"width": 200, "height": 133}
    ActionChains(chromium).move_to_element_with_offset(patches, 90, -60).click().perform()
    must_show(2, 3)
    for keys, patch in (
        (["ARROW_DOWN"], 5),
        (["ARROW_DOWN", "ARROW_RIGHT"], 5),  # at the edge it stays
        (["HOME"], 3),
        (["ARROW_UP", "END", "ARROW_LEFT"], 1),
    ):
        press(patches, *keys)
        must_show(patch, 3)
    assert patches.get_attribute("aria-valuetext") == "row 0, column 1"
    mark = find(chromium, ".fb-mark")[0].rect
    assert (round(mark["width"]), round(mark["height"])) == (67, 67)


def test_a_list_and_a_still_in_a_browser(chromium, tmp_path):  # noqa: F811
    html, path = flipbook(draw, BOTH).data, tmp_path / "page.html"
    path.write_text(f"<meta charset=utf-8>{html}", encoding="utf-8")
    chromium.get(path.as_uri())
    find(chromium, "option")[1].click()
    assert shown(chromium)[1] == "of (1, 'minus')"
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        chromium.get(path.as_uri())
        (still,) = find(chromium, ".fb-still img")
        assert still.is_displayed() and not find(chromium, ".fb-live")
        assert still.get_attribute("alt") == "of (1, 'plus')"
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_an_image_of_patches_is_the_image():
    facts = given(flipbook(draw, patches=PICTURE, grid=(2, 3)).data)
    assert facts["patches"]["shape"] == "6 / 4" and len(facts["drawings"]) == 6
    assert facts["patches"]["picture"].startswith("data:image/png;base64,")
