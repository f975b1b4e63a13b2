#!/usr/bin/env python3
"""connect() now, the SYN when the program writes: TCP_FASTOPEN_CONNECT, which needs no privilege."""
import socket
import sys

TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE = 30, 34


def main(host, port, count):
    socks = []
    for _ in range(int(count)):
        sock = socket.socket()
        sock.settimeout(10)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
        sock.connect((host, int(port)))
        socks.append(sock)
    print("ready", flush=True)
    sys.stdin.readline()
    answered, refused = 0, []
    for sock in socks:
        try:
            sock.send(b"who\n")
            if not sock.recv(1000):
                raise OSError("closed")
            answered += 1
        except OSError as error:
            refused.append(str(error))
    print("answered", answered, "refused", len(refused), refused[:1], flush=True)


main(*sys.argv[1:])
