// TransferHelper: a second thread that copies half of a large cached read. A page-cache copy runs
// at the speed of one core; two cores copy twice as fast. Owned by a QueueThread, which makes the
// first large read start the helper; Read is [queue]. The helper sleeps between reads and never
// outlives its owner. Pieces are claimed one by one: a helper that comes late, or not at all, costs
// the reader nothing. Where all CPUs are busy two threads are slower than one: both ways are timed,
// and the better one is used.
#ifndef VIRTBAY_FRAMEWORK_DEVICE_TRANSFER_HELPER_H_
#define VIRTBAY_FRAMEWORK_DEVICE_TRANSFER_HELPER_H_

#include <pthread.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <thread>

namespace virtbay {

class TransferHelper {
 public:
  // Reads shorter than this are not worth a wake-up.
  static constexpr uint32_t kSmallest = 512 * 1024;

  enum class Way { kTheBetter, kTogether };

  // Starts no thread yet; `name` is the helper's in the system's lists. kTogether: always by two
  // threads, for tests. [control]
  explicit TransferHelper(std::string name, Way way = Way::kTheBetter)
      : name_(std::move(name)), way_(way) {}
  TransferHelper(const TransferHelper&) = delete;
  TransferHelper& operator=(const TransferHelper&) = delete;
  // [control] After the last Read.
  ~TransferHelper();

  // preadv2 of bytes [offset, offset + len) of `chain` at `position`, by two threads if that pays.
  // Returns the bytes before the first piece that came short, or that piece's -errno when it is the
  // first. For reads that do not sleep: the caller waits for the helper's last piece. [queue]
  int64_t Read(int fd, std::span<const iovec> chain, uint32_t offset, uint32_t len, off_t position,
               int flags);

  // System calls that Read makes at most.
  static constexpr uint32_t Pieces(uint32_t len) {
    return static_cast<uint32_t>((uint64_t{len} + PieceSize(len) - 1) / PieceSize(len));
  }

  // [any] CPU time of the helper thread in nanoseconds; not while the helper is being destroyed.
  uint64_t CpuNs() const;

 private:
  static constexpr uint32_t kPiece = 128 * 1024;
  static constexpr uint32_t kMaxPieces = 64;

  // Whole pages, and no more pieces than there are results.
  static constexpr uint32_t PieceSize(uint32_t len) {
    return std::max(kPiece, (len / kMaxPieces + 4096) & ~4095u);
  }

  struct Job {
    int fd = -1;
    int flags = 0;
    std::span<const iovec> chain;
    uint32_t offset = 0;
    uint32_t len = 0;
    uint32_t piece = 0;  // bytes
    off_t position = 0;
  };

  // What a way of reading costs: a moving mean of times, in ns per MiB.
  struct Cost {
    uint64_t mean = 0;
    uint32_t samples = 0;
    void Add(uint64_t ns_per_mib);
  };
  bool Start();
  bool ChooseTogether();
  int64_t ReadTogether();
  void Main();
  // Claims pieces of job number `job` and copies them until none is left.
  void Work(uint32_t job);
  int64_t Copy(uint32_t at, uint32_t len) const;

  const std::string name_;
  const Way way_;
  std::thread thread_;
  std::atomic<pthread_t> handle_{};
  bool unusable_ = false;  // one CPU, or no thread to be had
  Cost together_;
  Cost alone_;
  bool together_last_ = true;
  uint32_t since_probe_ = 0;
  uint32_t probe_every_ = 1;

  // Written by the reader before it opens the job in state_, read by whoever claimed a piece of it.
  Job job_;
  std::array<int64_t, kMaxPieces> results_;
  // Number of the job, its pieces, the next piece to claim: one word, so that a helper that wakes
  // up late cannot claim a piece of a job that is over.
  std::atomic<uint64_t> state_{0};
  std::atomic<uint32_t> finished_{0};  // pieces of the job that nobody works on any more
  std::atomic<uint32_t> posted_{0};    // number of the last job; the helper sleeps on it
  std::atomic<bool> stop_{false};
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_TRANSFER_HELPER_H_
