// FakeHost: a host in plain memory, for the tests of a device whose sources are linked into the
// test: no thread, no ring, no time but the test's own, and failures where the test wants them.
// Everything happens inside the call that causes it. (Bay runs a plugin file on the real host.)
// Owned by a test; everything is on its one thread, which counts as every thread of the device.
#ifndef VIRTBAY_TESTKIT_FAKE_HOST_H_
#define VIRTBAY_TESTKIT_FAKE_HOST_H_

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "virtbay/sdk/abi.h"
#include "virtbay/sdk/result.h"

namespace virtbay::testkit {

/// How a request stands.
enum class End {
  kHeld,       ///< the device has it
  kCompleted,  ///< answered
  kFailed,     ///< ended with nothing written
  kRequeued,   ///< handed back
};

class FakeHost;

/// A buffer of the guest's, and what became of it. Valid as long as the FakeHost.
struct FakeRequest {
  virtbay_request raw{};                            ///< what the device gets; first
  FakeHost* host = nullptr;                         ///< whose it is
  End end = End::kHeld;                             ///< how it stands
  uint32_t written = 0;                             ///< bytes that the guest is told of
  std::string readable;                             ///< what the guest wrote
  std::string writable;                             ///< the guest's room; untouched bytes are 0xEE
  std::vector<std::unique_ptr<std::string>> slots;  ///< views and what fetch gave
};

/// See above.
class FakeHost {
 public:
  explicit FakeHost(std::map<std::string, std::string> options = {})
      : options_(std::move(options)) {}
  FakeHost(const FakeHost&) = delete;
  FakeHost& operator=(const FakeHost&) = delete;
  /// Ends the device as a host does.
  ~FakeHost() {
    if (device_ != nullptr) Destroy();
    if (Clock() == this) Clock() = nullptr;
  }

  // ---- failures ---------------------------------------------------------------------------------

  bool arena_full = false;       ///< fetch and reserve find no slots
  int io_error = 0;              ///< errno of every payload operation, if not 0
  bool io_waits = false;         ///< read_now and write_now give -EAGAIN: all goes through submit
  bool refuses_offload = false;  ///< offload takes nothing
  bool refuses_park = false;     ///< a request cannot be kept for long

  // ---- the device's life ------------------------------------------------------------------------

  /// Makes the device and calls init; the error is the plugin's.
  sdk::Status Create(const virtbay_plugin& entry, uint32_t type = 0) {
    virtbay_error error = Error();
    const auto* factory =
        static_cast<const virtbay_device_factory*>(entry.factory(VIRTBAY_FACTORY_DEVICE));
    if (factory == nullptr) return sdk::InvalidArgument("the plugin has no devices");
    int32_t code = factory->create(type, &host_.base, self(), &device_, &error);
    if (code != VIRTBAY_OK) return Of(code, error);
    code = ops().init(device_, &error);
    if (code == VIRTBAY_OK) return {};
    ops().destroy(std::exchange(device_, nullptr));
    return Of(code, error);
  }
  /// Negotiates these features (VIRTIO_F_VERSION_1 is added), activates and starts.
  sdk::Status Start(uint64_t features = 0) {
    virtbay_error error = Error();
    const uint64_t bits[2] = {features | uint64_t{1} << 32, 0};
    int32_t code = VIRTBAY_OK;
    if (ops().negotiate != nullptr) code = ops().negotiate(device_, bits, &error);
    if (code == VIRTBAY_OK && !active_ && ops().activate != nullptr) {
      code = ops().activate(device_, &error);
    }
    active_ = active_ || code == VIRTBAY_OK;
    if (code == VIRTBAY_OK && ops().start != nullptr) code = ops().start(device_, &error);
    if (code != VIRTBAY_OK) return Of(code, error);
    running_ = true;
    return {};
  }
  /// Quiesces every queue, lets end what ends, and stops. Requests that the device handed back
  /// are kRequeued, those that it kept against the rules stay kHeld.
  void Stop() {
    for (uint32_t queue = 0; queue < properties().queue_count; ++queue) {
      if (ops().quiesce != nullptr) ops().quiesce(device_, queue);
    }
    Run();
    if (ops().stop != nullptr) ops().stop(device_);
    running_ = false;
  }

  // ---- requests ---------------------------------------------------------------------------------

  /// Shows the device a buffer; what it does at once is done when this returns.
  FakeRequest& Present(std::string readable, uint32_t room, uint32_t queue = 0) {
    requests_.push_back(std::make_unique<FakeRequest>());
    FakeRequest& request = *requests_.back();
    request.host = this;
    virtbay_queue_properties how = {};
    how.struct_size = sizeof(how);
    if (ops().queue_properties != nullptr) ops().queue_properties(device_, queue, &how);
    request.readable = std::move(readable);
    request.writable.assign(room, '\xEE');
    request.raw.struct_size = sizeof(request.raw);
    request.raw.queue = static_cast<uint16_t>(queue);
    request.raw.head = static_cast<uint16_t>(requests_.size() - 1);
    request.raw.in_total = static_cast<uint32_t>(request.readable.size());
    request.raw.out_total = room;
    request.raw.in_len = std::min(request.raw.in_total, how.in_view);
    request.raw.out_len = std::min(room, how.out_view);
    request.raw.in = Slot(request, request.readable.substr(0, request.raw.in_len));
    request.raw.out = Slot(request, std::string(request.raw.out_len, '\0'));
    virtbay_request* const raw = &request.raw;
    ops().on_requests(device_, queue, &raw, 1);
    return request;
  }
  /// Carries out submitted I/O and offloaded work, and tells the device, until there is no more.
  /// A poll that is not ready stays.
  void Run() {
    for (bool more = true; more;) {
      more = RunIo();
      while (!work_.empty()) {
        const Work work = work_.front();
        work_.pop_front();
        work.run(work.argument);
        if (ops().on_offload != nullptr) {
          ops().on_offload(device_, work.queue, work.argument, work.cookie);
        }
        more = true;
      }
    }
  }
  /// Lets so much time pass: timers fire in their order.
  void Advance(uint64_t ns) {
    const uint64_t end = now_ns_ + ns;
    for (;;) {
      const auto next = std::min_element(timers_.begin(), timers_.end(),
                                         [](auto& a, auto& b) { return a.at < b.at; });
      if (next == timers_.end() || next->at > end) break;
      const Timer timer = *next;
      timers_.erase(next);
      now_ns_ = timer.at;
      if (ops().on_timer != nullptr) ops().on_timer(device_, timer.queue, timer.cookie);
      Run();
    }
    now_ns_ = end;
  }

  // ---- what the device said ---------------------------------------------------------------------

  const std::vector<std::string>& log() const { return log_; }  ///< its log lines
  const std::string& failure() const { return failure_; }       ///< why it needs a reset
  uint32_t config_changes() const { return config_changes_; }   ///< announcements of a change
  /// What it has done against the rules: ended a request twice, or with sizes that lie.
  const std::vector<std::string>& offences() const { return offences_; }
  /// A counter or gauge; ~0: none of that name.
  uint64_t Metric(const std::string& name) const {
    const auto found = cells_.find(name);
    return found == cells_.end() ? ~uint64_t{0} : *found->second;
  }
  /// Of the device.
  virtbay_device_properties properties() const {
    virtbay_device_properties all = {};
    all.struct_size = sizeof(all);
    ops().properties(device_, &all);
    return all;
  }
  virtbay_device* device() const { return device_; }  ///< the C device, for what is not here

 private:
  struct Host {
    virtbay_host base;  // first: a plugin's pointer is a pointer to this
    FakeHost* fake;
  };
  struct Work {
    void (*run)(void*);
    void* argument;
    uint32_t queue;
    uint64_t cookie;
  };
  struct Timer {
    uint32_t queue;
    uint64_t at;
    uint64_t cookie;
  };

  const virtbay_device_ops& ops() const { return *device_->ops; }
  void Destroy() {
    if (running_) Stop();
    if (active_ && ops().deactivate != nullptr) ops().deactivate(device_);
    ops().destroy(device_);
  }
  virtbay_host_device* self() { return reinterpret_cast<virtbay_host_device*>(this); }
  static FakeHost& Of(virtbay_host_device* host) { return *reinterpret_cast<FakeHost*>(host); }
  static virtbay_error Error() {
    virtbay_error error = {};
    error.struct_size = sizeof(error);
    return error;
  }
  static sdk::Error Of(int32_t code, const virtbay_error& error) {
    return {code, error.sys_errno, error.text};
  }
  static FakeRequest& Of(virtbay_request* request) {
    return *reinterpret_cast<FakeRequest*>(request);
  }
  static uint8_t* Slot(FakeRequest& request, std::string bytes) {
    request.slots.push_back(std::make_unique<std::string>(std::move(bytes)));
    return reinterpret_cast<uint8_t*>(request.slots.back()->data());
  }

  int32_t Finish(virtbay_request* raw, End end, uint32_t out_bytes, uint32_t written) {
    FakeRequest& request = Of(raw);
    if (request.end != End::kHeld) {
      offences_.push_back("request " + std::to_string(raw->head) + " ended twice");
      return VIRTBAY_FAILED_PRECONDITION;
    }
    const bool lies = out_bytes > raw->out_len || out_bytes > written || written > raw->out_total;
    request.end = lies ? End::kFailed : end;
    if (lies) {
      offences_.push_back("request " + std::to_string(raw->head) +
                          " completed with sizes that lie");
      return VIRTBAY_OUT_OF_RANGE;
    }
    request.written = written;
    std::memcpy(request.writable.data(), raw->out, out_bytes);
    return VIRTBAY_OK;
  }

  // Payload between a descriptor and the guest's bytes.
  int64_t Move(virtbay_request* raw, bool read, int32_t fd, uint64_t offset, uint32_t at,
               uint32_t len, uint32_t flags) {
    FakeRequest& request = Of(raw);
    std::string& bytes = read ? request.writable : request.readable;
    if (at > bytes.size() || len > bytes.size() - at) return -ERANGE;
    if (io_error != 0) return -io_error;
    const iovec piece = {bytes.data() + at, len};
    const off_t where = offset == VIRTBAY_IO_STREAM ? -1 : static_cast<off_t>(offset);
    const auto how = static_cast<int>(flags);
    const ssize_t n =
        read ? preadv2(fd, &piece, 1, where, how) : pwritev2(fd, &piece, 1, where, how);
    return n < 0 ? -errno : n;
  }

  bool RunIo() {
    bool any = false;
    for (size_t left = io_.size(); left > 0; --left) {
      const virtbay_io io = io_.front();
      io_.pop_front();
      int64_t result = -ECANCELED;
      const bool canceled = io.reserved != 0;  // see cancel
      if (!canceled && io.op == VIRTBAY_IO_POLL) {
        pollfd look = {io.fd, static_cast<short>(io.arg), 0};
        if (poll(&look, 1, 0) == 0) {
          io_.push_back(io);
          continue;
        }
        result = look.revents;
      } else if (!canceled) {
        result = RunOne(io);
      }
      any = true;
      const virtbay_io_result done = {io.cookie, io.request, static_cast<int32_t>(result), io.op};
      if (ops().on_io != nullptr) ops().on_io(device_, io.queue, &done, 1);
    }
    return any;
  }
  int64_t RunOne(const virtbay_io& io) {
    if (io.op == VIRTBAY_IO_READ || io.op == VIRTBAY_IO_WRITE) {
      return Move(io.request, io.op == VIRTBAY_IO_READ, io.fd, io.file_offset, io.payload_offset,
                  io.payload_len, io.rw_flags);
    }
    if (io_error != 0) return -io_error;
    if (io.op == VIRTBAY_IO_FSYNC) {
      return (io.arg == 1 ? fdatasync(io.fd) : fsync(io.fd)) == 0 ? 0 : -errno;
    }
    const auto offset = static_cast<off_t>(io.file_offset);
    const auto length = static_cast<off_t>(io.length);
    return fallocate(io.fd, static_cast<int>(io.arg), offset, length) == 0 ? 0 : -errno;
  }

  static const void* Service(const virtbay_host* host, const char* id);
  void Forget(uint32_t queue, uint64_t cookie) {
    std::erase_if(timers_, [&](const Timer& t) { return t.queue == queue && t.cookie == cookie; });
  }

  Host host_{{sizeof(virtbay_host), VIRTBAY_ABI_MAJOR, VIRTBAY_ABI_MINOR, "fake", "0", &Service},
             this};
  std::map<std::string, std::string> options_;
  virtbay_device* device_ = nullptr;
  bool active_ = false;
  bool running_ = false;
  uint64_t now_ns_ = 1;
  std::vector<std::unique_ptr<FakeRequest>> requests_;
  std::deque<virtbay_io> io_;
  std::deque<Work> work_;
  std::vector<Timer> timers_;
  std::map<std::string, std::unique_ptr<uint64_t>> cells_;
  std::vector<std::string> log_;
  std::vector<std::string> offences_;
  std::string failure_;
  uint32_t config_changes_ = 0;

  // ---- the services' tables ---------------------------------------------------------------------

  // The one whose time it is: now_ns is told no host. The last that made a device.
  static FakeHost*& Clock() {
    static thread_local FakeHost* clock = nullptr;
    return clock;
  }

  static constexpr virtbay_queue_service kQueue = {
      sizeof(virtbay_queue_service),
      0,
      [](virtbay_request* r, uint32_t out, uint32_t written) {
        return Of(r).host->Finish(r, End::kCompleted, out, written);
      },
      [](virtbay_request* r) { return Of(r).host->Finish(r, End::kFailed, 0, 0); },
      [](virtbay_request* r) { return Of(r).host->Finish(r, End::kRequeued, 0, 0); },
      [](virtbay_request* r) -> int32_t {
        if (Of(r).host->refuses_park) return VIRTBAY_RESOURCE_EXHAUSTED;
        r->in = nullptr;
        r->in_len = 0;
        r->out_len = std::min(r->out_len, VIRTBAY_PARKED_OUT);
        return VIRTBAY_OK;
      },
      [](const virtbay_completion* all, uint32_t count) {
        int32_t first = VIRTBAY_OK;
        for (uint32_t i = 0; i < count; ++i) {
          virtbay_request* const r = all[i].request;
          const int32_t code =
              Of(r).host->Finish(r, End::kCompleted, all[i].out_bytes, all[i].written);
          if (first == VIRTBAY_OK) first = code;
        }
        return first;
      }};
  static constexpr virtbay_memory_service kMemory = {
      sizeof(virtbay_memory_service), 0,
      [](virtbay_request* r, uint32_t offset, uint32_t len, const uint8_t** data) -> int32_t {
        FakeRequest& request = Of(r);
        if (offset > r->in_total || len > r->in_total - offset || len > VIRTBAY_MAPPING_MAX) {
          return VIRTBAY_OUT_OF_RANGE;
        }
        if (request.host->arena_full) return VIRTBAY_RESOURCE_EXHAUSTED;
        *data = Slot(request, request.readable.substr(offset, len));
        return VIRTBAY_OK;
      },
      [](virtbay_request* r, uint32_t len) -> int32_t {
        if (len > r->out_total || len > VIRTBAY_MAPPING_MAX) return VIRTBAY_OUT_OF_RANGE;
        if (len <= r->out_len) return VIRTBAY_OK;
        if (Of(r).host->arena_full) return VIRTBAY_RESOURCE_EXHAUSTED;
        r->out = Slot(Of(r), std::string(len, '\0'));
        r->out_len = len;
        return VIRTBAY_OK;
      }};
  template <bool kRead, bool kNow>
  static int64_t MoveNow(virtbay_request* r, int32_t fd, uint64_t offset, uint32_t at, uint32_t len,
                         uint32_t flags) {
    if (kNow && Of(r).host->io_waits) return -EAGAIN;
    return Of(r).host->Move(r, kRead, fd, offset, at, len, flags);
  }
  static constexpr virtbay_io_service kIo = {
      sizeof(virtbay_io_service),
      0,
      [](virtbay_host_device* host, const virtbay_io* all, uint32_t n) -> int32_t {
        Of(host).io_.insert(Of(host).io_.end(), all, all + n);
        return VIRTBAY_OK;
      },
      &MoveNow<true, true>,
      &MoveNow<false, true>,
      &MoveNow<true, false>,
      &MoveNow<false, false>,
      [](virtbay_host_device* host, uint32_t queue, uint64_t cookie) -> int32_t {
        for (virtbay_io& io : Of(host).io_) {
          if (io.queue == queue && io.cookie == cookie) io.reserved = 1;
        }
        return VIRTBAY_OK;
      }};
  int64_t Message(const virtbay_message& message, bool receive) {
    std::vector<iovec> pieces;
    if (message.prefix_len > 0) pieces.push_back({message.prefix, message.prefix_len});
    for (uint32_t i = 0; i < message.slice_count; ++i) {
      const virtbay_slice& slice = message.slices[i];
      std::string& bytes = receive ? Of(slice.request).writable : Of(slice.request).readable;
      if (slice.offset > bytes.size() || slice.len > bytes.size() - slice.offset) return -ERANGE;
      pieces.push_back({bytes.data() + slice.offset, slice.len});
    }
    if (io_error != 0) return -io_error;
    ssize_t n = 0;
    if (message.kind == VIRTBAY_MESSAGE_FILE) {
      // Never waits: the descriptor is to be non-blocking, as with a host.
      const auto count = static_cast<int>(pieces.size());
      n = receive ? readv(message.fd, pieces.data(), count)
                  : writev(message.fd, pieces.data(), count);
    } else {
      msghdr header = {};
      header.msg_name = message.name;
      header.msg_namelen = message.name_len;
      header.msg_iov = pieces.data();
      header.msg_iovlen = pieces.size();
      header.msg_control = message.control;
      header.msg_controllen = message.control_len;
      const int flags = static_cast<int>(message.flags) | MSG_DONTWAIT | MSG_NOSIGNAL;
      n = receive ? recvmsg(message.fd, &header, flags) : sendmsg(message.fd, &header, flags);
    }
    return n < 0 ? -errno : n;
  }
  static constexpr virtbay_message_service kMessage = {
      sizeof(virtbay_message_service), 0,
      [](virtbay_host_device* host, uint32_t, const virtbay_message* message) {
        return Of(host).Message(*message, false);
      },
      [](virtbay_host_device* host, uint32_t, virtbay_message* message) {
        return Of(host).Message(*message, true);
      }};
  static constexpr virtbay_log_service kLog = {
      sizeof(virtbay_log_service), 0,
      [](virtbay_host_device* host, uint32_t, const char* text, uint32_t len) {
        Of(host).log_.emplace_back(text, len);
      },
      [](virtbay_host_device*) { return VIRTBAY_LOG_TRACE; }};
  static constexpr virtbay_timer_service kTimer = {
      sizeof(virtbay_timer_service), 0,
      [] { return Clock() == nullptr ? uint64_t{0} : Clock()->now_ns_; },
      [](virtbay_host_device* host, uint32_t queue, uint64_t delay, uint64_t cookie) -> int32_t {
        Of(host).Forget(queue, cookie);
        Of(host).timers_.push_back({queue, Of(host).now_ns_ + delay, cookie});
        return VIRTBAY_OK;
      },
      [](virtbay_host_device* host, uint32_t queue, uint64_t cookie) -> int32_t {
        Of(host).Forget(queue, cookie);
        return VIRTBAY_OK;
      }};
  static constexpr virtbay_config_service kConfig = {
      sizeof(virtbay_config_service), 0,
      [](virtbay_host_device* host, const char* key, char* buffer, uint32_t capacity) -> int32_t {
        const auto found = Of(host).options_.find(key);
        if (found == Of(host).options_.end()) return -1;
        if (capacity > 0) {
          const size_t n = std::min<size_t>(found->second.size(), capacity - 1);
          std::memcpy(buffer, found->second.data(), n);
          buffer[n] = '\0';
        }
        return static_cast<int32_t>(found->second.size());
      },
      [](virtbay_host_device* host, uint32_t index) -> const char* {
        for (const auto& [key, value] : Of(host).options_) {
          if (key.starts_with("host.")) continue;
          if (index-- == 0) return key.c_str();
        }
        return nullptr;
      }};
  static uint64_t* Cell(virtbay_host_device* host, const char* name, const char*) {
    auto& cell = Of(host).cells_[name];
    if (cell == nullptr) cell = std::make_unique<uint64_t>(0);
    return cell.get();
  }
  static constexpr virtbay_metrics_service kMetrics = {sizeof(virtbay_metrics_service), 0, &Cell,
                                                       &Cell};
  static constexpr virtbay_offload_service kOffload = {
      sizeof(virtbay_offload_service), 0,
      [](virtbay_host_device* host, uint32_t queue, void (*work)(void*), void* argument,
         uint64_t cookie) -> int32_t {
        if (Of(host).refuses_offload) return VIRTBAY_RESOURCE_EXHAUSTED;
        Of(host).work_.push_back({work, argument, queue, cookie});
        return VIRTBAY_OK;
      }};
  static void Fail(virtbay_host_device* host, const char* text, uint32_t len) {
    if (Of(host).failure_.empty()) Of(host).failure_.assign(text, len);
  }
  static constexpr virtbay_device_service kDevice = {
      sizeof(virtbay_device_service), 0, &Fail,
      [](virtbay_host_device* host, uint32_t, const char* text, uint32_t len) {
        Fail(host, text, len);
      },
      [](virtbay_host_device* host) { ++Of(host).config_changes_; }};
  static constexpr virtbay_thread_check_service kThreads = {
      sizeof(virtbay_thread_check_service), 0, [](virtbay_host_device*, uint32_t) { return 1u; },
      [](virtbay_host_device*) { return 1u; }};
};

inline const void* FakeHost::Service(const virtbay_host* host, const char* id) {
  const std::string_view name = id;
  if (name == VIRTBAY_SERVICE_QUEUE) return &kQueue;
  if (name == VIRTBAY_SERVICE_MEMORY) return &kMemory;
  if (name == VIRTBAY_SERVICE_IO) return &kIo;
  if (name == VIRTBAY_SERVICE_MESSAGE) return &kMessage;
  if (name == VIRTBAY_SERVICE_LOG) return &kLog;
  if (name == VIRTBAY_SERVICE_TIMER) {
    Clock() = reinterpret_cast<const Host*>(host)->fake;
    return &kTimer;
  }
  if (name == VIRTBAY_SERVICE_CONFIG) return &kConfig;
  if (name == VIRTBAY_SERVICE_METRICS) return &kMetrics;
  if (name == VIRTBAY_SERVICE_OFFLOAD) return &kOffload;
  if (name == VIRTBAY_SERVICE_DEVICE) return &kDevice;
  if (name == VIRTBAY_SERVICE_THREAD_CHECK) return &kThreads;
  return nullptr;
}

}  // namespace virtbay::testkit

#endif  // VIRTBAY_TESTKIT_FAKE_HOST_H_
