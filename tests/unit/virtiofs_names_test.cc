// Names without regard to case (case=off), and the targets of absolute links (symlinkroot).
#include <fcntl.h>
#include <linux/fs.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "tests/unit/virtiofs_share.h"

namespace virtbay::testing {
namespace {

namespace stdfs = std::filesystem;

ShareOptions With(std::map<std::string, std::string> options) {
  ShareOptions share;
  share.options = std::move(options);
  return share;
}

std::vector<std::string> Names(const stdfs::path& dir) {
  std::vector<std::string> names;
  for (const auto& entry : stdfs::directory_iterator(dir)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

using List = std::vector<std::string>;

class VirtioFsCase : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(share_.ready()); }
  guest::FuseClient& fs() { return share_.fs(); }
  List Names() { return testing::Names(share_.dir().path()); }

  Share share_{With({{"case", "off"}, {"negative-timeout", "100"}})};
};

TEST_F(VirtioFsCase, LookupFindsAnotherSpelling) {
  share_.dir().Write("ReadMe.TXT", "text");
  const auto exact = fs().Lookup(kRoot, "ReadMe.TXT");
  ASSERT_EQ(exact.error, 0);
  EXPECT_EQ(fs().Lookup(kRoot, "readme.txt").value.nodeid, exact.value.nodeid);
  EXPECT_EQ(fs().Lookup(kRoot, "README.TXT").value.nodeid, exact.value.nodeid);
  EXPECT_EQ(fs().Lookup(kRoot, "readme.tx").error, ENOENT);
  EXPECT_EQ(fs().Lookup(kRoot, "readme.txt2").error, ENOENT);
  // Its absence is not remembered, although the options ask for that: see above.
  EXPECT_EQ(fs().Lookup(kRoot, "none").error, ENOENT);
  EXPECT_EQ(
      Text(fs().Read(exact.value.nodeid, share_.OpenPath("README.txt", O_RDONLY), 0, 9).value),
      "text");
}

TEST_F(VirtioFsCase, LettersOfOtherAlphabets) {
  share_.dir().Write(
      "Stra\xc3\x9f"
      "e-\xc3\x84\xd0\x96",
      "");  // Straße-ÄЖ
  EXPECT_EQ(fs().Lookup(kRoot,
                        "STRA\xc3\x9f"
                        "E-\xc3\xa4\xd0\xb6")
                .error,
            0);
  EXPECT_EQ(fs().Lookup(kRoot, "STRASSE-\xc3\xa4\xd0\xb6").error, ENOENT);
  // Bytes that are no UTF-8: cut short, too long, alone.
  for (const std::string& name :
       {std::string("A\xc3"), std::string("A\xc0\xaf"), std::string("A\xed\xa0\x80"),
        std::string("A\xff"), std::string("A\xf5\x80\x80\x80")}) {
    share_.dir().Write(name, "");
    std::string lower = name;
    lower[0] = 'a';
    EXPECT_EQ(fs().Lookup(kRoot, lower).error, 0) << name;
    lower.back() = 'x';
    EXPECT_EQ(fs().Lookup(kRoot, lower).error, ENOENT) << name;
  }
}

TEST_F(VirtioFsCase, SeveralSpellingsOnTheHost) {
  share_.dir().Write("file", "lower");
  share_.dir().Write("FILE", "upper");
  share_.dir().Write("File", "mixed");
  const uint64_t lower = share_.Node("file");
  EXPECT_NE(share_.Node("FILE"), lower) << "the very name goes first";
  EXPECT_EQ(share_.Node("fIlE"), share_.Node("FILE")) << "then the first in byte order";
}

TEST_F(VirtioFsCase, NothingIsMadeBesideAnotherSpelling) {
  share_.dir().Write("Name", "old");
  EXPECT_EQ(fs().Create(kRoot, "name", O_RDWR | O_EXCL, 0600).error, EEXIST);
  EXPECT_EQ(fs().Mkdir(kRoot, "NAME", 0700).error, EEXIST);
  EXPECT_EQ(fs().Mknod(kRoot, "NAME", S_IFIFO | 0600).error, EEXIST);
  EXPECT_EQ(fs().Symlink(kRoot, "nAME", "x").error, EEXIST);
  share_.dir().Write("other", "");
  EXPECT_EQ(fs().Link(share_.Node("other"), kRoot, "naMe").error, EEXIST);
  const auto opened = fs().Create(kRoot, "NAME", O_RDWR, 0600);
  ASSERT_EQ(opened.error, 0);
  EXPECT_EQ(opened.value.entry.nodeid, share_.Node("Name"));
  EXPECT_EQ(opened.value.entry.attr.size, 3u);
  EXPECT_EQ(Names(), (List{"Name", "other"}));
}

TEST_F(VirtioFsCase, RemovedByAnySpelling) {
  share_.dir().Write("Name", "");
  stdfs::create_directory(share_.dir() / "Dir");
  const uint64_t node = share_.Node("name");
  const uint64_t fh = share_.OpenPath("NAME", O_RDWR);
  EXPECT_EQ(fs().Unlink(kRoot, "NAME"), 0);
  EXPECT_EQ(fs().Write(node, fh, 0, Bytes("x")).value, 1u);
  EXPECT_EQ(fs().GetAttr(node).value.attr.nlink, 0u);
  EXPECT_EQ(fs().Rmdir(kRoot, "dIR"), 0);
  EXPECT_EQ(Names(), List{});
  EXPECT_EQ(fs().Unlink(kRoot, "NAME"), ENOENT);
}

TEST_F(VirtioFsCase, Renamed) {
  share_.dir().Write("One", "1");
  share_.dir().Write("Two", "2");
  EXPECT_EQ(fs().Rename(kRoot, "one", kRoot, "ONE"), 0) << "a new spelling";
  EXPECT_EQ(Names(), (List{"ONE", "Two"}));
  EXPECT_EQ(fs().Rename2(kRoot, "one", kRoot, "TWO", RENAME_NOREPLACE), EEXIST);
  EXPECT_EQ(fs().Rename(kRoot, "one", kRoot, "TWO"), 0) << "replaces what is there";
  EXPECT_EQ(Names(), (List{"Two"}));
  EXPECT_EQ(ReadFile(share_.dir() / "Two"), "1");
  stdfs::create_directory(share_.dir() / "dir");
  EXPECT_EQ(fs().Rename(kRoot, "TWO", share_.Node("DIR"), "two"), 0);
  EXPECT_EQ(testing::Names(share_.dir() / "dir"), (List{"two"}));
  EXPECT_EQ(fs().Rename(kRoot, "none", kRoot, "other"), ENOENT);
}

TEST(VirtioFsCaseDir, IsTheHosts) {
  for (const char* value : {"dir", "force"}) {
    Share share(With({{"case", value}}));
    ASSERT_TRUE(share.ready());
    share.dir().Write("File", "");
    EXPECT_EQ(share.fs().Lookup(kRoot, "file").error, ENOENT);
    EXPECT_EQ(share.fs().Create(kRoot, "file", O_RDWR | O_EXCL, 0600).error, 0);
  }
}

class VirtioFsLinks : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(share_.ready()); }
  guest::FuseClient& fs() { return share_.fs(); }
  // What the guest reads of a link that the host made, and whether its size is that text's.
  std::string HostLink(const std::string& target) {
    const std::string name = "h" + std::to_string(++links_);
    stdfs::create_symlink(target, share_.dir() / name);
    return Guest(name);
  }
  // What the host has of a link that the guest made; the guest must read what it wrote.
  std::string GuestLink(const std::string& target) {
    const std::string name = "g" + std::to_string(++links_);
    EXPECT_EQ(fs().Symlink(kRoot, name, target).error, 0) << target;
    EXPECT_EQ(Guest(name), target);
    return stdfs::read_symlink(share_.dir() / name).native();
  }
  std::string Guest(const std::string& name) {
    const auto entry = fs().Lookup(kRoot, name);
    const auto target = fs().ReadLink(entry.value.nodeid);
    EXPECT_EQ(target.error, 0);
    EXPECT_EQ(entry.value.attr.size, target.value.size()) << target.value;
    EXPECT_EQ(fs().GetAttr(entry.value.nodeid).value.attr.size, target.value.size());
    return target.value;
  }

  int links_ = 0;
  Share share_{With({{"symlinkroot", "/mnt/host/"}})};
};

TEST_F(VirtioFsLinks, AbsoluteTargetsOfTheHostAreShownBelowTheRoot) {
  EXPECT_EQ(HostLink("/srv/data"), "/mnt/host/srv/data");
  EXPECT_EQ(HostLink("/"), "/mnt/host/");
  EXPECT_EQ(HostLink("../up"), "../up");
  EXPECT_EQ(HostLink("here"), "here");
}

TEST_F(VirtioFsLinks, TheGuestsLinksReadAsItWroteThem) {
  EXPECT_EQ(GuestLink("/mnt/host/srv/data"), "/srv/data");
  EXPECT_EQ(GuestLink("/mnt/host/"), "/");
  EXPECT_EQ(GuestLink("/etc/passwd"), "//etc/passwd") << "the same place to the host";
  EXPECT_EQ(GuestLink("/mnt/host"), "//mnt/host");
  EXPECT_EQ(GuestLink("/mnt/hosts/x"), "//mnt/hosts/x");
  EXPECT_EQ(GuestLink("/mnt/host//x"), "//mnt/host//x");
  EXPECT_EQ(GuestLink("//x"), "///x");
  EXPECT_EQ(GuestLink("/"), "//");
  EXPECT_EQ(GuestLink("relative/x"), "relative/x");
  EXPECT_EQ(GuestLink("x"), "x");
}

TEST_F(VirtioFsLinks, TargetsOfEveryLength) {
  const std::string longest = "/" + std::string(4094, 'x');
  EXPECT_EQ(fs().Symlink(kRoot, "long", longest).error, ENAMETOOLONG) << "a slash more";
  EXPECT_EQ(GuestLink(longest.substr(0, 4094)).size(), 4095u);
  EXPECT_EQ(GuestLink("/mnt/host" + std::string("/") + std::string(4000, 'y')).size(), 4001u);
  stdfs::create_symlink(longest, share_.dir() / "host");
  EXPECT_EQ(fs().ReadLink(share_.Node("host")).error, ENAMETOOLONG);
}

TEST(VirtioFsLinksPlain, StayWhatTheyAreWithoutTheOption) {
  Share share;
  ASSERT_TRUE(share.ready());
  EXPECT_EQ(share.fs().Symlink(kRoot, "link", "/etc/passwd").error, 0);
  EXPECT_EQ(stdfs::read_symlink(share.dir() / "link").native(), "/etc/passwd");
  EXPECT_EQ(share.fs().ReadLink(share.Node("link")).value, "/etc/passwd");
}

}  // namespace
}  // namespace virtbay::testing
