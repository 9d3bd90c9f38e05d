#include "hostif/testkit/clauses.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "framework/plugin/plugin.h"
#include "hostif/testkit/subject.h"

namespace virtbay::testkit {
namespace {

constexpr uint32_t kSeed = 20260;
constexpr int kLoads = 2;
constexpr int kRounds = 12;

Finding Fail(std::string text) { return {Verdict::kFail, std::move(text)}; }
Finding Fail(const char* what, const absl::Status& status) {
  return Fail(absl::StrCat(what, ": ", status.message()));
}
Finding Pass(std::string text = "") { return {Verdict::kPass, std::move(text)}; }

// `doing` and then the step; its error is a failure.
#define VIRTBAY_STEP(note, expression)                            \
  do {                                                            \
    doing(note);                                                  \
    if (const absl::Status status = (expression); !status.ok()) { \
      return Fail(note, status);                                  \
    }                                                             \
  } while (false)

size_t Threads() {
  const std::filesystem::directory_iterator all("/proc/self/task");
  return static_cast<size_t>(std::distance(begin(all), end(all)));
}

const void* NoService(const virtbay_host*, const char*) { return nullptr; }

// A host of which nothing but the entry's functions is wanted.
virtbay_host BareHost() {
  virtbay_host host = {};
  host.struct_size = sizeof(host);
  host.abi_major = VIRTBAY_ABI_MAJOR;
  host.abi_minor = VIRTBAY_ABI_MINOR;
  host.name = "virtbay";
  host.version = VIRTBAY_VERSION;
  host.service = &NoService;
  return host;
}

// Nothing was said against the plugin meanwhile.
Finding Judge(const Subject& subject, std::string text = "") {
  std::string accusation = subject.Accusation();
  return accusation.empty() ? Pass(std::move(text)) : Fail(std::move(accusation));
}

}  // namespace

Finding CheckAbi(const CheckOptions& options, const Notes& doing) {
  doing("reading the file");
  const auto info = InspectPluginFile(options.file);
  if (!info.ok()) return Fail(std::string(info.status().message()));
  if (info->abi_major != VIRTBAY_ABI_MAJOR) {
    return Fail(absl::StrCat("built for ABI ", info->abi_major, ".", info->abi_minor,
                             ", the host has ", VIRTBAY_ABI_MAJOR, ".", VIRTBAY_ABI_MINOR));
  }
  return Pass(absl::StrCat(info->name, " ", info->version, ", ABI ", info->abi_major, ".",
                           info->abi_minor, ", ", info->device_types));
}

Finding CheckExports(const CheckOptions& options, const Notes& doing) {
  doing("reading the file");
  auto info = InspectPluginFile(options.file);
  if (!info.ok()) return Fail(std::string(info.status().message()));
  if (!info->unique.empty()) {
    return Fail(absl::StrCat("UNIQUE symbols keep it mapped: ", absl::StrJoin(info->unique, " ")));
  }
  std::erase(info->exports, VIRTBAY_ENTRY_SYMBOL);
  if (!info->exports.empty()) {
    return Fail(absl::StrCat("exports more: ", absl::StrJoin(info->exports, " ")));
  }
  return Pass();
}

Finding CheckLoad(const CheckOptions& options, const Notes& doing) {
  const virtbay_host host = BareHost();
  const LogLines lines(LogLevel::kWarn);
  for (int i = 0; i < kLoads; ++i) {
    const size_t threads = Threads();
    doing("load");
    auto plugin = Plugin::Load(options.file, host, lines.log());
    if (!plugin.ok()) return Fail(std::string(plugin.status().message()));
    if (Threads() != threads) {
      static_cast<void>(
          plugin->release());  // its thread runs its code: this process ends with both
      return Fail("load() starts a thread");
    }
    doing("looking for the device type");
    uint32_t index = 0;
    const auto type = (*plugin)->FindType(options.type, &index);
    if (!type.ok()) return Fail(std::string(type.status().message()));
    const auto kinds = (*plugin)->OptionKinds(index);
    if (!kinds.ok()) return Fail(std::string(kinds.status().message()));
    doing("unload");
  }
  return Pass();
}

Finding CheckUnload(const CheckOptions& options, const Notes& doing) {
  if (kSanitized) return {Verdict::kSkip, "a sanitizer keeps images mapped"};
  const LogLines lines(LogLevel::kWarn);
  {
    const virtbay_host host = BareHost();
    doing("load");
    const auto plugin = Plugin::Load(options.file, host, lines.log());
    if (!plugin.ok()) return Fail(std::string(plugin.status().message()));
    doing("unload");
  }
  // A device that has served, as well: its threads are gone by then.
  Subject subject(options);
  if (!subject.ready().ok()) return Fail("host", subject.ready());
  if (subject.Add().ok()) {
    std::minstd_rand random(kSeed);
    doing("serving");
    if (subject.Connect().ok()) static_cast<void>(subject.SendAll(1, &random));
    subject.Disconnect();
    doing("removing the device");
    static_cast<void>(subject.Remove());
  }
  for (const auto& all : {lines.lines(), subject.log().lines()}) {
    for (const std::string& line : all) {
      if (absl::StrContains(line, "still mapped") || absl::StrContains(line, "unload")) {
        return Fail(line);
      }
    }
  }
  return Pass();
}

Finding CheckCreate(const CheckOptions& options, const Notes& doing) {
  Subject subject(options);
  if (!subject.ready().ok()) return Fail("host", subject.ready());
  VIRTBAY_STEP("making a device", subject.Add());
  VIRTBAY_STEP("making a second one", subject.Add("second"));
  VIRTBAY_STEP("attaching a driver to the second one", subject.Connect());
  doing("the end of the driver");
  subject.Disconnect();
  VIRTBAY_STEP("destroying the first one", subject.Remove());
  VIRTBAY_STEP("destroying the second one", subject.Remove("second"));
  for (int i = 0; i < kRounds; ++i) {
    VIRTBAY_STEP("making a device again", subject.Add());
    VIRTBAY_STEP("destroying it again", subject.Remove());
  }
  return Judge(subject);
}

Finding CheckConfig(const CheckOptions& options, const Notes& doing) {
  Subject subject(options);
  if (!subject.ready().ok()) return Fail("host", subject.ready());
  VIRTBAY_STEP("making a device", subject.Add());
  VIRTBAY_STEP("attaching a driver", subject.Connect());
  guest::Transport& transport = subject.driver().transport();
  // The port knows how large it is: what is beyond is refused by the host.
  std::vector<std::byte> space(4096);
  uint32_t size = 4096;
  doing("reading the configuration space");
  while (size > 0 && !transport.ReadConfig(0, std::span(space).first(size)).ok()) --size;
  if (size == 0) return Pass("none");
  for (const uint32_t width : {1u, 2u, 4u, 8u}) {
    for (uint32_t offset = 0; offset + width <= size; ++offset) {
      doing(absl::StrCat("reading ", width, " bytes at ", offset));
      const absl::Status read = transport.ReadConfig(offset, std::span(space).first(width));
      if (!read.ok()) return Fail("reading a part of what can be read", read);
    }
  }
  doing("reading all of it again");
  const absl::Status whole = transport.ReadConfig(0, std::span(space).first(size));
  if (!whole.ok()) return Fail("reading all of it again", whole);
  for (const uint32_t width : {1u, 2u, 4u, 8u}) {
    for (uint32_t offset = 0; offset + width <= size; ++offset) {
      doing(absl::StrCat("writing ", width, " bytes at ", offset));
      // Whether it is refused is the device's business.
      static_cast<void>(transport.WriteConfig(offset, std::span(space).subspan(offset, width)));
    }
  }
  return Judge(subject, absl::StrCat(size, " bytes"));
}

Finding CheckFeatures(const CheckOptions& options, const Notes& doing) {
  Subject subject(options);
  if (!subject.ready().ok()) return Fail("host", subject.ready());
  VIRTBAY_STEP("making a device", subject.Add());
  VIRTBAY_STEP("negotiating all features", subject.Connect());
  const auto offered = subject.driver().transport().GetFeatures();
  if (!offered.ok()) return Fail("features", offered.status());
  std::minstd_rand random(kSeed);
  uint32_t taken = 0;
  uint32_t refused = 0;
  std::vector<uint64_t> sets = {0};
  for (uint32_t bit = 0; bit < 64; ++bit) {
    if (bit >= 24 && bit < 50) continue;
    if ((*offered & uint64_t{1} << bit) == 0) continue;
    sets.push_back(uint64_t{1} << bit);
    sets.push_back(~(uint64_t{1} << bit));
  }
  for (const uint64_t set : sets) {
    for (const bool packed : {false, true}) {
      doing(absl::StrCat("negotiating 0x", absl::Hex(set & *offered)));
      if (!subject.Connect(set, packed).ok()) {
        ++refused;
        continue;
      }
      ++taken;
      const absl::Status served = subject.SendAll(1, &random);
      if (!served.ok()) return Fail(std::string(served.message()));
    }
  }
  VIRTBAY_STEP("negotiating all features again", subject.Connect());
  return Judge(subject, absl::StrCat("0x", absl::Hex(*offered), "; ", taken, " sets taken, ",
                                     refused, " refused"));
}

Finding CheckRequests(const CheckOptions& options, const Notes& doing) {
  Subject subject(options);
  if (!subject.ready().ok()) return Fail("host", subject.ready());
  VIRTBAY_STEP("making a device", subject.Add());
  std::minstd_rand random(kSeed);
  for (const bool packed : {false, true}) {
    VIRTBAY_STEP("attaching a driver", subject.Connect(~uint64_t{0}, packed));
    for (int i = 0; i < kRounds / 2; ++i) {
      doing("serving requests");
      const absl::Status served = subject.SendAll(4, &random);
      if (!served.ok()) return Fail(std::string(served.message()));
    }
    if (subject.driver().queue(0).ring().device_errors() != 0) {
      return Fail("a buffer came back that was not sent");
    }
  }
  const auto info = subject.device().Inspect();
  uint64_t served = 0;
  if (info.ok()) {
    for (const QueueStats& queue : info->queues) served += queue.requests;
  }
  return Judge(subject, absl::StrCat(served, " requests"));
}

Finding CheckQuiesce(const CheckOptions& options, const Notes& doing) {
  Subject subject(options);
  if (!subject.ready().ok()) return Fail("host", subject.ready());
  VIRTBAY_STEP("making a device", subject.Add());
  VIRTBAY_STEP("attaching a driver", subject.Connect());
  absl::Duration longest;
  for (int i = 0; i < kRounds; ++i) {
    for (uint32_t queue = 0; queue < subject.driver().queue_count(); ++queue) {
      const std::array<uint32_t, 1> in = {64};
      const std::array<uint32_t, 1> out = {64};
      for (int n = 0; n < 8; ++n) subject.buffers().Add(queue, "", in, out);
      for (int n = 0; n < 8; ++n) subject.buffers().Add(queue, "", {}, out);
      subject.driver().queue(queue).Publish();
    }
    doing("stopping with requests under way");
    const absl::Time start = absl::Now();
    const absl::Status stopped = subject.StopAndGo();
    longest = std::max(longest, absl::Now() - start);
    if (const std::string accusation = subject.Accusation(); !accusation.empty()) {
      return Fail(accusation);
    }
    if (!stopped.ok()) return Fail(std::string(stopped.message()));
  }
  // The device as a whole: no more and no less.
  VIRTBAY_STEP("stopping the device", subject.device().Stop());
  VIRTBAY_STEP("starting the device", subject.device().Start());
  return Judge(
      subject,
      absl::StrCat("at most ", absl::FormatDuration(absl::Trunc(longest, absl::Microseconds(1)))));
}

Finding CheckReset(const CheckOptions& options, const Notes& doing) {
  Subject subject(options);
  if (!subject.ready().ok()) return Fail("host", subject.ready());
  VIRTBAY_STEP("making a device", subject.Add());
  VIRTBAY_STEP("attaching a driver", subject.Connect());
  std::minstd_rand random(kSeed);
  for (int i = 0; i < kRounds; ++i) {
    for (uint32_t queue = 0; queue < subject.driver().queue_count(); ++queue) {
      const std::array<uint32_t, 1> room = {64};
      for (int n = 0; n < 16; ++n) subject.buffers().Add(queue, "", {}, room);
      subject.driver().queue(queue).Publish();
    }
    VIRTBAY_STEP("reset", subject.driver().Restart());
    subject.buffers().Forget();
    const auto info = subject.device().Inspect();
    if (!info.ok()) return Fail("inspect", info.status());
    if (info->needs_reset) return Fail(absl::StrCat("needs a reset after one: ", info->failure));
    if (info->arena_slots_used != 0) {
      return Fail(absl::StrCat(info->arena_slots_used, " arena slots are still used"));
    }
    VIRTBAY_STEP("serving after a reset", subject.SendAll(1, &random));
  }
  return Judge(subject);
}

namespace {

DeviceState Copy(const DeviceState& state) {
  DeviceState copy;
  copy.type = state.type;
  copy.version = state.version;
  copy.bytes = state.bytes;
  for (const DeviceState::Fd& fd : state.fds) copy.fds.push_back({fd.role, fd.fd.Duplicate()});
  return copy;
}

// The state with something wrong; the result may happen to be right all the same.
DeviceState Spoil(const DeviceState& state, uint32_t how, std::minstd_rand* random) {
  DeviceState bad = Copy(state);
  const auto place = [&] { return (*random)() % std::max<size_t>(bad.bytes.size(), 1); };
  switch (how % 5) {
    case 0:
      bad.bytes.resize(place());
      break;
    case 1:
      for (int i = 0; i < 4 && !bad.bytes.empty(); ++i) {
        bad.bytes[place()] = static_cast<char>((*random)());
      }
      break;
    case 2:
      bad.fds.clear();
      break;
    case 3:
      if (!bad.bytes.empty()) bad.bytes.append(bad.bytes.substr(place()));
      break;
    default:
      std::fill(bad.bytes.begin(), bad.bytes.end(), '\xff');
      break;
  }
  return bad;
}

}  // namespace

Finding CheckState(const CheckOptions& options, const Notes& doing) {
  Subject subject(options);
  if (!subject.ready().ok()) return Fail("host", subject.ready());
  VIRTBAY_STEP("making a device", subject.Add());
  VIRTBAY_STEP("attaching a driver", subject.Connect());
  std::minstd_rand random(kSeed);
  VIRTBAY_STEP("serving before the save", subject.SendAll(4, &random));
  doing("save");
  auto saved = subject.device().Save();
  if (saved.status().code() == absl::StatusCode::kUnimplemented) {
    return {Verdict::kSkip, absl::StrCat("it has no ", VIRTBAY_EXTENSION_STATE)};
  }
  if (!saved.ok()) return Fail("save", saved.status());
  subject.Disconnect();
  VIRTBAY_STEP("removing the one that was saved", subject.Remove());
  for (int i = 0; i < 3; ++i) {
    VIRTBAY_STEP("restore", subject.Add("checked", Copy(*saved)));
    VIRTBAY_STEP("attaching a driver after restore", subject.Connect());
    VIRTBAY_STEP("serving after restore", subject.SendAll(1, &random));
    doing("save of what was restored");
    const auto again = subject.device().Save();
    if (!again.ok()) return Fail("save of what was restored", again.status());
    subject.Disconnect();
    VIRTBAY_STEP("removing it", subject.Remove());
  }
  uint32_t refused = 0;
  constexpr uint32_t kBad = 200;
  for (uint32_t i = 0; i < kBad; ++i) {
    doing(absl::StrCat("restore of a state that is wrong (", i, ")"));
    if (!subject.Add("bad", Spoil(*saved, i, &random)).ok()) {
      ++refused;
      continue;
    }
    VIRTBAY_STEP("removing the one with a wrong state", subject.Remove("bad"));
  }
  return Judge(subject,
               absl::StrCat(saved->bytes.size(), " bytes, ", saved->fds.size(), " descriptors; ",
                            refused, " of ", kBad, " wrong ones refused"));
}

}  // namespace virtbay::testkit
