#include "hostif/device_host/prometheus.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "framework/isolation/crash_guard.h"

namespace virtbay::device_host {
namespace {

// HELP text escapes backslash and newline only; a quote stays as it is. Other control characters a
// plugin may have put there are no text.
std::string EscapeHelp(absl::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\') {
      out += "\\\\";
    } else if (c == '\n') {
      out += "\\n";
    } else if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) {
      out.push_back(' ');
    } else {
      out.push_back(c);
    }
  }
  return out;
}

// Plugins are named by files, which may hold any character; metric names may not.
std::string MetricWord(absl::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool word = absl::ascii_isalnum(static_cast<unsigned char>(c));
    out.push_back(word ? absl::ascii_tolower(static_cast<unsigned char>(c)) : '_');
  }
  return out;
}

std::string Seconds(uint64_t ns) {
  return absl::StrFormat("%d.%09d", ns / 1'000'000'000, ns % 1'000'000'000);
}

void Begin(std::string* out, absl::string_view name, absl::string_view type,
           absl::string_view help) {
  absl::StrAppend(out, "# HELP ", name, " ", EscapeHelp(help), "\n# TYPE ", name, " ", type, "\n");
}

struct DeviceFamily {
  const char* name;
  const char* type;
  const char* help;
  double (*value)(const DeviceInfo&);
};

struct QueueFamily {
  const char* name;
  const char* type;
  const char* help;
  uint64_t (*value)(const QueueStats&);
  bool ns = false;  // the value, which is shown in seconds
};

constexpr DeviceFamily kDeviceFamilies[] = {
    {"virtbay_device_connected", "gauge", "1 while a front-end is connected.",
     [](const DeviceInfo& d) { return d.connected ? 1.0 : 0.0; }},
    {"virtbay_device_needs_reset", "gauge", "1 while the device waits for a reset by its driver.",
     [](const DeviceInfo& d) { return d.needs_reset ? 1.0 : 0.0; }},
    {"virtbay_device_crashes_total", "counter",
     "Crashes of the device's plugin that were contained.",
     [](const DeviceInfo& d) { return static_cast<double>(d.crashes); }},
    {"virtbay_device_cpu_seconds_total", "counter", "CPU time of the device's queue threads.",
     [](const DeviceInfo& d) { return static_cast<double>(d.cpu_ns) / 1e9; }},
    {"virtbay_device_dma_violations_total", "counter",
     "Descriptors refused because they lie outside the device's memory.",
     [](const DeviceInfo& d) { return static_cast<double>(d.dma_violations); }},
    {"virtbay_arena_bytes", "gauge", "Size of the device's arena.",
     [](const DeviceInfo& d) { return static_cast<double>(d.arena_size); }},
    {"virtbay_arena_slots", "gauge", "Slots of 2 KiB in the device's arena.",
     [](const DeviceInfo& d) { return static_cast<double>(d.arena_slots); }},
    {"virtbay_arena_slots_used", "gauge", "Arena slots in use.",
     [](const DeviceInfo& d) { return static_cast<double>(d.arena_slots_used); }},
    {"virtbay_arena_slots_high_water", "gauge", "Most arena slots that were ever in use at once.",
     [](const DeviceInfo& d) { return static_cast<double>(d.arena_slots_high_water); }},
};

constexpr QueueFamily kQueueFamilies[] = {
    {"virtbay_queue_requests_total", "counter", "Descriptor chains taken from the queue.",
     [](const QueueStats& q) { return q.requests; }},
    {"virtbay_queue_completions_total", "counter", "Used entries published.",
     [](const QueueStats& q) { return q.completions; }},
    {"virtbay_queue_kicks_total", "counter", "Times the driver woke the queue's thread.",
     [](const QueueStats& q) { return q.kicks; }},
    {"virtbay_queue_calls_total", "counter", "Notifications sent to the driver.",
     [](const QueueStats& q) { return q.calls; }},
    {"virtbay_queue_calls_suppressed_total", "counter",
     "Notifications that the driver did not want.",
     [](const QueueStats& q) { return q.calls_suppressed; }},
    {"virtbay_queue_batches_total", "counter", "Bursts that took at least one chain.",
     [](const QueueStats& q) { return q.batches; }},
    {"virtbay_queue_poll_hits_total", "counter", "Poll windows that saw work.",
     [](const QueueStats& q) { return q.poll_hits; }},
    {"virtbay_queue_poll_misses_total", "counter", "Poll windows that closed without work.",
     [](const QueueStats& q) { return q.poll_misses; }},
    {"virtbay_queue_slot_waits_total", "counter",
     "Times the queue or a request in it waited for arena slots.",
     [](const QueueStats& q) { return q.slot_waits; }},
    {"virtbay_queue_slot_wait_seconds_total", "counter",
     "Time in which the queue or a request in it waited for arena slots.",
     [](const QueueStats& q) { return q.slot_wait_ns; }, true},
    {"virtbay_queue_copied_in_bytes_total", "counter", "Bytes copied from the guest to the arena.",
     [](const QueueStats& q) { return q.bytes_copied_in; }},
    {"virtbay_queue_copied_out_bytes_total", "counter", "Bytes copied from the arena to the guest.",
     [](const QueueStats& q) { return q.bytes_copied_out; }},
    {"virtbay_queue_direct_bytes_total", "counter",
     "Payload bytes moved between file descriptors and guest pages without a copy.",
     [](const QueueStats& q) { return q.bytes_direct; }},
    {"virtbay_queue_syscalls_total", "counter", "System calls the framework made for the queue.",
     [](const QueueStats& q) { return q.syscalls; }},
    {"virtbay_queue_in_flight", "gauge", "Requests taken and not yet answered.",
     [](const QueueStats& q) { return uint64_t{q.in_flight}; }},
    {"virtbay_queue_parked", "gauge",
     "Requests in flight that are kept for as long as it takes (locks that are awaited).",
     [](const QueueStats& q) { return uint64_t{q.parked}; }},
    {"virtbay_queue_parks_refused_total", "counter",
     "Requests that could not be kept so, because others leave too little of the queue free.",
     [](const QueueStats& q) { return q.parks_refused; }},
    {"virtbay_queue_broken", "gauge", "1 when the queue was stopped because of its contents.",
     [](const QueueStats& q) { return uint64_t{q.broken}; }},
};

constexpr char kInfoFamily[] = "virtbay_device_info";
constexpr char kTaintedFamily[] = "virtbay_process_tainted";

struct PluginFamily {
  MetricKind kind = MetricKind::kCounter;
  std::string help;
  std::set<std::string> devices;
  std::string samples;
};

bool IsOwnFamily(absl::string_view name) {
  const auto named = [&](const auto& family) { return name == family.name; };
  return name == kInfoFamily || name == kTaintedFamily ||
         std::any_of(std::begin(kDeviceFamilies), std::end(kDeviceFamilies), named) ||
         std::any_of(std::begin(kQueueFamilies), std::end(kQueueFamilies), named);
}

// The plugins' families, by name. Their samples must stand together, so they are gathered before
// they are written: several devices of one plugin share its families.
class PluginFamilies {
 public:
  void Add(const DeviceInfo& device, const std::string& metric, uint64_t value) {
    const auto kind = device.metric_kind.find(metric);
    const MetricKind what = kind == device.metric_kind.end() ? MetricKind::kCounter : kind->second;
    const std::string name = NameFor(device, metric, what);
    PluginFamily& family = families_[name];
    family.kind = what;
    family.devices.insert(device.name);
    const auto help = device.metric_help.find(metric);
    if (family.help.empty() && help != device.metric_help.end()) family.help = help->second;
    absl::StrAppend(&family.samples, name, "{device=\"", EscapeLabel(device.name), "\"} ", value,
                    "\n");
  }

  void Write(std::string* out) const {
    for (const auto& [name, family] : families_) {
      const bool counts = family.kind == MetricKind::kCounter;
      Begin(out, name, counts ? "counter" : "gauge",
            !family.help.empty() ? absl::string_view(family.help)
                                 : absl::string_view("A number of the plugin's own."));
      *out += family.samples;
    }
  }

 private:
  // A counter's name ends in _total. Another name where this one is taken: by a family of the
  // host's, by one of the other kind, or for this device already (plugins spell theirs freely, and
  // what differs there may be the same here).
  std::string NameFor(const DeviceInfo& device, const std::string& metric, MetricKind kind) const {
    const bool counts = kind == MetricKind::kCounter;
    absl::string_view word = metric;
    if (counts) absl::ConsumeSuffix(&word, "_total");
    for (int n = 1;; ++n) {
      std::string name = absl::StrCat("virtbay_", MetricWord(device.type), "_", MetricWord(word),
                                      n == 1 ? "" : absl::StrCat("_", n), counts ? "_total" : "");
      if (IsOwnFamily(name)) continue;
      const auto found = families_.find(name);
      if (found == families_.end() ||
          (found->second.kind == kind && !found->second.devices.contains(device.name))) {
        return name;
      }
    }
  }

  std::map<std::string, PluginFamily> families_;
};

}  // namespace

std::string EscapeLabel(absl::string_view value) {
  std::string out;
  for (const char c : value) {
    if (c == '\\') {
      out += "\\\\";
    } else if (c == '"') {
      out += "\\\"";
    } else if (c == '\n') {
      out += "\\n";
    } else {
      out.push_back(c);
    }
  }
  return out;
}

std::string PrometheusText(const std::vector<DeviceReport>& devices) {
  std::string out;
  Begin(&out, kInfoFamily, "gauge", "Always 1; the labels tell what the device is.");
  for (const DeviceReport& device : devices) {
    const DeviceInfo& info = device.info;
    absl::StrAppend(&out, kInfoFamily, "{device=\"", EscapeLabel(info.name), "\",plugin=\"",
                    EscapeLabel(info.plugin), "\",version=\"", EscapeLabel(info.plugin_version),
                    "\",type=\"", EscapeLabel(info.type), "\",state=\"", EscapeLabel(info.state),
                    "\",dma=\"", EscapeLabel(info.dma_mode), "\"} 1\n");
  }
  for (const DeviceFamily& family : kDeviceFamilies) {
    Begin(&out, family.name, family.type, family.help);
    for (const DeviceReport& device : devices) {
      absl::StrAppendFormat(&out, "%s{device=\"%s\"} %.17g\n", family.name,
                            EscapeLabel(device.info.name), family.value(device.info));
    }
  }
  for (const QueueFamily& family : kQueueFamilies) {
    Begin(&out, family.name, family.type, family.help);
    for (const DeviceReport& device : devices) {
      for (size_t i = 0; i < device.info.queues.size(); ++i) {
        const uint64_t value = family.value(device.info.queues[i]);
        absl::StrAppend(&out, family.name, "{device=\"", EscapeLabel(device.info.name),
                        "\",queue=\"", i, "\"} ", family.ns ? Seconds(value) : absl::StrCat(value),
                        "\n");
      }
    }
  }
  Begin(&out, kTaintedFamily, "gauge", "1 after a crash of a plugin that was contained.");
  absl::StrAppend(&out, kTaintedFamily, " ", CrashesContained() > 0 ? 1 : 0, "\n");
  PluginFamilies families;
  for (const DeviceReport& device : devices) {
    for (const auto& [metric, value] : device.info.metrics) {
      families.Add(device.info, metric, value);
    }
  }
  families.Write(&out);
  return out;
}

}  // namespace virtbay::device_host
