"""A device among noisy neighbours: private arenas, and one shared arena as with a single SWIOTLB."""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import report

SUBJECTS = ["alone", "private", "shared"]
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
    parser = argparse.ArgumentParser(prog="scripts/bench.sh isolation", description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="one short repetition, as a smoke test")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="length of one latency measurement")
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
    progress = report.Progress(args.repetitions * (len(SUBJECTS) + 2 * len(DEVICES) * len(PAYLOADS)))
    with tempfile.TemporaryDirectory(prefix="virtbay-isolation-") as share:
        for repetition in range(args.repetitions):
            def step(workload, extra):
                line = run(args, extra)
                subject = line.pop("subject")
                line.pop("workload")
                for q, us in line.pop("quantiles", []):
                    quantiles.setdefault(subject, {}).setdefault(q, []).append(us)
                for field, value in line.items():
                    unit, higher = METRICS[field]
                    results.add(workload, subject, field, unit, higher, value)
                progress.show(f"repetition {repetition + 1} of {args.repetitions}: {workload} {subject}", step=True)

            # The order changes from one repetition to the next, so that a drift is nobody's advantage.
            for subject in SUBJECTS if repetition % 2 == 0 else SUBJECTS[::-1]:
                step("victim", [f"--policy={subject}", f"--virtiofs={args.build / 'plugins' / 'virtiofs.so'}",
                                f"--dir={share}", f"--seconds={args.seconds}", f"--warmup={args.seconds / 10}",
                                f"--nice={args.nice}"])
            for name, payload in PAYLOADS.items():
                for devices in DEVICES:
                    for subject in ["private", "shared"] if repetition % 2 == 0 else ["shared", "private"]:
                        step(f"bounce_{name}.{devices}",
                             [f"--policy={subject}", f"--devices={devices}", f"--payload={payload}", "--hold-us=0",
                              f"--requests={requests[name]}"])
    progress.end()


def check_targets(results):
    targets = report.Targets()
    p99 = {subject: results.median("victim", subject, "victim_p99") for subject in SUBJECTS}
    value = report.ratio(p99["private"], p99["alone"])
    targets.check("victim", None if value is None else value <= 1.3,
                  f"p99 with private arenas {report.times(value)} of that alone, target at most 1.3x")
    value = report.ratio(p99["shared"], p99["private"])
    targets.check("victim", None if value is None else value >= 5,
                  f"p99 with the shared arena {report.times(value)} of that with private ones, target at least 5x")
    for workload in results.workloads():
        if workload == "victim":
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
    names = {"alone": "victim alone", "private": "private arenas", "shared": "one shared arena"}
    report.svg_quantiles(args.out / "isolation.svg", "Latency of 4 KiB reads at depth 1 beside seven neighbours",
                         {names[s]: [(q, statistics.median(us)) for q, us in sorted(quantiles[s].items())]
                          for s in SUBJECTS})
    rows = []
    for metric, text in [("victim_p50", "p50, us"), ("victim_p99", "p99, us"), ("victim_p999", "p99.9, us"),
                         ("victim_reads_per_s", "reads/s"), ("victim_slot_waits", "waits for slots"),
                         ("neighbours_mib_per_s", "neighbours, MiB/s")]:
        rows.append([text] + [report.number(results.median("victim", s, metric)) for s in SUBJECTS])
    print(report.table(["victim: 4 KiB reads, depth 1", *(names[s] for s in SUBJECTS)], rows))
    print("\nThe victim is a virtiofs device; it reads every 0.5 ms (without a pause it would keep both cores to itself).")
    print("Seven neighbours keep 64 requests of 256 KiB each under way, each of which holds its payload in arena slots for")
    print("1 ms or longer; their threads run at lower priority. 64 MiB of arenas in all, in eight or in one. A read that")
    print("is slow with the shared arena has waited for slots, or for the lock, whose holder has been preempted.\n")
    rows = []
    for workload in results.workloads():
        if workload == "victim":
            continue
        private, shared = (results.median(workload, s, "mib_per_s") for s in ("private", "shared"))
        rows.append([workload, report.number(private), report.number(shared),
                     report.times(report.ratio(private, shared))])
    print(report.table(["payload and devices", "private, MiB/s", "shared, MiB/s", "ratio"], rows))
    print("\nThe same number of requests in all, 64 under way per device, not held.\n")
    print(check_targets(results).text())
    print(f"\n{args.out / 'isolation.json'}, {args.out / 'isolation.svg'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
