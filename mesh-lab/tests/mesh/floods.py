"""Floods what listens, and measures what others have of it meanwhile.

  floods.py flood HOST PORT SECONDS THREADS KIND [CERTIFICATE KEY AUTHORITY]
      sends frames without data, on new connections whenever it is cut off; tells how often that was, and why
  floods.py hold HOST PORT tcp|tls COUNT
      holds so many connections that say nothing, and replaces what is closed, until its input ends; tells how many of
      the first ones are open then
  floods.py idle HOST PORT SECONDS CERTIFICATE KEY
      how long a session over mutual TLS that opens no stream lasts
  floods.py latency HOST PORT SECONDS
      of one connection with one request each: their count, median and 99th percentile in ms
  floods.py handshakes HOST PORT SECONDS
      the same of handshakes with the authority
"""
import select, socket, ssl, struct, sys, threading, time
from garbage import connect_request, frame, literal, mesh_frame, mesh_open, session

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")


def request(stream, authority):
    return frame(1, 4, stream, literal(b":method", b"CONNECT") + literal(b":authority", authority.encode()))


def opening_and_flood(kind, authority):
    """What is sent first, and what the n-th time after it."""
    ask = connect_request(authority) if authority else b""
    many = 500
    return {
        "priority": (PREFACE, lambda n: frame(2, 0, 1, b"\0\0\0\0\1") * many),
        "window-update": (PREFACE, lambda n: frame(8, 0, 0, b"\0\0\0\1") * many),
        "ping": (PREFACE, lambda n: frame(6, 0, 0, b"12345678") * many),
        "settings": (PREFACE, lambda n: frame(4, 0, 0, b"") * many),
        "unknown": (PREFACE, lambda n: frame(77, 0, 0, b"") * many),
        "empty-data": (PREFACE + ask, lambda n: frame(0, 0, 1, b"") * many),
        "continuation": (PREFACE + frame(1, 0, 1, literal(b":method", b"CONNECT")),
                         lambda n: frame(9, 0, 1, b"") * many),
        "rapid-reset": (PREFACE, lambda n: b"".join(
            request(2 * (100 * n + i) + 1, authority) + frame(3, 0, 2 * (100 * n + i) + 1, b"\0\0\0\x08")
            for i in range(100))),
        "mesh-ping": (b"", lambda n: mesh_frame(7, 0, b"12345678") * many),
        "mesh-unknown": (b"", lambda n: mesh_frame(200, 7) * many),
        "mesh-credit": (mesh_open(1, authority) if authority else b"",
                        lambda n: mesh_frame(4, 1, b"\0\0\0\1") * many),
        "mesh-rapid-reset": (b"", lambda n: b"".join(
            mesh_open(100 * n + i + 1, authority) + mesh_frame(6, 100 * n + i + 1, b"\1") for i in range(100))),
    }[kind]


class Tally:
    def __init__(self):
        self.cut, self.reasons, self.sent = 0, set(), 0


def reason(heard, mesh):
    """The code of the last GOAWAY in what was heard."""
    code, header = None, 8 if mesh else 9
    while len(heard) >= header:
        length = int.from_bytes(heard[1:4] if mesh else heard[:3], "big")
        body = heard[header : header + length]
        if mesh and heard[0] == 9 and body:
            code = body[0]
        elif not mesh and heard[3] == 7 and len(body) >= 8:
            code = int.from_bytes(body[4:8], "big")
        heard = heard[header + length :]
    return code


def flood_once(host, port, kind, until, certificate, key, authority, tally):
    mesh = kind.startswith("mesh-")
    first, more = opening_and_flood(kind, authority)
    tcp = socket.create_connection((host, port), timeout=5)
    tls = session(tcp, certificate, key, "nodemesh/1" if mesh else "h2")
    tls.settimeout(0)
    heard, waiting, n = b"", first + more(0), 0
    try:
        while time.time() < until:
            select.select([tls], [tls], [], 1)
            try:
                while data := tls.recv(65536):
                    heard = (heard + data)[-200_000:]
                break
            except (ssl.SSLWantReadError, BlockingIOError):
                pass
            try:
                sent = tls.send(waiting)
                tally.sent += sent
                waiting = waiting[sent:]
                if not waiting:
                    n += 1
                    waiting = more(n)
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError, BlockingIOError):
                pass
        else:
            return
    except OSError:
        try:
            while data := tls.recv(65536):
                heard += data
        except (OSError, ValueError):
            pass
    finally:
        tcp.close()
        tls.close()
    tally.cut += 1
    if (why := reason(heard, mesh)) is not None:
        tally.reasons.add(why)


def flood(host, port, seconds, threads, kind, certificate=None, key=None, authority=None):
    tally, until = Tally(), time.time() + float(seconds)

    def run():
        while time.time() < until:
            try:
                flood_once(host, int(port), kind, until, certificate, key, authority, tally)
            except OSError:
                time.sleep(0.01)
            # The machine is to be busy with the answer to this, and not with this.
            time.sleep(0.05)

    all_of_them = [threading.Thread(target=run) for _ in range(int(threads))]
    [thread.start() for thread in all_of_them]
    [thread.join() for thread in all_of_them]
    return f"cut {tally.cut} sent {tally.sent} reasons {' '.join(map(str, sorted(tally.reasons)))}"


def authority_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def hold(host, port, kind, count):
    import resource
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    context, socks, first = authority_context(), {}, set()

    def one():
        try:
            sock = socket.create_connection((host, int(port)), timeout=2)
            if kind == "tls":
                sock = context.wrap_socket(sock)
            sock.settimeout(0)
            socks[sock.fileno()] = sock
            return sock
        except OSError:
            return None

    begun = time.time()
    while len(socks) < int(count) and time.time() - begun < 20:
        if sock := one():
            first.add(sock)
    print("holding", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        poll = select.poll()
        for number in socks:
            poll.register(number, select.POLLIN | select.POLLHUP)
        for number, _ in poll.poll(200):
            sock = socks[number]
            try:
                gone = not sock.recv(4096)
            except (ssl.SSLWantReadError, BlockingIOError):
                gone = False
            except OSError:
                gone = True
            if gone:
                first.discard(sock)
                del socks[number]
                sock.close()
        if kind == "tcp":
            for _ in range(min(int(count) - len(socks), 100)):
                one()
    return f"left {len(first)}"


def idle(host, port, seconds, certificate, key):
    begun = time.time()
    tls = session(socket.create_connection((host, int(port)), timeout=5), certificate, key, "nodemesh/1")
    tls.settimeout(float(seconds))
    try:
        while tls.recv(4096):
            pass
    except TimeoutError:
        return "open"
    except OSError:
        pass
    return f"closed {time.time() - begun:.1f}"


def measure(seconds, once):
    taken, failed, until = [], 0, time.time() + float(seconds)
    while time.time() < until:
        begun = time.time()
        try:
            once()
        except OSError:
            failed += 1
        taken.append((time.time() - begun) * 1000)
        time.sleep(0.005)
    taken.sort()
    return f"{len(taken)} {failed} {taken[len(taken) // 2]:.2f} {taken[len(taken) * 99 // 100]:.2f}"


def latency(host, port, seconds):
    def once():
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall(b"who\n")
            if not sock.recv(100):
                raise OSError("no answer")
    return measure(seconds, once)


def handshakes(host, port, seconds):
    context = authority_context()

    def once():
        context.wrap_socket(socket.create_connection((host, int(port)), timeout=10)).close()
    return measure(seconds, once)


print({f.__name__: f for f in (flood, hold, idle, latency, handshakes)}[sys.argv[1]](*sys.argv[2:]))
