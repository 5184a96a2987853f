"""A TCP proxy to a local port that misbehaves as networks do: round trips, narrow links, small pieces, resets, hangs in
one direction or both, ends of which the other side is not told. It changes no byte and keeps their order.

    with Proxy(server.port) as proxy:
        proxy.round_trip = 0.03         # seconds; bytes are held back, any number of them at once
        proxy.bandwidth = 100_000 / 8   # bytes per second for each direction; None: no limit
        proxy.piece = 7                 # at most so many bytes at a time
        proxy.cut()                     # resets what is open, refuses what is new
        proxy.reset()                   # resets what is open; what is new works
        proxy.reset_after(10_000)       # the same, when so many more bytes have come from the server
        proxy.hang("down")              # "up": to the server, "down": from it, "both"; nobody is told
        proxy.desert("server")          # resets the client and does not tell the server; or "client", the other way
        proxy.heal()                    # ends all of it

It runs as a process of its own (one thread, asyncio), so that neither the test nor a bench shares its interpreter with
it; it takes one command per line and answers each when it is in force.
"""

import asyncio
import collections
import contextlib
import json
import selectors
import signal
import socket
import struct
import subprocess
import sys

READ_BYTES = 256 << 10
# What one direction of a connection holds back at most: 200 MB/s at a round trip of 160 ms.
HELD_BYTES_MAX = 16 << 20
# What waits for a receiver that does not read.
UNSENT_BYTES_MAX = 1 << 20
# How long a narrow link may save up: what it then sends at once.
BURST_SECONDS = 0.02
PIECE_PAUSE = 0.0002
LINGER_NONE = struct.pack("ii", 1, 0)
DIRECTIONS = {"up": {"up"}, "down": {"down"}, "both": {"up", "down"}}


class Proxy:
    """The handle: starts the process, sends it commands, ends it."""

    def __init__(self, port):
        self._target, self._round_trip, self._bandwidth, self._piece = port, 0.0, None, None

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(self._target)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.port = json.loads(self.process.stdout.readline())
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _command(self, name, *arguments):
        self.process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    @property
    def target(self):
        """The port that new connections lead to."""
        return self._target

    @target.setter
    def target(self, port):
        self._target = self._command("target", port)

    @property
    def round_trip(self):
        """Seconds, half of them in each direction."""
        return self._round_trip

    @round_trip.setter
    def round_trip(self, seconds):
        self._round_trip = self._command("round_trip", seconds)

    @property
    def bandwidth(self):
        """Bytes per second in each direction, all connections together; `None` for no limit."""
        return self._bandwidth

    @bandwidth.setter
    def bandwidth(self, bytes_per_second):
        self._bandwidth = self._command("bandwidth", bytes_per_second)

    @property
    def piece(self):
        """At most so many bytes are sent at a time, with a pause of 0.2 ms in between; `None` for any number."""
        return self._piece

    @piece.setter
    def piece(self, count):
        self._piece = self._command("piece", count)

    def cut(self):
        """Resets every connection and refuses new ones."""
        self._command("cut")

    def reset(self):
        """Resets every connection; gives how many there were."""
        return self._command("reset")

    def reset_after(self, count):
        """Resets every connection when so many more bytes have come from the server, all connections together."""
        self._command("reset_after", count)

    def hang(self, direction="both"):
        """Bytes no longer arrive; nobody is told. New connections are taken, and hang too."""
        self._command("hang", direction)

    def desert(self, side):
        """Every connection is left half-open: `side` ("server" or "client") keeps its end, from which nothing comes any
        more, and the other's is reset. New connections work."""
        return self._command("desert", side)

    def heal(self):
        """Everything works again; what hung goes on, what was reset or deserted stays so."""
        self._command("heal")
        self._round_trip, self._bandwidth, self._piece = 0.0, None, None

    def seen(self):
        """What went through so far: {"connections", "open", "up", "down"} (bytes for the last two)."""
        return self._command("seen")


class Link:
    """What holds for all connections, and all of them."""

    def __init__(self, target):
        self.target, self.pairs, self.connections = target, set(), 0
        self.moved = {"up": 0, "down": 0}
        self.reset_at = None
        self.heal()

    def heal(self):
        self.refusing, self.hung = False, set()
        self.delay, self.bandwidth, self.piece = 0.0, None, None
        self.free_at = {"up": 0.0, "down": 0.0}
        self.shaped = False
        self.flow()

    def shape(self):
        self.shaped = bool(self.delay or self.bandwidth or self.piece)

    def flow(self, pairs=None):
        for pair in pairs or list(self.pairs):
            for way in pair.ways:
                way.pump()

    def note(self, direction, count):
        """Counts bytes that are about to be sent on; whether they may be."""
        self.moved[direction] += count
        if self.reset_at is not None and self.moved["down"] >= self.reset_at:
            self.reset_at = None
            self.reset()
            return False
        return True

    def reset(self):
        count = len(self.pairs)
        for pair in list(self.pairs):
            pair.reset()
        return count

    def obey(self, name, *arguments):
        if name == "target":
            (self.target,) = arguments
            return self.target
        if name == "round_trip":
            self.delay = arguments[0] / 2
            self.shape()
            return arguments[0]
        if name in ("bandwidth", "piece"):
            setattr(self, name, arguments[0])
            self.shape()
            return arguments[0]
        if name == "cut":
            self.refusing = True
            return self.reset()
        if name == "reset":
            return self.reset()
        if name == "reset_after":
            self.reset_at = self.moved["down"] + arguments[0]
            return None
        if name == "hang":
            self.hung = DIRECTIONS[arguments[0]]
            self.flow()
            return None
        if name == "desert":
            pairs = list(self.pairs)
            for pair in pairs:
                pair.desert(arguments[0])
            return len(pairs)
        if name == "heal":
            return self.heal()
        if name == "seen":
            return {"connections": self.connections, "open": len(self.pairs), **self.moved}
        raise ValueError(name)


class Way:
    """One direction of one connection: from `source` to `sink`."""

    def __init__(self, link, direction, source, sink):
        self.link, self.direction, self.source, self.sink = link, direction, source, sink
        self.held, self.held_bytes, self.timer, self.may_send_at = collections.deque(), 0, None, 0.0
        self.leads_nowhere = False

    def take(self, piece):
        """Bytes that came, or `None` for the end."""
        link = self.link
        if self.leads_nowhere:
            return
        if self.held or link.shaped or link.hung or not self.sink.is_open():
            self.held.append((link.loop.time() + link.delay, piece and memoryview(piece)))
            self.held_bytes += len(piece) if piece else 0
            self.pump()
        else:
            self.send(piece)
            self.balance()

    def send(self, piece):
        if piece is None:
            self.sink.end()
        elif self.link.note(self.direction, len(piece)):
            self.sink.write(piece)

    def balance(self):
        """A side that is ahead is not read from."""
        # Above the transport's own limit, not at it: only from there does it tell when it is below again.
        full = self.held_bytes >= HELD_BYTES_MAX or self.sink.unsent() > UNSENT_BYTES_MAX
        self.source.read(not full and self.direction not in self.link.hung)

    def pump(self):
        """Sends what is due."""
        link = self.link
        if self.timer:
            self.timer.cancel()
            self.timer = None
        while self.held and self.direction not in link.hung and self.sink.is_open():
            now = link.loop.time()
            due, piece = self.held[0]
            due = max(due, self.may_send_at)
            if link.bandwidth:
                due = max(due, link.free_at[self.direction] - BURST_SECONDS)
            if due > now:
                self.timer = link.loop.call_at(due, self.pump)
                break
            self.held.popleft()
            if piece is not None:
                piece = self.part(due, piece, now)
            self.send(piece)
        self.balance()

    def part(self, due, piece, now):
        """As much of the piece as may leave at once; the rest is put back."""
        link = self.link
        most = min(link.piece or len(piece), int((link.bandwidth or 1e12) * BURST_SECONDS) + 1)
        if most < len(piece):
            self.held.appendleft((due, piece[most:]))
            piece = piece[:most]
        self.held_bytes -= len(piece)
        if link.bandwidth:
            link.free_at[self.direction] = max(now, link.free_at[self.direction]) + len(piece) / link.bandwidth
        if link.piece:
            self.may_send_at = now + PIECE_PAUSE
        return piece


class End(asyncio.BufferedProtocol):
    """One side of a connection."""

    def __init__(self, link):
        self.link, self.pair, self.way_in, self.way_out, self.transport = link, None, None, None, None
        self.reading, self.is_ended = True, False
        self.view = memoryview(bytearray(READ_BYTES))

    def connection_made(self, transport):
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(UNSENT_BYTES_MAX, UNSENT_BYTES_MAX // 2)

    def get_buffer(self, _):
        return self.view

    def buffer_updated(self, count):
        self.way_in.take(bytes(self.view[:count]))

    def eof_received(self):
        self.way_in.take(None)
        # The other direction stays open.
        return True

    def resume_writing(self):
        self.way_out.pump()

    def connection_lost(self, _):
        self.pair.lost(self)

    def is_open(self):
        return self.transport is not None and not self.transport.is_closing()

    def unsent(self):
        return self.transport.get_write_buffer_size() if self.is_open() else 0

    def write(self, piece):
        if self.is_open():
            self.transport.write(piece)

    def end(self):
        if self.is_open() and not self.is_ended:
            self.is_ended = True
            # Who was killed may be gone already.
            with contextlib.suppress(OSError):
                self.transport.write_eof()
            self.pair.ended()

    def read(self, wanted):
        if self.is_open() and wanted != self.reading:
            self.reading = wanted
            (self.transport.resume_reading if wanted else self.transport.pause_reading)()

    def reset(self):
        if self.is_open():
            close_with_reset(self.transport.get_extra_info("socket"))
            self.transport.abort()


class Pair:
    """A connection: the client's end and the server's."""

    def __init__(self, link):
        self.link, self.client, self.server = link, End(link), End(link)
        client, server = self.client, self.server
        client.pair = server.pair = self
        up, down = Way(link, "up", client, server), Way(link, "down", server, client)
        client.way_in, client.way_out, server.way_in, server.way_out = up, down, down, up
        self.ways = (up, down)
        link.pairs.add(self)

    def lost(self, end):
        """One end was reset: so is the other."""
        if self in self.link.pairs:
            self.forget()
            (self.server if end is self.client else self.client).reset()

    def ended(self):
        """Closes when both directions have ended."""
        if self.client.is_ended and self.server.is_ended:
            self.forget()
            for end in (self.client, self.server):
                end.transport.close()

    def forget(self):
        self.link.pairs.discard(self)
        for way in self.ways:
            way.held.clear()

    def reset(self):
        self.forget()
        self.client.reset()
        self.server.reset()

    def desert(self, side):
        """What the end that stays sends is taken and leads nowhere, and nothing comes from there."""
        self.forget()
        stays, goes = (self.server, self.client) if side == "server" else (self.client, self.server)
        stays.way_in.leads_nowhere = True
        stays.read(True)
        goes.reset()


def close_with_reset(end):
    """From now on closing it sends RST, as a machine that went away would."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)


async def serve(target):
    """The process: listens, and obeys the lines of its input until that ends."""
    loop = asyncio.get_running_loop()
    link = Link(target)
    link.loop = loop

    async def connected(client):
        client.setblocking(False)
        if link.refusing:
            close_with_reset(client)
            client.close()
            return
        link.connections += 1
        pair = Pair(link)
        try:
            await loop.create_connection(lambda: pair.server, "127.0.0.1", link.target)
        except OSError:
            pair.forget()
            close_with_reset(client)
            client.close()
            return
        await loop.connect_accepted_socket(lambda: pair.client, client)
        link.flow([pair])

    async def accept(listener):
        while True:
            client, _ = await loop.sock_accept(listener)
            task = loop.create_task(connected(client))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    tasks = set()
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    listener.setblocking(False)
    tasks.add(loop.create_task(accept(listener)))
    print(listener.getsockname()[1], flush=True)
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        print(json.dumps(link.obey(*json.loads(line))), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # select(2) waits to the microsecond, epoll to the millisecond, which is too coarse for a round trip of one.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(serve(int(sys.argv[1])))
