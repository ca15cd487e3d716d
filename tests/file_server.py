"""An HTTP server on this machine, as good or bad as a test wants it."""

import contextlib
import http.server
import os
import threading
from unittest import mock


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.ranges.append(self.headers["Range"])
        if self.server.before_answer is not None:
            self.server.before_answer()
        content = self.server.files.get(self.path.removeprefix("/"))
        if content is None:
            self.send_error(404)
            return
        if self.server.error is not None:
            self.send_error(self.server.error)
            return
        start = 0
        if self.server.can_resume and self.headers["Range"]:
            start = int(self.headers["Range"][len("bytes=") : -1])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        # Who asked may have gone.
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content[start : self.server.cut_at])

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def serve_files(files):
    """Serves a dict of content by name; what else, its attributes say.

    ``can_resume`` (True): whether it heeds ranges; ``cut_at`` (None): where it
    hangs up; ``error`` (None): the status that it answers; ``before_answer``
    (None): called at each request. ``ranges`` lists what was asked for, and
    ``address`` is where it is.
    """
    with (
        mock.patch.dict(os.environ, no_proxy="127.0.0.1"),
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server,
    ):
        server.files = files
        server.can_resume = True
        server.cut_at = server.error = server.before_answer = None
        server.ranges = []
        server.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
