"""An HTTP/1.1 server that holds requests until it is told to let them go, and says what it has seen.

What it is told comes to port 8081 of its own loopback, past all limits of the mesh."""

import collections, http.server, socket, threading, urllib.parse


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 128
    accepted = 0

    def get_request(self):
        Server.accepted += 1
        return super().get_request()


held = collections.Counter()
seen = collections.Counter()
gates = collections.defaultdict(threading.Event)


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        seen[self.path] += 1
        status = 503 if url.path == '/fail' else 200
        if url.path == '/flaky':
            status = 503 if seen[self.path] == 1 else 200
        if url.path == '/held' or url.path == '/flaky' and status == 200:
            held[url.query] += 1
            gates[url.query].wait()
            held[url.query] -= 1
        self.answer(status, 'done')

    def answer(self, status, text):
        self.send_response(status)
        self.send_header('Content-Length', str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


class Told(Answer):
    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        if url.path == '/release':
            gates[url.query].set()
        counts = {'/held': held[url.query], '/connections': Server.accepted}
        self.answer(200, str(counts.get(url.path, seen[self.path])))


told = http.server.ThreadingHTTPServer(('127.0.0.1', 8081), Told)
threading.Thread(target=told.serve_forever, daemon=True).start()
Server(('::', 8080), Answer).serve_forever()
