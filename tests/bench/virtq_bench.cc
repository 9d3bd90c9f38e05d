// virtq_bench: what the framework costs per chain: a null device in this process, driven over one
// ring of either layout, both sides spinning or both sleeping, and what an idle device keeps
// resident. Prints a JSON line per measurement. scripts/bench.sh virtq runs it.
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

#include <CLI/CLI.hpp>
#include <array>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "framework/base/clock.h"
#include "framework/base/status.h"
#include "hostif/guest/driver.h"
#include "hostif/guest/in_process_transport.h"
#include "virtbay/host.h"

namespace virtbay::bench {
namespace {

struct Options {
  std::string plugin;
  double seconds = 1;
  double warmup = 0.1;
  uint32_t idle_devices = 32;
  bool idle_only = false;
};

struct Case {
  uint32_t batch;
  bool poll;
  bool reply;  // a second, writable descriptor
  bool packed;
};

constexpr uint16_t kRing = 256;
constexpr uint32_t kRequestSize = 64;
constexpr uint32_t kReplySize = 16;

// Ticks of the CPU's cycle counter per nanosecond, or 1 where there is none to read.
double TicksPerNs() {
#if defined(__x86_64__)
  const uint64_t ns = MonotonicNs();
  const uint64_t ticks = __rdtsc();
  while (MonotonicNs() - ns < 50'000'000) CpuRelax();
  return static_cast<double>(__rdtsc() - ticks) / static_cast<double>(MonotonicNs() - ns);
#else
  return 1;
#endif
}

DeviceSpec Spec(const Options& options, const std::string& name, bool poll) {
  DeviceSpec spec;
  spec.name = name;
  spec.plugin = options.plugin;
  // Spinning for good, or not at all.
  spec.poll_window_max = poll ? absl::Milliseconds(20) : absl::ZeroDuration();
  spec.poll_share_max_percent = 100;
  return spec;
}

absl::StatusOr<std::unique_ptr<guest::Driver>> Connect(const DeviceHandle& device,
                                                       uint64_t memory_size, bool packed = false) {
  VIRTBAY_ASSIGN_OR_RETURN(auto transport, guest::InProcessTransport::Attach(device));
  VIRTBAY_ASSIGN_OR_RETURN(auto memory, guest::GuestMemory::Create(memory_size));
  guest::DriverOptions options;
  options.queue_size = kRing;
  options.indirect_max = 0;
  options.packed = packed;
  return guest::Driver::Create(std::move(transport), std::move(memory), options);
}

struct Totals {
  uint64_t chains = 0;
  uint64_t syscalls = 0;
  uint64_t cpu_ns = 0;
  uint64_t kicks = 0;
  uint64_t calls = 0;
};

class Run {
 public:
  Run(const Options& options, const Case& c) : options_(options), case_(c) {}

  absl::StatusOr<nlohmann::json> Measure(Host& host, double ticks_per_ns) {
    VIRTBAY_ASSIGN_OR_RETURN(device_, host.Add(Spec(options_, "null", case_.poll)));
    VIRTBAY_ASSIGN_OR_RETURN(driver_, Connect(device_, 1u << 20, case_.packed));
    queue_ = &driver_->queue(0);
    VIRTBAY_ASSIGN_OR_RETURN(buffers_, driver_->memory().Allocate(kRing * 128, 4096));
    VIRTBAY_RETURN_IF_ERROR(Drive(options_.warmup));
    VIRTBAY_ASSIGN_OR_RETURN(const Totals before, Now());
    const uint64_t start = MonotonicNs();
    VIRTBAY_RETURN_IF_ERROR(Drive(options_.seconds));
    const double seconds = static_cast<double>(MonotonicNs() - start) / 1e9;
    VIRTBAY_ASSIGN_OR_RETURN(const Totals after, Now());
    const double chains = static_cast<double>(after.chains - before.chains);
    const auto per_chain = [chains](uint64_t a, uint64_t b) {
      return static_cast<double>(b - a) / chains;
    };
    nlohmann::json line = {
        {"workload", absl::StrCat(case_.reply ? "reply" : "send", "_b", case_.batch)},
        {"wait", case_.poll ? "poll" : "sleep"},
        {"layout", case_.packed ? "packed" : "split"},
        {"chains_per_s", chains / seconds},
        {"cycles_per_chain", per_chain(before.cpu_ns, after.cpu_ns) * ticks_per_ns},
        {"syscalls_per_chain", per_chain(before.syscalls, after.syscalls)},
        {"kicks_per_chain", per_chain(before.kicks, after.kicks)},
        {"calls_per_chain", per_chain(before.calls, after.calls)}};
    driver_.reset();
    VIRTBAY_RETURN_IF_ERROR(host.Remove("null"));
    return line;
  }

 private:
  absl::StatusOr<Totals> Now() {
    VIRTBAY_ASSIGN_OR_RETURN(const DeviceInfo info, device_.Inspect());
    Totals totals;
    totals.chains = done_;
    totals.cpu_ns = info.cpu_ns;
    for (const QueueStats& stats : info.queues) {
      totals.syscalls += stats.syscalls;
      totals.calls += stats.calls;
    }
    totals.kicks = queue_->stats().kicks;
    return totals;
  }

  bool Add() {
    const uint64_t at = buffers_.address + (added_++ % kRing) * 128;
    const std::array request = {guest::Segment{at, kRequestSize}};
    const std::array reply = {guest::Segment{at + 64, kReplySize}};
    return queue_->Add(request, std::span(reply).first(case_.reply ? 1 : 0), added_);
  }

  absl::Status Collect() {
    std::array<guest::UsedBuffer, kRing> used;
    const size_t n = queue_->TakeUsed(used);
    for (size_t i = 0; i < n; ++i) {
      if (used[i].written != (case_.reply ? kReplySize : 0)) {
        return absl::DataLossError(absl::StrCat("a chain came back with ", used[i].written));
      }
    }
    done_ += n;
    return absl::OkStatus();
  }

  // Spinning, the ring is kept as full as it gets, `batch` chains published at a time. Sleeping, a
  // batch is published and waited for, so that both sides sleep in between.
  absl::Status Drive(double seconds) {
    const uint64_t stop_at = MonotonicNs() + static_cast<uint64_t>(seconds * 1e9);
    const uint32_t most = case_.poll ? (case_.reply ? kRing / 2 : kRing) : case_.batch;
    const auto mode = case_.poll ? guest::WaitMode::kPoll : guest::WaitMode::kSleep;
    do {
      for (uint32_t turn = 0; turn < 64; ++turn) {
        while (added_ - done_ + case_.batch <= most) {
          for (uint32_t i = 0; i < case_.batch; ++i) {
            if (!Add()) return absl::InternalError("the ring is full");
          }
          queue_->Publish();
        }
        const uint64_t least = case_.poll ? 1 : case_.batch;
        for (const uint64_t goal = done_ + least; done_ < goal;) {
          VIRTBAY_RETURN_IF_ERROR(queue_->Wait(mode));
          VIRTBAY_RETURN_IF_ERROR(Collect());
        }
      }
    } while (MonotonicNs() < stop_at);
    while (done_ < added_) {
      VIRTBAY_RETURN_IF_ERROR(queue_->Wait(mode));
      VIRTBAY_RETURN_IF_ERROR(Collect());
    }
    return absl::OkStatus();
  }

  const Options& options_;
  const Case case_;
  DeviceHandle device_;
  std::unique_ptr<guest::Driver> driver_;
  guest::DriverQueue* queue_ = nullptr;
  guest::GuestRange buffers_;
  uint64_t added_ = 0;
  uint64_t done_ = 0;
};

// Bytes of this process that are in memory.
uint64_t ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  uint64_t pages = 0;
  statm >> pages >> pages;
  return pages * 4096;
}

uint64_t ProcessCpu() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

// Growth of the process per device: added, then with a driver and a running ring (whose own ring
// pages, seen from both sides, are in the figure).
absl::StatusOr<nlohmann::json> MeasureIdle(Host& host, const Options& options) {
  const auto add = [&](uint32_t i) {
    DeviceSpec spec = Spec(options, absl::StrCat("idle", i), false);
    spec.poll_window_max = DeviceSpec().poll_window_max;
    return host.Add(std::move(spec));
  };
  // What the first one brings for all is not counted: the image, the allocator's first arenas.
  std::vector<DeviceHandle> devices;
  std::vector<std::unique_ptr<guest::Driver>> drivers;
  for (uint32_t i = 0; i < 2; ++i) {
    VIRTBAY_ASSIGN_OR_RETURN(DeviceHandle device, add(i));
    devices.push_back(std::move(device));
    VIRTBAY_ASSIGN_OR_RETURN(auto driver, Connect(devices.back(), 65536));
    drivers.push_back(std::move(driver));
  }
  const uint64_t empty = ResidentBytes();
  for (uint32_t i = 0; i < options.idle_devices; ++i) {
    VIRTBAY_ASSIGN_OR_RETURN(DeviceHandle device, add(2 + i));
    devices.push_back(std::move(device));
  }
  const uint64_t added = ResidentBytes();
  for (uint32_t i = 0; i < options.idle_devices; ++i) {
    VIRTBAY_ASSIGN_OR_RETURN(auto driver, Connect(devices[2 + i], 65536));
    drivers.push_back(std::move(driver));
  }
  const uint64_t running = ResidentBytes();
  const uint64_t cpu = ProcessCpu();
  const double watch = std::min(1.0, options.seconds);
  std::this_thread::sleep_for(std::chrono::duration<double>(watch));
  const double cpu_us = static_cast<double>(ProcessCpu() - cpu) / 1000;
  const double count = options.idle_devices;
  nlohmann::json line = {
      {"workload", "idle_device"},
      {"wait", "sleep"},
      {"layout", "split"},
      {"resident_added_kib",
       (static_cast<double>(added) - static_cast<double>(empty)) / 1024 / count},
      {"resident_running_kib",
       (static_cast<double>(running) - static_cast<double>(empty)) / 1024 / count},
      {"cpu_us_per_s", cpu_us / watch / count}};
  drivers.clear();
  for (uint32_t i = 0; i < 2 + options.idle_devices; ++i) {
    VIRTBAY_RETURN_IF_ERROR(host.Remove(absl::StrCat("idle", i)));
  }
  return line;
}

absl::Status MeasureAll(const Options& options) {
  VIRTBAY_ASSIGN_OR_RETURN(auto host, Host::Create(HostOptions{}));
  VIRTBAY_ASSIGN_OR_RETURN(const nlohmann::json idle, MeasureIdle(*host, options));
  std::cout << idle.dump() << std::endl;
  if (options.idle_only) return absl::OkStatus();
  const double ticks_per_ns = TicksPerNs();
  for (const bool reply : {false, true}) {
    for (const bool poll : {true, false}) {
      for (const uint32_t batch : {1u, 8u, 32u}) {
        // One after the other, so that both meet the same machine.
        for (const bool packed : {false, true}) {
          const Case c{.batch = batch, .poll = poll, .reply = reply, .packed = packed};
          VIRTBAY_ASSIGN_OR_RETURN(const nlohmann::json line,
                                   Run(options, c).Measure(*host, ticks_per_ns));
          std::cout << line.dump() << std::endl;
        }
      }
    }
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Benchmark of the virtqueue runtime with a null device");
  app.add_option("--plugin", options.plugin, "path of the null device's plugin")->required();
  app.add_option("--seconds", options.seconds, "length of one measurement")
      ->check(CLI::PositiveNumber);
  app.add_option("--warmup", options.warmup, "seconds before each measurement")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--idle-devices", options.idle_devices, "devices added for the idle figures")
      ->check(CLI::Range(1, 1000));
  app.add_flag("--idle-only", options.idle_only, "only the idle figures");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = MeasureAll(options);
  if (status.ok()) return 0;
  std::cerr << "virtq_bench: " << status.message() << "\n";
  return 1;
}

}  // namespace
}  // namespace virtbay::bench

int main(int argc, char** argv) { return virtbay::bench::Main(argc, argv); }
