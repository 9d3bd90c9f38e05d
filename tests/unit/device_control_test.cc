// Commands to a device while it serves: DeviceHandle::Control.
#include <gmock/gmock.h>

#include "tests/unit/device_fixture.h"

namespace virtbay::testing {
namespace {

TEST_F(DeviceTest, CommandsReachThePluginInEveryState) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  EXPECT_EQ(device.Control("echo", "ready").value_or(""), "ready");
  EXPECT_EQ(device.Control("where", "").value_or(""), "control");
  {
    ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
    ASSERT_OK(client->Check());
    const uint64_t held = client->Send({.op = Op::kHold});
    EXPECT_EQ(device.Control("echo", "running").value_or(""), "running");
    EXPECT_FALSE(client->Has(held));
    EXPECT_OK(client->Check());
  }
  ASSERT_OK(device.Stop());
  EXPECT_EQ(device.Control("echo", "stopped").value_or(""), "stopped");
  ASSERT_OK(host_->Remove("a"));
  EXPECT_THAT(device.Control("echo", "").status(), StatusIs(absl::StatusCode::kNotFound, ""));
}

TEST_F(DeviceTest, TextsAndAnswersOfEverySize) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  EXPECT_EQ(device.Control("echo", "").value_or("x"), "");
  const std::string binary("a\0b\n", 4);
  EXPECT_EQ(device.Control("echo", binary).value_or(""), binary);
  const std::string large(1u << 20, 'l');
  EXPECT_EQ(device.Control("echo", large).value_or(""), large);
  EXPECT_THAT(device.Control("echo", large + "l").status(),
              StatusIs(absl::StatusCode::kInvalidArgument, "1048577"));
  for (const size_t size : {65535u, 65536u, 65537u, 10u << 20}) {
    EXPECT_EQ(device.Control("fill", std::to_string(size)).value_or("").size(), size);
  }
  EXPECT_THAT(device.Control("fill", "80000000").status(),
              StatusIs(absl::StatusCode::kOutOfRange, "room"));
}

TEST_F(DeviceTest, WhatThePluginSaysOfACommand) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  EXPECT_THAT(device.Control("refuse", "is there").status(),
              StatusIs(absl::StatusCode::kAlreadyExists, "device a: refuse: is there"));
  EXPECT_THAT(device.Control("throw", "thrown").status(),
              StatusIs(absl::StatusCode::kInternal, "thrown"));
  EXPECT_THAT(device.Control("dance", "").status(),
              StatusIs(absl::StatusCode::kUnimplemented, "dance"));
  EXPECT_EQ(device.Control("echo", "goes on").value_or(""), "goes on");
}

TEST_F(DeviceTest, ATypeWithoutCommandsSaysSo) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("rng", {}, VIRTBAY_RNG_PLUGIN)));
  EXPECT_THAT(device.Control("echo", "").status(),
              StatusIs(absl::StatusCode::kUnimplemented, "take no commands"));
}

}  // namespace
}  // namespace virtbay::testing
