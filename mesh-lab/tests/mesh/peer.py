"""Both ends of the system tests' connections: a server with a few behaviours, and clients that use them.

  peer.py serve PORT                       serve on both address families
  peer.py WHAT HOST PORT [ARGUMENTS…]      connect, and print what came of it

The first line of a connection says what the server is to do; see `serve_one`.
"""
import hashlib, os, resource, select, socket, struct, sys, threading, time

CHUNK = 256 * 1024


def pattern(count):
    """`count` bytes that differ from place to place."""
    block = hashlib.sha256(b"nodemesh").digest() * 8192
    while count > 0:
        yield block[:count]
        count -= len(block)


def digest(chunks):
    total = hashlib.sha256()
    for chunk in chunks:
        total.update(chunk)
    return total.hexdigest()


def received(sock, count=None):
    """What arrives, up to `count` bytes or the end."""
    left = count
    while left is None or left > 0:
        chunk = sock.recv(CHUNK if left is None else min(CHUNK, left))
        if not chunk:
            return
        if left is not None:
            left -= len(chunk)
        yield chunk


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def first_line(sock):
    line = b""
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            break
        line += byte
    return line.decode().split()


def plain(address):
    return address[0].removeprefix("::ffff:")


def serve_one(sock, accepted):
    words = first_line(sock)
    what, count = (words or ["none"])[0], int(words[1]) if len(words) > 1 else 0
    if what == "who":  # whom accept() and getpeername() name
        sock.sendall(f"{plain(accepted)} {plain(sock.getpeername())} {os.uname().nodename}\n".encode())
    elif what == "echo":  # everything, and a word after the client's end
        for chunk in received(sock):
            sock.sendall(chunk)
        sock.sendall(b"<done>")
    elif what == "inline":  # as echo, with urgent bytes in their place
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        sock.sendall(b"".join(received(sock)))
    elif what == "sink":
        sock.sendall(digest(received(sock, count)).encode())
    elif what == "source":
        for chunk in pattern(count):
            sock.sendall(chunk)
    elif what == "close-first":  # ends its side, and goes on listening
        sock.sendall(b"bye")
        sock.shutdown(socket.SHUT_WR)
        print("after-close", b"".join(received(sock)).decode(), flush=True)
    elif what == "reset":
        reset(sock)
        return
    elif what == "await-reset":
        try:
            sock.recv(1)
            print("await-reset: closed", flush=True)
        except ConnectionResetError:
            print("await-reset: reset", flush=True)
    elif what == "stall":  # reads nothing for so long, and then all
        time.sleep(count)
        sock.sendall(str(sum(len(chunk) for chunk in received(sock))).encode())
    elif what == "park":
        PARKED.append(sock)
        sock.sendall(b"parked\n")
        return
    elif what == "hold":
        sock.sendall(b"held\n")
        sock.recv(1)
    sock.close()


PARKED = []  # connections that nobody attends to, by the thousand


def serve(port):
    raise_limit()
    threading.stack_size(256 * 1024)
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    while True:
        sock, accepted = listener.accept()
        threading.Thread(target=quiet, args=(sock, accepted), daemon=True).start()


def raise_limit():
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def quiet(sock, accepted):
    try:
        serve_one(sock, accepted)
    except OSError:
        sock.close()


def connect(host, port, order):
    sock = socket.create_connection((host, int(port)), timeout=60)
    sock.sendall(f"{order}\n".encode())
    return sock


def who(host, port):
    sock = connect(host, port, "who")
    print(plain(sock.getpeername()), b"".join(received(sock)).decode().strip(), plain(sock.getsockname()))


def echo(host, port, text="hello"):
    sock = connect(host, port, "echo")
    sock.sendall(text.encode())
    sock.shutdown(socket.SHUT_WR)
    print(b"".join(received(sock)).decode())


def slowly(host, port, pieces):
    """Ten bytes at a time, and what came back."""
    sock = connect(host, port, "echo")
    for number in range(int(pieces)):
        sock.sendall(b"SECRET%04d" % number)
        time.sleep(0.1)
    sock.shutdown(socket.SHUT_WR)
    expected = b"".join(b"SECRET%04d" % number for number in range(int(pieces))) + b"<done>"
    came = b"".join(received(sock))
    print("whole" if came == expected else came)


def bytewise(host, port, count):
    sock = connect(host, port, "echo")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=lambda: [sock.sendall(b"x") for _ in range(int(count))] and sock.shutdown(socket.SHUT_WR)).start()
    print(len(b"".join(received(sock))) - len("<done>"))


def sink(host, port, count):
    sock = connect(host, port, f"sink {count}")
    for chunk in pattern(int(count)):
        sock.sendall(chunk)
    print(b"".join(received(sock)).decode() == digest(pattern(int(count))))


def source(host, port, count):
    sock = connect(host, port, f"source {count}")
    print(digest(received(sock)) == digest(pattern(int(count))))


def close_first(host, port):
    sock = connect(host, port, "close-first")
    print(b"".join(received(sock)).decode())
    sock.sendall(b"still here")
    sock.close()


def expect_reset(host, port):
    sock = connect(host, port, "reset")
    try:
        print("data" if sock.recv(1) else "closed")
    except ConnectionResetError:
        print("reset")


def send_reset(host, port):
    sock = connect(host, port, "await-reset")
    time.sleep(0.2)
    reset(sock)


def stall(host, port, seconds, most=1 << 30):
    """Writes until it is held up or `most` is written, and tells how much was taken before and in all."""
    sock = connect(host, port, f"stall {seconds}")
    sock.settimeout(3)
    before = 0
    try:
        while before < int(most):
            before += sock.send(b"y" * CHUNK)
    except TimeoutError:
        pass
    sock.settimeout(int(seconds) + 30)
    sock.shutdown(socket.SHUT_WR)
    print(before, b"".join(received(sock)).decode())


def hold(host, port, seconds, interface=None):
    """Keeps a connection, bound to an interface if one is named, and tells how long it lasted."""
    sock = connect(host, port, "hold")
    assert sock.recv(5) == b"held\n"
    if interface:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    print("held", flush=True)
    began = time.monotonic()
    sock.settimeout(float(seconds))
    try:
        outcome = "data" if sock.recv(1) else "closed"
    except TimeoutError:
        outcome = "kept"
    except OSError:
        outcome = "reset"
    print(outcome, round(time.monotonic() - began, 2), flush=True)


def park(host, port, count):
    """Opens so many idle connections, tells so, and keeps them until its input ends."""
    raise_limit()
    socks, failed = [], 0
    for _ in range(int(count)):
        try:
            sock = connect(host, port, "park")
            if sock.recv(7) != b"parked\n":
                raise OSError
            socks.append(sock)
        except OSError as error:
            failed += 1
            print(error, file=sys.stderr, flush=True)
    print("parked", len(socks), "failed", failed, flush=True)
    sys.stdin.read()


def load(host, port, seconds):
    """One short connection after another; tells how many there were and how many failed."""
    end, done, failed = time.monotonic() + float(seconds), 0, []
    while time.monotonic() < end:
        try:
            sock = connect(host, port, "who")
            if not b"".join(received(sock)):
                raise OSError("no answer")
            sock.close()
            done += 1
        except OSError as error:
            failed.append(str(error))
            time.sleep(0.05)
    print("done", done, "failed", len(failed), failed[:3], flush=True)


def until_stuck(host, port):
    """One connection after another, until one is not answered. Tells how many were, and what that one gets in the end."""
    family, _, _, _, address = socket.getaddrinfo(host, int(port), 0, socket.SOCK_STREAM)[0]

    def is_ready(sock, what):
        poll = select.poll()
        poll.register(sock, what)
        return bool(poll.poll(3000))
    answered = 0
    while True:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.connect_ex(address)
        is_open = is_ready(sock, select.POLLOUT)
        if is_open:
            sock.sendall(b"who\n")
        if not is_open or not is_ready(sock, select.POLLIN):
            break
        sock.close()
        answered += 1
    print("stuck", answered, flush=True)
    sock.settimeout(60)
    if not is_open:
        sock.sendall(b"who\n")
    print(b"".join(received(sock)).decode().strip(), flush=True)


def abandon(host, port, seconds):
    """Begins connections and leaves at once. Tells how many."""
    family, _, _, _, address = socket.getaddrinfo(host, int(port), 0, socket.SOCK_STREAM)[0]
    end, count = time.monotonic() + float(seconds), 0
    while time.monotonic() < end:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.connect_ex(address)
        sock.close()
        count += 1
    print(count, flush=True)


def at_once(count, host, port):
    """Opens so many connections without waiting. Tells how many are open within half a second, and how many are answered."""
    raise_limit()
    family, _, _, _, address = socket.getaddrinfo(host, int(port), 0, socket.SOCK_STREAM)[0]
    socks = [socket.socket(family, socket.SOCK_STREAM) for _ in range(int(count))]
    for sock in socks:
        sock.setblocking(False)
        sock.connect_ex(address)
    poll, is_open, end = select.poll(), 0, time.monotonic() + 0.5
    for sock in socks:
        poll.register(sock, select.POLLOUT)
    while time.monotonic() < end:
        for descriptor, _ in poll.poll(10):
            poll.unregister(descriptor)
            is_open += 1
    print(is_open, flush=True)
    answered = 0
    for sock in socks:
        sock.settimeout(30)
        while sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
            try:
                sock.sendall(b"who\n")
                answered += bool(b"".join(received(sock)))
                break
            except BrokenPipeError:
                time.sleep(0.01)
    print(answered, flush=True)


def main():
    what, *arguments = sys.argv[1:]
    if what == "serve":
        serve(int(arguments[0]))
    clients = {f.__name__.replace("_", "-"): f for f in (who, echo, slowly, bytewise, sink, source, close_first,
               expect_reset, send_reset, stall, hold, park, load, until_stuck, at_once, abandon)}
    try:
        clients[what](*arguments)
    except OSError as error:
        sys.exit(f"{type(error).__name__}: {error}")


main()
