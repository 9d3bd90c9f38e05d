"""Processes of the benchmark suites: each is the leader of a group of its own, and ends with all of it."""
import os
import signal
import subprocess


def start(command, **options):
    """Popen in a process group of its own, without standard input unless that is given."""
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.Popen([str(word) for word in command], start_new_session=True, **options)


def end(process, patience=10):
    """Asks the process to end, and kills its group when it has or does not."""
    if process.poll() is None:
        _signal(process, signal.SIGTERM)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            pass
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process, number):
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass
