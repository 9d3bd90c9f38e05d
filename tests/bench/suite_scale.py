"""Up to 1,000 devices in one process: memory, threads, descriptors, time to add and remove, latency."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import report

# Kind of scale_bench -> prefix of its workloads, heading, what a request is. The targets are for virtiofs devices;
# the others stand beside them.
KINDS = {
    "virtiofs": ("devices", "virtiofs devices", "a read of 4 KiB"),
    "virtio-net": ("net", "virtio-net devices", "a frame of 64 bytes there and back"),
    "share": ("shares", "shares of one device", "a read of 4 KiB in one share"),
}

# Field of scale_bench's lines -> unit, higher is better.
METRICS = {
    "resident_mib": ("MiB", False),
    "resident_per_device": ("KiB", False),
    "threads_per_device": ("1", False),
    "fds_per_device": ("1", False),
    "add_ms": ("ms", False),
    "remove_ms": ("ms", False),
    "read_p50": ("us", False),
    "read_p99": ("us", False),
    "fill_ms": ("ms", False),
}


def arguments():
    parser = report.parser("scale", __doc__, seconds=1, seconds_help="length of one latency measurement",
                           quick_help="one short repetition of up to 100 of each, as a smoke test")
    parser.add_argument("--counts", default="1,10,100,1000", help="numbers of devices")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of devices: " + ", ".join(KINDS) + " (default: all)")
    parser.add_argument("--queue-size", type=int, default=1024, help="of the rings")
    args = parser.parse_args()
    if args.quick:
        args.repetitions, args.seconds, args.counts = 1, 0.1, "1,10,100"
    args.counts = [int(count) for count in args.counts.split(",")]
    args.kinds = args.kinds.split(",")
    if not set(args.kinds) <= set(KINDS):
        parser.error("--kinds: " + ", ".join(sorted(set(args.kinds) - set(KINDS))))
    return args


class DeviceHost:
    """`virtbay run` with one device, which stays idle: what the first one brings for all is not counted."""

    def __init__(self, args, directory):
        self.control = directory / "control.sock"
        config = directory / "virtbay.toml"
        share = directory / "share"
        share.mkdir()
        (share / "data").write_bytes(os.urandom(1 << 20))
        config.write_text(f'[host]\ncontrol-socket = "{self.control}"\nlog-level = "warn"\n[[device]]\nname = "base"\n'
                          f'plugin = "virtiofs"\nsocket = "{directory / "base"}"\n'
                          f'options = {{ shared-dir = "{share}" }}\n')
        ready, write = os.pipe()
        self.process = subprocess.Popen([args.build / "bin" / "virtbay", "run", f"--ready-fd={write}", config],
                                        pass_fds=[write])
        os.close(write)
        with os.fdopen(ready) as file:
            if file.readline() != "\n":
                sys.exit("the device host did not start")
        self.share = share

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(60) != 0:
            sys.exit("the device host ended badly")


def measure_kind(args, kind, results, show):
    with tempfile.TemporaryDirectory(prefix="virtbay-scale-") as name:
        directory = pathlib.Path(name)
        host = DeviceHost(args, directory)
        try:
            command = [args.build / "bin" / "scale_bench", f"--kind={kind}", f"--control={host.control}",
                       f"--pid={host.process.pid}", f"--share={host.share}", f"--sockets={directory}",
                       f"--seconds={args.seconds}", f"--queue-size={args.queue_size}",
                       f"--counts={','.join(map(str, args.counts))}"]
            bench = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            for text in bench.stdout:
                line = json.loads(text)
                workload = f"{KINDS[kind][0]}_{line.pop('devices')}"
                show(workload)
                for field, value in line.items():
                    unit, higher = METRICS[field]
                    results.add(workload, "virtbay", field, unit, higher, value)
            if bench.wait() != 0:
                sys.exit(1)
        finally:
            host.stop()


def measure(args, results):
    progress = report.Progress(args.repetitions * len(args.kinds))
    for repetition in range(args.repetitions):
        def show(text, step=False):
            progress.show(f"repetition {repetition + 1} of {args.repetitions}: {text}", step)

        for kind in args.kinds:
            measure_kind(args, kind, results, show)
            show(f"{kind} done", step=True)
    progress.end()


def check_targets(args, results):
    targets = report.Targets()
    most = f"devices_{max(args.counts)}"
    get = lambda workload, metric: results.median(workload, "virtbay", metric)

    def at_most(metric, text, limit):
        value = get(most, metric)
        targets.check(most, None if value is None else value <= limit,
                      f"{report.number(value)} {text}, target at most {limit}")

    at_most("resident_per_device", "KiB resident per device", 256)
    at_most("fds_per_device", "descriptors per device", 12)
    at_most("add_ms", "ms to add one", 2)
    at_most("remove_ms", "ms to remove one", 2)
    for metric, text in (("read_p50", "p50"), ("read_p99", "p99")):
        value = report.ratio(get(most, metric), get(f"devices_{min(args.counts)}", metric))
        targets.check(most, None if value is None else value <= 1.1,
                      f"{text} of a read {report.times(value)} of that with the fewest devices, target at most 1.1x")
    return targets


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    results = report.Results()
    measure(args, results)
    results.write_json(args.out / "scale.json")
    report.svg_bars(args.out / "scale.svg", "Resident memory per device, KiB, medians and ranges", results,
                    "resident_per_device", "virtbay")
    columns = {"resident_mib": "MiB in all", "resident_per_device": "KiB each", "threads_per_device": "threads each",
               "fds_per_device": "fds each", "add_ms": "add, ms", "remove_ms": "remove, ms", "read_p50": "p50, us",
               "read_p99": "p99, us"}
    for kind in args.kinds:
        prefix, heading, request = KINDS[kind]
        workloads = [f"{prefix}_{count}" for count in args.counts]
        rows = [[w] + [report.number(results.median(w, "virtbay", c)) for c in columns] for w in workloads]
        print(report.table([heading, *columns.values()], rows))
        print(f"p50 and p99: {request}, one after the other to one of them, the others idle.\n")
    print(f"Each device has a front-end with running rings of {args.queue_size}; the device with the shares has one. Add and")
    print("remove: of one more, over the control socket, removed under its front-end.\n")
    print(check_targets(args, results).text())
    print(f"\n{args.out / 'scale.json'}, {args.out / 'scale.svg'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
