#!/usr/bin/env python3
"""Sends commands of tests/unit/op_device.h to a device, as a vhost-user front-end of one queue.

send_ops.py SOCKET OP...: OP is the number and the first argument of a command. Each one's answer is
waited for before the next is sent. Ends when all are answered, or the socket is closed.
"""
import mmap
import os
import select
import socket
import struct
import sys

QUEUE_SIZE = 16
BASE = 1 << 32
DESCRIPTORS, AVAILABLE, USED, BYTES = 0, 0x1000, 0x2000, 0x3000


class Device:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        memory = os.memfd_create("guest")
        os.ftruncate(memory, 1 << 16)
        self.memory = mmap.mmap(memory, 1 << 16)
        self.count = 0
        self.kick, self.call = os.eventfd(0), os.eventfd(0)
        self.send(3)  # SET_OWNER
        self.send(1)  # GET_FEATURES
        self.socket.recv(20, socket.MSG_WAITALL)
        self.send(2, struct.pack("<Q", 1 << 32))  # SET_FEATURES: VERSION_1
        region = struct.pack("<IIQQQQ", 1, 0, BASE, 1 << 16, BASE, 0)
        self.send(5, region, memory)  # SET_MEM_TABLE
        self.send(8, struct.pack("<II", 0, QUEUE_SIZE))  # SET_VRING_NUM
        self.send(10, struct.pack("<II", 0, 0))  # SET_VRING_BASE
        places = (BASE + DESCRIPTORS, BASE + USED, BASE + AVAILABLE)
        self.send(9, struct.pack("<IIQQQQ", 0, 0, *places, 0))  # SET_VRING_ADDR
        self.send(13, struct.pack("<Q", 0), self.call)  # SET_VRING_CALL
        self.send(12, struct.pack("<Q", 0), self.kick)  # SET_VRING_KICK

    def send(self, request, payload=b"", *descriptors):
        message = struct.pack("<III", request, 1, len(payload)) + payload
        socket.send_fds(self.socket, [message], descriptors)

    def ask(self, command):
        """False when there is no answer to come."""
        answer = BYTES + 0x100
        self.memory[BYTES:BYTES + len(command)] = command
        struct.pack_into("<QIHHQIHH", self.memory, DESCRIPTORS, BASE + BYTES, len(command), 1, 1,
                         BASE + answer, 64, 2, 0)
        struct.pack_into("<H", self.memory, AVAILABLE + 4 + 2 * (self.count % QUEUE_SIZE), 0)
        self.count += 1
        struct.pack_into("<H", self.memory, AVAILABLE + 2, self.count)
        os.eventfd_write(self.kick, 1)
        while True:
            ready, _, _ = select.select([self.call, self.socket], [], [])
            if self.call in ready:
                os.eventfd_read(self.call)
            if struct.unpack_from("<H", self.memory, USED + 2)[0] == self.count:
                return True
            if ready != [self.call]:
                return False


def main():
    device = Device(sys.argv[1])
    for op in sys.argv[2:]:
        code, argument = map(int, op.split(":"))
        if not device.ask(struct.pack("<IiIIQ", code, -1, argument, 0, 0)):
            break


main()
