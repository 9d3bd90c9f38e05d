#!/usr/bin/env python3
"""What the back-end says of a device in a guest that bounces; exit status 1 and a reason when wrong.

  check.py served FILE BASE SIZE inside|outside   FILE: the JSON of `virtbay ctl --json inspect`
  check.py refused FILE
  check.py astray FILE                            every buffer was refused, the rings were not
  check.py mapped FILE BYTES [MORE]               FILE: its /proc/PID/maps; bytes of QEMU's memory
"""
import json
import re
import sys


def fail(reason):
    print(reason)
    sys.exit(1)


def ring_parts(ring):
    """Guest ranges of a split ring (virtio 1.3 2.7)."""
    size = ring["size"]
    return [(int(ring["descriptors"], 16), 16 * size), (int(ring["avail"], 16), 6 + 2 * size),
            (int(ring["used"], 16), 6 + 8 * size)]


def served(path, base, size, place):
    device = json.load(open(path))
    if device["dma_mode"] != "aperture" or device["aperture"] != f"0x{base:x},{size}":
        fail(f"it has {device['dma_mode']} {device.get('aperture')}")
    if device["dma_violations"] != 0:
        fail(f"{device['dma_violations']} DMA violations")
    if device["total"]["completions"] < 100 or device["total"]["bytes_direct"] < 1 << 20:
        fail(f"it has served {device['total']}")
    rings = [queue["ring"] for queue in device["queues"] if queue["running"]]
    if len(rings) < 2:
        fail(f"{len(rings)} rings run")
    for ring in rings:
        for start, length in ring_parts(ring):
            inside = base <= start and start + length <= base + size
            outside = start + length <= base or base + size <= start
            if not (inside if place == "inside" else outside):
                fail(f"part of a ring at 0x{start:x}, size {length}, is not {place} the pool")


def refused(path):
    device = json.load(open(path))
    if device["dma_violations"] == 0:
        fail("no DMA violation was counted")
    if device["total"]["completions"] != 0:
        fail(f"{device['total']['completions']} requests were served")
    if any(queue["running"] for queue in device["queues"]):
        fail("a ring runs")


def astray(path):
    device = json.load(open(path))
    metrics = device["metrics"]
    if device["dma_violations"] == 0:
        fail("no DMA violation was counted")
    if device["total"]["bytes_copied_out"] != 0 or device["total"]["bytes_direct"] != 0:
        fail("bytes reached the guest")
    if metrics["metadata_requests"] + metrics["data_requests"] + metrics["malformed_requests"] != 0:
        fail("requests reached the plugin")
    if not all(queue["running"] for queue in device["queues"]):
        fail("a ring does not run")


def mapped(path, wanted, more):
    total = 0
    for line in open(path):
        if "memfd:memory-backend-memfd" in line:
            start, end = re.match(r"([0-9a-f]+)-([0-9a-f]+)", line).groups()
            total += int(end, 16) - int(start, 16)
    if not wanted <= total <= wanted + more:
        fail(f"{total} bytes of guest memory are mapped, not {wanted}")


def main():
    what, *rest = sys.argv[1:]
    if what == "served":
        served(rest[0], int(rest[1], 0), int(rest[2], 0), rest[3])
    elif what == "refused":
        refused(rest[0])
    elif what == "astray":
        astray(rest[0])
    else:
        mapped(rest[0], int(rest[1], 0), int(rest[2], 0) if len(rest) > 2 else 0)


main()
