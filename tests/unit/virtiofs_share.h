// Share: a directory served by the virtiofs plugin in this process, and a FUSE session on it.
// Owned by the test; the session's clients are used on the test's threads.
#ifndef VIRTBAY_TESTS_UNIT_VIRTIOFS_SHARE_H_
#define VIRTBAY_TESTS_UNIT_VIRTIOFS_SHARE_H_

#include <gtest/gtest.h>

#include <cerrno>
#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hostif/guest/fuse_session.h"
#include "hostif/guest/in_process_transport.h"
#include "tests/support/log_capture.h"
#include "tests/support/ring_layout.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"
#include "virtbay/host.h"

namespace virtbay::testing {

inline constexpr uint64_t kRoot = guest::kFuseRootId;

inline std::span<const std::byte> Bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}
inline std::string Text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

struct ShareOptions {
  std::map<std::string, std::string> options;  // of the plugin, shared-dir apart
  guest::FuseSessionOptions session;
  bool access_platform = false;  // offered: the guest may bounce its DMA
  bool aggregate = false;        // no directory of its own; dir() is there for its shares
};

class Share {
 public:
  using Options = ShareOptions;

  // Check ready() (ASSERT_TRUE) before anything else.
  explicit Share(Options options = Options()) {
    HostOptions host_options;
    host_options.log = log_.log();
    auto host = Host::Create(std::move(host_options));
    EXPECT_OK(host);
    if (!host.ok()) return;
    host_ = *std::move(host);
    spec_.name = "share";
    spec_.plugin = VIRTBAY_VIRTIOFS_PLUGIN;
    spec_.options = options.options;
    spec_.offer_access_platform = options.access_platform;
    if (options.aggregate) {
      spec_.options.emplace("aggregate", "true");
    } else {
      spec_.options.emplace("shared-dir", dir_.path().native());
    }
    auto device = host_->Add(spec_);
    EXPECT_OK(device);
    if (!device.ok()) return;
    device_ = *device;
    Connect(std::move(options.session));
  }
  ~Share() { session_.reset(); }

  // A new front-end, after the old one has gone.
  void Connect(guest::FuseSessionOptions options = {}) {
    session_.reset();
    options.packed |= kPackedRings;
    auto transport = guest::InProcessTransport::Attach(device_);
    EXPECT_OK(transport);
    if (!transport.ok()) return;
    auto session = guest::FuseSession::Create(*std::move(transport), std::move(options));
    EXPECT_OK(session);
    if (session.ok()) session_ = *std::move(session);
  }
  // Another device goes on with the state of this one, and the guest with its session there.
  void Replace() {
    guest::FuseSessionOptions options;
    options.negotiated = session_->init();
    options.request_queues = session_->request_queues();
    auto state = device_.Save();
    ASSERT_OK(state);
    session_.reset();
    ASSERT_OK(host_->Remove(spec_.name));
    auto device = host_->Add(spec_, *std::move(state));
    ASSERT_OK(device);
    device_ = *device;
    Connect(std::move(options));
    ASSERT_TRUE(ready());
  }
  void Disconnect() { session_.reset(); }

  bool ready() const { return session_ != nullptr; }
  const TempDir& dir() const { return dir_; }
  guest::FuseSession& session() { return *session_; }
  guest::FuseClient& fs(uint32_t queue = 0) { return session_->client(queue); }
  Host& host() { return *host_; }
  const DeviceSpec& spec() const { return spec_; }
  const DeviceHandle& device() const { return device_; }
  const LogCapture& log() const { return log_; }
  uint64_t Metric(const std::string& name) {
    auto info = device_.Inspect();
    return info.ok() ? info->metrics[name] : 0;
  }

  // Looks the path up from the root; nodeid 0 on failure.
  uint64_t Node(std::string_view path) {
    uint64_t at = kRoot;
    while (!path.empty()) {
      const size_t slash = path.find('/');
      const auto reply = fs().Lookup(at, path.substr(0, slash));
      if (!reply.ok()) return 0;
      at = reply.value.nodeid;
      path = slash == std::string_view::npos ? std::string_view() : path.substr(slash + 1);
    }
    return at;
  }
  // Opens by path; fh 0 on failure.
  uint64_t OpenPath(std::string_view path, uint32_t flags) {
    const auto reply = fs().Open(Node(path), flags);
    EXPECT_EQ(reply.error, 0) << path;
    return reply.ok() ? reply.value.fh : 0;
  }

 private:
  TempDir dir_;
  LogCapture log_;
  std::unique_ptr<Host> host_;
  DeviceSpec spec_;
  DeviceHandle device_;
  std::unique_ptr<guest::FuseSession> session_;
};

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_UNIT_VIRTIOFS_SHARE_H_
