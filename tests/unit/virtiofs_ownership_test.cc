// Owners and modes that a virtiofs share gives its files: forced ones, masks, metadata, translated
// users and groups. And that a guest can neither see nor forge what this is kept in.
#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <filesystem>

#include "hostif/guest/fuse_protocol.h"
#include "tests/support/without_privilege.h"
#include "tests/unit/virtiofs_share.h"

namespace virtbay::testing {
namespace {

namespace stdfs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kMeta[] = "user.virtbay.meta";

using OptionMap = std::map<std::string, std::string>;

ShareOptions With(OptionMap options) {
  ShareOptions share;
  share.options = std::move(options);
  return share;
}

absl::Status Refused(const std::string& dir, OptionMap options) {
  auto host = Host::Create(HostOptions());
  EXPECT_OK(host);
  DeviceSpec spec;
  spec.name = "share";
  spec.plugin = VIRTBAY_VIRTIOFS_PLUGIN;
  spec.options = std::move(options);
  spec.options.emplace("shared-dir", dir);
  return (*host)->Add(spec).status();
}

struct stat HostStat(const stdfs::path& path) {
  struct stat st = {};
  EXPECT_EQ(::lstat(path.c_str(), &st), 0) << path;
  return st;
}

std::string HostXattr(const stdfs::path& path, const char* name) {
  char value[256];
  const ssize_t n = ::lgetxattr(path.c_str(), name, value, sizeof(value));
  return n < 0 ? "none" : std::string(value, static_cast<size_t>(n));
}

void SetHostXattr(const stdfs::path& path, const char* name, const std::string& value) {
  ASSERT_EQ(::lsetxattr(path.c_str(), name, value.data(), value.size(), 0), 0) << path;
}

std::string Owner(const fuse_attr& attr) {
  return std::to_string(attr.uid) + ":" + std::to_string(attr.gid);
}

// Octal, with the type.
std::string Mode(const fuse_attr& attr) {
  char text[16];
  snprintf(text, sizeof(text), "%06o", attr.mode);
  return text;
}

fuse_setattr_in Chmod(uint32_t mode) {
  fuse_setattr_in in = {};
  in.valid = FATTR_MODE;
  in.mode = mode;
  return in;
}

fuse_setattr_in Chown(uint32_t uid, uint32_t gid) {
  fuse_setattr_in in = {};
  in.valid = FATTR_UID | FATTR_GID;
  in.uid = uid;
  in.gid = gid;
  return in;
}

guest::FuseCaller Caller(uint32_t uid, uint32_t gid, std::vector<uint32_t> groups = {}) {
  return {.uid = uid, .gid = gid, .groups = std::move(groups)};
}

// ---- metadata -----------------------------------------------------------------------------------

void MetadataRoundTrip() {
  Share share(With({{"metadata", ""}, {"xattr", "true"}}));
  ASSERT_TRUE(share.ready());
  auto& fs = share.fs();
  fs.queue().set_caller(Caller(1000, 100));
  const auto made = fs.Create(kRoot, "file", O_RDWR, 0640);
  ASSERT_EQ(made.error, 0);
  EXPECT_EQ(Owner(made.value.entry.attr), "1000:100");
  EXPECT_EQ(Mode(made.value.entry.attr), "100640");
  EXPECT_EQ(HostXattr(share.dir() / "file", kMeta), "uid=1000,gid=100,mode=0100640");
  // The guest's users are nobody on the host.
  EXPECT_EQ(HostStat(share.dir() / "file").st_mode, static_cast<mode_t>(S_IFREG | 0600));
  EXPECT_EQ(HostStat(share.dir() / "file").st_uid, ::geteuid());
  const uint64_t file = made.value.entry.nodeid;
  EXPECT_EQ(fs.Write(file, made.value.open.fh, 0, Bytes("text")).value, 4u);

  // Any owner and any mode, also those that only root can give.
  EXPECT_EQ(Mode(fs.SetAttr(file, Chmod(06751)).value.attr), "106751");
  EXPECT_EQ(Owner(fs.SetAttr(file, Chown(0, 7)).value.attr), "0:7");
  EXPECT_EQ(Mode(fs.GetAttr(file).value.attr), "100751") << "chown takes privileges away";
  fuse_setattr_in only_group = Chown(0, 55);
  only_group.valid = FATTR_GID;
  EXPECT_EQ(Owner(fs.SetAttr(file, only_group).value.attr), "0:55");
  EXPECT_EQ(Mode(fs.SetAttr(file, Chmod(02740)).value.attr), "102740");
  EXPECT_EQ(Owner(fs.SetAttr(file, Chown(0, 56)).value.attr), "0:56");
  EXPECT_EQ(Mode(fs.GetAttr(file).value.attr), "102740") << "mandatory locking is no privilege";
  // A mode that takes the server's own access away is a matter of the guest alone.
  EXPECT_EQ(Mode(fs.SetAttr(file, Chmod(0)).value.attr), "100000");
  EXPECT_EQ(HostStat(share.dir() / "file").st_mode, static_cast<mode_t>(S_IFREG | 0600));
  EXPECT_EQ(Text(fs.Read(file, share.OpenPath("file", O_RDONLY), 0, 9).value), "text");
  EXPECT_EQ(Mode(fs.SetAttr(file, Chmod(0644)).value.attr), "100644");

  // By handle, by STATX and by listing as well.
  EXPECT_EQ(Owner(fs.GetAttrOfHandle(file, made.value.open.fh).value.attr), "0:56");
  const auto statx = fs.Statx(file, {.sx_mask = STATX_BASIC_STATS});
  EXPECT_EQ(statx.value.stat.gid, 56u);
  EXPECT_EQ(statx.value.stat.mode, S_IFREG | 0644);
  fs.queue().set_caller(Caller(9, 9));
  EXPECT_EQ(fs.Access(file, R_OK), 0);
  EXPECT_EQ(fs.Access(file, W_OK), EACCES);
  fs.queue().set_caller(Caller(1000, 100));

  // What only root could make on the host.
  const uint32_t null_device = (1u << 8) | 3;
  EXPECT_EQ(Mode(fs.Mknod(kRoot, "null", S_IFCHR | 0666, null_device).value.attr), "020666");
  EXPECT_EQ(Mode(fs.Mknod(kRoot, "disk", S_IFBLK | 0660, (8u << 8) | 1).value.attr), "060660");
  EXPECT_EQ(Mode(fs.Mknod(kRoot, "fifo", S_IFIFO | 0600).value.attr), "010600");
  EXPECT_EQ(Mode(fs.Mknod(kRoot, "sock", S_IFSOCK | 0700).value.attr), "140700");
  EXPECT_EQ(Mode(fs.Mknod(kRoot, "plain", S_IFREG | 0600).value.attr), "100600");
  EXPECT_EQ(fs.Mknod(kRoot, "odd", 0170600).error, EINVAL);
  for (const char* name : {"null", "disk", "fifo", "sock"}) {
    EXPECT_EQ(HostStat(share.dir() / name).st_mode, static_cast<mode_t>(S_IFREG | 0600)) << name;
  }
  const auto null = fs.Lookup(kRoot, "null");
  EXPECT_EQ(null.value.attr.rdev, null_device);
  EXPECT_EQ(Mode(fs.SetAttr(null.value.nodeid, Chmod(0600)).value.attr), "020600");
  EXPECT_EQ(fs.GetAttr(null.value.nodeid).value.attr.rdev, null_device);

  // set-group-ID directories hand their group on.
  const auto dir = fs.Mkdir(kRoot, "dir", 0755);
  ASSERT_EQ(dir.error, 0);
  EXPECT_EQ(Owner(dir.value.attr) + " " + Mode(dir.value.attr), "1000:100 040755");
  EXPECT_EQ(fs.SetAttr(dir.value.nodeid, Chown(0, 77)).error, 0);
  EXPECT_EQ(fs.SetAttr(dir.value.nodeid, Chmod(02775)).error, 0);
  EXPECT_EQ(Mode(fs.SetAttr(dir.value.nodeid, Chown(0, 78)).value.attr), "042775");
  const auto sub = fs.Mkdir(dir.value.nodeid, "sub", 0700);
  EXPECT_EQ(Owner(sub.value.attr) + " " + Mode(sub.value.attr), "1000:78 042700");
  const auto inner = fs.Create(sub.value.nodeid, "file", O_RDWR, 0600);
  EXPECT_EQ(Owner(inner.value.entry.attr) + " " + Mode(inner.value.entry.attr), "1000:78 100600");
  EXPECT_EQ(HostStat(share.dir() / "dir").st_mode, static_cast<mode_t>(S_IFDIR | 0700));

  // A link and a new name lead to the same metadata; a symbolic link has none.
  EXPECT_EQ(Owner(fs.Link(file, dir.value.nodeid, "hard").value.attr), "0:56");
  EXPECT_EQ(fs.Rename(kRoot, "file", dir.value.nodeid, "moved"), 0);
  EXPECT_EQ(Owner(fs.Lookup(dir.value.nodeid, "moved").value.attr), "0:56");
  const auto link = fs.Symlink(kRoot, "link", "null");
  EXPECT_EQ(Mode(link.value.attr), "120777");
  EXPECT_EQ(fs.SetAttr(link.value.nodeid, Chown(1, 1)).error, 0) << "without effect";

  // A nameless file.
  const auto nameless = fs.Tmpfile(kRoot, O_RDWR, 0604);
  if (nameless.error != EOPNOTSUPP) {
    ASSERT_EQ(nameless.error, 0);
    EXPECT_EQ(Owner(nameless.value.entry.attr) + " " + Mode(nameless.value.entry.attr),
              "1000:100 100604");
  }

  // Another session finds all of it again, in listings too, whose types are not the host's.
  share.Connect();
  ASSERT_TRUE(share.ready());
  EXPECT_EQ(Mode(share.fs().GetAttr(share.Node("disk")).value.attr), "060660");
  EXPECT_EQ(Owner(share.fs().GetAttr(share.Node("dir/moved")).value.attr), "0:56");
  const auto open = share.fs().OpenDir(kRoot);
  std::map<std::string, guest::FuseDirEntry> plus;
  for (auto& e : share.fs().ReadDirPlus(kRoot, open.value.fh, 0, 65536).value) plus[e.name] = e;
  EXPECT_EQ(Mode(plus["fifo"].entry.attr), "010600");
  EXPECT_EQ(Owner(plus["fifo"].entry.attr), "1000:100");
  EXPECT_EQ(plus["fifo"].type, uint32_t{DT_FIFO});
  EXPECT_EQ(plus["plain"].type, uint32_t{DT_REG});
  EXPECT_EQ(plus["dir"].type, uint32_t{DT_DIR});
  std::map<std::string, uint32_t> types;
  for (const auto& e : share.fs().ReadDir(kRoot, open.value.fh, 0, 65536).value) {
    types[e.name] = e.type;
  }
  EXPECT_EQ(types["fifo"], uint32_t{DT_UNKNOWN});
  EXPECT_EQ(types["plain"], uint32_t{DT_UNKNOWN});
  EXPECT_EQ(types["dir"], uint32_t{DT_DIR});
  EXPECT_EQ(types["link"], uint32_t{DT_LNK});
}

TEST(VirtioFsMetadata, AnUnprivilegedServerPresentsAnyOwnerAndMode) {
  WithoutPrivilege(VIRTBAY_VIRTIOFS_PLUGIN, &MetadataRoundTrip);
}
// A privileged server does not act as the guest's users where their files carry metadata.
TEST(VirtioFsMetadata, APrivilegedServerAsWell) { MetadataRoundTrip(); }

void ReadOnlyFilesOfTheHost() {
  Share share(With({{"metadata", ""}}));
  ASSERT_TRUE(share.ready());
  share.dir().Write("file", "");
  stdfs::permissions(share.dir() / "file", stdfs::perms(0444));
  EXPECT_EQ(Mode(share.fs().SetAttr(share.Node("file"), Chmod(0755)).value.attr), "100755");
  EXPECT_EQ(HostStat(share.dir() / "file").st_mode & 07777, 0444u);
}

TEST(VirtioFsMetadata, ReadOnlyFilesOfTheHostCanCarryIt) {
  WithoutPrivilege(VIRTBAY_VIRTIOFS_PLUGIN, &ReadOnlyFilesOfTheHost);
}

TEST(VirtioFsMetadata, FilesWithoutItAreTheHosts) {
  Share share(With({{"metadata", "true"}, {"umask", "027"}, {"default_gid", "9"}}));
  ASSERT_TRUE(share.ready());
  share.dir().Write("file", "");
  stdfs::permissions(share.dir() / "file", stdfs::perms(0666));
  const std::string uid = std::to_string(::geteuid());
  const uint64_t node = share.Node("file");
  const auto before = share.fs().GetAttr(node).value.attr;
  EXPECT_EQ(Owner(before) + " " + Mode(before), uid + ":9 100640");
  // A change of one part leaves the others as they were, and no mask is on what was set.
  EXPECT_EQ(Mode(share.fs().SetAttr(node, Chmod(0666)).value.attr), "100666");
  EXPECT_EQ(HostXattr(share.dir() / "file", kMeta), "mode=0100666");
  EXPECT_EQ(Owner(share.fs().GetAttr(node).value.attr), uid + ":9");
  fuse_setattr_in owner = Chown(12, 0);
  owner.valid = FATTR_UID;
  EXPECT_EQ(Owner(share.fs().SetAttr(node, owner).value.attr), "12:9");
  EXPECT_EQ(HostXattr(share.dir() / "file", kMeta), "uid=12,mode=0100666");
}

TEST(VirtioFsMetadata, WhatIsForcedWins) {
  Share share(With({{"metadata", ""}, {"uid", "500"}, {"gid", "600"}, {"mode", "640"}}));
  ASSERT_TRUE(share.ready());
  auto& fs = share.fs();
  share.dir().Write("old", "");
  SetHostXattr(share.dir() / "old", kMeta, "uid=1,gid=2,mode=0100777");
  const auto old = fs.Lookup(kRoot, "old");
  EXPECT_EQ(Owner(old.value.attr) + " " + Mode(old.value.attr), "500:600 100640");
  fs.queue().set_caller(Caller(7, 8));
  const auto dir = fs.Mkdir(kRoot, "dir", 0700);
  EXPECT_EQ(Owner(dir.value.attr) + " " + Mode(dir.value.attr), "500:600 040750")
      << "who may read a directory may enter it";
  // No error, and no effect, as in DrvFs.
  const auto changed = fs.SetAttr(old.value.nodeid, Chown(3, 4));
  EXPECT_EQ(changed.error, 0);
  EXPECT_EQ(Owner(changed.value.attr), "500:600");
  EXPECT_EQ(fs.SetAttr(old.value.nodeid, Chmod(0777)).error, 0);
  EXPECT_EQ(Mode(fs.GetAttr(old.value.nodeid).value.attr), "100640");
  EXPECT_EQ(HostXattr(share.dir() / "old", kMeta), "uid=1,gid=2,mode=0100777");
  // The type is still the file's own.
  EXPECT_EQ(Mode(fs.Mknod(kRoot, "fifo", S_IFIFO | 0600).value.attr), "010640");
}

TEST(VirtioFsMetadata, GarbledMetadataIsNone) {
  Share share(With({{"metadata", ""}}));
  ASSERT_TRUE(share.ready());
  share.dir().Write("file", "");
  stdfs::permissions(share.dir() / "file", stdfs::perms(0612));
  stdfs::create_directory(share.dir() / "dir");
  stdfs::permissions(share.dir() / "dir", stdfs::perms(0705));
  const std::string uid = std::to_string(::geteuid());
  EXPECT_FALSE(share.log().Contains("right form"));
  for (const std::string& value : {std::string("x"),
                                   std::string("uid"),
                                   std::string("uid="),
                                   std::string("uid=-1"),
                                   std::string("uid=4294967295"),
                                   std::string("uid=4294967296"),
                                   std::string("uid=1,uid=1"),
                                   std::string("uid=1 "),
                                   std::string("mode=0644"),
                                   std::string("mode=0100888"),
                                   std::string("mode=0777777"),
                                   std::string("mode=040755"),
                                   std::string("mode=0120777"),
                                   std::string("mode=0020666"),
                                   std::string("mode=0020666,dev=1"),
                                   std::string("mode=0100644,dev=1:3"),
                                   std::string("dev=1:3"),
                                   std::string("uid=1,nid=2"),
                                   std::string("uid=1\0", 6),
                                   std::string(5000, 'u'),
                                   std::string(1, '\0')}) {
    if (::lsetxattr((share.dir() / "file").c_str(), kMeta, value.data(), value.size(), 0) != 0) {
      continue;  // more than the host's file system takes
    }
    const auto attr = share.fs().Lookup(kRoot, "file").value.attr;
    EXPECT_EQ(Mode(attr), "100612") << value;
    EXPECT_EQ(std::to_string(attr.uid), uid) << value;
  }
  EXPECT_TRUE(share.log().Contains("right form"));
  for (const char* value : {"mode=0100644", "mode=0020666,dev=1:3"}) {
    SetHostXattr(share.dir() / "dir", kMeta, value);
    EXPECT_EQ(Mode(share.fs().Lookup(kRoot, "dir").value.attr), "040705") << value;
  }
  // In any order, and empty.
  SetHostXattr(share.dir() / "file", kMeta, "dev=4095:1048575,mode=0060600,gid=4");
  const auto device = share.fs().Lookup(kRoot, "file").value.attr;
  EXPECT_EQ(Mode(device) + " " + std::to_string(device.gid), "060600 4");
  EXPECT_EQ(device.rdev, 0xffffffffu);
  SetHostXattr(share.dir() / "file", kMeta, "");
  EXPECT_EQ(Mode(share.fs().Lookup(kRoot, "file").value.attr), "100612");
}

// Not even on a share that does not use them: the same directory may be shared with metadata too.
TEST(VirtioFsMetadata, TheGuestNeitherSeesNorForgesIt) {
  for (const OptionMap& options :
       {OptionMap{{"xattr", ""}, {"metadata", ""}}, OptionMap{{"xattr", ""}}}) {
    Share share(With(options));
    ASSERT_TRUE(share.ready());
    auto& fs = share.fs();
    share.dir().Write("file", "");
    SetHostXattr(share.dir() / "file", kMeta, "uid=1");
    SetHostXattr(share.dir() / "file", "user.virtbay.other", "x");
    SetHostXattr(share.dir() / "file", "user.mine", "y");
    const uint64_t node = share.Node("file");
    for (const char* name : {kMeta, "user.virtbay.other", "user.virtbay.", "user.virtbay.new"}) {
      EXPECT_EQ(fs.GetXattr(node, name, 256).error, ENODATA) << name;
      EXPECT_EQ(fs.GetXattr(node, name, 0).error, ENODATA) << name;
      EXPECT_EQ(fs.SetXattr(node, name, Bytes("uid=0")), EPERM) << name;
      EXPECT_EQ(fs.RemoveXattr(node, name), ENODATA) << name;
    }
    EXPECT_EQ(Text(fs.ListXattr(node, 1024).value), std::string("user.mine\0", 10));
    EXPECT_EQ(Text(fs.GetXattr(node, "user.mine", 16).value), "y");
    EXPECT_EQ(fs.SetXattr(node, "user.virtbayer", Bytes("z")), 0) << "another name";
    EXPECT_EQ(HostXattr(share.dir() / "file", kMeta), "uid=1");
    EXPECT_EQ(HostXattr(share.dir() / "file", "user.virtbay.other"), "x");
  }
}

TEST(VirtioFsMetadata, WritesTakePrivilegesAway) {
  Share share(With({{"metadata", ""}, {"killpriv-v2", ""}}));
  ASSERT_TRUE(share.ready());
  auto& fs = share.fs();
  const auto made = fs.Create(kRoot, "file", O_RDWR, 0755);
  ASSERT_EQ(made.error, 0);
  const uint64_t node = made.value.entry.nodeid;
  const uint64_t fh = made.value.open.fh;
  const auto privileged = [&] {
    EXPECT_EQ(fs.SetAttr(node, Chmod(06755)).error, 0);
    EXPECT_EQ(Mode(fs.GetAttr(node).value.attr), "106755");
  };
  privileged();
  EXPECT_EQ(fs.Write(node, fh, 0, Bytes("x")).value, 1u);
  EXPECT_EQ(Mode(fs.GetAttr(node).value.attr), "106755");
  EXPECT_EQ(fs.Write(node, fh, 0, Bytes("x"), FUSE_WRITE_KILL_SUIDGID).value, 1u);
  EXPECT_EQ(Mode(fs.GetAttr(node).value.attr), "100755");
  privileged();
  fuse_setattr_in cut = {};
  cut.valid = FATTR_SIZE | FATTR_KILL_SUIDGID;
  EXPECT_EQ(fs.SetAttr(node, cut).error, 0);
  EXPECT_EQ(Mode(fs.GetAttr(node).value.attr), "100755");
  privileged();
  EXPECT_EQ(fs.Open(node, O_WRONLY | O_TRUNC, FUSE_OPEN_KILL_SUIDGID).error, 0);
  EXPECT_EQ(Mode(fs.GetAttr(node).value.attr), "100755");
}

// ---- masks, forced and default owners -----------------------------------------------------------

TEST(VirtioFsOwnership, MasksAreOctalAndAddUp) {
  Share share(With({{"umask", "002"}, {"fmask", "111"}, {"dmask", "020"}}));
  ASSERT_TRUE(share.ready());
  auto& fs = share.fs();
  share.dir().Write("file", "");
  stdfs::permissions(share.dir() / "file", stdfs::perms(0777));
  stdfs::create_directory(share.dir() / "dir");
  stdfs::permissions(share.dir() / "dir", stdfs::perms(01777));
  stdfs::create_symlink("file", share.dir() / "link");
  const uint64_t file = share.Node("file");
  EXPECT_EQ(Mode(fs.GetAttr(file).value.attr), "100664");
  EXPECT_EQ(Mode(fs.GetAttr(share.Node("dir")).value.attr), "041755");
  EXPECT_EQ(Mode(fs.GetAttr(share.Node("link")).value.attr), "120777");
  // What is masked is the host's to change alone.
  EXPECT_EQ(Mode(fs.SetAttr(file, Chmod(0600)).value.attr), "100600");
  EXPECT_EQ(HostStat(share.dir() / "file").st_mode & 07777, 0713u);
  EXPECT_EQ(Mode(fs.SetAttr(file, Chmod(0777)).value.attr), "100664");
  EXPECT_EQ(HostStat(share.dir() / "file").st_mode & 07777, 0777u);
}

TEST(VirtioFsOwnership, ForcedAndDefaultOwners) {
  Share share(With({{"uid", "1000"}, {"default-gid", "2000"}}));
  ASSERT_TRUE(share.ready());
  auto& fs = share.fs();
  fs.queue().set_caller(Caller(5, 6));
  const auto made = fs.Create(kRoot, "file", O_RDWR, 0640);
  ASSERT_EQ(made.error, 0);
  EXPECT_EQ(Owner(made.value.entry.attr), "1000:2000");
  EXPECT_EQ(HostStat(share.dir() / "file").st_uid, ::geteuid());
  const auto changed = fs.SetAttr(made.value.entry.nodeid, Chown(1, 2));
  EXPECT_EQ(changed.error, 0);
  EXPECT_EQ(Owner(changed.value.attr), "1000:2000");
  EXPECT_EQ(HostStat(share.dir() / "file").st_uid, ::geteuid());
  EXPECT_EQ(Mode(fs.SetAttr(made.value.entry.nodeid, Chmod(0751)).value.attr), "100751");
  EXPECT_EQ(HostStat(share.dir() / "file").st_mode & 07777, 0751u);
  EXPECT_EQ(Owner(fs.GetAttr(kRoot).value.attr), "1000:2000");
}

TEST(VirtioFsOwnership, BadValuesAreNamed) {
  const TempDir dir;
  const std::string path = dir.path().native();
  const std::vector<std::pair<const char*, const char*>> bad = {
      {"umask", "0x22"},
      {"umask", "8"},
      {"umask", ""},
      {"umask", "1000"},
      {"fmask", "-1"},
      {"dmask", "22 "},
      {"mode", "1777"},
      {"mode", "rw"},
      {"uid", "root"},
      {"uid", "4294967295"},
      {"gid", "-1"},
      {"default_uid", ""},
      {"case", "on"},
      {"case", ""},
      {"metadata", "2"},
      {"symlinkroot", "mnt"},
      {"xattr", "x=y"},
      {"xattr", "user.a"},
      {"xattr", "user.virtbay.meta=uid=0"},
      {"xattr", "system.posix_acl_access=x"},
      {"translate-uid", "map:0:0"},
      {"translate-gid", "guest:0:0:0"},
      {"translate-uid", "map:0:0:1,map:0:5:1"}};
  for (const auto& [key, value] : bad) {
    EXPECT_THAT(Refused(path, {{key, value}}),
                StatusIs(absl::StatusCode::kInvalidArgument, std::string(key)))
        << key << "=" << value;
  }
  EXPECT_THAT(Refused(path, {{"posix-acl", ""}, {"uid", "1"}}),
              StatusIs(absl::StatusCode::kInvalidArgument, "posix-acl"));
  EXPECT_THAT(Refused(path, {{"posix-acl", ""}, {"translate-uid", "map:0:5:1"}}),
              StatusIs(absl::StatusCode::kInvalidArgument, "posix-acl"));
}

// ---- translation --------------------------------------------------------------------------------

TEST(VirtioFsTranslation, BothWays) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs the right to act as another user";
  Share share(With({{"translate-uid", "map:0:100000:1000,squash-host:5:77:2,forbid-guest:2000:10"},
                    {"translate-gid", "guest:0:200000:1000,host:200000:0:1000"}}));
  ASSERT_TRUE(share.ready());
  auto& fs = share.fs();
  stdfs::permissions(share.dir().path(), stdfs::perms(0777));
  fs.queue().set_caller(Caller(1, 2));
  const auto made = fs.Create(kRoot, "file", O_RDWR, 0640);
  ASSERT_EQ(made.error, 0);
  EXPECT_EQ(Owner(made.value.entry.attr), "1:2");
  EXPECT_EQ(HostStat(share.dir() / "file").st_uid, 100001u);
  EXPECT_EQ(HostStat(share.dir() / "file").st_gid, 200002u);
  const uint64_t node = made.value.entry.nodeid;
  EXPECT_EQ(Owner(fs.SetAttr(node, Chown(999, 999)).value.attr), "999:999");
  EXPECT_EQ(HostStat(share.dir() / "file").st_uid, 100999u);
  // No range has it, so it is the same on both sides.
  EXPECT_EQ(Owner(fs.SetAttr(node, Chown(1500, 1500)).value.attr), "1500:1500");
  EXPECT_EQ(HostStat(share.dir() / "file").st_gid, 1500u);
  // Several users of the host are one for the guest; the guest's 77 is another one's.
  ASSERT_EQ(::chown((share.dir() / "file").c_str(), 6, 0), 0);
  EXPECT_EQ(fs.GetAttr(node).value.attr.uid, 77u);
  // Forbidden to the guest, as owner and as creator.
  EXPECT_EQ(fs.SetAttr(node, Chown(2000, 0)).error, EPERM);
  EXPECT_EQ(fs.SetAttr(node, Chown(2010, 0)).error, 0);
  fs.queue().set_caller(Caller(2009, 0));
  EXPECT_EQ(fs.Create(kRoot, "other", O_RDWR, 0640).error, EPERM);
  EXPECT_EQ(fs.Mkdir(kRoot, "other", 0700).error, EPERM);
  EXPECT_EQ(fs.Symlink(kRoot, "other", "x").error, EPERM);
  EXPECT_FALSE(stdfs::exists(share.dir() / "other"));
}

TEST(VirtioFsTranslation, GroupsOfTheCaller) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs the right to act as another user";
  Share share(With({{"translate-gid", "map:100:5100:1,forbid-guest:300:1"}}));
  ASSERT_TRUE(share.ready());
  const auto group_dir = [&](const char* name, gid_t gid) {
    stdfs::create_directory(share.dir() / name);
    ASSERT_EQ(::chown((share.dir() / name).c_str(), 0, gid), 0);
    stdfs::permissions(share.dir() / name, stdfs::perms(0770));
  };
  stdfs::permissions(share.dir().path(), stdfs::perms(0755));
  group_dir("mine", 5100);
  group_dir("forbidden", 300);
  auto& fs = share.fs();
  fs.queue().set_caller(Caller(1000, 1000, {100, 300}));
  EXPECT_EQ(fs.Create(share.Node("mine"), "file", O_RDWR, 0640).error, 0);
  EXPECT_EQ(fs.Create(share.Node("forbidden"), "file", O_RDWR, 0640).error, EACCES);
}

TEST(VirtioFsTranslation, Squashed) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs the right to act as another user";
  Share share(With({{"translate-uid", "squash-guest:0:4321:4294967295,host:4321:1000:1"},
                    {"translate-gid", "squash-guest:0:4322:4294967295,host:4322:1001:1"}}));
  ASSERT_TRUE(share.ready());
  stdfs::permissions(share.dir().path(), stdfs::perms(0777));
  for (const uint32_t uid : {0u, 1000u, 4294967294u}) {
    share.fs().queue().set_caller(Caller(uid, uid));
    const std::string name = "f" + std::to_string(uid);
    const auto made = share.fs().Create(kRoot, name, O_RDWR, 0640);
    ASSERT_EQ(made.error, 0);
    EXPECT_EQ(Owner(made.value.entry.attr), "1000:1001");
    EXPECT_EQ(HostStat(share.dir() / name).st_uid, 4321u);
    EXPECT_EQ(HostStat(share.dir() / name).st_gid, 4322u);
  }
}

// ---- an attribute that every file has -----------------------------------------------------------

TEST(VirtioFsGivenXattr, EveryFileHasIt) {
  Share share(With({{"xattr", "security.label=a=b,c"}}));
  ASSERT_TRUE(share.ready());
  auto& fs = share.fs();
  share.dir().Write("file", "");
  stdfs::create_symlink("file", share.dir() / "link");
  SetHostXattr(share.dir() / "file", "user.mine", "y");
  const std::string name = "security.label";
  for (const uint64_t node : {kRoot, share.Node("file"), share.Node("link")}) {
    EXPECT_EQ(Text(fs.GetXattr(node, name, 64).value), "a=b,c");
    EXPECT_EQ(fs.GetXattr(node, name, 0).value.size(), 5u);
    EXPECT_EQ(fs.GetXattr(node, name, 4).error, ERANGE);
    EXPECT_EQ(fs.SetXattr(node, name, Bytes("x")), EPERM);
    EXPECT_EQ(fs.RemoveXattr(node, name), EPERM);
    EXPECT_THAT(Text(fs.ListXattr(node, 1024).value), HasSubstr(name + std::string(1, '\0')));
  }
  const uint64_t file = share.Node("file");
  const std::string both = std::string("user.mine\0security.label\0", 25);
  EXPECT_EQ(Text(fs.ListXattr(file, 1024).value), both);
  EXPECT_EQ(fs.ListXattr(file, 0).value.size(), both.size());
  EXPECT_EQ(Text(fs.ListXattr(file, 25).value), both);
  EXPECT_EQ(fs.ListXattr(file, 24).error, ERANGE);
  EXPECT_EQ(fs.ListXattr(file, 11).error, ERANGE);
  EXPECT_EQ(Text(fs.GetXattr(file, "user.mine", 64).value), "y");
  EXPECT_EQ(HostXattr(share.dir() / "file", "security.label"), "none");
}

}  // namespace
}  // namespace virtbay::testing
