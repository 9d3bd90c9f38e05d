// Hot reload: another image of a plugin takes the place of the one that serves (Host::Reload). The
// rings, the arena, the requests that were handed back and what the driver negotiated never leave
// the Device; the plugin's device is exchanged beneath them.
#include <algorithm>
#include <cstdint>
#include <iterator>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "framework/base/status.h"
#include "framework/device/device.h"
#include "framework/device/generation.h"
#include "framework/device/plugin_call.h"
#include "framework/device/queue.h"
#include "framework/device/queue_thread.h"
#include "framework/device/saved_state.h"
#include "framework/io/loop.h"

namespace virtbay {
namespace {

// What one thread and whoever waits for its pause agree on.
struct Pause {
  enum class State { kAwaited, kReached, kGivenUp };
  absl::Mutex mutex;
  State state ABSL_GUARDED_BY(mutex) = State::kAwaited;
};

class Stopwatch {
 public:
  // Since the last call, or the making.
  absl::Duration Lap() {
    const absl::Time now = absl::Now();
    return now - std::exchange(last_, now);
  }

 private:
  absl::Time last_ = absl::Now();
};

uint64_t Answers(const DeviceCore& core) {
  uint64_t sum = 0;
  for (const auto& queue : core.queues) sum += queue->Stats().completions;
  return sum;
}

bool Drained(const QueueThread& thread) {
  const std::vector<Queue*>& queues = thread.queues();
  return std::all_of(queues.begin(), queues.end(),
                     [](const Queue* queue) { return !queue->running() || queue->drained(); });
}

// The first answers of the new device: what is let go of afterwards would take its thread's
// processor, and its page faults would wait for the unmapping. A guest that asks nothing is not
// waited for.
void AwaitAnswer(const DeviceCore& core, uint64_t before) {
  constexpr absl::Duration kLook = absl::Microseconds(100);
  constexpr absl::Duration kLongest = absl::Milliseconds(2);
  const absl::Time end = absl::Now() + kLongest;
  while (Answers(core) == before && !core.failed() && absl::Now() < end) absl::SleepFor(kLook);
}

}  // namespace

std::filesystem::path Device::plugin_path() const {
  absl::MutexLock lock(&threads_mutex_);
  return generation_->plugin().path();
}

absl::Status Device::CheckNeedsNoState(const Plugin& plugin) {
  if ((plugin.entry().flags & VIRTBAY_PLUGIN_HOT_RELOADABLE) != 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      "the plugin does not save its state, nor does it say that it needs none "
      "(VIRTBAY_PLUGIN_HOT_RELOADABLE)");
}

absl::Status Device::CheckReloadable(Replacement* next) {
  const DeviceShape shape = generation_->Shape(features_);
  VIRTBAY_RETURN_IF_ERROR(next->generation->CheckFollows(shape));
  if (next->restores && shape.has_state) {
    VIRTBAY_RETURN_IF_ERROR(CheckStateVersion(next->generation.get(), shape.state_version));
  }
  VIRTBAY_RETURN_IF_ERROR(CheckQueuesWhole());
  for (const auto& queue : core_->queues) {
    const uint32_t i = queue->index();
    const uint16_t limit = MaxQueueSize(next->generation->queues()[i]);
    if (queue->running() && rings_[i].size > limit) {
      return absl::FailedPreconditionError(
          absl::StrCat("queue ", i, " has a ring of ", rings_[i].size,
                       "; the new device takes no more than ", limit));
    }
  }
  return absl::OkStatus();
}

absl::Status Device::CheckQueuesWhole() const {
  for (const auto& queue : core_->queues) {
    const uint32_t i = queue->index();
    if (queue->broken()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "queue ", i, " has stopped on an error; the driver has to reset the device first"));
    }
    if (!queue->running() && !queue->left_nothing()) {
      return absl::FailedPreconditionError(
          absl::StrCat("queue ", i, " was stopped with requests that the plugin still holds"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::set<std::pair<uint16_t, uint16_t>>> Device::AskRepeatable(Generation* next,
                                                                              absl::Time deadline) {
  std::vector<HeldRequest> held;
  for (const auto& owner : core_->threads) {
    QueueThread* const thread = owner.get();
    auto some = std::make_shared<std::vector<HeldRequest>>();
    VIRTBAY_RETURN_IF_ERROR(thread->RunUntil(
        [thread, some] {
          if (!Drained(*thread)) return false;
          for (Queue* queue : thread->queues()) {
            if (!queue->running()) continue;
            queue->VisitHeld([&](const Chain& chain) {
              some->push_back(HeldRequest::From(queue->index(), chain));
            });
          }
          return true;
        },
        std::max(deadline - absl::Now(), absl::ZeroDuration())));
    std::move(some->begin(), some->end(), std::back_inserter(held));
  }
  // Not by the queue threads: one that the new plugin does not come back to could serve nothing.
  std::set<std::pair<uint16_t, uint16_t>> repeatable;
  for (const HeldRequest& request : held) {
    if (next->MayRepeat(request)) repeatable.emplace(request.queue, request.head);
    if (next->crashed()) return next->EarlyFailure();
  }
  return repeatable;
}

absl::StatusOr<std::vector<Device::StoppedRing>> Device::PauseThreads(absl::Time deadline,
                                                                      Generation* next) {
  // All begin before any is waited for.
  for (const auto& queue : core_->queues) {
    if (queue->running()) queue->thread()->Post([raw = queue.get()] { raw->BeginDrain(); });
  }
  std::vector<StoppedRing> rings;
  std::vector<QueueThread*> paused;
  absl::Status status;
  // All are asked about before any is answered: the reload may still be refused.
  const bool lost = next != nullptr && generation_->crashed();
  auto repeatable = std::make_shared<std::set<std::pair<uint16_t, uint16_t>>>();
  if (lost) {
    auto asked = AskRepeatable(next, deadline);
    status = asked.status();
    if (asked.ok()) *repeatable = *std::move(asked);
  }
  for (const auto& owner : core_->threads) {
    if (!status.ok()) break;
    QueueThread* const thread = owner.get();
    auto pause = std::make_shared<Pause>();
    auto stopped = std::make_shared<std::vector<StoppedRing>>();
    status = thread->RunUntil(
        [thread, pause, stopped, repeatable, lost, next, host = generation_->host(),
         virtio_id = virtio_id_] {
          const bool ready = Drained(*thread);
          absl::MutexLock lock(&pause->mutex);
          if (pause->state == Pause::State::kGivenUp) return true;
          if (!ready) return false;
          if (next != nullptr && !lost && host->crashed.load(std::memory_order_acquire)) {
            pause->state = Pause::State::kGivenUp;
            return true;
          }
          for (Queue* queue : thread->queues()) {
            if (!queue->running()) continue;
            const auto may_repeat = [&](const Chain& chain) {
              return repeatable->contains({queue->index(), chain.head()});
            };
            const uint32_t failed = lost ? queue->FailHeld(virtio_id, may_repeat) : 0;
            stopped->push_back({queue, queue->Leave(), failed});
          }
          thread->loop()->Settle();
          thread->Pause();
          pause->state = Pause::State::kReached;
          return true;
        },
        std::max(deadline - absl::Now(), absl::ZeroDuration()));
    absl::MutexLock lock(&pause->mutex);
    if (pause->state != Pause::State::kReached) {
      pause->state = Pause::State::kGivenUp;
      if (status.ok()) {
        status = absl::FailedPreconditionError(
            "the old device crashed meanwhile; the next reload begins with what it held");
      }
      break;
    }
    status = absl::OkStatus();
    paused.push_back(thread);
    std::move(stopped->begin(), stopped->end(), std::back_inserter(rings));
  }
  if (status.ok()) return rings;
  for (QueueThread* thread : paused) thread->Continue();
  StartRings(std::move(rings));
  for (const auto& queue : core_->queues) {
    if (queue->running()) queue->thread()->Post([raw = queue.get()] { raw->EndDrain(); });
  }
  if (!absl::IsDeadlineExceeded(status)) return status;
  return absl::DeadlineExceededError("requests did not end in time, nor were they handed back");
}

void Device::StartRings(std::vector<StoppedRing> rings) {
  for (StoppedRing& ring : rings) {
    Queue* const queue = ring.queue;
    absl::StatusOr<QueueMaps> maps = MapsFor(rings_[queue->index()]);
    auto status = std::make_shared<absl::Status>(maps.status());
    if (maps.ok()) {
      auto config = std::make_shared<QueueConfig>(std::move(ring.config));
      const absl::Status ran = queue->thread()->Run(
          [queue, status, config, maps = *std::move(maps), features = features_] {
            *status = queue->Start(std::move(*config), maps, features);
          },
          core_->spec.stop_deadline);
      if (!ran.ok()) *status = ran;
    }
    // What the guest did to its memory meanwhile.
    if (!status->ok()) {
      core_->RaiseNeedsReset(absl::StrCat("queue ", queue->index(), ": ", status->message()),
                             /*stops=*/false);
    }
  }
}

void Device::Exchange(Replacement* other, bool quiesced) {
  generation_->host()->serves.store(false, std::memory_order_release);
  {
    absl::MutexLock lock(&threads_mutex_);
    std::swap(generation_, other->generation);
  }
  other->offload = UseGeneration(std::move(other->offload));
  other->threads = UseThreads(std::move(other->threads));
  for (const auto& queue : core_->queues) {
    queue->SetProperties(generation_->queues()[queue->index()], quiesced);
  }
}

std::string Device::ConfigOf(const Generation& generation) {
  std::string config(config_size_, '\0');
  if (config.empty() || generation.ops().config_read == nullptr) return config;
  CallOnControl(generation.host(), "config_read", [&](virtbay_error*) {
    return generation.ops().config_read(generation.device(), 0, config.data(), config_size_);
  }).IgnoreError();
  return config;
}

absl::Status Device::Try(absl::Duration time) {
  const absl::Time end = absl::Now() + time;
  const auto answered = [this] {
    return std::any_of(core_->threads.begin(), core_->threads.end(), [](const auto& thread) {
      const uint64_t sequence = thread->monitor().sequence();
      return sequence >= 2 && sequence % 2 == 0;  // in no callback, after one at least
    });
  };
  constexpr absl::Duration kLook = absl::Milliseconds(1);
  while (!core_->failed() && !answered() && absl::Now() < end) absl::SleepFor(kLook);
  if (!core_->failed()) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("the new device failed at once: ", core_->failure()));
}

absl::StatusOr<Device::Replacement> Device::Stage(std::shared_ptr<Plugin> plugin,
                                                  ReloadReport* report) {
  bool stateful = false;
  bool crashed = false;
  uint32_t number = 0;
  {
    absl::MutexLock lock(&mutex_);
    VIRTBAY_RETURN_IF_ERROR(CheckOwnsState());
    crashed = generation_->crashed();
    stateful = crashed ? HasLastState() : generation_->StateTable() != nullptr;
    number = generation_number_ + 1;
    report->device = core_->spec.name;
    report->version_before = generation_->version();
    report->build_before = generation_->build();
  }
  if (!crashed && !stateful) VIRTBAY_RETURN_IF_ERROR(CheckNeedsNoState(*plugin));
  Replacement next;
  // Without the lock: the control plane does not wait for what the plugin does here.
  VIRTBAY_ASSIGN_OR_RETURN(next.generation,
                           Generation::Make(core_.get(), std::move(plugin), stateful, number));
  VIRTBAY_RETURN_IF_ERROR(next.generation->EarlyFailure());
  next.restores = stateful;
  next.offload = NewOffloadPool();
  report->version_after = next.generation->version();
  report->build_after = next.generation->build();
  return next;
}

absl::Status Device::PassState(Replacement* next, ReloadReport* report) {
  Stopwatch watch;
  if (next->restores) {
    SavedState state;
    DeviceState last;
    if (generation_->crashed()) {
      if (!HasLastState()) {
        return absl::FailedPreconditionError(
            "the old device crashed meanwhile, before it had saved its state; the next reload "
            "begins afresh");
      }
      VIRTBAY_ASSIGN_OR_RETURN(last, CopyState(*last_state_));
      state = SavedState(&last);
    } else {
      VIRTBAY_RETURN_IF_ERROR(state.Save(generation_.get()));
      KeepState(state);
    }
    report->save = watch.Lap();
    report->state_bytes = state.size();
    report->state_fds = state.fds();
    const absl::Status restored = state.Restore(next->generation.get());
    report->restore = watch.Lap();
    VIRTBAY_RETURN_IF_ERROR(restored);
    report->state_restored = true;
  }
  Generation* const generation = next->generation.get();
  if (session_) {
    VIRTBAY_RETURN_IF_ERROR(generation->Negotiate(features_));
    VIRTBAY_RETURN_IF_ERROR(generation->Activate());
    next->activated = true;
  }
  report->restore += watch.Lap();
  return generation->EarlyFailure();
}

void Device::KeepState(const SavedState& state) {
  if (!core_->contains) return;
  absl::StatusOr<DeviceState> copy = state.Copy();
  if (copy.ok()) {
    last_state_ = *std::move(copy);
    return;
  }
  last_state_.reset();
  core_->log.Warn(
      absl::StrCat("its state is not kept for after a crash: ", copy.status().message()));
}

absl::Status Device::Commit(Replacement* next, std::vector<StoppedRing>* rings,
                            const ReloadOptions& options, ReloadReport* report) {
  Stopwatch watch;
  core_->BeginTrial();
  Exchange(next, /*quiesced=*/false);
  for (const auto& thread : core_->threads) thread->Adopt();
  absl::Status status;
  const uint64_t answers = Answers(*core_);
  if (session_) {
    status = generation_->Start();
    if (status.ok()) StartRings(std::exchange(*rings, {}));
  }
  report->commit = watch.Lap();
  if (session_ && status.ok()) {
    status = Try(options.trial);
    if (status.ok()) AwaitAnswer(*core_, answers);
    report->trial = watch.Lap();
    if (!status.ok()) {
      // Back, with what it has not answered.
      absl::StatusOr<std::vector<StoppedRing>> again =
          PauseThreads(absl::Now() + options.quiesce_deadline, /*next=*/nullptr);
      if (!again.ok()) {
        core_->EndTrial(/*forgive=*/false);
        next->lost = true;
        return absl::InternalError(absl::StrCat(
            status.message(), "; and ", again.status().message(), ", so the device needs a reset"));
      }
      *rings = *std::move(again);
      for (const auto& queue : core_->queues) queue->Reclaim(generation_->crashed());
    }
  }
  if (!status.ok()) Exchange(next, /*quiesced=*/true);
  core_->EndTrial(/*forgive=*/!status.ok());
  return status;
}

void Device::RollBack(Replacement* next, std::vector<StoppedRing> rings, absl::string_view failure,
                      bool told) {
  // A new device that cannot be stopped stays, for the driver to reset; what was before it goes.
  if (next->activated || next->lost) {
    next->generation->Stop();
    next->generation->Deactivate();
  }
  JoinThreads(std::move(next->threads), *next->generation);
  EndOffload(std::move(next->offload), *next->generation);
  if (next->lost) return;
  if (!failure.empty()) core_->FailAgain(failure, told);
  for (const auto& thread : core_->threads) thread->Continue();
  StartRings(std::move(rings));
}

absl::StatusOr<ReloadReport> Device::Reload(std::shared_ptr<Plugin> plugin,
                                            const ReloadOptions& options) {
  absl::MutexLock reloading(&reload_mutex_);
  ReloadReport report;
  Stopwatch watch;
  VIRTBAY_ASSIGN_OR_RETURN(Replacement next, Stage(std::move(plugin), &report));
  {
    absl::MutexLock lock(&mutex_);
    VIRTBAY_RETURN_IF_ERROR(CheckOwnsState());
    VIRTBAY_RETURN_IF_ERROR(CheckReloadable(&next));
    UndoPrepare();
    if (session_) {
      VIRTBAY_ASSIGN_OR_RETURN(next.threads, MakeThreads(*next.generation));
    }
    // A device that has failed is not called any more, and ends nothing: the new one is given all,
    // or what a crashed one held is answered.
    report.stage = watch.Lap();

    std::vector<StoppedRing> rings;
    if (session_) {
      auto stopped = PauseThreads(absl::Now() + options.quiesce_deadline, next.generation.get());
      if (!stopped.ok()) {
        JoinThreads(std::move(next.threads), *next.generation);
        EndOffload(std::move(next.offload), *next.generation);
        return stopped.status();
      }
      rings = *std::move(stopped);
      for (const StoppedRing& ring : rings) report.requests_failed += ring.failed;
      if (report.requests_failed > 0) {
        core_->log.Warn(
            absl::StrCat(report.requests_failed,
                         " requests that the crashed plugin held are answered as failed"));
      }
      for (const auto& queue : core_->queues) {
        report.requests_handed_over += queue->Reclaim(/*crashed=*/false);
      }
    }
    report.quiesce = watch.Lap();
    // It may have failed just now, when it was asked to end what it holds. A driver that has reset
    // one which crashed has not been told anything since.
    const std::string failure = core_->failed() ? core_->failure() : "";
    const bool told = core_->needs_reset();
    absl::Status status = PassState(&next, &report);
    if (status.ok()) {
      const bool differs = ConfigOf(*generation_) != ConfigOf(*next.generation);
      if (!failure.empty()) core_->ForgetFailure();
      status = core_->failed() ? absl::InternalError(core_->failure())
                               : Commit(&next, &rings, options, &report);
      if (status.ok() && (differs || !failure.empty())) core_->NotifyConfigChanged();
    }
    if (!status.ok()) {
      RollBack(&next, std::move(rings), failure, told);
      return status;
    }
    absl::MutexLock shown(&threads_mutex_);
    report.generation = ++generation_number_;
  }
  report.pause = report.quiesce + report.save + report.restore + report.commit;
  watch.Lap();
  EndGeneration(std::move(next), &report);
  report.retire = watch.Lap();
  core_->log.Info(absl::StrCat("reloaded, generation ", report.generation, ": version ",
                               report.version_before, " (", report.build_before, ") -> ",
                               report.version_after, " (", report.build_after, "), ",
                               report.state_restored ? "state restored" : "begun afresh",
                               ", pause ", absl::FormatDuration(report.pause)));
  return report;
}

void Device::EndGeneration(Replacement old, ReloadReport* report) {
  Generation* const generation = old.generation.get();
  if (report->state_restored) generation->Release();
  if (!old.threads.empty()) {
    generation->Stop();
    generation->Deactivate();
  }
  {
    absl::MutexLock lock(&mutex_);
    JoinThreads(std::move(old.threads), *generation);
  }
  EndOffload(std::move(old.offload), *generation);
  const std::weak_ptr<Plugin> image = generation->image();
  const bool damaged = generation->plugin().damaged();
  old.generation.reset();
  report->image_unloaded = image.expired() && !damaged;
}

}  // namespace virtbay
