// scale_bench: fills a running virtbay with idle virtiofs devices, each with a front-end, over its
// control socket, and measures what they cost: a JSON line per number of devices.
// scripts/bench.sh scale starts the device host and runs this.
#include <fcntl.h>
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
#include "hostif/guest/fuse_session.h"
#include "hostif/guest/vhost_user_transport.h"
#include "tests/bench/samples.h"

namespace virtbay::bench {
namespace {

using nlohmann::json;

struct Options {
  std::string control;
  std::string share;
  std::string sockets;
  std::vector<uint32_t> counts = {1, 10, 100, 1000};
  int pid = 0;
  uint16_t queue_size = 1024;
  uint32_t samples = 20;
  double seconds = 1;
};

constexpr uint32_t kBlock = 4096;

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
    for (const uint32_t count : options_.counts) VIRTBAY_RETURN_IF_ERROR(Measure(count));
    return absl::OkStatus();
  }

 private:
  std::string Socket(const std::string& name) const {
    return absl::StrCat(options_.sockets, "/", name);
  }

  // The time that the request takes, milliseconds.
  absl::StatusOr<double> Control(const json& request) const {
    const uint64_t start = MonotonicNs();
    VIRTBAY_RETURN_IF_ERROR(device_host::CallControl(options_.control, request).status());
    return static_cast<double>(MonotonicNs() - start) / 1e6;
  }
  absl::StatusOr<double> Add(const std::string& name) const {
    return Control({{"command", "add"},
                    {"device",
                     {{"name", name},
                      {"plugin", "virtiofs"},
                      {"socket", Socket(name)},
                      {"options", {{"shared-dir", options_.share}}}}}});
  }
  absl::StatusOr<double> Remove(const std::string& name) const {
    return Control({{"command", "remove"}, {"name", name}});
  }
  absl::StatusOr<std::unique_ptr<guest::FuseSession>> Connect(const std::string& name) const {
    VIRTBAY_ASSIGN_OR_RETURN(auto transport, guest::VhostUserTransport::Connect(Socket(name)));
    guest::FuseSessionOptions session;
    session.queue_size = options_.queue_size;
    session.queue.depth = 1;
    session.queue.max_data = kBlock;
    session.hiprio_depth = 1;
    return guest::FuseSession::Create(std::move(transport), std::move(session));
  }

  absl::Status Fill(uint32_t count) {
    while (sessions_.size() < count) {
      const std::string name = absl::StrCat("d", sessions_.size());
      VIRTBAY_RETURN_IF_ERROR(Add(name).status());
      VIRTBAY_ASSIGN_OR_RETURN(auto session, Connect(name));
      sessions_.push_back(std::move(session));
    }
    return absl::OkStatus();
  }

  absl::Status Measure(uint32_t count) {
    if (sessions_.empty()) {
      empty_kib_ = StatusLine(options_.pid, "VmRSS");
      empty_threads_ = StatusLine(options_.pid, "Threads");
      empty_fds_ = Descriptors(options_.pid);
    }
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
    guest::FuseClient& fs = sessions_.front()->client();
    const auto found = fs.Lookup(guest::kFuseRootId, "data");
    if (!found.ok()) return absl::InternalError(absl::StrCat("lookup: ", found.error));
    const auto opened = fs.Open(found.value.nodeid, O_RDONLY);
    if (!opened.ok()) return absl::InternalError(absl::StrCat("open: ", opened.error));
    Samples samples;
    const auto read = [&](double seconds) -> absl::Status {
      const uint64_t end = MonotonicNs() + static_cast<uint64_t>(seconds * 1e9);
      samples.Clear();
      for (uint64_t before = MonotonicNs(); before < end; before = MonotonicNs()) {
        const auto data = fs.Read(found.value.nodeid, opened.value.fh, 0, kBlock);
        if (!data.ok() || data.value.size() != kBlock) {
          return absl::DataLossError(absl::StrCat("read: ", data.error));
        }
        samples.Add(MonotonicNs() - before);
      }
      return absl::OkStatus();
    };
    VIRTBAY_RETURN_IF_ERROR(read(options_.seconds / 4));
    VIRTBAY_RETURN_IF_ERROR(read(options_.seconds));
    (*line)["read_p50"] = samples.QuantileUs(0.5);
    (*line)["read_p99"] = samples.QuantileUs(0.99);
    fs.Release(found.value.nodeid, opened.value.fh);
    fs.Forget(found.value.nodeid, 1);  // so that it is idle again
    return absl::OkStatus();
  }

  // One more: added, connected, and removed under its front-end.
  absl::Status AddAndRemove(json* line) {
    std::vector<double> adds, removes;
    for (uint32_t i = 0; i < options_.samples; ++i) {
      VIRTBAY_ASSIGN_OR_RETURN(const double added, Add("extra"));
      VIRTBAY_ASSIGN_OR_RETURN(const auto session, Connect("extra"));
      VIRTBAY_ASSIGN_OR_RETURN(const double removed, Remove("extra"));
      adds.push_back(added);
      removes.push_back(removed);
    }
    (*line)["add_ms"] = Median(adds);
    (*line)["remove_ms"] = Median(removes);
    return absl::OkStatus();
  }

  const Options& options_;
  std::vector<std::unique_ptr<guest::FuseSession>> sessions_;
  uint64_t empty_kib_ = 0;
  uint64_t empty_threads_ = 0;
  uint64_t empty_fds_ = 0;
};

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Benchmark of many virtiofs devices in one device host");
  app.add_option("--control", options.control, "control socket of the device host")->required();
  app.add_option("--pid", options.pid, "its process")->required();
  app.add_option("--share", options.share, "directory that they share, with a file `data`")
      ->required();
  app.add_option("--sockets", options.sockets, "directory for their sockets")->required();
  app.add_option("--counts", options.counts, "numbers of devices, ascending")->delimiter(',');
  app.add_option("--queue-size", options.queue_size, "of their rings");
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
