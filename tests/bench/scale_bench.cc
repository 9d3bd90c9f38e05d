// scale_bench: fills a running virtbay with idle devices, each with a front-end, or with shares of
// one device, over its control socket, and measures what they cost: a JSON line per number of them.
// scripts/bench.sh scale starts the device host and runs this.
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "framework/base/clock.h"
#include "framework/base/status.h"
#include "hostif/device_host/control_client.h"
#include "tests/bench/samples.h"
#include "tests/bench/scale_kind.h"

namespace virtbay::bench {
namespace {

using nlohmann::json;

struct Options {
  std::string kind = "virtiofs";
  ScalePlace place;
  std::vector<uint32_t> counts = {1, 10, 100, 1000};
  int pid = 0;
  uint32_t samples = 20;
  double seconds = 1;
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 != 0 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

// "VmRSS" in KiB, "Threads".
uint64_t StatusLine(int pid, const std::string& key) {
  std::ifstream status(absl::StrCat("/proc/", pid, "/status"));
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(key + ":", 0) == 0)
      return std::strtoull(line.c_str() + key.size() + 1, nullptr, 10);
  }
  return 0;
}

uint64_t Descriptors(int pid) {
  std::error_code error;
  const std::filesystem::directory_iterator fds(absl::StrCat("/proc/", pid, "/fd"), error);
  return error ? 0 : static_cast<uint64_t>(std::distance(begin(fds), end(fds)));
}

class Scale {
 public:
  explicit Scale(const Options& options) : options_(options) {}

  absl::Status Run() {
    // Three descriptors a queue and some more for each front-end.
    rlimit files{};
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    VIRTBAY_ASSIGN_OR_RETURN(kind_, ScaleKind::Make(options_.kind, options_.place));
    VIRTBAY_RETURN_IF_ERROR(kind_->Begin());
    empty_kib_ = StatusLine(options_.pid, "VmRSS");
    empty_threads_ = StatusLine(options_.pid, "Threads");
    empty_fds_ = Descriptors(options_.pid);
    for (const uint32_t count : options_.counts) VIRTBAY_RETURN_IF_ERROR(Measure(count));
    return absl::OkStatus();
  }

 private:
  // The time that the request takes, milliseconds.
  absl::StatusOr<double> Control(const json& request) const {
    const uint64_t start = MonotonicNs();
    VIRTBAY_RETURN_IF_ERROR(device_host::CallControl(options_.place.control, request).status());
    return static_cast<double>(MonotonicNs() - start) / 1e6;
  }
  absl::StatusOr<double> Add(const std::string& name) const {
    VIRTBAY_ASSIGN_OR_RETURN(const json request, kind_->AddRequest(name));
    return Control(request);
  }

  absl::Status Fill(uint32_t count) {
    for (; filled_ < count; ++filled_) {
      const std::string name = absl::StrCat("d", filled_);
      VIRTBAY_RETURN_IF_ERROR(Add(name).status());
      VIRTBAY_RETURN_IF_ERROR(kind_->Connect(name));
    }
    return absl::OkStatus();
  }

  absl::Status Measure(uint32_t count) {
    const uint64_t start = MonotonicNs();
    VIRTBAY_RETURN_IF_ERROR(Fill(count));
    const double fill_ms = static_cast<double>(MonotonicNs() - start) / 1e6;
    const double devices = count;
    const auto each = [&](uint64_t now, uint64_t empty) {
      return (static_cast<double>(now) - static_cast<double>(empty)) / devices;
    };
    const uint64_t kib = StatusLine(options_.pid, "VmRSS");
    json line = {{"devices", count},
                 {"fill_ms", fill_ms},
                 {"resident_mib", static_cast<double>(kib) / 1024},
                 {"resident_per_device", each(kib, empty_kib_)},
                 {"threads_per_device", each(StatusLine(options_.pid, "Threads"), empty_threads_)},
                 {"fds_per_device", each(Descriptors(options_.pid), empty_fds_)}};
    VIRTBAY_RETURN_IF_ERROR(Latency(&line));
    VIRTBAY_RETURN_IF_ERROR(AddAndRemove(&line));
    std::cout << line.dump() << std::endl;
    return absl::OkStatus();
  }

  // Of the first device, while the others are idle.
  absl::Status Latency(json* line) {
    VIRTBAY_RETURN_IF_ERROR(kind_->Open("d0"));
    Samples samples;
    const auto request = [&](double seconds) -> absl::Status {
      const uint64_t end = MonotonicNs() + static_cast<uint64_t>(seconds * 1e9);
      samples.Clear();
      for (uint64_t before = MonotonicNs(); before < end; before = MonotonicNs()) {
        VIRTBAY_RETURN_IF_ERROR(kind_->Request());
        samples.Add(MonotonicNs() - before);
      }
      return absl::OkStatus();
    };
    VIRTBAY_RETURN_IF_ERROR(request(options_.seconds / 4));
    VIRTBAY_RETURN_IF_ERROR(request(options_.seconds));
    (*line)["read_p50"] = samples.QuantileUs(0.5);
    (*line)["read_p99"] = samples.QuantileUs(0.99);
    kind_->Close();
    return absl::OkStatus();
  }

  // One more: added, connected, and removed under its front-end.
  absl::Status AddAndRemove(json* line) {
    std::vector<double> adds, removes;
    for (uint32_t i = 0; i < options_.samples; ++i) {
      VIRTBAY_ASSIGN_OR_RETURN(const double added, Add("extra"));
      VIRTBAY_RETURN_IF_ERROR(kind_->Connect("extra"));
      VIRTBAY_ASSIGN_OR_RETURN(const double removed, Control(kind_->RemoveRequest("extra")));
      kind_->Disconnect("extra");
      adds.push_back(added);
      removes.push_back(removed);
    }
    (*line)["add_ms"] = Median(adds);
    (*line)["remove_ms"] = Median(removes);
    return absl::OkStatus();
  }

  const Options& options_;
  std::unique_ptr<ScaleKind> kind_;
  uint32_t filled_ = 0;
  uint64_t empty_kib_ = 0;
  uint64_t empty_threads_ = 0;
  uint64_t empty_fds_ = 0;
};

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Benchmark of many devices, or shares, in one device host");
  app.add_option("--kind", options.kind, "what they are")
      ->check(CLI::IsMember({"virtiofs", "virtio-net", "share"}));
  app.add_option("--control", options.place.control, "control socket of the device host")
      ->required();
  app.add_option("--pid", options.pid, "its process")->required();
  app.add_option("--share", options.place.share, "directory that they share, with a file `data`")
      ->required();
  app.add_option("--sockets", options.place.sockets, "directory for their sockets")->required();
  app.add_option("--counts", options.counts, "numbers of devices, ascending")->delimiter(',');
  app.add_option("--queue-size", options.place.queue_size, "of their rings");
  app.add_option("--samples", options.samples, "times one more is added and removed")
      ->check(CLI::Range(1, 1000));
  app.add_option("--seconds", options.seconds, "length of a latency measurement")
      ->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = Scale(options).Run();
  if (status.ok()) return 0;
  std::cerr << "scale_bench: " << status.message() << "\n";
  return 1;
}

}  // namespace
}  // namespace virtbay::bench

int main(int argc, char** argv) { return virtbay::bench::Main(argc, argv); }
