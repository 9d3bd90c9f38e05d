"""Namespaces of the network benchmark, and how each back-end gives the guest's its network.

Two network namespaces, both the benchmark's own: the host's has the server, an address for it on its loopback and
an uplink that leads nowhere (peers copy its address); the guest's has a TAP interface and nothing else. The guest's
kernel is this machine's, at its own speed, whoever serves it."""
import os
import pathlib
import shutil
import subprocess
import time

import processes

SERVER = "198.51.100.1"
TUNED = {
    "net.ipv4.tcp_rmem": "4096 131072 268435456",
    "net.ipv4.tcp_wmem": "4096 16384 268435456",
}
# As the peers' own measurements have it.
TUNED_GUEST = {"net.ipv4.tcp_timestamps": "0"}


class Failure(Exception):
    """What could not be started, and why."""


class Namespace:
    """A network namespace that lives as long as a process of its own."""

    def __init__(self):
        self.process = processes.start(["unshare", "--net", "sleep", "infinity"])
        self.path = f"/proc/{self.process.pid}/ns/net"
        own = os.readlink("/proc/self/ns/net")
        wait_for("a network namespace", lambda: os.readlink(self.path) != own)

    def command(self, words):
        return ["nsenter", f"--net={self.path}", "--", *words]

    def run(self, *lines):
        for line in lines:
            done = subprocess.run(self.command(line.split()), capture_output=True, text=True)
            if done.returncode != 0:
                raise Failure(f"{line}: {done.stderr.strip()}")

    def set(self, values):
        for name, value in values.items():
            path = "/proc/sys/" + name.replace(".", "/")
            self.run_input(["tee", path], value)

    def run_input(self, words, text):
        done = subprocess.run(self.command(words), input=text, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise Failure(f"{' '.join(words)}: {done.stderr.strip()}")

    def has_link(self, name):
        return subprocess.run(self.command(["ip", "link", "show", name]), stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL).returncode == 0

    def close(self):
        processes.end(self.process)


def wait_for(what, ready, seconds=10):
    limit = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > limit:
            raise Failure(f"{what} did not come within {seconds} s")
        time.sleep(0.01)


class Session:
    """The two namespaces, the server, and one subject between them."""

    def __init__(self, subject, build, mtu, tuned, directory, log):
        self.subject, self.build, self.mtu, self.directory, self.log = subject, build, mtu, directory, log
        self.bench = build / "bin" / "net_bench"
        self.counters = directory / "counters"
        self.started = []
        self.namespaces = []
        self.backend = None
        try:
            self.host = self.namespace()
            self.guest = self.host if subject == "loopback" else self.namespace()
            self.set_up_host()
            if tuned:
                for namespace in self.namespaces:
                    namespace.set(TUNED)
                self.guest.set(TUNED_GUEST)
            self.serve()
            START[subject](self)
            self.probe()
        except BaseException:
            self.close()
            raise

    def namespace(self):
        self.namespaces.append(Namespace())
        self.namespaces[-1].run("ip link set lo up")
        # Enough for all connections of a measurement, which linger in TIME_WAIT.
        self.namespaces[-1].set({"net.ipv4.ip_local_port_range": "2000 65535"})
        return self.namespaces[-1]

    def set_up_host(self):
        self.host.run(f"ip address add {SERVER}/32 dev lo", "ip link add up0 type veth peer name up1",
                      "ip address add 192.0.2.2/24 dev up0", "ip link set up0 up", "ip link set up1 up",
                      "ip route add default via 192.0.2.1")

    def start(self, namespace, words, **options):
        with open(self.log, "ab") as log:
            log.write((" ".join(map(str, words)) + "\n").encode())
            log.flush()
            options.setdefault("stdout", log)
            process = processes.start(namespace.command(words), stderr=log, **options)
        self.started.append(process)
        return process

    def start_ready(self, namespace, words, what, **options):
        """Until it has written a line."""
        process = self.start(namespace, words, stdout=subprocess.PIPE, text=True, **options)
        if process.stdout.readline() == "":
            raise Failure(f"{what} did not start, see {self.log}")
        return process

    def common(self):
        return [f"--address={SERVER}", f"--counters={self.counters}"]

    def serve(self):
        # Zeros: nothing of a session before.
        self.counters.unlink(missing_ok=True)
        self.start_ready(self.host, [self.bench, "serve", *self.common()], "the server")

    def probe(self):
        try:
            self.guest.run(" ".join([str(self.bench), "wait", *self.common()]))
        except Failure as failure:
            raise Failure(f"the guest does not reach the server, see {self.log}") from failure

    def guest_link(self, address, gateway):
        self.guest.run(f"ip link set tap0 mtu {self.mtu} address 52:54:00:00:00:01 up",
                       f"ip address add {address}/24 dev tap0", f"ip route add default via {gateway}")

    def hold_idle(self, count):
        return self.start_ready(self.guest, [self.bench, "idle", *self.common(), f"--count={count}"],
                                f"{count} idle flows", stdin=subprocess.PIPE)

    def close(self):
        # The guest before its network, and that before the namespaces.
        for process in reversed(self.started):
            if process.stdin:
                process.stdin.close()
            processes.end(process)
            if process.stdout:
                process.stdout.close()
        for namespace in self.namespaces:
            namespace.close()


def start_loopback(session):
    """The limit: no guest at all."""


def start_virtbay(session):
    socket = session.directory / "net.sock"
    ready, write = os.pipe()
    with os.fdopen(ready) as file:
        try:
            process = session.start(session.host, [session.build / "bin" / "virtbay", "serve", "proxy-net",
                                                   f"--socket-path={socket}", f"--mtu={session.mtu}",
                                                   f"--ready-fd={write}", "--log-level=warn"], pass_fds=[write])
        finally:
            os.close(write)
        if file.readline() != "\n":
            raise Failure(f"virtbay did not start, see {session.log}")
    session.backend = process.pid
    session.start_ready(session.guest, [session.bench, "bridge", f"--vhost-user={socket}"], "the guest's driver")
    session.guest_link("10.0.2.15", "10.0.2.2")


def start_qemu(session):
    """QEMU's -netdev user joined to the guest's interface by a hub: its back-end without a machine."""
    if session.mtu != 1500:
        raise Failure("QEMU's user network has an MTU of 1500")
    words = ["qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none", "-monitor", "none", "-netdev",
             "user,id=user", "-netdev", "tap,id=tap,fd=3", "-netdev", "hubport,id=hub0,hubid=0,netdev=user", "-netdev",
             "hubport,id=hub1,hubid=0,netdev=tap"]
    process = session.start(session.host, [session.bench, "tap", f"--netns={session.guest.path}", "--", *words])
    session.backend = process.pid
    wait_for("QEMU's interface", lambda: session.guest.has_link("tap0"))
    session.guest_link("10.0.2.15", "10.0.2.2")


def start_passt(session):
    """Debian's passt speaks no vhost-user yet: frames over its socket, and no offloads for lack of them there."""
    socket = session.directory / "passt.sock"
    socket.unlink(missing_ok=True)
    process = session.start(session.host, ["passt", "--foreground", f"--socket={socket}", f"--mtu={session.mtu}",
                                           "--ipv4-only", "--tcp-ports=none", "--udp-ports=none"])
    session.backend = process.pid
    wait_for("passt's socket", socket.exists)
    session.start_ready(session.guest, [session.bench, "bridge", f"--stream={socket}"], "the guest's driver")
    session.guest_link("192.0.2.2", "192.0.2.1")


def start_slirp4netns(session):
    process = session.start(session.host, ["slirp4netns", "--configure", f"--mtu={session.mtu}", "--netns-type=path",
                                           session.guest.path, "tap0"])
    session.backend = process.pid
    wait_for("slirp4netns' interface", lambda: session.guest.has_link("tap0"))
    wait_for_route(session)


def start_pasta(session):
    # It has given up the right to open another process's namespace by the time it does.
    netns = os.open(session.guest.path, os.O_RDONLY)
    try:
        process = session.start(session.host, ["pasta", "--foreground", "--config-net", "--netns-only",
                                               f"--netns=/proc/self/fd/{netns}", "--ns-ifname=tap0",
                                               f"--mtu={session.mtu}", "--ipv4-only", "--tcp-ports=none",
                                               "--udp-ports=none", "--tcp-ns=none", "--udp-ns=none"], pass_fds=[netns])
    finally:
        os.close(netns)
    session.backend = process.pid
    wait_for("pasta's interface", lambda: session.guest.has_link("tap0"))
    wait_for_route(session)


def wait_for_route(session):
    show = session.guest.command(["ip", "route", "show", "default"])
    wait_for("a default route", lambda: subprocess.run(show, capture_output=True).stdout)


START = {
    "loopback": start_loopback,
    "virtbay": start_virtbay,
    "qemu-user": start_qemu,
    "passt": start_passt,
    "slirp4netns": start_slirp4netns,
    "pasta": start_pasta,
}
# What has to be installed, and in which package it is.
NEEDS = {
    "qemu-user": ("qemu-system-x86_64", "qemu-system-x86"),
    "passt": ("passt", "passt"),
    "slirp4netns": ("slirp4netns", "slirp4netns"),
    "pasta": ("pasta", "passt"),
}


def missing(subject):
    """Why it cannot be measured here, or None."""
    program, package = NEEDS.get(subject, (None, None))
    if program and not shutil.which(program):
        return f"{program} is not installed (package {package})"
    return None


def private_user():
    """The words that give a command a user namespace in which it may make others."""
    return ["unshare", "--user", "--map-root-user", "--mount"]


def usable():
    """Why there can be no namespaces here, or None."""
    if not pathlib.Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    done = subprocess.run([*private_user(), "unshare", "--net", "true"], capture_output=True, text=True)
    return None if done.returncode == 0 else f"no user and network namespaces: {done.stderr.strip()}"
