// What a device leaves behind when it is gone: threads, file descriptors, memory.
#include <malloc.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "hostif/testkit/clauses.h"
#include "hostif/testkit/subject.h"

namespace virtbay::testkit {
namespace {

constexpr int kWarmUp = 8;
constexpr int kCycles = 24;
// Of the allocator's own bookkeeping, over all cycles.
constexpr int64_t kSlack = 2048;

int64_t Entries(const char* directory) {
  const std::filesystem::directory_iterator all(directory);
  return std::distance(begin(all), end(all));
}
int64_t Mappings() {
  std::ifstream maps("/proc/self/maps");
  int64_t lines = 0;
  for (std::string line; std::getline(maps, line);) ++lines;
  return lines;
}
int64_t Allocated() {
  const struct mallinfo2 info = mallinfo2();
  return static_cast<int64_t>(info.uordblks + info.hblkhd);
}

// Makes, uses and removes the device; what `count` tells grows from one cycle to the next if it
// leaks. The error is that of a cycle, the result by how much it grew.
absl::StatusOr<int64_t> Growth(const CheckOptions& options, const Notes& doing,
                               int64_t (*count)()) {
  std::minstd_rand random(1);
  int64_t before = 0;
  for (int i = 0; i < kWarmUp + kCycles; ++i) {
    if (i == kWarmUp) before = count();
    Subject subject(options);
    doing(absl::StrCat("making the device for the ", i + 1, "th time"));
    VIRTBAY_RETURN_IF_ERROR(subject.ready());
    VIRTBAY_RETURN_IF_ERROR(subject.Add());
    VIRTBAY_RETURN_IF_ERROR(subject.Connect());
    doing("serving");
    VIRTBAY_RETURN_IF_ERROR(subject.SendAll(1, &random));
    subject.Disconnect();
    doing("removing the device");
    VIRTBAY_RETURN_IF_ERROR(subject.Remove());
  }
  return count() - before;
}

Finding Judge(const absl::StatusOr<int64_t>& growth, int64_t allowed, const char* of) {
  if (!growth.ok()) return {Verdict::kFail, std::string(growth.status().message())};
  if (*growth <= allowed) return {Verdict::kPass, ""};
  return {Verdict::kFail, absl::StrCat(*growth, " ", of, " more after ", kCycles, " devices")};
}

// On a busy machine something may be there a moment longer, once in a while, where a leak is there
// each time.
Finding JudgeAgain(const CheckOptions& options, const Notes& doing, int64_t (*count)(),
                   int64_t allowed, const char* of) {
  Finding grown;
  for (int round = 0; round < 3; ++round) {
    grown = Judge(Growth(options, doing, count), allowed, of);
    if (grown.verdict == Verdict::kPass) break;
  }
  return grown;
}

}  // namespace

Finding CheckThreads(const CheckOptions& options, const Notes& doing) {
  // One that has been joined is listed until the kernel has taken it away.
  return JudgeAgain(
      options, doing, [] { return Entries("/proc/self/task"); }, 0, "threads");
}

Finding CheckDescriptors(const CheckOptions& options, const Notes& doing) {
  return Judge(Growth(options, doing, [] { return Entries("/proc/self/fd"); }), 0, "descriptors");
}

Finding CheckMemory(const CheckOptions& options, const Notes& doing) {
  Finding mapped = Judge(Growth(options, doing, &Mappings), kSanitized ? INT64_MAX : 8, "mappings");
  if (mapped.verdict != Verdict::kPass) return mapped;
  if (kSanitized) return {Verdict::kSkip, "a sanitizer has memory of its own"};
  // What threads that have just ended had in their caches counts until another one takes it up.
  return JudgeAgain(options, doing, &Allocated, kSlack, "bytes");
}

}  // namespace virtbay::testkit
