"""pictures/explorer.py: its numbers are the model's, and in a browser it does what it says."""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zlib
from functools import partial
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

from helpers.augmentation import normalize
from helpers.inspection import attention_maps, attention_rollout
from helpers.model import VisionTransformer
from lab.real_vit import as_pixels
from pictures import explorer as module
from pictures.explorer import explorer
from tests.browser import headless
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
    """What the page's script is given: (facts, values (L, h, n, T, T), rollout (n, T, T))."""
    facts = json.loads(re.search(r"document\.currentScript\.parentElement, (\{.*\})\);", page)[1])
    packed = facts["attention"].removeprefix("data:application/zlib;base64,")
    n, T = len(facts["titles"]), facts["rows"] * facts["cols"] + facts["classToken"]
    counts = np.frombuffer(zlib.decompress(base64.b64decode(packed)), dtype=np.uint8)
    counts, steps = counts.reshape(-1, n, T, T).astype(float), np.array(facts["steps"])
    values = counts[:-1].reshape(*steps.shape, n, T, T) * steps[..., None, None, None]
    return facts, values, counts[-1] * facts["rolloutStep"]


def truth(model, images, data):
    """What the page must be given, as given returns it."""
    maps = attention_maps(model, normalize(images, data))
    return torch.stack(maps).transpose(1, 2).numpy(), attention_rollout(maps).numpy()


@pytest.mark.parametrize("kind", ["token", "avg", "colours"])
def test_stored_numbers_equal_the_maps_within_half_a_step(kind):
    if kind == "colours":
        model = VisionTransformer((32, 24), 4, 3, 10, 24, 2, 2, pos_embed_std=2.0)
        pictures = torch.randint(256, (2, 3, 32, 24), dtype=torch.uint8)
        source = SimpleNamespace(classes=data.classes, mean=(0.5,) * 3, std=(0.2,) * 3)
    else:
        model, pictures, source = build(kind), images, data
    facts, values, rollout = given(explorer(model, pictures, source).data)
    true_values, true_rollout = truth(model, pictures, source)
    assert values.shape == true_values.shape and facts["classToken"] == (kind != "avg")
    steps = np.array(facts["steps"])
    assert (abs(values - true_values) <= steps[..., None, None, None] / 2 + 1e-6).all()
    assert abs(rollout - true_rollout).max() <= facts["rolloutStep"] / 2 + 1e-6
    assert (steps <= true_values.max((2, 3, 4)) / 254).all()  # as fine as 8 bits allow
    assert true_values.std() > 0.01  # else all of this would say little


def test_what_is_too_large_gets_coarser_steps_or_is_refused_with_advice(monkeypatch):
    even = torch.full((3, 4, 17, 17), 1 / 17)  # each map is shown up to three even shares
    sharp = torch.zeros(3, 4, 17, 17).index_fill_(3, torch.tensor(5), 1.0)
    found = module.packed([even, sharp], even[:, 0], 1 / 5)["steps"]
    assert found == [[float(f"{3 / 5 / 17:.6g}")] * 4, [float(f"{1 / 17:.6g}")] * 4]
    to_class = torch.zeros(3, 4, 17, 17).index_fill_(3, torch.tensor(0), 0.9) + 0.1 / 17
    (steps,) = module.packed([to_class], even[:, 0], 1 / 50, first=1)["steps"]
    assert steps == [pytest.approx(max((0.9 + 0.1 / 17) / 254.5, 3 / 17 / 50), rel=1e-4)] * 4
    model = VisionTransformer(28, 2, 1, 10, 16, 2, 2)
    pictures = torch.randint(256, (9, 1, 28, 28), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"300 kB is the limit: send images\[:\d\]") as error:
        explorer(model, pictures, data)
    fits = int(re.search(r"images\[:(\d)\]", str(error.value))[1])
    assert len(explorer(model, pictures[:fits], data).data) <= 300_000
    monkeypatch.setattr(module, "LIMIT", 5_000)
    with pytest.raises(ValueError, match="send fewer layers, or a model with larger patches"):
        explorer(build("token"), images[:1], data)


def test_some_layers_and_pictures_of_the_tokens_can_be_sent():
    tokens = torch.randint(256, (3, 3, 4, 4), dtype=torch.uint8)
    page = explorer(build("token"), images, data, layers=[1, 3], behind=("colours", tokens)).data
    facts, values, rollout = given(page)
    true_values, true_rollout = truth(build("token"), images, data)
    assert facts["numbers"] == [1, 3] and abs(values - true_values[[0, 2]]).max() < 0.01
    assert abs(rollout - true_rollout).max() < 0.01  # of all three layers
    assert len(facts["behind"]) == 3 and facts["behindName"] == "colours"
    with pytest.raises(ValueError, match=r"layers \[4\] asked for, the model has 1 to 3"):
        explorer(build("token"), images, data, layers=[4])


def test_the_still_shows_the_layers_that_can_be_chosen(monkeypatch):
    seen, draw = [], module.draw_image
    monkeypatch.setattr(module, "draw_image", lambda ax, image: seen.append(ax) or draw(ax, image))
    for layers in ([1, 3], None):
        explorer(build("token"), images, data, layers=layers)
    titles = [[other.get_title() for other in ax.figure.axes] for ax in seen]
    assert titles[0] == ["image", "layer 1", "layer 3", "rollout"]
    assert titles[1] == ["image", "layer 1", "layer 2", "layer 3", "rollout"]


def test_a_photograph_comes_back_from_what_the_model_sees():
    mean, std = torch.tensor([0.4, 0.5, 0.6])[:, None, None], torch.tensor([0.2, 0.25, 0.3])
    photo = torch.randint(256, (3, 16, 16), dtype=torch.uint8).numpy()
    see = lambda shown: ((torch.as_tensor(shown) / 255 - mean) / std[:, None, None])[None]  # noqa: E731
    pixels, facts = as_pixels(see, photo)
    assert np.array_equal(pixels[0], photo)
    assert np.allclose(facts.mean, mean.flatten()) and np.allclose(facts.std, std)


def test_same_input_same_bytes_and_nothing_from_elsewhere():
    model = build("token").train()
    page = explorer(model, images[1:], data, TITLES[1:]).data
    assert page == explorer(model, images[1:], data, TITLES[1:]).data
    assert model.training and not any(m._forward_hooks for m in model.modules())
    bare = re.sub(r"base64,[\w+/=]+", "", page)  # as in the rules for notebooks
    assert not re.search(r"https?:|\bid=|Math\.random|fetch\(", bare)
    assert not any(rule.search(bare) for rule in (DEBRIS, MACHINE, REMOTE))
    assert page.count("</script>") == 1 and "<b onclick" not in page  # titles stay in their place
    assert "&lt;b onclick" in page and given(page)[0]["titles"] == TITLES[1:]


def test_predictions_are_the_models():
    model = build("token").eval()
    shares, best = model(normalize(images, data)).softmax(-1).topk(3)
    said = given(explorer(model, images, data).data)[0]["predictions"]
    for text, row, labels in zip(said, shares, best, strict=True):
        three = [f"{data.classes[i]} {100 * p:.0f}%" for i, p in zip(labels, row, strict=True)]
        assert text == ", ".join(three)
    headless = VisionTransformer(8, 2, 1, 0, 24, 2, 4)
    assert given(explorer(headless, images, data).data)[0]["predictions"] == [""] * 3


def test_what_does_not_fit_is_refused():
    for pictures, titles, message in (
        (images.float(), None, "a uint8 tensor .* is needed"),
        (images[:0], None, "one or more of"),
        (images[..., :6], None, r"one or more of \(C, H, W\) = \(1, 8, 8\)"),
        (images, ["one"], "1 titles for 3 images"),
    ):
        with pytest.raises(ValueError, match=message):
            explorer(build("token"), pictures, data, titles)
    with pytest.raises(ValueError, match="10 class names given, the model's head needs 3"):
        explorer(VisionTransformer(8, 2, 1, 3, 24, 2, 4), images, data)


# In a browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A headless Chromium to which nothing but this machine exists."""
    more = ["disable-component-update", "disable-sync", "window-size=1200,1000",
            "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # fmt: skip
    logs = {"goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"}}
    driver = headless(tmp_path_factory.mktemp("profile"), more, logs)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def shown_notebook(tmp_path_factory, chromium):
    """Path of an executed notebook with two explorers; the page nbconvert makes lies beside it."""
    from nbconvert import HTMLExporter

    cells = [
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{BUILD}",
        f"from pictures.explorer import explorer\nexplorer(build('token'), images, data, {TITLES})",
        "explorer(build('avg'), images, data)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    NotebookClient(notebook, kernel_name="python3", timeout=600).execute()
    path = tmp_path_factory.mktemp("notebook") / "shown.ipynb"
    nbformat.write(notebook, path)
    page = HTMLExporter().from_notebook_node(notebook)[0]
    path.with_suffix(".html").write_text(page, encoding="utf-8")
    return path


def wait(condition, seconds=300):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.1)
    return found


def find(root, selector, count=None):
    """The elements that fit; with count, waits until they are as many."""
    look = lambda: root.find_elements("css selector", selector)  # noqa: E731
    return look() if count is None else wait(lambda: len(found := look()) == count and found)


def requests(driver):
    """Addresses asked for since the last call, those inside the page left out."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages
             if m["method"] == "Network.requestWillBeSent"]  # fmt: skip
    return [url for url in asked if not url.startswith(("data:", "blob:", "file:"))]


class Shown:
    """One explorer in the browser, and what it must show: 4 x 4 patches, 3 layers, 4 heads."""

    def __init__(self, driver, root, model):
        from selenium.webdriver import ActionChains, Keys

        self.driver, self.root, self.act, self.keys = driver, root, ActionChains, Keys
        self.asks, self.looks = (find(g, "[role=gridcell]") for g in find(root, "[role=grid]"))
        self.image, self.layer, self.head = find(root, "select")
        maps, rollout = truth(model, images, data)
        maps = np.concatenate([maps, maps.mean(1, keepdims=True)], axis=1)  # head 4: the mean
        rollout = np.broadcast_to(rollout, (1, 5, *rollout.shape))  # layer 3, whatever the head
        self.true, self.first = np.concatenate([maps, rollout]), model.num_prefix_tokens

    def press(self, *names):
        self.act(self.driver).send_keys(*(getattr(self.keys, name) for name in names)).perform()

    def point_at(self, element):
        self.act(self.driver).move_to_element(element).perform()

    def must_show(self, image, layer, head, query, kept=None):
        """The numbers are the model's; kept: what is selected, where another is pointed at."""
        script = "return arguments[0].map(c => c.getAttribute(arguments[1]))"
        selected = self.driver.execute_script(script, self.asks, "aria-selected")
        assert selected.index("true") == (query if kept is None else kept)
        labels = self.driver.execute_script(script, self.looks, "aria-label")
        numbers = np.array([float(label.split(": ")[1].rstrip("%")) for label in labels]) / 100
        error, best = numbers - self.true[layer, head, image, query], numbers[self.first :].max()
        assert abs(error).max() <= 0.5 / 254 + 0.0005  # half a step of 8 bits, and of 0.1%
        assert f"({100 * best:.1f}%)" in find(self.root, ".vx-said")[0].text
        return numbers

    def play(self):
        """Everything a reader can do, by pointer and by keyboard."""
        first, start = self.first, 0 if self.first else 10
        self.point_at(self.image)
        self.must_show(0, 2, 4, start)
        for select, value in ((self.layer, 0), (self.head, 1), (self.image, 2)):
            find(select, "option")[value].click()
        self.must_show(2, 0, 1, start)
        self.asks[first + 5].click()
        for keys, token in (
            (["ARROW_RIGHT"], first + 6),
            (["ARROW_DOWN", "HOME"], first + 8),
            (["ARROW_UP", "ARROW_UP", "END", "ARROW_RIGHT"], first + 3),  # at the edge it stays
            (["ARROW_UP"], 0 if first else 3),
            (["ARROW_DOWN"] * first, first + 3),  # the column is remembered
        ):
            self.press(*keys)
            self.must_show(2, 0, 1, token)
        find(self.layer, "option")[3].click()
        assert not self.head.is_enabled()
        numbers = self.must_show(2, 3, 1, first + 3)
        self.point_at(self.looks[first + 9])
        (pointed,) = find(self.root, ".vx-pointed")
        assert pointed.text == f"row 2, column 1: {100 * numbers[first + 9]:.1f}%"
        self.looks[first + 9].click()
        self.press("ARROW_LEFT")
        assert pointed.text.startswith("row 2, column 0: ")
        find(self.root, "canvas")[-2].click()  # last layer, the mean
        self.must_show(2, 2, 4, first + 3)
        self.point_at(self.asks[first + 6])
        self.must_show(2, 2, 4, first + 6, kept=first + 3)
        self.point_at(self.image)
        self.must_show(2, 2, 4, first + 3)


def test_live_in_an_exported_page_without_a_network(chromium, shown_notebook):
    from nbconvert import HTMLExporter

    requests(chromium), chromium.get_log("browser")
    chromium.get(shown_notebook.with_suffix(".html").as_uri())
    token, average = find(chromium, ".vit-explorer:has(.vx-live)", 2)
    empty, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook())
    assert [url for url in requests(chromium) if url not in empty] == []  # nbconvert's own aside
    chromium.get_log("browser")
    assert not any(still.is_displayed() for still in find(chromium, ".vx-still"))
    token = Shown(chromium, token, build("token"))
    assert [option.text for option in find(token.image, "option")] == TITLES
    token.play()
    Shown(chromium, average, build("avg")).play()
    assert requests(chromium) == [] and chromium.get_log("browser") == []


def test_a_still_picture_where_no_script_runs(chromium, shown_notebook):
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        chromium.get(shown_notebook.with_suffix(".html").as_uri())
        for still in find(chromium, ".vx-still img", 2):
            assert still.is_displayed() and still.get_property("naturalWidth") > 300
        assert not find(chromium, ".vx-live")
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_live_in_jupyterlab_and_notebook_7(chromium, shown_notebook, tmp_path):
    pytest.importorskip("notebook", reason="no JupyterLab and no Notebook 7 here")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = (
        f"no-browser allow-root expose-app-in-browser ip=127.0.0.1 port={port} "
        f"ServerApp.port_retries=0 ServerApp.password= ServerApp.root_dir={shown_notebook.parent} "
        "JupyterNotebookApp.expose_app_in_browser=True IdentityProvider.token= "
        "LabApp.news_url=None LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"
    )
    command = [sys.executable, "-m", "jupyterlab", *(f"--{one}" for one in options.split())]
    nobodys = os.environ | {"HOME": str(tmp_path)}  # settings
    server = subprocess.Popen(command, env=nobodys, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        wait(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
        requests(chromium)
        for page in ("lab/tree", "notebooks"):
            chromium.get(f"{address}/{page}/shown.ipynb")
            # Somebody else's outputs: Jupyter takes their scripts away, the pictures stand there.
            still, _ = find(chromium, ".vx-still img", 2)
            wait(still.is_displayed)
            assert not find(chromium, ".vx-live")
            app = "const app = window.jupyterapp;"
            ready = app + "return app?.shell.currentWidget?.context?.sessionContext?.isReady"
            wait(partial(chromium.execute_script, ready))
            chromium.execute_script(app + "app.commands.execute('notebook:run-all-cells')")
            root, _ = find(chromium, ".vit-explorer:has(.vx-live)", 2)
            chromium.execute_script("arguments[0].scrollIntoView()", root)
            token = Shown(chromium, root, build("token"))
            token.asks[6].click()
            token.press("ARROW_DOWN")  # Notebook 7's shortcuts take keys before the page does
            token.must_show(0, 2, 4, 10)
        assert [url for url in requests(chromium) if not url.startswith(address)] == []
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # the kernel too, which has this group
        server.wait(120)


@pytest.fixture
def alone(chromium, tmp_path):
    """alone(width, dark): the explorer by itself in a page of that width -> its root."""
    page = explorer(build("token"), images, data, TITLES).data
    path = tmp_path / "alone.html"
    head = '<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
    path.write_text(head + page, encoding="utf-8")

    def show(width, dark):
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        size = dict(width=width, height=900, deviceScaleFactor=1, mobile=False)
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chromium.get(path.as_uri())
        (root,) = find(chromium, ".vit-explorer:has(.vx-live)", 1)
        return root

    yield show
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


LOOK = """
const root = arguments[0], rgba = text => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
  .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const ground = e => {
  for (; e; e = e.parentElement) {
    const c = rgba(getComputedStyle(e).backgroundColor);
    if (c[3] !== 0) return c;
  }
  return [255, 255, 255];
};
return [...root.querySelectorAll("*")].filter(e => e.checkVisibility()).map(e => {
  const speaks = [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim());
  const pair = [light(rgba(getComputedStyle(e).color)), light(ground(e))].sort((a, b) => b - a);
  const box = e.getBoundingClientRect(), size = parseFloat(getComputedStyle(e).fontSize);
  return {name: e.tagName + "." + e.className, speaks, size, contrast: (pair[0] + 0.05) /
    (pair[1] + 0.05), left: box.left, right: box.right, width: box.width, cell:
    e.getAttribute("role") == "gridcell"};
});
"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1100, 340])
def test_it_can_be_read_in_a_dark_system_and_on_a_narrow_page(chromium, alone, width, dark):
    root = alone(width, dark)
    paper = chromium.execute_script("return getComputedStyle(arguments[0]).backgroundColor", root)
    assert paper == ("rgb(22, 22, 22)" if dark else "rgb(255, 255, 255)")
    parts = chromium.execute_script(LOOK, root)
    words = [part for part in parts if part["speaks"]]
    assert len(words) > 20
    assert [w for w in words if w["contrast"] < 4.5 or w["size"] < 11] == []  # WCAG's AA
    assert [p for p in parts if p["left"] < 0 or p["right"] > width + 0.5] == []
    page = "return document.documentElement.scrollWidth"
    assert chromium.execute_script(page) <= width  # nothing to scroll sideways
    assert min(part["width"] for part in parts if part["cell"]) >= 24  # a finger finds a patch
    Shown(chromium, root, build("token")).must_show(0, 2, 4, 0)
