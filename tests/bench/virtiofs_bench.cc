// virtiofs_bench: drives one vhost-user-fs back-end, or plain system calls, through the file system
// workloads and prints a JSON line per measurement. scripts/bench.sh virtiofs runs it for every
// subject and compares.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "framework/base/status.h"
#include "hostif/guest/fuse_session.h"
#include "hostif/guest/vhost_user_transport.h"
#include "tests/bench/fs_data.h"
#include "tests/bench/fs_native.h"
#include "tests/bench/fs_workload.h"
#include "tests/bench/process_cpu.h"

namespace virtbay::bench {
namespace {

struct Options {
  std::string socket;
  std::string dir;
  std::string wait = "both";
  std::vector<std::string> workloads;
  double seconds = 1;
  double warmup = 0.1;
  uint64_t salt = 1;
  int backend_pid = 0;
  bool native = false;
  bool prepare = false;
  bool list = false;
  bool probe = false;
};

bool Chosen(const Options& options, const FsCase& fs_case) {
  if (options.workloads.empty()) return true;
  return std::any_of(options.workloads.begin(), options.workloads.end(),
                     [&](const std::string& name) { return name == fs_case.name; });
}

void Print(const FsCase& fs_case, const char* wait, const FsMeasurement& m) {
  const nlohmann::json line = {{"workload", fs_case.name},
                               {"wait", wait},
                               {"unit", fs_case.unit},
                               {"operations", m.operations},
                               {"seconds", m.seconds},
                               {"throughput", m.units_per_second},
                               {"p50", m.p50_us},
                               {"p99", m.p99_us},
                               {"cpu_per_op", m.cpu_us_per_op},
                               {"kicks_per_op", m.kicks_per_op},
                               {"calls_per_op", m.calls_per_op}};
  std::cout << line.dump() << std::endl;
}

// Without a queue there is no depth: a workload is run once for all of its depths, except O_DIRECT
// reads, where it is the number of threads.
absl::Status RunNative(const Options& options) {
  std::map<FsKind, FsMeasurement> known;
  for (const FsCase& fs_case : kFsCases) {
    if (!Chosen(options, fs_case)) continue;
    auto found = known.find(fs_case.kind);
    if (found == known.end() || fs_case.kind == FsKind::kRandomReadDirect) {
      VIRTBAY_ASSIGN_OR_RETURN(
          const FsMeasurement result,
          RunNativeCase(options.dir, fs_case, options.seconds, options.warmup));
      found = known.insert_or_assign(fs_case.kind, result).first;
    }
    Print(fs_case, "native", found->second);
  }
  return absl::OkStatus();
}

absl::Status RunSocket(const Options& options) {
  VIRTBAY_ASSIGN_OR_RETURN(auto transport, guest::VhostUserTransport::Connect(options.socket));
  // The same for every subject: one request queue of 1024, a kernel's INIT flags.
  VIRTBAY_ASSIGN_OR_RETURN(auto session, guest::FuseSession::Create(std::move(transport), {}));
  VIRTBAY_RETURN_IF_ERROR(VerifyFsData(*session));
  if (options.probe) return absl::OkStatus();
  FsRunOptions run;
  run.seconds = options.seconds;
  run.warmup_seconds = options.warmup;
  if (options.backend_pid > 0) run.backend = ProcessTree(options.backend_pid);
  run.salt = options.salt;
  for (const FsCase& fs_case : kFsCases) {
    if (!Chosen(options, fs_case)) continue;
    for (const bool poll : {false, true}) {
      if (options.wait == (poll ? "sleep" : "poll")) continue;
      run.wait = poll ? guest::WaitMode::kPoll : guest::WaitMode::kSleep;
      ++run.salt;
      VIRTBAY_ASSIGN_OR_RETURN(const FsMeasurement result, RunFsCase(*session, fs_case, run));
      Print(fs_case, poll ? "poll" : "sleep", result);
    }
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Benchmark of a virtiofs back-end");
  app.add_option("--socket", options.socket, "vhost-user socket of the back-end");
  app.add_option("--dir", options.dir, "the shared directory, as seen here");
  app.add_option("--wait", options.wait, "how the front-end waits: sleep, poll or both")
      ->check(CLI::IsMember({"sleep", "poll", "both"}));
  app.add_option("--workload", options.workloads, "only these workloads")->delimiter(',');
  app.add_option("--seconds", options.seconds, "length of one measurement")
      ->check(CLI::PositiveNumber);
  app.add_option("--warmup", options.warmup, "seconds before each measurement")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--salt", options.salt, "number of this run, for the contents it writes");
  app.add_option("--backend-pid", options.backend_pid, "process whose CPU time is reported");
  app.add_flag("--native", options.native, "plain system calls in --dir");
  app.add_flag("--prepare", options.prepare, "make the test files in --dir and end");
  app.add_flag("--list", options.list, "list the workloads and end");
  app.add_flag("--probe", options.probe, "connect, check the data and end");
  CLI11_PARSE(app, argc, argv);

  absl::Status status;
  if (options.list) {
    for (const FsCase& fs_case : kFsCases) std::cout << fs_case.name << "\n";
    return 0;
  }
  if (options.prepare) {
    status = PrepareFsData(options.dir);
    if (status.ok()) status = SettleFsData(options.dir);
  } else if (options.native) {
    status = RunNative(options);
  } else {
    status = RunSocket(options);
  }
  if (status.ok()) return 0;
  std::cerr << "virtiofs_bench: " << status.message() << "\n";
  return 1;
}

}  // namespace
}  // namespace virtbay::bench

int main(int argc, char** argv) { return virtbay::bench::Main(argc, argv); }
