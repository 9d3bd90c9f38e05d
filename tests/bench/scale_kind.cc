#include "tests/bench/scale_kind.h"

#include <fcntl.h>

#include <filesystem>
#include <map>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "hostif/device_host/control_client.h"
#include "hostif/guest/fuse_session.h"
#include "hostif/guest/net_client.h"
#include "hostif/guest/vhost_user_transport.h"

namespace virtbay::bench {
namespace {

using nlohmann::json;

constexpr uint32_t kBlock = 4096;
constexpr size_t kFrame = 64;

json AddDevice(const std::string& name, const char* plugin, const std::string& socket,
               const json& options) {
  return {
      {"command", "add"},
      {"device", {{"name", name}, {"plugin", plugin}, {"socket", socket}, {"options", options}}}};
}

absl::StatusOr<std::unique_ptr<guest::FuseSession>> FuseOf(const std::string& socket,
                                                           uint16_t queue_size) {
  VIRTBAY_ASSIGN_OR_RETURN(auto transport, guest::VhostUserTransport::Connect(socket));
  guest::FuseSessionOptions session;
  session.queue_size = queue_size;
  session.queue.depth = 1;
  session.queue.max_data = kBlock;
  session.hiprio_depth = 1;
  return guest::FuseSession::Create(std::move(transport), std::move(session));
}

// A file `data`, read in blocks.
class OpenFile {
 public:
  absl::Status Open(guest::FuseClient* fs, uint64_t directory) {
    fs_ = fs;
    const auto found = fs->Lookup(directory, "data");
    if (!found.ok()) return absl::InternalError(absl::StrCat("lookup: ", found.error));
    node_ = found.value.nodeid;
    const auto opened = fs->Open(node_, O_RDONLY);
    if (!opened.ok()) return absl::InternalError(absl::StrCat("open: ", opened.error));
    handle_ = opened.value.fh;
    return absl::OkStatus();
  }
  absl::Status Read() {
    const auto data = fs_->Read(node_, handle_, 0, kBlock);
    if (data.ok() && data.value.size() == kBlock) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat("read: ", data.error));
  }
  // So that it is idle again.
  void Close() {
    fs_->Release(node_, handle_);
    fs_->Forget(node_, 1);
  }

 private:
  guest::FuseClient* fs_ = nullptr;
  uint64_t node_ = 0;
  uint64_t handle_ = 0;
};

class VirtiofsKind final : public ScaleKind {
 public:
  explicit VirtiofsKind(ScalePlace place) : place_(std::move(place)) {}

  absl::StatusOr<json> AddRequest(const std::string& name) const override {
    return AddDevice(name, "virtiofs", Socket(name), {{"shared-dir", place_.share}});
  }
  json RemoveRequest(const std::string& name) const override {
    return {{"command", "remove"}, {"name", name}};
  }
  absl::Status Connect(const std::string& name) override {
    VIRTBAY_ASSIGN_OR_RETURN(sessions_[name], FuseOf(Socket(name), place_.queue_size));
    return absl::OkStatus();
  }
  void Disconnect(const std::string& name) override { sessions_.erase(name); }
  absl::Status Open(const std::string& name) override {
    return file_.Open(&sessions_.at(name)->client(), guest::kFuseRootId);
  }
  absl::Status Request() override { return file_.Read(); }
  void Close() override { file_.Close(); }

 private:
  std::string Socket(const std::string& name) const {
    return absl::StrCat(place_.sockets, "/", name);
  }

  const ScalePlace place_;
  std::map<std::string, std::unique_ptr<guest::FuseSession>> sessions_;
  OpenFile file_;
};

// A frame goes out and comes back.
class VirtioNetKind final : public ScaleKind {
 public:
  explicit VirtioNetKind(ScalePlace place) : place_(std::move(place)) {}

  // One that stays idle: what the first one brings for all is not counted.
  absl::Status Begin() override {
    VIRTBAY_ASSIGN_OR_RETURN(const json add, AddRequest("base-net"));
    return device_host::CallControl(place_.control, add).status();
  }
  absl::StatusOr<json> AddRequest(const std::string& name) const override {
    return AddDevice(name, "virtio-net", Socket(name), {{"backend", "loop"}});
  }
  json RemoveRequest(const std::string& name) const override {
    return {{"command", "remove"}, {"name", name}};
  }
  absl::Status Connect(const std::string& name) override {
    VIRTBAY_ASSIGN_OR_RETURN(auto transport, guest::VhostUserTransport::Connect(Socket(name)));
    guest::NetClientOptions options;
    options.queue_size = place_.queue_size;
    options.indirect = false;  // whose tables would be most of the memory
    options.rx_buffers = 4;
    VIRTBAY_ASSIGN_OR_RETURN(options.memory, guest::GuestMemory::Create(4u << 20));
    VIRTBAY_ASSIGN_OR_RETURN(clients_[name],
                             guest::NetClient::Create(std::move(transport), std::move(options)));
    return absl::OkStatus();
  }
  void Disconnect(const std::string& name) override { clients_.erase(name); }
  absl::Status Open(const std::string& name) override {
    client_ = clients_.at(name).get();
    return absl::OkStatus();
  }
  absl::Status Request() override {
    VIRTBAY_RETURN_IF_ERROR(client_->Send(0, {}, frame_));
    VIRTBAY_ASSIGN_OR_RETURN(const guest::NetFrame back, client_->Receive(0));
    if (back.data != frame_) return absl::DataLossError("another frame came back");
    return client_->WaitSent(0);
  }
  void Close() override { client_ = nullptr; }

 private:
  std::string Socket(const std::string& name) const {
    return absl::StrCat(place_.sockets, "/", name);
  }

  const ScalePlace place_;
  const std::string frame_ = std::string(kFrame, '\x42');
  std::map<std::string, std::unique_ptr<guest::NetClient>> clients_;
  guest::NetClient* client_ = nullptr;
};

// A share of one device that carries them all.
class ShareKind final : public ScaleKind {
 public:
  explicit ShareKind(ScalePlace place) : place_(std::move(place)) {}

  absl::Status Begin() override {
    const std::string socket = absl::StrCat(place_.sockets, "/", kDevice, ".sock");
    const json add = AddDevice(kDevice, "virtiofs", socket, {{"aggregate", true}});
    VIRTBAY_RETURN_IF_ERROR(device_host::CallControl(place_.control, add).status());
    VIRTBAY_ASSIGN_OR_RETURN(session_, FuseOf(socket, place_.queue_size));
    return absl::OkStatus();
  }
  absl::StatusOr<json> AddRequest(const std::string& name) const override {
    // The same directory twice would be one share.
    const std::string path = absl::StrCat(place_.sockets, "/shares/", name);
    std::error_code error;
    std::filesystem::create_directories(path, error);
    std::filesystem::copy_file(place_.share + "/data", path + "/data",
                               std::filesystem::copy_options::skip_existing, error);
    if (error) return absl::InternalError(absl::StrCat(path, ": ", error.message()));
    return json{
        {"command", "share-add"}, {"device", kDevice}, {"share", {{"name", name}, {"path", path}}}};
  }
  json RemoveRequest(const std::string& name) const override {
    return {{"command", "share-remove"}, {"device", kDevice}, {"name", name}};
  }
  // The guest knows it.
  absl::Status Connect(const std::string& name) override {
    const auto found = session_->client().Lookup(guest::kFuseRootId, name);
    if (!found.ok()) return absl::InternalError(absl::StrCat("lookup: ", found.error));
    roots_[name] = found.value.nodeid;
    return absl::OkStatus();
  }
  void Disconnect(const std::string& name) override {
    session_->client().Forget(roots_.at(name), 1);
    roots_.erase(name);
  }
  absl::Status Open(const std::string& name) override {
    return file_.Open(&session_->client(), roots_.at(name));
  }
  absl::Status Request() override { return file_.Read(); }
  void Close() override { file_.Close(); }

 private:
  static constexpr char kDevice[] = "shares";

  const ScalePlace place_;
  std::unique_ptr<guest::FuseSession> session_;
  std::map<std::string, uint64_t> roots_;
  OpenFile file_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ScaleKind>> ScaleKind::Make(const std::string& kind,
                                                           ScalePlace place) {
  if (kind == "virtiofs") return std::make_unique<VirtiofsKind>(std::move(place));
  if (kind == "virtio-net") return std::make_unique<VirtioNetKind>(std::move(place));
  if (kind == "share") return std::make_unique<ShareKind>(std::move(place));
  return absl::InvalidArgumentError(absl::StrCat("kind: '", kind, "'"));
}

}  // namespace virtbay::bench
