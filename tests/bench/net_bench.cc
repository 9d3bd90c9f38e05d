// net_bench: the parts of the network benchmark, a subcommand each: the server on the host's side,
// the workloads and idle connections in the guest's namespace, and what stands for a guest's
// driver. Prints a JSON line per measurement. scripts/bench.sh net makes the namespaces and runs
// these.
#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <iostream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "tests/bench/net_bridge.h"
#include "tests/bench/net_server.h"
#include "tests/bench/net_workload.h"

namespace virtbay::bench {
namespace {

absl::Status EnterNamespace(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid() || ::setns(fd.get(), CLONE_NEWNET) != 0) return ErrnoStatus(errno, path);
  return absl::OkStatus();
}

// The command gets an interface of another namespace as descriptor 3, and runs in this one.
absl::Status RunWithTap(const std::string& name, const std::string& netns,
                        const std::vector<std::string>& command) {
  const UniqueFd here(::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
  if (!here.valid()) return ErrnoStatus(errno, "/proc/self/ns/net");
  VIRTBAY_RETURN_IF_ERROR(EnterNamespace(netns));
  VIRTBAY_ASSIGN_OR_RETURN(const UniqueFd tap, MakeTap(name, false));
  if (::setns(here.get(), CLONE_NEWNET) != 0) return ErrnoStatus(errno, "returning");
  if (tap.get() == 3 ? ::fcntl(3, F_SETFD, 0) != 0 : ::dup2(tap.get(), 3) != 3) {
    return ErrnoStatus(errno, "descriptor 3");
  }
  std::vector<char*> words;
  for (const std::string& word : command) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  ::execvp(words[0], words.data());
  return ErrnoStatus(errno, command[0]);
}

absl::Status RunWorkloads(const std::vector<std::string>& names, const NetCase& net) {
  for (const std::string& name : names) {
    // One that does not work is not the end of the others.
    const absl::StatusOr<nlohmann::json> line = RunNetWorkload(name, net);
    if (line.ok()) {
      std::cout << line->dump() << std::endl;
    } else {
      std::cerr << name << ": " << line.status().message() << std::endl;
    }
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  CLI::App app("Network benchmark: its server, its workloads, its guest");
  app.require_subcommand(1);
  NetCase net;
  net.server = {.host = "127.0.0.1", .port = 5400};
  std::string tap = "tap0", stream, netns;
  RingBridgeOptions rings;
  std::vector<std::string> workloads, command;
  uint32_t idle = 10'000;
  double patience = 10;
  absl::Status status;

  const auto common = [&](CLI::App* sub) {
    sub->add_option("--address", net.server.host, "IPv4 address of the server");
    sub->add_option("--port", net.server.port, "its first port");
    sub->add_option("--counters", net.counters, "file with what the server has received")
        ->required();
  };
  CLI::App* serve = app.add_subcommand("serve", "The server: takes, gives and echoes, for good");
  common(serve);
  serve->callback([&] { status = ServeNet(net.server, net.counters); });

  CLI::App* run = app.add_subcommand("run", "Workloads against the server");
  common(run);
  run->add_option("--workload", workloads, "names, separated by commas")
      ->delimiter(',')
      ->check(CLI::IsMember(NetWorkloads()))
      ->required();
  run->add_option("--seconds", net.seconds, "length of a measurement")->check(CLI::PositiveNumber);
  run->add_option("--warmup", net.warmup, "seconds before each")->check(CLI::NonNegativeNumber);
  run->add_option("--backend-pid", net.backend, "whose CPU time is measured");
  run->callback([&] { status = RunWorkloads(workloads, net); });

  CLI::App* wait = app.add_subcommand("wait", "Waits until the server can be reached");
  common(wait);
  wait->add_option("--seconds", patience, "at most");
  wait->callback([&] { status = WaitForServer(net.server, patience); });

  CLI::App* hold = app.add_subcommand("idle", "Connections that stay until standard input ends");
  common(hold);
  hold->add_option("--count", idle, "how many");
  hold->callback([&] { status = HoldIdleFlows(net, idle); });

  CLI::App* bridge = app.add_subcommand("bridge", "A TAP interface to a back-end's socket");
  bridge->add_option("--tap", tap, "name of the interface, which is made");
  CLI::Option* vhost = bridge->add_option("--vhost-user", rings.socket, "socket of a device");
  bridge->add_option("--stream", stream, "or socket for frames with their length in front")
      ->excludes(vhost);
  bridge->add_option("--ring", rings.ring, "entries of a ring");
  bridge->add_option("--buffer", rings.buffer, "bytes of a receive buffer")
      ->check(CLI::Range(2048, 1 << 20));
  bridge->add_flag("--packed", rings.packed, "packed rings");
  bridge->callback([&] {
    if (rings.socket.empty() == stream.empty()) {
      throw CLI::RequiredError("one of --vhost-user and --stream");
    }
    const absl::StatusOr<UniqueFd> made = MakeTap(tap, stream.empty());
    status = !made.ok()       ? made.status()
             : stream.empty() ? BridgeRings(*made, rings)
                              : BridgeStream(*made, stream);
  });

  CLI::App* with_tap =
      app.add_subcommand("tap", "Runs a command with an interface as descriptor 3");
  with_tap->add_option("--tap", tap, "name of the interface, which is made");
  with_tap->add_option("--netns", netns, "in this namespace")->required();
  with_tap->add_option("command", command)->required();
  with_tap->callback([&] { status = RunWithTap(tap, netns, command); });

  CLI11_PARSE(app, argc, argv);
  if (status.ok()) return 0;
  std::cerr << "net_bench: " << status.message() << "\n";
  return 1;
}

}  // namespace
}  // namespace virtbay::bench

int main(int argc, char** argv) { return virtbay::bench::Main(argc, argv); }
