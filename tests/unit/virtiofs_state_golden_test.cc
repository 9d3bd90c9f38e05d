// States of the virtiofs plugin as its versions wrote them (tests/data/state): a guest goes on with
// each. When the form of a state changes there is a new version, and its states are added beside
// these.
#include <fcntl.h>

#include <fstream>
#include <iterator>

#include "tests/support/state_tree.h"
#include "tests/unit/virtiofs_share.h"

namespace virtbay::testing {
namespace {

class VirtioFsStateGolden : public ::testing::Test {
 protected:
  void Restore(const std::string& name, std::map<std::string, std::string> options) {
    HostOptions host_options;
    host_options.log = log_.log();
    auto host = Host::Create(std::move(host_options));
    ASSERT_OK(host);
    host_ = *std::move(host);
    std::ifstream file(std::string(VIRTBAY_STATE_DATA) + "/" + name, std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    ASSERT_FALSE(bytes.empty());
    StateParts parts(Bytes(bytes));
    tree_.Localise(&parts);
    const std::vector<std::byte> whole = parts.Whole();
    DeviceState state;
    state.type = "virtiofs";
    state.version = 1;
    state.bytes = Text(whole);
    for (const virtbay_state_fd& fd : tree_.Open(&parts)) {
      state.fds.push_back({fd.role, UniqueFd(fd.fd)});
    }
    DeviceSpec spec;
    spec.name = "golden";
    spec.plugin = VIRTBAY_VIRTIOFS_PLUGIN;
    spec.options = std::move(options);
    auto device = host_->Add(spec, std::move(state));
    ASSERT_OK(device);
    device_ = *device;
    auto transport = guest::InProcessTransport::Attach(*device);
    ASSERT_OK(transport);
    guest::FuseSessionOptions session;
    session.negotiated.emplace();
    auto made = guest::FuseSession::Create(*std::move(transport), std::move(session));
    ASSERT_OK(made);
    session_ = *std::move(made);
  }
  guest::FuseClient& fs() { return session_->client(); }

  StateTree tree_;
  LogCapture log_;
  std::unique_ptr<Host> host_;
  DeviceHandle device_;
  std::unique_ptr<guest::FuseSession> session_;
};

TEST_F(VirtioFsStateGolden, Version1) {
  ASSERT_NO_FATAL_FAILURE(
      Restore("virtiofs-v1.bin", {{"shared-dir", tree_.dir().path().native()}}));
  // Numbers as in virtiofs-v1.txt.
  constexpr uint64_t kA = 2, kB = 3, kFile = 4, kCold = 5, kLink = 6, kGone = 7;
  EXPECT_EQ(device_.Inspect()->metrics["inodes"], 6u);
  EXPECT_EQ(fs().GetAttr(kFile).value.attr.size, 6u);
  EXPECT_EQ(fs().GetAttr(kCold).value.attr.size, 6u);
  EXPECT_EQ(fs().ReadLink(kLink).value, "file");
  EXPECT_EQ(fs().Lookup(kA, "file").value.nodeid, kFile);
  EXPECT_EQ(fs().GetAttr(kGone).value.attr.nlink, 0u);
  EXPECT_EQ(Text(fs().Read(kFile, 1, 0, 99).value), "a/file");
  EXPECT_EQ(fs().Write(kFile, 1, 0, Bytes("A")).value, 1u);
  EXPECT_EQ(Text(fs().Read(kGone, 2, 0, 99).value), "a/gone");
  EXPECT_EQ(fs().Write(kGone, 2, 0, Bytes("A")).error, EBADF);
  // What was read ahead of the directory.
  const auto entries = fs().ReadDir(kB, 3, 0x1111, 4096);
  ASSERT_GE(entries.value.size(), 1u);
  EXPECT_EQ(entries.value[0].name, "read-ahead");
  EXPECT_EQ(entries.value[0].next_offset, 0x2222u);
  const auto lock = fs().GetLk(kFile, 1, 9, {0, 25, F_WRLCK, 1});
  EXPECT_EQ(lock.value.type, uint32_t{F_WRLCK});
  EXPECT_EQ(lock.value.start, 10u);
  EXPECT_EQ(lock.value.end, 19u);
  EXPECT_EQ(lock.value.pid, 1u);
  EXPECT_EQ(fs().SetLk(kFile, 1, 9, {30, 39, F_RDLCK, 1}, false), 0);
  const auto open = fs().Open(kCold, O_RDONLY);
  EXPECT_EQ(open.value.fh >> 32, 5u) << "the generation of handles";
  // Lookups: two of the file, one of the others.
  EXPECT_EQ(fs().Release(kFile, 1), 0);
  EXPECT_EQ(fs().Forget(kFile, 2), 0);
  EXPECT_EQ(fs().GetAttr(kFile).error, 0) << "and the one of this test";
  EXPECT_EQ(fs().Forget(kFile, 1), 0);
  EXPECT_EQ(fs().GetAttr(kFile).error, ESTALE);
}

TEST_F(VirtioFsStateGolden, Version1OfManyShares) {
  ASSERT_NO_FATAL_FAILURE(
      Restore("virtiofs-aggregate-v1.bin", {{"aggregate", "true"}, {"xattr", ""}}));
  constexpr uint64_t kX = 2, kFile = 3, kY = 4;
  EXPECT_EQ(device_.Inspect()->metrics["shares"], 1u);
  EXPECT_EQ(fs().Lookup(kRoot, "x").value.nodeid, kX);
  EXPECT_EQ(fs().Lookup(kRoot, "y").error, ENOENT);
  const auto attr = fs().GetAttr(kFile);
  EXPECT_EQ(attr.value.attr.uid, 7u);
  EXPECT_EQ(attr.value.attr.mode & 0777, 0640u);
  EXPECT_EQ(attr.value.attr.ino >> 42, 1u);
  EXPECT_EQ(fs().ReadDir(kY, 1, 0, 4096).value.size(), 4u) << "of the one that was removed";
  const auto listing = fs().ReadDir(kRoot, fs().OpenDir(kRoot).value.fh, 0, 4096);
  ASSERT_EQ(listing.value.size(), 3u);
  EXPECT_EQ(listing.value[2].name, "x");
  EXPECT_EQ(listing.value[2].next_offset, 3u);
}

}  // namespace
}  // namespace virtbay::testing
