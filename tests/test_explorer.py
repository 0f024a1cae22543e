"""pictures/explorer.py: its numbers are the model's, and in a browser it does what it says."""

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
import zlib
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

from helpers.augmentation import normalize
from helpers.inspection import attention_maps, attention_rollout
from helpers.model import VisionTransformer
from pictures import explorer as module
from pictures.explorer import explorer
from tests.notebook_rules import DEBRIS, MACHINE, REMOTE, ROOT

BUILD = """
import torch
from helpers.data import load
from helpers.model import VisionTransformer

def build(global_pool):
    torch.manual_seed(0)
    model = VisionTransformer(8, 2, 1, 10, 24, 3, 4, global_pool=global_pool)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return model

data = load("digits")
images = data.test.images[:3]
"""
there = {}
exec(BUILD, there)  # the same here as in the notebook that a browser shows
build, data, images = there["build"], there["data"], there["images"]
TITLES = ["first", "</script><b onclick='x'>\"second\" & more", "third"]


def given(page):
    """What the script of the first explorer in the page is given, its attention unpacked.

    -> (facts, values (L, h, n, T, T), rollout (n, T, T), steps (L, h)).
    """
    facts = json.loads(re.search(r"document\.currentScript\.parentElement, (\{.*\})\);", page)[1])
    start, packed = facts["attention"].split(",")
    assert start == "data:application/zlib;base64"
    n, steps = len(facts["titles"]), np.array(facts["steps"])
    T = facts["rows"] * facts["cols"] + facts["classToken"]
    counts = np.frombuffer(zlib.decompress(base64.b64decode(packed)), dtype=np.uint8)
    counts = counts.reshape(-1, n, T, T).astype(float)
    values = counts[:-1].reshape(*steps.shape, n, T, T) * steps[..., None, None, None]
    return facts, values, counts[-1] * facts["rolloutStep"], steps


def truth(model, images):
    """(maps (L, h, n, T, T), rollout (n, T, T)) without a detour."""
    maps = attention_maps(model, normalize(images, data))
    return torch.stack(maps).transpose(1, 2).numpy(), attention_rollout(maps).numpy()


def colour_model(**changes):
    sizes = dict(img_size=32, patch_size=4, in_chans=3, num_classes=10, embed_dim=24, depth=2)
    return VisionTransformer(**(sizes | dict(num_heads=2) | changes))


# What is sent


@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_stored_numbers_equal_the_maps_within_half_a_step(global_pool):
    model = build(global_pool)
    facts, values, rollout, steps = given(explorer(model, images, data).data)
    true_values, true_rollout = truth(model, images)
    assert values.shape == true_values.shape and facts["classToken"] == (global_pool == "token")
    within = steps[..., None, None, None] / 2 + 1e-6
    assert (abs(values - true_values) <= within).all()
    assert abs(rollout - true_rollout).max() <= facts["rolloutStep"] / 2 + 1e-6
    assert (steps <= true_values.max((2, 3, 4)) / 254).all()  # as fine as 8 bits allow
    assert true_values.std() > 0.03  # else all of this would say little


def test_coarser_steps_are_stated_and_hold():
    maps = attention_maps(build("token"), normalize(images, data))
    flat = [m**0.1 / (m**0.1).sum(-1, keepdim=True) for m in maps]  # hardly a peak
    T = flat[0].shape[-1]
    fine, coarse = (module.packed(flat, attention_rollout(flat), c) for c in (0, 1 / 5))
    assert len(coarse["attention"]) < 0.8 * len(fine["attention"])
    assert np.max(fine["steps"]) < 1 / 5 / T
    assert coarse["steps"] == [[float(f"{1 / 5 / T:.6g}")] * 4] * 3


@pytest.mark.parametrize("std", [0.02, 0.3, 1.0])  # from even attention to one token that gets all
def test_the_sizes_of_the_series_fit(std):
    torch.manual_seed(0)
    model = VisionTransformer(28, 4, 1, 10, 64, 6, 4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    pictures = torch.randint(256, (6, 1, 28, 28), dtype=torch.uint8)
    assert len(explorer(model, pictures, data).data.encode()) <= 300_000
    assert len(explorer(build("token"), data.test.images[:6], data).data.encode()) <= 60_000


def test_too_much_is_refused_and_the_advice_works():
    model = VisionTransformer(28, 2, 1, 10, 16, 2, 2)
    pictures = torch.randint(256, (9, 1, 28, 28), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"300 kB is the limit: send images\[:\d\]") as error:
        explorer(model, pictures, data)
    fits = int(re.search(r"images\[:(\d)\]", str(error.value))[1])
    assert len(explorer(model, pictures[:fits], data).data) <= 300_000


def test_one_image_too_much_asks_for_a_smaller_model(monkeypatch):
    monkeypatch.setattr(module, "LIMIT", 5_000)
    with pytest.raises(ValueError, match="send a model with larger patches"):
        explorer(build("token"), images[:1], data)


def test_same_input_same_bytes_and_nothing_from_elsewhere():
    model = build("token").train()
    page = explorer(model, images, data, TITLES).data
    assert page == explorer(model, images, data, TITLES).data
    assert model.training and not any(m._forward_hooks for m in model.modules())
    bare = re.sub(r"base64,[\w+/=]+", "", page)  # as in the rules for notebooks
    assert not re.search(r"https?:|\bid=|Math\.random|fetch\(", bare)
    assert not any(rule.search(bare) for rule in (DEBRIS, MACHINE, REMOTE))


def test_titles_cannot_leave_their_place():
    page = explorer(build("token"), images[1:], data, TITLES[1:]).data
    assert page.count("</script>") == 1 and "<b onclick" not in page
    assert "&lt;b onclick" in page  # in the caption of the still picture
    assert given(page)[0]["titles"] == TITLES[1:]


def test_predictions_are_the_models():
    model = build("token").eval()
    with torch.no_grad():
        shares, best = model(normalize(images, data)).softmax(-1).topk(3)
    for said, row, labels in zip(
        given(explorer(model, images, data).data)[0]["predictions"], shares, best, strict=True
    ):
        pairs = zip(labels, row, strict=True)
        assert said == ", ".join(f"{data.classes[i]} {100 * p:.0f}%" for i, p in pairs)


def test_without_a_head_nothing_is_predicted():
    model = VisionTransformer(8, 2, 1, 0, 24, 2, 4)
    assert given(explorer(model, images, data).data)[0]["predictions"] == [""] * 3


def test_other_shapes_and_colours():
    pictures = torch.randint(256, (2, 3, 32, 24), dtype=torch.uint8)
    model = colour_model(img_size=(32, 24))
    three = SimpleNamespace(classes=data.classes, mean=(0.5,) * 3, std=(0.2,) * 3)
    facts, values, *_ = given(explorer(model, pictures, three).data)
    assert (facts["rows"], facts["cols"]) == (8, 6) and values.shape == (2, 2, 2, 49, 49)


@pytest.mark.parametrize(
    ("pictures", "titles", "words"),
    [
        (images.float(), None, "a uint8 tensor .* is needed"),
        (images[0], None, "a uint8 tensor .* is needed"),
        (images[:0], None, "one or more of"),
        (images[..., :6], None, r"the model needs one or more of \(C, H, W\) = \(1, 8, 8\)"),
        (images, ["one"], "1 titles for 3 images"),
    ],
)
def test_what_does_not_fit_is_refused(pictures, titles, words):
    with pytest.raises(ValueError, match=words):
        explorer(build("token"), pictures, data, titles)


def test_classes_must_be_as_many_as_the_head_has():
    model = VisionTransformer(8, 2, 1, 3, 24, 2, 4)
    with pytest.raises(ValueError, match="10 class names given, the model's head needs 3"):
        explorer(model, images, data)


def test_script_and_style_are_packaged():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = project["tool"]["setuptools"]["package-data"]["helpers"]
    assert set(named) == {f"explorer.{end}" for end in ("css", "js")}
    assert all((ROOT / "helpers" / name).is_file() for name in named)


# In a browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A headless Chromium to which nothing but this machine exists."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium here")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("no chromium with its chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in (
        "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --window-size=1200,1000 "
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}"
    ).split() + ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    driver.set_script_timeout(30)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def executed(tmp_path_factory, chromium):
    """(executed notebook with two explorers, its path)."""
    cells = [
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{BUILD}",
        f"from pictures.explorer import explorer\nexplorer(build('token'), images, data, {TITLES})",
        "explorer(build('avg'), images, data)",
    ]
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in cells]
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    path = tmp_path_factory.mktemp("notebook") / "shown.ipynb"
    nbformat.write(notebook, path)
    return notebook, path


@pytest.fixture(scope="module")
def exported(executed):
    """Path of the page that nbconvert makes of it."""
    from nbconvert import HTMLExporter

    notebook, path = executed
    page = path.with_suffix(".html")
    page.write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
    return page


def wait(condition, what, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.1)
    return found


def all_live(driver, n):
    return wait(
        lambda: (
            len(found := driver.find_elements("css selector", ".vit-explorer .vx-live")) == n
            and [element.find_element("xpath", "..") for element in found]
        ),
        f"{n} explorers",
    )


def requests(driver):
    """Addresses asked for since the last call, those inside the page left out."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages
             if m["method"] == "Network.requestWillBeSent"]  # fmt: skip
    return [url for url in asked if not url.startswith(("data:", "blob:", "file:"))]


class Shown:
    """One explorer in the browser, and what it must show."""

    def __init__(self, driver, root, model):
        self.driver, self.root = driver, root
        self.asks, self.looks = root.find_elements("css selector", "[role=grid]")
        self.image, self.layer, self.head = root.find_elements("css selector", "select")
        self.maps, self.rollout = truth(model, images)
        facts, _, _, self.steps = given(explorer(model, images, data).data)
        self.rollout_step = facts["rolloutStep"]
        self.first = int(model.cls_token is not None)

    def choose(self, select, value):
        select.find_element("css selector", f"option[value='{value}']").click()

    def press(self, *names):
        """Arrow keys on whatever has the focus."""
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.keys import Keys

        for name in names:
            ActionChains(self.driver).send_keys(getattr(Keys, name)).perform()

    def point_at(self, element):
        """Move the mouse there."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).move_to_element(element).perform()

    def query(self):
        """The number of the token that looks."""
        script = "return [...arguments[0].querySelectorAll('[role=gridcell]')].map(c => [" \
                 "c.getAttribute('aria-selected'), c.classList.contains('vx-query')])"  # fmt: skip
        found = self.driver.execute_script(script, self.asks)
        assert [selected == "true" for selected, _ in found] == [framed for _, framed in found]
        return [framed for _, framed in found].index(True)

    def numbers(self):
        script = "return [...arguments[0].querySelectorAll('[role=gridcell]')]" \
                 ".map(c => c.getAttribute('aria-label'))"  # fmt: skip
        labels = self.driver.execute_script(script, self.looks)
        return np.array([float(label.split(": ")[1].rstrip("%")) for label in labels]) / 100

    def must_show(self, image, layer, head, query):
        """The numbers are those of the model; layer 3 is the rollout, head 4 the mean."""
        assert self.query() == query
        if layer == 3:
            true, step = self.rollout[image, query], self.rollout_step
        elif head == 4:
            true, step = self.maps[layer, :, image, query].mean(0), self.steps[layer].mean()
        else:
            true, step = self.maps[layer, head, image, query], self.steps[layer, head]
        assert abs(self.numbers() - true).max() <= step / 2 + 0.0005 + 1e-6
        said = self.root.find_element("css selector", ".vx-said").text
        largest = true[self.first :].max()
        shown = float(re.search(r"looks most at.*?\((.*?)%\)|made most of.*?\((.*?)%\)", said)[0]
                      .split("(")[-1].rstrip("%)")) / 100  # fmt: skip
        assert abs(shown - largest) <= step / 2 + 0.0005 + 1e-6

    def play(self):
        """Everything a reader can do, on 4 x 4 patches and a class token; ends where it began."""
        self.point_at(self.image)
        first = self.first
        start = 0 if first else 10
        self.must_show(0, 2, 4, start)
        self.choose(self.layer, 0)
        self.must_show(0, 0, 4, start)
        self.choose(self.head, 1)
        self.choose(self.image, 2)
        self.must_show(2, 0, 1, start)
        cells = self.asks.find_elements("css selector", "[role=gridcell]")
        cells[first + 5].click()
        self.must_show(2, 0, 1, first + 5)
        self.press("ARROW_RIGHT")
        self.must_show(2, 0, 1, first + 6)
        self.press("ARROW_DOWN", "HOME")
        self.must_show(2, 0, 1, first + 8)
        self.press("ARROW_UP", "ARROW_UP", "END", "ARROW_RIGHT")  # at the edge it stays
        assert self.query() == first + 3
        self.press("ARROW_UP")
        self.must_show(2, 0, 1, 0 if first else 3)
        if first:
            self.press("ARROW_DOWN")
            assert self.query() == 4  # the column is remembered
        self.choose(self.layer, 3)
        assert not self.head.is_enabled()
        self.must_show(2, 3, 1, first + 3)
        self.point_at_a_key(first + 9)
        self.choose(self.layer, 1)
        self.must_show(2, 1, 1, first + 3)
        self.root.find_elements("css selector", "canvas")[-2].click()  # last layer, the mean
        self.must_show(2, 2, 4, first + 3)
        self.point_at_a_query(first + 6)
        self.choose(self.image, 0)
        cells[start].click()
        self.must_show(0, 2, 4, start)

    def point_at_a_key(self, token):
        """Hovering, and then the keyboard, in the right grid: the number of that token."""
        cells = self.looks.find_elements("css selector", "[role=gridcell]")
        pointed = self.root.find_element("css selector", ".vx-pointed")
        assert pointed.get_attribute("aria-live") == "polite"
        self.point_at(cells[token])
        row, column = divmod(token - self.first, 4)
        said = f"row {row + 1}, column {column + 1}: {100 * self.numbers()[token]:.1f}%"
        assert pointed.text == said
        before = self.query()
        cells[token].click()
        self.press("ARROW_LEFT")
        assert pointed.text.startswith(f"row {row + 1}, column {column}: ")
        assert self.query() == before

    def point_at_a_query(self, token):
        """Hovering in the left grid shows that token, leaving it what was kept before."""

        kept, before = self.query(), self.numbers()
        cells = self.asks.find_elements("css selector", "[role=gridcell]")
        self.point_at(cells[token])
        true = self.maps[2, :, 2, token].mean(0)
        assert abs(self.numbers() - true).max() <= self.steps[2].mean() / 2 + 0.0005 + 1e-6
        self.point_at(self.image)
        assert self.query() == kept and (self.numbers() == before).all()


TEXTS = """
const out = [], walker = document.createTreeWalker(arguments[0], NodeFilter.SHOW_TEXT);
for (let node; (node = walker.nextNode());) {
  const own = node.parentElement;
  if (!node.data.trim() || !own.checkVisibility() || own.closest('style, script')) continue;
  const grounds = [];
  for (let at = own; at; at = at.parentElement) {
    const ground = getComputedStyle(at).backgroundColor;
    grounds.push(ground);
    if (/^rgb\\(/.test(ground)) break;
  }
  out.push([node.data.trim(), getComputedStyle(own).color, grounds]);
}
return out;
"""


def channels(css):
    r, g, b, *alpha = (float(part) for part in re.findall(r"[\d.]+", css))
    return np.array([r, g, b]) / 255, alpha[0] if alpha else 1.0


def over(css, ground):
    colour, alpha = channels(css)
    return alpha * colour + (1 - alpha) * ground


def luminance(rgb):
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def must_be_readable(driver, root, dark):
    """Every text stands out from its ground by 4.5 to 1 (WCAG 2, AA); the ground is as expected."""
    found = driver.execute_script(TEXTS, root)
    assert len(found) > 20
    for text, colour, grounds in found:
        ground = np.ones(3)
        for css in reversed(grounds):
            ground = over(css, ground)
        light, low = sorted((luminance(over(colour, ground)), luminance(ground)), reverse=True)
        assert (light + 0.05) / (low + 0.05) >= 4.5, (text, colour, grounds)
    ground = luminance(channels(root.value_of_css_property("background-color"))[0])
    assert ground < 0.05 if dark else ground > 0.8


def prefer(driver, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def errors(driver):
    return [entry["message"] for entry in driver.get_log("browser")
            if entry["level"] == "SEVERE" and "ERR_NAME_NOT_RESOLVED" not in entry["message"]
            and "favicon" not in entry["message"]]  # fmt: skip


def test_live_in_an_exported_page_without_a_network(chromium, exported):
    from nbconvert import HTMLExporter

    chromium.get("about:blank")
    requests(chromium), errors(chromium)
    chromium.get(exported.as_uri())
    token, average = all_live(chromium, 2)
    empty, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook())
    assert [url for url in requests(chromium) if url not in empty] == []  # nbconvert's own aside
    assert not any(
        still.is_displayed() for still in chromium.find_elements("class name", "vx-still")
    )
    token = Shown(chromium, token, build("token"))
    assert [option.text for option in token.image.find_elements("css selector", "option")] == TITLES
    token.play()
    Shown(chromium, average, build("avg")).play()
    must_be_readable(chromium, token.root, dark=False)
    assert requests(chromium) == [] and errors(chromium) == []


def test_readable_where_the_system_is_dark_and_at_any_width(chromium, tmp_path):
    page = tmp_path / "bare.html"
    page.write_text(f'<meta charset="utf-8">{explorer(build("token"), images, data).data}')
    try:
        for scheme in ("dark", "light"):
            prefer(chromium, scheme)
            chromium.get(page.as_uri())
            (root,) = all_live(chromium, 1)
            must_be_readable(chromium, root, dark=scheme == "dark")
        chromium.set_window_size(500, 1000)
        wide = "return document.documentElement.scrollWidth <= window.innerWidth"
        assert chromium.execute_script(wide)
    finally:
        prefer(chromium, "")
        chromium.set_window_size(1200, 1000)


def test_a_still_picture_where_no_script_runs(chromium, exported):
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        chromium.get(exported.as_uri())
        stills = wait(lambda: chromium.find_elements("css selector", ".vx-still img"), "pictures")
        assert len(stills) == 2 and not chromium.find_elements("class name", "vx-live")
        for still in stills:
            assert still.is_displayed() and still.size["width"] > 300 and still.size["height"] > 80
            assert still.get_property("naturalWidth") > 300
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.fixture(scope="module")
def lab(executed, tmp_path_factory):
    """Address of a JupyterLab with the notebook; its settings are nobody's."""
    pytest.importorskip("jupyterlab", reason="no JupyterLab here")
    home = tmp_path_factory.mktemp("home")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    folders |= {f"JUPYTERLAB_{name}_DIR": str(home / name) for name in ("SETTINGS", "WORKSPACES")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--ip=127.0.0.1", "--ServerApp.port_retries=0", "--expose-app-in-browser"]
    command += ["--IdentityProvider.token=", "--ServerApp.password=", "--LabApp.news_url=None"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    command += ["--JupyterNotebookApp.expose_app_in_browser=True"]
    command += [f"--ServerApp.root_dir={executed[1].parent}"]
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, env=os.environ | folders, stdout=log, stderr=log,
                                  start_new_session=True)  # fmt: skip
    address = f"http://127.0.0.1:{port}"

    def answers():
        assert server.poll() is None, (home / "log").read_text()
        try:
            return urllib.request.urlopen(f"{address}/api", timeout=5)
        except OSError:
            return False

    try:
        wait(answers, "JupyterLab")
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # the kernel too, which has this group
        server.wait(20)


def command(driver, name, **options):
    """Run one of JupyterLab's commands and wait until it is done."""
    script = "const done = arguments[2]; window.jupyterapp.commands.execute(" \
             "arguments[0], arguments[1]).then(() => done(''), (e) => done(String(e)))"  # fmt: skip
    assert driver.execute_async_script(script, name, options) == ""


def run_all(driver):
    ready = "return window.jupyterapp?.shell.currentWidget?.context?.sessionContext?.isReady"
    wait(lambda: driver.execute_script(ready), "the kernel")
    command(driver, "notebook:run-all-cells")


def test_live_in_jupyterlab(chromium, lab):
    chromium.get("about:blank")
    requests(chromium), errors(chromium)
    chromium.get(f"{lab}/lab/tree/shown.ipynb")
    # Somebody else's outputs: JupyterLab takes their scripts away, and the pictures stand there.
    stills = wait(
        lambda: (
            len(found := chromium.find_elements("css selector", ".vx-still img")) == 2 and found
        ),
        "the notebook",
    )
    wait(stills[0].is_displayed, "the still picture")
    assert not chromium.find_elements("class name", "vx-live")

    run_all(chromium)
    token, average = all_live(chromium, 2)
    chromium.execute_script("arguments[0].scrollIntoView()", token)
    token = Shown(chromium, token, build("token"))
    token.play()
    Shown(chromium, average, build("avg")).must_show(0, 2, 4, 10)
    must_be_readable(chromium, token.root, dark=False)

    command(chromium, "apputils:change-theme", theme="JupyterLab Dark")
    dark = "return document.body.dataset.jpThemeLight === 'false'"
    wait(lambda: chromium.execute_script(dark), "the dark theme")
    must_be_readable(chromium, token.root, dark=True)
    assert [url for url in requests(chromium) if not url.startswith(lab)] == []


def test_live_in_notebook_7(chromium, lab):
    pytest.importorskip("notebook", reason="no Notebook 7 here")
    chromium.get(f"{lab}/notebooks/shown.ipynb")
    run_all(chromium)
    token, _ = all_live(chromium, 2)
    token = Shown(chromium, token, build("token"))
    token.asks.find_elements("css selector", "[role=gridcell]")[6].click()
    token.press("ARROW_DOWN")  # its own shortcuts take keys before the page does
    token.must_show(0, 2, 4, 10)
    token.point_at_a_key(7)
