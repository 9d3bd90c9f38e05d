"""The virtqueue runtime with a null device: chains/s, cycles and system calls per chain over split and packed rings, idle cost."""
import json
import subprocess
import sys

import report

# Field of virtq_bench's lines -> unit, higher is better.
METRICS = {
    "chains_per_s": ("chains/s", True),
    "cycles_per_chain": ("cycles", False),
    "syscalls_per_chain": ("1", False),
    "kicks_per_chain": ("1", False),
    "calls_per_chain": ("1", False),
    "resident_added_kib": ("KiB", False),
    "resident_running_kib": ("KiB", False),
    "cpu_us_per_s": ("us/s", False),
}

# Layout of the ring -> subject; the split ring is the project's figure since it had only that.
SUBJECTS = {"split": "virtbay", "packed": "virtbay packed"}


def arguments():
    args = report.parser("virtq", __doc__, seconds=1).parse_args()
    if args.quick:
        args.repetitions, args.seconds = 1, 0.1
    return args


def measure(args, results):
    command = [args.build / "bin" / "virtq_bench", f"--plugin={args.build / 'bench-plugins' / 'null.so'}",
               f"--seconds={args.seconds}", f"--warmup={args.seconds / 8}"]
    progress = report.Progress(args.repetitions)
    for repetition in range(args.repetitions):
        bench = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for text in bench.stdout:
            line = json.loads(text)
            workload = f"{line.pop('workload')}.{line.pop('wait')}"
            subject = SUBJECTS[line.pop("layout")]
            progress.show(f"repetition {repetition + 1} of {args.repetitions}: {workload}, {subject}")
            for field, value in line.items():
                unit, higher = METRICS[field]
                results.add(workload, subject, field, unit, higher, value)
        if bench.wait() != 0:
            sys.exit(1)
        progress.show(f"repetition {repetition + 1} of {args.repetitions}: done", step=True)
    progress.end()


def check_targets(results):
    targets = report.Targets()
    get = lambda workload, metric: results.median(workload, "virtbay", metric)
    for shape in ("send", "reply"):
        for wait in ("poll", "sleep"):
            value = get(f"{shape}_b32.{wait}", "syscalls_per_chain")
            targets.check(f"{shape}_b32.{wait}", None if value is None else value < 0.1,
                          f"{report.number(value)} system calls per chain, target below 0.1")
    value = get("send_b32.poll", "chains_per_s")
    targets.check("send_b32.poll", None if value is None else value >= 5e6,
                  f"{report.number(value)} chains/s on one core, target 5,000,000")
    value = get("idle_device.sleep", "resident_running_kib")
    targets.check("idle_device", None if value is None else value < 2048,
                  f"{report.number(value)} KiB resident per idle device with a running ring, target below 2,048")
    return targets


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    results = report.Results()
    measure(args, results)
    results.write_json(args.out / "virtq.json")
    report.svg_bars(args.out / "virtq.svg", "Chains per second of a null device, medians and ranges", results,
                    "chains_per_s", "virtbay")
    median = lambda workload, metric, layout: results.median(workload, SUBJECTS[layout], metric)
    get = lambda workload, metric, layout="split": report.number(median(workload, metric, layout))
    columns = ["cycles_per_chain", "syscalls_per_chain", "kicks_per_chain", "calls_per_chain"]
    rows = []
    for w in results.workloads():
        if w.startswith("idle"):
            continue
        rates = [median(w, "chains_per_s", layout) for layout in ("packed", "split")]
        row = [w, get(w, "chains_per_s"), get(w, "chains_per_s", "packed"), report.times(report.ratio(*rates))]
        rows.append(row + [f"{get(w, c)} {get(w, c, 'packed')}" for c in columns])
    print(report.table(["workload", "split chains/s", "packed", "ratio", "cycles/chain", "syscalls/chain", "kicks/chain",
                        "calls/chain"], rows))
    print("\nTwo figures: over a split ring, over a packed one.")
    print("b1, b8, b32: chains per publish. send: one descriptor of 64 bytes; reply: a second one of 16 bytes back.")
    print("poll: both sides spin, the ring kept full. sleep: a batch, then both sides sleep until it is done.")
    print("cycles: of the device's thread, spinning included.\n")
    print(f"idle device: {get('idle_device.sleep', 'resident_added_kib')} KiB resident when added, "
          f"{get('idle_device.sleep', 'resident_running_kib')} KiB with a running ring, "
          f"{get('idle_device.sleep', 'cpu_us_per_s')} us of CPU per second\n")
    print(check_targets(results).text())
    print(f"\n{args.out / 'virtq.json'}, {args.out / 'virtq.svg'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
