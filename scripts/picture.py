"""Takes a picture of a report: python scripts/picture.py runs/domains/report.html docs/how-to/report.png [PART [HEIGHT]]

PART is a CSS selector, such as .cards, of the part to show; without it the picture shows the top of the page. HEIGHT, in
pixels, cuts the picture.
"""

import shutil
import sys
import time
from io import BytesIO
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

page, picture = (Path(argument).absolute() for argument in sys.argv[1:3])
options = webdriver.ChromeOptions()
for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1320,2090"):
    options.add_argument(flag)
browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
try:
    browser.get(page.as_uri())
    while not browser.find_elements("css selector", ".main-svg"):
        time.sleep(0.1)
    time.sleep(1)
    shown = browser.find_element("css selector", sys.argv[3]).screenshot_as_png if sys.argv[3:] else None
    taken = Image.open(BytesIO(shown or browser.get_screenshot_as_png())).convert("RGB")
finally:
    browser.quit()
if sys.argv[4:]:
    taken = taken.crop((0, 0, taken.width, int(sys.argv[4])))
taken.quantize(200, dither=Image.Dither.NONE).save(picture, optimize=True)
