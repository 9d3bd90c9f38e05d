// What the router of a proxy-net device says last: that it is one no more, when the device ends for
// good, and nothing when it only pauses.
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "hostif/guest/in_process_transport.h"
#include "hostif/guest/net_client.h"
#include "tests/support/status_matchers.h"
#include "virtbay/host.h"

namespace virtbay {
namespace {

// What the router said, to a driver that only listens.
class ProxyNetEndTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(host_, Host::Create(HostOptions{}));
    DeviceSpec spec;
    spec.name = "net";
    spec.plugin = VIRTBAY_PROXY_NET;
    spec.options = {{"ipv6", "on"}};
    ASSERT_OK_AND_ASSIGN(device_, host_->Add(spec));
    ASSERT_OK_AND_ASSIGN(auto transport, guest::InProcessTransport::Attach(device_));
    ASSERT_OK_AND_ASSIGN(client_, guest::NetClient::Create(std::move(transport), {}));
    // It serves, and has the buffers, when it has answered.
    ASSERT_OK(client_->Send(0, {}, Solicitation()));
    ASSERT_OK_AND_ASSIGN(const guest::NetFrame first, client_->Receive(0));
    EXPECT_EQ(Lifetime(first.data), 1800);
  }
  // A router solicitation (RFC 4861 4.1) of a guest without an address.
  static std::string Solicitation() {
    const char frame[] =
        "\x33\x33\0\0\0\2\x52\x54\0\0\0\1\x86\xdd"
        "\x60\0\0\0\0\x08\x3a\xff"
        "\xfe\x80\0\0\0\0\0\0\0\0\0\0\0\0\0\x15"
        "\xff\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\2"
        "\x85\0\x7b\xa4\0\0\0\0";
    return {frame, sizeof(frame) - 1};
  }
  // The router lifetime of an advertisement (RFC 4861 4.2), -1 for another frame.
  static int Lifetime(const std::string& frame) {
    constexpr size_t kAt = 14 + 40;
    if (frame.size() < kAt + 16 || frame[20] != 58 || static_cast<uint8_t>(frame[kAt]) != 134) {
      return -1;
    }
    return static_cast<uint8_t>(frame[kAt + 6]) << 8 | static_cast<uint8_t>(frame[kAt + 7]);
  }
  // Those that have come, to the last.
  std::vector<std::string> Advertisements() {
    std::vector<std::string> all;
    while (client_->HasFrame(0)) {
      const auto frame = client_->Receive(0);
      if (!frame.ok()) break;
      if (Lifetime(frame->data) >= 0) all.push_back(frame->data);
    }
    return all;
  }
  void ExpectTakenBack() {
    const std::vector<std::string> last = Advertisements();
    ASSERT_EQ(last.size(), 1u);
    EXPECT_EQ(Lifetime(last[0]), 0);
    // Of the prefix no address is to be made, and its resolver is not to be asked any more.
    size_t options = 0;
    for (size_t at = 14 + 40 + 16; at + 8 <= last[0].size();) {
      const size_t size = static_cast<uint8_t>(last[0][at + 1]) * 8;
      ASSERT_GT(size, 0u);
      const std::string zero(4, '\0');
      // Behind flags and valid lifetime; behind a reserved field.
      const size_t lifetime = last[0][at] == 3 ? 8 : last[0][at] == 25 ? 4 : 0;
      if (lifetime != 0) {
        EXPECT_EQ(last[0].substr(at + lifetime, 4), zero);
        ++options;
      }
      at += size;
    }
    EXPECT_EQ(options, 2u);
  }

  std::unique_ptr<Host> host_;
  DeviceHandle device_;
  std::unique_ptr<guest::NetClient> client_;
};

TEST_F(ProxyNetEndTest, TheRouterTakesBackWhatItSaidWhenTheDeviceIsRemoved) {
  ASSERT_OK(host_->Remove("net"));
  ExpectTakenBack();
}

TEST_F(ProxyNetEndTest, AndWhenTheHostEnds) {
  host_.reset();
  ExpectTakenBack();
}

TEST_F(ProxyNetEndTest, AndIsSilentAfterThat) {
  ASSERT_OK(device_.Farewell(FarewellReason::kHostEnds));
  ASSERT_OK(client_->Send(0, {}, Solicitation()));
  ASSERT_OK(client_->WaitSent(0));
  ASSERT_OK(host_->Remove("net"));
  ExpectTakenBack();
}

TEST_F(ProxyNetEndTest, ButNotWhenItIsStopped) {
  ASSERT_OK(device_.Stop());
  EXPECT_TRUE(Advertisements().empty());
  ASSERT_OK(host_->Remove("net"));
  EXPECT_TRUE(Advertisements().empty());
}

TEST_F(ProxyNetEndTest, NorWhenItsStateIsTaken) {
  ASSERT_OK(device_.Save().status());
  ASSERT_OK(host_->Remove("net"));
  EXPECT_TRUE(Advertisements().empty());
}

}  // namespace
}  // namespace virtbay
