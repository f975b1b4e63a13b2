"""Those who would use up what listens, and those who are served all the same.

  listeners.py half  HOST PORT COUNT BYTES [SOURCE…]   half requests, COUNT at a time, opened again when they are ended
  listeners.py slow  HOST PORT COUNT PATH              whole requests of which the answers are not read
  listeners.py times HOST PORT COUNT                   milliseconds that COUNT connections to the tests' server took

The first two say `open` when all were opened once, and go on until their input ends.
"""
import resource, socket, sys, threading, time

resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)


def opened(host, port, source, request, small):
    family = socket.getaddrinfo(host, port)[0][0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.settimeout(5)
    if small:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    if source:
        sock.bind((source, 0))
    sock.connect((host, port))
    sock.sendall(request)
    return sock


def ended(sock):
    """Whether the other end has closed it; what it sent is left where it is."""
    try:
        return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def hold(host, port, count, request, sources=(None,), small=False):
    held = {}

    def open_one(index):
        try:
            held[index] = opened(host, port, sources[index % len(sources)], request, small)
        except OSError:
            held[index] = None

    for index in range(count):
        open_one(index)
    print("open", sum(sock is not None for sock in held.values()), flush=True)
    done = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
    while not done.is_set():
        for index in range(count):
            if done.is_set():
                return
            if held[index] is None or (index % 10 == 0 and ended(held[index])):
                open_one(index)
                time.sleep(0.002)
        done.wait(0.05)


def times(host, port, count):
    took = []
    for _ in range(count):
        begun = time.monotonic()
        with socket.create_connection((host, port), 10) as sock:
            sock.sendall(b"who\n")
            while sock.recv(4096):
                pass
        took.append((time.monotonic() - begun) * 1e3)
        time.sleep(0.005)
    took.sort()
    print(f"{took[len(took) // 2]:.2f} {took[len(took) * 99 // 100]:.2f}")


what, host, port, count, *rest = sys.argv[1:]
port, count = int(port), int(count)
if what == "half":
    head = b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"a" * int(rest[0])
    hold(host, port, count, head, rest[1:] or (None,))
elif what == "slow":
    hold(host, port, count, f"GET {rest[0]} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), small=True)
else:
    times(host, port, count)
