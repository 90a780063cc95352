"""Hosts on this machine: each with a network, processes, a home, /tmp and an sshd of its own, on one switch.

Everything is made of Linux namespaces and ends with the process that made it: nothing is left in /run/netns, no address
of this machine changes, and no packet leaves it. It needs root, sshd, rsync and iproute2.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tests.support.waiting import until

CLONE_NEWNET = 0x40000000
PROGRAMS = ("sshd", "rsync", "ssh", "ip", "unshare", "setpriv", "curl", "make", "flock")
_libc = ctypes.CDLL(None, use_errno=True)

# What a host does when it starts. Its code comes by rsync to ~/crelu; the environment, which takes minutes to install,
# is this machine's own, at the place that clusters/node.sh links to: so ~/crelu also lies where that environment looks
# for the code, which is another folder than the project's where two checkouts share one environment.
BOOT = r"""
set -euo pipefail
home=$1 tmp=$2 address=$3 gateway=$4 project=$5 base=$6 installed=$8
mount --make-rprivate /
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip link set lo up
ip address add "$address/16" dev eth0
ip link set eth0 up
ip route add default via "$gateway"
hostname "host-${address//./-}"
within() { case $1 in /root/*) echo "$home/${1#/root/}";; /tmp/*) echo "$tmp/${1#/tmp/}";; *) echo "$1";; esac; }
echo "127.0.0.1 localhost
$address host-${address//./-}" > "$home/.hosts"
mkdir -p "$home/crelu" "$home/.crelu-venv"
mount --bind "$project/.venv" "$home/.crelu-venv"
if [ "$(within "$base")" != "$base" ]; then
	mkdir -p "$(within "$base")"
	mount --bind "$base" "$(within "$base")"
fi
for place in "$project" "$installed"; do
	mkdir -p "$(within "$place")"
	mount --rbind "$home/crelu" "$(within "$place")"
done
mount --bind "$home/.hosts" /etc/hosts
mount --bind /dev/null /etc/resolv.conf
mount -t tmpfs -o size=16g tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
mount --rbind "$home" /root
mount --rbind "$tmp" /tmp
cd /root
exec /usr/sbin/sshd -D -e -f /dev/null -h /root/.hostkey -o "ListenAddress=$address:22" -o PasswordAuthentication=no \
	-o PermitRootLogin=prohibit-password -o PidFile=none -o UsePAM=no -o UseDNS=no -o StrictModes=no -o "SetEnv=$7" \
	2> /root/sshd.log
"""


def lacking() -> str:
    """Return why no hosts can be made here; empty where they can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install openssh-server rsync iproute2 curl make"
    if os.geteuid() != 0:
        return "only root makes hosts of namespaces"
    done = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    return "" if done.returncode == 0 else f"no namespaces here: {done.stderr.decode().strip()}"


def installed() -> Path:
    """Return the folder in which this environment looks for the code."""
    url = json.loads(distribution("crelu-sweeps").read_text("direct_url.json") or "{}")["url"]
    return Path(url2pathname(urlsplit(url).path))


def checkout(project: Path, folder: Path) -> Path:
    """Copy the code to a folder for the laptop, and return it.

    `ray up` computes a hash of all files of the folder it mounts, .venv's gigabytes among them; and the copy does not
    change while someone edits the original.
    """
    without = ["--exclude=.git", "--exclude=.venv", "--exclude=.setup", "--filter=:- .gitignore"]
    subprocess.run(["rsync", "-a", *without, f"{project}/", f"{folder}/"], check=True)
    return folder


def _called(function: str, *arguments: int) -> None:
    if getattr(_libc, function)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{function}: {os.strerror(ctypes.get_errno())}")


def _ip(words: str) -> None:
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {words}: {done.stderr}"


@contextmanager
def switch(*addresses: str) -> Iterator[None]:
    """Move this thread, and what it starts, into a network of its own with a switch that has these addresses."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    _called("unshare", CLONE_NEWNET)
    try:
        _ip("link set lo up")
        # A bridge without an address takes the least of its ports', another one as hosts come and go; and hosts that
        # know the old one reach the gateway, and with it the cloud, a minute later.
        _ip("link add br0 address 02:00:00:00:00:01 type bridge")
        for address in addresses:
            _ip(f"address add {address} dev br0")
        _ip("link set br0 up")
        # What goes nowhere is refused at once, and not waited for.
        subprocess.run(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"], check=True)
        yield
    finally:
        _called("setns", before, CLONE_NEWNET)
        os.close(before)


@dataclass
class Hosts:
    """The hosts on the switch of this thread, by address; `folder` holds the home and /tmp of each."""

    folder: Path
    project: Path
    gateway: str
    environment: dict[str, str] = field(default_factory=dict)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    made: int = 0

    def home(self, address: str) -> Path:
        """Return the home of root on a host, also after its end."""
        return self.folder / address / "home"

    def start(self, address: str, key: str) -> None:
        """Start a host that lets the owner of a public key in; its disk is new."""
        shutil.rmtree(self.folder / address, ignore_errors=True)
        home, tmp = self.home(address), self.folder / address / "tmp"
        (home / ".ssh").mkdir(parents=True)
        tmp.mkdir(mode=0o1777)
        (home / ".ssh" / "authorized_keys").write_text(key)
        hostkey = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / ".hostkey")]
        subprocess.run(hostkey, check=True)
        words = " ".join(f"{name}={value}" for name, value in self.environment.items())
        # It dies with the thread that starts it, and all its processes with the first of them.
        command = [
            "setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork",
            "--kill-child", "--mount-proc", "bash", "-c", BOOT, "boot", str(home), str(tmp), address, self.gateway,
            str(self.project), sys.base_prefix, words, str(installed()),
        ]  # fmt: skip
        clean = {"PATH": os.environ["PATH"], "HOME": "/root"}
        log = (home.parent / "boot.log").open("wb")
        host = subprocess.Popen(command, env=clean, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        self.running[address] = host
        network = os.readlink("/proc/thread-self/ns/net")

        def has_network() -> bool:
            with suppress(OSError):  # it has ended: check() says so
                return os.readlink(f"/proc/{host.pid}/ns/net") != network
            return False

        until(has_network, f"{address} has a network", 60, self.check, lambda: self.log(address), poll=0.02)
        self.made += 1
        _ip(f"link add port{self.made} type veth peer name eth0 netns {host.pid}")
        _ip(f"link set port{self.made} master br0 up")

    def stop(self, address: str) -> None:
        """Take a host's power away."""
        host = self.running.pop(address)
        host.kill()
        host.wait()

    def log(self, address: str) -> str:
        """Return what the start of a host and its sshd have written."""
        files = (self.folder / address / "boot.log", self.home(address) / "sshd.log")
        return "\n".join(f"--- {address} {file.name}\n{file.read_text()[-3000:]}" for file in files if file.exists())

    def check(self) -> None:
        """Raise AssertionError with its log where a host has ended that nobody has stopped."""
        for address, host in list(self.running.items()):
            assert host.poll() is None, f"the host {address} has ended with {host.returncode}\n{self.log(address)}"

    def processes(self, address: str) -> list[str]:
        """Return the command lines of the processes in the network of a running host."""
        network = os.readlink(f"/proc/{self.running[address].pid}/ns/net")
        return [line for place, line in commands() if place == network]

    def close(self) -> None:
        """Stop every host."""
        for address in list(self.running):
            self.stop(address)


def commands() -> Iterator[tuple[str, str]]:
    """Yield the network and the command line of each process of this machine that is not about to end."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            network, words = os.readlink(place / "ns/net"), (place / "cmdline").read_bytes()
        except OSError:
            continue
        yield network, words.replace(b"\0", b" ").decode(errors="replace")
