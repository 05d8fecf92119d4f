"""Takes the pictures of reports that the documentation shows.

python scripts/picture.py runs/domains/report.html docs/how-to/report.png
python scripts/picture.py runs/weather/report.html docs/gallery-weather.png --width 640
python scripts/picture.py runs/first/report.html docs/tutorials/report-cards.png --part .cards --height 400
"""

import argparse
import shutil
import time
from io import BytesIO
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("page", type=Path)
parser.add_argument("picture", type=Path)
parser.add_argument("--part", default="html", help="a CSS selector of the part to show")
parser.add_argument("--height", type=int, help="cut the picture to so many pixels")
parser.add_argument("--width", type=int, help="shrink the picture to so many pixels")
given = parser.parse_args()
options = webdriver.ChromeOptions()
for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1320,2090"):
    options.add_argument(flag)
browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
try:
    browser.get(given.page.absolute().as_uri())
    while not browser.find_elements("css selector", ".main-svg"):
        time.sleep(0.1)
    time.sleep(1)
    is_whole = given.part == "html"  # of which the window shows the top
    shown = (
        browser.get_screenshot_as_png()
        if is_whole
        else browser.find_element("css selector", given.part).screenshot_as_png
    )
    taken = Image.open(BytesIO(shown)).convert("RGB")
finally:
    browser.quit()
if given.height:
    taken = taken.crop((0, 0, taken.width, given.height))
if given.width:
    taken.thumbnail((given.width, taken.height), Image.Resampling.LANCZOS)
taken.quantize(64 if given.width else 200, dither=Image.Dither.NONE).save(given.picture, optimize=True)
