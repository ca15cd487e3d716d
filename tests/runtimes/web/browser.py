"""A headless Chromium, and pages for it from this machine."""

import base64
import contextlib
import functools
import http.server
import json
import shutil
import threading

import numpy as np
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait
from web_models import WEB

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    "--window-size=900,1800",  # all of the page: axe looks at what it sees
    # For recordings that no key has begun.
    "--autoplay-policy=no-user-gesture-required",
)
# Runs a function and hands over what it gives, or its error.
CALL = """
const [source, values, done] = arguments;
const work = new (async () => {}).constructor("values", source);
work(values).then(
  (value) => done({ value }),
  (error) => done({ error: error.message }),
);
"""


class Page:
    """What a browser shows of a site, and what is done there."""

    def __init__(self, driver, address):
        self.driver = driver
        self.address = address
        driver.get(address)

    def call(self, source, **values):
        """Runs JavaScript, which has ``values``, and gives its result."""
        result = self.driver.execute_async_script(CALL, source, values)
        assert "error" not in result, result
        return result["value"]

    def error(self, source, **values):
        """The one line that JavaScript ends with."""
        message = self.driver.execute_async_script(CALL, source, values)
        assert "error" in message, message
        assert message["error"] and "\n" not in message["error"]
        return message["error"]

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def text(self, selector):
        return self.find(selector).text

    def wait(self, selector, text):
        """Waits for an element to hold a text, and gives all of it."""

        def holds(_):
            fault = self.text("#error")
            assert not fault or selector == "#error", fault
            return text in self.text(selector)

        WebDriverWait(self.driver, 60, 0.05).until(holds)
        return self.text(selector)


def base64_of(content):
    """For JavaScript's atob: bytes, or samples as float32."""
    if not isinstance(content, bytes):
        content = np.asarray(content, np.float32).tobytes()
    return base64.b64encode(content).decode()


@contextlib.contextmanager
def chromium(folder, *flags):
    """A browser with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={folder}", *flags):
        options.add_argument(flag)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    driver.set_script_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def lay_site(folder):
    """What a site needs, by files.json, and no more, but for a model."""
    names = json.loads((WEB / "files.json").read_text())
    for name in ("files.json", *names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(WEB / name, folder / name)


class Site:
    """A folder, served until it is stopped."""

    def __init__(self, folder):
        self.folder = folder
        handler = functools.partial(Quiet, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/"
        self.thread = threading.Thread(
            target=self.server.serve_forever, args=(0.01,)
        )
        self.thread.start()

    def stop(self):
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()
