// What a hostile guest can send to the virtiofs plugin: requests of every length, lying sizes,
// names that try to leave the share, handles of others.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include "tests/unit/virtiofs_share.h"

namespace virtbay::testing {
namespace {

namespace stdfs = std::filesystem;

std::vector<std::byte> Request(uint32_t opcode, uint64_t nodeid,
                               std::span<const std::byte> arguments, uint32_t extension = 0) {
  fuse_in_header header = {};
  header.len = static_cast<uint32_t>(sizeof(header) + arguments.size());
  header.opcode = opcode;
  header.unique = 4711;
  header.nodeid = nodeid;
  header.total_extlen = static_cast<uint16_t>(extension);
  std::vector<std::byte> bytes(header.len);
  std::memcpy(bytes.data(), &header, sizeof(header));
  std::copy(arguments.begin(), arguments.end(), bytes.begin() + sizeof(header));
  return bytes;
}

// 0 or a positive errno; -1: nothing was written.
int ErrorOf(const guest::FuseRawReply& reply) {
  EXPECT_EQ(reply.error, 0);
  fuse_out_header header = {};
  if (reply.written < sizeof(header)) {
    EXPECT_EQ(reply.written, 0u);
    return -1;
  }
  std::memcpy(&header, reply.bytes.data(), sizeof(header));
  EXPECT_EQ(header.len, reply.written);
  EXPECT_EQ(header.unique, 4711u);
  return -header.error;
}

class VirtioFsHostile : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(share_.ready());
    stdfs::create_directory(share_.dir() / "dir");
    share_.dir().Write("file", "content");
    share_.dir().Write("other", "");
    file_ = share_.Node("file");
    dir_ = share_.Node("dir");
    fh_ = share_.OpenPath("file", O_RDWR);
    const auto opened = fs().OpenDir(dir_);
    dir_fh_ = opened.value.fh;
  }
  guest::FuseClient& fs() { return share_.fs(); }
  // The device still serves.
  void ExpectAlive() { EXPECT_EQ(fs().GetAttr(kRoot).error, 0); }

  static ShareOptions WithXattr() {
    ShareOptions options;
    options.options = {{"xattr", ""}, {"posix-acl", ""}, {"killpriv-v2", ""}};
    return options;
  }

  Share share_{WithXattr()};
  uint64_t file_ = 0, dir_ = 0, fh_ = 0, dir_fh_ = 0;
};

TEST_F(VirtioFsHostile, RequestsOfEveryLength) {
  // Small numbers, a handle, and a text: whatever the struct is, some of it looks right.
  std::vector<std::byte> arguments(120);
  std::memcpy(arguments.data(), &fh_, 8);
  const char text[] = "name\0value";
  for (size_t at = 8; at + sizeof(text) < arguments.size(); at += 24) {
    std::memcpy(arguments.data() + at, text, sizeof(text));
  }
  for (uint32_t opcode = 0; opcode < 56; ++opcode) {
    // INIT and DESTROY end the session that the others use.
    if (opcode == FUSE_INIT || opcode == FUSE_DESTROY) continue;
    for (size_t length = 0; length <= arguments.size(); ++length) {
      auto request =
          Request(opcode, length % 2 == 0 ? dir_ : file_, std::span(arguments).first(length));
      fs().Raw(request, 200);
      // A length in the header that is not the chain's.
      const uint32_t lie = static_cast<uint32_t>(length % 3 == 0 ? 0xffffffffu : 41 + length);
      std::memcpy(request.data(), &lie, sizeof(lie));
      fs().Raw(request, 200);
    }
  }
  ExpectAlive();
}

TEST_F(VirtioFsHostile, ChainsShorterThanAHeader) {
  const auto whole = Request(FUSE_GETATTR, kRoot, {});
  for (size_t length = 0; length < whole.size(); ++length) {
    if (length == 0) continue;  // a chain without readable bytes cannot be made by the client
    EXPECT_EQ(ErrorOf(fs().Raw(std::span(whole).first(length), 64)), -1) << length;
  }
  for (const uint32_t length : {0u, 1u, 39u, 41u, 0x7fffffffu, 0xffffffffu}) {
    auto request = whole;
    std::memcpy(request.data(), &length, sizeof(length));
    EXPECT_EQ(ErrorOf(fs().Raw(request, 64)), EINVAL) << length;
  }
  ExpectAlive();
}

TEST_F(VirtioFsHostile, RepliesOfEveryLength) {
  const std::vector<std::byte> zeroes(128);
  for (uint32_t opcode = 1; opcode < 54; ++opcode) {
    if (opcode == FUSE_INIT || opcode == FUSE_DESTROY) continue;
    for (uint32_t room = 0; room < 320; room += room < 20 ? 1 : 13) {
      const auto reply = fs().Raw(Request(opcode, kRoot, zeroes), room);
      EXPECT_LE(reply.written, room) << opcode;
    }
  }
  ExpectAlive();
}

TEST_F(VirtioFsHostile, NothingIsMadeWhenTheAnswerHasNoRoom) {
  fuse_create_in in = {};
  in.flags = O_RDWR;
  in.mode = 0600;
  std::vector<std::byte> arguments(sizeof(in) + 4);
  std::memcpy(arguments.data(), &in, sizeof(in));
  std::memcpy(arguments.data() + sizeof(in), "new", 4);
  EXPECT_EQ(ErrorOf(fs().Raw(Request(FUSE_CREATE, kRoot, arguments), 16)), EINVAL);
  EXPECT_EQ(ErrorOf(fs().Raw(Request(FUSE_CREATE, kRoot, arguments), 15)), -1);
  EXPECT_FALSE(stdfs::exists(share_.dir() / "new"));
  EXPECT_EQ(ErrorOf(fs().Raw(Request(FUSE_CREATE, kRoot, arguments), 16 + 128 + 16)), 0);
  EXPECT_TRUE(stdfs::exists(share_.dir() / "new"));
}

TEST_F(VirtioFsHostile, DescriptorsMaySplitAnywhere) {
  fuse_getattr_in in = {};
  const auto request = Request(FUSE_GETATTR, file_, std::as_bytes(std::span(&in, 1)));
  for (const uint32_t in_split : {1u, 3u, 7u, 39u, 41u}) {
    for (const uint32_t out_split : {1u, 5u, 15u, 17u}) {
      const auto reply = fs().Raw(request, 120, in_split, out_split);
      EXPECT_EQ(ErrorOf(reply), 0);
      fuse_attr_out out;
      ASSERT_GE(reply.written, sizeof(out) + 16);
      std::memcpy(&out, reply.bytes.data() + 16, sizeof(out));
      EXPECT_EQ(out.attr.size, 7u);
    }
  }
}

TEST_F(VirtioFsHostile, NamesThatAreNoNames) {
  using std::string;
  const std::vector<std::pair<string, int>> names = {
      {string("\0", 1), EINVAL},
      {string(".\0", 2), EINVAL},
      {string("..\0", 3), EINVAL},
      {string("/\0", 2), EINVAL},
      {string("a/b\0", 4), EINVAL},
      {string("../x\0", 5), EINVAL},
      {string("/etc\0", 5), EINVAL},
      {string("x/..\0", 5), EINVAL},
      {string("abc"), EINVAL},
      {string("a\0b\0", 4), EINVAL},
      {string(256, 'n') + string("\0", 1), ENAMETOOLONG},
      {string(255, 'n') + string("\0", 1), 0},
      {string(400, 'n'), ENAMETOOLONG}};
  for (const auto& [name, expected] : names) {
    const int error = expected == 0 ? ENOENT : expected;
    for (const uint32_t opcode : {FUSE_LOOKUP, FUSE_UNLINK, FUSE_RMDIR}) {
      EXPECT_EQ(ErrorOf(fs().Raw(Request(opcode, kRoot, Bytes(name)), 256)), error)
          << opcode << " " << name;
    }
    if (expected == 0) continue;
    const auto refused = [&](uint32_t opcode, string fixed) {
      EXPECT_EQ(ErrorOf(fs().Raw(Request(opcode, kRoot, Bytes(fixed + name)), 256)), expected)
          << opcode << " " << name;
    };
    refused(FUSE_MKNOD, string(16, '\0'));
    refused(FUSE_MKDIR, string(8, '\0'));
    refused(FUSE_CREATE, string(16, '\0'));
    refused(FUSE_LINK, string(reinterpret_cast<const char*>(&file_), 8));
    const string root(reinterpret_cast<const char*>(&kRoot), 8);
    refused(FUSE_RENAME, root + string("file\0", 5));
    refused(FUSE_RENAME2, root + string(8, '\0') + string("file\0", 5));
  }
  EXPECT_TRUE(stdfs::exists(share_.dir() / "file"));
  // A symbolic link's target may be anything, its name may not.
  EXPECT_EQ(ErrorOf(fs().Raw(Request(FUSE_SYMLINK, kRoot, Bytes(string("..\0/etc\0", 8))), 256)),
            EINVAL);
  EXPECT_EQ(ErrorOf(fs().Raw(Request(FUSE_SYMLINK, kRoot, Bytes(string("l\0/etc", 6))), 256)),
            EINVAL);
  EXPECT_EQ(ErrorOf(fs().Raw(Request(FUSE_SYMLINK, kRoot, Bytes(string("l\0a\0b\0", 6))), 256)),
            EINVAL);
}

TEST_F(VirtioFsHostile, FourGiBSizes) {
  for (const uint32_t size : {0xffffffffu, 0x80000000u, 0xffffefffu, 0x00ffffffu}) {
    fuse_read_in in = {};
    in.fh = fh_;
    in.size = size;
    const auto bytes = std::as_bytes(std::span(&in, 1));
    const auto read = fs().Raw(Request(FUSE_READ, file_, bytes), 16 + 4096);
    EXPECT_EQ(ErrorOf(read), 0);
    // What there is, and no more than there is room for.
    ASSERT_EQ(read.written, 16 + 7u);
    EXPECT_EQ(std::memcmp(read.bytes.data() + 16, "content", 7), 0);
    const auto narrow = fs().Raw(Request(FUSE_READ, file_, bytes), 16 + 3);
    EXPECT_EQ(ErrorOf(narrow), 0);
    EXPECT_EQ(narrow.written, 16 + 3u);
    in.fh = dir_fh_;
    EXPECT_EQ(ErrorOf(fs().Raw(Request(FUSE_READDIR, dir_, bytes), 16 + 4096)), 0);
    EXPECT_EQ(ErrorOf(fs().Raw(Request(FUSE_READDIRPLUS, dir_, bytes), 16 + 4096)), 0);
    fuse_write_in write = {};
    write.fh = fh_;
    write.size = size;
    EXPECT_EQ(
        ErrorOf(fs().Raw(Request(FUSE_WRITE, file_, std::as_bytes(std::span(&write, 1))), 64)),
        EINVAL);
    // Bytes that are there do not make up for those that are not.
    std::vector<std::byte> short_write(sizeof(write) + 4, std::byte{'x'});
    std::memcpy(short_write.data(), &write, sizeof(write));
    EXPECT_EQ(ErrorOf(fs().Raw(Request(FUSE_WRITE, file_, short_write), 64)), EINVAL);
    EXPECT_EQ(testing::ReadFile(share_.dir() / "file"), "content");
    fuse_getxattr_in get = {};
    get.size = size;
    std::vector<std::byte> arguments(sizeof(get));
    std::memcpy(arguments.data(), &get, sizeof(get));
    EXPECT_THAT(ErrorOf(fs().Raw(Request(FUSE_LISTXATTR, file_, arguments), 16 + 4096)),
                ::testing::AnyOf(0, EOPNOTSUPP));
    fuse_setxattr_in set = {};
    set.size = size;
    arguments.resize(sizeof(set) + 9);
    std::memcpy(arguments.data(), &set, sizeof(set));
    std::memcpy(arguments.data() + sizeof(set), "user.xyz", 9);
    EXPECT_THAT(ErrorOf(fs().Raw(Request(FUSE_SETXATTR, file_, arguments), 64)),
                ::testing::AnyOf(E2BIG, EINVAL));
    EXPECT_EQ(::getxattr((share_.dir() / "file").c_str(), "user.xyz", nullptr, 0), -1);
    fuse_batch_forget_in forget = {};
    forget.count = size;
    EXPECT_EQ(
        ErrorOf(fs().Raw(Request(FUSE_BATCH_FORGET, 0, std::as_bytes(std::span(&forget, 1))), 64)),
        -1);
    // One entry where billions are announced: that one is forgotten, and nothing that is not there.
    const uint64_t other = share_.Node("other");
    const fuse_forget_one one = {other, 1};
    std::vector<std::byte> forgets(sizeof(forget) + sizeof(one) + 8);
    std::memcpy(forgets.data(), &forget, sizeof(forget));
    std::memcpy(forgets.data() + sizeof(forget), &one, sizeof(one));
    std::memcpy(forgets.data() + sizeof(forget) + sizeof(one), &file_, 8);
    EXPECT_EQ(ErrorOf(fs().Raw(Request(FUSE_BATCH_FORGET, 0, forgets), 64)), -1);
    EXPECT_EQ(fs().GetAttr(other).error, ESTALE);
    EXPECT_EQ(fs().GetAttr(file_).error, 0);
  }
  ExpectAlive();
}

TEST_F(VirtioFsHostile, HandlesOfOthers) {
  EXPECT_EQ(fs().Read(dir_, fh_, 0, 10).error, EBADF);
  EXPECT_EQ(fs().Read(file_, dir_fh_, 0, 10).error, EBADF);
  EXPECT_EQ(fs().ReadDir(file_, dir_fh_, 0, 4096).error, EBADF);
  EXPECT_EQ(fs().Release(kRoot, fh_), EBADF);
  for (const uint64_t fh : {uint64_t{0}, fh_ + 1, fh_ + (uint64_t{1} << 32), UINT64_MAX}) {
    if (fh == dir_fh_) continue;
    EXPECT_EQ(fs().Read(file_, fh, 0, 10).error, EBADF) << fh;
    EXPECT_EQ(fs().Release(file_, fh), EBADF) << fh;
    EXPECT_EQ(fs().Flush(file_, fh), EBADF) << fh;
    EXPECT_EQ(fs().Fsync(file_, fh), EBADF) << fh;
    EXPECT_EQ(fs().Fallocate(file_, fh, 0, 1, 0), EBADF) << fh;
    EXPECT_EQ(fs().Lseek(file_, fh, 0, SEEK_DATA).error, EBADF) << fh;
  }
  for (const uint64_t nodeid : {uint64_t{0}, uint64_t{2} << 32, file_ + (uint64_t{7} << 32),
                                uint64_t{0xffffffff}, UINT64_MAX}) {
    EXPECT_EQ(fs().GetAttr(nodeid).error, ESTALE) << nodeid;
    EXPECT_EQ(fs().Lookup(nodeid, "x").error, ESTALE) << nodeid;
    EXPECT_EQ(fs().Open(nodeid, O_RDONLY).error, ESTALE) << nodeid;
    EXPECT_EQ(fs().Forget(nodeid, 1), 0);
  }
  ExpectAlive();
}

TEST_F(VirtioFsHostile, SupplementaryGroups) {
  const auto make = [&](std::span<const uint32_t> words, const char* name) {
    std::vector<std::byte> arguments(8);
    uint32_t mode = 0755;
    std::memcpy(arguments.data(), &mode, 4);
    const auto text = std::as_bytes(std::span(name, std::strlen(name) + 1));
    arguments.insert(arguments.end(), text.begin(), text.end());
    const auto ext = std::as_bytes(words);
    arguments.insert(arguments.end(), ext.begin(), ext.end());
    return ErrorOf(fs().Raw(
        Request(FUSE_MKDIR, kRoot, arguments, static_cast<uint32_t>(words.size() / 2)), 256));
  };
  // size, type, count, groups: right behind the name, as Linux sends it.
  EXPECT_EQ(make(std::vector<uint32_t>{16, 32, 1, 777}, "good"), 0);
  EXPECT_EQ(make(std::vector<uint32_t>{24, 32, 2, 777, 778, 0}, "two"), 0);
  EXPECT_EQ(make(std::vector<uint32_t>{8, 99}, "other-type"), 0);
  EXPECT_EQ(make(std::vector<uint32_t>{16, 32, 2, 777}, "bad-count"), EINVAL);
  EXPECT_EQ(make(std::vector<uint32_t>{16, 32, 0xffffffff, 777}, "huge-count"), EINVAL);
  EXPECT_EQ(make(std::vector<uint32_t>{0, 32, 1, 777}, "no-size"), EINVAL);
  EXPECT_EQ(make(std::vector<uint32_t>{0xfffffff0, 32, 1, 777}, "huge-size"), EINVAL);
  // More extensions than there are bytes.
  EXPECT_EQ(ErrorOf(fs().Raw(Request(FUSE_MKDIR, kRoot, Bytes(std::string(20, 'x')), 0xffff), 256)),
            EINVAL);
  EXPECT_FALSE(stdfs::exists(share_.dir() / "bad-count"));
}

TEST_F(VirtioFsHostile, TheShareCannotBeLeft) {
  // The host plays along: links and directories swap under the guest's hands.
  const TempDir outside;
  outside.Write("secret", "secret");
  std::atomic<bool> stop{false};
  std::thread swapper([&] {
    const stdfs::path victim = share_.dir() / "swap";
    std::error_code ignored;
    while (!stop.load()) {
      stdfs::create_directory(victim, ignored);
      std::ofstream(victim / "secret") << "inside";
      stdfs::remove_all(victim, ignored);
      stdfs::create_directory_symlink(outside.path(), victim, ignored);
      stdfs::remove(victim, ignored);
    }
  });
  int seen = 0;
  for (int i = 0; i < 3000; ++i) {
    const auto parent = fs().Lookup(kRoot, "swap");
    if (!parent.ok()) continue;
    const auto child = fs().Lookup(parent.value.nodeid, "secret");
    if (child.ok()) {
      const auto open = fs().Open(child.value.nodeid, O_RDONLY);
      if (open.ok()) {
        const std::string text = Text(fs().Read(child.value.nodeid, open.value.fh, 0, 100).value);
        EXPECT_NE(text, "secret");
        ++seen;
        fs().Release(child.value.nodeid, open.value.fh);
      }
      fs().Forget(child.value.nodeid, 1);
    }
    fs().Create(parent.value.nodeid, "dropped", O_RDWR, 0600);
    fs().Forget(parent.value.nodeid, 1);
  }
  stop.store(true);
  swapper.join();
  EXPECT_FALSE(stdfs::exists(outside / "dropped"));
  RecordProperty("files_seen", seen);
  ExpectAlive();
}

TEST_F(VirtioFsHostile, ForeignByteOrder) {
  fuse_in_header header = {};
  header.len = __builtin_bswap32(56);
  header.opcode = __builtin_bswap32(FUSE_INIT);
  header.unique = 99;
  std::vector<std::byte> request(56);
  std::memcpy(request.data(), &header, sizeof(header));
  const auto reply = fs().Raw(request, 80);
  ASSERT_EQ(reply.written, 16u);
  fuse_out_header out;
  std::memcpy(&out, reply.bytes.data(), sizeof(out));
  EXPECT_EQ(__builtin_bswap32(out.len), 16u);
  EXPECT_EQ(static_cast<int32_t>(__builtin_bswap32(static_cast<uint32_t>(out.error))), -EPROTO);
  EXPECT_TRUE(share_.log().Contains("byte order"));
}

TEST_F(VirtioFsHostile, ManyQueuesAtOnce) {
  ShareOptions options;
  options.options = {{"request-queues", "4"}, {"max-open-inodes", "8"}, {"xattr", ""}};
  options.session.request_queues = 4;
  Share many(std::move(options));
  ASSERT_TRUE(many.ready());
  for (int d = 0; d < 12; ++d) {
    std::string name = "d";
    name += std::to_string(d);
    stdfs::create_directory(many.dir() / name);
    for (int f = 0; f < 4; ++f) {
      std::string file = name;
      file += "/f";
      file += std::to_string(f);
      many.dir().Write(file, "data");
    }
  }
  std::vector<std::thread> threads;
  for (uint32_t queue = 0; queue < 4; ++queue) {
    threads.emplace_back([&, queue] {
      auto& client = many.fs(queue);
      uint32_t random = queue * 7919 + 1;
      const auto next = [&](uint32_t n) {
        return (random = random * 1664525 + 1013904223) / 65536 % n;
      };
      for (int i = 0; i < 1500; ++i) {
        std::string dir = "d", file = "f", other = "f";
        dir += std::to_string(next(12));
        file += std::to_string(next(4));
        other += std::to_string(next(4));
        const auto parent = client.Lookup(kRoot, dir);
        if (!parent.ok()) continue;
        const uint64_t p = parent.value.nodeid;
        const auto child = client.Lookup(p, file);
        if (child.ok()) {
          const uint64_t node = child.value.nodeid;
          client.GetAttr(node);
          const auto open = client.Open(node, O_RDWR);
          if (open.ok()) {
            client.Write(node, open.value.fh, 0, Bytes("more"));
            client.Read(node, open.value.fh, 0, 10);
            if (next(3) == 0) client.Unlink(p, file);
            client.Release(node, open.value.fh);
          }
          if (next(4) == 0) client.Link(node, kRoot, file);
          client.Forget(node, next(3));
        } else {
          client.Create(p, file, O_RDWR, 0600);
        }
        if (next(3) == 0) client.Rename(p, file, p, other);
        if (next(9) == 0) client.Rename2(p, file, p, other, RENAME_EXCHANGE);
        if (next(50) == 0) {
          const auto opened = client.OpenDir(p);
          if (opened.ok()) {
            client.ReadDirPlus(p, opened.value.fh, 0, 4096);
            client.ReleaseDir(p, opened.value.fh);
          }
        }
        if (next(400) == 0) {
          fuse_init_in init = {};
          init.major = 7;
          init.minor = 38;
          client.Other(FUSE_INIT, 0, std::as_bytes(std::span(&init, 1)), sizeof(fuse_init_out));
        }
        client.Forget(p, 1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(many.fs().GetAttr(kRoot).error, 0);
  EXPECT_EQ(many.fs().Destroy(), 0);
  EXPECT_EQ(many.Metric("inodes"), 0u);
  EXPECT_EQ(many.Metric("open_handles"), 0u);
}

}  // namespace
}  // namespace virtbay::testing
