"""Takes the pictures of reports that the documentation shows.

python scripts/picture.py runs/domains/report.html docs/how-to/report.png
python scripts/picture.py runs/weather/report.html docs/gallery-weather.png 640  # in this width
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
    taken = Image.open(BytesIO(browser.get_screenshot_as_png())).convert("RGB")
finally:
    browser.quit()
if width := [int(argument) for argument in sys.argv[3:]]:
    taken.thumbnail((width[0], taken.height), Image.Resampling.LANCZOS)
taken.quantize(64 if width else 200, dither=Image.Dither.NONE).save(picture, optimize=True)
