"""Open a page in a headless browser: its width, its console messages and its requests."""

import json
import os
import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

OWN = (
    *("update.googleapis.com", "clients2.google.com", "accounts.google.com"),
    "www.google.com:443",  # since version 150
)
"""Hosts that Chromium itself asks, whatever page it shows; a report names none of them."""

PROBE = """<!DOCTYPE html><html><head><link rel="icon" href="data:,"></head><body>
<iframe src="/index.html" width="360" height="800"></iframe>
<iframe src="/index.html" width="1280" height="800"></iframe>
<script>
onload = () => {
  const seen = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument;
    const images = [...page.images];
    return {
      width: frame.clientWidth,
      scroll_width: page.documentElement.scrollWidth,
      height: page.documentElement.scrollHeight,
      images: images.length,
      loaded: images.filter(one => one.complete && one.naturalWidth > 0).length,
    };
  });
  document.body.innerHTML = `<pre>SEEN${JSON.stringify(seen)}NEES</pre>`;
};
</script></body></html>"""


class Opened(NamedTuple):
    """Sizes of index.html at each width; lines of the console; requests besides the page."""

    pages: list[dict[str, Any]]
    console: list[str]
    requests: list[str]


class Handler(SimpleHTTPRequestHandler):
    """Server of the folder, and a proxy that records requests to other hosts and refuses them."""

    requests: list[str]

    def do_GET(self) -> None:
        if self.path == "/probe.html":
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(PROBE.encode())
            return
        if self.path != "/index.html":
            self.requests.append(self.path)
        if self.path.startswith("/"):
            super().do_GET()
        else:
            self.send_error(403)

    def do_CONNECT(self) -> None:
        self.requests.append(self.path)
        self.send_error(403)

    def log_message(self, *args: Any) -> None:
        pass


def open_in_browser(folder: Path, profile: Path) -> Opened:
    """Open index.html of a folder in frames of 360 and 1280 pixels; skip without a browser."""
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed, and CHROMIUM names none")
    requests: list[str] = []
    handler = type("RecordingHandler", (Handler,), {"requests": requests})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port
        done = subprocess.run(
            [
                program,
                "--headless",
                "--no-sandbox",  # root cannot start it otherwise, and the page is our own
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--no-first-run",
                "--enable-logging=stderr",
                f"--user-data-dir={profile}",
                f"--proxy-server=127.0.0.1:{port}",
                "--virtual-time-budget=10000",
                "--dump-dom",
                f"http://127.0.0.1:{port}/probe.html",
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        server.shutdown()
    found = re.search("SEEN(.*)NEES", done.stdout)
    assert found is not None, done.stdout + done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    others = [request for request in requests if not any(host in request for host in OWN)]
    return Opened(json.loads(found[1]), console, others)
