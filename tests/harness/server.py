"""A server of one folder, with the faults that servers have."""

import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path


class FileServer(BaseHTTPRequestHandler):
    """Serves the files of a folder, whatever the path before their name. Writes the paths to requests.txt there.

    /cut/NAME ends in the middle; /stall/NAME falls silent in the middle, the first time.
    """

    def __init__(self, folder: Path, *args):
        self.folder = folder
        super().__init__(*args)

    def do_GET(self):
        asked = self.folder / "requests.txt"
        before = asked.read_text() if asked.is_file() else ""
        asked.write_text(f"{before}{self.path}\n")
        file = self.folder / self.path.split("?")[0].rsplit("/", 1)[-1]
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        stalls = "/stall/" in self.path and "/stall/" not in before
        self.wfile.write(content[: len(content) // 2] if stalls or "/cut/" in self.path else content)
        if stalls:
            self.wfile.flush()
            time.sleep(2)

    def log_message(self, *args):
        """Says nothing."""
