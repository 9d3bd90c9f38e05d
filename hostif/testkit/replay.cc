#include "virtbay/testkit/replay.h"

#include <linux/virtio_ids.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "hostif/record/record_file.h"
#include "hostif/testkit/fuse_numbers.h"

namespace virtbay::testkit {
namespace {

sdk::Error ErrorOf(const absl::Status& status) {
  return {status.raw_code(), 0, std::string(status.message())};
}

class Replayer {
 public:
  Replayer(const ReplayOptions& options, bool fuse, Bay* bay)
      : options_(options), fuse_(fuse), bay_(bay) {}

  void Run(const record::RecordFile& file) {
    for (const RequestRecord& record : file.records) {
      switch (record.kind) {
        case RecordKind::kRequest:
          Send(record);
          break;
        case RecordKind::kComplete:
          Await(record);
          break;
        case RecordKind::kStop:
          Stop();
          break;
        case RecordKind::kReset:
          Reset();
          break;
      }
      if (!report_.failure.empty()) return;
    }
    // That the device does not let go of what it was not to answer is no failure.
    if (!fresh_ && !stopped_) static_cast<void>(Settle());
    if (bay_->needs_reset()) report_.failure = bay_->failure();
  }
  ReplayReport& report() { return report_; }

 private:
  using Key = std::pair<uint32_t, uint64_t>;
  struct Sent {
    uint64_t token = 0;
    bool to_fill = false;  // no readable bytes
  };

  void Send(const RequestRecord& record) {
    if (options_.progress) {
      options_.progress(absl::StrCat("request ", record.id, " of queue ", record.queue));
    }
    fresh_ = false;
    if (record.queue != queue_) AwaitTaken(1);
    queue_ = record.queue;
    if (std::exchange(stopped_, false)) {
      const sdk::Status started = bay_->Start();
      if (!started.ok()) report_.failure = absl::StrCat("start: ", started.error().text);
    }
    // What is not in the record is zero.
    std::string bytes = record.bytes;
    if (fuse_) numbers_.Translate(record.queue, record.id, &bytes);
    uint64_t size = 0;
    for (const uint32_t piece : record.readable) size += piece;
    // No more than the memory of the driver holds is made of what a file says.
    if (size <= options_.bay.memory) bytes.resize(size);
    const uint64_t token =
        size > options_.bay.memory
            ? 0
            : bay_->SendPieces(bytes, record.readable, record.writable, record.queue);
    if (token == 0) {
      ++report_.left_out;
      if (record.queue >= bay_->queue_count()) ++report_.no_queue;
      return;
    }
    ++report_.requests;
    ++to_take_;
    if (record.readable.empty()) ++to_fill_;
    sent_[Key(record.queue, record.id)] = {token, record.readable.empty()};
  }

  // The thread of the device takes up its queues in an order of its own.
  void AwaitTaken(uint32_t seconds) {
    const absl::Time start = absl::Now();
    for (;;) {
      const uint64_t taken = bay_->taken();
      if (taken >= to_take_ || bay_->needs_reset()) return;
      // Some devices take a buffer only when there is something to fill it with.
      const uint32_t most = to_take_ - taken <= to_fill_ ? 1 : seconds;
      if (absl::Now() - start >= absl::Seconds(most)) return;
      absl::SleepFor(absl::Microseconds(20));
    }
  }

  // What was never answered may be what the plugin fails on: it has had all of it, and come back
  // from it, when its queues have stopped.
  sdk::Status Settle() {
    AwaitTaken(options_.patience);
    sdk::Status stopped = bay_->Stop();
    if (bay_->needs_reset()) report_.failure = bay_->failure();
    return stopped;
  }

  void Await(const RequestRecord& record) {
    const auto sent = sent_.find(Key(record.queue, record.id));
    if (sent == sent_.end()) return;  // was under way before the record, or is left out
    const auto [token, to_fill] = sent->second;
    sent_.erase(sent);
    // One of them was not filled, so that no other will be.
    if (to_fill && unfilled_.contains(record.queue) && !bay_->Has(token, record.queue)) {
      ++report_.unanswered;
      ++report_.unfilled;
      return;
    }
    for (uint32_t second = 0;; ++second) {
      const sdk::Result<Reply> reply = bay_->Take(token, record.queue, 1);
      if (reply.ok()) {
        ++report_.answered;
        if (to_fill) --to_fill_;
        if (fuse_) {
          numbers_.Learn(record.queue, record.id, record.bytes,
                         std::string_view(reply.value().bytes).substr(0, reply.value().written));
        }
        Compare(record, reply.value());
        return;
      }
      if (bay_->needs_reset()) {
        report_.failure = absl::StrCat(bay_->failure(), " (request ", record.id, " of queue ",
                                       record.queue, " was waited for)");
        return;
      }
      if (second + 1 >= options_.patience) break;
    }
    ++report_.unanswered;
    if (to_fill) {
      ++report_.unfilled;
      unfilled_.insert(record.queue);
    } else {
      Note(record, absl::StrCat("no answer within ", options_.patience, " s"));
    }
  }

  void Compare(const RequestRecord& record, const Reply& reply) {
    if (reply.written != record.written) {
      ++report_.lengths;
      Note(record, absl::StrCat(reply.written, " bytes written, not ", record.written));
      return;
    }
    const std::string_view bytes(reply.bytes);
    const std::string_view now = bytes.substr(0, record.bytes.size());
    if (now == record.bytes) return;
    // Times and numbers of files always differ: they leave room for what is worse.
    if (++report_.contents > ReplayReport::kMostDifferences / 4) return;
    const auto differ = std::mismatch(now.begin(), now.end(), record.bytes.begin());
    const auto at = static_cast<size_t>(differ.first - now.begin());
    Note(record, absl::StrCat("byte ", at, " of ", reply.written, " is 0x",
                              absl::Hex(static_cast<uint8_t>(now[at]), absl::kZeroPad2), ", not 0x",
                              absl::Hex(static_cast<uint8_t>(record.bytes[at]), absl::kZeroPad2)));
  }

  // Every queue tells of both, and so does a queue that was never used.
  void Stop() {
    if (fresh_ || std::exchange(stopped_, true)) return;
    const sdk::Status stopped = Settle();
    if (stopped.ok() || !report_.failure.empty()) return;
    report_.failure = absl::StrCat("stop: ", stopped.error().text);
  }
  void Reset() {
    if (std::exchange(fresh_, true)) return;
    // A reset takes back what the device has said about itself.
    if (!std::exchange(stopped_, false)) static_cast<void>(Settle());
    if (!report_.failure.empty()) return;
    sent_.clear();
    unfilled_.clear();
    numbers_.Reset();
    const sdk::Status reset = bay_->Reset();
    if (!reset.ok()) report_.failure = absl::StrCat("reset: ", reset.error().text);
    to_take_ = bay_->taken();
    to_fill_ = 0;
  }

  void Note(const RequestRecord& record, std::string what) {
    if (report_.differences.size() >= ReplayReport::kMostDifferences) return;
    report_.differences.push_back({record.queue, record.id, std::move(what)});
  }

  const ReplayOptions& options_;
  const bool fuse_;
  Bay* const bay_;
  FuseNumbers numbers_;
  ReplayReport report_;
  std::map<Key, Sent> sent_;
  std::set<uint32_t> unfilled_;  // queues whose buffers to be filled are not waited for any more
  uint32_t queue_ = 0;           // that something was sent on last
  uint64_t to_take_ = 0;         // by the device, when it has taken all that was sent
  uint64_t to_fill_ = 0;         // of those without readable bytes, not answered
  bool stopped_ = false;
  bool fresh_ = true;  // nothing was sent since the beginning, or the last reset
};

}  // namespace

sdk::Result<ReplayReport> Replay(const ReplayOptions& options) {
  auto file = record::Read(options.record);
  if (!file.ok()) return ErrorOf(file.status());
  BayOptions bay_options = options.bay;
  if (bay_options.plugin.empty()) bay_options.plugin = file->head.plugin;
  if (bay_options.type.empty()) bay_options.type = file->head.type;
  bay_options.features = file->head.features;
  bay_options.one_thread = true;
  if (options.recorded_options) {
    bay_options.options.insert(file->head.options.begin(), file->head.options.end());
  }
  auto bay = Bay::Create(std::move(bay_options));
  if (!bay.ok()) return bay.error();
  Replayer replayer(options, file->head.virtio_id == VIRTIO_ID_FS, bay->get());
  replayer.Run(*file);
  ReplayReport report = std::move(replayer.report());
  report.cut = file->cut;
  report.whole = file->head.whole;
  return report;
}

}  // namespace virtbay::testkit
