"""Sends what nobody should send to a pod's mesh ports, and tells how each ended.

  garbage.py HOST PORT KIND [CERTIFICATE KEY [AUTHORITY]]
  garbage.py HOST PORT mesh CERTIFICATE KEY AUTHORITY WHAT      (docs/protocol.md)
  garbage.py :: PORT impostor CERTIFICATE KEY
"""
import ipaddress, os, socket, ssl, struct, sys


def closed(sock):
    """Whether the other end closes or resets without a word that would be of use."""
    sock.settimeout(15)
    try:
        while sock.recv(4096):
            pass
        return "closed"
    except TimeoutError:
        return "open"
    except OSError:
        return "closed"


def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name, value):
    """A header field without indexing (RFC 7541, section 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def connect_request(authority, method=b"CONNECT"):
    return frame(1, 0x4, 1, literal(b":method", method) + literal(b":authority", authority.encode()))


def status_of(sock):
    """The status of the first HEADERS frame, or how the connection ended."""
    data = b""
    sock.settimeout(15)
    try:
        while True:
            while len(data) >= 9:
                length = int.from_bytes(data[:3], "big")
                if len(data) < 9 + length:
                    break
                kind, body, data = data[3], data[9 : 9 + length], data[9 + length :]
                if kind == 1:
                    return status_text(body)
                if kind in (3, 7):
                    return "refused"
            more = sock.recv(65536)
            if not more:
                return "closed"
            data += more
    except TimeoutError:
        return "open"
    except OSError:
        return "closed"


def status_text(block):
    """HPACK: 8 is `:status 200`, 12 `:status 400` (RFC 7541, appendix A); others are literal."""
    if block[0] & 0x80:
        return {8: "200", 12: "400", 13: "404", 14: "500"}.get(block[0] & 0x7F, "indexed")
    text = block[2 : 2 + (block[1] & 0x7F)]
    return text.decode() if not block[1] & 0x80 else {b"\x68\x01": "401"}.get(text[:2], "literal")


def mesh_frame(kind, stream, payload=b""):
    return bytes([kind]) + struct.pack(">I", len(payload))[1:] + struct.pack(">I", stream) + payload


def mesh_address(authority):
    host, _, port = authority.rpartition(":")
    ip = ipaddress.ip_address(host.strip("[]"))
    return bytes([ip.version]) + ip.packed + struct.pack(">H", int(port))


def mesh_open(stream, authority):
    return mesh_frame(1, stream, struct.pack(">I", 1 << 20) + mesh_address("10.9.9.9:9") + mesh_address(authority))


def mesh_says(what, authority):
    """What a peer sends that makes up its own frames."""
    opened = mesh_open(1, authority)
    return {
        "open": opened,
        # A kind that has to be known; what follows may be anything.
        "random": b"\x7f" + os.urandom(4095),
        "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""),
        "no-stream": mesh_frame(0, 7, b"x"),
        "cut-short": mesh_frame(1, 1, b"\0\0\0\1\4"),
        # Much more than any window, as the stream may be accepted and given credit while it comes.
        "no-credit": opened + mesh_frame(0, 1, bytes(200_000)) * 80,
        # Words that would be a line of our own, in a denial's form.
        "goodbye": mesh_frame(9, 0, b"\1bye\n2026-11-29T00:00:00.000000Z  WARN mesh_agent: FORGED policy=app/none\x1b[2K"),
        "streams": b"".join(mesh_open(stream, authority) for stream in range(1, 2001)),
    }[what]


def mesh_answers(sock, quiet):
    """The answers that come until it has been quiet for a while, or the end."""
    data, answers = b"", {}
    sock.settimeout(15)
    try:
        while more := sock.recv(65536):
            data += more
            sock.settimeout(quiet)
            while len(data) >= 8 and len(data) >= 8 + int.from_bytes(data[1:4], "big"):
                length = int.from_bytes(data[1:4], "big")
                kind, payload, data = data[0], data[8 : 8 + length], data[8 + length :]
                code = f" {payload[0]}" if kind in (3, 6, 9) else ""
                name = {2: "accept", 3: "refuse", 6: "reset", 9: "goaway"}.get(kind)
                if name:
                    answers[name + code] = answers.get(name + code, 0) + 1
        answers["closed"] = 1
    except TimeoutError:
        answers["open"] = 1
    except OSError:
        answers["closed"] = 1
    return ", ".join(f"{count} x {answer}" if count > 1 else answer for answer, count in sorted(answers.items()))


def session(sock, certificate, key, protocol="h2"):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    if certificate:
        context.load_cert_chain(certificate, key)
    return context.wrap_socket(sock)


def impostor(port, certificate, key):
    """Serves one connection as a pod's mesh port would, and tells whether the client trusted it with a request."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(certificate, key)
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        listener.settimeout(15)
        print("listening", flush=True)
        sock, _ = listener.accept()
        sock.settimeout(15)
        with context.wrap_socket(sock, server_side=True) as tls:
            return "trusted" if tls.recv(24) else "closed"


def main():
    host, port, kind, *rest = sys.argv[1:]
    certificate, key, authority = (rest + [None] * 3)[:3]
    if kind == "impostor":
        return impostor(int(port), certificate, key)
    sock = socket.create_connection((host, int(port)), timeout=15)
    if kind == "random":
        sock.sendall(os.urandom(4096))
        return closed(sock)
    if kind == "silent":
        sock.shutdown(socket.SHUT_WR)
        return closed(sock)
    if kind == "plaintext":
        sock.sendall(b"who\n")
        return closed(sock)
    if kind == "mesh":
        tls = session(sock, certificate, key, "nodemesh/1")
        try:
            tls.sendall(mesh_says(rest[3], authority))
        except OSError:
            pass  # Cut off before all was sent; what was answered is there to be read.
        return mesh_answers(tls, 2)
    tls = session(sock, certificate, key)
    if kind == "handshake":
        tls.sendall(b"x")
        return closed(tls)
    tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
    if kind == "frames":
        tls.sendall(os.urandom(4096))
        return closed(tls)
    tls.sendall(connect_request(authority, b"GET" if kind == "get" else b"CONNECT"))
    return status_of(tls)


if __name__ == "__main__":
    try:
        print(main())
    except (OSError, ssl.SSLError):
        print("closed")
