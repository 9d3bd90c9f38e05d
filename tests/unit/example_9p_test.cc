// The example virtio-9p behind the in-process driver: 9P2000.L as Linux speaks it, and as nobody
// should.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <set>

#include "sdk/examples/9p/wire.h"
#include "tests/unit/example_fixture.h"

namespace virtbay::testing {
namespace {

constexpr uint32_t kMsize = 65536;
constexpr uint32_t kRoot = 1;  // fid

std::string Text(const std::string& text) { return Raw(static_cast<uint16_t>(text.size())) + text; }
std::string U32(uint32_t value) { return Raw(value); }
std::string U64(uint64_t value) { return Raw(value); }
std::string Names(const std::vector<std::string>& names) {
  std::string text = Raw(static_cast<uint16_t>(names.size()));
  for (const std::string& name : names) text += Text(name);
  return text;
}

class Example9pTest : public ExampleTest {
 protected:
  Example9pTest() : ExampleTest(VIRTBAY_9P_PLUGIN) {}

  // The share is a directory in one with a secret beside it.
  std::filesystem::path Share() {
    const auto share = dir_ / "share";
    std::filesystem::create_directory(share);
    dir_.Write("secret", "secret");
    return share;
  }
  void Serve(Options options = {}) {
    share_ = Share();
    options.emplace("shared-dir", share_);
    Start(std::move(options));
    EXPECT_EQ(Rpc(p9::kTversion, U32(kMsize) + Text("9P2000.L"), 0xffff), 0u);
    EXPECT_EQ(Rpc(p9::kTattach, U32(kRoot) + U32(~0u) + Text("root") + Text("") + U32(~0u)), 0u);
  }
  static std::string Message(uint8_t type, const std::string& body, uint16_t tag = 7) {
    return U32(static_cast<uint32_t>(7 + body.size())) + Raw(type) + Raw(tag) + body;
  }
  // The body of the reply is in body_; 0, or the errno of an Rlerror, or 9999 for what is no reply.
  uint32_t Rpc(uint8_t type, const std::string& body, uint16_t tag = 7, uint32_t room = kMsize) {
    return Parse(guest_->Call(Message(type, body, tag), room), type, tag);
  }
  uint32_t Parse(const absl::StatusOr<Guest::Reply>& reply, uint8_t type, uint16_t tag = 7) {
    if (!reply.ok() || reply->written < 7) return 9999;
    uint32_t size = 0;
    uint16_t answered = 0;
    std::memcpy(&size, reply->room.data(), 4);
    std::memcpy(&answered, reply->room.data() + 5, 2);
    const auto kind = static_cast<uint8_t>(reply->room[4]);
    if (size != reply->written || answered != tag) return 9999;
    body_ = reply->room.substr(7, size - 7);
    if (kind == p9::kRlerror) return BodyU32();
    return kind == type + 1 ? 0 : 9999;
  }
  uint32_t BodyU32(size_t at = 0) const {
    uint32_t value = 0;
    if (body_.size() >= at + 4) std::memcpy(&value, body_.data() + at, 4);
    return value;
  }
  uint32_t Walk(uint32_t fid, uint32_t to, const std::vector<std::string>& names) {
    return Rpc(p9::kTwalk, U32(fid) + U32(to) + Names(names));
  }
  uint32_t Open(uint32_t fid, uint32_t flags) { return Rpc(p9::kTlopen, U32(fid) + U32(flags)); }
  uint32_t Clunk(uint32_t fid) { return Rpc(p9::kTclunk, U32(fid)); }
  uint32_t Write(uint32_t fid, uint64_t offset, const std::string& data) {
    return Rpc(p9::kTwrite,
               U32(fid) + U64(offset) + U32(static_cast<uint32_t>(data.size())) + data);
  }
  std::string Read(uint32_t fid, uint64_t offset, uint32_t count) {
    const uint32_t error = Rpc(p9::kTread, U32(fid) + U64(offset) + U32(count));
    if (error != 0 || BodyU32() != body_.size() - 4) return "error " + std::to_string(error);
    return body_.substr(4);
  }
  // The names of the directory, with pieces of so many bytes.
  std::multiset<std::string> List(uint32_t fid, uint32_t piece) {
    std::multiset<std::string> names;
    uint64_t offset = 0;
    for (;;) {
      if (Rpc(p9::kTreaddir, U32(fid) + U64(offset) + U32(piece)) != 0) return {"error"};
      if (BodyU32() == 0 || BodyU32() != body_.size() - 4) return names;
      for (size_t at = 4; at < body_.size();) {
        uint16_t length = 0;
        std::memcpy(&offset, body_.data() + at + 13, 8);
        std::memcpy(&length, body_.data() + at + 22, 2);
        names.insert(body_.substr(at + 24, length));
        at += 24u + length;
      }
    }
  }
  static std::string Setattr(uint32_t fid, uint32_t valid, uint32_t mode, uint64_t size,
                             uint64_t seconds = 0) {
    return U32(fid) + U32(valid) + U32(mode) + U32(0) + U32(0) + U64(size) + U64(seconds) + U64(0) +
           U64(seconds) + U64(0);
  }

  const TempDir dir_;
  std::filesystem::path share_;
  std::string body_;
};

TEST_F(Example9pTest, NegotiatesASession) {
  share_ = Share();
  Start({{"shared-dir", share_}, {"tag", "data"}, {"msize", "131072"}});
  EXPECT_EQ(guest_->Config<uint16_t>(), 4);
  EXPECT_EQ((guest_->Config<std::array<char, 4>>(2)), (std::array{'d', 'a', 't', 'a'}));
  EXPECT_EQ(guest_->driver().features() & 1, 1u);
  // Nothing before Tversion.
  EXPECT_EQ(Rpc(p9::kTattach, U32(1) + U32(~0u) + Text("") + Text("") + U32(0)), uint32_t{EPROTO});
  EXPECT_EQ(Rpc(p9::kTversion, U32(262144) + Text("9P2000.u"), 0xffff), 0u);
  EXPECT_EQ(body_.substr(4), Text("unknown"));
  EXPECT_EQ(Rpc(p9::kTattach, U32(1) + U32(~0u) + Text("") + Text("") + U32(0)), uint32_t{EPROTO});
  EXPECT_EQ(Rpc(p9::kTversion, U32(100) + Text("9P2000.L"), 0xffff), uint32_t{EMSGSIZE});
  EXPECT_EQ(Rpc(p9::kTversion, U32(262144) + Text("9P2000.L"), 0xffff), 0u);
  EXPECT_EQ(BodyU32(), 131072u);
  EXPECT_EQ(body_.substr(4), Text("9P2000.L"));
  EXPECT_EQ(Rpc(p9::kTattach, U32(1) + U32(~0u) + Text("") + Text("") + U32(0)), 0u);
  EXPECT_EQ(body_[0], '\x80');
  EXPECT_EQ(Metric("fids"), 1u);
  // Another one ends it.
  EXPECT_EQ(Rpc(p9::kTversion, U32(65536) + Text("9P2000.L"), 0xffff), 0u);
  EXPECT_EQ(Metric("fids"), 0u);
}

TEST_F(Example9pTest, MakesReadsAndRemovesFiles) {
  Serve();
  ASSERT_EQ(Rpc(p9::kTmkdir, U32(kRoot) + Text("sub") + U32(0750) + U32(getgid())), 0u);
  ASSERT_EQ(Walk(kRoot, 2, {"sub"}), 0u);
  ASSERT_EQ(Rpc(p9::kTlcreate, U32(2) + Text("file") + U32(2) + U32(0666) + U32(getgid())), 0u);
  std::string data(60000, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i % 251);
  ASSERT_EQ(Write(2, 3, data), 0u);
  EXPECT_EQ(BodyU32(), data.size());
  EXPECT_EQ(Read(2, 3, 65000), data);
  EXPECT_EQ(Read(2, 1u << 30, 100), "");
  EXPECT_EQ(Rpc(p9::kTfsync, U32(2) + U32(1)), 0u);
  EXPECT_EQ(ReadFile(share_ / "sub/file"), std::string(3, '\0') + data);
  struct stat st;
  ASSERT_EQ(stat((share_ / "sub/file").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode, S_IFREG | 0666u);  // the host's umask is not the guest's
  ASSERT_EQ(Rpc(p9::kTgetattr, U32(2) + U64(0x7ff)), 0u);
  EXPECT_EQ(BodyU32(8 + 13), st.st_mode);
  EXPECT_EQ(BodyU32(8 + 13 + 4 + 4 + 4 + 8 + 8), 60003u);
  EXPECT_EQ(Rpc(p9::kTsetattr, Setattr(2, 1 | 8 | 32 | 256, 0600, 10, 1'000'000)), 0u);
  ASSERT_EQ(stat((share_ / "sub/file").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode, S_IFREG | 0600u);
  EXPECT_EQ(st.st_size, 10);
  EXPECT_EQ(st.st_mtim.tv_sec, 1'000'000);
  EXPECT_EQ(Clunk(2), 0u);
  EXPECT_EQ(Clunk(2), uint32_t{EBADF});
  ASSERT_EQ(Walk(kRoot, 2, {"sub"}), 0u);
  EXPECT_EQ(Rpc(p9::kTrenameat, U32(2) + Text("file") + U32(kRoot) + Text("moved")), 0u);
  EXPECT_EQ(Rpc(p9::kTunlinkat, U32(kRoot) + Text("sub") + U32(0)), uint32_t{EISDIR});
  EXPECT_EQ(Rpc(p9::kTunlinkat, U32(kRoot) + Text("sub") + U32(0x200)), 0u);
  ASSERT_EQ(Walk(kRoot, 3, {"moved"}), 0u);
  EXPECT_EQ(Rpc(p9::kTlink, U32(kRoot) + U32(3) + Text("again")), 0u);
  EXPECT_EQ(Rpc(p9::kTunlinkat, U32(kRoot) + Text("moved") + U32(0)), 0u);
  EXPECT_TRUE(std::filesystem::exists(share_ / "again"));
  EXPECT_EQ(Rpc(p9::kTstatfs, U32(kRoot)), 0u);
  EXPECT_EQ(BodyU32(), 0x01021997u);
}

TEST_F(Example9pTest, LargeMessagesOfAnyMsize) {
  for (const uint32_t msize : {65536u, 262144u}) {
    Serve();
    ASSERT_EQ(Rpc(p9::kTversion, U32(msize) + Text("9P2000.L"), 0xffff), 0u);
    ASSERT_EQ(Rpc(p9::kTattach, U32(kRoot) + U32(~0u) + Text("") + Text("") + U32(~0u)), 0u);
    ASSERT_EQ(Walk(kRoot, 2, {}), 0u);
    ASSERT_EQ(Rpc(p9::kTlcreate, U32(2) + Text("large") + U32(2) + U32(0600) + U32(0)), 0u);
    std::string data(msize - 24, '\0');
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 31 + i / 999);
    ASSERT_EQ(Write(2, 0, data), 0u);
    const std::string read = Message(p9::kTread, U32(2) + U64(0) + U32(msize - 11));
    EXPECT_EQ(Parse(guest_->Call(read, msize), p9::kTread), 0u);
    EXPECT_EQ(body_.substr(4), data);
    // No more than the session's message holds, whatever room there is.
    ASSERT_EQ(truncate((share_ / "large").c_str(), 2 * msize), 0);
    EXPECT_EQ(
        Parse(guest_->Call(Message(p9::kTread, U32(2) + U64(0) + U32(~0u)), 2 * msize), p9::kTread),
        0u);
    EXPECT_EQ(body_.size() + 7, msize);
    std::filesystem::remove(share_ / "large");
    guest_.reset();
    ASSERT_OK(host_->Remove("example"));
  }
}

TEST_F(Example9pTest, ListsDirectoriesInPieces) {
  Serve();
  std::multiset<std::string> names = {".", ".."};
  for (int i = 0; i < 500; ++i) {
    names.insert("a-file-with-some-name-" + std::to_string(i));
    std::ofstream(share_ / *names.rbegin());
  }
  names = {".", ".."};
  for (const auto& entry : std::filesystem::directory_iterator(share_)) {
    names.insert(entry.path().filename());
  }
  ASSERT_EQ(Walk(kRoot, 2, {}), 0u);
  ASSERT_EQ(Open(2, 0200000), 0u);
  for (const uint32_t piece : {300u, 4096u, 60000u, ~0u}) EXPECT_EQ(List(2, piece), names) << piece;
  EXPECT_EQ(Rpc(p9::kTreaddir, U32(2) + U64(0) + U32(3)), uint32_t{EINVAL});
  // What is above the share has no number in it.
  ASSERT_EQ(Rpc(p9::kTreaddir, U32(2) + U64(0) + U32(~0u)), 0u);
  struct stat above;
  ASSERT_EQ(stat(dir_.path().c_str(), &above), 0);
  EXPECT_EQ(body_.find(Raw(uint64_t{above.st_ino})), std::string::npos);
}

TEST_F(Example9pTest, NothingLeadsOutOfTheShare) {
  Serve();
  std::filesystem::create_directory(share_ / "sub");
  std::filesystem::create_symlink(dir_.path(), share_ / "out");
  std::filesystem::create_symlink("/etc", share_ / "etc");
  for (const std::vector<std::string>& names : {std::vector<std::string>{".."},
                                                {"."},
                                                {"sub/.."},
                                                {"/etc"},
                                                {""},
                                                {std::string("sub\0x", 5)}}) {
    EXPECT_EQ(Walk(kRoot, 9, names), uint32_t{EINVAL}) << names[0];
  }
  // A link is a thing of its own; nothing lies below it, and opening it opens nothing.
  for (const char* link : {"out", "etc"}) {
    EXPECT_EQ(Walk(kRoot, 9, {link, "passwd"}), 0u);
    EXPECT_EQ(body_.size(), 2u + 13u);  // the first step only
    EXPECT_EQ(Clunk(9), uint32_t{EBADF});
    ASSERT_EQ(Walk(kRoot, 9, {link}), 0u);
    EXPECT_EQ(Open(9, 0), uint32_t{ELOOP});
    EXPECT_EQ(Rpc(p9::kTlcreate, U32(9) + Text("x") + U32(1) + U32(0600) + U32(0)),
              uint32_t{ENOTDIR});
    EXPECT_EQ(Rpc(p9::kTsetattr, Setattr(9, 8, 0, 0)), uint32_t{EINVAL});
    EXPECT_EQ(Clunk(9), 0u);
  }
  EXPECT_EQ(Rpc(p9::kTlcreate, U32(kRoot) + Text("../x") + U32(1) + U32(0600) + U32(0)),
            uint32_t{EINVAL});
  EXPECT_EQ(Rpc(p9::kTmkdir, U32(kRoot) + Text("..") + U32(0700) + U32(0)), uint32_t{EINVAL});
  EXPECT_EQ(Rpc(p9::kTrenameat, U32(kRoot) + Text("sub") + U32(kRoot) + Text("../sub")),
            uint32_t{EINVAL});
  EXPECT_EQ(Rpc(p9::kTunlinkat, U32(kRoot) + Text("../secret") + U32(0)), uint32_t{EINVAL});
  EXPECT_EQ(Rpc(p9::kTsymlink, U32(kRoot) + Text("a/b") + Text("x") + U32(0)), uint32_t{EINVAL});
  EXPECT_EQ(ReadFile(dir_ / "secret"), "secret");
  EXPECT_EQ(Rpc(p9::kTattach, U32(5) + U32(~0u) + Text("") + Text("/etc") + U32(0)),
            uint32_t{ENOENT});
  // A symbolic link may say what it likes: the guest follows it, in its own tree.
  ASSERT_EQ(Rpc(p9::kTsymlink, U32(kRoot) + Text("away") + Text("/nowhere") + U32(0)), 0u);
  ASSERT_EQ(Walk(kRoot, 4, {"away"}), 0u);
  ASSERT_EQ(Rpc(p9::kTreadlink, U32(4)), 0u);
  EXPECT_EQ(body_, Text("/nowhere"));
}

TEST_F(Example9pTest, OpeningNeverWaitsOrActs) {
  Serve();
  ASSERT_EQ(mkfifo((share_ / "fifo").c_str(), 0600), 0);
  ASSERT_EQ(Walk(kRoot, 2, {"fifo"}), 0u);
  EXPECT_EQ(Open(2, 0), uint32_t{EACCES});
  EXPECT_EQ(Rpc(p9::kTsetattr, Setattr(2, 8, 0, 5)), uint32_t{EINVAL});
  // As something that is there already, for a create that does not insist.
  ASSERT_EQ(Walk(kRoot, 3, {}), 0u);
  EXPECT_EQ(Rpc(p9::kTlcreate, U32(3) + Text("fifo") + U32(1) + U32(0600) + U32(0)),
            uint32_t{EACCES});
  EXPECT_EQ(
      Rpc(p9::kTmknod, U32(kRoot) + Text("null") + U32(S_IFCHR | 0600) + U32(1) + U32(3) + U32(0)),
      uint32_t{EPERM});
  EXPECT_EQ(Rpc(p9::kTmknod,
                U32(kRoot) + Text("pipe") + U32(S_IFIFO | 0600) + U32(0) + U32(0) + U32(getgid())),
            0u);
}

TEST_F(Example9pTest, AReadOnlyShareStaysAsItIs) {
  const auto share = Share();
  std::ofstream(share / "file") << "text";
  Serve({{"readonly", "true"}});
  ASSERT_EQ(Walk(kRoot, 2, {"file"}), 0u);
  for (const uint32_t flags : {1u, 2u, 01000u}) EXPECT_EQ(Open(2, flags), uint32_t{EROFS});
  EXPECT_EQ(Rpc(p9::kTsetattr, Setattr(2, 1, 0777, 0)), uint32_t{EROFS});
  EXPECT_EQ(Rpc(p9::kTlcreate, U32(kRoot) + Text("x") + U32(1) + U32(0600) + U32(0)),
            uint32_t{EROFS});
  EXPECT_EQ(Rpc(p9::kTmkdir, U32(kRoot) + Text("x") + U32(0700) + U32(0)), uint32_t{EROFS});
  EXPECT_EQ(Rpc(p9::kTlink, U32(kRoot) + U32(2) + Text("x")), uint32_t{EROFS});
  EXPECT_EQ(Rpc(p9::kTrenameat, U32(kRoot) + Text("file") + U32(kRoot) + Text("x")),
            uint32_t{EROFS});
  EXPECT_EQ(Rpc(p9::kTunlinkat, U32(kRoot) + Text("file") + U32(0)), uint32_t{EROFS});
  ASSERT_EQ(Open(2, 0), 0u);
  EXPECT_EQ(Read(2, 0, 100), "text");
  EXPECT_EQ(Write(2, 0, "x"), uint32_t{EBADF});
}

TEST_F(Example9pTest, LocksAreTheHosts) {
  Serve();
  const auto file = share_ / "locked";
  std::ofstream(file) << "0123456789";
  const std::string range = U64(2) + U64(4) + U32(77) + Text("guest");
  for (const uint32_t fid : {2u, 3u}) {
    ASSERT_EQ(Walk(kRoot, fid, {"locked"}), 0u);
    ASSERT_EQ(Open(fid, 2), 0u);
  }
  const auto lock = [&](uint32_t fid, char type) {
    return Rpc(p9::kTlock, U32(fid) + type + U32(0) + range) == 0 ? body_[0] : 'E';
  };
  EXPECT_EQ(lock(2, 1), 0);
  EXPECT_EQ(lock(3, 1), 1);  // blocked
  ASSERT_EQ(Rpc(p9::kTgetlock, U32(3) + std::string(1, 1) + range), 0u);
  EXPECT_EQ(body_.substr(0, 17), std::string(1, 1) + U64(2) + U64(4));
  const UniqueFd host(open(file.c_str(), O_RDWR | O_CLOEXEC));
  struct flock look = {};
  look.l_type = F_WRLCK;
  ASSERT_EQ(fcntl(host.get(), F_OFD_GETLK, &look), 0);
  EXPECT_EQ(look.l_type, F_WRLCK);
  EXPECT_EQ(look.l_start, 2);
  EXPECT_EQ(lock(2, 2), 0);
  EXPECT_EQ(lock(3, 0), 0);
  EXPECT_EQ(Rpc(p9::kTlock, U32(3) + std::string(1, 9) + U32(0) + range), uint32_t{EINVAL});
}

TEST_F(Example9pTest, HostileMessagesGetAnError) {
  Serve();
  std::ofstream(share_ / "file") << "text";
  ASSERT_EQ(Walk(kRoot, 2, {"file"}), 0u);
  ASSERT_EQ(Open(2, 2), 0u);
  // Every type cut anywhere, and with nothing but ones.
  for (int type = 0; type < 256; ++type) {
    for (const size_t length : {0u, 1u, 3u, 4u, 9u, 17u, 40u, 200u}) {
      if (type == p9::kTversion || type == p9::kTclunk || type == p9::kTremove) continue;
      EXPECT_NE(Rpc(static_cast<uint8_t>(type), std::string(length, '\xff')), 9999u)
          << type << " " << length;
    }
  }
  // Sizes that lie.
  for (const uint32_t size : {0u, 6u, 8u, 100u, kMsize + 1, ~0u}) {
    const std::string message = U32(size) + Raw(uint8_t{p9::kTstatfs}) + Raw(uint16_t{7});
    EXPECT_EQ(Parse(guest_->Call(message, 64), p9::kTstatfs), uint32_t{EINVAL}) << size;
  }
  EXPECT_EQ(guest_->Call("", 64)->written, 11u);
  EXPECT_EQ(guest_->Call(Message(p9::kTstatfs, U32(kRoot)), 10)->written, 0u);
  // More than there is room for.
  EXPECT_EQ(Rpc(p9::kTgetattr, U32(kRoot) + U64(0), 7, 40), uint32_t{EINVAL});
  // Counts and offsets.
  EXPECT_EQ(Rpc(p9::kTwrite, U32(2) + U64(0) + U32(1000) + "short"), uint32_t{EINVAL});
  EXPECT_EQ(Rpc(p9::kTwrite, U32(2) + U64(0) + U32(~0u) + "short"), uint32_t{EINVAL});
  EXPECT_EQ(Rpc(p9::kTread, U32(2) + U64(~uint64_t{0}) + U32(10)), uint32_t{EINVAL});
  EXPECT_EQ(Rpc(p9::kTread, U32(kRoot) + U64(0) + U32(10)), uint32_t{EBADF});  // not open
  EXPECT_EQ(Rpc(p9::kTread, U32(99) + U64(0) + U32(10)), uint32_t{EBADF});
  // Fids that are in use, walks that are too long or start at an open file.
  EXPECT_EQ(Walk(kRoot, 2, {}), uint32_t{EINVAL});
  EXPECT_EQ(Walk(2, 5, {}), uint32_t{EINVAL});
  EXPECT_EQ(Walk(kRoot, 5, std::vector<std::string>(17, "x")), uint32_t{EINVAL});
  EXPECT_EQ(Walk(kRoot, 5, {std::string(256, 'n')}), uint32_t{ENAMETOOLONG});
  EXPECT_EQ(Walk(kRoot, 5, std::vector<std::string>(16, std::string(255, 'n'))), uint32_t{ENOENT});
  EXPECT_EQ(Open(2, 0), uint32_t{EINVAL});
  EXPECT_EQ(Read(2, 0, 10), "text");
  EXPECT_FALSE(guest_->NeedsReset());
}

TEST_F(Example9pTest, AFlushIsAnsweredAfterWhatItIsAbout) {
  Serve();
  std::ofstream(share_ / "file") << "text";
  ASSERT_EQ(Walk(kRoot, 2, {"file"}), 0u);
  ASSERT_EQ(Open(2, 2), 0u);
  for (int i = 0; i < 50; ++i) {
    const uint64_t sync = guest_->Send(Message(p9::kTfsync, U32(2) + U32(0), 21), 64);
    const uint64_t flush = guest_->Send(Message(p9::kTflush, Raw(uint16_t{21}), 22), 64);
    EXPECT_EQ(Parse(guest_->Take(flush), p9::kTflush, 22), 0u);
    EXPECT_TRUE(guest_->Has(sync));
    EXPECT_NE(Parse(guest_->Take(sync), p9::kTfsync, 21), 9999u);
  }
  EXPECT_EQ(Rpc(p9::kTflush, Raw(uint16_t{1234})), 0u);  // nothing under way
}

TEST_F(Example9pTest, FidsAndDescriptorsEndWithTheSession) {
  Serve();
  std::ofstream(share_ / "file") << "text";
  const size_t before = CountEntries("/proc/self/fd");
  for (uint32_t fid = 10; fid < 30; ++fid) {
    ASSERT_EQ(Walk(kRoot, fid, {"file"}), 0u);
    ASSERT_EQ(Open(fid, 0), 0u);
  }
  EXPECT_EQ(CountEntries("/proc/self/fd"), before + 40);
  ASSERT_OK(guest_->driver().Restart());
  ASSERT_EQ(Rpc(p9::kTversion, U32(kMsize) + Text("9P2000.L"), 0xffff), 0u);
  EXPECT_EQ(CountEntries("/proc/self/fd"), before - 1);  // the root's fid as well
  EXPECT_EQ(Metric("fids"), 0u);
}

TEST_F(Example9pTest, AnotherOneGoesOnInTheMiddleOfEverything) {
  Serve();
  std::ofstream(share_ / "file") << "before";
  for (int i = 0; i < 300; ++i) std::ofstream(share_ / ("name" + std::to_string(i)));
  ASSERT_EQ(Walk(kRoot, 2, {"file"}), 0u);
  ASSERT_EQ(Open(2, 2), 0u);
  ASSERT_EQ(Walk(kRoot, 3, {}), 0u);
  ASSERT_EQ(Open(3, 0200000), 0u);
  const auto names = List(3, 60000);
  std::filesystem::remove(share_ / "file");  // its fid keeps it
  HandOver({{"shared-dir", share_}});
  EXPECT_EQ(Metric("fids"), 3u);
  EXPECT_EQ(Read(2, 0, 100), "before");
  EXPECT_EQ(Write(2, 6, " after"), 0u);
  EXPECT_EQ(Read(2, 0, 100), "before after");
  EXPECT_EQ(List(3, 500).size(), names.size() - 1);
}

TEST_F(Example9pTest, WrongOptionsAreNamed) {
  const auto invalid = absl::StatusCode::kInvalidArgument;
  const std::string share = Share();
  EXPECT_THAT(Refusal({}), StatusIs(invalid, "option shared-dir: missing"));
  EXPECT_THAT(Refusal({{"shared-dir", dir_ / "none"}}),
              StatusIs(absl::StatusCode::kNotFound, "option shared-dir"));
  EXPECT_THAT(Refusal({{"shared-dir", dir_ / "secret"}}),
              StatusIs(absl::StatusCode::kFailedPrecondition, "option shared-dir"));
  EXPECT_THAT(Refusal({{"shared-dir", share}, {"msize", "100"}}),
              StatusIs(invalid, "option msize"));
  EXPECT_THAT(Refusal({{"shared-dir", share}, {"tag", std::string(256, 't')}}),
              StatusIs(invalid, "option tag"));
  EXPECT_THAT(Refusal({{"shared-dir", share}, {"cache", "x"}}),
              StatusIs(invalid, "option cache: there is no such option"));
}

}  // namespace
}  // namespace virtbay::testing
