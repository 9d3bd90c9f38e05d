// Device: base class of a plugin's devices, and the noexcept trampolines from the C tables to it.
// Owned by the host between create and destroy. Thread tags are those of virtbay_device_ops.
// Define VIRTBAY_SDK_CHECKS=1 to have every trampoline check its state and thread.
#ifndef VIRTBAY_SDK_DEVICE_H_
#define VIRTBAY_SDK_DEVICE_H_

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "virtbay/sdk/abi.h"
#include "virtbay/sdk/host.h"
#include "virtbay/sdk/request.h"
#include "virtbay/sdk/result.h"
#include "virtbay/sdk/state.h"

#ifndef VIRTBAY_SDK_CHECKS
#define VIRTBAY_SDK_CHECKS 0
#endif

namespace virtbay::sdk {

/// What an initialised device asks for and offers.
struct Properties {
  uint32_t queue_count = 1;  ///< at least 1
  uint64_t features = 0;     ///< device-type bits 0 to 23 and 50 to 63 (virtio 1.3 2.2), and
                             ///< VIRTIO_F_IN_ORDER (35): see virtbay_device_properties
  uint32_t config_size = 0;  ///< bytes, at most 4096
};

/// What one queue asks for.
struct QueueProperties {
  uint32_t max_size = 0;      ///< 0: the host's limit
  uint32_t in_view = 1024;    ///< readable bytes in Request::in, copied before OnRequests
  uint32_t out_view = 1024;   ///< bytes of Request::out
  bool auxiliary = false;     ///< of no use by itself, see VIRTBAY_QUEUE_AUXILIARY
  uint32_t thread_group = 0;  ///< queues with the same number share a thread; 0: one of its own
};

/// A device of the plugin. Init and GetProperties and OnRequests must be given; the rest has
/// defaults. A function may throw: the device fails with the exception's text.
class Device {
 public:
  virtual ~Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  /// [control & CREATED] Reads options, opens what the device serves.
  virtual Status Init() = 0;
  /// [control & READY]
  virtual Properties GetProperties() const = 0;
  /// [control & READY]
  virtual QueueProperties GetQueueProperties(uint32_t /*queue*/) const { return {}; }
  /// [control & READY] What the driver acknowledged, bits 0 to 63.
  virtual Status Negotiate(uint64_t /*features*/) { return {}; }
  /// [control & READY] A front-end is there.
  virtual Status Activate() { return {}; }
  /// [control & ACTIVE] Requests may come.
  virtual Status Start() { return {}; }
  /// [control & QUIESCED]
  virtual void Stop() {}
  /// [control & ACTIVE] The front-end is gone.
  virtual void Deactivate() {}
  /// [control] Configuration space; the range is inside config_size. False: refused.
  virtual bool ReadConfig(uint32_t /*offset*/, std::span<std::byte> /*data*/) { return false; }
  /// [control] The driver writes to the configuration space. False: refused.
  virtual bool WriteConfig(uint32_t /*offset*/, std::span<const std::byte> /*data*/) {
    return false;
  }
  /// [queue & RUNNING] A batch, in ring order. Requests not moved away fail when this returns; when
  /// it throws they stay unanswered, and the plugin's next build gets them.
  virtual void OnRequests(uint32_t queue, std::span<Request> requests) = 0;
  /// [queue] See virtbay_device_ops.
  virtual void OnIo(uint32_t /*queue*/, std::span<const virtbay_io_result> /*results*/) {}
  /// [queue] A timer of Host::SetTimer.
  virtual void OnTimer(uint32_t /*queue*/, uint64_t /*cookie*/) {}
  /// [queue] Work of Host::Offload is done.
  virtual void OnOffload(uint32_t /*queue*/, void* /*argument*/, uint64_t /*cookie*/) {}
  /// [queue] End what is held; requeue what would not end by itself.
  virtual void Quiesce(uint32_t /*queue*/) {}
  /// [queue] Requests come again after a Quiesce.
  virtual void Resume(uint32_t /*queue*/) {}
  /// [queue & RUNNING] Last words before the last Quiesce, `reason` is VIRTBAY_FAREWELL_*: see
  /// virtbay_device_ops::farewell.
  virtual void Farewell(uint32_t /*queue*/, uint32_t /*reason*/) {}
  /// [control & not CREATED] A command of the host's, and its answer. A class that overrides this
  /// has the extension VIRTBAY_EXTENSION_CONTROL. A command that changes something answers within
  /// VIRTBAY_CONTROL_ANSWER_MIN bytes; one that is not known gives VIRTBAY_UNIMPLEMENTED.
  virtual Result<std::string> Control(std::string_view /*command*/, std::string_view /*text*/) {
    return Error{VIRTBAY_UNIMPLEMENTED, 0, "the device takes no commands"};
  }
  /// [control & QUIESCED|READY] What another device of this type needs to go on. Nothing is
  /// consumed. A class that overrides this, Restore and Release has the extension
  /// VIRTBAY_EXTENSION_STATE and can be reloaded under a running driver; it may have a static
  /// constexpr uint32_t kStateVersion (1) and kOldestState (1).
  virtual Status Save(StateWriter* /*state*/) {
    return Error{VIRTBAY_UNIMPLEMENTED, 0, "the device does not save its state"};
  }
  /// [control & READY, before the first Activate] Goes on with what another one saved.
  virtual Status Restore(StateReader* /*state*/) {
    return Error{VIRTBAY_UNIMPLEMENTED, 0, "the device does not save its state"};
  }
  /// [control & QUIESCED|READY] What was saved lives on elsewhere: lets go of it silently.
  virtual void Release() {}
  // A class may have a static bool MayRepeat(uint32_t queue, std::span<const std::byte> in,
  // uint32_t in_total, uint32_t out_total) noexcept: it has VIRTBAY_EXTENSION_REPEAT then.

  /// [any] Extension tables by id.
  virtual const void* Extension(const char* /*id*/) { return nullptr; }

  /// [any] The host's services; valid from Init on.
  const Host& host() const { return host_; }

 protected:
  Device() = default;

 private:
  template <typename T>
  friend struct DeviceGlue;
  Host host_;
};

/// @cond internal
// How the C tables reach a Device; a plugin author uses VIRTBAY_PLUGIN instead.
inline void FillError(virtbay_error* out, const Error& error) {
  if (out == nullptr || out->struct_size < sizeof(virtbay_error)) return;
  out->code = error.code;
  out->sys_errno = error.sys_errno;
  const size_t n = std::min(error.text.size(), sizeof(out->text) - 1);
  std::memcpy(out->text, error.text.data(), n);
  out->text[n] = '\0';
}

// Up to N requests on the stack; only as many as there are get made and destroyed.
template <uint32_t N>
class RequestBatch {
 public:
  RequestBatch(const Host* host, virtbay_request* const* raw, uint32_t count) : count_(count) {
    for (uint32_t i = 0; i < count; ++i) std::construct_at(data() + i, host, raw[i]);
  }
  ~RequestBatch() { std::destroy_n(data(), count_); }
  RequestBatch(const RequestBatch&) = delete;
  RequestBatch& operator=(const RequestBatch&) = delete;

  std::span<Request> span() { return {data(), count_}; }

 private:
  Request* data() { return reinterpret_cast<Request*>(storage_); }

  const uint32_t count_;
  alignas(Request) std::byte storage_[N * sizeof(Request)];
};

// The C side of one T: what the host holds, and the table of trampolines.
template <typename T>
struct DeviceGlue {
  virtbay_device base;  // first: the host's pointer is a pointer to this
  std::unique_ptr<T> device;
  StateWriter saved;

  static constexpr uint32_t kBatch = 64;
  static constexpr bool kSaves = !std::is_same_v<decltype(&T::Save), decltype(&Device::Save)>;

  static DeviceGlue* From(virtbay_device* d) { return reinterpret_cast<DeviceGlue*>(d); }

  // Runs a [control] function; an exception becomes an error.
  template <typename F>
  static int32_t Guard(virtbay_error* out, F&& body) noexcept {
    try {
      Status status = body();
      if (status.ok()) return VIRTBAY_OK;
      FillError(out, status.error());
      return status.error().code == VIRTBAY_OK ? VIRTBAY_UNKNOWN : status.error().code;
    } catch (const std::exception& e) {
      FillError(out, Error{VIRTBAY_INTERNAL, 0, std::string("exception: ") + e.what()});
    } catch (...) {
      FillError(out, Error{VIRTBAY_INTERNAL, 0, "exception of an unknown type"});
    }
    return VIRTBAY_INTERNAL;
  }

  // Runs a [queue] function; an exception fails the device.
  template <typename F>
  static void GuardQueue(virtbay_device* d, [[maybe_unused]] uint32_t queue, const char* what,
                         F&& body) noexcept {
    Device& device = *From(d)->device;
#if VIRTBAY_SDK_CHECKS
    if (!device.host().OnQueueThread(queue)) {
      device.host().Fail(std::string(what) + ": called on the wrong thread");
      return;
    }
#endif
    try {
      body();
    } catch (const std::exception& e) {
      device.host().Fail(std::string(what) + ": exception: " + e.what());
    } catch (...) {
      device.host().Fail(std::string(what) + ": exception of an unknown type");
    }
  }

  static int32_t Create(const virtbay_host* host, virtbay_host_device* device_host,
                        virtbay_device** out, virtbay_error* error) noexcept {
    return Guard(error, [&]() -> Status {
      Result<Host> services = Host::Create(host, device_host);
      if (!services.ok()) return services.error();
      auto glue = std::make_unique<DeviceGlue>();
      glue->base.ops = &kOps;
      glue->device = std::make_unique<T>();
      static_cast<Device&>(*glue->device).host_ = *services;
      *out = &glue.release()->base;
      return {};
    });
  }

  static int32_t Init(virtbay_device* d, virtbay_error* e) noexcept {
    return Guard(e, [&] { return From(d)->device->Init(); });
  }
  static void GetProperties(virtbay_device* d, virtbay_device_properties* out) noexcept {
    Guard(nullptr, [&]() -> Status {
      const Properties p = From(d)->device->GetProperties();
      out->queue_count = p.queue_count;
      out->features[0] = p.features;
      out->config_size = p.config_size;
      return {};
    });
  }
  static void GetQueueProperties(virtbay_device* d, uint32_t q,
                                 virtbay_queue_properties* out) noexcept {
    Guard(nullptr, [&]() -> Status {
      const QueueProperties p = From(d)->device->GetQueueProperties(q);
      out->max_size = p.max_size;
      out->in_view = p.in_view;
      out->out_view = p.out_view;
      constexpr size_t kEnd = offsetof(virtbay_queue_properties, flags) + sizeof(out->flags);
      if (out->struct_size >= kEnd) out->flags = p.auxiliary ? VIRTBAY_QUEUE_AUXILIARY : 0;
      constexpr size_t kGroupEnd =
          offsetof(virtbay_queue_properties, thread_group) + sizeof(out->thread_group);
      if (out->struct_size >= kGroupEnd) out->thread_group = p.thread_group;
      return {};
    });
  }
  static int32_t Negotiate(virtbay_device* d, const uint64_t f[2], virtbay_error* e) noexcept {
    return Guard(e, [&] { return From(d)->device->Negotiate(f[0]); });
  }
  static int32_t Activate(virtbay_device* d, virtbay_error* e) noexcept {
    return Guard(e, [&] { return From(d)->device->Activate(); });
  }
  static int32_t Start(virtbay_device* d, virtbay_error* e) noexcept {
    return Guard(e, [&] { return From(d)->device->Start(); });
  }
  static void OnRequests(virtbay_device* d, uint32_t q, virtbay_request* const* raw,
                         uint32_t n) noexcept {
    GuardQueue(d, q, "on_requests", [&] {
      T& self = *From(d)->device;
      const Host& host = static_cast<Device&>(self).host();
      while (n > 0) {
        const uint32_t count = std::min(n, kBatch);
        RequestBatch<kBatch> requests(&host, raw, count);
        try {
          self.OnRequests(q, requests.span());
        } catch (...) {
          // The device has failed. What it has not answered is another generation's, if one comes.
          for (Request& request : requests.span()) static_cast<void>(request.Release());
          throw;
        }
        raw += count;
        n -= count;
      }
    });
  }
  static void OnIo(virtbay_device* d, uint32_t q, const virtbay_io_result* r, uint32_t n) noexcept {
    GuardQueue(d, q, "on_io",
               [&] { From(d)->device->OnIo(q, std::span<const virtbay_io_result>(r, n)); });
  }
  static void OnTimer(virtbay_device* d, uint32_t q, uint64_t cookie) noexcept {
    GuardQueue(d, q, "on_timer", [&] { From(d)->device->OnTimer(q, cookie); });
  }
  static void OnOffload(virtbay_device* d, uint32_t q, void* a, uint64_t cookie) noexcept {
    GuardQueue(d, q, "on_offload", [&] { From(d)->device->OnOffload(q, a, cookie); });
  }
  static void Quiesce(virtbay_device* d, uint32_t q) noexcept {
    GuardQueue(d, q, "quiesce", [&] { From(d)->device->Quiesce(q); });
  }
  static void Resume(virtbay_device* d, uint32_t q) noexcept {
    GuardQueue(d, q, "resume", [&] { From(d)->device->Resume(q); });
  }
  static void Farewell(virtbay_device* d, uint32_t q, uint32_t reason) noexcept {
    GuardQueue(d, q, "farewell", [&] { From(d)->device->Farewell(q, reason); });
  }
  static void Stop(virtbay_device* d) noexcept {
    Guard(nullptr, [&]() -> Status { return From(d)->device->Stop(), Status(); });
  }
  static void Deactivate(virtbay_device* d) noexcept {
    Guard(nullptr, [&]() -> Status { return From(d)->device->Deactivate(), Status(); });
  }
  static int32_t ReadConfig(virtbay_device* d, uint32_t offset, void* data, uint32_t len) noexcept {
    return Guard(nullptr, [&]() -> Status {
      if (From(d)->device->ReadConfig(offset, {static_cast<std::byte*>(data), len})) return {};
      return InvalidArgument("config read refused");
    });
  }
  static int32_t WriteConfig(virtbay_device* d, uint32_t offset, const void* data,
                             uint32_t len) noexcept {
    return Guard(nullptr, [&]() -> Status {
      if (From(d)->device->WriteConfig(offset, {static_cast<const std::byte*>(data), len})) {
        return {};
      }
      return InvalidArgument("config write refused");
    });
  }
  static int32_t Control(virtbay_device* d, const char* command, const char* text,
                         uint32_t text_len, char* answer, uint32_t capacity, uint32_t* answer_len,
                         virtbay_error* e) noexcept {
    return Guard(e, [&]() -> Status {
      Result<std::string> result = From(d)->device->Control(command, {text, text_len});
      if (!result.ok()) return result.error();
      *answer_len = static_cast<uint32_t>(result->size());
      if (result->size() > capacity) {
        return Error{VIRTBAY_OUT_OF_RANGE, 0, "the answer needs more room"};
      }
      // NOLINTNEXTLINE(bugprone-not-null-terminated-result): its length is in answer_len
      std::memcpy(answer, result->data(), result->size());
      return {};
    });
  }
  static int32_t Save(virtbay_device* d, virtbay_state* out, virtbay_error* e) noexcept {
    return Guard(e, [&]() -> Status {
      StateWriter& saved = From(d)->saved = StateWriter();
      Status status = From(d)->device->Save(&saved);
      if (!status.ok()) return status;
      out->version = kStateVersion;
      out->bytes = reinterpret_cast<const uint8_t*>(saved.bytes().data());
      out->size = saved.bytes().size();
      out->fds = saved.fds().data();
      out->fd_count = static_cast<uint32_t>(saved.fds().size());
      return {};
    });
  }
  static int32_t Restore(virtbay_device* d, const virtbay_state* in, virtbay_error* e) noexcept {
    return Guard(e, [&]() -> Status {
      StateReader state(in->version, {reinterpret_cast<const std::byte*>(in->bytes), in->size},
                        {in->fds, in->fd_count});
      if (!state.ok()) return InvalidArgument("the state is not well formed");
      return From(d)->device->Restore(&state);
    });
  }
  static void Release(virtbay_device* d) noexcept {
    Guard(nullptr, [&]() -> Status { return From(d)->device->Release(), Status(); });
  }
  static constexpr uint32_t kStateVersion = [] {
    if constexpr (requires { T::kStateVersion; }) return uint32_t{T::kStateVersion};
    return uint32_t{1};
  }();
  static constexpr uint32_t kOldestState = [] {
    if constexpr (requires { T::kOldestState; }) return uint32_t{T::kOldestState};
    return uint32_t{1};
  }();
  static constexpr bool kRepeats = requires { &T::MayRepeat; };
  static int32_t MayRepeat(virtbay_device* /*d*/, uint32_t queue, const uint8_t* in,
                           uint32_t in_len, uint32_t in_total, uint32_t out_total) noexcept {
    if constexpr (kRepeats) {
      const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(in), in_len);
      return T::MayRepeat(queue, bytes, in_total, out_total) ? 1 : 0;
    }
    return 0;
  }
  static const void* Extension(virtbay_device* d, const char* id) noexcept {
    constexpr bool kTakesCommands =
        !std::is_same_v<decltype(&T::Control), decltype(&Device::Control)>;
    if (kTakesCommands && std::string_view(id) == VIRTBAY_EXTENSION_CONTROL) return &kControl;
    if (kSaves && std::string_view(id) == VIRTBAY_EXTENSION_STATE) return &kState;
    if (kRepeats && std::string_view(id) == VIRTBAY_EXTENSION_REPEAT) return &kRepeat;
    const void* table = nullptr;
    Guard(nullptr, [&]() -> Status {
      table = From(d)->device->Extension(id);
      return {};
    });
    return table;
  }
  static void Destroy(virtbay_device* d) noexcept {
    Guard(nullptr, [&]() -> Status {
      delete From(d);
      return {};
    });
  }

  static constexpr virtbay_device_control kControl = {sizeof(virtbay_device_control), 0, &Control};
  static constexpr virtbay_device_state kState = {
      sizeof(virtbay_device_state), kStateVersion, kOldestState, 0, &Save, &Restore, &Release};
  static constexpr virtbay_device_repeat kRepeat = {sizeof(virtbay_device_repeat), 0, &MayRepeat};

  static constexpr virtbay_device_ops kOps = {sizeof(virtbay_device_ops),
                                              0,
                                              &Init,
                                              &GetProperties,
                                              &GetQueueProperties,
                                              &Negotiate,
                                              &Activate,
                                              &Start,
                                              &OnRequests,
                                              &OnIo,
                                              &OnTimer,
                                              &OnOffload,
                                              &Quiesce,
                                              &Resume,
                                              &Stop,
                                              &Deactivate,
                                              &ReadConfig,
                                              &WriteConfig,
                                              &Extension,
                                              &Destroy,
                                              &Farewell};
};

/// @endcond

}  // namespace virtbay::sdk

#endif  // VIRTBAY_SDK_DEVICE_H_
