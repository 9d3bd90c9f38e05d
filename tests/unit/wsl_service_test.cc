// Devices by their option strings, and what `virtbay run` makes of a .wslconfig and its companions.
#include "hostif/device_host/wsl_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "hostif/device_host/config_file.h"
#include "hostif/device_host/control_protocol.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace virtbay::device_host {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::IsSupersetOf;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;
using ::virtbay::testing::StatusIs;
using ::virtbay::testing::TempDir;
using enum absl::StatusCode;

constexpr uint64_t kGiB = uint64_t{1} << 30;

absl::StatusOr<DeviceConfig> OneDevice(const std::string& keys) {
  auto config = ParseConfig("[[device]]\nsocket = \"s\"\n" + keys, "f");
  if (!config.ok()) return config.status();
  return std::move(config->devices[0]);
}

TEST(DeviceString, FillsInADeviceOfAFile) {
  ASSERT_OK_AND_ASSIGN(
      const DeviceConfig device,
      OneDevice("plugin = \"virtiofs\"\n"
                "device-string = \"data;uid=1000;umask=022;ro;colour=red;swiotlb=0x10000000,64m\"\n"
                "options = { shared-dir = \"/srv\" }\n"));
  EXPECT_EQ(device.spec.name, "data");
  EXPECT_EQ(device.spec.dma_mode, DmaMode::kAperture);
  EXPECT_EQ(device.spec.aperture.size, 64u << 20);
  EXPECT_TRUE(device.aperture_shared)
      << "WSL's kernel has one pool, which it names to every device";
  EXPECT_THAT(
      device.spec.options,
      UnorderedElementsAre(Pair("tag", "data"), Pair("shared-dir", "/srv"), Pair("uid", "1000"),
                           Pair("umask", "0022"), Pair("readonly", "true")));
  EXPECT_THAT(device.warnings, ElementsAre(HasSubstr("'colour'")));
}

TEST(DeviceString, WhatIsGivenBesideItStays) {
  ASSERT_OK_AND_ASSIGN(
      const DeviceConfig device,
      OneDevice("name = \"mine\"\nplugin = \"./build/virtiofs.so\"\nswiotlb = \"0x20000000,2m\"\n"
                "device-string = \"data;uid=1000;swiotlb=0x10000000,64m\"\n"
                "options = { shared-dir = \"/srv\", uid = 5, tag = \"t\" }\n"));
  EXPECT_EQ(device.spec.name, "mine");
  EXPECT_EQ(device.spec.aperture.base, 0x2000'0000u);
  EXPECT_FALSE(device.aperture_shared);
  EXPECT_THAT(device.spec.options,
              UnorderedElementsAre(Pair("tag", "t"), Pair("uid", "5"), Pair("shared-dir", "/srv")));
}

TEST(DeviceString, OfAnAdapter) {
  ASSERT_OK_AND_ASSIGN(
      const DeviceConfig device,
      OneDevice("plugin = \"proxy-net\"\ndevice-string = \"eth0;client_ip=10.0.0.2\"\n"));
  EXPECT_EQ(device.spec.name, "eth0");
  EXPECT_THAT(device.spec.options, ::testing::Contains(Pair("guest-address", "10.0.0.2")));
}

TEST(DeviceString, RefusesWithTheLine) {
  for (const auto& [keys, reason] : {
           std::pair<const char*, const char*>{
               "plugin = \"virtiofs\"\ndevice-string = \"c;umask=9\"\n",
               "f:1: device-string: umask: '9' is not an octal number"},
           {"plugin = \"virtiofs\"\ndevice-string = \"c;swiotlb=lowmem\"\n", "swiotlb: 'lowmem'"},
           {"plugin = \"virtiofs\"\ndevice-string = \"\"\n",
            "f:4: device-string: must not be empty"},
           {"plugin = \"virtiofs\"\ndevice-string = 5\n", "f:4: device-string: must be a string"},
           {"plugin = \"virtiofs\"\ndevice-string = \"a/b\"\n", "device-string: its name: must be"},
           {"plugin = \"proxy-net\"\ndevice-string = \"e;client_ip=x\"\n",
            "device-string: client_ip: "},
           {"plugin = \"other\"\ndevice-string = \"e\"\n", "is for the plugins virtiofs and"},
           {"device-string = \"e\"\n", "plugin: is missing"},
           {"plugin = \"virtiofs\"\ndma = \"direct\"\ndevice-string = \"c;swiotlb=0x1000,4M\"\n",
            "dma: cannot be given together with swiotlb"},
       }) {
    EXPECT_THAT(OneDevice(keys), StatusIs(kInvalidArgument, reason)) << keys;
  }
}

TEST(DeviceString, InAControlRequest) {
  ASSERT_OK_AND_ASSIGN(
      const DeviceConfig device,
      DeviceFromJson({{"plugin", "virtiofs"}, {"socket", "/s"}, {"device-string", "c;ro"}}));
  EXPECT_EQ(device.spec.name, "c");
  EXPECT_EQ(device.spec.options.at("readonly"), "true");
  EXPECT_THAT(
      DeviceFromJson({{"plugin", "virtiofs"}, {"socket", "/s"}, {"device-string", "c;ro=1"}}),
      StatusIs(kInvalidArgument, "device-string: ro: takes no value"));
}

TEST(ArenaSize, IsThatOfTheSlice) {
  const std::string keys = "name = \"a\"\nplugin = \"virtiofs\"\n";
  ASSERT_OK_AND_ASSIGN(DeviceConfig device,
                       OneDevice(keys + "swiotlb = \"pool\"\narena = \"16M\"\n"));
  EXPECT_EQ(device.slice_size, 16u << 20);
  EXPECT_EQ(device.spec.arena_size, 16u << 20);
  EXPECT_THAT(OneDevice(keys + "swiotlb = \"pool,8M\"\narena-size = \"16M\"\n"),
              StatusIs(kInvalidArgument, "arena-size: cannot be given together with the size"));
  ASSERT_OK_AND_ASSIGN(device, OneDevice(keys + "swiotlb = \"pool\"\n"));
  EXPECT_EQ(device.slice_size, 0u) << "an equal share";
  EXPECT_THAT(OneDevice(keys + "arena = \"16M\"\narena-size = \"16M\"\n"),
              StatusIs(kInvalidArgument, "is given twice"));
}

TEST(GuestChannelKey, IsChecked) {
  const std::string device = "[[device]]\nname = \"a\"\nplugin = \"p\"\nsocket = \"s\"\n";
  ASSERT_OK_AND_ASSIGN(const ServiceConfig config,
                       ParseConfig("[host]\nguest-channel = \"unix:/run/g\"\n" + device, "f"));
  EXPECT_EQ(config.guest_channel->name, "/run/g");
  EXPECT_THAT(ParseConfig("[host]\nguest-channel = \"/run/g\"\n" + device, "f"),
              StatusIs(kInvalidArgument, "f:2: guest-channel: '/run/g'"));
  EXPECT_THAT(ParseConfig("[host]\nguest-channel = 5\n" + device, "f"),
              StatusIs(kInvalidArgument, "f:2: guest-channel: must be a string"));
}

class WslServiceTest : public ::testing::Test {
 protected:
  WslServiceTest() {
    request_.socket_dir = "/run/d";
    request_.host_memory = 16 * kGiB;
  }
  void WslConfig(const std::string& text) { request_.wslconfig = dir_.Write("wslconfig", text); }

  TempDir dir_;
  WslRequest request_;
};

TEST_F(WslServiceTest, SharesAlone) {
  request_.shares = {"a=/srv/a", "b=/srv/b=c;ro;uid=5"};
  request_.device_strings = {"virtiofs:c;shared-dir=/srv/c;ro",
                             "virtio-net:eth1;netmask=255.0.0.0"};
  ASSERT_OK_AND_ASSIGN(const WslService service, MakeWslService(request_));
  EXPECT_EQ(service.kernel_command_line, "");
  const auto& devices = service.config.devices;
  ASSERT_EQ(devices.size(), 4u);
  EXPECT_EQ(devices[0].spec.name, "a");
  EXPECT_EQ(devices[0].spec.plugin, "virtiofs");
  EXPECT_EQ(devices[0].socket_path, "/run/d/a.sock");
  EXPECT_THAT(devices[0].spec.options,
              UnorderedElementsAre(Pair("tag", "a"), Pair("shared-dir", "/srv/a")));
  EXPECT_THAT(devices[1].spec.options,
              UnorderedElementsAre(Pair("tag", "b"), Pair("shared-dir", "/srv/b=c"),
                                   Pair("readonly", "true"), Pair("uid", "5")));
  EXPECT_THAT(devices[2].spec.options,
              UnorderedElementsAre(Pair("tag", "c"), Pair("shared-dir", "/srv/c"),
                                   Pair("readonly", "true")));
  EXPECT_EQ(devices[3].spec.plugin, "proxy-net");
  EXPECT_EQ(devices[3].socket_path, "/run/d/eth1.sock");
}

TEST_F(WslServiceTest, AsTheFileAsks) {
  WslConfig(
      "[wsl2]\nvirtiofs=true\nmemory=4GB\nnetworkingMode=consomme\n"
      "[experimental]\nvirtioFsAggregateShares=false\n");
  request_.shares = {"a=/srv/a", "b=/srv/b"};
  ASSERT_OK_AND_ASSIGN(const WslService service, MakeWslService(request_));
  EXPECT_EQ(service.kernel_command_line, "swiotlb=force hv_pci_swiotlb=67108864");
  EXPECT_TRUE(service.config.pool_requested);
  ASSERT_EQ(service.config.devices.size(), 3u);
  EXPECT_EQ(service.config.devices[2].spec.name, "eth0");
  EXPECT_EQ(service.config.devices[2].spec.plugin, "proxy-net");

  WslConfig("[wsl2]\nvirtiofs=true\n[experimental]\nswiotlb=5M\nvirtioFsAggregateShares=false\n");
  ASSERT_OK_AND_ASSIGN(const WslService small, MakeWslService(request_));
  EXPECT_EQ(small.kernel_command_line, "swiotlb=force hv_pci_swiotlb=6291456");
  EXPECT_EQ(small.config.devices.size(), 2u);

  WslConfig("[wsl2]\nvirtiofs=true\nmemory=1GB\n[experimental]\nvirtioFsAggregateShares=false\n");
  ASSERT_OK_AND_ASSIGN(const WslService none, MakeWslService(request_));
  EXPECT_EQ(none.kernel_command_line, "");
  EXPECT_FALSE(none.config.pool_requested);
}

TEST_F(WslServiceTest, APoolThatTheGuestsMemoryDoesNotHoldIsWarnedOf) {
  request_.shares = {"a=/srv/a"};
  const std::string file = "[wsl2]\nvirtiofs=true\nmemory=1GB\n[experimental]\nswiotlb=";
  WslConfig(file + "1022M\n");
  ASSERT_OK_AND_ASSIGN(const WslService fits, MakeWslService(request_));
  EXPECT_THAT(fits.config.warnings, IsEmpty());
  // 1023M are 1024M once they are rounded.
  for (const char* size : {"1023M", "1G", "3G"}) {
    WslConfig(file + size + "\n");
    ASSERT_OK_AND_ASSIGN(const WslService service, MakeWslService(request_));
    EXPECT_THAT(service.config.warnings,
                ElementsAre(HasSubstr("does not fit into the guest's memory of 1073741824 bytes")))
        << size;
    EXPECT_NE(service.kernel_command_line, "") << "it is what the file asks for";
  }
  WslConfig("[wsl2]\nvirtiofs=true\n[experimental]\nswiotlb=3G\n");
  request_.host_memory = 4 * kGiB;
  ASSERT_OK_AND_ASSIGN(const WslService half, MakeWslService(request_));
  EXPECT_THAT(half.config.warnings, ElementsAre(HasSubstr("memory of 2147483648 bytes")));
}

TEST_F(WslServiceTest, OneDeviceForAllShares) {
  WslConfig("[wsl2]\nvirtiofs=true\n");
  request_.shares = {"a=/srv/a;ro;vcpus=2", "b=/srv/b;uid=5;umask=022;vcpus=3;colour=red"};
  request_.device_strings = {"virtiofs:c;shared-dir=/srv/c"};
  ASSERT_OK_AND_ASSIGN(const WslService service, MakeWslService(request_));
  ASSERT_EQ(service.config.devices.size(), 2u);
  const DeviceConfig& all = service.config.devices[0];
  EXPECT_EQ(all.spec.name, "drvfs");
  EXPECT_EQ(all.socket_path, "/run/d/drvfs.sock");
  EXPECT_THAT(all.spec.options,
              UnorderedElementsAre(Pair("tag", "drvfs"), Pair("aggregate", "true"),
                                   Pair("request-queues", "3")));
  ASSERT_EQ(all.shares.size(), 2u);
  EXPECT_EQ(all.shares[0].spec.name, "a");
  EXPECT_EQ(all.shares[0].spec.path, "/srv/a");
  EXPECT_THAT(all.shares[0].spec.options, UnorderedElementsAre(Pair("readonly", "true")));
  EXPECT_THAT(all.shares[1].spec.options,
              UnorderedElementsAre(Pair("uid", "5"), Pair("umask", "0022")));
  EXPECT_THAT(all.warnings, ElementsAre(HasSubstr("share b: ")));
  EXPECT_EQ(service.config.devices[1].spec.name, "c");
  EXPECT_EQ(service.config.devices[1].spec.options.at("shared-dir"), "/srv/c");
}

TEST_F(WslServiceTest, OneDeviceWhoseSharesComeLater) {
  WslConfig("[wsl2]\nvirtiofs=true\n");
  ASSERT_OK_AND_ASSIGN(WslService service, MakeWslService(request_));
  ASSERT_EQ(service.config.devices.size(), 1u);
  EXPECT_THAT(service.config.devices[0].spec.options,
              UnorderedElementsAre(Pair("tag", "drvfs"), Pair("aggregate", "true")));
  EXPECT_THAT(service.config.devices[0].shares, IsEmpty());
  request_.device_strings = {"virtiofs:c;shared-dir=/srv/c"};
  ASSERT_OK_AND_ASSIGN(service, MakeWslService(request_));
  ASSERT_EQ(service.config.devices.size(), 1u);
  EXPECT_EQ(service.config.devices[0].spec.name, "c");
}

TEST_F(WslServiceTest, WhatSharesOfOneDeviceHaveInCommon) {
  WslConfig("[wsl2]\nvirtiofs=true\n");
  request_.shares = {"a=/srv/a;swiotlb=0x10000000,64m", "b=/srv/b;xattr=user.a=b", "c=/srv/c"};
  ASSERT_OK_AND_ASSIGN(const WslService service, MakeWslService(request_));
  const DeviceConfig& all = service.config.devices.at(0);
  EXPECT_EQ(all.spec.dma_mode, DmaMode::kAperture);
  EXPECT_EQ(all.spec.aperture.base, 0x1000'0000u);
  EXPECT_TRUE(all.aperture_shared);
  EXPECT_EQ(all.spec.options.at("xattr"), "true");
  EXPECT_EQ(all.shares[1].spec.options.at("xattr"), "user.a=b");
  EXPECT_EQ(all.shares[2].spec.options.at("xattr"), "false");
  request_.shares.push_back("d=/srv/d;swiotlb=0x20000000,64m");
  EXPECT_THAT(MakeWslService(request_), StatusIs(kInvalidArgument, "share d: swiotlb: "));
  request_.shares = {"a=/srv/a", "a=/srv/b"};
  EXPECT_THAT(MakeWslService(request_), StatusIs(kInvalidArgument, "name is given twice"));
}

TEST_F(WslServiceTest, WhatTheFileDoesNotAskFor) {
  request_.shares = {"a=/srv/a"};
  WslConfig("[wsl2]\nnetworkingMode=consomme\n");
  EXPECT_THAT(MakeWslService(request_), StatusIs(kInvalidArgument, "wsl2.virtiofs is not true"));
  WslConfig("[wsl2]\nvirtio=false\nvirtiofs=true\n");
  EXPECT_THAT(MakeWslService(request_), StatusIs(kInvalidArgument, "wsl2.virtio is false"));
  WslConfig("[wsl2]\nvirtiofs=true\n");
  request_.device_strings = {"virtio-net:eth0"};
  EXPECT_THAT(MakeWslService(request_),
              StatusIs(kInvalidArgument, "wsl2.networkingMode is neither"));
  request_.shares = {};
  request_.device_strings = {};
  WslConfig("[wsl2]\nvirtiofs=true\n[experimental]\nvirtioFsAggregateShares=false\n");
  EXPECT_THAT(MakeWslService(request_), StatusIs(kInvalidArgument, "no --share"));
  WslConfig("");
  EXPECT_THAT(MakeWslService(request_), StatusIs(kInvalidArgument, "asks for no device"));
  WslConfig("[wsl2]\nvirtiofs=maybe\n");
  EXPECT_THAT(MakeWslService(request_), StatusIs(kInvalidArgument, "wslconfig:2: wsl2.virtiofs: "));
  request_.wslconfig = dir_ / "missing";
  EXPECT_THAT(MakeWslService(request_), StatusIs(kNotFound, "missing"));
}

TEST_F(WslServiceTest, RefusesByTheText) {
  for (const auto& [share, reason] :
       {std::pair<const char*, const char*>{"", "--share '': is not of the form"},
        {"a", "--share 'a': is not of the form"},
        {"=/srv", "is not of the form"},
        {"a;ro=/srv", "is not of the form"},
        {"a=", "the directory is missing"},
        {"a=;ro", "the directory is missing"},
        {"a/b=/srv", "must be 1 to 64 letters"},
        {"a=/srv;mode=9", "--share 'a=/srv;mode=9': device-string: mode: '9'"}}) {
    request_.shares = {share};
    EXPECT_THAT(MakeWslService(request_), StatusIs(kInvalidArgument, reason)) << share;
  }
  request_.shares = {"a=/srv", "a=/other"};
  EXPECT_THAT(MakeWslService(request_), StatusIs(kInvalidArgument, "device a: the name"));
  request_.shares = {};
  for (const auto& [text, reason] : {std::pair<const char*, const char*>{"", "begins with neither"},
                                     {"a;ro", "begins with neither"},
                                     {"virtiofs:", "no name"},
                                     {"virtiofs:a", "shared-dir=DIR is missing"},
                                     {"virtio-net:;x", "no name"},
                                     {"virtio-net:e;netmask=x", "netmask: "}}) {
    request_.device_strings = {text};
    EXPECT_THAT(MakeWslService(request_), StatusIs(kInvalidArgument, reason)) << text;
  }
}

}  // namespace
}  // namespace virtbay::device_host
