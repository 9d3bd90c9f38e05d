#include "framework/device/generation.h"

#include <linux/virtio_config.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "framework/device/option_check.h"
#include "framework/device/plugin_call.h"
#include "framework/device/services.h"
#include "framework/memory/payload.h"
#include "framework/memory/slot_allocator.h"

namespace virtbay {
namespace {

constexpr uint32_t kMaxQueues = 256;
constexpr uint32_t kMaxConfigSize = 4096;
constexpr uint64_t Bit(unsigned n) { return uint64_t{1} << n; }

// Bits 0 to 23 and 50 to 63 belong to the device type (virtio 1.3 2.2). Of the others only
// VIRTIO_F_IN_ORDER is its to offer: whether a late answer may hold up the others it knows best.
constexpr uint64_t kDeviceBits = (Bit(24) - 1) | ~(Bit(50) - 1) | Bit(VIRTIO_F_IN_ORDER);

// The plugin's table may be older (shorter) or newer (longer) than ours.
template <typename T>
void CopySized(T* to, const T* from) {
  *to = T{};
  std::memcpy(static_cast<void*>(to), from, std::min<size_t>(from->struct_size, sizeof(T)));
}

absl::Status CheckQueue(uint32_t index, const virtbay_queue_properties& queue) {
  const uint64_t view = ((uint64_t{queue.in_view} + 15) & ~uint64_t{15}) + queue.out_view;
  if (view > kMappingMax) {
    return absl::InvalidArgumentError(absl::StrCat("queue ", index, " asks for views of ", view,
                                                   " bytes; ", kMappingMax, " are possible"));
  }
  if ((queue.max_size & (queue.max_size - 1)) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("queue ", index, " asks for a size of ",
                                                   queue.max_size, ", not a power of two"));
  }
  return absl::OkStatus();
}

template <size_t N>
std::string Text(const char (&text)[N]) {
  return std::string(text, strnlen(text, N));
}

}  // namespace

Generation::Generation(DeviceCore* core, std::shared_ptr<Plugin> plugin)
    : plugin_(std::move(plugin)), host_(std::make_unique<virtbay_host_device>(core)) {
  host_->plugin = plugin_.get();
  absl::MutexLock lock(&core->hosts_mutex);
  core->hosts.push_back(host_.get());
}

Generation::~Generation() {
  Destroy();
  {
    absl::MutexLock lock(&host_->core->hosts_mutex);
    std::erase(host_->core->hosts, host_.get());
  }
  if (!crashed()) return;
  // Threads of its own may still run its code, ask for services, and crash in their turn.
  static_cast<void>(host_.release());
  static_cast<void>(new std::shared_ptr<Plugin>(std::move(plugin_)));
}

absl::StatusOr<std::unique_ptr<Generation>> Generation::Make(DeviceCore* core,
                                                             std::shared_ptr<Plugin> plugin,
                                                             bool restores, uint32_t number) {
  std::unique_ptr<Generation> self(new Generation(core, std::move(plugin)));
  self->host_->restores = restores;
  self->host_->generation.store(number, std::memory_order_relaxed);
  VIRTBAY_RETURN_IF_ERROR(self->Init());
  VIRTBAY_RETURN_IF_ERROR(self->Describe());
  return self;
}

void Generation::Destroy() {
  if (device_ != nullptr) Tell("destroy", ops_.destroy);
  device_ = nullptr;
}

absl::Status Generation::Init() {
  const DeviceSpec& spec = host_->core->spec;
  uint32_t index = 0;
  VIRTBAY_ASSIGN_OR_RETURN(const virtbay_device_type* type, plugin_->FindType(spec.type, &index));
  virtio_id_ = type->virtio_id;
  queue_parallel_ = (type->flags & VIRTBAY_DEVICE_QUEUE_PARALLEL) != 0;
  type_ = Text(type->name);
  VIRTBAY_RETURN_IF_ERROR(CheckOptionKinds(*plugin_, index, spec));
  auto created = [&] {
    const ControlMark mark(host_.get(), "create");
    return plugin_->CreateDevice(index, HostTable(), host_.get());
  }();
  if (!created.ok()) return MarkOption(created.status());
  device_ = *created;
  CopySized(&ops_, device_->ops);
  return MarkOption(Call("init", ops_.init));
}

absl::Status Generation::Describe() {
  properties_.struct_size = sizeof(properties_);
  VIRTBAY_RETURN_IF_ERROR(CallOnControl(host_.get(), "properties", [&](virtbay_error*) {
    ops_.properties(device_, &properties_);
    return VIRTBAY_OK;
  }));
  if (properties_.queue_count == 0 || properties_.queue_count > kMaxQueues) {
    return absl::InvalidArgumentError(absl::StrCat("the plugin asks for ", properties_.queue_count,
                                                   " queues; 1 to ", kMaxQueues, " are possible"));
  }
  if (properties_.config_size > kMaxConfigSize) {
    return absl::InvalidArgumentError(absl::StrCat("the plugin asks for a configuration space of ",
                                                   properties_.config_size, " bytes"));
  }
  for (uint32_t i = 0; i < properties_.queue_count; ++i) {
    virtbay_queue_properties queue{};
    queue.struct_size = sizeof(queue);
    queue.in_view = 1024;
    queue.out_view = 1024;
    if (ops_.queue_properties != nullptr) {
      VIRTBAY_RETURN_IF_ERROR(CallOnControl(host_.get(), "queue_properties", [&](virtbay_error*) {
        ops_.queue_properties(device_, i, &queue);
        return VIRTBAY_OK;
      }));
    }
    VIRTBAY_RETURN_IF_ERROR(CheckQueue(i, queue));
    queues_.push_back(queue);
  }
  return absl::OkStatus();
}

absl::Status Generation::Call(const char* what,
                              int32_t (*function)(virtbay_device*, virtbay_error*)) {
  if (function == nullptr || crashed()) return absl::OkStatus();
  return CallOnControl(host_.get(), what,
                       [&](virtbay_error* error) { return function(device_, error); });
}

void Generation::Tell(const char* what, void (*function)(virtbay_device*)) {
  if (function == nullptr || crashed()) return;
  CallOnControl(host_.get(), what, [&](virtbay_error*) {
    function(device_);
    return VIRTBAY_OK;
  }).IgnoreError();
}

absl::Status Generation::Negotiate(uint64_t features) {
  if (ops_.negotiate == nullptr || crashed()) return absl::OkStatus();
  const uint64_t words[2] = {features, 0};
  return CallOnControl(host_.get(), "negotiate",
                       [&](virtbay_error* error) { return ops_.negotiate(device_, words, error); });
}

void Generation::Release() {
  if (const virtbay_device_state* table = StateTable()) Tell("release", table->release);
}

const void* Generation::Extension(const char* id) {
  if (ops_.extension == nullptr) return nullptr;
  const void* found = nullptr;
  CallOnControl(host_.get(), "extension", [&](virtbay_error*) {
    found = ops_.extension(device_, id);
    return VIRTBAY_OK;
  }).IgnoreError();
  return found;
}

const virtbay_device_state* Generation::StateTable() {
  const auto* table = static_cast<const virtbay_device_state*>(Extension(VIRTBAY_EXTENSION_STATE));
  const bool whole = table != nullptr && table->struct_size >= sizeof(*table) &&
                     table->save != nullptr && table->restore != nullptr &&
                     table->release != nullptr;
  return whole ? table : nullptr;
}

HeldRequest HeldRequest::From(uint16_t queue, const Chain& chain) {
  HeldRequest held{.queue = queue,
                   .head = chain.head(),
                   .in_total = chain.readable_bytes(),
                   .out_total = chain.writable_bytes(),
                   .in = {}};
  held.in.resize(std::min<size_t>(held.in_total, VIRTBAY_REPEAT_IN));
  held.in.resize(
      CopyFromSegments(chain.readable(), 0, held.in.data(), static_cast<uint32_t>(held.in.size())));
  return held;
}

bool Generation::MayRepeat(const HeldRequest& request) {
  const auto* table =
      static_cast<const virtbay_device_repeat*>(Extension(VIRTBAY_EXTENSION_REPEAT));
  if (table == nullptr || table->struct_size < sizeof(*table) || table->may_repeat == nullptr) {
    return false;
  }
  bool may = false;
  CallOnControl(host_.get(), "may_repeat", [&](virtbay_error*) {
    may = table->may_repeat(device_, request.queue, request.in.data(),
                            static_cast<uint32_t>(request.in.size()), request.in_total,
                            request.out_total) == 1;
    return VIRTBAY_OK;
  }).IgnoreError();
  return may;
}

DeviceShape Generation::Shape(uint64_t acknowledged) {
  DeviceShape shape;
  shape.type = type_;
  shape.virtio_id = virtio_id_;
  shape.queues = properties_.queue_count;
  shape.config_size = properties_.config_size;
  shape.features = acknowledged;
  if (const virtbay_device_state* table = StateTable(); table != nullptr) {
    shape.has_state = true;
    shape.state_version = table->version;
  }
  return shape;
}

absl::Status Generation::CheckFollows(const DeviceShape& before) const {
  std::string why;
  if (type_ != before.type || virtio_id_ != before.virtio_id) {
    why = absl::StrCat("it makes a device of type ", type_, ", virtio id ", virtio_id_,
                       "; this one is of type ", before.type, ", virtio id ", before.virtio_id);
  } else if (properties_.queue_count != before.queues) {
    why = absl::StrCat("it has ", properties_.queue_count, " queues; the driver knows ",
                       before.queues);
  } else if (properties_.config_size != before.config_size) {
    why = absl::StrCat("its configuration space has ", properties_.config_size,
                       " bytes; the driver knows ", before.config_size);
  } else if (const uint64_t missing = before.features & kDeviceBits & ~features(); missing != 0) {
    why = absl::StrCat("it does not offer the features 0x", absl::Hex(missing),
                       " that the driver has acknowledged");
  }
  return why.empty() ? absl::OkStatus() : absl::FailedPreconditionError(why);
}

absl::Status Generation::EarlyFailure() const {
  absl::MutexLock lock(&host_->mutex);
  if (host_->failure.empty()) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("the new device failed: ", host_->failure));
}

uint64_t Generation::features() const { return properties_.features[0] & kDeviceBits; }

std::string Generation::name() const { return Text(plugin_->entry().name); }
std::string Generation::version() const { return Text(plugin_->entry().version); }
std::string Generation::build() const { return Text(plugin_->entry().build); }

}  // namespace virtbay
