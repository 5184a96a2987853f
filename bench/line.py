"""A line with a round trip: two networks of this machine, joined by two TUN devices whose packets a process of its own
holds back for half of it. To both ends it is what a real line is: TCP measures the round trip, grows its windows, waits
for acknowledgements. Needs root, `ip` and /dev/net/tun; the machine needs no netem.

    with Line(0.03) as line:
        # servers of this network listen at line.near
        subprocess.run([*line.under, "psql", "-h", line.near, …])     # at the far end
"""

import collections
import contextlib
import fcntl
import os
import select
import struct
import subprocess
import sys
import time

# linux/if_tun.h
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02
VNET_HEADER = 10
# The largest packet that is not cut before it reaches us, with its header.
PACKET_MAX = VNET_HEADER + 65_536
# Packets that a device keeps for us; a line that lost some would be another one.
QUEUE = 100_000
# Packets that are read from one end before the other one's turn.
BURST = 64


class Line:
    """See the module's doc. The networks of two lines at once would collide; there is one at a time."""

    near, far = "10.98.76.1", "10.98.76.2"

    def __init__(self, round_trip):
        self.round_trip = round_trip
        self.network = f"millrace-{os.getpid()}"
        self.under = ["ip", "netns", "exec", self.network]

    def __enter__(self):
        with contextlib.ExitStack() as undo:
            ip("netns", "add", self.network)
            undo.callback(ip, "netns", "del", self.network)
            ends = [device("millrace-near"), device("millrace-far")]
            ip("link", "set", "millrace-far", "netns", self.network)
            for network, name, address in (
                ([], "millrace-near", self.near),
                (["-n", self.network], "millrace-far", self.far),
            ):
                ip(*network, "addr", "add", f"{address}/30", "dev", name)
                ip(*network, "link", "set", name, "txqueuelen", str(QUEUE), "up")
            ip("-n", self.network, "link", "set", "lo", "up")
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(self.round_trip / 2), *map(str, ends)], pass_fds=ends
            )
            for end in ends:
                os.close(end)
            undo.callback(self._end)
            self.undo = undo.pop_all()
        return self

    def _end(self):
        self.process.kill()
        self.process.wait()

    def __exit__(self, *_):
        self.undo.close()


def ip(*arguments):
    """One command of ip(8)."""
    subprocess.run(["ip", *arguments], check=True)


def device(name):
    """A new TUN device that takes large segments whole; gives its descriptor."""
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(end, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER))
    fcntl.ioctl(end, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    return end


def carry(delay, ends):
    """Packets from each end to the other, each so many seconds later. They leave as they came, so a packet that is not
    due holds back those behind it, which are not either."""
    under_way = {end: collections.deque() for end in ends}
    other = dict(zip(ends, reversed(ends)))
    while True:
        due = min((held[0][0] for held in under_way.values() if held), default=None)
        wait = None if due is None else max(0.0, due - time.monotonic())
        for end in select.select(ends, [], [], wait)[0]:
            with contextlib.suppress(BlockingIOError):
                now, held = time.monotonic(), under_way[other[end]]
                for _ in range(BURST):
                    held.append((now + delay, os.read(end, PACKET_MAX)))
        now = time.monotonic()
        for end, held in under_way.items():
            while held and held[0][0] <= now:
                os.write(end, held.popleft()[1])


if __name__ == "__main__":
    carry(float(sys.argv[1]), [int(end) for end in sys.argv[2:4]])
