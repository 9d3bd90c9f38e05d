#!/usr/bin/env python3
"""The two ends of the network suites' transfers.

net_load.py serve DIRECTORY PORT     HTTP on every address, one process, until it is ended
net_load.py meet ADDRESS PORT COUNT  so many connections that are all open before one is answered
net_load.py chat ADDRESS PORT KIND FILE  one question after the other over one socket (tcp or udp) of
                                     the server's PORT, which is the one above its HTTP, until FILE
                                     is there

The server's third port takes what comes to its end and answers with the SHA-256 of it; its fourth
resets a connection once something has come.

Server: GET /NAME is the file of that name; PUT answers with the SHA-256 of what came; GET
/meet/COUNT/ID waits until COUNT clients have asked, then gives each the bytes of its ID.
Client: exit status 0 when every connection got its own, and every question its answer: the question
again, and the port that it came from, which stays the same.
"""
import asyncio
import hashlib
import http.server
import os
import resource
import shutil
import socket
import socketserver
import struct
import sys
import threading

PATIENCE_S = 100


def bytes_of(number):
    """4 KiB that no other number has."""
    return hashlib.sha256(number.encode()).digest() * 128


class Meeting:
    """Clients that wait for each other."""

    def __init__(self):
        self.changed = threading.Condition()
        self.present = 0

    def join(self, count):
        with self.changed:
            self.present += 1
            self.changed.notify_all()
            return self.changed.wait_for(lambda: self.present >= count, PATIENCE_S)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    meeting = Meeting()
    directory = "."

    def log_message(self, *_):
        pass

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        parts = self.path.strip("/").split("/")
        if parts[0] == "meet" and len(parts) == 3:
            met = self.meeting.join(int(parts[1]))
            return self.answer(200 if met else 503, bytes_of(parts[2]))
        try:
            with open(os.path.join(self.directory, os.path.basename(self.path)), "rb") as file:
                self.send_response(200)
                self.send_header("Content-Length", str(os.fstat(file.fileno()).st_size))
                self.end_headers()
                shutil.copyfileobj(file, self.wfile, 1 << 20)
        except FileNotFoundError:
            self.answer(404, b"")

    def do_PUT(self):
        # curl asks first for what is large.
        digest, left = hashlib.sha256(), int(self.headers["Content-Length"])
        while left > 0:
            piece = self.rfile.read(min(left, 1 << 20))
            if not piece:
                break
            digest.update(piece)
            left -= len(piece)
        self.answer(200, digest.hexdigest().encode())


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    request_queue_size = 4096

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class Talk(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(b"%s %d\n" % (line.strip(), self.client_address[1]))


class TalkServer(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True


class Datagram(socketserver.BaseRequestHandler):
    def handle(self):
        data, server = self.request
        server.sendto(b"%s %d\n" % (data.strip(), self.client_address[1]), self.client_address)


class DatagramServer(socketserver.UDPServer):
    address_family = socket.AF_INET6


class Digest(socketserver.StreamRequestHandler):
    def handle(self):
        digest = hashlib.sha256()
        while piece := self.rfile.read1(1 << 20):
            digest.update(piece)
        self.wfile.write(digest.hexdigest().encode() + b"\n")


class Reset(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.recv(1)
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Without the shutdown that the server would do.
        self.request.close()


def chat(address, port, kind, until):
    """Over UDP a question is asked once as well: nothing on the way may lose it."""
    peer = socket.getaddrinfo(address, int(port))[0]
    talker = socket.socket(peer[0], socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    talker.settimeout(PATIENCE_S)
    talker.connect(peer[4])
    answers = talker.makefile("rb")
    asked, from_port = 0, None
    while not os.path.exists(until) or asked == 0:
        question = hashlib.sha256(str(asked).encode()).hexdigest()
        talker.sendall(question.encode() + b"\n")
        answer = (answers.readline() if kind == "tcp" else talker.recv(1 << 16)).split()
        from_port = from_port or answer[1:2]
        if answer[:1] != [question.encode()] or answer[1:2] != from_port:
            print(f"question {asked}: {answer}, not {question} {from_port}")
            return 1
        if asked == 0:
            print("begun", flush=True)
        asked += 1
    print(f"{asked} questions from port {from_port[0].decode()}")
    return 0


def serve(directory, port):
    threading.stack_size(256 * 1024)
    Handler.directory = directory
    for server in (TalkServer(("::", int(port) + 1), Talk),
                   DatagramServer(("::", int(port) + 1), Datagram),
                   TalkServer(("::", int(port) + 2), Digest),
                   TalkServer(("::", int(port) + 3), Reset)):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    Server(("::", int(port)), Handler).serve_forever()


async def one(address, port, count, number):
    reader, writer = await asyncio.open_connection(address, port)
    writer.write(f"GET /meet/{count}/{number} HTTP/1.0\r\n\r\n".encode())
    answer = await reader.read(-1)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split()[1:2] == [b"200"] and body == bytes_of(number)


async def meet(address, port, count):
    results = await asyncio.wait_for(
        asyncio.gather(*(one(address, port, count, str(i)) for i in range(count)),
                       return_exceptions=True), PATIENCE_S)
    good = sum(result is True for result in results)
    print(f"{good} of {count} connections; {[r for r in results if r is not True][:3]}")
    return 0 if good == count else 1


def main():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, max(4096, hard)))
    if sys.argv[1:2] == ["serve"] and len(sys.argv) == 4:
        return serve(sys.argv[2], sys.argv[3])
    if sys.argv[1:2] == ["meet"] and len(sys.argv) == 5:
        return asyncio.run(meet(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
    if sys.argv[1:2] == ["chat"] and len(sys.argv) == 6:
        return chat(*sys.argv[2:])
    sys.exit(__doc__)


if __name__ == "__main__":
    sys.exit(main())
