"""Nodes of a small cluster on one machine: containers made of namespaces, each with its own sshd.

A node has its own host name, network address, processes and mounts. All nodes share the machine's files. The name of
each node resolves on every node, and root can log in to each node over ssh without a password.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from support import ROOT, clean_environment


def require(*programs: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test unless it runs as root and all programs are installed."""
    missing = [name for name in (*programs, "ip", "unshare", "nsenter", "setpriv") if not find_program(name)]
    reason = f"no {', '.join(missing)}; `make packages` installs the packages of tests/packages.txt"
    if os.geteuid():
        missing, reason = ["root"], "the cluster's nodes are namespaces, which need root"
    return pytest.mark.skipif(bool(missing), reason=reason)


def find_program(name: str) -> str | None:
    """Return the path of a program, also of those that only root's PATH contains."""
    folder = clean_environment()["PATH"]
    return shutil.which(name, path=os.pathsep.join([folder, "/usr/sbin", "/sbin"]))


def until(condition: Callable[[], object], seconds: float = 120, explain: Callable[[], str] = str) -> None:
    """Wait for a condition; after `seconds` fail with the text of `explain`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition was not met in {seconds} s\n{explain()}"
        time.sleep(0.05)


def run(*words: str | Path) -> str:
    """Run a command of the system and return its output."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


# The first process of a node. It mounts the node's own files over those of the machine, and collects ended processes.
_INIT = """
mount --make-rprivate /
mount --bind "$1/hosts" /etc/hosts
mount --bind "$1/ssh_config" /etc/ssh/ssh_config
hostname "$0"
ip link set lo up
mkdir -p /run/sshd
touch "$1/$0.started"
trap 'exit' TERM
while :; do sleep infinity & wait $!; done
"""


class Node:
    """One node. All its processes end with its first one, because they share a process namespace."""

    def __init__(self, name: str, address: str, folder: Path, variables: Mapping[str, str]) -> None:
        self.name, self.address, self.folder = name, address, folder
        self.variables = dict(variables)
        self.interface = f"rm{os.getpid() % 100000}{name}"
        with open(folder / f"{name}.txt", "w") as log:
            self._outer = subprocess.Popen(
                ["setpriv",
                    "--pdeathsig=KILL",  # if the tests are killed, the nodes end too
                    "unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child",
                 "bash", "-c", _INIT, name, str(folder)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        started = folder / f"{name}.started"
        until(lambda: started.exists() or self._outer.poll() is not None, 20)
        if self._outer.poll() is not None:
            pytest.skip(f"this system allows no namespaces: {(folder / f'{name}.txt').read_text().strip()}")
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        self.pid = int(children.read_text().split()[0])

    def command(self, *words: str | Path) -> list[str]:
        """Return a command line that runs `words` on the node, in the checkout's folder."""
        enter = ["nsenter", "--target", str(self.pid), "--net", "--uts", "--mount", "--pid"]
        return [*enter, "env", f"--chdir={ROOT}", *map(str, words)]

    def environment(self, **variables: str) -> dict[str, str]:
        path = f"{clean_environment()['PATH']}:/usr/sbin:/sbin"
        return {**clean_environment(), "PATH": path, "TOKENIZERS_PARALLELISM": "false", **self.variables, **variables}

    def run(self, *words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the node and return its output and exit code."""
        return subprocess.run(
            self.command(*words), env=self.environment(**variables), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def start(self, log: Path, *words: str | Path, **variables: str) -> subprocess.Popen:
        """Start a command on the node; it prints to `log`."""
        with open(log, "a") as stream:
            return subprocess.Popen(
                self.command(*words), env=self.environment(**variables), stdin=subprocess.DEVNULL,
                stdout=stream, stderr=stream,
            )  # fmt: skip

    def start_sshd(self) -> None:
        """Start an sshd on port 22 of the node, with the cluster's keys."""
        done = self.run(
            "/usr/sbin/sshd", "-f", self.folder / "sshd_config", "-E", self.folder / f"sshd-{self.name}.log"
        )
        assert done.returncode == 0, done.stderr

    def pids(self, *words: str) -> list[int]:
        """Return the machine's ids of the node's processes whose command line contains all words.

        The node's first process, its `sleep`, and processes that have ended are left out.
        """
        namespace = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and os.readlink(entry / "ns/pid") == namespace:
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if line and line != "sleep infinity " and all(word in line for word in words):
                        found.append(int(entry.name))
        return sorted(pid for pid in found if pid != self.pid)

    def kill(self, *words: str) -> None:
        """Kill the node's processes whose command line contains all words; without words, all but the first."""
        until(lambda: not [_kill(pid) for pid in self.pids(*words)], 20, lambda: f"{self.pids(*words)} are left")

    def stop(self) -> None:
        """End the node with all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._outer.wait(20)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def write_node_files(folder: Path, addresses: Mapping[str, str]) -> None:
    """Write the files that the nodes share: host names, and keys and settings of ssh."""
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in addresses.items())]
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    for name in ("host_key", "user_key"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
    (folder / "ssh_config").write_text(
        f"Host *\n    IdentityFile {folder}/user_key\n    StrictHostKeyChecking no\n    UserKnownHostsFile /dev/null\n"
        "    LogLevel ERROR\n    ConnectTimeout 10\n"
    )
    sftp = next((path for path in _SFTP_SERVERS if Path(path).exists()), "internal-sftp")
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/user_key.pub\nStrictModes no\nUsePAM no\n"
        f"PermitRootLogin prohibit-password\nPidFile none\nMaxStartups 100\nSubsystem sftp {sftp}\n"
    )


_SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server")


def connect(nodes: Sequence[Node]) -> None:
    """Put a virtual cable between two nodes and start their sshd."""
    first, second = nodes
    ends = [f"{node.interface} netns {node.pid}".split() for node in nodes]
    run("ip", "link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
    for node in (first, second):
        for words in (["addr", "add", f"{node.address}/24", "dev", node.interface],
                      ["link", "set", node.interface, "up"]):  # fmt: skip
            done = node.run("ip", *words)
            assert done.returncode == 0, done.stderr
