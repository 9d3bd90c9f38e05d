// The virtio-fs device (virtio 1.3 5.11): a FUSE server for one or many host directories.
#include <linux/virtio_fs.h>

#include <array>
#include <cstring>
#include <span>

#include "plugins/virtiofs/dispatch.h"
#include "plugins/virtiofs/fs.h"
#include "plugins/virtiofs/ops.h"
#include "plugins/virtiofs/state/format.h"
#include "plugins/virtiofs/state/state.h"
#include "plugins/virtiofs/worker.h"
#include "virtbay/sdk/plugin.h"

namespace {

namespace sdk = virtbay::sdk;
using virtbay::sdk::Device;
using virtbay::sdk::Properties;
using virtbay::sdk::QueueProperties;
using virtbay::sdk::Request;
using virtbay::sdk::Status;
using virtbay::virtiofs::Dispatch;
using virtbay::virtiofs::Fs;
using virtbay::virtiofs::LockWaiters;
using virtbay::virtiofs::RestoreState;
using virtbay::virtiofs::SaveState;
using virtbay::virtiofs::Worker;

constexpr uint32_t kVirtioIdFs = 26;
constexpr uint32_t kView = 1024;

class VirtioFs : public Device {
 public:
  static constexpr auto& kOptions = virtbay::virtiofs::kOptionList;
  static constexpr uint32_t kStateVersion = virtbay::virtiofs::state::kVersion;

  Status Init() override {
    Status status = fs_.Init(&host());
    if (!status.ok()) return status;
    for (uint32_t queue = 0; queue < workers_.size(); ++queue) workers_[queue].queue = queue;
    std::memcpy(config_.tag, fs_.options.tag.data(), fs_.options.tag.size());
    config_.num_request_queues = fs_.options.request_queues;
    return {};
  }

  // Queue 0 is hiprio (virtio 1.3 5.11.2); FORGET and INTERRUPT never wait behind a request.
  Properties GetProperties() const override {
    return {.queue_count = 1 + fs_.options.request_queues, .config_size = sizeof(config_)};
  }
  QueueProperties GetQueueProperties(uint32_t queue) const override {
    return {.in_view = kView, .out_view = kView, .auxiliary = queue == 0};
  }

  static bool MayRepeat(uint32_t /*queue*/, std::span<const std::byte> in, uint32_t /*in_total*/,
                        uint32_t /*out_total*/) noexcept {
    return virtbay::virtiofs::MayRepeat(in);
  }

  Status Start() override {
    for (Worker& worker : workers_) {
      worker.identity.Unbind();
      worker.condemned = false;
    }
    return {};
  }

  // Stop leaves the session alone: a front-end that pauses goes on with it. Deactivate ends it.
  // Closing is enough, and right as well where a reload is undone: the one before has it all open.
  void Deactivate() override {
    fs_.ShareWithAnother();
    fs_.DropSession();
  }

  void OnRequests(uint32_t queue, std::span<Request> requests) override {
    Worker& worker = workers_[queue];
    fs_.TakeOver();
    worker.identity.Bind(fs_.proc_fd);
    for (Request& request : requests) Dispatch(fs_, worker, std::move(request));
    if (worker.retry_parked) RetryParked(fs_, worker);
  }

  void OnIo(uint32_t queue, std::span<const virtbay_io_result> results) override {
    Worker& worker = workers_[queue];
    for (const virtbay_io_result& result : results) {
      if (result.cookie == virtbay::virtiofs::kLockPollCookie) {
        OnLockPoll(fs_, worker);
      } else {
        OnAsyncResult(fs_, worker, result);
      }
    }
  }

  void OnOffload(uint32_t queue, void* /*argument*/, uint64_t cookie) override {
    OnAsyncOffload(fs_, workers_[queue], cookie);
  }

  void OnTimer(uint32_t queue, uint64_t /*cookie*/) override { RetryParked(fs_, workers_[queue]); }

  void Quiesce(uint32_t queue) override { RequeueParked(fs_, workers_[queue]); }
  void Resume(uint32_t queue) override { workers_[queue].identity.Unbind(); }

  sdk::Result<std::string> Control(std::string_view command, std::string_view text) override {
    if (fs_.aggregate != nullptr) return fs_.aggregate->Control(command, text);
    return sdk::Error{VIRTBAY_FAILED_PRECONDITION, 0,
                      "the device is not an aggregate of shares (option aggregate)"};
  }

  Status Save(sdk::StateWriter* state) override { return SaveState(fs_, state); }
  Status Restore(sdk::StateReader* state) override { return RestoreState(fs_, state); }
  void Release() override {
    fs_.ShareWithAnother();
    fs_.DropSession();
  }

  bool ReadConfig(uint32_t offset, std::span<std::byte> data) override {
    if (offset > sizeof(config_) || data.size() > sizeof(config_) - offset) return false;
    std::memcpy(data.data(), reinterpret_cast<const std::byte*>(&config_) + offset, data.size());
    return true;
  }

 private:
  Fs fs_;  // before workers_: what is under way refers to its tables
  std::array<Worker, LockWaiters::kMaxQueues> workers_;
  virtio_fs_config config_ = {};
};

}  // namespace

VIRTBAY_PLUGIN(VirtioFs, "virtiofs", kVirtioIdFs, VIRTBAY_DEVICE_QUEUE_PARALLEL);
