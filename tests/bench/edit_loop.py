"""The loop of somebody who works on a plugin: from the saved source to the first answer of the new code."""
import pathlib
import select
import subprocess
import sys
import time

PATIENCE_S = 120


class EditLoop:
    """A project of `virtbay plugin new`, built against an installation, and a service that watches its plugin."""

    def __init__(self, build, directory):
        self.directory = pathlib.Path(directory)
        self.processes = []
        prefix, project = self.directory / "prefix", self.directory / "demo"
        self.run("cmake", "--install", build, "--prefix", prefix)
        virtbay = prefix / "bin" / "virtbay"
        self.run(virtbay, "plugin", "new", "demo", "--dir", project)
        self.build = project / "build"
        self.run("cmake", "-S", project, "-B", self.build, "-G", "Ninja", "-DBUILD_TESTING=OFF",
                 f"-DCMAKE_PREFIX_PATH={prefix}")
        self.run("cmake", "--build", self.build)
        self.source = project / "demo.cc"
        self.text = self.source.read_text()
        self.line = "static_cast<std::byte>(text_[position_])"
        if self.line not in self.text:
            sys.exit("edit loop: the template has another line now")
        socket = self.directory / "demo.sock"
        config = self.directory / "virtbay.toml"
        config.write_text(f'[host]\n[[device]]\nname = "demo"\nplugin = "{self.build}/plugins/demo.so"\n'
                          f'socket = "{socket}"\n[device.options]\ntext = "d"\n')
        self.start(virtbay, "run", config, "--watch", stdin=subprocess.DEVNULL)
        end = time.monotonic() + PATIENCE_S
        while not socket.exists() and time.monotonic() < end:
            time.sleep(0.01)
        self.watch = self.start(build / "bin" / "answer_watch", socket, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.answer(ord("d"))

    def run(self, *command):
        done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            self.close()
            sys.exit(f"edit loop: {' '.join(str(word) for word in command)}\n{done.stdout[-2000:]}")

    def start(self, *command, **streams):
        process = subprocess.Popen([str(word) for word in command], stderr=subprocess.DEVNULL, text=True, **streams)
        self.processes.append(process)
        return process

    def answer(self, byte):
        """When the device first answered with that byte, in seconds of time.monotonic()."""
        if not select.select([self.watch.stdout], [], [], PATIENCE_S)[0]:
            self.close()
            sys.exit("edit loop: the new code does not answer")
        at, got = self.watch.stdout.readline().split()
        if int(got) != byte:
            self.close()
            sys.exit(f"edit loop: {got} for an answer, not {byte}")
        return int(at) / 1e9

    def edit(self, number):
        """Seconds from the saved source to the end of the build, and to the first answer."""
        byte = ord("A") + number % 20
        text = self.text.replace(self.line, f"std::byte{{{byte}}}")
        saved = time.monotonic()
        self.source.write_text(text)
        self.run("cmake", "--build", self.build)
        built = time.monotonic()
        return built - saved, self.answer(byte) - saved

    def close(self):
        for process in reversed(self.processes):
            process.terminate()
            process.wait()
