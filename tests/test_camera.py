"""pictures/camera.py: bytes become a photo, and a browser sends them, or says why it cannot."""

import base64
import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lab.real_vit import read_photo
from pictures.camera import PhotoPicker
from pictures.explorer import style_and_script
from tests.browser import headless
from tests.test_explorer import chromium, find, wait  # noqa: F401 (the fixture acts by being here)

COLOURS = (200, 30, 30), (30, 30, 200)  # the left half, the right half
PAGE = """<!DOCTYPE html><meta charset="utf-8"><style>{style}</style><div id="here"></div>
<script type="module">
  {before}
  const there = {{}};
  window.saved = [];
  const model = {{ get: (name) => there[name], set: (name, value) => {{ there[name] = value; }},
    save_changes: () => window.saved.push(there.jpeg), on: () => {{}}, off: () => {{}} }};
  const code = new Blob([{script}], {{ type: "text/javascript" }});
  const module = await import(URL.createObjectURL(code));
  window.leave = module.default.render({{ model, el: document.querySelector("#here") }});
</script>"""


def picture(width, height):
    image = Image.new("RGB", (width, height), COLOURS[0])
    image.paste(COLOURS[1], (width // 2, 0, width, height))
    return image


def jpeg(width, height):
    file = io.BytesIO()
    picture(width, height).save(file, "JPEG", quality=95)
    return file.getvalue()


def must_be_halves(photo):
    """photo (3, H, W) must be the picture, as exactly as a JPEG is."""
    W = photo.shape[-1]
    for part, colour in zip((photo[..., : W // 3], photo[..., -W // 3 :]), COLOURS, strict=True):
        assert abs(np.asarray(part).mean((1, 2)) - colour).max() < 4


def test_bytes_become_a_photo():
    pytest.importorskip("anywidget")
    picker = PhotoPicker()
    assert picker.photo is None and picker.file is None
    picker.widget.set_state({"jpeg": memoryview(jpeg(60, 40))})  # as a browser's come
    assert picker.photo.dtype == torch.uint8 and picker.photo.shape == (3, 40, 60)
    must_be_halves(picker.photo)
    assert picker.file.read() == jpeg(60, 40)
    mine = read_photo(picker.file, size=28)
    assert mine.shape == (3, 28, 28)
    must_be_halves(mine)


def test_it_is_shown_as_a_widget_is():
    pytest.importorskip("anywidget")
    picker = PhotoPicker()
    shown, _ = picker._repr_mimebundle_(include=None, exclude=None)
    view = shown["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] == picker.widget.model_id


@pytest.mark.parametrize("came", [b"no picture", jpeg(60, 40)[:-200]])
def test_broken_bytes_are_named(came):
    pytest.importorskip("anywidget")
    picker = PhotoPicker()
    picker.widget.jpeg = came
    for look in (lambda: picker.photo, lambda: picker.file):
        with pytest.raises(ValueError, match="no whole picture: choose or take it again"):
            look()


def test_without_anywidget_it_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(ImportError, match="pip install anywidget"):
        PhotoPicker()


class Asking:
    """The figure in a browser, in a page of its own."""

    def __init__(self, driver, folder, before=""):
        style, script = style_and_script("camera")
        html = PAGE.format(style=style, script=json.dumps(script), before=before)
        page = folder / "page.html"
        page.write_text(html, encoding="utf-8")
        driver.get(page.as_uri())
        self.driver = driver
        self.choose, self.camera = find(driver, ".vit-camera button", 2)

    def said(self, text):
        (line,) = find(self.driver, "[aria-live=polite]")
        return wait(lambda: text in line.text, 20)

    def sent(self, count):
        """The last of count pictures that were saved."""
        assert wait(lambda: self.driver.execute_script("return saved.length") == count, 20)
        text = self.driver.execute_script(
            "return btoa(Array.from(new Uint8Array(saved.at(-1).buffer), "
            "(byte) => String.fromCharCode(byte)).join(''))"
        )
        image = Image.open(io.BytesIO(base64.b64decode(text)))
        assert image.format == "JPEG"
        return image

    def shown(self):
        return [node.tag_name for node in find(self.driver, "video, img") if node.is_displayed()]


@pytest.fixture(scope="module")
def with_camera(tmp_path_factory):
    """A headless Chromium with a made-up camera, which needs nobody's leave."""
    more = ["use-fake-device-for-media-stream", "use-fake-ui-for-media-stream"]
    driver = headless(tmp_path_factory.mktemp("profile"), more)
    yield driver
    driver.quit()


def test_the_camera_takes_a_picture(with_camera, tmp_path):
    from selenium.webdriver import Keys

    asking = Asking(with_camera, tmp_path)
    assert asking.said("nowhere else") and asking.shown() == []
    asking.camera.send_keys(Keys.ENTER)  # the keyboard is enough
    asking.said("Look, then take the picture")
    assert asking.shown() == ["video"] and asking.camera.text == "Take the picture"
    with_camera.execute_script("window.track = document.querySelector('video').srcObject")
    asking.camera.send_keys(Keys.SPACE)
    taken = asking.sent(1)
    assert max(taken.size) == 1024 and np.asarray(taken).std() > 5
    assert asking.said("Run the next cell") and asking.shown() == ["img"]
    assert asking.camera.text == "Camera" and find(with_camera, "img")[0].size["height"] == 180
    ends = "return window.track.getTracks().map((track) => track.readyState)"
    assert with_camera.execute_script(ends) == ["ended"]
    asking.camera.click()  # once more
    asking.said("Look, then take the picture")
    assert asking.shown() == ["video"]
    asking.camera.click()
    asking.sent(2)


def test_the_camera_stops_when_the_figure_goes_or_a_file_is_chosen(with_camera, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "small.png")
    for go in (
        lambda: with_camera.execute_script("leave()"),
        lambda: find(with_camera, "input")[0].send_keys(str(tmp_path / "small.png")),
    ):
        asking = Asking(with_camera, tmp_path)
        asking.camera.click()
        asking.said("Look, then take the picture")
        with_camera.execute_script("window.track = document.querySelector('video').srcObject")
        go()
        ends = "return window.track.getTracks()[0].readyState"
        assert wait(lambda ends=ends: with_camera.execute_script(ends) == "ended", 20)
        assert "video" not in asking.shown()


LATE = """const first = {owner}.{name};
  {owner}.{name} = async function (...given) {{
    const came = await first.apply(this, given);
    window.late = came ?? this.srcObject;
    await new Promise((go) => {{ window.go = go; }});
    return came;
  }};"""


@pytest.mark.parametrize(
    "owner, name",
    [("navigator.mediaDevices", "getUserMedia"), ("HTMLMediaElement.prototype", "play")],
)
def test_a_camera_that_comes_too_late_is_stopped(with_camera, tmp_path, owner, name):
    asking = Asking(with_camera, tmp_path, LATE.format(owner=owner, name=name))
    asking.camera.click()
    asking.said("Waiting for the camera")
    assert wait(lambda: with_camera.execute_script("return Boolean(window.go)"), 20)
    with_camera.execute_script("leave(); go()")
    ends = "return late.getTracks()[0].readyState"
    assert wait(lambda: with_camera.execute_script(ends) == "ended", 20)
    assert asking.shown() == [] and asking.camera.text == "Camera"


def test_a_file_is_chosen(chromium, tmp_path):  # noqa: F811
    asking = Asking(chromium, tmp_path)
    (field,) = find(chromium, "input[type=file][accept='image/*']")
    wide, small, text = (tmp_path / name for name in ("wide.png", "small.png", "notes.txt"))
    picture(2000, 1000).save(wide)
    Image.new("RGBA", (30, 20)).save(small)  # nothing but transparency
    text.write_text("no picture", encoding="utf-8")
    field.send_keys(str(wide))
    sent = asking.sent(1)
    assert sent.size == (1024, 512) and asking.said("Run the next cell")
    assert field.get_property("value") == ""  # the same file can be chosen again
    must_be_halves(np.asarray(sent).transpose(2, 0, 1))
    field.send_keys(str(text))
    assert asking.said("notes.txt is no picture that this browser can read")
    field.send_keys(str(small))  # is not enlarged
    sent = asking.sent(2)
    assert sent.size == (30, 20) and np.asarray(sent).min() > 250
    chromium.execute_script(
        "window.opened = 0; document.querySelector('input').click = () => { window.opened += 1; }"
    )
    asking.choose.click()
    assert chromium.execute_script("return window.opened") == 1


def test_a_picture_is_turned_as_its_tag_says(chromium, tmp_path):  # noqa: F811
    turned, exif = picture(40, 60).rotate(90, expand=True), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    asking = Asking(chromium, tmp_path)
    find(chromium, "input")[0].send_keys(str(tmp_path / "turned.jpg"))
    sent = asking.sent(1)
    assert sent.size == (40, 60)
    must_be_halves(np.asarray(sent).transpose(2, 0, 1))


def refusing(name):
    return (
        "navigator.mediaDevices.getUserMedia = "
        f"() => Promise.reject(new DOMException('', '{name}'));"
    )


@pytest.mark.parametrize(
    "before, text",
    [
        ("", "There is no camera here"),  # this Chromium has none
        (refusing("NotAllowedError"), "The camera was refused. Allow it for this page, or choose"),
        (refusing("NotReadableError"), "Another program holds the camera"),
        (refusing("AbortError"), "The camera failed (AbortError)"),
        ("Object.defineProperty(navigator, 'mediaDevices', {});", "need a page from https"),
    ],
)
def test_why_there_is_no_camera_is_said(chromium, tmp_path, before, text):  # noqa: F811
    asking = Asking(chromium, tmp_path, before)
    asking.camera.click()
    asking.said(text)
    assert asking.shown() == [] and asking.camera.text == "Camera"
