"""Plain calls as Ray tasks: what comes of those that end, and of those that are lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_task_that_is_lost_is_a_sentence_and_the_others_go_on() -> None:
    code = (
        "import json, os, time\n"
        "from sweeps import tasks\n"
        "def square(n):\n"
        "    if n == 2: os._exit(1)\n"
        "    if n == 3: raise KeyError('three')\n"
        "    return n * n\n"
        "tasks.RETRIES = 0\n"
        "tasks.connect('local', 2)\n"
        "found = [tasks.share(9), tasks.share(1), sorted(tasks.each(square, [1, 2, 3, 4], memory=2**60))]\n"
        "time.sleep(2)  # for what Ray may print of the lost one\n"
        "tasks.leave()\n"
        "print(json.dumps(found))\n"
    )
    given = os.environ | {"PYTHONWARNINGS": "ignore"}
    words = [sys.executable, "-c", code]
    found = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=given, timeout=280, check=False)
    assert found.returncode == 0, found.stderr
    small, large, ((_, one), (_, lost), (_, raised), (_, four)) = json.loads(found.stdout)
    assert (small, large, one, four) == (1, 2, 1, 16)
    assert lost.startswith("WorkerCrashedError: ")
    assert raised == "KeyError: 'three'"
