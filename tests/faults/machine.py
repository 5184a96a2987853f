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

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000


def need(program, package):
    """Skips where a program is missing."""
    if not shutil.which(program):
        pytest.skip(f"needs {program}: apt-get install {package}")


def need_root():
    """Skips where mounting is not allowed."""
    if os.getuid() != 0:
        pytest.skip("needs root: mounts in a namespace of its own")


def traced(*expressions, paths=(), log=None):
    """The command that runs another one with failing system calls; `-D` keeps that one our child. An injection counts
    `when=` per thread. The calls it meets are written to `log`."""
    need("strace", "strace")
    probe = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"strace may not trace here: {probe.stderr.strip()[:100]}")
    command = ["strace", "-D", "-f", "-qq", "-o", log or "/dev/null"]
    for path in paths:
        command += ["-P", path]
    for expression in expressions:
        command += ["-e", expression]
    return command


@contextlib.contextmanager
def attached(running, *expressions, paths=()):
    """Failing system calls for a daemon that runs already."""
    command = [part for part in traced(*expressions, paths=paths) if part != "-D"]
    tracer = subprocess.Popen([*command, "-p", str(running.process.pid)], stderr=subprocess.PIPE)
    try:
        status = f"/proc/{running.process.pid}/status"
        wait_for(lambda: f"TracerPid:\t{tracer.pid}" in open(status).read(), 10, "the tracer")
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
        os.makedirs(path, exist_ok=True)
        with open(image, "wb") as file:
            file.truncate(mebibytes << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
        mounted = subprocess.run(["mount", "-o", "loop", image, path], capture_output=True, text=True)
        if mounted.returncode:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", path], check=True)

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


def error_code(log):
    """The newest error code in a log, e.g. STORAGE, or the newest error's words."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in log.splitlines()]
    found = [line for line in lines if re.search(r"\b(ERROR|WARN)\b|error\[", line)]
    return found[-1].strip()[:200] if found else "-"
