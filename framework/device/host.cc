#include "virtbay/host.h"

#include <sys/stat.h>

#include <cerrno>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "framework/base/status.h"
#include "framework/device/descriptor_budget.h"
#include "framework/device/device.h"
#include "framework/device/services.h"
#include "framework/io/loop.h"
#include "framework/isolation/crash_guard.h"
#include "framework/memory/slot_pool.h"
#include "framework/plugin/plugin.h"

namespace virtbay {
namespace {

constexpr absl::Duration kShortestWatch = absl::Milliseconds(2);

// Identifies the contents of a plugin file: a rebuilt file is another image.
using ImageKey = std::tuple<std::filesystem::path, dev_t, ino_t, off_t, int64_t, int64_t>;

absl::StatusOr<ImageKey> KeyOf(const std::filesystem::path& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, path.string());
  return ImageKey{path,         info.st_dev,         info.st_ino,
                  info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec};
}

absl::Status CheckName(absl::string_view name) {
  bool good = !name.empty() && name.size() <= 64;
  for (const char c : name) {
    good = good &&
           (absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.');
  }
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("device name '", name, "' is not 1 to 64 letters, digits, '-', '_' or '.'"));
}

using Devices = std::map<std::string, std::shared_ptr<Device>, std::less<>>;
// When each device is to be looked at next.
using Looks = std::map<std::string, absl::Time, std::less<>>;

class HostImpl final : public Host {
 public:
  explicit HostImpl(HostOptions options)
      : options_(std::move(options)), search_(PluginSearch::FromEnvironment(options_.plugin_dirs)) {
    watchdog_ = std::thread([this] { Watch(); });
  }

  ~HostImpl() override {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    watchdog_.join();
    Devices devices;
    {
      absl::MutexLock lock(&mutex_);
      devices.swap(devices_);
    }
    for (auto& [name, device] : devices) device->Retire(FarewellReason::kHostEnds).IgnoreError();
  }

  absl::StatusOr<DeviceHandle> Add(DeviceSpec spec) override {
    return AddDevice(spec, nullptr, nullptr);
  }
  // NOLINTNEXTLINE(cppcoreguidelines-rvalue-reference-param-not-moved): only when it is used
  absl::StatusOr<DeviceHandle> Add(DeviceSpec spec, DeviceState&& state) override {
    return AddDevice(spec, &state, nullptr);
  }
  absl::StatusOr<DeviceHandle> Stage(DeviceSpec spec, const DeviceShape& before) override {
    return AddDevice(spec, nullptr, &before);
  }
  absl::StatusOr<DeviceHandle> AddDevice(const DeviceSpec& spec, DeviceState* state,
                                         const DeviceShape* before) {
    VIRTBAY_RETURN_IF_ERROR(CheckName(spec.name));
    const std::string name = spec.name;
    {
      // Holds the name while the plugin is loaded, which may take its time.
      absl::MutexLock lock(&mutex_);
      if (devices_.contains(name) || !adding_.try_emplace(name).second) {
        return absl::AlreadyExistsError(absl::StrCat("there is a device '", name, "' already"));
      }
    }
    absl::StatusOr<std::shared_ptr<Device>> device = MakeDevice(spec, state, before);
    absl::MutexLock lock(&mutex_);
    adding_.erase(name);
    if (!device.ok()) return Annotate(device.status(), absl::StrCat("device '", name, "'"));
    devices_.emplace(name, *device);
    added_ = true;
    return DeviceHandle(*device);
  }

  absl::Status Remove(absl::string_view name) override {
    std::shared_ptr<Device> device;
    {
      absl::MutexLock lock(&mutex_);
      const auto found = devices_.find(name);
      if (found == devices_.end()) return NoDevice(name);
      device = std::move(found->second);
      devices_.erase(found);
    }
    return Annotate(device->Retire(), absl::StrCat("device '", name, "'"));
  }

  absl::StatusOr<ReloadReport> Reload(absl::string_view name, ReloadOptions options) override {
    std::shared_ptr<Device> device;
    {
      absl::MutexLock lock(&mutex_);
      const auto found = devices_.find(name);
      if (found == devices_.end()) return NoDevice(name);
      device = found->second;
    }
    const std::string subject = absl::StrCat("device '", name, "': reload");
    const absl::Time begun = absl::Now();
    std::filesystem::path path = options.from;
    if (path.empty()) path = device->plugin_path();
    absl::StatusOr<std::shared_ptr<Plugin>> plugin = LoadImage(path);
    if (!plugin.ok()) return Annotate(plugin.status(), subject);
    const absl::Duration loaded = absl::Now() - begun;
    absl::StatusOr<ReloadReport> report = device->Reload(*std::move(plugin), options);
    if (!report.ok()) return Annotate(report.status(), subject);
    report->stage += loaded;
    return report;
  }

  absl::StatusOr<DeviceHandle> Find(absl::string_view name) const override {
    absl::MutexLock lock(&mutex_);
    const auto found = devices_.find(name);
    if (found == devices_.end()) return NoDevice(name);
    return DeviceHandle(found->second);
  }

  std::vector<std::string> List() const override {
    absl::MutexLock lock(&mutex_);
    std::vector<std::string> names;
    for (const auto& [name, device] : devices_) names.push_back(name);
    return names;
  }

  absl::StatusOr<DeviceInfo> Inspect(absl::string_view name) const override {
    VIRTBAY_ASSIGN_OR_RETURN(const DeviceHandle handle, Find(name));
    return handle.Inspect();
  }

  const Log& log() const override { return options_.log; }

 private:
  static absl::Status NoDevice(absl::string_view name) {
    return absl::NotFoundError(absl::StrCat("there is no device '", name, "'"));
  }

  absl::StatusOr<std::shared_ptr<Device>> MakeDevice(const DeviceSpec& spec, DeviceState* state,
                                                     const DeviceShape* before) {
    VIRTBAY_ASSIGN_OR_RETURN(std::filesystem::path path, FindPlugin(spec.plugin, search_));
    VIRTBAY_ASSIGN_OR_RETURN(std::shared_ptr<Plugin> plugin, LoadImage(path));
    std::shared_ptr<SlotPool> shared;
    if (spec.arena_policy == ArenaPolicy::kShared) {
      VIRTBAY_ASSIGN_OR_RETURN(shared, SharedPool());
    }
    std::shared_ptr<Device> device =
        Device::New(spec, options_.log, descriptors_, options_.contain_crashes);
    {
      absl::MutexLock lock(&mutex_);
      adding_[spec.name] = device;
      added_ = true;
    }
    const absl::Status made = device->Make(std::move(plugin), std::move(shared), state, before);
    if (made.ok()) return device;
    // The watchdog, which may be looking at it, is not to be the one that ends it.
    device->Retire().IgnoreError();
    return made;
  }

  absl::StatusOr<std::shared_ptr<SlotPool>> SharedPool() {
    absl::MutexLock lock(&mutex_);
    if (shared_pool_ == nullptr) {
      VIRTBAY_ASSIGN_OR_RETURN(shared_pool_,
                               SlotPool::Create("shared", options_.shared_arena_size));
    }
    return shared_pool_;
  }

  // Devices of the same file share one image; the last one to go unloads it.
  absl::StatusOr<std::shared_ptr<Plugin>> LoadImage(const std::filesystem::path& path) {
    VIRTBAY_ASSIGN_OR_RETURN(const ImageKey key, KeyOf(path));
    absl::MutexLock lock(&images_mutex_);
    std::erase_if(images_, [](const auto& entry) { return entry.second.expired(); });
    if (auto found = images_.find(key); found != images_.end()) {
      std::shared_ptr<Plugin> image = found->second.lock();
      if (image != nullptr && !image->damaged()) return image;
    }
    VIRTBAY_ASSIGN_OR_RETURN(
        std::shared_ptr<Plugin> image,
        Plugin::Load(path, HostTable(), options_.log, options_.contain_crashes));
    images_[key] = image;
    return image;
  }

  // A thread that its front-end holds up is freed by the second look, and may be held up once more:
  // before whoever stops the ring gives the device up. Another device's has nothing to do with it.
  absl::Duration PeriodOf(const Device& device) const {
    return std::max(kShortestWatch,
                    std::min(options_.stuck_callback_warning / 4, device.stop_deadline() / 8));
  }

  // Adds the devices whose look is due; the first one is due at once, or a period later.
  void AddDue(const Devices& devices, bool at_once, Looks* looks,
              std::vector<std::shared_ptr<Device>>* due) const {
    const absl::Time now = absl::Now();
    for (const auto& [name, device] : devices) {
      if (device == nullptr) continue;  // its plugin is being loaded
      const absl::Duration period = PeriodOf(*device);
      absl::Time& look = looks->try_emplace(name, at_once ? now : now + period).first->second;
      if (look > now) continue;
      look = now + period;
      due->push_back(device);
    }
  }

  void Watch() {
    Looks looks;
    for (;;) {
      std::vector<std::shared_ptr<Device>> devices;
      {
        absl::MutexLock lock(&mutex_);
        const auto woken = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
          return stopping_ || added_;
        };
        absl::Time next = absl::InfiniteFuture();
        for (const auto& [name, look] : looks) next = std::min(next, look);
        mutex_.AwaitWithDeadline(absl::Condition(&woken), next);
        if (stopping_) return;
        added_ = false;
        std::erase_if(looks, [this](const auto& look) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
          return !devices_.contains(look.first) && !adding_.contains(look.first);
        });
        AddDue(devices_, /*at_once=*/true, &looks, &devices);
        // What does not hang is made, or refused and gone, before the first look.
        AddDue(adding_, /*at_once=*/false, &looks, &devices);
      }
      for (const auto& device : devices) device->ReportStuck(options_.stuck_callback_warning);
    }
  }

  const HostOptions options_;
  const PluginSearch search_;
  const std::shared_ptr<DescriptorBudget> descriptors_ = std::make_shared<DescriptorBudget>();
  mutable absl::Mutex mutex_;
  Devices devices_ ABSL_GUARDED_BY(mutex_);
  // Null until its plugin is loaded.
  Devices adding_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<SlotPool> shared_pool_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool added_ ABSL_GUARDED_BY(mutex_) = false;  // the watchdog has a device more
  absl::Mutex images_mutex_;
  std::map<ImageKey, std::weak_ptr<Plugin>> images_ ABSL_GUARDED_BY(images_mutex_);
  std::thread watchdog_;
};

absl::StatusOr<std::shared_ptr<Device>> Lock(const std::weak_ptr<Device>& device) {
  std::shared_ptr<Device> locked = device.lock();
  if (locked == nullptr) return absl::NotFoundError("the device has been removed");
  return locked;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Host>> Host::Create(HostOptions options) {
  if (options.stuck_callback_warning < absl::Milliseconds(10)) {
    return absl::InvalidArgumentError("stuck_callback_warning is below 10 ms");
  }
  VIRTBAY_RETURN_IF_ERROR(Loop::Check());
  if (options.contain_crashes) VIRTBAY_RETURN_IF_ERROR(InstallCrashGuard());
  try {
    return std::make_unique<HostImpl>(std::move(options));
  } catch (const std::system_error& e) {
    return absl::ResourceExhaustedError(absl::StrCat("no thread for the watchdog: ", e.what()));
  }
}

absl::StatusOr<std::unique_ptr<DevicePort>> DeviceHandle::Attach(DevicePortEvents* events) const {
  VIRTBAY_ASSIGN_OR_RETURN(const std::shared_ptr<Device> device, Lock(device_));
  return device->Attach(events);
}

absl::StatusOr<DeviceInfo> DeviceHandle::Inspect() const {
  VIRTBAY_ASSIGN_OR_RETURN(const std::shared_ptr<Device> device, Lock(device_));
  return device->Inspect();
}

absl::Status DeviceHandle::Stop() const {
  VIRTBAY_ASSIGN_OR_RETURN(const std::shared_ptr<Device> device, Lock(device_));
  return device->Stop();
}

absl::Status DeviceHandle::Start() const {
  VIRTBAY_ASSIGN_OR_RETURN(const std::shared_ptr<Device> device, Lock(device_));
  return device->Start();
}

absl::StatusOr<std::string> DeviceHandle::Control(const std::string& command,
                                                  absl::string_view text) const {
  VIRTBAY_ASSIGN_OR_RETURN(const std::shared_ptr<Device> device, Lock(device_));
  return device->Control(command, text);
}

absl::Status DeviceHandle::Farewell(FarewellReason reason) const {
  VIRTBAY_ASSIGN_OR_RETURN(const std::shared_ptr<Device> device, Lock(device_));
  device->Farewell(reason);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<DeviceTrace>> DeviceHandle::StartTrace(uint32_t events) const {
  VIRTBAY_ASSIGN_OR_RETURN(const std::shared_ptr<Device> device, Lock(device_));
  return device->StartTrace(events);
}

absl::StatusOr<std::unique_ptr<DeviceRecord>> DeviceHandle::StartRecord(
    const RecordOptions& options) const {
  VIRTBAY_ASSIGN_OR_RETURN(const std::shared_ptr<Device> device, Lock(device_));
  return device->StartRecord(options);
}

absl::StatusOr<DeviceShape> DeviceHandle::Shape() const {
  VIRTBAY_ASSIGN_OR_RETURN(const std::shared_ptr<Device> device, Lock(device_));
  return device->Shape();
}

absl::StatusOr<LeftDevice> DeviceHandle::Suspend(absl::Duration quiesce_deadline) const {
  VIRTBAY_ASSIGN_OR_RETURN(const std::shared_ptr<Device> device, Lock(device_));
  return device->Suspend(quiesce_deadline);
}

absl::Status DeviceHandle::Resume() const {
  VIRTBAY_ASSIGN_OR_RETURN(const std::shared_ptr<Device> device, Lock(device_));
  return device->Resume();
}

absl::Status DeviceHandle::Release() const {
  VIRTBAY_ASSIGN_OR_RETURN(const std::shared_ptr<Device> device, Lock(device_));
  return device->Release();
}

absl::Status DeviceHandle::Restore(LeftDevice left) const {
  VIRTBAY_ASSIGN_OR_RETURN(const std::shared_ptr<Device> device, Lock(device_));
  return device->Restore(std::move(left));
}

absl::StatusOr<DeviceState> DeviceHandle::Save() const {
  VIRTBAY_ASSIGN_OR_RETURN(const std::shared_ptr<Device> device, Lock(device_));
  return device->Save();
}

}  // namespace virtbay
