// The example virtio-blk behind the in-process driver: what a driver asks of a disk, and what a
// hostile one does.
#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <sys/stat.h>
#include <unistd.h>

#include <thread>

#include "tests/unit/example_fixture.h"

namespace virtbay::testing {
namespace {

constexpr uint32_t kMiB = 1u << 20;
constexpr char kOk = VIRTIO_BLK_S_OK;
constexpr char kIoErr = VIRTIO_BLK_S_IOERR;
constexpr char kUnsupported = VIRTIO_BLK_S_UNSUPP;

class ExampleBlkTest : public ExampleTest {
 protected:
  ExampleBlkTest() : ExampleTest(VIRTBAY_BLK_PLUGIN) {}

  // A disk of 8 MiB in which every sector begins with its number.
  std::filesystem::path Disk(uint32_t size = 8 * kMiB) {
    std::string content(size, '\0');
    for (uint64_t sector = 0; sector < size / 512; ++sector) {
      std::memcpy(content.data() + sector * 512, &sector, sizeof(sector));
      content[sector * 512 + 511] = 's';
    }
    return dir_.Write("disk", content);
  }
  static std::string Header(uint32_t type, uint64_t sector = 0) {
    return Raw(virtio_blk_outhdr{.type = type, .ioprio = 0, .sector = sector});
  }
  static std::string Range(uint64_t sector, uint32_t sectors, uint32_t flags = 0) {
    return Raw(
        virtio_blk_discard_write_zeroes{.sector = sector, .num_sectors = sectors, .flags = flags});
  }
  // The status of a request with `room` bytes before it; 'E' when it was not answered with all.
  char Status(const std::string& readable, uint32_t room = 0, uint32_t queue = 0) {
    const auto reply = guest_->Call(readable, room + 1, queue);
    if (!reply.ok() || reply->written != room + 1) return 'E';
    data_ = reply->room.substr(0, room);
    return reply->room.back();
  }
  std::string ReadSectors(uint64_t sector, uint32_t sectors, uint32_t queue = 0) {
    return Status(Header(VIRTIO_BLK_T_IN, sector), sectors * 512, queue) == kOk ? data_ : "error";
  }

  const TempDir dir_;
  std::string data_;
};

TEST_F(ExampleBlkTest, ReadsAndWrites) {
  const auto disk = Disk();
  Start({{"file", disk}});
  EXPECT_EQ(ReadSectors(5, 3), ReadFile(disk).substr(5 * 512, 3 * 512));
  std::string large(3 * kMiB, '\0');
  for (size_t i = 0; i < large.size(); ++i) large[i] = static_cast<char>(i * 7 + i / 4096);
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_OUT, 1001) + large), kOk);
  EXPECT_EQ(ReadSectors(1001, 3 * kMiB / 512), large);
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_FLUSH)), kOk);
  EXPECT_EQ(ReadFile(disk).substr(1001 * 512, large.size()), large);
  EXPECT_EQ(ReadFile(disk).size(), 8 * kMiB);
  EXPECT_EQ(Metric("bytes_written"), large.size());
}

TEST_F(ExampleBlkTest, SaysWhatItIs) {
  Start({{"file", Disk(8 * kMiB + 700)}, {"block-size", "1024"}, {"queues", "3"}});
  const auto config = guest_->Config<virtio_blk_config>();
  EXPECT_EQ(config.capacity, 8 * kMiB / 512u);  // whole blocks
  EXPECT_EQ(config.blk_size, 1024u);
  EXPECT_EQ(config.physical_block_exp, 2);
  EXPECT_EQ(config.min_io_size, 4);
  EXPECT_EQ(config.opt_io_size, 256u);
  EXPECT_EQ(config.num_queues, 3);
  EXPECT_EQ(config.seg_max, 254u);
  EXPECT_EQ(config.max_discard_seg, 32u);
  EXPECT_EQ(config.max_write_zeroes_seg, 32u);
  EXPECT_GT(config.max_discard_sectors, 0u);
  EXPECT_EQ(config.discard_sector_alignment, 8u);
  for (const int feature :
       {VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES}) {
    EXPECT_NE(guest_->driver().features() & uint64_t{1} << feature, 0u) << feature;
  }
  EXPECT_EQ(guest_->driver().features() & 1u << VIRTIO_BLK_F_RO, 0u);
}

TEST_F(ExampleBlkTest, GivesItsSerial) {
  Start({{"file", Disk()}, {"serial", "disk-17"}});
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_GET_ID), 20), kOk);
  EXPECT_EQ(data_, std::string("disk-17") + std::string(13, '\0'));
  // More room than an identity needs: the status is still the last byte.
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_GET_ID), 64), kOk);
  EXPECT_EQ(data_.substr(0, 7), "disk-17");
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_GET_ID), 19), kIoErr);
}

TEST_F(ExampleBlkTest, QueuesWorkBesideEachOther) {
  Start({{"file", Disk()}, {"queues", "4"}});
  ASSERT_EQ(guest_->driver().queue_count(), 4u);
  for (uint32_t round = 0; round < 50; ++round) {
    std::array<uint64_t, 4> tokens;
    for (uint32_t queue = 0; queue < 4; ++queue) {
      tokens[queue] = guest_->Send(Header(VIRTIO_BLK_T_IN, round * 4 + queue), 513, queue);
    }
    for (uint32_t queue = 0; queue < 4; ++queue) {
      ASSERT_OK_AND_ASSIGN(const Guest::Reply reply, guest_->Take(tokens[queue], queue));
      ASSERT_EQ(reply.written, 513u);
      EXPECT_EQ(reply.room.substr(0, 8), Raw(uint64_t{round * 4 + queue}));
    }
  }
}

TEST_F(ExampleBlkTest, DiscardGivesTheSpaceBack) {
  const auto disk = Disk();
  Start({{"file", disk}});
  struct stat before, after;
  ASSERT_EQ(stat(disk.c_str(), &before), 0);
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_DISCARD) + Range(2048, 4096) + Range(8192, 2048)), kOk);
  ASSERT_EQ(stat(disk.c_str(), &after), 0);
  EXPECT_EQ(after.st_size, before.st_size);
  EXPECT_LT(after.st_blocks, before.st_blocks);
  EXPECT_EQ(ReadSectors(2048, 4096), std::string(4096 * 512, '\0'));
  EXPECT_EQ(ReadSectors(8192, 1)[511], '\0');
  EXPECT_EQ(ReadSectors(2047, 1).back(), 's');
  EXPECT_EQ(ReadSectors(6144, 1).back(), 's');
}

TEST_F(ExampleBlkTest, WriteZeroesWritesZeroes) {
  const auto disk = Disk();
  Start({{"file", disk}});
  struct stat before, after;
  ASSERT_EQ(stat(disk.c_str(), &before), 0);
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_WRITE_ZEROES) + Range(16, 8) + Range(100, 3)), kOk);
  EXPECT_EQ(ReadSectors(16, 8), std::string(8 * 512, '\0'));
  EXPECT_EQ(ReadSectors(100, 3), std::string(3 * 512, '\0'));
  EXPECT_EQ(ReadSectors(15, 1).back(), 's');
  EXPECT_EQ(ReadSectors(103, 1).back(), 's');
  ASSERT_EQ(stat(disk.c_str(), &after), 0);
  EXPECT_GE(after.st_blocks, before.st_blocks);  // the space is still there
  const uint32_t unmap = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_WRITE_ZEROES) + Range(4096, 4096, unmap)), kOk);
  EXPECT_EQ(ReadSectors(4096, 4096), std::string(4096 * 512, '\0'));
  ASSERT_EQ(stat(disk.c_str(), &after), 0);
  EXPECT_LT(after.st_blocks, before.st_blocks);
}

TEST_F(ExampleBlkTest, HostileRequestsGetAnError) {
  const auto disk = Disk();
  const std::string content = ReadFile(disk);
  Start({{"file", disk}});
  const uint64_t end = 8 * kMiB / 512;
  // Beyond the end, half sectors, numbers that wrap.
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_IN, end), 512), kIoErr);
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_IN, end - 1), 1024), kIoErr);
  EXPECT_EQ(data_, std::string(1024, '\xEE'));
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_IN, 0), 100), kIoErr);
  for (const uint64_t sector : {end, uint64_t{1} << 55, (uint64_t{1} << 55) - 1, ~uint64_t{0}}) {
    EXPECT_EQ(Status(Header(VIRTIO_BLK_T_IN, sector), 512), kIoErr) << sector;
    EXPECT_EQ(Status(Header(VIRTIO_BLK_T_OUT, sector) + std::string(512, 'x')), kIoErr) << sector;
    EXPECT_EQ(Status(Header(VIRTIO_BLK_T_DISCARD) + Range(sector, 8)), kIoErr) << sector;
    EXPECT_EQ(Status(Header(VIRTIO_BLK_T_WRITE_ZEROES) + Range(sector, 8)), kIoErr) << sector;
  }
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_OUT, 0) + "half"), kIoErr);
  // Ranges: none, a part of one, too many, too long, one bad among good ones, flags.
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_DISCARD)), kIoErr);
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_DISCARD) + Range(0, 8).substr(0, 9)), kIoErr);
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_DISCARD) + Range(0, 0)), kIoErr);
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_DISCARD) + Range(0, ~0u)), kIoErr);
  std::string many;
  for (int i = 0; i < 33; ++i) many += Range(0, 8);
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_DISCARD) + many), kIoErr);
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_WRITE_ZEROES) + Range(0, 8) + Range(end, 1)), kIoErr);
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_DISCARD) + Range(0, 8, 1)), kUnsupported);
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_WRITE_ZEROES) + Range(0, 8, 2)), kUnsupported);
  // Types that there are not; a header that is cut; nothing at all.
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_SCSI_CMD), 64), kUnsupported);
  EXPECT_EQ(Status(Header(0xffffffff)), kUnsupported);
  EXPECT_EQ(Status("short"), kIoErr);
  EXPECT_EQ(Status(""), kIoErr);
  EXPECT_EQ(guest_->Call(Header(VIRTIO_BLK_T_OUT) + std::string(512, 'x'), 0)->written, 0u);
  EXPECT_EQ(guest_->Call(Header(VIRTIO_BLK_T_FLUSH), 0)->written, 0u);
  EXPECT_EQ(ReadFile(disk), content);
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_IN), 0), kOk);  // no sectors
  EXPECT_EQ(ReadSectors(7, 1), content.substr(7 * 512, 512));
  EXPECT_FALSE(guest_->NeedsReset());
}

TEST_F(ExampleBlkTest, AReadOnlyDiskStaysAsItIs) {
  const auto disk = Disk();
  const std::string content = ReadFile(disk);
  Start({{"file", disk}, {"readonly", "true"}});
  EXPECT_NE(guest_->driver().features() & 1u << VIRTIO_BLK_F_RO, 0u);
  EXPECT_EQ(guest_->driver().features() & 1u << VIRTIO_BLK_F_DISCARD, 0u);
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_OUT) + std::string(512, 'x')), kIoErr);
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_DISCARD) + Range(0, 8)), kIoErr);
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_WRITE_ZEROES) + Range(0, 8)), kIoErr);
  EXPECT_EQ(ReadSectors(1, 1), content.substr(512, 512));
  EXPECT_EQ(ReadFile(disk), content);
}

TEST_F(ExampleBlkTest, AFileThatShrinksIsAnErrorAndOneThatGrowsIsSeen) {
  const auto disk = Disk();
  Start({{"file", disk}});
  ASSERT_EQ(truncate(disk.c_str(), kMiB), 0);
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_IN, 4 * kMiB / 512), 512), kIoErr);
  ASSERT_EQ(truncate(disk.c_str(), 16 * kMiB), 0);
  ASSERT_OK_AND_ASSIGN(const std::string size, device_.Control("resize", ""));
  EXPECT_EQ(size, std::to_string(16 * kMiB));
  EXPECT_TRUE(guest_->WaitForConfigChange());
  EXPECT_EQ(guest_->Config<uint64_t>(), 16 * kMiB / 512u);
  EXPECT_EQ(ReadSectors(16 * kMiB / 512 - 1, 1), std::string(512, '\0'));
}

TEST_F(ExampleBlkTest, WithoutFlushWritesAreOnTheDisk) {
  const auto disk = Disk();
  Start({{"file", disk}}, ~(uint64_t{1} << VIRTIO_BLK_F_FLUSH));
  EXPECT_EQ(guest_->driver().features() & 1u << VIRTIO_BLK_F_FLUSH, 0u);
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_OUT, 3) + std::string(512, 'd')), kOk);
  EXPECT_EQ(ReadFile(disk).substr(3 * 512, 512), std::string(512, 'd'));
}

TEST_F(ExampleBlkTest, AnotherOneGoesOnWithTheSameFile) {
  const auto disk = Disk();
  Start({{"file", disk}});
  EXPECT_EQ(Status(Header(VIRTIO_BLK_T_OUT, 3) + std::string(512, 'h')), kOk);
  // Its name is somebody else's by now.
  ASSERT_EQ(rename(disk.c_str(), (dir_ / "moved").c_str()), 0);
  HandOver({{"file", disk}});
  EXPECT_EQ(ReadSectors(3, 1), std::string(512, 'h'));
}

TEST_F(ExampleBlkTest, WrongOptionsAreNamed) {
  const auto invalid = absl::StatusCode::kInvalidArgument;
  const std::string disk = Disk();
  EXPECT_THAT(Refusal({}), StatusIs(invalid, "option file: missing"));
  EXPECT_THAT(Refusal({{"file", dir_ / "none"}}),
              StatusIs(absl::StatusCode::kNotFound, "option file: "));
  EXPECT_THAT(Refusal({{"file", dir_.path()}, {"readonly", "true"}}), StatusIs(invalid, "no file"));
  EXPECT_THAT(Refusal({{"file", disk}, {"serial", std::string(21, 's')}}),
              StatusIs(invalid, "option serial"));
  for (const char* size : {"0", "513", "768", "8192", "x"}) {
    EXPECT_THAT(Refusal({{"file", disk}, {"block-size", size}}),
                StatusIs(invalid, "option block-size"));
  }
  EXPECT_THAT(Refusal({{"file", disk}, {"queues", "17"}}), StatusIs(invalid, "option queues"));
  EXPECT_THAT(Refusal({{"file", disk}, {"size", "1"}}),
              StatusIs(invalid, "option size: there is no such option"));
}

}  // namespace
}  // namespace virtbay::testing
