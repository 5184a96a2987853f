"""The proxy misbehaves as it says, and otherwise passes bytes on fast and in order."""

import contextlib
import socket
import struct
import threading
import time

import pytest
from proxy import READ_BYTES, Proxy


class Answering:
    """A server: of each connection it reads a number, and sends as many bytes; a 0 ends its side."""

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.ends = self.listener.getsockname()[1], []
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                end, _ = self.listener.accept()
                self.ends.append(end)
                threading.Thread(target=self._answer, args=(end,), daemon=True).start()

    def _answer(self, end):
        with contextlib.suppress(OSError):
            while asked := end.recv(8, socket.MSG_WAITALL):
                (count,) = struct.unpack("!q", asked)
                if count == 0:
                    end.shutdown(socket.SHUT_WR)
                end.sendall(pattern(count))

    def __exit__(self, *_):
        self.listener.close()
        for end in self.ends:
            end.close()


def pattern(count):
    """Bytes of which none can be missing, added or moved without being seen."""
    numbers = b"".join(struct.pack("!I", number) for number in range(min(count, 1 << 18) // 4 + 1))
    return (numbers * (count // len(numbers) + 1))[:count]


@pytest.fixture
def link():
    """(server, proxy, a connection through it)."""
    with Answering() as server, Proxy(server.port) as proxy, connected(proxy) as client:
        yield server, proxy, client


def connected(proxy):
    """A client of the proxy."""
    client = socket.create_connection(("127.0.0.1", proxy.port), 10)
    client.settimeout(20)
    return client


def ask(client, count):
    """Has the server send so many bytes; gives them and the seconds that they took."""
    began = time.monotonic()
    client.sendall(struct.pack("!q", count))
    got = receive(client, count)
    return got, time.monotonic() - began


def receive(client, count):
    """So many bytes."""
    got = bytearray(count)
    view, at = memoryview(got), 0
    while at < count:
        more = client.recv_into(view[at:])
        assert more, f"the connection ended after {at} of {count} bytes"
        at += more
    return bytes(got)


def test_a_round_trip_costs_no_throughput(link):
    """Pieces are held back side by side: one after the other, each would take half a round trip for itself."""
    _, proxy, client = link
    proxy.round_trip = 0.2
    size = 64 << 20
    got, seconds = ask(client, size)
    assert got == pattern(size)
    one_by_one = size / READ_BYTES * proxy.round_trip / 2
    assert seconds < one_by_one / 2, f"{seconds:.1f} s, and {one_by_one:.0f} s one by one"


@pytest.mark.parametrize("round_trip", [0.001, 0.03])
def test_a_round_trip_takes_as_long_as_it_is_told(link, round_trip):
    _, proxy, client = link
    proxy.round_trip = round_trip
    taken = sorted(ask(client, 1)[1] for _ in range(40))
    # The quickest, because a busy machine makes any of the others as slow as it likes.
    assert round_trip <= taken[0] < round_trip + 0.02, taken


def test_a_narrow_link_and_small_pieces(link):
    _, proxy, client = link
    proxy.bandwidth = 1e6
    got, seconds = ask(client, 1_000_000)
    assert got == pattern(1_000_000) and 0.8 < seconds, seconds
    proxy.heal()
    proxy.piece = 7
    got, _ = ask(client, 3000)
    assert got == pattern(3000)
    assert proxy.seen()["down"] == 1_003_000
    proxy.heal()
    assert ask(client, 1 << 20)[0] == pattern(1 << 20)


def test_ends_are_passed_on_one_by_one(link):
    server, proxy, client = link
    proxy.round_trip = 0.02
    client.sendall(struct.pack("!qq", 100_000, 0))
    client.shutdown(socket.SHUT_WR)
    assert receive(client, 100_000) == pattern(100_000)
    assert client.recv(1) == b""
    # The server ended its side too, so nothing is left.
    assert server.ends[0].recv(1) == b""


def test_resets_and_refusals(link):
    server, proxy, client = link
    ask(client, 10)
    assert proxy.reset() == 1
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with connected(proxy) as again:
        proxy.reset_after(1000)
        again.sendall(struct.pack("!q", 5_000_000))
        with pytest.raises(ConnectionResetError):
            receive(again, 5_000_000)
    proxy.cut()
    with pytest.raises(OSError):
        ask(connected(proxy), 1)
    proxy.heal()
    with connected(proxy) as again:
        assert ask(again, 1)[0] == pattern(1)
    server.listener.close()
    with Answering() as other:
        proxy.target = other.port
        with connected(proxy) as again:
            assert ask(again, 1)[0] == pattern(1) and len(other.ends) == 1


@pytest.mark.parametrize("direction", ["up", "down", "both"])
def test_what_hung_goes_on_where_it_was(link, direction):
    server, proxy, client = link
    ask(client, 1)
    proxy.hang(direction)
    client.sendall(struct.pack("!q", 3_000_000))
    with connected(proxy) as new:
        new.sendall(struct.pack("!q", 1))
        for waiting in (client, new):
            waiting.settimeout(0.3)
            with pytest.raises(TimeoutError):
                waiting.recv(1)
            waiting.settimeout(20)
        proxy.heal()
        assert receive(client, 3_000_000) == pattern(3_000_000) and receive(new, 1) == pattern(1)


@pytest.mark.parametrize("side", ["client", "server"])
def test_one_side_is_not_told(link, side):
    server, proxy, client = link
    ask(client, 1)
    assert proxy.desert(side) == 1
    stays, goes = (client, server.ends[0]) if side == "client" else (server.ends[0], client)
    if side == "server":
        with pytest.raises(ConnectionResetError):
            goes.recv(1)
    stays.settimeout(0.5)
    stays.sendall(b"into the void")
    with pytest.raises(TimeoutError):
        stays.recv(1)
    with connected(proxy) as again:
        assert ask(again, 1)[0] == pattern(1)
