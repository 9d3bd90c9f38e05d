// RunFsCase: the loop that keeps `depth` operations of a workload in flight and measures them.
#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "framework/base/clock.h"
#include "framework/base/status.h"
#include "tests/bench/fs_data.h"
#include "tests/bench/fs_workload.h"
#include "tests/bench/process_cpu.h"
#include "tests/bench/samples.h"

namespace virtbay::bench {
namespace {

class Runner {
 public:
  Runner(guest::FuseSession& session, const FsCase& fs_case, const FsRunOptions& options)
      : session_(session),
        queue_(session.queue()),
        case_(fs_case),
        options_(options),
        workload_(MakeFsWorkload(fs_case.kind, options.salt)) {}

  ~Runner() {
    for (FsOp& op : ops_) queue_.Release(op.slot);
  }

  absl::StatusOr<FsMeasurement> Run() {
    queue_.set_wait(options_.wait);
    VIRTBAY_RETURN_IF_ERROR(workload_->Prepare(session_));
    ops_.resize(case_.depth);
    for (size_t i = 0; i < ops_.size(); ++i) {
      ops_[i].slot = queue_.Acquire();
      if (ops_[i].slot == nullptr) return absl::ResourceExhaustedError("not enough slots");
      ops_[i].slot->user = i;
      FsFill(ops_[i].slot->data(), 0, 0);  // touches the pages, too
    }
    const uint64_t start = MonotonicNs();
    measure_from_ = start + static_cast<uint64_t>(options_.warmup_seconds * 1e9);
    const absl::Status status = Loop();
    if (!status.ok()) return Annotate(status, case_.name);
    const uint64_t end = MonotonicNs();
    FsMeasurement result = Result(end);
    for (FsOp& op : ops_) queue_.Release(std::exchange(op.slot, nullptr));
    const absl::Status finished = workload_->Finish();
    if (!finished.ok()) return Annotate(finished, case_.name);
    return result;
  }

 private:
  absl::Status Loop() {
    uint64_t now = MonotonicNs();
    for (FsOp& op : ops_) VIRTBAY_RETURN_IF_ERROR(StartOp(op, now));
    queue_.Flush();
    std::array<guest::FuseSlot*, 64> done;
    for (;;) {
      const size_t n = queue_.Reap(done);
      if (n == 0) {
        if (queue_.in_flight() == 0) {
          if (over_) return absl::OkStatus();
          VIRTBAY_RETURN_IF_ERROR(NextPass());
          continue;
        }
        VIRTBAY_RETURN_IF_ERROR(queue_.Wait());
        continue;
      }
      now = MonotonicNs();
      if (!measuring_ && now >= measure_from_) StartMeasuring(now);
      if (measuring_ && now >= stop_at_) over_ = true;
      for (size_t i = 0; i < n; ++i) {
        VIRTBAY_RETURN_IF_ERROR(Advance(ops_[done[i]->user], now));
      }
      queue_.Flush();
    }
  }

  absl::Status Advance(FsOp& op, uint64_t now) {
    if (op.slot->error() != 0) {
      return absl::InternalError(
          absl::StrCat("step ", op.step, " of an operation failed: ", op.slot->error()));
    }
    const bool more = workload_->Step(op);
    if (op.error != nullptr) return absl::DataLossError(op.error);
    if (more) return queue_.Submit(op.slot);
    // Operations from before the measurement count for nothing, those that end behind it for all.
    if (measuring_ && op.start_ns >= measure_from_) {
      samples_.Add(now - op.start_ns);
      ++operations_;
      units_ += op.units;
    }
    return over_ ? absl::OkStatus() : StartOp(op, now);
  }

  absl::Status StartOp(FsOp& op, uint64_t now) {
    op.start_ns = now;
    op.units = 1;
    // At the end of a pass the slot idles until the others are done.
    return workload_->Start(op) ? queue_.Submit(op.slot) : absl::OkStatus();
  }

  // Ends a pass without counting the time and the CPU that it takes.
  absl::Status NextPass() {
    const uint64_t from = MonotonicNs();
    const uint64_t cpu_from = ProcessCpuNs(options_.backend);
    VIRTBAY_RETURN_IF_ERROR(workload_->EndPass());
    const uint64_t now = MonotonicNs();
    paused_ns_ += now - from;
    paused_cpu_ns_ += ProcessCpuNs(options_.backend) - cpu_from;
    stop_at_ += now - from;
    for (FsOp& op : ops_) VIRTBAY_RETURN_IF_ERROR(StartOp(op, now));
    queue_.Flush();
    return absl::OkStatus();
  }

  void StartMeasuring(uint64_t now) {
    measuring_ = true;
    measure_from_ = now;
    stop_at_ = now + static_cast<uint64_t>(options_.seconds * 1e9);
    paused_ns_ = paused_cpu_ns_ = 0;
    queue_.driver_queue().CountCalls();
    queue_.driver_queue().ClearStats();
    cpu_from_ = ProcessCpuNs(options_.backend);
  }

  FsMeasurement Result(uint64_t end) {
    FsMeasurement result;
    queue_.driver_queue().CountCalls();
    const auto& stats = queue_.driver_queue().stats();
    const uint64_t cpu = ProcessCpuNs(options_.backend) - cpu_from_ - paused_cpu_ns_;
    const double operations = static_cast<double>(std::max<uint64_t>(operations_, 1));
    result.operations = operations_;
    result.seconds = static_cast<double>(end - measure_from_ - paused_ns_) / 1e9;
    result.units_per_second = units_ / result.seconds;
    result.p50_us = samples_.QuantileUs(0.5);
    result.p99_us = samples_.QuantileUs(0.99);
    result.cpu_us_per_op = static_cast<double>(cpu) / 1000 / operations;
    result.kicks_per_op = static_cast<double>(stats.kicks) / operations;
    result.calls_per_op = static_cast<double>(stats.calls) / operations;
    return result;
  }

  guest::FuseSession& session_;
  guest::FuseQueue& queue_;
  const FsCase& case_;
  const FsRunOptions& options_;
  std::unique_ptr<FsWorkload> workload_;
  std::vector<FsOp> ops_;
  Samples samples_;
  uint64_t measure_from_ = 0;
  uint64_t stop_at_ = 0;
  uint64_t paused_ns_ = 0;
  uint64_t paused_cpu_ns_ = 0;
  uint64_t cpu_from_ = 0;
  uint64_t operations_ = 0;
  double units_ = 0;
  bool measuring_ = false;
  bool over_ = false;
};

}  // namespace

absl::StatusOr<FsMeasurement> RunFsCase(guest::FuseSession& session, const FsCase& fs_case,
                                        const FsRunOptions& options) {
  return Runner(session, fs_case, options).Run();
}

}  // namespace virtbay::bench
