"""An HTTP proxy in front of an S3 that answers some requests badly: the fault that `FaultyS3.fault` gives for a request."""

import http.client
import http.server
import socket
import threading

ERRORS = {
    "500": (500, "InternalError"),
    "503": (503, "ServiceUnavailable"),
    "slow-down": (503, "SlowDown"),
    "denied": (403, "InvalidAccessKeyId"),
}


class FaultyS3:
    """Forwards to the S3 at `port`. `fault(method, path, headers)` gives the name of an answer in ERRORS, "hang" (no
    answer until `heal`), "cut" (the connection is reset before anything is done), "lose" (done, but the answer never
    arrives), or None. What happened is counted in `seen`."""

    def __init__(self, port):
        self.target, self.fault, self.seen, self.lock = port, lambda *_: None, {}, threading.Lock()
        self.healed = threading.Event()

    def __enter__(self):
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = outer.fault(self.command, self.path, self.headers)
                with outer.lock:
                    outer.seen[fault] = outer.seen.get(fault, 0) + 1
                if fault in ERRORS:
                    return self.refuse(*ERRORS[fault])
                if fault == "hang":
                    outer.healed.wait(120)
                    return self.cut()
                if fault == "cut":
                    return self.cut()
                answer, content = self.forward(body)
                if fault == "lose":
                    return self.cut()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("connection", "transfer-encoding", "content-length", "server", "date"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                self.wfile.write(content)

            def forward(self, body):
                connection = http.client.HTTPConnection("127.0.0.1", outer.target, timeout=30)
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    connection.putheader(name, value)
                connection.endheaders(body)
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                return answer, content

            def refuse(self, status, code):
                text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>on purpose</Message></Error>'.encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(text)

            def cut(self):
                self.close_connection = True
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                self.connection.close()

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one

            def handle(self):
                try:
                    super().handle()
                except OSError:
                    pass

            def finish(self):
                try:
                    super().finish()
                except (OSError, ValueError):
                    pass

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def heal(self):
        """Everything works again."""
        self.fault = lambda *_: None
        self.healed.set()

    def __exit__(self, *_):
        self.heal()
        self.server.shutdown()
        self.server.server_close()
