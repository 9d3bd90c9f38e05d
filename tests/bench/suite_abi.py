"""What it costs to cross the plugin ABI, per batch and per request."""
import json
import subprocess
import sys

import report

BATCHES = (1, 8, 32, 128)
TARGET_NS = 15


def arguments():
    args = report.parser("abi", __doc__, seconds=0.5).parse_args()
    if args.quick:
        args.repetitions, args.seconds = 1, 0.05
    return args


def measure(args, results):
    progress = report.Progress(args.repetitions)
    for repetition in range(args.repetitions):
        progress.show(f"repetition {repetition + 1} of {args.repetitions}")
        bench = subprocess.run([args.build / "bin" / "abi_bench", "--benchmark_format=json",
                                f"--benchmark_min_time={args.seconds}"], stdout=subprocess.PIPE, text=True)
        if bench.returncode != 0:
            sys.exit(1)
        per_batch = {}
        for line in json.loads(bench.stdout)["benchmarks"]:
            if line.get("error_occurred"):
                sys.exit(f"abi_bench: {line['error_message']}")
            subject, batch = line["name"].split("/")
            per_batch[subject, int(batch)] = line["cpu_time"]
        for batch in BATCHES:
            across, without = per_batch["across", batch], per_batch["without", batch]
            add = lambda metric, value: results.add(f"batch_{batch}", "virtbay", metric, "ns", False, value)
            add("batch_ns", across)
            add("request_ns", across / batch)
            add("without_request_ns", without / batch)
            add("crossing_batch_ns", across - without)
            add("crossing_request_ns", (across - without) / batch)
        progress.show("done", True)
    progress.end()


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    results = report.Results()
    measure(args, results)
    results.write_json(args.out / "abi.json")
    report.svg_bars(args.out / "abi.svg", "A request of the null device across the plugin ABI, ns, medians and ranges",
                    results, "request_ns", "virtbay")
    columns = {"batch_ns": "batch, ns", "request_ns": "request, ns", "without_request_ns": "the same without, ns",
               "crossing_batch_ns": "crossing, ns a batch", "crossing_request_ns": "crossing, ns a request"}
    rows = [[f"batch_{batch}"] + [report.number(results.median(f"batch_{batch}", "virtbay", c)) for c in columns]
            for batch in BATCHES]
    print(report.table(["requests at once", *columns.values()], rows))
    print("A plugin built with the SDK, called as the framework calls it, answers each request with 16 bytes to a host\n"
          "that counts; `without`: the same code within the host. Neither has a ring to serve.\n")
    targets = report.Targets()
    value = results.median("batch_32", "virtbay", "request_ns")
    targets.check("batch_32", None if value is None else value <= TARGET_NS,
                  f"{report.number(value)} ns a request, its answer included, target at most {TARGET_NS}")
    print(targets.text())
    print(f"\n{args.out / 'abi.json'}, {args.out / 'abi.svg'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
