"""Who listens on this machine, at which address, and which of it is more than it should be; from /proc alone."""

from __future__ import annotations

import ipaddress
import os
import re
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

LISTENS = "0A"  # the state of a socket in /proc/net/tcp
# Without a token these answer with no more than that they live, or with metrics: what keeps the world from them is the
# security group. That they bind to more than loopback is Ray's choice, and cannot be turned off.
RAY = re.compile(r"raylet\b|gcs_server\b|ray::|(-\S+ )*(-m ray\.|\S*/ray/(dashboard|autoscaler|util|_private|core)/)")
LOOPBACK_ONLY = {8265: "Ray's dashboard, which runs jobs", 5000: "MLflow"}


class Listener(NamedTuple):
    """A socket that waits for connections: address, port, and the command line of its process ("" where unknown)."""

    address: str
    port: int
    command: str = ""

    @property
    def is_loopback(self) -> bool:
        """Return whether only this machine reaches it."""
        return ipaddress.ip_address(self.address).is_loopback


def listeners(proc: Path = Path("/proc")) -> list[Listener]:
    """Return what listens in the network of this process, by TCP, sorted by port."""
    owners = _owners(proc)
    found = set()
    for name in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):
            for line in (proc / "self" / "net" / name).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == LISTENS:
                    address, _, port = words[1].partition(":")
                    found.add(Listener(_address(address), int(port, 16), owners.get(words[9], "")))
    return sorted(found, key=lambda one: (one.port, one.address))


def _address(word: str) -> str:
    """Return an address of /proc/net: words of 32 bits in hexadecimal, each in the machine's order of bytes."""
    parts = [struct.pack("=I", int(word[at : at + 8], 16)) for at in range(0, len(word), 8)]
    address = ipaddress.ip_address(b"".join(parts))
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def _owners(proc: Path) -> dict[str, str]:
    """Return the command lines of processes by the numbers of their sockets, as far as this user may see them."""
    found = {}
    for folder in proc.glob("[0-9]*"):
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            for descriptor in (folder / "fd").iterdir():
                with suppress(OSError):
                    target = os.readlink(descriptor)
                    if target.startswith("socket:["):
                        found[target[8:-1]] = command
    return found


def open_to_network(found: Iterable[Listener]) -> list[str]:
    """Return a sentence for each listener that others reach and should not: all but SSH and Ray's own ports."""
    sentences = []
    for one in found:
        if one.is_loopback:
            continue
        if one.port in LOOPBACK_ONLY:
            sentences.append(f"{LOOPBACK_ONLY[one.port]}, listens on {one.address}:{one.port}: it belongs on 127.0.0.1")
        elif one.port != 22 and not RAY.match(_program(one.command)):
            who = one.command[:80] or "a process of another user"
            sentences.append(f"{who} listens on {one.address}:{one.port}, which is none of the cluster's")
    return sentences


def _program(command: str) -> str:
    """Return a command line without the folder of its program, so that it begins with a name."""
    program, _, rest = command.partition(" ")
    name = program.rpartition("/")[2]
    return f"{name} {rest}" if not name.startswith("python") else rest
