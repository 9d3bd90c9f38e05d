#include "hostif/device_host/end_in_time.h"

#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <set>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"

namespace virtbay::device_host {
namespace {

// What a change that does come back takes, as a rule.
constexpr absl::Duration kGrace = absl::Seconds(3);

// What has not ended yet; kept by every thread that ends something.
class Pending {
 public:
  void Add(const std::string& what) {
    absl::MutexLock lock(&mutex_);
    names_.insert(what);
  }
  void Remove(const std::string& what) {
    absl::MutexLock lock(&mutex_);
    names_.erase(what);
  }
  // Whether all has ended by then.
  bool Await(absl::Time deadline) {
    absl::MutexLock lock(&mutex_);
    const auto none = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return names_.empty(); };
    return mutex_.AwaitWithDeadline(absl::Condition(&none), deadline);
  }
  std::string Names() {
    absl::MutexLock lock(&mutex_);
    return absl::StrJoin(names_, ", ");
  }

 private:
  absl::Mutex mutex_;
  std::set<std::string> names_ ABSL_GUARDED_BY(mutex_);
};

// False without a thread.
bool RunApart(const std::shared_ptr<Pending>& pending, const std::string& what,
              absl::AnyInvocable<void()> body) {
  pending->Add(what);
  try {
    std::thread([pending, what, body = std::move(body)]() mutable {
      body();
      body = nullptr;
      pending->Remove(what);
    }).detach();
    return true;
  } catch (const std::system_error&) {
    pending->Remove(what);
    return false;
  }
}

}  // namespace

void EndInTime(ControlTarget* target, absl::Duration patience, absl::AnyInvocable<void()> end) {
  const absl::Time begun = absl::Now();
  const auto pending = std::make_shared<Pending>();
  auto shared = std::make_shared<absl::AnyInvocable<void()>>(std::move(end));
  if (!RunApart(pending, "a change of the control plane", [shared] { (*shared)(); })) {
    (*shared)();
    return;
  }
  if (pending->Await(begun + kGrace)) return;
  for (const DeviceReport& report : target->InspectAll()) {
    const std::string& name = report.info.name;
    RunApart(pending, absl::StrCat("device ", name),
             [target, name] { target->RemoveDevice(name).IgnoreError(); });
  }
  if (pending->Await(begun + patience)) return;
  target->log().Error(absl::StrCat("stopping: ", pending->Names(), ": not ended after ",
                                   absl::FormatDuration(patience),
                                   ", held up by a plugin; the process ends without it"));
  ::_exit(EXIT_FAILURE);
}

}  // namespace virtbay::device_host
