// isolation_bench: what neighbours cost a device: with private arenas, and with one shared arena
// that they hold all of. One measurement per run, printed as a JSON line; scripts/bench.sh
// isolation runs it for every case.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <array>
#include <cerrno>
#include <chrono>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "framework/base/clock.h"
#include "framework/base/status.h"
#include "framework/base/unique_fd.h"
#include "hostif/guest/fuse_session.h"
#include "hostif/guest/in_process_transport.h"
#include "tests/bench/bounce_driver.h"
#include "tests/bench/fs_data.h"
#include "tests/bench/samples.h"
#include "tests/bench/wakeful.h"
#include "virtbay/host.h"

namespace virtbay::bench {
namespace {

struct Options {
  std::string virtiofs;
  std::string bounce;
  std::string dir;
  std::string policy = "private";
  uint32_t devices = 0;  // 0: the victim and its neighbours
  uint32_t neighbours = 7;
  uint32_t payload = 256 * 1024;
  uint32_t depth = 64;
  uint32_t hold_us = 1000;
  uint64_t requests = 10000;
  uint64_t memory = 64u << 20;
  int nice = 19;
  uint32_t think_us = 500;
  uint32_t poll_window_us = 200;
  bool awake = false;
  double seconds = 3;
  double warmup = 0.3;
};

constexpr uint64_t kFileSize = uint64_t{64} << 20;
constexpr std::array<double, 17> kQuantiles = {
    0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999};

bool Shared(const Options& options) { return options.policy == "shared"; }

// All devices of a case have options.memory together, in equal parts or as one arena.
DeviceSpec Spec(const Options& options, const std::string& name, const std::string& plugin,
                uint32_t devices) {
  DeviceSpec spec;
  spec.name = name;
  spec.plugin = plugin;
  spec.arena_policy = Shared(options) ? ArenaPolicy::kShared : ArenaPolicy::kPrivate;
  spec.arena_size = options.memory / devices;
  return spec;
}

absl::StatusOr<std::unique_ptr<Host>> MakeHost(const Options& options) {
  HostOptions host;
  host.shared_arena_size = options.memory;
  return Host::Create(std::move(host));
}

absl::StatusOr<std::unique_ptr<BounceDriver>> AddBounce(Host& host, const Options& options,
                                                        uint32_t index, uint32_t devices,
                                                        const BounceLoad& load) {
  DeviceSpec spec = Spec(options, absl::StrCat("bounce", index), options.bounce, devices);
  spec.options["hold-us"] = absl::StrCat(options.hold_us);
  VIRTBAY_ASSIGN_OR_RETURN(DeviceHandle device, host.Add(spec));
  auto driver = std::make_unique<BounceDriver>(std::move(device), load);
  VIRTBAY_RETURN_IF_ERROR(driver->Start());
  return driver;
}

absl::Status PrepareFile(const std::string& dir) {
  const std::string path = dir + "/data";
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!fd) return ErrnoStatus(errno, path);
  std::vector<std::byte> chunk(kFsChunk);
  for (uint64_t at = 0; at < kFileSize; at += kFsChunk) {
    FsFill(chunk, at, 0);
    if (::write(fd.get(), chunk.data(), chunk.size()) != static_cast<ssize_t>(chunk.size())) {
      return ErrnoStatus(errno, path);
    }
  }
  return absl::OkStatus();
}

// Reads of 4 KiB at depth 1 at random places of a cached file.
class Victim {
 public:
  absl::Status Start(Host& host, const Options& options) {
    DeviceSpec spec = Spec(options, "victim", options.virtiofs, 1 + options.neighbours);
    spec.options["shared-dir"] = options.dir;
    spec.poll_window_max = absl::Microseconds(options.poll_window_us);
    VIRTBAY_ASSIGN_OR_RETURN(const DeviceHandle device, host.Add(spec));
    VIRTBAY_ASSIGN_OR_RETURN(auto transport, guest::InProcessTransport::Attach(device));
    guest::FuseSessionOptions session;
    session.queue.depth = 1;
    session.queue.max_data = kFsBlock;
    VIRTBAY_ASSIGN_OR_RETURN(session_,
                             guest::FuseSession::Create(std::move(transport), std::move(session)));
    const auto found = session_->client().Lookup(guest::kFuseRootId, "data");
    if (!found.ok()) return absl::InternalError(absl::StrCat("lookup: ", found.error));
    node_ = found.value.nodeid;
    const auto opened = session_->client().Open(node_, O_RDONLY);
    if (!opened.ok()) return absl::InternalError(absl::StrCat("open: ", opened.error));
    handle_ = opened.value.fh;
    return absl::OkStatus();
  }

  absl::Status Read(double seconds, uint32_t think_us) {
    const uint64_t start = MonotonicNs();
    const uint64_t end = start + static_cast<uint64_t>(seconds * 1e9);
    reads_ = 0;
    samples_.Clear();
    for (uint64_t before = start; before < end;) {
      random_ = random_ * 6364136223846793005u + 1442695040888963407u;
      const uint64_t offset = (random_ >> 33) % (kFileSize / kFsBlock) * kFsBlock;
      const auto read = session_->client().Read(node_, handle_, offset, kFsBlock);
      const uint64_t after = MonotonicNs();
      if (!read.ok() || read.value.size() != kFsBlock || !FsCheckEnds(read.value, offset, 0)) {
        return absl::DataLossError(absl::StrCat("read at ", offset, ": ", read.error));
      }
      samples_.Add(after - before);
      ++reads_;
      if (think_us != 0) std::this_thread::sleep_for(std::chrono::microseconds(think_us));
      before = MonotonicNs();
    }
    seconds_ = static_cast<double>(MonotonicNs() - start) / 1e9;
    return absl::OkStatus();
  }

  void Report(nlohmann::json* line) {
    (*line)["victim_reads_per_s"] = static_cast<double>(reads_) / seconds_;
    (*line)["victim_p50"] = samples_.QuantileUs(0.5);
    (*line)["victim_p99"] = samples_.QuantileUs(0.99);
    (*line)["victim_p999"] = samples_.QuantileUs(0.999);
    nlohmann::json quantiles = nlohmann::json::array();
    for (const double q : kQuantiles) quantiles.push_back({q, samples_.QuantileUs(q)});
    (*line)["quantiles"] = std::move(quantiles);
  }

 private:
  std::unique_ptr<guest::FuseSession> session_;
  uint64_t node_ = 0;
  uint64_t handle_ = 0;
  uint64_t random_ = 1;
  uint64_t reads_ = 0;
  double seconds_ = 1;
  Samples samples_;
};

absl::Status MeasureVictim(Options options) {
  if (options.policy == "alone") options.neighbours = 0;
  Wakeful wakeful;
  if (options.awake) VIRTBAY_RETURN_IF_ERROR(wakeful.Start());
  VIRTBAY_RETURN_IF_ERROR(PrepareFile(options.dir));
  VIRTBAY_ASSIGN_OR_RETURN(auto host, MakeHost(options));
  BounceLoad load;
  load.payload = options.payload;
  load.depth = options.depth;
  load.nice = options.nice;
  std::vector<std::unique_ptr<BounceDriver>> neighbours;
  for (uint32_t i = 0; i < options.neighbours; ++i) {
    VIRTBAY_ASSIGN_OR_RETURN(auto driver,
                             AddBounce(*host, options, i, 1 + options.neighbours, load));
    neighbours.push_back(std::move(driver));
  }
  Victim victim;
  VIRTBAY_RETURN_IF_ERROR(victim.Start(*host, options));
  for (const auto& neighbour : neighbours) neighbour->Go();
  const auto completed = [&] {
    uint64_t sum = 0;
    for (const auto& neighbour : neighbours) sum += neighbour->completed();
    return sum;
  };
  VIRTBAY_RETURN_IF_ERROR(victim.Read(options.warmup, options.think_us));
  const uint64_t before = completed();
  const uint64_t start = MonotonicNs();
  VIRTBAY_RETURN_IF_ERROR(victim.Read(options.seconds, options.think_us));
  const double seconds = static_cast<double>(MonotonicNs() - start) / 1e9;
  const double requests = static_cast<double>(completed() - before);
  nlohmann::json line = {
      {"workload", options.think_us == 0 ? "victim_back_to_back" : "victim"},
      {"subject", options.awake ? absl::StrCat(options.policy, "_awake") : options.policy}};
  victim.Report(&line);
  line["neighbours_mib_per_s"] = requests * options.payload / (1 << 20) / seconds;
  VIRTBAY_ASSIGN_OR_RETURN(const DeviceInfo info, host->Inspect("victim"));
  const QueueStats& queue = info.queues.back();
  line["victim_slot_waits"] = queue.slot_waits;
  line["victim_slot_wait_ms"] = static_cast<double>(queue.slot_wait_ns) / 1e6;
  for (const auto& neighbour : neighbours) VIRTBAY_RETURN_IF_ERROR(neighbour->Stop());
  std::cout << line.dump() << std::endl;
  return absl::OkStatus();
}

// The same number of requests in all, by few devices or by many.
absl::Status MeasureThroughput(const Options& options) {
  VIRTBAY_ASSIGN_OR_RETURN(auto host, MakeHost(options));
  BounceLoad load;
  load.payload = options.payload;
  load.depth = options.depth;
  load.requests = options.requests / options.devices;
  std::vector<std::unique_ptr<BounceDriver>> drivers;
  for (uint32_t i = 0; i < options.devices; ++i) {
    VIRTBAY_ASSIGN_OR_RETURN(auto driver, AddBounce(*host, options, i, options.devices, load));
    drivers.push_back(std::move(driver));
  }
  const uint64_t start = MonotonicNs();
  for (const auto& driver : drivers) driver->Go();
  for (const auto& driver : drivers) VIRTBAY_RETURN_IF_ERROR(driver->Join());
  const double seconds = static_cast<double>(MonotonicNs() - start) / 1e9;
  const double requests = static_cast<double>(load.requests * options.devices);
  uint64_t waits = 0;
  for (const std::string& name : host->List()) {
    VIRTBAY_ASSIGN_OR_RETURN(const DeviceInfo info, host->Inspect(name));
    waits += info.queues[0].slot_waits;
  }
  const nlohmann::json line = {{"workload", absl::StrCat("devices_", options.devices)},
                               {"subject", options.policy},
                               {"requests_per_s", requests / seconds},
                               {"mib_per_s", requests * options.payload / (1 << 20) / seconds},
                               {"slot_waits", waits}};
  std::cout << line.dump() << std::endl;
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Benchmark of what neighbours cost a device");
  app.add_option("--virtiofs", options.virtiofs, "path of the virtiofs plugin");
  app.add_option("--bounce", options.bounce, "path of the bounce plugin")->required();
  app.add_option("--dir", options.dir, "directory for the victim's file");
  app.add_option("--policy", options.policy, "alone, private or shared")
      ->check(CLI::IsMember({"alone", "private", "shared"}));
  app.add_option("--devices", options.devices,
                 "measure the throughput of so many bounce devices instead of the victim's latency")
      ->check(CLI::Range(1, 64));
  app.add_option("--neighbours", options.neighbours, "of the victim")->check(CLI::Range(1, 64));
  app.add_option("--payload", options.payload, "bytes of a bounce request")
      ->check(CLI::Range(1u, 1u << 20));
  app.add_option("--depth", options.depth, "bounce requests under way per device")
      ->check(CLI::Range(1, 256));
  app.add_option("--hold-us", options.hold_us, "how long each is held");
  app.add_option("--requests", options.requests, "in all, with --devices")
      ->check(CLI::Range(uint64_t{64}, uint64_t{1} << 32));
  app.add_option("--memory", options.memory, "of all arenas together, or of the shared one")
      ->transform(CLI::AsSizeValue(false));
  app.add_option("--nice", options.nice, "of the neighbours' threads")->check(CLI::Range(0, 19));
  app.add_option("--think-us", options.think_us, "time between two reads of the victim");
  app.add_option("--poll-window-us", options.poll_window_us, "of the victim's queue thread")
      ->check(CLI::Range(0u, 1'000'000u));
  app.add_flag("--awake", options.awake,
               "keep all processors from going idle, by threads of idle priority");
  app.add_option("--seconds", options.seconds, "length of the measurement")
      ->check(CLI::PositiveNumber);
  app.add_option("--warmup", options.warmup, "seconds before it")->check(CLI::NonNegativeNumber);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status =
      options.devices > 0 ? MeasureThroughput(options) : MeasureVictim(options);
  if (status.ok()) return 0;
  std::cerr << "isolation_bench: " << status.message() << "\n";
  return 1;
}

}  // namespace
}  // namespace virtbay::bench

int main(int argc, char** argv) { return virtbay::bench::Main(argc, argv); }
