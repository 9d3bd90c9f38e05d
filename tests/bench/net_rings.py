"""64-byte frames over one ring: DPDK's virtio driver sends, virtbay's null back-end or DPDK's vhost takes them."""
import os
import re
import select
import subprocess
import time

import net_peers
import processes

TESTPMD = "dpdk-testpmd"


class Testpmd:
    """A testpmd at its prompt, on one CPU."""

    def __init__(self, name, cpu, vdev, mode, directory, log):
        # Its prompt has no end of line.
        words = ["stdbuf", "-o0", TESTPMD, "--lcores", f"0@{cpu},1@{cpu}", "--no-pci", "--no-huge", "-m", "256", "--iova-mode=va",
                 f"--file-prefix=vb-{os.getpid()}-{name}", "--no-telemetry", "--vdev", vdev, "--", "-i",
                 f"--forward-mode={mode}", "--nb-cores=1", "--total-num-mbufs=8192"]
        self.log = open(log, "ab")
        self.process = processes.start(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
                                       env={**os.environ, "XDG_RUNTIME_DIR": str(directory)})
        self.name = name
        self.unread = b""
        try:
            self.read_until(rb"testpmd> ", 30)
        except BaseException:
            self.close()
            raise

    def read_until(self, pattern, seconds):
        """Reads up to the pattern; what is behind it stays for the next time."""
        limit = time.monotonic() + seconds
        while not (found := re.search(pattern, self.unread)):
            left = limit - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise net_peers.Failure(f"testpmd ({self.name}) did not answer within {seconds} s")
            part = os.read(self.process.stdout.fileno(), 65536)
            if not part:
                raise net_peers.Failure(f"testpmd ({self.name}) has ended: {self.unread[-300:].decode(errors='replace')}")
            self.log.write(part)
            self.unread += part
        self.unread = self.unread[found.end():]
        return found

    def say(self, command):
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()

    def sent(self):
        """Packets that the ring has taken so far, and when."""
        self.say("show port stats 0")
        count = int(self.read_until(rb"TX-packets: (\d+)", 10).group(1))
        now = time.monotonic()
        self.read_until(rb"testpmd> ", 10)
        return count, now

    def close(self):
        if self.process.poll() is None:
            try:
                self.say("stop")
                self.say("quit")
                self.process.wait(5)
            except (OSError, subprocess.TimeoutExpired):
                pass
        processes.end(self.process)
        self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()


def start_back_end(subject, socket, cpu, build, directory, log):
    """The back-end, on that CPU, listening."""
    socket.unlink(missing_ok=True)
    if subject == "dpdk-vhost":
        end = Testpmd("vhost", cpu, f"net_vhost0,iface={socket}", "rxonly", directory, log)
        end.say("start")
        end.read_until(rb"testpmd> ", 10)
        return end
    ready, write = os.pipe()
    with open(log, "ab") as out, os.fdopen(ready) as file:
        process = processes.start(["taskset", "-c", cpu, build / "bin" / "virtbay", "serve", "virtio-net", "--backend=null",
                                   f"--socket-path={socket}", f"--ready-fd={write}", "--log-level=warn"], stdout=out,
                                  stderr=out, pass_fds=[write])
        os.close(write)
        if file.readline() != "\n":
            processes.end(process)
            raise net_peers.Failure(f"virtbay did not start, see {log}")
    return process


def frames_per_second(subject, packed, seconds, build, directory, log):
    """What one ring takes, the two ends on a CPU each."""
    cpus = sorted(os.sched_getaffinity(0))
    socket = directory / "ring.sock"
    back = start_back_end(subject, socket, cpus[-1], build, directory, log)
    try:
        vdev = f"net_virtio_user0,path={socket},queue_size=256,mrg_rxbuf=1,in_order=0,packed_vq={int(packed)}"
        front = Testpmd("driver", cpus[0], vdev, "txonly", directory, log)
        try:
            front.say("start")
            front.read_until(rb"testpmd> ", 10)
            time.sleep(max(0.2, seconds / 4))
            count, start = front.sent()
            time.sleep(seconds)
            more, end = front.sent()
            return (more - count) / (end - start)
        finally:
            front.close()
    finally:
        if isinstance(back, Testpmd):
            back.close()
        else:
            processes.end(back)
