"""A signal ends an ingest cleanly, and the same command run again makes up for it."""

import os
import signal
import subprocess
import sys
from random import Random

import pytest

from faults.signals import INPUTS, SIGNALS, at_the_start, reference, round_of, start, write_inputs


@pytest.mark.parametrize("name", INPUTS)
def test_an_ingest_that_is_interrupted_twice_and_run_again_is_as_if_it_never_was(tmp_path, name):
    write_inputs(tmp_path)
    wanted, seconds = reference(tmp_path, name)
    assert wanted["records"] == wanted["keys"] >= 4000
    random = Random(name)
    signals = [(number, random.uniform(0.1, 0.9) * seconds) for number in SIGNALS]
    assert round_of(tmp_path, name, wanted, signals) == []


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_a_command_starts_ends_it_cleanly(tmp_path, number):
    for delay in (0.01, 0.05, 0.08, 0.12):
        assert at_the_start(tmp_path, number, delay) is None


def test_a_second_signal_does_not_wait(tmp_path):
    script = (
        "import os, signal, sys, time\n"
        "from embedstore.interruption import Interrupted, interruptible\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where the tests were started\n"
        "with interruptible():\n"
        "    try:\n"
        "        print('begun', flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        print('cleaning', flush=True)\n"
        "        time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "cleaning\n"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=10)
    assert process.returncode == 143
    assert errors == "embedstore: error: terminated; what was committed stays, run the same command again to go on\n"


def test_a_signal_in_a_finalizer_is_not_lost(tmp_path):
    script = (
        "import os, signal, time\n"
        "from embedstore.interruption import interruptible\n"
        "class Finalized:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(0.1)\n"
        "with interruptible():\n"
        "    Finalized()\n"
        "    print('went on')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (143, "")
    assert done.stderr.count("\n") == 1


def test_a_signal_that_was_ignored_stays_ignored(tmp_path):
    write_inputs(tmp_path)
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what the shell's & hands to a command
    try:
        process = start(tmp_path, ["ingest", "c", *INPUTS["texts"]])
    finally:
        signal.signal(signal.SIGINT, old)
    for _ in range(20):
        if process.poll() is None:
            os.kill(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert "records     4000" in output
