"""What the benchmark suites share: options, results over repetitions, tables, targets, JSON and SVG."""
import argparse
import html
import json
import math
import pathlib
import statistics
import sys


def parser(suite, description, seconds, seconds_help="length of one measurement",
           quick_help="one short repetition, as a smoke test"):
    """The options that every suite has, and the directories that bench.sh gives it."""
    options = argparse.ArgumentParser(prog=f"scripts/bench.sh {suite}", description=description)
    options.add_argument("--build", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    options.add_argument("--out", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    options.add_argument("--quick", action="store_true", help=quick_help)
    options.add_argument("--repetitions", type=int, default=5)
    options.add_argument("--seconds", type=float, default=seconds, help=seconds_help)
    return options


def choice(options, text, known, what):
    """The words of a list with commas that are known, in the order of `known`; wrong usage for others."""
    words = [word for word in text.split(",") if word]
    unknown = sorted(set(words) - set(known))
    if unknown:
        options.error(f"unknown {what} {', '.join(unknown)}")
    return [word for word in known if word in words]


class Progress:
    """One line that changes on a terminal, one line per step elsewhere."""

    def __init__(self, total):
        self.total = total
        self.done = 0
        self.live = sys.stderr.isatty()

    def show(self, text, step=False):
        if step:
            self.done += 1
        line = f"[{self.done}/{self.total}] {text}"
        if self.live:
            print("\r\033[K" + line[:110], end="", file=sys.stderr, flush=True)
        elif step:
            print(line, file=sys.stderr, flush=True)

    def end(self):
        if self.live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


class Results:
    """Values of every (workload, subject, metric) in the order they were measured."""

    def __init__(self):
        self.runs = {}
        self.meta = {}

    def add(self, workload, subject, metric, unit, higher_is_better, value):
        key = (workload, subject, metric)
        self.runs.setdefault(key, []).append(float(value))
        self.meta[key] = (unit, higher_is_better)

    def median(self, workload, subject, metric):
        """The median over the repetitions, or None where nothing was measured."""
        runs = self.runs.get((workload, subject, metric))
        return statistics.median(runs) if runs else None

    def range(self, workload, subject, metric):
        runs = self.runs.get((workload, subject, metric))
        return (min(runs), max(runs)) if runs else None

    def workloads(self):
        return list(dict.fromkeys(key[0] for key in self.runs))

    def unit(self, workload, metric):
        for key, (unit, _) in self.meta.items():
            if key[0] == workload and key[2] == metric:
                return unit
        return ""

    def write_json(self, path):
        rows = []
        for (workload, subject, metric), runs in self.runs.items():
            unit, higher = self.meta[(workload, subject, metric)]
            rows.append({
                "workload": workload,
                "subject": subject,
                "metric": metric,
                "unit": unit,
                "higher_is_better": higher,
                "median": statistics.median(runs),
                "runs": runs,
            })
        path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def number(value):
    """A figure as a person reads it: about three digits, thousands apart."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    if abs(value) >= 0.01:
        return f"{value:.2f}"
    return f"{value:.1g}"


def ratio(a, b):
    return a / b if a is not None and b else None


def times(value):
    return "-" if value is None else f"{value:.2f}x"


def table(header, rows):
    """Text columns: the first to the left, the others to the right."""
    widths = [max(len(str(row[i])) for row in [header] + rows) for i in range(len(header))]

    def line(row):
        cells = [str(row[0]).ljust(widths[0])]
        cells += [str(cell).rjust(width) for cell, width in zip(row[1:], widths[1:])]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(header), rule] + [line(row) for row in rows])


class Targets:
    """The list that closes a report."""

    def __init__(self):
        self.lines = []
        self.missed = 0

    def check(self, name, reached, text):
        """reached: True, False, or None when it could not be measured."""
        word = {True: "met", False: "MISSED", None: "not measured"}[reached]
        self.missed += reached is not True
        self.lines.append(f"{word:<12}  {name}: {text}")

    def text(self):
        count = len(self.lines)
        return "\n".join(["Targets"] + self.lines + [f"{count - self.missed} of {count} targets met"])


COLOURS = ["#1f6feb", "#d29922", "#8957e5", "#57606a", "#2da44e", "#cf222e", "#1b7c83", "#bf3989"]
LEGEND_COLUMNS = 4


def svg_legend(i, name):
    """The i-th name with its colour, in rows of a few."""
    x, y = 16 + 190 * (i % LEGEND_COLUMNS), 43 + 18 * (i // LEGEND_COLUMNS)
    return [f'<circle cx="{x + 5}" cy="{y}" r="5" fill="{COLOURS[i % len(COLOURS)]}"/>',
            f'<text x="{x + 16}" y="{y + 4}">{html.escape(name)}</text>']


def svg_ratios(path, title, results, metric, subjects, base):
    """A row per workload, a mark per subject at its ratio to `base`; the bar spans its runs."""
    rows = [w for w in results.workloads() if results.median(w, base, metric)]
    left, step, width = 260, 22, 620
    top = 70 + 18 * ((len(subjects) - 1) // LEGEND_COLUMNS)
    ratios = []
    for workload in rows:
        reference = results.median(workload, base, metric)
        for subject in subjects:
            span = results.range(workload, subject, metric)
            ratios += [value / reference for value in span or () if value > 0]
    low = math.floor(min([math.log2(r) for r in ratios] + [-1]))
    high = math.ceil(max([math.log2(r) for r in ratios] + [1]))

    def x(value):
        at = (math.log2(max(value, 2.0**low)) - low) / (high - low)
        return left + at * width

    height = top + step * len(rows) + 40
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 40}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="16" y="24" font-size="16">{html.escape(title)}</text>',
    ]
    for i, subject in enumerate(subjects):
        out += svg_legend(i, subject)
    bottom = top + step * len(rows)
    for power in range(low, high + 1):
        at = x(2.0**power)
        colour = "#57606a" if power == 0 else "#d8dee4"
        label = f"{2 ** power}x" if power >= 0 else f"1/{2 ** -power}"
        out.append(f'<line x1="{at:.1f}" y1="{top - 6}" x2="{at:.1f}" y2="{bottom}" stroke="{colour}"/>')
        out.append(f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>')
    for n, workload in enumerate(rows):
        y = top + step * n + step / 2
        reference = results.median(workload, base, metric)
        out.append(f'<text x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{html.escape(workload)}</text>')
        for i, subject in enumerate(subjects):
            span = results.range(workload, subject, metric)
            if not span or span[1] <= 0:
                continue
            colour = COLOURS[i % len(COLOURS)]
            middle = x(results.median(workload, subject, metric) / reference)
            out.append(
                f'<line x1="{x(span[0] / reference):.1f}" y1="{y:.1f}" x2="{x(span[1] / reference):.1f}" '
                f'y2="{y:.1f}" stroke="{colour}" stroke-width="3" stroke-opacity="0.35"/>')
            out.append(f'<circle cx="{middle:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>')
    out.append("</svg>")
    path.write_text("\n".join(out) + "\n")


def svg_bars(path, title, results, metric, subject):
    """A bar per workload with its figure, for a suite with one subject."""
    rows = [w for w in results.workloads() if results.median(w, subject, metric)]
    left, top, step, width = 200, 50, 24, 560
    most = max(results.range(w, subject, metric)[1] for w in rows)
    height = top + step * len(rows) + 20
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 120}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="16" y="24" font-size="16">{html.escape(title)}</text>',
    ]
    for n, workload in enumerate(rows):
        y = top + step * n
        value = results.median(workload, subject, metric)
        low, high = results.range(workload, subject, metric)
        middle = y + (step - 6) / 2
        out.append(f'<text x="{left - 10}" y="{middle + 4:.1f}" text-anchor="end">{html.escape(workload)}</text>')
        out.append(f'<rect x="{left}" y="{y}" width="{width * value / most:.1f}" height="{step - 6}" fill="#1f6feb"/>')
        out.append(
            f'<line x1="{left + width * low / most:.1f}" y1="{middle:.1f}" x2="{left + width * high / most:.1f}" '
            f'y2="{middle:.1f}" stroke="#24292f" stroke-width="2"/>')
        out.append(f'<text x="{left + width * high / most + 8:.1f}" y="{middle + 4:.1f}">{number(value)}</text>')
    out.append("</svg>")
    path.write_text("\n".join(out) + "\n")


def svg_quantiles(path, title, curves):
    """Latency by quantile. curves: name -> [(quantile, microseconds)]; the axis spreads the slow ones: each step
    of 0.9, 0.99, 0.999 is as wide as the others."""
    left, top, width, height = 80, 70, 620, 340
    values = [us for points in curves.values() for _, us in points if us > 0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    widest = max(-math.log10(1 - q) for points in curves.values() for q, _ in points)

    def x(quantile):
        return left + width * -math.log10(1 - quantile) / widest

    def y(us):
        return top + height * (high - math.log10(us)) / (high - low)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 40}" height="{top + height + 50}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="16" y="24" font-size="16">{html.escape(title)}</text>',
    ]
    for power in range(low, high + 1):
        at = y(10.0**power)
        label = f"{10 ** power:,} us" if power >= 0 else f"{10.0 ** power:g} us"
        out.append(f'<line x1="{left}" y1="{at:.1f}" x2="{left + width}" y2="{at:.1f}" stroke="#d8dee4"/>')
        out.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
    for quantile in (0, 0.5, 0.9, 0.99, 0.999, 0.9999):
        if -math.log10(1 - quantile) > widest + 1e-9:
            continue
        at = x(quantile)
        out.append(f'<line x1="{at:.1f}" y1="{top}" x2="{at:.1f}" y2="{top + height}" stroke="#d8dee4"/>')
        out.append(f'<text x="{at:.1f}" y="{top + height + 18}" text-anchor="middle">{quantile * 100:g}%</text>')
    for i, (name, points) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        line = " ".join(f"{x(q):.1f},{y(us):.1f}" for q, us in points if us > 0)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += svg_legend(i, name)
    out.append("</svg>")
    path.write_text("\n".join(out) + "\n")
