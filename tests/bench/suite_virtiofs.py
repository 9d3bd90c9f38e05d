"""File system workloads: virtbay, the C virtiofsd (pool 0 and 64) and plain system calls."""
import collections
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading

import processes
import report

VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
POOL0, POOL64 = "virtiofsd-c-pool0", "virtiofsd-c-pool64"
SUBJECTS = ["native", "virtbay", POOL0, POOL64]

# Field of virtiofs_bench's lines -> metric, unit (None: the workload's), higher is better.
METRICS = {
    "throughput": ("throughput", None, True),
    "p50": ("latency_p50", "us", False),
    "p99": ("latency_p99", "us", False),
    "cpu_per_op": ("backend_cpu_per_op", "us", False),
    "kicks_per_op": ("kicks_per_op", "1", False),
    "calls_per_op": ("calls_per_op", "1", False),
}

# Workload, how the front-end waits, least ratio to virtiofsd, least share of plain system calls.
TARGETS = [
    ("lookup_getattr_d1", "sleep", 2.5, None),
    ("lookup_getattr_d1", "poll", 2.0, None),
    ("lookup_getattr_d16", "sleep", 3.0, None),
    ("readdirplus", "sleep", 3.0, None),
    ("create_write_unlink_d1", "sleep", 2.5, None),
    ("create_write_unlink_d8", "sleep", 3.0, None),
    ("rand_read_4k_d1", "sleep", 2.5, None),
    ("rand_read_4k_d1", "poll", 2.0, None),
    ("rand_read_4k_d32", "sleep", 2.0, 0.75),
    ("rand_write_4k_d32", "sleep", 1.7, None),
    ("seq_read_1m_d1", "sleep", 2.0, None),
    ("seq_read_1m_d4", "sleep", 1.35, 0.80),
    ("seq_write_1m_d1", "sleep", 2.0, None),
    ("seq_write_1m_d4", "sleep", 1.3, 0.85),
]


def arguments():
    parser = report.parser("virtiofs", __doc__, seconds=0.75)
    parser.add_argument("--workload", default="", help="only these, separated by commas")
    parser.add_argument("--subject", default=",".join(SUBJECTS), help="only these, separated by commas")
    parser.add_argument("--wait", choices=["sleep", "poll", "both"], default="both",
                        help="how the front-end waits")
    parser.add_argument("--pin", action="store_true",
                        help="front-end on the first CPU, back-ends on the others; without it the scheduler decides")
    parser.add_argument("--server-limit", type=float, default=120,
                        help="seconds after which a server's run is given up")
    parser.add_argument("--data", type=pathlib.Path, help="directory for the test files (a disk)")
    args = parser.parse_args()
    if args.quick:
        args.repetitions, args.seconds = 1, 0.1
    args.subject = report.choice(parser, args.subject, SUBJECTS, "subject")
    return args


class Server:
    """A back-end process that inherits its listening socket as --fd, so that front-ends can connect
    from the start; killed with its process group, which is its own."""

    def __init__(self, command, environment, path, log):
        self.path = path
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listening, open(log, "ab") as out:
            listening.bind(str(path))
            listening.listen(1)
            self.process = processes.start([*command, f"--fd={listening.fileno()}"], stdout=out, stderr=out,
                                           env={**os.environ, **environment}, pass_fds=[listening.fileno()])

    def stop(self):
        processes.end(self.process)
        self.path.unlink(missing_ok=True)


class Suite:
    def __init__(self, args):
        self.args = args
        self.out = args.out
        # Absolute: the peers change their root to it.
        self.data = (args.data or args.out / "data").resolve()
        self.bench = args.build / "bin" / "virtiofs_bench"
        self.results = report.Results()
        self.notes = []
        self.sandbox = None
        self.sockets = pathlib.Path(tempfile.mkdtemp(prefix="virtbay-bench-"))
        workloads = subprocess.run([self.bench, "--list"], check=True, capture_output=True, text=True)
        self.known = workloads.stdout.split()
        chosen = [w for w in args.workload.split(",") if w]
        for name in chosen:
            if name not in self.known:
                sys.exit(f"bench.sh virtiofs: no workload {name}; there are {', '.join(self.known)}")
        self.workloads = [w for w in self.known if not chosen or w in chosen]

    def command(self, subject):
        """Command and environment of a server, but for its socket."""
        if subject == "virtbay":
            command = [self.args.build / "bin" / "virtbay", "serve", "virtiofs", f"--shared-dir={self.data}",
                       "--cache=auto", "--allow-direct-io"]
            return command, {"VIRTBAY_PLUGIN_PATH": str(self.args.build / "plugins")}
        pool = 64 if subject == POOL64 else 0
        prefix, sandbox = self.sandbox
        command = prefix + [VIRTIOFSD, "-o", f"source={self.data}", "-o", "cache=auto", "-o", "allow_direct_io",
                            "-o", f"sandbox={sandbox}", f"--thread-pool-size={pool}"]
        # Arenas of their own make the pool's threads use a system call that its filter kills for.
        return command, {"MALLOC_ARENA_MAX": "16"}

    def start(self, subject):
        command, environment = self.command(subject)
        return Server(self.pinned(command, front_end=False), environment, self.sockets / "s", self.out / "logs" / f"{subject}.log")

    def pinned(self, command, front_end):
        cpus = sorted(os.sched_getaffinity(0))
        if not self.args.pin or len(cpus) < 2:
            return command
        chosen = cpus[:1] if front_end else cpus[1:]
        return ["taskset", "-c", ",".join(map(str, chosen))] + command

    def find_sandbox(self):
        """The first way to start virtiofsd that serves: it wants root, or a user namespace."""
        prefixes = [[]] if os.geteuid() == 0 else []
        prefixes.append(["unshare", "--user", "--map-root-user"])
        for prefix in prefixes:
            for sandbox in ("namespace", "chroot"):
                self.sandbox = (prefix, sandbox)
                server = self.start(POOL0)
                try:
                    if subprocess.run([self.bench, f"--socket={server.path}", "--probe"], timeout=60,
                                      capture_output=True).returncode == 0:
                        return True
                except subprocess.TimeoutExpired:
                    pass
                finally:
                    server.stop()
        return False

    def subjects(self):
        chosen = list(self.args.subject)
        if POOL0 in chosen or POOL64 in chosen:
            why = None
            if not pathlib.Path(VIRTIOFSD).exists():
                why = f"{VIRTIOFSD} is not installed (package qemu-system-common)"
            elif not self.find_sandbox():
                why = f"virtiofsd does not start here, see {self.out / 'logs'}"
            if why:
                self.notes.append(why)
                chosen = [s for s in chosen if s not in (POOL0, POOL64)]
        return chosen

    def measure(self, subject, repetition, progress):
        """One run of every workload; what was measured before a failure counts."""
        command = [self.bench, f"--dir={self.data}", f"--seconds={self.args.seconds}", f"--warmup={self.args.seconds / 8}",
                   f"--wait={self.args.wait}", f"--salt={1000 * (repetition + 1)}",
                   f"--workload={','.join(self.workloads)}"]
        server = None
        if subject == "native":
            command.append("--native")
        else:
            server = self.start(subject)
            command += [f"--socket={server.path}", f"--backend-pid={server.process.pid}"]
        waits = ["sleep", "poll"] if self.args.wait == "both" else [self.args.wait]
        # Plain system calls run wherever they like: there is nobody to be kept apart from.
        if subject != "native":
            command = self.pinned(command, front_end=True)
        bench = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        timer = threading.Timer(self.args.server_limit, bench.kill)
        timer.start()
        try:
            for text in bench.stdout:
                line = json.loads(text)
                progress.show(f"repetition {repetition + 1} of {self.args.repetitions}, {subject}: "
                              f"{line['workload']} {line['wait']}")
                for wait in waits if line["wait"] == "native" else [line["wait"]]:
                    self.record(f"{line['workload']}.{wait}", subject, line)
            error = bench.stderr.read().strip()
            if bench.wait() != 0:
                late = "" if timer.is_alive() else f"given up after {self.args.server_limit:.0f} s "
                self.notes.append(f"{subject}, repetition {repetition + 1}: {late}{error}")
        finally:
            timer.cancel()
            if bench.poll() is None:
                bench.kill()
            bench.wait()
            if server is not None:
                server.stop()

    def record(self, workload, subject, line):
        for field, (metric, unit, higher) in METRICS.items():
            if subject == "native" and metric in ("kicks_per_op", "calls_per_op"):
                continue
            self.results.add(workload, subject, metric, unit or line["unit"], higher, line[field])

    def run(self):
        for part in ("logs", "data"):
            (self.out / part).mkdir(parents=True, exist_ok=True)
        self.data.mkdir(parents=True, exist_ok=True)
        prepare = [self.bench, f"--dir={self.data}", "--prepare"]
        print(f"preparing {self.data}", file=sys.stderr)
        subprocess.run(prepare, check=True)
        subjects = self.subjects()
        progress = report.Progress(self.args.repetitions * len(subjects))
        for repetition in range(self.args.repetitions):
            for subject in subjects:
                self.measure(subject, repetition, progress)
                progress.show(f"repetition {repetition + 1}, {subject}: done", step=True)
                # Writes of one subject must not be paid for by the next.
                subprocess.run(prepare, check=True)
        progress.end()

    def close(self):
        shutil.rmtree(self.sockets, ignore_errors=True)


def best_virtiofsd(results, workload):
    """The faster of the two pools, by name and figure."""
    figures = [(results.median(workload, s, "throughput"), s) for s in (POOL0, POOL64)]
    figures = [f for f in figures if f[0]]
    return max(figures) if figures else (None, None)


def throughput_table(results):
    header = ["workload", "unit", "plain", "virtbay", "pool 0", "pool 64", "/virtiofsd", "/plain"]
    rows = []
    for workload in results.workloads():
        get = lambda subject: results.median(workload, subject, "throughput")
        peer, _ = best_virtiofsd(results, workload)
        share = report.ratio(get("virtbay"), get("native"))
        rows.append([workload, results.unit(workload, "throughput")] +
                    [report.number(get(s)) for s in ("native", "virtbay", POOL0, POOL64)] +
                    [report.times(report.ratio(get("virtbay"), peer)), "-" if share is None else f"{share:.0%}"])
    return report.table(header, rows)


def detail_table(results):
    header = ["workload, subject", "p50 us", "p99 us", "CPU us/op", "kicks/op", "calls/op"]
    metrics = ["latency_p50", "latency_p99", "backend_cpu_per_op", "kicks_per_op", "calls_per_op"]
    rows = []
    for workload in results.workloads():
        for subject in ("virtbay", POOL0, POOL64, "native"):
            if results.median(workload, subject, "throughput") is None:
                continue
            rows.append([f"{workload} {subject}"] +
                        [report.number(results.median(workload, subject, m)) for m in metrics])
    return report.table(header, rows)


def check_targets(results):
    targets = report.Targets()
    for name, wait, least, share in TARGETS:
        workload = f"{name}.{wait}"
        if workload not in results.workloads():
            continue  # was not asked for
        ours = results.median(workload, "virtbay", "throughput")
        peer, subject = best_virtiofsd(results, workload)
        unit = results.unit(workload, "throughput")
        reached = report.ratio(ours, peer)
        targets.check(workload, None if reached is None else reached >= least,
                      f"{report.times(reached)} of {subject or 'virtiofsd'}, target {least}x "
                      f"({report.number(ours)} against {report.number(peer)} {unit})")
        if share is not None:
            plain = results.median(workload, "native", "throughput")
            reached = report.ratio(ours, plain)
            targets.check(workload, None if reached is None else reached >= share,
                          f"{'-' if reached is None else format(reached, '.0%')} of plain system calls, target "
                          f"{share:.0%} ({report.number(ours)} against {report.number(plain)} {unit})")
    # Four times virtiofsd, or what the disk gives to plain reads at the same depth (less the noise
    # of one run), whichever is lower.
    workload = "rand_read_4k_direct_d32.sleep"
    if workload not in results.workloads():
        return targets
    ours = results.median(workload, "virtbay", "throughput")
    peer, subject = best_virtiofsd(results, workload)
    disk = results.median(workload, "native", "throughput")
    goal = min([4 * peer] if peer else [], default=None)
    if disk:
        goal = min(goal, 0.95 * disk) if goal else None
    targets.check(workload, None if not ours or not goal else ours >= goal,
                  f"{report.times(report.ratio(ours, peer))} of {subject or 'virtiofsd'}, "
                  f"{report.times(report.ratio(ours, disk))} of the disk's limit, target 4x or that limit "
                  f"({report.number(ours)} against {report.number(peer)} and {report.number(disk)} ops/s)")
    return targets


def main():
    args = arguments()
    suite = Suite(args)
    try:
        suite.run()
    finally:
        suite.close()
    results = suite.results
    results.write_json(args.out / "virtiofs.json")
    if POOL0 in (key[1] for key in results.runs):
        report.svg_ratios(args.out / "virtiofs.svg", "Throughput against the C virtiofsd (pool 0), medians and ranges",
                          results, "throughput", ["virtbay", POOL0, POOL64, "native"], POOL0)
    print(throughput_table(results))
    print("\n/virtiofsd: against the faster of its two pool sizes. sleep, poll: how the front-end waits.\n")
    print(detail_table(results))
    print()
    for note, count in collections.Counter(suite.notes).items():
        print(f"note: {note}" + (f" ({count} times)" if count > 1 else ""))
    print(check_targets(results).text())
    print(f"\n{args.out / 'virtiofs.json'}, {args.out / 'virtiofs.svg'}")
    return 0 if results.runs else 1


if __name__ == "__main__":
    sys.exit(main())
