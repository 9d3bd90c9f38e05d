// reload_bench: reloads a virtiofs device again and again under a driver in this process that never
// stops asking, and measures the longest gap between two answers around each reload: a JSON line
// with its percentiles and those of the reload's phases.
// scripts/bench.sh reload makes the plugin's copies and runs this.
#include <linux/fuse.h>

#include <CLI/CLI.hpp>
#include <array>
#include <atomic>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "framework/base/clock.h"
#include "framework/base/status.h"
#include "hostif/guest/fuse_session.h"
#include "hostif/guest/in_process_transport.h"
#include "tests/bench/samples.h"
#include "virtbay/host.h"

namespace virtbay::bench {
namespace {

using nlohmann::json;

struct Options {
  std::vector<std::string> builds;
  std::string share;
  uint32_t inodes = 10;
  uint32_t depth = 1;
  uint32_t reloads = 100;
};

// Asks for attributes, `depth` at a time, and keeps the longest time without an answer.
class Load {
 public:
  Load(guest::FuseSession* session, uint32_t depth)
      : queue_(session->queue()), depth_(depth), thread_([this] { Main(); }) {}
  ~Load() {
    stop_ = true;
    thread_.join();
  }

  // The longest gap since the last call, or the beginning.
  uint64_t TakeGapNs() { return longest_.exchange(0); }
  uint64_t answers() const { return answers_.load(); }
  // What went wrong, once it has ended by itself.
  absl::Status Stop() {
    stop_ = true;
    while (!ended_) std::this_thread::yield();
    return status_;
  }

 private:
  void Main() {
    status_ = Run();
    ended_ = true;
  }
  absl::Status Run() {
    std::array<guest::FuseSlot*, 64> done;
    uint64_t last = MonotonicNs();
    for (uint32_t i = 0; i < depth_; ++i) {
      guest::FuseSlot* slot = queue_.Acquire();
      if (slot == nullptr) return absl::ResourceExhaustedError("not enough slots");
      VIRTBAY_RETURN_IF_ERROR(Ask(slot));
    }
    queue_.Flush();
    while (queue_.in_flight() > 0) {
      const size_t n = queue_.Reap(done);
      if (n == 0) {
        VIRTBAY_RETURN_IF_ERROR(queue_.Wait());
        continue;
      }
      const uint64_t now = MonotonicNs();
      const uint64_t gap = now - std::exchange(last, now);
      if (gap > longest_.load(std::memory_order_relaxed)) longest_ = gap;
      answers_ += n;
      for (size_t i = 0; i < n; ++i) {
        if (done[i]->error() != 0) {
          return absl::InternalError(absl::StrCat("GETATTR: error ", done[i]->error()));
        }
        if (!stop_) VIRTBAY_RETURN_IF_ERROR(Ask(done[i]));
      }
      queue_.Flush();
    }
    return absl::OkStatus();
  }
  absl::Status Ask(guest::FuseSlot* slot) {
    slot->Begin(FUSE_GETATTR, FUSE_ROOT_ID).Put(fuse_getattr_in{}).Expect(sizeof(fuse_attr_out));
    return queue_.Submit(slot);
  }

  guest::FuseQueue& queue_;
  const uint32_t depth_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> ended_{false};
  std::atomic<uint64_t> longest_{0};
  std::atomic<uint64_t> answers_{0};
  absl::Status status_;
  std::thread thread_;
};

absl::Status LookUpAll(guest::FuseSession* session, uint32_t count) {
  guest::FuseQueue& queue = session->queue();
  guest::FuseSlot* slot = queue.Acquire();
  for (uint32_t i = 0; i < count; ++i) {
    slot->Begin(FUSE_LOOKUP, FUSE_ROOT_ID)
        .PutName(absl::StrCat("f", i))
        .Expect(sizeof(fuse_entry_out));
    VIRTBAY_RETURN_IF_ERROR(queue.Call(slot));
    if (slot->error() != 0) return absl::InternalError(absl::StrCat("LOOKUP: ", slot->error()));
  }
  queue.Release(slot);
  return absl::OkStatus();
}

absl::Status Run(const Options& options) {
  VIRTBAY_ASSIGN_OR_RETURN(std::unique_ptr<Host> host, Host::Create({}));
  DeviceSpec spec;
  spec.name = "fs";
  spec.plugin = options.builds.front();
  spec.options = {{"shared-dir", options.share}, {"tag", "bench"}};
  VIRTBAY_ASSIGN_OR_RETURN(const DeviceHandle device, host->Add(spec));
  VIRTBAY_ASSIGN_OR_RETURN(auto transport, guest::InProcessTransport::Attach(device));
  guest::FuseSessionOptions session_options;
  VIRTBAY_ASSIGN_OR_RETURN(
      auto session,
      guest::FuseSession::Create(std::unique_ptr<guest::Transport>(std::move(transport)),
                                 std::move(session_options)));
  VIRTBAY_RETURN_IF_ERROR(LookUpAll(session.get(), options.inodes));

  Samples gaps(options.reloads);
  std::map<std::string, Samples> phases;
  for (const char* phase :
       {"stage", "quiesce", "save", "restore", "commit", "trial", "retire", "pause"}) {
    phases.try_emplace(phase, options.reloads);
  }
  uint64_t state_bytes = 0;
  {
    Load load(session.get(), options.depth);
    for (uint32_t i = 0; i < options.reloads; ++i) {
      ReloadOptions reload;
      reload.from = options.builds[(i + 1) % options.builds.size()];
      const uint64_t answered = load.answers();
      while (load.answers() < answered + 2 * options.depth) std::this_thread::yield();
      load.TakeGapNs();
      VIRTBAY_ASSIGN_OR_RETURN(const ReloadReport report, host->Reload("fs", reload));
      const uint64_t then = load.answers();
      while (load.answers() < then + 2 * options.depth) std::this_thread::yield();
      gaps.Add(load.TakeGapNs());
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
    VIRTBAY_RETURN_IF_ERROR(load.Stop());
  }
  json line{{"inodes", options.inodes},
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
  app.add_option("--share", options.share, "directory with files f0, f1 ...")->required();
  app.add_option("--inodes", options.inodes, "of them to be known");
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
