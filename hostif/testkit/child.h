// InChild: runs a function in a forked process, and learns how it went whatever becomes of that
// process. Stateless; [control], from a process with one thread.
#ifndef VIRTBAY_HOSTIF_TESTKIT_CHILD_H_
#define VIRTBAY_HOSTIF_TESTKIT_CHILD_H_

#include <functional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "framework/base/unique_fd.h"
#include "hostif/testkit/check.h"

namespace virtbay::testkit {

// What a clause found.
struct Finding {
  Verdict verdict = Verdict::kPass;
  std::string text;
};

// Inside the child: what it is about to do, for when it does not come back from that.
class Notes {
 public:
  explicit Notes(int fd) : fd_(fd) {}
  void operator()(absl::string_view doing) const;

 private:
  const int fd_;
};

// The function's finding; a failure that says so when the process was ended by a signal, ended by
// itself, or did not end within `limit`: it is killed then, with all that it started.
Finding InChild(absl::Duration limit, const std::function<Finding(const Notes&)>& run);

}  // namespace virtbay::testkit

#endif  // VIRTBAY_HOSTIF_TESTKIT_CHILD_H_
