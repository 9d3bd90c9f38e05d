// The fake host, with the sources of the example disk in this program: failures that a real host
// does not have at will.
#include "virtbay/testkit/fake_host.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <linux/virtio_blk.h>
#include <unistd.h>

#include "tests/support/temp_dir.h"

extern "C" const virtbay_plugin virtbay_plugin_entry;

namespace virtbay::testkit {
namespace {

using ::virtbay::testing::ReadFile;
using ::virtbay::testing::TempDir;

class FakeHostTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto made = host_.Create(virtbay_plugin_entry);
    ASSERT_TRUE(made.ok()) << made.error().text;
    ASSERT_TRUE(host_.Start(uint64_t{1} << VIRTIO_BLK_F_FLUSH).ok());
  }
  static std::string Header(uint32_t type, uint64_t sector) {
    const virtio_blk_outhdr header = {.type = type, .ioprio = 0, .sector = sector};
    return {reinterpret_cast<const char*>(&header), sizeof(header)};
  }

  const TempDir dir_;
  const std::string disk_ = dir_.Write("disk", std::string(4096, 'd'));
  FakeHost host_{std::map<std::string, std::string>{{"file", disk_}}};
};

TEST_F(FakeHostTest, ServesWithinTheCall) {
  FakeRequest& read = host_.Present(Header(VIRTIO_BLK_T_IN, 1), 513);
  EXPECT_EQ(read.end, End::kCompleted);
  EXPECT_EQ(read.written, 513u);
  EXPECT_EQ(read.writable, std::string(512, 'd') + std::string(1, VIRTIO_BLK_S_OK));
  FakeRequest& write = host_.Present(Header(VIRTIO_BLK_T_OUT, 2) + std::string(512, 'w'), 1);
  EXPECT_EQ(write.writable[0], VIRTIO_BLK_S_OK);
  EXPECT_EQ(ReadFile(disk_).substr(1024, 512), std::string(512, 'w'));
  EXPECT_EQ(host_.Metric("bytes_written"), 512u);
  EXPECT_EQ(host_.Metric("none"), ~uint64_t{0});
  EXPECT_TRUE(host_.offences().empty());
}

TEST_F(FakeHostTest, WhatIsSubmittedWaitsForRun) {
  host_.io_waits = true;
  FakeRequest& read = host_.Present(Header(VIRTIO_BLK_T_IN, 0), 513);
  FakeRequest& flush = host_.Present(Header(VIRTIO_BLK_T_FLUSH, 0), 1);
  EXPECT_EQ(read.end, End::kHeld);
  EXPECT_EQ(flush.end, End::kHeld);
  host_.Run();
  EXPECT_EQ(read.end, End::kCompleted);
  EXPECT_EQ(read.writable.back(), VIRTIO_BLK_S_OK);
  EXPECT_EQ(flush.writable[0], VIRTIO_BLK_S_OK);
}

TEST_F(FakeHostTest, ADiskThatFailsIsAnError) {
  host_.io_waits = true;
  FakeRequest& write = host_.Present(Header(VIRTIO_BLK_T_OUT, 0) + std::string(512, 'w'), 1);
  host_.io_error = EIO;
  // The status that is put there by I/O cannot be, but one in the view can.
  host_.Run();
  EXPECT_EQ(write.end, End::kCompleted);
  EXPECT_EQ(write.writable[0], VIRTIO_BLK_S_IOERR);
  EXPECT_EQ(host_.Metric("requests_refused"), 1u);
}

TEST_F(FakeHostTest, AStopWaitsForWhatIsUnderWay) {
  host_.io_waits = true;
  FakeRequest& read = host_.Present(Header(VIRTIO_BLK_T_IN, 0), 513);
  host_.Stop();
  EXPECT_EQ(read.end, End::kCompleted);
  ASSERT_TRUE(host_.Start().ok());
  EXPECT_EQ(host_.Present(Header(VIRTIO_BLK_T_FLUSH, 0), 0).end, End::kFailed);
}

TEST(FakeHostRefusalTest, AnErrorOfInitIsThePlugins) {
  FakeHost host(std::map<std::string, std::string>{{"file", "/missing/file"}});
  const auto made = host.Create(virtbay_plugin_entry);
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.error().code, VIRTBAY_NOT_FOUND);
  EXPECT_THAT(made.error().text, ::testing::HasSubstr("option file: /missing/file"));
}

// A device that does everything wrong, by hand.
struct Rogue {
  virtbay_device base;
  const virtbay_queue_service* queue;
  const virtbay_timer_service* timer;
  virtbay_host_device* host;
  std::vector<uint64_t> fired;
};
Rogue& RogueOf(virtbay_device* device) { return *reinterpret_cast<Rogue*>(device); }

const virtbay_device_ops kRogueOps = [] {
  virtbay_device_ops ops = {};
  ops.struct_size = sizeof(ops);
  ops.init = [](virtbay_device*, virtbay_error*) -> int32_t { return VIRTBAY_OK; };
  ops.properties = [](virtbay_device*, virtbay_device_properties* p) { p->queue_count = 1; };
  ops.on_requests = [](virtbay_device* device, uint32_t, virtbay_request* const* requests,
                       uint32_t) {
    Rogue& rogue = RogueOf(device);
    rogue.queue->complete(requests[0], 0, requests[0]->out_total + 1);
    rogue.queue->complete(requests[0], 0, 0);
    rogue.timer->set(rogue.host, 0, 500, 5);
    rogue.timer->set(rogue.host, 0, 200, 2);
    rogue.timer->set(rogue.host, 0, 300, 5);
  };
  ops.on_timer = [](virtbay_device* device, uint32_t, uint64_t cookie) {
    RogueOf(device).fired.push_back(cookie);
  };
  ops.destroy = [](virtbay_device*) {};
  return ops;
}();
Rogue rogue;
const virtbay_device_factory kRogueFactory = {
    sizeof(virtbay_device_factory), 1, nullptr,
    [](uint32_t, const virtbay_host* host, virtbay_host_device* self, virtbay_device** device,
       virtbay_error*) -> int32_t {
      rogue = {
          {&kRogueOps},
          static_cast<const virtbay_queue_service*>(host->service(host, VIRTBAY_SERVICE_QUEUE)),
          static_cast<const virtbay_timer_service*>(host->service(host, VIRTBAY_SERVICE_TIMER)),
          self,
          {}};
      *device = &rogue.base;
      return VIRTBAY_OK;
    }};

TEST(FakeHostOffenceTest, OffencesAreKeptAndTimersFireInTheirOrder) {
  virtbay_plugin entry = {};
  entry.factory = [](const char*) -> const void* { return &kRogueFactory; };
  FakeHost host;
  ASSERT_TRUE(host.Create(entry).ok());
  ASSERT_TRUE(host.Start().ok());
  FakeRequest& request = host.Present("", 8);
  EXPECT_EQ(request.end, End::kFailed);
  EXPECT_EQ(request.writable, std::string(8, '\xEE'));
  EXPECT_THAT(host.offences(), ::testing::ElementsAre("request 0 completed with sizes that lie",
                                                      "request 0 ended twice"));
  host.Advance(250);
  EXPECT_THAT(rogue.fired, ::testing::ElementsAre(2));
  host.Advance(50);
  EXPECT_THAT(rogue.fired, ::testing::ElementsAre(2, 5));
  host.Advance(10'000);
  EXPECT_EQ(rogue.fired.size(), 2u);
}

}  // namespace
}  // namespace virtbay::testkit
