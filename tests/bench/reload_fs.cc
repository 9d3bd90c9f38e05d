#include <linux/fuse.h>

#include <array>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "hostif/guest/fuse_session.h"
#include "hostif/guest/in_process_transport.h"
#include "tests/bench/reload_load.h"

namespace virtbay::bench {
namespace {

class FsLoad final : public ReloadLoad {
 public:
  FsLoad(std::unique_ptr<guest::FuseSession> session, uint32_t depth)
      : session_(std::move(session)), queue_(session_->queue()), depth_(depth) {}
  ~FsLoad() override { Stop().IgnoreError(); }

 private:
  absl::Status Run() override {
    std::array<guest::FuseSlot*, 64> done;
    for (uint32_t i = 0; i < depth_; ++i) {
      guest::FuseSlot* slot = queue_.Acquire();
      if (slot == nullptr) return absl::ResourceExhaustedError("not enough slots");
      VIRTBAY_RETURN_IF_ERROR(Ask(slot));
    }
    queue_.Flush();
    while (queue_.in_flight() > 0) {
      const size_t n = queue_.Reap(done);
      if (n == 0) {
        VIRTBAY_RETURN_IF_ERROR(queue_.Wait());
        continue;
      }
      Answered(n);
      for (size_t i = 0; i < n; ++i) {
        if (done[i]->error() != 0) {
          return absl::InternalError(absl::StrCat("GETATTR: error ", done[i]->error()));
        }
        if (!stopped()) VIRTBAY_RETURN_IF_ERROR(Ask(done[i]));
      }
      queue_.Flush();
    }
    return absl::OkStatus();
  }
  absl::Status Ask(guest::FuseSlot* slot) {
    slot->Begin(FUSE_GETATTR, FUSE_ROOT_ID).Put(fuse_getattr_in{}).Expect(sizeof(fuse_attr_out));
    return queue_.Submit(slot);
  }

  const std::unique_ptr<guest::FuseSession> session_;
  guest::FuseQueue& queue_;
  const uint32_t depth_;
};

absl::Status LookUpAll(guest::FuseSession* session, uint32_t count) {
  guest::FuseQueue& queue = session->queue();
  guest::FuseSlot* slot = queue.Acquire();
  for (uint32_t i = 0; i < count; ++i) {
    slot->Begin(FUSE_LOOKUP, FUSE_ROOT_ID)
        .PutName(absl::StrCat("f", i))
        .Expect(sizeof(fuse_entry_out));
    VIRTBAY_RETURN_IF_ERROR(queue.Call(slot));
    if (slot->error() != 0) return absl::InternalError(absl::StrCat("LOOKUP: ", slot->error()));
  }
  queue.Release(slot);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ReloadLoad>> MakeFsLoad(Host* host, const std::string& plugin,
                                                       const std::string& share, uint32_t inodes,
                                                       uint32_t depth) {
  DeviceSpec spec;
  spec.name = kReloaded;
  spec.plugin = plugin;
  spec.options = {{"shared-dir", share}, {"tag", "bench"}};
  VIRTBAY_ASSIGN_OR_RETURN(const DeviceHandle device, host->Add(spec));
  VIRTBAY_ASSIGN_OR_RETURN(auto transport, guest::InProcessTransport::Attach(device));
  guest::FuseSessionOptions options;
  VIRTBAY_ASSIGN_OR_RETURN(
      auto session,
      guest::FuseSession::Create(std::unique_ptr<guest::Transport>(std::move(transport)),
                                 std::move(options)));
  VIRTBAY_RETURN_IF_ERROR(LookUpAll(session.get(), inodes));
  return std::make_unique<FsLoad>(std::move(session), depth);
}

}  // namespace virtbay::bench
