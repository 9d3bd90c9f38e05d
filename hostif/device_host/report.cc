#include "hostif/device_host/report.h"

#include <cstdint>

#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "framework/isolation/crash_guard.h"

namespace virtbay::device_host {
namespace {

using nlohmann::json;

json QueueJson(const QueueStats& queue) {
  return json{{"requests", queue.requests},
              {"completions", queue.completions},
              {"kicks", queue.kicks},
              {"calls", queue.calls},
              {"calls_suppressed", queue.calls_suppressed},
              {"batches", queue.batches},
              {"poll_hits", queue.poll_hits},
              {"poll_misses", queue.poll_misses},
              {"slot_waits", queue.slot_waits},
              {"slot_wait_ns", queue.slot_wait_ns},
              {"bytes_copied_in", queue.bytes_copied_in},
              {"bytes_copied_out", queue.bytes_copied_out},
              {"bytes_direct", queue.bytes_direct},
              {"syscalls", queue.syscalls},
              {"parks_refused", queue.parks_refused},
              {"in_flight", queue.in_flight},
              {"parked", queue.parked},
              {"running", queue.running},
              {"broken", queue.broken}};
}

// What a running ring is like and where it lies in guest memory.
json RingJson(const QueueStats& queue) {
  return json{{"layout", queue.ring_packed ? "packed" : "split"},
              {"size", queue.ring_size},
              {"descriptors", absl::StrFormat("0x%x", queue.ring_descriptors)},
              {"avail", absl::StrFormat("0x%x", queue.ring_avail)},
              {"used", absl::StrFormat("0x%x", queue.ring_used)}};
}

json ArenaJson(const DeviceInfo& info) {
  return json{{"policy", info.arena_policy},
              {"bytes", info.arena_size},
              {"slots", info.arena_slots},
              {"slots_used", info.arena_slots_used},
              {"slots_high_water", info.arena_slots_high_water}};
}

}  // namespace

json SummaryJson(const DeviceReport& report) {
  const DeviceInfo& info = report.info;
  return json{{"name", info.name},   {"plugin", info.plugin},       {"type", info.type},
              {"state", info.state}, {"connected", info.connected}, {"socket", report.socket}};
}

json StatsJson(const DeviceReport& report) {
  const DeviceInfo& info = report.info;
  json queues = json::array();
  for (const QueueStats& queue : info.queues) queues.push_back(QueueJson(queue));
  return json{{"name", info.name},
              {"state", info.state},
              {"connected", info.connected},
              {"cpu_ns", info.cpu_ns},
              {"dma_violations", info.dma_violations},
              {"arena", ArenaJson(info)},
              {"total", QueueJson(SumQueues(info))},
              {"queues", std::move(queues)},
              {"metrics", info.metrics}};
}

json DeviceJson(const DeviceReport& report) {
  const DeviceInfo& info = report.info;
  json out = StatsJson(report);
  for (size_t i = 0; i < info.queues.size(); ++i) {
    if (info.queues[i].ring_size != 0) out["queues"][i]["ring"] = RingJson(info.queues[i]);
  }
  out["plugin"] = info.plugin;
  out["plugin_path"] = info.plugin_path.string();
  out["plugin_version"] = info.plugin_version;
  out["plugin_build"] = info.plugin_build;
  out["generation"] = info.generation;
  out["type"] = info.type;
  out["virtio_id"] = info.virtio_id;
  out["dma_mode"] = info.dma_mode;
  if (info.aperture.size != 0) {
    out["aperture"] = absl::StrFormat("0x%x,%d", info.aperture.base, info.aperture.size);
    out["rings"] = info.rings == RingPlacement::kPool ? "pool" : "anywhere";
  }
  out["needs_reset"] = info.needs_reset;
  out["failure"] = info.failure;
  out["crashes"] = info.crashes;
  // Of the whole process, which a crash of any plugin taints.
  out["tainted"] = CrashesContained() > 0;
  out["features"] = absl::StrFormat("0x%x", info.features);
  out["options"] = info.options;
  out["socket"] = report.socket;
  return out;
}

json ReloadJson(const ReloadReport& report) {
  const auto ms = [](absl::Duration duration) { return absl::ToDoubleMilliseconds(duration); };
  return json{{"device", report.device},
              {"generation", report.generation},
              {"version_before", report.version_before},
              {"version_after", report.version_after},
              {"build_before", report.build_before},
              {"build_after", report.build_after},
              {"state_restored", report.state_restored},
              {"state_bytes", report.state_bytes},
              {"state_fds", report.state_fds},
              {"requests_handed_over", report.requests_handed_over},
              {"requests_failed", report.requests_failed},
              {"image_unloaded", report.image_unloaded},
              {"ms",
               {{"stage", ms(report.stage)},
                {"quiesce", ms(report.quiesce)},
                {"save", ms(report.save)},
                {"restore", ms(report.restore)},
                {"commit", ms(report.commit)},
                {"trial", ms(report.trial)},
                {"retire", ms(report.retire)},
                {"pause", ms(report.pause)}}}};
}

QueueStats SumQueues(const DeviceInfo& info) {
  QueueStats sum;
  for (const QueueStats& queue : info.queues) {
    sum.requests += queue.requests;
    sum.completions += queue.completions;
    sum.kicks += queue.kicks;
    sum.calls += queue.calls;
    sum.calls_suppressed += queue.calls_suppressed;
    sum.batches += queue.batches;
    sum.poll_hits += queue.poll_hits;
    sum.poll_misses += queue.poll_misses;
    sum.slot_waits += queue.slot_waits;
    sum.slot_wait_ns += queue.slot_wait_ns;
    sum.bytes_copied_in += queue.bytes_copied_in;
    sum.bytes_copied_out += queue.bytes_copied_out;
    sum.bytes_direct += queue.bytes_direct;
    sum.syscalls += queue.syscalls;
    sum.parks_refused += queue.parks_refused;
    sum.in_flight += queue.in_flight;
    sum.parked += queue.parked;
    sum.running = sum.running || queue.running;
    sum.broken = sum.broken || queue.broken;
  }
  return sum;
}

std::string ToLine(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace virtbay::device_host
