// Replay: what `virtbay record` has written, fed to a plugin again without a guest: in the order of
// the record, an answer waited for where there was one. So that a case that failed becomes a test.
// Stateless; [control].
#ifndef VIRTBAY_TESTKIT_REPLAY_H_
#define VIRTBAY_TESTKIT_REPLAY_H_

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "virtbay/sdk/result.h"
#include "virtbay/testkit/bay.h"

namespace virtbay::testkit {

/// What to replay, and to which plugin.
struct ReplayOptions {
  std::string record;  ///< the file
  /// An empty plugin and an empty type are those of the record; so are the features, whatever is
  /// here. The device's options are these: those of the record name files that it has changed.
  BayOptions bay;
  bool recorded_options = false;  ///< the record's where these have none of that key
  uint32_t patience = 5;          ///< seconds that an answer may take
  /// Told before each request; may be empty.
  std::function<void(std::string_view)> progress;
};

/// An answer that is not the recorded one.
struct ReplayDifference {
  uint32_t queue = 0;
  uint64_t request = 0;  ///< as the record numbers them, from 1 in each queue
  std::string what;      ///< one line
};

/// How it went.
struct ReplayReport {
  static constexpr size_t kMostDifferences = 100;  ///< that are kept of those counted

  uint64_t requests = 0;    ///< that were sent
  uint64_t answered = 0;    ///< of those that are answered in the record
  uint64_t lengths = 0;     ///< answers of another length
  uint64_t contents = 0;    ///< answers of the same length with other bytes
  uint64_t unanswered = 0;  ///< answered in the record, not here
  /// Of these, buffers that a device fills by itself (a frame, a key): nothing comes from outside
  /// in a replay.
  uint64_t unfilled = 0;
  /// Requests that the ring or the memory had no room for, or of queues that are not there.
  uint64_t left_out = 0;
  uint64_t no_queue = 0;  ///< of these, those of queues that the device does not have
  std::vector<ReplayDifference> differences;
  std::string failure;  ///< why the device needs a reset; empty: it does not
  bool cut = false;     ///< the record ends within a request
  bool whole = true;    ///< the record begins with the device's first request
};

/// Replays to the end, or to the device's failure. The error is the record's, the host's or the
/// plugin's at creation.
__attribute__((visibility("default"))) sdk::Result<ReplayReport> Replay(
    const ReplayOptions& options);

}  // namespace virtbay::testkit

#endif  // VIRTBAY_TESTKIT_REPLAY_H_
