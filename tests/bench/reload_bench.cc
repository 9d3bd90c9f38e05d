// reload_bench: reloads a virtiofs or a proxy-net device again and again under a driver in this
// process that never stops asking, and measures the longest gap between two answers around each
// reload: a JSON line with its percentiles and those of the reload's phases.
// scripts/bench.sh reload makes the plugin's copies and runs this.
#include <CLI/CLI.hpp>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "framework/base/status.h"
#include "tests/bench/reload_load.h"
#include "tests/bench/samples.h"
#include "virtbay/host.h"

namespace virtbay::bench {
namespace {

using nlohmann::json;

struct Options {
  std::vector<std::string> builds;
  std::string share;
  uint32_t inodes = 10;
  uint32_t flows = 0;
  uint32_t depth = 1;
  uint32_t reloads = 100;
};

// Until so many answers have come.
absl::Status Await(ReloadLoad* load, uint64_t answers) {
  while (load->answers() < answers) {
    if (load->ended()) return load->Stop();
    std::this_thread::yield();
  }
  return absl::OkStatus();
}

absl::Status Run(const Options& options) {
  VIRTBAY_ASSIGN_OR_RETURN(std::unique_ptr<Host> host, Host::Create({}));
  VIRTBAY_ASSIGN_OR_RETURN(
      const std::unique_ptr<ReloadLoad> load,
      options.flows != 0
          ? MakeNetLoad(host.get(), options.builds.front(), options.flows, options.depth)
          : MakeFsLoad(host.get(), options.builds.front(), options.share, options.inodes,
                       options.depth));

  Samples gaps(options.reloads);
  std::map<std::string, Samples> phases;
  for (const char* phase :
       {"stage", "quiesce", "save", "restore", "commit", "trial", "retire", "pause"}) {
    phases.try_emplace(phase, options.reloads);
  }
  uint64_t state_bytes = 0;
  load->Start();
  for (uint32_t i = 0; i < options.reloads; ++i) {
    ReloadOptions reload;
    reload.from = options.builds[(i + 1) % options.builds.size()];
    VIRTBAY_RETURN_IF_ERROR(Await(load.get(), load->answers() + 2 * options.depth));
    load->TakeGapNs();
    VIRTBAY_ASSIGN_OR_RETURN(const ReloadReport report, host->Reload(kReloaded, reload));
    VIRTBAY_RETURN_IF_ERROR(Await(load.get(), load->answers() + 2 * options.depth));
    gaps.Add(load->TakeGapNs());
    state_bytes = report.state_bytes;
    for (const auto& [name, duration] : {std::pair{"stage", report.stage},
                                         {"quiesce", report.quiesce},
                                         {"save", report.save},
                                         {"restore", report.restore},
                                         {"commit", report.commit},
                                         {"trial", report.trial},
                                         {"retire", report.retire},
                                         {"pause", report.pause}}) {
      phases.at(name).Add(static_cast<uint64_t>(absl::ToInt64Nanoseconds(duration)));
    }
  }
  VIRTBAY_RETURN_IF_ERROR(load->Stop());
  json line{{"inodes", options.inodes},
            {"flows", options.flows},
            {"depth", options.depth},
            {"reloads", options.reloads},
            {"state_bytes", state_bytes},
            {"gap_p50_ms", gaps.QuantileUs(0.5) / 1000},
            {"gap_p99_ms", gaps.QuantileUs(0.99) / 1000}};
  for (auto& [name, samples] : phases) line[name + "_p50_ms"] = samples.QuantileUs(0.5) / 1000;
  std::cout << line.dump() << std::endl;
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Benchmark of hot reload");
  app.add_option("--build", options.builds, "files of the plugin, reloaded in turn")->required();
  app.add_option("--share", options.share, "virtiofs: directory with files f0, f1 ...");
  app.add_option("--inodes", options.inodes, "of them to be known");
  app.add_option("--flows", options.flows, "proxy-net: TCP connections through it");
  app.add_option("--depth", options.depth, "requests under way")->check(CLI::Range(1, 32));
  app.add_option("--reloads", options.reloads, "how many")->check(CLI::Range(1, 100000));
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = Run(options);
  if (status.ok()) return 0;
  std::cerr << "reload_bench: " << status.message() << "\n";
  return 1;
}

}  // namespace
}  // namespace virtbay::bench

int main(int argc, char** argv) { return virtbay::bench::Main(argc, argv); }
