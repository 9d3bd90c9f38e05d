"""Networks for guests: virtbay's proxy-net, passt, pasta, slirp4netns, QEMU's user network, loopback; rings against DPDK."""
import collections
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading

import net_peers
import net_rings
import report

IDLE = "virtbay-idle"
SUBJECTS = ["loopback", "virtbay", IDLE, "qemu-user", "passt", "slirp4netns", "pasta"]
PEERS = ["qemu-user", "passt", "slirp4netns", "pasta"]
DPDK = "dpdk-vhost"
RINGS = ["virtbay", DPDK]

# MTU and sysctls -> the workloads there.
SETTINGS = {
    "1500": ["bulk_up", "bulk_down", "rr", "crr", "udp_rr", "udp_64"],
    "1500_tuned": ["bulk_up", "bulk_down", "rr", "crr"],
    "65520": ["bulk_up", "bulk_down"],
    "65520_tuned": ["bulk_up", "bulk_down"],
}
LAYOUTS = ["split", "packed"]
PARTS = [*SETTINGS, "rings"]

# Field of net_bench's lines -> metric, unit (None: the workload's), higher is better.
METRICS = {
    "throughput": ("throughput", None, True),
    "p50": ("latency_p50", "us", False),
    "p99": ("latency_p99", "us", False),
    "retransmits": ("guest_retransmits", "segments", False),
    "backend_cpu": ("backend_cpu", None, False),
}


def arguments():
    parser = report.parser("net", __doc__, seconds=1.5)
    parser.add_argument("--part", default=",".join(PARTS), help="only these, separated by commas: MTU and sysctls, or rings")
    parser.add_argument("--subject", default=",".join([*SUBJECTS, DPDK]), help="only these, separated by commas")
    parser.add_argument("--idle-flows", type=int, default=10_000, help="how many the subject with idle flows has")
    args = parser.parse_args()
    args.part = report.choice(parser, args.part, PARTS, "part")
    args.subject = report.choice(parser, args.subject, [*SUBJECTS, DPDK], "subject")
    if args.quick:
        args.repetitions, args.seconds, args.idle_flows = 1, 0.2, min(args.idle_flows, 500)
    return args


class Suite:
    def __init__(self, args):
        self.args = args
        self.results = report.Results()
        self.notes = []
        self.logs = args.out / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="virtbay-net-"))
        self.subjects = []
        for subject in (s for s in SUBJECTS if s in args.subject):
            why = net_peers.missing(subject)
            if why:
                self.notes.append(why)
            else:
                self.subjects.append(subject)
        self.rings = [s for s in RINGS if s in args.subject] if "rings" in args.part else []
        if self.rings and not shutil.which(net_rings.TESTPMD):
            self.notes.append(f"{net_rings.TESTPMD} is not installed (package dpdk-dev)")
            self.rings = []

    def run(self):
        sessions = [(setting, subject) for setting in SETTINGS if setting in self.args.part
                    for subject in self.subjects if self.applies(setting, subject)]
        total = len(sessions) + len(LAYOUTS) * len(self.rings)
        progress = report.Progress(self.args.repetitions * total)
        for repetition in range(self.args.repetitions):
            # The order changes, so that a drift is nobody's advantage.
            for setting in dict.fromkeys(setting for setting, _ in sessions):
                subjects = [subject for s, subject in sessions if s == setting]
                for subject in subjects if repetition % 2 == 0 else subjects[::-1]:
                    self.measure(setting, subject, repetition, progress)
            for layout in LAYOUTS:
                for subject in self.rings if repetition % 2 == 0 else self.rings[::-1]:
                    self.measure_ring(layout, subject, repetition, progress)
        progress.end()

    def applies(self, setting, subject):
        if subject == "qemu-user" and not setting.startswith("1500"):
            return False
        return subject != IDLE or setting == "1500"

    def measure(self, setting, subject, repetition, progress):
        where = f"repetition {repetition + 1} of {self.args.repetitions}, {setting}, {subject}"
        progress.show(where)
        mtu, _, tuned = setting.partition("_")
        backend = "virtbay" if subject == IDLE else subject
        session = None
        try:
            session = net_peers.Session(backend, self.args.build, int(mtu), bool(tuned), self.directory,
                                        self.logs / f"net-{backend}.log")
            idle = session.hold_idle(self.args.idle_flows) if subject == IDLE else None
            self.run_workloads(session, setting, subject, where, progress)
            if idle:
                # It says whether they have all lived as long.
                idle.stdin.close()
                idle.stdin = None
                if idle.wait(60) != 0:
                    self.notes.append(f"{subject}: not all flows were there to the end, see {session.log}")
        except net_peers.Failure as failure:
            self.notes.append(f"{setting}, {subject}: {failure}")
        finally:
            if session is not None:
                session.close()
        progress.show(f"{where}: done", step=True)

    def run_workloads(self, session, setting, subject, where, progress):
        names = SETTINGS[setting]
        words = [session.bench, "run", *session.common(), f"--workload={','.join(names)}", f"--seconds={self.args.seconds}",
                 f"--warmup={self.args.seconds / 4}"]
        if session.backend:
            words.append(f"--backend-pid={session.backend}")
        bench = subprocess.Popen(session.guest.command([str(w) for w in words]), stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True)
        timer = threading.Timer(30 + 4 * self.args.seconds * len(names), bench.kill)
        timer.start()
        try:
            for text in bench.stdout:
                line = json.loads(text)
                progress.show(f"{where}: {line['workload']}")
                for field, (metric, unit, higher) in METRICS.items():
                    if field in line:
                        if field == "backend_cpu":
                            unit = "us/MiB" if line["unit"] == "MiB/s" else "us"
                        self.results.add(f"{line['workload']}.{setting}", subject, metric, unit or line["unit"], higher,
                                         line[field])
            error = bench.stderr.read().strip()
            if bench.wait() != 0 or error:
                late = "" if timer.is_alive() else "given up, "
                self.notes.append(f"{setting}, {subject}: {late}{error}")
        finally:
            timer.cancel()
            if bench.poll() is None:
                bench.kill()
            bench.wait()
            bench.stdout.close()
            bench.stderr.close()

    def measure_ring(self, layout, subject, repetition, progress):
        where = f"repetition {repetition + 1} of {self.args.repetitions}, rings, {layout}, {subject}"
        progress.show(where)
        try:
            rate = net_rings.frames_per_second(subject, layout == "packed", self.args.seconds, self.args.build,
                                               self.directory, self.logs / f"net-ring-{subject}.log")
            self.results.add(f"frames_64.{layout}", subject, "throughput", "frames/s", True, rate)
        except net_peers.Failure as failure:
            self.notes.append(f"rings, {layout}, {subject}: {failure}")
        progress.show(f"{where}: done", step=True)

    def close(self):
        shutil.rmtree(self.directory, ignore_errors=True)


def best_peer(results, workload, metric, higher):
    """The best of the peers, by figure and name."""
    peers = [DPDK] if workload.startswith("frames") else PEERS
    figures = [(results.median(workload, s, metric), s) for s in peers]
    figures = [f for f in figures if f[0] is not None]
    return (max if higher else min)(figures, default=(None, None))


def throughput_table(results):
    columns = [*SUBJECTS, DPDK]
    rows = []
    for workload in results.workloads():
        get = lambda subject: results.median(workload, subject, "throughput")
        peer, _ = best_peer(results, workload, "throughput", True)
        share = report.ratio(get("virtbay"), get("loopback"))
        rows.append([workload, results.unit(workload, "throughput"), *(report.number(get(s)) for s in columns),
                     report.times(report.ratio(get("virtbay"), peer)), "-" if share is None else f"{share:.0%}"])
    return report.table(["workload", "unit", "loopback", "virtbay", "with idle", "qemu-user", "passt", "slirp4netns", "pasta",
                         "dpdk", "/peer", "/loopback"], rows)


def detail_table(results):
    metrics = ["latency_p50", "latency_p99", "guest_retransmits", "backend_cpu"]
    rows = []
    for workload in results.workloads():
        for subject in SUBJECTS:
            if results.median(workload, subject, "guest_retransmits") is not None:
                rows.append([f"{workload} {subject}", *(report.number(results.median(workload, subject, m)) for m in metrics)])
    return report.table(["workload, subject", "p50 us", "p99 us", "retransmits", "CPU us/op, us/MiB"], rows)


def check_targets(args, results):
    targets = report.Targets()
    known = results.workloads()
    value = lambda workload, metric, subject="virtbay": results.median(workload, subject, metric)
    number, times = report.number, report.times

    def at_least(workload, ours, other, name, least, unit, share=False):
        reached = report.ratio(ours, other)
        text = ("-" if reached is None else f"{reached:.0%}") if share else times(reached)
        goal = f"{least:.0%}" if share else f"{least}x"
        targets.check(workload, None if reached is None else reached >= least,
                      f"{text} of {name}, target {goal} ({number(ours)} against {number(other)} {unit})")

    for workload in [f"{way}.{setting}" for setting in ("1500", "1500_tuned") for way in ("bulk_up", "bulk_down")]:
        if workload not in known:
            continue
        ours = value(workload, "throughput")
        peer, subject = best_peer(results, workload, "throughput", True)
        at_least(workload, ours, peer, subject or "a peer", 2, "MiB/s")
        at_least(workload, ours, value(workload, "throughput", "loopback"), "loopback", 0.6, "MiB/s", share=True)
        resent = value(workload, "guest_retransmits")
        targets.check(workload, None if resent is None else resent == 0,
                      f"{number(resent)} segments sent again by the guest, target 0")
    for workload in [f"{way}.{setting}" for setting in ("1500", "1500_tuned") for way in ("rr", "crr")]:
        if workload not in known:
            continue
        ours = value(workload, "latency_p50")
        peer, subject = best_peer(results, workload, "latency_p50", False)
        targets.check(workload, None if ours is None or peer is None else ours <= peer,
                      f"p50 {number(ours)} us, target at most {number(peer)} us, {subject or 'a peer'}'s")
    for layout, least in (("split", 0.8), ("packed", 1.0)):
        workload = f"frames_64.{layout}"
        if workload in known:
            at_least(workload, value(workload, "throughput"), value(workload, "throughput", DPDK), DPDK, least, "frames/s")
    for workload in [f"{name}.1500" for name in SETTINGS["1500"]]:
        if workload not in known or value(workload, "throughput", IDLE) is None:
            continue
        at_least(workload, value(workload, "throughput", IDLE), value(workload, "throughput"),
                 f"that without {args.idle_flows:,} idle flows", 0.95, results.unit(workload, "throughput"), share=True)
    return targets


def main():
    args = arguments()
    why = net_peers.usable()
    if why:
        sys.exit(f"bench.sh net: {why}")
    # Namespaces need a right that nobody has to have outside: everything runs in a user namespace.
    if os.environ.get("VIRTBAY_BENCH_PRIVATE") != "1":
        os.environ["VIRTBAY_BENCH_PRIVATE"] = "1"
        words = [*net_peers.private_user(), sys.executable, *sys.argv]
        os.execvp(words[0], words)
    args.build, args.out = args.build.resolve(), args.out.resolve()
    suite = Suite(args)
    try:
        suite.run()
    finally:
        suite.close()
    results = suite.results
    results.write_json(args.out / "net.json")
    if results.runs:
        report.svg_ratios(args.out / "net.svg", "Throughput against virtbay, medians and ranges", results, "throughput",
                          ["virtbay", *(s for s in [*SUBJECTS, DPDK] if s not in ("virtbay", IDLE))], "virtbay")
    print(throughput_table(results))
    print("\n/peer: virtbay against the best peer of that row. with idle: virtbay with "
          f"{args.idle_flows:,} idle connections beside.")
    print("up: from the guest. 1500, 65520: the guest's MTU; tuned: larger socket buffers on both sides, no timestamps.")
    print("How the peers are run, and what that means for the figures: docs/benchmarks.md.\n")
    print(detail_table(results))
    print()
    for note, count in collections.Counter(suite.notes).items():
        print(f"note: {note}" + (f" ({count} times)" if count > 1 else ""))
    print(check_targets(args, results).text())
    print(f"\n{args.out / 'net.json'}, {args.out / 'net.svg'}")
    return 0 if results.runs else 1


if __name__ == "__main__":
    sys.exit(main())
