"""A page in headless Chromium: served by Python's http.server on this machine, until it posts its answer."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FLAGS = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking"


def ask_page(chromium: str, root: Path, limit_s: float) -> Any:
    """What `index.html` in `root` posts to /answer, from JSON.

    Raises:
        queue.Empty: it posts nothing within the limit.
    """
    answers: queue.Queue[Any] = queue.Queue()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, answers, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        words = [chromium, *FLAGS.split(), f"--user-data-dir={profile}", "--remote-debugging-port=0"]
        page = f"http://127.0.0.1:{server.server_port}/index.html"
        out = subprocess.DEVNULL
        browser = subprocess.Popen([*words, page], stdout=out, stderr=out, start_new_session=True)
        try:
            return answers.get(timeout=limit_s)
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
            server.shutdown()
            server.server_close()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, answers: queue.Queue[Any], *arguments: Any, **options: Any) -> None:
        self.answers = answers
        super().__init__(*arguments, **options)

    def do_POST(self) -> None:
        self.answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass
