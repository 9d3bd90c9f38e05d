// What a driver has set by the control queue, in a device that goes on for another one.
#include <cstring>
#include <string>
#include <utility>

#include "tests/unit/net_device_fixture.h"

namespace virtbay::testing {
namespace {

using ::testing::HasSubstr;

class NetDeviceStateTest : public NetDeviceTest {
 protected:
  static constexpr uint32_t kSection = (uint32_t{1} << 31) + 1;

  static std::string Number(uint64_t value, size_t bytes) {
    return {reinterpret_cast<const char*>(&value), bytes};
  }
  void Command(uint8_t group, uint8_t number, const std::string& data) {
    const absl::StatusOr<uint8_t> ack = client_->Command(group, number, data);
    EXPECT_OK(ack);
    EXPECT_EQ(ack.value_or(9), 0) << int{group} << "/" << int{number};
  }
  // One of everything that there is to set.
  void SetAll() {
    Command(0, 0, Number(0, 1));
    Command(0, 1, Number(1, 1));
    Command(1, 0, Number(1, 4) + kOther + Number(0, 4));
    Command(1, 1, kMac);
    Command(2, 0, Number(7, 2));
    Command(4, 0, Number(2, 2));
    Command(5, 0, Number(Bit(1) | Bit(7), 8));
  }
  bool Passes(const FrameSpec& spec) {
    const uint64_t before = Count("committed") + Count("refused");
    const TestFrame frame = MakeFrame(spec);
    Give(Record(54), frame.bytes);
    WaitHandled(before + 1);
    if (!client_->HasFrame(0)) return false;
    const absl::StatusOr<NetFrame> got = client_->Receive(0);
    EXPECT_OK(got);
    return got.ok() && got->data == frame.bytes;
  }
  // Whether all of SetAll holds, or nothing of it.
  void Expect(bool set) {
    ExpectShown(set);
    EXPECT_EQ(Passes({}), !set) << "the address that it had";
    EXPECT_TRUE(Passes({.destination = kMac}));
    EXPECT_TRUE(Passes({.destination = kOther}));
    EXPECT_EQ(Passes({.destination = std::string("\x02\0\0\0\0\x78", 6)}), !set);
    EXPECT_TRUE(Passes({.destination = std::string("\x01\x00\x5e\0\0\x01", 6)}));
    EXPECT_EQ(Passes({.vlans = 1, .vlan_id = 7, .destination = kMac}), set);
    EXPECT_FALSE(Passes({.vlans = 1, .vlan_id = 8, .destination = kMac}));
  }
  void ExpectShown(bool set) {
    const std::string show = *device_.Control("show", "");
    EXPECT_THAT(show, HasSubstr(set ? "\"active_pairs\": 2" : "\"active_pairs\": 1"));
    EXPECT_THAT(show, HasSubstr(set ? "\"rx_modes\": 2" : "\"rx_modes\": 1"));
    EXPECT_THAT(show, HasSubstr(set ? "\"mac\": \"52:54:00:00:00:09\"" : "52:54:00:12:34:56"));
    EXPECT_THAT(show, HasSubstr(set ? "\"tso4\": true, \"tso6\": false" : "\"tso6\": true"));
    EXPECT_EQ(Count("pairs_set"), set ? 2u : 1u);
    ASSERT_OK_AND_ASSIGN(const guest::NetConfigSpace config, client_->ReadConfig());
    EXPECT_EQ(config.mac[5], set ? 9 : 0x56);
  }
  absl::Status Add(DeviceState state, const std::string& pairs = "2") {
    const std::map<std::string, std::string> options = {{"fd", absl::StrCat(device_end_.get())},
                                                        {"mac", "52:54:00:12:34:56"},
                                                        {"queue-pairs", pairs}};
    absl::StatusOr<DeviceHandle> added = host_->Add(
        Spec(absl::StrCat("on", ++count_), options, VIRTBAY_NET_RELAY), std::move(state));
    if (!added.ok()) return added.status();
    device_ = *added;
    return absl::OkStatus();
  }
  absl::StatusOr<DeviceState> Save() {
    absl::StatusOr<DeviceState> state = device_.Save();
    client_.reset();
    return state;
  }
  // A driver of one pair, so that frames come to it on that one.
  static NetClientOptions Driver() { return {}; }
  static DeviceState Copy(const DeviceState& state) {
    return {.type = state.type, .version = state.version, .bytes = state.bytes, .fds = {}};
  }
  // Where the section's bytes begin in the state, and how many they are.
  static std::pair<size_t, size_t> SectionOf(const DeviceState& state) {
    for (size_t at = 0; at + 12 <= state.bytes.size();) {
      uint32_t tag = 0;
      uint64_t size = 0;
      std::memcpy(&tag, state.bytes.data() + at, 4);
      std::memcpy(&size, state.bytes.data() + at + 4, 8);
      if (tag == kSection) return {at + 12, size};
      at += 12 + size;
    }
    return {0, 0};
  }

  int count_ = 0;
  const std::string kOther{"\x02\x00\x00\x00\x00\x77", 6};
  const std::string kMac{"\x52\x54\x00\x00\x00\x09", 6};
};

TEST_F(NetDeviceStateTest, WhatTheDriverHasSetGoesOn) {
  Start({{"mac", "52:54:00:12:34:56"}, {"queue-pairs", "2"}}, Driver());
  Expect(false);
  SetAll();
  Expect(true);
  ASSERT_OK_AND_ASSIGN(DeviceState state, Save());
  ASSERT_OK(Add(std::move(state)));
  // Also through one that no driver has come to.
  ASSERT_OK_AND_ASSIGN(state, Save());
  ASSERT_OK(Add(std::move(state)));
  Connect(Driver());
  Expect(true);
  ASSERT_OK_AND_ASSIGN(state, Save());
  ASSERT_OK(Add(std::move(state)));
  Connect(Driver());
  Expect(true);
  // A driver that begins anew begins with nothing.
  ASSERT_OK(client_->driver().Restart());
  ExpectShown(false);
  client_.reset();
  Connect(Driver());
  Expect(false);
}

TEST_F(NetDeviceStateTest, AnotherDriverBeginsWithNothing) {
  Start({{"mac", "52:54:00:12:34:56"}, {"queue-pairs", "2"}}, Driver());
  SetAll();
  ASSERT_OK_AND_ASSIGN(const DeviceState state, Save());
  // Other features.
  ASSERT_OK(Add(Copy(state)));
  NetClientOptions less = Driver();
  less.features &= ~Bit(54);
  Connect(std::move(less));
  Expect(false);
  client_.reset();
  // Then it is too late for the first one.
  Connect(Driver());
  Expect(false);
  client_.reset();
  // Another number of pairs than it was told of.
  ASSERT_OK(Add(Copy(state), "4"));
  Connect(Driver());
  Expect(false);
  client_.reset();
  // A device whose driver has gone has nothing of it to hand on.
  ASSERT_OK_AND_ASSIGN(DeviceState gone, Save());
  EXPECT_EQ(SectionOf(gone).second, 0u);
  ASSERT_OK(Add(std::move(gone)));
  Connect(Driver());
  Expect(false);
}

TEST_F(NetDeviceStateTest, WhatNoDriverCanHaveSetIsRefused) {
  Start({{"mac", "52:54:00:12:34:56"}, {"queue-pairs", "2"}}, Driver());
  SetAll();
  ASSERT_OK_AND_ASSIGN(const DeviceState state, Save());
  const auto [start, size] = SectionOf(state);
  ASSERT_GT(size, 512u);
  const auto refused = [&](const DeviceState& wrong) {
    const absl::Status status = Add(Copy(wrong));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(status.message(), HasSubstr("what the state says of the driver"));
  };
  // Shorter and longer.
  for (const int64_t change : {-1, -100, 1}) {
    DeviceState wrong = Copy(state);
    const uint64_t other = size + static_cast<uint64_t>(change);
    wrong.bytes = wrong.bytes.substr(0, start + size);
    wrong.bytes.resize(start + other);
    std::memcpy(wrong.bytes.data() + start - 8, &other, 8);
    refused(wrong);
  }
  // Version, pairs, pairs in use, flags, offloads that were not acknowledged, modes, a group's
  // address, counts of the tables, an address of more than six bytes.
  const std::pair<size_t, std::string> changes[] = {
      {0, Number(2, 4)},           {12, Number(0, 4)},
      {12, Number(17, 4)},         {16, Number(0, 4)},
      {16, Number(3, 4)},          {20, Number(4, 1)},
      {21, Number(1, 8)},          {21, Number(~uint64_t{0}, 8)},
      {29, Number(64, 4)},         {33, Number(uint64_t{1} << 40, 8)},
      {33, Number(0, 8)},          {41, Number(2, 1)},
      {41, Number(1, 1)},          {42, Number(65, 4)},
      {42, Number(UINT32_MAX, 4)}, {46, Number(uint64_t{1} << 48, 8)}};
  for (const auto& [at, bytes] : changes) {
    SCOPED_TRACE(at);
    DeviceState wrong = Copy(state);
    wrong.bytes.replace(start + at, bytes.size(), bytes);
    refused(wrong);
  }
  // Whatever it says, it makes a device that serves, or none.
  for (size_t at = 0; at < size; at += 3) {
    DeviceState wrong = Copy(state);
    wrong.bytes[start + at] = static_cast<char>(wrong.bytes[start + at] ^ 0x81);
    if (!Add(std::move(wrong)).ok()) continue;
    Connect(Driver());
    ASSERT_OK(client_->Send(0, {}, MakeFrame({}).bytes));
    ASSERT_OK(Take());
    client_.reset();
    ASSERT_OK(host_->Remove(absl::StrCat("on", count_)));
  }
}

}  // namespace
}  // namespace virtbay::testing
