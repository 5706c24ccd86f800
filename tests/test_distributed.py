"""Synchronized batch normalization: two replicas are one large batch, in outputs, gradients and statistics."""

import json
import pathlib
import socket
import subprocess
import sys

SCRIPT = pathlib.Path(__file__).with_name("replicas.py")


def start(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process):
    output, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output.splitlines()[-1])


def test_two_devices_equal_one_in_a_custom_loop():
    found = result(start("mirrored"))
    assert len(found) == 16
    for case, differences in found.items():
        assert max(differences.values()) < 5e-6, (case, differences)


def test_without_synchronization_two_devices_average_their_moving_statistics():
    assert max(result(start("apart"))) < 1e-6


def test_two_devices_equal_one_in_fit():
    assert max(result(start("fit")).values()) < 1e-6


def test_two_processes_equal_one():
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    workers = [start("worker", index, *ports) for index in range(2)]
    try:
        for found in map(result, workers):
            for case, differences in found.items():
                assert max(differences.values()) < 5e-6, (case, differences)
    finally:
        for worker in workers:
            worker.kill()
