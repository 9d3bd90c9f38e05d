#!/usr/bin/env python3
"""Checks the include rule of docs/architecture.md over the source tree.

check_includes.py ROOT prints every include that breaks the rule and exits 1 if there is one;
check_includes.py --self-test proves that each clause of the rule is looked at.
"""
import pathlib
import re
import sys

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)

# framework: device -> plugin, virtq, io, isolation -> memory -> base. The public headers
# (framework/include) stand beside device: they show an embedder base and memory only.
FRAMEWORK_MAY_USE = {
    "base": set(),
    "memory": {"base"},
    "plugin": {"base", "memory"},
    "virtq": {"base", "memory"},
    "io": {"base", "memory"},
    "isolation": {"base", "memory"},
    "device": {"base", "memory", "plugin", "virtq", "io", "isolation", "include"},
    "include": {"base", "memory"},
}

# Who may include what is not ours, by the include's beginning.
THIRD_PARTY = {
    "boost/": ("framework/plugin/",),
    "liburing": ("framework/io/",),
    "spdlog/": ("framework/base/log.",),
    "fmt/": (),
    "absl/": ("framework/", "hostif/", "plugins/"),
    "CLI/": ("hostif/",),
    "toml++/": ("hostif/",),
    "nlohmann/": ("hostif/",),
    "cap-ng.h": ("hostif/",),
    "seccomp.h": ("hostif/",),
}

# What a plugin may not take from Abseil: it would outlive the image, or is not for the ABI.
PLUGIN_BANNED = ("absl/flags/", "absl/log/")


def folder_of(path, include):
    """The folder of the tree that an include names, or None when it is not of this project."""
    if include.startswith(("virtbay/sdk/", "virtbay/testkit/")):
        return "sdk"
    if include.startswith("virtbay/"):
        return "framework/include"
    parts = include.split("/")
    if parts[0] in ("framework", "hostif", "plugins", "tests", "sdk") and len(parts) > 1:
        return "/".join(parts[:2])
    return None


def problem(path, quote, include):
    """Why the file at `path` (relative to the root) may not have this include; None if it may."""
    for start, allowed in THIRD_PARTY.items():
        if include.startswith(start) and not path.startswith(allowed or ("-",)):
            return f"{start} is for {', '.join(allowed) or 'nobody'} only"
    parts = path.split("/")
    top = parts[0]
    target = folder_of(path, include)

    if top == "sdk":
        if target == "sdk/net" and path.startswith("sdk/net/"):
            return None
        if target not in (None, "sdk"):
            return "the sdk depends on the C and C++ standard libraries only"
        if target is None and quote == '"':
            # An example is copied out of the tree with the headers beside it.
            if path.startswith("sdk/examples/") and "/" not in include:
                return None
            return "the sdk includes by virtbay/sdk/..."
        return None
    if target is None:
        if quote == '"' and not include.startswith(tuple(THIRD_PARTY)):
            return "includes are written from the project root"
        return None
    if target.startswith("tests"):
        return "the tests use the project, not the reverse"
    if top == "plugins":
        if include.startswith(PLUGIN_BANNED):
            return "not in a plugin"
        if target not in ("sdk", "/".join(parts[:2])):
            return "a plugin uses the sdk only, never framework, hostif or another plugin"
        return None
    if top == "hostif":
        if target.startswith("plugins"):
            return "hostif uses framework and sdk"
        return None
    # framework
    own = parts[1]
    if target == "sdk":
        return None
    if not target.startswith("framework/"):
        return "the framework uses nothing of hostif or plugins"
    other = target.split("/")[1]
    if other != own and other not in FRAMEWORK_MAY_USE.get(own, set()):
        return f"framework/{own} may not use framework/{other}"
    return None


def check(root):
    problems = []
    files = 0
    for top in ("sdk", "framework", "hostif", "plugins"):
        for file in sorted((root / top).rglob("*")):
            if file.suffix not in (".h", ".cc", ".c"):
                continue
            files += 1
            path = file.relative_to(root).as_posix()
            for quote, include in INCLUDE.findall(file.read_text(encoding="utf-8")):
                why = problem(path, quote, include)
                if why:
                    problems.append(f"{path}: #include {include}: {why}")
                target = folder_of(path, include)
                if target is None:
                    continue
                places = {"sdk": ("sdk/include", "sdk/testkit/include"),
                          "framework/include": ("framework/include",)}
                if not any((root / place / include).is_file() for place in places.get(target, ("",))):
                    problems.append(f"{path}: #include {include}: no such file")
    return files, problems


def self_test():
    bad = [
        ("plugins/virtiofs/a.cc", '"', "framework/base/log.h"),
        ("plugins/virtiofs/a.cc", '"', "plugins/virtio-net/b.h"),
        ("plugins/virtiofs/a.cc", '"', "virtbay/host.h"),
        ("plugins/virtiofs/a.cc", '"', "hostif/guest/driver.h"),
        ("plugins/virtiofs/a.cc", "<", "liburing.h"),
        ("plugins/virtiofs/a.cc", "<", "spdlog/spdlog.h"),
        ("sdk/include/virtbay/sdk/device.h", '"', "absl/status/status.h"),
        ("sdk/include/virtbay/sdk/device.h", '"', "framework/base/log.h"),
        ("sdk/include/virtbay/sdk/device.h", '"', "host.h"),
        ("sdk/examples/blk/blk.cc", '"', "framework/base/log.h"),
        ("sdk/testkit/include/virtbay/testkit/bay.h", '"', "hostif/guest/driver.h"),
        ("sdk/examples/blk/blk.cc", '"', "../9p/wire.h"),
        ("sdk/include/virtbay/sdk/net_device.h", '"', "sdk/net/net_state.h"),
        ("sdk/net/net_rx.cc", '"', "framework/base/log.h"),
        ("plugins/virtio-net/tap.cc", '"', "sdk/net/net_state.h"),
        ("framework/base/status.cc", "<", "spdlog/spdlog.h"),
        ("framework/base/status.cc", '"', "framework/memory/arena.h"),
        ("framework/memory/arena.cc", '"', "framework/isolation/sigbus_guard.h"),
        ("framework/virtq/ring.cc", '"', "framework/io/loop.h"),
        ("framework/io/loop.cc", '"', "framework/virtq/ring.h"),
        ("framework/io/loop.cc", '"', "framework/device/device.h"),
        ("framework/device/device.cc", '"', "hostif/vhost_user/server.h"),
        ("framework/device/device.cc", "<", "boost/dll.hpp"),
        ("framework/device/device.cc", "<", "liburing.h"),
        ("framework/device/device.cc", '"', "device.h"),
        ("framework/include/virtbay/host.h", '"', "framework/device/device.h"),
        ("hostif/guest/driver.cc", '"', "plugins/virtiofs/ops.h"),
        ("hostif/guest/driver.cc", "<", "liburing.h"),
        ("hostif/guest/driver.cc", '"', "tests/support/temp_dir.h"),
    ]
    good = [
        ("plugins/virtiofs/a.cc", '"', "plugins/virtiofs/b.h"),
        ("plugins/virtiofs/a.cc", '"', "virtbay/sdk/plugin.h"),
        ("plugins/virtiofs/a.cc", '"', "absl/container/flat_hash_map.h"),
        ("plugins/virtiofs/a.cc", "<", "linux/fuse.h"),
        ("sdk/include/virtbay/sdk/device.h", "<", "memory"),
        ("sdk/net/net_rx.cc", '"', "sdk/net/net_state.h"),
        ("sdk/net/net_rx.cc", '"', "virtbay/sdk/net_device.h"),
        ("sdk/examples/9p/p9.cc", '"', "wire.h"),
        ("hostif/testkit/bay.cc", '"', "virtbay/testkit/bay.h"),
        ("sdk/testkit/include/virtbay/testkit/bay.h", '"', "virtbay/sdk/result.h"),
        ("framework/base/log.cc", "<", "spdlog/logger.h"),
        ("framework/plugin/library.cc", "<", "boost/dll/shared_library.hpp"),
        ("framework/io/loop.h", "<", "liburing.h"),
        ("framework/device/device.cc", '"', "framework/virtq/ring.h"),
        ("framework/device/host.cc", '"', "virtbay/host.h"),
        ("hostif/device_host/main.cc", '"', "hostif/vhost_user/server.h"),
        ("hostif/device_host/main.cc", '"', "virtbay/host.h"),
    ]
    failures = [f"not refused: {c}" for c in bad if not problem(*c)]
    failures += [f"refused: {c}: {problem(*c)}" for c in good if problem(*c)]
    return failures


def main():
    if len(sys.argv) != 2:
        print("usage: check_includes.py ROOT | --self-test", file=sys.stderr)
        return 2
    if sys.argv[1] == "--self-test":
        problems = self_test()
    else:
        files, problems = check(pathlib.Path(sys.argv[1]))
        if files == 0:
            problems.append("no source files found")
    for line in problems:
        print(line)
    return 1 if problems else 0


sys.exit(main())
