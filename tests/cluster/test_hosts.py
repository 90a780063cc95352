"""The hosts of the clusters' tests: they reach their switch as others come and go, and an end that is none is seen."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support import hosts
from tests.support.waiting import until

LACKING = hosts.lacking()
pytestmark = pytest.mark.skipif(bool(LACKING) and not os.environ.get("CI"), reason=LACKING)
GATEWAY = "172.30.255.254"
ADDRESSES = [f"172.30.0.{number}" for number in range(11, 15)]


def link_address() -> str:
    """Return the switch's own address on its network, under which all hosts know the gateway."""
    done = subprocess.run(["ip", "-brief", "link", "show", "br0"], capture_output=True, text=True, check=True)
    return done.stdout.split()[2]


def test_switch_keeps_its_address_and_a_host_that_ends_is_reported(tmp_path: Path) -> None:
    with hosts.switch(f"{GATEWAY}/16"):
        machines = hosts.Hosts(tmp_path / "hosts", Path(__file__).resolve().parents[2], GATEWAY, {"CI": "true"})
        try:
            address = link_address()
            for each in ADDRESSES:
                machines.start(each, "key")
                assert link_address() == address, "hosts that know the old one reach the gateway only a minute later"
            machines.stop(ADDRESSES[0])
            assert link_address() == address
            machines.check()
            machines.running[ADDRESSES[1]].kill()
            with pytest.raises(AssertionError, match=f"the host {ADDRESSES[1]} has ended with -9"):
                until(lambda: False, "what never comes", 300, machines.check)
        finally:
            machines.close()
