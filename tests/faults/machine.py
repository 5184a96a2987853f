"""What breaks a machine on a plain Debian: failing system calls (strace), small and read-only volumes in a mount namespace
of the test's own, limits, a clock that lies. Each says by skipping where the machine does not let it."""

import contextlib
import ctypes
import os
import re
import shutil
import subprocess

import pytest
from servers import wait_for

# Where Debian has mkfs and mount; an unprivileged user's PATH is without it.
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000


def need(program, package):
    """Skips where a program is missing."""
    if not shutil.which(program, path=PATH):
        pytest.skip(f"needs {program}: apt-get install {package}")


def need_root():
    """Skips where mounting is not allowed."""
    if os.getuid() != 0:
        pytest.skip("needs root: mounts in a namespace of its own")


def tried(*command):
    """Runs a command that needs rights; skips with its words where it is refused."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": PATH})
    if done.returncode:
        pytest.skip(f"{command[0]} is refused here: {done.stderr.strip()[:100]}")


@contextlib.contextmanager
def frozen(paths):
    """Nobody may write to these files and folders, not even root (`chattr +i`)."""
    need_root()
    need("chattr", "e2fsprogs")
    tried("chattr", "+i", *paths)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", *paths], check=True, env={**os.environ, "PATH": PATH})


def traced(*expressions, log=None):
    """The command that runs another one with failing system calls; `-D` keeps that one our child. An injection counts
    `when=` per thread. The calls it meets are written to `log`, with the paths of their files."""
    need("strace", "strace")
    probe = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"strace may not trace here: {probe.stderr.strip()[:100]}")
    command = ["strace", "-D", "-f", "-qq", "-y", "-o", log or "/dev/null"]
    for expression in expressions:
        command += ["-e", expression]
    return command


@contextlib.contextmanager
def attached(running, *expressions, log=None):
    """Failing system calls for a daemon that runs already."""
    command = [part for part in traced(*expressions, log=log) if part != "-D"]
    tracer = subprocess.Popen([*command, "-p", str(running.process.pid)], stderr=subprocess.PIPE)
    status = f"/proc/{running.process.pid}/status"

    def traces():
        with open(status) as file:
            return f"TracerPid:\t{tracer.pid}\n" in file.read()

    try:
        wait_for(lambda: tracer.poll() is not None or traces(), 10, "the tracer")
        if tracer.poll() is not None:
            said = tracer.stderr.read().decode().strip()
            pytest.skip(f"strace may not attach here (kernel.yama.ptrace_scope): {said[:100]}")
        yield
    finally:
        tracer.terminate()
        tracer.communicate(timeout=20)


class Volume:
    """A volume at a path, seen by this test and what it starts: ext4 on a loop device, or tmpfs where there is none."""

    def __init__(self, path, mebibytes, image):
        need_root()
        self.path, self.image, self.ballast = path, image, os.path.join(path, "ballast")
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
            pytest.skip(f"no mount namespace of its own: {os.strerror(ctypes.get_errno())}")
        need("mkfs.ext4", "e2fsprogs")
        os.makedirs(path, exist_ok=True)
        with open(image, "wb") as file:
            file.truncate(mebibytes << 20)
        tried("mkfs.ext4", "-q", "-m", "0", image)
        if subprocess.run(["mount", "-o", "loop", image, path], capture_output=True).returncode:
            tried("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", path)

    def free(self):
        """Bytes that may still be written."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, leave=0):
        """Takes all space but `leave` bytes."""
        with open(self.ballast, "ab", buffering=0) as file:
            while self.free() > leave:
                try:
                    file.write(b"\x55" * min(1 << 20, self.free() - leave))
                except OSError:
                    break

    def empty(self):
        """Gives the space back."""
        os.unlink(self.ballast)

    def remount(self, how):
        """`ro` or `rw`."""
        done = subprocess.run(["mount", "-o", f"remount,{how}", self.path], capture_output=True, text=True)
        return done.returncode == 0

    def close(self):
        subprocess.run(["umount", "-l", self.path], check=False)
        os.unlink(self.image)


class Names:
    """What a daemon's resolver knows: a hosts file in a namespace of the daemon's own, and a name server that does not
    answer. `under` is the command that runs another one there."""

    def __init__(self, folder):
        need_root()
        need("unshare", "util-linux")
        self.hosts, resolver = f"{folder}/hosts", f"{folder}/resolv.conf"
        with open(resolver, "w") as file:
            # Nobody listens there, which is told at once.
            file.write("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        self.know()
        mounts = f"mount --bind {self.hosts} /etc/hosts && mount --bind {resolver} /etc/resolv.conf"
        self.under = ["unshare", "-m", "sh", "-c", f'{mounts} && exec "$@"', "sh"]
        tried(*self.under, "true")

    def know(self, *names):
        """From now on these names are this machine, and no other one is known."""
        with open(self.hosts, "w") as file:
            file.write("127.0.0.1 localhost\n" + "".join(f"127.0.0.1 {name}\n" for name in names))
