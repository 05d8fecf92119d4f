"""The site of the documentation is built without a warning, names everything public, and works offline in a browser."""

import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from browsing import chromium
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import accmt
from accmt.hyperparameters.optimizers import OPTIMIZERS
from accmt.hyperparameters.schedulers import SCHEDULERS

pytestmark = pytest.mark.xdist_group("site")

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", DOCS, folder / "html"]
    ran = subprocess.run([*command, "--doctree-dir", folder / "trees"], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    return folder / "html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("browser")) as started:
        yield started


def test_every_public_name_is_explained(site):
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"zlib.\n", 1)[1]).decode()
    explained = set(re.findall(r"^accmt\.(\w+) py:", inventory, re.MULTILINE))
    assert set(accmt.__all__) - {"__version__"} - explained == set()


@pytest.mark.parametrize("catalogue", [OPTIMIZERS, SCHEDULERS], ids=["optimizers", "schedulers"])
def test_the_lists_of_names_are_complete(catalogue):
    [listed] = re.findall(rf"^The {catalogue.noun}s: (.*?)\.$", (DOCS / "reference/api.md").read_text(), re.M | re.S)
    assert re.findall(r"`(\w+)`", listed) == sorted(catalogue.entries)


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("page", ["index", "reference/api", "reference/language", "how-to/report"])
def test_a_page_in_a_browser(site, browser, page, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get((site / f"{page}.html").as_uri())
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [address for address in requests if not address.startswith(("file:", "data:", "chrome:"))] == []
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert len(browser.find_elements(By.TAG_NAME, "h1")) == 1


def test_the_search_works_without_a_server(site, browser):
    browser.get((site / "search.html").as_uri() + "?q=patience")
    listed = "return [...document.querySelectorAll('ul.search li a')].map(link => link.textContent)"
    WebDriverWait(browser, 60).until(  # the list grows
        lambda driver: "The rule language on one page" in driver.execute_script(listed)
    )
