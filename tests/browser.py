"""A headless Chromium for tests of what runs in a page."""

import shutil

import pytest

ALWAYS = "headless=new no-sandbox disable-gpu no-first-run disable-background-networking"


def headless(profile, more, capabilities=()):
    """A driver whose settings lie in the folder profile, with more switches, words without their
    dashes. The test is skipped without selenium, Chromium or its driver; quit() is the caller's.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium here")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("no chromium with its chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for name in [*ALWAYS.split(), *more, f"user-data-dir={profile}"]:
        options.add_argument(f"--{name}")
    for name, value in dict(capabilities).items():
        options.set_capability(name, value)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
