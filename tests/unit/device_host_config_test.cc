// The TOML file of `virtbay run` and the keys of a device: what is accepted, and that every mistake
// is one line with file, line and key.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "framework/base/sanitized.h"
#include "hostif/device_host/config_file.h"
#include "hostif/device_host/device_keys.h"

namespace virtbay::device_host {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kMinimal[] = R"([[device]]
name = "a"
plugin = "virtiofs"
socket = "/run/a.sock"
)";

std::string ErrorOf(const std::string& text) {
  const auto config = ParseConfig(text, "f.toml");
  EXPECT_FALSE(config.ok());
  const std::string message(config.status().message());
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  return message;
}

TEST(DeviceHostConfig, Minimal) {
  const auto config = ParseConfig(kMinimal, "f.toml");
  ASSERT_TRUE(config.ok()) << config.status();
  ASSERT_EQ(config->devices.size(), 1u);
  EXPECT_EQ(config->devices[0].spec.name, "a");
  EXPECT_EQ(config->devices[0].spec.plugin, "virtiofs");
  EXPECT_EQ(config->devices[0].socket_path, "/run/a.sock");
  EXPECT_EQ(config->devices[0].origin, "f.toml:1");
  EXPECT_TRUE(config->sigbus_guard);
  EXPECT_FALSE(config->rlimit_nofile.has_value());
}

TEST(DeviceHostConfig, Everything) {
  const auto config = ParseConfig(R"(
[host]
log-level = "debug"
control-socket = "/run/virtbay.sock"
state-dir = "/run/state"
plugin-path = ["/a", "/b"]
rlimit-nofile = 4096
sigbus-guard = false
shared-arena-size = "32M"

[[device]]
name = "source"
plugin = "virtiofs"
type = "virtiofs"
socket = "/run/source.sock"
socket-group = "kvm"
arena-size = "16MiB"
queue-size = 256
poll-window = "50us"
poll-share = 25
transfer-helper = false
access-platform = true
packed-ring = false
dma = "direct"
stop-deadline = "3s"
options = { shared-dir = "/srv", readonly = true, request-queues = 4, attr-timeout = 1.5 }

[[device]]
name = "other"
plugin = "./other.so"
fd = 7
arena-size = 4194304
arena-policy = "private"
poll-window = "off"
[device.options]
key = "value"

[[device]]
name = "third"
plugin = "virtiofs"
socket = "/run/third.sock"
arena-policy = "shared"
)",
                                  "f.toml");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->log_level, LogLevel::kDebug);
  EXPECT_EQ(config->control_socket, "/run/virtbay.sock");
  EXPECT_EQ(config->state_dir, "/run/state");
  ASSERT_EQ(config->plugin_dirs.size(), 2u);
  EXPECT_EQ(config->rlimit_nofile, 4096u);
  EXPECT_FALSE(config->sigbus_guard);
  EXPECT_EQ(config->shared_arena_size, 32u << 20);
  ASSERT_EQ(config->devices.size(), 3u);
  const DeviceConfig& source = config->devices[0];
  EXPECT_EQ(source.spec.arena_size, 16u << 20);
  EXPECT_EQ(source.spec.queue_size_max, 256);
  EXPECT_EQ(source.spec.poll_window_max, absl::Microseconds(50));
  EXPECT_EQ(source.spec.poll_share_max_percent, 25u);
  EXPECT_TRUE(source.spec.offer_access_platform);
  EXPECT_FALSE(source.spec.offer_packed_ring);
  EXPECT_FALSE(source.spec.transfer_helper);
  EXPECT_EQ(source.spec.dma_mode, DmaMode::kDirect);
  EXPECT_EQ(source.spec.stop_deadline, absl::Seconds(3));
  EXPECT_EQ(source.socket_group, "kvm");
  const std::map<std::string, std::string> options = {{"shared-dir", "/srv"},
                                                      {"readonly", "true"},
                                                      {"request-queues", "4"},
                                                      {"attr-timeout", "1.5"}};
  EXPECT_EQ(source.spec.options, options);
  const DeviceConfig& other = config->devices[1];
  EXPECT_EQ(other.socket_fd, 7);
  EXPECT_EQ(other.spec.arena_size, 4u << 20);
  EXPECT_EQ(other.spec.poll_window_max, absl::ZeroDuration());
  EXPECT_EQ(other.spec.arena_policy, ArenaPolicy::kPrivate);
  EXPECT_EQ(config->devices[2].spec.arena_policy, ArenaPolicy::kShared);
}

TEST(DeviceHostConfig, Arenas) {
  EXPECT_EQ(ErrorOf(std::string(kMinimal) + "arena-policy = \"global\"\n"),
            "f.toml:5: arena-policy: 'global' is not one of private, shared");
  EXPECT_EQ(ErrorOf(std::string(kMinimal) + "arena-policy = \"shared\"\narena-size = \"4M\"\n"),
            "f.toml:1: arena-size: is the shared arena's, shared-arena-size in [host]");
  for (const char* pool : {"0x40000000,64M", "0x40000000,64M,all", "pool", "pool,4M", "pool,all"}) {
    EXPECT_EQ(
        ErrorOf(absl::StrCat(kMinimal, "arena-policy = \"shared\"\nswiotlb = \"", pool, "\"\n")),
        "f.toml:1: arena-policy: shared cannot be given together with swiotlb")
        << pool;
  }
  for (const char* size : {"0", "-1", "\"5G\"", "\"x\"", "[1]", "1.5"}) {
    EXPECT_THAT(ErrorOf(std::string("[host]\nshared-arena-size = ") + size + "\n"),
                StartsWith("f.toml:2: shared-arena-size: "))
        << size;
    EXPECT_THAT(ErrorOf(std::string(kMinimal) + "arena-size = " + size + "\n"),
                StartsWith("f.toml:5: arena-size: "))
        << size;
  }
}

TEST(DeviceHostConfig, Swiotlb) {
  const auto with = [](const std::string& lines) {
    return ParseConfig("[[device]]\nname = \"a\"\nplugin = \"virtiofs\"\nsocket = \"/s\"\n" + lines,
                       "f.toml");
  };
  const auto own = with("swiotlb = \"0x40000000,64M\"\nrings = \"pool\"\n");
  ASSERT_TRUE(own.ok()) << own.status();
  EXPECT_EQ(own->devices[0].spec.dma_mode, DmaMode::kAperture);
  EXPECT_EQ(own->devices[0].spec.aperture.base, 0x4000'0000u);
  EXPECT_EQ(own->devices[0].spec.aperture.size, 64u << 20);
  EXPECT_EQ(own->devices[0].spec.rings, RingPlacement::kPool);
  EXPECT_FALSE(own->devices[0].aperture_shared);
  const auto shared = with("swiotlb = \"0x40000000,64M,all\"\n");
  ASSERT_TRUE(shared.ok()) << shared.status();
  EXPECT_EQ(shared->devices[0].spec.aperture.size, 64u << 20);
  EXPECT_TRUE(shared->devices[0].aperture_shared);
  const auto slice = with("swiotlb = \"pool,16M\"\n");
  ASSERT_TRUE(slice.ok()) << slice.status();
  EXPECT_EQ(slice->devices[0].guest_pool, PoolUse::kSlice);
  EXPECT_EQ(slice->devices[0].slice_size, 16u << 20);
  EXPECT_EQ(slice->devices[0].spec.dma_mode, DmaMode::kBounce) << "until there is a pool";
  EXPECT_EQ(with("swiotlb = \"pool\"\nrings = \"pool\"\n")->devices[0].guest_pool, PoolUse::kSlice);
  EXPECT_EQ(with("swiotlb = \"pool,all\"\n")->devices[0].guest_pool, PoolUse::kAll);
  EXPECT_FALSE(with("swiotlb = \"pool,all\"\narena = \"4M\"\n").ok());
  EXPECT_THAT(std::string(with("swiotlb = \"pool,8M\"\narena-size = \"8M\"\n").status().message()),
              HasSubstr("arena-size: cannot be given together with the size in swiotlb"));
  EXPECT_EQ(with("swiotlb = \"pool\"\narena-size = \"8M\"\n")->devices[0].slice_size, 8u << 20);
  EXPECT_EQ(with("swiotlb = \"pool,4G\"\n")->devices[0].slice_size, uint64_t{4} << 30);
  EXPECT_TRUE(with("swiotlb = \"0x40000000,256K\"\n").ok());
  for (const char* bad :
       {"swiotlb = \"\"\n", "swiotlb = 5\n", "swiotlb = \"pool,\"\n", "swiotlb = \"pool,0\"\n",
        "swiotlb = \"pool,4097M\"\n", "swiotlb = \"pool,2097153\"\n", "swiotlb = \"0x1000,252K\"\n",
        "swiotlb = \"0x1000,252K,all\"\n", "swiotlb = \"pools\"\n", "swiotlb = \"0x1000,4M,al\"\n",
        "swiotlb = \"0x1000,4M,all,all\"\n", "swiotlb = \",all\"\n", "swiotlb = \"0x1001,4M\"\n",
        "rings = \"pool\"\n", "rings = \"here\"\n", "dma = \"aperture\"\n",
        "swiotlb = \"0x40000000,64M\"\ndma = \"direct\"\n"}) {
    EXPECT_FALSE(with(bad).ok()) << bad;
  }
}

TEST(DeviceHostConfig, NamesTheLineAndKey) {
  EXPECT_EQ(ErrorOf("colour = 1\n"), "f.toml:1: colour: unknown key");
  EXPECT_EQ(ErrorOf("[host]\ncolour = 1\n"), "f.toml:2: host.colour: unknown key");
  EXPECT_EQ(ErrorOf("host = 3\n"), "f.toml:1: host: must be a table, [host]");
  EXPECT_EQ(ErrorOf("[device]\nname = \"a\"\n"),
            "f.toml:1: device: must be an array of tables, [[device]]");
  EXPECT_EQ(ErrorOf(std::string(kMinimal) + "nmae = \"b\"\n"), "f.toml:5: nmae: unknown key");
  EXPECT_EQ(ErrorOf(std::string(kMinimal) + "type = 5\n"), "f.toml:5: type: must be a string");
  EXPECT_EQ(ErrorOf(std::string(kMinimal) + "queue-size = 100\n"),
            "f.toml:5: queue-size: must be a power of two");
  EXPECT_EQ(ErrorOf(std::string(kMinimal) + "queue-size = 65536\n"),
            "f.toml:5: queue-size: must be between 1 and 32768");
  EXPECT_EQ(ErrorOf(std::string(kMinimal) + "access-platform = 1\n"),
            "f.toml:5: access-platform: must be true or false");
  EXPECT_EQ(ErrorOf(std::string(kMinimal) + "[device.options]\nlist = [1]\n"),
            "f.toml:6: options.list: must be a string, a number, true or false");
  EXPECT_EQ(ErrorOf(std::string(kMinimal) + "colour = [1]\n"), "f.toml:5: colour: unknown key");
  EXPECT_EQ(ErrorOf(std::string(kMinimal) + "poll-window = 5\n"),
            "f.toml:5: poll-window: needs a unit, such as \"200us\"");
  EXPECT_THAT(ErrorOf("[host]\nlog-level = \"loud\"\n"), StartsWith("f.toml:2: log-level: "));
  EXPECT_THAT(ErrorOf("[host]\nlog-level = \n"), StartsWith("f.toml:2: syntax: "));
  EXPECT_THAT(ErrorOf("[host]\nlog-level = \"a\"\nlog-level = \"b\"\n"),
              StartsWith("f.toml:3: syntax: "));
}

TEST(DeviceHostConfig, SharesOfADevice) {
  const auto config = ParseConfig(R"([[device]]
name = "all"
plugin = "virtiofs"
socket = "/run/all.sock"
options = { tag = "drvfs" }
[[device.share]]
name = "a"
path = "/srv/a"
[[device.share]]
path = "/srv/b"
readonly = true
uid = 1000
umask = "022"
)",
                                  "f.toml");
  ASSERT_TRUE(config.ok()) << config.status();
  const DeviceConfig& device = config->devices.at(0);
  EXPECT_EQ(device.spec.options.at("aggregate"), "true");
  ASSERT_EQ(device.shares.size(), 2u);
  EXPECT_EQ(device.shares[0].spec.name, "a");
  EXPECT_EQ(device.shares[0].origin, "f.toml:6");
  EXPECT_EQ(device.shares[1].spec.path, "/srv/b");
  const std::map<std::string, std::string> options = {
      {"readonly", "true"}, {"uid", "1000"}, {"umask", "022"}};
  EXPECT_EQ(device.shares[1].spec.options, options);
  const std::string share = std::string(kMinimal) + "[[device.share]]\n";
  EXPECT_EQ(ErrorOf(share + "name = \"a\"\n"), "f.toml:5: share.path: is missing");
  EXPECT_EQ(ErrorOf(share + "path = \"/\"\numask = 22\n"),
            "f.toml:7: share.umask: is octal and must be a string, such as \"022\"");
  EXPECT_EQ(ErrorOf(share + "path = \"\"\n"), "f.toml:6: share.path: must not be empty");
  EXPECT_EQ(ErrorOf(share + "path = [1]\n"),
            "f.toml:6: share.path: must be a string, a number, true or false");
  EXPECT_EQ(ErrorOf(std::string(kMinimal) + "share = 5\n"),
            "f.toml:5: share: must be an array of tables, [[device.share]]");
  EXPECT_EQ(ErrorOf(std::string(kMinimal) + "share = [5]\n"),
            "f.toml:5: share: must be an array of tables, [[device.share]]");
}

TEST(DeviceHostConfig, MissingParts) {
  EXPECT_EQ(ErrorOf("\n[[device]]\nname = \"a\"\n"), "f.toml:2: plugin: is missing");
  EXPECT_EQ(ErrorOf("[[device]]\nplugin = \"p\"\n"), "f.toml:1: name: is missing");
  EXPECT_EQ(ErrorOf("[[device]]\nname = \"a\"\nplugin = \"p\"\n"),
            "f.toml:1: socket: is missing (or fd)");
  EXPECT_EQ(ErrorOf(std::string(kMinimal) + "fd = 5\n"),
            "f.toml:1: fd: cannot be given together with socket");
}

TEST(DeviceHostConfig, Duplicates) {
  EXPECT_EQ(ErrorOf(std::string(kMinimal) + kMinimal),
            "f.toml:6: name: 'a': another device has this name (line 2)");
  std::string second = kMinimal;
  second.replace(second.find("\"a\""), 3, "\"b\"");
  EXPECT_EQ(ErrorOf(std::string(kMinimal) + second),
            "f.toml:8: socket: '/run/a.sock': another device has this socket (line 4)");
}

TEST(DeviceHostConfig, HostileNames) {
  for (const char* name : {"", "a/b", "a b", "..\\n", "a\\u0000b"}) {
    std::string text = kMinimal;
    text.replace(text.find("\"a\""), 3, absl::StrCat("\"", name, "\""));
    EXPECT_THAT(ErrorOf(text), StartsWith("f.toml:2: name: ")) << name;
  }
  std::string longest = kMinimal;
  longest.replace(longest.find("\"a\""), 3, absl::StrCat("\"", std::string(65, 'n'), "\""));
  EXPECT_THAT(ErrorOf(longest), StartsWith("f.toml:2: name: "));
  // A key that tries to break the line apart.
  EXPECT_EQ(ErrorOf("\"a\\nb\" = 1\n"), "f.toml:1: a?b: unknown key");
}

TEST(DeviceHostConfig, HostileText) {
  ErrorOf(std::string(100000, '['));
  ErrorOf("a = " + std::string(100000, '['));
  ErrorOf("a = \"" + std::string(1, '\xff') + "\"\n");
  ErrorOf(std::string("a\0b = 1\n", 8));
  ErrorOf("a." + std::string(5000, 'b') + " = 1");
}

std::string Dotted(size_t parts, const std::string& part = "a", const char* dot = ".") {
  return absl::StrJoin(std::vector<std::string>(parts, part), dot);
}

// The parser's tree is as deep as its keys have parts, and is left by recursion.
TEST(DeviceHostConfig, DeepKeys) {
  constexpr char kDeep[] = ": a dotted key has more than 16 parts";
  EXPECT_EQ(ErrorOf(absl::StrCat("[", Dotted(50001), "]\n")), absl::StrCat("f.toml:1", kDeep));
  EXPECT_EQ(ErrorOf(absl::StrCat("[[", Dotted(50001), "]]\n")), absl::StrCat("f.toml:1", kDeep));
  EXPECT_EQ(ErrorOf(Dotted(50001) + "=1"), absl::StrCat("f.toml:1", kDeep));
  // Whatever the parts are, and whatever strings and comments come before.
  for (const std::string& key : {Dotted(17), Dotted(17, "a", " .\t"), Dotted(17, R"("]")"),
                                 Dotted(17, R"("\"")"), Dotted(17, R"('#"')"), Dotted(17, "''")}) {
    for (const char* before :
         {R"(x = "")", R"(x = '')", R"(x = '\')", R"(x = "\\")", R"(x = '"')", R"(# it's ")",
          R"(x = """""")", R"(x = '''''''')", R"(x = """\"""""")", R"(x = ''''it's \''''')"}) {
      EXPECT_EQ(ErrorOf(absl::StrCat(before, "\n", key, " = 1\n")),
                absl::StrCat("f.toml:2", kDeep));
      EXPECT_EQ(ErrorOf(absl::StrCat(before, "\nb = [1, {", key, " = 1}]\n")),
                absl::StrCat("f.toml:2", kDeep));
    }
  }
  EXPECT_EQ(ErrorOf("x = \"\"\"\n\n\"\"\"\n" + Dotted(17)), absl::StrCat("f.toml:4", kDeep));
  EXPECT_EQ(ErrorOf(Dotted(16) + " = 1\n"), "f.toml:1: a: unknown key");
  EXPECT_EQ(ErrorOf(absl::StrCat("[", Dotted(16), "]\n", Dotted(16, "b"), " = 1.5\n")),
            "f.toml:1: a: unknown key");
}

// Dots that are in no dotted key.
TEST(DeviceHostConfig, Dots) {
  std::string text = kMinimal;
  text += R"(# @
[device.options] # @
basic = "@"
literal = '@'
lines = """
@ "" @ \""""
literal-lines = '''
'' @
@'''''
)";
  const std::string dots(100, '.');
  const auto config = ParseConfig(absl::StrReplaceAll(text, {{"@", dots}}), "f.toml");
  ASSERT_TRUE(config.ok()) << config.status();
  const std::map<std::string, std::string> options = {
      {"basic", dots},
      {"literal", dots},
      {"lines", absl::StrCat(dots, " \"\" ", dots, " \"")},
      {"literal-lines", absl::StrCat("'' ", dots, "\n", dots, "''")}};
  EXPECT_EQ(config->devices.at(0).spec.options, options);
  EXPECT_EQ(ErrorOf(absl::StrCat("\"", dots, "\" = 1\n")),
            absl::StrCat("f.toml:1: ", dots, ": unknown key"));
  EXPECT_EQ(ErrorOf(absl::StrCat("['", dots, "']\n")),
            absl::StrCat("f.toml:1: ", dots, ": unknown key"));
}

// Headers, arrays of tables, dotted keys and nested values add up; a small stack is enough for it.
TEST(DeviceHostConfig, DeepestTree) {
  std::string text;
  for (size_t parts = 1; parts <= 16; ++parts) {
    absl::StrAppend(&text, "[[", Dotted(parts), "]]\n");
  }
  absl::StrAppend(&text, Dotted(16, "b"), " = ");
  for (int i = 0; i < 250; ++i) absl::StrAppend(&text, "{", Dotted(16), " = ");
  absl::StrAppend(&text, "1", std::string(250, '}'), "\n");
  pthread_attr_t attributes;
  ASSERT_EQ(::pthread_attr_init(&attributes), 0);
  // A sanitizer makes each call's part of it many times as large.
  ASSERT_EQ(::pthread_attr_setstacksize(&attributes, kSanitized ? 64 << 20 : 1 << 20), 0);
  const auto parse = [](void* whole) -> void* {
    EXPECT_EQ(ErrorOf(*static_cast<const std::string*>(whole)), "f.toml:1: a: unknown key");
    return nullptr;
  };
  pthread_t thread;
  ASSERT_EQ(::pthread_create(&thread, &attributes, parse, &text), 0);
  EXPECT_EQ(::pthread_join(thread, nullptr), 0);
  ::pthread_attr_destroy(&attributes);
}

class DeviceHostConfigFile : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "virtbay-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::filesystem::path directory_;
};

TEST_F(DeviceHostConfigFile, Reads) {
  const auto path = directory_ / "ok.toml";
  std::ofstream(path) << kMinimal;
  const auto config = ReadConfigFile(path);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->devices[0].origin, path.string() + ":1");
}

TEST_F(DeviceHostConfigFile, NotAFile) {
  const auto missing = ReadConfigFile(directory_ / "missing.toml");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("missing.toml"));

  EXPECT_THAT(std::string(ReadConfigFile(directory_).status().message()),
              HasSubstr("is not a regular file"));

  // Opening a FIFO for reading would wait for its writer.
  const auto fifo = directory_ / "fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_THAT(std::string(ReadConfigFile(fifo).status().message()),
              HasSubstr("is not a regular file"));

  const auto large = directory_ / "large.toml";
  std::ofstream(large) << "#";
  ASSERT_EQ(::truncate(large.c_str(), 2 << 20), 0);
  EXPECT_THAT(std::string(ReadConfigFile(large).status().message()),
              HasSubstr("is larger than 1 MiB"));
}

TEST(DeviceHostKeys, Sizes) {
  EXPECT_EQ(*ParseSize("0"), 0u);
  EXPECT_EQ(*ParseSize("4096"), 4096u);
  EXPECT_EQ(*ParseSize("4096B"), 4096u);
  EXPECT_EQ(*ParseSize("2K"), 2048u);
  EXPECT_EQ(*ParseSize("64M"), 64u << 20);
  EXPECT_EQ(*ParseSize("2GiB"), uint64_t{2} << 30);
  for (const char* bad : {"", "M", "-1", "1.5M", "1 M", "1Q", "0x10", "99999999999999999999",
                          "18446744073709551615T"}) {
    EXPECT_FALSE(ParseSize(bad).ok()) << bad;
  }
}

TEST(DeviceHostKeys, Durations) {
  EXPECT_EQ(*ParseDuration("off"), absl::ZeroDuration());
  EXPECT_EQ(*ParseDuration("0"), absl::ZeroDuration());
  EXPECT_EQ(*ParseDuration("200us"), absl::Microseconds(200));
  EXPECT_EQ(*ParseDuration("1.5ms"), absl::Microseconds(1500));
  for (const char* bad : {"", "5", "-1s", "1 day", "us"}) {
    EXPECT_FALSE(ParseDuration(bad).ok()) << bad;
  }
}

TEST(DeviceHostKeys, OptionsAreBounded) {
  DeviceConfig config;
  EXPECT_FALSE(SetDeviceOption("", KeyValue(true), &config).ok());
  EXPECT_FALSE(SetDeviceOption("a b", KeyValue(true), &config).ok());
  EXPECT_FALSE(SetDeviceOption(std::string(65, 'k'), KeyValue(true), &config).ok());
  EXPECT_FALSE(SetDeviceOption("k", KeyValue(std::string(4097, 'v')), &config).ok());
  EXPECT_FALSE(SetDeviceOption("k", KeyValue(std::string("a\0b", 3)), &config).ok());
  for (int i = 0; i < 256; ++i) {
    ASSERT_TRUE(SetDeviceOption(absl::StrCat("k", i), KeyValue(int64_t{i}), &config).ok());
  }
  EXPECT_FALSE(SetDeviceOption("one-more", KeyValue(true), &config).ok());
}

}  // namespace
}  // namespace virtbay::device_host
