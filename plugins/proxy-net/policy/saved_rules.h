// SavedRules: the rules of a device as text, for the device that goes on in its place: those of its
// option, and those that were in force. Both, since the other device may have another option: what
// was changed at run time can be told from what the option says no more.
//
//   STATE := N " " M "\n", N lines with a RULE each of the option, M lines with those in force
//
// A plain value; [any].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_POLICY_SAVED_RULES_H_
#define VIRTBAY_PLUGINS_PROXY_NET_POLICY_SAVED_RULES_H_

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "plugins/proxy-net/policy/rule.h"
#include "virtbay/sdk/result.h"

namespace virtbay::proxy_net {

struct SavedRules {
  std::vector<Rule> of_option;
  std::vector<Rule> in_force;

  // [any] The grammar above, and nothing behind it; an Error says what is wrong. Neither list has
  // more than Policy::kMaxRules.
  static sdk::Result<SavedRules> Parse(std::string_view text);
  // [any] In the same grammar.
  std::string ToString() const;

  // What was done at run time; a rule that was moved was removed and added.
  struct Changes {
    size_t added = 0;
    size_t removed = 0;
    bool operator==(const Changes&) const = default;
  };
  // [any] Of neither only if the lists are the same. O(of_option * in_force).
  Changes AtRunTime() const;

  bool operator==(const SavedRules&) const = default;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_POLICY_SAVED_RULES_H_
