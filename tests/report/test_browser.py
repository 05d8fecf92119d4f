"""Reports in a real browser, without a network: charts, hover, tables, small and large windows, light and dark.

The screenshots stay in the folder of the test run (`--basetemp`), as `report-WIDTH-SCHEME.png`.
"""

import json
import shutil
import subprocess
import tarfile

import pytest
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from accmt.report.live import Report, write_report
from accmt.report.training import read_training

pytestmark = pytest.mark.xdist_group("report browser")

DRAWN = "return [...document.querySelectorAll('.plot')].every(one => one.querySelector('.main-svg'))"


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    return write_report([read_training(trained)], tmp_path_factory.mktemp("page") / "report.html").path


@pytest.fixture
def see(browser):
    """Path, width, scheme -> the browser that shows the page as high as it is, with all charts drawn."""

    def look(path, width=1600, scheme="light"):
        browser.get_log("browser"), browser.get_log("performance")
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(path.as_uri())
        height = browser.execute_script("return document.documentElement.scrollHeight")
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**size, "height": height})
        WebDriverWait(browser, 60, 0.05).until(lambda driver: driver.execute_script(DRAWN))
        return browser

    return look


def requests_of(browser):
    """The addresses that the page asked for, besides itself."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    return [address for address in sent if not address.startswith(("file:", "data:", "blob:"))]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_it_opens_without_errors_or_requests(see, page, tmp_path_factory, width, scheme):
    browser = see(page, width, scheme)
    assert browser.get_log("browser") == []
    assert requests_of(browser) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    picture = tmp_path_factory.getbasetemp() / f"report-{width}-{scheme}.png"
    browser.save_screenshot(str(picture))
    with Image.open(picture) as image:
        brightness = image.convert("L").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        assert (brightness < 128) == (scheme == "dark")
        assert len(image.convert("RGB").getcolors(1 << 24)) > 200
    titles = [title.text for title in browser.find_elements(By.CSS_SELECTOR, ".chart h3")]
    assert titles[:2] == ["valid_loss and train_loss", "error"]
    assert titles[2:] == ["learning rate", "gradient norm", "seconds per step", "By step"]


def test_a_mark_says_its_reason(see, page, trained):
    browser, training = see(page), read_training(trained)
    step, reason = next((one.step, verdict.reason) for one, verdict in training.cards[0].saves)
    marks = browser.find_elements(By.CSS_SELECTOR, ".plot")[0].find_elements(By.CSS_SELECTOR, ".points path")
    seen = set()
    for mark in marks[-2 * len(training.cards[0].saves) :]:
        ActionChains(browser).move_to_element(mark).perform()
        texts = WebDriverWait(browser, 10, 0.05).until(
            lambda driver: driver.find_elements(By.CSS_SELECTOR, ".hovertext")
        )
        seen |= {text.text for text in texts}
    assert any(reason in text and f"at step {step}" in text for text in seen), seen


def test_names_below_a_chart_hide_what_they_name(see, page):
    browser = see(page)
    figure = browser.find_elements(By.CSS_SELECTOR, "figure")[0]
    lines = len(figure.find_elements(By.CSS_SELECTOR, ".scatterlayer .js-line"))
    key = figure.find_element(By.CSS_SELECTOR, ".key")
    key.send_keys(Keys.ENTER)
    assert key.get_attribute("aria-pressed") == "false"
    assert len(figure.find_elements(By.CSS_SELECTOR, ".scatterlayer .js-line")) == lines - 1


def test_decisions_are_searched_filtered_and_sorted(see, page):
    browser = see(page)

    def rows():
        return [
            row.text.split("\n")[0]
            for row in browser.find_elements(By.CSS_SELECTOR, "#table tbody tr")
            if row.is_displayed()
        ]

    whole = rows()
    search = browser.find_element(By.ID, "search")
    search.send_keys("is the FIRST")
    assert len(rows()) == 3
    assert browser.find_element(By.ID, "count").text == f"3 of {len(whole)} rows"
    browser.execute_script("arguments[0].value = ''; arguments[0].dispatchEvent(new Event('input'))", search)
    browser.find_element(By.CSS_SELECTOR, "#rule option:nth-child(3)").click()
    browser.find_element(By.CSS_SELECTOR, "#verdict option:nth-child(2)").click()
    found = rows()
    assert 0 < len(found) < len(whole)
    assert all("best_error" in row and "saved" in row for row in found)
    browser.find_element(By.CSS_SELECTOR, "#rule option:nth-child(1)").click()
    browser.find_element(By.CSS_SELECTOR, "#verdict option:nth-child(1)").click()
    step = browser.find_elements(By.CSS_SELECTOR, "#table .sort")[1]
    for sign in (1, -1):
        step.click()
        steps = [int(row.split()[1]) for row in rows()]
        assert steps == sorted(steps, reverse=sign < 0)
    assert browser.find_elements(By.CSS_SELECTOR, "#table th")[1].get_attribute("aria-sort") == "descending"


def test_nothing_hostile_runs(see, hostile, tmp_path):
    path = write_report([read_training(hostile), read_training(hostile)], tmp_path / "two.html").path
    for shown in (path, write_report([read_training(hostile)], tmp_path / "one.html").path):
        browser = see(shown, 400)
        assert "injected" not in browser.title
        assert browser.get_log("browser") == []
        assert requests_of(browser) == []
        assert browser.find_elements(By.TAG_NAME, "img") == []
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
        texts = browser.find_element(By.TAG_NAME, "body").text
        assert "</script><script>document.title='injected'</script>" in texts
        assert "\x1b" not in texts
        assert "\u202e" not in texts
        assert browser.find_elements(By.CSS_SELECTOR, ".plot a") == []


def test_runs_are_picked_and_hidden(see, trained, tmp_path):
    trainings = [read_training(trained), read_training(trained)]
    browser = see(write_report(trainings, tmp_path / "both.html").path)
    lines = "return document.querySelectorAll('figure')[0].querySelectorAll('.scatterlayer .js-line').length"
    whole = browser.execute_script(lines)
    browser.find_elements(By.CSS_SELECTOR, "[data-run]")[1].click()
    assert browser.execute_script(lines) == whole / 2
    browser.find_elements(By.CSS_SELECTOR, ".sort")[0].click()
    assert browser.find_elements(By.CSS_SELECTOR, "th[aria-sort]")[0].text.startswith("run")
    assert browser.get_log("browser") == []


def test_a_notebook_shows_it_in_a_frame(see, browser, page, tmp_path):
    (tmp_path / "notebook.html").write_text(f"<!doctype html><meta charset=utf-8>{Report(page)._repr_html_()}")
    browser.get_log("browser")
    browser.get((tmp_path / "notebook.html").as_uri())
    browser.switch_to.frame(0)
    browser.execute_script("document.querySelector('.plot').scrollIntoView()")
    WebDriverWait(browser, 60, 0.05).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, ".plot .main-svg"))
    assert "Stopped after epoch 8" in browser.find_element(By.CLASS_NAME, "lead").text
    browser.switch_to.default_content()
    assert browser.get_log("browser") == []


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The source of axe-core, from npm."""
    folder = tmp_path_factory.mktemp("axe")
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, so that there is no axe-core")
    ran = subprocess.run(
        ["npm", "pack", "axe-core@4", "--silent", "--fetch-retries=0", "--fetch-timeout=20000"],
        cwd=folder, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    packed = list(folder.glob("axe-core-*.tgz"))
    if not packed:
        pytest.skip(f"npm cannot get axe-core: {ran.stderr.strip()[-200:]}")
    with tarfile.open(packed[0]) as archive:
        return archive.extractfile("package/axe.min.js").read().decode()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(see, page, trained, axe, tmp_path, scheme):
    several = write_report([read_training(trained), read_training(trained)], tmp_path / "both.html").path
    for shown in (page, several):
        browser = see(shown, 1600, scheme)
        browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
        browser.execute_script(axe)
        found = browser.execute_async_script("axe.run().then(arguments[0])")["violations"]
        assert [(one["impact"], one["id"], one["nodes"][0]["html"][:200]) for one in found] == []
