"""What programs see of their sockets, each told by its name, to be compared with and without the mesh.

  sockets.py serve4 PORT                             a server that listens on IPv4 alone
  sockets.py serve_bound                             servers bound to eth0: port 7000 by IPv4, 7001 by IPv6
  sockets.py keep PORT...                            a server that keeps all that connect, and echoes
  sockets.py many HOST COUNT PORT...                 so many connections to each port of a keeper at once, and how many worked;
                                                     they are held until its input ends
  sockets.py serve_urgent PORT                       a server that tells of urgent data, and speaks with some
  sockets.py urgent HOST PORT                        tells it urgent data, hears some from it, and prints what came as JSON
  sockets.py one_port SOURCE PORT...                 connections to the ports of `keeper` from one source port at once
  sockets.py first_words HOST PORT...                what servers say that speak first
  sockets.py tell NAMESPACE SERVER4 SERVER6 OWN4 OWN6   runs them all against the namespace's services, and prints JSON
"""
import errno, fcntl, json, os, select, signal, socket, struct, sys, threading, time

PORT = 7000


def serve4(port):
    import http.server
    class Plain(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200), self.end_headers(), self.wfile.write(b"served")
        def log_message(self, *_):
            pass
    http.server.ThreadingHTTPServer(("0.0.0.0", int(port)), Plain).serve_forever()


def serve_bound():
    def serve(family, port):
        server = socket.socket(family, socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        server.bind(("", port))
        server.listen(50)
        while True:
            sock, accepted = server.accept()
            sock.sendall(accepted[0].encode())
            sock.close()
    for family, port in ((socket.AF_INET, 7000), (socket.AF_INET6, 7001)):
        threading.Thread(target=serve, args=(family, port)).start()


def keep(*ports):
    import selectors
    ready = selectors.DefaultSelector()
    for port in map(int, ports):
        server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
        ready.register(server, selectors.EVENT_READ, True)
    while True:
        for key, _ in ready.select():
            if key.data:
                ready.register(key.fileobj.accept()[0], selectors.EVENT_READ, False)
                continue
            try:
                heard = key.fileobj.recv(1000)
                key.fileobj.sendall(heard)
            except OSError:
                heard = b""
            if not heard:
                ready.unregister(key.fileobj)
                key.fileobj.close()


def works(sock):
    sock.settimeout(10)
    sock.sendall(b"x")
    return sock.recv(1) == b"x"


def many(host, count, *ports):
    held = []

    def another(port):
        held.append(socket.create_connection((host, int(port)), 10))
        return works(held[-1])
    print(*(sum(attempt(lambda: another(port)) is True for _ in range(int(count))) for port in ports), flush=True)
    sys.stdin.read()


def first_words(*hosts_and_ports):
    for host, port in zip(hosts_and_ports[::2], hosts_and_ports[1::2]):
        print(attempt(lambda: rest_of(socket.create_connection((host, int(port)), 8))))


def one_port(source, *ports):
    for family in (socket.AF_INET, socket.AF_INET6):
        address, held = address_of("keeper.app", family), []
        for port in map(int, ports):
            held.append(socket.socket(family, socket.SOCK_STREAM))
            held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held[-1].bind(("", int(source)))
            held[-1].connect((address, port))
        print("shared" if all(map(works, held)) else "broken", end=" ")


def name_of(error):
    return errno.errorcode.get(error.errno, type(error).__name__) if error.errno else type(error).__name__


def attempt(work):
    try:
        return work()
    except OSError as error:
        return name_of(error)


def address_of(host, family):
    return socket.getaddrinfo(host, PORT, family, socket.SOCK_STREAM)[0][4][0]


def connects(address, port, blocking=True):
    """What `connect()` says, and how long it takes: at once or not."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        began = time.monotonic()
        sock.settimeout(5)
        if not blocking:
            sock.setblocking(False)
            result = sock.connect_ex((address, port))
            if result == errno.EINPROGRESS:
                select.select([], [sock], [], 5)
                result = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            outcome = errno.errorcode.get(result, result) if result else "connected"
        else:
            try:
                sock.connect((address, port))
                outcome = "connected"
            except OSError as error:
                outcome = name_of(error)
        return f"{outcome} {'at once' if time.monotonic() - began < 0.5 else 'late'}"


def names(address):
    """Whom both ends of a connection name."""
    sock = socket.create_connection((address, PORT), 5)
    sock.sendall(b"who\n")
    seen = sock.recv(200).decode().split()
    own, peer = sock.getsockname()[0], sock.getpeername()[0]
    sock.close()
    return {"own": own, "peer": peer, "accepted": seen[0]}


def names_mapped(address):
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    sock.settimeout(5)
    sock.connect(("::ffff:" + address, PORT))
    own, peer = sock.getsockname()[0], sock.getpeername()[0]
    sock.close()
    return {"own": own, "peer": peer}


def names_by_mptcp(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
    sock.settimeout(5)
    sock.connect((address, PORT))
    sock.sendall(b"who\n")
    seen = sock.recv(200).decode().split()
    own, peer = sock.getsockname()[0], sock.getpeername()
    sock.close()
    return {"own": own, "peer": peer[0], "port": peer[1], "accepted": seen[0]}


def fetches(host):
    """Happy eyeballs by hand: each address in turn, as curl and browsers do."""
    import urllib.request
    return urllib.request.urlopen(f"http://{host}:{PORT}/", timeout=5).read().decode()


def rest_of(sock):
    """What comes until the other end has said all."""
    return b"".join(iter(lambda: sock.recv(100), b"")).decode()


def half_closes(address):
    sock = socket.create_connection((address, PORT), 5)
    sock.sendall(b"echo\nsome words")
    sock.shutdown(socket.SHUT_WR)
    return rest_of(sock)


def is_reset(address):
    sock = socket.create_connection((address, PORT), 5)
    sock.sendall(b"reset\n")
    return attempt(lambda: sock.recv(1).decode() or "closed")


def closes_first(address):
    sock = socket.create_connection((address, PORT), 5)
    sock.sendall(b"close-first\n")
    said = sock.recv(10).decode() + "," + (sock.recv(10).decode() or "end")
    sock.sendall(b"still here")
    sock.close()
    return said


def connects_twice(address):
    sock = socket.create_connection((address, PORT), 5)
    return attempt(lambda: sock.connect((address, PORT)) or "connected")


def from_a_port(address):
    """A fixed source port, and the address that it is shown with."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", 23456))
    sock.settimeout(5)
    sock.connect((address, PORT))
    said = sock.getsockname()
    sock.close()
    return list(said[:2])


def bound_to_interface(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    sock.settimeout(5)
    sock.connect((address, PORT))
    sock.sendall(b"echo\nbound")
    sock.shutdown(socket.SHUT_WR)
    return [rest_of(sock), sock.getsockname()[0], sock.getpeername()[0], sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).decode()]


def urgent(address):
    """Urgent bytes in their place, for a server that takes them in line: the one that is here answers only with what it has read."""
    sock = socket.create_connection((address, PORT), 5)
    sock.sendall(b"inline\nab")
    time.sleep(0.05)
    sock.send(b"c", socket.MSG_OOB)
    sock.sendall(b"d")
    sock.shutdown(socket.SHUT_WR)
    return rest_of(sock)


# What is said with urgent data in it: "!" before what is sent as urgent, of which the last byte is.
SPEECHES = {
    "alone": ["!a"],
    "amid others": ["ab", "!c", "d"],
    "first": ["!a", "bc"],
    "several": ["a", "!b", "!c", "de", "!f"],
    "a message": ["ab", "!cde", "f"],
    "behind much": ["x" * 300_000, "!y", "z"],
    "and the end": ["ab", "!c"],
}


def speak(sock, speech):
    """Each urgent byte is waited for: TCP has one mark at a time. But the end comes at once."""
    pieces = SPEECHES[speech]
    for piece in pieces:
        if not piece.startswith("!"):
            sock.sendall(piece.encode())
            continue
        sock.send(piece[1:].encode(), socket.MSG_OOB)
        if speech != "and the end" and sock.recv(1) != b".":
            return "no answer"
    sock.shutdown(socket.SHUT_WR)


def at_mark(sock):
    SIOCATMARK = 0x8905
    return struct.unpack("i", fcntl.ioctl(sock, SIOCATMARK, b"    "))[0] == 1


def hear(sock, inline, speech):
    """What is said, with urgent bytes in brackets where they are in it, and whether `poll` tells of them."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
    # With a time-out Python waits until there is something ordinary.
    sock.settimeout(None)
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLPRI)
    text, told = "", False
    while True:
        event = dict(poll.poll(5000)).get(sock.fileno())
        if event is None:
            return text + " and no end"
        told |= bool(event & select.POLLPRI)
        urgent = at_mark(sock) and bool(event & select.POLLPRI)
        if not urgent and not event & select.POLLIN:
            continue
        heard = sock.recv(1 if urgent else 65536, socket.MSG_OOB if urgent and not inline else 0).decode()
        if not heard:
            return text.replace("x" * 300_000, "much") + (" told" if told else "")
        text += f"[{heard}]" if urgent else heard
        if urgent and speech != "and the end":
            sock.sendall(b".")


def serve_urgent(port):
    def serve(sock):
        line, byte = "", sock.recv(1)
        while byte not in (b"", b"\n"):
            line, byte = line + byte.decode(), sock.recv(1)
        if not line:  # whoever looks whether it is ready
            return sock.close()
        what, inline, speech = line.split(" ", 2)
        if what == "hear":
            sock.sendall(("\n" + hear(sock, int(inline), speech)).encode())
        else:
            speak(sock, speech)
            rest_of(sock)
        sock.close()
    server = socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        threading.Thread(target=serve, args=(server.accept()[0],)).start()


def urgent_both_ways(host, port, inline, speech):
    sock = socket.create_connection((host, int(port)), 10)
    sock.sendall(f"hear {inline} {speech}\n".encode())
    said = speak(sock, speech) or rest_of(sock).lstrip(".\n")
    sock.close()
    signals = []
    signal.signal(signal.SIGURG, lambda *_: signals.append(True))
    sock = socket.create_connection((host, int(port)), 10)
    fcntl.fcntl(sock, fcntl.F_SETOWN, os.getpid())
    sock.sendall(f"speak {inline} {speech}\n".encode())
    heard = hear(sock, inline, speech)
    sock.close()
    return [said, heard, "signal" if signals else "no signal"]


def urgent_data(host, port):
    print(json.dumps({
        f"{speech}, {'in line' if inline else 'apart'}": attempt(lambda: urgent_both_ways(host, port, inline, speech))
        for speech in SPEECHES for inline in (0, 1)
    }))


def waits(address):
    """Readiness as `poll` tells it while a connection is idle, and at its end."""
    sock = socket.create_connection((address, PORT), 5)
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLOUT | select.POLLRDHUP)
    idle = poll.poll(200)[0][1]
    sock.sendall(b"who\n")
    poll.modify(sock, select.POLLIN | select.POLLRDHUP)
    told, deadline = 0, time.monotonic() + 5
    while not told & select.POLLRDHUP and time.monotonic() < deadline:
        for _, event in poll.poll(100):
            told |= event
            time.sleep(0.01)
    return [idle, told]


def tell(namespace, server4, server6, own4, own6):
    service4, service6 = (address_of(f"server.{namespace}", f) for f in (socket.AF_INET, socket.AF_INET6))
    said, own = {}, {own4: "OWN4", own6: "OWN6", server4: "SERVER4", server6: "SERVER6", service4: "SERVICE4", service6: "SERVICE6"}

    def add(name, work, *arguments):
        text = json.dumps(attempt(lambda: work(*arguments)))
        for address in sorted(own, key=len, reverse=True):
            text = text.replace(f'"{address}"', f'"{own[address]}"').replace(f'"::ffff:{address}"', f'"mapped {own[address]}"')
        said[name] = json.loads(text)

    for family, number in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
        for service in ("nothing", "unready", "shut"):
            address = address_of(f"{service}.{namespace}", family)
            for blocking in (True, False):
                add(f"{service} by IPv{number} {'' if blocking else 'not '}blocking", connects, address, PORT, blocking)
        for blocking in (True, False):
            add(f"closed port by IPv{number} {'' if blocking else 'not '}blocking", connects, (server4, server6)[number == 6], 7800 + blocking, blocking)
        for what, address in (("pod", (server4, server6)[number == 6]), ("service", (service4, service6)[number == 6])):
            add(f"{what} by IPv{number}", connects, address, PORT)
            add(f"{what} by IPv{number} not blocking", connects, address, PORT, False)
            add(f"names of a {what} by IPv{number}", names, address)
            add(f"half close of a {what} by IPv{number}", half_closes, address)
            add(f"reset of a {what} by IPv{number}", is_reset, address)
            add(f"a {what} that closes first by IPv{number}", closes_first, address)
            add(f"a second connect to a {what} by IPv{number}", connects_twice, address)
            add(f"a fixed port to a {what} by IPv{number}", from_a_port, address)
            add(f"poll on a {what} by IPv{number}", waits, address)
            add(f"bound to an interface to a {what} by IPv{number}", bound_to_interface, address)
            add(f"urgent data to a {what} by IPv{number}", urgent, address)
            add(f"names of a {what} by MPTCP over IPv{number}", names_by_mptcp, address)
    add("names by a mapped address", names_mapped, service4)
    add("a server of one family", fetches, f"ipv4.{namespace}")
    print(json.dumps(said))


if __name__ == "__main__":
    {"serve4": serve4, "serve_bound": serve_bound, "keep": keep, "many": many, "serve_urgent": serve_urgent, "urgent": urgent_data, "first_words": first_words, "one_port": one_port, "tell": tell}[sys.argv[1]](*sys.argv[2:])
