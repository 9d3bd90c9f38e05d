#include "framework/device/services.h"

#include <pthread.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "framework/base/clock.h"
#include "framework/device/device_core.h"
#include "framework/device/message.h"
#include "framework/device/queue.h"
#include "framework/device/queue_thread.h"
#include "framework/memory/arena.h"

namespace virtbay {
namespace {

// The queue of an index that a plugin named, on its own thread; nullptr (and a line in the log) for
// one that does not exist or belongs to another thread.
Queue* OwnQueue(virtbay_host_device* host, uint32_t index, const char* what) {
  DeviceCore* core = host->core;
  if (index >= core->queues.size()) {
    core->log.Error(absl::StrCat(what, ": there is no queue ", index));
    return nullptr;
  }
  Queue* queue = core->queues[index].get();
  if (!queue->OnOwnThread()) {
    core->log.Error(absl::StrCat(what, ": called on a thread that does not serve queue ", index));
    return nullptr;
  }
  return queue;
}

InFlightRequest* OwnRequest(virtbay_request* raw, const char* what) {
  if (raw == nullptr) return nullptr;
  InFlightRequest* request = InFlightRequest::From(raw);
  if (!request->queue->OnOwnThread()) {
    request->queue->core()->log.Error(absl::StrCat("queue ", request->queue->index(), ": ", what,
                                                   " called on a thread that does not serve it"));
    return nullptr;
  }
  return request;
}

QueueThread* ThreadOf(virtbay_host_device* host, uint32_t queue) {
  return host->core->queues[queue]->thread();
}

// ---- queue ------------------------------------------------------------------------------------

int32_t Complete(virtbay_request* raw, uint32_t out_bytes, uint32_t written) {
  InFlightRequest* request = OwnRequest(raw, "complete");
  if (request == nullptr) return VIRTBAY_FAILED_PRECONDITION;
  return request->queue->Complete(request, out_bytes, written);
}

int32_t Fail(virtbay_request* raw) { return Complete(raw, 0, 0); }

int32_t Requeue(virtbay_request* raw) {
  InFlightRequest* request = OwnRequest(raw, "requeue");
  if (request == nullptr) return VIRTBAY_FAILED_PRECONDITION;
  return request->queue->Requeue(request);
}

int32_t Park(virtbay_request* raw) {
  InFlightRequest* request = OwnRequest(raw, "park");
  if (request == nullptr) return VIRTBAY_FAILED_PRECONDITION;
  return request->queue->Park(request);
}

int32_t CompleteGroup(const virtbay_completion* completions, uint32_t count) {
  if (count == 0) return VIRTBAY_OK;
  Queue* queue = nullptr;
  for (uint32_t i = 0; i < count; ++i) {
    virtbay_request* const raw = completions[i].request;
    // Of one queue, so of one thread.
    if (queue == nullptr || raw == nullptr) {
      const InFlightRequest* request = OwnRequest(raw, "complete_group");
      if (request == nullptr) return VIRTBAY_FAILED_PRECONDITION;
      queue = request->queue;
    } else if (InFlightRequest::From(raw)->queue != queue) {
      return VIRTBAY_INVALID_ARGUMENT;
    }
  }
  return queue->CompleteGroup({completions, count});
}

constexpr virtbay_queue_service kQueue = {sizeof(kQueue), 0,     &Complete,     &Fail,
                                          &Requeue,       &Park, &CompleteGroup};

// ---- memory -----------------------------------------------------------------------------------

int32_t Fetch(virtbay_request* raw, uint32_t offset, uint32_t len, const uint8_t** data) {
  InFlightRequest* request = OwnRequest(raw, "fetch");
  if (request == nullptr) return VIRTBAY_FAILED_PRECONDITION;
  return request->queue->Fetch(request, offset, len, data);
}

int32_t Reserve(virtbay_request* raw, uint32_t len) {
  InFlightRequest* request = OwnRequest(raw, "reserve");
  if (request == nullptr) return VIRTBAY_FAILED_PRECONDITION;
  return request->queue->Reserve(request, len);
}

constexpr virtbay_memory_service kMemory = {sizeof(kMemory), 0, &Fetch, &Reserve};

// ---- io ---------------------------------------------------------------------------------------

int32_t Submit(virtbay_host_device* host, const virtbay_io* ops, uint32_t count) {
  // All operations of one call belong to the calling thread.
  for (uint32_t i = 0; i < count; ++i) {
    if (OwnQueue(host, ops[i].queue, "io submit") == nullptr) return VIRTBAY_FAILED_PRECONDITION;
  }
  return count == 0 ? VIRTBAY_OK : ThreadOf(host, ops[0].queue)->SubmitIo(ops, count);
}

int64_t Transfer(virtbay_request* raw, bool read, int32_t fd, uint64_t file_offset, uint32_t offset,
                 uint32_t len, uint32_t rw_flags) {
  InFlightRequest* request = OwnRequest(raw, read ? "read" : "write");
  if (request == nullptr) return -EINVAL;
  return request->queue->Transfer(request, read, fd, file_offset, offset, len, rw_flags);
}

int64_t ReadNow(virtbay_request* raw, int32_t fd, uint64_t file_offset, uint32_t offset,
                uint32_t len, uint32_t rw_flags) {
  return Transfer(raw, true, fd, file_offset, offset, len, rw_flags | RWF_NOWAIT);
}

int64_t WriteNow(virtbay_request* raw, int32_t fd, uint64_t file_offset, uint32_t offset,
                 uint32_t len, uint32_t rw_flags) {
  return Transfer(raw, false, fd, file_offset, offset, len, rw_flags | RWF_NOWAIT);
}

int64_t ReadBlocking(virtbay_request* raw, int32_t fd, uint64_t file_offset, uint32_t offset,
                     uint32_t len, uint32_t rw_flags) {
  return Transfer(raw, true, fd, file_offset, offset, len, rw_flags);
}

int64_t WriteBlocking(virtbay_request* raw, int32_t fd, uint64_t file_offset, uint32_t offset,
                      uint32_t len, uint32_t rw_flags) {
  return Transfer(raw, false, fd, file_offset, offset, len, rw_flags);
}

int32_t CancelIo(virtbay_host_device* host, uint32_t index, uint64_t cookie) {
  Queue* queue = OwnQueue(host, index, "io cancel");
  if (queue == nullptr) return VIRTBAY_FAILED_PRECONDITION;
  queue->loop()->Cancel(queue->index(), cookie);
  return VIRTBAY_OK;
}

constexpr virtbay_io_service kIo = {
    sizeof(kIo), 0, &Submit, &ReadNow, &WriteNow, &ReadBlocking, &WriteBlocking, &CancelIo};

// ---- message ----------------------------------------------------------------------------------

int64_t Send(virtbay_host_device* host, uint32_t index, const virtbay_message* message) {
  Queue* queue = OwnQueue(host, index, "message send");
  return queue == nullptr ? -EINVAL : SendMessage(queue, *message);
}

int64_t Receive(virtbay_host_device* host, uint32_t index, virtbay_message* message) {
  Queue* queue = OwnQueue(host, index, "message receive");
  return queue == nullptr ? -EINVAL : ReceiveMessage(queue, message);
}

constexpr virtbay_message_service kMessage = {sizeof(kMessage), 0, &Send, &Receive};

// ---- the others -------------------------------------------------------------------------------

void WriteLog(virtbay_host_device* host, uint32_t level, const char* text, uint32_t len) {
  const uint32_t highest = static_cast<uint32_t>(LogLevel::kError);
  const auto as = static_cast<LogLevel>(std::min(level, highest));
  const Log& log = host->core->log;
  // A copy: the plugin's memory is not looked at with a lock held, since looking may be a crash.
  if (log.enabled(as)) log.Write(as, std::string(text, len));
}

uint32_t CurrentLogLevel(virtbay_host_device* host) {
  return static_cast<uint32_t>(host->core->log.level());
}

constexpr virtbay_log_service kLog = {sizeof(kLog), 0, &WriteLog, &CurrentLogLevel};

uint64_t NowNs() { return MonotonicNs(); }

int32_t SetTimer(virtbay_host_device* host, uint32_t index, uint64_t delay_ns, uint64_t cookie) {
  Queue* queue = OwnQueue(host, index, "timer set");
  if (queue == nullptr) return VIRTBAY_FAILED_PRECONDITION;
  uint64_t deadline = 0;
  if (__builtin_add_overflow(MonotonicNs(), delay_ns, &deadline)) deadline = UINT64_MAX - 1;
  queue->loop()->SetTimer(queue->index(), cookie, deadline);
  return VIRTBAY_OK;
}

int32_t CancelTimer(virtbay_host_device* host, uint32_t index, uint64_t cookie) {
  Queue* queue = OwnQueue(host, index, "timer cancel");
  if (queue == nullptr) return VIRTBAY_FAILED_PRECONDITION;
  queue->loop()->CancelTimer(queue->index(), cookie);
  return VIRTBAY_OK;
}

constexpr virtbay_timer_service kTimer = {sizeof(kTimer), 0, &NowNs, &SetTimer, &CancelTimer};

// What a guest that bounces can map of one request. It maps all pieces of a request before it sends
// it, so in a small pool a larger one would never be sent; a quarter leaves room for rings,
// descriptors and a second request.
uint64_t MaxMapping(const DeviceSpec& spec) {
  constexpr uint64_t kPage = 4096;
  if (spec.dma_mode != DmaMode::kAperture) return kMappingMax;
  return std::clamp<uint64_t>(spec.aperture.size / 4 / kPage * kPage, kPage, kMappingMax);
}

int32_t GetOption(virtbay_host_device* host, const char* key, char* buffer, uint32_t capacity) {
  const DeviceSpec& spec = host->core->spec;
  // What the host itself has to say.
  const bool bounces = spec.dma_mode == DmaMode::kAperture || spec.offer_access_platform;
  std::string own;
  const std::string* value = &own;
  if (absl::string_view(key) == VIRTBAY_OPTION_MAX_MAPPING) {
    if (!bounces) return -1;
    own = absl::StrCat(MaxMapping(spec));
  } else if (absl::string_view(key) == VIRTBAY_OPTION_RESTORES) {
    if (!host->restores) return -1;
    own = "true";
  } else if (absl::string_view(key) == VIRTBAY_OPTION_STATE_DIR) {
    if (spec.state_dir.empty()) return -1;
    own = spec.state_dir.string();
  } else {
    const auto found = spec.options.find(key);
    if (found == spec.options.end()) return -1;
    value = &found->second;
  }
  if (capacity > 0) {
    const size_t n = std::min<size_t>(value->size(), capacity - 1);
    std::memcpy(buffer, value->data(), n);
    buffer[n] = '\0';
  }
  return static_cast<int32_t>(value->size());
}

const char* OptionKey(virtbay_host_device* host, uint32_t index) {
  const auto& keys = host->core->option_keys;
  return index < keys.size() ? keys[index].c_str() : nullptr;
}

constexpr virtbay_config_service kConfig = {sizeof(kConfig), 0, &GetOption, &OptionKey};

uint64_t* Counter(virtbay_host_device* host, const char* name, const char* help) {
  return host->core->metrics.Cell(std::string(name), std::string(help == nullptr ? "" : help));
}

uint64_t* Gauge(virtbay_host_device* host, const char* name, const char* help) {
  return host->core->metrics.Cell(std::string(name), std::string(help == nullptr ? "" : help),
                                  MetricKind::kGauge);
}

constexpr virtbay_metrics_service kMetrics = {sizeof(kMetrics), 0, &Counter, &Gauge};

int32_t Offload(virtbay_host_device* host, uint32_t index, void (*work)(void*), void* argument,
                uint64_t cookie) {
  Queue* queue = OwnQueue(host, index, "offload");
  if (queue == nullptr || work == nullptr) return VIRTBAY_INVALID_ARGUMENT;
  return ThreadOf(host, index)->Offload(queue, work, argument, cookie);
}

constexpr virtbay_offload_service kOffload = {sizeof(kOffload), 0, &Offload};

uint32_t IsControlThread(virtbay_host_device* host) {
  const auto self = static_cast<uint64_t>(pthread_self());
  return host->control_thread.load(std::memory_order_relaxed) == self ? 1 : 0;
}

uint32_t TakeDescriptor(virtbay_host_device* host, uint32_t flags) {
  using Use = DescriptorBudget::Share::Use;
  Use use = (flags & VIRTBAY_DESCRIPTOR_CACHED) != 0 ? Use::kCached : Use::kGuest;
  if ((flags & VIRTBAY_DESCRIPTOR_OWN) != 0) use = Use::kOwn;
  // Not the guest's doing: init, a command.
  if (use == Use::kGuest && IsControlThread(host) != 0) use = Use::kControl;
  return host->core->descriptors->Take(use) ? 1 : 0;
}

void GiveDescriptor(virtbay_host_device* host) {
  using Use = DescriptorBudget::Share::Use;
  host->core->descriptors->Give(IsControlThread(host) != 0 ? Use::kControl : Use::kGuest);
}
void KeepDescriptors(virtbay_host_device* host, int32_t change) {
  host->core->descriptors->Keep(change);
}

constexpr virtbay_descriptor_service kDescriptors = {sizeof(kDescriptors), 0, &TakeDescriptor,
                                                     &GiveDescriptor, &KeepDescriptors};

void FailDevice(virtbay_host_device* host, const char* text, uint32_t len) {
  std::string why(text, len);
  if (host->serves.load(std::memory_order_acquire)) {
    host->core->PluginFailed(why);
    return;
  }
  absl::MutexLock lock(&host->mutex);
  if (host->failure.empty()) host->failure = std::move(why);
}

void CondemnThread(virtbay_host_device* host, uint32_t index, const char* text, uint32_t len) {
  if (OwnQueue(host, index, "condemn_thread") == nullptr) return;
  ThreadOf(host, index)->Condemn(std::string(text, len));
}

void ConfigChanged(virtbay_host_device* host) {
  if (host->serves.load(std::memory_order_acquire)) host->core->NotifyConfigChanged();
}

constexpr virtbay_device_service kDevice = {sizeof(kDevice), 0, &FailDevice, &CondemnThread,
                                            &ConfigChanged};

uint32_t IsQueueThread(virtbay_host_device* host, uint32_t index) {
  const DeviceCore* core = host->core;
  return index < core->queues.size() && core->queues[index]->OnOwnThread() ? 1 : 0;
}

constexpr virtbay_thread_check_service kThreadCheck = {sizeof(kThreadCheck), 0, &IsQueueThread,
                                                       &IsControlThread};

const void* FindService(const virtbay_host* /*host*/, const char* id) {
  struct Entry {
    const char* id;
    const void* table;
  };
  static constexpr Entry kServices[] = {
      {VIRTBAY_SERVICE_QUEUE, &kQueue},
      {VIRTBAY_SERVICE_MEMORY, &kMemory},
      {VIRTBAY_SERVICE_IO, &kIo},
      {VIRTBAY_SERVICE_LOG, &kLog},
      {VIRTBAY_SERVICE_TIMER, &kTimer},
      {VIRTBAY_SERVICE_CONFIG, &kConfig},
      {VIRTBAY_SERVICE_METRICS, &kMetrics},
      {VIRTBAY_SERVICE_OFFLOAD, &kOffload},
      {VIRTBAY_SERVICE_DEVICE, &kDevice},
      {VIRTBAY_SERVICE_THREAD_CHECK, &kThreadCheck},
      {VIRTBAY_SERVICE_DESCRIPTORS, &kDescriptors},
      {VIRTBAY_SERVICE_MESSAGE, &kMessage},
  };
  for (const Entry& entry : kServices) {
    if (std::strcmp(entry.id, id) == 0) return entry.table;
  }
  return nullptr;
}

constexpr virtbay_host kHost = {sizeof(kHost), VIRTBAY_ABI_MAJOR, VIRTBAY_ABI_MINOR,
                                "virtbay",     VIRTBAY_VERSION,   &FindService};

}  // namespace

const virtbay_host& HostTable() { return kHost; }

}  // namespace virtbay
