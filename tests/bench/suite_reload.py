"""Hot reload: the pause that a guest sees, and what each phase of it takes."""
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import report
from edit_loop import EditLoop

# Field of reload_bench's lines -> unit, higher is better.
PHASES = ["stage", "quiesce", "save", "restore", "commit", "trial", "retire", "pause"]
METRICS = {"gap_p50_ms": "ms", "gap_p99_ms": "ms", "state_bytes": "B"} | {f"{p}_p50_ms": "ms" for p in PHASES}


def arguments():
    parser = report.parser("reload", __doc__, seconds=1, seconds_help="not used",
                           quick_help="one short repetition with up to 10,000 inodes, as a smoke test")
    parser.add_argument("--reloads", type=int, default=200, help="in each repetition")
    parser.add_argument("--inodes", default="10,10000,100000", help="numbers of known inodes")
    parser.add_argument("--flows", type=int, default=1000, help="TCP connections through proxy-net; 0: not measured")
    args = parser.parse_args()
    if args.quick:
        args.repetitions, args.reloads, args.inodes = 1, 20, "10,10000"
    args.inodes = [int(count) for count in args.inodes.split(",")]
    return args


def workload(inodes, depth):
    return f"virtiofs_{inodes}_d{depth}"


def cases_of(args, share):
    """(workload, plugin, what reload_bench is told) of each case."""
    cases = [(workload(inodes, depth), "virtiofs", [f"--share={share}", f"--inodes={inodes}", f"--depth={depth}"])
             for inodes in args.inodes for depth in (1, 32)]
    if args.flows:
        cases += [(f"proxy-net_{args.flows}_d{depth}", "proxy-net", [f"--flows={args.flows}", f"--depth={depth}"])
                  for depth in (1, 32)]
    return cases


def measure(args, results):
    with tempfile.TemporaryDirectory(prefix="virtbay-reload-") as place:
        directory = pathlib.Path(place)
        share = directory / "share"
        share.mkdir()
        for i in range(max(args.inodes)):
            (share / f"f{i}").touch()
        # Two files with the same code: each reload loads another image.
        for plugin in ("virtiofs", "proxy-net"):
            for build in ("first", "second"):
                shutil.copy(args.build / "plugins" / f"{plugin}.so", directory / f"{plugin}-{build}.so")
        cases = cases_of(args, share)
        progress = report.Progress(args.repetitions * len(cases))
        for repetition in range(args.repetitions):
            for name, plugin, options in cases:
                progress.show(f"repetition {repetition + 1} of {args.repetitions}: {name}")
                command = [args.build / "bin" / "reload_bench", f"--reloads={args.reloads}", *options,
                           *(f"--build={directory}/{plugin}-{build}.so" for build in ("first", "second"))]
                bench = subprocess.run(command, stdout=subprocess.PIPE, text=True)
                if bench.returncode != 0:
                    sys.exit(1)
                line = json.loads(bench.stdout)
                for field, unit in METRICS.items():
                    results.add(name, "virtbay", field, unit, False, line[field])
                progress.show(f"{name} done", True)
    progress.end()


EDITS = "edit_to_running"


def measure_edits(args, results):
    progress = report.Progress(args.repetitions)
    with tempfile.TemporaryDirectory(prefix="virtbay-edit-") as name:
        loop = EditLoop(args.build, name)
        try:
            for repetition in range(args.repetitions):
                progress.show(f"edit {repetition + 1} of {args.repetitions}")
                built, answered = loop.edit(repetition)
                results.add(EDITS, "virtbay", "build_s", "s", False, built)
                results.add(EDITS, "virtbay", "running_s", "s", False, answered)
                progress.show("done", True)
        finally:
            loop.close()
    progress.end()


def check_targets(args, results):
    targets = report.Targets()
    running = results.median(EDITS, "virtbay", "running_s")
    targets.check(EDITS, None if running is None else running <= 3,
                  f"{report.number(running)} s from the saved source to the first answer, target at most 3 s")
    if 10000 not in args.inodes:
        return targets
    for depth in (1, 32):
        case = workload(10000, depth)
        for metric, text, limit in (("gap_p50_ms", "p50", 2), ("gap_p99_ms", "p99", 10)):
            value = results.median(case, "virtbay", metric)
            targets.check(case, None if value is None else value <= limit,
                          f"{text} of the pause {report.number(value)} ms, target at most {limit} ms")
    return targets


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    results = report.Results()
    measure(args, results)
    measure_edits(args, results)
    results.write_json(args.out / "reload.json")
    report.svg_bars(args.out / "reload.svg", "Longest gap between answers around a reload, ms, medians and ranges",
                    results, "gap_p50_ms", "virtbay")
    columns = {"gap_p50_ms": "gap p50, ms", "gap_p99_ms": "gap p99, ms", "pause_p50_ms": "pause, ms"}
    columns |= {f"{p}_p50_ms": f"{p}, ms" for p in PHASES if p != "pause"}
    rows = [[name] + [report.number(results.median(name, "virtbay", c)) for c in columns]
            for name, _, _ in cases_of(args, "")]
    print(report.table(["inodes or flows, depth", *columns.values()], rows))
    print("gap: the longest time without an answer around a reload, to a driver that never stops asking.\n")
    print(f"A device of `virtbay plugin new` under --watch: {report.number(results.median(EDITS, 'virtbay', 'build_s'))} s from"
          f" the saved source to the end of the build, {report.number(results.median(EDITS, 'virtbay', 'running_s'))} s to the"
          " first answer of the new code.\n")
    print(check_targets(args, results).text())
    print(f"\n{args.out / 'reload.json'}, {args.out / 'reload.svg'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
