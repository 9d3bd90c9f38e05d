#include "hostif/testkit/check.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "hostif/testkit/clauses.h"

namespace virtbay::testkit {
namespace {

struct Clause {
  const char* name;
  const char* what;
  ClauseFunction run;
  bool needs_device;
};

constexpr Clause kClauses[] = {
    {"abi", "the file is a plugin of this host's ABI", &CheckAbi, false},
    {"exports", "it exports its entry and nothing else, and nothing of it is UNIQUE", &CheckExports,
     false},
    {"load", "it loads, twice, with valid tables and without starting a thread", &CheckLoad, false},
    {"unload", "its image is gone after the unload", &CheckUnload, false},
    {"create", "a device is made, and a second one beside it, and both are destroyed", &CheckCreate,
     false},
    {"config", "any part of the configuration space can be read and written", &CheckConfig, true},
    {"features", "all features can be negotiated, and any others taken or refused in peace",
     &CheckFeatures, true},
    {"requests", "buffers of any shape and content end once, or are held", &CheckRequests, true},
    {"quiesce", "at a stop every request ends or is handed back", &CheckQuiesce, true},
    {"reset", "a reset with requests under way ends in a device that serves", &CheckReset, true},
    {"state", "another device goes on with its state, and refuses what is none", &CheckState, true},
    {"threads", "no thread is left of it", &CheckThreads, true},
    {"descriptors", "no file descriptor is left of it", &CheckDescriptors, true},
    {"memory", "no memory is left of it", &CheckMemory, true},
};

}  // namespace

std::vector<ClauseResult> Clauses() {
  std::vector<ClauseResult> clauses;
  for (const Clause& clause : kClauses) {
    clauses.push_back({.clause = clause.name, .what = clause.what, .verdict = Verdict::kSkip});
  }
  return clauses;
}

std::vector<ClauseResult> CheckPlugin(const CheckOptions& options,
                                      const std::function<void(const ClauseResult&)>& tell) {
  std::vector<ClauseResult> results;
  bool there = true;                    // whether there is a plugin to run
  bool device = !options.only.empty();  // whether it makes devices; unknown when it was not asked
  for (const Clause& clause : kClauses) {
    if (!options.only.empty() &&
        std::find(options.only.begin(), options.only.end(), clause.name) == options.only.end()) {
      continue;
    }
    ClauseResult result{.clause = clause.name, .what = clause.what};
    const absl::Time start = absl::Now();
    if (!there || (clause.needs_device && !device)) {
      result.verdict = Verdict::kSkip;
      result.text = there ? "no device can be made" : "no plugin can be loaded";
    } else {
      Finding finding =
          InChild(options.limit, [&](const Notes& doing) { return clause.run(options, doing); });
      result.verdict = finding.verdict;
      result.text = std::move(finding.text);
    }
    result.took = absl::Now() - start;
    const bool passed = result.verdict == Verdict::kPass;
    if (clause.run == &CheckAbi || clause.run == &CheckLoad) there = there && passed;
    if (clause.run == &CheckCreate) device = passed;
    if (tell) tell(result);
    results.push_back(std::move(result));
  }
  return results;
}

}  // namespace virtbay::testkit
