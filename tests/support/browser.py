"""Opens a page in headless Chromium, which takes commands over its debugging pipe.

python tests/support/browser.py perf/report.html docs/report      # docs/report-1280-light.png, -1280-dark,
-390-light, ...
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTHS, SCHEMES = (1280, 390), ("light", "dark")
# The page's layout. `overlapping`: pairs of texts in a plot whose boxes overlap even after shrinking by a pixel.
FACTS = """(() => {
  const overlapping = [];
  for (const svg of document.querySelectorAll("svg")) {
    const texts = [...svg.querySelectorAll("text")].filter(t => t.textContent.trim());
    const boxes = texts.map(t => t.getBoundingClientRect());
    for (let i = 0; i < texts.length; i++) for (let j = i + 1; j < texts.length; j++) {
      const a = boxes[i], b = boxes[j];
      if (a.left + 1 < b.right - 1 && b.left + 1 < a.right - 1 && a.top + 2 < b.bottom - 2 && b.top + 2 < a.bottom - 2)
        overlapping.push([texts[i].textContent.trim(), texts[j].textContent.trim()]);
    }
  }
  const cut = [...document.querySelectorAll("svg text")].filter(t => {
    const box = t.getBoundingClientRect(), svg = t.ownerSVGElement.getBoundingClientRect();
    return box.right > svg.right + 2 || box.left < svg.left - 2;
  }).map(t => t.textContent.trim());
  const root = document.scrollingElement;
  const style = getComputedStyle(document.body);
  return {width: innerWidth, scroll_width: root.scrollWidth, height: root.scrollHeight, overlapping, cut,
          background: style.backgroundColor, ink: style.color, scripts: document.scripts.length,
          plots: document.querySelectorAll("svg").length, tables: document.querySelectorAll("table").length};
})()"""


def program():
    """Chromium's path, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """A running Chromium. `requests`: URLs that the page loads; `complaints`: its exceptions and log entries."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        read_by_it, self.to_it = os.pipe()
        self.from_it, written_by_it = os.pipe()
        # Chromium takes commands from descriptor 3 and answers on 4.
        line = f"exec {program()} --headless --no-sandbox --disable-gpu --hide-scrollbars --remote-debugging-pipe"
        line += f" --disable-dev-shm-usage --user-data-dir={self.folder.name} 3<&{read_by_it} 4>&{written_by_it}"
        self.process = subprocess.Popen(
            ["bash", "-c", line],
            pass_fds=(read_by_it, written_by_it),
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        os.close(read_by_it)
        os.close(written_by_it)
        self.rest, self.number, self.session = b"", 0, None
        self.requests, self.complaints, self.loaded = [], [], False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.call("Browser.close")
        for descriptor in (self.to_it, self.from_it):
            os.close(descriptor)
        self.process.wait(timeout=20)
        self.folder.cleanup()

    def call(self, method, **parameters):
        """A command's result. Raises OSError if it is refused, or the browser has ended."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": parameters}
        if self.session and not method.startswith(("Target.", "Browser.")):
            command["sessionId"] = self.session
        os.write(self.to_it, json.dumps(command).encode() + b"\0")
        while True:
            message = self.message()
            if message.get("id") == self.number:
                if "error" in message:
                    raise OSError(f"{method}: {message['error']['message']}")
                return message["result"]

    def message(self):
        """The next message; events are kept."""
        while b"\0" not in self.rest:
            read = os.read(self.from_it, 1 << 20)
            if not read:
                raise OSError("the browser has ended")
            self.rest += read
        one, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(one)
        given = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(given["request"]["url"])
            case "Runtime.exceptionThrown" | "Log.entryAdded":
                self.complaints.append(given)
            case "Page.loadEventFired":
                self.loaded = True
        return message

    def show(self, page, width, scheme):
        """Open a file at a width, light or dark; returns the values of FACTS."""
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.loaded = False
        self.call("Page.navigate", url=Path(page).absolute().as_uri())
        while not self.loaded:
            self.message()
        return self.call("Runtime.evaluate", expression=FACTS, returnByValue=True)["result"]["value"]

    def screenshot(self, path):
        """The whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(shot["data"]))


if __name__ == "__main__":
    with Browser() as browser:
        for width in WIDTHS:
            for scheme in SCHEMES:
                facts = browser.show(sys.argv[1], width, scheme)
                browser.screenshot(f"{sys.argv[2]}-{width}-{scheme}.png")
                print(width, scheme, facts)
        print("requests:", len(browser.requests), "complaints:", browser.complaints)
