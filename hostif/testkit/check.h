// CheckPlugin: the conformance suite that any plugin can be put through: one clause of the contract
// after the other, each in a process of its own, so that a crash or a hang is a clause that failed.
// Stateless; [control]. The calling process should have one thread: it forks.
#ifndef VIRTBAY_HOSTIF_TESTKIT_CHECK_H_
#define VIRTBAY_HOSTIF_TESTKIT_CHECK_H_

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace virtbay::testkit {

enum class Verdict { kPass, kFail, kSkip };

struct ClauseResult {
  std::string clause;  // its name: one word
  std::string what;    // what it says
  Verdict verdict = Verdict::kFail;
  std::string text = "";  // what was found, or why not: one line, may be empty
  absl::Duration took = absl::ZeroDuration();
};

struct CheckOptions {
  std::filesystem::path file;
  std::string type;                            // device type; empty: the plugin's only one
  std::map<std::string, std::string> options;  // of the device: what they name may be changed
  absl::Duration limit = absl::Seconds(60);    // of one clause
  std::vector<std::string> only;               // these clauses; empty: all of them
};

// The clauses in their order, what they say.
std::vector<ClauseResult> Clauses();

// Puts the plugin through all of them; `tell` gets each result as it comes. When no device can be
// made, the clauses that need one are skipped.
std::vector<ClauseResult> CheckPlugin(const CheckOptions& options,
                                      const std::function<void(const ClauseResult&)>& tell);

}  // namespace virtbay::testkit

#endif  // VIRTBAY_HOSTIF_TESTKIT_CHECK_H_
