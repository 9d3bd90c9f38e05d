// Host: the embedding API. A Host loads plugins and keeps devices, each in a bay of its own: a
// private arena, its own queue threads and io_uring. It installs no signal handler unless it is
// asked to contain crashes, runs no global loop and never ends the process. Owned by the embedder;
// every function is [any] and may block for the time of the change it makes.
#ifndef VIRTBAY_HOST_H_
#define VIRTBAY_HOST_H_

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "framework/base/export.h"
#include "framework/base/log.h"
#include "framework/base/unique_fd.h"
#include "virtbay/aperture.h"
#include "virtbay/device_port.h"
#include "virtbay/record.h"
#include "virtbay/trace.h"

namespace virtbay {

struct HostOptions {
  Log log;                                         // default: drops everything
  std::vector<std::filesystem::path> plugin_dirs;  // after VIRTBAY_PLUGIN_PATH
  absl::Duration stuck_callback_warning = absl::Seconds(10);
  // Bytes, rounded up to 2 MiB, of the arena that devices with ArenaPolicy::kShared have together;
  // made with the first of them.
  uint64_t shared_arena_size = 64u << 20;
  // For development, best effort (docs/isolation.md): a fault in a callback of a plugin (SIGSEGV,
  // SIGBUS, SIGFPE, SIGILL, SIGABRT) fails its device and not the process. Installs the CrashGuard;
  // Host::Create answers Unimplemented in a build with sanitizers.
  bool contain_crashes = false;
};

// How a device reaches guest memory; see docs/life-of-a-request.md.
enum class DmaMode { kBounce, kDirect, kAperture };

// Where the rings of a device with an aperture may lie. A guest's coherent memory is inside a
// restricted-dma-pool, but outside a pool that only bounces.
enum class RingPlacement { kAnywhere, kPool };

// How a value was spelled where values have types (a TOML file, JSON).
enum class OptionKind { kText, kBoolean, kInteger, kNumber };

// An error of Host::Add that is about one option carries its name as this payload.
inline constexpr char kOptionPayload[] = "virtbay/option";

// Whose arena a device takes its slots from. kShared is there to be compared with: one arena with
// one lock for all devices that have it, as a guest's single SWIOTLB, so that one device can keep
// the others waiting, and their plugins can reach each other's requests.
enum class ArenaPolicy { kPrivate, kShared };

struct DeviceSpec {
  std::string name;    // unique in the Host; letters, digits, '-', '_', '.', at most 64
  std::string plugin;  // a name to look up, or a path
  std::string type;    // device type of the plugin; empty: its only one
  std::map<std::string, std::string> options;  // handed to the plugin
  // Of options that were not given as text: refused where the plugin declares another type.
  std::map<std::string, OptionKind> option_kinds;

  DmaMode dma_mode = DmaMode::kBounce;
  Aperture aperture;  // kAperture: all of guest memory that is mapped for the device, rings apart
  RingPlacement rings = RingPlacement::kAnywhere;
  ArenaPolicy arena_policy = ArenaPolicy::kPrivate;  // kShared: not with kAperture
  uint64_t arena_size = 64u << 20;                   // kPrivate: bytes, rounded up to 2 MiB
  uint16_t queue_size_max = 1024;                    // power of two
  bool offer_packed_ring = true;                     // VIRTIO_F_RING_PACKED (virtio 1.3 2.8)
  bool offer_access_platform = false;  // VIRTIO_F_ACCESS_PLATFORM (virtio 1.3 6); kAperture: always
  // Adaptive polling: a queue thread keeps looking at its rings for up to this long after work
  // while requests keep arriving; zero turns polling off.
  absl::Duration poll_window_max = absl::Microseconds(200);
  // Of one core, per 100 ms of a queue thread: looking in vain, or for longer than the sleep that a
  // request in time saves (60 us).
  uint32_t poll_share_max_percent = 50;
  // Cached reads of 512 KiB and more are copied by two threads: the queue's and a helper that
  // sleeps in between. Not used where the process has a single CPU.
  bool transfer_helper = true;
  // Every queue is served by the same thread, even where the plugin would have them in parallel, so
  // that the order in which they are taken is the order of the work: for records.
  bool one_thread = false;
  absl::Duration stop_deadline = absl::Seconds(10);
  // A directory of the device's own, readable and writable by its user alone, in which it may keep
  // what another process goes on with after this one was killed. Empty: nothing is kept.
  std::filesystem::path state_dir = {};
};

struct QueueStats {
  uint64_t requests = 0;     // chains taken
  uint64_t completions = 0;  // used entries published
  uint64_t kicks = 0;        // times the thread was woken by the driver
  uint64_t calls = 0;        // notifications sent
  uint64_t calls_suppressed = 0;
  uint64_t batches = 0;           // bursts that took at least one chain
  uint64_t poll_hits = 0;         // poll windows that saw work
  uint64_t poll_misses = 0;       // poll windows that closed without
  uint64_t slot_waits = 0;        // times the ring, or a request in it, waited for arena slots
  uint64_t slot_wait_ns = 0;      // for how long, the waits that go on included
  uint64_t bytes_copied_in = 0;   // guest -> arena
  uint64_t bytes_copied_out = 0;  // arena -> guest
  uint64_t bytes_direct = 0;      // payload moved without a copy of ours
  uint64_t syscalls = 0;          // made by the framework for this queue
  uint64_t parks_refused = 0;     // times a request could not be kept for long, see park
  uint32_t in_flight = 0;
  uint32_t parked = 0;  // of those in flight: kept for as long as it takes (a lock that is awaited)
  bool running = false;
  bool broken = false;
  // Where its ring lies in guest memory (virtio 1.3 2.7), in descriptors and guest addresses; a
  // size of 0 while it does not run. Packed (2.8): avail and used are the event suppression areas
  // of driver and device.
  bool ring_packed = false;
  uint16_t ring_size = 0;
  uint64_t ring_descriptors = 0;
  uint64_t ring_avail = 0;
  uint64_t ring_used = 0;
};

// What a plugin's cell holds: a number that only grows, or one that goes up and down.
enum class MetricKind { kCounter, kGauge };

struct DeviceInfo {
  std::string name;
  std::string plugin;
  std::filesystem::path plugin_path;
  std::string plugin_version;
  std::string plugin_build;
  uint32_t generation = 1;  // one more with each reload
  std::string type;
  uint32_t virtio_id = 0;
  std::string state;     // "ready", "running", "failed", or "stopped" by its host
  std::string dma_mode;  // "bounce", "direct" or "aperture"
  Aperture aperture;     // size 0: none
  RingPlacement rings = RingPlacement::kAnywhere;
  bool connected = false;
  bool needs_reset = false;
  std::string failure;   // why it needs a reset, or waits for a reload
  uint32_t crashes = 0;  // of its plugin that were contained; the last one's generation may serve
  uint64_t features = 0;
  std::string arena_policy;  // "private" or "shared"
  uint64_t arena_size = 0;   // bytes; of the whole arena, as arena_slots
  uint32_t arena_slots = 0;
  uint32_t arena_slots_used = 0;  // by this device, as the high-water mark
  uint32_t arena_slots_high_water = 0;
  uint64_t cpu_ns = 0;  // of its queue threads
  uint64_t dma_violations = 0;
  std::vector<QueueStats> queues;
  std::map<std::string, uint64_t> metrics;  // the plugin's counters and gauges
  std::map<std::string, std::string> metric_help;
  std::map<std::string, MetricKind> metric_kind;
  std::map<std::string, std::string> options;
};

// What a device was, for another one of its type to go on with: its own bytes and descriptors (TAP
// interfaces, sockets of connections ...). Descriptors are this one's own.
struct DeviceState {
  struct Fd {
    uint32_t role = 0;
    UniqueFd fd;
  };
  std::string type;
  uint32_t version = 0;  // of the plugin's, of the bytes
  std::string bytes;
  std::vector<Fd> fds;
};

// What another device has to be like to go on in a device's place.
struct DeviceShape {
  std::string type;
  uint32_t virtio_id = 0;
  uint32_t queues = 0;
  uint32_t config_size = 0;
  uint64_t features = 0;  // that the driver has acknowledged
  // It has a state to go on with, of this version; without one the other begins afresh.
  bool has_state = false;
  uint32_t state_version = 0;
};

// A device that was stopped where it is, for one of another process to go on with.
struct LeftDevice {
  DeviceShape shape;
  DeviceState state;            // if the shape has one
  std::vector<LeftRing> rings;  // by queue
  std::string config;           // the configuration space
};

struct ReloadOptions {
  std::filesystem::path from;  // the new image; empty: the file that the device's came from
  // How long requests may take to end or be handed back; if they do not, nothing changes.
  absl::Duration quiesce_deadline = absl::Seconds(2);
  // For so long, or until it has answered its first requests, a new device that fails is replaced
  // by the old one again.
  absl::Duration trial = absl::Milliseconds(50);
};

// What a reload did, and how long each phase of it took.
struct ReloadReport {
  std::string device;
  uint32_t generation = 0;
  std::string version_before, version_after;
  std::string build_before, build_after;
  bool state_restored = false;  // else the new device began afresh
  uint64_t state_bytes = 0;
  uint32_t state_fds = 0;
  uint32_t requests_handed_over = 0;
  uint32_t requests_failed = 0;  // of a plugin that had crashed with them
  bool image_unloaded = false;   // no device used the old one any more
  absl::Duration stage, quiesce, save, restore, commit, trial, retire;
  absl::Duration pause;  // in which no request was taken: quiesce to commit
};

// Why a device ends for good.
enum class FarewellReason {
  kRemoved,   // it alone
  kHostEnds,  // its host's process, in an orderly way
};

class Device;  // framework/device

// A device of a Host: a copyable reference that outlives the device harmlessly (its functions then
// return NotFound).
class VIRTBAY_EXPORT DeviceHandle {
 public:
  DeviceHandle() = default;
  explicit DeviceHandle(std::weak_ptr<Device> device) : device_(std::move(device)) {}

  // The device's one port. AlreadyExists while another front-end holds it. `events` must outlive
  // the port. The port keeps the device's memory alive, but Host::Remove ends its service.
  absl::StatusOr<std::unique_ptr<DevicePort>> Attach(DevicePortEvents* events) const;
  absl::StatusOr<DeviceInfo> Inspect() const;
  // Stops serving: every ring stops, the front-end's port answers Unavailable until Start.
  absl::Status Stop() const;
  absl::Status Start() const;
  // Has the plugin carry out a command of its device type, with or without a front-end, and returns
  // its answer. Unimplemented when the type takes no commands or not this one, else what the plugin
  // says.
  absl::StatusOr<std::string> Control(const std::string& command, absl::string_view text) const;
  // Stops serving for good and returns the device's state, which another one goes on with; this one
  // lets go of it without a word to anybody, and is to be removed: Start, Control and Save answer
  // FailedPrecondition. Unimplemented when devices of its type have none. With an error the device
  // is stopped as with Stop, and can be started again.
  absl::StatusOr<DeviceState> Save() const;
  // What a device of another process has to be like to go on in its place. FailedPrecondition when
  // none can: its plugin neither saves its state nor says that it needs none, or the device has
  // failed, or is stopped.
  absl::StatusOr<DeviceShape> Shape() const;
  // Stops the device where it is, with every request ended or handed back, and saves its state.
  // Nothing of it runs from then on, and every call but Inspect answers Unavailable, until Resume
  // or Release. What goes wrong is as with Host::Reload, and then it serves on.
  absl::StatusOr<LeftDevice> Suspend(absl::Duration quiesce_deadline) const;
  // Takes Suspend back: the device serves on where it was.
  absl::Status Resume() const;
  // After Suspend: another process goes on with the device. This one lets go of it without a word
  // to anybody, and is to be removed.
  absl::Status Release() const;
  // Has a device of Host::Stage go on with what was left, before its first front-end is attached.
  // The rings go on when a port starts them where they stopped. An error of the plugin's own, or
  // InvalidArgument; the device is to be removed then.
  absl::Status Restore(LeftDevice left) const;
  // Asks the plugin for its last words to the guest (a router takes back what it advertised), once,
  // while the rings run; returns without waiting for them. Host::Remove and ~Host do so; this is
  // for who ends the device, but has to stop a front-end's server before.
  absl::Status Farewell(FarewellReason reason) const;
  // Records what happens on its queues until the trace is destroyed, whatever sessions and reloads
  // come meanwhile; each queue has room for `events` (at most 2^24) between two calls of Take.
  // AlreadyExists while there is another one.
  absl::StatusOr<std::unique_ptr<DeviceTrace>> StartTrace(uint32_t events = 1u << 16) const;
  // Records what its queues are sent and what they answer until the record is destroyed, in the
  // same way. AlreadyExists while there is another one.
  absl::StatusOr<std::unique_ptr<DeviceRecord>> StartRecord(const RecordOptions& options) const;

 private:
  std::weak_ptr<Device> device_;
};

class VIRTBAY_EXPORT Host {
 public:
  static absl::StatusOr<std::unique_ptr<Host>> Create(HostOptions options);
  virtual ~Host() = default;

  // Loads the plugin and makes the device; ready for a front-end on return. AlreadyExists,
  // NotFound (plugin), InvalidArgument (spec, the plugin's own refusal) with the device's name.
  virtual absl::StatusOr<DeviceHandle> Add(DeviceSpec spec) = 0;
  // The same, going on with the state of another device, which is used up (left empty) as soon as
  // the plugin is given it, also when the plugin then refuses it. With an error of before it stays
  // the caller's, whole: whatever is wrong with `spec`; FailedPrecondition: the state is of another
  // type, or of a version that the plugin does not take.
  virtual absl::StatusOr<DeviceHandle> Add(DeviceSpec spec, DeviceState&& state) = 0;
  // The same for a device that goes on in the place of one of another process, which serves
  // meanwhile: nobody is served before DeviceHandle::Restore. FailedPrecondition when it is not of
  // that shape, or does not take such a state.
  virtual absl::StatusOr<DeviceHandle> Stage(DeviceSpec spec, const DeviceShape& before) = 0;
  // Ends the device: rings stopped, plugin's device destroyed, image unloaded if it was the last.
  // NotFound. DeadlineExceeded when it is gone from here, but a callback of its plugin does not
  // return or I/O of it does not end: guest memory that it could reach may still be written.
  virtual absl::Status Remove(absl::string_view name) = 0;
  // Puts another image of the device's plugin in the place of the one that serves, under a running
  // driver: the new device is made ready beside the old one, the rings pause, the old one's state
  // goes to the new one, which goes on with the requests that were handed back. The guest sees a
  // pause at most. With any error the old device serves on, or again: NotFound; FailedPrecondition
  // (another type, queues, features or state than the driver knows; a plugin that cannot be
  // reloaded); DeadlineExceeded (requests do not end); what the new device says.
  virtual absl::StatusOr<ReloadReport> Reload(absl::string_view name, ReloadOptions options) = 0;
  virtual absl::StatusOr<DeviceHandle> Find(absl::string_view name) const = 0;
  virtual std::vector<std::string> List() const = 0;
  virtual absl::StatusOr<DeviceInfo> Inspect(absl::string_view name) const = 0;
  virtual const Log& log() const = 0;
};

}  // namespace virtbay

#endif  // VIRTBAY_HOST_H_
