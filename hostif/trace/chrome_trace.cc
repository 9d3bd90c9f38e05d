#include "hostif/trace/chrome_trace.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace virtbay::trace {
namespace {

// More are not open in a queue unless their ends were dropped.
constexpr size_t kMostOpen = 2 * 65536;

std::string Quoted(absl::string_view text) {
  return nlohmann::json(std::string(text))
      .dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace);
}

const char* CallName(TraceCall call) {
  switch (call) {
    case TraceCall::kOnRequests:
      return "on_requests";
    case TraceCall::kOnIo:
      return "on_io";
    case TraceCall::kOnTimer:
      return "on_timer";
    case TraceCall::kOnOffload:
      return "on_offload";
  }
  return "call";
}

const char* IoName(int64_t op) {
  constexpr const char* kNames[] = {"read", "write", "fsync", "fallocate", "poll"};
  return op >= 1 && op <= 5 ? kNames[op - 1] : "io";
}

}  // namespace

ChromeTrace::ChromeTrace(std::string* out) : out_(out) {
  absl::StrAppend(out_, "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[");
}

void ChromeTrace::Metadata(uint32_t process, uint32_t thread, absl::string_view what,
                           absl::string_view name) {
  absl::StrAppendFormat(
      out_, "%s\n{\"ph\":\"M\",\"name\":\"%s\",\"pid\":%d,\"tid\":%d,\"args\":{\"name\":%s}}",
      std::exchange(first_, false) ? "" : ",", what, process, thread, Quoted(name));
}

uint32_t ChromeTrace::AddDevice(absl::string_view name, absl::string_view type, uint32_t queues) {
  const auto device = static_cast<uint32_t>(devices_.size());
  std::vector<Track>& tracks = devices_.emplace_back(queues);
  // Number 0 is that of a viewer's own.
  Metadata(device + 1, 0, "process_name", absl::StrCat(name, " (", type, ")"));
  for (uint32_t queue = 0; queue < queues; ++queue) {
    tracks[queue].device = device;
    tracks[queue].queue = queue;
    Metadata(device + 1, queue + 1, "thread_name", absl::StrCat("queue ", queue));
  }
  return device;
}

void ChromeTrace::Put(const Track& track, char phase, absl::string_view name,
                      absl::string_view more) {
  absl::StrAppendFormat(
      out_, "%s\n{\"ph\":\"%c\",\"name\":\"%s\",\"pid\":%d,\"tid\":%d,\"ts\":%d.%03d%s}",
      std::exchange(first_, false) ? "" : ",", phase, name, track.device + 1, track.queue + 1,
      track.last_ns / 1000, track.last_ns % 1000, more);
}

uint64_t ChromeTrace::UniqueId(const Track& track, uint64_t id) {
  return id << 28 | (uint64_t{track.queue} & 0xfff) << 16 | track.device;
}

void ChromeTrace::Begin(Track* track, uint64_t id, Span span, absl::string_view args) {
  if (track->open.size() >= kMostOpen) End(track, track->open.begin()->first, "\"lost\":true");
  track->open.insert_or_assign(id, span);
  Put(*track, 'b', span.name,
      absl::StrFormat(",\"cat\":\"%s\",\"id\":\"0x%x\",\"args\":{%s}", span.category,
                      UniqueId(*track, id), args));
}

void ChromeTrace::End(Track* track, uint64_t id, absl::string_view args) {
  const auto node = track->open.extract(id);
  if (node.empty()) return;
  const Span& span = node.mapped();
  Put(*track, 'e', span.name,
      absl::StrFormat(",\"cat\":\"%s\",\"id\":\"0x%x\",\"args\":{%s}", span.category,
                      UniqueId(*track, id), args));
}

void ChromeTrace::EndCall(Track* track) {
  if (!track->call.has_value()) return;
  Put(*track, 'E', CallName(*track->call), "");
  track->call.reset();
}

void ChromeTrace::AddEvent(Track* track, const TraceEvent& event) {
  track->last_ns = std::max(track->last_ns, event.ns);
  const auto instant = [&](absl::string_view name, absl::string_view args) {
    Put(*track, 'i', name, absl::StrCat(",\"s\":\"t\",\"args\":{", args, "}"));
  };
  switch (event.kind) {
    case TraceKind::kKick:
      instant("kick", "");
      break;
    case TraceKind::kPop:
      instant("pop", absl::StrCat("\"requests\":", event.value));
      break;
    case TraceKind::kRequest:
      Begin(track, event.id, {"request", "request"},
            absl::StrCat("\"request\":", event.id, ",\"head\":", event.head,
                         ",\"readable\":", event.value));
      break;
    case TraceKind::kCallBegin:
      EndCall(track);  // its own end was dropped
      track->call = event.call;
      Put(*track, 'B', CallName(event.call),
          absl::StrCat(",\"args\":{\"count\":", event.value, "}"));
      break;
    case TraceKind::kCallEnd:
      EndCall(track);
      break;
    case TraceKind::kIoBegin:
      Begin(track, event.id, {"io", IoName(event.value)},
            event.request == 0 ? "" : absl::StrCat("\"request\":", event.request));
      break;
    case TraceKind::kIoEnd:
      End(track, event.id, absl::StrCat("\"result\":", event.value));
      break;
    case TraceKind::kComplete:
      instant("complete",
              absl::StrCat(event.id == 0 ? "" : absl::StrCat("\"request\":", event.id, ","),
                           "\"head\":", event.head, ",\"written\":", event.value));
      End(track, event.id, absl::StrCat("\"written\":", event.value));
      break;
    case TraceKind::kNotify:
      instant("notify", "");
      break;
  }
}

void ChromeTrace::Add(uint32_t device, const std::vector<QueueTrace>& queues) {
  if (device >= devices_.size()) return;
  for (const QueueTrace& queue : queues) {
    if (queue.queue >= devices_[device].size()) continue;
    Track* const track = &devices_[device][queue.queue];
    for (const TraceEvent& event : queue.events) AddEvent(track, event);
    events_ += queue.events.size();
    if (queue.dropped <= track->dropped) continue;
    const uint64_t more = queue.dropped - track->dropped;
    Put(*track, 'i', "events dropped",
        absl::StrCat(",\"s\":\"t\",\"args\":{\"dropped\":", more, "}"));
    track->dropped = queue.dropped;
    dropped_ += more;
  }
}

void ChromeTrace::Finish() {
  for (std::vector<Track>& tracks : devices_) {
    for (Track& track : tracks) {
      EndCall(&track);
      while (!track.open.empty()) End(&track, track.open.begin()->first, "\"unfinished\":true");
    }
  }
  absl::StrAppend(out_, "\n],\"otherData\":{\"dropped\":", dropped_, "}}\n");
}

}  // namespace virtbay::trace
