// Loading and unloading: one test per clause that a plugin can break before its device runs.
#include <dlfcn.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <link.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "framework/base/unique_fd.h"
#include "framework/plugin/library.h"
#include "framework/plugin/plugin.h"
#include "tests/support/log_capture.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define VIRTBAY_TEST_IMAGES_STAY 1
#else
#define VIRTBAY_TEST_IMAGES_STAY 0
#endif

namespace virtbay {
namespace {

using ::testing::HasSubstr;
using ::virtbay::testing::IsOkAndHolds;
using ::virtbay::testing::LogCapture;
using ::virtbay::testing::StatusIs;
using ::virtbay::testing::TempDir;

std::filesystem::path BadPlugin(const std::string& name) {
  return std::filesystem::path(VIRTBAY_BAD_PLUGIN_DIR) / (name + ".so");
}

// Services that exist and are never called: create() only looks them up.
const void* NoService(const virtbay_host*, const char*) {
  static constexpr virtbay_queue_service kTable{};
  return &kTable;
}
constexpr virtbay_host kHost = {
    sizeof(virtbay_host), VIRTBAY_ABI_MAJOR, VIRTBAY_ABI_MINOR, "test", "0", &NoService};

// Names of the images that are mapped from private copies.
std::multiset<std::string> PluginImages() {
  std::multiset<std::string> names;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        if (std::strstr(info->dlpi_name, "virtbay-plugin-") != nullptr) {
          static_cast<std::multiset<std::string>*>(out)->insert(info->dlpi_name);
        }
        return 0;
      },
      &names);
  return names;
}

class PluginLoad : public ::testing::Test {
 protected:
  // Private copies go where the test can see them.
  void SetUp() override { setenv("TMPDIR", private_.path().c_str(), 1); }
  void TearDown() override {
    unsetenv("TMPDIR");
    if (!VIRTBAY_TEST_IMAGES_STAY) {
      EXPECT_TRUE(std::filesystem::is_empty(private_.path())) << "something stayed behind";
    }
  }
  absl::StatusOr<std::unique_ptr<Plugin>> Load(const std::string& name) {
    return Plugin::Load(BadPlugin(name), kHost, capture_.log());
  }

  TempDir private_;
  LogCapture capture_;
};

TEST_F(PluginLoad, CorrectPlugin) {
  const auto before = PluginImages();
  {
    ASSERT_OK_AND_ASSIGN(const auto plugin, Load("correct"));
    EXPECT_STREQ(plugin->entry().name, "bad");
    EXPECT_EQ(plugin->path(), BadPlugin("correct"));
    EXPECT_EQ(plugin->factory().count, 1u);
    EXPECT_EQ(PluginImages().size(), before.size() + 1);

    uint32_t index = 99;
    ASSERT_OK_AND_ASSIGN(const virtbay_device_type* type, plugin->FindType("", &index));
    EXPECT_EQ(index, 0u);
    EXPECT_STREQ(type->name, "bad-device");
    EXPECT_EQ(type->virtio_id, 4u);
    EXPECT_OK(plugin->FindType("bad-device", &index));
    EXPECT_THAT(plugin->FindType("other", &index),
                StatusIs(absl::StatusCode::kNotFound, "it has: bad-device"));

    ASSERT_OK_AND_ASSIGN(virtbay_device * device, plugin->CreateDevice(0, kHost, nullptr));
    device->ops->destroy(device);
    EXPECT_THAT(plugin->CreateDevice(1, kHost, nullptr), StatusIs(absl::StatusCode::kNotFound));
  }
  if (!VIRTBAY_TEST_IMAGES_STAY) {
    EXPECT_EQ(PluginImages(), before);
  }
  EXPECT_THAT(capture_.lines(), ::testing::IsEmpty());
}

TEST_F(PluginLoad, NewerMinorAndLargerStructAreCompatible) {
  ASSERT_OK_AND_ASSIGN(const auto newer, Load("newer_minor"));
  EXPECT_EQ(newer->entry().abi_minor, VIRTBAY_ABI_MINOR + 7);
  EXPECT_OK(Load("larger_struct"));
}

TEST_F(PluginLoad, OptionsThatAPluginDeclares) {
  ASSERT_OK_AND_ASSIGN(const auto none, Load("correct"));
  EXPECT_THAT(none->OptionKinds(0), IsOkAndHolds(::testing::IsEmpty()));
  ASSERT_OK_AND_ASSIGN(const auto some, Load("options_correct"));
  ASSERT_OK_AND_ASSIGN(const auto kinds, some->OptionKinds(0));
  EXPECT_EQ(kinds.size(), 5u);
  EXPECT_EQ(kinds.at("integer"), VIRTBAY_OPTION_INTEGER);
  EXPECT_THAT(some->OptionKinds(1), IsOkAndHolds(::testing::IsEmpty()));
  for (const char* bad : {"options_smaller_struct", "options_endless", "options_no_name"}) {
    ASSERT_OK_AND_ASSIGN(const auto plugin, Load(bad));
    EXPECT_THAT(plugin->OptionKinds(0), StatusIs(absl::StatusCode::kInvalidArgument, bad));
  }
}

TEST_F(PluginLoad, EachLoadIsAnImageOfItsOwn) {
  ASSERT_OK_AND_ASSIGN(const auto first, Load("correct"));
  ASSERT_OK_AND_ASSIGN(const auto second, Load("correct"));
  EXPECT_NE(&first->entry(), &second->entry());
}

TEST_F(PluginLoad, AReplacedFileIsANewImage) {
  const TempDir dir;
  const std::filesystem::path file = dir / "p.so";
  std::filesystem::copy_file(BadPlugin("correct"), file);
  ASSERT_OK_AND_ASSIGN(const auto first, Plugin::Load(file, kHost, capture_.log()));
  std::filesystem::copy_file(BadPlugin("newer_minor"), dir / "q.so");
  std::filesystem::rename(dir / "q.so", file);
  ASSERT_OK_AND_ASSIGN(const auto second, Plugin::Load(file, kHost, capture_.log()));
  EXPECT_EQ(first->entry().abi_minor, VIRTBAY_ABI_MINOR);
  EXPECT_EQ(second->entry().abi_minor, VIRTBAY_ABI_MINOR + 7);
  // And the running one does not care what becomes of its file.
  ASSERT_EQ(truncate(file.c_str(), 0), 0);
  EXPECT_NE(second->entry().factory(VIRTBAY_FACTORY_DEVICE), nullptr);
}

// Directories of private copies.
size_t CountCopies(const std::filesystem::path& place) {
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(place)) {
    count += entry.path().filename().native().rfind("virtbay-plugin-", 0) == 0;
  }
  return count;
}

TEST_F(PluginLoad, ACopyLivesAsLongAsItsLoader) {
  const UniqueFd file(open(BadPlugin("correct").c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_OK_AND_ASSIGN(PrivateCopy kept, PrivateCopy::Create(file.get(), "kept.so"));
  // A loader that is killed before it has removed its copy.
  UniqueFd reader;
  UniqueFd writer;
  {
    int fds[2];
    ASSERT_EQ(pipe2(fds, O_CLOEXEC), 0);
    reader.reset(fds[0]);
    writer.reset(fds[1]);
  }
  const pid_t child = fork();
  if (child == 0) {
    const auto copy = PrivateCopy::Create(file.get(), "left.so");
    const char made = copy.ok() ? 'y' : 'n';
    if (write(writer.get(), &made, 1) == 1) pause();
    _exit(1);
  }
  char made = 0;
  ASSERT_EQ(read(reader.get(), &made, 1), 1);
  ASSERT_EQ(made, 'y');
  EXPECT_EQ(CountCopies(private_.path()), 2u);
  {
    ASSERT_OK_AND_ASSIGN(const PrivateCopy other, PrivateCopy::Create(file.get(), "other.so"));
    EXPECT_EQ(CountCopies(private_.path()), 3u) << "it lives";
  }
  ASSERT_EQ(kill(child, SIGKILL), 0);
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  EXPECT_EQ(CountCopies(private_.path()), 2u);
  {
    // Nor is anything else of that name touched.
    std::ofstream(private_ / "virtbay-plugin-file") << "x";
    std::filesystem::create_directory_symlink(private_.path(), private_ / "virtbay-plugin-link");
    // Directories of somebody's own, one of them named as if by chance like a loader's.
    const std::array<std::filesystem::path, 2> own = {private_ / "virtbay-plugin-device",
                                                      private_ / "virtbay-plugin-mydevice"};
    for (const auto& directory : own) {
      std::filesystem::create_directory(directory);
      std::filesystem::permissions(directory, std::filesystem::perms::owner_all);
      std::ofstream(directory / "device.cc") << "x";
    }
    ASSERT_OK_AND_ASSIGN(const PrivateCopy other, PrivateCopy::Create(file.get(), "other.so"));
    for (const auto& directory : own) {
      EXPECT_TRUE(std::filesystem::exists(directory / "device.cc")) << directory;
      std::filesystem::remove_all(directory);
    }
    EXPECT_EQ(CountCopies(private_.path()), 4u) << "kept, other, file and link";
    EXPECT_TRUE(std::filesystem::exists(kept.path()));
    EXPECT_TRUE(std::filesystem::exists(other.path()));
    std::filesystem::remove(private_ / "virtbay-plugin-file");
    std::filesystem::remove(private_ / "virtbay-plugin-link");
  }
}

TEST_F(PluginLoad, LoadersAtOnceDoNotTakeEachOthersCopies) {
  const UniqueFd file(open(BadPlugin("correct").c_str(), O_RDONLY | O_CLOEXEC));
  std::vector<std::thread> threads;
  std::atomic<int> failures{0};
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 50; ++n) {
        const auto copy = PrivateCopy::Create(file.get(), "p.so");
        if (!copy.ok() || access(copy->path().c_str(), R_OK) != 0) ++failures;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
}

struct Clause {
  const char* plugin;
  absl::StatusCode code;
  const char* text;
};

std::string PrintClause(const ::testing::TestParamInfo<Clause>& info) { return info.param.plugin; }

// Refused by Load, with the file's name and the reason; nothing of it stays mapped.
class PluginClause : public PluginLoad, public ::testing::WithParamInterface<Clause> {};

TEST_P(PluginClause, IsRefused) {
  const auto before = PluginImages();
  const auto plugin = Load(GetParam().plugin);
  EXPECT_THAT(plugin, StatusIs(GetParam().code, GetParam().text));
  EXPECT_THAT(plugin.status().message(),
              HasSubstr("plugin " + BadPlugin(GetParam().plugin).native() + ":"));
  EXPECT_THAT(plugin.status().message(), ::testing::Not(HasSubstr("virtbay-plugin-")));
  if (!VIRTBAY_TEST_IMAGES_STAY) {
    EXPECT_EQ(PluginImages(), before);
  }
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

INSTANTIATE_TEST_SUITE_P(
    All, PluginClause,
    ::testing::Values(
        Clause{"no_symbol", kInvalid, "exports no virtbay_plugin_entry"},
        Clause{"symbol_is_function", kInvalid, "is not a data symbol"},
        Clause{"wrong_magic", kInvalid, "has the wrong magic: 0x21212121"},
        Clause{"newer_major", kInvalid, "built for plugin ABI 2."},
        Clause{"older_major", kInvalid, "built for plugin ABI 0."},
        Clause{"smaller_struct", kInvalid, "has struct_size"},
        Clause{"lying_struct_size", kInvalid, "has struct_size"},
        Clause{"name_not_terminated", kInvalid, "name is not NUL-terminated"},
        Clause{"name_not_printable", kInvalid, "name is not printable text"},
        Clause{"name_empty", kInvalid, "name is empty"},
        Clause{"missing_dependency", absl::StatusCode::kFailedPrecondition,
               "undefined symbol: nobody_has_this_function"},
        Clause{"load_fails", absl::StatusCode::kUnavailable,
               "load(): the moon is in the wrong house"},
        Clause{"load_fails_silently", absl::StatusCode::kUnknown, "load(): xxxx"},
        Clause{"load_throws", absl::StatusCode::kInternal, "load(): threw an exception: from load"},
        Clause{"null_factory", kInvalid, "has no factory function"},
        Clause{"no_device_factory", kInvalid, "has no factory 'virtbay.device-factory/1'"},
        Clause{"factory_smaller_struct", kInvalid, "its factory has struct_size"},
        Clause{"factory_empty", kInvalid, "its factory has 0 device types"},
        Clause{"factory_too_many", kInvalid, "its factory has 4294967295 device types"},
        Clause{"factory_no_create", kInvalid, "lacks describe or create"},
        Clause{"describe_null", kInvalid, "device type 0: describe() gave NULL"},
        Clause{"type_smaller_struct", kInvalid, "device type 0: struct_size"},
        Clause{"type_name_not_printable", kInvalid, "device type 0: its name is not printable"},
        Clause{"type_name_twice", kInvalid, "two device types have the name 'bad-device'"}),
    PrintClause);

// Loaded, but its device cannot be made.
class PluginCreateClause : public PluginLoad, public ::testing::WithParamInterface<Clause> {};

TEST_P(PluginCreateClause, IsRefused) {
  ASSERT_OK_AND_ASSIGN(const auto plugin, Load(GetParam().plugin));
  EXPECT_THAT(plugin->CreateDevice(0, kHost, nullptr), StatusIs(GetParam().code, GetParam().text));
}

INSTANTIATE_TEST_SUITE_P(
    All, PluginCreateClause,
    ::testing::Values(
        Clause{"create_fails", absl::StatusCode::kNotFound, "create(): no such directory"},
        Clause{"create_throws", absl::StatusCode::kInternal, "create(): threw an exception"},
        Clause{"create_no_device", absl::StatusCode::kInternal, "succeeded without a device"},
        Clause{"ops_smaller_struct", absl::StatusCode::kInternal, "its functions have struct_size"},
        Clause{"ops_incomplete", absl::StatusCode::kInternal, "is missing"}),
    PrintClause);

TEST_F(PluginLoad, FilesThatAreNoLibraries) {
  const TempDir dir;
  const auto load = [&](const std::filesystem::path& file) {
    return Plugin::Load(file, kHost, capture_.log());
  };
  EXPECT_THAT(load(dir / "missing.so"),
              StatusIs(absl::StatusCode::kNotFound, "missing.so: No such file"));
  EXPECT_THAT(load(dir.Write("empty.so", "")), StatusIs(kInvalid, "not an ELF shared library"));
  EXPECT_THAT(
      load(dir.Write("text.so", "#!/bin/sh\necho this is not a library\n" + std::string(100, '#'))),
      StatusIs(kInvalid, "not an ELF shared library"));
  EXPECT_THAT(load("/proc/self/exe"), StatusIs(kInvalid, "exports no virtbay_plugin_entry"));
  EXPECT_THAT(load(dir.path()), StatusIs(kInvalid, "not a regular file"));
  ASSERT_EQ(mkfifo((dir / "fifo.so").c_str(), 0600), 0);
  EXPECT_THAT(load(dir / "fifo.so"), StatusIs(kInvalid, "not a regular file"));
  const auto unreadable = dir.Write("secret.so", "x");
  ASSERT_EQ(chmod(unreadable.c_str(), 0), 0);
  if (geteuid() != 0) {
    EXPECT_THAT(load(unreadable), StatusIs(absl::StatusCode::kPermissionDenied));
  }
}

TEST_F(PluginLoad, UnloadThatThrowsIsReported) {
  { ASSERT_OK(Load("unload_throws")); }
  EXPECT_TRUE(capture_.Contains("error plugin"));
  EXPECT_TRUE(capture_.Contains("unload(): threw an exception: from unload"));
}

TEST_F(PluginLoad, UniqueSymbolsKeepTheImage) {
  { ASSERT_OK(Load("unique_symbols")); }
#if defined(__GNUC__) && !defined(__clang__)
  EXPECT_TRUE(capture_.Contains("has UNIQUE symbols"));
  if (!VIRTBAY_TEST_IMAGES_STAY) {
    EXPECT_TRUE(capture_.Contains("still mapped"));
  }
#endif
}

TEST_F(PluginLoad, ThreadLocalsOfLivingThreadsKeepTheImage) {
  const auto before = PluginImages();
  absl::Notification loaded;
  absl::Notification may_end;
  absl::StatusOr<std::unique_ptr<Plugin>> plugin = absl::UnknownError("not loaded");
  std::thread thread([&] {
    plugin = Load("leaks_thread_local");  // load() touches the thread_local on this thread
    loaded.Notify();
    may_end.WaitForNotification();
  });
  loaded.WaitForNotification();
  ASSERT_OK(plugin);
  plugin->reset();
  if (!VIRTBAY_TEST_IMAGES_STAY) {
    EXPECT_TRUE(capture_.Contains("still mapped"));
  }
  may_end.Notify();
  thread.join();

  // When the thread ends first, all is well.
  const LogCapture second;
  std::thread([&] {
    plugin = Plugin::Load(BadPlugin("leaks_thread_local"), kHost, second.log());
  }).join();
  ASSERT_OK(plugin);
  plugin->reset();
  EXPECT_THAT(second.lines(), ::testing::IsEmpty());
  if (!VIRTBAY_TEST_IMAGES_STAY) {
    EXPECT_EQ(PluginImages(), before);
  }
}

TEST_F(PluginLoad, TheTemplateDevice) {
  const auto before = PluginImages();
  {
    ASSERT_OK_AND_ASSIGN(const auto plugin,
                         Plugin::Load(VIRTBAY_RNG_PLUGIN, kHost, capture_.log()));
    uint32_t index = 0;
    ASSERT_OK_AND_ASSIGN(const virtbay_device_type* type, plugin->FindType("virtio-rng", &index));
    EXPECT_EQ(type->virtio_id, 4u);
    ASSERT_OK_AND_ASSIGN(virtbay_device * device, plugin->CreateDevice(index, kHost, nullptr));
    virtbay_device_properties properties{};
    properties.struct_size = sizeof(properties);
    device->ops->properties(device, &properties);
    EXPECT_EQ(properties.queue_count, 1u);
    device->ops->destroy(device);

    // A host without services: the SDK says which one it misses.
    virtbay_host bare = kHost;
    bare.service = [](const virtbay_host*, const char*) -> const void* { return nullptr; };
    EXPECT_THAT(plugin->CreateDevice(index, bare, nullptr),
                StatusIs(absl::StatusCode::kUnimplemented, "virtbay.host.log/1"));
  }
  EXPECT_THAT(capture_.lines(), ::testing::IsEmpty());
  if (!VIRTBAY_TEST_IMAGES_STAY) {
    EXPECT_EQ(PluginImages(), before);
  }
}

TEST_F(PluginLoad, AHundredTimesLeavesNothing) {
  const auto count_fds = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
  };
  const auto images = PluginImages();
  ASSERT_OK(Load("correct"));
  const auto fds = count_fds();
  for (int i = 0; i < 100; ++i) ASSERT_OK(Load("correct"));
  EXPECT_EQ(count_fds(), fds);
  if (!VIRTBAY_TEST_IMAGES_STAY) {
    EXPECT_EQ(PluginImages(), images);
  }
}

}  // namespace
}  // namespace virtbay
