#include "tests/bench/fs_native.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "framework/base/clock.h"
#include "framework/base/status.h"
#include "framework/base/unique_fd.h"
#include "tests/bench/fs_data.h"
#include "tests/bench/samples.h"

namespace virtbay::bench {
namespace {

uint64_t ProcessCpu() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

// Page-aligned memory, as O_DIRECT needs it.
class Buffer {
 public:
  explicit Buffer(size_t size)
      : size_(size),
        data_(::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0)) {}
  ~Buffer() { ::munmap(data_, size_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  std::span<std::byte> bytes() { return {static_cast<std::byte*>(data_), size_}; }
  void* data() { return data_; }

 private:
  size_t size_;
  void* data_;
};

class Native {
 public:
  Native(std::string dir, uint64_t seed) : dir_(std::move(dir)), dice_(seed), buffer_(kFsChunk) {
    FsFill(buffer_.bytes(), 0, 0);
  }

  absl::Status Open(FsKind kind) {
    VIRTBAY_RETURN_IF_ERROR(OpenOne(&files_, "files", O_RDONLY | O_DIRECTORY));
    VIRTBAY_RETURN_IF_ERROR(OpenOne(&scratch_, "scratch", O_RDONLY | O_DIRECTORY));
    const int direct = kind == FsKind::kRandomReadDirect ? O_DIRECT : 0;
    VIRTBAY_RETURN_IF_ERROR(OpenOne(&data_, "data", O_RDONLY | direct));
    return OpenOne(&out_, "out", O_RDWR);
  }

  double Run(FsKind kind) {
    switch (kind) {
      case FsKind::kLookupGetattr:
        return Stat(next_++ % kFsFiles);
      case FsKind::kReadDirPlus:
        return List();
      case FsKind::kCreateUnlink:
        return CreateUnlink();
      case FsKind::kRandomRead:
      case FsKind::kRandomReadDirect:
        return Read(kFsBlock, dice_() % (kFsReadSize / kFsBlock));
      case FsKind::kSequentialRead:
        return Read(kFsChunk, next_++ % (kFsReadSize / kFsChunk));
      case FsKind::kRandomWrite:
        return Write(kFsBlock, dice_() % (kFsWriteSize / kFsBlock));
      case FsKind::kSequentialWrite:
        return Write(kFsChunk, next_++ % (kFsWriteSize / kFsChunk));
      case FsKind::kMixed: {
        const uint64_t percent = dice_() % 100;
        if (percent < 60) return Run(FsKind::kRandomRead);
        if (percent < 80) return Run(FsKind::kRandomWrite);
        if (percent < 95) return Run(FsKind::kLookupGetattr);
        return Run(FsKind::kCreateUnlink);
      }
    }
    return -EINVAL;
  }

 private:
  absl::Status OpenOne(UniqueFd* fd, const char* name, int flags) {
    const std::string path = dir_ + "/" + name;
    fd->reset(::open(path.c_str(), flags | O_CLOEXEC));
    return fd->valid() ? absl::OkStatus() : ErrnoStatus(errno, "opening " + path);
  }

  double Stat(uint32_t index) {
    struct stat st {};
    if (::fstatat(files_.get(), FsFileName(index).data(), &st, AT_SYMLINK_NOFOLLOW) != 0) {
      return -errno;
    }
    return st.st_size == FsFileSize(index) ? 1 : -EIO;
  }

  // A buffer of entries and the attributes of each; the count of entries.
  double List() {
    const long n = ::syscall(SYS_getdents64, files_.get(), buffer_.data(), 32768);
    if (n < 0) return -errno;
    if (n == 0) return ::lseek(files_.get(), 0, SEEK_SET) == 0 ? 0 : -errno;
    double entries = 0;
    for (long at = 0; at < n;) {
      const auto* const entry =
          reinterpret_cast<const dirent64*>(static_cast<const char*>(buffer_.data()) + at);
      struct stat st {};
      if (::fstatat(files_.get(), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0) return -errno;
      at += entry->d_reclen;
      ++entries;
    }
    return entries;
  }

  double CreateUnlink() {
    char name[32];
    std::snprintf(name, sizeof(name), "n%010u", next_++);
    const UniqueFd fd(::openat(scratch_.get(), name, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0644));
    if (!fd) return -errno;
    if (::pwrite(fd.get(), buffer_.data(), kFsBlock, 0) != kFsBlock) return -EIO;
    return ::unlinkat(scratch_.get(), name, 0) == 0 ? 1 : -errno;
  }

  double Read(uint32_t size, uint64_t index) {
    const uint64_t offset = index * size;
    const ssize_t n = ::pread(data_.get(), buffer_.data(), size, static_cast<off_t>(offset));
    if (n < 0) return -errno;
    if (n != size || !FsCheckEnds(buffer_.bytes().first(size), offset, 0)) return -EIO;
    return size == kFsChunk ? size / 1e6 : 1;
  }

  double Write(uint32_t size, uint64_t index) {
    const uint64_t offset = index * size;
    FsStamp(buffer_.bytes().first(size), offset, 0);
    const ssize_t n = ::pwrite(out_.get(), buffer_.data(), size, static_cast<off_t>(offset));
    if (n < 0) return -errno;
    if (n != size) return -EIO;
    return size == kFsChunk ? size / 1e6 : 1;
  }

  std::string dir_;
  std::minstd_rand dice_;
  Buffer buffer_;
  UniqueFd files_;
  UniqueFd scratch_;
  UniqueFd data_;
  UniqueFd out_;
  uint32_t next_ = 0;
};

struct ThreadResult {
  absl::Status status;
  uint64_t operations = 0;
  double units = 0;
  Samples samples;
};

void Loop(Native& native, FsKind kind, uint64_t measure_from, uint64_t stop_at,
          ThreadResult* result) {
  uint64_t before = MonotonicNs();
  while (before < stop_at) {
    const double units = native.Run(kind);
    const uint64_t now = MonotonicNs();
    if (units < 0) {
      result->status = ErrnoStatus(static_cast<int>(-units), "plain system calls");
      return;
    }
    if (before >= measure_from) {
      result->samples.Add(now - before);
      ++result->operations;
      result->units += units;
    }
    before = now;
  }
}

}  // namespace

absl::StatusOr<FsMeasurement> RunNativeCase(const std::string& dir, const FsCase& fs_case,
                                            double seconds, double warmup_seconds) {
  const uint32_t threads = fs_case.kind == FsKind::kRandomReadDirect ? fs_case.depth : 1;
  std::vector<std::unique_ptr<Native>> natives;
  std::vector<ThreadResult> results;
  for (uint32_t i = 0; i < threads; ++i) {
    natives.push_back(std::make_unique<Native>(dir, i + 1));
    VIRTBAY_RETURN_IF_ERROR(natives.back()->Open(fs_case.kind));
    results.push_back(ThreadResult{.status = absl::OkStatus(),
                                   .operations = 0,
                                   .units = 0,
                                   .samples = Samples(threads == 1 ? 1u << 20 : 1u << 16)});
  }
  const uint64_t start = MonotonicNs();
  const uint64_t measure_from = start + static_cast<uint64_t>(warmup_seconds * 1e9);
  const uint64_t stop_at = measure_from + static_cast<uint64_t>(seconds * 1e9);
  const uint64_t cpu = ProcessCpu();
  if (threads == 1) {
    Loop(*natives[0], fs_case.kind, measure_from, stop_at, &results[0]);
  } else {
    std::vector<std::thread> workers;
    for (uint32_t i = 0; i < threads; ++i) {
      workers.emplace_back(Loop, std::ref(*natives[i]), fs_case.kind, measure_from, stop_at,
                           &results[i]);
    }
    for (std::thread& worker : workers) worker.join();
  }
  const double elapsed = static_cast<double>(MonotonicNs() - measure_from) / 1e9;
  FsMeasurement result;
  double units = 0;
  for (ThreadResult& part : results) {
    if (!part.status.ok()) return Annotate(part.status, fs_case.name);
    result.operations += part.operations;
    units += part.units;
    result.p50_us += part.samples.QuantileUs(0.5) / threads;
    result.p99_us += part.samples.QuantileUs(0.99) / threads;
  }
  result.seconds = elapsed;
  result.units_per_second = units / elapsed;
  const double whole = seconds + warmup_seconds;
  result.cpu_us_per_op = static_cast<double>(ProcessCpu() - cpu) / 1000 * (seconds / whole) /
                         static_cast<double>(std::max<uint64_t>(result.operations, 1));
  return result;
}

}  // namespace virtbay::bench
