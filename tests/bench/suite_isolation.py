"""A device among noisy neighbours: private arenas, and one shared arena as with a single SWIOTLB."""
import json
import statistics
import subprocess
import sys
import tempfile

import report

SUBJECTS = ["alone", "alone_awake", "private", "shared"]
NAMES = {"alone": "victim alone", "alone_awake": "alone, awake", "private": "private arenas",
         "shared": "one shared arena"}
# Workload of the victim -> microseconds between two reads, and how that is called.
VICTIMS = {"victim": (500, "with a pause"), "victim_back_to_back": (0, "back to back")}
DEVICES = [1, 2, 4, 8]
PAYLOADS = {"4k": 4096, "256k": 256 * 1024}

# Field of isolation_bench's lines -> unit, higher is better.
METRICS = {
    "victim_p50": ("us", False),
    "victim_p99": ("us", False),
    "victim_p999": ("us", False),
    "victim_reads_per_s": ("reads/s", True),
    "victim_slot_waits": ("1", False),
    "victim_slot_wait_ms": ("ms", False),
    "neighbours_mib_per_s": ("MiB/s", True),
    "requests_per_s": ("requests/s", True),
    "mib_per_s": ("MiB/s", True),
    "slot_waits": ("1", False),
}


def arguments():
    parser = report.parser("isolation", __doc__, seconds=4, seconds_help="length of one latency measurement")
    parser.add_argument("--nice", type=int, default=19, help="of the neighbours' threads")
    args = parser.parse_args()
    if args.quick:
        args.repetitions, args.seconds = 1, 0.5
    return args


def run(args, extra):
    command = [args.build / "bin" / "isolation_bench", f"--bounce={args.build / 'bench-plugins' / 'bounce.so'}", *extra]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(1)
    return json.loads(done.stdout)


def measure(args, results, quantiles):
    scale = 10 if args.quick else 1
    requests = {"4k": 800_000 // scale, "256k": 64_000 // scale}
    progress = report.Progress(args.repetitions * (len(VICTIMS) * len(SUBJECTS) + 2 * len(DEVICES) * len(PAYLOADS)))
    with tempfile.TemporaryDirectory(prefix="virtbay-isolation-") as share:
        for repetition in range(args.repetitions):
            def step(workload, extra):
                line = run(args, extra)
                subject = line.pop("subject")
                line.pop("workload")
                for q, us in line.pop("quantiles", []):
                    quantiles.setdefault((workload, subject), {}).setdefault(q, []).append(us)
                for field, value in line.items():
                    unit, higher = METRICS[field]
                    results.add(workload, subject, field, unit, higher, value)
                progress.show(f"repetition {repetition + 1} of {args.repetitions}: {workload} {subject}", step=True)

            # The order changes from one repetition to the next, so that a drift is nobody's advantage.
            for workload, (pause, _) in VICTIMS.items():
                for subject in SUBJECTS if repetition % 2 == 0 else SUBJECTS[::-1]:
                    policy, awake = ("alone", ["--awake"]) if subject == "alone_awake" else (subject, [])
                    step(workload, [f"--policy={policy}", f"--virtiofs={args.build / 'plugins' / 'virtiofs.so'}",
                                    f"--dir={share}", f"--seconds={args.seconds}", f"--warmup={args.seconds / 10}",
                                    f"--nice={args.nice}", f"--think-us={pause}", *awake])
            for name, payload in PAYLOADS.items():
                for devices in DEVICES:
                    for subject in ["private", "shared"] if repetition % 2 == 0 else ["shared", "private"]:
                        step(f"bounce_{name}.{devices}",
                             [f"--policy={subject}", f"--devices={devices}", f"--payload={payload}", "--hold-us=0",
                              f"--requests={requests[name]}"])
    progress.end()


def check_targets(results):
    targets = report.Targets()

    def p99(workload, subject):
        return results.median(workload, subject, "victim_p99")

    # The worst of them counts.
    ratios = [(report.ratio(p99(w, "private"), p99(w, alone)), f"{how}, {NAMES[alone]}")
              for w, (_, how) in VICTIMS.items() for alone in ("alone", "alone_awake")]
    text = "; ".join(f"{report.times(value)} ({how})" for value, how in sorted(ratios, key=lambda r: -(r[0] or 0)))
    worst = None if any(value is None for value, _ in ratios) else max(value for value, _ in ratios)
    targets.check("victim", None if worst is None else worst <= 1.3,
                  f"p99 with private arenas, of that alone: {text}; target at most 1.3x in each case")
    # Back to back the victim leaves the neighbours too little of the processors to fill the arena.
    value, beside = (report.ratio(p99(w, "shared"), p99(w, "private")) for w in VICTIMS)
    targets.check("victim", None if value is None else value >= 5,
                  f"p99 with the shared arena {report.times(value)} of that with private ones, target at least 5x "
                  f"(with a pause, where the arena is what lacks; {report.times(beside)} back to back)")
    for workload in results.workloads():
        if workload in VICTIMS:
            continue
        value = report.ratio(results.median(workload, "private", "mib_per_s"),
                             results.median(workload, "shared", "mib_per_s"))
        targets.check(workload, None if value is None else value >= 1,
                      f"throughput with private arenas {report.times(value)} of the shared one's, target at least 1x")
    return targets


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    results = report.Results()
    quantiles = {}
    measure(args, results, quantiles)
    results.write_json(args.out / "isolation.json")
    plots = []
    for workload, (_, how) in VICTIMS.items():
        plots.append(args.out / workload.replace("victim", "isolation").replace("_", "-"))
        plots[-1] = plots[-1].with_suffix(".svg")
        report.svg_quantiles(plots[-1], f"Latency of 4 KiB reads at depth 1 beside seven neighbours, {how}",
                             {NAMES[s]: [(q, statistics.median(us)) for q, us in sorted(quantiles[workload, s].items())]
                              for s in SUBJECTS})
        rows = []
        for metric, text in [("victim_p50", "p50, us"), ("victim_p99", "p99, us"), ("victim_p999", "p99.9, us"),
                             ("victim_reads_per_s", "reads/s"), ("victim_slot_waits", "waits for slots"),
                             ("neighbours_mib_per_s", "neighbours, MiB/s")]:
            rows.append([text] + [report.number(results.median(workload, s, metric)) for s in SUBJECTS])
        print(report.table([f"victim: 4 KiB reads, {how}", *(NAMES[s] for s in SUBJECTS)], rows) + "\n")
    print("The victim is a virtiofs device, read at depth 1 every 0.5 ms, or back to back. Seven neighbours keep 64 requests")
    print("of 256 KiB each under way, each of which holds its payload in arena slots for 1 ms or longer; their threads run at")
    print("lower priority. 64 MiB of arenas in all, in eight or in one. A read that is slow with the shared arena has waited")
    print("for slots, or for the lock, whose holder has been preempted.")
    print("Processors go idle in a pause when the victim is alone, and beside neighbours they do not: waking an idle one costs")
    print("more than neighbours do. `awake` is alone as well, with threads of idle priority that keep the processors awake.\n")
    rows = []
    for workload in results.workloads():
        if workload in VICTIMS:
            continue
        private, shared = (results.median(workload, s, "mib_per_s") for s in ("private", "shared"))
        rows.append([workload, report.number(private), report.number(shared),
                     report.times(report.ratio(private, shared))])
    print(report.table(["payload and devices", "private, MiB/s", "shared, MiB/s", "ratio"], rows))
    print("\nThe same number of requests in all, 64 under way per device, not held.\n")
    print(check_targets(results).text())
    print("\n" + ", ".join(str(path) for path in [args.out / "isolation.json", *plots]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
